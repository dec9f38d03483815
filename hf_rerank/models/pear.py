"""PEAR: a Transformer over the list and the user's click history (Li et al., WWW 2022 companion)."""

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from hf_rerank.errors import InputError
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput, mask_logits
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import HistoryEmbedding, ItemEmbedding
from hf_rerank.models.layers import (
    Context,
    EncoderBlock,
    SharedDropout,
    check_encoder,
    draw_dropout,
    position_vectors,
)
from hf_rerank.schema import ListBatch


@strict
class PEARConfig(RerankerConfig):
    """Config of ``PEARForReranking``.

    The defaults are small; ``preset("paper")`` has the paper's width of 500. LibRerank has no PEAR: its presets take
    the sizes that it uses throughout (64 wide, dropout 0.2).

    Args:
        feature_hidden_size: Hidden layer of the two-layer networks over features: one for the list, one for the
            history.
        hidden_size: Width of the encoder.
        num_hidden_layers: Number of units, each of self-attention over the history and merged cross-attention of the
            list.
        num_attention_heads: Number of attention heads; ``hidden_size`` is a multiple of it.
        intermediate_size: Width of the hidden layer in each block.
        hidden_dropout_prob: Dropout of hidden states, in [0, 1).
        list_loss_weight: Weight of the log-loss of the list's token, "is any item of the list clicked", which is added
            to the task loss. 0: no such token, and no ``list_logits``. If every list has a click, as in PRM Public,
            there is nothing to learn from it.
    """

    model_type: ClassVar[str] = "rerank_pear"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"feature_hidden_size": 500, "hidden_size": 500, "intermediate_size": 500},
        "librerank-ad": {"feature_hidden_size": 64, "intermediate_size": 64, "hidden_dropout_prob": 0.2},
        "librerank-prm": {"feature_hidden_size": 64, "intermediate_size": 64, "hidden_dropout_prob": 0.2},
    }

    feature_hidden_size: int = 128
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 128
    hidden_dropout_prob: float | int = 0.1
    list_loss_weight: float | int = 1.0

    def validate_encoder(self) -> None:
        """Checks ranges and combinations of options, which type checks do not cover."""
        check_encoder(self, feature_hidden_size=self.feature_hidden_size)
        if not 0 <= self.list_loss_weight < float("inf"):
            raise InputError(f"list_loss_weight is {self.list_loss_weight}: expected a finite number of at least 0")


