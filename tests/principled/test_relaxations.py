"""Soft orders: against loops over the papers' formulas, their limits, gradients, and padding."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.principled.orders import perturb, positions_from_scores
from hf_rerank.principled.relaxations import RELAXATIONS, hard_order, move_soft_order, soft_order

Matrix = list[list[float]]
GARBAGE = [math.nan, math.inf, -math.inf, torch.finfo(torch.float32).min, 1e30]
every_relaxation = pytest.mark.parametrize("relaxation", RELAXATIONS)


def softmax(values: list[float]) -> list[float]:
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def softsort(scores: list[float], temperature: float) -> Matrix:
    """Prillo and Eisenschlos 2020, equation 4: row p is softmax(-|sort(s)_p - s| / t)."""
    return [
        softmax([-abs(ranked - score) / temperature for score in scores]) for ranked in sorted(scores, reverse=True)
    ]


def neuralsort(scores: list[float], temperature: float) -> Matrix:
    """Grover et al. 2019, equation 5: row i from 1 is softmax(((n + 1 - 2 i) s - A 1) / t), A[j][k] = |s_j - s_k|."""
    n = len(scores)
    apart = [sum(abs(score - other) for other in scores) for score in scores]
    return [
        softmax([((n + 1 - 2 * i) * scores[j] - apart[j]) / temperature for j in range(n)]) for i in range(1, n + 1)
    ]


FORMULAS = {"softsort": softsort, "neuralsort": neuralsort}


def transpose(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def normalize_rows(matrix: Matrix) -> Matrix:
    return [[value / sum(row) for value in row] for row in matrix]


def expected_soft_order(scores: list[float], relaxation: str, temperature: float, sinkhorn: int) -> Matrix:
    """[slot][position]: columns and rows of M are normalized in turn, columns last; then transposed."""
    matrix = FORMULAS[relaxation](scores, temperature)
    for _ in range(sinkhorn):
        matrix = normalize_rows(transpose(normalize_rows(transpose(matrix))))
    return normalize_rows(transpose(matrix))


def random_ragged_scores(seed: int, lists: int = 21, length: int = 6) -> tuple[Tensor, Tensor]:
    """Scores [lists, length] about 0.1 or more apart, and masks of 0 to ``length`` items in any slots."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.stack([torch.randperm(30, generator=generator)[:length] for _ in range(lists)]) / 10 - 1.5
    scores += 0.01 * torch.rand(scores.shape, generator=generator)
    count = torch.arange(lists) % (length + 1)
    return scores, torch.rand(lists, length, generator=generator).argsort(-1) < count[:, None]


def weighted_sum(order: Tensor, seed: int = 99) -> Tensor:
    """A scalar in which each entry of the order has its own weight."""
    return (order * torch.rand(order.shape, generator=torch.Generator().manual_seed(seed), dtype=order.dtype)).sum()


