"""Evaluation: orders checked by arithmetic on three small lists, and models whose obedience is known in advance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from hf_rerank import Categorical, InputError, ListProcessor, ListSchema
from hf_rerank.evaluation import EvaluationSums, evaluate, evaluate_orders
from hf_rerank.evaluation.evaluator import encode_batches, make_comparable, measure_obedience
from hf_rerank.metrics import ndcg
from hf_rerank.models.auto import RERANKERS
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput
from hf_rerank.models.config import RerankerConfig
from hf_rerank.principled import obedience
from hf_rerank.schema import MODEL_TENSORS, ListBatch

SCHEMA = ListSchema(
    items=[Categorical("item_id", min_count=1)],
    position="position",
    list_id="list_id",
    attraction="attraction",
    examination=[1.0, 0.5, 0.25],
    max_list_length=3,
)
# In the initial order: A shows slots 1, 2, 0, its click last; B shows slots 1, 0, its click first; C has no click.
LISTS = pa.table(
    {
        "list_id": ["A", "B", "C"],
        "item_id": [[1, 2, 3], [4, 5], [6]],
        "position": [[2, 0, 1], [1, 0], [0]],
        "attraction": [[0.9, 0.1, 0.4], [0.2, 0.6], [0.5]],
        "click": [[1, 0, 0], [0, 1], [0]],
    }
)


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(LISTS, schema=SCHEMA)


def random_lists(count: int, seed: int) -> pa.Table:
    """Random lists of 2 or 3 items."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 4, count)
    return pa.table(
        {
            "list_id": [f"{seed}-{number}" for number in range(count)],
            "item_id": [random.integers(1, 7, length).tolist() for length in lengths],
            "position": [random.permutation(length).tolist() for length in lengths],
            "attraction": [random.random(length).round(3).tolist() for length in lengths],
            "click": [random.integers(0, 2, length).tolist() for length in lengths],
        }
    )


class Scorer(PreTrainedReranker):
    """A re-ranker that scores by a formula of each item's table row and the position at which it is shown."""

    def __init__(self, formula: Any, task_loss: str = "binary_log_loss") -> None:
        super().__init__(RerankerConfig(item_vocab_sizes=[8], max_list_length=3, task_loss=task_loss))
        self.formula = formula
        self.somewhere = nn.Parameter(torch.zeros(()))
        self.modes: list[bool] = []
        self.shown: list[Tensor] = []
        self.post_init()

    def embed(self, batch: ListBatch) -> dict[str, Tensor]:
        self.modes.append(self.training)
        return {"rows": batch.item_categorical[..., 0].float(), "mask": batch.mask}

    def score(self, context: dict[str, Tensor], position_ids: Tensor) -> RerankerOutput:
        self.shown.append(position_ids)
        return RerankerOutput(logits=self.formula(context["rows"], position_ids.float()))


def keeps_order(rows: Tensor, positions: Tensor) -> Tensor:
    return -positions


def reverses_order(rows: Tensor, positions: Tensor) -> Tensor:
    return positions


def by_item(rows: Tensor, positions: Tensor) -> Tensor:
    return -rows


# ----------------------------------------------------------------------------------------------------- rows of a table


