"""Measuring re-rankers: metrics and obedience over lists, tables, plots, and the results that a run leaves behind."""

from __future__ import annotations

from typing import Any

__all__ = ["EvaluationSums", "evaluate", "evaluate_orders"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imports torch, which tables and results do not need
        from hf_rerank.evaluation import evaluator

        return getattr(evaluator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
