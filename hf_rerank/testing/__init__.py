"""Checks that every re-ranker must pass, for your own tests: ``check_reranker(model_class, config)``."""

from hf_rerank.testing.contracts import CONTRACTS, SLOW_CONTRACTS, check_reranker

__all__ = ["CONTRACTS", "SLOW_CONTRACTS", "check_reranker"]
