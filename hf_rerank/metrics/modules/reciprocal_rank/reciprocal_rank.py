"""``hf_rerank.metrics.reciprocal_rank`` as an ``evaluate`` module."""

from __future__ import annotations

from hf_rerank.metrics import reciprocal_rank
from hf_rerank.metrics.modules import base


class ReciprocalRank(base.ListMetric):
    """Mean reciprocal rank of the first click, 0 below rank k."""

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        k: int | None = None,
        no_click: str = "zero",
    ) -> dict[str, float]:
        scores, labels, mask = base.pad(predictions, references)
        value = reciprocal_rank(scores, labels, mask=mask, k=k, no_click=no_click)
        return {base.key("mrr", k): float(value)}
