"""A user's files as tables of lists, whose columns have the same types in every part of every file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.custom.converting import Converter
from hf_rerank.data.custom.files import ListFile, note_local_inputs
from hf_rerank.data.custom.frames import to_plain_table
from hf_rerank.data.custom.kinds import Kinds
from hf_rerank.data.custom.long_form import group_items, is_long, refuse_missing_columns
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.custom.reading import TEXT_KINDS, Block, read_blocks
from hf_rerank.data.source import Unit
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema

# Size of a part, which a thread holds in memory, unless the format can only be read as a whole.
PART_BYTES = 2**26
EMPTY_FILES, EMPTY_LISTS = "empty files", "empty lists"
PART_COLUMN, ROW_COLUMN = "part of the input", "row of the part"
Counts = dict[str, int]


@dataclass(frozen=True)
class PartUnit(Unit):
    """A part of the files as a unit of a source.

    Attributes:
        part: One of ``OwnFiles.parts``; for files with one row per item, the number of a bucket of lists.
    """

    part: ListFile | int = 0


class OwnFiles:
    """The lists in files of one format. ``scan`` reads all values; then ``read_lists`` or ``read_items`` read parts.

    Args:
        files: The result of ``find_list_files``.
        schema: Describes the columns.
        options: Options of the readers. None: the defaults.
        labels: Require the columns that new lists lack (labels, weights).
        text_ids: As for ``Converter``.

    Attributes:
        inputs: The local files, recorded before they are read.
        parts: The parts of all files, in order.
        rows: Number of rows of each part; set by ``scan``.
        long: Whether one row is one item; set by ``scan``.
        item_columns: Columns of the rows of the files; set by ``scan``.
        columns: Columns of the lists; set by ``scan``.
    """

    def __init__(
        self,
        files: Sequence[ListFile],
        schema: ListSchema,
        options: ReadOptions | None = None,
        *,
        labels: bool = True,
        text_ids: Mapping[str, bool] | None = None,
    ) -> None:
        self.inputs = note_local_inputs(files)
        self.files, self.schema, self.options = list(files), schema, options or ReadOptions()
        self.labels, self.text_ids = labels, text_ids
        self.parts = [part for file in self.files for part in file.divide(PART_BYTES)]
        self.kinds = Kinds(schema, self.options, from_text=self.files[0].kind in TEXT_KINDS)
        self.rows: dict[ListFile, int] = {}
        self.long = False
        self.item_columns = self.columns = pa.schema([])

    @property
    def empty_files(self) -> int:
        """Number of files without rows."""
        there = {part.path for part, rows in self.rows.items() if rows}
        return sum(file.path not in there for file in self.files)

    def scan(self, on_rows: Callable[[int], object] = lambda rows: None) -> None:
        """Reads the kinds of values of all files, and decides the columns.

        Raises:
            InputError: Files are damaged, differ in their columns or types, or contain no lists.
        """
        first: tuple[str, set[str]] | None = None
        for file in self.files:
            of_file = Kinds(self.schema, self.options, from_text=self.kinds.from_text)
            for part in [part for part in self.parts if part.path == file.path]:
                self.rows[part] = 0
                for block in read_blocks(part, self.schema, self.options):
                    of_file.add(block.table, file.path)
                    self.rows[part] += block.table.num_rows
                    on_rows(block.table.num_rows)
            if not of_file.found:
                continue
            if first is not None and file.kind != "letor":
                _refuse_other_columns(first, (file.path, set(of_file.found)), self.kinds.roles)
            first = first or (file.path, set(of_file.found))
            self.kinds.merge(of_file.found)
        if not any(self.rows.values()):
            raise InputError(f"{_format_names(self.files)} holds no lists: remove it, or write it again")
        self._settle()

    def scan_first_blocks(self) -> None:
        """Like ``scan``, from the first rows of each file only, for streams."""
        first: tuple[str, set[str]] | None = None
        for file in self.files:
            for block in read_blocks(file, self.schema, self.options):
                if first is not None:
                    _refuse_other_columns(first, (file.path, set(block.table.column_names)), self.kinds.roles)
                first = first or (file.path, set(block.table.column_names))
                self.kinds.add(block.table, file.path)
                break
        if first is None:
            raise InputError(f"{_format_names(self.files)} holds no lists: remove it, or write it again")
        self._settle()

    def read_lists(self, part: ListFile, counts: Counts) -> Iterator[pa.Table]:
        """Yields the lists of a part of wide files, with ``columns``, without lists that have no items.

        Args:
            part: One of ``parts``.
            counts: The numbers of omissions and conversions are added here by name.
        """
        for block in self._convert_blocks(part, counts):
            kept = self._drop_empty_lists(block.table, counts)
            if kept.num_rows:
                yield kept

    def read_items(self, part: ListFile, counts: Counts) -> Iterator[pa.Table]:
        """Yields the items of a part of long files, with ``item_columns`` and locations (``PART_COLUMN``,
        ``ROW_COLUMN``)."""
        number, row = self.parts.index(part), 0
        for block in self._convert_blocks(part, counts):
            rows = np.arange(row, row + block.table.num_rows)
            row += len(rows)
            table = block.table.append_column(PART_COLUMN, pa.array(np.full(len(rows), number)))
            yield table.append_column(ROW_COLUMN, pa.array(rows))

    def make_lists(self, frame: pl.DataFrame) -> tuple[pa.Table, np.ndarray]:
        """Groups items (see ``read_items``) into lists with ``columns``; also returns the index of the part of each
        list.

        Raises:
            InputError: Items do not make a list, or one list has items in two files.
        """
        parts, rows = frame[PART_COLUMN].to_numpy(), frame[ROW_COLUMN].to_numpy()
        list_id = str(self.schema.list_id)
        lists = group_items(
            frame.drop(PART_COLUMN, ROW_COLUMN),
            self.schema,
            lambda row: self._locate(int(parts[row]), int(rows[row])),
            labels=self.labels,
        )
        in_lists = frame.group_by(list_id, maintain_order=True).agg(
            pl.col(PART_COLUMN).first().alias("first"), pl.col(PART_COLUMN).last().alias("last")
        )
        for name, first, last in in_lists.filter(pl.col("first") != pl.col("last")).iter_rows():
            paths = self.parts[first].path, self.parts[last].path
            if paths[0] != paths[1]:
                raise InputError(
                    f"list {name} has rows in {paths[0]} and in {paths[1]}: expected all items of a list in one file; "
                    f"if the ids start again in each file, make {list_id!r} unique"
                )
        return to_plain_table(lists).cast(self.columns), in_lists["first"].to_numpy()

    def _convert_blocks(self, part: ListFile, counts: Counts) -> Iterator[Block]:
        converter = Converter(self.schema, self.kinds, self.options, self.text_ids, counts)
        for block in read_blocks(part, self.schema, self.options):
            yield Block(converter.convert(self._fill_features(block.table, part), block.where), block.where)

    def _locate(self, part: int, row: int) -> str:
        """The location of a row, for messages; reads the part again."""
        for block in read_blocks(self.parts[part], self.schema, self.options):
            if row < block.table.num_rows:
                return block.where(row)
            row -= block.table.num_rows
        return self.parts[part].path

    def _settle(self) -> None:
        found = self.kinds.found
        self.long = is_long({name: kind.depth for name, kind in found.items()}, self.schema)
        if self.long:
            refuse_missing_columns(list(found), self.schema, f"{self.files[0].path}, line 1", labels=self.labels)
        self.item_columns = self.columns = Converter(self.schema, self.kinds, self.options, self.text_ids).columns()
        if self.long:
            frame = pl.DataFrame(pl.from_arrow(self.item_columns.empty_table()))
            self.columns = to_plain_table(group_items(frame, self.schema, str, labels=self.labels)).schema

    def _fill_features(self, table: pa.Table, part: ListFile) -> pa.Table:
        """Adds the features that a LETOR file lacks, as 0."""
        for name in self.kinds.found if part.kind == "letor" else ():
            if name not in table.column_names and name.startswith("feature_"):
                table = table.append_column(name, pa.array(np.zeros(table.num_rows)))
        return table

    def _drop_empty_lists(self, table: pa.Table, counts: Counts) -> pa.Table:
        """Drops lists whose item columns are all empty; if only some are empty, the list is ragged, and refused
        later."""
        empty = None
        for name in (self.schema.label, *(feature.name for feature in self.schema.items)):
            if name in table.column_names and pa.types.is_list(table.schema.field(name).type):
                none = pc.equal(pc.list_value_length(table.column(name)), 0).fill_null(False)
                empty = none if empty is None else pc.and_(empty, none)
        number = 0 if empty is None else pc.sum(empty).as_py() or 0
        if not number:
            return table
        counts[EMPTY_LISTS] = counts.get(EMPTY_LISTS, 0) + number
        return table.filter(pc.invert(empty))


def _refuse_other_columns(first: tuple[str, set[str]], second: tuple[str, set[str]], named: Collection[str]) -> None:
    odd = sorted(first[1] ^ second[1], key=lambda name: (name not in named, name))
    if odd:
        lacking, other = (second, first) if odd[0] in first[1] else (first, second)
        raise InputError(
            f"{lacking[0]} has no column {odd[0]!r}, which {other[0]} has: give all files the same columns"
        )


def _format_names(files: Sequence[ListFile]) -> str:
    shown = ", ".join(file.path for file in files[:3])
    return shown + (", ..." if len(files) > 3 else "")
