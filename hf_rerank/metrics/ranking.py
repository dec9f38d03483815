"""Ranking metrics as pure functions over padded lists.

Conventions of every function:

- Inputs are arrays or torch tensors of one shape ``[..., list]``: the list is on the last axis, the leading axes are
  free. The arithmetic is numpy in float64; torch is never imported.
- ``mask`` (bool) is True at real items. Padding is never read, whatever its values.
- Items are ranked by falling score, ties in slot order. Ranks count from 1, positions from 0.
- A click is a label > 0. Only ``ndcg`` reads how large a label is; the others refuse fractional labels.
- ``reduction="mean"`` is the mean over lists, ``"none"`` one value per list.
- ``no_click="zero"`` counts a list without a click as 0, ``"skip"`` leaves it out.
- Wrong input raises an ``InputError`` that names the list and the slot.
"""

from __future__ import annotations

import math
import sys
from functools import cached_property
from typing import Any

import numpy as np

from hf_rerank.errors import InputError, suggestion

EXACT_AUC_PAIRS = 50_000_000
AUC_BUCKETS = 2**20
# Valid ranges of named inputs.
_BOUNDS = {
    "labels": (0.0, math.inf),
    "attraction": (0.0, 1.0),
    "positions": (0.0, math.inf),
    "propensities": (0.0, 1.0),
}


# ---------------------------------------------------------------------------------------------- the top of a list


def ndcg(
    scores: Any,
    labels: Any,
    *,
    mask: Any = None,
    k: int | None = None,
    reduction: str = "mean",
    no_click: str = "zero",
    gain: str = "exponential",
) -> float | np.ndarray:
    """NDCG: ``DCG@k / idealDCG@k`` with ``DCG@k = sum_(r <= k) gain(y_r) / log2(r + 1)``.

    ``y_r`` is the label at rank r, from 1. The ideal is the DCG of the labels of the *whole* list, highest first, also
    cut at k. Sources: Järvelin and Kekäläinen 2002; the exponential gain is that of Burges et al. 2005.

    Args:
        scores: [..., list], array or tensor with any leading axes; higher is better. Ties keep slot order.
        labels: [..., list], finite, >= 0; graded or fractional labels are allowed.
        mask: bool [..., list], True at real items; None: all are. Padding is never read and is ranked last.
        k: Number of ranks that count, at least 1. None: the whole list.
        reduction: ``"mean"`` over lists (nan without any), or ``"none"``: one value per list, [...].
        no_click: ``"zero"``: a list without a click counts as 0. ``"skip"``: it is left out (nan with ``"none"``).
        gain: ``"exponential"``, ``2^y - 1``, or ``"linear"``, ``y``, which suits grades above about 10. They agree on
            labels 0 and 1; neither overflows.

    Returns:
        A float, or float64 [...] with ``reduction="none"``, in [0, 1].

    Raises:
        InputError: Shapes that differ, an unknown option, or a real item whose score or label is not finite, or
            whose label is below 0.

    >>> ndcg([0.9, 0.5, 0.1], [0, 1, 0], k=2) == 1 / math.log2(2 + 1)
    True
    """
    ranked = RankedLists(scores, labels, mask)
    return ranked.reduce(ranked.ndcg(k, gain), no_click, reduction)


def average_precision(
    scores: Any,
    labels: Any,
    *,
    mask: Any = None,
    k: int | None = None,
    reduction: str = "mean",
    no_click: str = "zero",
    denominator: str = "clicks",
) -> float | np.ndarray:
    """Average precision, MAP when averaged: ``sum_(r <= k: click at r) precision@r``, divided by ``denominator``.

    Args:
        scores: [..., list], array or tensor with any leading axes; higher is better. Ties keep slot order.
        labels: [..., list], >= 0, whole numbers; a click is a label > 0. For fractional labels, such as a teacher's
            scores, pass ``labels > THRESHOLD``.
        mask: bool [..., list], True at real items; None: all are. Padding is never read and is ranked last.
        k: Number of ranks that count, at least 1. None: the whole list.
        reduction: ``"mean"`` over lists (nan without any), or ``"none"``: one value per list, [...].
        no_click: ``"zero"``: a list without a click counts as 0. ``"skip"``: it is left out (nan with ``"none"``).
        denominator: ``"clicks"``: ``min(k, clicks in the list)``. ``"hits"``: the clicks in the first k ranks, as in
            the public re-ranking toolkits; this does not penalize a click ranked below k.

    Returns:
        A float, or float64 [...] with ``reduction="none"``, in [0, 1].

    Raises:
        InputError: Shapes that differ, an unknown option, or a real item whose score or label is not finite, or
            whose label is below 0 or has a fraction.

    >>> average_precision([0.9, 0.5, 0.1], [1, 0, 1]) == (1 / 1 + 2 / 3) / 2
    True
    """
    ranked = _rank_clicks(scores, labels, mask)
    return ranked.reduce(ranked.average_precision(k, denominator), no_click, reduction)


