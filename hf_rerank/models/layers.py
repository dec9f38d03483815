"""Blocks that several re-rankers share: dropout with one mask for all passes, attention, encoder blocks, networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_rerank.errors import InputError

# Output of ``embed`` and input of ``score``: tensors by name, each with one row per list.
Context = dict[str, Tensor]


class SharedDropout(nn.Module):
    """Dropout whose mask is drawn once per training step and applied in every pass of that step.

    The principles compare the scores of several passes. With separate masks the passes would differ by dropout noise,
    and a consistency loss would mainly penalize that. The mask is aligned by slot, and stored in the context under
    ``key``; if the context has none (in evaluation mode), nothing is dropped.

    Args:
        rate: Fraction of values set to 0, in [0, 1); the others are divided by ``1 - rate``.
        width: Width of the values, [B, L, width].
        length: Rows per list, if not the number of items. None: the number of items plus ``extra``.
        extra: Rows in addition to the items, such as a list token.
    """

    def __init__(self, rate: float, width: int, *, length: int | None = None, extra: int = 0) -> None:
        super().__init__()
        self.rate, self.width, self.length, self.extra = rate, width, length, extra
        self.key = ""  # set by PreTrainedReranker.post_init

    def draw(self, mask: Tensor) -> Tensor:
        """float32 [B, rows, width] for lists of ``mask`` [B, L]: 0 at values to drop, ``1 / (1 - rate)`` elsewhere."""
        rows = mask.shape[1] + self.extra if self.length is None else self.length
        factors = torch.rand((mask.shape[0], rows, self.width), device=mask.device)
        return factors.ge_(self.rate).div_(1.0 - self.rate)

    def forward(self, values: Tensor, context: Context) -> Tensor:
        factors = context.get(self.key)
        return values if factors is None else values * factors.to(values.dtype)


def draw_dropout(mask: Tensor, *modules: nn.Module) -> Context:
    """The masks of every ``SharedDropout`` in these modules that is in training mode, by their keys."""
    found = (part for module in modules for part in module.modules() if isinstance(part, SharedDropout))
    return {dropout.key: dropout.draw(mask) for dropout in found if dropout.training and dropout.rate}


def count_positions(mask: Tensor) -> Tensor:
    """The positions of items that are given in the order of their slots, wherever padding is.

    Args:
        mask: bool [B, L], True at real items.

    Returns:
        int64 [B, L]: 0 to n - 1 at the n real items, the remaining positions at padding, each in slot order.
    """
    after_the_items = mask.sum(-1, keepdim=True) + (~mask).cumsum(-1)
    return torch.where(mask, mask.cumsum(-1), after_the_items) - 1


def position_vectors(position_ids: Tensor, table: Tensor) -> Tensor:
    """The embeddings of the positions at which items are given.

    Args:
        position_ids: int64 [B, L]; or a soft order, float [B, L, L], whose embedding is the mean over its positions.
        table: [positions, D].

    Returns:
        [B, L, D].
    """
    if position_ids.is_floating_point():
        return position_ids.to(table.dtype) @ table[: position_ids.shape[-1]]
    return F.embedding(position_ids, table)


def attend(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, num_heads: int, with_weights: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Multi-head scaled dot-product attention (Vaswani et al. 2017).

    Args:
        query: [B, Lq, num_heads * head_dim].
        key, value: [B, Lk, num_heads * head_dim].
        attention_mask: bool [B, Lk], False at keys that are not attended to. A list that is False everywhere attends
            to all keys.
        num_heads: Number of attention heads.
        with_weights: Whether to return the attention weights too.

    Returns:
        The heads' outputs concatenated [B, Lq, num_heads * head_dim]; weights [B, num_heads, Lq, Lk] on request.
    """
    query, key, value = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    # A softmax over nothing is NaN: a list that is all padding attends to its padding, whose output is never read.
    attention_mask = (attention_mask | ~attention_mask.any(-1, keepdim=True))[:, None, None, :]
    weights = None
    if with_weights:
        logits = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
        weights = logits.masked_fill(~attention_mask, -torch.inf).softmax(-1)
        attended = weights @ value
    else:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    return attended.transpose(1, 2).flatten(-2), weights


