"""``RerankCollator`` with a plain ``transformers.Trainer``: every model trains and is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import tiny_model
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_rerank import ListProcessor
from hf_rerank.evaluation import evaluate
from hf_rerank.metrics import grouped_auc, ndcg
from hf_rerank.models.auto import RERANKERS
from hf_rerank.processing.collator import RerankCollator


def metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Scores and labels [N, L]; labels are -100 at all padding, scores only where the batch was narrower."""
    scores, labels = prediction.predictions, prediction.label_ids
    mask = labels != -100
    return {
        "ndcg@5": ndcg(scores, labels, mask=mask, k=5),
        "gauc": grouped_auc(scores, labels, mask=mask),
        "items": int(mask.sum()),
    }


@pytest.mark.slow
def test_every_model_trains_and_is_evaluated(tmp_path: Path, lists: dict[str, Any], processor: ListProcessor) -> None:
    """Evaluation batches differ in width; the loss decreases, and metrics equal those of the library's evaluation."""
    items = sum(len(row) for row in lists["validation"]["item_id"])
    for name in RERANKERS:
        trainer = Trainer(
            model=tiny_model(name, processor.schema, hidden_dropout_prob=0.0),
            args=TrainingArguments(
                str(tmp_path / name),
                remove_unused_columns=False,
                max_steps=12,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=8,
                learning_rate=0.03,
                logging_steps=3,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=lists["train"],
            eval_dataset=lists["validation"],
            data_collator=RerankCollator(processor),
            compute_metrics=metrics,
        )
        widths = {batch["mask"].shape[1] for batch in trainer.get_eval_dataloader()}
        assert len(widths) > 1 or name != "dnn", "padded across batches"
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[-1] < losses[0], name
        assert after["eval_loss"] < before["eval_loss"], name
        assert after["eval_items"] == items
        expected = evaluate(trainer.model, processor, lists["validation"], max_steps=0)
        for metric in ("ndcg@5", "gauc"):
            assert after[f"eval_{metric}"] == pytest.approx(expected[metric], abs=1e-6), name


def test_plain_trainer_equals_rerank_trainer_without_principles(
    tmp_path: Path, lists: dict[str, Any], processor: ListProcessor, make_trainer: Any, make_model: Any, weights: Any
) -> None:
    """The same seed and batches give the same bits."""
    options = {"max_steps": 5, "per_device_train_batch_size": 16, "learning_rate": 0.02, "save_strategy": "no"}
    plain = Trainer(
        model=make_model(hidden_dropout_prob=0.1, unknown_rate=0.01),
        args=TrainingArguments(
            str(tmp_path / "plain"),
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=lists["train"],
        data_collator=RerankCollator(processor),
    )
    plain.train()
    ours = make_trainer(
        make_model(hidden_dropout_prob=0.1, unknown_rate=0.01),
        principled="none",
        eval_strategy="no",
        load_best_model_at_end=False,
        lr_scheduler_type="linear",
        **options,
    )
    ours.train()
    after = weights(ours.model)
    assert all(value.equal(after[name]) for name, value in weights(plain.model).items())


def test_plain_trainer_predicts_without_labels(
    tmp_path: Path, lists: dict[str, Any], processor: ListProcessor
) -> None:
    unlabelled = lists["validation"].remove_columns(["click", "attraction"])
    model = tiny_model("prm", processor.schema)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True
        ),
        data_collator=RerankCollator(processor, with_labels=False),
    )
    scores = trainer.predict(unlabelled).predictions
    with torch.no_grad():
        expected = model.eval()(**RerankCollator(processor, with_labels=False)(unlabelled.to_list())).logits
    mask = np.arange(scores.shape[1]) < np.array([len(row) for row in unlabelled["item_id"]])[:, None]
    np.testing.assert_allclose(scores[mask], expected.numpy()[mask], rtol=1e-5, atol=1e-6)
