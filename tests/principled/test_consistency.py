"""The consistency loss and its gradients against scalar arithmetic."""

import math

import pytest
import torch

from hf_rerank.errors import InputError
from hf_rerank.principled import consistency_loss

# Two lists of three; their positions move by 1, 1, 0 and 2, 0, 2; the last slot of the second is padding in MASK.
A, B = [[0.5, 0.25, 1.0], [0.0, 2.0, 1.0]], [[0.0, 0.75, 3.0], [1.0, 5.0, 0.5]]
P, Q = [[0, 1, 2], [0, 1, 2]], [[1, 0, 2], [2, 1, 0]]
MASK = [[True, True, True], [True, True, False]]
# Squares of differences times moves: list 0: 1 * .25 + 1 * .25 + 0 * 4; list 1: 2 * 1 + 0 * 9 (+ 2 * .25).
BY_HAND = {
    ("sum", False): (0.5 + 2.5) / 2,
    ("sum", True): (0.5 + 2.0) / 2,
    ("mean", False): (0.5 / 3 + 2.5 / 3) / 2,
    ("mean", True): (0.5 / 3 + 2.0 / 2) / 2,
    ("weighted_mean", False): (0.5 / 2 + 2.5 / 4) / 2,
    ("weighted_mean", True): (0.5 / 2 + 2.0 / 2) / 2,
}
REDUCTIONS = ("sum", "mean", "weighted_mean")


@pytest.mark.parametrize(("reduction", "masked"), BY_HAND)
def test_consistency_loss_matches_written_out_arithmetic(reduction: str, masked: bool) -> None:
    mask = torch.tensor(MASK) if masked else None
    loss = consistency_loss(
        torch.tensor(A), torch.tensor(B), torch.tensor(P), torch.tensor(Q), mask=mask, reduction=reduction
    )
    assert loss.item() == pytest.approx(BY_HAND[reduction, masked])


@pytest.mark.parametrize(("reduction", "masked"), BY_HAND)
def test_without_positions_every_item_has_weight_1(reduction: str, masked: bool) -> None:
    """Squares of differences: list 0: .25, .25, 4; list 1: 1, 9, and .25 in the slot that the mask excludes."""
    expected = {"sum": (4.5 + 10.25 - 0.25 * masked) / 2, "mean": (4.5 / 3 + (5 if masked else 10.25 / 3)) / 2}
    mask = torch.tensor(MASK) if masked else None
    loss = consistency_loss(torch.tensor(A), torch.tensor(B), None, None, mask=mask, reduction=reduction)
    assert loss.item() == pytest.approx(expected["sum" if reduction == "sum" else "mean"])


def test_the_sum_of_the_paper_is_the_default_reduction() -> None:
    assert consistency_loss(*map(torch.tensor, (A, B, P, Q))).item() == pytest.approx(BY_HAND["sum", False])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, torch.finfo(torch.float32).min])
def test_padding_has_no_effect_on_value_and_gradient(reduction: str, garbage: float) -> None:
    """Neither its scores nor its positions; a third list is all padding."""
    mask = torch.tensor([*MASK, [False] * 3])
    fill = torch.tensor([[0.0] * 3, [0.0, 0.0, garbage], [garbage] * 3])
    scores = [torch.tensor([*values, [7.0] * 3]).where(mask, fill).requires_grad_() for values in (A, B)]
    positions = torch.tensor([*Q, [5, 9, 0]]).where(mask, torch.tensor(1000))
    loss = consistency_loss(*scores, torch.tensor([*P, [0, 1, 2]]), positions, mask=mask, reduction=reduction)
    assert loss.item() == pytest.approx(BY_HAND[reduction, True])
    loss.backward()
    for values in scores:
        assert values.grad.isfinite().all()
        assert (values.grad[~mask] == 0).all()
    # d/dA of the first item of list 0: 2 * 1 * (A - B), over the list's divisor, over two lists.
    divisor = {"sum": 1, "mean": 3, "weighted_mean": 2}[reduction]
    assert scores[0].grad[0, 0].item() == pytest.approx(2 * 0.5 / divisor / 2)
    assert scores[1].grad[0, 0].item() == pytest.approx(-2 * 0.5 / divisor / 2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_and_gradient_are_zero_without_moved_items(reduction: str) -> None:
    scores = torch.tensor(A, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for other, mask in ((torch.tensor(P), None), (torch.tensor(Q), nothing)):
        loss = consistency_loss(scores, torch.tensor(B), torch.tensor(P), other, mask=mask, reduction=reduction)
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, scores)
        assert (gradient == 0).all()


def test_half_precision_is_squared_in_float32() -> None:
    """In float32, 2^-20 is not lost when added to 1; float64 stays float64."""
    small = torch.tensor([[2.0**-10, 1.0]]).bfloat16()
    moved = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
    loss = consistency_loss(small, torch.zeros(1, 2).bfloat16(), *moved)
    assert loss.dtype == torch.float32
    assert loss.item() == 1 + 2.0**-20
    assert consistency_loss(small.double(), small.double(), *moved).dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reduction": "avg"}, "'avg': expected sum, mean, weighted_mean"),
        ({"scores_b": torch.zeros(2, 1)}, r"scores_b has the shape \[2, 1\]: expected that of scores_a, \[2, 3\]"),
        ({"positions_a": torch.zeros(3)}, r"positions_a has the shape \[3\]"),
        ({"positions_b": torch.zeros(1, 3)}, r"positions_b has the shape \[1, 3\]"),
        ({"mask": torch.ones(3, 3).bool()}, r"mask has the shape \[3, 3\]"),
        ({"positions_a": None}, "positions_a and positions_b: expected both or neither"),
        ({"positions_b": None}, "positions_a and positions_b: expected both or neither"),
    ],
)
def test_wrong_arguments_are_rejected(changes: dict, message: str) -> None:
    arguments = dict(
        zip(("scores_a", "scores_b", "positions_a", "positions_b"), map(torch.tensor, (A, B, P, Q)), strict=True)
    )
    with pytest.raises(InputError, match=message):
        consistency_loss(**{**arguments, **changes})
