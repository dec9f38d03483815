"""How far are simulated PRM Public lists from real ones? Clicks per list, and clicks by display position.

    python scripts/experiments/simulator_calibration.py --labels prm_public_labels.txt --output-dir results/calibration

``--labels`` contains real labels, one JSON list of 0s and 1s per line (the authors of PRM publish a sample of 1,000).
Writes ``simulator_calibration.json`` and ``simulator_calibration.png`` (needs matplotlib and scipy, which come with
the extras ``plots`` and ``test``).

Two numbers judge the fit:

- chi-square of the two samples on the clicks per list (1, 2, 3, 4, 5, 6 and more): p should be above .01;
- total-variation distance between the two distributions of the clicks over positions. The distance is not 0 even for a
  perfect simulator, because both samples are finite: ``expected_by_chance`` is its mean between two samples of these
  sizes, both drawn from the simulated curve.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from hf_rerank.data.simulation import simulate_prm
from hf_rerank.errors import InputError

MOST_CLICKS = 6  # the last bar: six or more clicks


def read_label_lists(path: Path) -> np.ndarray:
    """Reads one JSON list of 0s and 1s per line into [lists, positions]."""
    rows: list[list[int]] = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: expected a JSON list of 0s and 1s, got {line[:60]!r}"
                ) from error
            if not isinstance(row, list) or any(label not in (0, 1) for label in row):
                raise InputError(f"{path}, line {number}: expected a JSON list of 0s and 1s, got {line[:60]!r}")
            if rows and len(row) != len(rows[0]):
                raise InputError(f"{path}, line {number}: {len(row)} labels, but line 1 has {len(rows[0])}")
            rows.append(row)
    labels = np.array(rows, dtype=np.int64)
    if labels.size == 0 or (labels.sum(axis=1) == 0).any():
        raise InputError(f"{path}: expected at least one click in every list, as in PRM Public")
    return labels


def read_raw_labels(path: Path) -> np.ndarray:
    """Reads the labels of a raw file of PRM Public into [lists, positions]."""
    with open(path, encoding="ascii") as lines:
        return np.array([json.loads(line.rsplit("|", 1)[1]) for line in lines], dtype=np.int64)


def lists_by_clicks(labels: np.ndarray) -> np.ndarray:
    """Counts the lists with 1, 2, ..., 6 or more clicks."""
    return np.bincount(np.minimum(labels.sum(axis=1), MOST_CLICKS), minlength=MOST_CLICKS + 1)[1:]


def describe(labels: np.ndarray) -> dict[str, object]:
    clicks = labels.sum(axis=1)
    return {
        "lists": len(labels),
        "clicks_per_list": float(clicks.mean()),
        "click_through_rate": float(labels.mean()),
        "lists_by_clicks": lists_by_clicks(labels).tolist(),
        "clicks_by_place_per_1000_lists": (1000 * labels.mean(axis=0)).round(2).tolist(),
    }


def compare(real: np.ndarray, simulated: np.ndarray) -> dict[str, float]:
    """Computes the chi-square p of the clicks per list, and the total variation between the clicks by position."""
    from scipy.stats import chi2_contingency

    test = chi2_contingency(np.stack([lists_by_clicks(real), lists_by_clicks(simulated)]))
    curves = [labels.sum(axis=0) / labels.sum() for labels in (real, simulated)]
    rng = np.random.default_rng(0)
    draws = [rng.multinomial(labels.sum(), curves[1], size=2000) / labels.sum() for labels in (real, simulated)]
    return {
        "chi_square": float(test.statistic),
        "chi_square_degrees_of_freedom": int(test.dof),
        "chi_square_p": float(test.pvalue),
        "total_variation": float(0.5 * np.abs(curves[0] - curves[1]).sum()),
        "total_variation_expected_by_chance": float(0.5 * np.abs(draws[0] - draws[1]).sum(axis=1).mean()),
    }


def draw_figure(real: np.ndarray, simulated: np.ndarray, comparison: dict[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    real_colour, simulated_colour = "#4C566A", "#D08770"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(1, 1.7), layout="constrained")
    real_name, simulated_name = f"real ({len(real):,} lists)", f"simulated ({len(simulated):,} lists)"

    bars = np.arange(1, MOST_CLICKS + 1)
    for labels, name, colour, shift in (
        (real, real_name, real_colour, -0.2),
        (simulated, simulated_name, simulated_colour, 0.2),
    ):
        left.bar(bars + shift, lists_by_clicks(labels) / len(labels), width=0.38, color=colour, label=name)
    left.set_xticks(bars, [*map(str, bars[:-1]), f"{MOST_CLICKS}+"])
    left.set(xlabel="clicks in a list", ylabel="share of the lists")
    left.set_title(f"Clicks per list: chi-square p = {comparison['chi_square_p']:.2f}", fontsize=11)

    place = np.arange(1, real.shape[1] + 1)
    right.bar(place, 1000 * real.mean(axis=0), width=0.75, color=real_colour, alpha=0.55, label=real_name)
    right.plot(place, 1000 * simulated.mean(axis=0), "o-", color=simulated_colour, ms=4, lw=1.6, label=simulated_name)
    right.set_xticks([1, *range(5, real.shape[1] + 1, 5)])
    right.set(xlabel="display place", ylabel="clicks in 1,000 lists", xlim=(0.3, real.shape[1] + 0.7))
    right.set_title(
        f"Clicks by place: total variation {comparison['total_variation']:.3f} "
        f"(by chance {comparison['total_variation_expected_by_chance']:.3f})",
        fontsize=11,
    )
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#DDDDDD", lw=0.7)
        axis.set_axisbelow(True)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True, help="real labels, one JSON list per line")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--lists", type=int, default=20_000, help="lists to simulate (default: 20000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    try:
        real = read_label_lists(options.labels)
        with tempfile.TemporaryDirectory() as folder:
            simulated = read_raw_labels(simulate_prm(folder, options.lists, seed=options.seed, progress=True))
        if simulated.shape[1] != real.shape[1]:
            raise InputError(
                f"{options.labels}: lists of {real.shape[1]}, but the simulator's have {simulated.shape[1]}"
            )
    except (InputError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    comparison = compare(real, simulated)

    options.output_dir.mkdir(parents=True, exist_ok=True)
    results = {"seed": options.seed, **comparison, "real": describe(real), "simulated": describe(simulated)}
    (options.output_dir / "simulator_calibration.json").write_text(json.dumps(results, indent=2) + "\n")
    draw_figure(real, simulated, comparison, options.output_dir / "simulator_calibration.png")
    for name, labels in (("real", real), ("simulated", simulated)):
        print(f"{name:>9}: {len(labels):>6,} lists, {labels.sum(1).mean():.3f} clicks a list, CTR {labels.mean():.2%}")
    print(f"chi-square p (clicks per list)      {comparison['chi_square_p']:.3f}")
    print(
        f"total variation (clicks by place)   {comparison['total_variation']:.4f}"
        f"   (by chance {comparison['total_variation_expected_by_chance']:.4f})"
    )


if __name__ == "__main__":
    main()