def precision(
    scores: Any,
    labels: Any,
    *,
    mask: Any = None,
    k: int | None = None,
    reduction: str = "mean",
    no_click: str = "zero",
    denominator: str = "k",
) -> float | np.ndarray:
    """Precision: clicks in the first k ranks, divided by k.

    Args:
        scores: [..., list], array or tensor with any leading axes; higher is better. Ties keep slot order.
        labels: [..., list], >= 0, whole numbers; a click is a label > 0. For fractional labels, such as a teacher's
            scores, pass ``labels > THRESHOLD``.
        mask: bool [..., list], True at real items; None: all are. Padding is never read and is ranked last.
        k: Number of ranks that count, at least 1. None: the whole list, divided by its length.
        reduction: ``"mean"`` over lists (nan without any), or ``"none"``: one value per list, [...].
        no_click: ``"zero"``: a list without a click counts as 0. ``"skip"``: it is left out (nan with ``"none"``).
        denominator: ``"k"``, also for lists shorter than k, or ``"length"``: ``min(k, length)``.

    Returns:
        A float, or float64 [...] with ``reduction="none"``, in [0, 1].

    Raises:
        InputError: Shapes that differ, an unknown option, or a real item whose score or label is not finite, or
            whose label is below 0 or has a fraction.

    >>> precision([0.9, 0.5, 0.1], [0, 1, 0], k=2)
    0.5
    """
    ranked = _rank_clicks(scores, labels, mask)
    return ranked.reduce(ranked.precision(k, denominator), no_click, reduction)


def recall(
    scores: Any,
    labels: Any,
    *,
    mask: Any = None,
    k: int | None = None,
    reduction: str = "mean",
    no_click: str = "zero",
) -> float | np.ndarray:
    """Recall: clicks in the first k ranks, divided by the clicks of the list.

    Args:
        scores: [..., list], array or tensor with any leading axes; higher is better. Ties keep slot order.
        labels: [..., list], >= 0, whole numbers; a click is a label > 0. For fractional labels, such as a teacher's
            scores, pass ``labels > THRESHOLD``.
        mask: bool [..., list], True at real items; None: all are. Padding is never read and is ranked last.
        k: Number of ranks that count, at least 1. None: the whole list.
        reduction: ``"mean"`` over lists (nan without any), or ``"none"``: one value per list, [...].
        no_click: ``"zero"``: a list without a click counts as 0. ``"skip"``: it is left out (nan with ``"none"``).

    Returns:
        A float, or float64 [...] with ``reduction="none"``, in [0, 1].

    Raises:
        InputError: Shapes that differ, an unknown option, or a real item whose score or label is not finite, or
            whose label is below 0 or has a fraction.

    >>> recall([0.9, 0.5, 0.1], [0, 1, 1], k=2)
    0.5
    """
    ranked = _rank_clicks(scores, labels, mask)
    return ranked.reduce(ranked.recall(k), no_click, reduction)


def reciprocal_rank(
    scores: Any,
    labels: Any,
    *,
    mask: Any = None,
    k: int | None = None,
    reduction: str = "mean",
    no_click: str = "zero",
) -> float | np.ndarray:
    """Reciprocal rank, MRR when averaged: one over the rank, from 1, of the first click; 0 if that rank is above k.

    Args:
        scores: [..., list], array or tensor with any leading axes; higher is better. Ties keep slot order.
        labels: [..., list], >= 0, whole numbers; a click is a label > 0. For fractional labels, such as a teacher's
            scores, pass ``labels > THRESHOLD``.
        mask: bool [..., list], True at real items; None: all are. Padding is never read and is ranked last.
        k: Number of ranks that count, at least 1. None: the whole list.
        reduction: ``"mean"`` over lists (nan without any), or ``"none"``: one value per list, [...].
        no_click: ``"zero"``: a list without a click counts as 0. ``"skip"``: it is left out (nan with ``"none"``).

    Returns:
        A float, or float64 [...] with ``reduction="none"``, in [0, 1].

    Raises:
        InputError: Shapes that differ, an unknown option, or a real item whose score or label is not finite, or
            whose label is below 0 or has a fraction.

    >>> reciprocal_rank([0.9, 0.5, 0.1], [0, 1, 1])
    0.5
    """
    ranked = _rank_clicks(scores, labels, mask)
    return ranked.reduce(ranked.reciprocal_rank(k), no_click, reduction)


