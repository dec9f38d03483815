"""A folder of prepared lists as a source: the same lists with other columns, in another order, or cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_rerank.data.prepared.card import CARD_FILE, REPORT_FILE, SCHEMA_FILE, read_report
from hf_rerank.data.prepared.reader import is_prepared, read_prepared
from hf_rerank.data.prepared.resumable import BEGUN_FILE, REJECTS_FILE, partial_folder, refuse_unfinished
from hf_rerank.data.prepared.shards import GROUP_LISTS
from hf_rerank.data.prepared.writer import write_lists
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.source import Rejects, Unit
from hf_rerank.data.splits import SPLITS
from hf_rerank.errors import InputError
from hf_rerank.storage import (
    InputFiles,
    ensure_name,
    lock_output,
    read_json,
    refuse_nonempty,
    refuse_output_over_input,
    remove,
    remove_leftovers,
    write_json,
)


@dataclass(frozen=True)
class ShardUnit(Unit):
    """Consecutive lists of a shard; ``first`` is the index of the first of them in its split."""

    split: str
    first: int
    lists: pa.Table


class PreparedSource:
    """A folder of prepared lists as a ``ListSource``. Subclasses implement ``change``.

    Attributes:
        folder: The folder.
        prepared: Its contents.
        schema, columns: Those of the new lists; initially those of the folder, until a subclass sets them.
        options: Everything that the new lists depend on: the content of the folder, and the subclass's options.
        inputs: The files of the folder that are read.
    """

    size_unit = "list"

    def __init__(self, folder: str | Path, options: Mapping[str, Any]) -> None:
        """
        Args:
            folder: A folder of prepared lists.
            options: Everything that the new lists depend on apart from the folder; JSON values.

        Raises:
            InputError: It is not a folder of prepared lists, is not finished, or has a split that is not in
                ``hf_rerank.data.splits``.
        """
        self.folder = Path(folder)
        self.inputs = InputFiles(_list_files(self.folder))
        refuse_unfinished(self.folder)
        self.prepared = read_prepared(self.folder)
        others = [split for split in self.prepared.files if split not in SPLITS]
        if others:
            raise InputError(f"{self.folder} has a split {others[0]!r}: expected only {', '.join(SPLITS)}")
        self._digests = self.inputs.digest_contents()
        self.options: dict[str, Any] = {**options, "source": self._digests}
        self.schema, self.columns = self.prepared.schema, self.prepared.columns
        self.size = sum(self.prepared.lists.values())

    def facts(self) -> Any:
        """Data that ``change`` needs for all lists; checks that the folder has not changed since it was opened.

        Subclasses call this first.
        """
        self.inputs.refuse_changes()

    def change(self, split: str, first: int, lists: pa.Table, facts: Any, report: PrepareReport) -> pa.Table:
        """Makes new lists from lists of the folder.

        Args:
            split: The split of the lists.
            first: Index of the first of them in the split.
            lists: Consecutive lists of a split.
            facts: The result of ``facts``.
            report: Receives the counts of cut lists.

        Returns:
            The new lists, with ``columns``.
        """
        raise NotImplementedError

    def describe(self, folder: Path, facts: Any, report: PrepareReport) -> None:
        """Writes schema, report, card and other files into the folder. Subclasses call this first."""
        if (self.folder / REJECTS_FILE).is_file():
            shutil.copyfile(self.folder / REJECTS_FILE, folder / REJECTS_FILE)

    def units(self, parts: Path) -> Iterator[ShardUnit]:
        for split, paths in self.prepared.files.items():
            first = 0
            for path in paths:
                with pq.ParquetFile(path) as parquet:
                    # A shard without lists is a unit too, so that there is at least one.
                    for batch in parquet.iter_batches(GROUP_LISTS) if parquet.metadata.num_rows else [None]:
                        columns = self.prepared.columns
                        lists = columns.empty_table() if batch is None else pa.Table.from_batches([batch])
                        name = f"{path.name}, list {first}"
                        lists = lists.replace_schema_metadata()
                        yield ShardUnit(name, self._digests[path.name], lists.num_rows, split, first, lists)
                        first += lists.num_rows

    def read(self, unit: ShardUnit, facts: Any) -> tuple[dict[str, pa.Table], Rejects]:
        is_first = unit.first == 0 and unit.split == next(iter(self.prepared.files))
        report = self._read_counts() if is_first else PrepareReport()
        if not unit.lists.num_rows:
            return {}, Rejects(report)
        return {unit.split: self.change(unit.split, unit.first, unit.lists, facts, report)}, Rejects(report)

    def write(self, output_dir: str | Path, *, progress: bool) -> PrepareReport:
        """Writes the new lists; see ``write_lists``.

        Returns:
            The counts of the new folder. Those of the raw data (lines read, dropped and rejected, and others) are
            copied from this folder.
        """
        refuse_output_over_input(output_dir, [self.folder])
        # One thread: rankers and click models are not called from several.
        return write_lists(self, output_dir, on_error="skip", threads=1, progress=progress)

    def _read_counts(self) -> PrepareReport:
        """The folder's counts of the raw data; lists are counted again."""
        before = read_report(self.folder)
        names = ("read", "dropped", "rejected", "cut_lists", "lost_clicks", "counts", "warnings")
        return PrepareReport(**{name: before[name] for name in names if name in before})


