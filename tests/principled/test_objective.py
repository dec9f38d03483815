"""The objective: passes and terms on one ragged batch, against scalar arithmetic in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from objective_by_hand import (
    AGAIN,
    EFFECT,
    GIVEN,
    LISTS,
    MASK,
    NOISE,
    OWN,
    POSITIONS,
    QUALITY,
    Numbers,
    Scorer,
    base_of,
    drawn_lists,
    expected,
    perturbed_orders,
    plain,
    ranking,
    run,
    sigmoid,
    values_of,
)
from objective_cases import EVERY_CASE, REFERENCE, SCALED, SWAPPED_OWN, with_soft, with_terms

from hf_rerank.errors import InputError
from hf_rerank.losses import LOSSES_WITHOUT_PROBABILITIES, TASK_LOSSES
from hf_rerank.principled import PRESETS, PrincipledObjective, Soft


def test_the_orders_of_the_batch_are_correct_and_distinct() -> None:
    """The orders follow from the scores, without ties; perturbed orders differ from all of them."""
    for orders, ranked in ((GIVEN, OWN), (OWN, AGAIN)):
        scores = [[q + EFFECT[p] for q, p in zip(*row, strict=True)] for row in zip(QUALITY, orders, strict=True)]
        assert [ranking(row) for row in scores] == ranked
        assert all(len({round(x, 9) for x in row}) == len(row) for row in scores)
    assert GIVEN != OWN != AGAIN
    for objective in (SCALED, SWAPPED_OWN):
        assert perturbed_orders(objective)["third"] not in (GIVEN, OWN, AGAIN)


@EVERY_CASE
def test_loss_terms_match_plain_arithmetic(objective: PrincipledObjective) -> None:
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
def test_gradients_match_central_differences(objective: PrincipledObjective) -> None:
    """Central differences of the plain arithmetic; hard orders and the constant side of a term are kept fixed."""
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


def test_scaled_preset_matches_written_out_arithmetic() -> None:
    """The first term and the task loss of the default preset, number by number."""
    losses, _ = run(SCALED)
    # Lists 0 and 1 change: .4 becomes -.4, .1 becomes .8, -.9 becomes -.8 (moved by 1, 1, 2); -.1 becomes .7 and .3
    # becomes -.5 (moved by 1 each); 1.3 and 1.2 stay. The other two lists do not change, but count.
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


def test_reference_preset_matches_written_out_arithmetic() -> None:
    """Raw scores, weighted by the distance between the two resulting rankings, over the number of items."""
    losses, _ = run(REFERENCE)
    # OWN to AGAIN: in list 0 the items of .4 (now -.4) and .1 (now .8) are swapped, in list 1 those of -.1 (now .7)
    # and .3 (now -.5).
    written_out = ((0.8**2 + 0.7**2) / 4 + (0.8**2 + 0.8**2) / 3) / 4
    assert losses["convergence_loss"].item() == pytest.approx(written_out, rel=1e-12)
    names = ("loss", "task_loss", "further_task_loss", "convergence_loss", "adversarial_loss", "cross_loss")
    assert losses.keys() == set(names)


def test_r_drop_preset_matches_written_out_arithmetic() -> None:
    """The same order twice: probabilities differ only by the effect of fresh masks; mean over all items."""
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
def test_shifting_a_list_changes_terms_only_where_space_and_loss_are_sensitive(space: str, task_loss: str) -> None:
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


@EVERY_CASE
def test_at_most_two_encoder_calls(objective: PrincipledObjective) -> None:
    """Passes that depend on no score join the first call, the others share one; fresh masks need their own call."""
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
