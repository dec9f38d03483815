"""Options of the commands that read a user's own files."""

from __future__ import annotations

import argparse
import codecs
from typing import Any


def add_reader_options(parser: argparse.ArgumentParser) -> None:
    """Adds options for facts that the files themselves do not contain."""
    reading = parser.add_argument_group("reading files")
    reading.add_argument(
        "--separator", metavar="C", help="separator of CSV cells (default: comma, a tab in .tsv; \\t is a tab)"
    )
    reading.add_argument("--column-names", metavar="A,B,...", help="column names for CSV files without a header")
    reading.add_argument(
        "--list-separator", metavar="C", help="separator of the values in a cell with a list: '|' for a|b|c"
    )
    reading.add_argument(
        "--label-separator", metavar="C", help="separator of item and label in such a cell: '-' for N1-1 N2-0"
    )
    reading.add_argument(
        "--null-strings",
        metavar="A,B,...",
        help="cells that mean missing (default: NULL and \\N, and in columns of numbers also NA, N/A, n/a, null, "
        "None, <NA>); an empty cell always does",
    )


def reader_options(options: argparse.Namespace) -> Any:
    """Returns the ``ReadOptions`` of a command."""
    from hf_rerank.data.custom.options import ReadOptions

    def plain(name: str) -> str | None:
        value = getattr(options, name)
        return None if value is None else codecs.decode(value, "unicode_escape") if value == "\\t" else value

    def names(name: str) -> tuple[str, ...] | None:
        value = getattr(options, name)
        return None if value is None else tuple(part for part in value.split(",") if part)

    return ReadOptions(
        separator=plain("separator"),
        column_names=names("column_names"),
        list_separator=plain("list_separator"),
        label_separator=plain("label_separator"),
        null_strings=names("null_strings"),
    )
