"""Embedding tables of categorical features: items, users and history as vectors; tables that grow with the schema."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hf_rerank.errors import InputError
from hf_rerank.models.config import RerankerConfig
from hf_rerank.processing.vocabularies import UNKNOWN
from hf_rerank.schema import Categorical, ListBatch, ListSchema


class FeatureTables(nn.Module):
    """A module with embedding tables of categorical features, which may grow; see ``resize_to_schema``."""

    def resize(self, config: RerankerConfig) -> None:
        """Gives each table as many rows as ``config`` says."""
        raise NotImplementedError


class ItemEmbedding(FeatureTables):
    """The features of an item, and of the list's user beside each item, as one vector per item.

    Each categorical feature has a table of its own, ``embedding_dim`` wide; dense features and vectors are appended as
    they are: ``[item tables ; item dense ; item vectors ; user tables ; user dense]``, [B, L, width]. The item's own
    part comes first and is ``item_width`` wide, the user's ``user_width``.
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

    def forward(self, batch: ListBatch) -> Tensor:
        if batch.item_categorical.shape[-1] != len(self.item_tables):
            raise InputError(
                f"item_categorical has {batch.item_categorical.shape[-1]} features, the model has "
                f"{len(self.item_tables)} item tables: encode the lists with the model's own processor"
            )
        parts = self._look_up(self.item_tables, batch.item_categorical)
        parts += [part for part in (batch.item_dense, batch.item_vectors) if part is not None]
        length = batch.item_categorical.shape[1]
        parts += [part.unsqueeze(1).expand(-1, length, -1) for part in self._user_parts(batch)]
        return _concatenate(parts, self.width, "an item's", "a dense, vector or user input")

    def resize(self, config: RerankerConfig) -> None:
        for tables, sizes in (
            (self.item_tables, config.item_vocab_sizes),
            (self.user_tables, config.user_vocab_sizes),
        ):
            for number, rows in enumerate(sizes):
                tables[number] = resize_table(tables[number], rows)

    def user(self, batch: ListBatch) -> Tensor:
        """The user's features alone, [B, user_width]; of a model whose user has features."""
        return _concatenate(self._user_parts(batch), self.user_width, "a user's", "a user input")

    def _user_parts(self, batch: ListBatch) -> list[Tensor]:
        found = batch.user_categorical
        parts = [] if found is None else self._look_up(self.user_tables, found)
        return parts + ([] if batch.user_dense is None else [batch.user_dense])

    def _look_up(self, tables: nn.ModuleList, rows: Tensor) -> list[Tensor]:
        return _look_up(list(tables), _replace_by_unknown(rows, self.unknown_rate if self.training else 0.0))


class HistoryEmbedding(FeatureTables):
    """The features of the user's earlier clicks, as one vector per history item: ``[tables ; dense]``, [B, H, width].

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

    def resize(self, config: RerankerConfig) -> None:
        own = [rows for rows, shared in zip(config.history_vocab_sizes, self.shared, strict=True) if shared < 0]
        for number, rows in enumerate(own):
            self.tables[number] = resize_table(self.tables[number], rows)

    def forward(self, batch: ListBatch, item_embedding: ItemEmbedding) -> Tensor:
        own = iter(self.tables)
        tables = [next(own) if number < 0 else item_embedding.item_tables[number] for number in self.shared]
        found = 0 if batch.history_categorical is None else batch.history_categorical.shape[-1]
        if found != len(tables):
            raise InputError(
                f"history_categorical has {found} features, the model has {len(tables)} history features: encode the "
                "lists with the model's own processor"
            )
        parts = []
        if batch.history_categorical is not None:
            rows = _replace_by_unknown(batch.history_categorical, self.unknown_rate if self.training else 0.0)
            parts += _look_up(tables, rows)
        parts += [] if batch.history_dense is None else [batch.history_dense]
        return _concatenate(parts, self.width, "a history item's", "history_dense")


def resize_table(table: Any, rows: int) -> nn.Embedding:
    """A table [N, D] with this many rows, those beyond N copies of the row of the unknown value."""
    old = table.weight
    if rows == old.shape[0]:
        return table
    resized = nn.Embedding(rows, old.shape[1], padding_idx=table.padding_idx, device="meta")
    weight = torch.cat([old.detach()[:rows], old.detach()[UNKNOWN].expand(max(0, rows - old.shape[0]), -1)])
    resized.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    return resized


def resize_to_schema(model: Any, schema: ListSchema) -> None:
    """Resizes every ``FeatureTables`` of a model to a schema that grew from the model's, and updates its config."""
    config = model.config
    grown = type(config).for_schema(schema)
    # Rows that no value used so far, since a table may be longer than its vocabulary, are new rows too.
    in_use = copy.deepcopy(config)
    rows = dict(zip(schema.extends, schema.rows_before, strict=False)).get(config.schema_fingerprint or "")
    if rows:
        left = iter(rows)
        for part, name in (("items", "item"), ("user", "user"), ("history", "history")):
            sizes = [next(left) if table.shares is None else 0 for table in schema.features(part, Categorical)]
            setattr(in_use, f"{name}_vocab_sizes", sizes)
    for module in model.modules():
        if isinstance(module, FeatureTables):
            module.resize(in_use)
            module.resize(grown)
    for name in ("item_vocab_sizes", "user_vocab_sizes", "history_vocab_sizes", "schema_fingerprint"):
        setattr(config, name, getattr(grown, name))


def _table(rows: int, config: RerankerConfig) -> nn.Embedding:
    return nn.Embedding(rows, config.embedding_dim, padding_idx=0)


def _replace_by_unknown(rows: Tensor, rate: float) -> Tensor:
    """The rows with this fraction of the known values replaced by the unknown one."""
    if not rate:
        return rows
    return rows.masked_fill((torch.rand(rows.shape, device=rows.device) < rate) & (rows > UNKNOWN), UNKNOWN)


def _look_up(tables: list[nn.Module], rows: Tensor) -> list[Tensor]:
    return [table(rows[..., number]) for number, table in enumerate(tables)]


def _concatenate(parts: list[Tensor], width: int, whose: str, what: str) -> Tensor:
    found = sum(part.shape[-1] for part in parts)
    if found != width:
        raise InputError(
            f"{whose} features are {found} numbers wide, the model expects {width}: {what} is missing or of another "
            "width; encode the lists with the model's own processor"
        )
    return torch.cat(parts, dim=-1)
