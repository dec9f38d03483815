"""RAISE: a Transformer whose attention weights are mixed for each list by the user's intention (Lin et al., TKDE)."""

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rerank.errors import InputError
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput, mask_logits
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import HistoryEmbedding, ItemEmbedding
from hf_rerank.models.layers import Context, EncoderBlock, SharedDropout, check_encoder, position_vectors
from hf_rerank.schema import ListBatch


@strict
class RAISEConfig(RerankerConfig):
    """Config of ``RAISEForReranking``.

    LibRerank has no RAISE: its presets take the sizes that it uses throughout (64 wide, dropout 0.2).

    Args:
        hidden_size: Width of the encoder and of the intention's parts.
        num_hidden_layers: Number of encoder blocks.
        num_attention_heads: Number of attention heads; ``hidden_size`` is a multiple of it.
        intermediate_size: Width of the hidden layer in each block.
        num_mixtures: Number T of weight matrices mixed in each projection; 1 is a plain encoder.
        hidden_dropout_prob: Dropout of hidden states, in [0, 1).
    """

    model_type: ClassVar[str] = "rerank_raise"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"hidden_size": 32, "intermediate_size": 32},
        "librerank-ad": {"hidden_size": 64, "intermediate_size": 64, "hidden_dropout_prob": 0.2},
        "librerank-prm": {"hidden_size": 64, "intermediate_size": 64, "hidden_dropout_prob": 0.2},
    }

    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 1
    intermediate_size: int = 64
    num_mixtures: int = 4
    hidden_dropout_prob: float | int = 0.1

    def validate_encoder(self) -> None:
        """Checks ranges and combinations of options, which type checks do not cover."""
        check_encoder(self, num_mixtures=self.num_mixtures)

    def validate_user(self) -> None:
        """Refuses a schema without user and history features."""
        items = self.item_vocab_sizes or self.num_item_dense or self.item_vector_dim
        user = self.user_vocab_sizes or self.num_user_dense
        history = self.history_vocab_sizes or self.num_history_dense
        if items and not user and not history:
            raise InputError(
                "RAISE models the user's intention, and the schema has neither user nor history features: add some, "
                "or choose a model that reads items alone, such as PRM or SetRank"
            )


