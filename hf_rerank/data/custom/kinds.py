"""The kind of values of each column over all files, from which one type is chosen, so that an id is the same
everywhere.

007 in one file makes 7 text in all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.custom.columns import ID, NUMBER, POSITION, is_list, roles_of, simplify_values
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema

# Integers as Python writes them, since 007 and 7 are different ids. pandas writes 12 as 12.0 if some ids are missing.
INTEGER = r"^(0|-?[1-9][0-9]{0,19})$"
WHOLE_NUMBER = r"^(0|-?[1-9][0-9]{0,19})\.0$"
BOOLEAN = r"^([tT]rue|TRUE|[fF]alse|FALSE)$"


@dataclass(frozen=True)
class Kind:
    """The kind of values of one column, independent of the file format.

    Attributes:
        values: ``null``, ``boolean``, ``integer``, ``number``, ``text``, ``time`` or ``other``.
        depth: How deep they are nested in lists.
        low, high: The range of integers.
        from_text: Whether they were read from a format that holds only text (CSV).
        where: A file that holds such values, for messages.
        type: Their Arrow type.
    """

    values: str
    depth: int
    type: pa.DataType
    low: int = 0
    high: int = 0
    from_text: bool = False
    where: str = ""


class Kinds:
    """The kinds of all columns over all tables of all files.

    Args:
        schema: Says which columns are numbers. None: unknown (inference).
        options: Options of the readers.
        from_text: Whether the format holds only text.
    """

    def __init__(self, schema: ListSchema | None, options: ReadOptions, *, from_text: bool) -> None:
        self.roles = {} if schema is None else roles_of(schema)
        self.options, self.from_text = options, from_text
        self.found: dict[str, Kind] = {}

    def add(self, table: pa.Table, where: str) -> None:
        """Adds the values of a table; ``where`` names its file."""
        for name in table.column_names:
            kind = self._find_kind(name, table.column(name), where)
            self.found[name] = _join(name, self.found.get(name), kind)

    def merge(self, other: Mapping[str, Kind]) -> None:
        """Adds the kinds of another file."""
        for name, kind in other.items():
            self.found[name] = _join(name, self.found.get(name), kind)

    def _find_kind(self, name: str, column: pa.ChunkedArray, where: str) -> Kind:
        depth, flat = 0, column
        while is_list(flat.type):
            depth, flat = depth + 1, pc.list_flatten(flat)
        flat = simplify_values(flat)
        kind = Kind("null", depth, flat.type, from_text=self.from_text, where=where)
        if flat.null_count == len(flat):
            return kind
        if pa.types.is_boolean(flat.type):
            return replace(kind, values="boolean")
        if pa.types.is_integer(flat.type):
            bounds = pc.min_max(flat).as_py()
            return replace(kind, values="integer", low=bounds["min"], high=bounds["max"])
        if pa.types.is_floating(flat.type):
            return replace(kind, values="number")
        if pa.types.is_string(flat.type):
            return self._find_kind_of_text(kind, pl.Series(name, flat), self.roles.get(name))
        return replace(kind, values="time" if pa.types.is_temporal(flat.type) else "other")

    def _find_kind_of_text(self, kind: Kind, text: pl.Series, role: str | None) -> Kind:
        """The kind of text: in CSV, the kind that its cells look like; in other formats, text."""
        if not self.from_text:
            return replace(kind, values="text")
        if role in (NUMBER, POSITION):  # whatever it looks like; conversion reports what is not a number
            return replace(kind, values="number")
        cells = replace_null_strings(text, self.options).drop_nulls().unique()
        if not len(cells):
            return kind
        if cells.str.contains(BOOLEAN).all():
            return replace(kind, values="boolean")
        integers = f"{INTEGER}|{WHOLE_NUMBER}" if role == ID else INTEGER
        if cells.str.contains(integers).all():
            low, high = _find_bounds(cells.str.strip_suffix(".0"))
            if low >= -(2**63) and high < (2**64 if low >= 0 else 2**63):
                return replace(kind, values="integer", low=low, high=high)
        if cells.str.strip_chars().cast(pl.Float64, strict=False).null_count() == 0:
            return replace(kind, values="number")
        return replace(kind, values="text")

    def is_text(self, name: str) -> bool:
        """Whether a column of ids holds text."""
        kind = self.found[name]
        return kind.values == "text" or (kind.from_text and kind.values == "number")


def _find_bounds(integers: pl.Series) -> tuple[int, int]:
    # By length first: not every version of Polars has integers of 20 digits.
    lengths = integers.str.len_chars()
    longest = integers.filter(lengths >= 18).to_list()
    short = integers.filter(lengths < 18).cast(pl.Int64)
    values = [*map(int, longest), *([int(short.min()), int(short.max())] if len(short) else [])]  # type: ignore[arg-type]
    return min(values), max(values)


def _join(name: str, first: Kind | None, second: Kind) -> Kind:
    """The common kind of two kinds of values.

    Raises:
        InputError: One kind is text and the other numbers, or one is lists and the other single values.
    """
    if first is None or (first.values == "null" and first.depth <= second.depth):
        return second
    if second.values == "null" and second.depth <= first.depth:
        return first
    if first.depth != second.depth:
        raise InputError(
            f"column {name!r} holds lists in one of {first.where} and {second.where}, and single values in the other: "
            "expected one form"
        )
    kinds = {first.values, second.values}
    bounds = {"low": min(first.low, second.low), "high": max(first.high, second.high)}
    if first.from_text and len(kinds) > 1:  # a cell of CSV may always be text
        return replace(first, values="number" if kinds == {"integer", "number"} else "text")
    if len(kinds) > 1 and kinds <= {"boolean", "integer", "number"}:
        wider = first if first.values in ("integer", "number") and second.values != "number" else second
        return replace(wider, low=min(0, bounds["low"]), high=max(1, bounds["high"]))
    try:
        both = [pa.schema([("", first.type)]), pa.schema([("", second.type)])]
        joined = pa.unify_schemas(both, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise InputError(
            f"{first.where} and {second.where} differ in the types of a column: {name!r} holds {first.type} and "
            f"{second.type}; write one type"
        ) from None
    return replace(first, type=joined, low=bounds["low"], high=bounds["high"])


def replace_null_strings(text: pl.Series, options: ReadOptions, *, numbers: bool = False) -> pl.Series:
    """Replaces strings that mean "missing" by nulls; more of them in columns whose other values are all numbers."""
    nulls = options.nulls_of_numbers
    if numbers or _holds_only_numbers(text, nulls):
        return text.set(text.is_in([*nulls, ""]), None)
    return text


def _holds_only_numbers(text: pl.Series, nulls: Iterable[str]) -> bool:
    rest = text.drop_nulls().unique()
    rest = rest.filter(~rest.is_in([*nulls, ""]))
    if not len(rest):
        return False
    if rest.str.contains(BOOLEAN).all():
        return True
    return rest.str.strip_chars().cast(pl.Float64, strict=False).null_count() == 0
