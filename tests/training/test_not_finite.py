"""Values that are not finite are never saved, never select a checkpoint, and are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import kill_worker
import pytest
import torch
from transformers import TrainerCallback

from hf_rerank import InputError, Reranker, RerankTrainer
from hf_rerank.errors import TrainingStopped
from hf_rerank.training.checkpoints import list_checkpoints
from hf_rerank.training.datasets import encode_lists


class Break(TrainerCallback):
    """Breaks something after step 3."""

    def __init__(self, what: str) -> None:
        self.what, self.fired = what, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 3 and not self.fired:
            self.fired += 1
            weight = model.scorer.weight
            if self.what == "gradient":
                self.hook = weight.register_hook(lambda gradient: gradient * float("inf"))
            elif self.what == "large gradient":
                self.hook = weight.register_hook(lambda gradient: torch.full_like(gradient, 1e38))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 4 and self.what == "weight":
            self.fired += 1
            with torch.no_grad():
                model.scorer.weight[0, 0] = float("nan")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message", "last"),
    [
        ("gradient", r"gradient is not finite at step 4: that of scorer\.weight", 3),
        ("large gradient", "gradient is not finite at step 4: that of all weights together", 3),
        ("weight", r"weights scorer\.weight are not finite.*\(step 4\)", 3),
    ],
)
def test_weights_and_gradients_that_are_not_finite_are_never_saved(
    tmp_path: Path, what: str, message: str, last: int
) -> None:
    breaking = Break(what)
    trainer = kill_worker.make_trainer(tmp_path / "run", **kill_worker.EVERY_STEP)
    trainer.add_callback(breaking)
    with pytest.raises(TrainingStopped, match=message) as caught:
        trainer.train()
    assert breaking.fired
    assert "\n" not in str(caught.value)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [
        f"checkpoint-{n}" for n in range(1, last + 1)
    ]
    for path in list_checkpoints(tmp_path / "run"):
        weights = Reranker.from_pretrained(path).model.state_dict()
        assert all(value.isfinite().all() for value in weights.values())
    if what == "weight":
        with pytest.raises(TrainingStopped, match=r"scorer\.weight are not finite"):
            trainer.save_model()
        assert not (tmp_path / "run" / "model.safetensors").exists()


def encode_rows(trainer: RerankTrainer, rows: list[dict[str, Any]]) -> Any:
    return encode_lists(
        datasets.Dataset.from_list(rows), trainer.list_collator, trainer.args, train=True, use_cache=False
    )


def test_a_nan_metric_cannot_select_the_best_checkpoint(tmp_path: Path) -> None:
    rows = kill_worker.make_lists(20, 2).to_list()
    trainer = kill_worker.make_trainer(tmp_path / "run", no_click="skip")
    for row in rows:
        row["click"] = [0] * len(row["click"])
    trainer.eval_dataset = encode_rows(trainer, rows)
    with pytest.raises(TrainingStopped, match=r"eval_ndcg@10, which chooses the best checkpoint, is nan at step 2"):
        trainer.train()
    assert list_checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_rejected_with_list_and_column(tmp_path: Path, value: float) -> None:
    rows = kill_worker.make_lists(72, 1).to_list()
    rows[40]["price"][1] = value
    trainer = kill_worker.make_trainer(tmp_path / "run")
    trainer.train_dataset = encode_rows(trainer, rows)
    with pytest.raises(InputError, match=r"1-40") as caught:
        trainer.train()
    assert "price" in str(caught.value)
