"""Metrics: written-out values, comparison with trec_eval and scikit-learn, real labels; then shared properties."""

import doctest
import importlib
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch
from sklearn.metrics import ndcg_score, roc_auc_score

from hf_rerank.errors import InputError
from hf_rerank.metrics import (
    AUCHistogram,
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
    slot_order_auc,
)

REAL_LABELS = Path(__file__).parents[2].parent / "shared" / "data" / "prm_public_labels.txt"
EXAMINATION = 1 / np.arange(1.0, 13.0)

# Metrics with k and no_click, then all metrics that give one value per list.
AT_K = {
    "ndcg": ndcg,
    "ndcg_linear": partial(ndcg, gain="linear"),
    "average_precision": average_precision,
    "average_precision_by_hits": partial(average_precision, denominator="hits"),
    "precision": precision,
    "precision_by_length": partial(precision, denominator="length"),
    "recall": recall,
    "reciprocal_rank": reciprocal_rank,
    "clicks": clicks,
}
BY_LIST = {f"{name}@{k}": partial(metric, k=k) for name, metric in AT_K.items() for k in (None, 1, 3, 100)}
BY_LIST["grouped_auc"] = grouped_auc


def expected_clicks_with_labels_as_attraction(scores, labels, *, mask=None, reduction="mean"):
    """Uses labels as attraction, so that expected clicks run through the same property tests."""
    return expected_clicks(scores, labels, EXAMINATION, mask=mask, reduction=reduction)


BY_LIST["expected_clicks"] = expected_clicks_with_labels_as_attraction
every_at_k = pytest.mark.parametrize("metric", AT_K.values(), ids=AT_K.keys())
every_by_list = pytest.mark.parametrize("metric", BY_LIST.values(), ids=BY_LIST.keys())


def random_lists(lists=50, width=12, seed=0):
    """Distinct scores, 0/1 labels and a ragged mask with holes; some lists without a click, one without items."""
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.linspace(-3, 3, width), (lists, 1)), axis=1)
    labels = (rng.random((lists, width)) < 0.25).astype(np.float64)
    mask = rng.random((lists, width)) < 0.8
    labels[0], mask[1] = 0.0, False
    return scores, labels, mask


# ------------------------------------------------------------------------------------------------- written-out values

log2 = math.log2
# One list in ranked order: labels 0 1 0 2 1. Ideal order: 2 1 1 0 0.
RANKED = [0, 1, 0, 2, 1]
BY_HAND = [
    (ndcg, {}, (1 / log2(3) + 3 / log2(5) + 1 / log2(6)) / (3 / log2(2) + 1 / log2(3) + 1 / log2(4))),
    (ndcg, {"k": 2}, (1 / log2(3)) / (3 / log2(2) + 1 / log2(3))),
    (ndcg, {"k": 4, "gain": "linear"}, (1 / log2(3) + 2 / log2(5)) / (2 / log2(2) + 1 / log2(3) + 1 / log2(4))),
    (average_precision, {}, (1 / 2 + 2 / 4 + 3 / 5) / 3),
    (average_precision, {"k": 2}, (1 / 2) / 2),
    (average_precision, {"k": 4}, (1 / 2 + 2 / 4) / 3),
    (average_precision, {"k": 4, "denominator": "hits"}, (1 / 2 + 2 / 4) / 2),
    (average_precision, {"k": 1, "denominator": "hits"}, 0.0),
    (precision, {}, 3 / 5),
    (precision, {"k": 4}, 2 / 4),
    (precision, {"k": 10}, 3 / 10),
    (precision, {"k": 10, "denominator": "length"}, 3 / 5),
    (recall, {"k": 4}, 2 / 3),
    (reciprocal_rank, {}, 1 / 2),
    (reciprocal_rank, {"k": 1}, 0.0),
    (clicks, {"k": 4}, 2.0),
    (auc, {}, 1 / 6),  # clicks at ranks 2, 4, 5, the others at 1, 3: only rank 2 beats rank 3
    (grouped_auc, {}, 1 / 6),
]


