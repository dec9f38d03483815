"""``hf_rerank.metrics.recall`` as an ``evaluate`` module."""

from __future__ import annotations

from hf_rerank.metrics import recall
from hf_rerank.metrics.modules import base


class RecallAtK(base.ListMetric):
    """Recall at k: the share of a list's clicks in its first k ranks."""

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        k: int | None = None,
        no_click: str = "zero",
    ) -> dict[str, float]:
        scores, labels, mask = base.pad(predictions, references)
        value = recall(scores, labels, mask=mask, k=k, no_click=no_click)
        return {base.key("recall", k): float(value)}
