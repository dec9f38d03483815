"""Is a re-ranker worth it on these lists? Trains and compares several under equal conditions, and recommends one."""

from hf_rerank.comparison.arms import Plan, find_models
from hf_rerank.comparison.compare_rerankers import compare_rerankers
from hf_rerank.comparison.findings import Findings

__all__ = ["Findings", "Plan", "compare_rerankers", "find_models"]
