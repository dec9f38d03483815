"""Model cards, and pushing re-rankers to the Hub. Each re-ranker, processor and trainer also has ``push_to_hub``."""

from hf_rerank.hub.card import card_from_summary, model_card
from hf_rerank.hub.push import push_model

__all__ = ["card_from_summary", "model_card", "push_model"]
