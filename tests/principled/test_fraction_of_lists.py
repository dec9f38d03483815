"""Later passes over a fraction of the lists."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from objective_by_hand import (
    EFFECT,
    GIVEN,
    LISTS,
    Scorer,
    drawn_lists,
    expected,
    perturbed_orders,
    plain,
    possible_orders,
    run,
)
from objective_cases import SCALED


@pytest.mark.parametrize(
    ("fraction", "count"),
    [(1e-9, 1), (0.1, 1), (0.25, 1), (0.375, 2), (0.5, 2), (0.6, 2), (0.7, 3), (0.87, 3), (0.9, 4), (1.0, 4)],
)
def test_number_of_lists_drawn(fraction: float, count: int) -> None:
    """``max(1, round(f * 4))``; ``test_values`` checks that a term is the mean over these."""
    _, scorer = run(replace(SCALED, fraction=fraction))
    assert len(drawn_lists(scorer)) == count
    assert [len(call.orders) for call in scorer.calls] == [LISTS + count, count]


def test_drawn_lists_are_perturbed_as_without_a_fraction() -> None:
    """At each of 20 steps, so random draws belong to a list and not to its row in the batch."""
    for step in range(20):
        whole = perturbed_orders(SCALED, step=step)["third"]
        _, scorer = run(replace(SCALED, fraction=0.5).at(step=step))
        lists = drawn_lists(scorer)
        part = plain(scorer.calls[0].orders[LISTS:], lists)
        assert [part[number] for number in lists] == [whole[number] for number in lists], step


def test_drawn_lists_do_not_depend_on_scores() -> None:
    objective = replace(SCALED, fraction=0.5).at(step=5)
    _, scorer = run(objective)
    other = Scorer()
    with torch.no_grad():
        other.quality.mul_(-3)
    run(objective, scorer=other)
    assert drawn_lists(scorer) == drawn_lists(other)


@pytest.mark.slow
def test_a_fraction_is_unbiased() -> None:
    """Over many steps, the mean of a term and of its gradient equals that over all lists and all swaps.

    With f = .375, two of four lists are drawn: dividing their sum by f * 4 = 1.5 would give a third too much.
    """
    steps, objective = 400, replace(SCALED, fraction=0.375)
    terms = ("convergence_loss", "adversarial_loss")
    found: dict[str, list[float]] = {name: [] for name in (*terms, "slope")}
    drawn = [0] * LISTS
    for step in range(steps):
        losses, scorer = run(objective.at(step=step))
        for name in terms:
            found[name].append(losses[name].item())
        (slope,) = torch.autograd.grad(losses["convergence_loss"], scorer.effect)
        found["slope"].append(slope[1].item())
        for number in drawn_lists(scorer):
            drawn[number] += 1
    assert all(abs(count - steps / 2) < 4 * math.sqrt(steps / 4) for count in drawn)

    # All lists and, for each list, all swaps of adjacent items.
    alone = []
    for number in range(LISTS):
        swaps = sorted(possible_orders("adjacent_swap", 1, GIVEN[number]))
        others = [{"third": [list(swap) if number == n else row for n, row in enumerate(GIVEN)]} for swap in swaps]
        alone.append([expected(SCALED, perturbed, [number]) for perturbed in others])

    def of_the_batch(name: str) -> float:
        return sum(sum(entry[name] for entry in entries) / len(entries) for entries in alone) / LISTS

    up, down = (
        expected(
            SCALED,
            {"third": GIVEN},
            list(range(LISTS)),
            effect=[x + by * (place == 1) for place, x in enumerate(EFFECT)],
        )["convergence_loss"]
        for by in (1e-5, -1e-5)
    )
    truth = {name: of_the_batch(name) for name in terms} | {"slope": (up - down) / 2e-5}
    for name, values in found.items():
        mean = sum(values) / steps
        error = math.sqrt(sum((x - mean) ** 2 for x in values) / (steps - 1) / steps)
        assert abs(mean - truth[name]) < 4 * error, name
        assert abs(mean * 2 / 1.5 - truth[name]) > 4 * error * 2 / 1.5, name
