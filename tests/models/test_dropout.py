"""Dropout of every re-ranker: one set of masks for all passes of a step, new ones in the next, none in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rerank.models.auto import RERANKERS
from hf_rerank.models.layers import SharedDropout
from hf_rerank.principled import PRESETS, Pass, PrincipledObjective, Term
from hf_rerank.schema import ListBatch

RATE = 0.3
MODELS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in RERANKERS),
    ("setrank", {"num_inducing_points": 3}),
    ("pear", {"list_loss_weight": 0}),
    ("dlcm", {"num_hidden_layers": 2, "input_size": 0}),
]
every_model = pytest.mark.parametrize(("name", "options"), MODELS, ids=lambda value: str(value) if value else None)


def training_model(tiny, name: str, options: dict[str, Any], rate: float = RATE) -> Any:
    model = tiny.model(name, hidden_dropout_prob=rate, **options).train()
    assert model.config.unknown_rate == 0
    return model


def scores(model, lists: dict[str, Tensor], *calls: tuple[Tensor, Tensor | None, bool]) -> list[Tensor]:
    """The logits of each ``score(positions, lists, fresh_dropout)``, all within one step."""
    found = []

    def objective(score, position_ids, labels, mask, task_loss):
        found.extend(score(*call).logits for call in calls)
        return {"loss": found[0][mask].sum()}

    model(**lists, objective=objective)
    return found


def dropout_masks(model, lists: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks of one step, keyed by the modules that apply them."""
    context = model.embed(ListBatch(**lists))
    return {name: mask for name, mask in context.items() if name.startswith("dropout/")}


@every_model
def test_passes_of_a_step_share_dropout_masks(tiny, name, options):
    """Repeating a pass on the same order gives the same bits, for the whole batch and for some of its rows."""
    lists = tiny.lists((6, 4, 1, 5))
    given, rows = lists["position_ids"], torch.tensor([3, 0, 1])
    other = given.flip(0).where(lists["mask"] & lists["mask"].flip(0), given)
    model = training_model(tiny, name, options)
    first, between, again, some, some_again, twice = scores(
        model,
        lists,
        (given, None, False),
        (other, None, False),
        (given, None, False),
        (given[rows], rows, False),
        (given[rows], rows, False),
        (torch.cat([given, given]), None, False),
    )
    assert torch.equal(first, again)
    assert torch.equal(some, some_again)
    # With fewer rows, sums may be in another order; other masks would change the first digit.
    torch.testing.assert_close(some, first[rows], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(twice, torch.cat([first, first]), atol=1e-6, rtol=1e-6)
    assert not torch.equal(first, between) or model.config.position_input == "none"


@every_model
def test_fresh_masks_differ_from_shared_ones(tiny, name, options):
    """They are redrawn each time, also for some rows only; the step's shared masks stay."""
    lists = tiny.lists((6, 4, 2, 5))
    given, rows = lists["position_ids"], torch.tensor([3, 0, 1])
    model = training_model(tiny, name, options)
    first, fresh, other, some, again = scores(
        model,
        lists,
        (given, None, False),
        (given, None, True),
        (given, None, True),
        (given[rows], rows, True),
        (given, None, False),
    )
    assert torch.equal(first, again)
    everything = (first, fresh, other)
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert (everything[one] - everything[two])[lists["mask"]].abs().max() > 1e-3
    assert all((some - found[rows])[lists["mask"][rows]].abs().max() > 1e-3 for found in everything)


@every_model
def test_r_drop_loss_is_positive_only_with_dropout_in_training(tiny, name, options):
    """Exactly 0 without dropout and in evaluation mode, where the two passes are equal."""
    lists = tiny.lists((6, 4, 2, 5))
    found = []
    for rate, training in ((RATE, True), (RATE, False), (0.0, True)):
        model = training_model(tiny, name, options, rate).train(training)
        found.append(model(**lists, objective=PRESETS["r_drop"].at(step=0)).losses["r_drop_loss"].item())
    assert found[0] > 1e-6
    assert found[1:] == [0.0, 0.0]


@every_model
def test_two_steps_have_different_masks(tiny, name, options):
    lists = tiny.lists((6, 4, 1, 5))
    model = training_model(tiny, name, options)
    one, two = dropout_masks(model, lists), dropout_masks(model, lists)
    assert one.keys() == two.keys() != set()
    for key, mask in one.items():
        assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.7]), "a kept value is divided by 1 - rate"
        assert mask.shape[0] == 4
        assert not torch.equal(mask, two[key]), key
    steps = [model(**lists).logits for _ in range(2)]
    assert (steps[0] - steps[1])[lists["mask"]].abs().max() > 1e-3
    torch.manual_seed(5)
    first = model(**lists).logits
    torch.manual_seed(5)
    assert torch.equal(model(**lists).logits, first), "masks are drawn from torch's generator"


