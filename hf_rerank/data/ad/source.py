"""Ad (Alibaba, "Ad Display/Click Data on Taobao.com"): from the raw files to lists.

The logs are larger than memory: they are read once and partitioned by user into buckets on the disk (``partition``);
then the lists of each bucket are made (``lists``). ``sessions`` defines which impressions form a list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from hf_rerank.data.ad.card import make_card
from hf_rerank.data.ad.columns import HISTORY_LENGTH, MAX_LIST_LENGTH, AdFiles, ad_columns, ad_schema, find_ad_files
from hf_rerank.data.ad.lists import Bucket, ListMaker
from hf_rerank.data.ad.partition import ADS_FILE, PROFILES_FILE, Partition
from hf_rerank.data.ad.sessions import MAX_SESSION_ITEMS, PROTOCOLS
from hf_rerank.data.ad.tables import BEHAVIOR_LOG, BLOCK_BYTES, OnReject
from hf_rerank.data.prepared import SHARD_BYTES, write_description, write_lists
from hf_rerank.data.prepared.buckets import MAX_BUCKETS, RUN_BYTES, read_bucket
from hf_rerank.data.prm_public.truth import read_truth_header, truth_file
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.source import Rejects, Unit, split_table
from hf_rerank.errors import InputError, suggestion
from hf_rerank.storage import InputFiles, digest_content, read_json, write_json

# Bytes of both logs per bucket: about 4 million behaviours, of which a few hundred MB are kept.
BUCKET_BYTES = 128 * 2**20
DIGESTS_FILE = "digests.json"


@dataclass(frozen=True)
class BucketUnit(Unit):
    """The rows of some users in each log; ``truth`` and ``behaviours`` are None if there is no such file."""

    impressions: list[Path]
    behaviours: list[Path] | None
    truth: list[Path] | None
    bucket: int


class AdSource:
    """The raw files of a folder as a ``ListSource`` that is partitioned by user; arguments as for ``prepare_ad``."""

    size_unit = "bucket"

    def __init__(
        self,
        raw_dir: str | Path,
        *,
        protocol: str = "ours",
        max_list_length: int = MAX_LIST_LENGTH,
        history_length: int = HISTORY_LENGTH,
        block_bytes: int = BLOCK_BYTES,
        bucket_bytes: int = BUCKET_BYTES,
        run_bytes: int = RUN_BYTES,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise InputError(
                f"unknown protocol {protocol!r}: expected {' or '.join(PROTOCOLS)}{suggestion(protocol, PROTOCOLS)}"
            )
        if not 1 <= max_list_length <= MAX_SESSION_ITEMS or history_length < 0:
            raise InputError(
                f"max_list_length is {max_list_length} and history_length {history_length}: expected 1 to "
                f"{MAX_SESSION_ITEMS} items, and at least 0 behaviours"
            )
        if min(block_bytes, bucket_bytes, run_bytes) < 1:
            raise InputError("block_bytes, bucket_bytes and run_bytes: expected at least 1")
        files = find_ad_files(raw_dir)
        if not history_length:
            files = AdFiles(files.raw_sample, files.ad_feature, files.user_profile)
        self.inputs = InputFiles(files.list_existing())
        self.files, self.protocol, self.block_bytes, self.run_bytes = files, protocol, block_bytes, run_bytes
        self.max_list_length, self.history_length = max_list_length, history_length
        self.with_history = files.behavior_log is not None
        self.truth = read_truth_header([files.raw_sample])
        self.columns = ad_columns(self.with_history, self.truth.position, self.truth.attraction)
        self.schema = ad_schema(
            max_list_length,
            history_length,
            history=self.with_history,
            position=self.truth.position,
            examination=self.truth.examination,
            attraction=self.truth.attraction,
        )
        text_bytes = sum(path.stat().st_size for path in files.list_existing())
        self.size = min(MAX_BUCKETS, -(-text_bytes // bucket_bytes))
        self.parts: Path | None = None
        self._digests: dict[str, str] = {}
        self.options: dict[str, Any] = {
            "protocol": protocol,
            "max_list_length": max_list_length,
            "history_length": history_length,
            "bucket_bytes": bucket_bytes,
            "files (bytes)": {path.name: path.stat().st_size for path in files.list_existing()},
        }

    def partition(self, parts: Path, bar: Callable[..., Any], on_reject: OnReject) -> PrepareReport:
        attraction = self.truth.attraction if self.truth.position else None
        cutter = Partition(
            parts, self.size, self.protocol, attraction, self.block_bytes, self.run_bytes, bar, on_reject
        )
        cutter.fill(self.files)
        self._digests = cutter.digests
        write_json(parts / DIGESTS_FILE, cutter.digests)
        return cutter.report

    def units(self, parts: Path) -> list[BucketUnit]:
        self.parts = parts
        if not self._digests:  # partitioned by an earlier call
            for path in self.inputs.paths:
                if digest_content(path) != read_json(parts / DIGESTS_FILE).get(path.name):
                    raise InputError(
                        f"{path} has changed since {parts.parent} was started: remove {parts.parent} to start again"
                    )
        runs = [sorted(parts.glob(f"{name}-*.arrow")) for name in ("impressions", "behaviours", "truth")]
        there = [True, self.with_history, self.truth.position]
        impressions, behaviours, truth = (paths if used else None for paths, used in zip(runs, there, strict=True))
        assert impressions is not None
        return [
            BucketUnit(f"bucket {bucket} of {self.size}", "", 1, impressions, behaviours, truth, bucket)
            for bucket in range(self.size)
        ]

    def facts(self) -> ListMaker:
        assert self.parts is not None
        ads, profiles = (pl.read_ipc(self.parts / name) for name in (ADS_FILE, PROFILES_FILE))
        path = truth_file(self.files.raw_sample)
        return ListMaker(ads, profiles, self.columns, self.protocol, self.max_list_length, self.history_length, path)

    def read(self, unit: BucketUnit, facts: ListMaker) -> tuple[dict[str, pa.Table], Rejects]:
        report = PrepareReport()
        behaviours = None
        if unit.behaviours is not None:
            behaviours = read_bucket(unit.behaviours, unit.bucket) if unit.behaviours else _make_empty_behaviours()
        truth = read_bucket(unit.truth, unit.bucket) if unit.truth else None
        lists = facts.make(
            Bucket.from_impressions(read_bucket(unit.impressions, unit.bucket)), behaviours, truth, report
        )
        return split_table(lists, lists.column("split").to_numpy()), Rejects(report)

    def describe(self, folder: Path, facts: ListMaker, report: PrepareReport) -> None:
        write_description(folder, self.schema, report, make_card(self.files, self.protocol, self.schema, report))


def prepare_ad(
    raw_dir: str | Path,
    output_dir: str | Path,
    *,
    protocol: str = "ours",
    max_list_length: int = MAX_LIST_LENGTH,
    history_length: int = HISTORY_LENGTH,
    on_error: str = "raise",
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
    block_bytes: int = BLOCK_BYTES,
    bucket_bytes: int = BUCKET_BYTES,
    run_bytes: int = RUN_BYTES,
    threads: int | None = 1,
) -> PrepareReport:
    """Writes the lists of the raw files into a folder of prepared lists, in bounded memory.

    A list holds a user's impressions within five minutes, ordered by time; see ``hf_rerank.data.ad.sessions``.
    Temporary buckets on the disk take about half the size of the logs. After an interruption while the logs are read,
    the next call starts again; later, it resumes from the last complete group of shards.

    Args:
        raw_dir: Folder of the raw files; see ``find_ad_files``. The ground truth of simulated lists is joined.
        output_dir: Folder to create; must be new or empty. It appears when it is complete.
        protocol: ``ours`` (default): every session with at least two items and a click. ``public``: the most recent
            session with a click, of users with at least three impressions.
        max_list_length: Maximum number of items per list, 1 to 30, default 10. Longer lists are cut: simulated ones in
            their initial order, others by time.
        history_length: Maximum number of behaviours per list, the newest; default 50. 0: behavior_log.csv is not read.
        on_error, progress, shard_bytes, threads: See ``write_lists``. A key that occurs twice, and a file that is
            cut off, are always errors.
        block_bytes: Bytes of text parsed at a time.
        bucket_bytes: Bytes of the logs per bucket; memory is a small multiple of it, times ``threads``.
        run_bytes: Bytes of rows that are buffered in memory and written together while the logs are partitioned.

    Returns:
        Counts of sessions (``read``: sessions found) and others, rows and seconds of each stage.

    Raises:
        RejectedLines: A damaged line.
        InputError: Missing or damaged raw files (names file and line), an unknown protocol; or see ``write_lists``.
    """
    source = AdSource(
        raw_dir,
        protocol=protocol,
        max_list_length=max_list_length,
        history_length=history_length,
        block_bytes=block_bytes,
        bucket_bytes=bucket_bytes,
        run_bytes=run_bytes,
    )
    return write_lists(
        source, output_dir, on_error=on_error, threads=threads, progress=progress, shard_bytes=shard_bytes
    )


def _make_empty_behaviours() -> pl.DataFrame:
    kinds = {name: column.kind for name, column in BEHAVIOR_LOG.columns.items()}
    return pl.DataFrame(schema={**kinds, "btag": pl.UInt8})
