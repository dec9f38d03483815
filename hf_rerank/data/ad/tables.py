"""Reads the raw files of Ad: CSV in blocks of bytes, by Polars, with every line checked.

Polars fills missing fields of short lines with nulls, and locates wrong values by byte. So a block is parsed by Polars
and then counted and checked as a whole; if something is wrong, its lines are checked one by one, to report each
damaged line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hf_rerank.data.report import RejectedLine
from hf_rerank.errors import InputError, suggestion

BLOCK_BYTES = 16 * 2**20
BTAGS = ("pv", "cart", "fav", "buy")
FIRST_SECOND = 1_000_000_000  # September 2001; smaller numbers are not Unix seconds, but days or minutes
LAST_ID = 2**32 - 1
# The kind of a line with too few or too many fields.
FIELDS = "fields"
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

_FIX = "fix it, or fetch the file again"


@dataclass(frozen=True)
class Column:
    """A column of a raw file: its Polars type, the expected values for errors, and whether they may be missing (empty
    or ``NULL``)."""

    kind: pl.DataType | type[pl.DataType]
    expected: str
    nullable: bool = False


_ID = Column(pl.UInt32, f"an integer from 0 to {LAST_ID:,}")
_ID_OR_NULL = Column(pl.UInt32, f"an integer from 0 to {LAST_ID:,}, NULL or empty", nullable=True)
_SECONDS = Column(pl.UInt32, f"Unix seconds from {FIRST_SECOND} (2001) to {LAST_ID} (2106)")
_BIT = Column(pl.UInt8, "0 or 1")


@dataclass(frozen=True)
class Table:
    """A raw file.

    Attributes:
        file: Name of the file.
        columns: Columns of the file, in order.
        key: A column whose values must be unique.
    """

    file: str
    columns: dict[str, Column]
    key: str | None = None


RAW_SAMPLE = Table(
    "raw_sample.csv",
    {
        "user": _ID,
        "time_stamp": _SECONDS,
        "adgroup_id": _ID,
        "pid": Column(pl.String, "non-empty UTF-8 text"),
        "nonclk": _BIT,
        "clk": _BIT,
    },
)
AD_FEATURE = Table(
    "ad_feature.csv",
    {
        "adgroup_id": _ID,
        "cate_id": _ID,
        "campaign_id": _ID,
        "customer": _ID,
        "brand": _ID_OR_NULL,
        "price": Column(pl.Float64, "a finite number (float32), at least 0"),
    },
    key="adgroup_id",
)
USER_PROFILE = Table(
    "user_profile.csv",
    {
        "userid": _ID,
        "cms_segid": _ID,
        "cms_group_id": _ID,
        "final_gender_code": _ID,
        "age_level": _ID,
        "pvalue_level": _ID_OR_NULL,
        "shopping_level": _ID,
        "occupation": _ID,
        "new_user_class_level": _ID_OR_NULL,
    },
    key="userid",
)
BEHAVIOR_LOG = Table(
    "behavior_log.csv",
    {
        "user": _ID,
        "time_stamp": _SECONDS,
        "btag": Column(pl.Enum(BTAGS), f"one of {', '.join(BTAGS)}"),
        "cate": _ID,
        "brand": _ID_OR_NULL,
    },
)


def check_file(path: Path, table: Table) -> None:
    """Checks the header and the end of a raw file.

    Raises:
        InputError: It is empty, has another header or no rows, or its last line has no line break.
    """
    with path.open("rb") as file:
        header = file.readline(2**16)
        first = file.read(1)
        file.seek(max(0, path.stat().st_size - 1))
        last = file.read(1)
    if not header:
        raise InputError(f"{path} is empty: expected the header {','.join(table.columns)} and rows; fetch it again")
    _check_header(path, header, table)
    if not first:
        raise InputError(f"{path} has a header and no rows: fetch it again")
    if last != b"\n":
        raise InputError(
            f"{path} ends in the middle of a line, as if it was cut off: fetch it again; if its last line is "
            "complete, add a line break to it"
        )


def _check_header(path: Path, header: bytes, table: Table) -> None:
    expected = list(table.columns)
    # The last name in the header of user_profile.csv has a trailing space.
    found = [name.strip() for name in header.decode("utf-8-sig", "backslashreplace").rstrip("\r\n").split(",")]
    if found == expected:
        return
    whole = f"expected the header {','.join(expected)}"
    for number, name in enumerate(expected):
        if number >= len(found):
            raise InputError(f"{path} lacks the column {name!r} (column {number + 1}): {whole}")
        if found[number] != name:
            raise InputError(
                f"column {number + 1} of {path} is {found[number][:50]!r}, expected {name!r}: {whole}"
                f"{suggestion(found[number], expected)}"
            )
    raise InputError(f"{path} has {len(found)} columns, and {found[len(expected)][:50]!r} is one too many: {whole}")


OnReject = Callable[[RejectedLine], object]


def read_blocks(
    path: Path,
    table: Table,
    *,
    block_bytes: int = BLOCK_BYTES,
    numbered: bool = False,
    on_bytes: Callable[[int], object] = lambda _: None,
    digest: Any = None,
    on_reject: OnReject,
) -> Iterator[pl.DataFrame]:
    """Yields the rows of a raw file, in order, one block of bytes at a time.

    Args:
        path: The file; call ``check_file`` first.
        table: Its columns.
        block_bytes: Bytes of text at a time; memory is a small multiple of it.
        numbered: Add a column ``line`` with the number of the line.
        on_bytes: Called with the number of bytes read.
        digest: A ``hashlib`` object, updated with all bytes that are read.
        on_reject: Called with each damaged line, which is then left out.

    Raises:
        InputError: The file ends inside a line, or a line is longer than a block.
    """
    update = (lambda _: None) if digest is None else digest.update
    with path.open("rb") as file:
        header = file.readline()
        line, rest = 2, b""
        update(header)
        on_bytes(len(header))
        while block := file.read(block_bytes):
            update(block)
            text = rest + block
            end = text.rfind(b"\n") + 1
            if not end:
                raise InputError(f"line {line} of {path} is longer than {block_bytes:,} bytes: {_FIX}")
            rest = text[end:]
            rows, numbers = _parse(path, table, text[:end], line, on_reject)
            line += text.count(b"\n", 0, end)
            yield rows.with_columns(pl.Series("line", numbers)) if numbered else rows
            on_bytes(len(block))
    if rest:
        raise InputError(f"{path} ends in the middle of line {line}, as if it was cut off: fetch it again")


def read_whole(path: Path, table: Table, *, digest: Any = None, on_reject: OnReject) -> pl.DataFrame:
    """Reads a raw file that fits in memory, sorted by its key.

    Args:
        path: The file.
        table: Its columns.
        digest, on_reject: As for ``read_blocks``.

    Raises:
        InputError: A key that occurs twice; or see ``read_blocks``.
    """
    assert table.key is not None
    blocks = list(read_blocks(path, table, numbered=True, digest=digest, on_reject=on_reject))
    rows = pl.concat(blocks).sort(table.key, "line")
    if not len(rows):
        raise InputError(f"{path} has only damaged lines: fetch it again")
    key = rows[table.key]
    again = (key == key.shift(1)).arg_true()
    if len(again):
        first, second = rows["line"][again[0] - 1], rows["line"][again[0]]
        raise InputError(
            f"{path}, line {second}: {table.key} {key[again[0]]} is already in line {first}"
            f"{f', and {len(again) - 1:,} more occur twice' if len(again) > 1 else ''}; expected one line each: "
            "remove the others"
        )
    return rows.drop("line")


def _parse(
    path: Path, table: Table, text: bytes, first_line: int, on_reject: OnReject
) -> tuple[pl.DataFrame, np.ndarray]:
    """Parses whole lines, numbered from ``first_line``: the rows, and their line numbers."""
    rows = _parse_rows(table, text)
    numbers = np.arange(first_line, first_line + text.count(b"\n"))
    if isinstance(rows, str):
        damaged, whole = _find_damaged_lines(path, table, text, first_line)
        if not damaged:
            raise InputError(
                f"{path} cannot be read between lines {first_line:,} and {numbers[-1]:,} ({rows}): {_FIX}"
            )
        for rejected in damaged:
            on_reject(rejected)
        text = b"".join(line for _, line in whole)
        numbers = np.array([number for number, _ in whole], dtype=numbers.dtype)
        rows = _parse_rows(table, text)
        if isinstance(rows, str):
            raise InputError(f"{path} cannot be read after line {first_line:,} ({rows}): {_FIX}")
    kept = np.ones(len(rows), dtype=bool)
    meaningless = []
    for kind, wrong, what in _find_wrong_values(rows):
        for row in wrong.arg_true():
            if kept[row]:
                named = rows.row(row, named=True)
                line = ",".join("" if value is None else str(value) for value in named.values())
                meaningless.append(_make_rejected_line(path, table, int(numbers[row]), (kind, what(named)), line))
                kept[row] = False
    for rejected in sorted(meaningless, key=lambda rejected: rejected.line):
        on_reject(rejected)
    return (rows, numbers) if kept.all() else (rows.filter(pl.Series(kept)), numbers[kept])


def _make_rejected_line(path: Path, table: Table, number: int, damage: tuple[str, str], line: str) -> RejectedLine:
    kind, reason = damage
    column = None if kind == FIELDS else kind
    return RejectedLine(str(path), number, column, f"{table.file}, {kind}", reason, line[:80])


def _parse_rows(table: Table, text: bytes) -> pl.DataFrame | str:
    """The rows of whole lines, one row per line; or the reason why Polars cannot read all of them."""
    codes = np.frombuffer(text, dtype=np.uint8)
    lines, commas = np.count_nonzero(codes == ord("\n")), np.count_nonzero(codes == ord(","))
    schema = {name: column.kind for name, column in table.columns.items()}
    if not text:
        return pl.DataFrame(schema=schema)
    try:
        rows = pl.read_csv(
            text,
            has_header=False,
            schema=schema,
            quote_char=None,
            null_values={name: "NULL" for name, column in table.columns.items() if column.nullable},
        )
    except pl.exceptions.PolarsError as error:
        return str(error).splitlines()[0]
    nulls = rows.select(name for name, column in table.columns.items() if not column.nullable).null_count()
    # Polars refuses long lines, so the number of commas is right only if no line is short.
    if len(rows) != lines or commas != lines * (len(table.columns) - 1) or any(nulls.row(0)):
        return f"{len(rows):,} rows in {lines:,} lines"
    return rows


def _find_wrong_values(rows: pl.DataFrame) -> Iterator[tuple[str, pl.Series, Callable[[dict], str]]]:
    """Yields columns, the rows with values that Polars accepts but that are invalid, and the message for a row."""
    if "time_stamp" in rows.columns:
        yield (
            "time_stamp",
            rows["time_stamp"] < FIRST_SECOND,
            lambda row: f"got {str(row['time_stamp'])!r}, expected {_SECONDS.expected}",
        )
    if "clk" in rows.columns:
        yield (
            "clk",
            (rows["nonclk"] > 1) | (rows["clk"] > 1) | (rows["nonclk"] + rows["clk"] != 1),
            lambda row: f"nonclk is {row['nonclk']} and clk is {row['clk']}, expected 0 and 1, or 1 and 0",
        )
    if "price" in rows.columns:
        yield (
            "price",
            ~((rows["price"] >= 0) & (rows["price"] <= LARGEST_FLOAT32)),
            lambda row: f"got {row['price']}, expected {AD_FEATURE.columns['price'].expected}",
        )


def _find_damaged_lines(
    path: Path, table: Table, text: bytes, first_line: int
) -> tuple[list[RejectedLine], list[tuple[int, bytes]]]:
    """The damaged lines of a block that Polars cannot read completely, and the number and text of the others."""
    damaged, whole = [], []
    for number, raw in enumerate(text.removesuffix(b"\n").split(b"\n"), start=first_line):
        line = raw.removesuffix(b"\r").decode("utf-8", "backslashreplace")
        found = _find_damage(table, line)
        if found is None:
            whole.append((number, raw + b"\n"))
        else:
            damaged.append(_make_rejected_line(path, table, number, found, line))
    return damaged, whole


def _find_damage(table: Table, line: str) -> tuple[str, str] | None:
    """The damage of a line: its kind, and the reason."""
    fields = line.split(",")
    if len(fields) != len(table.columns):
        found = len(fields) if line else "no"
        return FIELDS, f"has {found} fields, expected {len(table.columns)} ({','.join(table.columns)})"
    for (name, column), field in zip(table.columns.items(), fields, strict=True):
        if not _is_value(column, field):
            milliseconds = column is _SECONDS and re.fullmatch(r"\d{13}", field)
            advice = " (are these milliseconds? divide them by 1000)" if milliseconds else ""
            return name, f"got {field[:80]!r}, expected {column.expected}{advice}"
    return None


def _is_value(column: Column, field: str) -> bool:
    if column.nullable and field in ("", "NULL"):
        return True
    if column.kind == pl.String:
        return field != "" and "\\x" not in field  # bytes that are not UTF-8 were escaped
    if column.kind == pl.Float64:
        return re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", field) is not None
    if isinstance(column.kind, pl.Enum):
        return field in BTAGS
    largest = 255 if column is _BIT else LAST_ID
    return re.fullmatch(r"\s*\+?[0-9]+", field) is not None and int(field) <= largest
