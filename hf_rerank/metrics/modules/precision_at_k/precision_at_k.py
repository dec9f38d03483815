"""``hf_rerank.metrics.precision`` as an ``evaluate`` module."""

from __future__ import annotations

from hf_rerank.metrics import precision
from hf_rerank.metrics.modules import base


class PrecisionAtK(base.ListMetric):
    """Precision at k, divided by k or by min(k, length)."""

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        k: int | None = None,
        no_click: str = "zero",
        denominator: str = "k",
    ) -> dict[str, float]:
        scores, labels, mask = base.pad(predictions, references)
        value = precision(scores, labels, mask=mask, k=k, no_click=no_click, denominator=denominator)
        return {base.key("precision", k): float(value)}
