"""Checks Arrow tables and dicts against a schema.

``Lists`` is a checked batch, in whole columns. A null is a missing value, never an error in itself; NaN and infinity
are errors.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.errors import InputError, show, suggestion
from hf_rerank.fast_rows import LARGEST_FLOAT32, PlainColumns, read_plain_columns
from hf_rerank.schema import COLUMN_TENSORS, TENSORS, Categorical, Dense, Feature, ListSchema, Vector, kind_of

# A column has one entry per list: a list of items, each of which may be a list of numbers.
DEEPEST = 3
_NESTED = (list, tuple, set, frozenset, dict)
HISTORY_FEATURE = "feature of the history"


@dataclass
class Lists:
    """A checked batch of lists, as flat columns: the items of all lists one after another.

    Made by ``from_arrow`` or ``from_rows``. Everything that can be wrong with raw lists is found here.

    Attributes:
        schema: The schema they were checked against.
        lengths: int64 [B], number of items per list, at least 1.
        items: Feature name -> arrow array of all items (a vector: float32 array [N, dim]).
        user: Feature name -> arrow array [B].
        history: Feature name -> arrow array of all history items.
        history_lengths: int64 [B].
        columns: The item columns that become one tensor each, by tensor name, [N]: ``position_ids`` int64, always;
            ``labels``, ``weights``, ``initial_scores`` and so on float32, if the lists have them.
        ids: B strings.
        cut_labels: float32, labels of the items that had already been cut from the lists; None if unknown.
        cut_lengths: int64 [B], number of items cut; 0 where unknown.
    """

    schema: ListSchema
    lengths: np.ndarray
    items: dict[str, Any]
    user: dict[str, pa.Array]
    history: dict[str, pa.Array]
    history_lengths: np.ndarray
    columns: dict[str, np.ndarray]
    ids: list[str] = field(repr=False)
    cut_labels: np.ndarray | None = None
    cut_lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def positions(self) -> np.ndarray:
        """int64 [N], each item's position in the initial order of its list, from 0."""
        return self.columns["position_ids"]

    @property
    def labels(self) -> np.ndarray | None:
        """float32 [N]; None where the lists have no labels."""
        return self.columns.get("labels")

    def collect_cut_labels(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Collects the labels of all items cut, earlier and now, list by list: float32 [items cut].

        Args:
            kept: bool [N], True at the items that are kept now.

        Returns:
            The labels, and their number per list, int64 [B].
        """
        assert self.labels is not None
        numbers = np.arange(len(self))
        of_list = np.repeat(numbers, self.lengths)[~kept]
        labels = self.labels[~kept]
        if self.cut_labels is not None and self.cut_lengths is not None:
            of_list = np.concatenate([np.repeat(numbers, self.cut_lengths), of_list])
            labels = np.concatenate([self.cut_labels, labels])[np.argsort(of_list, kind="stable")]
        return labels, np.bincount(of_list, minlength=len(self))

    @classmethod
    def from_rows(
        cls, rows: Sequence[Mapping[str, Any]], schema: ListSchema, *, with_labels: bool = False, first: int = 0
    ) -> Lists:
        """Lists from dicts, one per list; see ``from_arrow``."""
        if isinstance(rows, Mapping) or not isinstance(rows, Sequence):
            raise InputError(f"expected a sequence of lists, one dict per list, got {type(rows).__name__}")
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise InputError(f"list {first + number} is a {type(row).__name__}: expected a dictionary of columns")
        plain = read_plain_columns(rows, schema)
        columns = {}
        for name in columns_of(schema):
            if name in plain.columns:
                continue
            there = [name in row for row in rows]
            if all(there) and there:
                columns[name] = _read_column(rows, name, schema, first)
            elif any(there):
                keys = rows[there.index(False)]
                place = _locate_list(rows, there.index(False), schema, first)
                raise InputError(f"{place} lacks the column {name!r}, which other lists have{suggestion(name, keys)}")
        if not rows:
            return cls.from_arrow(_make_empty_table(schema), schema, with_labels=with_labels)
        return cls._check(pa.table(columns), plain, len(rows), list(rows[0]), schema, with_labels, first)

    @classmethod
    def from_arrow(
        cls, table: pa.Table | pa.RecordBatch, schema: ListSchema, *, with_labels: bool = False, first: int = 0
    ) -> Lists:
        """Lists from an arrow table, one row per list.

        Args:
            table: Columns of the schema; others are ignored.
            with_labels: Require the labels, positions and weights that the schema names (training, evaluation).
                False: read those that the lists have.
            first: Number of the first list, for messages.

        Raises:
            InputError: Names the column and the first faulty list.
        """
        offered = list(table.schema.names)
        return cls._check(table, PlainColumns(None, {}), table.num_rows, offered, schema, with_labels, first)

    @classmethod
    def _check(
        cls,
        table: pa.Table | pa.RecordBatch,
        plain: PlainColumns,
        count: int,
        offered: list[str],
        schema: ListSchema,
        with_labels: bool,
        first: int,
    ) -> Lists:
        """Checks ``count`` lists.

        Args:
            table: The columns of the schema that are not plain, and perhaps others.
            plain: Columns that are already converted and known to be valid.
            offered: Names of the caller's columns, for messages.
        """
        ids = _read_ids(table, schema, first, count)
        reader = _ColumnReader(table, offered, ids, first, schema.items[0].name)

        items: dict[str, Any] = {}
        lengths = plain.lengths
        lengths_of = schema.items[0].name
        for feature in schema.items:
            if feature.name in plain.columns:
                items[feature.name] = plain.columns[feature.name]
                continue
            flat, feature_lengths = reader.read_sequences(feature.name, feature)
            if lengths is None:
                lengths = feature_lengths
                if (lengths == 0).any():
                    empty = reader.locate_list(int(np.argmin(lengths)))
                    raise InputError(f"{empty} is empty: expected at least one item; leave it out")
            reader.check_same_lengths(feature.name, feature_lengths, lengths_of, lengths)
            items[feature.name] = reader.check_feature(feature, flat, lengths)
        assert lengths is not None

        user = {}
        for feature in schema.user:
            found = plain.columns.get(feature.name)
            user[feature.name] = (
                reader.check_feature(feature, reader.read_column(feature.name), None) if found is None else found
            )
        history = {}
        history_lengths: np.ndarray | None = None
        for feature in schema.history:
            flat, feature_lengths = reader.read_sequences(feature.name, HISTORY_FEATURE)
            if history_lengths is None:
                history_lengths, lengths_of = feature_lengths, feature.name
            reader.check_same_lengths(feature.name, feature_lengths, lengths_of, history_lengths)
            history[feature.name] = reader.check_feature(feature, flat, feature_lengths)
        if history_lengths is None:
            history_lengths = np.zeros(len(lengths), dtype=np.int64)

        columns = {"position_ids": reader.read_positions(schema.position_column, lengths, required=with_labels)}
        for part, name in schema.item_columns().items():
            if part == "position" or (name not in reader.names and not (with_labels and _is_needed(part, schema))):
                continue
            columns[COLUMN_TENSORS[part]] = reader.read_numbers(part, name, lengths)
        lists = cls(schema, lengths, items, user, history, history_lengths, columns, ids)
        if schema.cut_label is not None and schema.cut_label in reader.names:
            lists.cut_labels, lists.cut_lengths = reader.read_cut_labels(schema.cut_label)
        return lists


def _is_needed(part: str, schema: ListSchema) -> bool:
    """Whether training and evaluation need an item column that the schema names.

    They do not need the ground truth of simulated lists, nor the earlier ranker's score if the processor computes it.
    """
    if part == "initial_score":
        return not schema.computes_initial_score
    return TENSORS[COLUMN_TENSORS[part]].role != "ground_truth"


class _ColumnReader:
    """Reads columns of one table; every message names the column and the first faulty list."""

    def __init__(
        self, table: pa.Table | pa.RecordBatch, offered: list[str], ids: list[str], first: int, item_column: str
    ) -> None:
        self.table, self.offered, self.ids, self.first = table, offered, ids, first
        self.names = table.schema.names
        self.item_column = item_column

    def locate_list(self, row: int) -> str:
        number = f"list {self.first + row}"
        return number if self.ids[row] == str(self.first + row) else f"{number} (id {self.ids[row]})"

    def locate(self, flat_index: int, lengths: np.ndarray | None) -> str:
        """Names the list and slot of a flat index; without lengths the index is the list."""
        if lengths is None:
            return self.locate_list(flat_index)
        ends = np.cumsum(lengths)
        row = int(np.searchsorted(ends, flat_index, side="right"))
        return f"{self.locate_list(row)}, item {flat_index - int(ends[row] - lengths[row])}"

    def read_column(self, name: str) -> pa.Array:
        if name not in self.names:
            raise InputError(
                f"the lists have no column {name!r}; their columns: {', '.join(_texts(self.offered))}"
                f"{suggestion(name, self.offered)}"
            )
        if self.names.count(name) > 1:
            raise InputError(f"the lists have {self.names.count(name)} columns {name!r}: expected one")
        column = self.table.column(name)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
        return _convert_types(column)

    def read_sequences(self, name: str, what: str | Feature) -> tuple[pa.Array, np.ndarray]:
        """Reads the items of all lists one after another, and their lengths int64 [B]."""
        column = self.read_column(name)
        if not _is_sequence(column.type):
            what = what if isinstance(what, str) else f"{kind_of(what)} feature of items"
            raise InputError(
                f"column {name!r} holds one {column.type} per list: expected a sequence, one value per item ({what}); "
                "if each row is one item, pass the CSV, or the pandas or Polars frame, to load_lists"
            )
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            none = ", empty where there is no history" if what == HISTORY_FEATURE else ""
            raise InputError(
                f"column {name!r} of {self.locate_list(row)} is null: expected a sequence, one value per item{none}"
            )
        if len(column) == 1:  # as in serving, where the code below would take half the time of all checks
            flat = column[0].values
            return _convert_types(flat), np.array([len(flat)], dtype=np.int64)
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
        return _convert_types(column.flatten()), lengths

    def check_same_lengths(self, name: str, lengths: np.ndarray, other: str, expected: np.ndarray) -> None:
        wrong = lengths != expected
        if np.count_nonzero(wrong):
            row = int(np.argmax(wrong))
            raise InputError(
                f"{self.locate_list(row)} is ragged: column {name!r} has {lengths[row]} values, column {other!r} has "
                f"{expected[row]}; all columns of one list's items (and of its history) must be equally long"
            )

    def check_feature(self, feature: Feature, flat: pa.Array, lengths: np.ndarray | None) -> Any:
        if isinstance(feature, Vector):
            return self.check_vectors(feature, flat, lengths)
        if pa.types.is_null(flat.type) and not (isinstance(feature, Dense) and feature.missing == "error"):
            return flat
        if isinstance(feature, Categorical):
            if not (pa.types.is_integer(flat.type) or _is_text(flat.type)):
                raise InputError(
                    f"categorical column {feature.name!r} holds {flat.type}: expected integers or text; convert it, "
                    "or declare it Dense"
                )
            if feature.hash_size is None and pa.types.is_integer(flat.type):
                self.check_not_negative(feature.name, flat, lengths)
            return flat
        if not pa.types.is_null(flat.type):
            self.check_finite(feature.name, flat, lengths, nullable=feature.missing != "error")
        if feature.missing == "error" and flat.null_count:
            index = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False)))
            raise InputError(
                f"column {feature.name!r} is missing in {self.locate(index, lengths)}, and its schema says "
                "missing='error'; fill it, or use missing='mean' or 'indicator'"
            )
        return flat

    def check_not_negative(self, name: str, flat: pa.Array, lengths: np.ndarray | None) -> None:
        """Ids of a table count from 0; hashed ones may be any 64 bits."""
        if not len(flat) or (lowest := pc.min(flat).as_py()) is None or lowest >= 0:
            return
        index = int(np.argmax(pc.less(flat, 0).fill_null(False).to_numpy(zero_copy_only=False)))
        raise InputError(
            f"categorical column {name!r} holds {flat[index].as_py()} in {self.locate(index, lengths)}: expected ids "
            "of at least 0; a missing value is written as null (None); write ids that are truly negative as text, or "
            "give the feature a hash_size"
        )

    def check_finite(
        self, name: str, flat: pa.Array, lengths: np.ndarray | None, *, width: int = 1, nullable: bool = False
    ) -> np.ndarray:
        """Checks numbers: no text, NaN, infinity or overflow of float32; returns float64, nulls as 0.

        ``width``: numbers per item. ``nullable``: a null is allowed, and is the remedy for NaN.
        """
        if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)):
            raise InputError(f"column {name!r} holds {flat.type}: expected numbers; convert it")
        filled = flat.fill_null(0) if flat.null_count else flat
        numbers = filled.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
        wrong = ~(np.abs(numbers) <= LARGEST_FLOAT32)
        if np.count_nonzero(wrong):
            index = int(np.argmax(wrong))
            raise InputError(
                f"column {name!r} holds {numbers[index]} in {self.locate(index // width, lengths)}: expected finite "
                f"numbers (float32){'; a missing value is written as null (None)' if nullable else ''}"
            )
        return numbers

    def check_vectors(self, feature: Vector, flat: pa.Array, lengths: np.ndarray | None) -> np.ndarray:
        if not _is_sequence(flat.type):
            raise InputError(f"column {feature.name!r} holds one {flat.type} per item: expected {feature.dim} numbers")
        dims = pc.fill_null(pc.list_value_length(flat), 0).to_numpy(zero_copy_only=False)
        if (dims != feature.dim).any():
            index = int(np.argmax(dims != feature.dim))
            raise InputError(
                f"column {feature.name!r} has {dims[index]} numbers in {self.locate(index, lengths)}: "
                f"expected {feature.dim}"
            )
        numbers = flat.flatten()
        if numbers.null_count:
            index = int(np.argmax(numbers.is_null().to_numpy(zero_copy_only=False))) // feature.dim
            raise InputError(
                f"column {feature.name!r} holds a null in {self.locate(index, lengths)}: expected numbers"
            )
        checked = self.check_finite(feature.name, numbers, lengths, width=feature.dim)
        return checked.astype(np.float32).reshape(-1, feature.dim)

    def read_numbers(self, part: str, name: str, lengths: np.ndarray) -> np.ndarray:
        """Reads one finite number per item, none missing, float32 [N]; ``part``: the schema's field that names it."""
        what = part.replace("_", " ")
        flat, own_lengths = self.read_sequences(name, what)
        self.check_same_lengths(name, own_lengths, self.item_column, lengths)
        if flat.null_count:
            index = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False)))
            raise InputError(f"{what} column {name!r} is null in {self.locate(index, lengths)}: expected a number")
        numbers = self.check_finite(name, flat, lengths)
        lowest = TENSORS[COLUMN_TENSORS[part]].lowest
        if lowest is not None and (numbers < lowest).any():
            index = int(np.argmax(numbers < lowest))
            raise InputError(
                f"{what} column {name!r} holds {numbers[index]} in {self.locate(index, lengths)}: expected at least "
                f"{lowest:g}"
            )
        if part == "propensity" and ((numbers <= 0) | (numbers > 1)).any():
            index = int(np.argmax((numbers <= 0) | (numbers > 1)))
            raise InputError(
                f"propensity column {name!r} holds {numbers[index]:g} in {self.locate(index, lengths)}: expected the "
                "probability that the item was examined, above 0 and at most 1; if the column holds inverse "
                "propensities, give 1 / x: training and evaluation correct the clicks by it"
            )
        return numbers.astype(np.float32)

    def read_cut_labels(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads the labels of items that were cut, float32, and their number per list, int64 [B]."""
        flat, lengths = self.read_sequences(name, "cut labels")
        numbers = np.zeros(0) if pa.types.is_null(flat.type) else self.check_finite(name, flat, lengths)
        if (numbers < 0).any() or flat.null_count:
            raise InputError(f"column {name!r} holds a null or a number below 0: expected the labels of items")
        return numbers.astype(np.float32), lengths

    def read_positions(self, name: str | None, lengths: np.ndarray, *, required: bool) -> np.ndarray:
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        if name is None or (name not in self.names and not required):
            return np.arange(int(lengths.sum()), dtype=np.int64) - starts
        flat, own_lengths = self.read_sequences(name, "position")
        self.check_same_lengths(name, own_lengths, self.item_column, lengths)
        if flat.null_count:
            index = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False)))
            raise InputError(f"position column {name!r} is null in {self.locate(index, lengths)}: expected an integer")
        if not pa.types.is_integer(flat.type):
            raise InputError(f"position column {name!r} holds {flat.type}: expected integers from 0; convert it")
        positions = flat.to_numpy(zero_copy_only=False).astype(np.int64)
        wrong = _find_wrong_positions(positions, starts, lengths)
        if wrong.any():
            if not _find_wrong_positions(positions - 1, starts, lengths).any():
                return positions - 1
            index = int(np.argmax(wrong))
            row = int(np.searchsorted(np.cumsum(lengths), index, side="right"))
            start = int(np.cumsum(lengths)[row] - lengths[row])
            of_list = positions[start : start + lengths[row]]
            remedy = (
                "they start at 1, and those of other lists do not: number all lists from 0, or all from 1"
                if sorted(of_list) == list(range(1, len(of_list) + 1))
                else "expected each of 0 to length - 1 once, or in all lists each of 1 to length"
            )
            raise InputError(
                f"position column {name!r} of {self.locate_list(row)} is not a permutation of 0..{lengths[row] - 1} "
                f"({', '.join(map(str, of_list[:6]))}{', ...' if len(of_list) > 6 else ''}): {remedy}"
            )
        return positions


def _find_wrong_positions(positions: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Finds positions that are not 0 to length - 1, each once, bool [N]; ``starts``: the first item of its list."""
    inside = (positions >= 0) & (positions < np.repeat(lengths, lengths))
    taken = np.bincount((starts + positions)[inside], minlength=len(positions))
    wrong = ~inside
    wrong[inside] |= taken[(starts + positions)[inside]] != 1
    return wrong


def columns_of(schema: ListSchema) -> list[str]:
    """The columns that the schema names, except the one to split by and the ids that ranking returns."""
    features = [feature.name for feature in (*schema.items, *schema.user, *schema.history)]
    of_lists = [name for name in (schema.list_id, schema.cut_label) if name is not None]
    return [*features, *schema.item_columns().values(), *of_lists]


def _convert_types(values: pa.Array) -> pa.Array:
    """Converts to types that the whole library reads: booleans to 0 and 1, decimals to numbers."""
    kind = values.type
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8())
    if pa.types.is_decimal(kind):
        return values.cast(pa.int64() if kind.scale == 0 and kind.precision <= 18 else pa.float64())
    if pa.types.is_string_view(kind):
        return values.cast(pa.string())
    return values


