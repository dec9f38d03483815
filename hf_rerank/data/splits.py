"""Splits by an MD5 of the group (the user), the same for all datasets and engines. Must never change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

BUCKETS = 10_000
# Split -> the first bucket after its range.
UPPER_BOUNDS = {"ranker_train": 4_000, "train": 8_500, "validation": 9_000, "test": BUCKETS}
SPLITS = tuple(UPPER_BOUNDS)


def assign_splits(group_ids: Iterable[Any], *, ranker_train: bool = True) -> np.ndarray:
    """The split of each group id.

    The bucket is given by the first 8 hex digits of the MD5 of the id (as decimal text), modulo 10,000. 40 % of the
    groups go to ``ranker_train`` (initial rankers, click models, personalized vectors), 45 % to ``train``, 5 % to
    ``validation``, 10 % to ``test``.

    Args:
        group_ids: N integers or strings; 17 and "17" share a bucket.
        ranker_train: False: the groups of ``ranker_train`` go to ``train``. Default True.

    Returns:
        Array of N strings.
    """
    ids = list(group_ids)
    split_of_id = {group: _assign_split(group) for group in set(ids)}
    if not ranker_train:
        split_of_id = {group: "train" if split == "ranker_train" else split for group, split in split_of_id.items()}
    return np.array([split_of_id[group] for group in ids], dtype=object)


def _assign_split(group: Any) -> str:
    bucket = int(hashlib.md5(str(group).encode(), usedforsecurity=False).hexdigest()[:8], 16) % BUCKETS
    return next(split for split, upper in UPPER_BOUNDS.items() if bucket < upper)
