"""Reads LETOR and LibSVM text (``2 qid:10 1:0.03 2:1.5 # docid = G7``) as tables with one row per item."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from hf_rerank.data.custom.files import ListFile
from hf_rerank.errors import InputError

LABEL, LIST_ID, DOCUMENT = "label", "qid", "docid"
FEATURE = "feature_"
BATCH_LINES = 20_000
MAX_FEATURES = 10_000
_DOCUMENT = r"docid\s*=\s*(\S+)"


def read_letor(file: ListFile) -> Iterator[tuple[pa.Table, int]]:
    """Yields tables of ``label``, ``qid``, ``feature_1``, ... (0 if a line lacks it) and, from comments, ``docid``;
    and the number of the first line of each.

    Raises:
        InputError: A line is not in the format; names file and line.
    """
    with file.open() as source, io.TextIOWrapper(source, encoding="utf-8-sig", errors="strict") as text:
        first, lines = 1, []
        try:
            for number, line in enumerate(text, start=1):
                lines.append(line)
                if len(lines) == BATCH_LINES:
                    yield _parse_table(file.path, lines, first), first
                    first, lines = number + 1, []
        except UnicodeDecodeError as error:
            raise InputError(f"{file.path} is not UTF-8 ({error.reason}): save it as UTF-8") from None
        if lines:
            yield _parse_table(file.path, lines, first), first


def _parse_table(path: str, lines: list[str], first: int) -> pa.Table:
    text = pl.Series(lines, dtype=pl.String).str.strip_chars()
    text = text.filter((text != "") & ~text.str.starts_with("#"))
    parts = text.str.splitn("#", 2).struct.unnest()
    cells = parts["field_0"].str.strip_chars().str.split(" ")
    lengths = cells.list.len().unique()
    found = _parse_even_lines(cells, int(lengths[0])) if len(lengths) == 1 else None
    if found is None:
        found = _parse_uneven_lines(path, lines, first)
    documents = parts["field_1"].str.extract(_DOCUMENT) if len(parts) else pl.Series([], dtype=pl.String)
    if documents.null_count() < len(documents):
        found[DOCUMENT] = documents
    return pl.DataFrame(found).to_arrow(compat_level=pl.CompatLevel.oldest())


def _parse_even_lines(cells: pl.Series, width: int) -> dict[str, Any] | None:
    """Parses lines that all name features 1, 2, ... in order, as published datasets do; None for others."""
    columns = cells.list.to_struct(fields=[str(number) for number in range(width)]).struct.unnest()
    if width < 3:
        return None
    found: dict[str, Any] = {LABEL: columns["0"].cast(pl.Float64, strict=False)}
    ids = columns["1"].str.strip_prefix("qid:")
    if not columns["1"].str.starts_with("qid:").all() or found[LABEL].null_count():
        return None
    found[LIST_ID] = ids
    for number in range(2, width):
        column, name = columns[str(number)], str(number - 1)
        if not column.str.starts_with(f"{name}:").all():
            return None
        values = column.str.strip_prefix(f"{name}:").cast(pl.Float64, strict=False)
        if values.null_count():
            return None
        found[FEATURE + name] = values
    return found


def _parse_uneven_lines(path: str, lines: list[str], first: int) -> dict[str, Any]:
    """Parses lines that omit features, which are 0; reports the first wrong line."""
    labels: list[float] = []
    ids: list[str] = []
    rows: list[dict[int, float]] = []
    for number, line in enumerate(lines, start=first):
        said = line.partition("#")[0].split()
        if not said:
            continue
        try:
            if len(said) < 2 or not said[1].startswith("qid:"):
                raise ValueError("expected a label, then qid:ID")
            values: dict[int, float] = {}
            for cell in said[2:]:
                name, sign, value = cell.partition(":")
                if not sign or not re.fullmatch(r"[0-9]+", name):
                    raise ValueError(f"expected NUMBER:VALUE, got {cell!r}")
                if int(name) in values:
                    raise ValueError(f"the feature {name} occurs twice")
                values[int(name)] = float(value)
            labels.append(float(said[0]))
        except ValueError as error:
            raise InputError(
                f"{path}, line {number} is not in the LETOR format (2 qid:10 1:0.5 2:1.5): {error}; other text needs "
                "another name, such as .csv or .tsv"
            ) from None
        ids.append(said[1].removeprefix("qid:"))
        rows.append(values)
    names = sorted(set().union(*rows))
    if names and names[-1] > MAX_FEATURES:
        raise InputError(
            f"{path} has a feature {names[-1]}: expected numbers of at most {MAX_FEATURES:,}; put ids of larger sets "
            "into a table with one column per feature"
        )
    # A library that counts from 0 names feature 0; all up to the highest have a column, so that files agree.
    numbers = range(0 if 0 in names else 1, (names[-1] if names else 0) + 1)
    matrix = np.zeros((len(rows), len(numbers)))
    for row, of_row in enumerate(rows):
        for feature, found_value in of_row.items():
            matrix[row, feature - numbers[0]] = found_value
    found: dict[str, Any] = {LABEL: labels, LIST_ID: ids}
    return found | {f"{FEATURE}{name}": matrix[:, column] for column, name in enumerate(numbers)}
