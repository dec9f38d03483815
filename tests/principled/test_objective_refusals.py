"""Wrong objectives, each rejected with a one-line error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from objective_cases import SCALED, two_passes

from hf_rerank.errors import InputError
from hf_rerank.principled import Pass, Perturbed, PrincipledObjective, Soft, Term

FIRST, OTHER = Pass("first"), Pass("other", "own")


def objective_of(*passes: Pass, terms: tuple[Term, ...] = (), **fields: Any) -> Callable[[], PrincipledObjective]:
    return lambda: PrincipledObjective(passes, terms, **fields)


def objective_with_term(**fields: Any) -> Callable[[], PrincipledObjective]:
    return lambda: two_passes("own", term=fields)


def objective_with_order(make: Callable[[], Any]) -> Callable[[], PrincipledObjective]:
    return lambda: two_passes(make())


def objective_with(**fields: Any) -> Callable[[], PrincipledObjective]:
    return lambda: replace(SCALED, **fields)


BOTH = ("first", "other")
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two passes with one name": (
        objective_of(FIRST, OTHER, OTHER),
        "two passes are named 'other': give each its own name",
    ),
    "two terms with one name": (
        objective_of(FIRST, OTHER, terms=(Term("term", *BOTH), Term("term", "other", "first"))),
        "two terms are named 'term'",
    ),
    "unknown pass in a term": (
        objective_of(FIRST, OTHER, terms=(Term("term", "first", "othr"),), task_loss_on=BOTH),
        "there is no pass 'othr': the passes are first, other; did you mean 'other'",
    ),
    "unknown pass with a task loss": (
        objective_of(FIRST, OTHER, task_loss_on=("first", "second")),
        "there is no pass 'second'",
    ),
    "unused pass": (
        objective_of(FIRST, OTHER),
        "the pass 'other' is in no term and not in task_loss_on: leave it out",
    ),
    "term of a pass with itself": (
        lambda: Term("term", "first", "first"),
        "the term 'term' compares 'first' with itself: name two passes",
    ),
    "no pass": (objective_of(), r"the first pass must score the given order .*Pass\('first', 'given'\)"),
    "first pass with another order": (objective_of(OTHER), "the first pass must score the given order"),
    "first pass with fresh masks": (
        objective_of(Pass("first", dropout="fresh")),
        "the first pass must .* with shared dropout",
    ),
    "no task loss": (
        objective_of(FIRST, OTHER, terms=(Term("term", *BOTH),), task_loss_on=()),
        "task_loss_on is empty",
    ),
    "order": (
        objective_with_order(lambda: "onw"),
        r"order of a pass is 'onw': .*'own', Perturbed\(...\) or Soft.*did you mean 'own'",
    ),
    "order as text": (objective_with_order(lambda: "softsort"), "order of a pass is 'softsort'"),
    "perturbed unknown order": (objective_with_order(lambda: Perturbed(of="intial")), "order of a pass is 'intial'"),
    "dropout": (lambda: Pass("x", dropout="frsh"), "dropout of a pass is 'frsh': .*did you mean 'fresh'"),
    "space": (
        objective_with_term(space="probabilty"),
        "space of the term 'term' is 'probabilty'.*did you mean 'probability'",
    ),
    "positions": (
        objective_with_term(positions="inputs"),
        "positions of the term 'term' is 'inputs'.*did you mean 'input'",
    ),
    "reduction": (
        objective_with_term(reduction="avg"),
        "reduction of the term 'term' is 'avg': expected one of 'sum', 'mean', ",
    ),
    "stop_gradient": (
        objective_with_term(stop_gradient="frist"),
        "stop_gradient of the term 'term' is 'frist': .*did you mean 'first'",
    ),
    "negative weight": (
        objective_with_term(weight=-1.0),
        "weight of the term 'term' is -1.0: expected a number of at least 0",
    ),
    "nan weight": (objective_with_term(weight=math.nan), "weight of the term 'term' is nan"),
    "infinite weight": (objective_with_term(weight=math.inf), "weight of the term 'term' is inf"),
    "weight as text": (objective_with_term(weight="10"), "weight of the term 'term' is '10'"),
    "boolean weight": (objective_with_term(weight=True), "weight of the term 'term' is True"),
    "task loss": (objective_with(task_loss="binary_logloss"), "'binary_logloss'.*did you mean 'binary_log_loss'"),
    "lambda_loss without probabilities": (
        objective_with(task_loss="lambda_loss"),
        "lambda_loss has no probabilities: .*space='logit'",
    ),
    "no lists": (objective_with(fraction=0.0), "fraction is 0.0: expected a number above 0, at most 1"),
    "fraction above 1": (objective_with(fraction=1.01), "fraction is 1.01"),
    "nan fraction": (objective_with(fraction=math.nan), "fraction is nan"),
    "fraction as text": (objective_with(fraction="0.5"), "fraction is '0.5'"),
    "warmup below 0": (objective_with(warmup=-0.1), "warmup is -0.1: expected a fraction of the steps, from 0 to 1"),
    "warmup above 1": (objective_with(warmup=1.5), "warmup is 1.5"),
    "nan warmup": (objective_with(warmup=math.nan), "warmup is nan"),
    "fractional seed": (objective_with(seed=0.5), "seed is 0.5: expected a whole number"),
    "perturbation": (lambda: Perturbed("adjacent_swp"), "perturbation 'adjacent_swp'.*did you mean 'adjacent_swap'"),
    "fractional strength": (
        lambda: Perturbed(strength=1.5),
        "adjacent_swap is 1.5: expected a whole number from 1 to 1000",
    ),
    "relaxation": (lambda: Soft("softsrt"), "relaxation 'softsrt': .*did you mean 'softsort'"),
    "sinkhorn below 0": (lambda: Soft("neuralsort", sinkhorn=-1), "sinkhorn is -1: .*at least 0"),
    "zero temperature": (lambda: Soft(temperature=0.0), "temperature is 0.0: expected a number of at least 1e-06"),
}
REFUSED |= {
    f"a term named {name}": (lambda name=name: Term(name, *BOTH), f"a term is named '{name}', as the task losses are")
    for name in ("task", "further_task")
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_objectives_are_rejected_with_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
