"""Feeds the library damaged and hostile inputs of every kind for some minutes, and counts the outcomes.

``scripts/fuzz.py [--minutes 2] [--seed 0] [--kinds NAME ...] [--output FILE]``: tries as many inputs of each kind
(``KINDS`` in ``tests/fuzzing``) as fit into the minutes. Prints, and writes as JSON, how many were tried, how many
were ranked correctly, how many were refused with a one-line error of the library, and how many had any other outcome:
another exception, a message of several lines, a wrong result, a crash, more than ``SECONDS`` or ``MEMORY``. That last
number must be 0.

Each kind runs in a separate process, so that a crash is counted and the next input is tried. An input is identified by
kind, seed and number: ``--only NUMBER`` with ``--kinds`` repeats one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from fuzzing import KINDS, make_kind  # noqa: E402
from fuzzing.judging import CORRECT, REJECTED  # noqa: E402

# Limits per input; loading and ranking takes a tenth of a second and some megabytes.
SECONDS, MEMORY = 60, 2**29


def main() -> int:
    """Runs all kinds and writes the counts; the exit code is 1 if an input had any other outcome."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes for all kinds, in parallel (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all inputs (default: 0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of input (default: all)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="try only this input, in this process")
    parser.add_argument("--worker", type=int, metavar="FIRST", help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "scripts" / "benchmarks" / "results" / "fuzz.json", help="JSON file"
    )
    options = parser.parse_args()
    if options.only is not None or options.worker is not None:
        work(options.kinds[0], options.seed, options.worker, options.only)
        return 0
    started = time.monotonic()
    with ThreadPoolExecutor(len(options.kinds)) as side_by_side:
        rows = side_by_side.map(lambda name: run(name, options.seed, 60 * options.minutes), options.kinds)
        kinds = dict(zip(options.kinds, rows, strict=True))
    report = {"seed": options.seed, "kinds": kinds, "seconds": round(time.monotonic() - started)}
    print(table(report))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.output}")
    return int(any(row["anything_else"] for row in kinds.values()))


def table(report: dict[str, Any]) -> str:
    """Formats the counts as the Markdown table in ``hf_rerank/inference/README.md``."""
    columns = ("tried", "correct", "rejected", "anything_else")
    lines = [["kind of input", *(column.replace("_", " ") for column in columns)], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(f"{row[column]:,}" for column in columns)] for name, row in report["kinds"].items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def run(name: str, seed: int, seconds: float) -> dict[str, Any]:
    """Counts the outcomes of one kind; a worker that dies is replaced by one that starts after the fatal input."""
    row: dict[str, Any] = {"tried": 0, CORRECT: 0, REJECTED: 0, "anything_else": 0, "examples": []}
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        command = [sys.executable, __file__, "--kinds", name, "--seed", str(seed), "--worker", str(number)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        ready = False
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                if not line.startswith(b"{"):
                    continue
                found = json.loads(line)
                if not ready:
                    ready = True
                    continue
                number = found["number"] + 1
                _count(row, found)
                if time.monotonic() > end:
                    worker.terminate()
                    return row
        if not ready:
            raise RuntimeError(f"{' '.join(command)} ended before its first input: run it to see why")
        died = (
            "no end in time" if worker.returncode == -signal.SIGALRM else f"the process ended with {worker.returncode}"
        )
        _count(row, {"number": number, "what": "?", "outcome": died})
        number += 1
    return row


def _count(row: dict[str, Any], found: dict[str, Any]) -> None:
    row["tried"] += 1
    if found["outcome"] in (CORRECT, REJECTED):
        row[found["outcome"]] += 1
        return
    row["anything_else"] += 1
    if len(row["examples"]) < 20:
        row["examples"].append(found)


def work(name: str, seed: int, first: int | None, only: int | None) -> None:
    """Prints the outcome of each input as a line of JSON, endlessly, or of only one input."""
    with tempfile.TemporaryDirectory() as folder:
        kind = make_kind(name, Path(folder))
        number = first if only is None else only
        print(json.dumps({"ready": name}), flush=True)
        while True:
            before = _peak()
            signal.alarm(SECONDS)
            what, outcome = kind.try_one(random.Random(f"{name} {seed} {number}"))
            signal.alarm(0)
            if _peak() - before > MEMORY and outcome in (CORRECT, REJECTED):
                outcome = f"{outcome}, with {(_peak() - before) / 2**20:,.0f} MiB"
            print(json.dumps({"number": number, "what": what, "outcome": outcome}), flush=True)
            if only is not None:
                return
            number += 1  # type: ignore[operator]


def _peak() -> int:
    """Returns the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
