"""Finds and decodes the fields of PRM Public's text, and reports damaged lines.

A piece of clean lines of one length is read by ``numbers``, any other is decoded column by column. If that fails, it
is checked line by line (``line_format``), which reports every damaged line, its field and its content; then the rest
is decoded.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.prm_public.decoded import Decoded
from hf_rerank.data.prm_public.line_format import (
    BLANKS,
    FIELDS,
    ITEM_FIELDS,
    MAX_EXACT_FLOAT,
    MAX_LINE_BYTES,
    USER_COLUMNS,
    find_damage,
    find_damage_of_line,
    parse_line,
)
from hf_rerank.data.prm_public.numbers import CACHED_BYTES, NotClean, make_line, read_numbers
from hf_rerank.data.report import RejectedLine

_WIDTHS = (len(USER_COLUMNS), *map(len, ITEM_FIELDS.values()))
# In 64 bits, like the line-by-line check: in 32 bits a label of 1e-50 would be 0.
_DECODED = {
    1: pl.List(pl.Int64),
    2: pl.List(pl.List(pl.Int64)),
    3: pl.List(pl.List(pl.Float64)),
    4: pl.List(pl.List(pl.Float64)),
    5: pl.List(pl.Float64),
}
_TEXTS = {str(k): pl.String() for k in range(len(FIELDS))}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # as some editors write it at the beginning of a file
_MARKS = f"|{BLANKS}"  # the separator after a field, and white space
_WHOLE_NUMBERS = {1: pl.List(pl.Float64), 2: pl.List(pl.List(pl.Float64))}  # where ids are written as 17.0


class _Damaged(Exception):
    """A batch holds a line that violates the format; the line-by-line check finds which."""


class Fields:
    """The fields of a batch of lines, found but not decoded yet.

    Args:
        path: The raw file.
        first_line: Number of the first line, from 1.
        text: Whole lines; only the last line of a file may lack its line end.

    Attributes:
        numbers: The line number of each row. Damaged lines have no row.
        rejects: The damaged lines found so far.
        clean: The numbers of all lines, if ``read_clean`` has found them clean.
    """

    def __init__(self, path: str, first_line: int, text: bytes) -> None:
        self.path = path
        self.rejects: list[RejectedLine] = []
        self.clean: _Clean | None = None
        if first_line == 1 and text.startswith(_BYTE_ORDER_MARK):
            text = text.removeprefix(_BYTE_ORDER_MARK) or b"\n"
        self.cut_off = bool(text) and not text.endswith(b"\n")
        try:
            self._find_fields(text)
            self.numbers = first_line + np.arange(len(self.ends))
        except _Damaged:
            lines = _split_lines(text)
            self.numbers = first_line + np.arange(len(lines))
            whole = []
            for row, line in enumerate(lines):
                found = find_damage_of_line(line)
                if found is None:
                    whole.append(row)
                else:
                    self._reject(int(self.numbers[row]), line, (None, *found), last=row == len(lines) - 1)
            self.cut_off &= bool(whole) and whole[-1] == len(lines) - 1
            self.numbers = self.numbers[whole]
            self._find_fields(b"".join(lines[row] for row in whole))

    def _find_fields(self, text: bytes) -> None:
        self.text = text
        self.ends = find_letter(text, "\n") + 1
        if self.cut_off:
            self.ends = np.append(self.ends, len(text))
        bounds = np.concatenate([[0], self.ends])
        bars = find_letter(text, "|")
        bars_a_line = np.diff(np.searchsorted(bars, bounds))
        if not text.isascii() or (bars_a_line != len(FIELDS) - 1).any() or (np.diff(bounds) > MAX_LINE_BYTES).any():
            raise _Damaged
        # The starts of the fields, and the end of the last one.
        self.bounds = np.sort(np.concatenate([[0], bars + 1, self.ends])).astype(np.int64)

    @functools.cached_property
    def columns(self) -> pl.DataFrame:
        """The fields, one column each."""
        # One array of all fields over the unchanged text, each with the separator after it.
        count, offsets = len(self.bounds) - 1, pa.py_buffer(self.bounds)
        texts = pl.Series(pa.LargeStringArray.from_buffers(count, offsets, pa.py_buffer(self.text)))
        texts = texts.str.strip_chars(_MARKS)
        return pl.DataFrame([texts.gather_every(len(FIELDS), k).alias(str(k)) for k in range(len(FIELDS))])

    def find_nulls(self) -> np.ndarray:
        """bool [rows], whether each row holds a null."""
        holds = pl.any_horizontal(pl.all().str.contains("null", literal=True))
        return self.columns.select(holds).to_series().to_numpy()

    def read_user_ids(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads the users of some rows, so that splits are known before the rest is decoded.

        Returns:
            The rows without those whose user id is damaged, and their user ids.
        """
        begins, ends = self.bounds[:-1][rows * len(FIELDS)].tolist(), self.bounds[1:][rows * len(FIELDS)].tolist()
        texts = pl.Series(
            [self.text[begin:end].decode() for begin, end in zip(begins, ends, strict=True)], dtype=pl.String
        )
        texts = texts.str.strip_chars(_MARKS)
        good = texts.str.contains(r"^-?[0-9]{1,18}$").to_numpy()
        if not good.all():
            if len(self._read_carefully(rows[~good])):
                raise self._make_error(rows)
            rows, texts = rows[good], texts.filter(good)
        return rows, texts.cast(pl.Int64).to_numpy()

    def read_clean(self, wanted: int) -> None:
        """Reads the numbers of all lines, if they are clean, of one length, and most of them are wanted."""
        items = (self.text[: self.ends[0]].count(b"[") - 5) // len(ITEM_FIELDS) if wanted else 0
        if items > 0 and 2 * wanted > len(self.numbers) and not self.cut_off:
            with contextlib.suppress(NotClean):
                self.clean = _Clean(items, *read_numbers(self.text, self.ends, make_line(_WIDTHS, items)))

    def decode(self, rows: np.ndarray) -> tuple[np.ndarray, Decoded]:
        """Decodes the lists of some rows.

        Returns:
            The rows without those that are damaged, and their lists.
        """
        if self.clean is not None:
            with contextlib.suppress(_Damaged):
                return rows, self.clean.decode(rows)
        try:
            all_in_order = np.array_equal(rows, np.arange(len(self.numbers)))
            return rows, self._decode(self.columns if all_in_order else self.columns[rows])
        except (_Damaged, pl.exceptions.PolarsError):
            pass
        good = self._read_carefully(rows)
        try:
            return good, self._decode(self.columns[good])
        except (_Damaged, pl.exceptions.PolarsError):
            pass
        # Valid JSON in a form that the fast reader does not accept: rewritten in the form that it accepts.
        texts = [[json.dumps(field) for field in parse_line(self._cut_line(row))] for row in good]
        columns = pl.DataFrame({str(k): [text[k] for text in texts] for k in range(len(FIELDS))}, dict(_TEXTS))
        try:
            return good, self._decode(columns)
        except (_Damaged, pl.exceptions.PolarsError) as error:
            raise self._make_error(rows) from error

    def _make_error(self, rows: np.ndarray) -> RuntimeError:
        return RuntimeError(
            f"{self.path}, lines {self.numbers[rows[0]]} to {self.numbers[rows[-1]]}: the fast reader refuses "
            "text that the line-by-line check accepts; this is a bug of hf_rerank, please report it"
        )

    def _decode(self, texts: pl.DataFrame) -> Decoded:
        """Decodes and checks. Polars' decoder is lenient (it drops empty strings, turns a huge id into null, cuts 1.5
        to 1, takes a lone number for an array): each check below catches one of these."""
        # The only word of the format is null: true would pass for the number 1, and "null" for null.
        if any(self.text.find(letter) >= 0 for letter in (b"r", b"s", b'"')) and any(
            texts[str(k)].str.contains('[rs"]').any() for k in _DECODED
        ):
            raise _Damaged
        brackets = [pl.col(str(k)).str.starts_with("[[") & pl.col(str(k)).str.ends_with("]]") for k in ITEM_FIELDS]
        brackets += [pl.col(str(k)).str.starts_with("[") & pl.col(str(k)).str.ends_with("]") for k in (1, 5)]
        dotted = [pl.col(str(k)).str.contains("[.eE]").any().alias(f"dotted {k}") for k in _WHOLE_NUMBERS]
        seen = texts.select(*(check.all().alias(str(k)) for k, check in enumerate(brackets)), *dotted).row(0)
        if not all(seen[: len(brackets)]):
            raise _Damaged
        kinds = dict(_DECODED)
        for (k, as_floats), found in zip(_WHOLE_NUMBERS.items(), seen[len(brackets) :], strict=True):
            if found:
                kinds[k] = as_floats
        # Every letter n belongs to a null; other values that the decoder turns into null raise the count above this.
        nulls = 0
        if b"n" in self.text:
            counts = [pl.col(str(k)).str.count_matches("n", literal=True).sum() for k in kinds]
            nulls = len(find_letter(self.text, "n")) if texts is self.columns else sum(texts.select(*counts).row(0))
        decoded = texts.select(*(pl.col(str(k)).str.json_decode(kind) for k, kind in kinds.items()))
        if decoded.height != texts.height:
            raise _Damaged

        arrays = {k: decoded[str(k)].to_arrow() for k in kinds}
        lengths = pc.list_value_length(arrays[5]).to_numpy(zero_copy_only=False).astype(np.int64)
        user, of_user = _unnest(arrays[1])
        labels, _ = _unnest(arrays[5])
        if labels.null_count or (lengths < 1).any() or (of_user != len(USER_COLUMNS)).any():
            raise _Damaged
        if not np.isin(labels.to_numpy(), (0, 1)).all():
            raise _Damaged
        per_list = _split_columns(*_to_numbers(user), USER_COLUMNS, pa.int64())
        per_item: dict[str, pa.Array] = {}
        found = user.null_count
        for k, names in ITEM_FIELDS.items():
            inner, of_items = _unnest(arrays[k])
            if inner.null_count:
                raise _Damaged
            values, widths = _unnest(inner)
            if (of_items != lengths).any() or (widths != len(names)).any():
                raise _Damaged
            found += values.null_count
            per_item |= _split_columns(*_to_numbers(values), names, pa.int64() if k == 2 else pa.float32())
        if found != nulls:
            raise _Damaged
        per_item["click"] = labels.cast(pa.int8())
        return Decoded(lengths, per_list, per_item)

    def _cut_line(self, row: int) -> bytes:
        return self.text[self.ends[row - 1] if row else 0 : self.ends[row]]

    def _read_carefully(self, rows: np.ndarray) -> np.ndarray:
        """Rejects the damaged lines among some rows, and returns the other rows."""
        good = []
        for row in rows:
            line = self._cut_line(row)
            found = find_damage(line)
            if found is None:
                good.append(row)
            else:
                self._reject(int(self.numbers[row]), line, found, last=row == len(self.numbers) - 1)
        return np.array(good, dtype=rows.dtype)

    def _reject(self, number: int, line: bytes, damage: tuple[int | None, str, str, str], *, last: bool) -> None:
        field, kind, reason, text = damage
        if last and self.cut_off and kind != "line too long":
            kind, reason = "cut-off last line", f"{reason}; the file ends inside this line: fetch it again"
        column = None if field is None else f"field {field + 1} ({FIELDS[field]})"
        self.rejects.append(RejectedLine(self.path, number, column, kind, reason, text))


