"""Polars or DuckDB for preparing Ad: the same job in both, seconds and peak memory.

    python scripts/benchmarks/engines.py --output-dir RESULTS [--behaviours 4000000 16000000] [--impressions 2000000]
        [--users 100000] [--rounds 3] [--memory-limit 4GB] [--scratch DIR]

Writes RESULTS/engines.json and RESULTS/engines.md, and prints the latter. DuckDB is not a dependency of the library:
``pip install duckdb`` for this script. The logs are random numbers in the format of Ad.

The job: for each user the most recent window with a click (protocol ``public``), its first 10 items with the columns
of their ads, the user's profile, and the newest 50 behaviours before it, written as Parquet (zstd). Polars: all of
``prepare_ad``, which also checks every line, splits the logs into buckets on disk, and writes one shard per split.
DuckDB: one SQL script (below), which reads the CSV files with known types and may spill to disk. Each runs in a
separate process, in turn in each round, timed from the start of the interpreter to the finished files. Both results
must have the same numbers of lists, items, clicks, behaviours and minutes. Memory is the peak resident memory of the
process (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from preparing import machine, positive, quiet

START, DAYS = 1_494_000_000, 8

SQL = """
SET threads = {threads}; SET memory_limit = '{memory}'; SET temp_directory = '{scratch}/spilled';
CREATE TABLE impressions AS SELECT * FROM read_csv('{raw}/raw_sample.csv', header = true, columns = {{
    'user': 'UINTEGER', 'time_stamp': 'UINTEGER', 'adgroup_id': 'UINTEGER', 'pid': 'VARCHAR', 'nonclk': 'UTINYINT',
    'clk': 'UTINYINT'}});
CREATE TABLE ads AS SELECT * FROM read_csv('{raw}/ad_feature.csv', header = true, nullstr = ['', 'NULL']);
CREATE TABLE profiles AS SELECT * FROM read_csv('{raw}/user_profile.csv', header = true, nullstr = ['', 'NULL']);
CREATE TABLE lists AS
WITH RECURSIVE users AS (
    SELECT user, max(time_stamp) AS newest FROM impressions GROUP BY user HAVING count(*) >= 3 AND sum(clk) > 0
), windows AS (
    SELECT user, newest FROM users
    UNION ALL
    SELECT i.user, max(i.time_stamp) FROM windows w JOIN impressions i ON i.user = w.user
    WHERE i.time_stamp + 300 < w.newest GROUP BY i.user, w.newest
), clicked AS (
    SELECT w.user, max(w.newest) AS newest FROM windows w JOIN impressions i ON i.user = w.user
    WHERE i.clk = 1 AND i.time_stamp <= w.newest AND i.time_stamp + 300 >= w.newest GROUP BY w.user
)
SELECT c.user, c.newest, min(i.time_stamp) AS first,
    list(struct_pack(i.adgroup_id, i.time_stamp, i.pid, i.clk, a.cate_id, a.campaign_id, a.customer, a.brand, a.price)
         ORDER BY i.time_stamp, i.rowid)[:10] AS items
