"""Trees in numpy: against trees worked out by hand, and against LightGBM."""

import numpy as np
import pytest

from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.lightgbm_trees import parse_ensemble
from hf_rerank.processing.trees import TreeEnsemble

lightgbm = pytest.importorskip("lightgbm")


def small_ensemble():
    """x0 <= 1 ? (x1 in {2, 3} ? 10 : 20) : 30, missing x0 to the right; and a tree that is one leaf of 0.5."""
    return TreeEnsemble(
        roots=np.array([0, -4], dtype=np.int32),
        feature=np.array([0, 1], dtype=np.int32),
        threshold=np.array([1.0, 0.0]),
        left=np.array([1, -1], dtype=np.int32),
        right=np.array([-3, -2], dtype=np.int32),
        default_left=np.zeros(2, dtype=np.uint8),
        missing=np.array([2, 0], dtype=np.uint8),
        category_set=np.array([-1, 0], dtype=np.int32),
        categories=np.array([[0, 0, 1, 1]], dtype=np.uint8),
        leaves=np.array([10.0, 20.0, 30.0, 0.5]),
    )


def test_items_follow_the_splits():
    values = np.array([[1.0, 2.0], [1.0, 3.0], [0.0, 1.0], [0.0, 7.0], [0.0, -1.0], [1.1, 2.0], [np.nan, 2.0]])
    assert small_ensemble().scores(values).tolist() == [10.5, 10.5, 20.5, 20.5, 20.5, 30.5, 30.5]
    assert small_ensemble().scores(np.zeros((0, 2))).tolist() == []


@pytest.mark.parametrize(("use_missing", "zero_as_missing"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("objective", ["lambdarank", "binary"])
def test_scores_equal_those_of_lightgbm(use_missing, zero_as_missing, objective):
    draw = np.random.default_rng(0)
    values = draw.normal(size=(2000, 6))
    values[:, 1] = np.round(values[:, 1] * 2) / 2
    values[draw.random(values.shape) < 0.15] = np.nan
    values[draw.random(2000) < 0.3, 0] = 0.0
    values[:, 4], values[:, 5] = draw.integers(0, 40, 2000), draw.integers(0, 5, 2000)
    labels = (np.nan_to_num(values[:, 0]) + (values[:, 4] % 3 == 0) + np.isnan(values[:, 2]) > 1.2).astype(int)
    options = {"objective": objective, "num_leaves": 15, "min_data_in_leaf": 5, "num_threads": 1, "verbose": -1}
    options |= {"use_missing": use_missing, "zero_as_missing": zero_as_missing}
    data = lightgbm.Dataset(values, labels, group=[10] * 200, categorical_feature=[4, 5])
    booster = lightgbm.train(options, data, 40)
    ensemble = parse_ensemble(booster.model_to_string())
    new = draw.normal(size=(1000, 6))
    new[draw.random(new.shape) < 0.3] = np.nan
    new[draw.random(new.shape) < 0.2] = 0.0
    new[:, 4], new[:, 5] = draw.integers(-1, 60, 1000), draw.integers(0, 9, 1000)
    assert len(ensemble.categories) > 0
    for rows in (values, new):
        np.testing.assert_allclose(ensemble.scores(rows), booster.predict(rows, raw_score=True), rtol=0, atol=1e-6)


def test_scores_do_not_depend_on_how_many_items_are_processed_at_once(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, 2))
    whole = small_ensemble().scores(values)
    monkeypatch.setattr("hf_rerank.processing.trees._PAIRS", 8)
    assert small_ensemble().scores(values).tolist() == whole.tolist()


def test_trees_that_read_more_columns_than_the_lists_have_are_refused():
    with pytest.raises(InputError, match="read 2 columns, but the lists have 1"):
        small_ensemble().scores(np.zeros((3, 1)))


def test_averaged_trees_are_refused():
    with pytest.raises(InputError, match="boosting gbdt"):
        parse_ensemble("tree\nversion=v4\naverage_output\nTree=0\n")
