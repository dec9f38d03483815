"""Paired comparisons: intervals checked against written-out arithmetic and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from hf_rerank.errors import InputError
from hf_rerank.evaluation.comparing import (
    bootstrap_interval,
    compare,
    comparison_rows,
    holm,
    plot_comparisons,
    t_interval,
)


def test_t_interval_matches_arithmetic_and_scipy() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, error 1 / sqrt(3); t(0.975, 2) = 4.302653.
    interval = t_interval([1.0, 2.0, 3.0])
    half = 4.302652729749462 / math.sqrt(3)
    assert interval.mean == 2.0
    assert interval.low == pytest.approx(2.0 - half)
    assert interval.high == pytest.approx(2.0 + half)
    assert interval.p_value == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0], 0.0).pvalue)


def test_one_seed_gives_an_infinite_interval() -> None:
    interval = t_interval([0.5])
    assert (interval.low, interval.high, interval.p_value) == (-math.inf, math.inf, 1.0)


def test_equal_differences_do_not_divide_by_zero() -> None:
    assert t_interval([0.0, 0.0]).p_value == 1.0
    assert t_interval([0.1, 0.1]).p_value == 0.0


def test_an_empty_list_of_differences_is_rejected() -> None:
    with pytest.raises(InputError, match="one per seed"):
        t_interval([])


def test_holm_multiplies_by_the_remaining_tests_and_never_decreases() -> None:
    # 0.01 * 3 = 0.03; 0.03 * 2 = 0.06; 0.04 * 1 = 0.04, raised to 0.06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_bootstrap_resamples_groups_rather_than_lists() -> None:
    # Ten lists for each of 40 users, one value per user: as uncertain as 40 values, not as 400.
    generator = np.random.default_rng(0)
    of_user = generator.normal(size=40)
    values, users = np.repeat(of_user, 10), np.repeat(np.arange(40), 10)
    interval = bootstrap_interval(values, users)
    error = of_user.std() / math.sqrt(40)
    assert interval.mean == pytest.approx(of_user.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert interval.count == 40


def test_bootstrap_weights_groups_by_list_count_and_ignores_nan() -> None:
    interval = bootstrap_interval([1.0, 1.0, 1.0, 5.0, math.nan], ["a", "a", "a", "b", "c"])
    assert interval.mean == 2.0  # (1 + 1 + 1 + 5) / 4
    assert (interval.low, interval.high) == (1.0, 5.0)  # all draws of a, all draws of b
    assert interval.count == 2


def test_bootstrap_rejects_wrong_group_counts_and_all_nan_values() -> None:
    with pytest.raises(InputError, match="one group per list"):
        bootstrap_interval([1.0], ["a", "b"])
    with pytest.raises(InputError, match="NaN"):
        bootstrap_interval([math.nan], ["a"])


RUNS = {
    "PRM": {0: {"ndcg@10": 0.50}, 1: {"ndcg@10": 0.52}, 2: {"ndcg@10": 0.54}},
    "DNN": {0: {"ndcg@10": 0.49}, 1: {"ndcg@10": 0.50}, 2: {"ndcg@10": 0.51}},
    "tree": {0: {"ndcg@10": 0.50}, 1: {"ndcg@10": 0.52}, 5: {"ndcg@10": 0.9}},
}


def test_differences_are_paired_by_seed() -> None:
    found = compare(RUNS, [("PRM", "DNN"), ("PRM", "tree")], "ndcg@10")
    assert found[0].over_seeds.mean == pytest.approx(0.02)  # 0.01, 0.02, 0.03
    assert found[0].base_mean == pytest.approx(0.50)
    assert found[1].over_seeds.count == 2  # seeds 0 and 1 only
    assert found[1].over_seeds.mean == pytest.approx(0.0)
    p = stats.ttest_1samp([0.01, 0.02, 0.03], 0.0).pvalue
    assert found[0].corrected_p == pytest.approx(2 * p)  # two tests


def test_values_per_list_give_an_interval_over_groups() -> None:
    per_list = {
        "PRM": {0: np.array([1.0, 0.5]), 1: np.array([0.0, 0.5]), 2: np.array([0.5, 0.5])},
        "DNN": {0: np.array([0.5, 0.5]), 1: np.array([0.5, 0.5]), 2: np.array([0.2, 0.5])},
    }
    (found,) = compare(RUNS, [("PRM", "DNN")], "ndcg@10", per_list=per_list, groups=["a", "b"])
    # Means over seeds: list a (0.5 - 0.5 + 0.3) / 3 = 0.1, list b 0; over both 0.05.
    assert found.over_groups is not None
    assert found.over_groups.mean == pytest.approx(0.05)


def test_models_without_a_common_seed_and_unknown_measures_are_rejected() -> None:
    with pytest.raises(InputError, match="no seed in common"):
        compare({"a": {0: {"x": 1.0}}, "b": {1: {"x": 1.0}}}, [("a", "b")], "x")
    with pytest.raises(InputError, match="no measure 'y'"):
        compare({"a": {0: {"x": 1.0}}, "b": {0: {"x": 1.0}}}, [("a", "b")], "y")


def test_comparisons_as_a_table_and_as_a_figure(tmp_path) -> None:
    found = compare(RUNS, [("PRM", "DNN")], "ndcg@10")
    assert "PRM - DNN" in str(comparison_rows(found))
    plot_comparisons(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no comparison"):
        plot_comparisons([], tmp_path / "other.png")


def test_bootstrap_p_value() -> None:
    # All means are above 0: none of 2,000 on the other side, 2 * (1 + 0) / 2,001.
    assert bootstrap_interval([1.0, 2.0], ["a", "b"]).p_value == pytest.approx(2 / 2001)
    # Equal differences of 0: every mean counts for both sides, and p is capped at 1.
    assert bootstrap_interval([0.0, 0.0], ["a", "b"]).p_value == 1.0
    # With two groups at -1 and 1, a quarter of the draws is below 0 and half is 0: p is 1.
    assert bootstrap_interval([-1.0, 1.0], ["a", "b"]).p_value == 1.0


def test_p_values_over_groups_are_corrected_for_multiple_tests() -> None:
    per_list = {name: {0: np.full(4, value)} for name, value in (("a", 1.0), ("b", 0.5), ("c", 0.5))}
    runs = {name: {0: {"x": float(values[0].mean())}} for name, values in per_list.items()}
    found = compare(runs, [("a", "b"), ("b", "c")], "x", per_list=per_list, groups=[0, 1, 2, 3])
    assert [entry.corrected_p_groups for entry in found] == pytest.approx([2 * 2 / 2001, 1.0])
    assert compare(runs, [("a", "b")], "x")[0].corrected_p_groups == 1.0


def test_seeds_agree_if_all_differences_have_the_same_sign() -> None:
    values = {"a": (0.2, 0.3), "b": (0.1, 0.1), "c": (0.25, 0.1)}
    runs = {name: {seed: {"x": value} for seed, value in enumerate(of_seed)} for name, of_seed in values.items()}
    # a - b: 0.1, 0.2; b - a: both below 0; a - c: -0.05, 0.2; b - b: 0, which has no sign.
    pairs = [("a", "b"), ("b", "a"), ("a", "c"), ("b", "b")]
    assert [entry.seeds_agree for entry in compare(runs, pairs, "x")] == [True, True, False, False]
