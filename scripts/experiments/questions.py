"""Tables and figures of the questions on principled learning, from the runs of ``grid.py``.

    python scripts/experiments/questions.py --runs GRID --output-dir RESULTS

For each question RESULTS gets ``NAME.md`` and ``NAME.json`` (a row per cell: means over seeds, and paired differences
with 95 % t-intervals over seeds, in percent of the same settings without principles; p-values corrected by Holm over
the question) and, with matplotlib, figures. If the runs have values per list, differences also get a bootstrap
interval over users. Cells with fewer than two seeds are left out of the differences. A question without runs is
skipped. ``--paste`` updates the tables in the pages that show them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from grid import ARMS, DEFAULT, FACTORS, PLAN, WHOLE, Run, base_of, planned, trained_as

from hf_rerank.evaluation.comparing import Interval, bootstrap_interval, holm, t_interval
from hf_rerank.storage import write_json

PRIMARY = "expected_clicks"
MEASURES = (
    "expected_clicks",
    "ndcg@10",
    "auc",
    "p1_obedience@5",
    "p2_obedience@5",
    "p1_item_obedience",
    "score_spread",
)
TITLES = {
    "default": "Candidates of the default",
    "1": "Every model with and without the principles",
    "2": "Each principle alone, and the controls R-Drop and augmentation",
    "3": "Perturbations other than the adjacent swap",
    "5": "Weights over orders of magnitude",
    "dropout": "Dropout",
    "defaults": "The defaults of `hf-rerank train`",
    "7": "The model's own order with a gradient",
    "8": "Quality of the initial ranker",
    "payoff": "Orders that are worth a little",
    "small": "Every model on half the lists",
    "paper_settings": "The paper's learning rates and 30 epochs",
    "lengths": "Every model on lists of 10 items",
    "ad": "Every model on simulated lists of Ad",
    "ad_informed": "Every model on simulated lists of Ad whose order sees the true quality",
}
PASTED = re.compile(r"<!-- (results/\S+\.md) -->.*?<!-- end -->", re.DOTALL)
PAGES = (Path(__file__).parent / "README.md", Path(__file__).parents[2] / "README.md")
Cell = tuple[str, int, str]  # world, length, model
Runs = dict[Cell, dict[str, dict[int, dict[str, Any]]]]  # -> arm -> seed -> result


def load(folder: Path) -> Runs:
    runs: Runs = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        cell = (result["world"], result["length"], result["model"])
        runs.setdefault(cell, {}).setdefault(result["arm"], {})[result["seed"]] = result
    for cell, arms in runs.items():  # the model without order is trained once for all initial orders of whole lists
        source = trained_as(Run(*cell, "no_order", 0))
        shared = runs.get((source.world, source.length, source.model), {}).get("no_order")
        if shared:
            arms["no_order"] = shared
    return runs


def difference(arms: Mapping[str, Mapping[int, Any]], arm: str, base: str, measure: str) -> Interval | None:
    """Returns the difference in percent of the base's mean, over the common seeds; None with fewer than two."""
    seeds = sorted(set(arms.get(arm, {})) & set(arms.get(base, {})))
    if len(seeds) < 2:
        return None
    one, other = ([arms[name][seed]["test"][measure] for seed in seeds] for name in (arm, base))
    return t_interval([100 * (a - b) / np.mean(other) for a, b in zip(one, other, strict=True)])


def over_users(
    runs: Path, users: list[Any] | None, cell: Cell, arm: str, base: str, seeds: list[int]
) -> Interval | None:
    """Bootstraps the difference in the primary measure, in percent; None without values per list."""
    from safetensors.numpy import load_file

    paths = [
        [runs / f"{trained_as(Run(*cell, name, seed)).name}.safetensors" for seed in seeds] for name in (arm, base)
    ]
    if users is None or not all(path.is_file() for both in paths for path in both):
        return None
    one, other = (np.mean([load_file(path)[PRIMARY] for path in both], axis=0, dtype=np.float64) for both in paths)
    return bootstrap_interval(100 * (one - other) / other.mean(), users)


