"""Boosted trees as plain arrays, evaluated in numpy: the earlier ranker saved with a model.

``hf_rerank.initial_rankers.on_top`` learns them with LightGBM. Nothing else is needed to rank with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.processing.ragged import RaggedLists
from hf_rerank.processing.vocabularies import UNKNOWN
from hf_rerank.schema import Categorical, ListSchema
from hf_rerank.storage import read_arrays, write_arrays

TREES_FILE = "trees.safetensors"
# Prefix of the name of a feature in the file, for its click-through rates.
_RATES = "rates/"
_READS_POSITION = "reads_position"
# Missing numbers at a split: NaN counts as 0, zero also counts as missing, or only NaN is missing.
MISSING_IS_ZERO, ZERO_IS_MISSING, NAN_IS_MISSING = 0, 1, 2
# LightGBM treats smaller absolute values as zero.
_ZERO = 1e-35
# Pairs of an item and a tree that are evaluated at once.
_PAIRS = 2**16
_DTYPES = {
    **dict.fromkeys(("roots", "feature", "left", "right", "category_set"), "int32"),
    **dict.fromkeys(("default_left", "missing", "categories"), "uint8"),
    **dict.fromkeys(("threshold", "leaves"), "float64"),
}


@dataclass(frozen=True)
class TreeEnsemble:
    """The sum of regression trees.

    The nodes of all trees are concatenated, and so are the leaves. A child of at least 0 is a node, a negative one is
    the leaf ``-1 - child``. At a numerical node an item goes left if its value is at most the
    threshold; at a categorical one if its value is among the node's.

    Attributes:
        roots: int32 [trees], children as above: a tree may be a single leaf.
        feature: int32 [nodes], the column that a node reads.
        threshold: float64 [nodes], largest value that goes left at a numerical node.
        left, right: int32 [nodes], children.
        default_left: uint8 [nodes], 1 where a missing value goes left.
        missing: uint8 [nodes], missing numbers at a node: 0 NaN counts as zero, 1 zero also counts as missing, 2 only
            NaN is missing.
        category_set: int32 [nodes], the row of ``categories`` for a categorical node; -1 for a numerical one.
        categories: uint8 [sets, values], 1 at the values that go left.
        leaves: float64 [leaves], the value that a leaf adds.
    """

    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    default_left: np.ndarray
    missing: np.ndarray
    category_set: np.ndarray
    categories: np.ndarray
    leaves: np.ndarray

    def scores(self, values: np.ndarray) -> np.ndarray:
        """float64 [N], the sums for items with these values, float [N, columns], NaN where missing."""
        values = np.ascontiguousarray(values, dtype=np.float64)
        if len(self.feature) and self.feature.max() >= values.shape[1]:
            raise InputError(
                f"the trees read {self.feature.max() + 1} columns, but the lists have {values.shape[1]}: they belong "
                "to another processor; load model and processor from one folder"
            )
        at_once = max(1, _PAIRS // max(1, len(self.roots)))
        parts = [self._scores(values[start : start + at_once]) for start in range(0, len(values), at_once)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _scores(self, values: np.ndarray) -> np.ndarray:
        count, width = values.shape
        flat = values.reshape(-1)
        child = np.tile(self.roots, count)
        row_start = np.repeat(np.arange(count, dtype=np.int64) * width, len(self.roots))
        moving = np.flatnonzero(child >= 0)
        while len(moving):
            node = child[moving]
            went = np.where(
                self._goes_left(node, flat[row_start[moving] + self.feature[node]]), self.left[node], self.right[node]
            )
            child[moving] = went
            moving = moving[went >= 0]
        return self.leaves[-1 - child].reshape(count, -1).sum(1)

    def _goes_left(self, node: np.ndarray, value: np.ndarray) -> np.ndarray:
        missing = np.isnan(value)
        if missing.any():
            value = np.where(missing, 0.0, value)
        left = value <= self.threshold[node]
        way = self.missing[node]
        if way.any():
            by_default = ((way == NAN_IS_MISSING) & missing) | ((way == ZERO_IS_MISSING) & (np.abs(value) <= _ZERO))
            left = np.where(by_default, self.default_left[node] == 1, left)
        if len(self.categories):
            chosen = self.category_set[node]
            categorical = np.flatnonzero(chosen >= 0)
            if len(categorical):
                number = value[categorical].astype(np.int64)
                known = (number >= 0) & (number < self.categories.shape[1]) & ~missing[categorical]
                row = chosen[categorical]
                left[categorical] = known & (self.categories[row, np.where(known, number, 0)] == 1)
        return left

    def check(self, path: Path) -> None:
        """Raises an InputError if the arrays do not describe trees."""
        for entry in fields(self):
            array, dtype, axes = getattr(self, entry.name), _DTYPES[entry.name], 2 if entry.name == "categories" else 1
            if array.dtype != dtype or array.ndim != axes:
                raise InputError(
                    f"{path} holds {array.dtype} {list(array.shape)} as {entry.name!r}: expected {dtype} of {axes} "
                    "axes; the file was changed, save or download the model again"
                )
        nodes, leaves = len(self.feature), len(self.leaves)
        per_node = (self.threshold, self.left, self.right, self.default_left, self.missing, self.category_set)
        children = np.concatenate([self.roots, self.left, self.right])
        wrong = (
            any(part.shape != (nodes,) for part in per_node)
            or (len(self.categories) and not self.categories.shape[1])
            or (len(children) and (children.max() >= nodes or children.min() < -leaves))
            or (nodes and (self.feature.min() < 0 or self.category_set.max() >= len(self.categories)))
            # A child comes after its parent, so every path ends.
            or any((part[part >= 0] <= np.flatnonzero(part >= 0)).any() for part in (self.left, self.right))
        )
        if wrong:
            raise InputError(f"{path} does not hold trees: the file was changed; save or download the model again")


class TreeRanker:
    """Trees over the encoded features of items and users, which score each item separately.

    They read numbers and vectors as the processor encodes them, and categorical features as categories, or as
    click-through rates (target encoding) for the features in ``rates``.

    Args:
        ensemble: The trees.
        rates: Categorical feature -> float32 [rows], the click-through rate of each row of its table.
        reads_position: Whether the trees also read the position of an item in the initial order.
    """

    def __init__(self, ensemble: TreeEnsemble, rates: Mapping[str, np.ndarray], *, reads_position: bool) -> None:
        self.ensemble, self.rates, self.reads_position = ensemble, dict(rates), reads_position

    def scores(self, ragged: RaggedLists, schema: ListSchema) -> np.ndarray:
        """float32 [N], the scores of the items of all lists, one list after another."""
        values = make_tree_inputs(ragged, schema, self.rates, with_position=self.reads_position)
        return self.ensemble.scores(values).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays that ``save`` writes, by name."""
        plain = {entry.name: getattr(self.ensemble, entry.name) for entry in fields(TreeEnsemble)}
        plain[_READS_POSITION] = np.array([self.reads_position], dtype=np.uint8)
        return {**plain, **{f"{_RATES}{name}": rates for name, rates in self.rates.items()}}

    def save(self, folder: Path) -> None:
        """Writes ``trees.safetensors``."""
        write_arrays(folder / TREES_FILE, {name: np.ascontiguousarray(array) for name, array in self.arrays().items()})

    @classmethod
    def load(cls, folder: Path) -> TreeRanker:
        """Reads ``trees.safetensors``.

        Raises:
            InputError: It is damaged, or does not hold trees.
        """
        path = folder / TREES_FILE
        arrays = read_arrays(path)
        names = [entry.name for entry in fields(TreeEnsemble)]
        for name in (*names, _READS_POSITION):
            if name not in arrays:
                raise InputError(
                    f"{path} has no {name!r}: it is not a file of trees; save or download the model again"
                )
        ensemble = TreeEnsemble(**{name: arrays[name] for name in names})
        ensemble.check(path)
        for name, array in arrays.items():
            if name.startswith(_RATES) and (array.ndim != 1 or array.dtype.kind != "f" or len(array) <= UNKNOWN):
                raise InputError(f"{path} has no rates {name!r}: the file was changed; save or download it again")
        rates = {name.removeprefix(_RATES): array for name, array in arrays.items() if name.startswith(_RATES)}
        return cls(ensemble, rates, reads_position=bool(arrays[_READS_POSITION].any()))


