"""One ragged batch, its objective in plain numbers, and a scorer that records the calls of the objective."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_rerank.losses import TASK_LOSSES
from hf_rerank.principled import Perturbed, PrincipledObjective, Soft

# Four lists of four, three, two and one item. A score is the item's quality plus the effect of its position.
QUALITY = [[0.2, 1.0, 0.6, -0.3], [0.5, 0.1, 0.9], [-0.4, 0.3], [0.7]]
EFFECT = [0.3, -0.6, 0.2, -0.5]
GIVEN = [[2, 0, 3, 1], [1, 2, 0], [0, 1], [0]]
# The scores of the given order are thus .4, 1.3, .1, -.9; -.1, .3, 1.2; -.1, -.3; 1, and the scorer's own order is
OWN = [[1, 0, 2, 3], [2, 1, 0], [0, 1], [0]]
# Given this order, it scores -.4, 1.3, .8, -.8; .7, -.5, 1.2; -.1, -.3; 1, and ranks the items
AGAIN = [[2, 0, 1, 3], [1, 2, 0], [0, 1], [0]]
LABELS = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0], [1.0]]
# Effect of fresh dropout masks on the scores, here one number per item.
NOISE = [[0.25, -0.5, 0.125, 0.75], [0.5, -0.125, 0.0], [0.25, 0.5], [-0.25]]
LISTS = len(QUALITY)
KEYS = torch.arange(LISTS)  # the default keys of the objective

Numbers = list[list[float]]


# -------------------------------------------------------------------------------------- the objective in plain numbers


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(x - max(values)) for x in values)
    return [math.exp(x - max(values)) / total for x in values]


def ranking(scores: list[float]) -> list[int]:
    best_first = sorted(range(len(scores)), key=lambda item: -scores[item])
    return [best_first.index(item) for item in range(len(scores))]


def zero_one(positions: list[int]) -> Numbers:
    return [[float(place == position) for place in range(len(positions))] for position in positions]


def expected_soft_positions(soft: Soft, scores: list[float]) -> Numbers:
    """[item][position], rows that sum to 1."""
    n, t = len(scores), soft.temperature
    apart = [sum(abs(s - other) for other in scores) for s in scores]
    if soft.relaxation == "softsort":
        matrix = [softmax([-abs(one - s) / t for s in scores]) for one in sorted(scores, reverse=True)]
    else:
        matrix = [softmax([((n - 1 - 2 * p) * scores[i] - apart[i]) / t for i in range(n)]) for p in range(n)]
    for _ in range(soft.sinkhorn):
        columns = [sum(row[item] for row in matrix) for item in range(n)]
        matrix = [[x / total for x, total in zip(row, columns, strict=True)] for row in matrix]
        matrix = [[x / sum(row) for x in row] for row in matrix]
    columns = [sum(row[item] for row in matrix) for item in range(n)]
    return [[row[item] / columns[item] for row in matrix] for item in range(n)]


def base_of(order: Any) -> Any:
    """``given``, ``own`` or ``Soft``, without perturbations."""
    return base_of(order.of) if isinstance(order, Perturbed) else order


def scores_of(
    objective: PrincipledObjective, perturbed: dict[str, list[list[int]]], quality: Numbers, effect: list[float]
) -> dict[str, Numbers]:
    """The scores of each pass, by list and item, including lists that a pass leaves out."""

    def scored(order: Numbers, n: int, noise: float = 0.0) -> list[float]:
        """An item's score is its quality and the mean effect of the positions at which it is given."""
        return [
            q + noise * extra + sum(share * e for share, e in zip(row, effect, strict=False))
            for q, extra, row in zip(quality[n], NOISE[n], order, strict=True)
        ]

    first, *others = objective.passes
    found = {first.name: [scored(zero_one(GIVEN[n]), n) for n in range(LISTS)]}
    at_first = [[QUALITY[n][i] + EFFECT[place] for i, place in enumerate(GIVEN[n])] for n in range(LISTS)]
    for entry in others:
        base, rows = base_of(entry.order), []
        for n in range(LISTS):
            hard = GIVEN[n] if base == "given" else OWN[n]
            order = zero_one(hard)
            if isinstance(base, Soft):
                soft = expected_soft_positions(base, found[first.name][n])
                if base.straight_through:  # the 0/1 order, with the gradient of the soft one
                    still = expected_soft_positions(base, at_first[n])
                    soft = [
                        [h + x - c for h, x, c in zip(*row, strict=True)]
                        for row in zip(order, soft, still, strict=True)
                    ]
                order = soft
            if entry.name in perturbed:  # the columns move with the perturbed positions
                moved = perturbed[entry.name][n]
                order = [[row[hard[moved.index(place)]] for place in range(len(hard))] for row in order]
            rows.append(scored(order, n, noise=float(entry.dropout == "fresh")))
        found[entry.name] = rows
    return found


