"""The pointwise DNN: scores each item separately, as initial rankers do; the baseline of all tables."""

from dataclasses import field
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from hf_rerank.models.base import PreTrainedReranker, RerankerOutput, mask_logits
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import ItemEmbedding
from hf_rerank.models.layers import MLP, Context, check_sizes, count_positions, position_vectors
from hf_rerank.schema import ListBatch


@strict
class DNNConfig(RerankerConfig):
    """Config of ``DNNForReranking``.

    Args:
        hidden_sizes: Widths of the hidden layers.
        hidden_dropout_prob: Dropout after each hidden layer, in [0, 1).
    """

    model_type: ClassVar[str] = "rerank_dnn"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"hidden_sizes": [500, 200, 80]},
        "librerank-ad": {"hidden_sizes": [500, 200, 80], "position_input": "none"},
        "librerank-prm": {"hidden_sizes": [500, 200, 80], "position_input": "none"},
    }

    hidden_sizes: list[int] = field(default_factory=lambda: [500, 200, 80])
    hidden_dropout_prob: float | int = 0.0

    def validate_network(self) -> None:
        """Checks ranges and combinations of options, which type checks do not cover."""
        check_sizes(self.hidden_dropout_prob, hidden_sizes=self.hidden_sizes)


class DNNForReranking(PreTrainedReranker):
    """Scores each item from its own features, the user's features and its position in the given order.

    ``score_i = MLP(x_i + PE[P_i])``, ``x_i`` the features of item and user, ``PE`` a learnable vector per position.
    Its own loss, ``task_loss="own"``, is the binary log-loss.

    When to choose it: as the baseline that a re-ranker has to beat. It never reads the other items of the list, so its
    gap to ``MiDNNForReranking``, which compares each item with the list, and to the models with attention is the value
    of context. With ``position_input="none"`` it is an ordinary pointwise ranker. Its last hidden layer
    gives PRM's personalised vectors (``encode_items``).
    """

    config: DNNConfig

    def __init__(self, config: DNNConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        width = self.item_embedding.width
        self.positions = nn.Embedding(config.max_list_length, width) if config.position_input == "embedding" else None
        self.network = MLP(width, config.hidden_sizes, config.hidden_dropout_prob)
        self.scorer = nn.Linear(config.hidden_sizes[-1], 1)
        self.post_init()

    def embed(self, batch: ListBatch) -> Context:
        items = self.item_embedding(batch)
        return {"items": items, "mask": batch.mask, **self.draw_dropout(batch.mask)}

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        scores = self.scorer(self._encode_items(context, position_ids)).squeeze(-1)
        return RerankerOutput(logits=mask_logits(scores, context["mask"]))

    def encode_items(self, **features: Tensor) -> Tensor:
        """The activations of the last hidden layer, [B, L, D]: the personalised vector of an item in PRM's paper.

        Args:
            features: Inputs of ``forward``, including ``mask``.
        """
        batch = ListBatch(**features)
        positions = count_positions(batch.mask) if batch.position_ids is None else batch.position_ids
        return self._encode_items(self.embed(batch), positions)

    def _encode_items(self, context: Context, position_ids: Tensor) -> Tensor:
        items = context["items"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, self.positions.weight)
        return self.network(items, context)
