"""Watches a training for the two ways in which consistency terms ruin it: collapse and explosion."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainerCallback

from hf_rerank.principled.objective import PrincipledObjective

# Above this share of collapsed lists (see ``obedience``), or this multiple of the norm that gradients are clipped to.
COLLAPSED_SHARE = 0.1
EXPLODING_NORM = 100.0


class HealthCallback(TrainerCallback):
    """Warns once of each: scores that have become equal, and gradients that have become huge.

    Args:
        objective: Of the training; its weights are named in the warnings.
    """

    def __init__(self, objective: PrincipledObjective) -> None:
        self.objective = objective
        self.warned: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **others: Any) -> None:
        logs = logs or {}
        share = logs.get("collapsed_share", 0.0)
        if share > COLLAPSED_SHARE:
            self._warn(
                "collapse",
                f"the scores of {share:.0%} of the lists lie closer together than 0.001 (step {state.global_step}): "
                "equal scores obey both principles and rank nothing; "
                f"{self._remedy(logs, 'or set consistency_warmup')}",
            )
        limit = EXPLODING_NORM * (args.max_grad_norm or 1.0)
        norm = logs.get("grad_norm", 0.0)
        if norm > limit:
            clipped = f"clipped to max_grad_norm={args.max_grad_norm}" if args.max_grad_norm else "not clipped"
            self._warn(
                "explosion",
                f"the gradient norm is {norm:.3g} (step {state.global_step}), {clipped}: the training may explode; "
                f"{self._remedy(logs, 'or learning_rate')}",
            )

    def _remedy(self, logs: dict[str, float], otherwise: str) -> str:
        """What to lower: the weight of the term that is largest in the loss."""
        parts = {"learning_rate": logs.get("task_loss", 0.0) + logs.get("further_task_loss", 0.0)}
        for name in ("convergence", "adversarial", "cross"):
            weight = getattr(self.objective, f"{name}_weight")
            if weight:
                parts[f"{name}_weight"] = weight * logs.get(f"{name}_loss", 0.0)
        largest = max(parts, key=lambda name: parts[name])
        if largest == "learning_rate":
            weights = [name for name in parts if name != largest]
            return f"lower {' or '.join(['learning_rate', *weights])}"
        share = parts[largest] / sum(parts.values())
        now = getattr(self.objective, largest)
        return f"lower {largest} (now {now:g}, its term is {share:.0%} of the loss), {otherwise}"

    def _warn(self, what: str, message: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            warnings.warn(message, UserWarning, stacklevel=2)
