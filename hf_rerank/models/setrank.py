"""SetRank: attention over the set of items, the same for every order of them (Pang et al., SIGIR 2020)."""

from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from hf_rerank.errors import InputError
from hf_rerank.models.base import Context, PreTrainedReranker, RerankerConfig, RerankerOutput, padded_low
from hf_rerank.models.layers import EncoderBlock, ItemEmbedding, check_encoder, position_vectors


@strict
class SetRankConfig(RerankerConfig):
    """Config of ``SetRankForReranking``.

    The defaults are small; ``preset("paper")`` has the sizes of the authors' code.

    Args:
        d_model: Width of the encoder.
        num_blocks: Blocks.
        num_heads: Attention heads; ``d_model`` is a multiple of it.
        inner_width: Of the hidden layer in each block.
        num_inducing: Inducing points M of each block: items look at M vectors that have looked at them (IMSAB). 0:
            items look at each other (MSAB).
        dropout: In [0, 1).
        position_input: ``ordinal``: a learnable vector of its place in the order shown is added to each item (the
            paper's ordinal embedding). ``none``: the model is permutation-equivariant.
    """

    model_type: ClassVar[str] = "rerank_setrank"
    own_task_loss: ClassVar[str] = "attention_rank_loss"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "d_model": 256,
            "num_blocks": 6,
            "num_heads": 8,
            "inner_width": 1024,
            "num_inducing": 20,
            "task_loss": "own",
        },
        "librerank-ad": {
            "d_model": 256,
            "num_blocks": 1,
            "num_heads": 8,
            "inner_width": 64,
            "dropout": 0.2,
            "position_input": "none",
            "task_loss": "own",
        },
        "librerank-prm": {
            "d_model": 256,
            "num_blocks": 1,
            "num_heads": 8,
            "inner_width": 64,
            "dropout": 0.2,
            "position_input": "none",
            "task_loss": "own",
        },
    }

    d_model: int = 64
    num_blocks: int = 2
    num_heads: int = 2
    inner_width: int = 128
    num_inducing: int = 0
    dropout: float | int = 0.0
    position_input: Literal["ordinal", "none"] = "ordinal"  # type: ignore[assignment]

    def validate_encoder(self) -> None:
        """Checks what types cannot say."""
        check_encoder(self)
        if self.num_inducing < 0:
            raise InputError(f"num_inducing is {self.num_inducing}: expected at least 0")


class SetRankForReranking(PreTrainedReranker):
    """Blocks of multi-head self-attention over the items as a set, one score an item.

    ``MAB(Q, K, V) = LN(B + FFN(B))``, ``B = LN(Q + Multihead(Q, K, V))``; ``MSAB(X) = MAB(X, X, X)``;
    ``IMSAB(X) = MAB(X, I', I')`` with ``I' = MAB(I, X, X)`` and learnable points ``I`` (equations 4 to 7 of the
    paper). Multihead has an output projection and linear query, key and value, as the paper writes; the authors' code
    has no projection, a ReLU on each of the three, no FFN in ``I'``, and adds the ordinal embedding before every block
    instead of once. Items enter through one ReLU layer, as in that code without its Gaussian features. Without the
    ordinal embedding the scores of permuted items are the permuted scores.

    The paper's loss, ``task_loss="own"``, is the attention-rank loss of the scores as they are; LibRerank squashes
    them into (0, 1) before it, where its gradient nearly vanishes, and looks at padding.
    """

    config: SetRankConfig

    def __init__(self, config: SetRankConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        with_vectors = config.position_input == "ordinal"
        self.positions = nn.Embedding(config.max_list_length, config.d_model) if with_vectors else None
        self.projection = nn.Linear(self.item_embedding.width, config.d_model)
        self.blocks = nn.ModuleList(
            InducedBlock(config) if config.num_inducing else _block(config) for _ in range(config.num_blocks)
        )
        self.scorer = nn.Linear(config.d_model, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InducedBlock):
            init.xavier_uniform_(module.points)

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
        return {"items": F.relu(self.projection(items)), "mask": mask}

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        items, mask = context["items"], context["mask"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, self.positions.weight)
        items = self.dropout(items)
        hidden_states, attentions = [items], []
        for block in self.blocks:
            items, weights = block(items, mask, with_weights=self.config.output_attentions)
            hidden_states.append(items)
            attentions.append(weights)
        return RerankerOutput(
            logits=padded_low(self.scorer(items).squeeze(-1), mask),
            hidden_states=tuple(hidden_states) if self.config.output_hidden_states else None,
            attentions=tuple(attentions) if self.config.output_attentions else None,
        )


class InducedBlock(nn.Module):
    """IMSAB: M learnable points look at the items, and the items at what the points have become.

    Cost grows with M times the list's length instead of its square. As attention weights it gives the items' weights
    on the points times the points' weights on the items, [B, heads, L, L].
    """

    def __init__(self, config: SetRankConfig) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(config.num_inducing, config.d_model))
        self.of_points, self.of_items = _block(config), _block(config)

    def forward(self, items: Tensor, mask: Tensor, with_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        points = self.points.to(items.dtype).expand(items.shape[0], -1, -1)
        points, gathered = _looking_at(self.of_points, points, items, mask, with_weights)
        every = torch.ones(points.shape[:2], dtype=torch.bool, device=items.device)
        items, spread = _looking_at(self.of_items, items, points, every, with_weights)
        return items, None if spread is None or gathered is None else spread @ gathered


def _looking_at(
    block: EncoderBlock, queries: Tensor, items: Tensor, mask: Tensor, with_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """MAB of ``queries`` on ``items``: the block's query projection for the one, key and value for the other."""
    width = block.num_heads * block.head_dim
    weight, bias = block.query_key_value.weight, block.query_key_value.bias
    query = F.linear(queries, weight[:width], bias[:width])
    key, value = F.linear(items, weight[width:], bias[width:]).chunk(2, -1)
    return block.attended(queries, query, key, value, mask, with_weights)


def _block(config: SetRankConfig) -> EncoderBlock:
    head_dim = config.d_model // config.num_heads
    return EncoderBlock(config.d_model, config.num_heads, head_dim, config.inner_width, config.dropout)
