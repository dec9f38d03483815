"""Ranking: ``Reranker`` over a PyTorch model or an exported graph; export; the transformers pipeline.

Names that need torch or ONNX Runtime are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from hf_rerank.inference.reranker import Reranker, Scorer

_HOME = {
    "OnnxScorer": "onnx_scorer",
    "RerankingPipeline": "pipeline",
    "TorchScorer": "torch_scorer",
    "export_onnx": "export",
}
__all__ = ["OnnxScorer", "Reranker", "RerankingPipeline", "Scorer", "TorchScorer", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
