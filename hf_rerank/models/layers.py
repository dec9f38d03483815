"""Blocks that three or more re-rankers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rerank.errors import InputError
from hf_rerank.models.base import FeatureTables, RerankerConfig, lengthened
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


class ItemEmbedding(FeatureTables):
    """Features of items, and of the list's user beside each item, as one vector an item.

    Each categorical feature has its own table ``embedding_dim`` wide; dense features and vectors join as they are:
    ``[item tables ; item dense ; item vectors ; user tables ; user dense]``, [B, L, width]. The item's own part comes
    first and is ``item_width`` wide, the user's ``user_width``.
    """

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        self.unknown_rate = config.unknown_rate
        self.item_tables = nn.ModuleList(_table(rows, config) for rows in config.item_vocab_sizes)
        self.user_tables = nn.ModuleList(_table(rows, config) for rows in config.user_vocab_sizes)
        self.item_width = len(self.item_tables) * config.embedding_dim + config.num_item_dense + config.item_vector_dim
        self.user_width = len(self.user_tables) * config.embedding_dim + config.num_user_dense
        self.width = self.item_width + self.user_width
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
        length = item_categorical.shape[1]
        parts += [part.unsqueeze(1).expand(-1, length, -1) for part in self._of_user(user_categorical, user_dense)]
        return _joined(parts, self.width, "an item's", "a dense, vector or user input")

    def lengthen(self, config: RerankerConfig) -> None:
        for tables, sizes in (
            (self.item_tables, config.item_vocab_sizes),
            (self.user_tables, config.user_vocab_sizes),
        ):
            for number, rows in enumerate(sizes):
                tables[number] = lengthened(tables[number], rows)

    def user(self, user_categorical: Tensor | None, user_dense: Tensor | None) -> Tensor:
        """The user's features alone, [B, user_width]; of a model whose user has features."""
        return _joined(self._of_user(user_categorical, user_dense), self.user_width, "a user's", "a user input")

    def _of_user(self, user_categorical: Tensor | None, user_dense: Tensor | None) -> list[Tensor]:
        parts = self._looked_up(self.user_tables, user_categorical) if user_categorical is not None else []
        return parts + ([user_dense] if user_dense is not None else [])

    def _looked_up(self, tables: nn.ModuleList, rows: Tensor) -> list[Tensor]:
        return _looked_up(list(tables), _some_unknown(rows, self.unknown_rate if self.training else 0.0))


