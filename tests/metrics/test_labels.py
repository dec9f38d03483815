"""Labels other than 0 and 1 for each item: labels of truncated items, fractions, and large grades."""

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


def test_clicks_on_truncated_items_count() -> None:
    """12 items truncated to 10, clicks on the 1st and the 12th.

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
def test_a_list_whose_only_click_was_truncated_counts_as_clicked(no_click: str) -> None:
    """One of three lists has no click; NDCG@2 is 1, 0 and undefined: 1 / 3 on average or, without the last, 1 / 2."""
    metrics = RankingMetrics(ks=(2,), no_click=no_click)
    labels, cut = [[1, 0], [0, 0], [0, 0]], [[-100, -100], [0, 1], [0, -100]]
    metrics.update([[2.0, 1.0]] * 3, labels, cut_labels=cut)
    found = metrics.compute()
    assert (found["lists_without_click"], found["truncated_lists"], found["clicks_cut"]) == (1, 2, 1)
    assert found["ndcg@2"] == pytest.approx(1 / (3 if no_click == "zero" else 2))


def test_truncated_items_count_like_items_ranked_last() -> None:
    """If k is at most the number of kept items, a truncated item is one that is never in the top k."""
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
def test_wrong_labels_of_truncated_items_are_rejected(cut: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RankingMetrics().update(TEN, FIRST_CLICKED, cut_labels=cut)


# A teacher's scores. The second and the third item of the ranking are above .5.
TEACHER = [[0.2, 0.9, 0.6]]
RANKED = [[3.0, 2.0, 1.0]]


@pytest.mark.parametrize("metric", [auc, grouped_auc, average_precision, precision, recall, reciprocal_rank, clicks])
def test_fractional_labels_are_rejected_by_click_metrics(metric) -> None:
    with pytest.raises(InputError, match=r"labels must be whole numbers here.*found 0.2: give labels > THRESHOLD"):
        metric(RANKED, TEACHER)
    metric(RANKED, np.array(TEACHER) > 0.5)


def test_fractional_labels_make_all_metrics_but_ndcg_nan() -> None:
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
    # The first list's click is ranked second; in the second list .2 is ranked first instead of .9.
    gain = (2**0.2 - 1) / (2**0.9 - 1)
    assert found["ndcg@1"] == pytest.approx((0 + gain) / 2)
    assert all(
        math.isnan(found[name]) for name in ("auc", "gauc", "map@1", "precision@1", "recall@1", "mrr@1", "clicks@1")
    )


def test_click_above_sets_the_label_threshold_for_clicks() -> None:
    """Clicks at ranks 2 and 3: MAP (1/2 + 2/3) / 2, MRR 1/2, both ranked below the only item without a click."""
    metrics = RankingMetrics(ks=(3,), click_above=0.5)
    metrics.update(RANKED, TEACHER)
    found = metrics.compute()
    assert found["map@3"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (found["mrr@3"], found["auc"], found["gauc"], found["clicks@3"]) == (1 / 2, 0, 0, 2)
    assert metrics.settings()["click_above"] == 0.5
    ratings = RankingMetrics(ks=(2,), click_above=3)  # 5 and 4 stars are clicks, 2 stars are not
    ratings.update([[3.0, 2.0, 1.0]], [[2, 5, 4]])
    assert ratings.compute()["map@2"] == pytest.approx((1 / 2) / 2)
    with pytest.raises(InputError, match="click_above must be a number >= 0"):
        RankingMetrics(click_above=-1)


@pytest.mark.parametrize("gain", ["exponential", "linear"])
def test_large_grades_do_not_overflow_ndcg(gain: str) -> None:
    """Grades 0 and 2,000 in this order: NDCG is 1 / log2(3) with both gains."""
    metrics = RankingMetrics(ks=(2,), gain=gain)
    metrics.update([[2.0, 1.0]], [[0, 2000]])
    assert metrics.compute()["ndcg@2"] == pytest.approx(1 / math.log2(3))
