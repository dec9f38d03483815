"""Principled learning of re-rankers (arXiv 2504.04188): tensors and callables only, no model of this library."""

from hf_rerank.principled.consistency import PrincipledObjective, consistency_loss
from hf_rerank.principled.obedience import obedience
from hf_rerank.principled.orders import order_from_positions, perturb, positions_from_scores

__all__ = [
    "PrincipledObjective",
    "consistency_loss",
    "obedience",
    "order_from_positions",
    "perturb",
    "positions_from_scores",
]
