"""Statistics of paired experiments: differences by seed with t-intervals, and a bootstrap over users."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (over n - 1; 0 of a single value), and the values themselves."""
    array = np.asarray(values, dtype=float)
    spread = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {"mean": float(array.mean()), "std": spread, "values": array.tolist()}


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Mean of a - b over pairs, with the t-interval; infinite ends for a single pair.

    Args:
        a: One value a seed.
        b: The same seeds in the same order.
        confidence: Of the interval.
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    mean, count = float(difference.mean()), len(difference)
    if count < 2:
        return {"mean": mean, "low": -math.inf, "high": math.inf, "pairs": count}
    from scipy import stats

    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * difference.std(ddof=1) / math.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": count}


def paired_p_value(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the paired t-test of a against b; 1 for a single pair, or where all differences are 0."""
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(difference) < 2 or not difference.any():
        return 1.0
    from scipy import stats

    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of tests by Holm's step-down method, in the order given."""
    count, largest = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def bootstrap_over_users(
    difference: np.ndarray, users: Sequence, *, draws: int = 2000, seed: int = 0, confidence: float = 0.95
) -> dict[str, float]:
    """Interval of the mean of a per-list difference when users, not lists, are drawn anew.

    Args:
        difference: [lists], one method minus another, a mean over seeds.
        users: [lists], whose list each is.
        draws: Bootstrap samples.
        seed: Of the draws.
        confidence: Of the percentile interval.
    """
    _, owner = np.unique(np.asarray(users), return_inverse=True)
    sums, counts = np.bincount(owner, weights=difference), np.bincount(owner)
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        drawn = generator.integers(0, len(sums), len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}
