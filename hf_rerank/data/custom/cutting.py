"""Cuts lists that are too long, and keeps the labels of the items that were cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hf_rerank.schema import ListSchema
from hf_rerank.validation import Lists


@dataclass(frozen=True)
class CutCounts:
    """What was cut.

    Attributes:
        lists: Lists that were too long.
        items: Items that were cut.
        clicks: Of these, items with a label above 0.
        lost_clicks: Lists that had clicks, and none after the cut.
    """

    lists: int
    items: int
    clicks: int
    lost_clicks: int


def cut_column(schema: ListSchema) -> str:
    """The column with the labels of the items that were cut."""
    return f"{schema.label}_cut"


def cut_lists(table: pa.Table, schema: ListSchema) -> tuple[pa.Table, CutCounts]:
    """Lists of at most ``schema.max_list_length`` items: those that stand first in the initial order.

    Args:
        table: Lists with labels. Columns that are as long as the items of their list are cut with them.
        schema: Says which column is what.

    Returns:
        The lists with the column ``cut_column`` of lists of labels, empty where nothing was cut; and the counts.
    """
    lists = Lists.from_arrow(table, schema, with_labels=True)
    assert lists.labels is not None
    lengths = lists.lengths
    kept = lists.positions < schema.max_list_length
    of_list = np.repeat(np.arange(len(lists)), lengths)
    clicked = lists.labels > 0
    before = np.bincount(of_list[clicked], minlength=len(lists))
    after = np.bincount(of_list[clicked & kept], minlength=len(lists))
    new_lengths = np.bincount(of_list[kept], minlength=len(lists))
    longer = new_lengths < lengths
    history = {feature.name for feature in schema.history}
    for number, field in enumerate(table.schema):
        if not pa.types.is_list(field.type) or field.name in history:
            continue
        column = table.column(number).combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        own = np.asarray(column.value_lengths().fill_null(-1))
        if np.array_equal(own, lengths) and longer.any():
            cut = _lists(column.flatten().filter(pa.array(kept)), new_lengths).cast(field.type)
            table = table.set_column(number, field, cut)
    labels = _lists(pa.array(lists.labels[~kept].astype(np.float64)), lengths - new_lengths)
    counts = CutCounts(
        int(longer.sum()), int((~kept).sum()), int((clicked & ~kept).sum()), int(((before > 0) & (after == 0)).sum())
    )
    return table.append_column(pa.field(cut_column(schema), pa.list_(pa.float64())), labels), counts


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
