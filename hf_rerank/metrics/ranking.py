"""Metrics of the top of a list, as pure functions over padded lists.

Conventions of every function of ``hf_rerank.metrics``:

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

from typing import Any

import numpy as np

from hf_rerank.metrics.ranked_lists import RankedLists, rank_clicks


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

    >>> round(ndcg([0.9, 0.5, 0.1], [0, 1, 0], k=2), 4)  # 1 / log2(2 + 1)
    0.6309
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
    ranked = rank_clicks(scores, labels, mask)
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
    ranked = rank_clicks(scores, labels, mask)
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
    ranked = rank_clicks(scores, labels, mask)
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
    ranked = rank_clicks(scores, labels, mask)
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
    ranked = rank_clicks(scores, labels, mask)
    return ranked.reduce(ranked.clicks(k), no_click, reduction)
