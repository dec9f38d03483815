"""Principled learning of re-rankers (arXiv 2504.04188): tensors and callables only, no model of this library."""

from hf_rerank.principled.consistency import consistency_loss
from hf_rerank.principled.obedience import obedience
from hf_rerank.principled.objective import Pass, Perturbed, PrincipledObjective, Soft, Term
from hf_rerank.principled.orders import order_from_positions, perturb, positions_from_scores
from hf_rerank.principled.presets import DEFAULT_PRESET, PRESETS, preset_objective
from hf_rerank.principled.relaxations import hard_order, soft_order

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "Pass",
    "Perturbed",
    "PrincipledObjective",
    "Soft",
    "Term",
    "consistency_loss",
    "hard_order",
    "obedience",
    "order_from_positions",
    "perturb",
    "positions_from_scores",
    "preset_objective",
    "soft_order",
]