def clicks(
    scores: Any,
    labels: Any,
    *,
    mask: Any = None,
    k: int | None = None,
    reduction: str = "mean",
    no_click: str = "zero",
) -> float | np.ndarray:
    """Clicks in the first k ranks: one count per list.

    Args:
        scores: [..., list], array or tensor with any leading axes; higher is better. Ties keep slot order.
        labels: [..., list], >= 0, whole numbers; a click is a label > 0. For fractional labels, such as a teacher's
            scores, pass ``labels > THRESHOLD``.
        mask: bool [..., list], True at real items; None: all are. Padding is never read and is ranked last.
        k: Number of ranks that count, at least 1. None: the whole list.
        reduction: ``"mean"`` over lists (nan without any), or ``"none"``: one value per list, [...].
        no_click: ``"zero"``: a list without a click counts as 0. ``"skip"``: it is left out (nan with ``"none"``).

    Returns:
        A float, or float64 [...] with ``reduction="none"``, at least 0.

    Raises:
        InputError: Shapes that differ, an unknown option, or a real item whose score or label is not finite, or
            whose label is below 0 or has a fraction.

    >>> clicks([0.9, 0.5, 0.1], [0, 1, 1], k=2)
    1.0
    """
    ranked = _rank_clicks(scores, labels, mask)
    return ranked.reduce(ranked.clicks(k), no_click, reduction)


# ------------------------------------------------------------------------------------------------ area under curve


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
    _refuse_fractions(find_fraction(labels))
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
    ranked = _rank_clicks(scores, labels, mask)
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


# ------------------------------------------------------------------------------------- clicks with known ground truth


def expected_clicks(
    scores: Any, attraction: Any, examination: Any, *, mask: Any = None, reduction: str = "mean"
) -> float | np.ndarray:
    """Expected clicks of a ranking of simulated lists: ``sum_p examination[p] * attraction[item at position p]``.

    Positions p are counted from 0. The click model is position-based: an item is clicked if its position is examined
    and the item attracts.

    Args:
        scores: [..., list], array or tensor with any leading axes; higher is better. Ties keep slot order.
        attraction: [..., list], in [0, 1]: the probability of a click on an item that is examined.
        examination: [positions], in [0, 1]: the probability that each position is examined, from the top; at least as
            long as the longest list.
        mask: bool [..., list], True at real items; None: all are. Padding is never read.
        reduction: ``"mean"`` over lists (nan without any), or ``"none"``: one value per list, [...].

    Returns:
        A float, or float64 [...] with ``reduction="none"``; in clicks per list.

    Raises:
        InputError: Shapes that differ, an unknown option, a value out of range, or too few examination probabilities.

    >>> expected_clicks([0.9, 0.5], [0.2, 0.4], [1.0, 0.5]) == 1.0 * 0.2 + 0.5 * 0.4
    True
    """
    (scores, attraction), mask, shape = read_lists(mask, scores=scores, attraction=attraction)
    values = sum_expected_clicks(rank_slots(scores, mask), attraction, mask, read_examination(examination))
    return reduce_lists(values, reduction, shape)


def best_expected_clicks(
    attraction: Any, examination: Any, *, mask: Any = None, reduction: str = "mean"
) -> float | np.ndarray:
    """Expected clicks of the oracle order (by true attraction): the maximum if examination falls with position.

    Args:
        attraction: [..., list], in [0, 1]: the probability of a click on an item that is examined.
        examination: [positions], in [0, 1]: the probability that each position is examined, from the top.
        mask: bool [..., list], True at real items; None: all are.
        reduction: ``"mean"`` over lists (nan without any), or ``"none"``: one value per list, [...].

    Returns:
        A float, or float64 [...] with ``reduction="none"``; in clicks per list.

    Raises:
        InputError: As for ``expected_clicks``.
    """
    return expected_clicks(attraction, attraction, examination, mask=mask, reduction=reduction)


