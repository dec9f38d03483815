"""The pointwise DNN: a network over each item on its own, as initial rankers use it; the baseline of every table."""

from dataclasses import field
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from hf_rerank.models.base import Context, PreTrainedReranker, RerankerConfig, RerankerOutput, padded_low
from hf_rerank.models.layers import ItemEmbedding, check_sizes, mlp, position_vectors


@strict
class DNNConfig(RerankerConfig):
    """Config of ``DNNForReranking``.

    Args:
        hidden_sizes: Widths of the hidden layers.
        dropout: After each hidden layer, in [0, 1).
    """

    model_type: ClassVar[str] = "rerank_dnn"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"hidden_sizes": [500, 200, 80]},
        "librerank-ad": {"hidden_sizes": [500, 200, 80], "position_input": "none"},
        "librerank-prm": {"hidden_sizes": [500, 200, 80], "position_input": "none"},
    }

    hidden_sizes: list[int] = field(default_factory=lambda: [500, 200, 80])
    dropout: float | int = 0.0

    def validate_network(self) -> None:
        """Checks what types cannot say."""
        check_sizes(self.dropout, hidden_sizes=self.hidden_sizes)


class DNNForReranking(PreTrainedReranker):
    """Scores each item from its own features, the user's, and the position at which it is shown.

    ``score_i = MLP([x_i] + position vector of P_i)``; it never looks at the other items.
    """

    config: DNNConfig

    def __init__(self, config: DNNConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        width = self.item_embedding.width
        self.positions = nn.Embedding(config.max_list_length, width) if config.position_input == "embedding" else None
        hidden = mlp(width, config.hidden_sizes, config.dropout)
        self.network = nn.Sequential(*hidden, nn.Linear(config.hidden_sizes[-1], 1))
        self.post_init()

    def embed(
        self,
        item_categorical: Tensor,
        item_dense: Tensor | None,
        item_vectors: Tensor | None,
        user_categorical: Tensor | None,
        user_dense: Tensor | None,
        history_categorical: Tensor | None,
        history_dense: Tensor | None,
        history_mask: Tensor | None,
        mask: Tensor,
    ) -> Context:
        items = self.item_embedding(item_categorical, item_dense, item_vectors, user_categorical, user_dense)
        return {"items": items, "mask": mask}

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        items = context["items"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, self.positions.weight)
        return RerankerOutput(logits=padded_low(self.network(items).squeeze(-1), context["mask"]))
