"""The re-rankers. Importing this package adds them to ``AutoConfig``, ``AutoModel``, ``AutoFeatureExtractor``."""

from hf_rerank.models.auto import RERANKERS, AutoReranker, register_reranker, reranker_classes
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.dlcm import DLCMConfig, DLCMForReranking
from hf_rerank.models.dnn import DNNConfig, DNNForReranking
from hf_rerank.models.midnn import MiDNNConfig, MiDNNForReranking
from hf_rerank.models.pear import PEARConfig, PEARForReranking
from hf_rerank.models.prm import PRMConfig, PRMForReranking
from hf_rerank.models.raise_ import RAISEConfig, RAISEForReranking
from hf_rerank.models.setrank import SetRankConfig, SetRankForReranking

__all__ = [
    "RERANKERS",
    "AutoReranker",
    "DLCMConfig",
    "DLCMForReranking",
    "DNNConfig",
    "DNNForReranking",
    "MiDNNConfig",
    "MiDNNForReranking",
    "PEARConfig",
    "PEARForReranking",
    "PRMConfig",
    "PRMForReranking",
    "PreTrainedReranker",
    "RAISEConfig",
    "RAISEForReranking",
    "RerankerConfig",
    "RerankerOutput",
    "SetRankConfig",
    "SetRankForReranking",
    "register_reranker",
    "reranker_classes",
]
