"""Contracts of training: gradients, accumulation, losses and the passes of the principled objective."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_rerank.losses import TASK_LOSSES
from hf_rerank.principled import PRESETS
from hf_rerank.principled.orders import perturb_by_key, step_keys
from hf_rerank.testing.candidate import ATOL, Candidate, assert_near, assert_same_gradients, gradients, rows_of
from hf_rerank.testing.objectives import BY_HAND, SOFT, at_one_step, compute_by_hand, rank_by_hand, spy_on


def every_parameter_gets_a_gradient_and_moves(candidate: Candidate) -> None:
    """With every preset each parameter is trained, and the row of padding stays 0."""
    for objective in (None, *map(at_one_step, PRESETS)):
        model = candidate.model().train()
        before = {weight: value.clone() for weight, value in model.named_parameters()}
        model(**candidate.lists(), objective=objective).loss.backward()
        grads = {weight: value.grad for weight, value in model.named_parameters()}
        assert [weight for weight, grad in grads.items() if grad is None or not grad.any()] == []
        torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0).step()
        still = [weight for weight, value in model.named_parameters() if torch.equal(value, before[weight])]
        assert still == []
        tables = _tables(model)
        assert tables or not candidate.config.item_vocab_sizes
        assert not any(table.weight[0].any() for table in tables), "the row of padding stays 0"


def ids_are_dropped_in_training_only(candidate: Candidate) -> None:
    """Training replaces ids by the unknown value, so that its row is trained; evaluation never does."""
    if not candidate.config.item_vocab_sizes:
        return
    model, lists = candidate.model(unknown_rate=0.9), candidate.lists()
    assert torch.equal(model(**lists).logits, model(**lists).logits)
    torch.manual_seed(0)
    model.train()(**lists).loss.backward()
    rows = [table.weight.grad[1] for table in _tables(model) if table.weight.grad is not None]
    assert any(row.any() for row in rows), "the row of the unknown value is not trained"


def a_replaced_user_value_is_unknown_in_all_parts(candidate: Candidate) -> None:
    """Where training replaces a user's value by the unknown one, every part of the model reads the unknown one."""
    tables = len(candidate.config.user_vocab_sizes)
    if not tables:
        return
    model = candidate.model(user_unknown_rates=[0.5] + [0.0] * (tables - 1))
    # The same list 32 times: each copy has the scores of the known value or those of the unknown one, row 1.
    lists = {column: values.repeat(32, *[1] * (values.dim() - 1)) for column, values in candidate.lists((6,)).items()}
    users = lists["user_categorical"]
    unknown = torch.cat([torch.ones_like(users[:, :1]), users[:, 1:]], dim=1)
    expected = [model(**{**lists, "user_categorical": given}).logits[0] for given in (users, unknown)]
    torch.manual_seed(0)
    found = model.train()(**lists).logits
    nearest = torch.stack([(found - scores).abs().amax(1) for scores in expected]).amin(0)
    assert_near(nearest.max().item(), 0.0, about="difference from both")


def accumulated_equals_whole(candidate: Candidate) -> None:
    """Gradients summed over two or four parts equal those of the batch, with every preset in float64."""
    lists = candidate.lists((6, 4, 2, 5, 6, 1, 3, 4))
    keys = torch.arange(10, 18)
    for dtype, atol, presets in ((torch.float64, 1e-12, PRESETS), (torch.float32, ATOL, ["scaled"])):
        model = candidate.model().to(dtype).train()
        for preset, parts in itertools.product(presets, (2, 4)):
            model(**lists, objective=at_one_step(preset, 8)).loss.backward()
            expected = gradients(model)
            for part in range(parts):
                share = {column: values.chunk(parts)[part] for column, values in lists.items()}
                objective = PRESETS[preset].at(step=3, list_keys=keys.chunk(parts)[part])
                (model(**share, objective=objective).loss / parts).backward()
            assert_same_gradients(gradients(model), expected, atol)


