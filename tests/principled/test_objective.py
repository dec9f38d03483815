"""The objective: each option on one ragged batch, against scalar arithmetic in plain Python, values and gradients."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.losses import TASK_LOSSES
from hf_rerank.principled.objective import PrincipledObjective

# Four lists of four, three, two and one item. A score is the item's quality plus the effect of its place.
QUALITY = [[0.2, 1.0, 0.6, -0.3], [0.5, 0.1, 0.9], [-0.4, 0.3], [0.7]]
EFFECT = [0.3, -0.6, 0.2, -0.5]
GIVEN = [[2, 0, 3, 1], [1, 2, 0], [0, 1], [0]]
# So the scores of the given order are .4, 1.3, .1, -.9; -.1, .3, 1.2; -.1, -.3; 1, and the scorer's own order is
OWN = [[1, 0, 2, 3], [2, 1, 0], [0, 1], [0]]
# Shown that, it gives -.4, 1.3, .8, -.8; .7, -.5, 1.2; -.1, -.3; 1, and ranks the items
AGAIN = [[2, 0, 1, 3], [1, 2, 0], [0, 1], [0]]
LABELS = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0], [1.0]]
LISTS = len(QUALITY)
TERMS = ("convergence_loss", "adversarial_loss", "cross_loss")

Numbers = list[list[float]]


# ------------------------------------------------------------------------------------------- the same in plain numbers


@dataclass
class Choices:
    """One row of the design's table, ``scaled`` where nothing is said."""

    weights: tuple[float, float, float] = (20.0, 5.0, 0.0)
    space: str = "probability"
    moves: str = "input"
    reduction: str = "weighted_mean"
    passes: str = "first"
    perturbs: str = "initial"
    task_loss: str = "binary_log_loss"
    stop: str = "none"
    soft: Callable[[list[float]], Numbers] | None = None  # scores of a list -> weight of each place, for each item
    straight_through: bool = False
    lists: list[int] = field(default_factory=lambda: list(range(LISTS)))  # of the later passes


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


def scored(quality: Numbers, effect: list[float], orders: list[Numbers]) -> Numbers:
    """An item's score is its quality and the mean effect of the places at which it is shown."""
    return [
        [
            q + sum(w * e for w, e in zip(weights, effect, strict=False))
            for q, weights in zip(items, order, strict=True)
        ]
        for items, order in zip(quality, orders, strict=True)
    ]


def softsort(scores: list[float], temperature: float = 1.0, sinkhorn: int = 0) -> Numbers:
    falling = sorted(scores, reverse=True)
    return as_order([softmax([-abs(one - s) / temperature for s in scores]) for one in falling], sinkhorn)


def neuralsort(scores: list[float], temperature: float = 1.0, sinkhorn: int = 0) -> Numbers:
    n = len(scores)
    apart = [sum(abs(s - other) for other in scores) for s in scores]
    rows = [
        softmax([((n - 1 - 2 * p) * s - a) / temperature for s, a in zip(scores, apart, strict=True)])
        for p in range(n)
    ]
    return as_order(rows, sinkhorn)


def as_order(matrix: Numbers, sinkhorn: int) -> Numbers:
    """[place][item], rows that sum to 1 -> [item][place], rows that sum to 1."""
    for _ in range(sinkhorn):
        columns = [sum(row[item] for row in matrix) for item in range(len(matrix))]
        matrix = [[x / total for x, total in zip(row, columns, strict=True)] for row in matrix]
        matrix = [[x / sum(row) for x in row] for row in matrix]
    columns = [sum(row[item] for row in matrix) for item in range(len(matrix))]
    return [[row[item] / columns[item] for row in matrix] for item in range(len(matrix))]


