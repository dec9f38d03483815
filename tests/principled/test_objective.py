"""The objective: passes and terms on one ragged batch, against scalar arithmetic in plain Python."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.losses import LOSSES_WITHOUT_PROBABILITIES, TASK_LOSSES
from hf_rerank.principled import PRESETS, Pass, Perturbed, PrincipledObjective, Soft, Term, preset_objective
from hf_rerank.principled import objective as objective_module

# Four lists of four, three, two and one item. A score is the item's quality plus the effect of its position.
QUALITY = [[0.2, 1.0, 0.6, -0.3], [0.5, 0.1, 0.9], [-0.4, 0.3], [0.7]]
EFFECT = [0.3, -0.6, 0.2, -0.5]
GIVEN = [[2, 0, 3, 1], [1, 2, 0], [0, 1], [0]]
# So the scores of the given order are .4, 1.3, .1, -.9; -.1, .3, 1.2; -.1, -.3; 1, and the scorer's own order is
OWN = [[1, 0, 2, 3], [2, 1, 0], [0, 1], [0]]
# Given that, it scores -.4, 1.3, .8, -.8; .7, -.5, 1.2; -.1, -.3; 1, and ranks the items
AGAIN = [[2, 0, 1, 3], [1, 2, 0], [0, 1], [0]]
LABELS = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0], [1.0]]
# What fresh dropout masks add to the scores, here a number for each item.
NOISE = [[0.25, -0.5, 0.125, 0.75], [0.5, -0.125, 0.0], [0.25, 0.5], [-0.25]]
LISTS = len(QUALITY)
KEYS = torch.arange(LISTS)  # what the objective takes where no keys are given

Numbers = list[list[float]]


# ------------------------------------------------------------------------------------------- the same in plain numbers


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


def soft_by_hand(soft: Soft, scores: list[float]) -> Numbers:
    """[item][place], rows that sum to 1."""
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
    """The scores of each pass, by list and item; those of lists that a pass leaves out among them."""

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
                soft = soft_by_hand(base, found[first.name][n])
                if base.straight_through:  # the 0/1 order, which moves as the soft one does
                    still = soft_by_hand(base, at_first[n])
                    soft = [
                        [h + x - c for h, x, c in zip(*row, strict=True)]
                        for row in zip(order, soft, still, strict=True)
                    ]
                order = soft
            if entry.name in perturbed:  # the item now at a place came from another: the column goes along
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
    """Of one list."""
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
    """All that the objective returns.

    Args:
        objective: Its passes and terms are read; ``fraction``, ``warmup`` and ``seed`` are not.
        perturbed: Name of a perturbed pass -> the positions that it is given, of each list.
        lists: Those of the later passes.
        quality, effect: Of the scorer. The constant side of a term, and all rankings, keep those of the module.
        factors: Of a term's weight.
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


# ------------------------------------------------------------------------------------------------------ the code's run


@dataclass
class Output:
    logits: Tensor

    def split(self, sizes: list[int]) -> list[Output]:
        return [Output(part) for part in self.logits.split(sizes)]


@dataclass
class Call:
    """One call of the scorer: what it was given, for which rows, and whether with dropout masks of its own."""

    orders: Tensor
    rows: Tensor | None
    fresh: bool


class Scorer:
    """Quality plus effect, with NaN at padding; ``shift`` moves a whole list by the place of its first item."""

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
    """The objective, or one of a step, on the batch above."""
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
    """Positions of these lists without padding, which stands on the last places; other lists as they are given."""
    found = [list(row) for row in GIVEN]
    for row, number in zip(orders.tolist(), lists, strict=True):
        real = len(GIVEN[number])
        assert sorted(row[:real]) == list(range(real))
        assert row[real:] == list(range(real, 4))
        found[number] = row[:real]
    return found


def hardened(order: Any) -> Any:
    """The same order with ``own`` in place of a soft one."""
    if isinstance(order, Perturbed):
        return replace(order, of=hardened(order.of))
    return "own" if isinstance(order, Soft) else order


def perturbed_orders(objective: PrincipledObjective, **at: Any) -> dict[str, list[list[int]]]:
    """What the perturbed pass is given: read off a scorer that is given this pass alone, of the hard order."""
    found = {}
    first = objective.passes[0]
    for entry in objective.passes:
        if isinstance(entry.order, Perturbed):
            passes = (first, replace(entry, order=hardened(entry.order)))
            alone = replace(objective, passes=passes, terms=(), task_loss_on=(first.name, entry.name))
            _, scorer = run(alone.at(**{"step": 0, "steps": 8, **at}))
            lists = drawn_lists(scorer)
            found[entry.name] = plain(scorer.calls[-1].orders[-len(lists) :], lists)
    assert len(found) <= 1, "perturbed passes draw after one another, so that one alone would draw otherwise"
    return found