def comparable(logits: list[float], space: str, task_loss: str) -> list[float]:
    if space == "output":
        return logits
    if task_loss == "binary_log_loss":
        return [sigmoid(x) for x in logits] if space == "probability" else logits
    if space == "probability":
        return softmax(logits)
    return [x - sum(logits) / len(logits) for x in logits]


def task_loss_of(task_loss: str, logits: list[float], labels: list[float]) -> float:
    """Task loss of one list."""
    clicks = sum(labels)
    if task_loss == "binary_log_loss":
        return sum(math.log(1 + math.exp(-x if y else x)) for x, y in zip(logits, labels, strict=True)) / len(logits)
    if not clicks:
        return 0.0
    if task_loss == "softmax_loss":
        return -sum(y / clicks * math.log(p) for p, y in zip(softmax(logits), labels, strict=True))
    assert task_loss == "lambda_loss"
    discounts = [1 / math.log2(2 + place) for place in ranking(logits)]
    ideal = sum(1 / math.log2(2 + place) for place in range(int(clicks)))
    pairs = [(i, j) for i, j in itertools.product(range(len(labels)), repeat=2) if labels[i] > labels[j]]
    return sum(
        abs(discounts[i] - discounts[j]) / ideal * math.log2(1 + math.exp(logits[j] - logits[i])) for i, j in pairs
    )


def expected(
    objective: PrincipledObjective,
    perturbed: dict[str, list[list[int]]],
    lists: list[int],
    *,
    quality: Numbers = QUALITY,
    effect: list[float] = EFFECT,
    factors: Callable[[str], float] = lambda term: 1.0,
) -> dict[str, float]:
    """The expected return value of the objective.

    Args:
        objective: Its passes and terms are read; ``fraction``, ``warmup`` and ``seed`` are not.
        perturbed: Name of a perturbed pass -> the positions that it is given, per list.
        lists: Lists of the later passes.
        quality, effect: Those of the scorer. The constant side of a term, and all rankings, use the module's.
        factors: Factors of the terms' weights.
    """
    passes = scores_of(objective, perturbed, quality, effect)
    constant = scores_of(objective, perturbed, QUALITY, EFFECT)
    name_of_loss = objective.task_loss if objective.task_loss not in (None, "own") else "binary_log_loss"

    def task(name: str, over: list[int]) -> float:
        return sum(task_loss_of(name_of_loss, passes[name][n], LABELS[n]) for n in over) / len(over)

    first, *others = (entry.name for entry in objective.passes)
    losses = {"task_loss": task(first, list(range(LISTS)))}
    loss = losses["task_loss"] if first in objective.task_loss_on else 0.0
    further = [task(name, lists) for name in others if name in objective.task_loss_on]
    if further:
        losses["further_task_loss"] = sum(further)
        loss += sum(further)
    given = {
        entry.name: perturbed.get(entry.name, GIVEN if entry.order == "given" else OWN) for entry in objective.passes
    }
    for term in objective.terms:
        total = 0.0
        for n in lists:
            one, two = (
                comparable((constant if term.stop_gradient == side else passes)[name][n], term.space, name_of_loss)
                for side, name in (("first", term.first), ("second", term.second))
            )
            places = [
                ranking(constant[name][n]) if term.positions == "output" else given[name][n]
                for name in (term.first, term.second)
            ]
            moves = [1 if term.positions is None else abs(p - q) for p, q in zip(*places, strict=True)]
            summed = sum(move * (x - y) ** 2 for move, x, y in zip(moves, one, two, strict=True))
            total += summed / {"sum": 1, "mean": len(moves), "weighted_mean": sum(moves) or 1}[term.reduction]
        losses[f"{term.name}_loss"] = total / len(lists)
        loss += factors(term.name) * term.weight * losses[f"{term.name}_loss"]
    return {"loss": loss, **losses}


# ----------------------------------------------------------------------------------------------- running the objective


@dataclass
class Output:
    logits: Tensor

    def split(self, sizes: list[int]) -> list[Output]:
        return [Output(part) for part in self.logits.split(sizes)]


@dataclass
class Call:
    """One call of the scorer: the given orders, the rows, and whether with fresh dropout masks."""

    orders: Tensor
    rows: Tensor | None
    fresh: bool


