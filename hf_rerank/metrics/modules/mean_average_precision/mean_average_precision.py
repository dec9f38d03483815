"""``hf_rerank.metrics.average_precision`` as an ``evaluate`` module."""

from __future__ import annotations

from hf_rerank.metrics import average_precision
from hf_rerank.metrics.modules import base


class MeanAveragePrecision(base.ListMetric):
    """Mean average precision at k, divided by min(k, clicks in the list) or by the hits inside the first k ranks."""

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        k: int | None = None,
        no_click: str = "zero",
        denominator: str = "clicks",
    ) -> dict[str, float]:
        scores, labels, mask = base.pad(predictions, references)
        value = average_precision(scores, labels, mask=mask, k=k, no_click=no_click, denominator=denominator)
        return {base.key("map", k): float(value)}