def _list_files(folder: Path) -> list[Path]:
    described = [folder / name for name in (SCHEMA_FILE, REPORT_FILE, CARD_FILE, REJECTS_FILE)]
    return [*(path for path in described if path.is_file()), *sorted(folder.glob("*.parquet"))]


def prepare_in_two_steps(
    prepare: Callable[[Path], PrepareReport],
    options: Mapping[str, Any],
    change: Callable[[Path, Path], PrepareReport],
    output_dir: str | Path,
    suffix: str,
) -> PrepareReport:
    """Prepares raw data into ``OUTPUT.suffix/lists``, and makes ``OUTPUT`` from it; after an interruption, the same
    call resumes.

    Args:
        prepare: ``folder -> report``: makes a folder of prepared lists from raw data.
        options: Everything that ``prepare`` depends on, as JSON values; must be the same when a call is resumed.
        change: ``(source, output) -> report``, such as ``PreparedSource.write``.
        output_dir: Folder to create; must be new or empty.
        suffix: Suffix of the intermediate folder, which is removed at the end.

    Returns:
        The report of ``change``.

    Raises:
        InputError: As for ``prepare`` and ``change``; another process is doing this; or the intermediate folder is
            left from a call with other options.
    """
    output = ensure_name(output_dir)
    between = output.with_name(f"{output.name}.{suffix}")
    begun, lists = between / BEGUN_FILE, between / "lists"
    described = json.loads(json.dumps(dict(options)))
    with lock_output(output, f".{suffix}"):
        if begun.exists():
            _refuse_other_options(between, read_json(begun), described)
        else:
            remove_leftovers(between)
            refuse_nonempty(between)
            remove(between)
            refuse_nonempty(output)
            write_json(begun, described)
        try:
            if not is_prepared(lists):
                refuse_nonempty(output)  # not empty if a kill left only the cleanup
                prepare(lists)
            report = change(lists, output)
        finally:
            nothing_to_resume_from = not (lists.exists() or partial_folder(lists).exists())
            if nothing_to_resume_from or is_prepared(output):
                _remove_between(between)
    return report


def _remove_between(between: Path) -> None:
    """Removes the intermediate folder: first the schema of its lists, so that a partly removed folder is not taken as
    prepared, and last ``begun.json``, by which a later call recognizes the folder."""
    remove(between / "lists" / SCHEMA_FILE)
    for path in between.iterdir():
        if path.name != BEGUN_FILE:
            remove(path)
    remove(between / BEGUN_FILE)
    remove(between)


def _refuse_other_options(between: Path, begun: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    others = [name for name in options if begun.get(name) != options[name]]
    if others:
        raise InputError(
            f"{between} is left from a call with other {', '.join(others)}: use the same, or remove {between} to "
            "start again"
        )