# ------------------------------------------------------------------------------------------------------ table of cases


def with_terms(name: str, **fields: Any) -> PrincipledObjective:
    """The preset with these fields in all its terms."""
    return replace(PRESETS[name], terms=tuple(replace(term, **fields) for term in PRESETS[name].terms))


def with_soft(name: str, soft: Soft, **fields: Any) -> PrincipledObjective:
    """The preset with the soft order in place of the model's own, wherever that stands."""

    def changed(order: Any) -> Any:
        if isinstance(order, Perturbed):
            return replace(order, of=changed(order.of))
        return soft if order == "own" else order

    passes = tuple(replace(entry, order=changed(entry.order)) for entry in PRESETS[name].passes)
    return replace(with_terms(name, **fields), passes=passes)


def two_passes(order: Any, *, term: dict[str, Any] | None = None, **fields: Any) -> PrincipledObjective:
    """The given order, another one, and a term between them."""
    compared = Term("term", "first", "other", **{"weight": 5.0, "space": "probability", **(term or {})})
    return PrincipledObjective((Pass("first"), Pass("other", order)), (compared,), **fields)


EVERY = ("first", "second", "third")
SCALED, REFERENCE = PRESETS["scaled"], PRESETS["reference"]
SWAPPED_OWN = replace(SCALED, passes=(*SCALED.passes[:2], Pass("third", Perturbed(of="own"))))
THROUGH = Soft("neuralsort", temperature=0.7, straight_through=True)
CASES: dict[str, PrincipledObjective] = {
    **PRESETS,
    "P1 alone": preset_objective("scaled", adversarial_weight=0),
    "P2 alone": preset_objective("scaled", convergence_weight=0),
    "other weights": preset_objective("scaled", convergence_weight=0.3, adversarial_weight=70),
    "reference without the cross term": preset_objective("reference", cross_weight=0),
    "reference, P1 alone": preset_objective("reference", adversarial_weight=0),
    "reference, P2 alone": preset_objective("reference", convergence_weight=0),
    "cross term": replace(SCALED, terms=(*SCALED.terms, Term("cross", "second", "third", weight=7.0))),
    "cross term alone": replace(SCALED, terms=(Term("cross", "second", "third", weight=7.0),)),
    "output positions": with_terms("scaled", positions="output"),
    "input positions": with_terms("reference", positions="input"),
    "no positions": with_terms("reference", positions=None),
    "no positions, sum": with_terms("paper", positions=None),
    "sum": with_terms("scaled", reduction="sum"),
    "mean": with_terms("scaled", reduction="mean"),
    "weighted mean": with_terms("paper", reduction="weighted_mean"),
    "task loss of every pass": replace(SCALED, task_loss_on=EVERY),
    "task loss of the first pass": replace(REFERENCE, task_loss_on=("first",)),
    "task loss of the last pass": replace(SCALED, task_loss_on=("third",)),
    "own order perturbed": SWAPPED_OWN,
    "own order perturbed, without a pass on it": two_passes(Perturbed(of="own")),
    "given order perturbed": replace(REFERENCE, passes=SCALED.passes),
    "perturbed twice": two_passes(Perturbed("reverse_window", of=Perturbed(of="own"), strength=2)),
    "first side constant": with_terms("scaled", stop_gradient="first"),
    "second side constant": with_terms("scaled", stop_gradient="second"),
    "reference, first side constant": with_terms("reference", stop_gradient="first"),
    "reference, second side constant": with_terms("reference", stop_gradient="second"),
    "fresh masks for the own order": PrincipledObjective(
        (Pass("first"), Pass("other", "own", dropout="fresh")), (Term("term", "first", "other"),)
    ),
    "shared and fresh masks": replace(SCALED, passes=(*SCALED.passes[:2], replace(SCALED.passes[2], dropout="fresh"))),
    "softsort": with_soft("scaled", Soft()),
    "softsort, temperature": with_soft("scaled", Soft(temperature=0.3)),
    "softsort, sinkhorn": with_soft("scaled", Soft(sinkhorn=2)),
    "softsort, straight through": with_soft("scaled", Soft(straight_through=True)),
    "neuralsort": with_soft("scaled", Soft("neuralsort")),
    "neuralsort, temperature, sinkhorn": with_soft("scaled", Soft("neuralsort", temperature=2.5, sinkhorn=3)),
    "neuralsort, straight through": with_soft("scaled", THROUGH),
    "soft order perturbed": with_soft("reference", Soft()),
    "soft order perturbed, without a pass on it": two_passes(Perturbed(of=Soft())),
    "soft order perturbed twice": two_passes(Perturbed("random_swap", of=Perturbed("window_shuffle", of=Soft()))),
    "straight-through order perturbed": two_passes(Perturbed(of=THROUGH)),
    "soft and own order": PrincipledObjective(
        (Pass("first"), Pass("own", "own"), Pass("soft", Soft())), (Term("term", "own", "soft", weight=3.0),)
    ),
    "softsort, first side constant": with_soft("scaled", Soft(), stop_gradient="first"),
    "softsort, second side constant": replace(with_soft("scaled", Soft(), stop_gradient="second"), task_loss_on=EVERY),
    "half the lists": replace(SCALED, fraction=0.5),
    "one list": replace(SCALED, fraction=0.01),
    "three lists, reference": replace(REFERENCE, fraction=0.7),
    "half the lists, own order perturbed": replace(SWAPPED_OWN, fraction=0.5),
    "half the lists, soft order perturbed": replace(with_soft("reference", Soft()), fraction=0.5),
    "half the lists, P2 alone": two_passes(Perturbed(), fraction=0.5, task_loss_on=("first", "other")),
    "half the lists, fresh masks": replace(PRESETS["r_drop"], fraction=0.5),
    **{
        f"{space}, {task_loss}": replace(with_terms("scaled", space=space), task_loss=task_loss)
        for space, task_loss in itertools.product(
            ("probability", "logit", "output"), ("binary_log_loss", "softmax_loss", "lambda_loss")
        )
        if (space, task_loss) != ("probability", "lambda_loss")
    },
}
EVERY_CASE = pytest.mark.parametrize("objective", CASES.values(), ids=CASES.keys())