class PEARForReranking(PreTrainedReranker):
    """A Transformer whose items attend to each other and to the user's click history in one softmax.

    - Features: ``z = MLP([user ; item])``, for the list and for the history, each with its own network.
    - Unit l: ``H_l = SelfAttention(H_(l-1))`` over the history; the list's queries attend to the keys and values of
      both ``H_l`` and the list, projected separately, in one softmax (the paper's merged cross-attention).
    - A learnable token is appended to the list. Its score, ``list_logits``, says whether any item is clicked.

    The position vector, which the principles need, is added to ``z``. With an empty history, or a schema without one,
    exactly the self-attention of the list remains; no dummy values are put in its place. Public ports drop history,
    user and mask, or use the history as the queries and the list as keys and values.

    When to choose it: if lists come with a click history. Its list token also predicts whether a list gets any click,
    which helps only if some lists get none. Without a history, and with ``list_loss_weight=0``, it is close to
    ``PRMForReranking``; RAISE reads the history through one vector per list, which is cheaper for long histories.

    The paper's loss, ``task_loss="own"``, is the binary log-loss of the items and, with weight ``list_loss_weight``,
    that of the token; the latter is added to every other task loss too. Attention weights, on request, are
    [B, heads, L + 1, H + L + 1]: history items, items, the token (without the 1 if there is no token, without the H if
    the schema has no history). Hidden states are [B, L + 1, hidden_size].
    """

    config: PEARConfig
    supports_gradient_checkpointing = True

    def __init__(self, config: PEARConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        self.item_network = _make_feature_network(self.item_embedding.width, config)
        with_vectors = config.position_input == "embedding"
        self.positions = nn.Embedding(config.max_list_length, config.hidden_size) if with_vectors else None
        embedding = HistoryEmbedding(config)
        self.history_embedding = embedding if embedding.width else None
        if self.history_embedding is not None:
            self.history_network = _make_feature_network(embedding.width + self.item_embedding.user_width, config)
            self.history_blocks = nn.ModuleList(
                _make_block(EncoderBlock, config) for _ in range(config.num_hidden_layers)
            )
            self.history_dropout = SharedDropout(config.hidden_dropout_prob, config.hidden_size)
        kind = MergedBlock if self.history_embedding is not None else EncoderBlock
        token = 1 if config.list_loss_weight else 0
        self.blocks = nn.ModuleList(_make_block(kind, config, extra=token) for _ in range(config.num_hidden_layers))
        self.scorer = nn.Linear(config.hidden_size, 1)
        self.list_token, self.list_scorer = None, None
        if config.list_loss_weight:
            self.list_token = nn.Parameter(torch.empty(config.hidden_size))
            self.list_scorer = nn.Linear(config.hidden_size, 1)
        self.dropout = SharedDropout(config.hidden_dropout_prob, config.hidden_size, extra=token)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.list_token is not None:
            init.trunc_normal_(self.list_token, std=self.config.initializer_range)

    def embed(self, batch: ListBatch) -> Context:
        items = self.item_embedding(batch)
        context = {"items": self.item_network(items), "mask": batch.mask, **self.draw_dropout(batch.mask)}
        if self.history_embedding is None:
            return context
        history = self.history_embedding(batch, self.item_embedding)
        if self.item_embedding.user_width:
            user = items[:, :1, self.item_embedding.item_width :]
            history = torch.cat([history, user.expand(-1, history.shape[1], -1)], dim=-1)
        history_mask = batch.history_mask
        if history_mask is None:
            history_mask = torch.ones(history.shape[:2], dtype=torch.bool, device=history.device)
        dropped = draw_dropout(history_mask, self.history_dropout, self.history_blocks)
        history = self.history_dropout(self.history_network(history), dropped)
        # The history does not depend on the list's order, so its units are run once for all passes.
        for number, block in enumerate(self.history_blocks):
            history, _ = block(history, history_mask, dropped)
            context[f"history_{number}"] = history
        return {**context, "history_mask": history_mask}

    def draw_dropout(self, mask: Tensor) -> Context:
        return draw_dropout(mask, self.dropout, self.blocks)

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        items, mask = context["items"], context["mask"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, self.positions.weight)
        attention_mask, length = mask, mask.shape[1]
        if self.list_token is not None:
            items = torch.cat([items, self.list_token.to(items.dtype).expand(items.shape[0], 1, -1)], dim=1)
            attention_mask = F.pad(mask, (0, 1), value=True)
        items = self.dropout(items, context)
        hidden_states, attentions = [items], []
        for number, block in enumerate(self.blocks):
            merged = (context[f"history_{number}"], context["history_mask"]) if isinstance(block, MergedBlock) else ()
            items, weights = block(items, attention_mask, context, *merged, with_weights=self.config.output_attentions)
            hidden_states.append(items)
            attentions.append(weights)
        list_logits = None if self.list_scorer is None else self.list_scorer(items[:, length]).squeeze(-1)
        return RerankerOutput(
            logits=mask_logits(self.scorer(items[:, :length]).squeeze(-1), mask),
            list_logits=list_logits,
            hidden_states=tuple(hidden_states) if self.config.output_hidden_states else None,
            attentions=tuple(attentions) if self.config.output_attentions else None,
        )

    def check_propensity_loss(self) -> None:
        super().check_propensity_loss()
        if self.list_token is not None:
            raise InputError(
                "the lists have propensities, and PEAR's list loss (is any item clicked?) cannot be corrected by "
                "them: set list_loss_weight=0 in the model's config, or propensity_floor=1 to train on the clicks as "
                "they are"
            )

    def task_loss(
        self,
        output: RerankerOutput,
        labels: Tensor,
        mask: Tensor,
        weights: Tensor | None = None,
        propensities: Tensor | None = None,
    ) -> Tensor:
        loss = super().task_loss(output, labels, mask, weights, propensities)
        if output.list_logits is None:
            return loss
        logits = output.list_logits.to(torch.promote_types(output.list_logits.dtype, torch.float32))
        clicked = ((labels > 0) & mask).any(-1).to(logits.dtype)
        per_list = F.binary_cross_entropy_with_logits(logits, clicked, reduction="none")
        some = mask.any(-1)
        list_loss = torch.where(some, per_list, 0.0).sum() / some.sum().clamp(min=1)
        return loss + self.config.list_loss_weight * list_loss


class MergedBlock(EncoderBlock):
    """An encoder block whose items also attend to the history's items, through separate projections."""

    def __init__(
        self, hidden_size: int, num_heads: int, head_dim: int, intermediate_size: int, dropout: float, **rows: int
    ) -> None:
        super().__init__(hidden_size, num_heads, head_dim, intermediate_size, dropout, **rows)
        self.history_key_value = nn.Linear(hidden_size, 2 * num_heads * head_dim)

    def forward(  # type: ignore[override]
        self,
        items: Tensor,
        mask: Tensor,
        context: Context,
        history: Tensor,
        history_mask: Tensor,
        with_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Items [B, L, hidden_size] and history [B, H, hidden_size] -> items; on request also attention weights.

        Weights are [B, heads, L, H + L].
        """
        query, key, value = self.query_key_value(items).chunk(3, -1)
        history_key, history_value = self.history_key_value(history).chunk(2, -1)
        key, value = torch.cat([history_key, key], dim=1), torch.cat([history_value, value], dim=1)
        attention_mask = torch.cat([history_mask, mask], dim=1)
        return self.attend_and_transform(items, query, key, value, attention_mask, context, with_weights)


def _make_feature_network(width: int, config: PEARConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, config.feature_hidden_size),
        nn.ReLU(),
        nn.Linear(config.feature_hidden_size, config.hidden_size),
    )


def _make_block(kind: type[EncoderBlock], config: PEARConfig, *, extra: int = 0) -> EncoderBlock:
    return kind(
        config.hidden_size,
        config.num_attention_heads,
        config.hidden_size // config.num_attention_heads,
        config.intermediate_size,
        config.hidden_dropout_prob,
        extra=extra,
    )
