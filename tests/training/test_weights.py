"""Item columns in the trainer: weights in every task loss, propensities in evaluation."""

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


# The weight of an item, by its label.
WEIGHTS: dict[str, Callable[[int], float]] = {
    "all 1": lambda label: 1.0,
    "all 2": lambda label: 2.0,
    "all 0": lambda label: 0.0,
    "clicks 0": lambda label: 1.0 - label,
}


@pytest.fixture(scope="module")
def weighted_lists(lists: dict[str, datasets.Dataset]) -> dict[str, dict[str, datasets.Dataset]]:
    """64 training lists and the evaluation lists for each kind of weight, with propensities."""
    examination = SCHEMA.examination
    assert examination is not None
    found: dict[str, dict[str, datasets.Dataset]] = {}
    for name, weight in WEIGHTS.items():
        found[name] = {}
        for split in ("train", "validation"):
            rows = lists[split].to_list()[:64]
            for row in rows:
                row["weight"] = [weight(label) for label in row["click"]]
                row["propensity"] = [examination[place] for place in row["position"]]
            found[name][split] = datasets.Dataset.from_list(rows)
    return found


@pytest.fixture
def train_once(tmp_path: Any, weighted_lists: dict[str, dict[str, datasets.Dataset]]) -> Callable[..., RerankTrainer]:
    """One step of SGD at a learning rate of 1, so that the change of the model is the gradient."""
    processor = ListProcessor.from_lists(weighted_lists["all 1"]["train"], schema=WITH_COLUMNS)

    def train(weights: str, name: str = "dnn", task_loss: str = "binary_log_loss") -> RerankTrainer:
        # Not every loss can be corrected by propensities: tests/test_propensity_losses.py.
        options = {"task_loss": task_loss, "unknown_rate": 0, "propensity_floor": 1}
        model = tiny_model(name, processor.schema, **options)
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
            train_dataset=weighted_lists[weights]["train"],
            eval_dataset=weighted_lists[weights]["validation"],
            processing_class=processor,
        )
        trainer.before = {key: value.detach().clone() for key, value in model.state_dict().items()}
        trainer.train()
        return trainer

    return train


def gradient(trainer: RerankTrainer) -> torch.Tensor:
    after = trainer.model.state_dict()
    return torch.cat([(trainer.before[name] - after[name]).flatten() for name in after])


@pytest.mark.slow
def test_weights_scale_every_task_loss(train_once: Callable[..., RerankTrainer]) -> None:
    for task_loss in TASK_LOSSES:
        plain, doubled, nothing = (train_once(weights, task_loss=task_loss) for weights in ("all 1", "all 2", "all 0"))
        assert gradient(plain).abs().max() > 1e-4, task_loss
        torch.testing.assert_close(gradient(doubled), 2 * gradient(plain), rtol=1e-3, atol=1e-6, msg=task_loss)
        loss, twice = (trainer.state.log_history[0]["loss"] for trainer in (plain, doubled))
        assert twice == pytest.approx(2 * loss, rel=1e-4), task_loss
        assert gradient(nothing).abs().max() == 0, task_loss


@pytest.mark.slow
def test_weights_apply_to_the_own_loss_of_every_model(train_once: Callable[..., RerankTrainer]) -> None:
    """With zero weight for clicks, a softmax loss has no term left, a log loss only those of unclicked items."""
    for name in RERANKERS:
        plain, without_clicks = (train_once(weights, name, "own") for weights in ("all 1", "clicks 0"))
        loss, less = (trainer.state.log_history[0]["loss"] for trainer in (plain, without_clicks))
        assert less < 0.9 * loss, name


def test_propensities_are_used_in_evaluation(train_once: Callable[..., RerankTrainer]) -> None:
    found = train_once("all 1").evaluate()
    assert found["eval_ips_expected_clicks_low"] < found["eval_expected_clicks"]
    assert found["eval_expected_clicks"] < found["eval_ips_expected_clicks_high"]
