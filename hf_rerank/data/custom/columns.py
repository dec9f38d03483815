"""What the values of a user's columns are, and the same values in the types that lists have.

The schema says which column holds numbers, positions or ids. ``Kinds`` looks at all values of all files; only then is
each column converted, so that an id is of one type everywhere: 007 in one file makes 7 text in every other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, ListSchema

# Where a row (from 0) of a table comes from, for messages.
Where = Callable[[int], str]

# Integers as Python writes them, since 007 and 7 are different ids. Of 12 beside a missing id pandas makes 12.0.
INTEGER = r"^(0|-?[1-9][0-9]{0,19})$"
WHOLE_NUMBER = r"^(0|-?[1-9][0-9]{0,19})\.0$"
BOOLEAN = r"^([tT]rue|TRUE|[fF]alse|FALSE)$"
LARGEST_EXACT = 2**53
NUMBER, POSITION, ID, OTHER = "number", "position", "id", "other"


@dataclass(frozen=True)
class Kind:
    """What the values of one column are, whatever holds them.

    Attributes:
        values: ``null``, ``boolean``, ``integer``, ``number``, ``text``, ``time`` or ``other``.
        depth: How deep they are nested in lists.
        low, high: Of integers.
        from_text: They were read from a format that holds only text (CSV).
        where: A place that holds such values.
        type: Their Arrow type.
    """

    values: str
    depth: int
    type: pa.DataType
    low: int = 0
    high: int = 0
    from_text: bool = False
    where: str = ""


def roles_of(schema: ListSchema) -> dict[str, str]:
    """Column -> ``number``, ``position`` or ``id``; columns that the schema does not name are not in it."""
    roles: dict[str, str] = {}
    for feature in (*schema.items, *schema.user, *schema.history):
        roles[feature.name] = ID if isinstance(feature, Categorical) else NUMBER
    numbers = (schema.label, schema.weight, schema.propensity, schema.attraction, schema.initial_score)
    roles |= {name: NUMBER for name in numbers if name is not None}
    if schema.position_column is not None:
        roles[schema.position_column] = POSITION
    for name in (schema.list_id, schema.group, schema.id):
        if name is not None:
            roles.setdefault(name, ID)
    return roles


def numbers_of(schema: ListSchema) -> frozenset[str]:
    """The columns of numbers."""
    return frozenset(name for name, role in roles_of(schema).items() if role == NUMBER)


class Kinds:
    """The kinds of all columns over all tables of all files.

    Args:
        schema: Says which columns hold numbers. None: nothing is known (inference).
        options: Of the readers.
        from_text: The format holds only text.
    """

    def __init__(self, schema: ListSchema | None, options: ReadOptions, *, from_text: bool) -> None:
        self.roles = {} if schema is None else roles_of(schema)
        self.options, self.from_text = options, from_text
        self.found: dict[str, Kind] = {}

    def add(self, table: pa.Table, where: str) -> None:
        """Looks at the values of a table; ``where`` names its file."""
        for name in table.column_names:
            kind = self._kind(name, table.column(name), where)
            self.found[name] = _joined(name, self.found.get(name), kind)

    def merge(self, other: Mapping[str, Kind]) -> None:
        """Adds what was found elsewhere."""
        for name, kind in other.items():
            self.found[name] = _joined(name, self.found.get(name), kind)

    def _kind(self, name: str, column: pa.ChunkedArray, where: str) -> Kind:
        depth, flat = 0, column
        while _is_list(flat.type):
            depth, flat = depth + 1, pc.list_flatten(flat)
        flat = _plain_values(flat)
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
            return self._kind_of_text(kind, pl.Series(name, flat), self.roles.get(name))
        return replace(kind, values="time" if pa.types.is_temporal(flat.type) else "other")

    def _kind_of_text(self, kind: Kind, text: pl.Series, role: str | None) -> Kind:
        """Of CSV, what its cells look like; elsewhere text is text."""
        if not self.from_text:
            return replace(kind, values="text")
        if role in (NUMBER, POSITION):  # whatever it looks like; whoever converts it says what is not a number
            return replace(kind, values="number")
        cells = without_nulls(text, self.options).drop_nulls().unique()
        if not len(cells):
            return kind
        if cells.str.contains(BOOLEAN).all():
            return replace(kind, values="boolean")
        integers = f"{INTEGER}|{WHOLE_NUMBER}" if role == ID else INTEGER
        if cells.str.contains(integers).all():
            low, high = _bounds(cells.str.strip_suffix(".0"))
            if low >= -(2**63) and high < (2**64 if low >= 0 else 2**63):
                return replace(kind, values="integer", low=low, high=high)
        if cells.str.strip_chars().cast(pl.Float64, strict=False).null_count() == 0:
            return replace(kind, values="number")
        return replace(kind, values="text")

    def is_text(self, name: str) -> bool:
        """Whether a column of ids holds text."""
        kind = self.found[name]
        return kind.values == "text" or (kind.from_text and kind.values == "number")


def _bounds(integers: pl.Series) -> tuple[int, int]:
    # By length first: Polars has no integers that hold 20 digits in every version.
    lengths = integers.str.len_chars()
    longest = integers.filter(lengths >= 18).to_list()
    short = integers.filter(lengths < 18).cast(pl.Int64)
    values = [*map(int, longest), *([int(short.min()), int(short.max())] if len(short) else [])]  # type: ignore[arg-type]
    return min(values), max(values)


def _joined(name: str, first: Kind | None, second: Kind) -> Kind:
    """The kind of values of either kind.

    Raises:
        InputError: Text here and numbers there, or lists here and single values there.
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


