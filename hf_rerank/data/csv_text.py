"""CSV files as columns of text, nothing guessed: what each column means is for the schema to say."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from hf_rerank.errors import InputError

OTHER_SEPARATORS = ";\t|"


def read_text(path: Path, rows: int | None = None) -> pa.Table:
    """All cells as text; an empty cell is a null, a quoted empty one the empty text.

    Args:
        path: UTF-8, separated by commas, with a header.
        rows: At most this many. None: all.

    Raises:
        InputError: No rows, another separator, a header that names a column twice or not at all, a row with too many
            or too few cells, an open quote, bytes that are no UTF-8.
    """
    names = _header(path)
    try:
        reader = arrow_csv.open_csv(
            path,
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        batches = []
        left = rows
        for batch in reader:
            batches.append(batch if left is None else batch.slice(0, left))
            if left is not None:
                left -= len(batches[-1])
                if left <= 0:
                    break
    except pa.ArrowInvalid as error:
        raise InputError(_damage(path, len(names)) or f"cannot read {path}: {_first_line(error)}") from None
    table = pa.Table.from_batches(batches, reader.schema)
    if not table.num_rows:
        raise InputError(_no_rows(path))
    return table


def line_of(path: Path, row: int) -> int:
    """The line of the file on which a row ends; ``row`` counts from 0, the header left out."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        seen = -1  # the header
        for cells in reader:
            seen += bool(cells)
            if seen == row + 1:
                return reader.line_num
    raise IndexError(f"{path} has no row {row}")


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(filter(None, csv.reader(file)), [])
    except UnicodeDecodeError as error:
        raise InputError(_no_utf8(path, error)) from None
    if not names:
        raise InputError(f"{path} holds no lists: remove it, or write it again")
    if len(names) == 1:
        found = next((sign for sign in OTHER_SEPARATORS if sign in names[0]), None)
        if found is not None:
            raise InputError(
                f"{path} has one column, {names[0]!r}: it seems to be separated by {found!r}, expected commas; write "
                f"it with commas, or give load_lists the frame of polars.read_csv(..., separator={found!r})"
            )
    for number, name in enumerate(names, start=1):
        if "\0" in name:
            raise InputError(f"{path} has a NUL byte in its header ({name!r}): it is damaged, or no CSV")
        if not name.strip():
            raise InputError(f"{path} has no name for column {number} in its header ({', '.join(names)}): name it")
        if names.count(name) > 1:
            raise InputError(
                f"{path} has {names.count(name)} columns {name!r} in its header: expected one; rename one"
            )
    return names


def _damage(path: Path, columns: int) -> str | None:
    """Names the first row that has not as many cells as the header, or the first bytes that are no UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = 0
            try:
                for cells in filter(None, reader):
                    rows += 1
                    if len(cells) != columns:
                        return (
                            f"{path}, line {reader.line_num} has {len(cells)} cells, the header has {columns}: "
                            "expected as many; quote cells that hold a comma"
                        )
            except csv.Error as error:
                return f"cannot read {path}, line {reader.line_num}: {error}; a quote is not closed, or stands alone"
    except UnicodeDecodeError as error:
        return _no_utf8(path, error)
    return _no_rows(path) if rows == 1 else None


def _no_utf8(path: Path, error: UnicodeDecodeError) -> str:
    return f"{path} is no UTF-8 ({error.reason}): save it as UTF-8"


def _no_rows(path: Path) -> str:
    return f"{path} holds no lists: it has a header and no rows; remove it, or write it again"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
