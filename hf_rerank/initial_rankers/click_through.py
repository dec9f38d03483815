"""Click-through rates of the values of a categorical feature, as a number that trees can split on.

A rate that counts a list's own clicks would leak them: training lists get rates from the other parts only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_rerank.initial_rankers.ranker_train import PARTS

# Smoothing: the mean rate counts as much as this many observations of a value.
PRIOR_ITEMS = 20


class ClickThroughCounts:
    """Counts how often each value was shown and clicked, part by part.

    Args:
        num_rows: Rows of the feature's table; the unknown value has a row, and therefore a rate.
    """

    def __init__(self, num_rows: int) -> None:
        self.shown = np.zeros((PARTS, num_rows), dtype=np.int32)
        self.clicked = np.zeros((PARTS, num_rows), dtype=np.int32)

    def add(self, rows: np.ndarray, clicked: np.ndarray, parts: np.ndarray) -> None:
        """Counts items.

        Args:
            rows: int64 [N], table rows of the items' values.
            clicked: bool [N], whether each item was clicked.
            parts: int64 [N], the part of each item's list.
        """
        np.add.at(self.shown, (parts, rows), 1)
        np.add.at(self.clicked, (parts[clicked], rows[clicked]), 1)

    def compute_rates(self, parts: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Computes ``(clicks + PRIOR_ITEMS * mean rate) / (shown + PRIOR_ITEMS)`` over these parts, float32 [rows]."""
        counted = slice(None) if parts is None else np.asarray(parts)
        return _smooth(self.clicked[counted].sum(0), self.shown[counted].sum(0))

    def compute_out_of_fold(self, parts: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Computes rates out of fold, float32 [PARTS, rows]: row p leaves out part p, in the mean rate too."""
        counted = slice(None) if parts is None else np.asarray(parts)
        clicked, shown = self.clicked[counted].sum(0), self.shown[counted].sum(0)
        inside = np.isin(np.arange(PARTS), np.arange(PARTS)[counted])
        return np.stack(
            [_smooth(clicked - self.clicked[p] * inside[p], shown - self.shown[p] * inside[p]) for p in range(PARTS)]
        )


def _smooth(clicked: np.ndarray, shown: np.ndarray) -> np.ndarray:
    mean = clicked.sum() / max(shown.sum(), 1)
    return ((clicked + PRIOR_ITEMS * mean) / (shown + PRIOR_ITEMS)).astype(np.float32)