def edge_lists_are_finite(candidate: Candidate) -> None:
    """Losses are finite for one item, only padding, no clicks, all clicks.

    With every loss, and with every preset and soft order on each kind of loss: per item, per list, without
    probabilities, and the model's own.
    """
    lists = candidate.lists((1, 0, 6, 6))
    lists["labels"][2, :6], lists["labels"][3, :6] = 0.0, 1.0
    in_logits = {}
    for kind, objective in {"scaled": PRESETS["scaled"], **SOFT}.items():
        terms = tuple(replace(term, space="logit") for term in objective.terms)
        in_logits[kind] = replace(objective, terms=terms)
    for task_loss in (*TASK_LOSSES, "own"):
        model = candidate.model(task_loss=task_loss).train()
        every = task_loss in ("binary_log_loss", "softmax_loss", "lambda_loss", "own")
        objectives = (*in_logits.values(), *PRESETS.values()) if every else (in_logits["scaled"], PRESETS["scaled"])
        for objective in objectives:
            _check_edge_lists(model, lists, objective.for_task_loss(model.config.task_loss_name))


def _check_edge_lists(model: Any, lists: dict[str, torch.Tensor], objective: Any) -> None:
    for rows in (slice(0, 4), *(slice(row, row + 1) for row in range(4))):
        share = {column: values[rows] for column, values in lists.items()}
        output = model(**share, objective=objective.at(step=0))
        output.loss.backward()
        assert output.logits.isfinite().all()
        assert output.loss.isfinite()
        assert all(value.isfinite() for value in output.losses.values())
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())
        if not share["mask"].any():
            assert output.loss == 0
        for scores, mask in zip(output.logits, share["mask"], strict=True):
            assert not mask.any() or mask.all() or scores[~mask].max() < scores[mask].min()


def two_encoder_calls_equal_three_passes(candidate: Candidate) -> None:
    """The objective of two encoder calls equals that of three passes, each in a separate forward."""
    for preset in BY_HAND:
        for fraction in (1.0, 0.5):
            _check_encoder_calls(candidate, preset, fraction)


def _check_encoder_calls(candidate: Candidate, preset: str, fraction: float) -> None:
    """All six lists, or three of them, also get the orders 2 and 3: each is scored in a separate forward."""
    model, lists = candidate.model(**candidate.items_alone), candidate.lists((6, 4, 1, 5, 0, 3))
    mask, given = lists["mask"], lists["position_ids"]
    calls: list[tuple[torch.Tensor, Any]] = []
    objective = at_one_step(replace(PRESETS[preset], fraction=fraction), 6)
    output = model(**lists, objective=spy_on(objective, calls))
    (first, first_rows), (second, second_rows) = calls
    later = 6 if fraction == 1 else 3
    if fraction == 1:
        assert first_rows is None
        drawn = torch.arange(6)
    else:
        drawn = second_rows[:3]
        assert len(set(drawn.tolist())) == 3
        assert mask[drawn].any()
    if preset == "reference":
        assert [len(first), len(second)] == [6, 2 * later], "both later orders are scored in one call"
        own, disturbed = second.chunk(2)
        before = own
        if fraction < 1:
            assert first_rows is None
            assert second_rows.tolist() == drawn.tolist() * 2
    else:
        assert [len(first), len(second)] == [6 + later, later], (
            "the given and the perturbed order are scored in one call"
        )
        own, disturbed = second, first[6:]
        before = given[drawn]
        if fraction < 1:
            assert first_rows.tolist() == [*range(6), *drawn.tolist()]
            assert second_rows.tolist() == drawn.tolist()
    assert torch.equal(first[:6], given)
    keys = step_keys(torch.arange(10, 16), seed=0, step=3)[drawn]
    assert torch.equal(disturbed, perturb_by_key(before, mask[drawn], keys)), "each list by its own key"

    passes = [model(**lists).logits]
    passes += [model(**rows_of(lists, drawn, order)).logits for order in (own, disturbed)]
    torch.testing.assert_close(output.logits, passes[0], atol=ATOL, rtol=0)
    for row, number in enumerate(drawn):
        real = mask[number].numpy()
        assert (own[row].numpy()[real] == rank_by_hand(passes[0][number].detach().numpy()[real])).all()
        moved = (before[row] - disturbed[row]).abs()
        assert moved.tolist().count(1) == moved.sum() == (2 if real.sum() > 1 else 0)
    shown = (given[drawn], own, disturbed)
    expected = compute_by_hand(passes, shown, lists["labels"], mask, drawn, BY_HAND[preset])
    assert expected.keys() == {"loss", *output.losses}
    for term, value in {**output.losses, "loss": output.loss}.items():
        assert_near(value.item(), expected[term].item(), about=term)
    output.loss.backward()
    found = gradients(model)
    expected["loss"].backward()
    assert_same_gradients(found, gradients(model), atol=1e-5)


