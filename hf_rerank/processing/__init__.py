"""From lists to tensors: vocabularies, scales, padding.

Only ``RerankCollator`` imports torch, and nothing imports transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

from hf_rerank.processing.encoding_report import EncodingReport
from hf_rerank.processing.processor import ListProcessor
from hf_rerank.processing.ragged import RaggedLists

__all__ = ["EncodingReport", "ListProcessor", "RaggedLists", "RerankCollator"]


def __getattr__(name: str) -> Any:
    if name == "RerankCollator":  # imports torch
        return importlib.import_module("hf_rerank.processing.collator").RerankCollator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
