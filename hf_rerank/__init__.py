"""Re-rankers for recommender systems. Names are imported when they are first used: torch and transformers are slow."""

from __future__ import annotations

import importlib
from typing import Any

from hf_rerank.version import __version__ as __version__

_HOME = {
    "AutoReranker": "models.auto",
    "Categorical": "schema",
    "DLCMConfig": "models.dlcm",
    "DLCMForReranking": "models.dlcm",
    "DNNConfig": "models.dnn",
    "DNNForReranking": "models.dnn",
    "Dense": "schema",
    "InputError": "errors",
    "ListProcessor": "processing",
    "ListSchema": "schema",
    "MiDNNConfig": "models.midnn",
    "MiDNNForReranking": "models.midnn",
    "PEARConfig": "models.pear",
    "PEARForReranking": "models.pear",
    "PRMConfig": "models.prm",
    "PRMForReranking": "models.prm",
    "Pass": "principled",
    "PersonalisedVectors": "personalised_vectors",
    "PreTrainedReranker": "models.base",
    "PrincipledObjective": "principled",
    "RAISEConfig": "models.raise_",
    "RAISEForReranking": "models.raise_",
    "RerankCollator": "processing.collator",
    "RerankTrainer": "training",
    "RerankTrainingArguments": "training",
    "Reranker": "inference.reranker",
    "RerankerConfig": "models.config",
    "RerankerOutput": "models.base",
    "RerankingPipeline": "inference.pipeline",
    "SetRankConfig": "models.setrank",
    "SetRankForReranking": "models.setrank",
    "Term": "principled",
    "Vector": "schema",
    "adapt": "training.adaptation",
    "add_initial_order": "initial_rankers.order",
    "add_personalised_vectors": "personalised_vectors",
    "freeze": "training.freezing",
    "load_lists": "data.loading",
}
_MODULES = (
    "data",
    "evaluation",
    "hub",
    "inference",
    "losses",
    "metrics",
    "models",
    "principled",
    "processing",
    "training",
)
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"hf_rerank.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"hf_rerank.{name}")
    raise AttributeError(f"module 'hf_rerank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOME, *_MODULES, "__version__"])
