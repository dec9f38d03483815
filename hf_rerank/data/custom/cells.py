"""CSV cells that contain a list: JSON (``[1, 2]``), or values with separators (``a|b|c``, ``N1-1 N2-0``)."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pyarrow as pa

from hf_rerank.data.custom.columns import Where, item_columns_of, shorten
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.times import parse_times
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, ListSchema, Vector

DEFAULT_LABEL = "click"


def parse_cells(table: pa.Table, schema: ListSchema | None, options: ReadOptions, where: Where) -> pa.Table:
    """Parses cells that contain lists: the same table, with columns of lists.

    With ``list_separator`` these are the schema's columns with one value per item or history item; without a schema,
    the columns in which the separator occurs. Without ``list_separator``, cells in brackets are read as JSON: those of
    the history, of vectors, and, if a row is a list, of the items.

    Raises:
        InputError: Names line, column and cell.
    """
    if options.list_separator is not None:
        return _split_cells(table, schema, options, where)
    columns = {}
    for name in table.column_names:
        text = pl.Series(name, table.column(name))
        bracketed = text.str.contains(r"^\s*\[").fill_null(True).all() and text.null_count() < len(text)
        feature = None if schema is None else next((f for f in _list_features(schema) if f.name == name), None)
        always = feature is not None and (isinstance(feature, Vector) or feature in schema.history)  # type: ignore[union-attr]
        if always or (bracketed and (schema is None or name in item_columns_of(schema))):
            as_numbers = schema is not None and not isinstance(feature, Categorical)
            lists = parse_json_lists(text, where, as_numbers=as_numbers, refuse=schema is not None)
            columns[name] = table.column(name) if lists is None else _to_arrow(lists)
        else:
            columns[name] = table.column(name)
    return pa.table(columns)


def _list_features(schema: ListSchema) -> list[Any]:
    return [*schema.items, *schema.user, *schema.history]


def _split_cells(table: pa.Table, schema: ListSchema | None, options: ReadOptions, where: Where) -> pa.Table:
    separator = str(options.list_separator)
    columns: dict[str, Any] = {}
    for name in table.column_names:
        text = pl.Series(name, table.column(name))
        occurs = schema is None and text.str.contains(separator, literal=True).any() and not _are_times(text)
        if not (occurs if schema is None else name in item_columns_of(schema)):
            columns[name] = table.column(name)
            continue
        # An empty cell is a list without values.
        cells = text.fill_null("").str.strip_chars(" ")
        columns[name] = cells.str.split(separator).list.eval(pl.element().filter(pl.element() != ""))
    if options.label_separator is not None:
        _take_labels(columns, schema, options.label_separator, where)
    return pa.table({name: _to_arrow(c) if isinstance(c, pl.Series) else c for name, c in columns.items()})


def _are_times(text: pl.Series) -> bool:
    """Whether cells are times, in which a space does not separate values."""
    return parse_times(text.drop_nulls().head(1_000)).nanoseconds is not None


def _take_labels(columns: dict[str, Any], schema: ListSchema | None, sign: str, where: Where) -> None:
    """Splits ``N1-1`` into the item N1 and its label 1; lists without labels, such as new ones, are not changed."""
    label = DEFAULT_LABEL if schema is None else schema.label
    if label in columns:
        return
    candidates = [name for name, c in columns.items() if isinstance(c, pl.Series)]
    if schema is not None:
        candidates = [feature.name for feature in schema.features("items", Categorical) if feature.name in candidates]
    for name in candidates:
        flat = columns[name].explode().drop_nulls()
        labelled = flat.str.contains(f"{_escape(sign)}[0-9.]+$")
        if not len(flat) or not labelled.any():
            continue
        if not labelled.all():
            if schema is None:
                continue
            without = pl.element().str.contains(f"{_escape(sign)}[0-9.]+$").not_()
            row = int(columns[name].list.eval(without).list.any().arg_max() or 0)
            raise InputError(
                f"{where(row)}: column {name!r} holds items with labels and items without: expected "
                f"ITEM{sign}LABEL in all of them"
            )
        inner = pl.element().str.extract_groups(f"^(.*){_escape(sign)}([0-9.]+)$")
        columns[label] = columns[name].list.eval(inner.struct.field("2")).alias(label)
        columns[name] = columns[name].list.eval(inner.struct.field("1"))
        return


def _escape(text: str) -> str:
    return "".join(f"\\{sign}" if not sign.isalnum() and not sign.isspace() else sign for sign in text)


def parse_json_lists(text: pl.Series, where: Where, *, as_numbers: bool, refuse: bool) -> pl.Series | None:
    """Parses cells such as ``[1, 2, 3]``, each distinct string once. If one is not a list: None, or an error with
    ``refuse``."""
    read: dict[str | None, Any] = {None: None}
    for row, cell in enumerate(text.to_list()):
        if cell in read:
            continue
        try:
            values = json.loads(cell, parse_int=float if as_numbers else int)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, list):
            if not refuse:
                return None
            raise InputError(
                f"{where(row)}: column {text.name!r} holds {shorten(cell)}: expected a JSON list such as [1, 2, 3] "
                "(history and vectors in CSV), or cells such as 1|2|3 with list_separator (--list-separator)"
            )
        huge = next((v for v in values if isinstance(v, int) and not -(2**63) <= v < 2**64), None)
        if huge is not None:
            raise InputError(
                f"{where(row)}: column {text.name!r} holds the id {huge}: expected integers of 64 bits; write larger "
                "ones as text, in quotes"
            )
        read[cell] = values
    found = [read[cell] for cell in text.to_list()]
    kinds = {type(value) for values in read.values() for value in values or () if value is not None}
    if any(isinstance(v, int) and v >= 2**63 for values in read.values() for v in values or ()):
        inner: Any = pl.UInt64
    else:
        inner = pl.Float64 if as_numbers or float in kinds else pl.Int64 if kinds <= {int} else pl.String
    allowed: list[set[Any]] = [{float}] if as_numbers else [{int, float}, {str}, {bool}]
    if not any(kinds <= of_one_kind for of_one_kind in allowed):
        if not refuse:
            return None
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        expected = "numbers" if as_numbers else "only integers or only strings"
        raise InputError(f"{where(0)} and below: lists of column {text.name!r} hold {names}: expected {expected}")
    inner = pl.Boolean if kinds == {bool} else inner
    return pl.Series(text.name, found, dtype=pl.List(inner), strict=False)


def _to_arrow(series: pl.Series) -> pa.Array:
    return series.to_arrow(compat_level=pl.CompatLevel.oldest())
