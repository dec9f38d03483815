"""Expected clicks of a ranking of simulated lists, whose true attraction and examination are known.

Conventions are those of ``hf_rerank.metrics.ranking``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.metrics.inputs import rank_slots, read_examination, read_lists, reduce_lists


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
