"""MiDNN: a network over each item and its features relative to the list (Zhuang et al., IJCAI 2018)."""

from dataclasses import field
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from hf_rerank.models.base import PreTrainedReranker, RerankerOutput, mask_logits
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import ItemEmbedding
from hf_rerank.models.layers import MLP, Context, check_sizes, position_vectors
from hf_rerank.schema import ListBatch


@strict
class MiDNNConfig(RerankerConfig):
    """Config of ``MiDNNForReranking``.

    The hidden layers are those of the public benchmark's code (LibRerank); the paper only says that there are three.

    Args:
        hidden_sizes: Widths of the hidden layers.
        hidden_dropout_prob: Dropout after each hidden layer, in [0, 1).
        global_features: Which features of an item are also given relative to the list: ``all`` of them, including
            embeddings and position, or only the ``dense`` ones (numbers and vectors), without the position.
    """

    model_type: ClassVar[str] = "rerank_midnn"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"position_input": "none"},
        "librerank-ad": {"position_input": "none", "hidden_dropout_prob": 0.2},
        "librerank-prm": {"position_input": "none", "hidden_dropout_prob": 0.2},
    }

    hidden_sizes: list[int] = field(default_factory=lambda: [512, 256, 128])
    hidden_dropout_prob: float | int = 0.0
    global_features: Literal["all", "dense"] = "all"

    def validate_network(self) -> None:
        """Checks ranges and combinations of options, which type checks do not cover."""
        check_sizes(self.hidden_dropout_prob, hidden_sizes=self.hidden_sizes)


class MiDNNForReranking(PreTrainedReranker):
    """Scores each item from its features, absolute and relative to the list's smallest and largest values.

    ``score_i = MLP([x_i ; user ; g_i])`` with the global features ``g_i = (x_i - low) / (high - low)``, where low and
    high are the smallest and the largest value of a feature over the list's real items; a feature that is equal for
    all items gives 0. The position of an item, which the original does not read, is added to ``x_i`` as a vector. The
    user's features are the same for all items, so they have no global form.

    LibRerank's code takes the minimum and maximum over padding too, and normalises the network's input over the batch;
    this model does neither. The paper's loss, ``task_loss="own"``, is the binary log-loss.

    When to choose it: if numeric features are strong and it matters how an item compares with the rest of the list,
    such as whether it is the cheapest. It is ``DNNForReranking`` with relative features: the cheapest model with
    context, without attention. Other models get similar inputs with ``relative_features=True``. Attention (PRM,
    SetRank) can also learn interactions between pairs of items.
    """

    config: MiDNNConfig

    def __init__(self, config: MiDNNConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        local = self.item_embedding.item_width
        self.dense_width = config.num_item_dense + config.item_vector_dim
        self.positions = nn.Embedding(config.max_list_length, local) if config.position_input == "embedding" else None
        width = self.item_embedding.width + (local if config.global_features == "all" else self.dense_width)
        self.network = MLP(width, config.hidden_sizes, config.hidden_dropout_prob)
        self.scorer = nn.Linear(config.hidden_sizes[-1], 1)
        self.post_init()

    def embed(self, batch: ListBatch) -> Context:
        items = self.item_embedding(batch)
        return {"items": items, "mask": batch.mask, **self.draw_dropout(batch.mask)}

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        mask = context["mask"]
        own = self.item_embedding.item_width
        items, user = context["items"][..., :own], context["items"][..., own:]
        # The item's own part ends with its dense features and vectors, which are compared as they are.
        numbers = items[..., own - self.dense_width :]
        if self.positions is not None:
            items = items + position_vectors(position_ids, self.positions.weight)
        compared = items if self.config.global_features == "all" else numbers
        features = torch.cat([items, user, compute_global_features(compared, mask)], dim=-1)
        return RerankerOutput(logits=mask_logits(self.scorer(self.network(features, context)).squeeze(-1), mask))


def compute_global_features(items: Tensor, mask: Tensor) -> Tensor:
    """Scales each feature to [0, 1] by its smallest and largest value in the list; 0 where all are equal.

    Args:
        items: [B, L, F].
        mask: bool [B, L]; padding is not read, and its entries in the result are meaningless.
    """
    real, finite = mask.unsqueeze(-1), torch.finfo(items.dtype)
    low = items.masked_fill(~real, finite.max).amin(1, keepdim=True)
    high = items.masked_fill(~real, finite.min).amax(1, keepdim=True)
    # Without items low is above high; the difference of these two would be infinite.
    varies = high > low
    span = torch.where(varies, high, 1.0) - torch.where(varies, low, 0.0)
    return torch.where(real & varies, items - torch.where(varies, low, 0.0), 0.0) / span
