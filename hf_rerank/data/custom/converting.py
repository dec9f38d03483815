"""Converts columns of any format to the types of lists: numbers, positions from 0, ids as integers or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.custom.columns import (
    ID,
    NUMBER,
    OTHER,
    POSITION,
    Where,
    is_list,
    roles_of,
    shorten,
    simplify_values,
)
from hf_rerank.data.custom.kinds import BOOLEAN, WHOLE_NUMBER, Kind, Kinds, replace_null_strings
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema

LARGEST_EXACT = 2**53


class Converter:
    """Converts columns to the types that they have over all files.

    Args:
        schema: Says which columns are numbers, positions or ids. None: the values alone decide.
        kinds: The kinds of values over all files.
        options: Options of the readers.
        text_ids: Column -> whether a model reads its ids as text (True) or integers (False), whatever their form.
        counts: The numbers of converted values, such as ids 12.0 read as 12, are added here by name.
    """

    def __init__(
        self,
        schema: ListSchema | None,
        kinds: Kinds,
        options: ReadOptions,
        text_ids: Mapping[str, bool] | None = None,
        counts: dict[str, int] | None = None,
    ) -> None:
        self.kinds, self.options = kinds, options
        self.roles, self.text_ids = {} if schema is None else roles_of(schema), dict(text_ids or {})
        self.guessing = schema is None
        self.counts = {} if counts is None else counts

    def convert(self, table: pa.Table, where: Where) -> pa.Table:
        """Converts a table to the columns of all files; a column that it lacks becomes null.

        Raises:
            InputError: A value does not fit the role of its column in the schema.
        """
        columns = {}
        for name, kind in self.kinds.found.items():
            if name not in table.column_names:
                columns[name] = pa.nulls(table.num_rows, self._choose_type(name, kind))
                continue
            column = table.column(name)
            if isinstance(column, pa.ChunkedArray):
                column = column.combine_chunks()
            columns[name] = self._convert_nested(name, column, kind.depth, where, np.arange(len(column)))
        return pa.table(columns)

    def columns(self) -> pa.Schema:
        """The columns of converted tables."""
        return pa.schema([(name, self._choose_type(name, kind)) for name, kind in self.kinds.found.items()])

    def _choose_type(self, name: str, kind: Kind) -> pa.DataType:
        flat = self._choose_flat_type(name, kind)
        for _ in range(kind.depth):
            flat = pa.list_(flat)
        return flat

    def _choose_flat_type(self, name: str, kind: Kind) -> pa.DataType:
        role = self.roles.get(name, OTHER)
        integers = pa.uint64() if kind.high >= 2**63 else pa.int64()
        if role == NUMBER:
            return pa.float32() if pa.types.is_float32(kind.type) else pa.float64()
        if role == POSITION:
            return pa.int64()
        known = self.text_ids.get(name)
        if known is not None:
            return pa.string() if known else integers
        if kind.values in ("integer", "boolean"):
            return integers
        if kind.values == "null":
            return pa.int64() if role == ID else pa.null()
        if role == ID:
            whole = kind.values == "number" and not kind.from_text
            return pa.int64() if whole else pa.string()
        if kind.from_text:
            return pa.float64() if self.guessing and kind.values == "number" else pa.string()
        return kind.type

    def _convert_nested(self, name: str, column: pa.Array, depth: int, where: Where, rows: np.ndarray) -> pa.Array:
        if not is_list(column.type):
            return self._convert_flat(name, simplify_values(column), where, rows)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        inner = self._convert_nested(name, pc.list_flatten(column), depth - 1, where, np.repeat(rows, lengths))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        missing = pc.is_null(column) if column.null_count else None
        return pa.ListArray.from_arrays(pa.array(offsets), inner, mask=missing)

    def _convert_flat(self, name: str, flat: pa.Array, where: Where, rows: np.ndarray) -> pa.Array:
        wanted = self._choose_flat_type(name, self.kinds.found[name])
        if flat.type == wanted:
            if pa.types.is_string(wanted) and self.kinds.from_text and self._holds_numbers(name):
                return self._to_text(replace_null_strings(pl.Series(name, flat), self.options, numbers=True))
            return flat
        if flat.null_count == len(flat):
            return pa.nulls(len(flat), wanted)
        if pa.types.is_string(flat.type):
            return self._convert_text(name, pl.Series(name, flat), wanted, where, rows)
        return self._convert_values(name, flat, wanted, where, rows)

    def _holds_numbers(self, name: str) -> bool:
        return self.kinds.found[name].values == "number"

    def _convert_text(
        self, name: str, text: pl.Series, wanted: pa.DataType, where: Where, rows: np.ndarray
    ) -> pa.Array:
        kind: Any = pl.Float64 if pa.types.is_floating(wanted) else pl.UInt64 if wanted == pa.uint64() else pl.Int64
        nulls = text.null_count()
        found = text.cast(kind, strict=False)
        if found.null_count() == nulls:  # nearly always
            return found.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(wanted)
        text = replace_null_strings(text, self.options, numbers=True)
        self._count(f"cells of text read as missing in column {name}", text.null_count() - nulls)
        if pa.types.is_integer(wanted):
            whole = text.str.contains(WHOLE_NUMBER).fill_null(False)
            if self.roles.get(name) == ID:
                self._count(f"ids such as 12.0 read as 12 in column {name}", int(whole.sum()))
            text = text.str.strip_chars()
            text = text.str.strip_suffix(".0")
        numbers = _replace_booleans(text).str.strip_chars()
        found = numbers.cast(kind, strict=False)
        wrong = found.is_null() & text.is_not_null()
        if wrong.any():
            index = int(wrong.arg_max() or 0)
            expected = {NUMBER: "a number", POSITION: "an integer from 0"}.get(
                self.roles.get(name, OTHER), "an integer, as elsewhere in the column or in training"
            )
            remedy = (
                "here one row is one item; if one row is one list, all item columns must contain lists"
                if text[index].startswith("[")
                else f"a missing value is an empty cell, or one of {', '.join(self.options.nulls_of_numbers)}"
            )
            raise InputError(
                f"{where(int(rows[index]))}: column {name!r} holds {shorten(text[index])}: expected {expected}; "
                f"{remedy}"
            )
        return found.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(wanted)

    def _convert_values(
        self, name: str, flat: pa.Array, wanted: pa.DataType, where: Where, rows: np.ndarray
    ) -> pa.Array:
        """Numbers, booleans, times and other values of typed formats."""
        if pa.types.is_boolean(flat.type):
            flat = flat.cast(pa.int8())
        # As ids, dates and times become text: numbers would differ in type from the text of other rows.
        may_be_text = pa.types.is_date(flat.type) or pa.types.is_timestamp(flat.type) or self.text_ids.get(name)
        if pa.types.is_string(wanted) and self.roles.get(name) == ID and not may_be_text:
            raise InputError(
                f"{where(0)}: column {name!r} holds {flat.type}: expected ids, which are integers or UTF-8 text, of "
                "one type in the whole column; convert it"
            )
        if pa.types.is_integer(wanted) and pa.types.is_floating(flat.type):
            flat = self._check_whole(name, flat, where, rows)
        try:
            return flat.cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{where(0)}: column {name!r} holds {flat.type}: {reason}; convert it") from None

    def _check_whole(self, name: str, flat: pa.Array, where: Where, rows: np.ndarray) -> pa.Array:
        """Checks ids that pandas stored as floats because some are missing; NaN becomes null."""
        missing = flat.is_null(nan_is_null=True)
        values = pc.if_else(missing, pa.scalar(None, flat.type), flat)
        numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
        wrong = (numbers != np.floor(numbers)) | (np.abs(numbers) > LARGEST_EXACT)
        if wrong.any():
            index = int(np.argmax(wrong))
            raise InputError(
                f"{where(int(rows[index]))}: column {name!r} holds {numbers[index]!r}: expected ids, which are "
                "integers or text; declare it Dense if it is a number, or write the ids as integers (floats are exact "
                "up to 2**53)"
            )
        self._count(f"ids such as 12.0 read as 12 in column {name}", len(flat) - values.null_count)
        return values

    def _to_text(self, series: pl.Series) -> pa.Array:
        return series.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())

    def _count(self, name: str, number: int) -> None:
        if number:
            self.counts[name] = self.counts.get(name, 0) + number


def unify_tables(tables: Sequence[pa.Table], options: ReadOptions, *, from_text: bool) -> pa.Table:
    """Concatenates the tables of one file, with types from their values alone, without a schema."""
    kinds = Kinds(None, options, from_text=from_text)
    for number, table in enumerate(tables):
        kinds.add(table, f"block {number}")
    converter = Converter(None, kinds, options)
    return pa.concat_tables([converter.convert(table, str) for table in tables])


def _replace_booleans(text: pl.Series) -> pl.Series:
    """``true`` and ``false`` as 1 and 0."""
    if not text.str.contains(BOOLEAN).any():
        return text
    lower = text.str.to_lowercase()
    return text.set(lower == "true", "1").set(lower == "false", "0")
