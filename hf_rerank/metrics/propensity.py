"""Clicks that a new order would have had, estimated from clicks logged under another order.

A click says that an item was looked at and liked; no click may only say that it stood too low. Who knows each item's
**propensity**, the probability that it was looked at when the clicks were logged, can undo that: under the
examination hypothesis (a click is a look times an attraction, and the attraction does not depend on the order)
``click / propensity`` has the item's attraction as its mean. Summed over the first k items of a new order this is an
unbiased estimate of the clicks that they would get if all k were looked at (Joachims, Swaminathan, Schnabel 2017).

- **ips**: the mean over lists of ``sum_(rank <= k) click / propensity``.
- **snips**, self-normalised: that total divided by the total of ``click / propensity`` over whole lists: which share
  of all attraction the first k hold (Agarwal et al. 2019). It is slightly biased, varies less, and a constant factor
  on all propensities changes nothing.

Intervals are 95 %, from the variance over lists (of the ratio: its linearisation); lists count as independent of one
another, so where users have many lists the true intervals are wider. Lists that were kept *because* they hold a
click, as those of the public datasets, make ``ips`` too high: their clicks are a selection.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.metrics.ranking import check_k, rank_slots, read_examination, read_lists, reduce_lists

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
    """Inverse-propensity estimate (ips) of the clicks in the first k places of the order by ``scores``.

    Args:
        scores, labels, mask, reduction: As in ``hf_rerank.metrics.ranking``; a click is a label above 0.
        propensities: ``[..., list]``, probability that the item was looked at when its click was logged, in (0, 1].
        k: Places that count, each as if it was looked at for certain. None: all.
        examination: ``[places]``, the probability that each place of the new order is looked at; then the estimate
            is of the expected clicks.
    """
    corrected, mask, order, shape = _read(scores, labels, propensities, mask)
    return reduce_lists(_sum_top_clicks(corrected, order, mask, k, examination), reduction, shape)


class PropensityMetrics:
    """The estimates of this module over lists that arrive in batches, with their intervals; memory is constant.

    Args:
        ks: Cut-offs.
        examination: ``[places]``, probability that each place is looked at; gives estimates of expected clicks.
    """

    def __init__(self, ks: Iterable[int] = (5, 10), *, examination: Any = None) -> None:
        self.ks = tuple(check_k(k) for k in ks)
        self.examination = None if examination is None else read_examination(examination)
        self.lists, self.largest = 0, 0.0
        # Of u, the corrected clicks at the top, and t, those of the whole list: sums of u, t, u u, u t, t t.
        self._sums: dict[str, np.ndarray] = {}

    def update(self, scores: Any, labels: Any, propensities: Any, *, mask: Any = None) -> None:
        """Adds lists; arguments as of ``propensity_clicks``."""
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

        With examination also ``ips_expected_clicks`` and ``snips_expected_clicks``. ``largest_inverse_propensity``, of
        a click, says how much one click can move the estimates. nan: there is no list, or no click.
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
    """``click / propensity`` by slot, the mask, the slot at each place, and the leading axes."""
    (scores, labels, propensities), mask, shape = read_lists(
        mask, scores=scores, labels=labels, propensities=propensities
    )
    zero = mask & (propensities <= 0)
    if zero.any():
        row, slot = (int(index) for index in np.argwhere(zero)[0])
        raise InputError(
            f"propensities of real items must be above 0 and at most 1; found {propensities[row, slot]:g} in list "
            f"{row}, slot {slot}: an item that was never looked at cannot be corrected for; leave its list out"
        )
    clicked = mask & (labels > 0)
    corrected = np.divide(1.0, propensities, out=np.zeros_like(propensities), where=clicked)
    return corrected, mask, rank_slots(scores, mask), shape


def _sum_top_clicks(
    corrected: np.ndarray, order: np.ndarray, mask: np.ndarray, k: int | None, examination: Any
) -> np.ndarray:
    """Corrected clicks of the first k places, or of all by the chance that they are looked at; one value per list."""
    by_place = np.take_along_axis(corrected, order, axis=-1)
    if examination is None:
        return by_place[:, : check_k(k)].sum(axis=-1)
    looked_at = read_examination(examination)[:k]
    longest = int(mask.sum(axis=-1).max(initial=0))
    if k is None and len(looked_at) < longest:
        raise InputError(
            f"examination holds {len(looked_at)} places, but the longest list has {longest} items: give one "
            "probability for every place"
        )
    places = min(len(looked_at), by_place.shape[-1])
    return by_place[:, :places] @ looked_at[:places]


def _make_interval(name: str, value: float, variance: float) -> dict[str, float]:
    margin = _Z * math.sqrt(max(variance, 0.0)) if not math.isnan(variance) else math.nan
    return {name: float(value), f"{name}_low": float(value - margin), f"{name}_high": float(value + margin)}