def presets_embed_once_and_score_at_most_twice(candidate: Candidate) -> None:
    """Each preset embeds once, and scores all orders in at most two calls."""
    model, lists = candidate.model().train(), candidate.lists()
    calls: list[str] = []
    for step in ("embed", "score"):
        real = getattr(model, step)
        setattr(model, step, _record_calls(calls, step, real))
    for preset in PRESETS:
        calls.clear()
        model(**lists, objective=at_one_step(preset))
        assert calls == ["embed", *["score"] * (1 if preset == "none" else 2)], preset


def labels_at_padding_never_matter(candidate: Candidate) -> None:
    """Labels and weights at padding change neither loss nor gradients."""
    model, lists = candidate.model(), candidate.lists()
    reference = model(**lists, weights=lists["mask"].float(), objective=at_one_step())
    reference.loss.backward()
    expected = gradients(model)
    for filler in (0.0, 1.0, torch.nan, torch.inf):
        padding = ~lists["mask"]
        labels = lists["labels"].masked_fill(padding, filler)
        weights = lists["mask"].float().masked_fill(padding, filler)
        output = model(**{**lists, "labels": labels}, weights=weights, objective=at_one_step())
        output.loss.backward()
        assert torch.equal(output.loss, reference.loss)
        assert_same_gradients(gradients(model), expected)


def weights_multiply_the_items_terms(candidate: Candidate) -> None:
    """The default loss is the mean over a list's items of weight times log-loss, then over lists."""
    model, lists = candidate.model(**candidate.items_alone), candidate.lists()
    weights = torch.rand(lists["mask"].shape, generator=torch.Generator().manual_seed(5)) * 3
    output = model(**lists, weights=weights)
    logits, labels, factors = (part.detach().double().numpy() for part in (output.logits, lists["labels"], weights))
    per_list = []
    for row, real in enumerate(lists["mask"].numpy()):
        chance, clicked = 1 / (1 + np.exp(-logits[row, real])), labels[row, real]
        log_loss = -(clicked * np.log(chance) + (1 - clicked) * np.log(1 - chance))
        per_list.append(np.mean(factors[row, real] * log_loss))
    assert_near(output.loss.item(), float(np.mean(per_list)))
    losses = model(**lists, weights=weights, objective=at_one_step()).losses
    assert_near(losses["task_loss"].item(), float(np.mean(per_list)))
    assert abs(output.loss.item() - model(**lists).loss.item()) > 1e-3


def _record_calls(calls: list[str], step: str, function: Any) -> Any:
    def noting(*args: Any) -> Any:
        calls.append(step)
        return function(*args)

    return noting


def _tables(model: Any) -> list[nn.Embedding]:
    """The tables of categorical features, whose row 0 is padding."""
    return [module for module in model.modules() if isinstance(module, nn.Embedding) and module.padding_idx == 0]
