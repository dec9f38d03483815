"""Training re-rankers with the transformers Trainer."""

from hf_rerank.training.adaptation import adapt
from hf_rerank.training.arguments import RerankTrainingArguments
from hf_rerank.training.callbacks import PlotCallback
from hf_rerank.training.freezing import freeze
from hf_rerank.training.trainer import RerankTrainer

__all__ = ["PlotCallback", "RerankTrainer", "RerankTrainingArguments", "adapt", "freeze"]
