"""SetRank: permutation-equivariant attention over the set of items (Pang et al., SIGIR 2020)."""

from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_rerank.errors import InputError
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput, mask_logits
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import ItemEmbedding
from hf_rerank.models.layers import Context, EncoderBlock, SharedDropout, check_encoder, position_vectors
from hf_rerank.schema import ListBatch


@strict
class SetRankConfig(RerankerConfig):
    """Config of ``SetRankForReranking``.

    The defaults are small; ``preset("paper")`` has the sizes of the authors' code.

    Args:
        hidden_size: Width of the encoder.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Number of attention heads; ``hidden_size`` is a multiple of it.
        intermediate_size: Width of the hidden layer in each block.
        num_inducing_points: Number M of inducing points of each block: items attend to M vectors that have attended to
            them (IMSAB). 0: items attend to each other (MSAB).
        hidden_dropout_prob: Dropout of hidden states, in [0, 1).
        position_input: ``ordinal``: a learnable vector of the item's position in the given order is added to it (the
            paper's ordinal embedding). ``none``: the model is permutation-equivariant.
    """

    model_type: ClassVar[str] = "rerank_setrank"
    own_task_loss: ClassVar[str] = "attention_rank_loss"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "hidden_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "intermediate_size": 1024,
            "num_inducing_points": 20,
            "task_loss": "own",
        },
        "librerank-ad": {
            "hidden_size": 256,
            "num_hidden_layers": 1,
            "num_attention_heads": 8,
            "intermediate_size": 64,
            "hidden_dropout_prob": 0.2,
            "position_input": "none",
            "task_loss": "own",
        },
        "librerank-prm": {
            "hidden_size": 256,
            "num_hidden_layers": 1,
            "num_attention_heads": 8,
            "intermediate_size": 64,
            "hidden_dropout_prob": 0.2,
            "position_input": "none",
            "task_loss": "own",
        },
    }

    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 128
    num_inducing_points: int = 0
    hidden_dropout_prob: float | int = 0.0
    position_input: Literal["ordinal", "none"] = "ordinal"  # type: ignore[assignment]

    def validate_encoder(self) -> None:
        """Checks ranges and combinations of options, which type checks do not cover."""
        check_encoder(self)
        if self.num_inducing_points < 0:
            raise InputError(f"num_inducing_points is {self.num_inducing_points}: expected at least 0")


class SetRankForReranking(PreTrainedReranker):
    """Blocks of multi-head self-attention over the items as a set, one score per item.

    ``MAB(Q, K, V) = LN(B + FFN(B))``, ``B = LN(Q + Multihead(Q, K, V))``; ``MSAB(X) = MAB(X, X, X)``;
    ``IMSAB(X) = MAB(X, I', I')`` with ``I' = MAB(I, X, X)`` and learnable points ``I`` (equations 4 to 7 of the
    paper). Multihead has an output projection and linear query, key and value, as the paper writes; the authors' code
    has no projection, a ReLU on each of the three, no FFN in ``I'``, and adds the ordinal embedding before every block
    instead of once. Items enter through one ReLU layer, as in that code without its Gaussian features. Without the
    ordinal embedding the scores of permuted items are the permuted scores.

    The paper's loss, ``task_loss="own"``, is the attention-rank loss of the raw scores; LibRerank applies a sigmoid
    first, which nearly removes the gradient, and attends to padding.

    When to choose it: if the ranking should not depend on the given order (``position_input="none"``, which satisfies
    both principles exactly), or for long lists: with M inducing points a block costs L times M instead of L squared.
    With an order and short lists it is close to ``PRMForReranking``.
    """

    config: SetRankConfig
    supports_gradient_checkpointing = True

    def __init__(self, config: SetRankConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        with_vectors = config.position_input == "ordinal"
        self.positions = nn.Embedding(config.max_list_length, config.hidden_size) if with_vectors else None
        self.projection = nn.Linear(self.item_embedding.width, config.hidden_size)
        self.blocks = nn.ModuleList(
            InducedBlock(config) if config.num_inducing_points else _make_block(config)
            for _ in range(config.num_hidden_layers)
        )
        self.scorer = nn.Linear(config.hidden_size, 1)
        self.dropout = SharedDropout(config.hidden_dropout_prob, config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InducedBlock):
            init.xavier_uniform_(module.points)

    def embed(self, batch: ListBatch) -> Context:
        items = self.item_embedding(batch)
        return {"items": F.relu(self.projection(items)), "mask": batch.mask, **self.draw_dropout(batch.mask)}

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        items, mask = context["items"], context["mask"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, self.positions.weight)
        items = self.dropout(items, context)
        hidden_states, attentions = [items], []
        for block in self.blocks:
            items, weights = block(items, mask, context, with_weights=self.config.output_attentions)
            hidden_states.append(items)
            attentions.append(weights)
        return RerankerOutput(
            logits=mask_logits(self.scorer(items).squeeze(-1), mask),
            hidden_states=tuple(hidden_states) if self.config.output_hidden_states else None,
            attentions=tuple(attentions) if self.config.output_attentions else None,
        )


class InducedBlock(GradientCheckpointingLayer):
    """IMSAB: M learnable points attend to the items, and the items to the points' outputs.

    The cost grows with M times the list's length instead of its square. Its attention weights, [B, heads, L, L], are
    the items' weights on the points times the points' weights on the items.
    """

    def __init__(self, config: SetRankConfig) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(config.num_inducing_points, config.hidden_size))
        self.of_points, self.of_items = _make_block(config, length=config.num_inducing_points), _make_block(config)

    def forward(
        self, items: Tensor, mask: Tensor, context: Context, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        points = self.points.to(items.dtype).expand(items.shape[0], -1, -1)
        points, gathered = _attend_to(self.of_points, points, items, mask, context, with_weights)
        every = torch.ones(points.shape[:2], dtype=torch.bool, device=items.device)
        items, spread = _attend_to(self.of_items, items, points, every, context, with_weights)
        return items, None if spread is None or gathered is None else spread @ gathered


def _attend_to(
    block: EncoderBlock, queries: Tensor, items: Tensor, mask: Tensor, context: Context, with_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """``MAB(queries, items, items)``: the block's projections give queries from the former, keys and values from the
    latter.
    """
    width = block.num_heads * block.head_dim
    weight, bias = block.query_key_value.weight, block.query_key_value.bias
    query = F.linear(queries, weight[:width], bias[:width])
    key, value = F.linear(items, weight[width:], bias[width:]).chunk(2, -1)
    return block.attend_and_transform(queries, query, key, value, mask, context, with_weights)


def _make_block(config: SetRankConfig, *, length: int | None = None) -> EncoderBlock:
    return EncoderBlock(
        config.hidden_size,
        config.num_attention_heads,
        config.hidden_size // config.num_attention_heads,
        config.intermediate_size,
        config.hidden_dropout_prob,
        length=length,
    )