def test_the_batch_tells_all_orders_apart() -> None:
    """The orders above are what the arithmetic gives, without ties; perturbed ones differ from all of them."""
    for orders, ranked in ((GIVEN, OWN), (OWN, AGAIN)):
        scores = [[q + EFFECT[p] for q, p in zip(*row, strict=True)] for row in zip(QUALITY, orders, strict=True)]
        assert [ranking(row) for row in scores] == ranked
        assert all(len({round(x, 9) for x in row}) == len(row) for row in scores)
    assert GIVEN != OWN != AGAIN
    for objective in (SCALED, SWAPPED_OWN):
        assert perturbed_orders(objective)["third"] not in (GIVEN, OWN, AGAIN)


@EVERY_CASE
def test_values(objective: PrincipledObjective) -> None:
    losses, scorer = run(objective)
    lists = drawn_lists(scorer)
    written_out = expected(objective, perturbed_orders(objective), lists)
    assert losses.keys() == written_out.keys()
    assert values_of(losses) == pytest.approx(written_out, rel=1e-9)
    own = [entry for entry in objective.passes if entry.order == "own"]
    if own and not any(call.orders.is_floating_point() for call in scorer.calls):
        shown = [call for call in scorer.calls[1:] if call.fresh == (own[0].dropout == "fresh")][-1]
        among = OWN if len(lists) == LISTS else [OWN[n] if n in lists else GIVEN[n] for n in range(LISTS)]
        assert plain(shown.orders[: len(lists)], lists) == among


@EVERY_CASE
def test_gradients(objective: PrincipledObjective) -> None:
    """Central differences of the arithmetic; hard orders and the constant side of a term do not move."""
    losses, scorer = run(objective)
    losses["loss"].backward()
    lists, perturbed, step = drawn_lists(scorer), perturbed_orders(objective), 1e-5

    def slope(quality: Callable[[float], Numbers], effect: Callable[[float], list[float]]) -> float:
        up, down = (
            expected(objective, perturbed, lists, quality=quality(by), effect=effect(by))["loss"]
            for by in (step, -step)
        )
        return (up - down) / (2 * step)

    for n, s in MASK.nonzero().tolist():
        by_item = slope(
            lambda by, n=n, s=s: [
                [x + by * ((n, s) == (m, t)) for t, x in enumerate(xs)] for m, xs in enumerate(QUALITY)
            ],
            lambda by: EFFECT,
        )
        assert scorer.quality.grad[n, s].item() == pytest.approx(by_item, rel=1e-6, abs=1e-8), (n, s)
    assert (scorer.quality.grad[~MASK] == 0).all()
    for p in range(4):
        by_place = slope(lambda by: QUALITY, lambda by, p=p: [x + by * (p == q) for q, x in enumerate(EFFECT)])
        assert scorer.effect.grad[p].item() == pytest.approx(by_place, rel=1e-6, abs=1e-8), p


