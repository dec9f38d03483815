"""Sharing on the Hub: ``push_model`` and ``push_lists``; each re-ranker, processor and trainer has ``push_to_hub``."""

from __future__ import annotations

from typing import Any

__all__ = ["push_lists", "push_model"]


def __getattr__(name: str) -> Any:
    # Loading a model imports this package: what pushes is imported by those who push.
    if name in __all__:
        from hf_rerank.hub import push

        return getattr(push, name)
    raise AttributeError(f"module 'hf_rerank.hub' has no attribute {name!r}")
