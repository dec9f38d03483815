"""The orders given to perturbed passes: every possible one, drawn separately for each list."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from objective_by_hand import (
    GIVEN,
    OWN,
    Output,
    drawn_lists,
    expected,
    perturbed_orders,
    possible_orders,
    run,
    values_of,
)
from objective_cases import two_passes
from torch import Tensor

from hf_rerank.principled import Pass, Perturbed, PrincipledObjective


@pytest.mark.parametrize("order", ["given", "own"])
@pytest.mark.parametrize(
    ("kind", "strength", "count"),
    [
        ("adjacent_swap", 1, 3),
        ("adjacent_swap", 2, 6),
        ("random_swap", 1, 6),
        ("window_shuffle", 2, 10),
        ("reverse_window", 2, 2),
        ("score_noise", 4.0, 24),
    ],
)
def test_perturbed_passes_reach_every_possible_order_and_no_other(
    kind: str, strength: float, count: int, order: Any
) -> None:
    """Over many steps; the loss of a step is that of the order shown in it."""
    objective = two_passes(Perturbed(kind, of=order, strength=strength))
    start = GIVEN if order == "given" else OWN
    allowed = [possible_orders(kind, int(strength), row) for row in start]
    assert len(allowed[0]) == count
    seen: list[set[tuple[int, ...]]] = [set() for _ in start]
    for step in range(80):
        perturbed = perturbed_orders(objective, step=step)
        for row, orders in zip(perturbed["other"], seen, strict=True):
            orders.add(tuple(row))
        if step < 3:
            losses, scorer = run(objective.at(step=step))
            written_out = expected(objective, perturbed, drawn_lists(scorer))
            assert values_of(losses) == pytest.approx(written_out, rel=1e-9)
    if kind == "score_noise":  # large moves are rare
        assert all(orders <= known for orders, known in zip(seen, allowed, strict=True))
        assert len(seen[0]) > count / 2
    else:
        assert seen == allowed


def orders_of_passes(
    objective: PrincipledObjective, keys: list[int] | None, lists: list[int], *, step: int = 0
) -> list[list[list[int]]]:
    """The orders of all passes in the first call of the scorer, on lists of eight items."""
    calls = []

    def score(orders: Tensor, rows: Tensor | None = None) -> Output:
        calls.append(orders)
        return Output(torch.zeros(orders.shape))

    shape = (len(lists), 8)
    objective.at(step=step, list_keys=None if keys is None else torch.tensor(keys))(
        score,
        torch.arange(8).expand(shape),
        torch.zeros(shape),
        torch.ones(shape, dtype=torch.bool),
        lambda output, lists=None: output.logits.sum(),
    )
    return [part.tolist() for part in calls[0].split(len(lists))]


def test_perturbations_depend_on_list_key_step_and_seed() -> None:
    everyone, keys = list(range(40)), [7919 * number for number in range(40)]

    def perturbed(keys: list[int] | None, lists: list[int], *, step: int = 3, seed: int = 0) -> list[list[int]]:
        return orders_of_passes(two_passes(Perturbed(), seed=seed), keys, lists, step=step)[1]

    whole = perturbed(keys, everyone)
    chosen = [31, 2, 17, 5]
    assert perturbed([keys[number] for number in chosen], chosen) == [whole[number] for number in chosen]
    assert perturbed(keys, everyone, step=4) != whole
    assert perturbed(keys, everyone, seed=1) != whole
    # Without keys, the row is the key.
    assert perturbed(None, everyone) == perturbed(everyone, everyone)


def test_perturbed_passes_draw_independently() -> None:
    """Three passes of one kind: each pair agrees on only about a seventh of 400 lists of eight items."""
    passes = (Pass("first"), *(Pass(str(number), Perturbed()) for number in range(3)))
    objective = PrincipledObjective(passes, task_loss_on=("first", "0", "1", "2"))
    _, *orders = orders_of_passes(objective, None, list(range(400)))
    for one, other in itertools.combinations(orders, 2):
        same = sum(a == b for a, b in zip(one, other, strict=True))
        assert abs(same - 400 / 7) < 4 * math.sqrt(400 * 6 / 49)
    # A nested perturbation draws twice: a swap of a swap of the same pair would be no change.
    _, twice = orders_of_passes(two_passes(Perturbed(of=Perturbed())), None, list(range(400)))
    unchanged = twice.count(list(range(8)))
    assert abs(unchanged - 400 / 7) < 4 * math.sqrt(400 * 6 / 49)