def test_scaled_item_by_item() -> None:
    """The default's first term and task loss, number by number."""
    losses, _ = run(SCALED)
    # Lists 0 and 1 change: .4 becomes -.4, .1 becomes .8, -.9 becomes -.8 (by 1, 1, 2 places); -.1 becomes .7 and .3
    # becomes -.5 (by one each); 1.3 and 1.2 stay. The other two lists have settled, and count.
    list_0 = (sigmoid(0.4) - sigmoid(-0.4)) ** 2 + (sigmoid(0.1) - sigmoid(0.8)) ** 2
    list_0 = (list_0 + 2 * (sigmoid(-0.9) - sigmoid(-0.8)) ** 2) / 4
    list_1 = ((sigmoid(-0.1) - sigmoid(0.7)) ** 2 + (sigmoid(0.3) - sigmoid(-0.5)) ** 2) / 2
    assert losses["convergence_loss"].item() == pytest.approx((list_0 + list_1) / 4, rel=1e-12)
    task = [
        -(math.log(sigmoid(0.4)) + math.log(sigmoid(-1.3)) + math.log(sigmoid(-0.1)) + math.log(sigmoid(-0.9))) / 4,
        -(math.log(sigmoid(0.1)) + math.log(sigmoid(0.3)) + math.log(sigmoid(-1.2))) / 3,
        -(math.log(sigmoid(0.1)) + math.log(sigmoid(0.3))) / 2,
        -math.log(sigmoid(1.0)),
    ]
    assert losses["task_loss"].item() == pytest.approx(sum(task) / 4, rel=1e-12)


def test_reference_item_by_item() -> None:
    """Raw scores, weighted by how far the two rankings produced are apart, over the number of items."""
    losses, _ = run(REFERENCE)
    # OWN to AGAIN: in list 0 the items of .4 (now -.4) and .1 (now .8) change places, in list 1 those of -.1 (now .7)
    # and .3 (now -.5).
    written_out = ((0.8**2 + 0.7**2) / 4 + (0.8**2 + 0.8**2) / 3) / 4
    assert losses["convergence_loss"].item() == pytest.approx(written_out, rel=1e-12)
    names = ("loss", "task_loss", "further_task_loss", "convergence_loss", "adversarial_loss", "cross_loss")
    assert losses.keys() == set(names)


def test_r_drop_item_by_item() -> None:
    """The same order twice: all that differs is what the fresh masks add, as probabilities, over all items."""
    losses, scorer = run(PRESETS["r_drop"])
    at_first = [[q + EFFECT[p] for q, p in zip(*row, strict=True)] for row in zip(QUALITY, GIVEN, strict=True)]
    per_list = [
        sum((sigmoid(x) - sigmoid(x + noise)) ** 2 for x, noise in zip(*row, strict=True)) / len(row[0])
        for row in zip(at_first, NOISE, strict=True)
    ]
    assert losses["r_drop_loss"].item() == pytest.approx(sum(per_list) / LISTS, rel=1e-12)
    assert [call.fresh for call in scorer.calls] == [False, True]


def test_without_a_later_pass_the_loss_is_the_task_loss() -> None:
    losses, scorer = run(replace(PRESETS["none"], task_loss="lambda_loss"))
    assert losses.keys() == {"loss", "task_loss"}
    assert torch.equal(losses["loss"], losses["task_loss"])
    assert len(scorer.calls) == 1


@pytest.mark.parametrize("relaxation", ["softsort", "neuralsort"])
def test_straight_through_is_hard_forward_and_soft_backward(relaxation: Any) -> None:
    found = {}
    through = with_soft("scaled", Soft(relaxation, straight_through=True))
    for name, objective in {"hard": SCALED, "through": through, "soft": with_soft("scaled", Soft(relaxation))}.items():
        losses, scorer = run(objective)
        losses["loss"].backward()
        found[name] = losses["loss"].item(), scorer.quality.grad[MASK]
    assert found["through"][0] == pytest.approx(found["hard"][0], rel=1e-12)
    assert found["soft"][0] != pytest.approx(found["hard"][0], rel=1e-3)
    assert (found["through"][1] - found["hard"][1]).abs().max() > 1e-3


@pytest.mark.parametrize("task_loss", TASK_LOSSES)
@pytest.mark.parametrize("space", ["probability", "logit", "output"])
def test_a_shift_of_the_whole_list_costs_where_the_loss_sees_it(space: str, task_loss: str) -> None:
    if space == "probability" and task_loss in LOSSES_WITHOUT_PROBABILITIES:
        with pytest.raises(InputError, match="has no probabilities"):
            replace(with_terms("scaled", space=space), task_loss=task_loss)
        return
    objective = replace(with_terms("scaled", space=space), task_loss=task_loss)
    (still, _), (shifted, _) = run(objective), run(objective, scorer=Scorer(shift=3.0))
    for name in ("convergence_loss", "adversarial_loss"):
        unchanged = shifted[name].item() == pytest.approx(still[name].item(), rel=1e-9)
        assert unchanged == (task_loss != "binary_log_loss" and space != "output")


