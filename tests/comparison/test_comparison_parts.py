"""The parts of a comparison: random orders, time remaining, per-list measures, findings."""

import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_rerank import Categorical, ListProcessor, ListSchema
from hf_rerank.comparison.arms import LOGGED, PRINCIPLED, WITH, WITHOUT, Arm, Model, Plan, find_models
from hf_rerank.comparison.findings import summarize
from hf_rerank.comparison.measuring import measure_scores, primary_measure, score_logged_order
from hf_rerank.comparison.progress import format_duration, remaining_seconds
from hf_rerank.comparison.random_order import COLUMN, add_random_order, draw_positions
from hf_rerank.comparison.training import ArmRunner
from hf_rerank.errors import InputError

ROWS = [
    {"item": ["a", "b", "c"], "place": [2, 0, 1], "click": [0, 0, 1]},
    {"item": ["b", "a"], "place": [0, 1], "click": [0, 0]},
]
SCHEMA = ListSchema(items=[Categorical("item", min_count=1)], position="place", max_list_length=5)


def test_random_orders_are_uniform_permutations_determined_by_the_seed() -> None:
    lengths = np.array([5, 1, 7, 5])
    found, again, other = (draw_positions(lengths, seed) for seed in (0, 0, 1))
    assert [sorted(order.tolist()) for order in found] == [list(range(length)) for length in lengths]
    assert [a.tolist() for a in found] == [b.tolist() for b in again]
    assert [a.tolist() for a in found] != [b.tolist() for b in other]
    # Each of the 6 orders of 3 items is about equally frequent: 1,000 of 6,000, within 4 standard deviations of 29.
    orders = [tuple(order) for order in draw_positions(np.full(6000, 3), 0)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert all(abs(count - 1000) < 116 for count in counts)


def test_a_random_order_is_added_as_a_column() -> None:
    lists = add_random_order(Dataset.from_list(ROWS), SCHEMA, 0)
    assert [sorted(order) for order in lists[COLUMN]] == [[0, 1, 2], [0, 1]]
    assert lists["place"][0] == [2, 0, 1]


def test_remaining_time_is_estimated_from_the_same_arm_or_else_from_all_arms() -> None:
    assert remaining_seconds({}, ["a"]) is None
    # a takes 2 s on average; c was never run and takes (1 + 3 + 8) / 3 = 4 s.
    assert remaining_seconds({"a": [1.0, 3.0], "b": [8.0]}, ["a", "b", "c"]) == pytest.approx(2 + 8 + 4)
    assert [format_duration(seconds) for seconds in (40, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]


def test_scores_are_evaluated_per_list() -> None:
    lists = Dataset.from_list(ROWS)
    processor = ListProcessor.from_lists(lists, schema=SCHEMA)
    order = score_logged_order(processor, lists)
    assert order.tolist() == [-2, 0, -1, 0, -1]
    found = measure_scores(order, processor, lists, ks=[10], no_click="skip")
    # The click on c is at position 1, the second: 1 / log2(3). The second list has no click.
    assert found.per_list[0] == pytest.approx(1 / math.log2(3))
    assert math.isnan(found.per_list[1])
    assert found.measures["ndcg@10"] == pytest.approx(1 / math.log2(3))


def test_evaluation_counts_gain_and_clicks_like_the_choice_of_checkpoints(tmp_path: Path) -> None:
    graded = Dataset.from_list(
        [
            {"item": ["a", "b"], "place": [0, 1], "click": [1, 3]},
            {"item": ["b", "a"], "place": [0, 1], "click": [2, 1]},
        ]
    )
    processor = ListProcessor.from_lists(graded, schema=SCHEMA)
    training = {"gain": "linear", "no_click": "skip", "click_above": 2.0}
    options = ArmRunner({}, SCHEMA, Plan((), training=training)).evaluation_options(tmp_path)
    assert options == {"ks": [5, 10], **training}
    found = measure_scores(score_logged_order(processor, graded), processor, graded, **options)
    # Grades 1 and 3 at ranks 1 and 2; the ideal order is 3, 1. The second list has no grade above 2.
    expected = (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    assert found.per_list[0] == pytest.approx(expected)
    assert math.isnan(found.per_list[1])
    assert found.measures["ndcg@10"] == pytest.approx(expected)


def test_primary_measure_is_expected_clicks_where_the_ground_truth_is_known() -> None:
    assert primary_measure(SCHEMA) == "ndcg@10"
    assert primary_measure(SCHEMA.replace(attraction="truth", examination=[1.0] * 5)) == "expected_clicks"


def outcome(value: float, validation: float, lists: int = 40) -> dict:
    """Every list has the same value, plus a pattern that averages to 0."""
    noise = np.tile([0.001, -0.001], lists // 2)
    return {
        "test": {"ndcg@10": value},
        "validation": {"ndcg@10": validation},
        "per_list": (value + noise).tolist(),
        "training_seconds": 2.0,
        "milliseconds_per_list": 1.0,
    }


@pytest.mark.slow
def test_the_best_arm_on_validation_is_compared_with_every_simpler_alternative() -> None:
    # With these test values, a choice on the test lists would pick another arm.
    values = {
        Arm("lambdamart", WITHOUT): (0.30, 0.30),
        Arm("lambdamart", WITH): (0.29, 0.31),
        Arm("dnn", WITHOUT): (0.31, 0.30),
        Arm("dnn", WITH): (0.32, 0.29),
        Arm("dnn", PRINCIPLED): (0.32, 0.28),
        Arm("prm", WITHOUT): (0.33, 0.40),
        Arm("prm", WITH): (0.50, 0.35),
        Arm("prm", PRINCIPLED): (0.36, 0.34),
    }
    runs = {
        arm: {seed: outcome(test + 0.001 * seed, validation) for seed in (0, 1)}
        for arm, (test, validation) in values.items()
    }
    fixed = {LOGGED: outcome(0.2, 0.2), "ours": outcome(0.25, 0.2)}
    found = summarize(runs, fixed, measure="ndcg@10", groups=list(range(40)), display_order=True)
    pairs = [(entry.name, entry.base) for entry in found.comparisons]
    assert pairs[:4] == [
        ("prm without order", LOGGED),
        ("prm without order", "ours"),
        ("prm without order", "lambdamart with order"),
        ("prm without order", "dnn without order"),
    ]
    assert ("lambdamart with order", "lambdamart without order") in pairs
    assert ("prm with principles", "prm with order") in pairs
    assert not any("lambdamart with principles" in pair for pair in pairs)
    by_pair = {(entry.name, entry.base): entry for entry in found.comparisons}
    # Seeds 0 and 1 of prm: 0.33 and 0.331, the logged order 0.2: 0.1305 on average.
    assert by_pair["prm without order", LOGGED].over_seeds.mean == pytest.approx(0.1305)
    assert by_pair["prm without order", LOGGED].base_mean == pytest.approx(0.2)
    # prm's order gains 0.17, its principles cost 0.14.
    assert found.recommendation.use == "prm with order"
    rows = {row.name: row for row in found.rows}
    assert (rows[LOGGED].seeds, rows["ours"].spread, rows["ours"].seconds) == (1, None, 2.0)
    # The standard deviation of 0.33 and 0.331 is 0.001 / sqrt(2).
    assert rows["prm without order"].spread == pytest.approx(0.001 / math.sqrt(2))


def test_an_arm_that_loses_to_the_trees_is_not_recommended_because_the_best_arm_beats_them() -> None:
    # Without the order, prm is far better on half of the lists and far worse on the others: the value of the order is
    # open, and on average this arm is 0.02 below LambdaMART.
    far = np.tile([0.6, -0.6], 100)
    values = {
        Arm("lambdamart", WITHOUT): (0.50, 0.50, 0 * far),
        Arm("prm", WITHOUT): (0.48, 0.48, far),
        Arm("prm", WITH): (0.525, 0.52, 0 * far),
        Arm("prm", PRINCIPLED): (0.53, 0.53, 0 * far),
    }
    runs: dict[Arm, dict[int, dict]] = {arm: {} for arm in values}
    for arm, (test, validation, pattern) in values.items():
        for seed, shift in enumerate((0.0, 0.001, -0.001)):
            run = outcome(test + shift, validation, lists=200)
            runs[arm][seed] = {**run, "per_list": (np.array(run["per_list"]) + pattern).tolist()}
    fixed = {LOGGED: outcome(0.4, 0.4, lists=200)}
    found = summarize(runs, fixed, measure="ndcg@10", groups=list(range(200)), display_order=False)
    by_pair = {(entry.name, entry.base): entry for entry in found.comparisons}
    for arm in ("prm without order", "prm with order"):
        for simpler in (LOGGED, "lambdamart without order"):
            assert (arm, simpler) in by_pair
    # 0.48 - 0.50, and the same difference in every seed.
    assert by_pair["prm without order", "lambdamart without order"].over_seeds.mean == pytest.approx(-0.02)
    assert found.recommendation.use == "prm with principles"
    # The first set has five pairs: two of the best arm and three within prm. The smallest p-value of 2,000 bootstrap
    # samples is 2 / 2001; the other arms' pairs do not enter.
    assert by_pair["prm with principles", LOGGED].corrected_p_groups == pytest.approx(5 * 2 / 2001)


def test_a_plan_lists_its_arms_and_rejects_wrong_options() -> None:
    models = find_models(["prm", "prm", "dlcm"])
    assert [model.name for model in models] == ["dnn", "prm", "dlcm"]
    assert [model.can_ignore_order for model in models] == [True, True, False]
    plan = Plan(models, config={"embedding_dim": 4, "prm.hidden_size": 8})
    assert len(plan.arms()) == 2 + 3 * 3
    assert [arm.name for arm in Plan(models, has_order=False, trees=False).arms()] == [
        "dnn without order",
        "prm without order",
        "dlcm without order",
    ]
    assert plan.config_options(Arm("prm", WITH)) == {"embedding_dim": 4, "hidden_size": 8}
    assert plan.config_options(Arm("dnn", PRINCIPLED)) == {"embedding_dim": 4}
    for wrong, message in (
        (Plan(models, seeds=0), "at least 1"),
        (Plan(models, config={"pear.hidden_size": 8}), "belongs to a model that is not compared"),
        (Plan(models, training={"principled": "none"}), "choose a preset"),
        (Plan((models[0], Model("dnn", models[0].config_class, models[0].model_class))), "same name"),
    ):
        with pytest.raises(InputError, match=message):
            wrong.check()


def test_an_arm_without_order_leaves_out_every_input_that_reveals_it() -> None:
    plan = Plan(find_models(["prm", "dlcm"]), config={"initial_score": "feature", "position_input": "embedding"})
    assert plan.config_options(Arm("prm", WITHOUT)) == {"initial_score": "none", "position_input": "none"}
    # The DLCM must read an order: it gets a random one.
    assert plan.config_options(Arm("dlcm", WITHOUT)) == {"initial_score": "none", "position_input": "embedding"}
    assert plan.config_options(Arm("prm", WITH)) == plan.config


def test_the_preset_applies_only_to_the_arm_with_principles() -> None:
    numbers = {"fraction": 0.5}
    plan = Plan((), training={"num_train_epochs": 2, "principled": "scaled", "principled_kwargs": numbers})
    assert plan.training_options(Arm("prm", PRINCIPLED)) == plan.training
    for kind in (WITH, WITHOUT):
        assert plan.training_options(Arm("prm", kind)) == {"num_train_epochs": 2, "principled": "none"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prn", "did you mean 'prm'"),
        ("no_such_module:Model", "there is no module 'no_such_module'"),
        ("json:JSONDecoder", "not a subclass of hf_rerank.PreTrainedReranker"),
    ],
)
def test_names_that_are_not_models_are_rejected(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_models([name])
