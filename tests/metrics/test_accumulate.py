"""The accumulator: equal to the functions on whole arrays for any batches; bounded memory; merging."""

import json
import math

import numpy as np
import pytest
import torch

from hf_rerank.errors import InputError
from hf_rerank.metrics import (
    RankingMetrics,
    auc,
    average_precision,
    best_expected_clicks,
    clicks,
    expected_clicks,
    grouped_auc,
    ndcg,
    precision,
    recall,
    reciprocal_rank,
)

EXAMINATION = np.array([1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
WIDTH = len(EXAMINATION)


def random_lists(count=400, seed=0, logits=False):
    """Scores exact in float32, graded labels, ragged lists, attraction, initial positions."""
    rng = np.random.default_rng(seed)
    scores = (rng.normal(size=(count, WIDTH)) if logits else rng.random((count, WIDTH))).astype(np.float32)
    mask = np.arange(WIDTH) < rng.integers(0, WIDTH + 1, (count, 1))
    return {
        "scores": scores.astype(np.float64),
        "labels": rng.choice([0, 0, 0, 1, 2], (count, WIDTH)),
        "mask": mask,
        "attraction": rng.random((count, WIDTH)),
        "positions": rng.permuted(np.tile(np.arange(WIDTH), (count, 1)), axis=1),
    }


def cut_into_batches(data, sizes=(1, 7, 60)):
    """Batches of varying size, each only as wide as its longest list."""
    start, turn = 0, 0
    while start < len(data["scores"]):
        stop = start + sizes[turn % len(sizes)]
        width = int(data["mask"][start:stop].sum(axis=1).max())
        yield {name: array[start:stop, :width] for name, array in data.items()}
        start, turn = stop, turn + 1


def accumulate(data, **settings):
    metrics = RankingMetrics(**settings)
    for batch in cut_into_batches(data):
        metrics.update(**batch)
    return metrics


def without(data, *names):
    return {name: array for name, array in data.items() if name not in names}


@pytest.mark.parametrize("no_click", ["zero", "skip"])
@pytest.mark.parametrize(("gain", "denominator"), [("exponential", "clicks"), ("linear", "hits")])
def test_accumulated_metrics_equal_the_functions_on_whole_arrays(no_click, gain, denominator):
    data = random_lists()
    scores, labels, mask = data["scores"], data["labels"], data["mask"]
    results = accumulate(
        data, ks=(1, 3), no_click=no_click, gain=gain, ap_denominator=denominator, examination=EXAMINATION
    ).compute()
    left_out = np.isnan(grouped_auc(scores, labels, mask=mask, reduction="none")).sum()
    model = expected_clicks(scores, data["attraction"], EXAMINATION, mask=mask)
    best = best_expected_clicks(data["attraction"], EXAMINATION, mask=mask)
    initial = expected_clicks(-data["positions"], data["attraction"], EXAMINATION, mask=mask)
    expected = {
        "auc": auc(scores, labels, mask=mask),
        "gauc": grouped_auc(scores, labels, mask=mask),
        "expected_clicks": model,
        "expected_clicks_best": best,
        "expected_clicks_initial": initial,
        "expected_clicks_share": (model - initial) / (best - initial),
        "lists": 400,
        "items": mask.sum(),
        "lists_without_click": (((labels > 0) & mask).sum(axis=1) == 0).sum(),
        "lists_left_out_of_gauc": left_out,
        "truncated_lists": 0,
        "clicks_cut": 0,
    }
    for k in (1, 3):
        options = {"mask": mask, "k": k, "no_click": no_click}
        expected[f"ndcg@{k}"] = ndcg(scores, labels, gain=gain, **options)
        expected[f"map@{k}"] = average_precision(scores, labels, denominator=denominator, **options)
        expected[f"precision@{k}"] = precision(scores, labels, **options)
        expected[f"recall@{k}"] = recall(scores, labels, **options)
        expected[f"mrr@{k}"] = reciprocal_rank(scores, labels, **options)
        expected[f"clicks@{k}"] = clicks(scores, labels, **options)
    assert results == pytest.approx(expected, rel=1e-12)
    assert all(type(value) in (int, float) for value in results.values())


def test_expected_clicks_match_written_out_arithmetic():
    metrics = RankingMetrics(ks=(1,), examination=[1.0, 0.5])
    metrics.update([[2.0, 1.0], [1.0, 2.0]], [[0, 0], [0, 1]], attraction=[[0.2, 0.8], [0.4, 0.6]],
                   positions=[[1, 0], [0, 1]])  # fmt: skip
    results = metrics.compute()
    # Model orders: (.2 .8) and (.6 .4); best: (.8 .2) and (.6 .4); initial: (.8 .2) and (.4 .6).
    model, best, initial = 0.2 + 0.4 + 0.6 + 0.2, 0.8 + 0.1 + 0.6 + 0.2, 0.8 + 0.1 + 0.4 + 0.3
    assert results["expected_clicks"] == pytest.approx(model / 2)
    assert results["expected_clicks_best"] == pytest.approx(best / 2)
    assert results["expected_clicks_initial"] == pytest.approx(initial / 2)
    assert results["expected_clicks_share"] == pytest.approx((model - initial) / (best - initial))


@pytest.mark.slow
@pytest.mark.parametrize("logits", [False, True])
def test_histogram_auc_is_within_its_error_bound(logits):
    data = without(random_lists(3000, logits=logits), "attraction", "positions")
    items = data["mask"].sum()
    exact = accumulate(data, exact_auc_pairs=items).compute()
    rough = accumulate(data, exact_auc_pairs=items - 1).compute()
    assert "auc_error_bound" not in exact
    assert 0 < rough["auc_error_bound"] < 1e-4
    assert abs(rough.pop("auc") - exact.pop("auc")) <= rough.pop("auc_error_bound")
    assert rough == exact


@pytest.mark.slow
def test_memory_stays_bounded():
    metrics = RankingMetrics(exact_auc_pairs=1000)
    for batch in cut_into_batches(without(random_lists(3000), "attraction", "positions")):
        metrics.update(**batch)
        assert sum(len(scores) for scores, _ in metrics._pairs) <= 1000


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [50_000_000, 1500, 10])  # exact; exact until merged; histograms
def test_merged_accumulators_equal_a_single_one(pairs):
    first, second = random_lists(200, seed=1), random_lists(220, seed=2)
    settings = {"examination": EXAMINATION, "exact_auc_pairs": pairs}
    merged, other = accumulate(first, **settings), accumulate(second, **settings)
    before = other.compute()
    merged.merge(other)
    both = accumulate({name: np.concatenate([first[name], second[name]]) for name in first}, **settings)
    assert merged.compute() == pytest.approx(both.compute(), rel=1e-12)
    assert other.compute() == before
    merged.merge(RankingMetrics(**settings))
    assert merged.compute() == pytest.approx(both.compute(), rel=1e-12)
    fresh = RankingMetrics(**settings)
    fresh.merge(other)
    assert fresh.compute() == before


def test_reset_and_update_with_tensors_and_leading_axes():
    data = without(random_lists(), "attraction", "positions")
    metrics = RankingMetrics()
    assert metrics.compute()["lists"] == 0
    assert math.isnan(metrics.compute()["ndcg@5"])
    assert math.isnan(metrics.compute()["auc"])
    metrics.update(**data)
    expected = metrics.compute()
    assert metrics.compute() == expected  # compute changes nothing
    metrics.reset()
    metrics.update(**{name: torch.tensor(array.reshape(4, 100, WIDTH)) for name, array in data.items()})
    assert metrics.compute() == expected


def test_settings_are_json_and_contain_the_chosen_options():
    settings = RankingMetrics((1, 5), gain="linear", examination=[1.0, 0.5]).settings()
    assert json.loads(json.dumps(settings)) == settings
    chosen = {"ks": [1, 5], "no_click": "zero", "ndcg_gain": "linear", "examination": [1.0, 0.5]}
    assert chosen.items() <= settings.items()
    assert RankingMetrics(ks=np.array([1, 5])).settings()["ks"] == [1, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ks": ()}, "ks must be whole numbers"),
        ({"ks": (5, None)}, "ks must be whole numbers"),
        ({"ks": (0,)}, "k must be a whole number >= 1"),
        ({"no_click": "drop"}, "no_click must be one of"),
        ({"gain": "linaer"}, "did you mean 'linear'"),
        ({"ap_denominator": "k"}, "ap_denominator must be one of"),
        ({"examination": [1.0, 2.0]}, "examination must be"),
    ],
)
def test_wrong_settings_are_rejected(settings, message):
    with pytest.raises(InputError, match=message):
        RankingMetrics(**settings)


