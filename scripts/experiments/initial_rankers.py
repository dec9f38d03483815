"""Initial rankers of three qualities: how good is their order, and how much does PRM add to it?

    python scripts/experiments/initial_rankers.py --output-dir RESULTS --seeds 3 --workers 2

Simulates lists (simulator seed 1), and sorts them by LambdaMART and the DNN, each ``poor``, ``moderate`` and
``strong``, trained on ``ranker_train``; the order of the simulator's own ranker is one more row. On each order PRM is
trained; the best epoch is chosen on ``validation`` by NDCG@10, and evaluated once on ``test``. All orders contain the
same uncut lists, so that metrics are comparable across rows. One more row, a PRM that does not read any order, shows
the value of an order to PRM. RESULTS gets ``lists/``, ``lists-RANKER-QUALITY/``, ``runs/*.json``, ``summary.json`` and
``summary.md``. Existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from grid import ENCODER
from runs import finish, mean_and_spread, paired, results, train
from worlds import prepare_lists

SIMULATOR, NO_ORDER = "simulator's own", "no order"
ORDERS = {
    SIMULATOR: "lists",
    **{
        f"{ranker}, {quality}": f"lists-{ranker}-{quality}"
        for ranker in ("lambdamart", "dnn")
        for quality in ("poor", "moderate", "strong")
    },
}
# Learning rate chosen for PRM on validation lists of this world.
LEARNING_RATE = 1e-3
MEASURES = ("ndcg@10", "map@10", "expected_clicks", "expected_clicks_share", "gauc", "precision@5")


def main() -> None:
    options = _options()
    folder = options.output_dir
    prepare_lists("prm_public", folder / "raw", folder / "lists", options.lists, seed=1)
    for name in ORDERS:
        sort(folder, name)
    seeds = list(range(options.seeds))
    wanted = [(name, seed) for seed in seeds for name in (*ORDERS, NO_ORDER)]
    finish([(_path(folder, *cell), (*cell, options.epochs)) for cell in wanted], run, options.workers)
    summary = summarise(folder, seeds)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = as_markdown(summary)
    (folder / "summary.md").write_text(text)
    print(text)


def sort(folder: Path, name: str) -> None:
    """Writes the lists, sorted in the order of this name, into ``folder``."""
    from hf_rerank.initial_rankers.order import add_initial_order

    output = folder / ORDERS[name]
    if not output.is_dir():
        ranker, quality = name.split(", ")
        print(f"sorting by {name}", flush=True)
        add_initial_order(folder / "lists", output, ranker=ranker, quality=quality, progress=False)


def run(path: Path, name: str, seed: int, epochs: float) -> dict[str, Any]:
    """Trains and evaluates PRM on one order with one seed."""
    from hf_rerank import ListProcessor, load_lists
    from hf_rerank.evaluation import evaluate

    folder = path.parents[1]
    lists = load_lists(folder / ORDERS.get(name, "lists"))
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    trainer = train(
        path.with_suffix(""),
        lists,
        processor,
        model="prm",
        seed=seed,
        config={**ENCODER, "hidden_dropout_prob": 0.0, "position_input": "none" if name == NO_ORDER else "embedding"},
        principled="none",
        num_train_epochs=epochs,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=128,
        encoded_cache=str(folder / "encoded"),
        save_total_limit=1,
        save_only_model=True,
    )
    return {**trainer.results, "test": evaluate(trainer.model, processor, lists["test"], max_steps=0, swaps="one")}


def summarise(folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Computes for each order its metrics, those of PRM on it (means over seeds), and the gain of PRM."""
    from hf_rerank import ListProcessor, load_lists
    from hf_rerank.evaluation import evaluate_orders

    rows: dict[str, Any] = {}
    found = {name: results(_path(folder, name, seed) for seed in seeds) for name in (*ORDERS, NO_ORDER)}
    for name, runs in found.items():
        lists = load_lists(folder / ORDERS.get(name, "lists"))
        processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
        orders = evaluate_orders(processor, lists["test"])
        initial = orders["initial"]
        measured = {measure: [run["test"][measure] for run in runs] for measure in MEASURES}
        rows[name] = {"prm": {measure: mean_and_spread(values) for measure, values in measured.items()}}
        rows[name]["prm"]["seconds"] = mean_and_spread([run["training"]["seconds"] for run in runs])
        if name == NO_ORDER:
            continue
        rows[name]["initial"] = {measure: initial[measure] for measure in MEASURES}
        rows[name]["gain"] = {
            measure: paired(values, [initial[measure]] * len(values)) for measure, values in measured.items()
        }
        report = json.loads((folder / ORDERS[name] / "report.json").read_text())
        if "initial_ranker" in report:
            rows[name]["ranker"] = {k: v for k, v in report["initial_ranker"].items() if k != "metrics"}
    first = found[SIMULATOR][0]
    return {
        "seeds": seeds,
        "rows": rows,
        "best": {measure: orders["true_attraction"][measure] for measure in MEASURES},
        "random": {measure: orders["random"][measure] for measure in MEASURES},
        "training": {
            name: first["training_arguments"][name]
            for name in ("num_train_epochs", "per_device_train_batch_size", "learning_rate")
        },
        "data": first["data"],
        "settings": first["test"]["settings"],
        "environment": first["environment"],
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """Formats one table: each order, and PRM on it."""
    shown = {"NDCG@10": "ndcg@10", "MAP@10": "map@10", "exp. clicks": "expected_clicks"}
    heads = [*shown, *(f"PRM {heading}" for heading in shown), "PRM adds, NDCG@10", "PRM adds, exp. clicks"]
    lines = [f"| initial order | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for label, key in (("random", "random"), ("by true attraction", "best")):
        cells = [f"{summary[key][measure]:.4f}" for measure in shown.values()] + [""] * (len(heads) - len(shown))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for name, row in summary["rows"].items():
        cells = [f"{row['initial'][measure]:.4f}" if "initial" in row else "" for measure in shown.values()]
        cells += [f"{row['prm'][measure]['mean']:.4f}" for measure in shown.values()]
        for measure in ("ndcg@10", "expected_clicks"):
            gain = row.get("gain", {}).get(measure)
            cells.append(f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]" if gain else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _path(folder: Path, name: str, seed: int) -> Path:
    order = "no_order" if name == NO_ORDER else ORDERS[name]
    return folder / "runs" / f"{order}-{seed}.json"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--lists", type=int, default=24_000, help="simulated lists, all splits; 45 %% train")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1, help="processes that train in parallel")
    return parser.parse_args()


if __name__ == "__main__":
    main()
