"""Is a re-ranker worth it on these lists? Trains and measures several in a fair way, and recommends one in words."""

from hf_rerank.comparison.arms import Plan, find_models
from hf_rerank.comparison.compare_rerankers import compare_rerankers
from hf_rerank.comparison.findings import Findings

__all__ = ["Findings", "Plan", "compare_rerankers", "find_models"]
