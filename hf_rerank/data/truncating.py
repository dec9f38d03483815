"""Which items stay of lists that are too long, those that stand first in the initial order; and the labels of others.

Metrics need all logged labels, so those of the items that are cut are kept in a column of their own.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from hf_rerank.data.report import PrepareReport


def cut_label_column(label: str) -> str:
    """The column with the labels of the items that were cut, which the schema names as ``cut_label``."""
    return f"{label}_cut"


def make_sequences(values: np.ndarray, lengths: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """A column of sequences, such as of labels, from the values of all lists one after another.

    Args:
        values: [N].
        lengths: int64 [B].
        kind: Of the column.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values).cast(kind.value_type))


def choose_first_items(
    lengths: np.ndarray, positions: np.ndarray, clicked: np.ndarray, longest: int, report: PrepareReport
) -> np.ndarray | None:
    """Which items stay; slots keep their order. What is cut is counted in the report.

    Args:
        lengths: int64 [B], items of each list.
        positions: int64 [N], the position of each item in the initial order, from 0; the lists one after another.
        clicked: bool [N].
        longest: Items per list at most.
        report: Counts the lists that are cut, and those of them that lose all their clicks.

    Returns:
        bool [N]; None if no list is too long.
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
