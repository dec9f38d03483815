"""Tensor functions over padded lists, shared by the losses and principled learning.

The list is on the last axis. ``mask`` is bool, True at real items. This module imports nothing of the library but its
errors, so that losses, metrics and principled learning can all import it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_rerank.errors import InputError, suggestion

MIN_TEMPERATURE = 1e-6  # below, scores divided by it can leave the range of float32
GAINS = ("exponential", "linear")
REDUCTIONS = ("mean", "sum", "none")


def upcast(values: Tensor) -> Tensor:
    """bfloat16 and float16 as float32; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Log softmax over the items in ``mask``, [..., list].

    Entries outside the mask, and of lists without an item in it, are finite and have no meaning.
    """
    # The mask goes in before the softmax. The lowest number, not -inf: a list of only -inf would give NaN.
    return torch.log_softmax(values.masked_fill(~mask, torch.finfo(values.dtype).min), dim=-1)


def differences(values: Tensor) -> Tensor:
    """``values_i - values_j`` at ``[..., i, j]``."""
    return values[..., :, None] - values[..., None, :]


def ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Ranks from 1 among the real items, highest value first, ties in slot order; no gradient. [..., list]."""
    slot = torch.arange(values.shape[-1], device=values.device)
    mine, theirs = values[..., :, None], values[..., None, :]
    before = (theirs > mine) | ((theirs == mine) & (slot[None, :] < slot[:, None]))
    return 1.0 + (before & mask[..., None, :]).sum(dim=-1).to(values.dtype)


def relative_gains(labels: Tensor, gain: str) -> Tensor:
    """Gains of NDCG divided by a constant per list, which NDCG cancels, so that no grade overflows.

    Args:
        labels: float [..., list], >= 0, with 0 at padding.
        gain: ``"exponential"``: ``(2^y - 1) / 2^m``, m the highest label of the list. ``"linear"``: ``y / m``.

    Returns:
        [..., list] in [0, 1]; 0 where the label is 0.
    """
    highest = F.pad(labels, (0, 1)).amax(dim=-1, keepdim=True)  # padded: a list of width 0 has no maximum
    if gain == "linear":
        return labels / torch.where(highest > 0, highest, 1.0)
    return -torch.exp2(labels - highest) * torch.expm1(-math.log(2.0) * labels)


