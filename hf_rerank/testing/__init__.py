"""Checks that every re-ranker must pass, for the tests of your own: ``check_reranker(model_class, config)``."""

from hf_rerank.testing.contracts import CONTRACTS, SLOW_CONTRACTS, check_reranker

__all__ = ["CONTRACTS", "SLOW_CONTRACTS", "check_reranker"]
