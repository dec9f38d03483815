"""Converts Python lists of items and data frames to one dict of columns per list, and results to data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from hf_rerank.errors import InputError, show, suggestion
from hf_rerank.schema import ListSchema, Vector
from hf_rerank.validation import is_deep

# Keys of lists of dicts, one per item or per history item.
ITEMS, HISTORY = "items", "history"


def convert_to_columns(
    lists: Sequence[Mapping[str, Any]], schema: ListSchema, first: int = 0
) -> Sequence[Mapping[str, Any]]:
    """Converts lists of item dicts to dicts of columns.

    ``{"items": [{"price": 3}, ...], "gender": 1}`` becomes ``{"price": [3, ...], "gender": 1}``. A history can be
    given in the same way, under ``"history"``. Lists that are already dicts of columns are returned unchanged.

    Args:
        lists: One dict per list.
        schema: Describes the columns of the items and the history.
        first: Number of the first list, for messages.

    Raises:
        InputError: A list has no items, an item is not a dict, or lacks a key that other items have.
    """
    if not isinstance(lists, Sequence) or not any(holds_items(row, schema) for row in lists[:1]):
        return lists
    return [_convert_list(row, number, schema) for number, row in enumerate(lists, start=first)]


def holds_items(row: Any, schema: ListSchema) -> bool:
    """Whether a list is given as item dicts: it has the key ``items``, which is not a column of the schema."""
    if not isinstance(row, Mapping) or ITEMS not in row or schema.items[0].name in row:
        return False
    return ITEMS not in {feature.name for feature in (*schema.items, *schema.user, *schema.history)}


def _convert_list(row: Mapping[str, Any], number: int, schema: ListSchema) -> dict[str, Any]:
    if not isinstance(row, Mapping) or ITEMS not in row:
        raise InputError(f"list {number} has no {ITEMS!r}, which other lists have: give all lists in the same form")
    if isinstance(row[ITEMS], Sequence) and not row[ITEMS]:
        raise InputError(f"list {number} is empty: expected at least one item; leave it out")
    of_list = {name: value for name, value in row.items() if name not in (ITEMS, HISTORY)}
    of_items = _collect_columns(row[ITEMS], f"item {{}} of list {number}")
    history: dict[str, Any] = {}
    if HISTORY in row:
        history = {feature.name: [] for feature in schema.history}
        history |= _collect_columns(row[HISTORY], f"history item {{}} of list {number}")
    for one, first, other, second in (
        ("the list", of_list, "items", of_items),
        ("the list", of_list, "history", history),
        ("items", of_items, "history", history),
    ):
        if twice := first.keys() & second.keys():
            raise InputError(
                f"list {number} has the key {min(twice)!r} in {one} and in {other}: give each column its own name"
            )
    return {**of_list, **of_items, **history}


def _collect_columns(entries: Any, where: str) -> dict[str, list[Any]]:
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise InputError(f"{where.format(0)} is in a {type(entries).__name__}: expected a list of dicts")
    if not entries:
        return {}
    columns: dict[str, list[Any]] = {name: [] for name in entries[0]} if isinstance(entries[0], Mapping) else {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise InputError(f"{where.format(index)} is a {type(entry).__name__}: expected a dict")
        odd = next((name for name in (*columns, *entry) if name not in columns or name not in entry), None)
        if odd is not None:
            has, lacks = (0, index) if odd in columns else (index, 0)
            raise InputError(
                f"{where.format(lacks)} lacks {show(odd)}, which {where.format(has)} has: give every item the same "
                f"keys, None where a value is missing{suggestion(odd, entries[lacks])}"
            )
        for name, values in columns.items():
            values.append(entry[name])
    return columns


def is_frame(lists: Any) -> bool:
    """Whether ``lists`` is a pandas or Polars data frame; imports neither library."""
    return type(lists).__name__ == "DataFrame" and type(lists).__module__.split(".")[0] in ("pandas", "polars")


def convert_frame(frame: Any, schema: ListSchema) -> list[dict[str, Any]]:
    """The lists of a data frame, as one dict of columns per list.

    If the cells of the item columns are sequences, a row is a list. Otherwise a row is an item, and the rows with the
    same ``list_id`` make a list, in row order; lists come in the order in which they first appear.

    Args:
        frame: A pandas or Polars ``DataFrame``. In pandas, NaN is a missing value, and the index is not read.
        schema: Describes the columns of the items and of the list.

    Raises:
        InputError: A column is missing, a row per item has no ``list_id``, or a user column differs within a list.
    """
    import polars as pl

    for name, column in () if isinstance(frame, pl.DataFrame) else frame.items():
        if column.dtype == object and is_deep(column):
            raise InputError(f"column {name!r} of the data frame holds lists within lists: expected one list per cell")
    try:
        table = frame if isinstance(frame, pl.DataFrame) else pl.from_pandas(frame)
    except (pa.ArrowException, pl.exceptions.PolarsError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"the data frame has a column of mixed types: {error}; convert it to one type") from None
    first = schema.items[0].name
    if first not in table.columns:
        raise InputError(
            f"the data frame has no column {first!r}; its columns: {', '.join(map(str, table.columns))}"
            f"{suggestion(first, table.columns)}"
        )
    table = table.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    cell: Any = table.schema[first]
    if isinstance(schema.items[0], Vector):  # a sequence already for one item
        cell = getattr(cell, "inner", None)
    if isinstance(cell, pl.List | pl.Array):
        return table.to_dicts()
    list_id = schema.list_id
    if list_id is None or list_id not in table.columns:
        raise InputError(
            "a data frame with one row per item needs the column that says which list an item belongs to: "
            + ("name it as list_id in the schema" if list_id is None else f"{list_id!r}, the schema's list_id")
        )
    per_list = [feature.name for feature in (*schema.user, *schema.history) if feature.name in table.columns]
    groups = table.group_by(list_id, maintain_order=True)
    for name in per_list:
        differing = groups.agg(pl.col(name).n_unique()).filter(pl.col(name) > 1)
        if len(differing):
            raise InputError(
                f"column {name!r} of the data frame differs within list {differing[list_id][0]}: expected one value "
                "per list; name it among the items of the schema, or make it constant"
            )
    columns = [name for name in table.columns if name != list_id]
    return groups.agg(pl.col(name).first() if name in per_list else pl.col(name) for name in columns).to_dicts()


def make_results_frame(results: Sequence[Mapping[str, Any]], frame: Any) -> Any:
    """Converts ranked lists to a data frame of the same library as ``frame``: one row per ranked item, best first.

    Its columns are those of a result: ``list_id``, ``order``, ``scores``, ``ids``.
    """
    import polars as pl

    columns: dict[str, list[Any]] = {"list_id": [], "order": [], "scores": [], "ids": []}
    for result in results:
        columns["list_id"] += [result["list_id"]] * len(result["order"])
        for name in ("order", "scores", "ids"):
            columns[name] += result[name]
    ranked = pl.DataFrame(columns, strict=False)
    return ranked if isinstance(frame, pl.DataFrame) else ranked.to_pandas(use_pyarrow_extension_array=False)
