"""A user's own lists, all of them checked -> a folder of prepared lists.

Everything is checked before anything is written. Wide files (one row per list) are read part by part; the rows of
long ones (one row per item) are first partitioned by their list. Memory holds a few numbers per list (its split, a
hash of its id, its time).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from tqdm import tqdm

from hf_rerank.data.custom.cutting import cut_column, cut_lists
from hf_rerank.data.custom.data_checks import DataChecks
from hf_rerank.data.custom.files import ListFile, Source, find_list_files
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.custom.own_datasets import split_columns, splits_of_table
from hf_rerank.data.custom.own_files import EMPTY_FILES, EMPTY_LISTS, OwnFiles
from hf_rerank.data.prepared import (
    OWN,
    SHARD_BYTES,
    Licence,
    dataset_card,
    is_prepared,
    refuse_unfinished,
    write_description,
    write_lists,
)
from hf_rerank.data.prepared.buckets import MAX_BUCKETS, BucketWriter, read_bucket
from hf_rerank.data.report import PrepareReport, RejectedLine
from hf_rerank.data.source import Rejects, Unit, tables_by_split
from hf_rerank.data.splits import SPLITS
from hf_rerank.data.time_split import split_by_time, time_column, times_of
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import ListSchema
from hf_rerank.storage import sha256_of_json
from hf_rerank.storage.inputs import content_digest
from hf_rerank.validation import Lists, refuse_repeated_ids

# Rows of one list are brought together in parts of about so many bytes of the files.
LONG_PART_BYTES = 2**28
ITEMS, BUCKET_COLUMN = "items", "hash of the list"
ONE_ITEM = "lists of one item"
ANONYMOUS = "lists without a user, each a group of its own"


def prepare_own(
    source: Source,
    output_dir: str | Path,
    *,
    schema: ListSchema | str | Path,
    split_by: str = "group",
    ranker_train: bool = False,
    max_list_length: int | None = None,
    cut: bool = False,
    options: ReadOptions | None = None,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> PrepareReport:
    """Own files -> a folder of prepared lists (see ``hf_rerank.data.prepared``).

    If this is interrupted, the next call with the same options resumes.

    Args:
        source: Files, as ``load_lists`` takes them.
        output_dir: Folder to make; must be new or empty. It appears when it is complete.
        schema: Says which column is what, as an object or a path to its JSON.
        split_by: ``"group"`` or ``"time:COLUMN"``, see ``load_lists``.
        ranker_train: Hold out 40 % of the users (by time: the oldest 40 %) for training an initial ranker.
        max_list_length: Longest list. None: that of the schema.
        cut: Cut longer lists to the items that stand first, instead of refusing them. The labels of the items that
            were cut are kept in the column ``LABEL_cut``, so that metrics can cover all logged clicks.
        options: Of the readers.
        progress: Bars of the rows read, checked and written, if they take longer than a second.
        shard_bytes: Of lists in memory after which the shards of all splits are cut.

    Raises:
        InputError: A list is wrong, or too long without ``cut``; two lists have one id; an output folder that is not
            empty; other files or options than those of the call that is resumed.
    """
    if isinstance(source, str | Path):
        refuse_unfinished(source)
        if is_prepared(source):
            raise InputError(f"{source} is prepared already: give the files that it was made from")
    schema = schema if isinstance(schema, ListSchema) else ListSchema.load(schema)
    if max_list_length is not None:
        if max_list_length < 1:
            raise InputError(f"max_list_length is {max_list_length}: expected at least 1")
        schema = schema.replace(max_list_length=max_list_length)
    files = find_list_files(source)
    own = OwnFiles(files, schema, options)
    with tqdm(unit="row", desc="Reading", delay=1, disable=not progress) as bar:
        own.scan(bar.update)
    kind = LongSource if own.long else CustomSource
    lists = kind(own, split_by=split_by, ranker_train=ranker_train, cut=cut, progress=progress)
    return write_lists(lists, output_dir, progress=progress, shard_bytes=shard_bytes)


@dataclass(frozen=True)
class PartUnit(Unit):
    """A part of a file.

    Attributes:
        part: Of ``OwnFiles.parts``; of long files, the number of the part of the partition.
    """

    part: ListFile | int = 0


@dataclass(frozen=True)
class SplitFacts:
    """What is known once all lists have been checked.

    Attributes:
        split: uint8 [N], the number of the split of each list, in the order of the units.
        first: Name of a unit -> number of its first list.
        warnings: What is valid, but most likely a mistake.
        counts: What is counted over all lists, by name.
    """

    split: np.ndarray
    first: dict[str, int]
    warnings: list[str]
    counts: dict[str, int]


class CustomSource:
    """Wide files as a ``ListSource``.

    Args:
        own: After ``scan``.
        split_by, ranker_train, cut: Of ``prepare_own``.
        progress: Show a bar while lists are checked.
    """

    size_unit = "row"

    def __init__(self, own: OwnFiles, *, split_by: str, ranker_train: bool, cut: bool, progress: bool) -> None:
        self.own, self.schema, self.cut, self.progress = own, own.schema, cut, progress
        self.time, self.ranker_train = time_column(split_by), ranker_train
        self.columns = own.columns
        if cut:
            name = cut_column(self.schema)
            if name in self.columns.names:
                raise InputError(f"the lists have a column {name!r}, which is that of cut labels: rename it")
            self.columns = self.columns.append(pa.field(name, pa.list_(pa.float64())))
        self.options: dict[str, Any] = {
            "schema": self.schema.to_dict(),
            "split_by": split_by,
            "ranker_train": ranker_train,
            "cut": cut,
            "read": dict(own.options.to_dict()),
        }
        self.read_units: list[PartUnit] = []
        self.size = sum(own.rows.values())

    def inputs(self) -> list[Path]:
        """The local files."""
        return [Path(file.path) for file in self.own.files if not file.is_url]

    def units(self, parts: Path) -> list[PartUnit]:
        """One per part with rows."""
        del parts
        digests = {file.path: _digest(file) for file in self.own.files}
        self.read_units = [
            PartUnit(
                f"{part.path}" + (f", from {part.start}" if part.start or part.stop else ""),
                f"{digests[part.path]}:{part.start}-{part.stop}",
                self.own.rows[part],
                part,
            )
            for part in self.own.parts
            if self.own.rows[part]
        ]
        return self.read_units

    def facts(self) -> SplitFacts:
        """Checks every list, and decides on its split.

        Raises:
            InputError: A list is wrong.
        """
        return _Checker(self).checked(self.read_units)

    def read(self, unit: PartUnit, facts: SplitFacts) -> tuple[dict[str, pa.Table], Rejects]:
        """The lists of a part, by split."""
        rejects = Rejects()
        report = rejects.report
        tables = [
            cut_lists(table, self.schema, report) if self.cut else table
            for _, table in self.tables(unit, report.counts)
        ]
        table = pa.concat_tables([self.columns.empty_table(), *tables]).combine_chunks()
        empty = report.counts.pop(EMPTY_LISTS, 0)
        report.read = table.num_rows + empty
        if empty:
            report.drop("without items", empty)
        first = facts.first[unit.name]
        if first == 0:  # once, with the first unit
            report.warnings += facts.warnings
            for name, count in facts.counts.items():
                report.count(name, count)
        report.counts = {name: count for name, count in report.counts.items() if count}
        of_list = np.array(SPLITS, dtype=object)[facts.split[first : first + table.num_rows]]
        return tables_by_split(table, of_list), rejects

    def tables(self, unit: PartUnit, counts: dict[str, int]) -> Iterator[tuple[str | None, pa.Table]]:
        """The lists of a part, uncut, and the split that the name of their file says."""
        assert isinstance(unit.part, ListFile)
        for table in self.own.lists(unit.part, counts):
            yield unit.part.split, table

    def describe(self, folder: Path, facts: SplitFacts, report: PrepareReport) -> None:
        """Writes schema, report and card."""
        del facts
        write_description(folder, self.schema, report, self._card(report))

    def _card(self, report: PrepareReport) -> str:
        path = Path(self.own.files[0].path)
        title = path.stem if len(self.own.files) == 1 else (path.parent.name or path.stem)
        caveats = [
            f"{report.counts.get(ONE_ITEM, 0):,} lists have one item.",
            "Clicks depend on the order in which items were shown.",
            *(f"Warning: {message}" for message in report.warnings),
        ]
        if self.cut:
            caveats.append(f"Labels of items that were cut are in the column `{cut_column(self.schema)}`.")
        names = ", ".join(f"`{Path(file.path).name}`" for file in self.own.files[:3])
        more = f" and {len(self.own.files) - 3:,} more files" if len(self.own.files) > 3 else ""
        changed = "longer lists were cut" if self.cut else "none was changed"
        how = [f"Made by `hf-rerank prepare own` from {names}{more}; every list was checked, {changed}.", self._rule()]
        return dataset_card(
            title, report, self.schema, how=how, caveats=caveats, licence=Licence(OWN, "Yours to say.")
        )

    def _rule(self) -> str:
        if any(file.split for file in self.own.files):
            return "The splits are those of the files."
        held = "40 % `ranker_train`, 45 % `train`" if self.ranker_train else "85 % `train`"
        if self.time is not None:
            return (
                f"Split by time, column `{self.time}`, the oldest lists first: {held}, 5 % `validation`, 10 % `test`; "
                "equal times are together. Users of the test split are in train too."
            )
        if "split" in self.columns.names:
            return "The splits are those of the column `split`."
        by = f"`{self.schema.group or self.schema.list_id}`"
        by = by if self.schema.group or self.schema.list_id else "the number of the row"
        return f"Split by the MD5 of {by}: {held}, 5 % `validation`, 10 % `test`."


class LongSource(CustomSource):
    """Long files as a ``PartitionedSource``; as many buckets of lists as it takes for one to fit in memory."""

    size_unit = "bucket"

    def __init__(self, own: OwnFiles, **options: Any) -> None:
        super().__init__(own, **options)
        total = sum(Path(file.path).stat().st_size for file in own.files if not file.is_url)
        self.size = self.buckets = min(MAX_BUCKETS, max(1, -(-total // LONG_PART_BYTES)))
        self.runs: list[Path] = []
        # The bucket that was read last: often there is but one, which is checked and then written.
        self.last: tuple[int, Any, Any] = (-1, None, None)

    def partition(
        self, parts: Path, bar: Callable[..., Any], on_reject: Callable[[RejectedLine], object]
    ) -> PrepareReport:
        """Brings the items of each list together, in buckets on the disk."""
        del on_reject
        report = PrepareReport()
        writer = BucketWriter(parts, ITEMS, self.buckets, BUCKET_COLUMN)
        with bar(total=sum(self.own.rows.values()), desc="Partitioning", unit="item") as shown:
            for part in self.own.parts:
                for table in self.own.items(part, report.counts):
                    frame = pl.DataFrame(pl.from_arrow(table))
                    key = frame[str(self.schema.list_id)].hash(0).alias(BUCKET_COLUMN)
                    writer.add(frame.with_columns(key))
                    shown.update(table.num_rows)
        writer.close()
        return report

    def units(self, parts: Path) -> list[PartUnit]:
        """One per bucket."""
        self.runs = sorted(parts.glob(f"{ITEMS}-*.arrow"))
        digest = sha256_of_json([_digest(file) for file in self.own.files])
        self.read_units = [
            PartUnit(f"bucket {number} of the lists", f"{digest}:{number}", 1, number)
            for number in range(self.buckets)
        ]
        return self.read_units

    def tables(self, unit: PartUnit, counts: dict[str, int]) -> Iterator[tuple[str | None, pa.Table]]:
        """The lists of a bucket, in the order in which they first appear."""
        del counts
        assert isinstance(unit.part, int)
        number, lists, parts = self.last
        if number != unit.part:
            items = read_bucket(self.runs, unit.part).drop(BUCKET_COLUMN)
            if not len(items):
                return
            lists, parts = self.own.lists_of_items(items)
            self.last = unit.part, lists, parts
        splits = np.array([part.split for part in self.own.parts], dtype=object)[parts]
        changes = [0, *(np.flatnonzero(splits[1:] != splits[:-1]) + 1).tolist(), len(splits)]
        for start, stop in itertools.pairwise(changes):
            yield splits[start], lists.slice(start, stop - start)


class _Checker:
    """Reads all lists once."""

    def __init__(self, source: CustomSource) -> None:
        self.source, self.schema = source, source.schema
        self.checks = DataChecks(source.schema)
        self.given = any(file.split for file in source.own.files)
        offered = source.own.columns.names
        if source.time is not None and (self.given or "split" in offered):
            where = "files named after splits" if self.given else "column 'split'"
            raise InputError(f"the lists bring their splits ({where}): leave out split_by, or give them as one")
        self.by = ["split"] if "split" in offered and not self.given else []
        if not self.given and not self.by and source.time is None:
            self.by = split_columns(source.schema, offered)
        self.splits: list[np.ndarray] = []
        self.times: list[pa.Table] = []
        self.anonymous = 0

    def checked(self, units: list[PartUnit]) -> SplitFacts:
        source, first, number = self.source, {}, 0
        total = sum(unit.size for unit in units)
        with tqdm(total=total, unit=source.size_unit, desc="Checking", delay=1, disable=not source.progress) as bar:
            for unit in units:
                first[unit.name] = number
                for split, table in source.tables(unit, {}):
                    self._add(split, table, number)
                    number += table.num_rows
                bar.update(unit.size)
        if not number:
            raise InputError(f"{source.own.files[0].path} holds no lists with items: expected at least one")
        if source.time is not None:
            times = times_of(self.times, source.time)
            of_list = split_by_time(times, ranker_train=source.ranker_train)
        else:
            of_list = np.concatenate(self.splits)
        self._refuse_repeated_ids(units)
        codes = {split: code for code, split in enumerate(SPLITS)}
        numbers = np.array([codes[split] for split in of_list], dtype=np.uint8)
        given = self.given or self.by == ["split"]
        warnings = self.checks.messages(np.array(SPLITS)[numbers], given=given)
        if not (numbers == codes["train"]).any():
            warnings.append(_no_train(np.unique(of_list).tolist(), given))
        counts = {ANONYMOUS: self.anonymous, ONE_ITEM: self.checks.one_item, EMPTY_FILES: source.own.empty_files}
        return SplitFacts(numbers, first, warnings, counts)

    def _add(self, split: str | None, table: pa.Table, first: int) -> None:
        lists = cut_lists(table, self.schema, PrepareReport()) if self.source.cut else table
        try:
            batch = Lists.from_arrow(lists, self.schema, with_labels=True, first=first)
            _refuse_long_lists(batch, self.schema)
        except InputError as error:
            raise InputError(f"{split}: {error}" if split else str(error)) from None
        group = self.schema.group
        users = table.column(group) if group is not None and group in table.column_names else None
        if users is not None:
            if pa.types.is_list(users.type):
                raise InputError(f"column {group!r} holds {users.type}: expected one user per list, not one per item")
            self.anonymous += users.null_count
        self.checks.add(batch, users, learned_from=split in (None, "train"))
        if self.source.time is not None:
            if self.source.time not in table.column_names:
                times_of([table], self.source.time)
            self.times.append(table.select([self.source.time]))
        elif split is not None:
            self.splits.append(np.full(len(batch), split, dtype=object))
        else:
            rows = table.select(self.by) if self.by else len(batch)
            of_list = splits_of_table(rows, self.by, self.source.ranker_train, first)
            for unknown in set(of_list) - set(SPLITS):
                raise InputError(
                    f"column 'split' holds {unknown!r}: prepared lists have the splits {', '.join(SPLITS)}"
                    f"{suggestion(unknown, SPLITS)}; rename it"
                )
            self.splits.append(of_list)

    def _refuse_repeated_ids(self, units: list[PartUnit]) -> None:
        if self.schema.list_id is None or not self.checks.ids_repeat():
            return
        ids: list[str] = []
        for unit in units:
            for _, table in self.source.tables(unit, {}):
                ids += [str(value) for value in table.column(self.schema.list_id).to_pylist()]
        refuse_repeated_ids(ids, self.schema)


def _refuse_long_lists(batch: Lists, schema: ListSchema) -> None:
    too_long = batch.lengths > schema.max_list_length
    if too_long.any():
        row = int(np.argmax(too_long))
        raise InputError(
            f"list {batch.ids[row]} has {batch.lengths[row]} items, the schema allows max_list_length="
            f"{schema.max_list_length}: make max_list_length in the schema larger, or cut such lists with cut=True "
            "(--max-list-length N --cut)"
        )


def _no_train(found: list[str], given: bool) -> str:
    remedy = (
        "name files, or values of column 'split', train" if given else "give more lists, or leave out ranker_train"
    )
    return f"no list is in train (all are in {', '.join(found)}), so nothing can be trained on them: {remedy}"


def _digest(file: ListFile) -> str:
    return str(file.fingerprint()) if file.is_url else content_digest(file.path)
