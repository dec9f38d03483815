"""Three estimates of examination probabilities by position, from arrays of impressions.

All assume the position-based model (Richardson et al. 2007): an impression at position k of an item with relevance r
is clicked with probability ``theta_k * r``. Only ratios of the thetas are identifiable, so the largest is set to 1.

- ``estimate_by_em``: maximum likelihood by EM, with one relevance per item id (Chuklin et al. 2015, section 3.2).
- ``estimate_by_regression_em``: the same with the relevance as a logistic regression of features (Wang et al. 2018).
- ``estimate_by_harvesting``: compares only the clicks of the same item at different positions (the idea of Agarwal
  et al. 2019). Items are fixed effects of a Poisson regression, ``mean clicks = impressions * theta_k *
  r_i``, whose estimate of theta is consistent however few impressions an item has (Hausman et al. 1984).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_rerank.errors import InputError

# Estimation ends when no theta changes by more, or after the maximum number of steps. A minimum is always made: at the
# start the thetas may be constant while the relevances change.
TOLERANCE, FEWEST_STEPS, MOST_STEPS = 1e-6, 5, 5_000
# Prior: additional impressions of average relevance per item, so that rare items are not extreme.
PRIOR_IMPRESSIONS = 10.0
# L2 penalty of the weights of the regression.
PENALTY = 1.0


@dataclass(frozen=True)
class Curve:
    """Examination probabilities by position.

    Attributes:
        propensities: float64 [positions], in (0, 1], the largest 1.
        impressions: int64 [positions], of all items.
        clicks: int64 [positions].
        compared: int64 [positions], impressions that the estimate uses: for harvesting those of clicked items
            displayed at more than one position, else all.
        steps: Number of steps.
        converged: Whether the last step changed no theta by more than ``TOLERANCE``.
    """

    propensities: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray
    compared: np.ndarray
    steps: int
    converged: bool


def estimate_by_em(position: np.ndarray, click: np.ndarray, item: np.ndarray) -> Curve:
    """Maximizes the likelihood of the position-based model, with a relevance per item, by EM.

    An item's relevance is shrunk to the mean by a prior of ``PRIOR_IMPRESSIONS`` impressions. Items with one
    impression carry almost no information: if most items have only one, the curve is that of the click-through rates.

    Args:
        position: int [N], from 0.
        click: bool [N].
        item: int [N], codes from 0.

    Raises:
        InputError: A position has no click.
    """
    impressions, clicks = _count_by_position(position, click)
    cells = _Cells.count(position, click, item)
    theta = (clicks / impressions) / (clicks / impressions).max()
    items = int(item.max()) + 1
    mean = clicks.sum() / float(impressions @ theta)
    relevance = np.full(items, min(mean, 0.5))
    shown = cells.sum_by_item(cells.shown, items)
    for step in range(1, MOST_STEPS + 1):
        examined, relevant = _compute_posterior(theta[cells.position], relevance[cells.item])
        skipped = cells.shown - cells.clicked
        new = cells.sum_by_position(cells.clicked + skipped * examined, len(theta)) / impressions
        mean = float(relevance @ shown) / shown.sum()
        found = cells.sum_by_item(cells.clicked + skipped * relevant, items) + PRIOR_IMPRESSIONS * mean
        relevance = found / (shown + PRIOR_IMPRESSIONS)
        # Scale the largest theta to 1, and the relevances inversely, so that the products do not change.
        relevance = relevance * new.max()
        new = new / new.max()
        moved, theta = float(np.abs(new - theta).max()), new
        if moved < TOLERANCE and step > FEWEST_STEPS:
            break
    return Curve(theta, impressions, clicks, impressions, step, moved < TOLERANCE)


def estimate_by_regression_em(position: np.ndarray, click: np.ndarray, features: Any) -> Curve:
    """Like ``estimate_by_em``, with the relevance as a logistic regression of features.

    Each M-step updates the regression once, by Newton's method with the bound of its curvature by Boehning and Lindsay
    (1988), which never lowers the likelihood.

    Args:
        position: int [N], from 0.
        click: bool [N].
        features: float [N, features], a scipy sparse array, about in units of their standard deviation.

    Raises:
        InputError: A position has no click.
    """
    from scipy import sparse
    from scipy.linalg import cho_factor, cho_solve
    from scipy.special import expit

    impressions, clicks = _count_by_position(position, click)
    theta = (clicks / impressions) / (clicks / impressions).max()
    inputs = sparse.hstack([features, np.ones((len(click), 1))], format="csr")
    penalty = np.append(np.full(features.shape[1], PENALTY), 0.0)
    curvature = cho_factor((inputs.T @ inputs).toarray() / 4 + np.diag(penalty))
    mean = min(clicks.sum() / float(impressions @ theta), 0.5)
    weights = np.append(np.zeros(features.shape[1]), np.log(mean / (1 - mean)))
    for step in range(1, MOST_STEPS + 1):
        relevance = expit(inputs @ weights)
        examined, relevant = _compute_posterior(theta[position], relevance)
        slope = inputs.T @ (relevance - np.where(click, 1.0, relevant)) + penalty * weights
        weights = weights - cho_solve(curvature, slope)
        new = np.bincount(position, np.where(click, 1.0, examined)) / impressions
        new = new / new.max()
        moved, theta = float(np.abs(new - theta).max()), new
        if moved < TOLERANCE and step > FEWEST_STEPS:
            break
    return Curve(theta, impressions, clicks, impressions, step, moved < TOLERANCE)


def estimate_by_harvesting(position: np.ndarray, click: np.ndarray, item: np.ndarray) -> Curve:
    """Compares the clicks of each item at the positions at which it was displayed.

    Args:
        position: int [N], from 0.
        click: bool [N].
        item: int [N], codes from 0.

    Raises:
        InputError: A position has no click of an item also displayed at other positions, or positions share no items.
    """
    impressions, clicks = _count_by_position(position, click)
    cells = _Cells.count(position, click, item)
    items = int(item.max()) + 1
    positions = np.bincount(cells.item, minlength=items)
    clicked = cells.sum_by_item(cells.clicked, items)
    # Items at one position only, or never clicked, carry no information about the ratios.
    cells = cells.select((positions[cells.item] > 1) & (clicked[cells.item] > 0))
    compared = cells.sum_by_position(cells.shown, len(impressions))
    there = cells.sum_by_position(cells.clicked, len(impressions))
    _refuse_without_clicks(there, compared, "of items that were also displayed at other positions")
    _refuse_parts(cells, len(impressions), items)
    theta = np.ones(len(impressions))
    clicked = cells.sum_by_item(cells.clicked, items)
    for step in range(1, MOST_STEPS + 1):
        expected = cells.sum_by_item(cells.shown * theta[cells.position], items)
        relevance = np.divide(clicked, expected, out=np.zeros(items), where=expected > 0)
        new = there / cells.sum_by_position(cells.shown * relevance[cells.item], len(theta))
        new = new / new.max()
        moved, theta = float(np.abs(new - theta).max()), new
        if moved < TOLERANCE and step > FEWEST_STEPS:
            break
    return Curve(theta, impressions, clicks, compared.astype(np.int64), step, moved < TOLERANCE)


@dataclass(frozen=True)
class _Cells:
    """Impressions and clicks per pair of item and position, one entry each."""

    item: np.ndarray
    position: np.ndarray
    shown: np.ndarray
    clicked: np.ndarray

    @classmethod
    def count(cls, position: np.ndarray, click: np.ndarray, item: np.ndarray) -> _Cells:
        positions = int(position.max()) + 1
        cell, of = np.unique(item.astype(np.int64) * positions + position, return_inverse=True)
        return cls(cell // positions, cell % positions, np.bincount(of).astype(float), np.bincount(of, click))

    def select(self, chosen: np.ndarray) -> _Cells:
        return _Cells(self.item[chosen], self.position[chosen], self.shown[chosen], self.clicked[chosen])

    def sum_by_item(self, values: np.ndarray, items: int) -> np.ndarray:
        return np.bincount(self.item, values, items)

    def sum_by_position(self, values: np.ndarray, positions: int) -> np.ndarray:
        return np.bincount(self.position, values, positions)


def _compute_posterior(theta: np.ndarray, relevance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For an impression without a click: the probability that it was examined, and that it is relevant."""
    without = 1 - theta * relevance
    return theta * (1 - relevance) / without, relevance * (1 - theta) / without


def _count_by_position(position: np.ndarray, click: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Impressions and clicks, int64 [positions]."""
    impressions = np.bincount(position)
    clicks = np.bincount(position, click).astype(np.int64)
    _refuse_without_clicks(clicks, impressions, "at all")
    return impressions, clicks


def _refuse_without_clicks(clicks: np.ndarray, impressions: np.ndarray, which: str) -> None:
    if clicks.all():
        return
    number = int(np.argmin(clicks > 0))
    raise InputError(
        f"position {number} has {int(impressions[number]):,} impressions and no click {which}: no probability can be "
        "estimated there; let the last positions share one probability (--same-from), or give more lists"
    )


def _refuse_parts(cells: _Cells, positions: int, items: int) -> None:
    """Refuses positions that no items connect, as their ratio is not identifiable."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = positions + items
    graph = coo_array((np.ones(len(cells.item)), (cells.position, positions + cells.item)), (size, size))
    part = connected_components(graph, directed=False)[1][:positions]
    apart = np.flatnonzero(part != part[0])
    if len(apart):
        raise InputError(
            f"position {apart[0]} shares no clicked item with position 0, directly or through other positions: orders "
            "vary too little to compare them; use --method em, or let the last positions share one probability "
            "(--same-from)"
        )