def sum_expected_clicks(
    order: np.ndarray, attraction: np.ndarray, mask: np.ndarray, examination: np.ndarray
) -> np.ndarray:
    """Computes expected clicks, float64 [lists], of arrays that ``read_lists`` returned.

    Args:
        order: int64 [lists, list], the slot at each position.
        attraction: float64 [lists, list], by slot, 0 at padding.
        mask: bool [lists, list].
        examination: float64 [positions].
    """
    longest = int(mask.sum(axis=-1).max(initial=0))
    if len(examination) < longest:
        raise InputError(
            f"examination has {len(examination)} positions, but the longest list has {longest} items: "
            "give one probability per position"
        )
    return np.take_along_axis(attraction, order, axis=-1)[:, :longest] @ examination[:longest]


# ----------------------------------------------------------------------------------------------- reading and ranking


class RankedLists:
    """Lists sorted by score, with the arithmetic of every metric of this module.

    Every metric method returns float64 [lists]; 0 for lists without a click (``auc``: nan for lists without both
    classes). The functions of this module with the same names define them.

    Args:
        scores: [..., list], array or tensor; higher is better. Ties keep slot order.
        labels: [..., list], finite, >= 0.
        mask: bool [..., list], True at real items; None: all are.
        cut_labels: ``[..., cut items]``, the labels of items that were cut from the list before it was ranked, below 0
            at padding. They have no rank, but count among the labels and clicks of the whole list: in the ideal of
            NDCG, in the denominators of MAP and recall, and in whether a list has a click.
        click_above: A click is a label above this number, at least 0.

    Attributes:
        shape: the leading axes of the input; their product is the number of lists.
        lengths: int64 [lists], the number of real items.
        order: int64 [lists, list], the slot at each position, best first, padding last.
        scores, labels: float64 [lists, list], in that order; 0 at padding.
        cut_labels: float64 [lists, cut items]; 0 at padding.
        cut_lengths: int64 [lists], the number of items that were cut.
    """

    def __init__(
        self, scores: Any, labels: Any, mask: Any = None, *, cut_labels: Any = None, click_above: float = 0.0
    ) -> None:
        (scores, labels), mask, self.shape = read_lists(mask, scores=scores, labels=labels)
        self.click_above = click_above
        self.cut_labels, self.cut_lengths = _read_cut_labels(cut_labels, self.shape)
        self.lengths = mask.sum(axis=-1)
        self.order = rank_slots(scores, mask)
        self.scores = np.take_along_axis(scores, self.order, axis=-1)
        self.labels = np.take_along_axis(labels, self.order, axis=-1)

    @cached_property
    def hits(self) -> np.ndarray:
        """bool [lists, list]: whether the item at each position was clicked."""
        return self.labels > self.click_above

    @cached_property
    def cut_clicks(self) -> np.ndarray:
        """int64 [lists]: the number of clicks among the items that were cut."""
        return (self.cut_labels > self.click_above).sum(axis=-1)

    @cached_property
    def clicked(self) -> np.ndarray:
        """int64 [lists]: the number of clicks in each whole list, on items that were cut too."""
        return self.hits.sum(axis=-1) + self.cut_clicks

    @cached_property
    def ideal_labels(self) -> np.ndarray:
        """float64 [lists, list and cut items]: the labels of each whole list, highest first."""
        return -np.sort(-np.concatenate([self.labels, self.cut_labels], axis=-1), axis=-1)

    @property
    def fraction(self) -> float | None:
        """A label that is not a whole number; None if all are."""
        return find_fraction(self.labels)

    def ndcg(self, k: int | None, gain: str) -> np.ndarray:
        k = check_k(k)
        check_option("gain", gain, ("exponential", "linear"))
        gained, ideal = self.labels[:, :k], self.ideal_labels[:, :k]
        # Divided by a constant per list, which NDCG cancels, so that no grade overflows: 2^m, m the highest label of
        # the list, or m itself.
        highest = self.ideal_labels.max(axis=-1, initial=0.0, keepdims=True)
        if gain == "exponential":
            gained, ideal = (-np.exp2(y - highest) * np.expm1(-math.log(2.0) * y) for y in (gained, ideal))
        else:
            gained, ideal = (y / np.where(highest > 0, highest, 1.0) for y in (gained, ideal))
        discount = 1.0 / np.log2(np.arange(ideal.shape[-1]) + 2.0)
        return _divide(gained @ discount[: gained.shape[-1]], ideal @ discount)

    def average_precision(self, k: int | None, denominator: str) -> np.ndarray:
        k = check_k(k)
        check_option("denominator", denominator, ("clicks", "hits"))
        hits = self.hits[:, :k]
        found = np.cumsum(hits, axis=-1)
        precision_at_hits = np.where(hits, found / np.arange(1, hits.shape[-1] + 1), 0.0)
        if denominator == "hits":
            return _divide(precision_at_hits.sum(axis=-1), hits.sum(axis=-1))
        return _divide(precision_at_hits.sum(axis=-1), self.clicked if k is None else np.minimum(k, self.clicked))

    def precision(self, k: int | None, denominator: str) -> np.ndarray:
        k = check_k(k)
        check_option("denominator", denominator, ("k", "length"))
        if k is None:
            counted = self.lengths
        else:
            counted = np.minimum(k, self.lengths) if denominator == "length" else np.full_like(self.lengths, k)
        return _divide(self.clicks(k), counted)

    def recall(self, k: int | None) -> np.ndarray:
        return _divide(self.clicks(k), self.clicked)

    def reciprocal_rank(self, k: int | None) -> np.ndarray:
        hits = self.hits[:, : check_k(k)]
        return (hits / np.arange(1, hits.shape[-1] + 1)).max(axis=-1, initial=0.0)

    def clicks(self, k: int | None) -> np.ndarray:
        return self.hits[:, : check_k(k)].sum(axis=-1).astype(np.float64)

    def auc(self) -> np.ndarray:
        place = np.arange(self.labels.shape[-1])
        # A run of equal scores shares the mean of its first and its last position. Padding is not part of a run.
        ends = place[1:] == self.lengths[:, None]
        starts = np.ones(self.labels.shape, dtype=bool)
        starts[:, 1:] = (self.scores[:, 1:] != self.scores[:, :-1]) | ends
        stops = np.ones_like(starts)
        stops[:, :-1] = starts[:, 1:]
        first = np.maximum.accumulate(np.where(starts, place, 0), axis=-1)
        last = np.minimum.accumulate(np.where(stops, place, len(place))[:, ::-1], axis=-1)[:, ::-1]
        midrank_from_below = self.lengths[:, None] - (first + last) / 2.0
        clicked = self.hits.sum(axis=-1)  # items that were cut have no score
        won = np.where(self.hits, midrank_from_below, 0.0).sum(axis=-1) - clicked * (clicked + 1) / 2.0
        return _divide(won, clicked * (self.lengths - clicked), otherwise=math.nan)

    def reduce(self, values: np.ndarray, no_click: str, reduction: str) -> float | np.ndarray:
        """Applies ``no_click`` and ``reduction`` to one value per list."""
        check_option("no_click", no_click, ("zero", "skip"))
        check_option("reduction", reduction, ("mean", "none"))
        if no_click == "skip":
            if reduction == "mean":
                return reduce_lists(values[self.clicked > 0], reduction, self.shape)
            values = np.where(self.clicked > 0, values, np.nan)
        return reduce_lists(values, reduction, self.shape)