def gradient(scores: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    leaf = scores.clone().requires_grad_()
    weighted_sum(soft_order(leaf, mask, **options)).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_hard_order_matches_written_out_values() -> None:
    """Slot 0 is at position 2, slot 1 at position 0, slot 2 at position 1."""
    assert hard_order(torch.tensor([2, 0, 1])).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    positions = torch.tensor([[[0, 1]], [[1, 0]]])
    found = hard_order(positions, torch.float64)
    assert found.dtype == torch.float64
    assert found.tolist() == [[[[1.0, 0.0], [0.0, 1.0]]], [[[0.0, 1.0], [1.0, 0.0]]]]


def test_soft_order_of_two_items_matches_written_out_arithmetic() -> None:
    """Scores log 3 and 0, t = 1: both have the rows 3 : 1 and 1 : 3, whose columns already sum to 1.

    SoftSort: exp(-0) : exp(-log 3), and the reverse. NeuralSort: |s_0 - s_1| is the same for both items, so
    row 0 is softmax(s) and row 1 softmax(-s).
    """
    for relaxation in RELAXATIONS:
        found = soft_order(torch.tensor([math.log(3), 0.0]), relaxation=relaxation)
        assert found.tolist() == [pytest.approx([0.75, 0.25]), pytest.approx([0.25, 0.75])]


@every_relaxation
@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("sinkhorn", [0, 1, 3])
def test_soft_orders_match_the_formulas_of_the_papers(relaxation: str, temperature: float, sinkhorn: int) -> None:
    """On ragged lists: the soft order of the real items, followed by padding at hard positions."""
    scores, mask = random_ragged_scores(1)
    found = soft_order(
        scores.double(), mask, relaxation=relaxation, temperature=temperature, sinkhorn=sinkhorn
    ).tolist()
    for row, (values, real) in enumerate(zip(scores.double().tolist(), mask.tolist(), strict=True)):
        items = [slot for slot in range(6) if real[slot]]
        padding = [slot for slot in range(6) if not real[slot]]
        expected = (
            expected_soft_order([values[slot] for slot in items], relaxation, temperature, sinkhorn) if items else []
        )
        for slot, places in zip(items, expected, strict=True):
            assert found[row][slot] == pytest.approx(places + [0.0] * len(padding), abs=1e-12)
        for place, slot in enumerate(padding, len(items)):
            assert found[row][slot] == [float(other == place) for other in range(6)]


@every_relaxation
def test_soft_order_defaults_and_leading_axes(relaxation: str) -> None:
    """Temperature 1, no Sinkhorn step; without a mask all items are real."""
    draw = random.Random(2)
    scores = [[[draw.gauss(0, 1) for _ in range(4)] for _ in range(3)] for _ in range(2)]
    found = soft_order(torch.tensor(scores, dtype=torch.float64), relaxation=relaxation)
    assert found.shape == (2, 3, 4, 4)
    for one, matrix in zip([*scores[0], *scores[1]], found.reshape(6, 4, 4).tolist(), strict=True):
        expected = expected_soft_order(one, relaxation, 1.0, 0)
        assert [pytest.approx(row, abs=1e-12) for row in expected] == matrix
    assert torch.equal(soft_order(torch.tensor(scores)), soft_order(torch.tensor(scores), relaxation="softsort"))


@every_relaxation
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_sinkhorn_converges_to_a_doubly_stochastic_matrix(relaxation: str, temperature: float) -> None:
    scores, mask = random_ragged_scores(3)
    ones = torch.ones(21, 6, dtype=torch.float64)
    for steps in (0, 1, 500):
        order = soft_order(scores.double(), mask, relaxation=relaxation, temperature=temperature, sinkhorn=steps)
        torch.testing.assert_close(order.sum(-1), ones, atol=1e-12, rtol=0)
        assert (order >= 0).all()
        crowding = (order.sum(-2) - 1).abs().max()
        assert crowding < 1e-4 if steps == 500 else crowding > 1e-3


@every_relaxation
@pytest.mark.parametrize("options", [{}, {"sinkhorn": 4}, {"straight_through": True}])
def test_soft_order_approaches_the_hard_order_at_low_temperature(relaxation: str, options: dict[str, Any]) -> None:
    scores, mask = random_ragged_scores(4)
    hard = hard_order(positions_from_scores(scores, mask))
    found = soft_order(scores, mask, relaxation=relaxation, temperature=1e-3, **options)
    torch.testing.assert_close(found, hard, atol=1e-6, rtol=0)
    # At the default temperature it is far from the hard order, so the limit is tested.
    assert (
        options.get("straight_through") or (soft_order(scores, mask, relaxation=relaxation) - hard).abs().max() > 0.3
    )
    assert gradient(scores, mask, relaxation=relaxation, temperature=1e-3, **options).isfinite().all()


@every_relaxation
@pytest.mark.parametrize("sinkhorn", [0, 2])
def test_equal_scores_share_all_positions(relaxation: str, sinkhorn: int) -> None:
    """Three real items, a third at each of three positions; the straight-through order is slot order."""
    scores, mask = torch.full((4,), 2.5), torch.tensor([True, False, True, True])
    found = soft_order(scores, mask, relaxation=relaxation, sinkhorn=sinkhorn)
    third = 1 / 3
    expected = [[third, third, third, 0.0], [0.0, 0.0, 0.0, 1.0], *[[third, third, third, 0.0]] * 2]
    torch.testing.assert_close(found, torch.tensor(expected))
    options = {"relaxation": relaxation, "sinkhorn": sinkhorn, "straight_through": True}
    assert torch.equal(soft_order(scores, mask, **options), hard_order(torch.tensor([0, 3, 1, 2])))
    assert gradient(scores, mask, **options).isfinite().all()


@every_relaxation
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("options", [{}, {"sinkhorn": 2}, {"straight_through": True}])
def test_padding_values_have_no_effect(relaxation: str, garbage: float, options: dict[str, Any]) -> None:
    """For any value at padding: the same bits, forward and backward, and no gradient at padding."""
    scores, mask = random_ragged_scores(5)
    dirty = scores.where(mask, garbage)
    clean = scores.where(mask, 0.0)
    options = {"relaxation": relaxation, **options}
    assert torch.equal(soft_order(dirty, mask, **options), soft_order(clean, mask, **options))
    found = gradient(dirty, mask, **options)
    assert torch.equal(found, gradient(clean, mask, **options))
    assert (found[~mask] == 0).all()
    assert (found[mask.sum(-1) > 2].abs().sum(-1) > 1e-3).all()


@every_relaxation
@pytest.mark.parametrize("sinkhorn", [0, 2])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_gradient_matches_finite_differences(relaxation: str, sinkhorn: int, temperature: float) -> None:
    scores, mask = random_ragged_scores(6, lists=5, length=4)
    assert torch.autograd.gradcheck(
        lambda values: soft_order(values, mask, relaxation=relaxation, temperature=temperature, sinkhorn=sinkhorn),
        (scores.double().requires_grad_(),),
    )


@every_relaxation
@pytest.mark.parametrize("sinkhorn", [0, 2])
def test_straight_through_is_hard_forward_and_soft_backward(relaxation: str, sinkhorn: int) -> None:
    scores, mask = random_ragged_scores(7)
    options: dict[str, Any] = {"relaxation": relaxation, "sinkhorn": sinkhorn, "temperature": 0.7}
    found = soft_order(scores, mask, straight_through=True, **options)
    hard = hard_order(positions_from_scores(scores, mask))
    assert torch.equal(found, hard)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    soft = gradient(scores, mask, **options)
    assert torch.equal(gradient(scores, mask, straight_through=True, **options), soft)
    assert soft[mask.sum(-1) > 1].abs().max() > 0.01


@every_relaxation
@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("sinkhorn", [0, 3])
def test_empty_and_single_item_lists_have_a_hard_order_and_zero_gradient(
    relaxation: str, straight_through: bool, sinkhorn: int
) -> None:
    """Also with straight-through and Sinkhorn."""
    scores = torch.tensor([[3.0, -1.0, 2.0], [math.nan, 4.0, math.inf], [math.inf, math.nan, -math.inf]])
    mask = torch.tensor([[False, False, True], [False, True, False], [False, False, False]])
    options = {"relaxation": relaxation, "straight_through": straight_through, "sinkhorn": sinkhorn}
    expected = hard_order(torch.tensor([[1, 2, 0], [1, 0, 2], [0, 1, 2]]))
    assert torch.equal(soft_order(scores, mask, **options), expected)
    with torch.autograd.set_detect_anomaly(True):  # raises if an intermediate gradient is NaN
        assert torch.equal(gradient(scores, mask, **options), torch.zeros(3, 3))
    assert soft_order(torch.tensor([[7.0]]), **options).tolist() == [[[1.0]]]


@every_relaxation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(relaxation: str, dtype: torch.dtype) -> None:
    scores, mask = random_ragged_scores(8)
    narrow = scores.to(dtype)
    for options in ({}, {"straight_through": True}, {"sinkhorn": 2}):
        found = soft_order(narrow, mask, relaxation=relaxation, **options)
        assert found.dtype == torch.float32
        assert torch.equal(found, soft_order(narrow.float(), mask, relaxation=relaxation, **options))
        back = gradient(narrow, mask, relaxation=relaxation, **options)
        assert back.dtype == dtype
        assert torch.equal(back, gradient(narrow.float(), mask, relaxation=relaxation, **options).to(dtype))
    assert soft_order(scores.double(), mask, relaxation=relaxation).dtype == torch.float64


@pytest.mark.parametrize("kind", ["adjacent_swap", "random_swap", "window_shuffle", "reverse_window", "score_noise"])
def test_moving_a_hard_order_equals_the_hard_order_of_moved_positions(kind: str) -> None:
    scores, mask = random_ragged_scores(9)
    positions = positions_from_scores(scores, mask)
    for seed in range(5):
        draws = torch.Generator().manual_seed(seed)
        moved = perturb(positions, mask, kind=kind, strength=2, generator=draws)
        assert not torch.equal(moved, positions)
        assert torch.equal(move_soft_order(hard_order(positions), positions, moved), hard_order(moved))


def test_moving_a_soft_order_matches_written_out_values() -> None:
    """Items at positions 2, 0, 1; the last two are swapped, and so are the last two columns."""
    order = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.3, 0.5, 0.2]])
    found = move_soft_order(order, torch.tensor([2, 0, 1]), torch.tensor([1, 0, 2]))
    assert found.tolist() == torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3], [0.3, 0.2, 0.5]]).tolist()
    # All three move: from positions 2, 0, 1 to 0, 1, 2. Column 0 is now the former column 2, 1 the former 0, 2 the 1.
    found = move_soft_order(order, torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2]))
    assert found.tolist() == torch.tensor([[0.7, 0.1, 0.2], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]).tolist()


