"""Truncates lists that are too long to the first items of the initial order.

Metrics need all logged labels, so the labels of the items that are cut are kept in a separate column.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from hf_rerank.data.report import PrepareReport


def cut_label_column(label: str) -> str:
    """The default name of the column with the labels of cut items (``cut_label`` in the schema)."""
    return f"{label}_cut"


def make_sequences(values: np.ndarray, lengths: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """A column of sequences, such as labels, from the concatenated values of all lists.

    Args:
        values: [N], the values of all lists.
        lengths: int64 [B], the number of values of each list.
        kind: Arrow type of the column.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values).cast(kind.value_type))


def choose_first_items(
    lengths: np.ndarray, positions: np.ndarray, clicked: np.ndarray, longest: int, report: PrepareReport
) -> np.ndarray | None:
    """Chooses the items that are kept, at the first positions of the initial order; their slots keep their order.

    Args:
        lengths: int64 [B], the number of items of each list.
        positions: int64 [N], the position of each item in the initial order, from 0, concatenated over the lists.
        clicked: bool [N], whether each item was clicked.
        longest: Maximum number of items per list.
        report: Counts the lists that are cut, and those of them that lose all their clicks.

    Returns:
        bool [N], whether each item is kept; None if no list is too long.
    """
    longer = lengths > longest
    if not longer.any():
        return None
    of_list = np.repeat(np.arange(len(lengths)), lengths)
    kept = positions < longest
    before = np.bincount(of_list[clicked], minlength=len(lengths))
    after = np.bincount(of_list[clicked & kept], minlength=len(lengths))
    report.cut(int(longer.sum()), int(((before > 0) & (after == 0)).sum()))
    return kept
