"""Kills every command that writes at many points, fills its disk, runs it twice at once, and counts how these end.

``scripts/write_faults.py [--kills 20] [--writers NAME ...] [--output FILE]``: runs each writer (``WRITERS`` in
``tests/writing_commands.py``) in a separate process. Prints, and writes as JSON, how many faults were tried, how many
ended correctly (as defined by ``judge`` in ``tests/writing_faults.py``), and those that did not: there must be none.
The test suite runs a few kills per writer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import warm  # noqa: E402
import writing_commands  # noqa: E402
from writing_faults import faults, judge  # noqa: E402


def main() -> int:
    """Runs all writers; the exit code is 1 if a fault did not end correctly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="number of disk operations at which each is killed")
    parser.add_argument("--writers", nargs="+", choices=list(writing_commands.WRITERS))
    parser.add_argument(
        "--output", type=Path, default=ROOT / "scripts" / "benchmarks" / "results" / "write_faults.json"
    )
    options = parser.parse_args()
    report: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "inputs").mkdir()
        warm.run(writing_commands.make_inputs, folder / "inputs", log=folder / "log")
        for number, name in enumerate(options.writers or writing_commands.WRITERS):
            runs, result = folder / f"runs-{number}", folder / f"{number}.json"
            warm.run(faults, name, folder / "inputs", runs, result, options.kills, log=folder / f"log-{number}")
            ends = list(judge(json.loads(result.read_text()), runs / "work"))
            wrong = {fault: end for fault, end in ends if end}
            report[name] = {"tried": len(ends), "right": len(ends) - len(wrong), "wrong": wrong}
            print(f"{name:30s} {len(ends):4d} tried, {len(ends) - len(wrong):4d} right", flush=True)
    options.output.write_text(json.dumps({"kills": options.kills, "writers": report}, indent=2) + "\n")
    return int(any(row["wrong"] for row in report.values()))


if __name__ == "__main__":
    sys.exit(main())
