"""PRM Public's text: cut into fields where they lie, decoded by polars, and blamed by name where damaged.

One line is one list: six fields between ``|``, each but the first a JSON array; see ``FIELDS``. A batch of lines is
decoded column by column. What looks wrong in it is read again carefully, line by line, so that the message names the
first line that is damaged, the field and what it holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.prepared import PrepareReport
from hf_rerank.errors import InputError

if TYPE_CHECKING:
    from hf_rerank.data.prm_public import _Truth

FIELDS = ("user id", "user categorical", "item categorical", "item dense, basic", "item dense, optional", "labels")
USER_COLUMNS = ("user_0", "user_1", "user_2")
CATEGORICAL_COLUMNS = ("item_id", "item_1", "item_2", "item_3", "item_4")
BASIC_COLUMNS = tuple(f"basic_{number}" for number in range(7))
OPTIONAL_COLUMNS = tuple(f"optional_{number}" for number in range(12))
# Field -> the columns that its inner arrays become.
ITEM_FIELDS = {2: CATEGORICAL_COLUMNS, 3: BASIC_COLUMNS, 4: OPTIONAL_COLUMNS}
# A line of 30 items has about 7,000 bytes; without a limit a file without line ends would be read whole.
MAX_LINE_BYTES = 2**20
MAX_EXACT_FLOAT = 2**53

_DECODED = {
    1: pl.List(pl.Int64),
    2: pl.List(pl.List(pl.Int64)),
    3: pl.List(pl.List(pl.Float32)),
    4: pl.List(pl.List(pl.Float32)),
    5: pl.List(pl.Float32),
}
_BLANK_MARKS = bytes.maketrans(b"|\n", b"  ")
_WHOLE_NUMBERS = {1: pl.List(pl.Float64), 2: pl.List(pl.List(pl.Float64))}  # where ids are written as 17.0


class _Damaged(Exception):
    """A batch holds a line that is not as the format says; the careful reader finds which."""


class Fields:
    """The fields of a batch of lines, as texts that are not decoded yet."""

    def __init__(self, path: str, first_line: int, text: bytes) -> None:
        self.path, self.first_line, self.text = path, first_line, text
        if first_line == 1:
            self.text = text = text.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark, as some editors write it
        marks = np.frombuffer(text, dtype=np.uint8)
        line_ends = np.flatnonzero(marks == ord("\n")) + 1
        if len(text) and not text.endswith(b"\n"):
            line_ends = np.append(line_ends, len(text))
        self.starts = np.concatenate([[0], line_ends[:-1]]).astype(np.int64) if len(line_ends) else line_ends
        self.ends = line_ends
        self.lines = len(line_ends)
        bars = np.flatnonzero(marks == ord("|"))
        bars_a_line = np.diff(np.searchsorted(bars, np.concatenate([[0], line_ends])))
        try:
            # The format is ASCII throughout, and has no words but null: true would pass for the number 1.
            if not text.isascii() or b"true" in text or b"false" in text:
                raise _Damaged
            if (bars_a_line != len(FIELDS) - 1).any() or (self.ends - self.starts > MAX_LINE_BYTES).any():
                raise _Damaged
        except _Damaged:
            self.blame()
        # One array of all fields over the text as it is: bars and line ends become blanks, which JSON ignores.
        blanked = text.translate(_BLANK_MARKS)
        offsets = np.sort(np.concatenate([[0], bars + 1, line_ends])).astype(np.int64)
        texts = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(blanked))
        series = pl.Series(texts)
        self.columns = pl.DataFrame([series.gather_every(len(FIELDS), k).alias(str(k)) for k in range(len(FIELDS))])

    def with_null(self) -> np.ndarray:
        """Which lines hold a null."""
        holds = pl.any_horizontal(pl.all().str.contains("null", literal=True))
        return self.columns.select(holds).to_series().to_numpy()

    def user_ids(self, rows: np.ndarray) -> np.ndarray:
        """The user of some lines, so that splits are known before the rest is decoded."""
        texts = self.columns["0"][rows].str.strip_chars()
        if not texts.str.contains(r"^-?[0-9]{1,18}$").all():
            self.blame(rows)
        return texts.cast(pl.Int64).to_numpy()

    def decode(self, rows: np.ndarray) -> Decoded:
        """The lists of some lines."""
        try:
            return self._decode(self.columns[rows] if len(rows) < self.lines else self.columns)
        except (_Damaged, pl.exceptions.PolarsError) as error:
            self.blame(rows, error)

    def _decode(self, texts: pl.DataFrame) -> Decoded:
        """Decodes and checks. polars' decoder is lenient (it drops empty texts, turns a huge id into null, cuts 1.5 to
        1, takes a lone number for an array): every check below closes one of its doors."""
        nested = [pl.col(str(k)).str.starts_with("[[") & pl.col(str(k)).str.contains(r"\]\]\s*$") for k in ITEM_FIELDS]
        flat = [pl.col(str(k)).str.starts_with("[") & pl.col(str(k)).str.contains(r"\]\s*$") for k in (1, 5)]
        texts = texts.with_columns(pl.all().str.strip_chars())
        if not all(texts.select(*(check.all() for check in nested + flat)).row(0)):
            raise _Damaged
        kinds = dict(_DECODED)
        for k, as_floats in _WHOLE_NUMBERS.items():
            if texts[str(k)].str.contains("[.eE]").any():
                kinds[k] = as_floats
        nulls = dict.fromkeys(kinds, 0)
        if b"null" in self.text:
            nulls = {k: int(texts[str(k)].str.count_matches("null", literal=True).sum()) for k in kinds}
        decoded = texts.select(*(pl.col(str(k)).str.json_decode(kind) for k, kind in kinds.items()))
        if decoded.height != texts.height:
            raise _Damaged

        arrays = {k: decoded[str(k)].to_arrow() for k in kinds}
        lengths = pc.list_value_length(arrays[5]).to_numpy(zero_copy_only=False).astype(np.int64)
        user, of_user = _inner(arrays[1], nulls[1])
        labels, _ = _inner(arrays[5], 0)
        if (lengths < 1).any() or (of_user != len(USER_COLUMNS)).any() or not np.isin(labels.to_numpy(), (0, 1)).all():
            raise _Damaged
        per_list = _columns(user, USER_COLUMNS, pa.int64())
        per_item: dict[str, pa.Array] = {}
        for k, names in ITEM_FIELDS.items():
            inner, of_items = _inner(arrays[k], 0)
            values, widths = _inner(inner, nulls[k])
            if (of_items != lengths).any() or (widths != len(names)).any():
                raise _Damaged
            per_item |= _columns(values, names, pa.int64() if k == 2 else pa.float32())
        per_item["click"] = labels.cast(pa.int8())
        return Decoded(lengths, per_list, per_item)

    def blame(self, rows: Iterable[int] | None = None, cause: BaseException | None = None) -> NoReturn:
        """Raises an error that names the first of ``rows`` that is damaged."""
        for row in range(self.lines) if rows is None else rows:
            line = self.text[self.starts[row] : self.ends[row]]
            found = _damage(line)
            if found is not None:
                field, what = found
                where = f"{self.path}, line {self.first_line + int(row)}"
                if field is not None:
                    where += f", field {field + 1} ({FIELDS[field]})"
                if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                    what += "; the file ends inside this line, as if it was cut off: fetch it again"
                raise InputError(f"{where}: {what}") from None
        raise RuntimeError(
            f"{self.path}, lines {self.first_line} to {self.first_line + self.lines - 1}: the fast reader refuses "
            "what the careful reader accepts; this is a fault of hf_rerank, please report it"
        ) from cause


def _inner(array: pa.Array, nulls: int) -> tuple[pa.Array, np.ndarray]:
    """The values of an array of arrays, and how many each has. ``nulls`` of the values are null; no array is."""
    if array.null_count:
        raise _Damaged
    values = array.flatten()
    if values.null_count != nulls:
        raise _Damaged
    return values, pc.list_value_length(array).to_numpy(zero_copy_only=False)


def _columns(values: pa.Array, names: Sequence[str], kind: pa.DataType) -> dict[str, pa.Array]:
    """Splits rows of ``len(names)`` values each into columns."""
    missing = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False) if values.null_count else values.to_numpy()
    if np.issubdtype(numbers.dtype, np.floating):
        if not np.isfinite(numbers).all():
            raise _Damaged
        if pa.types.is_integer(kind):
            if (numbers != np.trunc(numbers)).any() or (np.abs(numbers) > MAX_EXACT_FLOAT).any():
                raise _Damaged
            numbers = numbers.astype(np.int64)
    table = numbers.reshape(-1, len(names))
    masks = None if missing is None else missing.reshape(-1, len(names))
    return {
        name: pa.array(table[:, k], type=kind, mask=None if masks is None else masks[:, k])
        for k, name in enumerate(names)
    }


@dataclass
class Decoded:
    """Lists as flat columns: the items of all lists one after another."""

    lengths: np.ndarray
    per_list: dict[str, Any]
    per_item: dict[str, pa.Array]

    def join_truth(self, rows: pa.Table, truth: _Truth | None, list_ids: np.ndarray) -> None:
        """Adds ``position`` and ``attraction`` from the side file."""
        assert truth is not None
        named = {"position": ("initial_position", pa.int64()), "attraction": ("attraction", pa.float32())}
        for name, (source, kind) in named.items():
            if source not in rows.column_names:
                continue
            column = rows.column(source).combine_chunks()
            lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
            if (lengths != self.lengths).any():
                row = int(np.argmax(lengths != self.lengths))
                raise InputError(
                    f"{truth.path}: list {list_ids[row]} has {max(lengths[row], 0)} values of {source}, but "
                    f"{self.lengths[row]} items in the raw file"
                )
            self.per_item[name] = column.flatten().cast(kind)
            if self.per_item[name].null_count:
                raise InputError(f"{truth.path}: the column {source} holds nulls: expected a number an item")
        starts = np.cumsum(self.lengths) - self.lengths
        positions = self.per_item["position"].to_numpy()
        of_list = np.repeat(np.arange(len(self.lengths)), self.lengths)
        in_order = np.lexsort((positions, of_list))
        wrong = positions[in_order] != np.arange(len(positions)) - starts[of_list]
        if wrong.any():
            row = int(of_list[int(np.argmax(wrong))])
            raise InputError(
                f"{truth.path}: initial_position of list {list_ids[row]} is no permutation of "
                f"0..{self.lengths[row] - 1}"
            )

    def cut(self, max_list_length: int, report: PrepareReport) -> None:
        """Keeps the items at the first positions of the initial order; slots keep their order."""
        longer = self.lengths > max_list_length
        if not longer.any():
            return
        of_list = np.repeat(np.arange(len(self.lengths)), self.lengths)
        if "position" in self.per_item:
            positions = self.per_item["position"].to_numpy()
        else:
            positions = np.arange(len(of_list)) - (np.cumsum(self.lengths) - self.lengths)[of_list]
        kept = positions < max_list_length
        clicked = self.per_item["click"].to_numpy() > 0
        clicks_before = np.bincount(of_list[clicked], minlength=len(self.lengths))
        clicks_after = np.bincount(of_list[clicked & kept], minlength=len(self.lengths))
        report.cut_lists += int(longer.sum())
        report.lost_clicks += int(((clicks_before > 0) & (clicks_after == 0)).sum())
        self.per_item = {name: column.filter(pa.array(kept)) for name, column in self.per_item.items()}
        self.lengths = np.minimum(self.lengths, max_list_length)

    def table(self, columns: pa.Schema) -> pa.Table:
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.lengths)]), type=pa.int32())
        arrays = []
        for field in columns:
            if field.name in self.per_item:
                arrays.append(pa.ListArray.from_arrays(offsets, self.per_item[field.name], type=field.type))
            else:
                arrays.append(pa.array(self.per_list[field.name], type=field.type))
        return pa.Table.from_arrays(arrays, schema=columns)


# ----------------------------------------------------------------------- the careful reader: what is wrong with a line


def _damage(line: bytes) -> tuple[int | None, str] | None:
    """Field (from 0, None: the line) and what is wrong with it; None where nothing is."""
    if len(line) > MAX_LINE_BYTES:
        return None, f"the line has more than {MAX_LINE_BYTES:,} bytes: expected one list of about 7,000"
    try:
        text = line.decode("ascii").rstrip("\r\n")
    except UnicodeDecodeError as error:
        bad = line[error.start : error.start + 8]
        return None, f"byte {error.start + 1} is no ASCII character ({bad!r}): expected numbers only, in UTF-8"
    if not text.strip():
        return None, "the line is empty: expected one list"
    parts = text.split("|")
    if len(parts) != len(FIELDS):
        return None, f"expected {len(FIELDS)} fields between |, got {len(parts)}: {_shortened(text)}"
    lengths: dict[int, int] = {}
    for field in range(len(FIELDS)):
        what = _damage_of_field(field, parts[field], lengths)
        if what is not None:
            return field, f"{what}: {_shortened(parts[field])}"
    return None


def _damage_of_field(field: int, text: str, lengths: dict[int, int]) -> str | None:
    if field == 0:
        whole = re.fullmatch(r"-?[0-9]{1,18}", text.strip())
        return None if whole else "expected a whole number of at most 18 digits"
    not_finite: list[str] = []
    try:
        value = json.loads(text, parse_constant=not_finite.append)
    except (ValueError, RecursionError):
        return "expected a JSON array, but this is no valid JSON"
    if not_finite:
        return f"holds {not_finite[0]}: expected finite numbers; a missing value is written as null"
    if not isinstance(value, list):
        return f"expected a JSON array, got {_kind_of(value)}"
    if field == 1:
        if len(value) != len(USER_COLUMNS):
            return f"expected {len(USER_COLUMNS)} values, got {len(value)}"
        return _damage_of_numbers(value, "value", whole=True)
    if field in ITEM_FIELDS:
        for number, item in enumerate(value, start=1):
            if not isinstance(item, list):
                return f"item {number} is {_kind_of(item)}: expected an array of {len(ITEM_FIELDS[field])} numbers"
            if len(item) != len(ITEM_FIELDS[field]):
                return f"item {number} has {len(item)} values: expected {len(ITEM_FIELDS[field])}"
            what = _damage_of_numbers(item, f"item {number}, value", whole=field == 2)
            if what is not None:
                return what
    else:
        for number, label in enumerate(value, start=1):
            if isinstance(label, bool) or not isinstance(label, (int, float)) or label not in (0, 1):
                return f"the label of item {number} is {_shortened(json.dumps(label))}: expected 0 or 1"
    lengths[field] = len(value)
    if not value:
        return "the list is empty: expected at least one item"
    other = min(lengths)
    if lengths[other] != len(value):
        return f"the list is ragged: {len(value)} items here, {lengths[other]} in field {other + 1} ({FIELDS[other]})"
    return None


def _damage_of_numbers(values: list[Any], name: str, *, whole: bool) -> str | None:
    for number, value in enumerate(values, start=1):
        where = f"{name} {number}"
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{where} is {_kind_of(value)}: expected a number or null"
        if whole and isinstance(value, float) and not (value.is_integer() and abs(value) <= MAX_EXACT_FLOAT):
            return f"{where} is {value}: expected a whole number"
        if whole and not -(2**63) <= value < 2**63:
            return f"{where} is {_shortened(str(value))}: expected a whole number of 64 bits"
        if not whole and not math.isfinite(value if isinstance(value, float) else 0.0):
            return f"{where} is too large: expected a finite number"
        if not whole and abs(value) > float(np.finfo(np.float32).max):
            return f"{where} is {_shortened(str(value))}: too large for a float of 32 bits"
    return None


def _kind_of(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", str: "text", dict: "an object", list: "an array"}
    return names.get(type(value), "a number")


def _shortened(text: str, length: int = 60) -> str:
    text = text.strip()
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"
