"""The guard: after the first loss or gradient that is not finite, no weight changes and training stops soon.

On a GPU, no step waits for the flag; here ``guard.at_every_step = False`` makes the CPU do the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_rerank import RerankTrainer
from hf_rerank.errors import TrainingStopped
from hf_rerank.processing.collator import decode_list_ids

Make = Callable[..., RerankTrainer]
BAD = 4
# One of these happens at the end of step 6; the others never.
NEVER = {"logging_strategy": "no", "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
STOPS = {
    "log": {"logging_strategy": "steps", "logging_steps": 6},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 6},
    "save": {"save_strategy": "steps", "save_steps": 6},
    "the end of the training": {},
}


def second_list_is_nan(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.index_fill(0, torch.tensor([1]), torch.nan)


class Breaking(RerankTrainer):
    """If ``broken`` is ``loss``, the scores of the second list of a batch are NaN at step ``BAD``."""

    broken: str

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        if self.broken == "loss" and self.state.global_step == BAD - 1:
            handle = model.scorer.register_forward_hook(second_list_is_nan)
            try:
                return super().compute_loss(model, inputs, *args, **options)
            finally:
                handle.remove()
        return super().compute_loss(model, inputs, *args, **options)


class Keep(TrainerCallback):
    """Copies weights and optimizer state after each step; optionally breaks a gradient at step ``BAD``."""

    def __init__(self, broken: str) -> None:
        self.broken, self.states = broken, []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.broken == "gradient" and state.global_step == BAD - 1:
            self.hook = model.scorer.weight.register_hook(lambda gradient: gradient * torch.nan)
        elif self.broken == "gradient" and state.global_step == BAD:
            self.hook.remove()

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.states.append((weights, copy.deepcopy(optimizer.state_dict()["state"])))


def are_equal(one: Any, other: Any) -> bool:
    if torch.is_tensor(one):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(are_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return all(map(are_equal, one, other))
    return one == other


def breaking_trainer(make_trainer: Make, broken: str, **options: Any) -> tuple[Breaking, Keep]:
    keep = Keep(broken)
    trainer = make_trainer(
        trainer_class=Breaking,
        callbacks=[keep],
        max_steps=8,
        per_device_train_batch_size=16,
        **{**NEVER, **options},
    )
    trainer.broken = broken
    return trainer, keep


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_no_weight_is_updated_after_the_first_non_finite_step(make_trainer: Make, broken: str) -> None:
    """Training runs on to the next log, evaluation, save or its end, and stops there."""
    for number, (where, options) in enumerate(STOPS.items()):
        trainer, keep = breaking_trainer(make_trainer, broken, folder=f"run{number}", **options)
        assert trainer.guard.at_every_step, "the default on the CPU"
        trainer.guard.at_every_step = False
        with pytest.raises(TrainingStopped, match=f"not finite at step {BAD}") as caught:
            trainer.train()
        last = 8 if where == "the end of the training" else 6
        assert trainer.state.global_step == last, where
        assert len(keep.states) == last
        assert not are_equal(keep.states[BAD - 3][0], keep.states[BAD - 2][0]), "earlier steps changed weights"
        for state in keep.states[BAD - 1 :]:
            assert are_equal(state, keep.states[BAD - 2]), where
        message = str(caught.value)
        assert "\n" not in message
        if broken == "loss":
            assert "task_loss is nan, convergence_loss is nan, adversarial_loss is nan" in message
            # The second list of the batch in each of the three passes.
            assert "lists with scores that are not finite: list-1-" in message
        else:
            assert "the gradient is not finite" in message
            assert "lists of the batch: list-1-" in message
            assert "and 11 more" in message, "five of 16 lists are named"
            assert "which overflows" not in message, "the gradients are already those of a later step"
        folder = Path(str(trainer.args.output_dir))
        assert not folder.exists() or [path for path in folder.iterdir() if path.is_dir()] == []
        with pytest.raises(TrainingStopped, match=f"at step {BAD}"):
            trainer.save_model()


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_optimizers_without_a_flag_stop_at_once(make_trainer: Make, broken: str) -> None:
    for number, options in enumerate(({"optim": "adamw_torch"}, {"optim": "sgd"}, {})):
        trainer, keep = breaking_trainer(make_trainer, broken, folder=f"run{number}", **options)
        trainer.guard.at_every_step = not options  # the last case: fused, on the CPU
        with pytest.raises(TrainingStopped, match=f"not finite at step {BAD}") as caught:
            trainer.train()
        assert len(keep.states) == BAD - 1
        assert are_equal(dict(trainer.model.state_dict()), keep.states[-1][0])
        if broken == "gradient":
            assert "that of scorer.weight" in str(caught.value)


def test_lists_of_the_bad_batch_are_named_even_after_further_steps(make_trainer: Make) -> None:
    seen: list[list[str]] = []

    class Noting(Breaking):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
            seen.append(decode_list_ids(inputs["list_id"]))
            return super().training_step(model, inputs, *args, **options)

    trainer = make_trainer(trainer_class=Noting, max_steps=8, per_device_train_batch_size=16, **NEVER)
    trainer.broken = "loss"
    trainer.guard.at_every_step = False
    with pytest.raises(TrainingStopped) as caught:
        trainer.train()
    assert f"lists with scores that are not finite: {seen[BAD - 1][1]};" in str(caught.value)


@pytest.mark.slow
def test_a_stopped_training_resumes_from_its_checkpoint(make_trainer: Make, weights: Any) -> None:
    """The flag is reset for each training."""
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    unbroken, _ = breaking_trainer(make_trainer, "nothing", folder="unbroken", **options)
    unbroken.train()
    trainer, _ = breaking_trainer(make_trainer, "loss", **options)
    trainer.guard.at_every_step = False
    with pytest.raises(TrainingStopped):
        trainer.train()
    trainer.broken = "nothing"
    trainer.train(resume_from_checkpoint="last")
    assert trainer.resumed_step == BAD - 1
    assert are_equal(weights(trainer.model), weights(unbroken.model))
    trainer.save_model()
