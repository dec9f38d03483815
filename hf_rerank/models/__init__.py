"""The re-rankers. Importing this package adds them to ``AutoConfig``, ``AutoModel``, ``AutoFeatureExtractor``."""

from hf_rerank.models.auto import RERANKERS, AutoReranker, register_reranker, reranker_classes

__all__ = ["RERANKERS", "AutoReranker", "register_reranker", "reranker_classes"]
