"""Lists sorted by score, from which every metric of ranked lists is computed."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from hf_rerank.metrics.inputs import (
    check_k,
    check_option,
    find_fraction,
    rank_slots,
    read_cut_labels,
    read_lists,
    reduce_lists,
    refuse_fractions,
)


class RankedLists:
    """Lists sorted by score, with the arithmetic of every metric of ranked lists.

    Every metric method returns float64 [lists]; 0 for lists without a click (``auc``: nan for lists without both
    classes). The functions of ``hf_rerank.metrics`` with the same names define them.

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
        self.cut_labels, self.cut_lengths = read_cut_labels(cut_labels, self.shape)
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


def rank_clicks(scores: Any, labels: Any, mask: Any) -> RankedLists:
    ranked = RankedLists(scores, labels, mask)
    refuse_fractions(ranked.fraction)
    return ranked


def _divide(numerator: np.ndarray, denominator: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    """Divides; ``otherwise`` where the denominator is 0."""
    ratio = np.full(numerator.shape, otherwise)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