def test_moving_a_soft_order_permutes_its_columns() -> None:
    """Against loops, on ragged lists: the column of a new position is that of its item's old position."""
    scores, mask = random_ragged_scores(10)
    positions = positions_from_scores(scores, mask)
    moved = perturb(positions, mask, kind="random_swap", strength=5, generator=torch.Generator().manual_seed(11))
    order = soft_order(scores, mask)
    found = move_soft_order(order, positions, moved)
    for row in range(len(scores)):
        for place in range(6):
            came_from = int(positions[row, moved[row].tolist().index(place)])
            assert torch.equal(found[row, :, place], order[row, :, came_from])
    leaf = order.clone().requires_grad_()
    move_soft_order(leaf, positions, moved).sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(order))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relaxation": "softsrt"}, "'softsrt': expected one of softsort, neuralsort; did you mean 'softsort'"),
        ({"relaxation": "hard"}, "'hard': expected one of softsort, neuralsort"),
        *(
            ({"temperature": value}, f"temperature is {value}: expected a number of at least 1e-06")
            for value in (0, -1.0, math.nan, math.inf)
        ),
        ({"temperature": 1e-7}, "temperature is 1e-07: expected a number of at least 1e-06"),
        ({"sinkhorn": 1.5}, "sinkhorn is 1.5: expected a whole number"),
        ({"sinkhorn": -1}, "sinkhorn is -1: expected a whole number of normalisations, at least 0"),
    ],
)
def test_wrong_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        soft_order(torch.zeros(1, 2), **options)
