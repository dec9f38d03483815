"""Reads JSON Lines and JSON arrays as Arrow tables; text remains text, whatever it looks like.

Arrow's reader is fast, but infers types per block, and reads text such as 2024-01-01 as times. Here the types come
from the values as Python reads them: from the first lines, and again from each block that does not match these types.
"""

from __future__ import annotations

import bisect
import codecs
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as arrow_json

from hf_rerank.data.custom.files import ListFile
from hf_rerank.errors import InputError
from hf_rerank.validation import is_deep

BLOCK_BYTES = 2**22
FIRST_LINES = 64
# Levels of lists and objects, far more than any list has.
DEEPEST = 50
Where = Callable[[int], str]


def read_json(file: ListFile, numbers: frozenset[str]) -> Iterator[tuple[pa.Table, Where]]:
    """Yields one table per block, and the function that locates its rows; blank lines are skipped.

    Args:
        file: One JSON object per line, or one array of objects.
        numbers: Numeric columns, in which integers of any size become floats.

    Raises:
        InputError: Not a JSON object, a key that occurs twice, or several types in a column; names file, line and
            column.
    """
    with file.open() as source:
        reader = _Reader(file.path, numbers, file.start)
        first_line = 1
        if file.start:
            source.seek(file.start)
        for block in _read_blocks(source, None if file.stop is None else file.stop - file.start):
            if first_line == 1 and not file.start and block.lstrip().startswith(b"["):
                yield reader.read_array(block + source.read())
                return
            yield from reader.read_lines(block, first_line)
            first_line += block.count(b"\n")


def read_objects(file: ListFile) -> Iterator[list[dict[str, Any]]]:
    """Yields the objects of a whole file, block by block, as Python reads them.

    Raises:
        InputError: Not a JSON object, or a key that occurs twice; names file and line.
    """
    reader = _Reader(file.path, frozenset(), 0)
    with file.open() as source:
        first_line = 1
        for block in _read_blocks(source, None):
            if first_line == 1 and block.lstrip().startswith(b"["):
                yield reader.load_array(block + source.read())
                return
            yield reader.load_lines(block, first_line)
            first_line += block.count(b"\n")


def _read_blocks(source: Any, left: int | None) -> Iterator[bytes]:
    """Yields blocks of whole lines of about ``BLOCK_BYTES``, from the next ``left`` bytes."""

    def read_more() -> bytes:
        nonlocal left
        found = bytes(source.read(BLOCK_BYTES if left is None else min(left, BLOCK_BYTES)))
        left = None if left is None else left - len(found)
        return found

    rest = read_more().removeprefix(codecs.BOM_UTF8)
    while rest:
        following = read_more()
        end = rest.rfind(b"\n") + 1 if following else len(rest)
        if end:
            yield rest[:end]
        rest = rest[end:] + following


