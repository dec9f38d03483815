"""The metric that chooses the best checkpoint, where none is given; and the warning of a biased start."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import EarlyStoppingCallback

from hf_rerank import (
    Categorical,
    DNNConfig,
    DNNForReranking,
    ListProcessor,
    ListSchema,
    RerankTrainer,
    RerankTrainingArguments,
)

ROWS = [
    {"item": ["A", "B"], "click": [1, 0], "seen": [1.0, 0.5], "score": [0.3, 0.1]},
    {"item": ["B", "A"], "click": [0, 1], "seen": [1.0, 0.5], "score": [0.1, 0.3]},
] * 4
LISTS = datasets.Dataset.from_list(ROWS)
SCHEMA = ListSchema(items=[Categorical("item", min_count=1)], initial_score="score", max_list_length=2)


def make_trainer(
    arguments: RerankTrainingArguments, schema: ListSchema = SCHEMA, model: Any = None, **options: Any
) -> RerankTrainer:
    processor = ListProcessor.from_lists(LISTS, schema=schema)
    dnn = DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[8], **(model or {})))
    return RerankTrainer(dnn, arguments, LISTS, LISTS, processor, **options)


@pytest.mark.filterwarnings("ignore:this training takes")
def test_the_default_is_the_loss_if_it_is_corrected_for_position_bias(tmp_path: Path) -> None:
    def arguments(**options: Any) -> RerankTrainingArguments:
        return RerankTrainingArguments(str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, **options)

    seen, own_loss = SCHEMA.replace(propensity="seen"), {"compute_loss_func": len}
    given, floor = {"position_tower": "given"}, {"propensity_floor": 1}
    ndcg, loss = ("ndcg@10", True), ("loss", False)
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau"}
    last = {"load_best_model_at_end": False}
    for schema, model, options, of_the_trainer, expected in (
        (SCHEMA, {}, {}, {}, ndcg),
        (SCHEMA, given, {}, {}, loss),
        (SCHEMA, {"position_tower": "rows"}, {}, {}, loss),
        (seen, {}, {}, {}, loss),
        (seen, floor, {}, {}, ndcg),
        (seen, {}, {}, own_loss, ndcg),  # this loss does not receive the propensities
        (SCHEMA, {}, {"save_strategy": "best", **last}, {}, ndcg),
        (SCHEMA, given, {"save_strategy": "best", **last}, {}, loss),
        (SCHEMA, {}, plateau, {}, ndcg),
        (SCHEMA, given, last, {}, (None, None)),
        (SCHEMA, given, {"metric_for_best_model": "ndcg@10"}, {}, ndcg),
        (SCHEMA, given, {"metric_for_best_model": "map@5"}, {}, ("map@5", True)),
        (SCHEMA, {}, {"metric_for_best_model": "loss"}, {}, loss),
    ):
        asked = arguments(**options)
        for of_one in (asked, dataclasses.replace(asked)):  # a copy leaves the choice open too
            trainer = make_trainer(of_one, schema, model, **of_the_trainer)
            assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == expected
            written = trainer.results["training_arguments"]
            assert (written["metric_for_best_model"], written["greater_is_better"]) == expected
            assert of_one.metric_for_best_model == options.get("metric_for_best_model")


@pytest.mark.filterwarnings("ignore:this training takes")
def test_a_model_with_a_tower_is_that_of_the_lowest_loss(tmp_path: Path) -> None:
    arguments = RerankTrainingArguments(
        str(tmp_path / "run"), num_train_epochs=3, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True
    )
    trainer = make_trainer(arguments, model={"position_tower": "given"}, callbacks=[EarlyStoppingCallback()])
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 3
    assert trainer.state.best_metric == min(losses)


@pytest.mark.filterwarnings("ignore:this training takes")
def test_a_tower_on_a_starting_score_gives_one_warning(tmp_path: Path) -> None:
    for tower, score, count in (
        ("given", "start", 1),
        ("rows", "start", 1),
        ("given", "feature", 0),
        ("none", "start", 0),
    ):
        arguments = RerankTrainingArguments(
            str(tmp_path / f"{tower} {score}"), max_steps=2, principled="none", use_cpu=True, disable_tqdm=True
        )
        trainer = make_trainer(arguments, model={"position_tower": tower, "initial_score": score})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
        said = [str(warning.message) for warning in caught if "position_tower" in str(warning.message)]
        assert len(said) == count
        assert all("set initial_score='feature'" in message and "\n" not in message for message in said)
