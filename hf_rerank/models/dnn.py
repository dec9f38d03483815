"""The pointwise DNN: a network over each item on its own, as initial rankers use it; the baseline of every table."""

from dataclasses import field
from typing import Any, ClassVar

import torch
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
        scores = self.network[-1](self._last_hidden(context, position_ids)).squeeze(-1)
        return RerankerOutput(logits=padded_low(scores, context["mask"]))

    def last_hidden(self, mask: Tensor, position_ids: Tensor | None = None, **features: Tensor) -> Tensor:
        """What the last hidden layer holds of each item, [B, L, D]; the paper of PRM calls it personalised vector.

        Args:
            mask: As of ``forward``.
            position_ids: As of ``forward``.
            features: The other features of ``forward``.
        """
        names = ("item_dense", "item_vectors", "user_categorical", "user_dense")
        items = self.item_embedding(features["item_categorical"], *(features.get(name) for name in names))
        places = torch.arange(mask.shape[1]).expand(mask.shape) if position_ids is None else position_ids
        return self._last_hidden({"items": items, "mask": mask}, places)

    def _last_hidden(self, context: Context, position_ids: Tensor) -> Tensor:
        items = context["items"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, self.positions.weight)
        return self.network[:-1](items)
