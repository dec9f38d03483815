"""The consistency loss and the objective: against scalar arithmetic, which also gives the gradients."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.losses import TASK_LOSSES
from hf_rerank.principled import PrincipledObjective, consistency_loss

# Two lists of three; their places move by 1, 1, 0 and 2, 0, 2; the last slot of the second is padding in MASK.
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
def test_consistency_loss_by_hand(reduction: str, masked: bool) -> None:
    mask = torch.tensor(MASK) if masked else None
    loss = consistency_loss(
        torch.tensor(A), torch.tensor(B), torch.tensor(P), torch.tensor(Q), mask=mask, reduction=reduction
    )
    assert loss.item() == pytest.approx(BY_HAND[reduction, masked])


def test_the_papers_sum_is_the_default() -> None:
    assert consistency_loss(*map(torch.tensor, (A, B, P, Q))).item() == pytest.approx(BY_HAND["sum", False])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, torch.finfo(torch.float32).min])
def test_padding_is_not_looked_at(reduction: str, garbage: float) -> None:
    """Neither its scores nor its places, for value and gradient; a third list is nothing but padding."""
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
def test_nothing_to_compare(reduction: str) -> None:
    scores = torch.tensor(A, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for other, mask in ((torch.tensor(P), None), (torch.tensor(Q), nothing)):
        loss = consistency_loss(scores, torch.tensor(B), torch.tensor(P), other, mask=mask, reduction=reduction)
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, scores)
        assert (gradient == 0).all()


def test_dtype() -> None:
    """Half precision is squared in float32, where 2^-20 does not vanish beside 1; float64 stays."""
    small = torch.tensor([[2.0**-10, 1.0]]).bfloat16()
    moved = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
    loss = consistency_loss(small, torch.zeros(1, 2).bfloat16(), *moved)
    assert loss.dtype == torch.float32
    assert loss.item() == 1 + 2.0**-20
    assert consistency_loss(small.double(), small.double(), *moved).dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reduction": "avg"}, "'avg': expected sum, mean or weighted_mean"),
        ({"scores_b": torch.zeros(2, 1)}, r"scores_b has the shape \[2, 1\]: expected that of scores_a, \[2, 3\]"),
        ({"positions_a": torch.zeros(3)}, r"positions_a has the shape \[3\]"),
        ({"positions_b": torch.zeros(1, 3)}, r"positions_b has the shape \[1, 3\]"),
        ({"mask": torch.ones(3, 3).bool()}, r"mask has the shape \[3, 3\]"),
    ],
)
def test_consistency_loss_refuses(changes: dict, message: str) -> None:
    arguments = dict(
        zip(("scores_a", "scores_b", "positions_a", "positions_b"), map(torch.tensor, (A, B, P, Q)), strict=True)
    )
    with pytest.raises(InputError, match=message):
        consistency_loss(**{**arguments, **changes})


@dataclass
class Output:
    logits: Tensor

    def split(self, parts: int) -> "list[Output]":
        return [Output(part) for part in self.logits.chunk(parts)]


class Scorer:
    """``quality_i - bias * P_i``, and a shift of the whole list by ``shift`` times the place of slot 0."""

    def __init__(self, quality: Tensor, bias: Tensor, shift: float = 0.0) -> None:
        self.quality, self.bias, self.shift, self.calls = quality, bias, shift, []

    def __call__(self, orders: Tensor) -> Output:
        self.calls.append(orders)
        quality = self.quality.repeat(len(orders) // len(self.quality), 1)
        return Output(quality - self.bias * orders + self.shift * orders[:, :1])


QUALITY, BIAS = [[0.2, 1.0, 0.6], [0.5, 0.1, math.nan]], 0.5  # NaN at padding must not get anywhere
GIVEN = [[0, 1, 2], [1, 0, 2]]
# Scores of the given order: list 0: .2, .5, -.4; list 1: 0, .1. So the scorer's own orders:
OWN = [[1, 0, 2], [1, 0, 2]]
LABELS = [[1.0, 0.0, 0.0], [0.0, 1.0, -100.0]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scalar_logits(quality: list, bias: float, order: list) -> list[list[float]]:
    return [[quality[row][slot] - bias * order[row][slot] for slot in range(3) if MASK[row][slot]] for row in range(2)]


def scalar_space(logits: list[float], space: str, task_loss: str) -> list[float]:
    if task_loss == "binary_log_loss":
        return [sigmoid(x) for x in logits] if space == "probability" else logits
    if space == "probability":
        total = sum(math.exp(x) for x in logits)
        return [math.exp(x) / total for x in logits]
    return [x - sum(logits) / len(logits) for x in logits]


def scalar_term(quality, bias, a, b, reduction, space="probability", task_loss="binary_log_loss") -> float:
    """``L_CS(a, b)`` of the scorer above, number by number."""
    total = 0.0
    for row in range(2):
        mine, other = (scalar_space(scalar_logits(quality, bias, o)[row], space, task_loss) for o in (a, b))
        moves = [abs(a[row][slot] - b[row][slot]) for slot in range(len(mine))]
        summed = sum(move * (x - y) ** 2 for move, x, y in zip(moves, mine, other, strict=True))
        total += summed / {"sum": 1, "mean": len(mine), "weighted_mean": sum(moves) or 1}[reduction]
    return total / 2


def scalar_task_loss(quality: list, bias: float) -> float:
    """The mean of the items' binary log-loss, of lists of different lengths."""
    total = 0.0
    for row, logits in enumerate(scalar_logits(quality, bias, GIVEN)):
        total += sum(math.log(1 + math.exp(-x if y else x)) for x, y in zip(logits, LABELS[row], strict=False)) / len(
            logits
        )
    return total / 2


