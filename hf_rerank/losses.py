"""Task losses as pure functions: ``loss(scores, labels, *, mask=None, weights=None, reduction="mean")``.

Which one to choose:

- ``binary_log_loss``: calibrated probabilities, item by item. The default of every model.
- ``softmax_loss``: one or a few clicks per list, and only the order matters. The first listwise loss to try.
- ``attention_rank_loss``, ``listnet_loss``: softmax cross-entropies for graded labels.
- ``pairwise_logistic_loss``, ``pairwise_hinge_loss``: every pair counts the same, wherever it is in the ranking.
- ``list_mle_loss``: the likelihood of a whole order, for labels that rank most items of a list.
- ``lambda_loss``, ``approx_ndcg_loss``, ``neural_ndcg_loss``: graded labels, measured by NDCG.
- ``distillation_loss``: the scores of another model instead of labels.

**Position bias.** Clicks are logged in an order, and an item that nobody examined gets none. Pass ``propensities``,
the probability that each item was examined, to the losses that can be corrected, ``LOSSES_WITH_PROPENSITIES``. Sample
weights of ``1 / p`` cannot replace them. The other losses compare the labels of a list with each other, and no
weighting of the clicks makes them unbiased.

Losses that compare items through pairs or ranks are in ``hf_rerank.ranking_losses`` and are imported here: users
import all of them from this module.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_rerank.errors import InputError, suggestion
from hf_rerank.list_tensors import (
    MIN_TEMPERATURE,
    check_positive,
    correct_labels,
    log_softmax,
    read_lists,
    reduce_lists,
    upcast,
)
from hf_rerank.ranking_losses import (
    approx_ndcg_loss,
    lambda_loss,
    list_mle_loss,
    neural_ndcg_loss,
    pairwise_hinge_loss,
    pairwise_logistic_loss,
)

__all__ = [
    "LOSSES_WITHOUT_PROBABILITIES",
    "LOSSES_WITH_POSITION_TOWER",
    "LOSSES_WITH_PROPENSITIES",
    "SHIFT_INVARIANT_LOSSES",
    "TASK_LOSSES",
    "approx_ndcg_loss",
    "attention_rank_loss",
    "binary_log_loss",
    "center_scores",
    "check_position_tower_loss",
    "check_propensity_loss",
    "distillation_loss",
    "lambda_loss",
    "list_mle_loss",
    "listnet_loss",
    "neural_ndcg_loss",
    "pairwise_hinge_loss",
    "pairwise_logistic_loss",
    "probabilities",
    "softmax_loss",
]


def binary_log_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    propensities: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary log-loss (logistic loss) of each item, averaged over the real items of its list.

    ``-1/n sum_i w_i (y_i log sigmoid(s_i) + (1 - y_i) log(1 - sigmoid(s_i)))``, n the number of real items (not the
    sum of the weights).

    With propensities, ``y_i / p_i`` takes the place of ``y_i`` in both parts (Saito et al. 2020). Where a click is
    examination times relevance, ``y_i / p_i`` has the relevance r_i as its mean, so this is an unbiased estimate of
    the log-loss on relevance, and its minimum is r_i. Weights of ``1 / p_i`` do not correct it: they multiply the
    missing clicks too, and the minimum stays at the click-through rate ``p_i r_i``. The price is variance: that of
    ``y_i / p_i`` is ``r_i (1 / p_i - r_i)``, so clip small propensities. The term of a clicked item with ``p_i < 1``
    falls without bound as its score grows: the loss may be below 0, and a model that can memorize single clicks
    overfits sooner.

    When to choose it: if the probability of a click is itself used, for a bid or a threshold, and if lists without a
    click carry information; they count like all others. It is the only loss here that fixes the level of a list's
    scores: all others are invariant to a shift of the whole list, and only compare its items.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, in [0, 1]: clicks, or probabilities of a click.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. They multiply the items'
            terms and are not normalized: weights of 2 double the loss.
        propensities: [..., list], in (0, 1], the probability that each item was examined when its click was logged;
            None: 1.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label, weight or propensity of a
            real item out of range.

    >>> import torch
    >>> loss = binary_log_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 1, 0]))
    >>> round(loss.item(), 4)  # (log(1 + e^2) + log(1 + e^-1) + log(2)) / 3
    1.0444
    """
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights, highest=1.0)
    targets = correct_labels(labels, propensities, mask)
    per_item = weights * F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    items = mask.sum(dim=-1).clamp(min=1)
    return reduce_lists(torch.where(mask, per_item, 0.0).sum(dim=-1) / items, mask, reduction)


