"""Boosted trees of LightGBM over encoded lists: what ``lambdamart`` and ``on_top`` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.click_through import ClickThroughCounts
from hf_rerank.processing import ListProcessor
from hf_rerank.processing.ragged import RaggedLists, concatenate
from hf_rerank.processing.trees import find_rows, list_tables, make_tree_inputs
from hf_rerank.schema import Dense, ListSchema, Vector
from hf_rerank.validation import Lists, tables_of

# Tables of at most this many rows are categories to the trees; larger ones enter as click-through rates.
MAX_CATEGORIES = 64
# The highest grade that LightGBM has a gain for.
HIGHEST_LABEL = 30
# Items of the longest list that LightGBM learns from.
LONGEST_LIST = 10_000
BATCH = 10_000
# The trees depend on the lists and on the seed alone.
OPTIONS = {"objective": "lambdarank", "deterministic": True, "force_row_wise": True, "verbose": -1}


def require_lightgbm() -> Any:
    """Imports LightGBM.

    Raises:
        InputError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError:
        raise InputError(
            'the ranker lambdamart needs LightGBM: pip install "hf-rerank[lightgbm]", or choose the ranker dnn'
        ) from None
    return lightgbm


def encode(processor: ListProcessor, lists: Any, learned_from: str | None = None) -> RaggedLists:
    """Encodes labelled lists.

    Args:
        processor: Encodes them.
        lists: A ``datasets`` Dataset.
        learned_from: The split, if LightGBM is to learn from them. None: they are only scored, and nothing is checked.

    Raises:
        InputError: LightGBM is to learn from them, and a label is no whole number from 0 to 30, or a list has more
            than 10,000 items.
    """
    encoded, start = [], 0
    for table in tables_of(lists, BATCH):
        batch = Lists.from_arrow(table, processor.schema, with_labels=True, first=start)
        encoded.append(processor.encode(batch)[0])
        if learned_from is not None:
            _check(batch, encoded[-1].rows["labels"], processor.schema.label, learned_from)
        start += table.num_rows
    return concatenate(encoded)


def _check(batch: Lists, labels: np.ndarray, column: str, split: str) -> None:
    if batch.lengths.max(initial=0) > LONGEST_LIST:
        row = int(batch.lengths.argmax())
        raise InputError(
            f"list {batch.ids[row]} of {split} has {batch.lengths[row]:,} items: lambdamart learns from lists of at "
            f"most {LONGEST_LIST:,}; leave the list out"
        )
    wrong = (labels != np.floor(labels)) | (labels > HIGHEST_LABEL)
    if wrong.any():
        raise InputError(
            f"label {labels[wrong][0]:g} in {column!r}: lambdamart takes whole numbers from 0 to {HIGHEST_LABEL}; "
            "turn the labels into clicks or grades"
        )


def count_clicks(ragged: RaggedLists, schema: ListSchema, parts: np.ndarray) -> dict[str, ClickThroughCounts]:
    """Counts clicks on the values of each feature with too many values to be categories.

    Args:
        ragged: Labelled lists.
        schema: Of the lists, fitted.
        parts: int64 [B], the part of each list.
    """
    counts = {}
    of_item = np.repeat(parts, ragged.lengths["L"])
    for part, number, feature in list_tables(schema):
        rows = feature.hash_size or feature.size
        assert rows is not None  # of a fitted schema
        if rows > MAX_CATEGORIES:
            counts[feature.name] = ClickThroughCounts(rows)
            counts[feature.name].add(find_rows(ragged, part, number), ragged.rows["labels"] > 0, of_item)
    return counts


def make_dataset(
    lightgbm: Any,
    ragged: RaggedLists,
    schema: ListSchema,
    rates: Mapping[str, np.ndarray],
    parts: np.ndarray | None = None,
    *,
    with_position: bool = False,
    reference: Any = None,
) -> Any:
    """Makes a LightGBM dataset of labelled lists.

    Args:
        lightgbm: The module.
        ragged: The lists.
        schema: Of the lists, fitted.
        rates: Categorical feature -> click-through rates by row of its table, [rows]; with ``parts`` [parts, rows].
        parts: int64 [B], which rates the items of a list get. None: all get the same.
        with_position: Whether the trees also read at which position an item is given.
        reference: The training data that these lists are held out from.
    """
    of_item = None if parts is None else np.repeat(parts, ragged.lengths["L"])
    values = make_tree_inputs(ragged, schema, rates, of_item, with_position=with_position)
    numbers = sum(feature.width for part in ("items", "user") for feature in schema.features(part, Dense))
    numbers += sum(feature.dim for feature in schema.features("items", Vector))
    return lightgbm.Dataset(
        values,
        ragged.rows["labels"],
        group=ragged.lengths["L"],
        weight=ragged.rows.get("weights"),
        categorical_feature=list(range(numbers, numbers + len(list_tables(schema)) - len(rates))),
        reference=reference,
        params={"verbose": -1},
    )
