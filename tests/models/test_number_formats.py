"""No tensor in a training step or in measuring obedience is float64, which Apple's GPUs do not support."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_rerank.losses import TASK_LOSSES
from hf_rerank.models.auto import RERANKERS
from hf_rerank.principled import PRESETS, Soft, obedience, perturb
from hf_rerank.principled.orders import PERTURBATIONS


class NoFloat64(TorchDispatchMode):
    """Fails if an operation, forward or backward, returns a float64 tensor."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor):
                assert value.dtype != torch.float64, f"{function} gives float64"
        return output


def test_the_float64_check_detects_float64() -> None:
    """In a single operation, in an intermediate conversion, and in the backward pass."""
    weight = torch.ones(2, requires_grad=True)
    with NoFloat64():
        (weight * 2).sum().backward()
        with pytest.raises(AssertionError, match="gives float64"):
            torch.zeros(2, dtype=torch.float64)
        with pytest.raises(AssertionError, match="gives float64"):
            weight.double().sum().float()
    wide = (weight.double() * 2).sum().float()
    with NoFloat64(), pytest.raises(AssertionError, match="gives float64"):
        wide.backward()


def objectives_to_test(task_loss: str) -> dict[str, Any]:
    """Every preset, and options that no preset uses, for this task loss."""
    scaled = PRESETS["scaled"]
    soft = {
        relaxation: replace(
            scaled, passes=(scaled.passes[0], replace(scaled.passes[1], order=order), scaled.passes[2])
        )
        for relaxation, order in {
            "softsort": Soft(sinkhorn=2),
            "neuralsort": Soft("neuralsort", straight_through=True),
        }.items()
    }
    part = {"part": replace(PRESETS["reference"], fraction=0.5, warmup=0.5)}
    return {name: objective.for_task_loss(task_loss) for name, objective in {**PRESETS, **soft, **part}.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", RERANKERS)
def test_a_training_step_has_no_float64(tiny, name) -> None:
    """With dropout and dropped ids; forward and backward, with and without list keys."""
    lists = tiny.lists((6, 4, 1, 5, 0))
    model = tiny.model(name, hidden_dropout_prob=0.3, unknown_rate=0.1).train()
    factors = {"convergence": torch.tensor(0.5)}
    with NoFloat64():
        for objective in objectives_to_test(model.config.task_loss_name).values():
            chosen = factors if any(term.name in factors for term in objective.terms) else None
            for keys in (None, torch.arange(5)):
                model(**lists, objective=objective.at(step=1, steps=4, list_keys=keys, factors=chosen)).loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("task_loss", [*TASK_LOSSES, "own"])
def test_no_task_loss_uses_float64(tiny, task_loss) -> None:
    lists = tiny.lists((6, 4, 1, 5, 0))
    for name in ("prm", "setrank", "pear"):
        model = tiny.model(name, task_loss=task_loss).train()
        with NoFloat64():
            for objective in objectives_to_test(model.config.task_loss_name).values():
                losses = model(**lists, weights=lists["mask"].float(), objective=objective.at(step=1, steps=4))
                losses.loss.backward()


def test_obedience_and_perturbations_use_no_float64(tiny) -> None:
    """Measures per list, as evaluation sums them; means over lists are computed on the CPU."""
    model, lists = tiny.model("prm"), tiny.lists((6, 4, 1, 5, 0))
    with NoFloat64():
        for swaps in ("all", "one"):
            measured = obedience(
                lambda order: model(**{**lists, "position_ids": order}).logits,
                lists["position_ids"],
                lists["mask"],
                k=(1, 3),
                swaps=swaps,
                list_keys=torch.arange(5),
                reduction="none",
            )
            assert {values.dtype for values in measured.values()} == {torch.float32}
        for kind in PERTURBATIONS:
            perturb(lists["position_ids"], lists["mask"], kind=kind, strength=2)
        model.rank(**lists)