def softmax_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    propensities: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    """Softmax cross-entropy over the list: ``-sum_i w_i t_i log softmax(s)_i``.

    The targets are ``t_i = y_i / sum_j y_j``. With ``normalize=False`` they are ``t_i = y_i``, the loss of PRM (Pei
    et al. 2019, and its authors' code), where a list with more clicks counts more.

    With propensities they are ``t_i = y_i / p_i``, never divided by the clicks of the list: where a click is
    examination times relevance, their mean is the relevance r_i, and the minimum is at ``softmax(s)_i = r_i / sum_j
    r_j`` (Ai et al. 2018). Divided by a sum of clicks, which is itself biased, their mean would no longer follow the
    order of the r_i. The variance of ``y_i / p_i`` is ``r_i (1 / p_i - r_i)``, so clip small propensities.

    When to choose it: for clicks, if only the order within a list matters; with one click per list this is the
    negative log-likelihood of the clicked item. With several clicks, the clicked items are pulled to equal scores.
    ``attention_rank_loss`` is the same on labels 0 and 1; ``list_mle_loss`` is the same for one click per list.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, finite, >= 0; a click is a label > 0. A list without a click
            gives 0.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. They multiply the items'
            terms, do not enter the t_i, and are not normalized: weights of 2 double the loss.
        propensities: [..., list], in (0, 1], the probability that each item was examined when its click was logged;
            None: 1.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.
        normalize: Whether every clicked list counts the same; with propensities none is normalized.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label, weight or propensity of a
            real item out of range.

    >>> import torch
    >>> loss = softmax_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 1, 0]))
    >>> round(loss.item(), 4)  # log(e^2 + e^1 + e^0) - 1
    1.4076
    """
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights)
    targets = correct_labels(labels, propensities, mask)
    if normalize and propensities is None:
        total = labels.sum(dim=-1, keepdim=True)
        targets = labels / torch.where(total > 0, total, 1.0)
    return reduce_lists(_cross_entropy(scores, targets, mask, weights), mask, reduction)


