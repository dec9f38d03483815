"""``hf_rerank.metrics.grouped_auc`` as an ``evaluate`` module."""

from __future__ import annotations

from hf_rerank.metrics import grouped_auc
from hf_rerank.metrics.modules import base


class GroupedAUC(base.ListMetric):
    """Area under the ROC curve inside each list, averaged over the lists with both classes."""

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]], weighting: str = "lists"
    ) -> dict[str, float]:
        scores, labels, mask = base.pad(predictions, references)
        return {"gauc": float(grouped_auc(scores, labels, mask=mask, weighting=weighting))}
