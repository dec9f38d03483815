"""The re-rankers. Importing this package adds them to ``AutoConfig``, ``AutoModel``, ``AutoFeatureExtractor``."""

from hf_rerank.models.auto import RERANKERS, AutoReranker, reranker_classes

__all__ = ["RERANKERS", "AutoReranker", "reranker_classes"]
