"""Reads prepared lists as arrays of impressions: display position, click, and item id or features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_rerank.data.prepared import PreparedFolder
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import Categorical, Dense, ListSchema
from hf_rerank.validation import Lists

# The value of ``display_order`` for items in display order.
ROWS = "rows"
# The splits from whose clicks propensities are estimated.
SPLITS = ("ranker_train", "train")
BATCH_LISTS = 4_096
# Number of most frequent values of a categorical feature that get their own weight in the regression.
MOST_VALUES = 100


@dataclass(frozen=True)
class ClickLog:
    """Impressions, one entry each.

    Attributes:
        position: int64 [N], the position at which the item was displayed, from 0.
        click: bool [N].
        item: int64 [N], codes of item ids from 0; None if features are read.
        features: float [N, features], scipy sparse; None if ids are read.
        lists: Number of lists.
        without_id: Number of impressions without an id, which are left out.
    """

    position: np.ndarray
    click: np.ndarray
    item: np.ndarray | None
    features: Any
    lists: int
    without_id: int


def find_id_column(schema: ListSchema, folder: Path) -> str:
    """The column of item ids.

    Raises:
        InputError: There is none.
    """
    if schema.id is not None:
        return schema.id
    if isinstance(schema.items[0], Categorical):
        return schema.items[0].name
    raise InputError(
        f"{folder} has no item ids: its schema names no id, and its first item feature, {schema.items[0].name!r}, is "
        "not categorical; name the id column, or use --method regression-em, which reads the features instead"
    )


def read_display_positions(lists: pa.Table, column: str, lengths: np.ndarray, where: str) -> np.ndarray:
    """int64 [N], the position at which each item was displayed, from 0; a column without 0 is numbered from 1.

    Args:
        lists: A table of lists.
        column: Column of display positions; ``ROWS``: items are in display order.
        lengths: int64 [B], the number of items of each list.
        where: Where the lists are, for messages.

    Raises:
        InputError: The column is missing, has values other than integers from 0, or is ragged.
    """
    starts = np.cumsum(lengths) - lengths
    if column == ROWS:
        return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    if column not in lists.column_names:
        raise InputError(f"{where} have no column {column!r}{suggestion(column, lists.column_names)}")
    values = lists.column(column).combine_chunks()
    if not pa.types.is_list(values.type) or not pa.types.is_integer(values.type.value_type):
        raise InputError(
            f"column {column!r} of {where} holds {values.type}: expected the display position of each item, an "
            "integer from 0"
        )
    own = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
    flat = values.flatten()
    if not np.array_equal(own, lengths) or flat.null_count:
        raise InputError(f"column {column!r} of {where} has nulls, or lists that differ in length from the items")
    positions = flat.to_numpy(zero_copy_only=False).astype(np.int64)
    if len(positions) and positions.min() < 0:
        row = int(np.searchsorted(np.cumsum(lengths), np.argmax(positions < 0), side="right"))
        raise InputError(
            f"column {column!r} of {where} holds {positions.min()} in list {row}: expected display positions from 0"
        )
    return positions - 1 if len(positions) and positions.min() > 0 else positions


def read_click_log(
    prepared: PreparedFolder, folder: Path, display_order: str, *, features: bool, at_most: int | None
) -> ClickLog:
    """Reads the lists of ``SPLITS``.

    Args:
        prepared: The folder.
        folder: Path of the folder.
        display_order: Column of display positions, or ``ROWS``.
        features: Read features of the items instead of their ids.
        at_most: Maximum number of lists, spread evenly over all. None: all.

    Raises:
        InputError: No lists, no ids, or wrong lists.
    """
    schema = prepared.schema
    name = None if features else find_id_column(schema, folder)
    total = sum(prepared.lists.get(split, 0) for split in SPLITS)
    if not total:
        raise InputError(
            f"{folder} has no list in {' or '.join(SPLITS)}: propensities are estimated from these splits"
        )
    positions, clicks, ids, tables, count = [], [], [], [], 0
    for where, lists in _read_lists(prepared, total, at_most):
        labels = lists.column(schema.label).combine_chunks()
        lengths = pc.list_value_length(labels).to_numpy(zero_copy_only=False).astype(np.int64)
        positions.append(read_display_positions(lists, display_order, lengths, where))
        clicks.append(pc.greater(labels.flatten(), 0).to_numpy(zero_copy_only=False))
        count += len(lists)
        if name is None:
            tables.append(_read_features(lists, schema))
        else:
            ids.append(lists.column(name).combine_chunks().flatten())
    position, click = np.concatenate(positions), np.concatenate(clicks)
    if name is None:
        return ClickLog(position, click, None, _make_matrix(tables), count, 0)
    codes = pa.chunked_array(ids).combine_chunks().dictionary_encode().indices
    there = codes.is_valid().to_numpy(zero_copy_only=False)
    item = pc.fill_null(codes, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if not there.any():
        raise InputError(f"column {name!r} of {folder} holds no id: use --method regression-em")
    return ClickLog(position[there], click[there], item[there], None, count, int((~there).sum()))


def _read_lists(prepared: PreparedFolder, total: int, at_most: int | None) -> Iterator[tuple[str, pa.Table]]:
    """Yields batches of lists of the splits, each with its location for messages."""
    number = 0
    for split in SPLITS:
        for path in prepared.files.get(split, []):
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(BATCH_LISTS):
                    lists = pa.Table.from_batches([batch])
                    if at_most is not None and at_most < total:
                        # Keep the lists at which the scaled index increases.
                        share = (np.arange(number - 1, number + len(lists)) * at_most) // total
                        lists = lists.filter(pa.array(np.diff(share) > 0))
                    number += batch.num_rows
                    if len(lists):
                        yield f"lists of {path}", lists


def _read_features(lists: pa.Table, schema: ListSchema) -> dict[str, Any]:
    """The dense and categorical item features of lists, without the id: name -> flat Arrow array."""
    features = [
        feature for feature in schema.items if isinstance(feature, Categorical | Dense) and feature.name != schema.id
    ]
    if not features:
        raise InputError(
            "regression-em reads dense and categorical item features, and the schema has none besides the id"
        )
    bare = ListSchema(items=features, label=schema.label)
    return Lists.from_arrow(lists.select([feature.name for feature in features]), bare).items


def _make_matrix(tables: Sequence[dict[str, Any]]) -> Any:
    """A sparse matrix of features: standardized numbers, missing ones at the mean; frequent values one-hot."""
    from scipy import sparse

    columns = []
    for name, first in tables[0].items():
        flat = pa.chunked_array([table[name].cast(first.type) for table in tables]).combine_chunks()
        if pa.types.is_floating(flat.type):
            numbers = flat.cast(pa.float64()).to_numpy(zero_copy_only=False)
            mean, spread = np.nanmean(numbers), np.nanstd(numbers)
            scaled = np.nan_to_num((numbers - mean) / (spread if spread > 0 else 1.0))
            columns.append(sparse.csr_array(scaled[:, None]))
            continue
        codes = flat.dictionary_encode().indices
        code = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        counts = np.bincount(code[code >= 0], minlength=1)
        by_count = np.argsort(np.argsort(-counts, kind="stable"))
        number = np.where(code >= 0, by_count[code], MOST_VALUES)
        rows = np.flatnonzero(number < MOST_VALUES)
        shape = (len(code), min(len(counts), MOST_VALUES))
        columns.append(sparse.csr_array((np.ones(len(rows)), (rows, number[rows])), shape))
    return sparse.hstack(columns, format="csr")