class Scorer:
    """Quality plus effect, with NaN at padding; ``shift`` shifts a whole list by the position of its first item."""

    def __init__(self, dtype: torch.dtype = torch.float64, shift: float = 0.0) -> None:
        self.quality = padded(QUALITY, math.nan, dtype).requires_grad_()
        self.noise = padded(NOISE, math.nan, dtype)
        self.effect = torch.tensor(EFFECT, dtype=dtype, requires_grad=True)
        self.shift = shift
        self.calls: list[Call] = []

    def __call__(self, orders: Tensor, lists: Tensor | None = None, fresh_dropout: bool = False) -> Output:
        self.calls.append(Call(orders.detach(), lists, fresh_dropout))
        rows = KEYS.repeat(len(orders) // LISTS) if lists is None else lists
        items = self.quality[rows] + fresh_dropout * self.noise[rows]
        if orders.is_floating_point():
            return Output(items + orders @ self.effect)
        return Output(items + self.effect[orders] + self.shift * orders[:, :1])


def padded(rows: Numbers, fill: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([[*row, *[fill] * (4 - len(row))] for row in rows], dtype=dtype)


MASK = padded([[1.0] * len(row) for row in QUALITY], 0.0) > 0
POSITIONS = torch.tensor([row + list(range(len(row), 4)) for row in GIVEN])


def run(objective: Any, *, scorer: Scorer | None = None) -> tuple[dict[str, Tensor], Scorer]:
    """Runs the objective, with or without a step, on the batch above."""
    scorer = Scorer() if scorer is None else scorer
    name = (objective.func if isinstance(objective, functools.partial) else objective).task_loss
    labels = padded(LABELS, -100.0)

    def task_loss(output: Output, lists: Tensor | None = None) -> Tensor:
        rows = KEYS if lists is None else lists
        assert output.logits.shape == (len(rows), 4)
        function = TASK_LOSSES["binary_log_loss" if name in (None, "own") else name]
        return function(output.logits, labels[rows], mask=MASK[rows])

    return objective(scorer, POSITIONS, labels, MASK, task_loss), scorer


def values_of(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


def drawn_lists(scorer: Scorer) -> list[int]:
    """The lists of the later passes: those of the last call, once."""
    rows = scorer.calls[-1].rows
    if rows is None:
        return list(range(LISTS))
    return list(dict.fromkeys((rows[LISTS:] if len(scorer.calls) == 1 else rows).tolist()))


def plain(orders: Tensor, lists: list[int]) -> list[list[int]]:
    """Positions of these lists without padding, which is last; other lists as given."""
    found = [list(row) for row in GIVEN]
    for row, number in zip(orders.tolist(), lists, strict=True):
        real = len(GIVEN[number])
        assert sorted(row[:real]) == list(range(real))
        assert row[real:] == list(range(real, 4))
        found[number] = row[:real]
    return found


def with_hard_order(order: Any) -> Any:
    """The same order with ``own`` in place of a soft one."""
    if isinstance(order, Perturbed):
        return replace(order, of=with_hard_order(order.of))
    return "own" if isinstance(order, Soft) else order


def perturbed_orders(objective: PrincipledObjective, **at: Any) -> dict[str, list[list[int]]]:
    """The positions given to the perturbed pass, recorded by a scorer running only this pass, with hard order."""
    found = {}
    first = objective.passes[0]
    for entry in objective.passes:
        if isinstance(entry.order, Perturbed):
            passes = (first, replace(entry, order=with_hard_order(entry.order)))
            alone = replace(objective, passes=passes, terms=(), task_loss_on=(first.name, entry.name))
            _, scorer = run(alone.at(**{"step": 0, "steps": 8, **at}))
            lists = drawn_lists(scorer)
            found[entry.name] = plain(scorer.calls[-1].orders[-len(lists) :], lists)
    assert len(found) <= 1, "perturbed passes draw in sequence, so that a single one would draw differently"
    return found


def swap_positions(positions: list[int], p: int, q: int) -> tuple[int, ...]:
    return tuple(q if x == p else p if x == q else x for x in positions)


def possible_orders(kind: str, strength: int, positions: list[int]) -> set[tuple[int, ...]]:
    """All possible results of a perturbation of one list, by enumeration."""
    n = len(positions)
    if n == 1:
        return {tuple(positions)}
    if kind == "score_noise":
        return set(itertools.permutations(range(n)))
    if kind.endswith("swap"):
        pairs = [(p, q) for p in range(n) for q in range(p + 1, n) if kind == "random_swap" or q == p + 1]
        found = {tuple(positions)}
        for _ in range(strength):
            found = {swap_positions(list(order), p, q) for order in found for p, q in pairs}
        return found
    width, found = min(n, strength + 1), set()
    for start in range(n - width + 1):
        window = list(range(start, start + width))
        for places in itertools.permutations(window) if kind == "window_shuffle" else [window[::-1]]:
            found.add(tuple(places[x - start] if x in window else x for x in positions))
    return found