class _Reader:
    """Converts blocks, and remembers the types of their columns."""

    def __init__(self, path: str, numbers: frozenset[str], start: int) -> None:
        self.path, self.numbers, self.start = path, numbers, start
        self.types = pa.schema([])

    def read_lines(self, block: bytes, first_line: int) -> Iterator[tuple[pa.Table, Where]]:
        def where(row: int) -> str:
            there = [number for number, line in enumerate(block.split(b"\n"), start=first_line) if line.strip()]
            return f"{self.path}, line {there[row] + self._count_lines_before()}"

        if not self.types.names:
            head = b"\n".join(block.split(b"\n", FIRST_LINES)[:FIRST_LINES])
            self._remember(self._parse(head, first_line, where))
        table = self._read_by_arrow(block)
        if table is None:
            table = self._parse(block, first_line, where)
            self._remember(table)
        if table.num_rows:
            yield table, where

    def read_array(self, text: bytes) -> tuple[pa.Table, Where]:
        """Reads a whole file that holds one array."""

        def where(row: int) -> str:
            return f"{self.path}, object {row}"

        return self._make_table(self.load_array(text), where), where

    def load_array(self, text: bytes) -> list[dict[str, Any]]:
        """The objects of a whole file that holds one array."""
        try:
            rows = _load(text)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            raise InputError(
                f"cannot read lists from {self.path}, line {line}: {error}; expected one JSON object per list"
            ) from None
        for number, row in enumerate(rows):
            _refuse_other_values(row, f"{self.path}, object {number}")
        return list(rows)

    def _read_by_arrow(self, block: bytes) -> pa.Table | None:
        """The table of a block, or None if it does not have the types of earlier blocks."""
        try:
            return arrow_json.read_json(
                pa.BufferReader(block),
                read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=arrow_json.ParseOptions(
                    explicit_schema=pa.schema([(field.name, _replace_null_type(field.type)) for field in self.types]),
                    unexpected_field_behavior="error",
                ),
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None

    def _parse(self, block: bytes, first_line: int, where: Where) -> pa.Table:
        return self._make_table(self.load_lines(block, first_line), where)

    def load_lines(self, block: bytes, first_line: int) -> list[dict[str, Any]]:
        """The objects of a block of lines."""
        rows = []
        for number, line in enumerate(block.split(b"\n"), start=first_line):
            if not line.strip():
                continue
            try:
                rows.append(_load(line))
            except (ValueError, RecursionError) as error:
                number += self._count_lines_before()
                raise InputError(
                    f"cannot read lists from {self.path}, line {number}: {error}; expected one JSON object per list"
                ) from None
            if not isinstance(rows[-1], dict):
                _refuse_other_values(rows[-1], f"{self.path}, line {number + self._count_lines_before()}")
        return rows

    def _count_lines_before(self) -> int:
        """The number of lines before this part of the file; counted only for messages."""
        with open(self.path, "rb") if self.start else contextlib.nullcontext() as file:
            left, lines = self.start, 0
            while left and file is not None:
                block = file.read(min(left, BLOCK_BYTES))
                left, lines = left - len(block), lines + block.count(b"\n")
        return lines

    def _make_table(self, rows: Sequence[Any], where: Where) -> pa.Table:
        names = list(dict.fromkeys([*self.types.names, *(name for row in rows for name in row)]))
        return pa.table({name: self._make_column(name, [row.get(name) for row in rows], where) for name in names})

    def _make_column(self, name: str, values: list[Any], where: Where) -> pa.Array:
        def convert(count: int) -> pa.Array | Exception:
            """The column of the first ``count`` rows, or the error that prevents it."""
            try:
                return pa.array(values[:count])
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                depth = _find_depth(values[:count])
                for kind in (pa.uint64(), pa.float64()) if depth is not None else ():
                    if kind == pa.float64() and name not in self.numbers:
                        break
                    for _ in range(depth or 0):
                        kind = pa.list_(kind)
                    try:
                        return pa.array(values[:count], type=kind)
                    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                        continue
                return error

        column = convert(len(values))
        if not isinstance(column, Exception):
            return column
        row = bisect.bisect_left(range(1, len(values)), True, key=lambda count: isinstance(convert(count), Exception))
        reason = str(convert(row + 1)).splitlines()[0]
        raise InputError(
            f"{where(row)}: column {name!r} holds values of several types, or an integer of more than 64 bits: "
            f"{reason}; expected one type in the whole column; write larger integers as text, in quotes"
        )

    def _remember(self, table: pa.Table) -> None:
        joined = {}
        for field in table.schema:
            known = self.types.field(field.name).type if field.name in self.types.names else pa.null()
            try:
                both = [pa.schema([("", known)]), pa.schema([("", field.type)])]
                joined[field.name] = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except (pa.ArrowInvalid, pa.ArrowTypeError):  # reported when the types of all blocks are joined
                joined[field.name] = field.type
        self.types = pa.schema(joined.items())


def _refuse_other_values(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where} holds {type(row).__name__}: expected one JSON object per list")


def _load(line: bytes) -> Any:
    """Parses JSON in UTF-8; ``json`` itself would also accept UTF-16, and lone surrogates, which are not text."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error.reason}); save it as UTF-8") from None
    value = json.loads(text, object_pairs_hook=_refuse_duplicate_keys)
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"it holds a lone surrogate ({error.object[error.start]!r}), which is not text") from None
    if is_deep([value], DEEPEST):
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return value


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; Python's reader would silently use the last of equal keys."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice; keep one of them")
    return row


def _find_depth(values: Sequence[Any]) -> int | None:
    """How deep numbers are nested in lists; None if the values are not numbers."""
    for value in values:
        if isinstance(value, list):
            inner = _find_depth(value)
            if inner is not None:
                return inner + 1
        elif value is not None:
            return 0 if isinstance(value, int | float) else None
    return None


def _replace_null_type(kind: pa.DataType) -> pa.DataType:
    """Replaces the type of columns without values so far by integers: otherwise Arrow's reader makes invalid lists."""
    if pa.types.is_list(kind):
        return pa.list_(_replace_null_type(kind.value_type))
    return pa.int64() if pa.types.is_null(kind) else kind
