"""Recommendations, case by case: the evidence is written out, and so is the conclusion expected from it."""

from dataclasses import replace

import pytest

from hf_rerank.comparison.arms import LOGGED
from hf_rerank.comparison.recommendation import Effect, Evidence, effect_of, recommend
from hf_rerank.errors import InputError
from hf_rerank.evaluation.comparing import Comparison, Interval

GAIN = Effect(0.05, 0.03, 0.07, "clear")
LIKELY = Effect(0.02, 0.01, 0.03, "likely")
OPEN = Effect(0.001, -0.01, 0.012, "open")
LOSS = Effect(-0.03, -0.05, -0.01, "clear")
# At most 0.6 %, below the margin of 1 %: the order can be left out.
NONE = Effect(0.001, -0.004, 0.006, "open")
# Nothing is shown, and most of the interval is a gain.
WIDE = Effect(0.09, -0.03, 0.21, "open")
ALL_GAIN = {LOGGED: GAIN, "lambdamart with order": GAIN, "dnn with order": GAIN}

EVIDENCE = Evidence(
    measure="NDCG@10",
    on_clicks=True,
    seeds=3,
    best="prm",
    best_arm="prm with order",
    over_simpler={LOGGED: GAIN, "lambdamart with order": GAIN, "dnn with order": LIKELY},
    others_over_simpler={"prm without order": ALL_GAIN, "prm with principles": ALL_GAIN},
    order={"prm": GAIN, "dnn": GAIN, "lambdamart": NONE},
    principles={"prm": OPEN, "dnn": OPEN},
    principled_over_without={"prm": GAIN, "dnn": GAIN},
    display_order=True,
)


def text(evidence: Evidence) -> str:
    return " ".join(recommend(evidence).reasons)