@pytest.mark.parametrize(("metric", "options", "expected"), BY_HAND)
@pytest.mark.parametrize("as_batch", [False, True])
def test_values_match_written_out_arithmetic(metric, options, expected, as_batch):
    # Slots 0..4 hold the items of ranks 3, 1, 5, 2, 4.
    scores, labels = [-3.0, -1.0, -5.0, -2.0, -4.0], [RANKED[rank - 1] for rank in (3, 1, 5, 2, 4)]
    value = metric([scores], [labels], **options) if as_batch else metric(scores, labels, **options)
    assert isinstance(value, float)
    assert value == pytest.approx(expected, abs=1e-12)


def test_pooled_and_grouped_auc_match_written_out_arithmetic():
    scores = [[0.9, 0.5, 0.5], [0.1, 0.2, 0.2], [0.3, 0.4, 0.0]]
    labels = [[0, 1, 0], [0, 1, 1], [0, 0, 0]]
    mask = np.array([[True, True, True], [True, True, True], [True, True, False]])
    # In list 0: below .9, tied with .5 -> 0.25. List 1: the clicks at 0.2 beat 0.1 -> 1. List 2: no click.
    assert grouped_auc(scores, labels, mask=mask) == pytest.approx((0.25 + 1) / 2)
    assert grouped_auc(scores[:2], labels[:2], weighting="items") == pytest.approx((3 * 0.25 + 3 * 1) / 6)
    four = grouped_auc(
        [[*row, 0.0] for row in scores],
        [[*row, 0] for row in labels],
        weighting="items",
        mask=[[True] * 4, [True] * 3 + [False], [True] * 4],
    )
    assert four == pytest.approx((4 * (0 + 0.5 + 1) / 3 + 3 * 1) / 7)
    np.testing.assert_array_equal(grouped_auc(scores, labels, mask=mask, reduction="none"), [0.25, 1.0, math.nan])
    # The lowest real score is not tied with the padding after it, whatever its score.
    assert grouped_auc([[1.0, 0.0, 0.0]], [[0, 1, 0]], mask=[[True, True, False]]) == 0.0
    # Pooled: clicks .5 .2 .2, others .9 .5 .1 .3 .4. The .5 beats three and a half, each .2 beats one.
    assert auc(scores, labels, mask=mask) == pytest.approx((3.5 + 1 + 1) / 15)


def test_expected_clicks_match_written_out_arithmetic():
    attraction, examination = [[0.1, 0.5, 0.3], [0.2, 0.9, 0.4]], [1.0, 0.5, 0.25]
    mask = [[True, True, True], [True, False, True]]
    values = expected_clicks([[3.0, 1.0, 2.0], [1.0, 9.0, 2.0]], attraction, examination, mask=mask, reduction="none")
    first, second = 0.1 + 0.5 * 0.3 + 0.25 * 0.5, 0.4 + 0.5 * 0.2
    np.testing.assert_allclose(values, [first, second])
    best = (0.5 + 0.5 * 0.3 + 0.25 * 0.1 + 0.4 + 0.5 * 0.2) / 2
    assert best_expected_clicks(attraction, examination, mask=mask) == pytest.approx(best)
    # Only real items need positions.
    assert expected_clicks([1.0, 2.0], [0.5, 0.7], [1.0], mask=[False, True]) == pytest.approx(0.7)


def test_slot_order_auc_matches_written_out_arithmetic():
    assert slot_order_auc([[1, 1, 0], [1, 0, 0]]) == pytest.approx((2 * 3 + 3 - 0.5) / 9)  # slot 1: clicked and not
    # Slots count real items only: here each click is the first.
    assert slot_order_auc([[0, 1, 0], [1, 0, 0]], mask=np.array([[False, True, True], [True, True, True]])) == 1.0


# -------------------------------------------------------------------------------------- independent implementations


