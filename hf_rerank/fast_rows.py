"""The fast path for rows as servers send them: plain columns are converted and checked together.

One list has tens of columns of a few values each; converting and checking them one by one would take half of the time
of ranking the list. Plain columns are whole lists of integers or of finite numbers, with nothing missing. All others
are left to ``Lists``, which checks them column by column and reports errors; nothing is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hf_rerank.schema import Categorical, Dense, ListSchema

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
PLAIN_TYPES: dict[type, set[type]] = {Categorical: {int}, Dense: {int, float}}
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PlainColumns:
    """The columns that are plain.

    Attributes:
        lengths: int64 [B], number of items per list, at least 1; None if no item column is plain.
        columns: Feature -> all its values, list after list (items), or one per list (user), as integers or numbers.
    """

    lengths: np.ndarray | None
    columns: dict[str, pa.Array]


def read_plain_columns(rows: Rows, schema: ListSchema) -> PlainColumns:
    """Converts the plain columns among the features of items and user.

    Args:
        rows: Dictionaries of columns, one per list.
        schema: Describes the columns.
    """
    lengths = _count_items(rows, schema.items[0].name)
    columns: dict[str, pa.Array] = {}
    of_items = 0
    if lengths is not None:
        for kind in (Categorical, Dense):
            names = [feature.name for feature in schema.features("items", kind)]
            columns |= _convert(names, _join_items(rows, names, lengths), kind)
        of_items = len(columns)
    for kind in (Categorical, Dense):
        names = [feature.name for feature in schema.features("user", kind)]
        columns |= _convert(names, [row.get(name) for name in names for row in rows], kind)
    return PlainColumns(np.array(lengths, dtype=np.int64) if of_items else None, columns)


def _count_items(rows: Rows, name: str) -> list[int] | None:
    """Counts the items of each list in one column; None if in any row it is missing, not a list, or empty."""
    lengths = []
    for row in rows:
        values = _as_list(row.get(name))
        if not values:
            return None
        lengths.append(len(values))
    return lengths


def _as_list(values: Any) -> list[Any] | None:
    if type(values) is list:
        return values
    if hasattr(values, "tolist"):
        values = values.tolist()
    return values if type(values) is list else None


def _join_items(rows: Rows, names: Sequence[str], lengths: Sequence[int]) -> list[Any]:
    """Joins the values of all columns, one column after another; empty unless the lengths match."""
    joined: list[Any] = []
    for name in names:
        for row, length in zip(rows, lengths, strict=True):
            values = _as_list(row.get(name))
            if values is None or len(values) != length:
                return []
            joined += values
    return joined


def _convert(names: Sequence[str], joined: list[Any], kind: type) -> dict[str, pa.Array]:
    """Converts to column -> values if all are plain; otherwise returns nothing."""
    # The exact types: a bool is an int to isinstance, but not in an Arrow column.
    if not joined or not set(map(type, joined)) <= PLAIN_TYPES[kind]:
        return {}
    try:
        array = pa.array(joined)
    except (pa.ArrowInvalid, OverflowError):  # an integer too large for int64, or for float64 among floats
        return {}
    numbers = array.to_numpy()
    if not (numbers.min() >= 0 if kind is Categorical else (np.abs(numbers) <= LARGEST_FLOAT32).all()):
        return {}
    length = len(joined) // len(names)
    return {name: array.slice(place * length, length) for place, name in enumerate(names)}