def find_letter(text: bytes, letter: str) -> np.ndarray:
    """The offsets of a letter, ascending; several times as fast as ``bytes.count`` or ``bytes.find``."""
    letters, found = np.frombuffer(text, dtype=np.uint8), [np.empty(0, dtype=np.int64)]
    for start in range(0, len(letters), CACHED_BYTES):
        found.append(start + np.flatnonzero(letters[start : start + CACHED_BYTES] == ord(letter)))
    return np.concatenate(found)


def _split_lines(text: bytes) -> list[bytes]:
    """Lines with their ends. bytes.splitlines would also split at a lone carriage return."""
    lines = [line + b"\n" for line in text.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _unnest(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The values of an array of arrays, and the length of each. Arrays must not be null; values may be."""
    if array.null_count:
        raise _Damaged
    return array.flatten(), pc.list_value_length(array).to_numpy(zero_copy_only=False)


def _to_numbers(values: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Values, 0 for a null, and which are null; None if none is."""
    if not values.null_count:
        return values.to_numpy(), None
    missing = values.is_null().to_numpy(zero_copy_only=False)
    return values.fill_null(0).to_numpy(zero_copy_only=False), missing


def _split_columns(
    numbers: np.ndarray, missing: np.ndarray | None, names: Sequence[str], kind: pa.DataType
) -> dict[str, pa.Array]:
    """Splits rows of ``len(names)`` numbers each into columns."""
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):  # too large for a float of 32 bits: not finite
            numbers = numbers.astype(np.float32, copy=False)
    if np.issubdtype(numbers.dtype, np.floating):
        if not np.isfinite(numbers).all():
            raise _Damaged
        if pa.types.is_integer(kind):
            # An integer of more digits also ends up at the bound.
            if (numbers != np.trunc(numbers)).any() or (np.abs(numbers) >= MAX_EXACT_FLOAT).any():
                raise _Damaged
            numbers = numbers.astype(np.int64)
    shape = (-1, len(names))
    table = np.ascontiguousarray(numbers.reshape(shape).T)
    masks = [None] * len(names) if missing is None else np.ascontiguousarray(missing.reshape(shape).T)
    return {
        name: pa.array(column, type=kind, mask=mask) for name, column, mask in zip(names, table, masks, strict=True)
    }


@dataclass(frozen=True)
class _Clean:
    """Clean lines of one length, as returned by ``read_numbers``. The user id is in them, but read elsewhere: it may
    have more digits than a float represents exactly."""

    items: int
    values: np.ndarray
    missing: np.ndarray

    def decode(self, rows: np.ndarray) -> Decoded:
        """
        Raises:
            _Damaged: A number violates the format of its field, or may do so; the lines may still be valid.
        """
        sizes = [1, _WIDTHS[0], *(self.items * width for width in _WIDTHS[1:]), self.items]
        slices = [slice(stop - size, stop) for size, stop in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]
        values, missing = self.values[rows], self.missing[rows]
        fields = [values[:, part] for part in slices]
        nulls = [missing[:, part] if missing[:, part].any() else None for part in slices]
        if nulls[5] is not None or not ((fields[5] == 0) | (fields[5] == 1)).all():
            raise _Damaged
        per_list = _split_columns(fields[1], nulls[1], USER_COLUMNS, pa.int64())
        per_item: dict[str, pa.Array] = {}
        for k, names in ITEM_FIELDS.items():
            per_item |= _split_columns(fields[k], nulls[k], names, pa.int64() if k == 2 else pa.float32())
        per_item["click"] = pa.array(fields[5].ravel().astype(np.int8))
        return Decoded(np.full(len(rows), self.items), per_list, per_item)
