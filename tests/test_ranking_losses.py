"""Losses of pairs, orders and ranks: values against scalar arithmetic, and their limits.

Properties that every loss must have are in ``test_losses``. Values and gradients were also compared with Rax 0.4.0 and
allRank 1.4.3, outside this repository, on 64 random lists of up to 24 items.
"""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

from hf_rerank.list_tensors import neuralsort_matrix, normalize_along, sinkhorn_normalize
from hf_rerank.losses import (
    approx_ndcg_loss,
    lambda_loss,
    list_mle_loss,
    neural_ndcg_loss,
    pairwise_hinge_loss,
    pairwise_logistic_loss,
    softmax_loss,
)
from hf_rerank.metrics import ndcg
from hf_rerank.principled import soft_order

as_tensor = partial(torch.tensor, dtype=torch.float64)

# Three items: scores, and labels without and with ties. Scores rank the items 1, 2, 3.
S, W = (1.0, 0.5, -2.0), (0.5, 2.0, 3.0)
GRADED, CLICKS = (1.0, 0.0, 2.0), (0.0, 1.0, 1.0)
D1, D2, D3 = 1 / math.log2(2), 1 / math.log2(3), 1 / math.log2(4)


def softplus(x):
    return math.log(1 + math.exp(x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def log_sum_exp(*scores):
    return math.log(sum(math.exp(s) for s in scores))


def smooth_discount(i, t):
    return 1 / math.log2(1 + 1 + sum(sigmoid((S[j] - S[i]) / t) for j in range(3) if j != i))


BY_HAND = [
    # Pairs of GRADED: item 2 before 0 and 1, item 0 before 1. A pair has the weight of the first.
    (pairwise_logistic_loss, GRADED, None, (softplus(3.0) + softplus(2.5) + softplus(-0.5)) / 3),
    (pairwise_logistic_loss, GRADED, W, (3.0 * softplus(3.0) + 3.0 * softplus(2.5) + 0.5 * softplus(-0.5)) / 3),
    (partial(pairwise_logistic_loss, normalize=False), CLICKS, W, 2.0 * softplus(0.5) + 3.0 * softplus(3.0)),
    (partial(pairwise_logistic_loss, sigma=2.0), CLICKS, None, (softplus(1.0) + softplus(6.0)) / 2),
    (pairwise_hinge_loss, GRADED, None, ((1 + 3.0) + (1 + 2.5) + (1 - 0.5)) / 3),
    (pairwise_hinge_loss, GRADED, W, (3.0 * (1 + 3.0) + 3.0 * (1 + 2.5) + 0.5 * (1 - 0.5)) / 3),
    (partial(pairwise_hinge_loss, margin=0.25), GRADED, None, ((0.25 + 3.0) + (0.25 + 2.5) + 0.0) / 3),
    (partial(pairwise_hinge_loss, normalize=False), CLICKS, W, 2.0 * (1 + 0.5) + 3.0 * (1 + 3.0)),
    # The order by label is 2, 0, 1; the last item is drawn with certainty.
    (list_mle_loss, GRADED, None, (log_sum_exp(-2.0, 1.0, 0.5) + 2.0) + (log_sum_exp(1.0, 0.5) - 1.0)),
    (list_mle_loss, GRADED, W, 3.0 * (log_sum_exp(-2.0, 1.0, 0.5) + 2.0) + 0.5 * (log_sum_exp(1.0, 0.5) - 1.0)),
    # Ties: items 1 and 2 compete with item 0, not with each other.
    (list_mle_loss, CLICKS, W, 2.0 * (log_sum_exp(0.5, 1.0) - 0.5) + 3.0 * (log_sum_exp(-2.0, 1.0) + 2.0)),
    # Gains 1, 0, 3.
    (
        partial(approx_ndcg_loss, temperature=2.0),
        GRADED,
        None,
        1 - (1 * smooth_discount(0, 2.0) + 3 * smooth_discount(2, 2.0)) / (3 * D1 + 1 * D2),
    ),
    (
        partial(approx_ndcg_loss, temperature=2.0),
        GRADED,
        W,
        (0.5 * 1 * (D2 - smooth_discount(0, 2.0)) + 3.0 * 3 * (D1 - smooth_discount(2, 2.0))) / (3 * D1 + 1 * D2),
    ),
    (
        partial(approx_ndcg_loss, gain="linear"),
        GRADED,
        None,
        1 - (1 * smooth_discount(0, 0.1) + 2 * smooth_discount(2, 0.1)) / (2 * D1 + 1 * D2),
    ),
    # Ties: both clicked items have the mean of the two best discounts in the ideal order.
    (
        approx_ndcg_loss,
        CLICKS,
        W,
        (2.0 * ((D1 + D2) / 2 - smooth_discount(1, 0.1)) + 3.0 * ((D1 + D2) / 2 - smooth_discount(2, 0.1)))
        / (D1 + D2),
    ),
]


@pytest.mark.parametrize(("loss", "labels", "weights", "expected"), BY_HAND)
def test_values_match_written_out_arithmetic(loss, labels, weights, expected):
    value = loss(as_tensor(S), as_tensor(labels), weights=None if weights is None else as_tensor(weights))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_neural_ndcg_of_two_items_matches_written_out_arithmetic():
    # Rank 1: logits (1 - 0.5, 0.5 - 0.5); rank 2: logits (-1 - 0.5, -0.5 - 0.5). Rows and columns sum to 1 already.
    scores, labels = as_tensor([1.0, 0.5]), as_tensor([0.0, 1.0])
    for steps in (0, 1, 30):
        value = neural_ndcg_loss(scores, labels, sinkhorn_steps=steps)
        assert value.item() == pytest.approx(1 - (sigmoid(-0.5) * D1 + sigmoid(0.5) * D2), rel=1e-12)
    value = neural_ndcg_loss(scores, labels, temperature=0.25, weights=as_tensor([9.0, 3.0]))
    assert value.item() == pytest.approx(3.0 * (D1 - (sigmoid(-2.0) * D1 + sigmoid(2.0) * D2)), rel=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("weights", [None, W])
def test_neural_ndcg_of_three_items_matches_written_out_arithmetic(steps, weights):
    t = 2.0
    apart = [0.5 + 3.0, 0.5 + 2.5, 3.0 + 2.5]  # sum_j |s_i - s_j|
    rows = []
    for scale in (2, 0, -2):  # n + 1 - 2 p
        powers = [math.exp((scale * S[i] - apart[i]) / t) for i in range(3)]
        rows.append([power / sum(powers) for power in powers])
    for _ in range(steps):
        columns = [sum(row[i] for row in rows) for i in range(3)]
        rows = [[row[i] / columns[i] for i in range(3)] for row in rows]
        rows = [[share / sum(row) for share in row] for row in rows]
    reached = [rows[0][i] * D1 + rows[1][i] * D2 + rows[2][i] * D3 for i in range(3)]
    ideal = 3 * D1 + 1 * D2
    w = weights or (1.0, 1.0, 1.0)
    expected = (w[0] * 1 * (D2 - reached[0]) + w[2] * 3 * (D1 - reached[2])) / ideal
    if weights is None:
        assert expected == pytest.approx(1 - (1 * reached[0] + 3 * reached[2]) / ideal)
    value = neural_ndcg_loss(
        as_tensor(S),
        as_tensor(GRADED),
        temperature=t,
        sinkhorn_steps=steps,
        weights=None if weights is None else as_tensor(weights),
    )
    assert value.item() == pytest.approx(expected, rel=1e-12)


def random_lists(lists=32, width=12, seed=0, dtype=torch.float64, grades=4):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(lists, width, generator=generator, dtype=dtype)
    labels = torch.randint(0, grades, (lists, width), generator=generator).to(dtype)
    labels[:, 0] = grades - 1
    mask = torch.arange(width) < torch.randint(2, width + 1, (lists, 1), generator=generator)
    return scores, labels, mask


SMOOTH_NDCG = pytest.mark.parametrize("loss", [approx_ndcg_loss, neural_ndcg_loss])


class TestSmoothNDCG:
    @SMOOTH_NDCG
    @pytest.mark.parametrize("gain", ["exponential", "linear"])
    def test_loss_approaches_one_minus_ndcg_at_low_temperature(self, loss, gain):
        scores, labels, mask = random_lists()
        exact = 1 - ndcg(scores, labels, mask=mask, gain=gain, reduction="none")
        off = []
        for temperature in (10.0, 1.0, 0.1, 1e-2, 1e-5):
            value = loss(scores, labels, mask=mask, gain=gain, temperature=temperature, reduction="none")
            off.append(np.abs(value.numpy() - exact).mean())
        assert off == sorted(off, reverse=True)
        assert off[0] > 0.05
        assert off[-1] < 1e-9

    @SMOOTH_NDCG
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_two_hundred_items_in_low_precision_match_float64(self, loss, dtype):
        scores, labels, mask = random_lists(lists=8, width=200)
        scores = scores.to(dtype)
        value = loss(scores, labels, mask=mask, reduction="none")
        assert value.dtype == torch.float32
        exact = loss(scores.double(), labels, mask=mask, reduction="none")
        torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("temperature", [1e-3, 1e-6])
    def test_neural_ndcg_averages_over_the_orders_of_equal_scores(self, temperature):
        labels = as_tensor([0.0, 2.0, 1.0, 0.0, 1.0])
        scores = as_tensor([3.0, 1.0, 1.0, 1.0, 2.0])  # a tie on ranks 3 to 5
        orders = [(0, 4, *tied) for tied in itertools.permutations((1, 2, 3))]
        ranked = [as_tensor([5.0 - order.index(i) for i in range(5)]) for order in orders]
        exact = np.mean([1 - ndcg(order, labels) for order in ranked])
        assert neural_ndcg_loss(scores, labels, temperature=temperature).item() == pytest.approx(exact, abs=1e-9)

    @pytest.mark.parametrize("temperature", [1e-3, 1e-6])
    def test_approx_ndcg_gives_equal_scores_their_mean_rank(self, temperature):
        value = approx_ndcg_loss(as_tensor([3.0, 1.0, 1.0]), as_tensor([0.0, 1.0, 0.0]), temperature=temperature)
        assert value.item() == pytest.approx(1 - 1 / math.log2(1 + 2.5), abs=1e-9)

    @SMOOTH_NDCG
    def test_loss_is_between_zero_and_one(self, loss):
        scores, labels, mask = random_lists(lists=200)
        for temperature in (0.1, 1.0, 10.0):
            values = loss(scores, labels, mask=mask, temperature=temperature, reduction="none")
            assert ((values > -1e-3) & (values < 1)).all()  # 30 Sinkhorn steps leave a little

    @SMOOTH_NDCG
    @pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.1, 1.0, 100.0])
    @pytest.mark.parametrize("spread", [1e-8, 1e-3, 1.0, 1e4])
    def test_loss_and_gradient_are_finite_with_near_ties(self, loss, temperature, spread):
        scores, labels, mask = random_lists(lists=8, width=200, dtype=torch.float32)
        scores = scores * spread
        scores[:, 50:100] = scores[:, :50]  # ties
        scores[:, 100:120] = scores[:, :20] * (1 + 1e-7)  # one rounding apart
        scores.requires_grad_()
        value = loss(scores, labels, mask=mask, temperature=temperature)
        value.backward()
        assert value.isfinite()
        assert scores.grad.isfinite().all()
        assert (scores.grad[~mask] == 0).all()

    def test_sinkhorn_makes_the_shares_of_each_item_sum_to_one(self):
        scores, _, mask = random_lists()
        soft = neuralsort_matrix(scores, mask, temperature=5.0)
        torch.testing.assert_close(soft.sum(-1).sum(-1), mask.sum(-1).double())
        assert (soft.sum(-2)[mask] - 1).abs().max() > 0.1
        shares = sinkhorn_normalize(soft, 500)
        torch.testing.assert_close(shares.sum(-2), mask.double())

    def test_neuralsort_is_the_same_as_in_principled_learning(self):
        scores, _, mask = random_lists()
        for temperature, steps in ((1.0, 0), (0.2, 3)):
            matrix = neuralsort_matrix(scores, mask, temperature=temperature)
            expected = normalize_along(sinkhorn_normalize(matrix, steps), -2).transpose(-1, -2)
            order = soft_order(scores, mask, relaxation="neuralsort", temperature=temperature, sinkhorn=steps)
            torch.testing.assert_close(torch.where(mask[..., None], order, 0.0), expected)


class TestListMLE:
    def test_the_likelihood_of_all_orders_sums_to_one(self):
        scores = random_lists(lists=1, width=5)[0][0]
        labels = torch.tensor(list(itertools.permutations(range(5))))
        values = list_mle_loss(scores.expand(120, 5), labels, reduction="none")
        assert (-values).exp().sum().item() == pytest.approx(1.0, rel=1e-12)

    def test_list_mle_equals_softmax_loss_for_one_click(self):
        scores, _, mask = random_lists()
        labels = torch.zeros_like(scores)
        labels[:, 1] = 1.0
        torch.testing.assert_close(list_mle_loss(scores, labels, mask=mask), softmax_loss(scores, labels, mask=mask))

    def test_list_mle_bounds_the_likelihood_of_tied_labels(self):
        # Exact: the probability that the three clicked items come first, in any order.
        scores = random_lists(lists=1, width=6)[0][0]
        labels = as_tensor([1, 1, 1, 0, 0, 0])
        orders = [as_tensor([*order, 0, 0, 0]) for order in itertools.permutations((3, 2, 1))]
        exact = -math.log(sum(math.exp(-list_mle_loss(scores, order).item()) for order in orders))
        assert exact < list_mle_loss(scores, labels).item() < exact + math.log(6)


ALL = {
    "pairwise_logistic": pairwise_logistic_loss,
    "pairwise_hinge": partial(pairwise_hinge_loss, margin=10.0),
    "list_mle": list_mle_loss,
    "lambda": lambda_loss,
    "approx_ndcg": approx_ndcg_loss,
    "neural_ndcg": neural_ndcg_loss,
}
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL.keys())