class RAISEForReranking(PreTrainedReranker):
    """A Transformer encoder whose query, key and value projections are mixtures, weighted by the list's intention.

    - Intention: the user's side ``u_j`` consists of the history items and one vector of the user's features, the
      items' side ``x_i`` of the list, both projected to ``hidden_size``. Affinities ``A_ji = tanh(u_j . W x_i)``; each
      side is summed with weights ``softmax`` of its mean affinity to the other; the intention is both sums,
      concatenated.
    - Encoder: as in PRM, ``(X + PE[P]) W_E + b_E`` and blocks, but in each block and for each of query, key and value
      ``W = sum_t pi_t W^t`` (bias too), ``pi = softmax(MLP(intention))``, each projection with its own matrices.

    The paper computes the intention from review texts, by co-attention of a user's reviews and an item's, for each
    pair of user and item. Lists contain no reviews: one intention per list from history, user and items is our
    adaptation. It does not depend on the given order, so it is computed once for all passes. A history or user that a
    schema or list lacks is left out of the user's side; no dummy values are used. A public port never calls the
    mixtures and uses the query's matrix for key and value too.

    The paper's loss, ``task_loss="own"``, is the binary log-loss.

    When to choose it: if users differ in how they compare items, and the schema has user features or a history; it
    needs one of them. With ``num_mixtures=1`` it is the encoder of ``PRMForReranking``. PEAR instead lets every item
    attend to every history item.
    """

    config: RAISEConfig
    supports_gradient_checkpointing = True

    def __init__(self, config: RAISEConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        width = self.item_embedding.width
        self.positions = nn.Embedding(config.max_list_length, width) if config.position_input == "embedding" else None
        self.projection = nn.Linear(width, config.hidden_size)
        self.intention = Intention(config, self.item_embedding.user_width)
        self.gate = nn.Sequential(
            nn.Linear(2 * config.hidden_size, config.hidden_size),
            nn.ReLU(),
            nn.Linear(config.hidden_size, config.num_hidden_layers * 3 * config.num_mixtures),
        )
        self.blocks = nn.ModuleList(DynamicBlock(config) for _ in range(config.num_hidden_layers))
        self.scorer = nn.Linear(config.hidden_size, 1)
        self.dropout = SharedDropout(config.hidden_dropout_prob, config.hidden_size)
        self.post_init()

    def embed(self, batch: ListBatch) -> Context:
        items = self.item_embedding(batch)
        user = items[:, 0, self.item_embedding.item_width :] if self.item_embedding.user_width else None
        items = self.projection(items)
        history = None
        if self.intention.history_embedding is not None:
            history = self.intention.history_embedding(batch, self.item_embedding)
        intention = self.intention(items, batch.mask, user, history, batch.history_mask)
        mixture = self.gate(intention).unflatten(-1, (-1, 3, self.config.num_mixtures)).softmax(-1)
        return {"items": items, "mixture": mixture, "mask": batch.mask, **self.draw_dropout(batch.mask)}

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        items, mask = context["items"], context["mask"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, F.linear(self.positions.weight, self.projection.weight))
        items = self.dropout(items, context)
        hidden_states, attentions = [items], []
        for number, block in enumerate(self.blocks):
            mixture = context["mixture"][:, number]
            items, weights = block(items, mask, context, mixture, with_weights=self.config.output_attentions)
            hidden_states.append(items)
            attentions.append(weights)
        return RerankerOutput(
            logits=mask_logits(self.scorer(items).squeeze(-1), mask),
            hidden_states=tuple(hidden_states) if self.config.output_hidden_states else None,
            attentions=tuple(attentions) if self.config.output_attentions else None,
        )


class Intention(nn.Module):
    """The user's intention for a list: co-attention of the user side (history, features) and the list's items."""

    def __init__(self, config: RAISEConfig, user_width: int) -> None:
        super().__init__()
        embedding = HistoryEmbedding(config)
        self.history_embedding = embedding if embedding.width else None
        self.of_history = nn.Linear(embedding.width, config.hidden_size) if embedding.width else None
        self.of_user = nn.Linear(user_width, config.hidden_size) if user_width else None
        self.affinity = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, items: Tensor, mask: Tensor, user: Tensor | None, history: Tensor | None, history_mask: Tensor | None
    ) -> Tensor:
        """The intention [B, 2 * hidden_size]: the user's side, then the items'.

        Args:
            items: [B, L, hidden_size].
            mask: bool [B, L].
            user: Features of the user [B, user_width], if the model reads any.
            history: History items [B, H, history width], if the model reads any.
            history_mask: bool [B, H]. None: all are real.
        """
        sides, known = [], []
        if self.of_history is not None and history is not None:
            sides.append(self.of_history(history))
            every = torch.ones(history.shape[:2], dtype=torch.bool, device=items.device)
            known.append(every if history_mask is None else history_mask)
        if self.of_user is not None and user is not None:
            sides.append(self.of_user(user).unsqueeze(1))
            known.append(torch.ones((items.shape[0], 1), dtype=torch.bool, device=items.device))
        side, side_mask = torch.cat(sides, dim=1), torch.cat(known, dim=1)
        affinities = torch.tanh(side @ self.affinity(items).transpose(1, 2))
        both = side_mask.unsqueeze(2) & mask.unsqueeze(1)
        affinities = affinities.masked_fill(~both, 0.0)
        of_side = affinities.sum(2) / mask.sum(1, keepdim=True).clamp(min=1)
        of_items = affinities.sum(1) / side_mask.sum(1, keepdim=True).clamp(min=1)
        return torch.cat([_pool(side, of_side, side_mask), _pool(items, of_items, mask)], dim=-1)


class DynamicBlock(EncoderBlock):
    """An encoder block whose projections are mixed for each list.

    ``mixtures[t]`` holds the t-th matrices of query, key and value, as ``query_key_value`` of a plain block does.
    """

    def __init__(self, config: RAISEConfig) -> None:
        super().__init__(
            config.hidden_size,
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
            config.intermediate_size,
            config.hidden_dropout_prob,
        )
        del self.query_key_value
        self.mixtures = nn.ModuleList(
            nn.Linear(config.hidden_size, 3 * config.hidden_size) for _ in range(config.num_mixtures)
        )

    def forward(  # type: ignore[override]
        self, items: Tensor, mask: Tensor, context: Context, mixture: Tensor, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Items [B, L, hidden_size], and for query, key and value the weights of the mixtures [B, 3, T]."""
        width = items.shape[-1]
        weights = torch.stack([linear.get_parameter("weight") for linear in self.mixtures])
        biases = torch.stack([linear.get_parameter("bias") for linear in self.mixtures])
        # [B, 3, out, in] and [B, 3, 1, out]: one matrix per list, cheaper than T products for lists longer than T.
        weight = torch.einsum("bkt,tkoi->bkoi", mixture, weights.unflatten(1, (3, width)))
        bias = torch.einsum("bkt,tko->bko", mixture, biases.unflatten(1, (3, width))).unsqueeze(2)
        query, key, value = (items.unsqueeze(1) @ weight.transpose(-1, -2) + bias).unbind(1)
        return self.attend_and_transform(items, query, key, value, mask, context, with_weights)


def _pool(vectors: Tensor, affinity: Tensor, mask: Tensor) -> Tensor:
    """Sum of the real vectors [B, N, D], weighted by a softmax of their affinity [B, N]; 0 if there are none."""
    # A finite number, not -inf: the softmax over nothing stays finite, and its weights are set to 0.
    weights = affinity.masked_fill(~mask, torch.finfo(affinity.dtype).min).softmax(-1)
    return (weights.masked_fill(~mask, 0.0).unsqueeze(1) @ vectors).squeeze(1)