@pytest.mark.parametrize("k", [1, 5, 10])
def test_equal_to_trec_eval(k):
    rng = np.random.default_rng(1)
    lists, width = 200, 20
    scores = rng.choice(np.arange(width), (lists, width)) / 8.0  # many ties; differences far above 1e-6
    labels = rng.choice([0, 0, 0, 1, 2], (lists, width))
    labels[:, 3] = 1
    mask = np.arange(width) < rng.integers(4, width + 1, (lists, 1))
    # trec_eval breaks ties by descending document id: ids descend with the slot.
    run = {
        str(row): {f"{width - slot:03}": float(scores[row, slot]) for slot in np.flatnonzero(mask[row])}
        for row in range(lists)
    }
    qrel = {
        str(row): {f"{width - slot:03}": int(labels[row, slot]) for slot in np.flatnonzero(mask[row])}
        for row in range(lists)
    }
    names = [f"ndcg_cut_{k}", f"P_{k}", f"recall_{k}", f"map_cut_{k}", "map", "recip_rank"]
    measures = {f"ndcg_cut.{k}", f"P.{k}", f"recall.{k}", f"map_cut.{k}", "map", "recip_rank"}
    answer = pytrec_eval.RelevanceEvaluator(qrel, measures).evaluate(run)
    trec = {name: np.array([answer[str(row)][name] for row in range(lists)]) for name in names}

    of_lists = {"mask": mask, "reduction": "none"}
    clicked = ((labels > 0) & mask).sum(1)
    ours = {
        f"ndcg_cut_{k}": ndcg(scores, labels, k=k, gain="linear", **of_lists),
        f"P_{k}": precision(scores, labels, k=k, **of_lists),
        f"recall_{k}": recall(scores, labels, k=k, **of_lists),
        # trec_eval divides by all clicks, this library by those that fit into k.
        f"map_cut_{k}": average_precision(scores, labels, k=k, **of_lists) * np.minimum(k, clicked) / clicked,
        "map": average_precision(scores, labels, **of_lists),
        "recip_rank": reciprocal_rank(scores, labels, **of_lists),
    }
    for name in names:
        np.testing.assert_allclose(ours[name], trec[name], atol=1e-9, err_msg=name)


def test_equal_to_scikit_learn():
    rng = np.random.default_rng(2)
    scores, labels, mask = random_lists(seed=2)
    labels = labels * rng.integers(1, 4, labels.shape)
    clicked = labels > 0
    tied = np.round(scores)
    assert auc(tied, labels, mask=mask) == pytest.approx(roc_auc_score(clicked[mask], tied[mask]), abs=1e-12)
    by_list = grouped_auc(tied, labels, mask=mask, reduction="none")
    gains = ndcg(scores, labels, mask=mask, k=4, gain="linear", reduction="none")
    for row, real in enumerate(mask):
        if clicked[row, real].any() and not clicked[row, real].all():
            assert by_list[row] == pytest.approx(roc_auc_score(clicked[row, real], tied[row, real]), abs=1e-12)
            assert gains[row] == pytest.approx(ndcg_score([labels[row, real]], [scores[row, real]], k=4), abs=1e-12)
        else:
            assert math.isnan(by_list[row])


@pytest.mark.skipif(not REAL_LABELS.exists(), reason="the real labels are not beside the repository")
def test_published_figures_of_the_initial_order():
    labels = np.array([json.loads(line) for line in REAL_LABELS.read_text().splitlines()])
    scores = -np.broadcast_to(np.arange(30), labels.shape)
    by_hits = partial(average_precision, denominator="hits")
    figures = [(precision, 5, 11.96), (precision, 10, 9.36), (by_hits, 5, 28.24), (by_hits, 10, 29.54),
               (by_hits, 30, 27.06), (ndcg, 5, 25.3), (ndcg, 10, 32.03), (ndcg, 30, 45.71)]  # fmt: skip
    for metric, k, percent in figures:
        assert 100 * metric(scores, labels, k=k) == pytest.approx(percent, abs=0.00501), (metric, k)


# --------------------------------------------------------------------------------------------- shared properties


@every_by_list
def test_masked_equals_removed_and_padding_is_never_read(metric):
    scores, labels, mask = random_lists()
    expected = metric(scores, labels, mask=mask, reduction="none")
    for garbage in (math.nan, math.inf, -math.inf, -100.0):
        dirty = (np.where(mask, scores, garbage), np.where(mask, labels, garbage))
        np.testing.assert_array_equal(metric(*dirty, mask=mask, reduction="none"), expected)
    removed = [metric(scores[row, real], labels[row, real], reduction="none") for row, real in enumerate(mask)]
    np.testing.assert_allclose(removed, expected, rtol=1e-12)


