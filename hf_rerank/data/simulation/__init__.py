"""Simulators of PRM Public and Ad: raw files in the exact formats, with known ground truth."""

from hf_rerank.data.simulation.ad import simulate_ad
from hf_rerank.data.simulation.ad_world import AdWorld
from hf_rerank.data.simulation.click_process import (
    draw_cascade_clicks,
    draw_clicks,
    draw_user_browsing_clicks,
    examination_curve,
    order_click_probabilities,
)
from hf_rerank.data.simulation.prm_public import simulate_prm
from hf_rerank.data.simulation.prm_public_world import PRMWorld

__all__ = [
    "AdWorld",
    "PRMWorld",
    "draw_cascade_clicks",
    "draw_clicks",
    "draw_user_browsing_clicks",
    "examination_curve",
    "order_click_probabilities",
    "simulate_ad",
    "simulate_prm",
]
