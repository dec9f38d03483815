"""Ad (Alibaba, "Ad Display/Click Data on Taobao.com"): from the raw files to lists.

What a user calls: the raw files, the schema and columns of their lists, and a folder of prepared lists
(``prepare_ad``). The logs are larger than memory: they are read once and cut by user into buckets on the disk
(``hf_rerank.data.ad_buckets``), and then each bucket becomes lists (``hf_rerank.data.ad_lists``). The rule by which
impressions become lists is in ``hf_rerank.data.ad_windows``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from tqdm import tqdm

import hf_rerank
from hf_rerank.data import ad_tables
from hf_rerank.data.ad_buckets import MAX_BUCKETS, RUN_BYTES, BucketWriter, read_bucket
from hf_rerank.data.ad_history import HISTORY_COLUMNS, MAX_MINUTES
from hf_rerank.data.ad_lists import PROFILE_COLUMNS, Bucket, ListMaker
from hf_rerank.data.ad_tables import BLOCK_BYTES, Damage, OnDamage, check_file, read_blocks, read_whole
from hf_rerank.data.ad_truth import read_truth
from hf_rerank.data.ad_windows import MAX_WINDOW_ITEMS, PROTOCOLS, WINDOW_SECONDS, choose_windows
from hf_rerank.data.prepared import NO_REDISTRIBUTION, SIMULATED, Licence, dataset_card, write_description
from hf_rerank.data.prm_public_truth import read_truth_header, truth_file
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS
from hf_rerank.data.unfinished import CannotWrite, Unfinished, fingerprint, unfinished_folder
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import Categorical, Dense, ListSchema

MAX_LIST_LENGTH = 10
HISTORY_LENGTH = 50
# Text of both logs a bucket, about: 4 million behaviours, of which a few hundred MB are held.
BUCKET_BYTES = 128 * 2**20
SHARD_LISTS = 200_000
ON_ERROR = ("raise", "skip")
# Ids of users below this are looked up in a table of 256 MB at most; in Ad they are below 1,141,730.
TABLE_IDS = 2**26
# Bytes on the disk a byte of text of the logs, while they are cut, about.
BUCKETS_SHARE = 0.5


# ------------------------------------------------------------------------------------------------ files and columns


@dataclass(frozen=True)
class AdFiles:
    """The raw files. ``behavior_log``: None where there is none, and lists have no history."""

    raw_sample: Path
    ad_feature: Path
    user_profile: Path
    behavior_log: Path | None = None

    def there(self) -> list[Path]:
        """The files, and the truth of simulated lists where it is there."""
        files = (self.raw_sample, self.ad_feature, self.user_profile, self.behavior_log, truth_file(self.raw_sample))
        return [path for path in files if path is not None and path.is_file()]


def find_ad_files(data_dir: str | Path) -> AdFiles:
    """The raw files of a folder.

    Raises:
        InputError: One of raw_sample.csv, ad_feature.csv and user_profile.csv is not there; says where they come from.
    """
    folder = Path(data_dir)
    tables = (ad_tables.RAW_SAMPLE, ad_tables.AD_FEATURE, ad_tables.USER_PROFILE, ad_tables.BEHAVIOR_LOG)
    paths = [folder / table.file for table in tables]
    missing = [path.name for path in paths[:3] if not path.is_file()]
    if missing:
        there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        held = f"it holds {', '.join(there[:5]) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"no {' and no '.join(missing)} in {folder} ({held}): expected raw_sample.csv, ad_feature.csv and "
            "user_profile.csv, unpacked, and behavior_log.csv for lists with a history. The dataset is 'Ad "
            "Display/Click Data on Taobao.com', number 56 on Alibaba's Tianchi; `hf-rerank simulate ad` makes files "
            "of the same format"
        )
    raw_sample, ad_feature, user_profile, behavior_log = paths
    return AdFiles(raw_sample, ad_feature, user_profile, behavior_log if behavior_log.is_file() else None)


def ad_schema(
    max_list_length: int = MAX_LIST_LENGTH,
    history_length: int = HISTORY_LENGTH,
    *,
    history: bool = False,
    position: bool = False,
    examination: Sequence[float] | None = None,
    attraction: bool = False,
) -> ListSchema:
    """The schema of Ad; ``user``, ``time_stamp`` and ``pid`` are no features.

    Args:
        max_list_length: Items a list at most.
        history_length: Behaviours a list at most.
        history: There are columns of what the user did before; they are features.
        position: There is a column ``position`` (simulated lists).
        examination: Of simulated lists: probability that a place is looked at, top first.
        attraction: There is a column ``attraction`` (simulated lists).
    """
    behaviours: list[Categorical | Dense] = [
        Categorical("history_btag"),
        Categorical("history_cate", shares="cate_id"),
        Categorical("history_brand", shares="brand"),
        Dense("history_minutes_ago", scale="log"),
    ]
    return ListSchema(
        items=[
            *(Categorical(name) for name in ("adgroup_id", "cate_id", "campaign_id", "customer", "brand")),
            Dense("price", scale="log"),
        ],
        user=[Categorical(name) for name in PROFILE_COLUMNS],
        history=behaviours if history else [],
        label="click",
        list_id="list_id",
        group="user",
        position="position" if position else None,
        attraction="attraction" if attraction else None,
        examination=examination,
        max_list_length=max_list_length,
        max_history_length=max(1, history_length),
    )


def ad_columns(history: bool = False, position: bool = False, attraction: bool = False) -> pa.Schema:
    """The arrow columns of the lists, in order."""
    fields = [("list_id", pa.string()), ("user", pa.int64()), *((name, pa.int64()) for name in PROFILE_COLUMNS)]
    integers = ("adgroup_id", "cate_id", "campaign_id", "customer", "brand")
    fields += [(name, pa.list_(pa.int64())) for name in integers]
    fields += [("price", pa.list_(pa.float32())), ("time_stamp", pa.list_(pa.int64())), ("pid", pa.list_(pa.string()))]
    fields += [("click", pa.list_(pa.int8()))]
    fields += [(name, pa.list_(kind)) for name, kind in HISTORY_COLUMNS.items()] if history else []
    fields += [("split", pa.string())]
    fields += [("position", pa.list_(pa.int64()))] if position else []
    fields += [("attraction", pa.list_(pa.float32()))] if attraction else []
    return pa.schema(fields)


# --------------------------------------------------------------------------------------------------------- preparing


def prepare_ad(
    raw_dir: str | Path,
    output_dir: str | Path,
    *,
    protocol: str = "ours",
    max_list_length: int = MAX_LIST_LENGTH,
    history_length: int = HISTORY_LENGTH,
    on_error: str = "raise",
    progress: bool = True,
    shard_lists: int = SHARD_LISTS,
    block_bytes: int = BLOCK_BYTES,
    bucket_bytes: int = BUCKET_BYTES,
    run_bytes: int = RUN_BYTES,
) -> PrepareReport:
    """Raw files -> a folder of prepared lists (see ``hf_rerank.data.prepared``), in bounded memory.

    A list holds a user's impressions within five minutes, in order of time; see ``hf_rerank.data.ad_windows``.
    Lists are made in ``output_dir.partial``, which holds the buckets meanwhile: about half the size of the logs. If
    this is stopped while the logs are read, the next call begins anew; if it is stopped later, the next call with the
    same options and files goes on from the last whole shard, and the folder has the same bytes as if it had never been
    stopped.

    Args:
        raw_dir: Folder of the raw files; see ``find_ad_files``. The truth of simulated lists is joined.
        output_dir: Folder to make; must be new or empty. It appears when it is whole.
        protocol: ``ours``: every window with at least two items and a click. ``public``: of users with at least three
            impressions the most recent window with a click.
        max_list_length: 1 to 30. Longer lists are cut: simulated ones in their initial order, others in order of time.
        history_length: Behaviours a list, the newest. 0: behavior_log.csv is not read.
        on_error: What damaged lines do. ``raise``: an error names the first. ``skip``: they are left out, counted by
            file and column in ``rejected``, and go to ``rejects.jsonl`` in the folder. A key that is there twice, and
            a file that is cut off, are errors always.
        progress: Bars of the bytes read and of the buckets, if they take longer than a second.
        shard_lists: Lists after which the shards of all splits are cut, at the end of a bucket.
        block_bytes: Text that is parsed at a time.
        bucket_bytes: Text of the logs a bucket; memory is a small multiple of it.
        run_bytes: Rows in memory that are written at a time while the logs are cut.

    Returns:
        What became of the windows (``read``: windows formed), what else was counted, rows and seconds of each stage.

    Raises:
        InputError: Missing or damaged raw files (names file and line), raw files that change meanwhile, an unknown
            protocol, an output folder that is not empty, was begun with other options or files, or that another
            process is writing.
    """
    started = time.monotonic()
    if protocol not in PROTOCOLS:
        raise InputError(
            f"unknown protocol {protocol!r}: expected {' or '.join(PROTOCOLS)}{suggestion(protocol, PROTOCOLS)}"
        )
    if on_error not in ON_ERROR:
        raise InputError(
            f"unknown on_error {on_error!r}: expected {' or '.join(ON_ERROR)}{suggestion(on_error, ON_ERROR)}"
        )
    if not 1 <= max_list_length <= MAX_WINDOW_ITEMS or history_length < 0:
        raise InputError(
            f"max_list_length is {max_list_length} and history_length {history_length}: expected 1 to "
            f"{MAX_WINDOW_ITEMS} items, and at least 0 behaviours"
        )
    if min(shard_lists, block_bytes, bucket_bytes, run_bytes) < 1:
        raise InputError("shard_lists, block_bytes, bucket_bytes and run_bytes: expected at least 1")
    files = find_ad_files(raw_dir)
    if not history_length:
        files = AdFiles(files.raw_sample, files.ad_feature, files.user_profile)
    with_history = files.behavior_log is not None
    truth = read_truth_header([files.raw_sample])
    columns = ad_columns(with_history, truth.position, truth.attraction)
    schema = ad_schema(
        max_list_length,
        history_length,
        history=with_history,
        position=truth.position,
        examination=truth.examination,
        attraction=truth.attraction,
    )
    before = {path.name: fingerprint(path) for path in files.there()}
    options = {
        "protocol": protocol,
        "max_list_length": max_list_length,
        "history_length": history_length,
        "on_error": on_error,
        "shard_lists": shard_lists,
        "bucket_bytes": bucket_bytes,
        "files (bytes, time of change)": before,
        # Other versions may write other bytes.
        "versions": {"hf_rerank": hf_rerank.__version__, "polars": pl.__version__, "pyarrow": pa.__version__},
    }
    with unfinished_folder(output_dir, options) as unfinished:
        if unfinished.done:
            assert unfinished.progress is not None
            return PrepareReport(**unfinished.progress["report"])
        bar = functools.partial(tqdm, delay=1, disable=not progress)
        report = PrepareReport(**unfinished.progress["report"]) if unfinished.progress else PrepareReport()
        with _stage(report, "ads and profiles") as stage:
            _check_headers(files)
            on_damage = None if on_error == "raise" else functools.partial(_leave_out, unfinished, report)
            ads = read_whole(files.ad_feature, ad_tables.AD_FEATURE, on_damage)
            profiles = read_whole(files.user_profile, ad_tables.USER_PROFILE, on_damage)
            stage["rows"] = len(ads) + len(profiles)
        path = truth_file(files.raw_sample)
        maker = ListMaker(ads, profiles, columns, protocol, max_list_length, history_length, path)
        if unfinished.progress is None:
            size = sum(path.stat().st_size for path in files.there())
            number = min(MAX_BUCKETS, -(-size // bucket_bytes))
            cutter = _Cutter(unfinished.buckets, number, block_bytes, run_bytes, report, bar, on_damage)
            try:
                runs = cutter.cut(files, protocol, truth.attraction if truth.position else None)
            except CannotWrite as error:
                raise CannotWrite(
                    f"{error}; cutting the logs takes about {size * BUCKETS_SHARE / 1e9:.1f} GB there"
                ) from None
            saved = {"buckets": number, "next": 0, "runs": runs, "report": report.to_dict()}
            unfinished.save(unfinished.group(columns), saved, whole=True)
        try:
            _write_lists(maker, unfinished, report, shard_lists, bar)
            for path in files.there():
                if fingerprint(path) != before[path.name]:
                    raise InputError(f"{path} changed while it was read: run again when it is complete")
        except CannotWrite:
            raise
        except InputError:  # of the raw files, or the buckets: no later run can go on with these
            unfinished.forget()
            raise
        card = _card(files, protocol, schema, report)
        unfinished.finish(columns, lambda folder: write_description(folder, schema, report, card))
    report.seconds = time.monotonic() - started
    return report


def _leave_out(unfinished: Unfinished, report: PrepareReport, damage: Damage) -> None:
    """Counts a damaged line and keeps its text; those of a run that is gone on with are kept already."""
    if unfinished.progress is None:
        report.reject(f"{damage.file}, {damage.kind}")
        unfinished.reject([damage.to_json()])


@contextmanager
def _stage(report: PrepareReport, name: str) -> Iterator[dict[str, float]]:
    """Adds the rows and seconds of a stage to the report."""
    started, stage = time.monotonic(), {"rows": 0.0}
    yield stage
    found = report.stages.setdefault(name, {"rows": 0, "seconds": 0.0})
    found["rows"] += int(stage["rows"])
    found["seconds"] = round(found["seconds"] + time.monotonic() - started, 3)


def _check_headers(files: AdFiles) -> None:
    """Finds what is wrong at the beginning and end of any file before much time is spent on another."""
    check_file(files.raw_sample, ad_tables.RAW_SAMPLE)
    check_file(files.ad_feature, ad_tables.AD_FEATURE)
    check_file(files.user_profile, ad_tables.USER_PROFILE)
    if files.behavior_log is not None:
        check_file(files.behavior_log, ad_tables.BEHAVIOR_LOG)


@dataclass(frozen=True)
class _Cutter:
    """Cuts the logs into buckets; see ``prepare_ad``."""

    folder: Path
    buckets: int
    block_bytes: int
    run_bytes: int
    report: PrepareReport
    bar: Callable[..., Any]
    on_damage: OnDamage | None

    def cut(self, files: AdFiles, protocol: str, attraction: bool | None) -> dict[str, dict[str, int]]:
        """
        Args:
            files: The raw files.
            protocol: Behaviours are kept of users with a list by this protocol only.
            attraction: The truth has attractions; None: there is no truth.

        Returns:
            Name of the log -> its runs, by file name, and their bytes.
        """
        self.folder.mkdir(exist_ok=True)
        writers = {"impressions": self._writer("impressions")}
        with _stage(self.report, "read and cut raw_sample.csv") as stage:
            for rows in self._blocks(files.raw_sample, ad_tables.RAW_SAMPLE):
                stage["rows"] += len(rows)
                writers["impressions"].add(rows.drop("nonclk"))
            impressions = writers["impressions"].close()
        if attraction is not None:
            writers["truth"] = self._writer("truth")
            with _stage(self.report, "read and cut the truth") as stage:
                for rows in read_truth(truth_file(files.raw_sample), attraction):
                    stage["rows"] += len(rows)
                    writers["truth"].add(rows)
                writers["truth"].close()
        if files.behavior_log is not None:
            with _stage(self.report, "find who has lists") as stage:
                users, times = self._latest_lists(impressions, protocol)
                latest_of = _lookup(users, times)
                stage["rows"] = len(users)
            writers["behaviours"] = self._writer("behaviours")
            with _stage(self.report, "read and cut behavior_log.csv") as stage:
                for rows in self._blocks(files.behavior_log, ad_tables.BEHAVIOR_LOG):
                    stage["rows"] += len(rows)
                    writers["behaviours"].add(self._wanted(rows, latest_of))
                writers["behaviours"].close()
        return {name: {path.name: path.stat().st_size for path in writer.paths} for name, writer in writers.items()}

    def _writer(self, name: str) -> BucketWriter:
        return BucketWriter(self.folder, name, self.buckets, self.run_bytes)

    def _blocks(self, path: Path, table: ad_tables.Table) -> Iterator[pl.DataFrame]:
        with self.bar(total=path.stat().st_size, desc=f"Reading {path.name}", unit="B", unit_scale=True) as reading:
            yield from read_blocks(
                path, table, block_bytes=self.block_bytes, on_bytes=reading.update, on_damage=self.on_damage
            )

    def _latest_lists(self, impressions: list[Path], protocol: str) -> tuple[np.ndarray, np.ndarray]:
        """The users that have a list, ordered, and the time of the first impression of the newest list of each."""
        users, times = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
        for number in range(self.buckets):
            bucket = Bucket.of(read_bucket(impressions, number))
            of_row, time_of_row = (bucket.impressions[name].to_numpy() for name in ("user", "time_stamp"))
            chosen = choose_windows(bucket.windows, of_row, protocol, lambda *_: None, lambda *_: None)
            of_list = of_row[chosen.starts]
            newest = np.append(of_list[1:] != of_list[:-1], True)[: len(of_list)]  # lists stand in order of time
            users.append(of_list[newest])
            times.append(time_of_row[chosen.starts[newest]])
        order = np.argsort(np.concatenate(users))
        return np.concatenate(users)[order], np.concatenate(times)[order]

    def _wanted(self, rows: pl.DataFrame, latest_of: Callable[[np.ndarray], np.ndarray]) -> pl.DataFrame:
        """The behaviours that may be in a history."""
        latest = latest_of(rows["user"].to_numpy())
        has_list = latest > 0
        early = has_list & (rows["time_stamp"].to_numpy() <= latest)
        self.report.count("behaviours", len(rows))
        self.report.count("behaviours of users without a list", int((~has_list).sum()))
        self.report.count("behaviours later than the user's newest list", int((has_list & ~early).sum()))
        return rows.filter(early).with_columns(pl.col("btag").to_physical().cast(pl.UInt8))


def _lookup(users: np.ndarray, times: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Users -> their times, 0 for others; ``users`` are ordered."""
    if len(users) and users[-1] < TABLE_IDS:  # a table is ten times as fast as a search
        table = np.zeros(int(users[-1]) + 2, dtype=times.dtype)
        table[users] = times
        return lambda wanted: table[np.minimum(wanted, len(table) - 1)]

    def searched(wanted: np.ndarray) -> np.ndarray:
        place = np.searchsorted(users, wanted)
        found = np.append(users, 0)[place] == wanted
        return np.where(found, np.append(times, 0).astype(times.dtype)[place], 0)

    return searched