def test_bf16_scores_are_compared_in_float32() -> None:
    losses, scorer = run(PRESETS["paper"], scorer=Scorer(torch.bfloat16))
    written_out = expected(PRESETS["paper"], perturbed_orders(PRESETS["paper"]), drawn_lists(scorer))
    for name in ("convergence_loss", "adversarial_loss"):
        assert losses[name].dtype == torch.float32
        assert losses[name].item() == pytest.approx(written_out[name], rel=0.1)


# ------------------------------------------------------------------------------------------------------- perturbations


def exchanged(positions: list[int], p: int, q: int) -> tuple[int, ...]:
    return tuple(q if x == p else p if x == q else x for x in positions)


def reachable(kind: str, strength: int, positions: list[int]) -> set[tuple[int, ...]]:
    """All that a perturbation may make of one list, by enumeration."""
    n = len(positions)
    if n == 1:
        return {tuple(positions)}
    if kind == "score_noise":
        return set(itertools.permutations(range(n)))
    if kind.endswith("swap"):
        pairs = [(p, q) for p in range(n) for q in range(p + 1, n) if kind == "random_swap" or q == p + 1]
        found = {tuple(positions)}
        for _ in range(strength):
            found = {exchanged(list(order), p, q) for order in found for p, q in pairs}
        return found
    width, found = min(n, strength + 1), set()
    for start in range(n - width + 1):
        window = list(range(start, start + width))
        for places in itertools.permutations(window) if kind == "window_shuffle" else [window[::-1]]:
            found.add(tuple(places[x - start] if x in window else x for x in positions))
    return found


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
def test_every_perturbation_shows_all_that_it_may(kind: str, strength: float, count: int, order: Any) -> None:
    """Over the steps each order that it can reach and no other; a step's loss is that of the order it showed."""
    objective = two_passes(Perturbed(kind, of=order, strength=strength))
    start = GIVEN if order == "given" else OWN
    allowed = [reachable(kind, int(strength), row) for row in start]
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
    if kind == "score_noise":  # far steps are rare
        assert all(orders <= known for orders, known in zip(seen, allowed, strict=True))
        assert len(seen[0]) > count / 2
    else:
        assert seen == allowed


def given_to_passes(
    objective: PrincipledObjective, keys: list[int] | None, lists: list[int], *, step: int = 0
) -> list[list[list[int]]]:
    """The orders of the passes on lists of eight that is asked for first, one pass after another."""
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


def test_a_list_has_its_own_perturbation() -> None:
    everyone, keys = list(range(40)), [7919 * number for number in range(40)]

    def perturbed(keys: list[int] | None, lists: list[int], *, step: int = 3, seed: int = 0) -> list[list[int]]:
        return given_to_passes(two_passes(Perturbed(), seed=seed), keys, lists, step=step)[1]

    whole = perturbed(keys, everyone)
    chosen = [31, 2, 17, 5]
    assert perturbed([keys[number] for number in chosen], chosen) == [whole[number] for number in chosen]
    assert perturbed(keys, everyone, step=4) != whole
    assert perturbed(keys, everyone, seed=1) != whole
    # Without keys the row is the key.
    assert perturbed(None, everyone) == perturbed(everyone, everyone)


def test_perturbed_passes_draw_independently() -> None:
    """Three passes of one kind: each pair of them agrees on about a seventh of 400 lists of eight, no more."""
    passes = (Pass("first"), *(Pass(str(number), Perturbed()) for number in range(3)))
    objective = PrincipledObjective(passes, task_loss_on=("first", "0", "1", "2"))
    _, *orders = given_to_passes(objective, None, list(range(400)))
    for one, other in itertools.combinations(orders, 2):
        same = sum(a == b for a, b in zip(one, other, strict=True))
        assert abs(same - 400 / 7) < 4 * math.sqrt(400 * 6 / 49)
    # A nested perturbation draws twice: a swap of a swap of the same pair would be no change.
    _, twice = given_to_passes(two_passes(Perturbed(of=Perturbed())), None, list(range(400)))
    unchanged = twice.count(list(range(8)))
    assert abs(unchanged - 400 / 7) < 4 * math.sqrt(400 * 6 / 49)


# ------------------------------------------------------------------------------------------------------ cost of a step


