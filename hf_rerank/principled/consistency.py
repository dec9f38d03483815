"""The consistency loss of principled learning (arXiv 2504.04188).

A re-ranker ``R(X, P)`` gives one score per slot for the items ``X`` in the order that the position vector ``P``
describes. Two principles:

- *Convergence consistency* (P1): fed its own output ``P'``, it gives the same ranking.
- *Adversarial consistency* (P2): given ``P^``, ``P`` with two adjacent items swapped, it gives the same scores.

``L_CS(A, B) = sum_i |A_i - B_i| (R(X, A)_i - R(X, B)_i)^2`` over the real items of a list, then the mean over lists;
``L = L_task(R(X, P), y) + w1 L_CS(P, P') + w2 L_CS(P, P^)``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.list_tensors import upcast

Reduction = Literal["sum", "mean", "weighted_mean"]
REDUCTIONS = ("sum", "mean", "weighted_mean")


def consistency_loss(
    scores_a: Tensor,
    scores_b: Tensor,
    positions_a: Tensor | None,
    positions_b: Tensor | None,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """Consistency loss ``L_CS(A, B) = sum_i |A_i - B_i| (R(X, A)_i - R(X, B)_i)^2`` between two orders of one list.

    ``A`` and ``B`` are position vectors, ``R(X, A)`` the scores of the items ``X`` given ``A``: if an item's position
    differs, its two scores are pulled together. With ``B`` the model's own ranking it is the loss of convergence
    consistency (P1), with ``B`` a slightly perturbed ``A`` that of adversarial consistency (P2). Source: arXiv
    2504.04188.

    Args:
        scores_a: float [..., L], the scores given ``positions_a``; logits or probabilities.
        scores_b: float [..., L], the scores given ``positions_b``.
        positions_a: int64 [..., L], from 0. If both positions are None, every item has the weight 1.
        positions_b: int64 [..., L], or None.
        mask: bool [..., L], True at real items. None: all are real.
        reduction: Reduction over a list's items: ``sum`` (the paper; grows with the length of the list), ``mean`` over
            its real items, or ``weighted_mean``, divided by the sum of the weights ``|A_i - B_i|`` (0 if A and B are
            equal). Over lists it is always the mean over those with a real item.

    Returns:
        A scalar, float32 or wider.

    Raises:
        InputError: An unknown reduction, or shapes that differ.

    >>> scores = torch.tensor([0.2, 0.9, 0.5])
    >>> loss = consistency_loss(scores, scores + 1, torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2]))
    >>> loss.item()  # 1 * 1^2 + 1 * 1^2 + 0
    2.0
    """
    others = {"scores_b": scores_b, "positions_a": positions_a, "positions_b": positions_b, "mask": mask}
    for name, value in others.items():
        if value is not None and value.shape != scores_a.shape:
            shapes = f"{list(value.shape)}: expected that of scores_a, {list(scores_a.shape)}"
            raise InputError(f"{name} has the shape {shapes}")
    if reduction not in REDUCTIONS:
        raise InputError(f"reduction {reduction!r}: expected {', '.join(REDUCTIONS)}")
    if (positions_a is None) != (positions_b is None):
        raise InputError("positions_a and positions_b: expected both or neither")
    if mask is None:
        mask = torch.ones_like(scores_a, dtype=torch.bool)
    # At least float32: squares of small differences vanish in bf16.
    scores_a, scores_b = upcast(scores_a), upcast(scores_b)
    # Padding is replaced before the difference is squared: 0 times infinity would be NaN.
    difference = torch.where(mask, scores_a, 0.0) - torch.where(mask, scores_b, 0.0)
    moved = torch.ones_like(mask) if positions_a is None else (positions_a - positions_b).abs()  # type: ignore[operator]
    weights = torch.where(mask, moved, 0).to(difference.dtype)
    per_list = (weights * difference.square()).sum(-1)
    if reduction == "mean":
        per_list = per_list / mask.sum(-1).clamp(min=1)
    elif reduction == "weighted_mean":
        per_list = per_list / weights.sum(-1).clamp(min=1)
    return per_list.sum() / mask.any(-1).sum().clamp(min=1)