class HistoryEmbedding(FeatureTables):
    """Features of what the user clicked before, as one vector a history item: ``[tables ; dense]``, [B, H, width].

    A feature that shares the table of an item feature is looked up there, in the ``ItemEmbedding`` of the model.
    """

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        self.unknown_rate = config.unknown_rate
        self.shared = list(config.history_shared_tables)
        self.tables = nn.ModuleList(
            _table(rows, config)
            for rows, shared in zip(config.history_vocab_sizes, self.shared, strict=True)
            if shared < 0
        )
        self.width = len(self.shared) * config.embedding_dim + config.num_history_dense

    def lengthen(self, config: RerankerConfig) -> None:
        own = [rows for rows, shared in zip(config.history_vocab_sizes, self.shared, strict=True) if shared < 0]
        for number, rows in enumerate(own):
            self.tables[number] = lengthened(self.tables[number], rows)

    def forward(
        self, history_categorical: Tensor | None, history_dense: Tensor | None, item_embedding: ItemEmbedding
    ) -> Tensor:
        own = iter(self.tables)
        tables = [next(own) if number < 0 else item_embedding.item_tables[number] for number in self.shared]
        found = 0 if history_categorical is None else history_categorical.shape[-1]
        if found != len(tables):
            raise InputError(
                f"history_categorical has {found} features, the model has {len(tables)} history features: encode the "
                "lists with the model's own processor"
            )
        parts = []
        if history_categorical is not None:
            rows = _some_unknown(history_categorical, self.unknown_rate if self.training else 0.0)
            parts += _looked_up(tables, rows)
        parts += [history_dense] if history_dense is not None else []
        return _joined(parts, self.width, "a history item's", "history_dense")


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    looked_at: Tensor,
    num_heads: int,
    dropout: float = 0.0,
    with_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head scaled dot-product attention (Vaswani et al. 2017).

    Args:
        query: [B, Lq, num_heads * head_dim].
        key, value: [B, Lk, num_heads * head_dim].
        looked_at: bool [B, Lk], False at keys that nothing looks at. Where a list has no key, it looks at all.
        num_heads: Attention heads.
        dropout: On the weights.
        with_weights: Whether the weights are returned too.

    Returns:
        The heads' outputs side by side [B, Lq, num_heads * head_dim]; weights [B, num_heads, Lq, Lk] on request.
    """
    query, key, value = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    # A softmax over nothing is NaN: a list that is all padding looks at its padding, and is never looked at.
    looked_at = (looked_at | ~looked_at.any(-1, keepdim=True))[:, None, None, :]
    weights = None
    if with_weights:
        logits = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
        weights = logits.masked_fill(~looked_at, -torch.inf).softmax(-1)
        attended = F.dropout(weights, dropout) @ value
    else:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=looked_at, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(-2), weights


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
        query, key, value = self.query_key_value(items).chunk(3, -1)
        return self.attended(items, query, key, value, mask, with_weights)

    def attended(
        self, items: Tensor, query: Tensor, key: Tensor, value: Tensor, looked_at: Tensor, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """What follows the projections: attention of ``items`` [B, Lq, width], residual, norm, network, norm."""
        dropout = self.dropout.p if self.training else 0.0
        attended, weights = attend(query, key, value, looked_at, self.num_heads, dropout, with_weights)
        items = self.attention_norm(items + self.dropout(self.attention_output(attended)))
        items = self.outer_norm(items + self.dropout(self.outer(F.relu(self.inner(items)))))
        return items, weights


def mlp(width: int, hidden_sizes: list[int], dropout: float) -> nn.Sequential:
    """Layers of these widths, each a ``Linear``, ReLU and dropout."""
    layers: list[nn.Module] = []
    for hidden in hidden_sizes:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)]
        width = hidden
    return nn.Sequential(*layers)


def check_sizes(dropout: float | int, **sizes: int | list[int]) -> None:
    """Raises an InputError for a width or number below 1, an empty list of widths, a dropout outside [0, 1)."""
    for name, size in sizes.items():
        if isinstance(size, list):
            if not size or min(size) < 1:
                raise InputError(f"{name} is {size}: expected at least one width, each at least 1")
        elif size < 1:
            raise InputError(f"{name} is {size}: expected at least 1")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}: expected a share in [0, 1)")


def check_encoder(config: Any, **sizes: int | list[int]) -> None:
    """``check_sizes`` of an encoder whose ``d_model`` is divided among its heads, and of ``sizes``."""
    for name in ("d_model", "num_blocks", "num_heads", "inner_width"):
        sizes[name] = getattr(config, name)
    check_sizes(config.dropout, **sizes)
    if config.d_model % config.num_heads:
        raise InputError(f"d_model={config.d_model} is no multiple of num_heads={config.num_heads}: change one")


def _table(rows: int, config: RerankerConfig) -> nn.Embedding:
    return nn.Embedding(rows, config.embedding_dim, padding_idx=0)


def _some_unknown(rows: Tensor, share: float) -> Tensor:
    """The rows with this share of the known values turned into the unknown one."""
    if not share:
        return rows
    return rows.masked_fill((torch.rand(rows.shape, device=rows.device) < share) & (rows > UNKNOWN), UNKNOWN)


def _looked_up(tables: list[nn.Module], rows: Tensor) -> list[Tensor]:
    return [table(rows[..., number]) for number, table in enumerate(tables)]


def _joined(parts: list[Tensor], width: int, whose: str, what: str) -> Tensor:
    found = sum(part.shape[-1] for part in parts)
    if found != width:
        raise InputError(
            f"{whose} features are {found} numbers wide, the model expects {width}: {what} is missing or of another "
            "width; encode the lists with the model's own processor"
        )
    return torch.cat(parts, dim=-1)
