"""Partitions the logs of Ad by user into buckets on the disk, keeping only behaviours that may be in a history."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xxhash

from hf_rerank.data.ad.columns import AdFiles
from hf_rerank.data.ad.lists import Bucket
from hf_rerank.data.ad.sessions import choose_sessions
from hf_rerank.data.ad.tables import (
    AD_FEATURE,
    BEHAVIOR_LOG,
    RAW_SAMPLE,
    USER_PROFILE,
    OnReject,
    Table,
    check_file,
    read_blocks,
    read_whole,
)
from hf_rerank.data.ad.truth import read_truth
from hf_rerank.data.prepared.buckets import BucketWriter, read_bucket
from hf_rerank.data.prm_public.truth import truth_file
from hf_rerank.data.report import PrepareReport
from hf_rerank.storage import digest_content, name_failures

# Ids of users below this are looked up in a table of 256 MB at most; in Ad they are below 1,141,730.
TABLE_IDS = 2**26
ADS_FILE, PROFILES_FILE = "ads.arrow", "profiles.arrow"


@dataclass
class Partition:
    """Reads the raw files once, and fills a folder with buckets and lookup tables.

    Args:
        folder: The folder to fill.
        buckets: Number of buckets.
        protocol: Only behaviours of users who have a list under this protocol are kept.
        attraction: Whether the ground truth has attractions; None: there is no ground truth.
        block_bytes: Bytes of text parsed at a time.
        run_bytes: Bytes of rows that are buffered in memory and written together.
        bar: Makes a progress bar.
        on_reject: Called with each damaged line.

    Attributes:
        report: Rows and seconds of each stage, and counts.
        digests: Name of each file read -> digest of its content.
    """

    folder: Path
    buckets: int
    protocol: str
    attraction: bool | None
    block_bytes: int
    run_bytes: int
    bar: Callable[..., Any]
    on_reject: OnReject
    report: PrepareReport = field(default_factory=PrepareReport)
    digests: dict[str, str] = field(default_factory=dict)

    def fill(self, files: AdFiles) -> None:
        """Reads the files.

        Raises:
            InputError: A file is damaged, or contains a key twice.
        """
        raw = [(files.raw_sample, RAW_SAMPLE), (files.ad_feature, AD_FEATURE)]
        raw.append((files.user_profile, USER_PROFILE))
        if files.behavior_log is not None:
            raw.append((files.behavior_log, BEHAVIOR_LOG))
        for path, table in raw:  # errors at either end of a file are found before the others are read
            check_file(path, table)
        with self._time_stage("ads and profiles") as stage:
            for (path, table), name in zip(raw[1:3], (ADS_FILE, PROFILES_FILE), strict=True):
                digest = xxhash.xxh3_128()
                whole = read_whole(path, table, digest=digest, on_reject=self.on_reject)
                self.digests[path.name] = digest.hexdigest()
                with name_failures(self.folder / name):
                    whole.write_ipc(self.folder / name)
                stage["rows"] += len(whole)
        impressions = self._open_writer("impressions")
        with self._time_stage("read and cut raw_sample.csv") as stage:
            for rows in self._read_blocks(files.raw_sample, RAW_SAMPLE):
                stage["rows"] += len(rows)
                impressions.add(rows.drop("nonclk"))
            runs = impressions.close()
        if self.attraction is not None:
            truth, path = self._open_writer("truth"), truth_file(files.raw_sample)
            with self._time_stage("read and cut the truth") as stage:
                self.digests[path.name] = digest_content(path)
                for rows in read_truth(path, self.attraction):
                    stage["rows"] += len(rows)
                    truth.add(rows)
                truth.close()
        if files.behavior_log is not None:
            with self._time_stage("find who has lists") as stage:
                users, times = self._find_latest_lists(runs)
                latest_of = _make_lookup(users, times)
                stage["rows"] = len(users)
            behaviours = self._open_writer("behaviours")
            with self._time_stage("read and cut behavior_log.csv") as stage:
                for rows in self._read_blocks(files.behavior_log, BEHAVIOR_LOG):
                    stage["rows"] += len(rows)
                    behaviours.add(self._select_behaviours(rows, latest_of))
                behaviours.close()

    @contextmanager
    def _time_stage(self, name: str) -> Iterator[dict[str, int]]:
        started, stage = time.monotonic(), {"rows": 0}
        yield stage
        self.report.add_stage(name, stage["rows"], time.monotonic() - started)

    def _open_writer(self, name: str) -> BucketWriter:
        return BucketWriter(self.folder, name, self.buckets, "user", self.run_bytes)

    def _read_blocks(self, path: Path, table: Table) -> Iterator[pl.DataFrame]:
        digest = xxhash.xxh3_128()
        with self.bar(total=path.stat().st_size, desc=f"Reading {path.name}", unit="B", unit_scale=True) as reading:
            yield from read_blocks(
                path,
                table,
                block_bytes=self.block_bytes,
                on_bytes=reading.update,
                digest=digest,
                on_reject=self.on_reject,
            )
        self.digests[path.name] = digest.hexdigest()

    def _find_latest_lists(self, runs: list[Path]) -> tuple[np.ndarray, np.ndarray]:
        """The users that have a list, sorted, and the time of the first impression of the newest list of each."""
        users, times = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
        for number in range(self.buckets):
            bucket = Bucket.from_impressions(read_bucket(runs, number))
            of_row, time_of_row = (bucket.impressions[name].to_numpy() for name in ("user", "time_stamp"))
            chosen = choose_sessions(bucket.sessions, of_row, self.protocol, lambda *_: None, lambda *_: None)
            of_list = of_row[chosen.starts]
            newest = np.append(of_list[1:] != of_list[:-1], True)[: len(of_list)]  # lists are ordered by time
            users.append(of_list[newest])
            times.append(time_of_row[chosen.starts[newest]])
        order = np.argsort(np.concatenate(users))
        return np.concatenate(users)[order], np.concatenate(times)[order]

    def _select_behaviours(self, rows: pl.DataFrame, latest_of: Callable[[np.ndarray], np.ndarray]) -> pl.DataFrame:
        """Selects the behaviours that may be in a history."""
        latest = latest_of(rows["user"].to_numpy())
        has_list = latest > 0
        early = has_list & (rows["time_stamp"].to_numpy() <= latest)
        self.report.count("behaviours", len(rows))
        self.report.count("behaviours of users without a list", int((~has_list).sum()))
        self.report.count("behaviours later than the user's newest list", int((has_list & ~early).sum()))
        return rows.filter(early).with_columns(pl.col("btag").to_physical().cast(pl.UInt8))


def _make_lookup(users: np.ndarray, times: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from users to their times, 0 for others; ``users`` are sorted."""
    if len(users) and users[-1] < TABLE_IDS:  # a table is ten times as fast as a search
        table = np.zeros(int(users[-1]) + 2, dtype=times.dtype)
        table[users] = times
        return lambda wanted: table[np.minimum(wanted, len(table) - 1)]

    def search(wanted: np.ndarray) -> np.ndarray:
        index = np.searchsorted(users, wanted)
        found = np.append(users, 0)[index] == wanted
        return np.where(found, np.append(times, 0).astype(times.dtype)[index], 0)

    return search