def _is_sequence(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _texts(names: Iterable[Any]) -> Iterable[str]:
    """Formats column names for messages; a caller's dicts may have keys of any type."""
    return (name if isinstance(name, str) else show(name) for name in names)


def is_deep(values: Iterable[Any], deepest: int = DEEPEST) -> bool:
    """Whether values are nested more than ``deepest`` levels deep; Arrow crashes on thousands of levels."""
    level = list(values)
    for _ in range(deepest):
        if not any(issubclass(kind, _NESTED) for kind in set(map(type, level))):
            return False
        nested = (value for value in level if isinstance(value, _NESTED))
        level = [entry for value in nested for entry in (value.values() if isinstance(value, dict) else value)]
    return any(isinstance(value, _NESTED) for value in level)


def _read_column(rows: Sequence[Mapping[str, Any]], name: str, schema: ListSchema, first: int) -> pa.Array:
    plain = [row[name].tolist() if hasattr(row[name], "tolist") else row[name] for row in rows]

    def convert(count: int) -> pa.Array | Exception:
        """The column of the first ``count`` lists, or the error that prevents it."""
        if is_deep(plain[:count]):
            return InputError("lists within lists")
        try:
            array = pa.array(plain[:count])
            array.validate(full=True)  # bytes among strings pass as text, even if they are not UTF-8
            return array
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:  # a lone surrogate: ValueError
            return _convert_unusual(plain[:count]) or error

    column = convert(len(plain))
    if not isinstance(column, Exception):
        return column
    number = bisect.bisect_left(range(1, len(plain)), True, key=lambda count: isinstance(convert(count), Exception))
    raise InputError(
        f"column {name!r} of {_locate_list(rows, number, schema, first)} holds values of several types, or of another "
        f"type than the lists before it: {convert(number + 1)}; expected one type in the whole column"
    )


def _convert_unusual(values: list[Any]) -> pa.Array | None:
    """Converts booleans among integers, and integers from 2**63 on, which ``pa.array`` does not accept."""
    there = [value for value in values if value is not None]
    nested = all(isinstance(value, list) for value in there)
    flat = [entry for value in there for entry in value] if nested else there
    if not all(entry is None or isinstance(entry, int) for entry in flat):
        return None

    def to_integers(value: Any) -> Any:
        if isinstance(value, list):
            return [to_integers(entry) for entry in value]
        return None if value is None else int(value)

    for kind in (pa.int64(), pa.uint64()):
        try:
            return pa.array([to_integers(value) for value in values], pa.list_(kind) if nested else kind)
        except (pa.ArrowInvalid, OverflowError):
            continue
    return None


def _locate_list(rows: Sequence[Mapping[str, Any]], row: int, schema: ListSchema, first: int) -> str:
    """Names a list for messages, before it is in a table."""
    name = None if schema.list_id is None else rows[row].get(schema.list_id)
    return f"list {first + row}" if name is None else f"list {first + row} (id {next(iter(_texts([name])))})"


def _read_ids(table: pa.Table | pa.RecordBatch, schema: ListSchema, first: int, count: int) -> list[str]:
    if schema.list_id is None or schema.list_id not in table.schema.names:
        return [str(first + row) for row in range(count)]
    try:
        ids = table.column(schema.list_id).to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(
            f"column {schema.list_id!r} holds bytes that are not UTF-8: {error}; save it as UTF-8"
        ) from None
    if None in ids:
        raise InputError(
            f"column {schema.list_id!r} of list {first + ids.index(None)} is null: expected the id of the list; fill "
            "it, or leave list_id out of the schema"
        )
    return [str(value) for value in ids]


def refuse_repeated_ids(ids: Sequence[str], schema: ListSchema, numbers: Iterable[int] | None = None) -> None:
    """Refuses two lists with the same id.

    Args:
        ids: Ids of lists.
        schema: Names the column they are from.
        numbers: The numbers of the lists, for messages. None: 0, 1, ...

    Raises:
        InputError: Two lists have the same id.
    """
    if len(set(ids)) == len(ids):
        return
    place: dict[str, int] = {}
    for number, list_id in zip(range(len(ids)) if numbers is None else numbers, ids, strict=False):
        if place.setdefault(list_id, number) != number:
            raise InputError(
                f"column {schema.list_id!r} holds the id {list_id} in list {place[list_id]} and again in list "
                f"{number}: expected one row per list; make the ids unique, or leave list_id out of the schema"
            )


def _make_empty_table(schema: ListSchema) -> pa.Table:
    """Makes a table without rows, with the columns of the schema."""
    columns: dict[str, pa.Array] = {}
    for feature in schema.items:
        inner = pa.list_(pa.float32()) if isinstance(feature, Vector) else pa.int64()
        columns[feature.name] = pa.array([], type=pa.list_(inner))
    for feature in schema.user:
        columns[feature.name] = pa.array([], type=pa.int64())
    for name in (*(feature.name for feature in schema.history), *schema.item_columns().values()):
        columns[name] = pa.array([], type=pa.list_(pa.int64()))
    return pa.table(columns)


def tables_of(lists: Any, batch_size: int) -> Iterable[pa.Table]:
    """Yields Arrow tables of at most ``batch_size`` lists each.

    Args:
        lists: A ``datasets`` Dataset or IterableDataset, or an arrow table.
        batch_size: Lists per table.

    Raises:
        InputError: ``lists`` is something else, such as a dictionary of splits; or ``batch_size`` is below 1.
    """
    if batch_size < 1:  # with 0 a dataset would give empty tables without end
        raise InputError(f"batch_size is {batch_size}: expected at least 1")
    if isinstance(lists, pa.Table):
        for start in range(0, lists.num_rows, batch_size):
            yield lists.slice(start, batch_size)
    elif hasattr(lists, "with_format") and hasattr(lists, "iter"):
        yield from lists.with_format("arrow").iter(batch_size=batch_size)
    elif isinstance(lists, Mapping):
        raise InputError(
            f"expected lists, got a dictionary of {', '.join(map(str, lists))}: choose one split, "
            "such as lists['train']"
        )
    else:
        raise InputError(f"expected a dataset or an arrow table of lists, got {type(lists).__name__}")
