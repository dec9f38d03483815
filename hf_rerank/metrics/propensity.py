"""Clicks that a new order would have had, estimated from clicks logged under a different order.

A click means that an item was examined and attracted the user; a missing click may only mean that its position was
not examined. Each item's **propensity**, the probability that it was examined when the clicks were logged, corrects
for that. Under the examination hypothesis (click = examination times attraction, and attraction does not depend on the
order) ``click / propensity`` has the item's attraction as its mean. Summed over the first k items of a new order it is
an unbiased estimate of the clicks that they would get if all k were examined (Joachims, Swaminathan, Schnabel 2017).

- **ips**: the mean over lists of ``sum_(rank <= k) click / propensity``.
- **snips**, self-normalised: that total divided by the total of ``click / propensity`` over whole lists, the
  fraction of all attraction in the first k (Agarwal et al. 2019). It is slightly biased, varies less, and is invariant
  to a constant factor on all propensities.

Intervals are 95 %, from the variance over lists (of the ratio: its linearisation); lists are treated as independent,
so with many lists per user the true intervals are wider. Lists that were kept *because* they have a click, as in the
public datasets, make ``ips`` too high: their clicks are a selection.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.metrics.inputs import check_k, rank_slots, read_examination, read_lists, reduce_lists

# The 97.5 % point of the normal distribution.
_Z = 1.959964


def propensity_clicks(
    scores: Any,
    labels: Any,
    propensities: Any,
    *,
    mask: Any = None,
    k: int | None = None,
    examination: Any = None,
    reduction: str = "mean",
) -> float | np.ndarray:
    """Inverse-propensity estimate (IPS) of the clicks of a new order: ``sum_(rank <= k) click / propensity``.

    Unbiased if a click is examination times attraction. Source: Joachims, Swaminathan and Schnabel 2017.

    Args:
        scores: [..., list], array or tensor, of the new order; higher is better. Ties keep slot order.
        labels: [..., list], >= 0, logged under another order; a click is a label > 0.
        propensities: [..., list], in (0, 1], the probability that the item was examined when its click was logged.
        mask: bool [..., list], True at real items; None: all are. Padding is never read.
        k: Number of ranks that count, each as if it were certain to be examined. None: all.
        examination: [positions], the probability that each position of the new order is examined; the estimate is
            then of expected clicks. None: 1.
        reduction: ``"mean"`` over lists (nan without any), or ``"none"``: one value per list, [...].

    Returns:
        A float, or float64 [...] with ``reduction="none"``; in clicks per list.

    Raises:
        InputError: Shapes that differ, an unknown option, or a value of a real item out of range.
    """
    corrected, mask, order, shape = _read(scores, labels, propensities, mask)
    return reduce_lists(_sum_top_clicks(corrected, order, mask, k, examination), reduction, shape)


class PropensityMetrics:
    """The estimates of this module over lists that arrive in batches, with their intervals; memory is constant.

    Args:
        ks: Cut-offs.
        examination: [positions], the probability that each position is examined; adds estimates of expected clicks.
    """

    def __init__(self, ks: Iterable[int] = (5, 10), *, examination: Any = None) -> None:
        self.ks = tuple(check_k(k) for k in ks)
        self.examination = None if examination is None else read_examination(examination)
        self.lists, self.largest = 0, 0.0
        # Sums of u, t, u u, u t, t t, where u is the corrected clicks at the top and t those of the whole list.
        self._sums: dict[str, np.ndarray] = {}

    def update(self, scores: Any, labels: Any, propensities: Any, *, mask: Any = None) -> None:
        """Adds lists; arguments as in ``propensity_clicks``."""
        corrected, mask, order, _ = _read(scores, labels, propensities, mask)
        tops = {f"clicks@{k}": _sum_top_clicks(corrected, order, mask, k, None) for k in self.ks}
        if self.examination is not None:
            tops["expected_clicks"] = _sum_top_clicks(corrected, order, mask, None, self.examination)
        whole = corrected.sum(axis=-1)
        for name, top in tops.items():
            sums = np.array([top.sum(), whole.sum(), top @ top, top @ whole, whole @ whole])
            self._sums[name] = self._sums.get(name, 0.0) + sums
        self.lists += len(whole)
        self.largest = max(self.largest, float(corrected.max(initial=0.0)))

    def compute(self) -> dict[str, float]:
        """``ips_clicks@k`` and ``snips_clicks@k``, each with ``_low`` and ``_high``, the ends of its interval.

        With examination also ``ips_expected_clicks`` and ``snips_expected_clicks``. ``largest_inverse_propensity``,
        over all clicks, shows how much one click can move the estimates. nan: there are no lists, or no clicks.
        """
        results: dict[str, float] = {}
        n = self.lists
        for name, (top, whole, top_top, top_whole, whole_whole) in self._sums.items():
            mean = top / n if n else math.nan
            variance = (top_top / n - mean**2) / n if n else math.nan
            results |= _make_interval(f"ips_{name}", mean, variance)
            ratio = top / whole if whole else math.nan
            residuals = top_top - 2 * ratio * top_whole + ratio**2 * whole_whole
            results |= _make_interval(f"snips_{name}", ratio, residuals / whole**2 if whole else math.nan)
        return {**results, "largest_inverse_propensity": self.largest}


def _read(
    scores: Any, labels: Any, propensities: Any, mask: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """``click / propensity`` by slot, the mask, the slot at each position, and the leading axes."""
    (scores, labels, propensities), mask, shape = read_lists(
        mask, scores=scores, labels=labels, propensities=propensities
    )
    zero = mask & (propensities <= 0)
    if zero.any():
        row, slot = (int(index) for index in np.argwhere(zero)[0])
        raise InputError(
            f"propensities of real items must be above 0 and at most 1; found {propensities[row, slot]:g} in list "
            f"{row}, slot {slot}: an item that was never examined cannot be corrected for; leave its list out"
        )
    clicked = mask & (labels > 0)
    corrected = np.divide(1.0, propensities, out=np.zeros_like(propensities), where=clicked)
    return corrected, mask, rank_slots(scores, mask), shape


def _sum_top_clicks(
    corrected: np.ndarray, order: np.ndarray, mask: np.ndarray, k: int | None, examination: Any
) -> np.ndarray:
    """Sums corrected clicks of the first k positions, or of all weighted by examination; one value per list."""
    by_position = np.take_along_axis(corrected, order, axis=-1)
    if examination is None:
        return by_position[:, : check_k(k)].sum(axis=-1)
    examined = read_examination(examination)[:k]
    longest = int(mask.sum(axis=-1).max(initial=0))
    if k is None and len(examined) < longest:
        raise InputError(
            f"examination has {len(examined)} positions, but the longest list has {longest} items: give one "
            "probability per position"
        )
    width = min(len(examined), by_position.shape[-1])
    return by_position[:, :width] @ examined[:width]


def _make_interval(name: str, value: float, variance: float) -> dict[str, float]:
    margin = _Z * math.sqrt(max(variance, 0.0)) if not math.isnan(variance) else math.nan
    return {name: float(value), f"{name}_low": float(value - margin), f"{name}_high": float(value + margin)}
