"""Comparing models: paired differences with intervals over seeds and over groups, multiple-test correction, a table.

A difference is paired if both models were evaluated on the same lists, or trained with the same seed: shared variation
cancels. Two sources of variance are kept apart: the seed of the training (a t-interval over seeds) and the sample of
users or queries (a bootstrap over groups of lists).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_rerank.errors import InputError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: Mean of the differences.
        low: Lower end; minus infinity if there is only one value.
        high: Upper end; infinity if there is only one value.
        count: Number of seeds or groups.
        p_value: Two-sided p-value of the null hypothesis that the mean is 0.
    """

    mean: float
    low: float
    high: float
    count: int
    p_value: float = math.nan

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def relative_to(self, base: float) -> Interval:
        """Returns the interval as a fraction of ``base``."""
        return Interval(self.mean / base, self.low / base, self.high / base, self.count, self.p_value)


def t_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Computes the mean of paired differences, Student's t-interval and the p-value of the paired t-test.

    Args:
        differences: One per seed. A single one has an infinite interval and the p-value 1.
        confidence: Confidence level, in (0, 1).

    Raises:
        InputError: ``differences`` is empty.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        raise InputError("there is no difference to average: expected one per seed")
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1, 1.0)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    if not error:  # equal differences: no spread to test against
        return Interval(mean, mean, mean, count, 1.0 if mean == 0 else 0.0)
    from scipy import stats

    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return Interval(mean, mean - half, mean + half, count, p_value)


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray,
    groups: Sequence[Any],
    *,
    draws: int = 2_000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Computes the mean of per-list differences and a percentile bootstrap interval, resampling whole groups.

    The p-value is twice the share of bootstrap means on the other side of 0, ``(1 + their number) / (1 + draws)``, at
    most 1.

    Args:
        differences: [lists], one model minus another, averaged over seeds if there are several. NaN (a list that does
            not count in the metric) is left out.
        groups: [lists], the user or query of each list: lists of the same group are not independent.
        draws: Number of bootstrap samples.
        seed: Random seed of the samples.
        confidence: Confidence level, in (0, 1).

    Raises:
        InputError: Differences and groups differ in number, or all differences are NaN.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) != len(groups):
        raise InputError(f"{len(values)} differences and {len(groups)} groups: expected one group per list")
    there = ~np.isnan(values)
    if not there.any():
        raise InputError("no list has a difference: all are NaN")
    _, owner = np.unique(np.asarray(groups).astype(str)[there], return_inverse=True)
    sums, counts = np.bincount(owner, weights=values[there]), np.bincount(owner)
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        weights = np.bincount(generator.integers(0, len(sums), len(sums)), minlength=len(sums))
        means[draw] = (sums * weights).sum() / (counts * weights).sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    far = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (1 + far) / (1 + draws))
    return Interval(float(values[there].mean()), float(low), float(high), len(sums), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for the number of tests by Holm's step-down method; returns them in the given order.

    The p-values, in increasing order, are multiplied by the number of remaining tests and kept non-decreasing. The
    probability of any false positive among all tests is then at most the significance level.
    """
    count, largest = len(p_values), 0.0
    corrected = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Comparison:
    """One model compared with another in one measure.

    Attributes:
        name: Name of the model.
        base: Name of the model that it is compared with.
        measure: Name of the measure.
        base_mean: Mean of the measure for ``base``.
        over_seeds: t-interval of the paired differences.
        over_groups: Bootstrap interval; None without values per list.
        corrected_p: p-value over seeds, corrected by ``holm`` over the comparisons made together.
        corrected_p_groups: The same over groups; 1 without values per list.
        seeds_agree: Whether the differences of all seeds have the same sign.
    """

    name: str
    base: str
    measure: str
    base_mean: float
    over_seeds: Interval
    over_groups: Interval | None
    corrected_p: float
    corrected_p_groups: float = 1.0
    seeds_agree: bool = True


def compare(
    runs: Mapping[str, Mapping[int, Mapping[str, float]]],
    pairs: Sequence[tuple[str, str]],
    measure: str,
    *,
    per_list: Mapping[str, Mapping[int, np.ndarray]] | None = None,
    groups: Sequence[Any] | None = None,
) -> list[Comparison]:
    """Compares models that were trained with the same seeds and measured on the same lists.

    Args:
        runs: Name of a model -> seed -> measures.
        pairs: Names (model, other); the difference is model minus other.
        measure: Name of the measure to compare.
        per_list: Name -> seed -> the measure of each list [lists], for the bootstrap.
        groups: [lists], the user or query of each list; needed with ``per_list``.

    Returns:
        One comparison per pair, with p-values corrected over all of them.

    Raises:
        InputError: Two models share no seed, or a measure is missing.
    """
    found = []
    for name, base in pairs:
        seeds = sorted(set(runs[name]) & set(runs[base]))
        if not seeds:
            raise InputError(f"{name!r} and {base!r} have no seed in common: train both with the same seeds")
        for row in (*(runs[name][seed] for seed in seeds), *(runs[base][seed] for seed in seeds)):
            if measure not in row:
                raise InputError(f"a run has no measure {measure!r}; it has {', '.join(sorted(row)[:8])}, ...")
        of_seeds = [runs[name][seed][measure] - runs[base][seed][measure] for seed in seeds]
        interval, agree = t_interval(of_seeds), min(of_seeds) > 0 or max(of_seeds) < 0
        over_groups = None
        if per_list is not None and groups is not None:
            differences = [per_list[name][seed] - per_list[base][seed] for seed in seeds]
            over_groups = bootstrap_interval(np.mean(differences, axis=0), groups)
        mean = float(np.mean([runs[base][seed][measure] for seed in seeds]))
        found.append((name, base, mean, interval, over_groups, agree))
    corrected = holm([entry[3].p_value for entry in found])
    of_groups = holm([1.0 if entry[4] is None else entry[4].p_value for entry in found])
    return [
        Comparison(name, base, measure, mean, interval, over_groups, p, p_groups, agree)
        for (name, base, mean, interval, over_groups, agree), p, p_groups in zip(
            found, corrected, of_groups, strict=True
        )
    ]


def comparison_rows(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Formats comparisons as headings and rows, for ``hf_rerank.evaluation.tables.text_table``."""
    headings = ["comparison", "measure", "difference over seeds", "seeds", "p (Holm)", "over groups", "p (Holm)"]
    rows = [
        [
            f"{entry.name} - {entry.base}",
            entry.measure,
            str(entry.over_seeds),
            str(entry.over_seeds.count),
            f"{entry.corrected_p:.3g}",
            *(
                ("-", "-")
                if entry.over_groups is None
                else (str(entry.over_groups), f"{entry.corrected_p_groups:.3g}")
            ),
        ]
        for entry in comparisons
    ]
    return headings, rows


def plot_comparisons(comparisons: Sequence[Comparison], path: str | Path) -> None:
    """Draws the differences around 0, one row each: intervals over groups as bars, over seeds as thin lines.

    Infinite intervals (with one seed) are left out.

    Raises:
        InputError: matplotlib is missing, or there is nothing to draw.
    """
    from hf_rerank.evaluation.plots import require_matplotlib
    from hf_rerank.storage import name_failures, write_atomically

    require_matplotlib()
    if not comparisons:
        raise InputError("there is no comparison to draw: expected at least one")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.0 + 0.4 * len(comparisons)), layout="constrained")
    axis = figure.subplots()
    ends = [0.0]
    for row, entry in enumerate(reversed(comparisons)):
        styles = ((entry.over_seeds, -0.12, "tab:grey", 1), (entry.over_groups, 0.12, "tab:blue", 3))
        for interval, shift, color, width in styles:
            if interval is not None and math.isfinite(interval.low):
                axis.plot([interval.low, interval.high], [row + shift] * 2, color=color, linewidth=width)
        axis.plot(entry.over_seeds.mean, row, "o", color="black", markersize=4)
        groups = entry.over_groups
        ends += [entry.over_seeds.mean] if groups is None else [groups.low, groups.high]
    # An interval over two seeds is so wide that the others would shrink to points: it is clipped.
    margin = 0.3 * (max(ends) - min(ends)) or 1.0
    axis.set_xlim(min(ends) - margin, max(ends) + margin)
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_yticks(range(len(comparisons)), [f"{entry.name} - {entry.base}" for entry in reversed(comparisons)])
    axis.set_xlabel(f"difference in {comparisons[0].measure}\n95 % intervals: over groups blue, over seeds grey")
    axis.spines[["top", "right"]].set_visible(False)
    with write_atomically(path) as temporary, name_failures(Path(path)):
        figure.savefig(temporary, format="png", dpi=150)
