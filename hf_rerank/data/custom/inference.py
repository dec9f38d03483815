"""Infers a draft of the schema of unknown files from names, types and values of their first rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from hf_rerank.data.custom.columns import find_inner_type
from hf_rerank.data.custom.converting import unify_tables
from hf_rerank.data.custom.files import Source, find_list_files, note_local_inputs, refuse_prepared
from hf_rerank.data.custom.guessing import Guess
from hf_rerank.data.custom.inferred_schema import InferredSchema
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.custom.reading import TEXT_KINDS, read_blocks
from hf_rerank.data.prepared import SCHEMA_FILE
from hf_rerank.errors import InputError, suggestion

SAMPLE_ROWS = 100_000


def infer_schema(
    source: Source,
    *,
    label: str | None = None,
    list_id: str | None = None,
    position: str | None = None,
    group: str | None = None,
    rows: int = SAMPLE_ROWS,
    options: ReadOptions | None = None,
) -> InferredSchema:
    """Guesses the schema of files from their first rows.

    Args:
        source: Files, as for ``load_lists``.
        label, list_id, position, group: Known columns; the others are guessed from names and values.
        rows: Maximum number of rows to read. Default 100,000.
        options: Options of the readers. None: the defaults.

    Returns:
        The draft, with a comment per column.

    Raises:
        InputError: No such files, a missing column, or no column that can be the label or, in the long form, the list
            id.
    """
    options = options or ReadOptions()
    refuse_prepared(source, f"{SCHEMA_FILE} in it is its schema")
    if rows < 1:
        raise InputError(f"rows is {rows}: expected at least 1")
    files = find_list_files(source)
    with note_local_inputs(files).require_unchanged():
        frame, whole = _read_first_rows(files, options, rows)
    known = {"label": label, "list_id": list_id, "position": position, "group": group}
    for role, column in known.items():
        if column is not None and column not in frame.columns:
            raise InputError(
                f"{files[0].path} has no column {column!r} for the {role}; its columns: {', '.join(frame.columns)}"
                f"{suggestion(column, frame.columns)}"
            )
    guess = Guess(frame, known, whole)
    inferred = guess.guess_wide() if guess.is_wide() else guess.guess_long()
    read = f"all {len(frame):,} rows" if whole else f"the first {len(frame):,} rows only"
    name = files[0].path if len(files) == 1 else f"{len(files)} files"
    nulls = ", ".join(options.nulls_of_text) or "none"
    inferred.header = [
        f"A guess from {read} of {name}. Correct it, then:",
        f"hf-rerank prepare own --input {files[0].path} --schema THIS --output-dir LISTS",
        "Lines that begin with // are comments. Review those that say CHECK first.",
        "categorical: a value out of many (ids, text). dense: a number. vector: a vector per item.",
    ]
    if files[0].kind in TEXT_KINDS:
        inferred.header.append(
            f"Read as missing: empty cells, {nulls}; in columns of numbers also "
            f"{', '.join(options.nulls_of_numbers)} (--null-strings changes them)."
        )
    return inferred


def _read_first_rows(files: Sequence[Any], options: ReadOptions, rows: int) -> tuple[pl.DataFrame, bool]:
    """At most ``rows`` rows of the files, and whether these are all rows."""
    tables: list[pa.Table] = []
    left = rows + 1
    for file in files:
        for block in read_blocks(file, None, options) if left > 0 else ():
            tables.append(block.table.slice(0, left))
            left -= len(tables[-1])
            if left <= 0:
                break
    if not tables:
        raise InputError(f"{files[0].path} holds no lists: remove it, or write it again")
    try:
        table = unify_tables(tables, options, from_text=files[0].kind in TEXT_KINDS)
    except InputError as error:
        raise InputError(f"{files[0].path}: {error}") from None
    frame = pl.DataFrame(pl.from_arrow(table))
    struct = next((name for name, kind in frame.schema.items() if isinstance(find_inner_type(kind), pl.Struct)), None)
    if struct is not None:
        raise InputError(
            f"{files[0].path}: column {struct!r} holds objects: expected plain values; write each field as its own "
            "column, one value per item"
        )
    return frame.head(rows), len(frame) <= rows
