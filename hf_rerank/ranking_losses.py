"""Task losses that compare the items of a list through pairs, orders or ranks; import them from ``hf_rerank.losses``.

All have the signature ``loss(scores, labels, *, mask=None, weights=None, reduction="mean")`` plus their own options,
and need memory for a few tensors [..., list, list].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.list_tensors import (
    MIN_TEMPERATURE,
    check_gain,
    check_positive,
    correct_labels,
    differences,
    neuralsort_matrix,
    ranks,
    read_lists,
    reduce_lists,
    relative_gains,
    sinkhorn_normalize,
)


def pairwise_logistic_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    propensities: Tensor | None = None,
    reduction: str = "mean",
    sigma: float = 1.0,
    normalize: bool = True,
) -> Tensor:
    """Pairwise logistic loss (RankNet), averaged over the pairs of a list whose labels differ.

    ``1/m sum_(i,j: y_i > y_j) w_i log(1 + exp(-sigma (s_i - s_j)))``, m the number of these pairs. Source: Burges et
    al. 2005, who sum over the pairs: ``normalize=False``.

    With propensities it is ``1/(n - 1) sum_i w_i y_i / p_i sum_(j != i) log(1 + exp(-sigma (s_i - s_j)))``, each
    click against all n - 1 other items, clicked ones too (Joachims et al. 2017): an item without a click may be one
    that nobody examined, so labels say nothing about pairs. Where a click is examination times relevance, its mean is
    the same sum with the relevance in place of ``y_i / p_i``.

    When to choose it: if the number of pairs in the wrong order matters (the AUC within a list), at the bottom of a
    list as much as at its top; ``sigmoid(sigma (s_i - s_j))`` estimates the probability that item i is preferred
    to item j. ``lambda_loss`` is the same with pairs weighted by their effect on NDCG; ``pairwise_hinge_loss`` stops
    at a margin.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, finite, >= 0; only their order is used. A list without a click, or
            with only equal labels, has no pair and gives 0.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. A pair takes the weight of
            its item i, the one with the higher label. Weights do not enter m: weights of 2 double the loss.
        propensities: [..., list], in (0, 1], the probability that each item was examined when its click was logged;
            None: see the first formula.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.
        sigma: Steepness, above 0, per unit of the scores.
        normalize: Whether every list with a pair counts the same. If False, the terms are summed, and long lists, with
            more pairs, count more.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label, weight or propensity of a
            real item out of range.

    >>> import torch
    >>> loss = pairwise_logistic_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 1, 0]))
    >>> round(loss.item(), 4)  # (log(1 + e^(2 - 1)) + log(1 + e^(0 - 1))) / 2
    0.8133
    """
    check_positive("sigma", sigma)
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights)
    per_pair = -F.logsigmoid(sigma * differences(scores))
    return reduce_lists(_reduce_pairs(per_pair, labels, mask, weights, normalize, propensities), mask, reduction)


def pairwise_hinge_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    propensities: Tensor | None = None,
    reduction: str = "mean",
    margin: float = 1.0,
    normalize: bool = True,
) -> Tensor:
    """Pairwise hinge loss (RankSVM), averaged over the pairs of a list whose labels differ.

    ``1/m sum_(i,j: y_i > y_j) w_i max(0, margin - (s_i - s_j))``, m the number of these pairs. Sources: Herbrich et
    al. 2000; Joachims 2002, for clicks, who sums over the pairs: ``normalize=False``.

    With propensities it is ``1/(n - 1) sum_i w_i y_i / p_i sum_(j != i) max(0, margin - (s_i - s_j))``, each
    click against all n - 1 other items, clicked ones too (Joachims et al. 2017): an item without a click may be one
    that nobody examined, so labels say nothing about pairs. Where a click is examination times relevance, its mean is
    the same sum with the relevance in place of ``y_i / p_i``.

    When to choose it: if pairs that are in the right order by the margin should have no further effect, so that scores
    stop growing. ``pairwise_logistic_loss`` is its smooth version; prefer it if in doubt. Both grow linearly with the
    score difference of a pair in the wrong order.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, finite, >= 0; only their order is used. A list without a click, or
            with only equal labels, has no pair and gives 0.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. A pair takes the weight of
            its item i, the one with the higher label. Weights do not enter m: weights of 2 double the loss.
        propensities: [..., list], in (0, 1], the probability that each item was examined when its click was logged;
            None: see the first formula.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.
        margin: Score difference from which a pair costs nothing, above 0, in units of the scores.
        normalize: Whether every list with a pair counts the same. If False, the terms are summed, and long lists, with
            more pairs, count more.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label, weight or propensity of a
            real item out of range.

    >>> import torch
    >>> loss = pairwise_hinge_loss(torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0, 1, 0]))
    >>> loss.item()  # ((1 - (1 - 2)) + (1 - (1 - 0.5))) / 2
    1.25
    """
    check_positive("margin", margin)
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights)
    per_pair = F.relu(margin - differences(scores))
    return reduce_lists(_reduce_pairs(per_pair, labels, mask, weights, normalize, propensities), mask, reduction)


def list_mle_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """ListMLE: the negative log-likelihood of the order by label, if items are drawn one by one (Plackett-Luce).

    ``sum_i w_i (log(exp(s_i) + sum_(j: y_j < y_i) exp(s_j)) - s_i)``: each item is drawn from those that are left,
    with softmax probabilities. Source: Xia et al. 2008, for labels without ties, where this is the exact likelihood.

    Ties: labels do not say in which order items of equal labels are drawn, so such items do not compete. Other
    implementations break ties by slot or at random, and train on an order that is not in the data. The items with the
    lowest label of a list cost nothing here.

    When to choose it: if labels rank most items of a list, such as ratings or positions of a better ranker. With
    one click per list it equals ``softmax_loss``; with several clicks it is the sum of a softmax loss per click, each
    against the items without a click, so that clicked items are not pulled to equal scores.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, finite, >= 0; only their order is used. A list without a click, or
            with only equal labels, gives 0.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. They multiply the items'
            terms and are not normalized: weights of 2 double the loss.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label or weight of a real
            item out of range.

    >>> import torch
    >>> loss = list_mle_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1, 2, 0]))
    >>> round(loss.item(), 4)  # log(e^2 + e^1 + e^0) - 1 + log(e^2 + e^0) - 2
    1.5345
    """
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights)
    myself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    left = ((differences(labels) > 0) & mask[..., None, :]) | myself
    lowest = torch.finfo(scores.dtype).min  # not -inf, whose gradient is NaN
    log_total = scores[..., None, :].masked_fill(~left, lowest).logsumexp(dim=-1)
    return reduce_lists(torch.where(mask, weights * (log_total - scores), 0.0).sum(dim=-1), mask, reduction)


def lambda_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    sigma: float = 1.0,
    gain: str = "exponential",
) -> Tensor:
    """LambdaRank as a loss: pairwise logistic terms, each weighted by how much swapping the pair would change NDCG.

    ``sum_(i,j: y_i > y_j) w_i |dNDCG_ij| log2(1 + exp(-sigma (s_i - s_j)))`` with
    ``|dNDCG_ij| = |g_i - g_j| |1/log2(1 + r_i) - 1/log2(1 + r_j)| / idealDCG`` and ``g = 2^y - 1``; ``r`` are the
    current ranks, from 1, ties in slot order, and no gradient flows through them.

    Sources: the gradient is LambdaRank's (Burges 2010, with the natural logarithm); the loss, and log2, which bounds
    the 0/1 error of a pair from above, are those of Wang et al. 2018 (LambdaLoss). The two differ by 1 / ln 2.

    When to choose it: for graded labels or clicks, if NDCG is the metric and the top of the list counts most. It is
    ``pairwise_logistic_loss`` with weights; unlike that of ``approx_ndcg_loss`` and ``neural_ndcg_loss``, its gradient
    does not vanish if a pair is far in the wrong order, which makes it the safest of the three.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, finite, >= 0; grades of any size. A list without a click, or with
            only equal labels, gives 0.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. A pair takes the weight of
            its item i, the one with the higher label. Weights do not enter NDCG: weights of 2 double the loss.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.
        sigma: Steepness of the pairwise logistic terms, above 0, per unit of the scores.
        gain: ``"exponential"``, ``g = 2^y - 1``, or ``"linear"``, ``g = y``, the better choice for grades above about
            10, where the exponential gain sees little but the highest. They agree on labels 0 and 1.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label or weight of a real
            item out of range.

    >>> import torch
    >>> loss = lambda_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 1, 0]))
    >>> round(loss.item(), 4)
    0.7584
    >>> # (1 - 1/log2(3)) * log2(1 + e^(2 - 1)) + (1/log2(3) - 1/log2(4)) * log2(1 + e^(0 - 1))
    """
    check_positive("sigma", sigma)
    check_gain(gain)
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights)
    gains = relative_gains(labels, gain)
    discounts = 1.0 / torch.log2(1.0 + ranks(scores, mask))
    ideal = (gains / torch.log2(1.0 + ranks(labels, mask))).sum(dim=-1, keepdim=True)
    gains = gains / torch.where(ideal > 0, ideal, 1.0)
    swap_changes = (differences(gains) * differences(discounts)).abs()
    per_pair = swap_changes * -F.logsigmoid(sigma * differences(scores)) / math.log(2.0)
    return reduce_lists(_reduce_pairs(per_pair, labels, mask, weights, normalize=False), mask, reduction)


def approx_ndcg_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    temperature: float = 0.1,
    gain: str = "exponential",
) -> Tensor:
    """ApproxNDCG: 1 - NDCG with smooth ranks.

    ``1 - sum_i g_i / log2(1 + r_i) / idealDCG`` with ``g = 2^y - 1`` and
    ``r_i = 1 + sum_(j != i) sigmoid((s_j - s_i) / t)``, which becomes the rank as t falls to 0; items with equal
    scores then share the mean of their ranks. Sources: Qin et al. 2010; the default t is that of Bruch et al. 2019.

    When to choose it: if NDCG itself is the aim, and training starts from scores with a sensible order and scale, such
    as those of a trained model. The gradient vanishes if all scores of a list are more than a few t apart, even in the
    wrong order: keep t near the spread of the scores. ``lambda_loss`` has the same aim without that weakness;
    ``neural_ndcg_loss`` relaxes the sorting instead of the ranks.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, finite, >= 0; grades of any size. A list without a click, or with
            a single item, gives 0.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. The loss is the sum of
            ``w_i g_i (b_i - 1/log2(1 + r_i)) / idealDCG``, b_i the discount that the item has in the ideal order, the
            mean over items of equal labels; with w = 1 this is the formula above. Weights do not enter b or the ideal:
            weights of 2 double the loss. With weights that differ between equal labels it may be below 0.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.
        temperature: t, at least 1e-6, in units of the scores.
        gain: ``"exponential"``, ``g = 2^y - 1``, or ``"linear"``, ``g = y``. They agree on labels 0 and 1.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label or weight of a real
            item out of range.

    >>> import torch
    >>> scores, labels = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0, 1, 0])
    >>> round(approx_ndcg_loss(scores, labels, temperature=1.0).item(), 4)  # r = 1 + 0.7311 + 0.3775
    0.3889
    >>> round(approx_ndcg_loss(scores, labels, temperature=0.01).item(), 4)  # 1 - 1/log2(1 + 2)
    0.3691
    """
    check_positive("temperature", temperature, MIN_TEMPERATURE)
    check_gain(gain)
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights)
    above = torch.sigmoid(-differences(scores) / temperature)  # [..., i, j]: how far j is above i
    others = mask[..., None, :] & ~torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    smooth_ranks = 1.0 + torch.where(others, above, 0.0).sum(dim=-1)
    lost = _ndcg_loss(1.0 / torch.log2(1.0 + smooth_ranks), labels, mask, weights, gain)
    return reduce_lists(lost, mask, reduction)


def neural_ndcg_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    temperature: float = 1.0,
    sinkhorn_steps: int = 30,
    gain: str = "exponential",
) -> Tensor:
    """NeuralNDCG: 1 - NDCG of the relaxed order of NeuralSort.

    ``1 - sum_p sum_i M[p, i] g_i / log2(1 + p) / idealDCG`` with ``g = 2^y - 1`` and ``M[p, i]`` the share of item i
    in rank p: ``softmax_i(((n + 1 - 2 p) s_i - sum_j |s_i - s_j|) / t)``, whose columns and rows are then normalized
    in turn (Sinkhorn), so that the shares of an item sum to 1 as well. It becomes 1 - NDCG as t falls to 0, the mean
    over the orders of equal scores. Sources: Pobrotyn and Bialobrzeski 2021 (NeuralNDCG); Grover et al. 2019
    (NeuralSort).

    When to choose it: if NDCG itself is the aim, as for ``approx_ndcg_loss``; here too the gradient vanishes if scores
    are far apart, even in the wrong order. The softmax grows sharper with the number n of items, so the same t is
    closer to 1 - NDCG in longer lists. ``lambda_loss`` has the same aim, needs no temperature, and costs less time and
    memory.

    Args:
        scores: float [..., list], logits of the items of each list; any leading axes. Computed in float32 at least.
        labels: [..., list], bool, integer or float, finite, >= 0; grades of any size. A list without a click, or with
            a single item, gives 0.
        mask: bool [..., list], True at real items; None: all are. Padding is never read; its gradient is exactly 0.
        weights: [..., list], >= 0, one per item; None: 1. The loss is the sum of
            ``w_i g_i (b_i - sum_p M[p, i] / log2(1 + p)) / idealDCG``, b_i the discount that the item has in the ideal
            order, the mean over items of equal labels; with w = 1 this is the formula above. Weights do not enter b or
            the ideal: weights of 2 double the loss. With weights that differ between equal labels it may be below 0.
        reduction: ``"mean"`` over the lists with a real item, ``"sum"`` over lists, ``"none"``: one value per list.
        temperature: t, at least 1e-6, in units of the scores.
        sinkhorn_steps: Number of column and row normalizations, >= 0; they take most of this loss's time. With few,
            the shares of an item may sum to more than 1 and the loss may be below 0.
        gain: ``"exponential"``, ``g = 2^y - 1``, or ``"linear"``, ``g = y``. They agree on labels 0 and 1.

    Returns:
        A scalar, or [...] for ``reduction="none"``, float32 or float64. A list without a real item gives 0, and so
        does a mean over no lists.

    Raises:
        InputError: Shapes that differ, an unknown option, or (checked on the CPU) a label or weight of a real
            item out of range.

    >>> import torch
    >>> scores, labels = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 1, 0])
    >>> round(neural_ndcg_loss(scores, labels).item(), 4)
    0.3135
    >>> round(neural_ndcg_loss(scores, labels, temperature=0.01).item(), 4)  # 1 - 1/log2(1 + 2)
    0.3691
    """
    check_positive("temperature", temperature, MIN_TEMPERATURE)
    check_gain(gain)
    if sinkhorn_steps != int(sinkhorn_steps) or sinkhorn_steps < 0:
        raise InputError(f"sinkhorn_steps must be a whole number, at least 0; got {sinkhorn_steps}")
    scores, labels, mask, weights = read_lists(scores, labels, mask, weights)
    shares = sinkhorn_normalize(neuralsort_matrix(scores, mask, temperature=temperature), int(sinkhorn_steps))
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    discounts = 1.0 / torch.log2(1.0 + rank.to(scores.dtype))
    lost = _ndcg_loss((discounts[:, None] * shares).sum(dim=-2), labels, mask, weights, gain)
    return reduce_lists(lost, mask, reduction)


def _reduce_pairs(
    per_pair: Tensor,
    labels: Tensor,
    mask: Tensor,
    weights: Tensor,
    normalize: bool,
    propensities: Tensor | None = None,
) -> Tensor:
    """``w_i * per_pair`` summed, or averaged, over the pairs of real items with ``y_i > y_j``; one value per list.

    With propensities ``w_i y_i / p_i * per_pair`` over all pairs of two real items, averaged over the n - 1 others.
    """
    real = mask[..., :, None] & mask[..., None, :]
    if propensities is not None:
        pairs = real & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        clicks = weights * correct_labels(labels, propensities, mask)
        total = torch.where(pairs, clicks[..., :, None] * per_pair, 0.0).sum(dim=(-2, -1))
        return total / (mask.sum(dim=-1) - 1).clamp(min=1) if normalize else total
    pairs = (differences(labels) > 0) & real
    total = torch.where(pairs, weights[..., :, None] * per_pair, 0.0).sum(dim=(-2, -1))
    return total / pairs.sum(dim=(-2, -1)).clamp(min=1) if normalize else total


def _ndcg_loss(discounts: Tensor, labels: Tensor, mask: Tensor, weights: Tensor, gain: str) -> Tensor:
    """``sum_i w_i g_i (b_i - d_i) / idealDCG``, one value per list; with weights of 1 this is 1 - NDCG.

    ``d`` [..., list] are the discounts of the items, ``b`` those in the ideal order. There, items with equal labels
    share the mean of theirs, so that the order of the slots does not matter.
    """
    gains = relative_gains(labels, gain)
    best = 1.0 / torch.log2(1.0 + ranks(labels, mask))
    ideal = (gains * best).sum(dim=-1)
    equal = (differences(labels) == 0) & mask[..., None, :]
    best = torch.where(equal, best[..., None, :], 0.0).sum(dim=-1) / equal.sum(dim=-1).clamp(min=1)
    lost = torch.where(mask, weights * gains * (best - discounts), 0.0).sum(dim=-1)
    return lost / torch.where(ideal > 0, ideal, 1.0)
