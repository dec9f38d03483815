"""Model cards, and pushing re-rankers to the Hub. Each re-ranker, processor and trainer also has ``push_to_hub``."""

from hf_rerank.hub.card import model_card
from hf_rerank.hub.push import push_model

__all__ = ["model_card", "push_model"]