@EVERY_CASE
def test_at_most_two_encoder_calls(objective: PrincipledObjective) -> None:
    """Passes that depend on no score ride with the first, the others together; fresh masks need their own call."""
    _, scorer = run(objective)
    drawn = len(drawn_lists(scorer))
    later = objective.passes[1:]
    with_first = [entry for entry in later if base_of(entry.order) == "given" and entry.dropout == "shared"]
    calls = {(base_of(entry.order) != "given", entry.dropout) for entry in later} - {(False, "shared")}
    assert len(scorer.calls) == 1 + len(calls)
    assert len(scorer.calls) <= 2 or {entry.dropout for entry in later} == {"shared", "fresh"}
    assert len(scorer.calls[0].orders) == LISTS + drawn * len(with_first)
    assert sum(len(call.orders) for call in scorer.calls) == LISTS + drawn * len(later)
    assert scorer.calls[0].orders[:LISTS].equal(POSITIONS)
    assert not scorer.calls[0].fresh
    for call in scorer.calls[1:]:
        entries = [entry for entry in later if (entry.dropout == "fresh") == call.fresh and entry not in with_first]
        assert call.orders.is_floating_point() == any(isinstance(base_of(entry.order), Soft) for entry in entries)


# --------------------------------------------------------------------------------------------- a fraction of the lists


@pytest.mark.parametrize(
    ("fraction", "count"),
    [(1e-9, 1), (0.1, 1), (0.25, 1), (0.375, 2), (0.5, 2), (0.6, 2), (0.7, 3), (0.87, 3), (0.9, 4), (1.0, 4)],
)
def test_number_of_lists_drawn(fraction: float, count: int) -> None:
    """``max(1, round(f * 4))``; ``test_values`` checks that a term is the mean over these."""
    _, scorer = run(replace(SCALED, fraction=fraction))
    assert len(drawn_lists(scorer)) == count
    assert [len(call.orders) for call in scorer.calls] == [LISTS + count, count]


def test_a_drawn_list_is_perturbed_as_ever() -> None:
    """At each of 20 steps, as where all lists are drawn; so its draws are its own, not those of its new row."""
    for step in range(20):
        whole = perturbed_orders(SCALED, step=step)["third"]
        _, scorer = run(replace(SCALED, fraction=0.5).at(step=step))
        lists = drawn_lists(scorer)
        part = plain(scorer.calls[0].orders[LISTS:], lists)
        assert [part[number] for number in lists] == [whole[number] for number in lists], step


def test_lists_are_drawn_without_looking_at_them() -> None:
    objective = replace(SCALED, fraction=0.5).at(step=5)
    _, scorer = run(objective)
    other = Scorer()
    with torch.no_grad():
        other.quality.mul_(-3)
    run(objective, scorer=other)
    assert drawn_lists(scorer) == drawn_lists(other)


def test_a_fraction_is_unbiased() -> None:
    """Over many steps, the mean of a term and of its gradient is that of all lists and all swaps.

    With f = .375 of four lists two are drawn: dividing their sum by f * 4 = 1.5 would be a third too much.
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

    # All lists and, list by list, all swaps of neighbours.
    alone = []
    for number in range(LISTS):
        swaps = sorted(reachable("adjacent_swap", 1, GIVEN[number]))
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


# ------------------------------------------------------------------------------------------------- steps and factors


@pytest.mark.parametrize(
    ("warmup", "step", "share"),
    [
        (0.5, 0, 0.0),
        (0.5, 1, 0.25),
        (0.5, 2, 0.5),
        (0.5, 4, 1.0),
        (0.5, 7, 1.0),
        (1.0, 4, 0.5),
        (1.0, 7, 0.875),
        (0.0, 0, 1.0),
    ],
)
@pytest.mark.parametrize("preset", ["scaled", "reference"])
def test_weights_rise_in_a_straight_line(preset: str, warmup: float, step: int, share: float) -> None:
    """Of 8 steps; all weights, not the task losses, and not the terms that are logged."""
    objective = replace(PRESETS[preset], warmup=warmup)
    perturbed = perturbed_orders(PRESETS[preset], step=step)
    written_out = expected(objective, perturbed, list(range(LISTS)), factors=lambda term: share)
    for keys in (None, KEYS):
        losses, _ = run(objective.at(step=step, steps=8, list_keys=keys))
        assert values_of(losses) == pytest.approx(written_out, rel=1e-6 if keys is not None else 1e-9)


def test_the_share_of_a_warmup_lies_on_the_device_of_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a step copies nothing there, and torch.compile does not compile again for every number."""
    monkeypatch.setattr(
        objective_module, "step_keys", lambda keys, **_: keys
    )  # integers on meta take seconds to start
    ramp = replace(SCALED, warmup=0.5).at(step=1, steps=8, list_keys=KEYS.to("meta")).keywords["ramp"]
    assert (ramp.shape, ramp.dtype, ramp.device.type) == ((), torch.float32, "meta")
    ramp = replace(SCALED, warmup=0.5).at(step=1, steps=8, list_keys=KEYS).keywords["ramp"]
    assert ramp.item() == 0.25


