"""The area under the ROC curve: pooled over all items, within lists, and in constant memory.

Conventions are those of ``hf_rerank.metrics.ranking``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hf_rerank.metrics.inputs import check_option, find_fraction, read_lists, refuse_fractions
from hf_rerank.metrics.ranked_lists import rank_clicks

EXACT_AUC_PAIRS = 50_000_000
AUC_BUCKETS = 2**20


def auc(scores: Any, labels: Any, *, mask: Any = None, exact_pairs: int = EXACT_AUC_PAIRS) -> float:
    """Area under the ROC curve, pooled over the real items of all lists.

    The fraction of (clicked, not clicked) pairs, from the same or from different lists, in which the clicked item has
    the higher score; equal scores count one half. Scores of different lists are compared: pass probabilities. Under
    shift-invariant losses, scores of different lists are not comparable; use ``grouped_auc``.

    Args:
        scores: [..., list], array or tensor with any leading axes; higher is better.
        labels: [..., list], >= 0, whole numbers; a click is a label > 0. For fractional labels, such as a teacher's
            scores, pass ``labels > THRESHOLD``.
        mask: bool [..., list], True at real items; None: all are. Padding is never read.
        exact_pairs: Up to this many real items the AUC is exact. Beyond, an ``AUCHistogram`` of equal buckets over the
            range of the scores is used, whose error is at most half the fraction of pairs that share a bucket.

    Returns:
        A float in [0, 1]; nan without a click, or without an item that is not clicked.

    Raises:
        InputError: Shapes that differ, or a real item with a score or label that is not finite, or a label below 0 or
            with a fraction.

    >>> auc([[0.9, 0.5], [0.7, 0.1]], [[1, 0], [0, 0]])
    1.0
    """
    (scores, labels), mask, _ = read_lists(mask, scores=scores, labels=labels)
    refuse_fractions(find_fraction(labels))
    scores, clicked = scores[mask], labels[mask] > 0
    if scores.size <= exact_pairs:
        return exact_auc(scores, clicked)
    low, high = scores.min(), scores.max()
    histogram = AUCHistogram()
    histogram.add((scores - low) / (high - low) if high > low else np.zeros_like(scores), clicked)
    return histogram.auc()


def grouped_auc(
    scores: Any, labels: Any, *, mask: Any = None, reduction: str = "mean", weighting: str = "lists"
) -> float | np.ndarray:
    """GAUC: the AUC within each list, averaged over the lists with both a click and an item without one.

    Shifting or scaling the scores of a list does not change it: the AUC to report for listwise losses. Source: Zhou et
    al. 2018, who group by user and weight by impressions.

    Args:
        scores: [..., list], array or tensor with any leading axes; higher is better. Equal scores count one half.
        labels: [..., list], >= 0, whole numbers; a click is a label > 0. For fractional labels, such as a teacher's
            scores, pass ``labels > THRESHOLD``.
        mask: bool [..., list], True at real items; None: all are. Padding is never read.
        reduction: ``"mean"`` (nan if no list has both classes), or ``"none"``: one value per list, [...], nan for the
            lists left out.
        weighting: ``"lists"``: each list counts the same. ``"items"``: by its number of real items.

    Returns:
        A float in [0, 1], or float64 [...] with ``reduction="none"``.

    Raises:
        InputError: Shapes that differ, an unknown option, or a real item whose score or label is not finite, or
            whose label is below 0 or has a fraction.

    >>> grouped_auc([[0.9, 0.5], [0.2, 0.4]], [[1, 0], [1, 0]])
    0.5
    """
    check_option("weighting", weighting, ("lists", "items"))
    check_option("reduction", reduction, ("mean", "none"))
    ranked = rank_clicks(scores, labels, mask)
    values = ranked.auc()
    if reduction == "none":
        return values.reshape(ranked.shape)
    kept = ~np.isnan(values)
    weights = ranked.lengths[kept] if weighting == "items" else np.ones(kept.sum())
    return float(np.average(values[kept], weights=weights)) if kept.any() else math.nan


def slot_order_auc(labels: Any, *, mask: Any = None) -> float:
    """Pooled AUC of the slot order alone: every real item scored by how early it is in its row.

    A check of the data. Close to 1 where a file lists the clicked items first: then every tie, and every model that
    sees the slot, leaks the labels.

    Args:
        labels: [..., list], >= 0, whole numbers; a click is a label > 0.
        mask: bool [..., list], True at real items; None: all are.

    Returns:
        A float in [0, 1]; nan without a click, or without an item that is not clicked.

    Raises:
        InputError: Shapes that differ, or a label that is not finite, below 0 or with a fraction.
    """
    (labels,), mask, _ = read_lists(mask, labels=labels)
    return auc(-np.cumsum(mask, axis=-1), labels, mask=mask)


def exact_auc(scores: np.ndarray, clicked: np.ndarray) -> float:
    """Computes the AUC of flat arrays by counting; equal scores count one half (midranks). nan for one class."""
    positives, negatives = np.sort(scores[clicked]), np.sort(scores[~clicked])
    if not positives.size or not negatives.size:
        return math.nan
    won = np.searchsorted(negatives, positives, side="left").sum()
    won_or_tied = np.searchsorted(negatives, positives, side="right").sum()
    return float(won + won_or_tied) / (2.0 * positives.size * negatives.size)


class AUCHistogram:
    """AUC in constant memory: counts of clicked and other items in equal buckets of [0, 1].

    Scores must be mapped to [0, 1] by an increasing function, which leaves the AUC as it is. A (clicked, not
    clicked) pair that shares a bucket counts one half. If its scores are equal this is exact, otherwise it is
    wrong by one half at most, so the total error is at most half the share of such pairs: ``error_bound()``.
    """

    def __init__(self, buckets: int = AUC_BUCKETS) -> None:
        self.clicked = np.zeros(buckets, dtype=np.int64)
        self.other = np.zeros(buckets, dtype=np.int64)

    def add(self, fractions: np.ndarray, clicked: np.ndarray) -> None:
        """Counts items. ``fractions`` (float, in [0, 1]) and ``clicked`` (bool) are flat arrays of one length."""
        buckets = len(self.clicked)
        bucket = np.minimum((fractions * buckets).astype(np.int64), buckets - 1)  # 1.0 belongs to the last bucket
        self.clicked += np.bincount(bucket[clicked], minlength=buckets)
        self.other += np.bincount(bucket[~clicked], minlength=buckets)

    def merge(self, other: AUCHistogram) -> None:
        """Adds the counts of another histogram with the same number of buckets."""
        self.clicked += other.clicked
        self.other += other.other

    def auc(self) -> float:
        """Computes the AUC, exact to ``error_bound()``; nan for one class."""
        others_below = np.cumsum(self.other) - self.other
        return self._share_of_pairs(others_below + 0.5 * self.other)

    def error_bound(self) -> float:
        """Computes half the fraction of (clicked, not clicked) pairs that share a bucket; nan for one class."""
        return self._share_of_pairs(0.5 * self.other)

    def _share_of_pairs(self, per_click: np.ndarray) -> float:
        pairs = float(self.clicked.sum()) * float(self.other.sum())
        return float(self.clicked @ per_click) / pairs if pairs else math.nan
