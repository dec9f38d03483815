"""Lists from any input: the two public datasets, custom data, prepared folders, simulations. No torch.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "ListSource": "source",
    "PrepareReport": "report",
    "RejectedLine": "report",
    "RejectedLines": "report",
    "Rejects": "source",
    "Unit": "source",
    "load_lists": "loading",
    "prepare_ad": "ad",
    "prepare_own": "custom.prepare",
    "prepare_prm_public": "prm_public",
    "read_prepared": "prepared",
    "simulate_ad": "simulation",
    "simulate_prm": "simulation",
    "write_lists": "prepared",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"hf_rerank.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'hf_rerank.data' has no attribute {name!r}")