def test_a_warmup_needs_the_number_of_steps() -> None:
    with pytest.raises(InputError, match="with warmup the objective needs the number of steps"):
        replace(SCALED, warmup=0.1).at(step=3)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_factors_scale_the_terms_of_a_step(as_tensor: bool) -> None:
    """Each its own term, in the loss and its gradient, besides the warm-up; terms are logged without; none: 1."""
    factors = {"convergence": 0.25, "cross": 3.0}
    given = {name: torch.tensor(factor) if as_tensor else factor for name, factor in factors.items()}
    objective = replace(REFERENCE, warmup=1.0)
    losses, scorer = run(objective.at(step=4, steps=8, factors=given))
    perturbed, everyone = perturbed_orders(REFERENCE, step=4), list(range(LISTS))
    scaled = expected(REFERENCE, perturbed, everyone, factors=lambda term: {**factors, "adversarial": 1.0}[term] * 0.5)
    assert values_of(losses) == pytest.approx(scaled, rel=1e-9)
    slopes = torch.autograd.grad(losses["loss"], scorer.quality)[0][MASK]
    weights = {"convergence": 0.25 * 0.5, "adversarial": 0.5, "cross": 3.0 * 0.5}
    losses, scorer = run(
        replace(REFERENCE, terms=tuple(replace(term, weight=weights[term.name]) for term in REFERENCE.terms)).at(
            step=4
        )
    )
    torch.testing.assert_close(slopes, torch.autograd.grad(losses["loss"], scorer.quality)[0][MASK])


def test_a_factor_of_no_term_is_refused() -> None:
    with pytest.raises(InputError, match=r"no term 'convergense'.*adversarial; did you mean 'convergence'"):
        SCALED.at(step=0, factors={"convergense": 0.5})
    with pytest.raises(InputError, match="the terms are none"):
        PRESETS["augmentation"].at(step=0, factors={"convergence": 0.5})


def test_at_changes_the_draws_alone() -> None:
    objective, keys = replace(PRESETS["paper"], seed=4), torch.tensor([1, 2, 3, 4])
    later = objective.at(step=12, steps=20, list_keys=keys)
    assert isinstance(later, functools.partial)
    assert later.func is objective
    losses, scorer = run(later)
    third = plain(scorer.calls[0].orders[LISTS:], list(range(LISTS)))
    written_out = expected(PRESETS["paper"], {"third": third}, list(range(LISTS)))
    assert values_of(losses) == pytest.approx(written_out, rel=1e-9)
    assert {"third": third} == perturbed_orders(objective, step=12, list_keys=keys)


def test_settings_are_plain() -> None:
    objective = preset_objective("reference", adversarial_weight=3, convergence_weight=0, warmup=0.5, seed=3)
    objective = replace(objective, passes=(Pass("first"), Pass("third", Perturbed(of=Soft(sinkhorn=2)), "fresh")))
    soft = {"relaxation": "softsort", "temperature": 1.0, "sinkhorn": 2, "straight_through": False}
    perturbed = {"kind": "adjacent_swap", "of": {"soft": soft}, "strength": 1}
    assert json.loads(json.dumps(objective.settings())) == {
        "passes": [
            {"name": "first", "order": "given", "dropout": "shared"},
            {"name": "third", "order": {"perturbed": perturbed}, "dropout": "fresh"},
        ],
        "terms": [
            {
                "name": "adversarial",
                "first": "first",
                "second": "third",
                "weight": 3,
                "space": "output",
                "positions": "output",
                "reduction": "mean",
                "stop_gradient": None,
            }
        ],
        "task_loss_on": ["first", "third"],
        "task_loss": "own",
        "fraction": 1.0,
        "warmup": 0.5,
        "seed": 3,
    }


def test_settings_tell_objectives_apart() -> None:
    """Two objectives with the same settings are equal, so that a results file says what was trained on."""
    objectives = [*CASES.values(), replace(SCALED, seed=1), replace(SCALED, warmup=0.1)]
    by_settings = {json.dumps(objective.settings()): objective for objective in objectives}
    assert all(by_settings[json.dumps(objective.settings())] == objective for objective in objectives)
    assert len(by_settings) > len(objectives) - 5, "few of the cases are the same in other words"


# ------------------------------------------------------------------------------------------------------------ refusals

FIRST, OTHER = Pass("first"), Pass("other", "own")


def of(*passes: Pass, terms: tuple[Term, ...] = (), **fields: Any) -> Callable[[], PrincipledObjective]:
    return lambda: PrincipledObjective(passes, terms, **fields)


def term(**fields: Any) -> Callable[[], PrincipledObjective]:
    return lambda: two_passes("own", term=fields)


def order(make: Callable[[], Any]) -> Callable[[], PrincipledObjective]:
    return lambda: two_passes(make())


def changed(**fields: Any) -> Callable[[], PrincipledObjective]:
    return lambda: replace(SCALED, **fields)


