"""Comparing models: paired differences with intervals over seeds and over groups, correction for many tests, a table.

A difference is paired where both models were measured on the same lists, or trained with the same seed: what they have
in common cancels. Two sources of chance matter and are kept apart: the seed of the training (a t-interval over seeds)
and the sample of users or queries (a bootstrap over groups of lists).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.evaluation.tables import text_table

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: Of the differences.
        low: Lower end; minus infinity if there is one value only.
        high: Upper end.
        count: Seeds, or groups.
        p_value: Two-sided, of a mean of 0; NaN where it was not computed.
    """

    mean: float
    low: float
    high: float
    count: int
    p_value: float = math.nan

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def relative_to(self, base: float) -> Interval:
        """The same in fractions of ``base``."""
        return Interval(self.mean / base, self.low / base, self.high / base, self.count, self.p_value)

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def t_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of paired differences with Student's t-interval, and the p-value of the paired t-test.

    Args:
        differences: One per seed. A single one has an infinite interval and the p-value 1.
        confidence: In (0, 1).

    Raises:
        InputError: There is no difference.
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
    """The mean of per-list differences with a percentile interval over groups, which are resampled as a whole.

    Args:
        differences: [lists], one model minus another; of several seeds their mean. NaN (a list that does not count in
            the metric) is left out.
        groups: [lists], the user or query of each list: lists of one group are not independent.
        draws: Bootstrap samples.
        seed: Of the draws.
        confidence: In (0, 1).

    Raises:
        InputError: Differences and groups differ in number, or no difference is left.
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
    return Interval(float(values[there].mean()), float(low), float(high), len(sums))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for the number of tests by Holm's step-down method, in the order given.

    The p-values in rising order are multiplied by the number of tests that are left, and never fall again: the chance
    of one false claim among all tests is then at most the level.
    """
    count, largest = len(p_values), 0.0
    corrected = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Comparison:
    """One model against another in one measure.

    Attributes:
        name: Of the model.
        base: Of the other.
        measure: Which measure.
        base_mean: Mean of the other.
        over_seeds: t-interval of the paired differences.
        over_groups: Bootstrap interval; None where there are no values per list.
        corrected_p: p-value over seeds, corrected by ``holm`` over the comparisons made together.
    """

    name: str
    base: str
    measure: str
    base_mean: float
    over_seeds: Interval
    over_groups: Interval | None
    corrected_p: float


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
        pairs: (model, other) names; the difference is model minus other.
        measure: A key of the measures.
        per_list: Name -> seed -> the measure of each list [lists], for the bootstrap.
        groups: [lists], needed with ``per_list``.

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
        interval = t_interval([runs[name][seed][measure] - runs[base][seed][measure] for seed in seeds])
        over_groups = None
        if per_list is not None and groups is not None:
            differences = [per_list[name][seed] - per_list[base][seed] for seed in seeds]
            over_groups = bootstrap_interval(np.mean(differences, axis=0), groups)
        mean = float(np.mean([runs[base][seed][measure] for seed in seeds]))
        found.append((name, base, mean, interval, over_groups))
    corrected = holm([interval.p_value for *_, interval, _ in found])
    return [
        Comparison(name, base, measure, mean, interval, over_groups, p)
        for (name, base, mean, interval, over_groups), p in zip(found, corrected, strict=True)
    ]


def comparison_rows(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table, for ``text_table`` or Markdown."""
    headings = ["comparison", "measure", "difference over seeds", "seeds", "p (Holm)", "over groups"]
    rows = [
        [
            f"{entry.name} - {entry.base}",
            entry.measure,
            str(entry.over_seeds),
            str(entry.over_seeds.count),
            f"{entry.corrected_p:.3g}",
            "-" if entry.over_groups is None else str(entry.over_groups),
        ]
        for entry in comparisons
    ]
    return headings, rows


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as plain text."""
    return text_table(*comparison_rows(comparisons))


def comparison_markdown(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a Markdown table."""
    headings, rows = comparison_rows(comparisons)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)) + "\n"


def comparison_figure(comparisons: Sequence[Comparison], path: str | Path) -> None:
    """Draws the differences with their intervals over seeds, one line each, around 0.

    Raises:
        InputError: matplotlib is missing, or there is nothing to draw.
    """
    from hf_rerank.evaluation.plots import require_matplotlib
    from hf_rerank.storage import naming_failures, writing

    require_matplotlib()
    if not comparisons:
        raise InputError("there is no comparison to draw: expected at least one")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.35 * len(comparisons)))
    for row, entry in enumerate(reversed(comparisons)):
        interval = entry.over_seeds
        errors = [[interval.mean - interval.low], [interval.high - interval.mean]]
        finite = all(math.isfinite(error[0]) for error in errors)
        axis.errorbar(interval.mean, row, xerr=errors if finite else None, fmt="o", capsize=3, color="tab:blue")
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_yticks(range(len(comparisons)), [f"{entry.name} - {entry.base}" for entry in reversed(comparisons)])
    axis.set_xlabel(f"difference in {comparisons[0].measure}")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with writing(path) as temporary, naming_failures(Path(path)):
        figure.savefig(temporary, format="png", dpi=150)
    plt.close(figure)
