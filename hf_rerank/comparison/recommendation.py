"""The recommendation, as text: a pure function of the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hf_rerank.comparison.arms import LOGGED, PRINCIPLED, TREES, WITH, WITHOUT
from hf_rerank.errors import InputError
from hf_rerank.evaluation.comparing import Comparison

LEVEL = 0.05
# The order may be left out if it gains less than this fraction of the measure.
MARGIN = 0.01
Certainty = Literal["clear", "likely", "open"]


@dataclass(frozen=True)
class Effect:
    """Difference of one arm from another on the test lists, as a fraction of the other's mean.

    Attributes:
        mean: Mean of the differences.
        low, high: 95 % interval over groups of lists.
        certainty: ``clear``: both p-values, over groups and over seeds, are below 5 % after Holm's correction;
            ``likely``: only the one over groups is, but all seeds agree in sign, which is all that few seeds can
            show; ``open``: neither, 0 is possible.
        seeds_agree: Whether the differences of all seeds have the same sign.
    """

    mean: float
    low: float
    high: float
    certainty: Certainty
    seeds_agree: bool = True

    @property
    def is_gain(self) -> bool:
        """Whether the effect is above 0, and clear or likely."""
        return self.certainty != "open" and self.mean > 0

    @property
    def is_loss(self) -> bool:
        """Whether the effect is below 0, and clear or likely."""
        return self.certainty != "open" and self.mean < 0

    def __str__(self) -> str:
        # Rounded first, so that a value just below 0 is +0.0% and not -0.0%.
        mean, low, high = (round(value, 3) + 0.0 for value in (self.mean, self.low, self.high))
        but = ", but the seeds disagree" if not self.seeds_agree and self.low * self.high > 0 else ""
        return f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]{but}"


@dataclass(frozen=True)
class Evidence:
    """The numbers that a recommendation depends on.

    Attributes:
        measure: Name of the primary measure, as shown to users.
        on_clicks: Whether it is measured on logged clicks; False: on the ground truth of simulated lists.
        seeds: Number of seeds.
        best: Model of the arm that is best on the validation lists.
        best_arm: Name of that arm.
        over_simpler: Effect of the best arm over each simpler alternative, the simplest first: the logged order,
            systems of the user, and the best arm on validation of each simpler model.
        others_over_simpler: Name of each other arm of the best model -> its effects over the same alternatives.
        order: Model -> effect of the given order (with order minus without); empty if the lists have no order.
        principles: Model -> effect of the principles (with principles minus with order).
        principled_over_without: Model -> with principles minus without order.
        display_order: Whether clicks may have been logged in the given order.
    """

    measure: str
    on_clicks: bool
    seeds: int
    best: str
    best_arm: str
    over_simpler: Mapping[str, Effect]
    others_over_simpler: Mapping[str, Mapping[str, Effect]] = field(default_factory=dict)
    order: Mapping[str, Effect] = field(default_factory=dict)
    principles: Mapping[str, Effect] = field(default_factory=dict)
    principled_over_without: Mapping[str, Effect] = field(default_factory=dict)
    display_order: bool = False


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Attributes:
        use: Name of an arm, of a system of the user, or ``LOGGED``.
        model: The model of that arm; None if it is not an arm.
        kind: The kind of that arm; None if it is not an arm.
        reasons: The reasons, one sentence or more each.
    """

    use: str
    model: str | None
    kind: str | None
    reasons: tuple[str, ...]


def effect_of(comparison: Comparison) -> Effect:
    """Returns the effect that a comparison shows.

    Raises:
        InputError: The other arm's mean is 0, so that the relative difference is undefined.
    """
    if not comparison.base_mean:
        raise InputError(
            f"{comparison.base} has {comparison.measure} 0 on the test lists: expected test lists with clicks"
        )
    groups = comparison.over_groups or comparison.over_seeds
    relative = groups.relative_to(comparison.base_mean)
    certainty: Certainty = "open"
    if comparison.corrected_p_groups < LEVEL:
        certainty = "clear" if comparison.corrected_p < LEVEL else "likely" if comparison.seeds_agree else "open"
    return Effect(relative.mean, relative.low, relative.high, certainty, comparison.seeds_agree)


def recommend(evidence: Evidence) -> Recommendation:
    """Decides what to use.

    The best arm on validation must beat every simpler alternative on the test lists; otherwise the simplest one that
    it does not beat is recommended. Where the order is not shown to gain, with the principles or without, it is left
    out if validation chose the arm without it, or if no gain of ``MARGIN`` is plausible. Another arm of the best model
    is recommended only if it beats every simpler alternative itself.
    """
    reasons: list[str] = []
    for name, effect in evidence.over_simpler.items():
        if not effect.is_gain:
            return _recommend_simpler(evidence, name, effect)
        who = evidence.best_arm if reasons else f"{evidence.best_arm}, the best on validation,"
        reasons.append(f"{who} {_gain_in_words(effect)} {evidence.measure} over {name}: {effect}.")
    kind, about_order = _choose_kind(evidence, evidence.best)
    reasons += about_order
    use = f"{evidence.best} {kind}"
    if use != evidence.best_arm:
        own = evidence.others_over_simpler[use]
        not_beaten = next((name for name, effect in own.items() if not effect.is_gain), None)
        if not_beaten is None:
            effects = ", ".join(f"{effect} over {name}" for name, effect in own.items())
            likely = any(effect.certainty == "likely" for effect in own.values())
            reasons.append(f"{use} {'probably gains' if likely else 'gains'}, too: {effects}.")
        else:
            reasons.append(
                f"But {use} itself is not shown to beat {not_beaten} ({own[not_beaten]}); {evidence.best_arm} is."
            )
            use, kind = evidence.best_arm, evidence.best_arm.removeprefix(f"{evidence.best} ")
    return Recommendation(use, evidence.best, kind, (*reasons, *_describe_limits(evidence)))