def rank_slots(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sorts slots by falling score, ties in slot order, padding last: the slot at each position, [lists, list]."""
    return np.argsort(np.where(mask, -scores, np.inf), axis=-1, kind="stable")


def reduce_lists(values: np.ndarray, reduction: str, shape: tuple[int, ...]) -> float | np.ndarray:
    """``"mean"``: the mean over lists, nan over none. ``"none"``: the values with the leading axes of the input."""
    check_option("reduction", reduction, ("mean", "none"))
    if reduction == "none":
        return values.reshape(shape)
    return float(values.mean()) if values.size else math.nan


def read_lists(mask: Any, **inputs: Any) -> tuple[list[np.ndarray], np.ndarray, tuple[int, ...]]:
    """Brings named inputs of one shape ``[..., list]`` to checked float64 ``[lists, list]``, with 0 at padding.

    Args:
        mask: bool, the shape of the inputs, or None.
        inputs: array-likes or tensors, by the name that error messages use and ``_BOUNDS`` may list.

    Returns:
        The arrays in the order given, the mask as bool [lists, list], and the leading axes.
    """
    arrays = {name: _read_array(name, value) for name, value in inputs.items()}
    first = next(iter(arrays))
    shape = arrays[first].shape
    if mask is None:
        mask = np.ones(shape, dtype=bool)
    else:
        mask = _read_array("mask", mask)
        if mask.dtype != bool:
            raise InputError(f"mask must be bool, True = a real item; got {mask.dtype}: give mask != 0")
    for name, array in {**arrays, "mask": mask}.items():
        if array.shape != shape:
            raise InputError(f"{name} must have the shape of {first}, {list(shape)}; got {list(array.shape)}")
    *leading, width = shape
    flat_shape = (math.prod(leading), width)
    mask = mask.reshape(flat_shape)
    read = []
    for name, array in arrays.items():
        array = array.reshape(flat_shape).astype(np.float64)
        low, high = _BOUNDS.get(name, (-math.inf, math.inf))
        bad = mask & ~(np.isfinite(array) & (array >= low) & (array <= high))
        if bad.any():
            raise InputError(
                f"{name} of real items must be finite{f' and in [{low:g}, {high:g}]' if name in _BOUNDS else ''}; "
                f"{_describe_first(array, bad, leading)}. If that is padding, pass mask, True at real items"
            )
        read.append(np.where(mask, array, 0.0))
    return read, mask, tuple(leading)


def read_examination(examination: Any) -> np.ndarray:
    """Checks the examination probabilities by position, from the top; float64 [positions]."""
    array = _read_array("examination", examination).astype(np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array <= 1)).all():
        raise InputError("examination must be one row of probabilities in [0, 1], one per position, from 0")
    return array


def check_k(k: int | None) -> int | None:
    """Checks k: an int >= 1, or None."""
    if k is None:
        return None
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k must be a whole number >= 1, or None for the whole list; got {k!r}")
    return int(k)


def check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses an option that is not one of ``known``."""
    if value not in known:
        raise InputError(
            f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}{suggestion(str(value), known)}"
        )


