"""Soft orders: the ranking step with a gradient.

``positions_from_scores`` has a derivative of 0 almost everywhere. A relaxation replaces its 0/1 matrix by one that
changes smoothly with the scores: ``M[p, i]``, for each position p a distribution over items. A re-ranker reads a *soft
order* ``S[i, p]``, for each item a distribution over positions, so that the item's position vector is ``S @ E``. S is
M with columns normalised to sum to 1, transposed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rerank.errors import InputError, suggestion
from hf_rerank.list_tensors import MIN_TEMPERATURE, neuralsort_matrix, normalize_along, sinkhorn_normalize, upcast
from hf_rerank.principled.orders import order_from_positions, positions_from_scores

RELAXATIONS = ("softsort", "neuralsort")


def hard_order(positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Writes positions int64 [..., L] as a 0/1 matrix ``S[..., slot, position]``, [..., L, L]."""
    every = torch.arange(positions.shape[-1], device=positions.device)
    return (positions.unsqueeze(-1) == every).to(dtype)


def soft_order(
    scores: Tensor,
    mask: Tensor | None = None,
    *,
    relaxation: str = "softsort",
    temperature: float = 1.0,
    sinkhorn: int = 0,
    straight_through: bool = False,
) -> Tensor:
    """Relaxes the order by decreasing score to a matrix that has a gradient.

    ``softsort`` (Prillo and Eisenschlos 2020): ``M[p, i] = softmax_i(-|s_[p] - s_i| / t)``, ``s_[p]`` the p-th largest
    score. ``neuralsort`` (Grover et al. 2019): ``M[p, i] = softmax_i(((n - 1 - 2 p) s_i - sum_j |s_i - s_j|) / t)``,
    p from 0. As the temperature t goes to 0 both become the hard order, where scores differ.

    Args:
        scores: float [..., L], finite at real items; computed in at least float32.
        mask: bool [..., L], True at real items. None: all are real.
        relaxation: ``softsort`` or ``neuralsort``.
        temperature: t, at least 1e-6, in units of the scores.
        sinkhorn: Number of times that columns and rows of M are normalised in turn (Sinkhorn) before the final column
            normalisation; with enough, the order is doubly stochastic: the shares of each position sum to 1 too.
        straight_through: Whether to return the 0/1 order, with the gradient of the soft one.

    Returns:
        [..., L, L], ``S[..., slot, position]``; the sum over positions is 1. Padding slots keep the padding positions.

    Raises:
        InputError: An unknown relaxation, a temperature below 1e-6, or a ``sinkhorn`` that is not a count.
    """
    check_relaxation(relaxation, temperature, sinkhorn)
    scores = upcast(scores)
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    scores = torch.where(mask, scores, 0.0)
    positions = positions_from_scores(scores.detach(), mask)
    hard = hard_order(positions, scores.dtype)
    count = mask.sum(-1, keepdim=True)
    every = torch.arange(scores.shape[-1], device=scores.device)
    real = (every < count).unsqueeze(-1) & mask.unsqueeze(-2)
    if relaxation == "softsort":
        ranked = scores.gather(-1, order_from_positions(positions))
        logits = -(ranked.unsqueeze(-1) - scores.unsqueeze(-2)).abs()
        # A finite number, not -inf: the rows of a list without items stay finite, and so do their gradients.
        lowest = torch.finfo(scores.dtype).min
        matrix = torch.where(real, (logits / temperature).masked_fill(~mask.unsqueeze(-2), lowest).softmax(-1), 0.0)
    else:
        matrix = neuralsort_matrix(scores, mask, temperature=temperature)
    matrix = sinkhorn_normalize(matrix, sinkhorn)
    soft = torch.where(real.transpose(-1, -2), normalize_along(matrix, -2).transpose(-1, -2), hard)
    return hard + (soft - soft.detach()) if straight_through else soft


def move_soft_order(order: Tensor, positions: Tensor, moved: Tensor) -> Tensor:
    """Permutes the positions of a soft order in the same way as those of the hard one.

    Args:
        order: [..., L, L], a soft order around ``positions``.
        positions: int64 [..., L].
        moved: int64 [..., L], the positions after the change.

    Returns:
        [..., L, L]; the 0/1 matrix of ``positions`` becomes that of ``moved``.
    """
    previous = positions.gather(-1, order_from_positions(moved))
    return order.gather(-1, previous.unsqueeze(-2).expand_as(order))


def check_relaxation(relaxation: str, temperature: float, sinkhorn: int) -> None:
    """Raises an InputError for options that ``soft_order`` does not support."""
    if relaxation not in RELAXATIONS:
        raise InputError(
            f"relaxation {relaxation!r}: expected one of {', '.join(RELAXATIONS)}{suggestion(relaxation, RELAXATIONS)}"
        )
    if not MIN_TEMPERATURE <= temperature < float("inf"):
        raise InputError(f"temperature is {temperature}: expected a number of at least {MIN_TEMPERATURE:g}")
    if sinkhorn < 0 or sinkhorn != int(sinkhorn):
        raise InputError(f"sinkhorn is {sinkhorn}: expected a whole number of normalisations, at least 0")
