"""Speed of ``hf-rerank prepare ad`` by stage, its peak memory and disk space, and an extrapolation to the whole
dataset.

    python scripts/benchmarks/preparing_ad.py --output-dir RESULTS [--lists 1000000] [--behaviours 10000000 20000000]
        [--raw-dir RAW] [--rounds 2] [--scratch DIR]

Writes RESULTS/preparing_ad.json and RESULTS/preparing_ad.md, and prints the latter. The raw files are simulated
(``hf-rerank simulate ad``), or those of ``--raw-dir``. A smaller behaviour log is the beginning of the largest; a
file in ``--raw-dir`` that is shorter is used whole.

A round runs the whole command in a separate process for each size. Rows and seconds of the stages come from its
report; memory is the peak resident memory of the process (ru_maxrss); disk is the maximum size of the folder of
buckets, sampled every 50 ms. The tables show medians over the rounds, for memory and disk the maximum.

The whole dataset has 26,557,961 impressions and 723,268,134 behaviours. The extrapolation is linear: for the logs by
rows per second; for making lists, with two sizes, by a part that grows with the lists and one that grows with the
behaviours. It assumes the same share of behaviours kept and the same number of lists per impression as measured, a
disk as fast as here, where the files are in the page cache, and buckets of the same size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from preparing import COMMAND, machine, positive

IMPRESSIONS, BEHAVIOURS = 26_557_961, 723_268_134
LOG = "behavior_log.csv"
READ_IMPRESSIONS, READ_BEHAVIOURS = "read and cut raw_sample.csv", f"read and cut {LOG}"
MAKE = "read and write lists"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--lists", type=positive(int), default=1_000_000, help="to simulate")
    parser.add_argument("--behaviours", nargs="+", type=positive(int), default=[10_000_000, 20_000_000])
    parser.add_argument("--raw-dir", type=Path, help="raw files to use instead of simulated ones")
    parser.add_argument("--rounds", type=positive(int), default=2)
    parser.add_argument("--scratch", type=Path, help="folder for raw files, buckets and lists (default: the system's)")
    options = parser.parse_args()

    sizes = sorted(set(options.behaviours))
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        whole = options.raw_dir
        if whole is None:
            whole = scratch / "simulated"
            simulate(whole, options.lists, sizes[-1])
        folders = [cut_log(whole, scratch / f"raw-{size}", size) for size in sizes]
        rounds = [[one_run(folder, scratch / "lists") for folder in folders] for _ in range(options.rounds)]

    rows = [row(runs) for runs in zip(*rounds, strict=True)]
    found = machine()
    results = {
        "rounds": options.rounds,
        "raw": "simulated" if options.raw_dir is None else "given",
        "machine": found,
        "rows": rows,
        "whole_dataset": extrapolated(rows),
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "preparing_ad.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = as_markdown(results)
    (options.output_dir / "preparing_ad.md").write_text(text, encoding="utf-8")
    print(text)


def simulate(folder: Path, lists: int, behaviours: int) -> None:
    from hf_rerank.data.simulation import simulate_ad

    simulate_ad(folder, lists, seed=0, behaviours=behaviours, progress=True)


def cut_log(whole: Path, folder: Path, behaviours: int) -> Path:
    """Makes a folder with the first rows of the behaviour log, and links to the other files."""
    folder.mkdir()
    for path in whole.iterdir():
        if path.name != LOG:
            (folder / path.name).symlink_to(path.resolve())
    with (whole / LOG).open("rb") as source, (folder / LOG).open("wb") as target:
        target.writelines(itertools.islice(source, behaviours + 1))
    return folder


def one_run(raw: Path, output: Path) -> dict[str, Any]:
    """Returns the report of one command, with its time, memory and disk space."""
    load = os.getloadavg()[0]
    most = [0]
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(output.with_name(f"{output.name}.partial"), most, done))
    command = [*COMMAND, "prepare", "ad", "--raw-dir", str(raw), "--output-dir", str(output), "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watcher.start()
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    parquet = sum(path.stat().st_size for path in output.glob("*.parquet"))
    shutil.rmtree(output)
    report = json.loads(printed)
    return {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_mib": used.ru_maxrss / 1024,
        "bucket_bytes": most[0],
        "log_bytes": sum((raw / name).stat().st_size for name in ("raw_sample.csv", LOG)),
        "parquet_bytes": parquet,
        "load_before": load,
        "lists": sum(report["lists"].values()),
        "counts": report["counts"],
        "stages": report["stages"],
    }


def watch(folder: Path, most: list[int], done: threading.Event) -> None:
    """Records the maximum size of a folder in bytes."""
    while not done.wait(0.05):
        sizes = []
        try:
            sizes += [path.stat().st_size for path in folder.rglob("*.arrow")]
        except FileNotFoundError:  # not created yet, or already removed
            continue
        most[0] = max(most[0], sum(sizes))


def row(runs: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """Returns the medians over the rounds; for memory and disk, the maximum."""
    medians = {name: statistics.median(run[name] for run in runs) for name in ("seconds", "cpu_seconds")}
    largest = {name: max(run[name] for run in runs) for name in ("peak_memory_mib", "bucket_bytes")}
    stages = {
        name: {
            "rows": stage["rows"],
            "seconds": statistics.median(run["stages"][name]["seconds"] for run in runs),
        }
        for name, stage in runs[0]["stages"].items()
    }
    same = {name: runs[0][name] for name in ("lists", "counts", "log_bytes", "parquet_bytes")}
    return {**medians, **largest, **same, "stages": stages, "each_round": list(runs)}


def extrapolated(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Extrapolates seconds of each stage and bytes of the buckets to the whole dataset; see the top of this file."""
    last = rows[-1]
    impressions, behaviours = last["counts"]["impressions"], last["counts"]["behaviours"]
    times_impressions, times_behaviours = IMPRESSIONS / impressions, BEHAVIOURS / behaviours
    seconds = {name: stage["seconds"] * times_impressions for name, stage in last["stages"].items()}
    seconds[READ_BEHAVIOURS] = last["stages"][READ_BEHAVIOURS]["seconds"] * times_behaviours
    make = last["stages"][MAKE]["seconds"]
    a_behaviour, buckets = 0.0, last["bucket_bytes"]
    bytes_a_behaviour = 0.0
    if len(rows) > 1:
        more = behaviours - rows[0]["counts"]["behaviours"]
        a_behaviour = max(0.0, (make - rows[0]["stages"][MAKE]["seconds"]) / more) if more else 0.0
        bytes_a_behaviour = max(0.0, (buckets - rows[0]["bucket_bytes"]) / more) if more else 0.0
    seconds[MAKE] = (make - a_behaviour * behaviours) * times_impressions + a_behaviour * BEHAVIOURS
    return {
        **seconds,
        "all stages": sum(seconds.values()),
        "bucket_bytes": (buckets - bytes_a_behaviour * behaviours) * times_impressions
        + bytes_a_behaviour * BEHAVIOURS,
    }


