"""Speed of ``hf-rerank prepare prm_public``, compared with parsing by Python's eval, and its peak memory.

    python scripts/benchmarks/preparing.py --output-dir RESULTS [--gigabytes 0.5 2] [--rounds 3] [--sample 1000]
        [--scratch DIR]

Writes RESULTS/preparing.json and RESULTS/preparing.md, and prints the latter. The text is simulated; the ground truth
file is removed, since real data have none. The smaller texts are the beginning of the largest. A gigabyte is 10^9
bytes; scratch needs space for twice the largest text.

A round times, in turn: eval of ``--sample`` lines, as public scripts parse them (``line.split("|")``, eval of each
field, ``null`` as None), without using the values; the whole command in a separate process, from its start to the
finished folder; and eval again. Eval runs on one core. "Times eval" is seconds per byte of eval (the mean of both)
over seconds per byte of the command; "per core" is the same for processor seconds (user and system, all threads). The
table shows medians and extremes over the rounds: ratios are reliable on a noisy machine, absolute times are not.
Memory is the peak resident memory of the command's process (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

RAW_FILE = "set1.train.txt.part1"
LINE_BYTES = 6_900  # about the size of a simulated line; a text is cut to its size
NAMES: dict[str, Any] = {"null": None}
COMMAND = (sys.executable, "-m", "hf_rerank.cli")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--gigabytes", nargs="+", type=positive(float), default=[0.5, 2.0])
    parser.add_argument("--rounds", type=positive(int), default=3)
    parser.add_argument("--sample", type=positive(int), default=1_000, help="lines to parse with eval")
    parser.add_argument("--scratch", type=Path, help="folder for text and lists (default: the system's)")
    options = parser.parse_args()

    sizes = sorted({int(gigabytes * 1e9) for gigabytes in options.gigabytes})
    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        make_text(scratch / "raw", sizes[-1])
        for size in reversed(sizes):  # the text is cut down
            cut_text(scratch / "raw" / RAW_FILE, size)
            sample = first_lines(scratch / "raw" / RAW_FILE, options.sample)
            rounds = [one_round(scratch, sample) for _ in range(options.rounds)]
            rows.insert(0, row((scratch / "raw" / RAW_FILE).stat().st_size, rounds))
            print(f"{size / 1e9:g} GB: {options.rounds} rounds", file=sys.stderr)

    found = machine()
    results = {"rounds": options.rounds, "sample_lines": options.sample, "machine": found, "rows": rows}
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    loads = ", ".join(f"{values['load_before']:.1f}" for found_row in rows for values in found_row["each_round"])
    text = (
        f"# Speed of preparing PRM Public\n\n{found['cpu']}, {found['cpus']} processors, {versions}, {found['date']}. "
        f"Simulated text. Medians over {options.rounds} rounds, and extremes; eval of {options.sample} lines before "
        f"and after each. One-minute load before the rounds: "
        f"{loads}.\n\n"
        f"{table(rows)}\n"
    )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "preparing.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.output_dir / "preparing.md").write_text(text, encoding="utf-8")
    print(text)


def make_text(folder: Path, size: int) -> None:
    """Simulates a raw file of at least ``size`` bytes, and removes its ground truth file."""
    lists = str(size // LINE_BYTES + 2)
    subprocess.run([*COMMAND, "simulate", "prm_public", "--output-dir", folder, "--lists", lists], check=True)
    for path in folder.iterdir():
        if path.name != RAW_FILE:
            path.unlink()


def cut_text(path: Path, size: int) -> None:
    """Cuts a file at the end of the line that contains byte ``size``."""
    with path.open("r+b") as file:
        file.seek(size)
        file.readline()
        file.truncate()


def first_lines(path: Path, count: int) -> list[str]:
    with path.open(encoding="ascii") as file:
        return [line for _, line in zip(range(count), file, strict=False)]


def one_round(scratch: Path, sample: Sequence[str]) -> dict[str, float]:
    """Returns seconds and processor seconds per byte of eval and the command, peak memory, and bytes of Parquet."""
    lists, size = scratch / "lists", (scratch / "raw" / RAW_FILE).stat().st_size
    load = os.getloadavg()[0]
    first = time_eval(sample)
    started = time.perf_counter()
    command = [*COMMAND, "prepare", "prm_public", "--raw-dir", str(scratch / "raw"), "--output-dir", str(lists)]
    process = os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet())
    _, status, used = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    second = time_eval(sample)
    parquet = sum(path.stat().st_size for path in lists.glob("*.parquet"))
    shutil.rmtree(lists)
    return {
        "eval_ns_a_byte": 1e9 * (first[0] + second[0]) / 2,
        "eval_cpu_ns_a_byte": 1e9 * (first[1] + second[1]) / 2,
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "times_eval": (first[0] + second[0]) / 2 * size / seconds,
        "times_eval_per_core": (first[1] + second[1]) / 2 * size / (used.ru_utime + used.ru_stime),
        "peak_memory_mib": used.ru_maxrss / 1024,
        "parquet_bytes": parquet,
        "load_before": load,
    }


def quiet() -> list[tuple[Any, ...]]:
    """File actions for posix_spawn that discard standard output but keep errors."""
    return [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]


def time_eval(lines: Sequence[str]) -> tuple[float, float]:
    """Returns seconds and processor seconds per byte of text parsed by eval."""
    started, cpu_started = time.perf_counter(), time.process_time()
    for line in lines:
        for field in line.split("|"):
            eval(field, NAMES)
    size = sum(map(len, lines))
    return (time.perf_counter() - started) / size, (time.process_time() - cpu_started) / size


def row(size: int, rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns the medians over the rounds, and the other values of the table."""
    medians = {name: statistics.median(values[name] for values in rounds) for name in rounds[0]}
    extremes = {
        f"{name}_{end.__name__}": end(values[name] for values in rounds)
        for name in ("times_eval", "times_eval_per_core", "peak_memory_mib")
        for end in (min, max)
    }
    return {"text_bytes": size, **medians, **extremes, "each_round": list(rounds)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| text, GB | seconds | MB/s | times eval [min, max] | per core [min, max] | peak memory, MiB | Parquet, GB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for found in rows:
        ratios = [
            f"{found[name]:.1f} [{found[f'{name}_min']:.1f}, {found[f'{name}_max']:.1f}]"
            for name in ("times_eval", "times_eval_per_core")
        ]
        lines.append(
            f"| {found['text_bytes'] / 1e9:.3g} | {found['seconds']:.1f} "
            f"| {found['text_bytes'] / 1e6 / found['seconds']:.0f} | {' | '.join(ratios)} "
            f"| {found['peak_memory_mib_max']:.0f} | {found['parquet_bytes'] / 1e9:.3g} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in ("polars", "pyarrow", "numpy")},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def positive(kind: type) -> Any:
    """For argparse: a number above 0."""

    def number(text: str) -> Any:
        if kind(text) <= 0:
            raise ValueError
        return kind(text)

    number.__name__ = "positive number"
    return number


if __name__ == "__main__":
    main()