def _recommend_simpler(evidence: Evidence, name: str, effect: Effect) -> Recommendation:
    """Recommends the simplest alternative that the best arm does not beat."""
    found = "loses to" if effect.is_loss else "is not shown to beat"
    reason = f"{evidence.best_arm}, the best on validation, {found} {name} in {evidence.measure}: {effect}."
    kinds = [kind for kind in (WITHOUT, WITH, PRINCIPLED) if name.endswith(f" {kind}")]
    if name == LOGGED and evidence.display_order and evidence.on_clicks:
        advice = (
            "On these clicks the logged order is hard to beat if they were made in it: items near its top were "
            "clicked because they were seen. If the lists were logged in the order they come in, train with a "
            "position tower (--set position_tower=given), which learns this bias apart from the model, and decide by "
            "an online test; otherwise keep the order that you have"
        )
        evidence = replace(evidence, display_order=False)  # the limits would say the same
    elif name == LOGGED:
        advice = "Keep the order that you have"
    elif not kinds:
        advice = f"Keep {name}"
    else:
        model = name.removesuffix(f" {kinds[0]}")
        kind, about_order = _choose_kind(evidence, model)
        advice = f"The simpler {model} is enough"
        if model == TREES:
            advice += "; a re-ranker may start from its scores (hf-rerank train --on-top-of lambdamart)"
        reasons = (reason, f"{advice}.", *about_order, *_describe_limits(evidence))
        return Recommendation(f"{model} {kind}", model, kind, reasons)
    more = "" if effect.is_loss else f"; {_suggest_more_data(evidence)}"
    return Recommendation(name, None, None, (reason, f"{advice}{more}.", *_describe_limits(evidence)))


def _choose_kind(evidence: Evidence, model: str) -> tuple[str, list[str]]:
    """Chooses which kind of arm of a model to use, with reasons."""
    order = evidence.order.get(model)
    if order is None:
        return WITHOUT, ["The lists have no initial order, so both principles hold trivially."]
    both = "which satisfies both principles exactly, in one pass"
    principles, against = evidence.principles.get(model), evidence.principled_over_without.get(model)
    if not order.is_gain:
        found = "costs" if order.is_loss else "is not shown to gain"
        reason = f"Reading the given order {found} {evidence.measure} ({model}: {order})"
        if against is not None and against.is_gain:
            return PRINCIPLED, [
                f"{reason}; with the principles it {_gain_in_words(against)} over the model without order: {against}."
            ]
        chosen = evidence.best_arm == f"{model} {WITHOUT}"
        if chosen or order.mean <= 0 or order.high < MARGIN:
            bound = f", and any gain is below {MARGIN:.0%}" if order.mean > 0 and order.high < MARGIN else ""
            return WITHOUT, [f"{reason}{bound}; without it, {model} satisfies both principles exactly, in one pass."]
        reasons = [f"{reason}, but a gain of {MARGIN:.0%} or more is possible: its value is open, so it is kept."]
    else:
        has = "has" if order.certainty == "clear" else "probably has"
        reasons = [f"The given order {has} value for {model}: {order}."]
    if principles is None:
        return WITH, reasons
    if not principles.is_loss:
        found = "gain" if principles.is_gain else "have no measurable cost"
        return PRINCIPLED, [*reasons, f"The principles {found}: {principles}; the ranking is more stable with them."]
    reasons.append(f"The principles cost {evidence.measure}: {principles}.")
    if against is not None and against.is_gain:
        reasons.append(
            f"If a stable ranking matters more, {model} {PRINCIPLED} is still better than {WITHOUT}: {against}."
        )
    else:
        reasons.append(
            f"If a stable ranking matters more, use {model} {WITHOUT}, {both}; with principles it is not shown to be "
            "better than that."
        )
    return WITH, reasons


def _gain_in_words(effect: Effect) -> str:
    return "gains" if effect.certainty == "clear" else "probably gains"


def _suggest_more_data(evidence: Evidence) -> str:
    return "more test lists would narrow the interval" + (", and so would more seeds" if evidence.seeds < 5 else "")


def _describe_limits(evidence: Evidence) -> list[str]:
    """Describes the limits of the numbers."""
    limits = []
    effects = (
        *(evidence.over_simpler, *evidence.others_over_simpler.values()),
        *(evidence.order, evidence.principles),
    )
    if evidence.seeds == 1:
        limits.append(
            "One seed shows nothing about the variance of training: at most 'probably' is claimed; use --seeds 3."
        )
    elif any(effect.certainty == "likely" for part in effects for effect in part.values()):
        limits.append(
            f"'Probably': clear over groups of lists, and {evidence.seeds} seeds agree but are too few to be sure; "
            "more --seeds, in the same folder, would tell."
        )
    if not evidence.order or not evidence.display_order:
        return limits
    bias = "A display order P carries position bias: items near the top were clicked because they were seen"
    correction = "a position tower (--set position_tower=given) learns the bias apart from the model"
    if evidence.on_clicks:
        limits.append(
            f"{bias}. If the lists were logged in the order they come in, these clicks favor whatever repeats it, and "
            f"the value of order is overstated; confirm it with an online test. In training, {correction}."
        )
    else:
        limits.append(
            f"{bias}. The measure is free of it, the clicks that the models learned from are not. If they were logged "
            f"in this order, {correction}."
        )
    return limits