def as_markdown(results: dict[str, Any]) -> str:
    found, rows, whole = results["machine"], results["rows"], results["whole_dataset"]
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    loads = ", ".join(f"{run['load_before']:.1f}" for measured in rows for run in measured["each_round"])
    minutes, gigabytes = whole["all stages"] / 60, whole["bucket_bytes"] / 1e9
    lines = [
        "# Speed of preparing Ad",
        "",
        f"{found['cpu']}, {found['cpus']} processors, {versions}, {found['date']}. Raw files: {results['raw']}. "
        f"Medians over {results['rounds']} rounds; of memory and disk the largest. One-minute load before the runs: "
        f"{loads}.",
        "",
        "| impressions | behaviours | kept | logs, GB | lists | seconds | MB/s | peak memory, MiB | buckets, GB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for measured in rows:
        counts = measured["counts"]
        dropped = sum(number for name, number in counts.items() if name.startswith("behaviours "))
        lines.append(
            f"| {counts['impressions']:,} | {counts['behaviours']:,} | {counts['behaviours'] - dropped:,} "
            f"| {measured['log_bytes'] / 1e9:.2f} | {measured['lists']:,} | {measured['seconds']:.1f} "
            f"| {measured['log_bytes'] / 1e6 / measured['seconds']:.0f} | {measured['peak_memory_mib']:.0f} "
            f"| {measured['bucket_bytes'] / 1e9:.2f} |"
        )
    lines += [
        "",
        "| stage | rows | seconds | rows a second | whole dataset, seconds (extrapolated) |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, stage in rows[-1]["stages"].items():
        rate = stage["rows"] / stage["seconds"] if stage["seconds"] else float("nan")
        lines.append(f"| {name} | {stage['rows']:,} | {stage['seconds']:.1f} | {rate:,.0f} | {whole[name]:.0f} |")
    lines += [
        f"| all | | | | {whole['all stages']:.0f} |",
        "",
        f"The whole dataset would take about {minutes:.0f} minutes and {gigabytes:.1f} GB of disk for buckets: "
        f"extrapolated from {rows[-1]['counts']['behaviours']:,} behaviours to {BEHAVIOURS:,}, and not measured. It "
        "assumes as many behaviours kept and lists an impression as here, and a disk as fast as here, where files are "
        "in the memory of the system.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