# Changes in the evidence -> recommended arm.
CASES = {
    "order has value, principles cost nothing": ({}, "prm with principles"),
    "order has value, principles gain": ({"principles": {"prm": GAIN}}, "prm with principles"),
    "order has value, principles cost": ({"principles": {"prm": LOSS}}, "prm with order"),
    "order has no value": ({"order": {"prm": NONE}, "principled_over_without": {"prm": OPEN}}, "prm without order"),
    "order has a negative mean": (
        {"order": {"prm": replace(WIDE, mean=-0.001)}, "principled_over_without": {"prm": OPEN}},
        "prm without order",
    ),
    "the value of the order is open": (
        {"order": {"prm": WIDE}, "principled_over_without": {"prm": OPEN}},
        "prm with principles",
    ),
    "the value of the order is open, and validation chose the model without it": (
        {"order": {"prm": WIDE}, "principled_over_without": {"prm": OPEN}, "best_arm": "prm without order"},
        "prm without order",
    ),
    "a gain of 1 % is possible": (
        {"order": {"prm": replace(NONE, high=0.0101)}, "principled_over_without": {"prm": OPEN}},
        "prm with principles",
    ),
    "the value of the order is open, and the principles cost": (
        {"order": {"prm": WIDE}, "principled_over_without": {"prm": OPEN}, "principles": {"prm": LOSS}},
        "prm with order",
    ),
    "without order it does not beat the trees": (
        {
            "order": {"prm": NONE},
            "principled_over_without": {"prm": OPEN},
            "others_over_simpler": {"prm without order": {**ALL_GAIN, "lambdamart with order": OPEN}},
        },
        "prm with order",
    ),
    "with principles it does not beat the logged order": (
        {"others_over_simpler": {"prm with principles": {**ALL_GAIN, LOGGED: LOSS}}},
        "prm with order",
    ),
    "order has value only with principles": ({"order": {"prm": OPEN}}, "prm with principles"),
    "order harms": ({"order": {"prm": LOSS}, "principled_over_without": {"prm": OPEN}}, "prm without order"),
    "order harms, with principles too": (
        {"order": {"prm": LOSS}, "principled_over_without": {"prm": LOSS}},
        "prm without order",
    ),
    "order harms, with principles it gains": ({"order": {"prm": LOSS}}, "prm with principles"),
    "no order at all": ({"order": {}, "principles": {}, "best_arm": "prm without order"}, "prm without order"),
    "nothing beats the logged order": ({"over_simpler": {LOGGED: OPEN, "dnn with order": GAIN}}, LOGGED),
    "the logged order is better": ({"over_simpler": {LOGGED: LOSS}}, LOGGED),
    "the user's own system is as good": (
        {"over_simpler": {LOGGED: GAIN, "ours": OPEN, "dnn with order": GAIN}},
        "ours",
    ),
    "trees are as good, and need no order": (
        {"over_simpler": {LOGGED: GAIN, "lambdamart with order": OPEN, "dnn with order": GAIN}},
        "lambdamart without order",
    ),
    "the pointwise network is as good, and its order has value": (
        {"over_simpler": {LOGGED: GAIN, "lambdamart with order": GAIN, "dnn with order": OPEN}},
        "dnn with principles",
    ),
    "the trees are the best": (
        {
            "best": "lambdamart",
            "best_arm": "lambdamart with order",
            "over_simpler": {LOGGED: GAIN},
            "others_over_simpler": {"lambdamart without order": {LOGGED: LIKELY}},
        },
        "lambdamart without order",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_recommended_arm_for_each_kind_of_evidence(case: str) -> None:
    changes, use = CASES[case]
    found = recommend(replace(EVIDENCE, **changes))
    assert found.use == use
    assert found.use == (f"{found.model} {found.kind}" if found.model else use)


def test_if_the_order_has_no_value_one_pass_without_it_satisfies_both_principles() -> None:
    alike = {"prm": OPEN}
    found = text(replace(EVIDENCE, order={"prm": NONE}, principled_over_without=alike))
    assert "is not shown to gain NDCG@10 (prm: +0.1% [-0.4%, +0.6%]), and any gain is below 1%" in found
    assert "prm satisfies both principles exactly, in one pass" in found
    harmful = replace(EVIDENCE, order={"prm": LOSS}, principled_over_without=alike)
    assert "Reading the given order costs NDCG@10" in text(harmful)


def test_an_order_that_gains_only_with_the_principles_is_read_with_them() -> None:
    found = text(replace(EVIDENCE, order={"prm": OPEN}))
    assert (
        "Reading the given order is not shown to gain NDCG@10 (prm: +0.1% [-1.0%, +1.2%]); with the principles it "
        "gains over the model without order: +5.0% [+3.0%, +7.0%]."
    ) in found


def test_an_order_of_open_value_is_kept_and_the_reason_says_so() -> None:
    found = text(replace(EVIDENCE, order={"prm": WIDE}, principled_over_without={"prm": OPEN}))
    assert (
        "Reading the given order is not shown to gain NDCG@10 (prm: +9.0% [-3.0%, +21.0%]), but a gain of 1% or more "
        "is possible: its value is open, so it is kept."
    ) in found


def test_an_arm_that_is_not_the_best_on_validation_must_beat_the_alternatives_itself() -> None:
    assert (
        "prm with principles gains, too: +5.0% [+3.0%, +7.0%] over logged order, +5.0% [+3.0%, +7.0%] over lambdamart "
        "with order, +5.0% [+3.0%, +7.0%] over dnn with order."
    ) in text(EVIDENCE)
    worse = replace(EVIDENCE, others_over_simpler={"prm with principles": {**ALL_GAIN, "dnn with order": OPEN}})
    assert (
        "But prm with principles itself is not shown to beat dnn with order (+0.1% [-1.0%, +1.2%]); prm with order is."
    ) in text(worse)


def test_the_cost_of_the_principles_is_reported_with_both_alternatives() -> None:
    costly = replace(EVIDENCE, principles={"prm": LOSS})
    assert "The principles cost NDCG@10: -3.0% [-5.0%, -1.0%]." in text(costly)
    assert "prm with principles is still better than without order: +5.0%" in text(costly)
    assert "use prm without order" in text(replace(costly, principled_over_without={"prm": OPEN}))


def test_the_wording_expresses_the_certainty() -> None:
    first = "prm with order, the best on validation, gains NDCG@10 over logged order: +5.0% [+3.0%, +7.0%]."
    assert recommend(EVIDENCE).reasons[0] == first
    assert "prm with order probably gains NDCG@10 over dnn with order" in text(EVIDENCE)
    assert "probably has value" in text(replace(EVIDENCE, order={"prm": LIKELY}))
    assert "One seed" in text(replace(EVIDENCE, seeds=1))
    assert "3 seeds agree but are too few to be sure" in text(EVIDENCE)
    clear = replace(EVIDENCE, over_simpler={LOGGED: GAIN}, principles={})
    assert "seeds" not in text(clear)
    assert str(Effect(-0.0001, -0.0501, 0.05, "open")) == "+0.0% [-5.0%, +5.0%]"


def test_a_display_order_carries_position_bias() -> None:
    assert "P carries position bias" in text(EVIDENCE)
    assert "confirm it with an online test" in text(EVIDENCE)
    assert "The measure is free of it" in text(replace(EVIDENCE, on_clicks=False))
    assert all("--set position_tower=given" in text(replace(EVIDENCE, on_clicks=on)) for on in (True, False))
    assert "position bias" not in text(replace(EVIDENCE, display_order=False))
    assert "position bias" not in text(replace(EVIDENCE, order={}))


@pytest.mark.parametrize("effect", [OPEN, LOSS])
def test_clicks_made_in_the_logged_order_do_not_decide_for_it(effect: Effect) -> None:
    logged = replace(EVIDENCE, over_simpler={LOGGED: effect})
    _, advice, *limits = recommend(logged).reasons
    assert advice.startswith("On these clicks the logged order is hard to beat if they were made in it: ")
    assert "train with a position tower (--set position_tower=given)" in advice
    assert "decide by an online test; otherwise keep the order that you have" in advice
    assert not any("position bias" in limit for limit in limits)  # said once
    # The ground truth of simulated lists, or clicks in an order drawn at random, favor no order.
    for free in ({"on_clicks": False}, {"display_order": False}):
        assert recommend(replace(logged, **free)).reasons[1].startswith("Keep the order that you have")


@pytest.mark.parametrize(
    ("p_groups", "p_seeds", "certainty"),
    [(0.001, 0.01, "clear"), (0.001, 0.2, "likely"), (0.06, 0.01, "open"), (0.049, 0.049, "clear")],
)
def test_certainty_combines_p_values_over_groups_and_over_seeds(
    p_groups: float, p_seeds: float, certainty: str
) -> None:
    """Groups alone give "likely" at most, and only if the seeds agree in sign."""
    seeds, groups = Interval(0.02, -1.0, 1.0, 2), Interval(0.02, 0.01, 0.03, 100)
    found = effect_of(Comparison("a", "b", "ndcg@10", 0.5, seeds, groups, p_seeds, p_groups))
    # 0.02 / 0.5 = 4 %; 0.01 / 0.5 = 2 %; 0.03 / 0.5 = 6 %.
    assert (found.mean, found.low, found.high) == pytest.approx((0.04, 0.02, 0.06))
    assert found.certainty == certainty
    assert found.is_gain == (certainty != "open")
    disagreeing = effect_of(Comparison("a", "b", "ndcg@10", 0.5, seeds, groups, p_seeds, p_groups, seeds_agree=False))
    assert disagreeing.certainty == ("open" if certainty == "likely" else certainty)
    assert str(disagreeing) == "+4.0% [+2.0%, +6.0%], but the seeds disagree"


def test_an_effect_relative_to_zero_is_rejected() -> None:
    seeds = Interval(0.02, -1.0, 1.0, 2)
    with pytest.raises(InputError, match="logged order has ndcg@10 0 on the test lists"):
        effect_of(Comparison("a", LOGGED, "ndcg@10", 0.0, seeds, seeds, 1.0, 1.0))
