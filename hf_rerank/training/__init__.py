"""Training re-rankers with the transformers Trainer."""

from hf_rerank.training.arguments import RerankTrainingArguments
from hf_rerank.training.plotting import PlotCallback
from hf_rerank.training.trainer import RerankTrainer

__all__ = ["PlotCallback", "RerankTrainer", "RerankTrainingArguments"]
