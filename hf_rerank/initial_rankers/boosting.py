"""LightGBM data sets of encoded lists, shared by ``lambdamart`` and ``on_top``."""

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

# The trees read tables of at most this many rows as categories, larger ones as click-through rates.
MAX_CATEGORIES = 64
# The highest grade for which LightGBM defines a gain.
HIGHEST_LABEL = 30
# Length of the longest list that LightGBM accepts.
LONGEST_LIST = 10_000
BATCH = 10_000
# Makes the trees depend only on the lists and the seed.
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
        learned_from: Name of the split if LightGBM will be trained on the lists. None: the lists are only scored, and
            nothing is checked.

    Raises:
        InputError: With ``learned_from``: a label is not a whole number from 0 to 30, or a list has more than 10,000
            items.
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
            f"list {batch.ids[row]} of {split} has {batch.lengths[row]:,} items: lambdamart accepts at most "
            f"{LONGEST_LIST:,}; leave the list out"
        )
    wrong = (labels != np.floor(labels)) | (labels > HIGHEST_LABEL)
    if wrong.any():
        raise InputError(
            f"label {labels[wrong][0]:g} in {column!r}: lambdamart accepts whole numbers from 0 to {HIGHEST_LABEL}; "
            "turn the labels into clicks or grades"
        )


def count_clicks(ragged: RaggedLists, schema: ListSchema, parts: np.ndarray) -> dict[str, ClickThroughCounts]:
    """Counts the clicks on each value of the features with too many values to be read as categories.

    Args:
        ragged: Labelled lists.
        schema: Fitted schema of the lists.
        parts: int64 [B], the part of each list.
    """
    counts = {}
    of_item = np.repeat(parts, ragged.lengths["L"])
    for part, number, feature in list_tables(schema):
        rows = feature.hash_size or feature.size
        assert rows is not None  # the schema is fitted
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
        schema: Fitted schema of the lists.
        rates: Categorical feature -> click-through rates by row of its table, [rows]; with ``parts`` [parts, rows].
        parts: int64 [B], the row of ``rates`` for the items of each list. None: all lists share the same rates.
        with_position: Whether the trees also read the given position of an item.
        reference: The training data set, if these lists are held out from it.
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