def attention_rank_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Attention-rank loss: cross-entropy between the attention due to the labels and that due to the scores.

    ``-sum_i w_i a_i log softmax(s)_i`` with ``a_i = exp(y_i) / sum_(j: y_j > 0) exp(y_j)`` for ``y_i > 0``, else 0.
    Source: Ai et al. 2018 (DLCM).

    When to choose it: for graded labels, if only those above 0 should raise scores; it is the loss of DLCM and
    SetRank. On labels 0 and 1 it is ``softmax_loss``; on grades it favours the highest more, by powers of e.
    ``listnet_loss`` also gives items without a click a share of the target.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, finite, >= 0; a click is a label > 0. A list without a click
            gives 0.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. They multiply the items'
            terms, do not enter the a_i, and are not normalized: weights of 2 double the loss.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label or weight of a real
            item out of range.

    >>> import torch
    >>> loss = attention_rank_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 2, 1]))
    >>> round(loss.item(), 4)  # log(e^2 + e^1 + e^0) - e^2 / (e^2 + e^1) * 1
    1.6765
    """
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights)
    clicked = labels > 0
    attention = torch.where(clicked, log_softmax(labels, clicked).exp(), 0.0)
    return reduce_lists(_cross_entropy(scores, attention, mask, weights), mask, reduction)


def listnet_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """ListNet with top-one probabilities: ``-sum_i w_i softmax(y)_i log softmax(s)_i`` over the real items.

    Source: Cao et al. 2007.

    When to choose it: for graded labels whose differences are meaningful, like those of scores. Items without a click
    get a share of the target too, ``1 / (n - 1 + e)`` with one click in a list of n: for clicks in long lists
    ``softmax_loss`` is the better choice. To learn from the scores of another model, use ``distillation_loss``.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, finite, >= 0. A list without a click has a uniform target, which
            pulls its scores together; its loss is not 0.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. They multiply the items'
            terms, do not enter ``softmax(y)``, and are not normalized: weights of 2 double the loss.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label or weight of a real
            item out of range.

    >>> import torch
    >>> loss = listnet_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 1, 0]))
    >>> round(loss.item(), 4)  # log(e^2 + e^1 + e^0) - (2 + e) / (2 + e)
    1.4076
    """
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights)
    targets = torch.where(mask, log_softmax(labels, mask).exp(), 0.0)
    return reduce_lists(_cross_entropy(scores, targets, mask, weights), mask, reduction)


def distillation_loss(
    scores: Tensor,
    teacher_scores: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    temperature: float = 1.0,
) -> Tensor:
    """Distillation: the KL divergence of the softmax over a list's scores from that over a teacher's scores.

    ``t^2 sum_i w_i (p_i log(p_i / q_i) - p_i + q_i)`` with ``p = softmax(teacher_scores / t)`` and
    ``q = softmax(scores / t)`` over the real items. With equal weights, ``q_i - p_i`` sums to 0 and this is
    ``t^2 KL(p || q)``, whose gradient is that of the cross-entropy ``-t^2 sum_i p_i log q_i``. The extra terms keep
    each item's term at 0 or above with any weights, and the minimum, 0, where the scores equal the teacher's up to a
    constant per list. Source: Hinton et al. 2015, for classes; over the items of a list as in ListNet (Cao et al.
    2007).

    When to choose it: to transfer the knowledge of a slower model (an ensemble, a tree model, a model with features
    that serving lacks), alone or added to a task loss. It needs no labels, so lists without a click count too.
    With equal weights, ``listnet_loss`` is the same with labels as the teacher's scores, up to a constant per list.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        teacher_scores: [..., list], integer or float, finite, logits of the teacher in place of labels; a shift of
            a list changes nothing. They are constants: no gradient flows to them.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. They multiply the items' terms and are not normalized:
            weights of 2 double the loss.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.
        temperature: t, at least 1e-6, in units of the scores. 1 takes the teacher's scores as logits; a higher t gives
            items with low scores more weight. Far above the spread of both scores, the loss is ``sum_i d_i^2 /
            (2 n)``, d_i the difference of the two scores minus its mean over the list. The factor t^2 keeps the
            gradient at the same size.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a teacher score or weight of a real
            item out of range.

    >>> import torch
    >>> teacher = torch.tensor([0.0, 3.0, -1.0])
    >>> round(distillation_loss(torch.tensor([2.0, 1.0, 0.0]), teacher).item(), 4)
    1.1038
    >>> bool(distillation_loss(teacher + 5.0, teacher) < 1e-6)
    True
    """
    check_positive("temperature", temperature, MIN_TEMPERATURE)
    scores, teacher_scores, mask, weights = read_lists(
        scores, teacher_scores.detach(), mask, weights, name="teacher_scores", lowest=-math.inf
    )
    log_teacher, log_student = (log_softmax(values / temperature, mask) for values in (teacher_scores, scores))
    teacher, student = log_teacher.exp(), log_student.exp()
    per_item = weights * (teacher * (log_teacher - log_student) - teacher + student)
    return reduce_lists(temperature**2 * torch.where(mask, per_item, 0.0).sum(dim=-1), mask, reduction)


# Losses that need only scores and labels: the choices of ``config.task_loss``.
TASK_LOSSES = {
    "binary_log_loss": binary_log_loss,
    "softmax_loss": softmax_loss,
    "attention_rank_loss": attention_rank_loss,
    "listnet_loss": listnet_loss,
    "pairwise_logistic_loss": pairwise_logistic_loss,
    "pairwise_hinge_loss": pairwise_hinge_loss,
    "list_mle_loss": list_mle_loss,
    "lambda_loss": lambda_loss,
    "approx_ndcg_loss": approx_ndcg_loss,
    "neural_ndcg_loss": neural_ndcg_loss,
}
# Losses that do not change if a constant is added to all scores of a list.
SHIFT_INVARIANT_LOSSES = frozenset(TASK_LOSSES) - {"binary_log_loss"}
# Losses that take ``propensities``: they are linear in the labels, so that y / p has the right mean.
LOSSES_WITH_PROPENSITIES = frozenset(
    {"binary_log_loss", "softmax_loss", "pairwise_logistic_loss", "pairwise_hinge_loss"}
)
# Losses that a position tower can correct: their scores are logits of a click, or of an item's share of the clicks.
LOSSES_WITH_POSITION_TOWER = frozenset({"binary_log_loss", "softmax_loss", "attention_rank_loss"})
# Losses that train an order, not probabilities: the softmax of their scores does not estimate anything.
LOSSES_WITHOUT_PROBABILITIES = frozenset(
    {"pairwise_logistic_loss", "pairwise_hinge_loss", "lambda_loss", "approx_ndcg_loss", "neural_ndcg_loss"}
)


def check_propensity_loss(task_loss: str) -> None:
    """Raises an InputError unless the loss of this name takes ``propensities``."""
    if task_loss not in LOSSES_WITH_PROPENSITIES:
        raise InputError(
            f"the lists have propensities, and {task_loss} cannot be corrected by them: expected a task_loss of "
            f"{', '.join(name for name in TASK_LOSSES if name in LOSSES_WITH_PROPENSITIES)}; to train on the clicks "
            "as they are, leave propensity out of the schema, or set propensity_floor=1 in the model's config"
        )


def check_position_tower_loss(task_loss: str) -> None:
    """Raises an InputError unless a position tower can correct the loss of this name."""
    if task_loss not in LOSSES_WITH_POSITION_TOWER:
        raise InputError(
            f"the config has a position_tower, and {task_loss} cannot be corrected by it: expected a task_loss of "
            f"{', '.join(name for name in TASK_LOSSES if name in LOSSES_WITH_POSITION_TOWER)}"
        )


def probabilities(scores: Tensor, task_loss: str, *, mask: Tensor | None = None) -> Tensor:
    """Computes a model's predictions from its scores: sigmoid per score, or softmax over the list.

    Sigmoid for ``binary_log_loss``, the probability of a click on each item. Softmax for all others, the probability
    that an item is the one chosen from its list. The losses in ``LOSSES_WITHOUT_PROBABILITIES`` do not train
    probabilities; for them softmax only keeps the order, and is invariant to a shift of the list.

    Args:
        scores: float [..., list], logits.
        task_loss: The loss that the model was trained with, a name in ``TASK_LOSSES``.
        mask: bool [..., list], True at real items; None: all are.

    Returns:
        [..., list] in [0, 1], float32 at least, 0 at padding.

    Raises:
        InputError: An unknown ``task_loss``.

    >>> import torch
    >>> probabilities(torch.tensor([0.0, 0.0]), "softmax_loss").tolist()
    [0.5, 0.5]
    """
    if task_loss not in TASK_LOSSES:
        raise InputError(
            f"task_loss is {task_loss!r}: expected one of {', '.join(TASK_LOSSES)}{suggestion(task_loss, TASK_LOSSES)}"
        )
    scores = upcast(scores)
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    if task_loss == "binary_log_loss":
        return torch.where(mask, torch.where(mask, scores, 0.0).sigmoid(), 0.0)
    return torch.where(mask, log_softmax(scores, mask).exp(), 0.0)


def center_scores(scores: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Centers scores: subtracts the mean over the real items of each list; 0 at padding, float32 at least.

    Args:
        scores: float [..., list].
        mask: bool [..., list], True at real items; None: all are.

    >>> import torch
    >>> center_scores(torch.tensor([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """
    scores = upcast(scores)
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    real = torch.where(mask, scores, 0.0)
    mean = real.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(mask, scores - mean, 0.0)


def _cross_entropy(scores: Tensor, targets: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """``-sum_i w_i t_i log softmax(s)_i`` over the real items, one value per list."""
    return -torch.where(mask, weights * targets * log_softmax(scores, mask), 0.0).sum(dim=-1)
