"""Task losses as pure functions: ``loss(scores, labels, *, mask=None, weights=None, reduction="mean")``.

Conventions, the same in every function:

- ``scores``: float [..., list], logits. The list is on the last axis, the leading axes are free.
- ``labels``: [..., list], >= 0; a click is a label > 0.
- ``mask``: bool [..., list], True = a real item; None = all are. Padding is never looked at: NaN, infinities or
  -100 there change neither the loss nor a gradient, and the gradient at padding is exactly 0.
- ``weights``: [..., list], >= 0, one a item, such as inverse propensities. They multiply terms and are *not*
  normalised, so that weights of 2 double the loss; each function says which terms.
- ``reduction``: every list gives one value, 0 if it holds no real item. ``"mean"`` averages over the lists that
  hold one (0 if none does), ``"sum"`` adds, ``"none"`` returns the values [...].
- The arithmetic is in float32 at least, whatever comes in, and float64 stays float64.
- ``InputError``: shapes that differ, an unknown reduction, and values of labels or weights out of their range.
  Values are checked where this is free: on the CPU, outside ``torch.compile`` and ``torch.export``. On a GPU a check
  would stop the stream at every step.

Which one: ``binary_log_loss`` gives calibrated probabilities item by item. The others look at the list as a whole and
ignore a shift of all its scores, so only the order and the differences within a list mean something. ``softmax_loss``
and ``attention_rank_loss`` agree on labels 0 and 1; ``listnet_loss`` and ``lambda_loss`` are for graded labels, the
latter aims at NDCG.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_rerank.errors import InputError, suggestion


def binary_log_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary log-loss of each item, averaged over the real items of its list.

    ``-1/n sum_i w_i (y_i log sigmoid(s_i) + (1 - y_i) log(1 - sigmoid(s_i)))``, n the number of real items (not the
    sum of the weights).

    Args:
        scores, labels, mask, weights, reduction: see the top of this module; labels in [0, 1].
    """
    scores, labels, mask, weights = _read(scores, labels, mask, weights, highest_label=1.0)
    per_item = weights * F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    items = mask.sum(dim=-1).clamp(min=1)
    return _reduce(torch.where(mask, per_item, 0.0).sum(dim=-1) / items, mask, reduction)


def softmax_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    """Softmax cross-entropy over the list: ``-sum_i w_i t_i log softmax(s)_i``. A list without a click gives 0.

    Args:
        scores, labels, mask, weights, reduction: see the top of this module. Weights do not enter the ``t_i``.
        normalize: ``t_i = y_i / sum_j y_j``, so that every clicked list counts the same; or, if False, ``t_i = y_i``,
            the loss of PRM (Pei et al. 2019, and its authors' code), where a list counts by its clicks.
    """
    scores, labels, mask, weights = _read(scores, labels, mask, weights)
    targets = labels
    if normalize:
        total = labels.sum(dim=-1, keepdim=True)
        targets = labels / torch.where(total > 0, total, 1.0)
    return _reduce(_cross_entropy(scores, targets, mask, weights), mask, reduction)


