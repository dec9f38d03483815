"""Columns beside the labels, through the trainer: weights in every task loss, propensities in its evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import pytest
import torch
from tiny_world import SCHEMA, tiny_model

from hf_rerank import ListProcessor, RerankTrainer, RerankTrainingArguments
from hf_rerank.losses import TASK_LOSSES
from hf_rerank.models.auto import RERANKERS

WITH_COLUMNS = SCHEMA.replace(weight="weight", propensity="propensity")


def with_columns(lists: datasets.Dataset, weight: Callable[[int], float]) -> datasets.Dataset:
    """A weight by label, and the propensity that the click was drawn with."""
    examination = SCHEMA.examination

    def add(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "weight": [float(weight(label)) for label in row["click"]],
            "propensity": [examination[place] for place in row["position"]],
        }

    return lists.map(add)


@pytest.fixture
def train_once(tmp_path: Any, lists: dict[str, datasets.Dataset]) -> Callable[..., RerankTrainer]:
    """One step of SGD at a learning rate of 1, so that the change of the model is the gradient."""

    def train(weight: Callable[[int], float], name: str = "dnn", task_loss: str = "binary_log_loss") -> RerankTrainer:
        train_lists = with_columns(lists["train"], weight)
        processor = ListProcessor.from_lists(train_lists, schema=WITH_COLUMNS)
        model = tiny_model(name, processor.schema, task_loss=task_loss, unknown_rate=0)
        trainer = RerankTrainer(
            model=model,
            args=RerankTrainingArguments(
                str(tmp_path / "run"),
                principled="none",
                optim="sgd",
                learning_rate=1.0,
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                max_steps=1,
                per_device_train_batch_size=64,
                logging_steps=1,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=train_lists,
            eval_dataset=with_columns(lists["validation"], weight),
            processing_class=processor,
        )
        trainer.before = {key: value.detach().clone() for key, value in model.state_dict().items()}
        trainer.train()
        return trainer

    return train


def gradient(trainer: RerankTrainer) -> torch.Tensor:
    after = trainer.model.state_dict()
    return torch.cat([(trainer.before[name] - after[name]).flatten() for name in after])


@pytest.mark.parametrize("task_loss", list(TASK_LOSSES))
def test_weights_reach_every_task_loss(train_once: Callable[..., RerankTrainer], task_loss: str) -> None:
    plain, doubled = (train_once(lambda _, w=w: w, task_loss=task_loss) for w in (1.0, 2.0))
    assert gradient(plain).abs().max() > 1e-4
    torch.testing.assert_close(gradient(doubled), 2 * gradient(plain), rtol=1e-3, atol=1e-6)
    assert doubled.state.log_history[0]["loss"] == pytest.approx(2 * plain.state.log_history[0]["loss"], rel=1e-4)
    nothing = train_once(lambda _: 0.0, task_loss=task_loss)
    assert gradient(nothing).abs().max() == 0


@pytest.mark.parametrize("name", list(RERANKERS))
def test_weights_reach_the_own_loss_of_every_model(train_once: Callable[..., RerankTrainer], name: str) -> None:
    """Clicks that weigh nothing leave a softmax loss without a term; a log-loss is left with what pushes down."""
    plain = train_once(lambda _: 1.0, name, "own")
    without_clicks = train_once(lambda label: 1.0 - label, name, "own")
    loss, less = (trainer.state.log_history[0]["loss"] for trainer in (plain, without_clicks))
    assert less < 0.9 * loss


def test_propensities_reach_the_evaluation(train_once: Callable[..., RerankTrainer]) -> None:
    trainer = train_once(lambda _: 1.0)
    found = trainer.evaluate()
    assert found["eval_ips_expected_clicks_low"] < found["eval_expected_clicks"]
    assert found["eval_expected_clicks"] < found["eval_ips_expected_clicks_high"]
