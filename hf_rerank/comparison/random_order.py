"""A fixed random order per list, for models that cannot ignore the order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from hf_rerank.processing.vocabularies import splitmix64
from hf_rerank.schema import ListSchema
from hf_rerank.validation import tables_of

COLUMN = "hf_rerank_random_order"
_BATCH = 10_000
# More than the items of any list.
_STRIDE = 2**20


def add_random_order(lists: Any, schema: ListSchema, seed: int) -> Any:
    """Adds a column of random positions, ``COLUMN``, to lists; the order of each list is drawn once.

    Args:
        lists: A ``datasets`` Dataset.
        schema: Schema of the lists.
        seed: Random seed; use a different one for each split.
    """
    lengths = [
        table.column(schema.label).combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
        for table in tables_of(lists.select_columns([schema.label]), _BATCH)
    ]
    positions = draw_positions(np.concatenate(lengths).astype(np.int64), seed)
    return lists.add_column(COLUMN, pa.array([part.tolist() for part in positions], type=pa.list_(pa.int64())))


def draw_positions(lengths: np.ndarray, seed: int) -> list[np.ndarray]:
    """Draws a random permutation of ``0 .. length - 1`` per list, by a hash of seed, list number and slot.

    Args:
        lengths: int64 [B], list lengths, each below 2 ** 20.
        seed: Random seed.
    """
    start = splitmix64(np.array([seed], dtype=np.int64)).view(np.int64)
    orders = []
    for number, length in enumerate(lengths.tolist()):
        drawn = splitmix64((np.arange(length, dtype=np.int64) + number * _STRIDE) ^ start)
        orders.append(np.argsort(np.argsort(drawn, kind="stable"), kind="stable"))
    return orders
