"""Labels that are not all of a list's 0 and 1: those of items that were cut, fractions, and large grades."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from hf_rerank import InputError
from hf_rerank.metrics import (
    RankingMetrics,
    auc,
    average_precision,
    clicks,
    grouped_auc,
    ndcg,
    precision,
    recall,
    reciprocal_rank,
)

TEN = [[float(score) for score in range(10, 0, -1)]]
FIRST_CLICKED = [[1] + [0] * 9]


def test_clicks_on_items_that_were_cut_count() -> None:
    """12 items cut to 10, clicks on the 1st and the 12th.

    NDCG@10 = 1 / (1 + 1 / log2(3)) = .613, MAP@10 = 1 / min(10, 2), recall@10 = 1 / 2.
    """
    metrics = RankingMetrics(ks=(10,))
    metrics.update(TEN, FIRST_CLICKED, cut_labels=[[0, 1]])
    found = metrics.compute()
    assert found["ndcg@10"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert round(found["ndcg@10"], 3) == 0.613
    assert (found["map@10"], found["recall@10"], found["precision@10"]) == (1 / 2, 1 / 2, 1 / 10)
    assert (found["mrr@10"], found["clicks@10"], found["gauc"]) == (1, 1, 1)
    assert (found["truncated_lists"], found["clicks_cut"], found["items"]) == (1, 1, 10)


@pytest.mark.parametrize("no_click", ["zero", "skip"])
def test_a_list_whose_only_click_was_cut_is_a_list_with_a_click(no_click: str) -> None:
    """Of three lists one has no click; NDCG@2 is 1, 0 and none, so 1 / 3 or, without the last, 1 / 2."""
    metrics = RankingMetrics(ks=(2,), no_click=no_click)
    labels, cut = [[1, 0], [0, 0], [0, 0]], [[-100, -100], [0, 1], [0, -100]]
    metrics.update([[2.0, 1.0]] * 3, labels, cut_labels=cut)
    found = metrics.compute()
    assert (found["lists_without_click"], found["truncated_lists"], found["clicks_cut"]) == (1, 2, 1)
    assert found["ndcg@2"] == pytest.approx(1 / (3 if no_click == "zero" else 2))


def test_the_same_as_items_below_all_others() -> None:
    """Where k is no more than what was kept, a cut item is one that no ranking has among its first k."""
    draw = np.random.default_rng(0)
    scores, labels = draw.normal(size=(50, 12)), draw.integers(0, 4, size=(50, 12))
    scores[:, 8:] = -100.0
    metrics = RankingMetrics(ks=(1, 5, 8))
    metrics.update(scores[:, :8], labels[:, :8], cut_labels=labels[:, 8:])
    found = metrics.compute()
    functions = {
        "ndcg": ndcg,
        "map": average_precision,
        "precision": precision,
        "recall": recall,
        "mrr": reciprocal_rank,
        "clicks": clicks,
    }
    for k in (1, 5, 8):
        for name, function in functions.items():
            assert found[f"{name}@{k}"] == pytest.approx(function(scores, labels, k=k)), (name, k)


@pytest.mark.parametrize(
    ("cut", "message"),
    [([[0], [1]], r"leading axes of scores, \[1\]; got \[2\]"), ([[math.nan]], "cut_labels must be finite")],
)
def test_wrong_labels_of_cut_items(cut: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RankingMetrics().update(TEN, FIRST_CLICKED, cut_labels=cut)


# A teacher's scores. Above .5 are the second and the third item of the ranking.
TEACHER = [[0.2, 0.9, 0.6]]
RANKED = [[3.0, 2.0, 1.0]]


@pytest.mark.parametrize("metric", [auc, grouped_auc, average_precision, precision, recall, reciprocal_rank, clicks])
def test_fractional_labels_are_no_clicks(metric) -> None:
    with pytest.raises(InputError, match=r"labels must be whole numbers here.*found 0.2: give labels > THRESHOLD"):
        metric(RANKED, TEACHER)
    metric(RANKED, np.array(TEACHER) > 0.5)


def test_fractional_labels_leave_ndcg_alone() -> None:
    metrics = RankingMetrics(ks=(1,))
    metrics.update(RANKED, [[0, 1, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.compute()
    metrics.update(RANKED, TEACHER)
    with pytest.warns(
        UserWarning, match=r"labels such as 0\.2 are fractional.*all metrics but NDCG are nan.*click_above"
    ):
        found = metrics.compute()
    # The click of the first list stands second; of the second list .2 is first, and .9 should be.
    gain = (2**0.2 - 1) / (2**0.9 - 1)
    assert found["ndcg@1"] == pytest.approx((0 + gain) / 2)
    assert all(
        math.isnan(found[name]) for name in ("auc", "gauc", "map@1", "precision@1", "recall@1", "mrr@1", "clicks@1")
    )


def test_a_threshold_says_which_labels_are_clicks() -> None:
    """Clicks at ranks 2 and 3: MAP (1/2 + 2/3) / 2, MRR 1/2, and both stand below the one item without a click."""
    metrics = RankingMetrics(ks=(3,), click_above=0.5)
    metrics.update(RANKED, TEACHER)
    found = metrics.compute()
    assert found["map@3"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (found["mrr@3"], found["auc"], found["gauc"], found["clicks@3"]) == (1 / 2, 0, 0, 2)
    assert metrics.settings()["click_above"] == 0.5
    ratings = RankingMetrics(ks=(2,), click_above=3)  # 5 and 4 stars are clicks, 2 is none
    ratings.update([[3.0, 2.0, 1.0]], [[2, 5, 4]])
    assert ratings.compute()["map@2"] == pytest.approx((1 / 2) / 2)
    with pytest.raises(InputError, match="click_above must be a number >= 0"):
        RankingMetrics(click_above=-1)


@pytest.mark.parametrize("gain", ["exponential", "linear"])
def test_the_gain_of_large_grades(gain: str) -> None:
    """Grades 0 and 2,000 in this order: NDCG is 1 / log2(3) with both gains."""
    metrics = RankingMetrics(ks=(2,), gain=gain)
    metrics.update([[2.0, 1.0]], [[0, 2000]])
    assert metrics.compute()["ndcg@2"] == pytest.approx(1 / math.log2(3))