def rows_of(question: str, runs: Runs, folder: Path, lists: Path | None) -> list[dict[str, Any]]:
    """Returns one row per cell and arm of the question that has runs."""
    wanted: dict[Cell, list[str]] = {}
    for world, length, model, arm in PLAN[question]:
        wanted.setdefault((world, length, model), []).append(arm)
    rows = []
    for cell, arms in wanted.items():
        found = runs.get(cell, {})
        users = _users(lists, cell[0]) if lists and found else None
        for arm in arms:
            if arm not in found:
                continue
            seeds = found[arm]
            row: dict[str, Any] = {
                "world": cell[0],
                "length": cell[1],
                "model": cell[2],
                "arm": arm,
                "seeds": len(seeds),
            }
            for measure in MEASURES:
                row[measure] = float(np.mean([result["test"][measure] for result in seeds.values()]))
            row["initial"] = next(iter(seeds.values()))["initial"][PRIMARY]
            row["cpu_seconds"] = float(np.median([result["cpu_seconds"] for result in seeds.values()]))
            for key, base in (("none", base_of(arm)), ("no_order", "no_order")):
                if base not in (*arms, "no_order") or arm in (base, key):
                    continue
                for measure in (PRIMARY, "ndcg@10", "auc"):
                    interval = difference(found, arm, base, measure)
                    if interval is not None:
                        row[f"{measure} - {key}"] = vars(interval)
                both = sorted(set(seeds) & set(found.get(base, {})))
                if len(both) > 1:
                    interval = over_users(folder, users, cell, arm, base, both)
                    if interval is not None:
                        row[f"{PRIMARY} - {key}, users"] = vars(interval)
            rows.append(row)
    key = f"{PRIMARY} - none"
    tested = [row for row in rows if key in row]
    for row, p in zip(tested, holm([row[key]["p_value"] for row in tested]), strict=True):
        row["p_holm"] = p
    return rows


