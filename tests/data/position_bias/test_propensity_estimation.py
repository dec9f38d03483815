"""Estimates of examination probabilities against hand calculations, a generic optimizer and simulated clicks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize

from hf_rerank.data.position_bias import estimation
from hf_rerank.data.position_bias.estimation import (
    estimate_by_em,
    estimate_by_harvesting,
    estimate_by_regression_em,
)
from hf_rerank.errors import InputError

TRUE = np.array([1, 0.8, 0.62, 0.5, 0.42, 0.35, 0.3, 0.26, 0.23, 0.2])


def impressions(table: dict[tuple[int, int], tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position, click and item of (item, position) -> (impressions, clicks)."""
    rows = [(place, n < clicks, item) for (item, place), (shown, clicks) in table.items() for n in range(shown)]
    position, click, item = (np.array(values) for values in zip(*rows, strict=True))
    return position, click, item


@pytest.mark.slow
def test_every_method_recovers_true_propensities_when_better_items_rank_higher() -> None:
    """20,000 lists of 10 of 200 items: click rates fall to 0.075 of the first, examination only to 0.2. The
    standard error at the last position, of about 2,000 clicks against 13,000, is below 0.2 * 0.03."""
    random = np.random.default_rng(0)
    relevance = random.beta(2, 4, 200)
    items = np.stack([random.choice(200, 10, replace=False) for _ in range(20_000)])
    order = np.argsort(-(relevance[items] + 0.2 * random.normal(size=items.shape)), axis=1)
    items = np.take_along_axis(items, order, axis=1)
    click = (random.random(items.shape) < TRUE * relevance[items]).ravel()
    position, item = np.broadcast_to(np.arange(10), items.shape).ravel(), items.ravel()
    rates = np.bincount(position, click)
    assert np.abs(rates / rates[0] - TRUE).max() > 0.12
    logits = np.log(relevance / (1 - relevance))
    part = slice(0, 100_000)  # half as many lists, to save time
    curves = {
        "em": (estimate_by_em(position, click, item), 0.025),
        "harvesting": (estimate_by_harvesting(position, click, item), 0.025),
        "regression": (
            estimate_by_regression_em(position[part], click[part], sparse.csr_array(logits[item[part]][:, None])),
            0.035,
        ),
    }
    for name, (curve, tolerance) in curves.items():
        assert curve.converged, name
        assert np.abs(curve.propensities - TRUE).max() < tolerance, name
        assert curve.propensities.max() == 1, name


def test_harvesting_on_a_small_example() -> None:
    """Rates 0.4 and 0.2 of one item, 0.6 and 0.3 of another: the second position is examined half as often. Items at
    one position, and items without a click, allow no comparison, whatever their rates."""
    table = {(0, 0): (100, 40), (0, 1): (100, 20), (1, 0): (50, 30), (1, 1): (200, 60)}
    table |= {(2, 0): (80, 80), (3, 0): (10, 0), (3, 1): (10, 0)}
    curve = estimate_by_harvesting(*impressions(table))
    assert curve.propensities.tolist() == pytest.approx([1, 0.5], abs=1e-5)
    assert curve.impressions.tolist() == [240, 310]
    assert curve.clicks.tolist() == [150, 80]
    assert curve.compared.tolist() == [150, 300]


def test_em_maximizes_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the prior, against a generic optimizer."""
    table = {(0, 0): (90, 40), (0, 1): (60, 15), (0, 2): (30, 4), (1, 0): (40, 30), (1, 1): (70, 30), (1, 2): (90, 25)}
    position, click, item = impressions(table)
    monkeypatch.setattr(estimation, "PRIOR_IMPRESSIONS", 0.0)
    monkeypatch.setattr(estimation, "TOLERANCE", 1e-10)
    curve = estimate_by_em(position, click, item)

    def loss(logits: np.ndarray) -> float:
        chances = 1 / (1 + np.exp(-logits))
        rate = chances[position] * chances[3 + item]
        return -float(np.where(click, np.log(rate), np.log1p(-rate)).sum())

    found = minimize(
        loss, np.zeros(5), method="Nelder-Mead", options={"maxiter": 40_000, "xatol": 1e-9, "fatol": 1e-11}
    )
    theta = 1 / (1 + np.exp(-found.x[:3]))
    assert curve.propensities.tolist() == pytest.approx((theta / theta.max()).tolist(), abs=1e-3)


def test_propensities_of_a_single_item_are_its_relative_click_rates() -> None:
    """With one item the model is the rates themselves: 60, 30 and 15 of 100."""
    position, click, item = impressions({(0, 0): (100, 60), (0, 1): (100, 30), (0, 2): (100, 15)})
    for curve in (
        estimate_by_em(position, click, item),
        estimate_by_harvesting(position, click, item),
        estimate_by_regression_em(position, click, sparse.csr_array((len(click), 1))),
    ):
        assert curve.propensities.tolist() == pytest.approx([1, 0.5, 0.25], abs=1e-4)


def test_largest_propensity_is_1_at_any_position() -> None:
    position, click, item = impressions({(0, 0): (100, 20), (0, 1): (100, 40)})
    assert estimate_by_em(position, click, item).propensities.tolist() == pytest.approx([0.5, 1], abs=1e-5)


def test_positions_without_clicks_or_shared_items_are_refused() -> None:
    never = impressions({(0, 0): (9, 5), (0, 1): (7, 0), (1, 0): (9, 5), (1, 2): (9, 5)})
    for estimate in (estimate_by_em, estimate_by_harvesting):
        with pytest.raises(InputError, match=r"position 1 has 7 impressions and no click at all: .*--same-from"):
            estimate(*never)
    alone = impressions({(0, 0): (9, 5), (0, 1): (7, 3), (1, 2): (9, 5)})
    with pytest.raises(
        InputError, match="position 2 has 0 impressions and no click of items that were also displayed at other"
    ):
        estimate_by_harvesting(*alone)
    apart = impressions({(0, 0): (9, 5), (0, 1): (7, 3), (1, 2): (9, 5), (1, 3): (9, 5)})
    with pytest.raises(InputError, match="position 2 shares no clicked item with position 0"):
        estimate_by_harvesting(*apart)