@every_loss
def test_loss_decreases_as_the_order_improves(loss):
    # Five items with labels 2 1 0 0 0: the best of all 120 orders of the same scores is the one by label.
    labels = torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0])
    scores = torch.tensor(list(itertools.permutations([2.0, 1.0, 0.0, -1.0, -2.0])), dtype=torch.float64)
    values = loss(scores, labels.expand_as(scores), reduction="none")
    best = values < values.min() + 1e-9
    assert (scores[best][:, :2] == torch.tensor([2.0, 1.0])).all()


@every_loss
def test_gradient_descent_sorts_a_list(loss):
    scores, labels, mask = random_lists(lists=8)
    before = ndcg(scores, labels, mask=mask)
    scores.requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss(scores, labels, mask=mask).backward()
        optimizer.step()
    assert ndcg(scores, labels, mask=mask) > before + 0.6 * (1 - before)


class TestLargeGrades:
    NDCG_LOSSES = pytest.mark.parametrize("loss", [lambda_loss, approx_ndcg_loss, neural_ndcg_loss])

    @NDCG_LOSSES
    @pytest.mark.parametrize("grade", [128.0, 1023.0, 1024.0, 1e5, 1e30])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_single_huge_grade_counts_as_one_click(self, loss, grade, dtype):
        scores = torch.tensor([0.3, 1.0, -0.5], dtype=dtype).requires_grad_()
        click = torch.tensor([1.0, 0.0, 0.0])
        value = loss(scores, grade * click)
        value.backward()
        torch.testing.assert_close(value, loss(scores, click))
        assert scores.grad.isfinite().all()
        assert scores.grad.abs().max() > 1e-3

    @NDCG_LOSSES
    def test_ratios_of_huge_gains_are_exact(self, loss):
        # 2^2000 : 2^1999 : 2^1997 is 8 : 4 : 1.
        scores = as_tensor([0.3, 1.0, -0.5, 0.1])
        value = loss(scores, as_tensor([2000, 1999, 0, 1997]))
        assert value.item() == pytest.approx(loss(scores, as_tensor([8, 4, 0, 1]), gain="linear").item(), rel=1e-9)

    def test_ndcg_of_huge_grades(self):
        scores = [4.0, 3.0, 2.0, 1.0]
        expected = (8 * D1 + 4 * D2 + 1 / math.log2(5)) / (8 * D1 + 4 * D2 + 1 * D3)
        assert ndcg(scores, [2000, 1999, 0, 1997]) == pytest.approx(expected, rel=1e-12)
        assert ndcg(scores, [8e307, 4e307, 0, 1e307], gain="linear") == pytest.approx(expected, rel=1e-12)
        assert ndcg(scores, [0, 0, 1e300, 0], k=3) == pytest.approx(D3 / D1)
        assert ndcg(scores, [0, 0, 1e300, 0], k=2) == 0.0

    def test_ndcg_of_fractional_grades_follows_the_formula(self):
        # 2^y - 1, also for fractions, with a k that excludes the highest grade.
        gains = [2**0.25 - 1, 2**0.001 - 1, 2**3.5 - 1]
        expected = (gains[0] * D1 + gains[1] * D2) / (gains[2] * D1 + gains[0] * D2)
        assert ndcg([3.0, 2.0, 1.0], [0.25, 0.001, 3.5], k=2) == pytest.approx(expected, rel=1e-12)
