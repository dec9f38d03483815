"""Position bias of logged clicks: the probability that each position was examined, estimated from the clicks."""

from hf_rerank.data.position_bias.adding import METHODS, REPORT_KEY, add_propensities
from hf_rerank.data.position_bias.estimation import (
    Curve,
    estimate_by_em,
    estimate_by_harvesting,
    estimate_by_regression_em,
)

__all__ = [
    "METHODS",
    "REPORT_KEY",
    "Curve",
    "add_propensities",
    "estimate_by_em",
    "estimate_by_harvesting",
    "estimate_by_regression_em",
]