def _write_lists(
    maker: ListMaker, unfinished: Unfinished, report: PrepareReport, shard_lists: int, bar: Callable[..., Any]
) -> None:
    """Buckets -> shards; saves the state after each group of shards."""
    state = unfinished.progress
    assert state is not None
    runs: dict[str, list[Path]] = {}
    for name, sizes in state["runs"].items():
        runs[name] = [unfinished.buckets / file for file in sizes]
        for path in runs[name]:
            if not path.is_file() or path.stat().st_size != sizes[path.name]:
                raise InputError(f"{path} is missing or not as it was written: run again, which begins anew")
    number, first = state["buckets"], state["next"]
    group, waiting, finished = unfinished.group(maker.columns), 0, False
    try:
        with bar(total=number, initial=first, desc="Making lists", unit="bucket") as making:
            for bucket in range(first, number):
                with _stage(report, "make and write lists") as stage:
                    of_log = {name: read_bucket(paths, bucket) for name, paths in runs.items() if paths}
                    behaviours = of_log.get("behaviours", _no_behaviours() if "behaviours" in runs else None)
                    made = maker.make(Bucket.of(of_log["impressions"]), behaviours, of_log.get("truth"), report)
                    of_list = made.column("split").to_numpy()
                    for split in SPLITS:
                        lists = made.filter(pa.array(of_list == split))
                        if lists.num_rows:
                            report.keep(split, lists, "click")
                            group.write(split, lists)
                    stage["rows"] = made.num_rows
                waiting += made.num_rows
                if waiting >= shard_lists or bucket + 1 == number:
                    with _stage(report, "make and write lists"):
                        saved = {**state, "next": bucket + 1, "report": report.to_dict()}
                        unfinished.save(group, saved, whole=True)
                        group, waiting = unfinished.group(maker.columns), 0
                making.update()
        finished = True
    finally:
        if not finished:
            group.abandon()