FROM clicked c JOIN impressions i ON i.user = c.user LEFT JOIN ads a ON a.adgroup_id = i.adgroup_id
WHERE i.time_stamp <= c.newest AND i.time_stamp + 300 >= c.newest GROUP BY c.user, c.newest;
COPY (
    WITH histories AS (
        SELECT l.user, max_by(struct_pack(b.btag, b.cate, b.brand,
            minutes_ago := least((l.first - b.time_stamp) // 60, 30000)), b.time_stamp, 50) AS history
        FROM lists l JOIN read_csv('{raw}/behavior_log.csv', header = true, nullstr = ['', 'NULL'], columns = {{
            'user': 'UINTEGER', 'time_stamp': 'UINTEGER', 'btag': 'VARCHAR', 'cate': 'UINTEGER',
            'brand': 'UINTEGER'}}) b ON b.user = l.user
        WHERE b.time_stamp <= l.first GROUP BY l.user
    )
    SELECT l.user, l.newest, p.* EXCLUDE (userid), l.items, h.history
    FROM lists l LEFT JOIN profiles p ON p.userid = l.user LEFT JOIN histories h ON h.user = l.user
) TO '{output}' (FORMAT parquet, COMPRESSION zstd);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path)
    parser.add_argument("--behaviours", nargs="+", type=positive(int), default=[4_000_000, 16_000_000])
    parser.add_argument("--impressions", type=positive(int), default=2_000_000)
    parser.add_argument("--users", type=positive(int), default=100_000)
    parser.add_argument("--rounds", type=positive(int), default=3)
    parser.add_argument("--memory-limit", default="4GB", help="memory limit of DuckDB (default: 4GB)")
    parser.add_argument("--scratch", type=Path, help="folder for logs and lists (default: the system's)")
    parser.add_argument("--run", nargs=3, metavar=("ENGINE", "RAW", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        engine, raw, output = options.run
        {"polars": with_polars, "duckdb": with_duckdb}[engine](Path(raw), Path(output), options.memory_limit)
        return
    if options.output_dir is None:
        parser.error("the following arguments are required: --output-dir")
    try:
        import duckdb
    except ImportError:
        parser.error("this script compares with DuckDB, which is not installed: pip install duckdb")

    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        raw = Path(name) / "raw"
        make_logs(raw, options.users, options.impressions)
        for behaviours in sorted(options.behaviours):
            make_behaviours(raw / "behavior_log.csv", options.users, behaviours)
            each_round = []
            for number in range(options.rounds):
                order = ("polars", "duckdb") if number % 2 == 0 else ("duckdb", "polars")
                each_round.append({engine: one_run(engine, raw, options.memory_limit) for engine in order})
                found = [each_round[-1][engine].pop("found") for engine in ("polars", "duckdb")]
                if found[0] != found[1]:
                    raise RuntimeError(f"Polars and DuckDB give different lists: {found[0]} and {found[1]}")
            rows.append({"behaviours": behaviours, "found": found[0], "each_round": each_round, **medians(each_round)})
            print(f"{behaviours:,} behaviours: {options.rounds} rounds", file=sys.stderr)

    where = machine()
    where["versions"]["duckdb"] = duckdb.__version__
    results = {
        "users": options.users,
        "impressions": options.impressions,
        "rounds": options.rounds,
        "memory_limit": options.memory_limit,
        "machine": where,
        "rows": rows,
    }
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    text = (
        f"# Polars and DuckDB, preparing Ad\n\n{where['cpu']}, {where['cpus']} processors, {versions}, "
        f"{where['date']}. {options.impressions:,} impressions of {options.users:,} users, random. Medians over "
        f"{options.rounds} rounds, in turn; memory: the largest. DuckDB's memory_limit: {options.memory_limit}.\n\n"
        f"{table(rows)}\n\n{show(rows)}\n"
    )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "engines.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.output_dir / "engines.md").write_text(text, encoding="utf-8")
    print(text)


# ------------------------------------------------------------------------------------------------------------- engines


def with_polars(raw: Path, output: Path, memory: str) -> None:
    from hf_rerank.data.ad import prepare_ad

    prepare_ad(raw, output, protocol="public", progress=False)


def with_duckdb(raw: Path, output: Path, memory: str) -> None:
    import duckdb

    output.mkdir()
    places = {"raw": raw, "scratch": output.parent, "output": output / "lists.parquet"}
    with duckdb.connect() as connection:
        connection.execute(SQL.format(threads=os.cpu_count(), memory=memory, **places))


def one_run(engine: str, raw: Path, memory: str) -> dict[str, Any]:
    """Returns seconds, processor seconds and peak memory of a process, and sums over its output."""
    output = raw.parent / f"lists-{engine}"
    load = os.getloadavg()[0]
    arguments = [sys.executable, __file__, "--memory-limit", memory, "--run", engine, str(raw), str(output)]
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=quiet())
    _, status, used = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{engine} ended with {os.waitstatus_to_exitcode(status)}")
    found = sums(engine, output)
    shutil.rmtree(output)
    return {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_mib": used.ru_maxrss / 1024,
        "load_before": load,
        "found": found,
    }


def sums(engine: str, output: Path) -> dict[str, int]:
    """Returns the sums that both engines must agree on."""
    lists = pl.concat([pl.read_parquet(path) for path in sorted(output.glob("*.parquet"))])
    if engine == "duckdb":
        clicks, prices = (pl.col("items").list.eval(pl.element().struct[name]) for name in ("clk", "price"))
        minutes = pl.col("history").list.eval(pl.element().struct["minutes_ago"])
    else:
        clicks, prices, minutes = pl.col("click"), pl.col("price"), pl.col("history_minutes_ago")
    found = lists.select(
        lists=pl.len(),
        users=pl.col("user").cast(pl.Int64).sum(),
        items=clicks.list.len().sum(),
        clicks=clicks.list.eval(pl.element().cast(pl.Int64)).list.sum().sum(),
        prices=(prices.list.eval(pl.element().cast(pl.Float32).cast(pl.Float64)).list.sum()).sum().round(0),
        behaviours=minutes.list.len().sum(),
        minutes=minutes.list.eval(pl.element().cast(pl.Int64)).list.sum().sum(),
        segments=pl.col("cms_segid").cast(pl.Int64).sum(),
    )
    return {name: int(value) for name, value in found.row(0, named=True).items()}


# ---------------------------------------------------------------------------------------------------------------- logs


def make_logs(folder: Path, users: int, impressions: int) -> None:
    """Random ads, profiles and impressions: sessions of four within three minutes, 5 % clicks; a twentieth of the
    users without a profile, a third of the ads without a brand."""
    folder.mkdir()
    random = np.random.default_rng(0)
    sessions = -(-impressions // 4)
    user = np.repeat(random.integers(1, users + 1, sessions), 4)[:impressions]
    begins = np.repeat(random.integers(0, DAYS * 86_400, sessions), 4)[:impressions]
    click, ads = (random.random(impressions) < 0.05).astype(np.int8), max(users // 2, 10)
    shown = {
        "user": user,
        "time_stamp": START + begins + random.integers(0, 180, impressions),
        "adgroup_id": random.integers(1, ads + 1, impressions),
        "pid": random.choice(["430548_1007", "430539_1007"], impressions),
        "nonclk": 1 - click,
        "clk": click,
    }
    order = random.permutation(impressions)
    pl.DataFrame({name: values[order] for name, values in shown.items()}).write_csv(folder / "raw_sample.csv")
    of_ad = pl.DataFrame({"adgroup_id": np.arange(1, ads + 1)}).with_columns(
        cate_id=pl.col("adgroup_id") % 977,
        campaign_id=pl.col("adgroup_id") // 2,
        customer=pl.col("adgroup_id") // 3,
        brand=pl.when(pl.col("adgroup_id") % 3 > 0).then(pl.col("adgroup_id") % 991),
        price=pl.Series(np.round(np.exp(random.normal(4, 2, ads)), 2)),
    )
    of_ad.write_csv(folder / "ad_feature.csv", null_value="NULL")
    known = np.arange(1, users + 1)[np.arange(1, users + 1) % 20 > 0]
    names = ["cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level"]
    names += ["occupation", "new_user_class_level "]
    profile = {"userid": known, **{name: random.integers(0, 5, len(known)) for name in names}}
    pl.DataFrame(profile).write_csv(folder / "user_profile.csv")


def make_behaviours(path: Path, users: int, behaviours: int, at_once: int = 2_000_000) -> None:
    """Random behaviours in the 22 days that end with the impressions."""
    random = np.random.default_rng(1)
    with path.open("wb") as file:
        for begin in range(0, behaviours, at_once):
            rows = min(at_once, behaviours - begin)
            log = {
                "user": random.integers(1, users + 1, rows),
                "time_stamp": random.integers(START + (DAYS - 22) * 86_400, START + DAYS * 86_400, rows),
                "btag": random.choice(["pv", "cart", "fav", "buy"], rows, p=[0.95, 0.02, 0.02, 0.01]),
                "cate": random.integers(1, 977, rows),
                "brand": random.integers(1, 991, rows),
            }
            pl.DataFrame(log).write_csv(file, include_header=not begin)


# ------------------------------------------------------------------------------------------------------------- results


def medians(each_round: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Engine -> the medians over its rounds; for memory, the maximum."""
    rows = {}
    for engine in ("polars", "duckdb"):
        runs = [found[engine] for found in each_round]
        rows[engine] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        rows[engine]["peak_memory_mib"] = max(run["peak_memory_mib"] for run in runs)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| behaviours | lists | engine | seconds | processor seconds | peak memory, MiB |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        for engine, name in (("polars", "Polars, in buckets (`prepare_ad`)"), ("duckdb", "DuckDB, one script of SQL")):
            found = row[engine]
            lines.append(
                f"| {row['behaviours']:,} | {row['found']['lists']:,} | {name} | {found['seconds']:.1f} "
                f"| {found['cpu_seconds']:.1f} | {found['peak_memory_mib']:.0f} |"
            )
    return "\n".join(lines)


def show(rows: list[dict[str, Any]]) -> str:
    """Describes the last row in a sentence."""
    polars, duckdb = rows[-1]["polars"], rows[-1]["duckdb"]
    ratios = [duckdb[name] / polars[name] for name in ("seconds", "cpu_seconds", "peak_memory_mib")]
    return (
        f"Both results have the same counts and sums. With {rows[-1]['behaviours']:,} behaviours DuckDB takes "
        f"{ratios[0]:.1f} times the seconds, {ratios[1]:.1f} times the processor seconds and {ratios[2]:.1f} times "
        "the memory of Polars, though its script checks less of the lines, and leaves the order of equal times in "
        "histories open."
    )


if __name__ == "__main__":
    main()
