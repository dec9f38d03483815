"""Reads CSV and TSV files as columns of text, without guessing types: the schema decides them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pyarrow as pa
from pyarrow import csv as arrow_csv

from hf_rerank.data.custom.files import ListFile
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.errors import InputError

OTHER_SEPARATORS = ";\t|,"
BLOCK_BYTES = 2**23
# Python's reader refuses cells of more than 131,072 characters by default; Arrow's block is the limit here.
csv.field_size_limit(2**31 - 1)


def read_csv(file: ListFile, options: ReadOptions) -> Iterator[pa.Table]:
    """Yields tables of text columns; an empty cell is a null, a quoted empty cell an empty string.

    A file without rows yields no table.

    Raises:
        InputError: Another separator, a header that names a column twice or not at all, a row with too many or too
            few cells, an open quote, bytes that are not UTF-8.
    """
    separator = find_separator(file, options)
    names = list(options.column_names or ()) or _read_header(file, separator)
    if not names:
        return
    try:
        with file.open() as source:
            reader = arrow_csv.open_csv(
                source,
                read_options=arrow_csv.ReadOptions(
                    block_size=BLOCK_BYTES, column_names=names, skip_rows=0, use_threads=False
                ),
                parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types={name: pa.string() for name in names},
                    null_values=["", *options.nulls_of_text],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
            to_skip = 0 if options.column_names else 1
            for batch in reader:
                table = pa.Table.from_batches([batch.slice(to_skip)])
                to_skip = max(0, to_skip - batch.num_rows)
                if table.num_rows:
                    yield table
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return
        reason = str(error).splitlines()[0]
        raise InputError(_find_damage(file, len(names), separator) or f"cannot read {file.path}: {reason}") from None


def find_separator(file: ListFile, options: ReadOptions) -> str:
    """The separator of cells: that of the options, a tab in ``.tsv`` files, else a comma."""
    return options.separator or ("\t" if file.suffix == ".tsv" else ",")


def find_line(file: ListFile, row: int, options: ReadOptions) -> int:
    """The line of the file on which a row ends; ``row`` counts from 0, the header excluded."""
    seen = -1 if options.column_names is None else 0
    with file.open() as source, io.TextIOWrapper(source, encoding="utf-8-sig", errors="replace", newline="") as text:
        reader = csv.reader(text, delimiter=find_separator(file, options))
        for cells in reader:
            seen += bool(cells)
            if seen == row + 1:
                return reader.line_num
    raise IndexError(f"{file.path} has no row {row}")


def _read_header(file: ListFile, separator: str) -> list[str]:
    try:
        with file.open() as source, io.TextIOWrapper(source, encoding="utf-8-sig", newline="") as text:
            names: list[str] = next(filter(None, csv.reader(text, delimiter=separator)), [])
    except UnicodeDecodeError as error:
        raise InputError(_describe_not_utf8(file, error)) from None
    if len(names) == 1:
        found = next((sign for sign in OTHER_SEPARATORS if sign in names[0]), None)
        if found is not None:
            raise InputError(
                f"{file.path} has one column, {names[0]!r}: it seems to be separated by {found!r}, not by "
                f"{separator!r}; read it with separator={found!r} (--separator)"
            )
    for number, name in enumerate(names, start=1):
        if "\0" in name:
            raise InputError(f"{file.path} has a NUL byte in its header ({name!r}): it is damaged, or not CSV")
        if not name.strip():
            raise InputError(
                f"{file.path} has no name for column {number} in its header ({', '.join(names)}): name it; if the "
                "file has no header, name all columns with column_names= (--column-names)"
            )
        if names.count(name) > 1:
            raise InputError(
                f"{file.path} has {names.count(name)} columns {name!r} in its header: expected one; rename one, or "
                "name all columns with column_names= (--column-names) if the file has no header"
            )
    return names


def _find_damage(file: ListFile, columns: int, separator: str) -> str | None:
    """Describes the first row whose number of cells differs from the header, or the first bytes that are not UTF-8."""
    try:
        with file.open() as source, io.TextIOWrapper(source, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True, delimiter=separator)
            try:
                for cells in filter(None, reader):
                    if len(cells) != columns:
                        return (
                            f"{file.path}, line {reader.line_num} has {len(cells)} cells, but the header has "
                            f"{columns}: expected equal numbers; quote cells that contain {separator!r}"
                        )
            except csv.Error as error:
                return f"cannot read {file.path}, line {reader.line_num}: {error}; a quote is unclosed or stray"
    except UnicodeDecodeError as error:
        return _describe_not_utf8(file, error)
    return None


def _describe_not_utf8(file: ListFile, error: UnicodeDecodeError) -> str:
    return f"{file.path} is not UTF-8 ({error.reason}): save it as UTF-8"
