"""Objectives that are refused, each in one line."""

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


def of(*passes: Pass, terms: tuple[Term, ...] = (), **fields: Any) -> Callable[[], PrincipledObjective]:
    return lambda: PrincipledObjective(passes, terms, **fields)


def term(**fields: Any) -> Callable[[], PrincipledObjective]:
    return lambda: two_passes("own", term=fields)


def order(make: Callable[[], Any]) -> Callable[[], PrincipledObjective]:
    return lambda: two_passes(make())


def changed(**fields: Any) -> Callable[[], PrincipledObjective]:
    return lambda: replace(SCALED, **fields)


BOTH = ("first", "other")
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two passes of a name": (of(FIRST, OTHER, OTHER), "two passes are named 'other': give each its own name"),
    "two terms of a name": (
        of(FIRST, OTHER, terms=(Term("term", *BOTH), Term("term", "other", "first"))),
        "two terms are named 'term'",
    ),
    "unknown pass in a term": (
        of(FIRST, OTHER, terms=(Term("term", "first", "othr"),), task_loss_on=BOTH),
        "there is no pass 'othr': the passes are first, other; did you mean 'other'",
    ),
    "unknown pass with a task loss": (of(FIRST, OTHER, task_loss_on=("first", "second")), "there is no pass 'second'"),
    "unused pass": (of(FIRST, OTHER), "the pass 'other' is in no term and not in task_loss_on: leave it out"),
    "term of a pass with itself": (
        lambda: Term("term", "first", "first"),
        "the term 'term' compares 'first' with itself: name two passes",
    ),
    "no pass": (of(), r"the first pass must score the given order .*Pass\('first', 'given'\)"),
    "first pass of another order": (of(OTHER), "the first pass must score the given order"),
    "first pass with fresh masks": (of(Pass("first", dropout="fresh")), "the first pass must .* with shared dropout"),
    "no task loss": (of(FIRST, OTHER, terms=(Term("term", *BOTH),), task_loss_on=()), "task_loss_on is empty"),
    "order": (
        order(lambda: "onw"),
        r"order of a pass is 'onw': .*'own', Perturbed\(...\) or Soft.*did you mean 'own'",
    ),
    "order in words": (order(lambda: "softsort"), "order of a pass is 'softsort'"),
    "perturbed of a word": (order(lambda: Perturbed(of="intial")), "order of a pass is 'intial'"),
    "dropout": (lambda: Pass("x", dropout="frsh"), "dropout of a pass is 'frsh': .*did you mean 'fresh'"),
    "space": (term(space="probabilty"), "space of the term 'term' is 'probabilty'.*did you mean 'probability'"),
    "positions": (term(positions="inputs"), "positions of the term 'term' is 'inputs'.*did you mean 'input'"),
    "reduction": (term(reduction="avg"), "reduction of the term 'term' is 'avg': expected one of 'sum', 'mean', "),
    "stop": (term(stop_gradient="frist"), "stop_gradient of the term 'term' is 'frist': .*did you mean 'first'"),
    "negative weight": (term(weight=-1.0), "weight of the term 'term' is -1.0: expected a number of at least 0"),
    "nan weight": (term(weight=math.nan), "weight of the term 'term' is nan"),
    "infinite weight": (term(weight=math.inf), "weight of the term 'term' is inf"),
    "weight in words": (term(weight="10"), "weight of the term 'term' is '10'"),
    "yes as a weight": (term(weight=True), "weight of the term 'term' is True"),
    "task loss": (changed(task_loss="binary_logloss"), "'binary_logloss'.*did you mean 'binary_log_loss'"),
    "lambda": (changed(task_loss="lambda_loss"), "lambda_loss has no probabilities: .*space='logit'"),
    "no list": (changed(fraction=0.0), "fraction is 0.0: expected a number above 0, at most 1"),
    "more than all": (changed(fraction=1.01), "fraction is 1.01"),
    "nan lists": (changed(fraction=math.nan), "fraction is nan"),
    "lists in words": (changed(fraction="0.5"), "fraction is '0.5'"),
    "warmup below 0": (changed(warmup=-0.1), "warmup is -0.1: expected a fraction of the steps, from 0 to 1"),
    "warmup above 1": (changed(warmup=1.5), "warmup is 1.5"),
    "warmup in nan": (changed(warmup=math.nan), "warmup is nan"),
    "half a seed": (changed(seed=0.5), "seed is 0.5: expected a whole number"),
    "perturbation": (lambda: Perturbed("adjacent_swp"), "perturbation 'adjacent_swp'.*did you mean 'adjacent_swap'"),
    "half a swap": (lambda: Perturbed(strength=1.5), "adjacent_swap is 1.5: expected a whole number from 1 to 1000"),
    "relaxation": (lambda: Soft("softsrt"), "relaxation 'softsrt': .*did you mean 'softsort'"),
    "sinkhorn below 0": (lambda: Soft("neuralsort", sinkhorn=-1), "sinkhorn is -1: .*at least 0"),
    "cold": (lambda: Soft(temperature=0.0), "temperature is 0.0: expected a number of at least 1e-06"),
}
REFUSED |= {
    f"a term named {name}": (lambda name=name: Term(name, *BOTH), f"a term is named '{name}', as the task losses are")
    for name in ("task", "further_task")
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
