"""Schedules of the consistency weights during training, as callbacks of the trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class LateRamp(TrainerCallback):
    """No consistency in the first half of the steps, then a linear ramp to the full weights."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        set_factors(self.trainer, max(0.0, 2 * state.global_step / state.max_steps - 1))


class Constraint(TrainerCallback):
    """Dual ascent on the weights: they double while the validation task loss is within a tolerance of its best.

    Otherwise they are divided by four.

    Args:
        trainer: Trainer whose term factors are set.
        tolerance: Accepted relative increase of the validation loss.
        start: Initial factor.
        largest: Maximum factor.
    """

    def __init__(self, trainer: Any, tolerance: float = 0.002, start: float = 0.1, largest: float = 4.0) -> None:
        self.trainer, self.tolerance, self.factor, self.largest = trainer, tolerance, start, largest
        self.best = float("inf")

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        set_factors(self.trainer, self.factor)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any) -> None:
        loss = metrics["eval_loss"]
        good = loss <= self.best * (1 + self.tolerance)
        self.factor = min(self.largest, 2 * self.factor) if good else self.factor / 4
        self.best = min(self.best, loss)
        set_factors(self.trainer, self.factor)


SCHEDULES = {"late": LateRamp, "constraint": Constraint}


def set_factors(trainer: Any, factor: float) -> None:
    for value in trainer.term_factors.values():
        value.fill_(factor)
