"""Dense features: what is learned of a column, and what its numbers become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hf_rerank.schema import Dense


@dataclass(frozen=True)
class DenseScale:
    """What was learned of a dense feature, after its ``log`` where it has one."""

    mean: float
    std: float


class Moments:
    """Mean and variance over batches (Chan, Golub, LeVeque 1979), missing values left out."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        values = values[~np.isnan(values)]
        if not len(values):
            return
        mean = float(values.mean())
        total = self.count + len(values)
        self.squares += (
            float(((values - mean) ** 2).sum()) + (mean - self.mean) ** 2 * self.count * len(values) / total
        )
        self.mean += (mean - self.mean) * len(values) / total
        self.count = total

    def scale(self) -> DenseScale:
        std = float(np.sqrt(self.squares / self.count)) if self.count else 0.0
        # A constant column (up to rounding) carries nothing: it becomes 0, not a division by next to nothing.
        std = std if std > 1e-9 * max(1.0, abs(self.mean)) else 1.0
        # Nine digits: how many lists were read at a time changes the last ones, and must not change the fingerprint.
        return DenseScale(float(f"{self.mean:.9g}"), float(f"{std:.9g}"))


def numbers_of(feature: Dense, column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """float64 values, NaN where missing, after the feature's log; and where they are missing, or None."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan), np.ones(len(column), dtype=bool)
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    values = column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    if feature.scale == "log":
        values = np.sign(values) * np.log1p(np.abs(values))
    return values, missing


def scaled(features: Sequence[Dense], columns: Sequence[pa.Array], scales: Sequence[DenseScale]) -> np.ndarray:
    """float32 [N, width] of columns of N values: a column a feature, and one more for the indicator of missing ones.

    All features at once: of a single list most of the time goes into the number of operations.
    """
    numbers = [numbers_of(feature, column) for feature, column in zip(features, columns, strict=True)]
    values = np.array([of_feature for of_feature, _ in numbers])
    for row, (_, missing) in enumerate(numbers):
        if missing is not None:
            values[row, missing] = scales[row].mean
    as_it_comes = [feature.scale == "none" for feature in features]
    values -= np.array([[0.0 if plain else scale.mean] for plain, scale in zip(as_it_comes, scales, strict=True)])
    values /= np.array([[1.0 if plain else scale.std] for plain, scale in zip(as_it_comes, scales, strict=True)])
    places = np.cumsum([0, *(feature.width for feature in features)])
    result = np.zeros((values.shape[1], places[-1]), dtype=np.float32)
    result[:, places[:-1]] = values.T
    for feature, place, (_, missing) in zip(features, places, numbers, strict=False):
        if feature.missing == "indicator" and missing is not None:
            result[:, place + 1] = missing
    return result