def find_fraction(labels: np.ndarray) -> float | None:
    """Finds a label that is not a whole number; None if all are."""
    fractional = labels != np.floor(labels)
    return float(labels[fractional][0]) if fractional.any() else None


def _rank_clicks(scores: Any, labels: Any, mask: Any) -> RankedLists:
    ranked = RankedLists(scores, labels, mask)
    _refuse_fractions(ranked.fraction)
    return ranked


def _refuse_fractions(fraction: float | None) -> None:
    if fraction is not None:
        raise InputError(
            f"labels must be whole numbers here, a click being a label > 0; found {fraction:g}: give labels > "
            "THRESHOLD, or measure fractional labels with ndcg"
        )


def _read_cut_labels(cut_labels: Any, leading: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Reads the labels of items that were cut, float64 [lists, cut items], 0 at padding, and their number per list."""
    if cut_labels is None:
        cut_labels = np.zeros((*leading, 0))
    array = _read_array("cut_labels", cut_labels).astype(np.float64)
    if array.shape[:-1] != leading:
        raise InputError(
            f"cut_labels must have the leading axes of scores, {list(leading)}; got {list(array.shape[:-1])}"
        )
    array = array.reshape(math.prod(leading), array.shape[-1])
    if not np.isfinite(array).all():
        raise InputError("cut_labels must be finite, at least 0, and below 0 at padding")
    return np.maximum(array, 0.0), (array >= 0).sum(axis=-1)


def _read_array(name: str, value: Any) -> np.ndarray:
    torch = sys.modules.get("torch")  # where torch was never imported, nothing can be a tensor
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # numpy has no bfloat16
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name} must be lists of one width: pad them and pass mask ({error})") from error
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be numbers of shape [..., list]; got {array.dtype}, shape {list(array.shape)}")
    return array


def _describe_first(array: np.ndarray, bad: np.ndarray, leading: list[int]) -> str:
    """``"found nan in list 3, slot 7"``: the first bad value, by the caller's axes."""
    row, slot = (int(i) for i in np.argwhere(bad)[0])
    index = [int(i) for i in np.unravel_index(row, leading)] if leading else []
    place = f"list {index[0] if len(index) == 1 else tuple(index)}, " if index else ""
    return f"found {array[row, slot]} in {place}slot {slot}"


def _divide(numerator: np.ndarray, denominator: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    """Divides; ``otherwise`` where the denominator is 0."""
    ratio = np.full(numerator.shape, otherwise)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
