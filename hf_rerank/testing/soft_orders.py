"""Contracts of soft orders, and of scoring some rows of a batch."""

from __future__ import annotations

import torch

from hf_rerank.principled import Soft, hard_order, soft_order
from hf_rerank.testing.candidate import (
    Candidate,
    assert_near,
    assert_same_gradients,
    gradients,
    reverse_order,
    rows_of,
    score_in_one_forward,
    tolerances,
)
from hf_rerank.testing.objectives import SOFT, at_one_step, use_soft_order


def matrix_of_an_order_equals_the_order(candidate: Candidate) -> None:
    """An order and its 0/1 matrix (``hard_order``) give the same scores and gradients, for two orders at once."""
    lists = candidate.lists((6, 4, 1, 5, 0))
    given, mask = lists["position_ids"], lists["mask"]
    orders = torch.cat([given, reverse_order(given, mask)])
    factors = torch.rand(10, 6, generator=torch.Generator().manual_seed(6))
    real = mask.repeat(2, 1)
    for choice in candidate.config_class.position_inputs():
        model = candidate.model(position_input=choice)
        by_place, by_matrix = score_in_one_forward(model, lists, (orders,), (hard_order(orders),))
        torch.testing.assert_close(by_matrix, by_place, **tolerances())
        alone = [model(**{**lists, "position_ids": order}).logits for order in orders.chunk(2)]
        torch.testing.assert_close(by_matrix, torch.cat(alone), **tolerances())
        (by_place * factors)[real].sum().backward(retain_graph=True)
        expected = gradients(model)
        (by_matrix * factors)[real].sum().backward()
        assert_same_gradients(gradients(model), expected, atol=1e-5)


def gradient_of_the_order_is_that_of_finite_differences(candidate: Candidate) -> None:
    """The gradient of a soft order is exact, in float64; ``none`` does not read the order, and has no gradient."""
    lists = candidate.lists((4, 3), width=4)
    mask = lists["mask"]
    scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    order = soft_order(scores, mask).requires_grad_()
    for choice in candidate.config_class.position_inputs():
        model = candidate.model(position_input=choice).double()

        def logits(order, model=model):
            return score_in_one_forward(model, lists, (order,))[0][mask]

        if choice == "none":
            torch.testing.assert_close(logits(order), model(**lists).logits[mask], **tolerances())
            (gradient,) = torch.autograd.grad(logits(order).sum(), order, allow_unused=True)
            assert gradient is None or not gradient.any()
            continue
        assert torch.autograd.gradcheck(logits, (order,), fast_mode=True)
        (gradient,) = torch.autograd.grad(logits(order).square().sum(), order)
        assert (gradient[mask].abs().sum(-1) > 0).all(), "each item's positions count"


def gradient_of_training_is_that_of_finite_differences(candidate: Candidate) -> None:
    """The gradient is exact along a random direction of all weights, in float64; straight-through: only finite."""
    for kind in SOFT:
        _check_gradient(candidate, kind)


def _check_gradient(candidate: Candidate, kind: str) -> None:
    model = candidate.model().double()
    lists = {**candidate.lists((6, 4, 1, 5)), "labels": candidate.lists((6, 4, 1, 5))["labels"].double()}
    objective = at_one_step(SOFT[kind])
    loss = model(**lists, objective=objective).loss
    assert loss.dtype == torch.float64
    loss.backward()
    if kind in ("straight_through", "everything"):
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())
        return
    draw = torch.Generator().manual_seed(8)
    found, ways = 0.0, dict[str, torch.Tensor]()
    for weight, gradient in gradients(model).items():
        ways[weight] = torch.randn(gradient.shape, generator=draw, dtype=torch.float64)
        found += (ways[weight] * gradient).sum().item()
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for weight, way in ways.items():
                model.get_parameter(weight).add_(way, alpha=step)
            ends.append(model(**lists, objective=objective).loss.item())
    assert_near(found, (ends[0] - ends[1]) / 2e-6, atol=1e-6, rtol=1e-5, about=kind)


def straight_through_changes_the_gradient_alone(candidate: Candidate) -> None:
    """Straight-through passes the hard order, so every loss is the same; the gradient flows through the ranking."""
    if not candidate.reads_order:
        return
    model, lists = candidate.model(), candidate.lists()
    hard = model(**lists, objective=at_one_step())
    hard.loss.backward()
    without = gradients(model)
    through = model(**lists, objective=at_one_step(use_soft_order("scaled", Soft(straight_through=True))))
    through.loss.backward()
    assert through.losses.keys() == hard.losses.keys()
    for term, value in {**hard.losses, "loss": hard.loss}.items():
        torch.testing.assert_close({**through.losses, "loss": through.loss}[term], value, **tolerances())
    differences = [(gradient - without[weight]).abs().max() for weight, gradient in gradients(model).items()]
    assert max(differences) > 1e-4


def rows_of_the_batch_equal_those_lists_alone(candidate: Candidate) -> None:
    """Any rows, in any order, one of them twice, are scored as if alone; with positions and soft orders."""
    model, lists = candidate.model(), candidate.lists((6, 4, 1, 5, 0))
    rows = torch.tensor([3, 0, 4, 3, 1])
    draw = torch.Generator().manual_seed(9)
    mask = lists["mask"][rows]
    scores = torch.randn(5, 6, generator=draw)
    order, soft = reverse_order(lists["position_ids"][rows], mask), soft_order(scores, mask)
    by_place, by_matrix, one = score_in_one_forward(model, lists, (order, rows), (soft, rows), (soft[1:2], rows[1:2]))
    assert by_place.shape == by_matrix.shape == (5, 6)
    torch.testing.assert_close(by_place, model(**rows_of(lists, rows, order)).logits, **tolerances())
    alone = score_in_one_forward(model, rows_of(lists, rows, order), (soft,))[0]
    torch.testing.assert_close(by_matrix, alone, **tolerances())
    torch.testing.assert_close(one, alone[1:2], **tolerances())


def task_loss_of_rows_equals_that_of_those_lists(candidate: Candidate) -> None:
    """The task loss of some rows of a batch is that of these lists alone."""
    model, lists = candidate.model(), candidate.lists((6, 4, 1, 5, 0))
    rows = torch.tensor([3, 0, 4, 1])
    weights = torch.rand(5, 6, generator=torch.Generator().manual_seed(10)) + 0.5
    order = lists["position_ids"][rows]
    for factors in (None, weights):
        found: list[torch.Tensor] = []

        def objective(score, position_ids, labels, mask, task_loss, found=found):
            found.append(task_loss(score(position_ids)))
            found.append(task_loss(score(order, rows), rows))
            return {"loss": found[0]}

        model(**lists, weights=factors, objective=objective)
        alone = model(**rows_of(lists, rows, order), weights=None if factors is None else factors[rows]).loss
        torch.testing.assert_close(found[0], model(**lists, weights=factors).loss, **tolerances())
        torch.testing.assert_close(found[1], alone, **tolerances())
