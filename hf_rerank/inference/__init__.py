"""Ranking: ``Reranker`` over a PyTorch model or an exported graph; export; the transformers pipeline."""

from hf_rerank.inference.reranker import Reranker, Scorer

__all__ = ["Reranker", "Scorer"]
