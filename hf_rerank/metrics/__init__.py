"""Ranking metrics: pure functions, an accumulator over batches, and ``evaluate`` modules over the same functions."""

from hf_rerank.metrics.accumulate import RankingMetrics
from hf_rerank.metrics.modules import metric_path
from hf_rerank.metrics.propensity import PropensityMetrics, propensity_clicks
from hf_rerank.metrics.ranking import average_precision, clicks, ndcg, precision, recall, reciprocal_rank
from hf_rerank.metrics.roc_auc import AUCHistogram, auc, grouped_auc, slot_order_auc
from hf_rerank.metrics.simulated_clicks import best_expected_clicks, expected_clicks

__all__ = [
    "AUCHistogram",
    "PropensityMetrics",
    "RankingMetrics",
    "auc",
    "average_precision",
    "best_expected_clicks",
    "clicks",
    "expected_clicks",
    "grouped_auc",
    "metric_path",
    "ndcg",
    "precision",
    "propensity_clicks",
    "recall",
    "reciprocal_rank",
    "slot_order_auc",
]
