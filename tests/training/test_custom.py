"""Custom losses, metrics, evaluation sets and term factors, as in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import EvalPrediction, TrainerCallback

from hf_rerank import InputError, RerankTrainer
from hf_rerank.evaluation import EvaluationSums
from hf_rerank.losses import binary_log_loss, softmax_loss
from hf_rerank.metrics import ndcg
from hf_rerank.training.batch_metrics import BatchMetrics

Make = Callable[..., RerankTrainer]
SHORT = {
    "max_steps": 4,
    "per_device_train_batch_size": 16,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
}
TIMES = ("runtime", "per_second", "preparation_time")


def logged(trainer: RerankTrainer) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.endswith(TIMES)}


# -------------------------------------------------------------------------------------------------------------- losses


def custom_log_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return binary_log_loss(outputs.logits, labels, mask=labels != -100)


def custom_softmax_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return softmax_loss(outputs.logits, labels, mask=labels != -100)


@pytest.mark.slow
def test_a_custom_copy_of_the_built_in_loss_gives_identical_training(
    make_trainer: Make, make_model: Any, weights: Any
) -> None:
    """Bit for bit: in every pass, with a fraction of lists, accumulated batches, and in the evaluation loss."""
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"principled": "none"},
        {"principled": "augmentation", "principled_kwargs": {"fraction": 0.4}},
        {"gradient_accumulation_steps": 2},
    )
    for number, options in enumerate(cases):
        found = []
        for name, function in (("built-in", None), ("own", custom_log_loss)):
            model = make_model(hidden_dropout_prob=0.1)
            trainer = make_trainer(model, folder=f"{name}{number}", compute_loss_func=function, **{**SHORT, **options})
            trainer.train()
            found.append((weights(model), logged(trainer), without_times(trainer.evaluate())))
        (first, first_log, measured), (second, second_log, also_measured) = found
        assert all(value.equal(second[name]) for name, value in first.items()), options
        assert first_log == second_log
        assert measured == pytest.approx(also_measured, rel=0, abs=0, nan_ok=True)


@pytest.mark.slow
def test_custom_loss_is_used_in_every_pass_and_in_evaluation(make_trainer: Make, make_model: Any) -> None:
    calls: list[tuple[int, int, float]] = []

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        calls.append((len(outputs.logits), len(labels), float(labels.min())))
        return 3 * custom_softmax_loss(outputs, labels)

    own = make_trainer(
        make_model(hidden_dropout_prob=0.0, unknown_rate=0.0),
        compute_loss_func=loss,
        principled="augmentation",
        principled_kwargs={"fraction": 0.5},
        **{**SHORT, "max_steps": 1},
    )
    before = own.evaluate()["eval_loss"]
    assert {number for number, *_ in calls} == {32, 18}, "50 lists in batches of 32"
    calls.clear()
    own.train()
    assert calls == [(16, 16, -100.0), (8, 8, -100.0), (8, 8, -100.0)]
    (entry,) = logged(own)
    assert entry["loss"] == pytest.approx(entry["task_loss"] + entry["further_task_loss"], rel=1e-5)
    listwise_model = make_model(hidden_dropout_prob=0.0, unknown_rate=0.0, task_loss="softmax_loss")
    expected = make_trainer(listwise_model, folder="built-in").evaluate()["eval_loss"]
    assert before == pytest.approx(3 * expected, rel=1e-5)
    assert own.evaluate()["eval_loss"] != before


def test_graded_labels_are_accepted_with_a_custom_loss(make_trainer: Make, make_lists: Any) -> None:
    """Only the built-in log loss is limited to labels up to 1."""
    rows = make_lists(32, 8).to_list()
    rows[11]["click"][2] = 4
    import datasets

    graded = datasets.Dataset.from_list(rows)
    trainer = make_trainer(train_dataset=graded, eval_dataset=graded, compute_loss_func=custom_softmax_loss, **SHORT)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.slow
def test_a_subclass_with_its_own_compute_loss_trains(make_trainer: Make, make_model: Any) -> None:
    """``compute_loss`` receives features only; without principles, the training equals the built-in one."""
    seen: set[str] = set()

    class Plain(RerankTrainer):
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            seen.update(inputs)
            output = model(**inputs)
            return (output.loss, output) if return_outputs else output.loss

    plain = make_trainer(make_model(), trainer_class=Plain, **SHORT)
    plain.train()
    built_in = make_trainer(make_model(), folder="built-in", principled="none", **SHORT)
    built_in.train()
    assert {"labels", "mask", "position_ids"} <= seen
    assert seen.isdisjoint({"list_id", "attraction"})
    for name, value in built_in.model.state_dict().items():
        assert value.equal(plain.model.state_dict()[name]), name
    ours, theirs = ([entry["loss"] for entry in logged(trainer)] for trainer in (built_in, plain))
    assert theirs == pytest.approx(ours, abs=1e-3)  # upstream rounds logged values
    assert plain.evaluate()["eval_lists"] == 50


# ------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.slow
def test_custom_metrics_see_all_lists_exactly_once(make_trainer: Make, lists: dict[str, Any]) -> None:
    """Once for all lists, across batches of different widths; or batch by batch, with ``compute_result``."""
    shapes: list[tuple[int, ...]] = []

    def at_once(prediction: EvalPrediction) -> dict[str, float]:
        scores, labels = prediction.predictions, prediction.label_ids
        shapes.append(scores.shape)
        assert scores.shape == labels.shape
        mask = labels != -100
        return {"mine": float(ndcg(scores, labels, mask=mask, k=5)), "my_items": int(mask.sum())}

    sums: list[float] = []

    def batch_by_batch(prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        scores, labels = prediction.predictions, prediction.label_ids
        shapes.append(scores.shape)
        sums.extend(ndcg(scores, labels, mask=labels != -100, k=5, reduction="none").tolist())
        if not compute_result:
            return {}
        results = {"mine": float(np.mean(sums)), "my_lists": len(sums)}
        sums.clear()
        return results

    items = sum(len(row) for row in lists["validation"]["item_id"])
    trainer = make_trainer(per_device_eval_batch_size=4, compute_metrics=at_once)
    for _ in range(2):  # an evaluation leaves no state behind
        found = trainer.evaluate()
        assert found["eval_mine"] == pytest.approx(found["eval_ndcg@5"], abs=1e-6)
        assert found["eval_my_items"] == items
    assert shapes == [(50, 8), (50, 8)]
    shapes.clear()
    trainer = make_trainer(trainer.model, per_device_eval_batch_size=4, compute_metrics=batch_by_batch)
    for _ in range(2):
        found = trainer.evaluate()
        assert found["eval_mine"] == pytest.approx(found["eval_ndcg@5"], abs=1e-6)
        assert found["eval_my_lists"] == 50
    assert [number for number, _ in shapes] == [*[4] * 12, 2] * 2
    assert len({width for _, width in shapes}) > 1


def test_custom_metrics_do_not_see_filler_lists() -> None:
    """Several processes fill up the end of a stream with lists without items."""
    seen: list[Any] = []

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        seen.append((prediction.predictions.tolist(), prediction.label_ids.tolist()))
        return {"mine": 1.0}

    sums = BatchMetrics(lambda: EvaluationSums((2,)), metrics)
    labels = torch.tensor([[1.0, 0.0], [0.0, -100.0], [-100.0, -100.0]])
    features = {"labels": labels, "position_ids": torch.tensor([[0, 1]] * 3)}
    scores = torch.tensor([[0.5, 0.25], [2.0, -100.0], [7.0, 7.0]])
    predictions, label_ids = sums.pack(scores, {"p1_obedience": torch.tensor([1.0, 0.5, 0.0])}, features, {})
    found = sums(EvalPrediction(predictions, label_ids), compute_result=True)
    assert seen == [([[0.5, 0.25], [2.0, -100.0]], [[1.0, 0.0], [0.0, -100.0]])]
    assert (found["lists"], found["p1_obedience"], found["mine"]) == (2, 0.75, 1.0)


@pytest.mark.slow
def test_best_checkpoint_by_a_custom_metric(make_trainer: Make) -> None:
    values = iter([0.2, 0.9, 0.1])

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        return {"mine": next(values)}

    options = {**SHORT, "max_steps": 3, "save_total_limit": None, "load_best_model_at_end": True}
    options |= {f"{what}_strategy": "steps" for what in ("eval", "save")}
    options |= {"eval_steps": 1, "save_steps": 1, "metric_for_best_model": "mine"}
    trainer = make_trainer(compute_metrics=metrics, **options)
    trainer.train()
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.9, 2)
    with pytest.raises(InputError, match="metric_for_best_model is 'mine': no such measure, and there are no comp"):
        make_trainer(**options)


# ----------------------------------------------------------------------------------------------------- evaluation sets


@pytest.mark.slow
def test_named_evaluation_sets(make_trainer: Make, make_lists: Any, lists: dict[str, Any]) -> None:
    """One of them selects the best checkpoint; each is separate in metrics, results and run."""
    sets = {"a": lists["validation"], "train": make_lists(30, 9).to_iterable_dataset(num_shards=2)}
    options = {**SHORT, "load_best_model_at_end": True, "save_total_limit": None}
    options |= {f"{what}_strategy": "steps" for what in ("eval", "save")} | {"eval_steps": 2, "save_steps": 2}
    trainer = make_trainer(eval_dataset=sets, metric_for_best_model="a_ndcg@10", **options)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "eval_a_ndcg@10" in entry]
    assert [entry["step"] for entry in history] == [2, 4]
    assert trainer.state.best_metric == max(entry["eval_a_ndcg@10"] for entry in history)
    found = trainer.evaluate()
    assert (found["eval_a_lists"], found["eval_train_lists"]) == (50, 30)
    alone = make_trainer(trainer.model, folder="alone").evaluate()
    assert found["eval_a_ndcg@5"] == alone["eval_ndcg@5"]
    assert trainer.results["evaluations"].keys() == {"eval_a", "eval_train"}
    assert trainer.results["data"].keys() == {"train", "eval_a", "eval_train"}
    assert trainer.results["data"]["train"]["lists"] == 240, "the training lists"
    only = trainer.evaluate("a")
    assert only["eval_ndcg@5"] == alone["eval_ndcg@5"]
    with pytest.raises(InputError, match="got 'b': the trainer has evaluation lists named a, train"):
        trainer.evaluate("b")
    with pytest.raises(InputError, match=r"'ndcg@10', and the evaluation sets are a, train: .* such as a_ndcg@10"):
        make_trainer(eval_dataset=sets, **options)


# ------------------------------------------------------------------------------------------------ factors of the terms


class Halve(TrainerCallback):
    """Halves the factor of the first term before step 3."""

    trainer: RerankTrainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            self.trainer.term_factors["convergence"].fill_(0.5)


@pytest.mark.slow
def test_term_factors_are_saved_in_checkpoints(make_trainer: Make, make_model: Any, weights: Any) -> None:
    """A run resumed after the change, without the callback, ends with the same bits."""
    options = {**SHORT, "max_steps": 5, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    halve = Halve()
    unbroken = make_trainer(make_model(hidden_dropout_prob=0.1), "unbroken", callbacks=[halve], **options)
    halve.trainer = unbroken
    unbroken.train()
    run = Path(str(unbroken.args.output_dir))
    saved = [json.loads((run / f"checkpoint-{step}" / "rerank_state.json").read_text()) for step in (2, 3)]
    assert [state["term_factors"] for state in saved] == [
        {"convergence": 1.0, "adversarial": 1.0},
        {"convergence": 0.5, "adversarial": 1.0},
    ]
    resumed = make_trainer(make_model(seed=9, hidden_dropout_prob=0.1), "resumed", **options)
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert resumed.term_factors["convergence"] == 0.5
    assert all(value.equal(weights(resumed.model)[name]) for name, value in weights(unbroken.model).items())
    assert logged(resumed) == logged(unbroken)
    without = make_trainer(make_model(hidden_dropout_prob=0.1), "without", **options)
    without.train()
    assert not all(value.equal(weights(without.model)[name]) for name, value in weights(unbroken.model).items())
    for entry in logged(unbroken)[2:]:
        total = entry["task_loss"] + entry["further_task_loss"]
        total += 0.5 * 6 * entry["convergence_loss"] + 1.5 * entry["adversarial_loss"]
        assert entry["loss"] == pytest.approx(total, rel=1e-4)
