"""Initial rankers: they score items one by one, and their scores sort lists into the initial order.

They learn from the split ``ranker_train`` and from nothing else, and never read the order in which items were shown.
Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "ClickModel": "click_model",
    "CrossFittedRanker": "cross_fitting",
    "LambdaMARTRanker": "lambdamart",
    "QUALITIES": "qualities",
    "add_initial_order": "order",
    "fit_on_top": "on_top",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
