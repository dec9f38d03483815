"""Blocks that three or more re-rankers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rerank.errors import InputError
from hf_rerank.models.base import RerankerConfig
from hf_rerank.vocabularies import UNKNOWN


def position_vectors(position_ids: Tensor, table: Tensor) -> Tensor:
    """The vectors of the places at which items are shown.

    Args:
        position_ids: int64 [B, L]; or a soft order, float [B, L, L], whose vectors are the mean over its places.
        table: [places, D], one row a place.

    Returns:
        [B, L, D].
    """
    if position_ids.is_floating_point():
        return position_ids.to(table.dtype) @ table[: position_ids.shape[-1]]
    return F.embedding(position_ids, table)


class ItemEmbedding(nn.Module):
    """Features of items, and of the list's user beside each item, as one vector an item.

    Each categorical feature has its own table ``embedding_dim`` wide; dense features and vectors join as they are:
    ``[item tables ; item dense ; item vectors ; user tables ; user dense]``, [B, L, width].
    """

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        self.unknown_rate = config.unknown_rate
        self.item_tables = nn.ModuleList(_table(rows, config) for rows in config.item_vocab_sizes)
        self.user_tables = nn.ModuleList(_table(rows, config) for rows in config.user_vocab_sizes)
        tables = len(self.item_tables) + len(self.user_tables)
        dense = config.num_item_dense + config.item_vector_dim + config.num_user_dense
        self.width = tables * config.embedding_dim + dense
        if not self.width:
            raise InputError("the config has no features: make it with for_schema(processor.schema)")

    def forward(
        self,
        item_categorical: Tensor,
        item_dense: Tensor | None,
        item_vectors: Tensor | None,
        user_categorical: Tensor | None,
        user_dense: Tensor | None,
    ) -> Tensor:
        if item_categorical.shape[-1] != len(self.item_tables):
            raise InputError(
                f"item_categorical has {item_categorical.shape[-1]} features, the model has {len(self.item_tables)} "
                "item tables: encode the lists with the model's own processor"
            )
        parts = self._looked_up(self.item_tables, item_categorical)
        parts += [part for part in (item_dense, item_vectors) if part is not None]
        of_user = self._looked_up(self.user_tables, user_categorical) if user_categorical is not None else []
        of_user += [user_dense] if user_dense is not None else []
        length = item_categorical.shape[1]
        parts += [part.unsqueeze(1).expand(-1, length, -1) for part in of_user]
        items = torch.cat(parts, dim=-1)
        if items.shape[-1] != self.width:
            raise InputError(
                f"an item's features are {items.shape[-1]} numbers wide, the model expects {self.width}: a dense, "
                "vector or user input is missing or of another width; encode the lists with the model's own processor"
            )
        return items

    def _looked_up(self, tables: nn.ModuleList, rows: Tensor) -> list[Tensor]:
        if self.training and self.unknown_rate > 0 and len(tables):
            dropped = (torch.rand(rows.shape, device=rows.device) < self.unknown_rate) & (rows > UNKNOWN)
            rows = rows.masked_fill(dropped, UNKNOWN)
        return [table(rows[..., number]) for number, table in enumerate(tables)]


class EncoderBlock(nn.Module):
    """One Transformer encoder block, post-norm (Vaswani et al. 2017): attention over a list's items, then a network.

    Args:
        width: Of the items' vectors.
        num_heads: Attention heads.
        head_dim: Width of a head.
        inner_width: Of the network's hidden layer.
        dropout: On attention weights and on what each half adds, in [0, 1).
    """

    def __init__(self, width: int, num_heads: int, head_dim: int, inner_width: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.query_key_value = nn.Linear(width, 3 * num_heads * head_dim)
        self.attention_output = nn.Linear(num_heads * head_dim, width)
        self.attention_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, inner_width)
        self.outer = nn.Linear(inner_width, width)
        self.outer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: Tensor, mask: Tensor, with_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Items [B, L, width] and bool mask [B, L] -> items, and attention weights [B, heads, L, L] on request."""
        batch, length, _ = items.shape
        split = self.query_key_value(items).view(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        # A softmax over nothing is NaN: a list that is all padding looks at its padding, and is never looked at.
        looked_at = (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]
        dropout = self.dropout.p if self.training else 0.0
        weights = None
        if with_weights:
            logits = (query @ key.transpose(-1, -2)) / self.head_dim**0.5
            weights = logits.masked_fill(~looked_at, -torch.inf).softmax(-1)
            attended = F.dropout(weights, dropout) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=looked_at, dropout_p=dropout)
        attended = attended.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim)
        items = self.attention_norm(items + self.dropout(self.attention_output(attended)))
        items = self.outer_norm(items + self.dropout(self.outer(F.relu(self.inner(items)))))
        return items, weights


def _table(rows: int, config: RerankerConfig) -> nn.Embedding:
    return nn.Embedding(rows, config.embedding_dim, padding_idx=0)
