"""Fine-tuning: ``adapt`` prepares a trained re-ranker for other lists.

It keeps everything that stays valid for the new lists: rows of embedding tables by column and value, and every weight
that does not read a changed column.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.inference.reranker import Reranker
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import FeatureTables, HistoryEmbedding, ItemEmbedding
from hf_rerank.processing import ListProcessor
from hf_rerank.processing.vocabularies import UNKNOWN
from hf_rerank.schema import Categorical, Dense, Feature, ListSchema

PARTS = ("items", "user", "history")
KEPT, EXTENDED, REINITIALIZED = "kept", "extended", "re-initialized"
# Options of the config that the schema determines; all others are the model's own.
_SIZES = (
    *("item_vocab_sizes", "num_item_dense", "item_vector_dim", "user_vocab_sizes", "num_user_dense"),
    *("history_vocab_sizes", "history_shared_tables", "num_history_dense", "schema_fingerprint"),
)
_LENGTHS = ("max_list_length", "max_history_length")
_DENSE_OF = {"items": "num_item_dense", "user": "num_user_dense", "history": "num_history_dense"}


@dataclass(frozen=True)
class AdaptReport:
    """Report of ``adapt``.

    Attributes:
        differences: How the columns differ from those that the model was made for, one string each.
        vocabularies: Categorical column that was kept -> number of values ``added``, and of ``rare`` ones, which stay
            unknown.
        parameters: Name of each parameter of the new model -> ``kept`` (equal to the bit), ``extended`` (its rows
            are kept, new ones follow) or ``re-initialized`` (random).
        dropped: Parameters of the old model, by their name there, that the new one does not have.
    """

    differences: list[str]
    vocabularies: dict[str, dict[str, int]]
    parameters: dict[str, str]
    dropped: list[str]

    def names(self, what: str) -> list[str]:
        """Lists the parameters that are ``kept``, ``extended`` or ``re-initialized``."""
        return [name for name, found in self.parameters.items() if found == what]

    def __str__(self) -> str:
        lines = [f"columns: {difference}" for difference in self.differences]
        for name, found in self.vocabularies.items():
            lines.append(f"{name}: {found['added']:,} new values, {found['rare']:,} too rare")
        lines.append(f"{KEPT}: {len(self.names(KEPT))} of {len(self.parameters)} parameters")
        for what, names in (
            (EXTENDED, self.names(EXTENDED)),
            (REINITIALIZED, self.names(REINITIALIZED)),
            ("dropped", self.dropped),
        ):
            if names:
                lines.append(f"{what}: {', '.join(names)}")
        return "\n".join(lines)


def adapt(
    reranker: Reranker, lists: Any, schema: ListSchema | None = None, *, reinitialize: bool = False
) -> tuple[Reranker, AdaptReport]:
    """Adapts a trained re-ranker to other lists; the given one stays unchanged.

    Shared columns keep their vocabulary, scale and table rows; values that the vocabulary lacks get new rows after
    these, each a copy of the unknown value's row, which scored the value until now. If lists may be longer than the
    model's, position tables get rows too, each a copy of the last position's, and so does ``initial_score_positions``
    of the config; ``max_list_length`` and ``max_history_length`` never shrink. As long as the columns are the same, no
    list's scores change.

    With other columns (one missing, new, or of another kind) the weights that read them lose their meaning. With
    ``reinitialize`` those are re-initialized (set torch's seed before), as are the tables of new columns; scales and
    vocabularies of new columns are learned from ``lists``; all other weights are kept. ``item_unknown_rates`` or
    ``user_unknown_rates`` are emptied if their columns change, and the trainer fills them in again. Scores are then
    useless until the model is trained.

    Args:
        reranker: The trained model and its processor.
        lists: The new training lists, as for ``ListProcessor.from_lists``.
        schema: Schema of these lists, fitted or not. None: that of ``reranker.processor``.
        reinitialize: Whether to accept other columns.

    Returns:
        The new re-ranker, without frozen parameters, and the report.

    Raises:
        InputError: Columns differ and ``reinitialize`` is off, or no item column is shared; a list is invalid, or an
            argument has the wrong type.
    """
    if not isinstance(reranker, Reranker):
        raise InputError(f"expected a Reranker, got {type(reranker).__name__}: Reranker.from_pretrained loads one")
    if not isinstance(schema, ListSchema | None):
        raise InputError(f"schema is a {type(schema).__name__}: expected a ListSchema, or None for the model's own")
    before = reranker.processor.schema
    after = before if schema is None else schema
    differences = {part: _find_differences(before, after, part) for part in PARTS}
    found = [text for part in PARTS for text in differences[part]]
    if found and not reinitialize:
        raise InputError(
            f"the lists have other columns than the model was made for: {'; '.join(found)}; give lists with the "
            "model's columns, or re-initialize the weights that read them with reinitialize=True (--reinitialize)"
        )
    changed = [part for part in PARTS if differences[part]]
    processor, vocabularies = _adapt_processor(reranker.processor, after, lists, changed)
    model, parameters, dropped = _adapt_model(reranker, processor, changed)
    return Reranker(processor, model), AdaptReport(found, vocabularies, parameters, dropped)


def _describe_kind(feature: Feature, schema: ListSchema) -> str:
    """Describes everything that gives a column's values their meaning; sizes of tables may differ."""
    if isinstance(feature, Categorical):
        options = [f"hash_size={feature.hash_size}"] if feature.hash_size is not None else []
        if feature.shares is not None:
            table = next(item for item in schema.items if item.name == feature.shares)
            options += [f"shares={feature.shares!r}: {_describe_kind(table, schema)}"]
        return f"categorical({', '.join(options)})" if options else "categorical"
    if isinstance(feature, Dense):
        return f"dense(scale={feature.scale!r}, missing={feature.missing!r})"
    return f"vector(dim={feature.dim})"


def _find_differences(before: ListSchema, after: ListSchema, part: str) -> list[str]:
    old, new = (
        {feature.name: _describe_kind(feature, schema) for feature in getattr(schema, part)}
        for schema in (before, after)
    )
    where = {"items": "item", "user": "user", "history": "history"}[part]
    texts = [f"{where} column {name!r} ({kind}) is missing" for name, kind in old.items() if name not in new]
    texts += [f"{where} column {name!r} ({kind}) is new" for name, kind in new.items() if name not in old]
    return texts + [
        f"{where} column {name!r} is {kind}, was {old[name]}"
        for name, kind in new.items()
        if name in old and old[name] != kind
    ]


def _find_shared(before: ListSchema, after: ListSchema, part: str) -> list[Feature]:
    """Finds the columns of both schemas, as in ``after``, with at least the table rows of ``before``."""
    old = {feature.name: feature for feature in getattr(before, part)}
    found: list[Feature] = []
    for feature in getattr(after, part):
        known = old.get(feature.name)
        if known is not None and _describe_kind(known, before) == _describe_kind(feature, after):
            if isinstance(feature, Categorical) and isinstance(known, Categorical):
                feature = dataclasses.replace(feature, size=known.size)
            found.append(feature)
    return found


def _adapt_processor(
    processor: ListProcessor, after: ListSchema, lists: Any, changed: list[str]
) -> tuple[ListProcessor, dict[str, dict[str, int]]]:
    before = processor.schema
    after = after.replace(
        fitted=None,
        extends=(),
        rows_before=(),
        **{name: max(getattr(before, name), getattr(after, name)) for name in _LENGTHS},
    )
    shared = {part: _find_shared(before, after, part) for part in PARTS}
    if not shared["items"]:
        raise InputError(
            "the lists share no item column with the model: there is nothing to continue from, train a new model"
        )
    names = {feature.name for part in PARTS for feature in shared[part]}
    extended = ListProcessor(
        after.replace(**shared),
        {name: vocabulary for name, vocabulary in processor.vocabularies.items() if name in names},
        {name: scale for name, scale in processor.scales.items() if name in names},
        processor.fit_report,
    )
    report = extended.extend(lists)
    # The same columns in another order are not a change: the model's order is kept.
    for part in PARTS:
        if part not in changed:
            shared[part] = _sort_features(shared[part], getattr(before, part))
    if changed and processor.trees is not None:
        raise InputError(
            f"the model starts from trees that read other columns of {', '.join(changed)} than the lists have: give "
            "lists with its columns, or train a new model with --on-top-of lambdamart"
        )
    if changed:
        fitted = ListProcessor.from_lists(lists, schema=after)
        features = {
            part: _replace_shared(shared[part], getattr(after, part)) if part in changed else shared[part]
            for part in PARTS
        }
        after = after.replace(**features)
        adapted = ListProcessor(
            after,
            {**fitted.vocabularies, **extended.vocabularies},
            {**fitted.scales, **extended.scales},
            {**fitted.fit_report, "adapted_from": before.fingerprint, "extended": report},
        )
        return adapted, report
    if processor.trees is not None:
        after = after.replace(initial_score=before.initial_score)
    adapted = ListProcessor(
        after.replace(**shared), extended.vocabularies, processor.scales, extended.fit_report, processor.trees
    )
    if adapted.schema.fingerprint == before.fingerprint:
        adapted.schema = adapted.schema.replace(extends=before.extends, rows_before=before.rows_before)
    else:
        adapted.schema = adapted.schema.replace(**processor.describe_growth())
    return adapted, report


def _replace_shared(shared: list[Feature], features: tuple[Feature, ...]) -> list[Feature]:
    known = {feature.name: feature for feature in shared}
    return [known.get(feature.name, feature) for feature in features]


def _sort_features(features: list[Feature], order: tuple[Feature, ...]) -> list[Feature]:
    by_name = {feature.name: feature for feature in features}
    return [by_name[feature.name] for feature in order]


def _adapt_model(
    reranker: Reranker, processor: ListProcessor, changed: list[str]
) -> tuple[PreTrainedReranker, dict[str, str], list[str]]:
    model, before, after = reranker.model, reranker.processor.schema, processor.schema
    config = copy.deepcopy(model.config)
    sizes = type(config).for_schema(after)
    for name in _SIZES:
        setattr(config, name, getattr(sizes, name))
    for name in _LENGTHS:
        setattr(config, name, max(getattr(config, name), getattr(sizes, name)))
    for part, name in (("items", "item_unknown_rates"), ("user", "user_unknown_rates")):
        if part in changed:
            setattr(config, name, [])
    numbers = config.initial_score_positions
    config.initial_score_positions = numbers + numbers[-1:] * (config.max_list_length - len(numbers))
    config.validate()
    adapted: Any = type(model)(config)
    adapted.to(device=model.device, dtype=model.dtype)
    old = model.state_dict()
    old_tables, new_tables = dict(_iterate_tables(model, before)), dict(_iterate_tables(adapted, after))
    column_of = {name: column for column, name in new_tables.items()}
    kept_columns = {(part, feature.name) for part in PARTS for feature in _find_shared(before, after, part)}
    reads = _find_dependent(model, config, *(_DENSE_OF[part] for part in changed))
    if reads:  # empty if only a history changed that the model does not read
        reads |= set(model.reads_features)
    places = _find_dependent(model, config, "max_list_length")
    parameters: dict[str, str] = {}
    for name, value in adapted.state_dict().items():
        column = column_of.get(name)
        if column is not None:
            source = old.get(old_tables.get(column, "")) if column[1:] in kept_columns else None
            new_row = UNKNOWN
            in_use = None if source is None else _count_rows_in_use(reranker.processor, processor, column[-1])
        else:
            source, new_row, in_use = None if name in reads else old.get(name), -1, None
        may_grow = column is not None or name in places
        if (
            source is not None
            and source.shape != value.shape
            and not (may_grow and source.shape[1:] == value.shape[1:] and len(source) < len(value))
        ):
            if not changed:
                raise InputError(
                    f"{type(model).__name__} has the parameter {name} of shape {list(source.shape)}, and of "
                    f"{list(value.shape)} for these lists: it cannot be adapted, train a new model"
                )
            source = None
        parameters[name] = _fill(value, source, new_row, in_use)
    gone = {name for column, name in old_tables.items() if column not in new_tables}
    gone |= old.keys() - old_tables.values() - parameters.keys()
    return adapted, parameters, [name for name in old if name in gone]


def _count_rows_in_use(before: ListProcessor, after: ListProcessor, column: str) -> int | None:
    """Counts the rows that values used, if the table grows; it may have been made longer than they need."""
    rows = before.vocabularies[column].num_rows
    return rows if rows < after.vocabularies[column].num_rows else None


def _fill(value: Tensor, source: Tensor | None, new_row: int, in_use: int | None) -> str:
    """Fills ``value`` with the source's rows ``in_use`` (None: all), and further rows with its row ``new_row``.

    Returns:
        ``kept``, ``extended`` or ``re-initialized``.
    """
    if source is None:
        return REINITIALIZED
    if in_use is None and source.shape == value.shape:
        value.copy_(source)
        return KEPT
    rows = len(source) if in_use is None else in_use
    value[:rows] = source[:rows]
    value[rows:] = source[new_row]
    return EXTENDED


def _iterate_tables(model: PreTrainedReranker, schema: ListSchema) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Yields (module, part, column) and the name of its embedding table, for each table of the model."""
    for prefix, module in model.named_modules():
        held: tuple[tuple[str, str], ...]
        if isinstance(module, ItemEmbedding):
            held = (("items", "item_tables"), ("user", "user_tables"))
        elif isinstance(module, HistoryEmbedding):
            held = (("history", "tables"),)
        elif isinstance(module, FeatureTables):
            raise InputError(
                f"{type(module).__name__} has tables of columns that adapt does not know: train a new model"
            )
        else:
            continue
        for part, tables in held:
            own = [feature for feature in schema.features(part, Categorical) if feature.shares is None]
            for number, feature in enumerate(own):
                yield (prefix, part, feature.name), f"{prefix}.{tables}.{number}.weight"


def _find_dependent(model: PreTrainedReranker, config: RerankerConfig, *sizes: str) -> set[str]:
    """Finds the parameters whose shape depends on one of these sizes of the config, with models on the meta device."""

    def shapes(**changes: int) -> dict[str, torch.Size]:
        other = copy.deepcopy(config)
        for name, value in changes.items():
            setattr(other, name, value)
        with torch.device("meta"):
            return {name: value.shape for name, value in type(model)(other).state_dict().items()}

    now = shapes()
    found: set[str] = set()
    for size in sizes:
        # Increased by more than one, in case a model divides a width.
        more = shapes(**{size: getattr(config, size) + 8})
        found |= {name for name in now if more.get(name) != now[name]}
    return found
