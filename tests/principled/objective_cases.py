"""Objectives of every kind, for tests that apply to all of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from hf_rerank.principled import PRESETS, Pass, Perturbed, PrincipledObjective, Soft, Term, preset_objective


def with_terms(name: str, **fields: Any) -> PrincipledObjective:
    """The preset with these fields in all its terms."""
    return replace(PRESETS[name], terms=tuple(replace(term, **fields) for term in PRESETS[name].terms))


def with_soft(name: str, soft: Soft, **fields: Any) -> PrincipledObjective:
    """The preset with the soft order in place of each of the model's own orders."""

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