def _no_behaviours() -> pl.DataFrame:
    kinds = {name: column.kind for name, column in ad_tables.BEHAVIOR_LOG.columns.items()}
    return pl.DataFrame(schema={**kinds, "btag": pl.UInt8})


def _card(files: AdFiles, protocol: str, schema: ListSchema, report: PrepareReport) -> str:
    simulated = schema.position is not None
    rule = {
        "ours": "Protocol `ours`: every window with at least 2 items and a click is a list.",
        "public": "Protocol `public`: users with fewer than 3 impressions, or without a click, are dropped; of each "
        "other user the most recent window with a click is a list.",
    }[protocol]
    order = "their initial order (column `position`, 0 at the top)" if simulated else "order of time"
    how = [
        f"Source: {', '.join(f'`{path.name}`' for path in files.there())}; `list_id` is the user, and the time of the "
        "newest impression of the window in Unix seconds.",
        f"A user's impressions are ordered by time, newest first; a window holds those at most {WINDOW_SECONDS} "
        "seconds older than its newest; the next window begins with the newest that is in none yet. In a window the "
        "items stand in order of time, oldest first; equal times keep the order of the file.",
        rule,
        f"Of longer windows the earliest {MAX_WINDOW_ITEMS} items are kept; then lists are cut to the first "
        f"{schema.max_list_length} in {order}.",
        "`brand`, `pvalue_level` and `new_user_class_level` have missing values; ads that `ad_feature.csv` lacks and "
        "users that `user_profile.csv` lacks have missing values in all their columns.",
        "Split by `user`: md5 of its decimal text, first 8 hex digits modulo 10,000; 40 % `ranker_train`, 45 % "
        "`train`, 5 % `validation`, 10 % `test`.",
        "`ranker_train` is for initial rankers, click models and personalised vectors, and for nothing else.",
    ]
    if schema.history:
        how.append(
            f"`history_*`: the user's newest {schema.max_history_length} behaviours not later than the first "
            f"impression of the window, newest first; `history_minutes_ago` are whole minutes before it, at most "
            f"{MAX_MINUTES:,}."
        )
    else:
        how.append("There are no columns of history: `behavior_log.csv` was not there, or was left out.")
    caveats = [
        "Windows are chosen by having a click, which is a selection: metrics are conditional on a click.",
        "Under a split by user every user of `test` is unknown in training: `user` is for grouping, no feature.",
    ]
    if simulated:
        caveats.append("These lists are simulated. `attraction` and `examination` are the truth, and no features.")
        licence = Licence(SIMULATED, "Simulated lists: no line of the original dataset is in them.")
    else:
        caveats.append("The order of time is no order of an initial ranker: it is what `position` falls back to.")
        licence = Licence(
            NO_REDISTRIBUTION,
            "The lists come from the dataset 'Ad Display/Click Data on Taobao.com' (Alibaba, Tianchi data set 56), "
            "which may not be redistributed: keep this folder to yourself, and do not push it to a public repository.",
        )
    title = "Ad, simulated" if simulated else "Ad"
    return dataset_card(title, report, schema, how=how, caveats=caveats, licence=licence)
