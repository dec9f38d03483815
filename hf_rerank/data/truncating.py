"""Which items stay of lists that are too long: those that stand first in the initial order."""

from __future__ import annotations

import numpy as np

from hf_rerank.data.report import PrepareReport


def first_items(
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