def _users(lists: Path, world: str) -> list[Any]:
    from worlds import prepare_world

    from hf_rerank import load_lists

    loaded = load_lists(prepare_world(lists, world))
    return list(loaded["test"][loaded.schema.group][:])


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Formats one row per cell; columns that name a cell are left out if all rows agree."""
    naming = {"initial order": "world", "items": "length", "model": "model"}
    naming = {head: key for head, key in naming.items() if len({row[key] for row in rows}) > 1}
    heads = [*naming, "arm", "seeds", "expected clicks", "NDCG@10", "P1@5", "P2@5", "change in clicks, %", "p (Holm)"]
    heads += ["against no order, %"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [_name(key, row[key]) for key in naming.values()]
        cells += [arm_name(row["arm"]), str(row["seeds"])]
        cells += [f"{row[name]:.4f}" for name in (PRIMARY, "ndcg@10")]
        cells += [f"{row[name]:.2f}" for name in ("p1_obedience@5", "p2_obedience@5")]
        cells += [_interval(row.get(f"{PRIMARY} - none"))]
        cells += [f"{row['p_holm']:.3f}" if "p_holm" in row else "", _interval(row.get(f"{PRIMARY} - no_order"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _name(key: str, value: Any) -> str:
    return {"world": ORDERS, "model": NAMES}.get(key, {}).get(value, str(value))


def arm_name(arm: str) -> str:
    """Returns the name of an arm for readers: ``scaled_x10`` is "principles, x10"."""
    if arm in ARM_NAMES:
        return ARM_NAMES[arm]
    preset, _, change = arm.partition("_")
    change = change.replace("rate", "rate ").replace("_", " ")
    return f"{ARM_NAMES[preset]}, {change}"


ARM_NAMES = {
    "none": "no principles",
    "no_order": "without order",
    DEFAULT: "principles",
    "scaled": "`scaled`",
    "paper": "`paper`",
    "reference": "`reference`",
    "p1": "`scaled`, P1 alone",
    "p2": "`scaled`, P2 alone",
    "r_drop": "R-Drop",
    "augmentation": "augmentation",
    "softsort": "`scaled`, softsort",
    "neuralsort": "`scaled`, neuralsort",
    "straight_through": "`scaled`, straight-through",
}
NAMES = {"prm": "PRM", "setrank": "SetRank", "dlcm": "DLCM", "midnn": "MiDNN", "pear": "PEAR", "raise": "RAISE"}
NAMES["dnn"] = "DNN"
ORDERS = {
    "trained": "trained on clicks",
    "trained_poor": "trained on clicks, poor",
    "trained_strong": "trained on clicks, strong",
    "trained_small": "trained on clicks, half the lists",
    "informed": "sees the true quality",
    "informed_noisy": "sees it, more noise",
    "informed_noisier": "sees it, most noise",
    "display": "display order",
    "ad_trained": "trained on clicks, Ad",
    "ad_informed": "sees the true quality, Ad",
}
MAIN_ORDERS = ("trained", "informed", "display")


def headline(runs: Runs) -> str:
    """Formats PRM without and with the default principles: changes in clicks and obedience, by initial order."""
    heads = ["initial order", "items", "seeds", "expected clicks, PRM", "+ principles, change in %"]
    heads += ["without order, change in %", "P1@5", "P2@5"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for world, length in itertools.product(MAIN_ORDERS, (30, 10)):
        arms = runs.get((world, length, "prm"), {})
        if "none" not in arms or DEFAULT not in arms:
            continue
        both = sorted(set(arms["none"]) & set(arms[DEFAULT]))
        base, principled = ([arms[arm][seed]["test"] for seed in both] for arm in ("none", DEFAULT))
        cells = [ORDERS[world], str(length), str(len(both)), f"{_mean(base, PRIMARY):.4f}"]
        cells += [
            "" if found is None or found.count < 3 else _spell(found)
            for found in (difference(arms, arm, "none", PRIMARY) for arm in (DEFAULT, "no_order"))
        ]
        for measure in ("p1_obedience@5", "p2_obedience@5"):
            cells.append(f"{_mean(base, measure):.2f} to {_mean(principled, measure):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def models_table(runs: Runs) -> str:
    """Formats the effect of the default principles on clicks, per model and order of uncut lists; Holm over models."""
    heads = ["model", "expected clicks", "+ principles, trained order", "p (Holm)", "against no order"]
    heads += [
        "no order",
        "+ principles, informed order",
        "+ principles, display order",
        "P1@5, trained order",
        "seeds",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    models = [model for model in NAMES if {"none", DEFAULT} <= set(runs.get(("trained", WHOLE, model), {}))]
    changes = {
        (model, world): difference(runs.get((world, WHOLE, model), {}), DEFAULT, "none", PRIMARY)
        for model in models
        for world in MAIN_ORDERS
    }
    tested = [change for (model, world), change in changes.items() if world == "trained" and change is not None]
    corrected = iter(holm([change.p_value for change in tested]))
    for model in models:
        arms = runs[("trained", WHOLE, model)]
        both = sorted(set(arms["none"]) & set(arms[DEFAULT]))
        base, principled = ([arms[arm][seed]["test"] for seed in both] for arm in ("none", DEFAULT))
        change = changes[model, "trained"]
        cells = [NAMES[model], f"{_mean(base, PRIMARY):.4f}", _spell(change)]
        cells += ["" if change is None else f"{next(corrected):.3f}"]
        cells += [_spell(difference(arms, DEFAULT, "no_order", PRIMARY))]
        cells += [_spell(difference(arms, "no_order", "none", PRIMARY))]
        cells += [_spell(changes[model, world]) for world in ("informed", "display")]
        name = "p1_obedience@5"
        cells += [f"{_mean(base, name):.2f} to {_mean(principled, name):.2f}", str(len(both))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spell(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _mean(measured: list[dict[str, float]], name: str) -> float:
    return float(np.mean([row[name] for row in measured]))


def _interval(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"


# --- figures ---


def draw_headline(runs: Runs, path: Path) -> None:
    """Draws, for PRM, the change in clicks by the default principles, and P1@5 without and with them, by order."""
    plt = _matplotlib()
    cells = [
        (world, length) for world, length in itertools.product(MAIN_ORDERS, (30, 10)) if (world, length, "prm") in runs
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True)
    for row, (world, length) in enumerate(reversed(cells)):
        arms = runs[(world, length, "prm")]
        change = difference(arms, DEFAULT, "none", PRIMARY)
        if change is None:
            continue
        errors = [[change.mean - change.low], [change.high - change.mean]]
        left.errorbar(change.mean, row, xerr=errors, fmt="o", capsize=3, color="tab:blue")
        ends = [np.mean([r["test"]["p1_obedience@5"] for r in arms[arm].values()]) for arm in ("none", DEFAULT)]
        right.annotate("", (ends[1], row), (ends[0], row), arrowprops={"arrowstyle": "->", "color": "tab:blue"})
        right.plot(ends, [row, row], "o", color="tab:blue", markersize=3)
    left.axvline(0, color="grey", linewidth=1)
    left.set_yticks(range(len(cells)), [f"{ORDERS[world]}, {length} items" for world, length in reversed(cells)])
    left.set_xlabel("change in true expected clicks, %")
    right.set_xlabel("P1@5, without and with the principles")
    right.set_xlim(0, 1)
    _save(figure, (left, right), path)


def draw_changes(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the change in clicks of each arm against no principles, with intervals over seeds; one panel per order."""
    key = f"{PRIMARY} - none"
    rows = [row for row in rows if key in row]
    worlds = list(dict.fromkeys((row["world"], row["length"]) for row in rows))
    if len(rows) < 3:
        return
    plt = _matplotlib()
    models = {row["model"] for row in rows}
    names = [
        arm_name(row["arm"]) if len(models) == 1 else f"{NAMES[row['model']]}, {arm_name(row['arm'])}" for row in rows
    ]
    names = [name.replace("`", "") for name in names]
    labels = list(dict.fromkeys(names))
    size = (2.0 + 2.8 * len(worlds), 1.0 + 0.24 * len(labels))
    figure, axes = plt.subplots(1, len(worlds), figsize=size, sharey=True, squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        for name, row in zip(names, rows, strict=True):
            if (row["world"], row["length"]) != world:
                continue
            change = row[key]
            errors = [[change["mean"] - change["low"]], [change["high"] - change["mean"]]]
            axis.errorbar(change["mean"], labels.index(name), xerr=errors, fmt="o", capsize=3, color="tab:blue")
        axis.axvline(0, color="grey", linewidth=1)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xlabel("change in expected clicks, %")
        axis.set_title(f"{ORDERS.get(world[0], world[0])}, {world[1]} items", fontsize=9)
    axes[0][0].set_ylim(len(labels) - 0.4, -0.6)
    _save(figure, axes[0], path)


def draw_payoff(runs: Runs, path: Path, arm: str = DEFAULT) -> None:
    """Draws the gain from the principles against the value of the order: one point per world, model and length."""
    plt = _matplotlib()
    figure, axis = plt.subplots(figsize=(6.5, 4.5))
    markers = dict(zip(("prm", "setrank", "dlcm", "midnn", "pear", "raise"), "osD^vP", strict=True))
    colours = dict(
        zip(sorted({cell[0] for cell in runs}), plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False)
    )
    shown: dict[str, None] = {}
    for (world, length, model), arms in runs.items():
        value, gain = difference(arms, "none", "no_order", PRIMARY), difference(arms, arm, "none", PRIMARY)
        if value is None or gain is None or model not in markers:
            continue
        shown[world] = None
        axis.errorbar(
            value.mean,
            gain.mean,
            xerr=[[value.mean - value.low], [value.high - value.mean]],
            yerr=[[gain.mean - gain.low], [gain.high - gain.mean]],
            fmt=markers[model],
            color=colours[world],
            markerfacecolor="white" if length == 10 else None,
            elinewidth=0.7,
        )
    axis.axhline(0, color="grey", linewidth=1)
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_xlabel("value of the order: model minus model without order, % of expected clicks")
    axis.set_ylabel("gain from the principles, % of expected clicks")
    handles = [plt.Line2D([], [], color=colours[w], marker="o", linestyle="", label=ORDERS.get(w, w)) for w in shown]
    handles += [plt.Line2D([], [], color="grey", marker=m, linestyle="", label=NAMES[n]) for n, m in markers.items()]
    axis.legend(handles=handles, frameon=False, fontsize=7)
    _save(figure, axis, path)


def draw_weights(runs: Runs, path: Path) -> None:
    """Draws clicks and P1 against the factor on both weights, up to the collapse."""
    plt = _matplotlib()
    arms = runs[("trained", 30, "prm")]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for preset, factors in FACTORS.items():
        points = sorted([*factors, 1.0])
        names = {factor: preset if factor == 1 else f"{preset}_x{factor:g}" for factor in points}
        gains = {factor: difference(arms, names[factor], "none", PRIMARY) for factor in points}
        there = {factor: gain for factor, gain in gains.items() if gain is not None}
        errors = [[g.mean - g.low for g in there.values()], [g.high - g.mean for g in there.values()]]
        axes[0].errorbar(
            list(there), [g.mean for g in there.values()], yerr=errors, fmt="o-", capsize=3, label=arm_name(preset)
        )
        obeyed = [np.mean([r["test"]["p1_item_obedience"] for r in arms[names[f]].values()]) for f in there]
        axes[1].plot(list(there), obeyed, "o-", label=preset)
    axes[0].axhline(0, color="grey", linewidth=1)
    axes[0].set_ylabel("change in expected clicks, %")
    axes[1].set_ylabel("P1, share of items")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlabel("factor on both weights")
        axis.legend(frameon=False)
    _save(figure, axes, path)


def draw_training(runs: Runs, path: Path) -> None:
    """Draws obedience at the top 5 after each epoch, for PRM in the world ``trained``."""
    plt = _matplotlib()
    arms = runs[("trained", 30, "prm")]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, measure, title in zip(
        axes, ("eval_p1_obedience@5", "eval_p2_obedience@5"), ("P1@5", "P2@5"), strict=True
    ):
        for arm in ("none", DEFAULT, "scaled", "augmentation", "r_drop"):
            curves = [
                [entry[measure] for entry in result["history"] if measure in entry]
                for result in arms.get(arm, {}).values()
            ]
            if curves:
                axis.plot(range(1, len(curves[0]) + 1), np.mean(curves, axis=0), "o-", markersize=3, label=arm)
        axis.set_xlabel("epoch")
        axis.set_title(title)
    axes[0].set_ylabel("share of validation lists")
    axes[0].legend(frameon=False)
    _save(figure, axes, path)


def fixed_points(runs: Runs) -> str:
    """Formats question 6: are lists whose ranking settles ranked better?"""
    heads = [
        "arm",
        "lists that settle",
        "gain over the initial order",
        "lists that do not",
        "gain",
        "gain by quarter of P1",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for arm, seeds in runs.get(("trained", 30, "prm"), {}).items():
        if arm not in ("none", DEFAULT, "scaled", "paper"):
            continue
        cells = [arm_name(arm)]
        for group in ("reach", "do_not_reach"):
            found = [r["fixed_points"][group] for r in seeds.values() if group in r["fixed_points"]]
            cells.append(f"{np.mean([g['lists'] for g in found]):.0f}" if found else "0")
            cells.append(f"{np.mean([_gain(g) for g in found]):+.4f}" if found else "")
        quarters = [
            [_gain(r["fixed_points"][f"quarter_{q}"]) for r in seeds.values() if f"quarter_{q}" in r["fixed_points"]]
            for q in (1, 2, 3, 4)
        ]
        cells.append(", ".join(f"{np.mean(values):+.3f}" if values else "-" for values in quarters))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gain(group: Mapping[str, float]) -> float:
    return group[PRIMARY] - group[f"initial_{PRIMARY}"]


def paste_tables(page: Path) -> None:
    """Replaces each table of a page between ``<!-- results/NAME.md -->`` and ``<!-- end -->`` by that file."""

    def read(match: re.Match[str]) -> str:
        table = (Path(__file__).parent / match[1]).read_text(encoding="utf-8").strip()
        return f"<!-- {match[1]} -->\n\n{table}\n\n<!-- end -->"

    text = page.read_text(encoding="utf-8")
    page.write_text(PASTED.sub(read, text), encoding="utf-8")


def _matplotlib() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, axes: Any, path: Path) -> None:
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    _matplotlib().close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", required=True, type=Path, help="output folder of grid.py")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--lists-dir", type=Path, help="lists of grid.py, for intervals over users")
    parser.add_argument(
        "--paste", action="store_true", help="update the tables in README.md of this folder and of the project"
    )
    options = parser.parse_args()
    runs, output = load(options.runs), options.output_dir
    if not runs:
        raise SystemExit(f"{options.runs} has no runs (*.json): expected the output folder of grid.py")
    output.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[dict[str, Any]]] = {}
    for question in PLAN:
        rows = rows_of(question, runs, options.runs, options.lists_dir)
        if not rows:
            continue
        write_json(output / f"{question}.json", {"rows": rows, "arms": {r["arm"]: str(ARMS[r["arm"]]) for r in rows}})
        text = as_markdown(rows)
        (output / f"{question}.md").write_text(text)
        print(f"{TITLES[question]}\n\n{text}")
        tables[question] = rows
    (output / "headline.md").write_text(headline(runs))
    (output / "models.md").write_text(models_table(runs))
    if ("trained", 30, "prm") in runs:
        text = fixed_points(runs)
        (output / "6.md").write_text(text)
        print(text)
    if options.paste:
        for page in PAGES:
            paste_tables(page)
    try:
        draw_headline(runs, output / "headline.png")
        draw_payoff(runs, output / "value_of_order.png")
        for question, rows in tables.items():
            draw_changes(rows, output / f"{question}.png")
        draw_training(runs, output / "training.png")
        if all(run.arm in runs.get(("trained", 30, "prm"), {}) for run in planned(["5"], 1)):
            draw_weights(runs, output / "weights.png")
    except ImportError:
        print("no figures: matplotlib is not installed (pip install hf-rerank[plots])")


if __name__ == "__main__":
    main()
