"""Summary of finished runs: means, paired comparisons and the evidence for the recommendation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_rerank.comparison.arms import LOGGED, POINTWISE, PRINCIPLED, TREES, WITH, WITHOUT, Arm
from hf_rerank.comparison.measuring import CLICKS, NDCG
from hf_rerank.comparison.recommendation import Effect, Evidence, Recommendation, effect_of, recommend
from hf_rerank.evaluation.comparing import Comparison, compare

IN_WORDS = {CLICKS: "expected clicks", NDCG: "NDCG@10"}
# Columns of the summary besides the primary measure: name of the measure -> heading.
COLUMNS = {NDCG: "NDCG@10", "p1_obedience@5": "P1@5", "p2_obedience@5": "P2@5"}


@dataclass(frozen=True)
class Row:
    """One line of the summary.

    Attributes:
        name: Name of the arm or system, or ``LOGGED``.
        mean: Mean of the primary measure over the seeds, on the test lists.
        spread: Standard deviation over the seeds; None with fewer than two seeds, or without training.
        validation: Mean NDCG@10 on the validation lists, the selection criterion; None for systems of the user.
        others: Means of the measures in ``COLUMNS``.
        seconds: Mean training time in seconds; None if not measured.
        milliseconds: Mean time to rank one list in milliseconds; None if not measured.
        seeds: Number of runs.
    """

    name: str
    mean: float
    spread: float | None
    validation: float | None
    others: Mapping[str, float]
    seconds: float | None
    milliseconds: float | None
    seeds: int


@dataclass(frozen=True)
class Findings:
    """The results of a comparison.

    Attributes:
        measure: Key of the primary measure.
        rows: The logged order, systems of the user, and every arm.
        comparisons: Paired differences on the test lists, corrected in two sets, see ``summarize``.
        recommendation: What to use.
    """

    measure: str
    rows: list[Row]
    comparisons: list[Comparison]
    recommendation: Recommendation


def summarize(
    runs: Mapping[Arm, Mapping[int, Mapping[str, Any]]],
    fixed: Mapping[str, Mapping[str, Any]],
    *,
    measure: str,
    groups: Sequence[Any],
    display_order: bool,
) -> Findings:
    """Summarizes runs, compares arms and recommends one.

    Two sets of pairs are each corrected together by Holm's method. The first: the best arm on validation against each
    simpler alternative, and the kinds of each model against each other. The second: the other arms of the best model
    against the same alternatives. It matters only if the best arm beats all of these, so it does not weaken the first.

    Args:
        runs: Arm -> seed -> result of the run.
        fixed: ``LOGGED`` and the systems of the user, which are not trained: name -> a result with ``test`` and
            ``per_list``; ``LOGGED`` also with ``validation``.
        measure: Key of the primary measure.
        groups: The user or query of each test list.
        display_order: Whether clicks may have been logged in the given order.
    """
    seeds = sorted(next(iter(runs.values())))
    by_name: dict[str, Mapping[int, Mapping[str, Any]]] = {
        **{name: dict.fromkeys(seeds, outcome) for name, outcome in fixed.items()},
        **{arm.name: of_seed for arm, of_seed in runs.items()},
    }
    rows = [_summarize_arm(name, of_seed, measure, name in fixed) for name, of_seed in by_name.items()]
    validation = {row.name: row.validation for row in rows if row.validation is not None and row.name not in fixed}
    best = max(runs, key=lambda arm: validation[arm.name])
    simpler = [*fixed, *_find_simpler_arms(best, runs, validation)]
    kinds = {model: {arm.kind for arm in runs if arm.model == model} for model in dict.fromkeys(a.model for a in runs)}
    steps = ((WITH, WITHOUT), (PRINCIPLED, WITH), (PRINCIPLED, WITHOUT))
    pairs = [(best.name, name) for name in simpler]
    pairs += [
        (Arm(model, kind).name, Arm(model, base).name)
        for model, there in kinds.items()
        for kind, base in steps
        if {kind, base} <= there
    ]
    others = [arm.name for arm in runs if arm.model == best.model and arm != best]
    measures = {name: {seed: run["test"] for seed, run in of_seed.items()} for name, of_seed in by_name.items()}
    per_list = {
        name: {seed: np.array(run["per_list"], dtype=np.float64) for seed, run in of_seed.items()}
        for name, of_seed in by_name.items()
    }
    comparisons = [
        entry
        for together in (pairs, [(arm, name) for arm in others for name in simpler])
        for entry in compare(measures, together, measure, per_list=per_list, groups=groups)
    ]
    effects = {(entry.name, entry.base): effect_of(entry) for entry in comparisons}

    def collect_effects(kind: str, base: str) -> dict[str, Effect]:
        found = {model: (Arm(model, kind).name, Arm(model, base).name) for model in kinds}
        return {model: effects[pair] for model, pair in found.items() if pair in effects}

    evidence = Evidence(
        measure=IN_WORDS[measure],
        on_clicks=measure != CLICKS,
        seeds=len(seeds),
        best=best.model,
        best_arm=best.name,
        over_simpler={name: effects[best.name, name] for name in simpler},
        others_over_simpler={arm: {name: effects[arm, name] for name in simpler} for arm in others},
        order=collect_effects(WITH, WITHOUT),
        principles=collect_effects(PRINCIPLED, WITH),
        principled_over_without=collect_effects(PRINCIPLED, WITHOUT),
        display_order=display_order,
    )
    return Findings(measure, rows, comparisons, recommend(evidence))


def _find_simpler_arms(best: Arm, arms: Mapping[Arm, Any], validation: Mapping[str, float]) -> list[str]:
    """Finds, for each model simpler than the best, its best arm on validation; the simplest model first."""
    ladder = [TREES, POINTWISE]
    below = ladder[: ladder.index(best.model)] if best.model in ladder else ladder
    chosen = []
    for model in below:
        of_model = [arm.name for arm in arms if arm.model == model]
        if of_model:
            chosen.append(max(of_model, key=lambda name: validation[name]))
    return chosen


def _summarize_arm(name: str, of_seed: Mapping[int, Mapping[str, Any]], measure: str, is_fixed: bool) -> Row:
    outcomes = list(of_seed.values())
    values = [outcome["test"][measure] for outcome in outcomes]
    others = {}
    for key in COLUMNS:
        found = [outcome["test"][key] for outcome in outcomes if outcome["test"].get(key) is not None]
        if found:
            others[key] = float(np.mean(found))
    validation = [outcome["validation"][NDCG] for outcome in outcomes if "validation" in outcome]
    return Row(
        name,
        float(np.mean(values)),
        None if is_fixed or len(values) < 2 else float(np.std(values, ddof=1)),
        float(np.mean(validation)) if validation else None,
        others,
        _mean_of(outcomes, "training_seconds"),
        _mean_of(outcomes, "milliseconds_per_list"),
        1 if is_fixed else len(outcomes),
    )


def _mean_of(outcomes: Sequence[Mapping[str, Any]], name: str) -> float | None:
    found = [outcome[name] for outcome in outcomes if outcome.get(name) is not None]
    return float(np.mean(found)) if found else None


__all__ = ["COLUMNS", "IN_WORDS", "LOGGED", "Findings", "Row", "summarize"]
