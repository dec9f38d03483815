"""A user's files as a source of prepared lists.

Wide files (one row per list) are read part by part; the rows of long files (one row per item) are first partitioned by
list.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from hf_rerank.data.custom.checking import ONE_ITEM, ListChecker, SplitFacts
from hf_rerank.data.custom.cutting import CUT_LABELS, cut_lists
from hf_rerank.data.custom.files import ListFile
from hf_rerank.data.custom.own_files import EMPTY_LISTS, OwnFiles, PartUnit
from hf_rerank.data.prepared import (
    OWN,
    Licence,
    make_dataset_card,
    write_description,
)
from hf_rerank.data.prepared.buckets import MAX_BUCKETS, BucketWriter, read_bucket
from hf_rerank.data.report import PrepareReport, RejectedLine
from hf_rerank.data.source import Rejects, split_table
from hf_rerank.data.splits import SPLITS
from hf_rerank.data.time_split import parse_split_by
from hf_rerank.data.truncating import cut_label_column
from hf_rerank.errors import InputError
from hf_rerank.storage import sha256_of_json
from hf_rerank.storage.inputs import digest_content

# Rows of long files are partitioned into buckets of lists, each of about this many bytes of the files.
LONG_PART_BYTES = 2**28
ITEMS, BUCKET_COLUMN = "items", "hash of the list"


class CustomSource:
    """Wide files as a ``ListSource``.

    Args:
        own: The files, after ``scan``.
        split_by, ranker_train, cut: As for ``prepare_own``.
        progress: Show a progress bar while lists are checked.
    """

    size_unit = "row"

    def __init__(self, own: OwnFiles, *, split_by: str, ranker_train: bool, cut: bool, progress: bool) -> None:
        self.own, self.schema, self.cut, self.progress = own, own.schema, cut, progress
        self.inputs = own.inputs
        self.time, self.ranker_train = parse_split_by(split_by), ranker_train
        self.columns = own.columns
        if cut:
            name = self.schema.cut_label or cut_label_column(self.schema.label)
            if name in self.columns.names and self.schema.cut_label is None:
                raise InputError(
                    f"the lists have a column {name!r}, the name of the column of cut labels: rename it, or name it "
                    "as cut_label in the schema"
                )
            others = [field for field in self.columns if field.name != name]
            self.columns = pa.schema([*others, pa.field(name, CUT_LABELS)])
            self.schema = self.schema.replace(cut_label=name)
        self.options: dict[str, Any] = {
            "schema": self.schema.to_dict(),
            "split_by": split_by,
            "ranker_train": ranker_train,
            "cut": cut,
            "read": dict(own.options.to_dict()),
        }
        self.read_units: list[PartUnit] = []
        self.size = sum(own.rows.values())

    def units(self, parts: Path) -> list[PartUnit]:
        """One per part with rows."""
        del parts
        digests = {file.path: _digest_file(file) for file in self.own.files}
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
        """Checks every list, and assigns it to a split.

        Raises:
            InputError: A list is wrong.
        """
        return ListChecker(self).check(self.read_units)

    def read(self, unit: PartUnit, facts: SplitFacts) -> tuple[dict[str, pa.Table], Rejects]:
        """The lists of a part, by split."""
        rejects = Rejects()
        report = rejects.report
        tables = [
            cut_lists(table, self.schema, report).select(self.columns.names) if self.cut else table
            for _, table in self.read_tables(unit, report.counts)
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
        return split_table(table, of_list), rejects

    def read_tables(self, unit: PartUnit, counts: dict[str, int]) -> Iterator[tuple[str | None, pa.Table]]:
        """The lists of a part, uncut, and the split given by the name of their file."""
        assert isinstance(unit.part, ListFile)
        for table in self.own.read_lists(unit.part, counts):
            yield unit.part.split, table

    def describe(self, folder: Path, facts: SplitFacts, report: PrepareReport) -> None:
        """Writes schema, report and card."""
        del facts
        write_description(folder, self.schema, report, self._make_card(report))

    def _make_card(self, report: PrepareReport) -> str:
        path = Path(self.own.files[0].path)
        title = path.stem if len(self.own.files) == 1 else (path.parent.name or path.stem)
        caveats = [
            f"{report.counts.get(ONE_ITEM, 0):,} lists have one item.",
            "Clicks depend on the order in which items were shown.",
            *(f"Warning: {message}" for message in report.warnings),
        ]
        if self.cut:
            caveats.append(f"Labels of items that were cut are in the column `{self.schema.cut_label}`.")
        names = ", ".join(f"`{Path(file.path).name}`" for file in self.own.files[:3])
        more = f" and {len(self.own.files) - 3:,} more files" if len(self.own.files) > 3 else ""
        changed = "longer lists were cut" if self.cut else "none was changed"
        how = [
            f"Made by `hf-rerank prepare own` from {names}{more}; every list was checked, {changed}.",
            self._describe_split(report.lists),
        ]
        return make_dataset_card(
            title, report, self.schema, how=how, caveats=caveats, licence=Licence(OWN, "Yours to say.")
        )

    def _describe_split(self, lists: Mapping[str, int]) -> str:
        if any(file.split for file in self.own.files):
            return "The splits are those of the files."
        if self.time is not None:
            total = sum(lists.values())
            shares = [
                f"{100 * lists[split] / total:.1f} % `{split}`"
                for split in SPLITS
                if split != "ranker_train" or self.ranker_train
            ]
            return (
                f"Split by time, column `{self.time}`, the oldest lists first: {', '.join(shares)}; lists with equal "
                "times are in the same split. Users of the test split may also be in train."
            )
        held = "40 % `ranker_train`, 45 % `train`" if self.ranker_train else "85 % `train`"
        if "split" in self.columns.names:
            return "The splits are those of the column `split`."
        by = f"`{self.schema.group or self.schema.list_id}`"
        by = by if self.schema.group or self.schema.list_id else "the row number"
        return f"Split by the MD5 of {by}: {held}, 5 % `validation`, 10 % `test`."


class LongSource(CustomSource):
    """Long files as a ``PartitionedSource``, with enough buckets of lists that one fits in memory."""

    size_unit = "bucket"

    def __init__(self, own: OwnFiles, **options: Any) -> None:
        super().__init__(own, **options)
        total = sum(Path(file.path).stat().st_size for file in own.files if not file.is_url)
        self.size = self.buckets = min(MAX_BUCKETS, max(1, -(-total // LONG_PART_BYTES)))
        self.runs: list[Path] = []
        # The last bucket read: often there is only one, which is first checked and then written.
        self.last: tuple[int, Any, Any] = (-1, None, None)

    def partition(
        self, parts: Path, bar: Callable[..., Any], on_reject: Callable[[RejectedLine], object]
    ) -> PrepareReport:
        """Writes the items of each list into one of several buckets on the disk."""
        del on_reject
        report = PrepareReport()
        writer = BucketWriter(parts, ITEMS, self.buckets, BUCKET_COLUMN)
        with bar(total=sum(self.own.rows.values()), desc="Partitioning", unit="item") as shown:
            for part in self.own.parts:
                for table in self.own.read_items(part, report.counts):
                    frame = pl.DataFrame(pl.from_arrow(table))
                    key = frame[str(self.schema.list_id)].hash(0).alias(BUCKET_COLUMN)
                    writer.add(frame.with_columns(key))
                    shown.update(table.num_rows)
        writer.close()
        return report

    def units(self, parts: Path) -> list[PartUnit]:
        """One per bucket."""
        self.runs = sorted(parts.glob(f"{ITEMS}-*.arrow"))
        digest = sha256_of_json([_digest_file(file) for file in self.own.files])
        self.read_units = [
            PartUnit(f"bucket {number} of the lists", f"{digest}:{number}", 1, number)
            for number in range(self.buckets)
        ]
        return self.read_units

    def read_tables(self, unit: PartUnit, counts: dict[str, int]) -> Iterator[tuple[str | None, pa.Table]]:
        """The lists of a bucket, in the order in which they first appear."""
        del counts
        assert isinstance(unit.part, int)
        number, lists, parts = self.last
        if number != unit.part:
            items = read_bucket(self.runs, unit.part).drop(BUCKET_COLUMN)
            if not len(items):
                return
            lists, parts = self.own.make_lists(items)
            self.last = unit.part, lists, parts
        splits = np.array([part.split for part in self.own.parts], dtype=object)[parts]
        changes = [0, *(np.flatnonzero(splits[1:] != splits[:-1]) + 1).tolist(), len(splits)]
        for start, stop in itertools.pairwise(changes):
            yield splits[start], lists.slice(start, stop - start)


def _digest_file(file: ListFile) -> str:
    return str(file.fingerprint()) if file.is_url else digest_content(file.path)
