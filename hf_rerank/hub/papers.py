"""The papers that a model card cites: one per re-ranker, and that of the principles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A re-ranker and its paper.

    Attributes:
        name: Name of the model.
        idea: The architecture in a few words.
        citation: Authors, title, venue. None: there is no single paper.
    """

    name: str
    idea: str
    citation: str | None


# By ``config.model_type``.
PAPERS = {
    "rerank_dnn": Paper("DNN", "a network over each item on its own", None),
    "rerank_dlcm": Paper(
        "DLCM",
        "a GRU that reads the list from the last position to the first",
        "Ai et al.: Learning a Deep Listwise Context Model for Ranking Refinement. SIGIR 2018",
    ),
    "rerank_midnn": Paper(
        "MiDNN",
        "a network over each item and its features relative to the list",
        "Zhuang et al.: Globally Optimized Mutual Influence Aware Ranking in E-Commerce Search. IJCAI 2018, "
        "arXiv 1805.08524",
    ),
    "rerank_prm": Paper(
        "PRM",
        "a Transformer encoder over the items of the list",
        "Pei et al.: Personalized Re-ranking for Recommendation. RecSys 2019, arXiv 1904.06813",
    ),
    "rerank_setrank": Paper(
        "SetRank",
        "attention over the set of items",
        "Pang et al.: SetRank: Learning a Permutation-Invariant Ranking Model for Information Retrieval. SIGIR 2020, "
        "arXiv 1912.05891",
    ),
    "rerank_pear": Paper(
        "PEAR",
        "a Transformer over the list and over what the user clicked before",
        "Li et al.: PEAR: Personalized Re-ranking with Contextualized Transformer for Recommendation. WWW 2022 "
        "companion",
    ),
    "rerank_raise": Paper(
        "RAISE",
        "a Transformer whose weights are mixed for each list by the user's intention",
        "Lin et al.: Attention over Self-attention: Intention-aware Re-ranking with Dynamic Transformer Encoders for "
        "Recommendation. TKDE 2022, arXiv 2201.05333",
    ),
}
PRINCIPLES = "Towards Principled Learning for Re-ranking in Recommender Systems. arXiv 2504.04188"
