"""``hf_rerank.metrics.auc`` as an ``evaluate`` module."""

from __future__ import annotations

from hf_rerank.metrics import auc
from hf_rerank.metrics.modules import base


class RankingAUC(base.ListMetric):
    """Area under the ROC curve, pooled over the items of all lists."""

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        scores, labels, mask = base.pad(predictions, references)
        return {"auc": auc(scores, labels, mask=mask)}
