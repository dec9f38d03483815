"""Scales of dense features: learned from a column, and applied to its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow as pa

from hf_rerank.processing.vocabularies import splitmix64
from hf_rerank.schema import Dense

# Knots of the ``quantile`` scale: about as many as a network can tell apart.
KNOTS = 101
# Maximum number of values that the quantiles of a column are learned from.
SAMPLE = 200_000


@dataclass(frozen=True)
class DenseScale:
    """The learned scale of a dense feature.

    Attributes:
        mean: Training mean, after the logarithm under ``log``; under ``quantile`` the mean of the quantiles.
        std: Standard deviation, likewise; 0 if the column was constant in training or had no values: it is then always
            encoded as 0, the only input that its weights were trained on.
        knots: Under ``quantile``: values at which the quantile is known, ascending; empty under the other scales.
        quantiles: Standard normal quantiles of the knots' ranks, interpolated linearly between knots and constant
            beyond the first and the last knot.
        constant_indicator: In training no value was missing, or all were: the indicator of missing values is always 0.
    """

    mean: float
    std: float
    knots: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    constant_indicator: bool = False

    @property
    def constant(self) -> bool:
        """Whether the column was constant in training."""
        return self.std == 0.0


class Moments:
    """Learns mean and standard deviation over batches (Chan, Golub, LeVeque 1979), without missing values."""

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

    def make_scale(self, *, constant_indicator: bool = False) -> DenseScale:
        std = float(np.sqrt(self.squares / self.count)) if self.count else 0.0
        # A constant column (up to rounding) carries no information: it is encoded as 0, not divided by rounding
        # errors.
        std = std if std > 1e-9 * max(1.0, abs(self.mean)) else 0.0
        # Nine digits: the batch size changes the last ones, and must not change the fingerprint.
        mean, std = float(f"{self.mean:.9g}"), float(f"{std:.9g}")
        return DenseScale(mean, std, constant_indicator=constant_indicator)


class QuantileSample:
    """Learns the ``quantile`` scale of a column from a sample of bounded size, without missing values.

    The sample depends only on the indices of the values in the column, not on the batch size.
    """

    def __init__(self) -> None:
        self.count, self.share = 0, 1
        self._numbers, self._values = np.zeros(0, dtype=np.uint64), np.zeros(0)

    def add(self, values: np.ndarray) -> None:
        numbers = splitmix64(np.arange(self.count, self.count + len(values)))
        self.count += len(values)
        keep = (numbers < self._compute_bound()) & ~np.isnan(values)
        self._numbers = np.concatenate([self._numbers, numbers[keep]])
        self._values = np.concatenate([self._values, values[keep]])
        while len(self._values) > SAMPLE:
            self.share *= 2
            keep = self._numbers < self._compute_bound()
            self._numbers, self._values = self._numbers[keep], self._values[keep]

    def make_scale(self, *, constant_indicator: bool = False) -> DenseScale:
        values = np.sort(self._values)
        if not len(values) or values[0] == values[-1]:
            only = float(f"{values[0] if len(values) else 0.0:.9g}")
            return DenseScale(0.0, 0.0, (only,), (0.0,), constant_indicator)
        knots = np.unique(np.quantile(values, np.linspace(0.0, 1.0, KNOTS), method="nearest"))
        # Ties get their middle rank: a value that half of the items share is in the middle of that half.
        ranks = (np.searchsorted(values, knots, "left") + np.searchsorted(values, knots, "right")) / (2 * len(values))
        normal = NormalDist()
        quantiles = np.array([normal.inv_cdf(float(rank)) for rank in ranks])
        found = np.interp(values, knots, quantiles)
        mean, std = float(found.mean()), float(found.std())
        at, ranked = (tuple(float(f"{value:.9g}") for value in part) for part in (knots, quantiles))
        return DenseScale(float(f"{mean:.9g}"), float(f"{std:.9g}") or 1.0, at, ranked, constant_indicator)

    def _compute_bound(self) -> np.uint64:
        return np.uint64((2**64 - 1) // self.share)


def make_learner(feature: Dense) -> Moments | QuantileSample:
    """The object that learns the scale of a feature from its numbers."""
    return QuantileSample() if feature.scale == "quantile" else Moments()


def to_numbers(feature: Dense, column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """float64 [N], NaN where missing, after the feature's logarithm; and bool [N], True where missing, or None."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan), np.ones(len(column), dtype=bool)
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    values = column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    if feature.scale == "log":
        values = np.sign(values) * np.log1p(np.abs(values))
    return values, missing


def scale_columns(features: Sequence[Dense], columns: Sequence[pa.Array], scales: Sequence[DenseScale]) -> np.ndarray:
    """float32 [N, width] from columns of N values: one column per feature, plus one per indicator of missing values.

    Scales all features together, since for a single list the number of numpy operations dominates the time.
    """
    numbers = [to_numbers(feature, column) for feature, column in zip(features, columns, strict=True)]
    values = np.array([of_feature for of_feature, _ in numbers])
    for row, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        if feature.scale == "quantile":
            values[row] = np.interp(values[row], scale.knots, scale.quantiles)
    for row, (_, missing) in enumerate(numbers):
        if missing is not None:
            values[row, missing] = scales[row].mean
    as_it_comes = [feature.scale == "none" for feature in features]
    values -= np.array([[0.0 if plain else scale.mean] for plain, scale in zip(as_it_comes, scales, strict=True)])
    values /= np.array(
        [[1.0 if plain else scale.std or 1.0] for plain, scale in zip(as_it_comes, scales, strict=True)]
    )
    values[[scale.constant for scale in scales]] = 0.0
    starts = np.cumsum([0, *(feature.width for feature in features)])
    result = np.zeros((values.shape[1], starts[-1]), dtype=np.float32)
    result[:, starts[:-1]] = values.T
    for feature, start, scale, (_, missing) in zip(features, starts, scales, numbers, strict=False):
        if feature.missing == "indicator" and missing is not None and not scale.constant_indicator:
            result[:, start + 1] = missing
    return result


def count_varied(feature: Dense, column: pa.Array, scale: DenseScale) -> int:
    """The number of non-null values that differ from the constant of a column that was constant in training."""
    values, _ = to_numbers(feature, column)
    only = scale.knots[0] if feature.scale == "quantile" else scale.mean
    return int(np.count_nonzero(np.abs(values - only) > 1e-6 * max(1.0, abs(only))))