def test_rejected_updates_add_nothing():
    data = random_lists(20)
    plain, attracted = without(data, "attraction", "positions"), without(data, "positions")
    with pytest.raises(InputError, match=r"expected clicks need attraction and.*examination"):
        RankingMetrics().update(**data)
    metrics = RankingMetrics(examination=EXAMINATION)
    with pytest.raises(InputError, match="got positions: expected clicks need attraction"):
        metrics.update(**without(data, "attraction"))
    metrics.update(**attracted)
    before = metrics.compute()
    for other, message in (
        (plain, "got neither attraction nor positions, unlike earlier updates"),
        (data, "got attraction and positions, unlike earlier updates"),
        ({**attracted, "attraction": data["attraction"][:, :3]}, "attraction must have the shape of scores"),
        ({**attracted, "scores": np.full_like(data["scores"], np.nan)}, "scores of real items must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            metrics.update(**other)
        assert metrics.compute() == before
    twice = RankingMetrics(examination=EXAMINATION)
    with pytest.raises(InputError, match="has one position twice"):
        twice.update(**{**data, "positions": np.zeros_like(data["positions"])})


def test_accumulators_with_different_settings_cannot_be_merged():
    data = random_lists(20)
    metrics = accumulate(data, examination=EXAMINATION)
    with pytest.raises(InputError, match="only equal settings"):
        metrics.merge(RankingMetrics(ks=(1,), examination=EXAMINATION))
    with pytest.raises(InputError, match="to both or neither"):
        metrics.merge(accumulate(without(data, "positions"), examination=EXAMINATION))