def attention_rank_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Attention-rank loss: the cross-entropy of the attention that labels deserve and that scores give.

    ``-sum_i w_i a_i log softmax(s)_i`` with ``a_i = exp(y_i) / sum_(j: y_j > 0) exp(y_j)`` for ``y_i > 0``, else 0. On
    labels 0 and 1 this is ``softmax_loss``. A list without a click gives 0. Source: Ai et al. 2018 (DLCM).

    Args:
        scores, labels, mask, weights, reduction: see the top of this module. Weights do not enter the ``a_i``.
    """
    scores, labels, mask, weights = _read(scores, labels, mask, weights)
    clicked = labels > 0
    attention = torch.where(clicked, _log_softmax(labels, clicked).exp(), 0.0)
    return _reduce(_cross_entropy(scores, attention, mask, weights), mask, reduction)


def listnet_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """ListNet with top-one probabilities: ``-sum_i w_i softmax(y)_i log softmax(s)_i`` over the real items.

    Items without a click have a share of the target too; a list without a click has a uniform target, which pulls its
    scores together. Source: Cao et al. 2007.

    Args:
        scores, labels, mask, weights, reduction: see the top of this module. Weights do not enter ``softmax(y)``.
    """
    scores, labels, mask, weights = _read(scores, labels, mask, weights)
    targets = torch.where(mask, _log_softmax(labels, mask).exp(), 0.0)
    return _reduce(_cross_entropy(scores, targets, mask, weights), mask, reduction)


def lambda_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    sigma: float = 1.0,
) -> Tensor:
    """LambdaRank as a loss: pairs in the wrong order, weighted by what swapping them would do to NDCG.

    ``sum_(i,j: y_i > y_j) w_i |dNDCG_ij| log2(1 + exp(-sigma (s_i - s_j)))`` with
    ``|dNDCG_ij| = |g_i - g_j| |1/log2(1 + r_i) - 1/log2(1 + r_j)| / idealDCG`` and ``g = 2^y - 1``; ``r`` are the
    present ranks, from 1, ties in slot order, and no gradient goes through them. A list without a click gives 0.

    Sources: the gradient is LambdaRank's (Burges 2010, with the natural logarithm); the loss, and log2, which bounds
    the 0/1 error of a pair from above, are those of Wang et al. 2018 (LambdaLoss). The two differ by 1 / ln 2.

    Args:
        scores, labels, mask, weights, reduction: see the top of this module. A pair takes the weight of its item i,
            the one with the higher label; weights do not enter the NDCG.
        sigma: steepness of the pairwise logistic, > 0.

    Memory: a few tensors [..., list, list].
    """
    if not sigma > 0:
        raise InputError(f"sigma must be above 0; got {sigma}")
    scores, labels, mask, weights = _read(scores, labels, mask, weights)
    gains = torch.exp2(labels) - 1.0  # 0 at padding
    discounts = 1.0 / torch.log2(1.0 + _ranks(scores, mask))
    ideal = (gains / torch.log2(1.0 + _ranks(labels, mask))).sum(dim=-1)
    swap_changes = (_differences(gains) * _differences(discounts)).abs()
    per_pair = weights[..., :, None] * swap_changes * -F.logsigmoid(sigma * _differences(scores)) / math.log(2.0)
    pairs = (_differences(labels) > 0) & mask[..., :, None] & mask[..., None, :]
    total = torch.where(pairs, per_pair, 0.0).sum(dim=(-2, -1))
    return _reduce(total / torch.where(ideal > 0, ideal, 1.0), mask, reduction)


# What ``config.task_loss`` may name.
TASK_LOSSES = {
    "binary_log_loss": binary_log_loss,
    "softmax_loss": softmax_loss,
    "attention_rank_loss": attention_rank_loss,
    "listnet_loss": listnet_loss,
    "lambda_loss": lambda_loss,
}


def probabilities(scores: Tensor, task_loss: str, *, mask: Tensor | None = None) -> Tensor:
    """What a model trained with ``task_loss`` predicts: sigmoid of each score, or softmax over the list's real items.

    Args:
        scores: [..., list], logits.
        task_loss: A name in ``TASK_LOSSES``. ``lambda_loss`` has no probabilities of its own: softmax is used, as a
            map that keeps the order and ignores a shift of the list.
        mask: bool [..., list].

    Returns:
        [..., list] in [0, 1], float32 at least, 0 at padding.
    """
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    if task_loss == "binary_log_loss":
        return torch.where(mask, torch.where(mask, scores, 0.0).sigmoid(), 0.0)
    return torch.where(mask, _log_softmax(scores, mask).exp(), 0.0)


def centred(scores: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Scores minus the mean of their list's real items, 0 at padding, float32 at least."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    real = torch.where(mask, scores, 0.0)
    mean = real.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(mask, scores - mean, 0.0)


def _read(
    scores: Tensor, labels: Tensor, mask: Tensor | None, weights: Tensor | None, highest_label: float = math.inf
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check the inputs; return all four, in one floating type, with 0 at padding."""
    if not scores.is_floating_point():
        raise InputError(f"scores must be floating-point logits; got {scores.dtype}")
    for name, value in (("labels", labels), ("mask", mask), ("weights", weights)):
        if value is not None and value.shape != scores.shape:
            raise InputError(f"{name} must have the shape of scores, {list(scores.shape)}; got {list(value.shape)}")
    if scores.dim() == 0:
        raise InputError("scores must have the shape [..., list]; got a single number")
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    elif mask.dtype != torch.bool:
        raise InputError(f"mask must be bool, True = a real item; got {mask.dtype}: give mask.bool()")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_values("labels", labels, mask, highest_label)
        if weights is not None:
            _check_values("weights", weights, mask, math.inf)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    # `where` also stops gradients: padding gets exactly 0 back, even where NaN stands.
    scores = torch.where(mask, scores.to(dtype), 0.0)
    labels = torch.where(mask, labels.to(dtype), 0.0)
    weights = torch.ones_like(scores) if weights is None else torch.where(mask, weights.to(dtype), 0.0)
    return scores, labels, mask, weights


def _check_values(name: str, values: Tensor, mask: Tensor, highest: float) -> None:
    wrong = mask & ~((values >= 0) & (values <= highest) & (values < math.inf))  # NaN fails every comparison
    if not wrong.any():
        return
    *leading, slot = wrong.nonzero()[0].tolist()
    place = f"list {leading[0] if len(leading) == 1 else tuple(leading)}, slot {slot}" if leading else f"slot {slot}"
    limit = "finite and >= 0" if highest == math.inf else f"in [0, {highest:g}] for a log-loss"
    raise InputError(
        f"{name} of real items must be {limit}; found {values[(*leading, slot)].item():g} in {place}. "
        "If padding stands there, pass mask, True at real items"
        + ("; for graded labels take a listwise loss" if highest < math.inf else "")
    )


def _log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """log softmax over the items in ``mask``; finite, and of no meaning, elsewhere and where ``mask`` holds none."""
    # The mask goes in before the softmax. The lowest number, not -inf: a list of nothing but -inf is NaN.
    return torch.log_softmax(values.masked_fill(~mask, torch.finfo(values.dtype).min), dim=-1)


def _cross_entropy(scores: Tensor, targets: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """``-sum_i w_i t_i log softmax(s)_i`` over the real items, one value a list."""
    return -torch.where(mask, weights * targets * _log_softmax(scores, mask), 0.0).sum(dim=-1)


def _differences(values: Tensor) -> Tensor:
    """``values_i - values_j`` at ``[..., i, j]``."""
    return values[..., :, None] - values[..., None, :]


def _ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Ranks from 1 among the real items, highest first, ties in slot order; counted, so no gradient and no sort."""
    slot = torch.arange(values.shape[-1], device=values.device)
    mine, theirs = values[..., :, None], values[..., None, :]
    before = (theirs > mine) | ((theirs == mine) & (slot[None, :] < slot[:, None]))
    return 1.0 + (before & mask[..., None, :]).sum(dim=-1).to(values.dtype)


def _reduce(per_list: Tensor, mask: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return per_list
    if reduction == "sum":
        return per_list.sum()
    if reduction == "mean":
        return per_list.sum() / mask.any(dim=-1).sum().clamp(min=1)
    known = ("mean", "sum", "none")
    raise InputError(
        f"reduction must be one of {', '.join(known)}; got {reduction!r}{suggestion(str(reduction), known)}"
    )
