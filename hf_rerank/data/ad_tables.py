"""The raw files of Ad, and reading them: CSV in blocks of bytes, by Polars, with every line checked.

Polars fills the fields that a short line lacks with nulls and says where in a file a value is wrong by its byte. So a
block is parsed by Polars and then counted and checked as a whole; where something is wrong, its lines are looked at
one by one, until the first wrong one can be named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from hf_rerank.errors import InputError, suggestion

BLOCK_BYTES = 16 * 2**20
BTAGS = ("pv", "cart", "fav", "buy")
FIRST_SECOND = 1_000_000_000  # September 2001; what lies before is no time in Unix seconds, but days or minutes
LAST_ID = 2**32 - 1

_MEND = "mend it, or fetch the file again"


@dataclass(frozen=True)
class Column:
    """A column of a raw file: how Polars holds it, what an error says that it should hold, whether it may be missing
    (empty or ``NULL``)."""

    kind: pl.DataType | type[pl.DataType]
    expected: str
    nullable: bool = False


_ID = Column(pl.UInt32, f"an integer from 0 to {LAST_ID:,}")
_ID_OR_NULL = Column(pl.UInt32, f"an integer from 0 to {LAST_ID:,}, NULL or nothing", nullable=True)
_SECONDS = Column(pl.UInt32, f"Unix seconds from {FIRST_SECOND} (2001) to {LAST_ID} (2106)")
_BIT = Column(pl.UInt8, "0 or 1")


@dataclass(frozen=True)
class Table:
    """A raw file.

    Attributes:
        file: Its name.
        columns: Its columns, in order.
        key: A column that must not hold a value twice.
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
        "pid": Column(pl.String, "a text"),
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
        "price": Column(pl.Float64, "a finite number, at least 0"),
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
    """Looks at the header and the end of a raw file.

    Raises:
        InputError: It is empty, has another header, no rows, or no end of its last line.
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
            f"{path} ends in the middle of a line, as if it was cut off: fetch it again; if its last line is whole, "
            "end it (a line ends with a line break)"
        )


def _check_header(path: Path, header: bytes, table: Table) -> None:
    expected = list(table.columns)
    # The last header of user_profile.csv carries a trailing blank.
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
    raise InputError(f"{path} has {len(found)} columns, and {found[len(expected)][:50]!r} is too many: {whole}")


def read_blocks(
    path: Path, table: Table, *, block_bytes: int = BLOCK_BYTES, on_bytes: Callable[[int], object] | None = None
) -> Iterator[pl.DataFrame]:
    """The rows of a raw file, in order, a block of bytes at a time.

    Args:
        path: The file; ``check_file`` comes first.
        table: What it holds.
        block_bytes: Bytes of text at a time; memory is a small multiple of it.
        on_bytes: Called with the number of bytes read.

    Raises:
        InputError: A damaged line: names file, line, column and text.
    """
    with path.open("rb") as file:
        header = file.readline()
        line, rest = 2, b""
        if on_bytes is not None:
            on_bytes(len(header))
        while block := file.read(block_bytes):
            text = rest + block
            end = text.rfind(b"\n") + 1
            if not end:
                raise InputError(f"line {line} of {path} is longer than {block_bytes:,} bytes: {_MEND}")
            rest = text[end:]
            rows = _parse(path, table, text[:end], line)
            line += len(rows)
            yield rows
            if on_bytes is not None:
                on_bytes(len(block))
    if rest:
        raise InputError(f"{path} ends in the middle of line {line}, as if it was cut off: fetch it again")


def read_whole(path: Path, table: Table) -> pl.DataFrame:
    """A raw file that fits in memory, ordered by its key.

    Raises:
        InputError: A damaged line, or a key that is there twice.
    """
    assert table.key is not None
    rows = pl.concat(list(read_blocks(path, table))).with_row_index("line", offset=2).sort(table.key, "line")
    key = rows[table.key]
    again = (key == key.shift(1)).arg_true()
    if len(again):
        first, second = rows["line"][again[0] - 1], rows["line"][again[0]]
        raise InputError(
            f"{path}, line {second}: {table.key} {key[again[0]]} is there already in line {first}"
            f"{f', and {len(again) - 1:,} more are there twice' if len(again) > 1 else ''}; expected one line each: "
            "remove the others"
        )
    return rows.drop("line")


def _parse(path: Path, table: Table, text: bytes, first_line: int) -> pl.DataFrame:
    """The rows of whole lines, of which ``first_line`` is the first."""
    codes = np.frombuffer(text, dtype=np.uint8)
    lines, commas = np.count_nonzero(codes == ord("\n")), np.count_nonzero(codes == ord(","))
    try:
        rows = pl.read_csv(
            text,
            has_header=False,
            schema={name: column.kind for name, column in table.columns.items()},
            quote_char=None,
            null_values={name: "NULL" for name, column in table.columns.items() if column.nullable},
        )
    except pl.exceptions.PolarsError as error:
        raise _first_damage(path, table, text, first_line, str(error).splitlines()[0]) from None
    nulls = rows.select(name for name, column in table.columns.items() if not column.nullable).null_count()
    # Polars refuses long lines, so that the number of commas is right only where no line is short.
    if len(rows) != lines or commas != lines * (len(table.columns) - 1) or any(nulls.row(0)):
        raise _first_damage(path, table, text, first_line, f"{len(rows):,} rows in {lines:,} lines")
    for wrong, what in _wrong_values(rows):
        if wrong.any():
            row = wrong.arg_true()[0]
            raise InputError(f"{path}, line {first_line + row}: {what(rows.row(row, named=True))}; {_MEND}")
    return rows


def _wrong_values(rows: pl.DataFrame) -> Iterator[tuple[pl.Series, Callable[[dict], str]]]:
    """Rows whose values Polars takes, but that mean nothing; and what to say of one."""
    if "time_stamp" in rows.columns:
        yield (
            rows["time_stamp"] < FIRST_SECOND,
            lambda row: f"time_stamp is {str(row['time_stamp'])!r}, expected {_SECONDS.expected}",
        )
    if "clk" in rows.columns:
        yield (
            (rows["nonclk"] > 1) | (rows["clk"] > 1) | (rows["nonclk"] + rows["clk"] != 1),
            lambda row: f"nonclk is {row['nonclk']} and clk is {row['clk']}, expected 0 and 1, or 1 and 0",
        )
    if "price" in rows.columns:
        yield (
            ~(rows["price"].is_finite() & (rows["price"] >= 0)),
            lambda row: f"price is {row['price']}, expected {AD_FEATURE.columns['price'].expected}",
        )


def _first_damage(path: Path, table: Table, text: bytes, first_line: int, reason: str) -> InputError:
    """The error that names the first damaged line of a block that Polars does not read, or not whole."""
    lines = text.removesuffix(b"\n").split(b"\n")
    for number, raw in enumerate(lines, start=first_line):
        line = raw.removesuffix(b"\r").decode("utf-8", "backslashreplace")
        fields = line.split(",")
        if len(fields) != len(table.columns):
            return InputError(
                f"{path}, line {number} has {len(fields) if line else 'no'} fields, expected {len(table.columns)} "
                f"({','.join(table.columns)}): {line[:80]!r}; {_MEND}"
            )
        for (name, column), field in zip(table.columns.items(), fields, strict=True):
            if not _is_value(column, field):
                advice = " (are these milliseconds? divide them by 1000)" if re.fullmatch(r"\d{13}", field) else ""
                advice = advice if column is _SECONDS else ""
                return InputError(
                    f"{path}, line {number}: {name} is {field[:80]!r}, expected {column.expected}{advice}; {_MEND}"
                )
    last = first_line + len(lines) - 1
    return InputError(f"{path} cannot be read between lines {first_line:,} and {last:,} ({reason}): {_MEND}")


def _is_value(column: Column, field: str) -> bool:
    if column.nullable and field in ("", "NULL"):
        return True
    if column.kind == pl.String:
        return field != "" and "\\x" not in field  # bytes that are no UTF-8 were escaped
    if column.kind == pl.Float64:
        return re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", field) is not None
    if isinstance(column.kind, pl.Enum):
        return field in BTAGS
    largest = 255 if column is _BIT else LAST_ID
    return re.fullmatch(r"\s*\+?[0-9]+", field) is not None and int(field) <= largest


def fingerprint(path: Path) -> list[int]:
    """Size and time of the last change of a file: by these a later run knows that it is the same."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]
