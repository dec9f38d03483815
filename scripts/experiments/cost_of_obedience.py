"""Why do the principles cost clicks on simulated Ad lists: are the weights too large, or is the initial order needed?

    python scripts/experiments/six_rerankers.py --output-dir RESULTS --format ad --seeds 5 --workers 2
    python scripts/experiments/cost_of_obedience.py --output-dir RESULTS --seeds 5 --workers 2

Goes on in the folder of ``six_rerankers``, with its lists, learning rates and runs, and adds two arms a model: the
principles with a tenth of the weights, and a model that is not shown the initial order and so obeys fully (DLCM has no
such form). All arms are set against the run without principles of the same seed. RESULTS gets the further
``runs/*.json`` and ``cost_of_obedience.json`` and ``.md``. A run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runs import finish, mean_and_spread, paired, results
from six_rerankers import NAMES, measured, trained

ARMS: dict[str, dict[str, Any]] = {
    "tenth": {"principled": "scaled", "principled_kwargs": {"convergence_weight": 2.0, "adversarial_weight": 0.5}},
    "orderless": {"principled": "none", "config": {"position_input": "none"}},
}
LABELS = {
    "none": "",
    "scaled": " + principles",
    "tenth": " + principles, weights 2 and 0.5",
    "orderless": ", not shown the order",
}
NEEDS_ORDER = ("dlcm",)
MEASURES = ("ndcg@10", "expected_clicks", "p1_item_obedience", "p2_item_obedience", "score_spread")


def main() -> None:
    options = _options()
    folder, seeds = options.output_dir, list(range(options.seeds))
    if not (folder / "summary.json").is_file():
        raise SystemExit(f"{folder} has no summary.json: run six_rerankers.py with this --output-dir first")
    first = json.loads((folder / "summary.json").read_text())
    if seeds != first["seeds"]:
        raise SystemExit(f"{folder} has runs with the seeds {first['seeds']}: give --seeds {len(first['seeds'])}")
    models, epochs = list(first["changes"]), first["training"]["num_train_epochs"]
    cells = [
        (model, arm, seed)
        for seed in seeds
        for model in models
        for arm in ARMS
        if not (arm == "orderless" and model in NEEDS_ORDER)
    ]
    rates = {model: found["chosen"] for model, found in first["learning_rates"].items()}
    finish(
        [(_path(folder, *cell), (*cell, rates[cell[0]], epochs)) for cell in cells],
        run,
        options.workers,
    )
    summary = summarise(folder, models, seeds)
    (folder / "cost_of_obedience.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = as_markdown(summary)
    (folder / "cost_of_obedience.md").write_text(text)
    print(text)


def run(path: Path, model: str, arm: str, seed: int, rate: float, epochs: float) -> dict[str, Any]:
    """Trains and measures one model with one seed."""
    return measured(path, *trained(path, model, seed, rate, epochs, **ARMS[arm]))


def summarise(folder: Path, models: list[str], seeds: list[int]) -> dict[str, Any]:
    """Means over seeds, and paired differences to the run without principles."""
    rows: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for model in models:
        base = [run["test"] for run in results(_path(folder, model, "none", seed) for seed in seeds)]
        for arm in LABELS:
            if arm == "orderless" and model in NEEDS_ORDER:
                continue
            runs = [run["test"] for run in results(_path(folder, model, arm, seed) for seed in seeds)]
            rows[f"{model} {arm}"] = {name: mean_and_spread([run[name] for run in runs]) for name in MEASURES}
            if arm != "none":
                differences[f"{model} {arm}"] = {
                    name: paired([run[name] for run in runs], [run[name] for run in base]) for name in MEASURES
                }
    return {"seeds": seeds, "arms": ARMS, "rows": rows, "differences": differences}


def as_markdown(summary: dict[str, Any]) -> str:
    """One table: a row an arm, with what it changes."""
    heads = ["", "NDCG@10", "exp. clicks", "P1 by item", "P2 by item", "spread", "change in expected clicks"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, row in summary["rows"].items():
        model, arm = name.split()
        cells = [f"{row[measure]['mean']:.4f}" for measure in MEASURES]
        change = summary["differences"].get(name, {}).get("expected_clicks")
        cells.append("" if change is None else f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]")
        lines.append(f"| {NAMES[model]}{LABELS[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _path(folder: Path, model: str, arm: str, seed: int) -> Path:
    return folder / "runs" / f"{model}-{arm}-{seed}.json"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path, help="that of six_rerankers.py")
    parser.add_argument("--seeds", type=int, default=5, help="how many, as of six_rerankers.py")
    parser.add_argument("--workers", type=int, default=1, help="processes that make runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
