"""Writes the lists of any ``ListSource`` into a folder of prepared lists."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from hf_rerank.data.prepared.resumable import REJECTS_FILE, ResumableFolder, open_resumable_folder
from hf_rerank.data.prepared.shards import ShardWriter
from hf_rerank.data.report import PrepareReport, RejectedLine, RejectedLines
from hf_rerank.data.source import ListSource, PartitionedSource, Rejects, Unit
from hf_rerank.errors import InputError, suggestion
from hf_rerank.storage import (
    InputFiles,
    format_json,
    name_failures,
    read_json,
    refuse_output_over_input,
    write_atomically,
)
from hf_rerank.version import __version__

# Bytes of lists in memory, in all splits, per group of shards; a quarter of it on the disk. An interruption loses at
# most this much work.
SHARD_BYTES = 2**30
ON_ERROR = ("raise", "skip")
MAX_THREADS = 4
STAGE = "read and write lists"
PARTS_FILE = "parts.json"

_ADVICE = "; fix the line and rerun, or leave such lines out with --on-error skip (on_error='skip')"
_Outcome = tuple[Unit, dict[str, pa.Table], Rejects]


def write_lists(
    source: ListSource,
    output_dir: str | Path,
    *,
    on_error: str = "raise",
    threads: int | None = None,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> PrepareReport:
    """Writes the lists of a source into a new folder of prepared lists, in bounded memory.

    The folder appears when it is complete; until then it is ``OUTPUT.partial``. After an interruption, by a damaged
    line, a full disk, Ctrl-C or a kill, the next call with the same options and input resumes from the last complete
    group of shards, and the folder has the same bytes as if it had never been interrupted.

    Args:
        source: The source of the lists.
        output_dir: Folder to create; must be new or empty.
        on_error: How rejected lines are treated. ``raise`` (default): as an error that names them. ``skip``: they are
            left out, counted by kind in the report, and recorded in ``rejects.jsonl`` in the folder.
        threads: Number of units read at a time. None: one per processor, at most 4. The bytes do not depend on it.
        progress: Show progress bars for steps that take longer than a second.
        shard_bytes: Bytes of lists in memory after which new shards start, at the end of a unit. Default 1 GiB.

    Returns:
        The counts of lists kept and dropped, and of lines rejected.

    Raises:
        RejectedLines: ``on_error`` is ``raise``, and lines are rejected.
        InputError: Another process is writing the folder; it is not empty, or overlaps the input; it was started with
            other options or input; the input changes while it is read.
        CannotWrite: The disk is full or not writable.
    """
    started = time.monotonic()
    if on_error not in ON_ERROR:
        raise InputError(
            f"unknown on_error {on_error!r}: expected {' or '.join(ON_ERROR)}{suggestion(on_error, ON_ERROR)}"
        )
    if shard_bytes < 1:
        raise InputError(f"shard_bytes is {shard_bytes}: expected at least 1")
    inputs = source.inputs
    refuse_output_over_input(output_dir, inputs.paths)
    options = {**source.options, "shard_bytes": shard_bytes, "versions": _list_versions()}
    bar = functools.partial(tqdm, delay=1, disable=not progress)
    with open_resumable_folder(output_dir, json.loads(json.dumps(options))) as folder:
        if folder.finished:
            report = _sum_reports(folder)
            folder.clean()
            return report
        if isinstance(source, PartitionedSource):
            with inputs.require_unchanged():
                _partition(source, folder, on_error, bar)
        if on_error == "raise" and _sum_reports(folder).rejected:
            raise InputError(
                f"{folder.partial} was started with on_error='skip', and has rejected lines: use it again, or remove "
                f"{folder.partial} to start again"
            )
        units, read_before = iter(source.units(folder.parts)), 0
        of_units = functools.partial(bar, unit=source.size_unit, unit_scale=source.size_unit == "B")
        with of_units(desc="Checking what was read before", leave=False) as checking:
            for unit in folder.skip_units(units):
                read_before += unit.size
                checking.update(unit.size)
        reading = of_units(total=source.size, initial=read_before, desc="Preparing")
        try:
            with reading, inputs.require_unchanged():
                facts = source.facts()
                outcomes = _read_in_order(
                    units, lambda unit: (unit, *source.read(unit, facts)), threads or _count_processors()
                )
                with contextlib.closing(outcomes):
                    _write_groups(source, outcomes, folder, inputs, on_error, shard_bytes, reading.update)
        except InputError:
            if isinstance(source, PartitionedSource):  # its parts were made from a wrong input
                folder.clean()
            raise
        report = _sum_reports(folder)

        def describe(lists: Path) -> None:
            with inputs.require_unchanged():
                source.describe(lists, facts, report)

        folder.finish(source.columns, describe)
    report.seconds = time.monotonic() - started
    return report


def _list_versions() -> dict[str, str]:
    """The versions of packages on which the written bytes depend."""
    packages = {name: metadata.version(name) for name in ("polars", "pyarrow")}
    return {"hf_rerank": __version__, **packages}


def _count_processors() -> int:
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, found)


def _sum_reports(folder: ResumableFolder) -> PrepareReport:
    """The sum of the reports of all complete groups."""
    report = PrepareReport()
    if (folder.parts / PARTS_FILE).exists():
        report.add(PrepareReport(**read_json(folder.parts / PARTS_FILE)["report"]))
    for group in folder.groups:
        report.add(PrepareReport(**group["report"]))
    return report


def _partition(source: PartitionedSource, folder: ResumableFolder, on_error: str, bar: Callable[..., Any]) -> None:
    """Lets a source partition its rows, unless an earlier call has finished that.

    Raises:
        InputError: A part that an earlier call wrote is missing, or has another size.
    """
    if folder.parts.exists():
        for name, size in read_json(folder.parts / PARTS_FILE)["bytes"].items():
            path = folder.parts / name
            if not path.is_file() or path.stat().st_size != size:
                raise InputError(f"{path} is missing or not as it was written: remove {folder.partial} to start again")
        return
    rejected: list[RejectedLine] = []

    def on_reject(line: RejectedLine) -> None:
        rejected.append(line)
        if on_error == "raise":
            raise RejectedLines(rejected, _ADVICE)

    # Not durable: buckets are large, are read once, and can be made again after a power cut.
    with write_atomically(folder.parts, durable=False) as parts:
        with name_failures(parts):
            parts.mkdir()
        report = source.partition(parts, bar, on_reject)
        for line in rejected:
            report.reject(line.kind)
        with name_failures(parts):
            _record(rejected, parts)
            sizes = {path.name: path.stat().st_size for path in parts.iterdir()}
            (parts / PARTS_FILE).write_text(
                format_json({"report": report.to_dict(), "bytes": sizes}), encoding="utf-8"
            )


def _count_rejected(rejects: Rejects, on_error: str, advice: str = "") -> None:
    if rejects.lines and on_error == "raise":
        raise RejectedLines(rejects.lines, _ADVICE + advice)
    for line in rejects.lines:
        rejects.report.reject(line.kind)


def _record(rejected: Sequence[RejectedLine], folder: Path) -> None:
    text = "".join(f"{line.to_json()}\n" for line in rejected)
    (folder / REJECTS_FILE).write_text(text, encoding="ascii")


def _write_groups(
    source: ListSource,
    outcomes: Iterator[_Outcome],
    folder: ResumableFolder,
    inputs: InputFiles,
    on_error: str,
    shard_bytes: int,
    on_size: Callable[[int], object],
) -> None:
    """Writes the lists of the units into groups of shards."""
    ahead = next(outcomes, None)
    while ahead is not None:
        with folder.add_group() as (path, record):
            group = _Group(path, source.columns, source.schema.label)
            try:
                while ahead is not None and group.bytes < shard_bytes:
                    unit, tables, rejects = ahead
                    kept = f"; the groups finished before are kept in {folder.partial}" if folder.groups else ""
                    _count_rejected(rejects, on_error, kept)
                    group.add(unit, tables, rejects)
                    on_size(unit.size)
                    ahead = next(outcomes, None)
                inputs.refuse_changes()
                record.update(group.close())
            finally:
                group.abandon()


def _read_in_order(
    units: Iterable[Unit], read: Callable[[Unit], _Outcome], threads: int
) -> Generator[_Outcome, None, None]:
    """Reads several units at a time, and yields the results in order; an error is raised in the order of its unit.

    Threads, not processes: most of the time is spent in Polars, Arrow and numpy, which run in parallel in threads, and
    scripts need not guard their main module, as multiprocessing requires.
    """
    if threads == 1:
        yield from map(read, units)
        return
    left, failure = iter(units), None
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Outcome]] = deque()
        try:
            while True:
                try:
                    waiting.append(pool.submit(read, next(left)))
                except StopIteration:
                    break
                except InputError as error:
                    failure = error
                    break
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise failure


class _Group:
    """The shards of one group while they are written, one per split that has lists."""

    def __init__(self, path: Path, columns: pa.Schema, label: str) -> None:
        self.path, self.columns, self.label = path, columns, label
        self.units: list[list[str]] = []  # names and digests: units may carry their text
        self.report, self.rejected = PrepareReport(), list[RejectedLine]()
        self.bytes, self.started = 0, time.monotonic()
        self._files: dict[str, ShardWriter] = {}

    def add(self, unit: Unit, tables: dict[str, pa.Table], rejects: Rejects) -> None:
        """Writes the lists of a unit, and counts them."""
        self.units.append([unit.name, unit.digest])
        self.report.add(rejects.report)
        self.rejected += rejects.lines
        for split, lists in tables.items():
            if not lists.num_rows:
                continue
            self.report.keep(split, lists, self.label)
            self.bytes += lists.nbytes
            with name_failures(self.path / f"{split}.parquet", lists.nbytes):
                if split not in self._files:
                    self._files[split] = ShardWriter(self.path / f"{split}.parquet", self.columns)
                self._files[split].write(lists)

    def close(self) -> dict[str, Any]:
        """Finishes the shards; returns the record of the group."""
        for split in list(self._files):
            with name_failures(self.path / f"{split}.parquet"):
                self._files[split].close()
            del self._files[split]
        with name_failures(self.path):
            _record(self.rejected, self.path)
        rows = sum(self.report.lists.values())
        self.report.add_stage(STAGE, rows, time.monotonic() - self.started)
        return {"units": self.units, "report": self.report.to_dict()}

    def abandon(self) -> None:
        """Closes the files that ``close`` has not finished."""
        for file in self._files.values():
            file.abandon()