def list_tables(schema: ListSchema) -> list[tuple[str, int, Categorical]]:
    """The categorical features of items and users: part, index in the part, and feature."""
    return [
        (part, number, feature)
        for part in ("items", "user")
        for number, feature in enumerate(schema.features(part, Categorical))
    ]


def find_rows(ragged: RaggedLists, part: str, number: int) -> np.ndarray:
    """Table rows of a categorical feature, one per item."""
    if part == "items":
        return ragged.rows["item_categorical"][:, number]
    return np.repeat(ragged.rows["user_categorical"][:, number], ragged.lengths["L"])


def make_tree_inputs(
    ragged: RaggedLists,
    schema: ListSchema,
    rates: Mapping[str, np.ndarray],
    parts: np.ndarray | None = None,
    *,
    with_position: bool = False,
) -> np.ndarray:
    """float32 [N, columns], the inputs of the trees: numbers, vectors, the user's numbers, categories, click-through
    rates.

    Args:
        ragged: Encoded lists.
        schema: The fitted schema of the lists.
        rates: Categorical feature -> rates by row of its table, [rows]; with ``parts`` [parts, rows].
        parts: int64 [N], the row of ``rates`` for each item. None: ``rates`` has one row.
        with_position: Append the position of an item in the initial order.
    """
    columns: list[Any] = [ragged.rows[name] for name in ("item_dense", "item_vectors") if name in ragged.rows]
    if "user_dense" in ragged.rows:
        columns.append(np.repeat(ragged.rows["user_dense"], ragged.lengths["L"], axis=0))
    tables = list_tables(schema)
    for part, number, feature in tables:
        if feature.name not in rates:
            columns.append(find_rows(ragged, part, number)[:, None])
    for part, number, feature in tables:
        if feature.name in rates:
            table, rows = rates[feature.name], find_rows(ragged, part, number)
            # A table that has grown since the trees were learned has rows without a rate.
            rows = np.where(rows < table.shape[-1], rows, UNKNOWN)
            columns.append((table[rows] if parts is None else table[parts, rows])[:, None])
    if with_position:
        columns.append(ragged.rows["position_ids"][:, None])
    return np.concatenate(columns, axis=1, dtype=np.float32)