def test_measures_of_the_initial_order(processor: ListProcessor) -> None:
    row = evaluate_orders(processor, LISTS, ks=(2, 3))["initial"]
    expected = {
        # A's click is at rank 3: 1 / log2(4) = 0.5. B's is first: 1. C counts 0.
        "ndcg@3": (0.5 + 1 + 0) / 3,
        "ndcg@2": (0 + 1 + 0) / 3,
        "mrr@3": (1 / 3 + 1 + 0) / 3,
        "precision@2": (0 + 1 / 2 + 0) / 3,
        # A: 1 x 0.1 + 0.5 x 0.4 + 0.25 x 0.9 = 0.525; B: 0.6 + 0.5 x 0.2 = 0.7; C: 0.5.
        "expected_clicks": (0.525 + 0.7 + 0.5) / 3,
        # A: 0.9 + 0.5 x 0.4 + 0.25 x 0.1 = 1.125; B and C are at their best already.
        "expected_clicks_best": (1.125 + 0.7 + 0.5) / 3,
        "expected_clicks_initial": (0.525 + 0.7 + 0.5) / 3,
        "expected_clicks_share": 0.0,
        # In A no pair is ordered correctly; in B the only pair is.
        "gauc": 0.5,
        # Clicks at positions 2 and 0; others at 0, 1 (A), 1 (B), 0 (C). Of 8 pairs, 2 are correct, 2 ties count half.
        "auc": 3 / 8,
        "lists": 3,
        "items": 6,
        "lists_without_click": 1,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_measures_of_the_order_by_true_attraction(processor: ListProcessor) -> None:
    row = evaluate_orders(processor, LISTS, ks=(3,))["true_attraction"]
    # Both clicks are on their list's most attractive item, 0.9 and 0.6, above all four others.
    expected = {"ndcg@3": 2 / 3, "auc": 1.0, "gauc": 1.0, "expected_clicks_share": 1.0}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["expected_clicks"] == pytest.approx(row["expected_clicks_best"]) == pytest.approx(2.325 / 3)


def test_lists_without_a_click_can_be_skipped(processor: ListProcessor) -> None:
    rows = evaluate_orders(processor, LISTS, ks=(3,), no_click="skip")
    assert rows["initial"]["ndcg@3"] == pytest.approx((0.5 + 1) / 2)
    assert rows["initial"]["expected_clicks"] == pytest.approx(1.725 / 3)  # expected clicks need no observed click


def splitmix64(number: int) -> int:
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def test_random_order_follows_the_documented_hash(processor: ListProcessor) -> None:
    """A hash of (seed, list index, slot), as documented, computed here with Python integers."""
    lists = random_lists(700, seed=1)  # more than one batch
    seed = 11
    values = []
    for number, (positions, clicks) in enumerate(zip(lists["position"], lists["click"], strict=True)):
        keys = [splitmix64(splitmix64(number * 4096 + slot) + seed) for slot in range(len(positions))]
        values.append(ndcg(np.array([keys], dtype=np.float64), np.array([clicks.as_py()]), k=3))
    rows = evaluate_orders(processor, lists, ks=(3,), seed=seed)
    assert rows["random"]["ndcg@3"] == pytest.approx(np.mean(values), abs=1e-12)
    assert evaluate_orders(processor, lists, ks=(3,), seed=seed) == rows
    other = evaluate_orders(processor, lists, ks=(3,), seed=12)
    assert other["random"]["ndcg@3"] != rows["random"]["ndcg@3"]
    assert other["initial"] == rows["initial"]


def test_random_orders_are_uniform(processor: ListProcessor) -> None:
    """Expected clicks of a uniform order: mean attraction times the sum of its positions' examination."""
    lists = random_lists(3000, seed=2)
    expected = [np.mean(row) * sum([1.0, 0.5, 0.25][: len(row)]) for row in lists["attraction"].to_pylist()]
    row = evaluate_orders(processor, lists)["random"]
    assert row["expected_clicks"] == pytest.approx(np.mean(expected), abs=0.01)
    assert row["auc"] == pytest.approx(0.5, abs=0.025)


def test_without_true_attraction_only_random_and_initial_orders_are_evaluated(processor: ListProcessor) -> None:
    without = LISTS.drop_columns("attraction")
    rows = evaluate_orders(processor, without)
    assert rows.keys() == {"random", "initial"}
    assert "expected_clicks" not in rows["initial"]


# ------------------------------------------------------------------------------------------------------------ evaluate


def test_a_model_that_keeps_the_given_order(processor: ListProcessor) -> None:
    found = evaluate(Scorer(keeps_order), processor, LISTS, ks=(2, 3), obedience_k=2)
    initial = evaluate_orders(processor, LISTS, ks=(2, 3))["initial"]
    assert {name: found[name] for name in initial} == pytest.approx(initial)
    # Given its own ranking, it returns that; given a swap, it returns the swap. C has one item and does not count.
    expected = {
        "p1_obedience": 1.0,
        "p2_obedience": 0.0,
        "fixed_point_rate": 1.0,
        "fixed_point_steps": 0.0,
        "cycle_rate": 0.0,
        # A swap moves 2 of 3 items in A, and 2 of 2 in B.
        "p2_item_obedience": (1 / 3 + 0) / 2,
        # Of A's 3 pairs, one is reversed: (2 - 1) / 3; B's only pair is: -1.
        "p2_kendall_tau": (1 / 3 - 1) / 2,
        # A's top 2, as a set, survives the swap of positions 0 and 1, not that of 1 and 2; B's top 2 is all of B.
        "p2_set_obedience@2": (1 / 2 + 1) / 2,
        # Standard deviation of 0, -1, -2 and of 0, -1.
        "score_spread": ((2 / 3) ** 0.5 + 0.5) / 2,
        "collapsed_share": 0.0,
        "obedience_lists": 2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["settings"]["ks"] == [2, 3]


def test_a_model_that_reverses_the_order_cycles(processor: ListProcessor) -> None:
    found = evaluate(Scorer(reverses_order), processor, LISTS, obedience_k=2)
    assert (found["p1_obedience"], found["fixed_point_rate"], found["cycle_rate"]) == (0.0, 0.0, 1.0)
    assert np.isnan(found["fixed_point_steps"])


def test_a_model_that_ignores_the_order_obeys_both_principles(processor: ListProcessor) -> None:
    """Table rows grow with the item's number: A's click is ranked first, B's second."""
    found = evaluate(Scorer(by_item), processor, LISTS, ks=(3,))
    assert (found["p1_obedience"], found["p2_obedience"]) == (1.0, 1.0)
    assert found["ndcg@3"] == pytest.approx((1 + 1 / np.log2(3)) / 3)
    # A: 0.9 + 0.5 x 0.1 + 0.25 x 0.4 = 1.05; B: 0.2 + 0.5 x 0.6 = 0.5; C: 0.5. The best is 2.325, the initial 1.725.
    assert found["expected_clicks"] == pytest.approx(2.05 / 3)
    assert found["expected_clicks_share"] == pytest.approx((2.05 - 1.725) / (2.325 - 1.725), rel=1e-5)


def test_batch_size_changes_no_measure_and_progress_counts_lists(processor: ListProcessor) -> None:
    lists = random_lists(50, seed=3)
    scorer = Scorer(lambda rows, positions: torch.sin(3 * rows + positions))
    reported: list[int] = []
    whole = evaluate(scorer, processor, lists, progress=reported.append)
    in_parts = evaluate(scorer, processor, lists, batch_size=7, progress=reported.append)
    assert reported == [50, *[7] * 7, 1]
    for name in ("settings", "unknown_share", "drift"):
        assert whole.pop(name) == in_parts.pop(name)
    assert whole["lists"] == 50
    assert in_parts == pytest.approx(whole)


def test_unknown_values_are_reported(processor: ListProcessor) -> None:
    lists = LISTS.set_column(1, "item_id", pa.array([[1, 99, 98], [4, 5], [97]]))
    assert evaluate(Scorer(keeps_order), processor, lists)["unknown_share"] == {"item_id": 3 / 6}


def test_all_passes_share_one_embedding(processor: ListProcessor) -> None:
    """One forward per batch: the given order, its ranking, both swaps, and further steps towards the fixed point.

    Three items that each move by one position return after three steps: P(0) to P(2) are known from the ranking and
    the ranking of the ranking, and one more pass gives P(3).
    """
    turning = Scorer(lambda rows, positions: -((positions + 1) % 3))
    lists = pa.table({"list_id": ["A"], "item_id": [[1, 2, 3]], "position": [[2, 0, 1]], "click": [[1, 0, 0]]})
    evaluate(turning, processor, lists, obedience_k=2)
    assert turning.modes == [False], "embedded once"
    assert [order[0].tolist() for order in turning.shown] == [
        [2, 0, 1],  # given
        [0, 1, 2],  # its ranking
        [2, 1, 0],  # the items at positions 0 and 1 swapped
        [1, 0, 2],  # those at 1 and 2 swapped
        [1, 2, 0],  # the ranking of the ranking; given this, the scorer returns the first order
    ]
    turning.shown.clear()
    found = evaluate(turning, processor, lists, obedience_k=2, max_steps=1)
    assert (len(turning.shown), found["cycle_rate"]) == (4, 0.0), "P(3) needs no further pass"
    assert "cycle_rate" not in evaluate(turning, processor, lists, max_steps=0)


@pytest.mark.parametrize("task_loss", ["binary_log_loss", "listnet_loss"])
@pytest.mark.parametrize("name", RERANKERS)
def test_passes_that_share_an_embedding_equal_separate_calls(name: str, task_loss: str) -> None:
    """One forward measures the same as separate calls of the model, each with its own order."""
    torch.manual_seed(4)
    lists = random_lists(60, seed=5).append_column("user", pa.array([number % 3 for number in range(60)]))
    schema = SCHEMA.replace(user=(Categorical("user", min_count=1),))  # RAISE needs a user feature
    processor = ListProcessor.from_lists(lists, schema=schema)
    config, model_class = RERANKERS[name]
    model = model_class(config.for_schema(processor.schema, task_loss=task_loss, initializer_range=0.5)).eval()
    for seed, batch in enumerate(encode_batches(lists, processor, batch_size=25)):
        inputs = {column: values for column, values in batch.items() if column in MODEL_TENSORS}
        options: dict[str, Any] = {"swaps": "one" if seed else "all", "max_steps": 4}
        if seed:
            options["list_keys"] = torch.arange(100, 100 + len(batch["mask"]))
        output = measure_obedience(model, inputs, obedience_k=2, **options)
        assert not output.logits.requires_grad
        alone = model(**inputs)
        torch.testing.assert_close(output.logits, alone.logits, atol=1e-6, rtol=0)
        torch.testing.assert_close(output.loss, alone.loss, atol=1e-6, rtol=0)

        def score(order: Tensor, inputs: dict[str, Tensor] = inputs) -> Tensor:
            with torch.no_grad():
                return model(**{**inputs, "position_ids": order}).logits

        expected = obedience(score, inputs["position_ids"], inputs["mask"], k=2, reduction="none", **options)
        assert output.losses.keys() == expected.keys()
        for measure, values in expected.items():
            torch.testing.assert_close(output.losses[measure], values, equal_nan=True, atol=1e-5, rtol=0)


def test_obedience_is_averaged_over_batches(processor: ListProcessor) -> None:
    """Equal to the means, over lists of two or more items, of ``measured`` values for all lists in one batch."""
    torch.manual_seed(6)
    config, model_class = RERANKERS["dnn"]
    model = model_class(config.for_schema(processor.schema, hidden_sizes=[8], initializer_range=0.5)).train()
    lists = pa.concat_tables([random_lists(30, seed=7), LISTS])  # the last of which has one item
    found = evaluate(model, processor, lists, obedience_k=2, batch_size=7)
    assert model.training
    each: dict[str, list[Tensor]] = {}
    for batch in encode_batches(lists, processor):
        inputs = {column: values for column, values in batch.items() if column in MODEL_TENSORS}
        for name, values in measure_obedience(model.eval(), inputs, obedience_k=2).losses.items():
            each.setdefault(name, []).append(values)
    assert "collapsed_share" in each
    for name, values in each.items():
        assert found[name] == pytest.approx(torch.cat(values).nanmean().item(), nan_ok=True)
    assert found["obedience_lists"] == 32


def test_equal_scores_are_reported_as_collapsed(processor: ListProcessor) -> None:
    """They obey both principles but are useless; C has one item and is left out."""
    found = evaluate(Scorer(lambda rows, positions: 0 * rows), processor, LISTS)
    assert (found["collapsed_share"], found["score_spread"], found["obedience_lists"]) == (1.0, 0.0, 2)
    assert (found["p1_obedience"], found["p2_obedience"]) == (1.0, 1.0)


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_restored(processor: ListProcessor, training: bool) -> None:
    scorer = Scorer(keeps_order).train(training)
    evaluate(scorer, processor, LISTS)
    assert scorer.training is training
    assert set(scorer.modes) == {False}
    scorer.formula = lambda rows, positions: rows / 0 * 0  # NaN
    with pytest.raises(InputError, match=r"NaN|finite"):
        evaluate(scorer, processor, LISTS)
    assert scorer.training is training


def test_wrong_lists_are_rejected(processor: ListProcessor) -> None:
    scorer = Scorer(keeps_order)
    cases: list[tuple[Any, str]] = [
        (LISTS.slice(0, 0), "no list"),
        ({"train": LISTS}, r"lists\['train'\]"),
        ([{"item_id": [1]}], "dataset or an arrow table"),
        (LISTS.drop_columns("click"), "'click'"),
        (LISTS.drop_columns("position"), "'position'"),
        (LISTS.set_column(1, "item_id", pa.array([[1, 2, 3], [4], [6]])), r"list 1 \(id B\)"),
    ]
    for lists, message in cases:
        for measure in (
            lambda given: evaluate(scorer, processor, given),
            lambda given: evaluate_orders(processor, given),
        ):
            with pytest.raises(InputError, match=message):
                measure(lists)


# ---------------------------------------------------------------------------------------------------------------- sums


def test_nan_measures_are_left_out() -> None:
    sums = EvaluationSums((3,))
    nan = float("nan")
    for scores, measure in (([[2.0, 1.0]], [0.5]), ([[2.0, 1.0]], [nan]), ([[1.0, 2.0]], [0.75])):
        labels, mask = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
        measures = {"p1_obedience": torch.tensor(measure)}
        sums.add(
            torch.tensor(scores), labels, mask, torch.tensor([[0, 1]]), attraction=torch.ones(1, 2), measures=measures
        )
    found = sums.compute()
    assert found["p1_obedience"] == pytest.approx((0.5 + 0.75) / 2)
    assert found["obedience_lists"] == 2
    assert found["gauc"] == pytest.approx(2 / 3)
    assert "expected_clicks" not in found  # attraction without examination


# --------------------------------------------------------------------------------------------------- comparable scores

LISTWISE = ("softmax_loss", "attention_rank_loss", "listnet_loss", "lambda_loss")
LOGITS = torch.tensor([[2.0, -1.0, 30.0, 0.5], [40.0, 39.0, 7.0, 7.0]])
MASK = torch.tensor([[True, True, False, True], [True, True, False, False]])


def orders_by_logits() -> Iterator[Tensor]:
    for row, mask in zip(LOGITS, MASK, strict=True):
        yield row[mask].argsort(descending=True)


@pytest.mark.parametrize("task_loss", ["binary_log_loss", *LISTWISE])
def test_comparable_scores_rank_like_the_logits(task_loss: str) -> None:
    scores = make_comparable(LOGITS, task_loss, MASK)
    for row, mask, order in zip(scores, MASK, orders_by_logits(), strict=True):
        assert row[mask].isfinite().all()
        assert row[mask].argsort(descending=True).equal(order)


@pytest.mark.parametrize("task_loss", LISTWISE)
def test_listwise_scores_are_invariant_to_shifting_a_list(task_loss: str) -> None:
    scores = make_comparable(LOGITS, task_loss, MASK)
    shifted = make_comparable(LOGITS + torch.tensor([[100.0], [-3.0]]), task_loss, MASK)
    assert torch.allclose(shifted[MASK], scores[MASK], atol=1e-4)
    # They compare like the probabilities: e^2 / (e^2 + e^-1 + e^0.5) and e / (e + 1).
    first, second = np.exp(2) / (np.exp(2) + np.exp(-1) + np.exp(0.5)), np.e / (np.e + 1)
    assert scores[0, 0].exp().item() == pytest.approx(first, rel=1e-5)
    assert scores[1, 0].exp().item() == pytest.approx(second, rel=1e-5)


def test_log_loss_scores_are_the_logits() -> None:
    """The probabilities of logits 40 and 39 are both 1 in float32; the logits still differ."""
    scores = make_comparable(LOGITS.bfloat16(), "binary_log_loss", MASK)
    assert scores.dtype == torch.float32
    assert scores.equal(LOGITS)