@every_by_list
def test_slot_order_does_not_matter(metric):
    scores, labels, mask = random_lists()
    shuffled = np.random.default_rng(3).permuted(np.tile(np.arange(12), (50, 1)), axis=1)
    moved = [np.take_along_axis(array, shuffled, axis=1) for array in (scores, labels, mask)]
    value = metric(moved[0], moved[1], mask=moved[2], reduction="none")
    np.testing.assert_allclose(value, metric(scores, labels, mask=mask, reduction="none"), rtol=1e-12)


@every_by_list
def test_leading_axes_and_reductions(metric):
    scores, labels, mask = random_lists()
    values = metric(scores, labels, mask=mask, reduction="none")
    assert values.shape == (50,)
    assert values.dtype == np.float64
    folded = metric(*(a.reshape(5, 10, 12) for a in (scores, labels)), mask=mask.reshape(5, 10, 12), reduction="none")
    np.testing.assert_array_equal(folded, values.reshape(5, 10))
    mean = metric(scores, labels, mask=mask)
    assert isinstance(mean, float)
    assert mean == pytest.approx(np.nanmean(values))
    assert metric(scores[2], labels[2], mask=mask[2]) == pytest.approx(values[2])


@pytest.mark.parametrize("metric", [*BY_LIST.values(), auc], ids=[*BY_LIST, "auc"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_equal_arrays(metric, dtype):
    scores, labels, mask = random_lists()
    tensor = torch.tensor(scores, dtype=dtype, requires_grad=True)
    value = metric(tensor, torch.tensor(labels), mask=torch.tensor(mask))
    assert value == metric(tensor.detach().double().numpy(), labels, mask=mask)
    assert isinstance(value, float)


@every_by_list
def test_ties_keep_slot_order(metric):
    if metric is grouped_auc:
        assert metric([[1.0, 1.0, 1.0]], [[1, 0, 1]]) == 0.5
        return
    _, labels, mask = random_lists()
    slots = np.broadcast_to(-np.arange(12), labels.shape)
    tied = metric(np.ones(labels.shape), labels, mask=mask, reduction="none")
    np.testing.assert_array_equal(tied, metric(slots, labels, mask=mask, reduction="none"))


@every_at_k
def test_lists_without_a_click(metric):
    scores = np.arange(8.0).reshape(4, 2)
    labels, mask = np.array([[0, 1], [0, 0], [1, 1], [0, 1]]), np.array([[1, 1], [1, 1], [0, 0], [1, 1]]) > 0
    zero = metric(scores, labels, mask=mask, k=1, reduction="none")
    skip = metric(scores, labels, mask=mask, k=1, reduction="none", no_click="skip")
    np.testing.assert_array_equal(zero, [1, 0, 0, 1])
    np.testing.assert_array_equal(skip, [1, math.nan, math.nan, 1])
    assert metric(scores, labels, mask=mask, k=1) == 0.5
    assert metric(scores, labels, mask=mask, k=1, no_click="skip") == 1.0
    assert math.isnan(metric(scores[1:3], labels[1:3], mask=mask[1:3], no_click="skip"))


@every_at_k
def test_smallest_inputs(metric):
    assert metric([[0.3]], [[1]]) == 1.0
    assert metric([[0.3]], [[0]]) == 0.0
    assert metric([[0.3]], [[1]], mask=[[False]]) == 0.0
    assert metric(np.zeros((2, 0)), np.zeros((2, 0))) == 0.0
    assert math.isnan(metric(np.zeros((0, 3)), np.zeros((0, 3))))
    assert metric(np.zeros((0, 3)), np.zeros((0, 3)), reduction="none").shape == (0,)


@pytest.mark.parametrize("metric", [auc, grouped_auc])
def test_auc_of_one_class_or_no_items_is_nan(metric):
    for labels in ([[0, 0]], [[1, 1]], [[]], np.zeros((0, 2))):
        assert math.isnan(metric(np.zeros(np.shape(labels)), labels))


def test_histogram_auc_stays_within_its_bound():
    rng = np.random.default_rng(4)
    clicked = rng.random(20_000) < 0.2
    scores = rng.normal(size=20_000) + clicked
    exact = roc_auc_score(clicked, scores)
    for buckets in (4, 64, 1024):
        fractions = (scores - scores.min()) / (scores.max() - scores.min())
        histogram = AUCHistogram(buckets)
        histogram.add(fractions, clicked)
        shared = np.minimum(fractions * buckets, buckets - 1).astype(int)
        same = sum((clicked & (shared == b)).sum() * (~clicked & (shared == b)).sum() for b in range(buckets))
        assert histogram.error_bound() == pytest.approx(same / clicked.sum() / (~clicked).sum() / 2)
        assert 0 < abs(histogram.auc() - exact) <= histogram.error_bound()
    assert auc(scores, clicked, exact_pairs=1000) == pytest.approx(exact, abs=1e-6)
    assert auc(np.ones(4), [0, 1, 1, 0], exact_pairs=1) == 0.5


# ---------------------------------------------------------------------------------------------------- errors


@every_at_k
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": [[0, 1]]}, r"labels must have the shape of scores, \[2, 3\]; got \[1, 2\]"),
        ({"mask": [True, True, True]}, r"mask must have the shape of scores"),
        ({"mask": np.ones((2, 3), int)}, r"mask must be bool.*int64"),
        ({"scores": [[1.0, 2.0, 3.0], [1.0, math.nan, 3.0]]}, r"scores.*finite.*found nan in list 1, slot 1"),
        ({"scores": [[math.inf, 2.0, 3.0], [1.0, 2.0, 3.0]]}, r"scores.*finite.*found inf in list 0, slot 0"),
        ({"labels": [[0, 0, 0], [0, 1, -100]]}, r"labels.*found -100.0 in list 1, slot 2.*pass mask"),
        ({"scores": [[1.0, 2.0], [1.0]]}, r"scores must be lists of one width"),
        ({"scores": 1.0}, r"scores must be numbers of shape"),
        ({"scores": [["a", "b", "c"]] * 2}, r"scores must be numbers"),
        ({"k": 0}, r"k must be a whole number >= 1.*got 0"),
        ({"k": 2.5}, r"k must be a whole number.*got 2.5"),
        ({"k": True}, r"k must be a whole number.*got True"),
        ({"no_click": "skp"}, r"no_click must be one of 'zero', 'skip'; got 'skp'; did you mean 'skip'"),
        ({"reduction": "sum"}, r"reduction must be one of 'mean', 'none'; got 'sum'"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_reported_with_list_and_slot(metric, changed, message):
    with pytest.raises(InputError, match=message):
        metric(**{"scores": np.ones((2, 3)), "labels": np.ones((2, 3)), **changed})


def test_errors_of_individual_metrics():
    ones = np.ones((2, 2, 3))
    for metric, option in ((ndcg, "gain"), (average_precision, "denominator"), (grouped_auc, "weighting")):
        with pytest.raises(InputError, match=f"{option} must be one of"):
            metric(ones, ones, **{option: "other"})
    with pytest.raises(InputError, match=r"attraction.*in \[0, 1\].*found 2.0 in list \(1, 0\), slot 2"):
        expected_clicks(ones, np.where(np.arange(12).reshape(2, 2, 3) == 8, 2.0, ones), [1.0] * 3)
    with pytest.raises(InputError, match="examination has 2 positions, but the longest list has 3"):
        expected_clicks(ones, ones, [1.0, 0.5])
    with pytest.raises(InputError, match="examination must be"):
        expected_clicks(ones, ones, [1.0, 0.5, math.nan])


@pytest.mark.parametrize(
    ("module", "at_least"), [("ranking", 6), ("roc_auc", 2), ("simulated_clicks", 1), ("accumulate", 4)]
)
def test_examples_in_docstrings(module, at_least):
    failed, tried = doctest.testmod(importlib.import_module(f"hf_rerank.metrics.{module}"))
    assert failed == 0
    assert tried >= at_least
