"""Contracts of dtypes and of compilation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hf_rerank.principled import PRESETS
from hf_rerank.testing.candidate import Candidate, gradients, tolerances
from hf_rerank.testing.objectives import SOFT, at_one_step


def bf16_is_close(candidate: Candidate) -> None:
    """In bf16, cast or converted, scores stay close, and losses are float32."""
    lists = candidate.lists((6, 4, 1, 5, 0))
    model, narrow = candidate.model().train(), candidate.model().train().to(torch.bfloat16)
    expected = model(**lists, objective=at_one_step("scaled", 5))
    spread = expected.logits[lists["mask"]].std()

    with torch.autocast("cpu", torch.bfloat16):
        cast = model(**lists, objective=at_one_step("scaled", 5))
    converted = narrow(**lists, objective=at_one_step("scaled", 5))
    for output, trained in ((cast, model), (converted, narrow)):
        assert output.logits.dtype == torch.bfloat16
        assert output.loss.dtype == torch.float32
        difference = (output.logits.float() - expected.logits)[lists["mask"]].abs()
        assert 0 < difference.max() < 0.05 * max(1.0, spread)
        assert abs(output.losses["task_loss"] - expected.losses["task_loss"]) < 0.02
        assert not (output.logits[:, None, :] >= output.logits[:, :, None])[
            lists["mask"][:, :, None] & ~lists["mask"][:, None, :]
        ].any()
        trained.zero_grad()
        output.loss.backward()
        assert all(gradient.isfinite().all() for gradient in gradients(trained).values())


def bf16_soft_orders_are_close(candidate: Candidate) -> None:
    """Soft orders are computed in float32, whatever the dtype of the scores."""
    for kind in SOFT:
        _check_bf16(candidate, kind)


def _check_bf16(candidate: Candidate, kind: str) -> None:
    lists = candidate.lists((6, 4, 1, 5, 0))
    model, narrow = candidate.model(), candidate.model().to(torch.bfloat16)
    expected = model(**lists, objective=at_one_step(SOFT[kind], 5)).losses["task_loss"]
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(**lists, objective=at_one_step(SOFT[kind], 5))
    for output, trained in ((cast, model), (narrow(**lists, objective=at_one_step(SOFT[kind], 5)), narrow)):
        assert output.logits.dtype == torch.bfloat16
        assert output.loss.dtype == torch.float32
        assert abs(output.losses["task_loss"] - expected) < 0.02
        output.loss.backward()
        assert all(gradient.isfinite().all() for gradient in gradients(trained).values())


def bf16_without_tables(candidate: Candidate) -> None:
    """A bf16 model without embedding tables accepts dense features in float32."""
    if not candidate.config.num_item_dense and not candidate.config.item_vector_dim:
        return
    none: dict[str, Any] = {
        "item_vocab_sizes": [],
        "user_vocab_sizes": [],
        "history_vocab_sizes": [],
        "history_shared_tables": [],
    }
    model = candidate.model(**none).to(torch.bfloat16)
    lists = {column: values for column, values in candidate.lists().items() if "categorical" not in column}
    logits = model(torch.zeros(4, 6, 0, dtype=torch.int64), **lists).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def compiled_equals_eager(candidate: Candidate) -> None:
    """A traced model gives the same scores and loss, with the objective's passes inside the compiled call."""
    _check_compiled(candidate, "scaled")


def compiled_equals_eager_with_other_objectives(candidate: Candidate) -> None:
    """A traced model gives the same scores and loss, with the other kinds of passes too."""
    _check_compiled(candidate, "reference", "r_drop", "soft")


def _check_compiled(candidate: Candidate, *kinds: str) -> None:
    model, lists = candidate.model(), candidate.lists()
    known = {**PRESETS, "soft": replace(SOFT["softsort"], fraction=0.5)}
    compiled = torch.compile(model, backend="aot_eager")
    for kind in kinds:
        expected, found = (call(**lists, objective=at_one_step(known[kind])) for call in (model, compiled))
        torch.testing.assert_close(found.logits, expected.logits, **tolerances())
        torch.testing.assert_close(found.loss, expected.loss, **tolerances())


def generated_code_equals_eager(candidate: Candidate) -> None:
    """A model compiled to machine code gives the same scores."""
    lists = {column: values for column, values in candidate.lists().items() if column != "labels"}
    model = candidate.model()
    with torch.no_grad():
        found = torch.compile(model)(**lists).logits
        torch.testing.assert_close(found, model(**lists).logits, **tolerances())
