"""``hf_rerank.metrics.ndcg`` as an ``evaluate`` module."""

from __future__ import annotations

from hf_rerank.metrics import ndcg
from hf_rerank.metrics.modules import base


class NDCG(base.ListMetric):
    """Normalised discounted cumulative gain at k; labels may be graded."""

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        k: int | None = None,
        no_click: str = "zero",
        gain: str = "exponential",
    ) -> dict[str, float]:
        scores, labels, mask = base.pad(predictions, references)
        value = ndcg(scores, labels, mask=mask, k=k, no_click=no_click, gain=gain)
        return {base.key("ndcg", k): float(value)}
