"""The trees of a LightGBM model as plain arrays, from its text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.processing.trees import TreeEnsemble

# The bits of ``decision_type``: categorical, missing goes left, and two bits for the kind of missing value.
_CATEGORICAL, _DEFAULT_LEFT, _MISSING_SHIFT, _MISSING_BITS = 1, 2, 2, 3


def parse_ensemble(model: str) -> TreeEnsemble:
    """Parses the trees of ``Booster.model_to_string``; ``scores`` of the result returns the raw scores.

    Raises:
        InputError: The kind of tree is not supported: linear leaves, or averaged trees.
    """
    if "\naverage_output" in model:
        raise InputError("the LightGBM model averages its trees (boosting rf): expected boosting gbdt")
    parts: dict[str, list[np.ndarray]] = {}
    roots, nodes, leaves = [], 0, 0
    sets: list[np.ndarray] = []
    for tree in _parse_trees(model):
        count = int(tree["num_leaves"])
        if tree.get("is_linear", "0") != "0":
            raise InputError("the LightGBM model has linear leaves: train it without linear_tree")
        parts.setdefault("leaves", []).append(_parse_numbers(tree["leaf_value"], np.float64))
        roots.append(nodes if count > 1 else -1 - leaves)
        if count > 1:
            kind = _parse_numbers(tree["decision_type"], np.int64)
            threshold = _parse_numbers(tree["threshold"], np.float64)
            own_sets = np.full(count - 1, -1, dtype=np.int32)
            for node in np.flatnonzero(kind & _CATEGORICAL):
                own_sets[node] = len(sets)
                sets.append(_parse_members(tree, int(threshold[node])))
            for name, values in (
                ("feature", _parse_numbers(tree["split_feature"], np.int32)),
                ("threshold", np.where(kind & _CATEGORICAL, 0.0, threshold)),
                ("left", _number_children(tree["left_child"], nodes, leaves)),
                ("right", _number_children(tree["right_child"], nodes, leaves)),
                ("default_left", ((kind & _DEFAULT_LEFT) > 0).astype(np.uint8)),
                ("missing", (kind >> _MISSING_SHIFT & _MISSING_BITS).astype(np.uint8)),
                ("category_set", own_sets),
            ):
                parts.setdefault(name, []).append(values)
            nodes += count - 1
        leaves += count
    width = max((int(members.max()) + 1 for members in sets if len(members)), default=0)
    categories = np.zeros((len(sets), width), dtype=np.uint8)
    for row, members in enumerate(sets):
        categories[row, members] = 1
    kinds: dict[str, Any] = {"feature": np.int32, "threshold": np.float64, "left": np.int32, "right": np.int32}
    kinds |= {"default_left": np.uint8, "missing": np.uint8, "category_set": np.int32, "leaves": np.float64}
    arrays = {
        name: np.concatenate(parts[name]).astype(kind) if name in parts else np.zeros(0, dtype=kind)
        for name, kind in kinds.items()
    }
    return TreeEnsemble(roots=np.array(roots, dtype=np.int32), categories=categories, **arrays)


def _parse_trees(model: str) -> Iterator[dict[str, str]]:
    """Yields the lines ``key=value`` of each tree."""
    trees, _, _ = model.partition("\nend of trees")
    for block in trees.split("\nTree=")[1:]:
        yield dict(line.split("=", 1) for line in block.split("\n")[1:] if "=" in line)


def _parse_numbers(text: str, kind: Any) -> np.ndarray:
    return np.array(text.split(), dtype=np.float64).astype(kind)


def _number_children(text: str, nodes: int, leaves: int) -> np.ndarray:
    """Converts the numbers of children from numbers within the tree to numbers across all trees."""
    children = _parse_numbers(text, np.int64)
    return np.where(children >= 0, children + nodes, children - leaves).astype(np.int32)


def _parse_members(tree: dict[str, str], number: int) -> np.ndarray:
    """Parses the values that go left at categorical split ``number``, a bit set of 32-bit words."""
    ends, words = _parse_numbers(tree["cat_boundaries"], np.int64), _parse_numbers(tree["cat_threshold"], np.int64)
    own = words[ends[number] : ends[number + 1]]
    return np.flatnonzero(((own[:, None] >> np.arange(32)) & 1).reshape(-1))