def all_passes(
    choices: Choices, third: list[list[int]] | None, quality: Numbers, effect: list[float]
) -> dict[str, Numbers]:
    """The scores of each pass, those of lists whose later passes are not run among them."""
    first = scored(quality, effect, [zero_one(row) for row in GIVEN])
    orders = {"second": [zero_one(row) for row in OWN]}
    if choices.soft is not None:
        orders["second"] = [choices.soft(row) for row in first]
        if choices.straight_through:
            at_first = scored(QUALITY, EFFECT, [zero_one(row) for row in GIVEN])
            orders["second"] = [
                [[h + (s - c) for h, s, c in zip(*items, strict=True)] for items in zip(*rows, strict=True)]
                for rows in zip(
                    map(zero_one, OWN), orders["second"], [choices.soft(row) for row in at_first], strict=True
                )
            ]
    if third is not None:
        orders["third"] = [zero_one(row) for row in third]
        if choices.soft is not None and choices.perturbs == "own":
            # The item that moved to place p came from place OWN: its column goes along.
            orders["third"] = [
                [[item[own[moved.index(place)]] for place in range(len(own))] for item in order]
                for order, own, moved in zip(orders["second"], OWN, third, strict=True)
            ]
    return {"first": first, **{name: scored(quality, effect, order) for name, order in orders.items()}}


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
    choices: Choices,
    third: list[list[int]] | None,
    quality: Numbers = QUALITY,
    effect: list[float] = EFFECT,
    ramp: float = 1.0,
) -> dict[str, float]:
    """All that the objective returns. The constant side of a pair keeps the scores of QUALITY and EFFECT."""
    third = third if choices.weights[1] else None
    passes, constant = (
        all_passes(choices, third, *parameters) for parameters in ((quality, effect), (QUALITY, EFFECT))
    )

    def task(name: str, lists: list[int]) -> float:
        return sum(task_loss_of(choices.task_loss, passes[name][n], LABELS[n]) for n in lists) / len(lists)

    losses = {"task_loss": task("first", list(range(LISTS)))}
    loss = losses["task_loss"]
    if choices.passes == "every":
        later = ["second"] * bool(choices.weights[0]) + ["third"] * bool(choices.weights[1])
        losses["further_task_loss"] = sum(task(name, choices.lists) for name in later)
        loss += losses["further_task_loss"]
    places = {"first": GIVEN, "second": OWN, "third": third}
    if choices.moves == "output":
        places = {name: [ranking(row) for row in rows] for name, rows in constant.items()}
    pairs = (("first", "second"), ("first", "third"), ("second", "third"))
    for term, (a, b), weight in zip(TERMS, pairs, choices.weights, strict=True):
        if not weight:
            continue
        total = 0.0
        for n in choices.lists:
            one = comparable((constant if choices.stop == "first" else passes)[a][n], choices.space, choices.task_loss)
            two = comparable(
                (constant if choices.stop == "second" else passes)[b][n], choices.space, choices.task_loss
            )
            moves = [abs(p - q) for p, q in zip(places[a][n], places[b][n], strict=True)]
            summed = sum(move * (x - y) ** 2 for move, x, y in zip(moves, one, two, strict=True))
            total += summed / {"sum": 1, "mean": len(moves), "weighted_mean": sum(moves) or 1}[choices.reduction]
        losses[term] = total / len(choices.lists)
        loss += ramp * weight * losses[term]
    return {"loss": loss, **losses}


# ------------------------------------------------------------------------------------------------------ the code's run


@dataclass
class Output:
    logits: Tensor

    def split(self, sizes: list[int]) -> list[Output]:
        return [Output(part) for part in self.logits.split(sizes)]