def run(objective: PrincipledObjective, shift: float = 0.0) -> tuple[dict[str, Tensor], Scorer, Tensor, Tensor]:
    quality = torch.tensor(QUALITY, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(BIAS, dtype=torch.float64, requires_grad=True)
    scorer = Scorer(quality, bias, shift)
    labels, mask = torch.tensor(LABELS, dtype=torch.float64), torch.tensor(MASK)

    def task_loss(output: Output) -> Tensor:
        assert output.logits.shape == (2, 3)
        return TASK_LOSSES[objective.task_loss](output.logits, labels, mask=mask)

    return objective(scorer, torch.tensor(GIVEN), labels, mask, task_loss), scorer, quality, bias


def perturbed(scorer: Scorer) -> list[list[int]]:
    """The second half of the doubled call: one of the two swaps of list 0, and the only one of list 1."""
    assert scorer.calls[0].shape == (4, 3)
    assert scorer.calls[0][:2].tolist() == GIVEN
    shown = scorer.calls[0][2:].tolist()
    assert shown[0] in ([1, 0, 2], [0, 2, 1])
    assert shown[1] == [0, 1, 2]
    return shown


def test_scaled_terms_written_out() -> None:
    losses, scorer, _, _ = run(PrincipledObjective())
    shown = perturbed(scorer)
    # P1, list 0: shown its own order, .2 becomes -.3 and .5 becomes 1; list 1 has settled.
    convergence = ((sigmoid(0.2) - sigmoid(-0.3)) ** 2 + (sigmoid(0.5) - sigmoid(1.0)) ** 2) / 2 / 2
    # P2, list 0: the first two exchanged, as above, or the last two: .5 becomes 0 and -.4 becomes .1.
    swapped = {
        (1, 0, 2): (sigmoid(0.2) - sigmoid(-0.3)) ** 2 + (sigmoid(0.5) - sigmoid(1.0)) ** 2,
        (0, 2, 1): (sigmoid(0.5) - sigmoid(0.0)) ** 2 + (sigmoid(-0.4) - sigmoid(0.1)) ** 2,
    }[tuple(shown[0])]
    # List 1: 0 becomes .5 and .1 becomes -.4.
    adversarial = (swapped / 2 + ((sigmoid(0.0) - sigmoid(0.5)) ** 2 + (sigmoid(0.1) - sigmoid(-0.4)) ** 2) / 2) / 2
    # Item by item: clicked at .2, not at .5 and -.4; not at 0, clicked at .1.
    task = (
        -(math.log(sigmoid(0.2)) + math.log(sigmoid(-0.5)) + math.log(sigmoid(0.4))) / 3
        - (math.log(sigmoid(0.0)) + math.log(sigmoid(0.1))) / 2
    ) / 2
    assert losses["task_loss"].item() == pytest.approx(task, rel=1e-12)
    assert losses["convergence_loss"].item() == pytest.approx(convergence, rel=1e-12)
    assert losses["adversarial_loss"].item() == pytest.approx(adversarial, rel=1e-12)
    assert losses["loss"].item() == pytest.approx(task + 20 * convergence + 5 * adversarial, rel=1e-12)


OBJECTIVES = {
    "scaled": (PrincipledObjective(), 20, 5, "weighted_mean"),
    "paper": (PrincipledObjective("paper"), 1, 1, "sum"),
    "none": (PrincipledObjective("none"), 0, 0, "weighted_mean"),
    "mean": (PrincipledObjective(reduction="mean", convergence_weight=3), 3, 5, "mean"),
    "P1 alone": (PrincipledObjective("paper", adversarial_weight=0.0), 1, 0, "sum"),
    "P2 alone": (PrincipledObjective("paper", convergence_weight=0.0, adversarial_weight=2.0), 0, 2, "sum"),
}


@pytest.mark.parametrize(("objective", "w1", "w2", "reduction"), OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_terms_calls_and_gradients(objective: PrincipledObjective, w1: float, w2: float, reduction: str) -> None:
    losses, scorer, quality, bias = run(objective)
    shown = perturbed(scorer) if w2 else GIVEN
    assert [len(orders) for orders in scorer.calls] == [4 if w2 else 2] + [2] * bool(w1)
    if w1:
        assert scorer.calls[1][torch.tensor(MASK)].tolist() == [1, 0, 2, 1, 0]

    def scalar_loss(quality: list, bias: float) -> float:
        """Both sides of each pair move with the parameters; the orders do not."""
        p1 = w1 and w1 * scalar_term(quality, bias, GIVEN, OWN, reduction)
        p2 = w2 and w2 * scalar_term(quality, bias, GIVEN, shown, reduction)
        return scalar_task_loss(quality, bias) + p1 + p2

    names = {"loss", "task_loss"} | ({"convergence_loss"} if w1 else set()) | ({"adversarial_loss"} if w2 else set())
    assert set(losses) == names
    assert losses["loss"].item() == pytest.approx(scalar_loss(QUALITY, BIAS), rel=1e-12)
    losses["loss"].backward()
    step = 1e-6

    def moved(row: int, slot: int, by: float) -> list:
        return [[x + by * ((row, slot) == (r, s)) for s, x in enumerate(xs)] for r, xs in enumerate(QUALITY)]

    expected = [
        [(scalar_loss(moved(r, s, step), BIAS) - scalar_loss(moved(r, s, -step), BIAS)) / (2 * step) for s in range(3)]
        for r in range(2)
    ]
    torch.testing.assert_close(quality.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-8)
    assert quality.grad[1, 2] == 0
    slope = (scalar_loss(QUALITY, BIAS + step) - scalar_loss(QUALITY, BIAS - step)) / (2 * step)
    assert bias.grad.item() == pytest.approx(slope, rel=1e-6)


def test_one_doubled_call_is_two_calls() -> None:
    losses, scorer, quality, bias = run(PrincipledObjective("paper", convergence_weight=0.0))
    separate = Scorer(quality, bias)
    given, swapped = (separate(orders).logits.sigmoid() for orders in scorer.calls[0].split(2))
    orders = scorer.calls[0].split(2)
    expected = consistency_loss(given, swapped, *orders, mask=torch.tensor(MASK))
    assert torch.equal(losses["adversarial_loss"], expected)


SPACES = [("probability", name) for name in TASK_LOSSES if name != "lambda_loss"] + [("logit", n) for n in TASK_LOSSES]


@pytest.mark.parametrize(("space", "task_loss"), SPACES)
def test_spaces_and_shifts(space: str, task_loss: str) -> None:
    """A shift of a whole list that depends on the order costs nothing where the loss does not see it."""
    objective = PrincipledObjective("paper", space=space, task_loss=task_loss)
    losses, scorer, _, _ = run(objective)
    for name, order in (("convergence_loss", OWN), ("adversarial_loss", perturbed(scorer))):
        expected = scalar_term(QUALITY, BIAS, GIVEN, order, "sum", space, task_loss)
        assert losses[name].item() == pytest.approx(expected, rel=1e-12)
    shifted, _, _, _ = run(objective, shift=3.0)
    for name in ("convergence_loss", "adversarial_loss"):
        unchanged = shifted[name].item() == pytest.approx(losses[name].item(), rel=1e-9)
        assert unchanged == (task_loss != "binary_log_loss")


def test_bf16_scores() -> None:
    objective = PrincipledObjective("paper")
    mask, labels = torch.tensor(MASK), torch.tensor(LABELS)
    scorer = Scorer(torch.tensor(QUALITY).bfloat16(), torch.tensor(BIAS).bfloat16())
    losses = objective(scorer, torch.tensor(GIVEN), labels, mask, lambda output: output.logits.float().mean())
    assert losses["convergence_loss"].dtype == torch.float32
    expected = scalar_term(QUALITY, BIAS, GIVEN, OWN, "sum")
    assert losses["convergence_loss"].item() == pytest.approx(expected, rel=0.05)


def shown_orders(keys: list[int] | None, lists: list[int], **at: int) -> list[list[int]]:
    """The perturbed orders of some of 40 lists of eight."""
    objective = replace(PrincipledObjective(convergence_weight=0.0), seed=at.pop("seed", 0))
    if at or keys is not None:
        objective = objective.at(step=at.get("step", 0), list_keys=None if keys is None else torch.tensor(keys))
    scorer = Scorer(torch.zeros(len(lists), 8), torch.tensor(0.0))
    positions = torch.arange(8).repeat(len(lists), 1)
    mask = torch.ones(len(lists), 8, dtype=torch.bool)
    objective(scorer, positions, torch.zeros(len(lists), 8), mask, lambda output: output.logits.sum())
    return scorer.calls[0][len(lists) :].tolist()


def test_a_list_has_its_own_perturbation() -> None:
    keys = [7919 * number for number in range(40)]
    whole = shown_orders(keys, list(range(40)), step=3)
    chosen = [31, 2, 17, 5]
    part = shown_orders([keys[number] for number in chosen], chosen, step=3)
    assert part == [whole[number] for number in chosen]
    assert shown_orders(keys, list(range(40)), step=4) != whole
    assert shown_orders(keys, list(range(40)), step=3, seed=1) != whole
    # Without keys the row is the key.
    assert shown_orders(None, list(range(40)), step=3) == shown_orders(list(range(40)), list(range(40)), step=3)


def test_at_keeps_all_else() -> None:
    objective = PrincipledObjective("paper", adversarial_weight=0.25, task_loss="softmax_loss", space="logit", seed=4)
    later = objective.at(step=12, list_keys=torch.tensor([1, 2]))
    assert (later.step, later.list_keys.tolist()) == (12, [1, 2])
    assert later.settings() == objective.settings()
    assert later == later.at(step=12, list_keys=torch.tensor([3, 4]))
    assert (objective.step, objective.list_keys) == (0, None)


def test_settings_are_plain() -> None:
    settings = PrincipledObjective("paper", seed=3).at(step=1, list_keys=torch.tensor([1])).settings()
    assert json.loads(json.dumps(settings)) == {
        "preset": "paper",
        "convergence_weight": 1.0,
        "adversarial_weight": 1.0,
        "reduction": "sum",
        "space": "probability",
        "task_loss": "binary_log_loss",
        "seed": 3,
    }
    settings.pop("preset")
    assert PrincipledObjective("none", **settings).settings() == {"preset": "none", **settings}


WRONG = {
    "preset": ({"preset": "sclaed"}, "'sclaed': expected one of scaled, paper, none; did you mean 'scaled'"),
    "negative": ({"convergence_weight": -1.0}, r"convergence_weight is -1.0: expected a finite number, at least 0"),
    "nan": ({"adversarial_weight": math.nan}, "adversarial_weight is nan"),
    "infinite": ({"adversarial_weight": math.inf}, "adversarial_weight is inf"),
    "reduction": ({"reduction": "avg"}, "reduction 'avg': expected sum, mean or weighted_mean"),
    "space": ({"space": "score"}, "space 'score': expected probability or logit"),
    "task loss": (
        {"task_loss": "binary_logloss"},
        "'binary_logloss': expected one of .*did you mean 'binary_log_loss'",
    ),
    "unresolved": ({"task_loss": "own"}, "'own': expected one of .*config.task_loss_name"),
    "lambda": ({"task_loss": "lambda_loss"}, "lambda_loss has no probabilities: .*space='logit'"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG.keys())
def test_objective_refuses(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PrincipledObjective(**options)


def test_lambda_loss_alone_needs_no_space() -> None:
    losses, scorer, _, _ = run(PrincipledObjective("none", task_loss="lambda_loss"))
    assert set(losses) == {"loss", "task_loss"}
    assert torch.equal(losses["loss"], losses["task_loss"])
    assert len(scorer.calls) == 1
