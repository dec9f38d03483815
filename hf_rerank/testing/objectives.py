"""Objectives that the checks train with, and an independent computation of the presets, list by list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hf_rerank.principled import PRESETS, Perturbed, PrincipledObjective, Soft

# Written out from the table of presets in the documentation: weights of the pairs (1, 2), (1, 3) and (2, 3).
BY_HAND: dict[str, dict[str, Any]] = {
    "scaled": {"weights": (2, 0.5, 0), "squashed": True, "output": False, "over": "moves", "every": False},
    "augmented": {"weights": (6, 1.5, 0), "squashed": True, "output": False, "over": "moves", "every": True},
    "paper": {"weights": (1, 1, 0), "squashed": True, "output": False, "over": "one", "every": False},
    "reference": {"weights": (1, 1, 1), "squashed": False, "output": True, "over": "items", "every": True},
    "augmentation": {"weights": (0, 0, 0), "every": True},
}


def use_soft_order(name: str, soft: Soft) -> PrincipledObjective:
    """The preset with this soft order in place of the model's own."""

    def replace_own(order: Any) -> Any:
        if isinstance(order, Perturbed):
            return replace(order, of=replace_own(order.of))
        return soft if order == "own" else order

    passes = tuple(replace(entry, order=replace_own(entry.order)) for entry in PRESETS[name].passes)
    return replace(PRESETS[name], passes=passes)


SOFT = {
    "softsort": use_soft_order("scaled", Soft()),
    "neuralsort": use_soft_order("scaled", Soft("neuralsort", temperature=0.5)),
    "sinkhorn": use_soft_order("reference", Soft(sinkhorn=3)),
    "straight_through": use_soft_order("scaled", Soft("neuralsort", straight_through=True)),
    "everything": use_soft_order("reference", Soft("neuralsort", sinkhorn=2, straight_through=True)),
}


def at_one_step(objective: str | PrincipledObjective = "scaled", lists: int = 4) -> Callable[..., Any]:
    """A preset, or another objective, at one step."""
    objective = PRESETS[objective] if isinstance(objective, str) else objective
    return objective.at(step=3, list_keys=torch.arange(10, 10 + lists))


def spy_on(objective: Callable[..., Any], calls: list[tuple[torch.Tensor, Any]]) -> Any:
    """Wraps the objective to record the orders and rows of each encoder call."""

    def noting(score, *rest):
        def scored(orders, lists=None, **options):
            calls.append((orders, lists))
            return score(orders, lists, **options)

        return objective(scored, *rest)

    return noting


def rank_by_hand(scores: np.ndarray) -> np.ndarray:
    """The position of each slot, best first, ties in slot order."""
    order = sorted(range(len(scores)), key=lambda slot: (-scores[slot], slot))
    return np.argsort(order)


def log_loss(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> Any:
    """Mean over each list's items, then over the lists that have any."""
    per_list = []
    for row in mask.any(1).nonzero()[:, 0]:
        chance, clicked = 1 / (1 + (-logits[row][mask[row]]).exp()), labels[row][mask[row]]
        per_list.append(-(clicked * chance.log() + (1 - clicked) * (1 - chance).log()).mean())
    return sum(per_list) / len(per_list)


def compute_by_hand(
    passes: Any, shown: Any, labels: torch.Tensor, mask: torch.Tensor, drawn: torch.Tensor, preset: dict[str, Any]
) -> dict[str, Any]:
    """The objective from the logits of three separate passes, list by list, under binary log-loss.

    Args:
        passes: Logits of all lists in the given order, then those of the lists ``drawn`` in the orders 2 and 3.
        shown: The three orders of the lists drawn.
        labels: Labels of all lists.
        mask: Mask of all lists.
        drawn: Rows of the lists drawn.
        preset: A row of ``BY_HAND``.
    """
    terms = {"task_loss": log_loss(passes[0], labels, mask)}
    loss = terms["task_loss"]
    if preset["every"]:
        terms["further_task_loss"] = sum(log_loss(logits, labels[drawn], mask[drawn]) for logits in passes[1:])
        loss = loss + terms["further_task_loss"]
    compared = [passes[0][drawn], *passes[1:]]
    names = ("convergence_loss", "adversarial_loss", "cross_loss")
    for name, (a, b), weight in zip(names, ((0, 1), (0, 2), (1, 2)), preset["weights"], strict=True):
        if not weight:
            continue
        values = []
        for row, real in enumerate(mask[drawn]):
            if not real.any():
                continue
            one, other = compared[a][row][real], compared[b][row][real]
            if preset["output"]:
                places, other_places = (torch.tensor(rank_by_hand(scores.detach().numpy())) for scores in (one, other))
            else:
                places, other_places = shown[a][row][real], shown[b][row][real]
            moved = (places - other_places).abs()
            if preset["squashed"]:
                one, other = 1 / (1 + (-one).exp()), 1 / (1 + (-other).exp())
            over = {"one": 1, "items": len(one), "moves": max(moved.sum(), 1)}[preset["over"]]
            values.append((moved * (one - other) ** 2).sum() / over)
        terms[name] = sum(values) / len(values)
        loss = loss + weight * terms[name]
    return {**terms, "loss": loss}
