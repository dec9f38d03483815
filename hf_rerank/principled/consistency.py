"""Principled learning (arXiv 2504.04188): the consistency loss, and the objective of several passes over any scorer.

A re-ranker ``R(X, P)`` gives one score a slot for the items ``X`` shown in the order ``P``. Two principles:

- *Convergence consistency* (P1): shown its own output ``P'``, it does not change its mind.
- *Adversarial consistency* (P2): shown ``P^``, two neighbours of ``P`` exchanged, it gives the same scores.

``L_CS(A, B) = sum_i |A_i - B_i| (R(X, A)_i - R(X, B)_i)^2`` over the real items of a list, then the mean over lists;
``L = L_task(R(X, P), y) + w1 L_CS(P, P') + w2 L_CS(P, P^)``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hf_rerank.errors import InputError, suggestion
from hf_rerank.losses import TASK_LOSSES, centred, probabilities
from hf_rerank.principled.orders import keyed_adjacent_swap, positions_from_scores

Reduction = Literal["sum", "mean", "weighted_mean"]
Space = Literal["probability", "logit"]
PRESETS: dict[str, dict[str, Any]] = {
    # The literal sum grows with the square of the list's length in P1 and not at all in P2; divided by the sum of the
    # weights, each term is a mean squared score difference over the items that moved, whatever the length.
    "scaled": {"convergence_weight": 20.0, "adversarial_weight": 5.0, "reduction": "weighted_mean"},
    "paper": {"convergence_weight": 1.0, "adversarial_weight": 1.0, "reduction": "sum"},
    "none": {"convergence_weight": 0.0, "adversarial_weight": 0.0, "reduction": "weighted_mean"},
}


def consistency_loss(
    scores_a: Tensor,
    scores_b: Tensor,
    positions_a: Tensor,
    positions_b: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """``L_CS``: how much the scores of the items that moved differ between two orders of the same list.

    Args:
        scores_a: [..., L], given the positions ``positions_a``; logits or probabilities.
        scores_b: [..., L].
        positions_a: int64 [..., L].
        positions_b: int64 [..., L].
        mask: bool [..., L], True at real items. None: all are real.
        reduction: Over a list's items: ``sum`` (the paper), ``mean`` over its real items, or ``weighted_mean``,
            divided by the sum of ``|A_i - B_i|`` (0 where nothing moved). Then always the mean over lists with
            a real item.

    Returns:
        A scalar, float32 or wider.

    Raises:
        InputError: An unknown reduction, or shapes that differ.
    """
    others = {"scores_b": scores_b, "positions_a": positions_a, "positions_b": positions_b, "mask": mask}
    for name, value in others.items():
        if value is not None and value.shape != scores_a.shape:
            shapes = f"{list(value.shape)}: expected that of scores_a, {list(scores_a.shape)}"
            raise InputError(f"{name} has the shape {shapes}")
    if reduction not in ("sum", "mean", "weighted_mean"):
        raise InputError(f"reduction {reduction!r}: expected sum, mean or weighted_mean")
    if mask is None:
        mask = torch.ones_like(positions_a, dtype=torch.bool)
    scores_a, scores_b = _wide(scores_a), _wide(scores_b)
    # Padding is replaced before the difference is squared: 0 times infinity would be NaN.
    difference = torch.where(mask, scores_a, 0.0) - torch.where(mask, scores_b, 0.0)
    moved = torch.where(mask, (positions_a - positions_b).abs(), 0).to(difference.dtype)
    per_list = (moved * difference.square()).sum(-1)
    if reduction == "mean":
        per_list = per_list / mask.sum(-1).clamp(min=1)
    elif reduction == "weighted_mean":
        per_list = per_list / moved.sum(-1).clamp(min=1)
    return per_list.sum() / mask.any(-1).sum().clamp(min=1)


@dataclass(frozen=True)
class PrincipledObjective:
    """The task loss and both consistency terms, in at most two encoder calls over one embedding.

    Pass it as ``objective`` to a model's ``forward``. The perturbed order depends on no score, so it is scored in one
    doubled batch with the given order; the model's own output is scored in a second call.

    Args:
        preset: ``scaled`` (the default), ``paper`` (the formula as printed), ``none`` (the task loss alone).
            It sets what is left None below.
        convergence_weight: w1, of ``L_CS(P, P')``, at least 0.
        adversarial_weight: w2, of ``L_CS(P, P^)``, at least 0.
        reduction: Of ``L_CS`` over a list's items, see ``consistency_loss``.
        space: What the scores are compared as. ``probability``: sigmoid under ``binary_log_loss``, softmax over the
            list's items under listwise losses. ``logit``: as they come, but centred per list under losses that ignore
            a shift of the whole list, which would otherwise be punished although neither loss nor ranking sees it.
        task_loss: Name of the model's task loss, which decides the space (``config.task_loss_name``).
        seed: Of the perturbations.
        step: Training step, set by ``at``: with ``seed`` and the list's key it decides the perturbation.
        list_keys: int64 [B], set by ``at``. None: the row in the batch. Under ``torch.compile`` give keys: the code
            that torch 2.13 generates for the CPU is wrong, or crashes, where they are made inside.
    """

    preset: str = "scaled"
    convergence_weight: float | None = None
    adversarial_weight: float | None = None
    reduction: Reduction | None = None
    space: Space = "probability"
    task_loss: str = "binary_log_loss"
    seed: int = 0
    step: int = 0
    list_keys: Tensor | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(
                f"principled preset {self.preset!r}: expected one of {', '.join(PRESETS)}"
                f"{suggestion(self.preset, PRESETS)}"
            )
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("convergence_weight", "adversarial_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: expected a finite number, at least 0")
        if self.reduction not in ("sum", "mean", "weighted_mean"):
            raise InputError(f"consistency reduction {self.reduction!r}: expected sum, mean or weighted_mean")
        if self.space not in ("probability", "logit"):
            raise InputError(f"consistency space {self.space!r}: expected probability or logit")
        if self.task_loss not in TASK_LOSSES:
            raise InputError(
                f"task_loss {self.task_loss!r}: expected one of {', '.join(TASK_LOSSES)} (config.task_loss_name)"
                f"{suggestion(self.task_loss, TASK_LOSSES)}"
            )
        compares = self.convergence_weight > 0 or self.adversarial_weight > 0  # type: ignore[operator]
        if compares and self.space == "probability" and self.task_loss == "lambda_loss":
            raise InputError("lambda_loss has no probabilities: compare the scores in space='logit'")

    def at(self, *, step: int, list_keys: Tensor | None = None) -> PrincipledObjective:
        """The objective of one training step; ``list_keys`` name the lists of the batch."""
        return dataclasses.replace(self, step=step, list_keys=list_keys)

    def settings(self) -> dict[str, Any]:
        """All choices as plain values, for logs and results."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)[:-2]}

    def __call__(
        self,
        score: Callable[[Tensor], Any],
        position_ids: Tensor,
        labels: Tensor,
        mask: Tensor,
        task_loss: Callable[[Any], Tensor],
    ) -> dict[str, Tensor]:
        """The losses of one batch.

        Args:
            score: Orders [V * B, L] -> output with ``logits`` [V * B, L]: V orders of the same B lists at once.
            position_ids: int64 [B, L], the given order P.
            labels: [B, L]; only the task loss looks at them.
            mask: bool [B, L].
            task_loss: Output of B lists -> scalar.

        Returns:
            ``loss``; ``task_loss``; and, unweighted, where their weight is above 0, ``convergence_loss`` and
            ``adversarial_loss``.
        """
        assert self.convergence_weight is not None
        assert self.adversarial_weight is not None
        if self.adversarial_weight > 0:
            swapped = self._perturbed(position_ids, mask)
            given_output, swapped_output = score(torch.cat([position_ids, swapped])).split(2)
        else:
            given_output = score(position_ids)
        losses = {"task_loss": task_loss(given_output)}
        loss = losses["task_loss"]
        given = self._comparable(given_output.logits, mask)
        if self.convergence_weight > 0:
            # The ranking step is a constant: that is its derivative almost everywhere.
            own = positions_from_scores(given_output.logits.detach().float(), mask)
            again = self._comparable(score(own).logits, mask)
            losses["convergence_loss"] = self._consistency(given, again, position_ids, own, mask)
            loss = loss + self.convergence_weight * losses["convergence_loss"]
        if self.adversarial_weight > 0:
            disturbed = self._comparable(swapped_output.logits, mask)
            losses["adversarial_loss"] = self._consistency(given, disturbed, position_ids, swapped, mask)
            loss = loss + self.adversarial_weight * losses["adversarial_loss"]
        return {"loss": loss, **losses}

    def _perturbed(self, position_ids: Tensor, mask: Tensor) -> Tensor:
        keys = self.list_keys
        if keys is None:
            keys = torch.arange(position_ids.shape[0], device=position_ids.device)
        return keyed_adjacent_swap(position_ids, mask, keys, seed=self.seed, step=self.step)

    def _comparable(self, logits: Tensor, mask: Tensor) -> Tensor:
        if self.space == "probability":
            return probabilities(logits, self.task_loss, mask=mask)
        return _wide(logits) if self.task_loss == "binary_log_loss" else centred(logits, mask=mask)

    def _consistency(self, a: Tensor, b: Tensor, positions_a: Tensor, positions_b: Tensor, mask: Tensor) -> Tensor:
        assert self.reduction is not None
        return consistency_loss(a, b, positions_a, positions_b, mask=mask, reduction=self.reduction)


def _wide(scores: Tensor) -> Tensor:
    """At least float32: squares of small differences vanish in bf16."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