def neuralsort_matrix(scores: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """NeuralSort: the permutation matrix that sorts the scores, relaxed to one softmax per rank.

    ``M[p, i] = softmax_i(((n + 1 - 2 p) s_i - sum_j |s_i - s_j|) / t)`` for ranks p = 1..n (rank p is row p - 1), n
    the number of real items. As t falls to 0, row p becomes the one-hot vector of the item at rank p; items with equal
    scores share their rows equally. Source: Grover et al. 2019 (ICLR).

    Args:
        scores: float32 or float64 [..., list], finite everywhere.
        mask: bool [..., list].
        temperature: t > 0, in units of the scores.

    Returns:
        [..., rank, slot]. Rows of the first n ranks sum to 1; the other rows and the columns of padding are 0.
    """
    count = mask.sum(dim=-1, keepdim=True)
    real_scores = torch.where(mask, scores, 0.0)
    # A shift changes nothing but the rounding, which is best around 0; detached, as its derivative is 0.
    mean = (real_scores.sum(dim=-1, keepdim=True) / count.clamp(min=1)).detach()
    scores = torch.where(mask, scores - mean, 0.0)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    distances = torch.where(mask[..., None, :], differences(scores).abs(), 0.0).sum(dim=-1)
    logits = (count - 1 - 2 * rank)[..., :, None] * scores[..., None, :] - distances[..., None, :]
    # A finite number, not -inf: the rows of a list without items stay finite, and so do their gradients.
    lowest = torch.finfo(scores.dtype).min
    matrix = (logits / temperature).masked_fill(~mask[..., None, :], lowest).softmax(dim=-1)
    return torch.where((rank < count)[..., :, None] & mask[..., None, :], matrix, 0.0)


def sinkhorn_normalize(matrix: Tensor, steps: int) -> Tensor:
    """Normalizes columns, then rows, ``steps`` times (Sinkhorn): with enough steps all sums approach 1.

    Rows and columns that are 0 stay 0. Only the factors of rows and columns change from step to step, so that a step
    keeps vectors for the gradient, not matrices.

    Args:
        matrix: float [..., rank, slot], >= 0.
        steps: A whole number, at least 0.
    """
    if not steps:
        return matrix
    rows = torch.ones_like(matrix[..., :, :1])
    columns = torch.ones_like(matrix[..., :1, :])
    for _ in range(steps):
        # No matrix product: autocast would round it to bfloat16.
        columns = _reciprocal((rows * matrix).sum(dim=-2, keepdim=True))
        rows = _reciprocal((matrix * columns).sum(dim=-1, keepdim=True))
    return rows * matrix * columns


def normalize_along(matrix: Tensor, dim: int) -> Tensor:
    """Divides a matrix by its sums along ``dim``; rows or columns of 0 stay 0."""
    return matrix * _reciprocal(matrix.sum(dim=dim, keepdim=True))


def read_lists(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    *,
    name: str = "labels",
    lowest: float = 0.0,
    highest: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checks the inputs of a loss; returns all four in one floating-point type, with 0 at padding.

    Args:
        scores, targets, mask, weights: [..., list], as in every loss; None has the same meaning as there.
        name: Name of the targets, for messages.
        lowest, highest: Bounds of the targets of real items, which must also be finite.

    Raises:
        InputError: Shapes that differ, a wrong type, or a value out of its range. Values are checked where this is
            free: on the CPU, outside ``torch.compile`` and ``torch.export``. On a GPU each check would synchronize.
    """
    if not scores.is_floating_point():
        raise InputError(f"scores must be floating-point logits; got {scores.dtype}")
    for what, value in ((name, targets), ("mask", mask), ("weights", weights)):
        if value is not None and value.shape != scores.shape:
            raise InputError(f"{what} must have the shape of scores, {list(scores.shape)}; got {list(value.shape)}")
    if scores.dim() == 0:
        raise InputError("scores must have the shape [..., list]; got a single number")
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    elif mask.dtype != torch.bool:
        raise InputError(f"mask must be bool, True = a real item; got {mask.dtype}: give mask.bool()")
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_values(name, targets.to(dtype), mask, lowest, highest)
        if weights is not None:
            _check_values("weights", weights.to(dtype), mask, 0.0, math.inf)
    # `where` also stops gradients: padding gets exactly 0 back, even where it holds NaN.
    scores = torch.where(mask, scores.to(dtype), 0.0)
    targets = torch.where(mask, targets.to(dtype), 0.0)
    weights = torch.ones_like(scores) if weights is None else torch.where(mask, weights.to(dtype), 0.0)
    return scores, targets, mask, weights


def correct_labels(labels: Tensor, propensities: Tensor | None, mask: Tensor) -> Tensor:
    """Divides labels by propensities; 0 at padding. Without propensities returns the labels themselves.

    Args:
        labels: float [..., list], as returned by ``read_lists``.
        propensities: [..., list], in (0, 1].
        mask: bool [..., list].

    Raises:
        InputError: The shapes differ; or, checked as in ``read_lists``, a propensity of a real item is out of range.
    """
    if propensities is None:
        return labels
    if propensities.shape != labels.shape:
        raise InputError(
            f"propensities must have the shape of scores, {list(labels.shape)}; got {list(propensities.shape)}"
        )
    propensities = propensities.to(labels.dtype)
    if propensities.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = mask & ~((propensities > 0) & (propensities <= 1))
        if wrong.any():
            raise InputError(
                f"propensities of real items must be above 0 and at most 1; found {propensities[wrong][0].item():g}: "
                "expected the probability that the item was examined, not its inverse"
            )
    return labels / torch.where(mask, propensities, 1.0)


def reduce_lists(per_list: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """``"none"``: one value per list, as given; ``"sum"``; ``"mean"`` over the lists that have a real item."""
    if reduction == "none":
        return per_list
    if reduction == "sum":
        return per_list.sum()
    if reduction == "mean":
        return per_list.sum() / mask.any(dim=-1).sum().clamp(min=1)
    raise InputError(
        f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}{suggestion(str(reduction), REDUCTIONS)}"
    )


def check_positive(name: str, value: float, lowest: float = 0.0) -> None:
    """Raises an InputError unless the number is finite, above 0 and at least ``lowest``."""
    if not (value > 0 and lowest <= value < math.inf):
        raise InputError(f"{name} must be {f'at least {lowest:g}' if lowest else 'above 0'} and finite; got {value}")


def check_gain(gain: str) -> None:
    """Raises an InputError for an unknown gain."""
    if gain not in GAINS:
        raise InputError(f"gain must be one of {', '.join(GAINS)}; got {gain!r}{suggestion(str(gain), GAINS)}")


def _reciprocal(total: Tensor) -> Tensor:
    """1 / total; 1 where the total is 0, or so small that the gradient would overflow.

    In exact arithmetic each item has at least 1 / n of the rank that it occupies. Smaller sums come from scores that
    are one rounding apart, at low temperatures.
    """
    return 1.0 / torch.where(total > 1e-12, total, 1.0)


def _check_values(name: str, values: Tensor, mask: Tensor, lowest: float, highest: float) -> None:
    wrong = mask & ~((values >= lowest) & (values <= highest) & values.isfinite())  # NaN fails every comparison
    if not wrong.any():
        return
    *leading, slot = wrong.nonzero()[0].tolist()
    place = f"list {leading[0] if len(leading) == 1 else tuple(leading)}, slot {slot}" if leading else f"slot {slot}"
    limit = "finite" if lowest == -math.inf else "finite and >= 0"
    if highest < math.inf:
        limit = f"in [{lowest:g}, {highest:g}] for a log-loss"
    raise InputError(
        f"{name} of real items must be {limit}; found {values[(*leading, slot)].item():g} in {place}. "
        "If that is padding, pass mask, True at real items"
        + ("; for graded labels take a listwise loss" if highest < math.inf else "")
    )