BOTH = ("first", "other")
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two passes of a name": (of(FIRST, OTHER, OTHER), "two passes are named 'other': give each a name of its own"),
    "two terms of a name": (
        of(FIRST, OTHER, terms=(Term("term", *BOTH), Term("term", "other", "first"))),
        "two terms are named 'term'",
    ),
    "unknown pass in a term": (
        of(FIRST, OTHER, terms=(Term("term", "first", "othr"),), task_loss_on=BOTH),
        "there is no pass 'othr': the passes are first, other; did you mean 'other'",
    ),
    "unknown pass with a task loss": (of(FIRST, OTHER, task_loss_on=("first", "second")), "there is no pass 'second'"),
    "unused pass": (of(FIRST, OTHER), "the pass 'other' is in no term and not in task_loss_on: leave it out"),
    "term of a pass with itself": (
        lambda: Term("term", "first", "first"),
        "the term 'term' compares 'first' with itself: name two passes",
    ),
    "no pass": (of(), r"the first pass must score the given order .*Pass\('first', 'given'\)"),
    "first pass of another order": (of(OTHER), "the first pass must score the given order"),
    "first pass with fresh masks": (of(Pass("first", dropout="fresh")), "the first pass must .* with shared dropout"),
    "no task loss": (of(FIRST, OTHER, terms=(Term("term", *BOTH),), task_loss_on=()), "task_loss_on is empty"),
    "order": (
        order(lambda: "onw"),
        r"order of a pass is 'onw': .*'own', Perturbed\(...\) or Soft.*did you mean 'own'",
    ),
    "order in words": (order(lambda: "softsort"), "order of a pass is 'softsort'"),
    "perturbed of a word": (order(lambda: Perturbed(of="intial")), "order of a pass is 'intial'"),
    "dropout": (lambda: Pass("x", dropout="frsh"), "dropout of a pass is 'frsh': .*did you mean 'fresh'"),
    "space": (term(space="probabilty"), "space of the term 'term' is 'probabilty'.*did you mean 'probability'"),
    "positions": (term(positions="inputs"), "positions of the term 'term' is 'inputs'.*did you mean 'input'"),
    "reduction": (term(reduction="avg"), "reduction of the term 'term' is 'avg': expected one of 'sum', 'mean', "),
    "stop": (term(stop_gradient="frist"), "stop_gradient of the term 'term' is 'frist': .*did you mean 'first'"),
    "negative weight": (term(weight=-1.0), "weight of the term 'term' is -1.0: expected a number of at least 0"),
    "nan weight": (term(weight=math.nan), "weight of the term 'term' is nan"),
    "infinite weight": (term(weight=math.inf), "weight of the term 'term' is inf"),
    "weight in words": (term(weight="10"), "weight of the term 'term' is '10'"),
    "yes as a weight": (term(weight=True), "weight of the term 'term' is True"),
    "task loss": (changed(task_loss="binary_logloss"), "'binary_logloss'.*did you mean 'binary_log_loss'"),
    "lambda": (changed(task_loss="lambda_loss"), "lambda_loss has no probabilities: .*space='logit'"),
    "no list": (changed(fraction=0.0), "fraction is 0.0: expected a number above 0, at most 1"),
    "more than all": (changed(fraction=1.01), "fraction is 1.01"),
    "nan lists": (changed(fraction=math.nan), "fraction is nan"),
    "lists in words": (changed(fraction="0.5"), "fraction is '0.5'"),
    "warmup below 0": (changed(warmup=-0.1), "warmup is -0.1: expected a fraction of the steps, from 0 to 1"),
    "warmup above 1": (changed(warmup=1.5), "warmup is 1.5"),
    "warmup in nan": (changed(warmup=math.nan), "warmup is nan"),
    "half a seed": (changed(seed=0.5), "seed is 0.5: expected a whole number"),
    "perturbation": (lambda: Perturbed("adjacent_swp"), "perturbation 'adjacent_swp'.*did you mean 'adjacent_swap'"),
    "half a swap": (lambda: Perturbed(strength=1.5), "adjacent_swap is 1.5: expected a whole number from 1 to 1000"),
    "relaxation": (lambda: Soft("softsrt"), "relaxation 'softsrt': .*did you mean 'softsort'"),
    "sinkhorn below 0": (lambda: Soft("neuralsort", sinkhorn=-1), "sinkhorn is -1: .*at least 0"),
    "cold": (lambda: Soft(temperature=0.0), "temperature is 0.0: expected a number of at least 1e-06"),
}
REFUSED |= {
    f"a term named {name}": (lambda name=name: Term(name, *BOTH), f"a term is named '{name}', as the task losses are")
    for name in ("task", "further_task")
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