@every_model
def test_no_dropout_in_evaluation_mode(tiny, name, options):
    """No mask is drawn, and the scores equal those of the same weights without dropout."""
    lists = tiny.lists((6, 4, 1, 5))
    model = training_model(tiny, name, options).eval()
    assert dropout_masks(model, lists) == {}
    without = training_model(tiny, name, options, 0.0)
    assert dropout_masks(without, lists) == {}
    assert torch.equal(model(**lists).logits, without(**lists).logits)
    given = lists["position_ids"]
    first, fresh = scores(model, lists, (given, None, False), (given, None, True))
    assert torch.equal(first, fresh), "there are no masks to redraw"


@every_model
def test_every_dropout_module_has_the_right_rate_and_mean(tiny, name, options):
    """A third of the values is set to 0, and the others are scaled up so that the mean is unchanged.

    Over 400 lists, the sum of x * (mask / (1 - p) - 1) has the variance p / (1 - p) * sum x^2.
    """
    model = training_model(tiny, name, options)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    modules = {module.key: module for module in model.modules() if isinstance(module, SharedDropout)}
    assert len(modules) == sum(isinstance(module, SharedDropout) for module in model.modules()), "one key per module"
    for key, module in modules.items():

        def noting(_module, inputs, output, key=key):
            seen[key] = inputs[0].detach(), output.detach()

        module.register_forward_hook(noting)
    torch.manual_seed(0)
    model(**tiny.lists((6,) * 400))
    assert seen.keys() == modules.keys(), "every module is applied"
    for key, (before, after) in seen.items():
        there = before != 0  # zeros from ReLU prove nothing
        zeroed = (after == 0)[there]
        torch.testing.assert_close(after[there][~zeroed], before[there][~zeroed] / (1 - RATE))
        count = there.sum().item()
        assert abs(zeroed.float().mean().item() - RATE) < 4 * (RATE * (1 - RATE) / count) ** 0.5, key
        error = (RATE / (1 - RATE) * before.square().sum()).sqrt()
        assert (after - before).sum().abs() < 4 * error, key
        # Draws are independent for every slot of every list.
        shares = (after == 0).float().masked_fill(~there, RATE).mean(0)
        assert shares.min() > 0.1
        assert shares.max() < 0.5


def test_attention_weights_have_no_dropout(tiny):
    """They sum to 1 in training too: fused attention cannot share a mask, so only hidden states have dropout."""
    for name in ("prm", "setrank", "pear", "raise"):
        model = training_model(tiny, name, {"output_attentions": True})
        for weights in model(**tiny.lists((6, 4, 2, 5))).attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


@every_model
def test_passes_on_part_of_a_batch_share_the_masks_of_their_rows(tiny, name, options):
    """The same order twice, on half of the lists: the difference is 0 with shared masks only."""
    lists = tiny.lists((6, 4, 1, 5, 3, 2))
    model = training_model(tiny, name, options)
    for fraction in (1.0, 0.5):
        for dropout, least, most in (("shared", 0.0, 1e-12), ("fresh", 1e-6, 1e6)):
            objective = PrincipledObjective(
                (Pass("first"), Pass("again", dropout=dropout)),
                (Term("between", "first", "again", positions=None),),
                fraction=fraction,
            )
            between = model(**lists, objective=objective.at(step=0)).losses["between_loss"]
            assert least <= between <= most, (fraction, dropout)