class EncoderBlock(GradientCheckpointingLayer):
    """One Transformer encoder block, post-norm (Vaswani et al. 2017): self-attention, then a feed-forward network.

    Args:
        hidden_size: Width of the items' vectors.
        num_heads: Number of attention heads.
        head_dim: Width of a head.
        intermediate_size: Width of the feed-forward network's hidden layer.
        dropout: Dropout of each residual branch, in [0, 1). Attention weights have none.
        length, extra: As in ``SharedDropout``.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        intermediate_size: int,
        dropout: float,
        *,
        length: int | None = None,
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.query_key_value = nn.Linear(hidden_size, 3 * num_heads * head_dim)
        self.attention_output = nn.Linear(num_heads * head_dim, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.intermediate = nn.Linear(hidden_size, intermediate_size)
        self.output = nn.Linear(intermediate_size, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size)
        self.attention_dropout = SharedDropout(dropout, hidden_size, length=length, extra=extra)
        self.output_dropout = SharedDropout(dropout, hidden_size, length=length, extra=extra)

    def forward(
        self, items: Tensor, mask: Tensor, context: Context, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Items [B, L, hidden_size] and bool mask [B, L] -> items; on request also weights [B, heads, L, L]."""
        query, key, value = self.query_key_value(items).chunk(3, -1)
        return self.attend_and_transform(items, query, key, value, mask, context, with_weights)

    def attend_and_transform(
        self,
        items: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        context: Context,
        with_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The block after its projections: attention of ``items`` [B, Lq, width], residual, norm, network, norm."""
        attended, weights = attend(query, key, value, attention_mask, self.num_heads, with_weights)
        items = self.attention_norm(items + self.attention_dropout(self.attention_output(attended), context))
        added = self.output(F.relu(self.intermediate(items)))
        return self.output_norm(items + self.output_dropout(added, context)), weights


class MLP(nn.Module):
    """Hidden layers, each a ``Linear``, ReLU and dropout.

    Args:
        width: Width of the input.
        hidden_sizes: Widths of the layers.
        dropout: Dropout after each layer, in [0, 1).
    """

    def __init__(self, width: int, hidden_sizes: list[int], dropout: float) -> None:
        super().__init__()
        sizes = [width, *hidden_sizes]
        self.layers = nn.ModuleList(nn.Linear(sizes[number], size) for number, size in enumerate(hidden_sizes))
        self.dropouts = nn.ModuleList(SharedDropout(dropout, size) for size in hidden_sizes)

    def forward(self, items: Tensor, context: Context) -> Tensor:
        """[B, L, width] -> [B, L, hidden_sizes[-1]]."""
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            items = dropout(F.relu(layer(items)), context)
        return items


def check_sizes(dropout: float | int, **sizes: int | list[int]) -> None:
    """Raises an InputError for a width or number below 1, an empty list of widths, a dropout outside [0, 1)."""
    for name, size in sizes.items():
        if isinstance(size, list):
            if not size or min(size) < 1:
                raise InputError(f"{name} is {size}: expected at least one width, each at least 1")
        elif size < 1:
            raise InputError(f"{name} is {size}: expected at least 1")
    if not 0 <= dropout < 1:
        raise InputError(f"hidden_dropout_prob is {dropout}: expected a fraction in [0, 1)")


def check_encoder(config: Any, **sizes: int | list[int]) -> None:
    """``check_sizes`` for an encoder whose ``hidden_size`` is divided among its heads, and for ``sizes``."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        sizes[name] = getattr(config, name)
    check_sizes(config.hidden_dropout_prob, **sizes)
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"hidden_size={config.hidden_size} is not a multiple of num_attention_heads="
            f"{config.num_attention_heads}: change one"
        )
