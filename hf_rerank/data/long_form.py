"""The long form, a row an item, as lists: text becomes what the schema says, rows of one list id become one row.

All in memory. History and vectors are columns of lists; in text they are JSON, ``[1, 2, 3]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from hf_rerank.data.csv_text import line_of, read_text
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import Categorical, ListSchema, Vector
from hf_rerank.validation import columns_of

# An integer that is written as Python would: 007 and 7 are different texts, and must not become one id.
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
# Says where a row (from 0) comes from, for messages.
Where = Callable[[int], str]


def lists_of_csv(files: Iterable[Path], schema: ListSchema) -> dict[Path, pl.DataFrame]:
    """Lists of CSV files, each column of one type over all files.

    Raises:
        InputError: Naming file, line, column and value.
    """
    texts: dict[Path, pl.DataFrame] = {}
    for path in files:
        frame = pl.from_arrow(read_text(path))
        assert isinstance(frame, pl.DataFrame)
        _refuse_missing_columns(frame, schema, f"{path}, line 1")
        texts[path] = frame
    first, *others = texts
    for path in others:
        if texts[path].columns != texts[first].columns:
            odd = sorted(set(texts[path].columns) ^ set(texts[first].columns)) or texts[path].columns
            raise InputError(f"{path} has other columns than {first} ({', '.join(odd)}): expected the same header")
    all_integers = {
        name: all(
            frame[name].str.contains(INTEGER).all() and frame[name].null_count() < len(frame)
            for frame in texts.values()
        )
        for name in texts[first].columns
    }
    lists: dict[Path, pl.DataFrame] = {}
    owner: dict[Any, Path] = {}
    for path, text in texts.items():

        def where(row: int, path: Path = path) -> str:
            return f"{path}, line {line_of(path, row)}"

        typed = text.select(_typed(text[name], schema, all_integers[name], where) for name in text.columns)
        lists[path] = grouped(typed, schema, where)
        for list_id in lists[path][str(schema.list_id)].to_list():
            if owner.setdefault(list_id, path) != path:
                raise InputError(
                    f"list {list_id} has rows in {owner[list_id]} and in {path}: expected all items of a list in one "
                    f"file; if each file numbers its lists anew, make {schema.list_id!r} unique"
                )
    return lists


def grouped(frame: pl.DataFrame, schema: ListSchema, where: Where) -> pl.DataFrame:
    """One row a list, in the order in which the lists first appear; their rows need not stand together.

    Item columns, and columns that the schema does not name, become sequences: in the order of the position column,
    where the schema has one, else in the order of the rows. Columns of the list must say one thing a list.

    Raises:
        InputError: No list id, or a column of the list that differs within a list.
    """
    _refuse_missing_columns(frame, schema, where(0) if len(frame) else "the frame")
    list_id = str(schema.list_id)
    if frame[list_id].null_count():
        row = int(frame[list_id].is_null().arg_max() or 0)
        raise InputError(
            f"{where(row)}: column {list_id!r} is null: expected the id of the list that the item belongs to"
        )
    one_a_list = {feature.name for feature in (*schema.user, *schema.history)}
    one_a_list |= {name for name in (schema.group, "split") if name is not None and name in frame.columns}
    one_a_list.discard(list_id)
    in_lists = frame.group_by(list_id, maintain_order=True)
    for name in [name for name in frame.columns if name in one_a_list]:
        differs = in_lists.agg(pl.col(name).n_unique()).filter(pl.col(name) > 1)
        if len(differs):
            wrong = differs[list_id][0]
            rows = (frame[list_id] == wrong).arg_true()
            values = frame[name].gather(rows).to_list()
            row, other = next((row, value) for row, value in zip(rows, values, strict=True) if value != values[0])
            raise InputError(
                f"{where(row)}: column {name!r} differs within list {wrong} ({values[0]!r}, {other!r}): expected one "
                "value a list; make it constant, or name it among the items of the schema"
            )
    position = schema.position
    aggregates = [
        pl.col(name).first()
        if name in one_a_list
        else (pl.col(name) if position is None else pl.col(name).sort_by(position, maintain_order=True))
        for name in frame.columns
        if name != list_id
    ]
    return in_lists.agg(aggregates).select(frame.columns)


def _refuse_missing_columns(frame: pl.DataFrame, schema: ListSchema, where: str) -> None:
    if schema.list_id is None:
        raise InputError(
            f"{where}: a table with a row an item needs list_id in the schema, the column that says which items "
            "belong together"
        )
    for name in [*columns_of(schema), schema.group]:
        if name is not None and name != schema.attraction and name not in frame.columns:
            raise InputError(
                f"{where}: the lists have no column {name!r}; their columns: {', '.join(frame.columns)}"
                f"{suggestion(name, frame.columns)}"
            )


def _typed(text: pl.Series, schema: ListSchema, all_integers: bool, where: Where) -> pl.Series:
    """A column of text as what the schema says of it."""
    name = text.name
    feature = next((f for f in (*schema.items, *schema.user, *schema.history) if f.name == name), None)
    if feature is not None and (isinstance(feature, Vector) or feature in schema.history):
        return _json_lists(text, where, as_numbers=not isinstance(feature, Categorical))
    if name == schema.position:
        return _numbers(text, pl.Int64, "an integer from 0", where)
    if isinstance(feature, Categorical) or name in (schema.list_id, schema.group):
        return text.cast(pl.Int64) if all_integers else text
    if feature is not None or name in (schema.label, schema.weight, schema.propensity, schema.attraction):
        return _numbers(text, pl.Float64, "a number", where)
    return text.cast(pl.Int64) if all_integers else text


def _numbers(text: pl.Series, kind: Any, expected: str, where: Where) -> pl.Series:
    numbers = text.str.strip_chars().cast(kind, strict=False)
    wrong = numbers.is_null() & text.is_not_null()
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        lists = "; CSV has a row an item, give lists as Parquet or JSON Lines" if text[row].startswith("[") else ""
        raise InputError(
            f"{where(row)}: column {text.name!r} holds {_short(text[row])}: expected {expected}; a missing value is "
            f"an empty cell{lists}"
        )
    return numbers


def _json_lists(text: pl.Series, where: Where, *, as_numbers: bool) -> pl.Series:
    """Cells such as ``[1, 2, 3]``; each distinct text is read once."""
    read: dict[str | None, Any] = {None: None}
    for row, cell in enumerate(text.to_list()):
        if cell in read:
            continue
        try:
            values = json.loads(cell, parse_int=float if as_numbers else int)
        except ValueError:
            values = None
        if not isinstance(values, list):
            raise InputError(
                f"{where(row)}: column {text.name!r} holds {_short(cell)}: expected a JSON list such as [1, 2, 3] "
                "(history and vectors in CSV), or give the lists as Parquet, JSON Lines or a frame"
            )
        huge = next((value for value in values if isinstance(value, int) and not -(2**63) <= value < 2**63), None)
        if huge is not None:
            raise InputError(
                f"{where(row)}: column {text.name!r} holds the id {huge}: expected integers of 64 bits; write larger "
                "ones as text, in quotes"
            )
        read[cell] = values
    kinds = {type(value) for values in read.values() for value in values or () if value is not None}
    inner: Any = pl.Float64 if as_numbers else pl.Int64 if kinds <= {int} else pl.String
    allowed: list[set[Any]] = [{float}] if as_numbers else [{int}, {str}]
    if not any(kinds <= of_one_kind for of_one_kind in allowed):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        expected = "numbers" if as_numbers else "integers alone or texts alone"
        raise InputError(f"{where(0)} and below: lists of column {text.name!r} hold {found}: expected {expected}")
    return pl.Series(text.name, [read[cell] for cell in text.to_list()], dtype=pl.List(inner), strict=False)


def _short(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else cell[:37] + "...")


def is_long(columns: Mapping[str, Any], schema: ListSchema) -> bool:
    """Whether a frame of these Polars types has a row an item: its labels are plain values."""
    kind = columns.get(schema.label)
    return kind is not None and not isinstance(kind, pl.List | pl.Array)