class Scorer:
    """Quality plus effect, with NaN at padding; ``shift`` moves a whole list by the place of its first item."""

    def __init__(self, dtype: torch.dtype = torch.float64, shift: float = 0.0) -> None:
        rows = [row + [math.nan] * (4 - len(row)) for row in QUALITY]
        self.quality = torch.tensor(rows, dtype=dtype, requires_grad=True)
        self.effect = torch.tensor(EFFECT, dtype=dtype, requires_grad=True)
        self.shift = shift
        self.calls: list[Tensor] = []
        self.rows: list[Tensor | None] = []

    def __call__(self, orders: Tensor, lists: Tensor | None = None) -> Output:
        self.calls.append(orders.detach())
        self.rows.append(lists)
        rows = torch.arange(LISTS).repeat(len(orders) // LISTS) if lists is None else lists
        if orders.is_floating_point():
            return Output(self.quality[rows] + orders @ self.effect)
        return Output(self.quality[rows] + self.effect[orders] + self.shift * orders[:, :1])


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads only cost time on lists of four."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MASK = torch.tensor([[slot < len(row) for slot in range(4)] for row in QUALITY])
POSITIONS = torch.tensor([row + list(range(len(row), 4)) for row in GIVEN])


def run(objective: Any, *, scorer: Scorer | None = None) -> tuple[dict[str, Tensor], Scorer]:
    """The objective, or one of a step, on the batch above."""
    scorer = Scorer() if scorer is None else scorer
    name = (objective.func if isinstance(objective, functools.partial) else objective).task_loss
    labels = torch.tensor([row + [-100.0] * (4 - len(row)) for row in LABELS], dtype=torch.float64)

    def task_loss(output: Output, lists: Tensor | None = None) -> Tensor:
        rows = torch.arange(LISTS) if lists is None else lists
        assert output.logits.shape == (len(rows), 4)
        return TASK_LOSSES[name](output.logits, labels[rows], mask=MASK[rows])

    return objective(scorer, POSITIONS, labels, MASK, task_loss), scorer


def plain(orders: Tensor, lists: list[int]) -> list[list[int]]:
    """Hard orders of these lists without padding, which stands on the last places; other lists as they are given."""
    found = [list(row) for row in GIVEN]
    for row, number in zip(orders.tolist(), lists, strict=True):
        real = len(GIVEN[number])
        assert sorted(row[:real]) == list(range(real))
        assert row[real:] == list(range(real, 4))
        found[number] = row[:real]
    return found


def drawn_lists(scorer: Scorer) -> list[int]:
    """The lists of the later passes: those of the last call, once."""
    rows = scorer.rows[-1]
    if rows is None:
        return list(range(LISTS))
    rows = rows[LISTS:] if len(scorer.calls) == 1 else rows
    return list(dict.fromkeys(rows.tolist()))


def shown_third(objective: PrincipledObjective, **at: Any) -> list[list[int]] | None:
    """The perturbed order, read off what a scorer is shown; of a soft order, from its hard twin."""
    if not objective.adversarial_weight:
        return None
    soft = {"ranking_gradient": "hard", "temperature": None, "sinkhorn": None, "straight_through": False}
    _, scorer = run(replace(objective, **soft).at(**{"step": 0, **at}))
    lists = drawn_lists(scorer)
    if objective.perturbed_order == "initial":
        return plain(scorer.calls[0][LISTS:], lists)
    shown = scorer.calls[1]
    assert len(shown) == len(lists) * (2 if objective.convergence_weight else 1)
    return plain(shown[-len(lists) :], lists)


REFERENCE = {
    "weights": (1.0, 1.0, 1.0),
    "space": "output",
    "moves": "output",
    "reduction": "mean",
    "passes": "every",
    "perturbs": "own",
}
PAPER = {"weights": (1.0, 1.0, 0.0), "reduction": "sum"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "scaled": ({}, {}),
    "paper": ({"preset": "paper"}, PAPER),
    "reference": ({"preset": "reference"}, REFERENCE),
    "none": ({"preset": "none"}, {"weights": (0.0, 0.0, 0.0)}),
    "P1 alone": ({"adversarial_weight": 0.0}, {"weights": (20.0, 0.0, 0.0)}),
    "P2 alone": ({"convergence_weight": 0.0}, {"weights": (0.0, 5.0, 0.0)}),
    "other weights": ({"convergence_weight": 0.3, "adversarial_weight": 70}, {"weights": (0.3, 70.0, 0.0)}),
    "the weights of none": (
        {"preset": "none", "convergence_weight": 2.0, "adversarial_weight": 3.0},
        {"weights": (2.0, 3.0, 0.0)},
    ),
    "cross": ({"cross_weight": 7.0}, {"weights": (20.0, 5.0, 7.0)}),
    "cross off": ({"preset": "reference", "cross_weight": 0.0}, {**REFERENCE, "weights": (1.0, 1.0, 0.0)}),
    "reference, P1 alone": ({"preset": "reference", "adversarial_weight": 0.0}, {**REFERENCE, "weights": (1.0, 0, 0)}),
    "reference, P2 alone": ({"preset": "reference", "convergence_weight": 0.0}, {**REFERENCE, "weights": (0, 1.0, 0)}),
    "moves in the output": ({"consistency_positions": "output"}, {"moves": "output"}),
    "moves in the input": ({"preset": "reference", "consistency_positions": "input"}, {**REFERENCE, "moves": "input"}),
    "sum": ({"consistency_reduction": "sum"}, {"reduction": "sum"}),
    "mean": ({"consistency_reduction": "mean"}, {"reduction": "mean"}),
    "weighted mean": (
        {"preset": "paper", "consistency_reduction": "weighted_mean"},
        {**PAPER, "reduction": "weighted_mean"},
    ),
    "task loss of every pass": ({"task_loss_passes": "every"}, {"passes": "every"}),
    "task loss of the first pass": (
        {"preset": "reference", "task_loss_passes": "first"},
        {**REFERENCE, "passes": "first"},
    ),
    "own order perturbed": ({"perturbed_order": "own"}, {"perturbs": "own"}),
    "own order perturbed, P2 alone": (
        {"perturbed_order": "own", "convergence_weight": 0.0},
        {"perturbs": "own", "weights": (0.0, 5.0, 0.0)},
    ),
    "initial order perturbed": (
        {"preset": "reference", "perturbed_order": "initial"},
        {**REFERENCE, "perturbs": "initial"},
    ),
    "first side constant": ({"stop_gradient": "first"}, {"stop": "first"}),
    "second side constant": ({"stop_gradient": "second"}, {"stop": "second"}),
    "reference, first side constant": (
        {"preset": "reference", "stop_gradient": "first"},
        {**REFERENCE, "stop": "first"},
    ),
    "reference, second side constant": (
        {"preset": "reference", "stop_gradient": "second"},
        {**REFERENCE, "stop": "second"},
    ),
    "softsort": ({"ranking_gradient": "softsort"}, {"soft": softsort}),
    "softsort, temperature": (
        {"ranking_gradient": "softsort", "temperature": 0.3},
        {"soft": functools.partial(softsort, temperature=0.3)},
    ),
    "softsort, sinkhorn": (
        {"ranking_gradient": "softsort", "sinkhorn": 2},
        {"soft": functools.partial(softsort, sinkhorn=2)},
    ),
    "softsort, straight through": (
        {"ranking_gradient": "softsort", "straight_through": True},
        {"soft": softsort, "straight_through": True},
    ),
    "neuralsort": ({"ranking_gradient": "neuralsort"}, {"soft": neuralsort}),
    "neuralsort, temperature, sinkhorn": (
        {"ranking_gradient": "neuralsort", "temperature": 2.5, "sinkhorn": 3},
        {"soft": functools.partial(neuralsort, temperature=2.5, sinkhorn=3)},
    ),
    "neuralsort, straight through": (
        {"ranking_gradient": "neuralsort", "straight_through": True, "temperature": 0.7},
        {"soft": functools.partial(neuralsort, temperature=0.7), "straight_through": True},
    ),
    "softsort, own order perturbed": (
        {"ranking_gradient": "softsort", "perturbed_order": "own"},
        {"soft": softsort, "perturbs": "own"},
    ),
    "softsort, own order perturbed, P2 alone": (
        {"ranking_gradient": "softsort", "perturbed_order": "own", "convergence_weight": 0.0},
        {"soft": softsort, "perturbs": "own", "weights": (0.0, 5.0, 0.0)},
    ),
    "softsort, reference": (
        {"preset": "reference", "ranking_gradient": "softsort"},
        {**REFERENCE, "soft": softsort},
    ),
    "softsort, first side constant": (
        {"ranking_gradient": "softsort", "stop_gradient": "first"},
        {"soft": softsort, "stop": "first"},
    ),
    "softsort, second side constant": (
        {"ranking_gradient": "softsort", "stop_gradient": "second", "task_loss_passes": "every"},
        {"soft": softsort, "stop": "second", "passes": "every"},
    ),
    "half the lists": ({"consistency_fraction": 0.5}, {}),
    "one list": ({"consistency_fraction": 0.01}, {}),
    "three lists, reference": ({"preset": "reference", "consistency_fraction": 0.7}, REFERENCE),
    "half the lists, own order perturbed": (
        {"perturbed_order": "own", "consistency_fraction": 0.5},
        {"perturbs": "own"},
    ),
    "half the lists, softsort": (
        {"ranking_gradient": "softsort", "perturbed_order": "own", "consistency_fraction": 0.5},
        {"soft": softsort, "perturbs": "own"},
    ),
    "half the lists, P2 alone": (
        {"consistency_fraction": 0.5, "convergence_weight": 0.0, "task_loss_passes": "every"},
        {"weights": (0.0, 5.0, 0.0), "passes": "every"},
    ),
}
CASES |= {
    f"{space}, {task_loss}": (
        {"consistency_space": space, "task_loss": task_loss},
        {"space": space, "task_loss": task_loss},
    )
    for space, task_loss in itertools.product(
        ("probability", "logit", "output"), ("binary_log_loss", "softmax_loss", "lambda_loss")
    )
    if (space, task_loss) != ("probability", "lambda_loss")
}
EVERY_CASE = pytest.mark.parametrize(("options", "row"), CASES.values(), ids=CASES.keys())


def test_the_batch_tells_all_orders_apart() -> None:
    """The orders above are what the arithmetic gives, without ties; the third pass differs from both in every case."""
    for orders, ranked in ((GIVEN, OWN), (OWN, AGAIN)):
        scores = scored(QUALITY, EFFECT, [zero_one(row) for row in orders])
        assert [ranking(row) for row in scores] == ranked
        assert all(len({round(x, 9) for x in row}) == len(row) for row in scores)
    assert GIVEN != OWN != AGAIN
    for perturbed in ("initial", "own"):
        assert shown_third(PrincipledObjective(perturbed_order=perturbed)) not in (GIVEN, OWN, AGAIN)


@EVERY_CASE
def test_value_of_every_option(options: dict[str, Any], row: dict[str, Any]) -> None:
    objective = PrincipledObjective(**options)
    losses, scorer = run(objective)
    choices = Choices(**row, lists=drawn_lists(scorer))
    written_out = expected(choices, shown_third(objective))
    assert losses.keys() == written_out.keys()
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(written_out, rel=1e-9)
    if choices.weights[0] and "soft" not in row:
        assert plain(scorer.calls[1][: len(choices.lists)], choices.lists) == [
            own if n in choices.lists else given for n, (own, given) in enumerate(zip(OWN, GIVEN, strict=True))
        ]


@EVERY_CASE
def test_gradient_of_every_option(options: dict[str, Any], row: dict[str, Any]) -> None:
    """Central differences of the arithmetic; hard orders and the constant side of a pair do not move."""
    objective = PrincipledObjective(**options)
    losses, scorer = run(objective)
    losses["loss"].backward()
    choices, third, step = Choices(**row, lists=drawn_lists(scorer)), shown_third(objective), 1e-5

    def slope(quality: Callable[[float], Numbers], effect: Callable[[float], list[float]]) -> float:
        up, down = (expected(choices, third, quality(by), effect(by))["loss"] for by in (step, -step))
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
    """The default's first pair and task loss, number by number."""
    losses, _ = run(PrincipledObjective())
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
    """Raw scores, weighted by how far the two rankings given are apart, over the number of items."""
    losses, _ = run(PrincipledObjective("reference"))
    # OWN to AGAIN: in list 0 the items of .4 (now -.4) and .1 (now .8) change places, in list 1 those of -.1 (now .7)
    # and .3 (now -.5).
    written_out = ((0.8**2 + 0.7**2) / 4 + (0.8**2 + 0.8**2) / 3) / 4
    assert losses["convergence_loss"].item() == pytest.approx(written_out, rel=1e-12)
    assert losses.keys() == {"loss", "task_loss", "further_task_loss", *TERMS}


@pytest.mark.parametrize("relaxation", ["softsort", "neuralsort"])
def test_straight_through_is_hard_forward_and_soft_backward(relaxation: str) -> None:
    found = {}
    for name, options in {
        "hard": {},
        "through": {"ranking_gradient": relaxation, "straight_through": True},
        "soft": {"ranking_gradient": relaxation},
    }.items():
        losses, scorer = run(PrincipledObjective(**options))
        losses["loss"].backward()
        found[name] = losses["loss"].item(), scorer.quality.grad[MASK]
    assert found["through"][0] == pytest.approx(found["hard"][0], rel=1e-12)
    assert found["soft"][0] != pytest.approx(found["hard"][0], rel=1e-3)
    assert (found["through"][1] - found["hard"][1]).abs().max() > 1e-2


@pytest.mark.parametrize("task_loss", TASK_LOSSES)
@pytest.mark.parametrize("space", ["probability", "logit", "output"])
def test_a_shift_of_the_whole_list_costs_where_the_loss_sees_it(space: str, task_loss: str) -> None:
    if (space, task_loss) == ("probability", "lambda_loss"):
        return
    objective = PrincipledObjective(consistency_space=space, task_loss=task_loss)
    (still, _), (shifted, _) = run(objective), run(objective, scorer=Scorer(shift=3.0))
    for name in ("convergence_loss", "adversarial_loss"):
        unchanged = shifted[name].item() == pytest.approx(still[name].item(), rel=1e-9)
        assert unchanged == (task_loss != "binary_log_loss" and space != "output")


def test_bf16_scores_are_compared_in_float32() -> None:
    losses, _ = run(PrincipledObjective("paper"), scorer=Scorer(torch.bfloat16))
    written_out = expected(Choices(**PAPER), shown_third(PrincipledObjective("paper")))
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


@pytest.mark.parametrize("order", ["initial", "own"])
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
def test_every_perturbation_shows_all_that_it_may(kind: str, strength: float, count: int, order: str) -> None:
    """Over the steps each order that it can reach and no other; a step's loss is that of the order it showed."""
    objective = PrincipledObjective(
        convergence_weight=0.0, perturbation=kind, perturbation_strength=strength, perturbed_order=order
    )
    start = GIVEN if order == "initial" else OWN
    allowed = [reachable(kind, int(strength), row) for row in start]
    assert len(allowed[0]) == count
    seen: list[set[tuple[int, ...]]] = [set() for _ in start]
    for step in range(80):
        third = shown_third(objective, step=step)
        for row, orders in zip(third, seen, strict=True):
            orders.add(tuple(row))
        if step < 3:
            losses, _ = run(objective.at(step=step))
            written_out = expected(Choices(weights=(0.0, 5.0, 0.0), perturbs=order), third)
            assert losses["adversarial_loss"].item() == pytest.approx(written_out["adversarial_loss"], rel=1e-9)
    if kind == "score_noise":  # far steps are rare
        assert all(orders <= known for orders, known in zip(seen, allowed, strict=True))
        assert len(seen[0]) > count / 2
    else:
        assert seen == allowed


def perturbed_of(keys: list[int] | None, lists: list[int], *, step: int = 0, seed: int = 0) -> list[list[int]]:
    """The perturbed orders of some of 40 lists of eight."""
    objective = PrincipledObjective(convergence_weight=0.0, seed=seed)
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
        lambda output: output.logits.sum(),
    )
    return calls[0][len(lists) :].tolist()


