"""Evaluating re-rankers: metrics and obedience over lists, tables, plots, and the record of a run.

Names are imported when they are first used: the evaluator needs torch, tables and comparisons do not.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Comparison": "comparing",
    "EvaluationSums": "evaluator",
    "Interval": "comparing",
    "bootstrap_interval": "comparing",
    "compare": "comparing",
    "evaluate": "evaluator",
    "evaluate_orders": "evaluator",
    "holm": "comparing",
    "plot_obedience": "plots",
    "obedience_table": "tables",
    "results_table": "tables",
    "t_interval": "comparing",
    "plot_training": "plots",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
