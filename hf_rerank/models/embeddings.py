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

# Low enough to cost no accuracy, high enough to train the unknown value's row.
DEFAULT_UNKNOWN_RATE = 0.01


class FeatureTables(nn.Module):
    """A module with embedding tables of categorical features, which can grow; see ``resize_to_schema``."""

    def resize(self, config: RerankerConfig) -> None:
        """Resizes each table to the number of rows in ``config``."""
        raise NotImplementedError


class ItemEmbedding(FeatureTables):
    """The features of an item, and of the list's user beside each item, as one vector per item.

    Each categorical feature has its own table, ``embedding_dim`` wide; dense features and vectors are appended as they
    are: ``[item tables ; relative features ; initial score ; item dense ; item vectors ; user tables ; user dense]``,
    [B, L, width], the second and third if the config asks for them. The item's part comes first and is ``item_width``
    wide, the user's ``user_width``. The user's part is the same beside each item, so that a model that reads the user
    elsewhere too takes it from there: in training, values that are replaced by the unknown one are drawn once.
    """

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        self.config = config
        self.item_tables = nn.ModuleList(_make_table(rows, config) for rows in config.item_vocab_sizes)
        self.user_tables = nn.ModuleList(_make_table(rows, config) for rows in config.user_vocab_sizes)
        self.relative = config.relative_features
        self.reads_score = config.initial_score != "none"
        self.score_scale, self.score_offset = config.initial_score_scale, config.initial_score_offset
        numbers = config.num_item_dense + self.reads_score
        self.item_width = len(self.item_tables) * config.embedding_dim + numbers + config.item_vector_dim
        self.item_width += len(RELATIVE_FORMS) * numbers * self.relative
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
        parts = self._look_up(self.item_tables, batch.item_categorical, self.config.item_unknown_rates)
        scores = (
            [calibrate_scores(batch, self.score_scale, self.score_offset).unsqueeze(-1)] if self.reads_score else []
        )
        numbers = scores + ([] if batch.item_dense is None else [batch.item_dense])
        if self.relative and numbers:
            parts.append(compute_relative_features(torch.cat(numbers, dim=-1), batch.mask))
        parts += numbers + ([] if batch.item_vectors is None else [batch.item_vectors])
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

    def _user_parts(self, batch: ListBatch) -> list[Tensor]:
        found = batch.user_categorical
        parts = [] if found is None else self._look_up(self.user_tables, found, self.config.user_unknown_rates)
        return parts + ([] if batch.user_dense is None else [batch.user_dense])

    def _look_up(self, tables: nn.ModuleList, rows: Tensor, rates: list[float]) -> list[Tensor]:
        return _look_up(
            list(tables), _replace_by_unknown(rows, rates or _get_unknown_rate(self.config)) if self.training else rows
        )


# Largest number of pairwise comparisons in memory at once.
_COMPARISONS = 2**22
RELATIVE_FORMS = ("rank", "to the mean", "to the largest")


def compute_relative_features(values: Tensor, mask: Tensor) -> Tensor:
    """Computes each numeric feature relative to the list, in three forms one after another.

    - its rank: the share of the other items that are below it, minus the share above it; from -1 to 1;
    - its difference from the list's mean;
    - its difference from the list's largest value, at most 0.

    A feature that is equal for all items gives 0 in every form, and so does a list of one item.

    Args:
        values: float [B, L, F].
        mask: bool [B, L]; values at padding are not read.

    Returns:
        float [B, L, 3 * F], 0 at padding.
    """
    real = mask.unsqueeze(-1)
    count = mask.sum(1).clamp(min=1)[:, None, None].to(values.dtype)
    values = values.masked_fill(~real, 0.0)
    mean = values.sum(1, keepdim=True) / count
    largest = values.masked_fill(~real, torch.finfo(values.dtype).min).amax(1, keepdim=True)
    rank = _sum_signs(values, mask) / (count - 1).clamp(min=1)
    forms = torch.cat([rank, values - mean, values - largest], dim=-1)
    return forms.masked_fill(~real, 0.0)


def _sum_signs(values: Tensor, mask: Tensor) -> Tensor:
    """Counts the list's real items below each item minus those above it, [B, L, F]."""
    lists, length, width = values.shape
    # An exported graph takes any size; otherwise features are split into parts that keep the comparisons small.
    at_once = width if torch.compiler.is_compiling() else max(1, _COMPARISONS // max(1, lists * length * length))
    others = mask[:, None, :, None].to(values.dtype)
    parts = [
        ((part.unsqueeze(2) - part.unsqueeze(1)).sign() * others).sum(2) for part in values.split(at_once, dim=-1)
    ]
    return torch.cat(parts, dim=-1)


def calibrate_scores(batch: ListBatch, scale: float, offset: float) -> Tensor:
    """Brings the earlier ranker's scores to the scale of logits, float [B, L], 0 at padding.

    Raises:
        InputError: The lists have no initial scores.
    """
    if batch.initial_scores is None:
        raise InputError(
            "the model reads the earlier ranker's score and the lists have none (tensor initial_scores): name its "
            "column as initial_score in the schema, or configure the model with initial_score='none'"
        )
    return (batch.initial_scores * scale + offset).masked_fill(~batch.mask, 0.0)


class HistoryEmbedding(FeatureTables):
    """The features of the user's earlier clicks, as one vector per history item: ``[tables ; dense]``, [B, H, width].

    A feature that shares the table of an item feature is looked up there, in the ``ItemEmbedding`` of the model.
    """

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        self.unknown_rate = _get_unknown_rate(config)
        self.shared = list(config.history_shared_tables)
        self.tables = nn.ModuleList(
            _make_table(rows, config)
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
    """Resizes a table [N, D] to this many rows; rows beyond N are copies of the unknown value's row."""
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
    # A table may be longer than its vocabulary: rows that no value used so far are new rows too.
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


def _make_table(rows: int, config: RerankerConfig) -> nn.Embedding:
    return nn.Embedding(rows, config.embedding_dim, padding_idx=0)


def _get_unknown_rate(config: RerankerConfig) -> float:
    return DEFAULT_UNKNOWN_RATE if config.unknown_rate is None else config.unknown_rate


def _replace_by_unknown(rows: Tensor, rates: float | list[float]) -> Tensor:
    """The rows with this fraction of known values replaced by the unknown one; a list: one fraction per feature."""
    if not rates:
        return rows
    below = rates if isinstance(rates, float | int) else torch.tensor(rates, device=rows.device)
    return rows.masked_fill((torch.rand(rows.shape, device=rows.device) < below) & (rows > UNKNOWN), UNKNOWN)


def _look_up(tables: list[nn.Module], rows: Tensor) -> list[Tensor]:
    return [table(rows[..., number]) for number, table in enumerate(tables)]


def _concatenate(parts: list[Tensor], width: int, whose: str, what: str) -> Tensor:
    found = sum(part.shape[-1] for part in parts)
    if found != width:
        raise InputError(
            f"{whose} features are {found} numbers wide, the model expects {width}: {what} is missing or has the "
            "wrong width; encode the lists with the model's own processor"
        )
    return torch.cat(parts, dim=-1)