def test_a_list_has_its_own_perturbation() -> None:
    everyone, keys = list(range(40)), [7919 * number for number in range(40)]
    whole = perturbed_of(keys, everyone, step=3)
    chosen = [31, 2, 17, 5]
    assert perturbed_of([keys[number] for number in chosen], chosen, step=3) == [whole[number] for number in chosen]
    assert perturbed_of(keys, everyone, step=4) != whole
    assert perturbed_of(keys, everyone, step=3, seed=1) != whole
    # Without keys the row is the key.
    assert perturbed_of(None, everyone, step=3) == perturbed_of(everyone, everyone, step=3)


# ------------------------------------------------------------------------------------------------------ cost of a step


@pytest.mark.parametrize("passes", ["first", "every"])
@pytest.mark.parametrize("gradient", ["hard", "softsort"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("order", ["initial", "own"])
@pytest.mark.parametrize("w2", [0.0, 1.0])
@pytest.mark.parametrize("w1", [0.0, 1.0])
def test_at_most_two_encoder_calls(
    w1: float, w2: float, order: str, fraction: float, gradient: str, passes: str
) -> None:
    options: dict[str, Any] = {"convergence_weight": w1, "adversarial_weight": w2}
    if w1 or w2:
        options |= {"consistency_fraction": fraction, "task_loss_passes": passes}
    if w2:
        options["perturbed_order"] = order
    if w1 or (w2 and order == "own"):
        options["ranking_gradient"] = gradient
    _, scorer = run(PrincipledObjective(**options))
    drawn = LISTS if fraction == 1 else 2
    first = LISTS + (drawn if w2 and order == "initial" else 0)
    second = drawn * (bool(w1) + bool(w2 and order == "own"))
    assert [len(orders) for orders in scorer.calls] == [first] + [second] * bool(second)
    assert scorer.calls[0][:LISTS].equal(POSITIONS)
    if second:
        assert scorer.calls[1].is_floating_point() == (gradient == "softsort")


# --------------------------------------------------------------------------------------------- a fraction of the lists


@pytest.mark.parametrize(
    ("fraction", "count"),
    [(1e-9, 1), (0.1, 1), (0.25, 1), (0.375, 2), (0.5, 2), (0.6, 2), (0.7, 3), (0.87, 3), (0.9, 4), (1.0, 4)],
)
def test_number_of_lists_drawn(fraction: float, count: int) -> None:
    """``max(1, round(f * 4))``; ``test_value_of_every_option`` checks that a term is the mean over these."""
    _, scorer = run(PrincipledObjective(consistency_fraction=fraction))
    lists = drawn_lists(scorer)
    assert len(lists) == count
    assert [len(orders) for orders in scorer.calls] == [LISTS + count, count]


def test_a_drawn_list_is_perturbed_as_ever() -> None:
    """At each of 20 steps, as where all lists are drawn; so its draws are its own, not those of its new row."""
    for step in range(20):
        whole = shown_third(PrincipledObjective(), step=step)
        _, scorer = run(PrincipledObjective(consistency_fraction=0.5).at(step=step))
        lists = drawn_lists(scorer)
        part = plain(scorer.calls[0][LISTS:], lists)
        assert [part[number] for number in lists] == [whole[number] for number in lists], step


def test_lists_are_drawn_without_looking_at_them() -> None:
    objective = PrincipledObjective(consistency_fraction=0.5).at(step=5)
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
    steps, objective = 400, PrincipledObjective(consistency_fraction=0.375)
    found: dict[str, list[float]] = {"convergence_loss": [], "adversarial_loss": [], "slope": []}
    drawn = [0] * LISTS
    for step in range(steps):
        losses, scorer = run(objective.at(step=step))
        for name in TERMS[:2]:
            found[name].append(losses[name].item())
        (slope,) = torch.autograd.grad(losses["convergence_loss"], scorer.effect)
        found["slope"].append(slope[1].item())
        for number in drawn_lists(scorer):
            drawn[number] += 1
    assert all(abs(count - steps / 2) < 4 * math.sqrt(steps / 4) for count in drawn)

    # All lists and, list by list, all swaps of neighbours.
    swaps = [sorted(reachable("adjacent_swap", 1, row)) for row in GIVEN]
    alone = [
        [
            expected(Choices(lists=[number]), [list(swap) if number == n else row for n, row in enumerate(GIVEN)])
            for swap in swaps[number]
        ]
        for number in range(LISTS)
    ]

    def of_the_batch(name: str) -> float:
        return sum(sum(entry[name] for entry in entries) / len(entries) for entries in alone) / LISTS

    up, down = (
        expected(Choices(), GIVEN, effect=[x + by * (place == 1) for place, x in enumerate(EFFECT)])[
            "convergence_loss"
        ]
        for by in (1e-5, -1e-5)
    )
    truth = {name: of_the_batch(name) for name in TERMS[:2]} | {"slope": (up - down) / 2e-5}
    for name, values in found.items():
        mean = sum(values) / steps
        error = math.sqrt(sum((x - mean) ** 2 for x in values) / (steps - 1) / steps)
        assert abs(mean - truth[name]) < 4 * error, name
        assert abs(mean * 2 / 1.5 - truth[name]) > 4 * error * 2 / 1.5, name


# -------------------------------------------------------------------------------------------------- steps and settings


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
    losses, _ = run(PrincipledObjective(preset, consistency_warmup=warmup).at(step=step, steps=8))
    row = REFERENCE if preset == "reference" else {}
    written_out = expected(Choices(**row), shown_third(PrincipledObjective(preset), step=step), ramp=share)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(written_out, rel=1e-9)


def test_a_warmup_needs_the_number_of_steps() -> None:
    with pytest.raises(InputError, match="consistency_warmup the objective needs the number of steps"):
        PrincipledObjective(consistency_warmup=0.1).at(step=3)


def test_at_changes_the_draws_alone() -> None:
    objective = PrincipledObjective("paper", seed=4)
    later = objective.at(step=12, steps=20, list_keys=torch.tensor([1, 2, 3, 4]))
    assert isinstance(later, functools.partial)
    assert later.func is objective
    losses, scorer = run(later)
    third = plain(scorer.calls[0][LISTS:], list(range(LISTS)))
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        expected(Choices(**PAPER), third), rel=1e-9
    )
    assert third == shown_third(objective, step=12, list_keys=torch.tensor([1, 2, 3, 4]))


def test_settings_are_plain() -> None:
    settings = PrincipledObjective("paper", seed=3).settings()
    assert json.loads(json.dumps(settings)) == {
        "preset": "paper",
        "convergence_weight": 1.0,
        "adversarial_weight": 1.0,
        "cross_weight": 0.0,
        "consistency_space": "probability",
        "consistency_positions": "input",
        "consistency_reduction": "sum",
        "task_loss_passes": "first",
        "perturbed_order": "initial",
        "perturbation": "adjacent_swap",
        "perturbation_strength": 1.0,
        "ranking_gradient": "hard",
        "temperature": None,
        "sinkhorn": None,
        "straight_through": False,
        "stop_gradient": "none",
        "consistency_fraction": 1.0,
        "consistency_warmup": 0.0,
        "task_loss": "binary_log_loss",
        "seed": 3,
    }


@EVERY_CASE
def test_settings_make_the_same_objective(options: dict[str, Any], row: dict[str, Any]) -> None:
    objective = PrincipledObjective(**options)
    again = PrincipledObjective(**objective.settings())
    assert again == objective
    assert {name: value.item() for name, value in run(again)[0].items()} == {
        name: value.item() for name, value in run(objective)[0].items()
    }


# ------------------------------------------------------------------------------------------------------------ refusals

BOTH_OFF = {"convergence_weight": 0.0, "adversarial_weight": 0.0}
CHANGES_NOTHING = "changes nothing with convergence_weight=0 and adversarial_weight=0"
NOT_PERTURBED = "changes nothing with adversarial_weight=0, where nothing is perturbed"
SOFT_ONLY = "belongs to a soft order: set ranking_gradient to softsort or neuralsort"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "preset": ({"preset": "sclaed"}, "preset 'sclaed': expected one of scaled, paper, .*did you mean 'scaled'"),
    "space": ({"consistency_space": "probabilty"}, "consistency_space is 'probabilty'.*did you mean 'probability'"),
    "positions": ({"consistency_positions": "inputs"}, "consistency_positions is 'inputs'.*did you mean 'input'"),
    "reduction": ({"consistency_reduction": "avg"}, "is 'avg': expected one of sum, mean, weighted_mean$"),
    "passes": ({"task_loss_passes": "evry"}, "task_loss_passes is 'evry': .*did you mean 'every'"),
    "order": ({"perturbed_order": "intial"}, "perturbed_order is 'intial': .*did you mean 'initial'"),
    "relaxation": ({"ranking_gradient": "softsrt"}, "ranking_gradient is 'softsrt': .*did you mean 'softsort'"),
    "stop": ({"stop_gradient": "frist"}, "stop_gradient is 'frist': .*did you mean 'first'"),
    "task loss": ({"task_loss": "binary_logloss"}, "task_loss is 'binary_logloss'.*did you mean 'binary_log_loss'"),
    "unresolved": ({"task_loss": "own"}, "task_loss is 'own': expected one of binary_log_loss"),
    "perturbation": ({"perturbation": "adjacent_swp"}, "perturbation 'adjacent_swp'.*did you mean 'adjacent_swap'"),
    "negative": ({"convergence_weight": -1.0}, "convergence_weight is -1.0: expected a finite number, at least 0"),
    "nan": ({"adversarial_weight": math.nan}, "adversarial_weight is nan"),
    "infinite": ({"cross_weight": math.inf}, "cross_weight is inf"),
    "no swap": ({"perturbation_strength": 0}, "perturbation_strength of adjacent_swap is 0: .*from 1 to"),
    "half a swap": ({"perturbation_strength": 1.5}, "adjacent_swap is 1.5: expected a whole number from 1 to 1000"),
    "half a window": (
        {"perturbation": "window_shuffle", "perturbation_strength": 2.5},
        "perturbation_strength of window_shuffle is 2.5: expected a whole number",
    ),
    "no noise": (
        {"perturbation": "score_noise", "perturbation_strength": 0.0},
        "perturbation_strength of score_noise is 0.0: expected a number above 0",
    ),
    "endless noise": ({"perturbation": "score_noise", "perturbation_strength": math.inf}, "score_noise is inf"),
    "cross without P1": ({"cross_weight": 1.0, "convergence_weight": 0.0}, "cross_weight=1.0 .* must both be above 0"),
    "cross without P2": ({"cross_weight": 1.0, "adversarial_weight": 0.0}, "cross_weight=1.0 .* must both be above 0"),
    "temperature": ({"temperature": 1.0}, f"temperature=1.0 {SOFT_ONLY}"),
    "sinkhorn": ({"sinkhorn": 2}, f"sinkhorn=2 {SOFT_ONLY}"),
    "straight through": ({"straight_through": True}, f"straight_through=True {SOFT_ONLY}"),
    "cold": (
        {"ranking_gradient": "softsort", "temperature": 0.0},
        "temperature is 0.0: expected a number of at least 1e-06",
    ),
    "hot": ({"ranking_gradient": "softsort", "temperature": math.inf}, "temperature is inf"),
    "sinkhorn below 0": ({"ranking_gradient": "neuralsort", "sinkhorn": -1}, "sinkhorn is -1: .*at least 0"),
    "soft, order never shown": (
        {"ranking_gradient": "softsort", "convergence_weight": 0.0},
        "ranking_gradient='softsort' changes nothing where the model is never shown its own order",
    ),
    "soft, nothing on": (
        {"preset": "none", "ranking_gradient": "neuralsort"},
        "ranking_gradient='neuralsort' changes nothing where the model is never shown its own order",
    ),
    "soft, cut off": (
        {"ranking_gradient": "softsort", "stop_gradient": "second"},
        "stop_gradient='second' cuts it off: choose one of them",
    ),
    "lambda": ({"task_loss": "lambda_loss"}, "lambda_loss has no probabilities: .*consistency_space='logit'"),
    "no list": ({"consistency_fraction": 0.0}, "consistency_fraction is 0.0: expected a share above 0, at most 1"),
    "more than all": ({"consistency_fraction": 1.01}, "consistency_fraction is 1.01"),
    "nan lists": ({"consistency_fraction": math.nan}, "consistency_fraction is nan"),
    "warmup below 0": ({"consistency_warmup": -0.1}, "consistency_warmup is -0.1: expected a share from 0 to 1"),
    "warmup above 1": ({"consistency_warmup": 1.5}, "consistency_warmup is 1.5"),
    "warmup in nan": ({"consistency_warmup": math.nan}, "consistency_warmup is nan"),
}
REFUSED |= {
    f"{name} with both weights 0": ({**BOTH_OFF, name: value}, f"{name}={value!r} {CHANGES_NOTHING}")
    for name, value in {
        "consistency_space": "logit",
        "consistency_positions": "output",
        "consistency_reduction": "sum",
        "consistency_fraction": 0.5,
        "consistency_warmup": 0.5,
        "task_loss_passes": "every",
        "stop_gradient": "first",
    }.items()
}
REFUSED |= {
    f"{name} without P2": ({"adversarial_weight": 0.0, name: value}, f"{name}={value!r} {NOT_PERTURBED}")
    for name, value in {"perturbation": "random_swap", "perturbation_strength": 2, "perturbed_order": "own"}.items()
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        PrincipledObjective(**options)
    assert "\n" not in str(caught.value)


def test_lambda_loss_alone_needs_no_space() -> None:
    losses, scorer = run(PrincipledObjective("none", task_loss="lambda_loss"))
    assert losses.keys() == {"loss", "task_loss"}
    assert torch.equal(losses["loss"], losses["task_loss"])
    assert len(scorer.calls) == 1
