"""Presets and controls: their settings, written out; their options; and the effect of a task loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hf_rerank.errors import InputError
from hf_rerank.losses import LOSSES_WITHOUT_PROBABILITIES, TASK_LOSSES
from hf_rerank.principled import DEFAULT_PRESET, PRESETS, Pass, Perturbed, PrincipledObjective, Term, preset_objective

EVERY = ("first", "second", "third")
SCALED, REFERENCE = PRESETS["scaled"], PRESETS["reference"]

# Settings of each preset: w1, w2 and the weight of the pair (2, 3); space, positions, reduction; passes with the
# task loss; the perturbed order; the task loss.
PRESET_TABLE: dict[str, tuple[Any, ...]] = {
    "scaled": ((2, 0.5, None), "probability", "input", "weighted_mean", ("first",), "given", None),
    "augmented": ((6, 1.5, None), "probability", "input", "weighted_mean", EVERY, "given", None),
    "paper": ((1, 1, None), "probability", "input", "sum", ("first",), "given", None),
    "reference": ((1, 1, 1), "output", "output", "mean", EVERY, "own", "own"),
}


@pytest.mark.parametrize("name", PRESET_TABLE)
def test_presets_have_the_documented_settings(name: str) -> None:
    weights, space, positions, reduction, task_loss_on, perturbs, task_loss = PRESET_TABLE[name]
    objective = PRESETS[name]
    assert objective.passes == (
        Pass("first", "given", "shared"),
        Pass("second", "own", "shared"),
        Pass("third", Perturbed("adjacent_swap", of=perturbs, strength=1), "shared"),
    )
    pairs = (("convergence", "first", "second"), ("adversarial", "first", "third"), ("cross", "second", "third"))
    assert objective.terms == tuple(
        Term(*pair, weight, space, positions, reduction, None)
        for pair, weight in zip(pairs, weights, strict=True)
        if weight is not None
    )
    assert (objective.task_loss_on, objective.task_loss) == (task_loss_on, task_loss)
    assert (objective.fraction, objective.warmup, objective.seed) == (1.0, 0.0, 0)


def test_control_presets_have_the_documented_settings() -> None:
    """R-Drop: the given order twice, the second time with fresh masks. Augmentation: `scaled` without terms."""
    first, *others = PRESETS["scaled"].passes
    assert DEFAULT_PRESET == "augmented"
    assert list(PRESETS) == ["none", *PRESET_TABLE, "r_drop", "augmentation"]
    assert PRESETS["none"] == PrincipledObjective((first,))
    assert PRESETS["r_drop"] == PrincipledObjective(
        (first, Pass("again", "given", dropout="fresh")),
        (Term("r_drop", "first", "again", 20.0, "probability", None, "mean", None),),
    )
    assert PRESETS["augmentation"] == PrincipledObjective((first, *others), (), EVERY)
    assert preset_objective("scaled", adversarial_weight=0) == PrincipledObjective(
        (first, others[0]), SCALED.terms[:1]
    )
    assert preset_objective("scaled", convergence_weight=0) == PrincipledObjective(
        (first, others[1]), SCALED.terms[1:]
    )


PRESET_OPTIONS: dict[str, tuple[PrincipledObjective, PrincipledObjective]] = {
    "no options": (preset_objective("paper"), PRESETS["paper"]),
    "weights": (
        preset_objective("reference", convergence_weight=2, cross_weight=0.5),
        replace(
            REFERENCE,
            terms=tuple(
                replace(term, weight=weight) for term, weight in zip(REFERENCE.terms, (2, 1.0, 0.5), strict=True)
            ),
        ),
    ),
    "no term between the later passes": (
        preset_objective("reference", cross_weight=0),
        replace(REFERENCE, terms=REFERENCE.terms[:2]),
    ),
    "a pass, its terms and its task loss": (
        preset_objective("reference", adversarial_weight=0, cross_weight=3),
        replace(REFERENCE, passes=REFERENCE.passes[:2], terms=REFERENCE.terms[:1], task_loss_on=EVERY[:2]),
    ),
    "no weights": (
        preset_objective("scaled", convergence_weight=0, adversarial_weight=0),
        PRESETS["none"],
    ),
    "numbers": (
        preset_objective("r_drop", r_drop_weight=4, fraction=0.25, warmup=0.1, seed=7),
        replace(
            PRESETS["r_drop"],
            terms=(replace(PRESETS["r_drop"].terms[0], weight=4),),
            fraction=0.25,
            warmup=0.1,
            seed=7,
        ),
    ),
    "perturbation": (
        preset_objective("reference", perturbation="score_noise"),
        replace(
            REFERENCE, passes=(*REFERENCE.passes[:2], Pass("third", Perturbed("score_noise", of="own", strength=1)))
        ),
    ),
}


@pytest.mark.parametrize(("found", "written_out"), PRESET_OPTIONS.values(), ids=PRESET_OPTIONS.keys())
def test_preset_options_change_the_objective(found: PrincipledObjective, written_out: PrincipledObjective) -> None:
    assert found == written_out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sclaed", {}, "principled is 'sclaed': expected one of none, scaled, .*did you mean 'scaled'"),
        ("scaled", {"convergance_weight": 1}, "no option 'convergance_weight'.*did you mean 'convergence_weight'"),
        (
            "scaled",
            {"cross_weight": 1},
            "principled='scaled' has no option 'cross_weight': expected convergence_weight",
        ),
        ("scaled", {"convergence_weight": "10"}, "convergence' is '10': expected a number of at least 0"),
        ("scaled", {"convergence_weight": None}, "convergence' is None: expected a number of at least 0"),
        ("none", {"convergence_weight": 1}, "principled='none' has no option 'convergence_weight'"),
        ("scaled", {"perturbation": "adjacent_swp"}, "perturbation 'adjacent_swp'.*did you mean 'adjacent_swap'"),
        ("r_drop", {"perturbation": "random_swap"}, "principled='r_drop' has no pass that is perturbed"),
        (
            "scaled",
            {"perturbation": "random_swap", "adversarial_weight": 0},
            "perturbation='random_swap': principled='scaled' has no pass that is perturbed",
        ),
        ("none", {"fraction": 0.5}, "fraction and warmup change nothing with principled='none'"),
        ("none", {"warmup": 0.5}, "fraction and warmup change nothing with principled='none'"),
        (
            "scaled",
            {"warmup": 0.5, "adversarial_weight": 0, "convergence_weight": 0},
            "fraction and warmup change nothing",
        ),
    ],
)
def test_wrong_preset_options_are_rejected(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        preset_objective(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_for_task_loss_compares_logits_if_there_are_no_probabilities(name: str) -> None:
    """Nothing else changes."""
    for task_loss in TASK_LOSSES:
        found = PRESETS[name].for_task_loss(task_loss)
        without = task_loss in LOSSES_WITHOUT_PROBABILITIES
        terms = [
            replace(term, space="logit" if without and term.space == "probability" else term.space)
            for term in PRESETS[name].terms
        ]
        assert found == replace(PRESETS[name], task_loss=task_loss, terms=tuple(terms))
    with pytest.raises(InputError, match=r"task_loss of the objective is 'log_loss'.*did you mean 'binary_log_loss'"):
        PRESETS[name].for_task_loss("log_loss")