def without_nulls(text: pl.Series, options: ReadOptions, *, numbers: bool = False) -> pl.Series:
    """Cells without those that mean "missing": in columns that are all numbers otherwise, more strings do."""
    nulls = options.nulls_of_numbers
    if numbers or _numbers_alone(text, nulls):
        return text.set(text.is_in([*nulls, ""]), None)
    return text


def _numbers_alone(text: pl.Series, nulls: Iterable[str]) -> bool:
    rest = text.drop_nulls().unique()
    rest = rest.filter(~rest.is_in([*nulls, ""]))
    if not len(rest):
        return False
    if rest.str.contains(BOOLEAN).all():
        return True
    return rest.str.strip_chars().cast(pl.Float64, strict=False).null_count() == 0


# ----------------------------------------------------------------------------------------------------- the conversion


class Converter:
    """Gives columns the types that they have in all files.

    Args:
        schema: Says which column holds numbers, positions or ids. None: values alone decide.
        kinds: Of all files.
        options: Of the readers.
        text_ids: Columns whose ids a model knows as text (True) or integers (False), whatever they look like.
        counts: What was read as something else is added to this, by name.
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
        """The columns that any file has, in their types; a column that this table lacks is refused or null.

        Raises:
            InputError: A value is not what the schema says of its column.
        """
        columns = {}
        for name, kind in self.kinds.found.items():
            if name not in table.column_names:
                columns[name] = pa.nulls(table.num_rows, self._type(name, kind))
                continue
            column = table.column(name)
            if isinstance(column, pa.ChunkedArray):
                column = column.combine_chunks()
            columns[name] = self._nested(name, column, kind.depth, where, np.arange(len(column)))
        return pa.table(columns)

    def columns(self) -> pa.Schema:
        """The columns of converted tables."""
        return pa.schema([(name, self._type(name, kind)) for name, kind in self.kinds.found.items()])

    def _type(self, name: str, kind: Kind) -> pa.DataType:
        flat = self._flat_type(name, kind)
        for _ in range(kind.depth):
            flat = pa.list_(flat)
        return flat

    def _flat_type(self, name: str, kind: Kind) -> pa.DataType:
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

    def _nested(self, name: str, column: pa.Array, depth: int, where: Where, rows: np.ndarray) -> pa.Array:
        if not _is_list(column.type):
            return self._flat(name, _plain_values(column), where, rows)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        inner = self._nested(name, pc.list_flatten(column), depth - 1, where, np.repeat(rows, lengths))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        missing = pc.is_null(column) if column.null_count else None
        return pa.ListArray.from_arrays(pa.array(offsets), inner, mask=missing)

    def _flat(self, name: str, flat: pa.Array, where: Where, rows: np.ndarray) -> pa.Array:
        wanted = self._flat_type(name, self.kinds.found[name])
        if flat.type == wanted:
            if pa.types.is_string(wanted) and self.kinds.from_text and self._numbers_with_nulls(name):
                return self._text(without_nulls(pl.Series(name, flat), self.options, numbers=True))
            return flat
        if flat.null_count == len(flat):
            return pa.nulls(len(flat), wanted)
        if pa.types.is_string(flat.type):
            return self._of_text(name, pl.Series(name, flat), wanted, where, rows)
        return self._of_values(name, flat, wanted, where, rows)

    def _numbers_with_nulls(self, name: str) -> bool:
        return self.kinds.found[name].values == "number"

    def _of_text(self, name: str, text: pl.Series, wanted: pa.DataType, where: Where, rows: np.ndarray) -> pa.Array:
        kind: Any = pl.Float64 if pa.types.is_floating(wanted) else pl.UInt64 if wanted == pa.uint64() else pl.Int64
        nulls = text.null_count()
        found = text.cast(kind, strict=False)
        if found.null_count() == nulls:  # nearly always
            return found.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(wanted)
        text = without_nulls(text, self.options, numbers=True)
        self._count(f"cells of text read as missing in column {name}", text.null_count() - nulls)
        if pa.types.is_integer(wanted):
            whole = text.str.contains(WHOLE_NUMBER).fill_null(False)
            if self.roles.get(name) == ID:
                self._count(f"ids such as 12.0 read as 12 in column {name}", int(whole.sum()))
            text = text.str.strip_chars()
            text = text.str.strip_suffix(".0")
        numbers = _booleans(text).str.strip_chars()
        found = numbers.cast(kind, strict=False)
        wrong = found.is_null() & text.is_not_null()
        if wrong.any():
            index = int(wrong.arg_max() or 0)
            expected = {NUMBER: "a number", POSITION: "an integer from 0"}.get(
                self.roles.get(name, OTHER), "an integer, as elsewhere in the column or in training"
            )
            remedy = (
                "here one row is one item; if one row is one list, all columns of items must hold lists"
                if text[index].startswith("[")
                else f"a missing value is an empty cell, or one of {', '.join(self.options.nulls_of_numbers)}"
            )
            raise InputError(
                f"{where(int(rows[index]))}: column {name!r} holds {short(text[index])}: expected {expected}; {remedy}"
            )
        return found.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(wanted)

    def _of_values(self, name: str, flat: pa.Array, wanted: pa.DataType, where: Where, rows: np.ndarray) -> pa.Array:
        """Numbers, booleans, times and other values of typed formats."""
        if pa.types.is_boolean(flat.type):
            flat = flat.cast(pa.int8())
        if pa.types.is_string(wanted):
            if self.roles.get(name) == ID and not self.text_ids.get(name) and not pa.types.is_temporal(flat.type):
                raise InputError(
                    f"{where(0)}: column {name!r} holds {flat.type}, and text in rows before: write one type"
                )
            return flat.cast(pa.string())
        if pa.types.is_integer(wanted) and pa.types.is_floating(flat.type):
            flat = self._whole(name, flat, where, rows)
        try:
            return flat.cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{where(0)}: column {name!r} holds {flat.type}: {reason}; convert it") from None

    def _whole(self, name: str, flat: pa.Array, where: Where, rows: np.ndarray) -> pa.Array:
        """Ids that were made floats beside a missing one, as pandas does."""
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

    def _text(self, series: pl.Series) -> pa.Array:
        return series.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())

    def _count(self, name: str, number: int) -> None:
        if number:
            self.counts[name] = self.counts.get(name, 0) + number


def natural_table(tables: Sequence[pa.Table], options: ReadOptions, *, from_text: bool) -> pa.Table:
    """Tables of one file as one, of types that their values alone say, where no schema is known."""
    kinds = Kinds(None, options, from_text=from_text)
    for number, table in enumerate(tables):
        kinds.add(table, f"block {number}")
    converter = Converter(None, kinds, options)
    return pa.concat_tables([converter.convert(table, str) for table in tables])


def _booleans(text: pl.Series) -> pl.Series:
    """``true`` and ``false`` as 1 and 0."""
    if not text.str.contains(BOOLEAN).any():
        return text
    lower = text.str.to_lowercase()
    return text.set(lower == "true", "1").set(lower == "false", "0")


def short(cell: Any) -> str:
    """A value for messages."""
    text = str(cell)
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _plain_values(flat: Any) -> Any:
    """The same values in ordinary types: dictionaries, views, decimals, UUIDs and bytes of text have none."""
    kind = flat.type
    if isinstance(kind, pa.BaseExtensionType):
        storage = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
        if isinstance(storage, pa.ChunkedArray):
            storage = pa.concat_arrays(storage.chunks) if storage.num_chunks else pa.array([], kind)
        if kind.extension_name == "arrow.uuid":
            return _texts_of_uuids(storage.storage)
        return _plain_values(storage.storage)
    if pa.types.is_dictionary(kind):
        return _plain_values(flat.cast(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return flat.cast(pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        try:
            return flat.cast(pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            return flat
    if pa.types.is_decimal(kind):
        return flat.cast(pa.int64() if kind.scale == 0 and kind.precision <= 18 else pa.float64())
    if pa.types.is_float16(kind):
        return flat.cast(pa.float32())
    return flat


def _texts_of_uuids(storage: pa.Array) -> pa.Array:
    return pa.array([None if v is None else str(uuid.UUID(bytes=v)) for v in storage.to_pylist()], pa.string())


def item_columns_of(schema: ListSchema) -> set[str]:
    """The columns that hold one value per item, or per item of the history."""
    names = {feature.name for feature in (*schema.items, *schema.history)}
    of_items = (
        schema.label,
        schema.position_column,
        schema.weight,
        schema.propensity,
        schema.attraction,
        schema.initial_score,
        schema.id,
    )
    return names | {name for name in of_items if name is not None}
