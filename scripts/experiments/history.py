"""How much does a user's history help the re-rankers that read it, PEAR and RAISE?

    python scripts/experiments/history.py --output-dir RESULTS --seeds 5 --workers 2

Simulates Ad lists with a behaviour log (seed 1), or uses prepared lists with a history (``--data LISTS``). For each
model, with and without the history columns, the learning rate is chosen on ``validation`` with a separate seed; then
each is trained with every seed, the best epoch chosen on ``validation`` by NDCG@10, and evaluated once on ``test``.
Runs of one model and seed share data and batch order, so that differences are paired. RESULTS gets ``lists/``,
``runs/*.json``, ``summary.json`` and ``summary.md``. Existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from grid import MODELS
from questions import NAMES
from runs import finish, mean_and_spread, over_users, paired, per_list, results, train
from worlds import prepare_lists

READERS = ("pear", "raise")
ARMS = ("without", "with")
LEARNING_RATES = (1e-3, 2e-3, 4e-3)
CHOOSING_SEED = 1000
MEASURES = ("ndcg@10", "map@10", "gauc", "expected_clicks", "expected_clicks_share")


def main() -> None:
    options = _options()
    folder = options.output_dir
    data = options.data or folder / "lists"
    if options.data is None:
        prepare_lists("ad", folder / "raw", folder / "lists", options.lists, seed=1)
    wanted = {
        (model, arm, rate): folder / "runs" / f"choose-{model}-{arm}-{rate:g}.json"
        for model in options.models
        for arm in ARMS
        for rate in LEARNING_RATES
    }
    finish(
        [(path, (str(data), *cell, CHOOSING_SEED, options.epochs, False)) for cell, path in wanted.items()],
        run,
        options.workers,
    )
    rates: dict[tuple[str, str], float] = {}
    for model in options.models:
        for arm in ARMS:
            found = {rate: results([wanted[model, arm, rate]])[0]["validation_ndcg@10"] for rate in LEARNING_RATES}
            rates[model, arm] = max(found, key=lambda rate: found[rate])
    seeds = list(range(options.seeds))
    finish(
        [
            (_path(folder, model, arm, seed), (str(data), model, arm, rates[model, arm], seed, options.epochs, True))
            for seed in seeds
            for model in options.models
            for arm in ARMS
        ],
        run,
        options.workers,
    )
    summary = summarise(folder, data, options.models, seeds)
    summary["learning_rates"] = {f"{model} {arm}": rate for (model, arm), rate in rates.items()}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = as_markdown(summary)
    (folder / "summary.md").write_text(text)
    print(text)


def run(path: Path, data: str, model: str, arm: str, rate: float, seed: int, epochs: float, test: bool) -> dict:
    """Trains one model with or without the history; with ``test``, also evaluates it on the test lists."""
    from safetensors.numpy import save_file

    from hf_rerank import ListProcessor, load_lists
    from hf_rerank.evaluation import evaluate

    lists = load_lists(data)
    schema = lists.schema if arm == "with" else lists.schema.replace(history=[])
    processor = ListProcessor.from_lists(lists["train"], schema=schema)
    trainer = train(
        path.with_suffix(""),
        lists,
        processor,
        model=model,
        seed=seed,
        config={**MODELS[model], "hidden_dropout_prob": 0.0},
        principled="none",
        num_train_epochs=epochs,
        learning_rate=rate,
        per_device_train_batch_size=128,
        save_total_limit=1,
        save_only_model=True,
    )
    chosen = {"validation_ndcg@10": trainer.state.best_metric, "best_step": trainer.state.best_global_step}
    if not test:
        return chosen
    save_file(per_list(trainer.model, processor, lists["test"]), path.with_suffix(".safetensors"))
    return {**trainer.results, **chosen, "test": evaluate(trainer.model, processor, lists["test"], max_steps=0)}


def summarise(folder: Path, data: Path, models: list[str], seeds: list[int]) -> dict[str, Any]:
    """Computes means over seeds, and paired differences."""
    from safetensors.numpy import load_file

    from hf_rerank import ListProcessor, load_lists
    from hf_rerank.evaluation import evaluate_orders

    lists = load_lists(data)
    if not lists.schema.history:
        raise SystemExit(f"{data} has no history columns: nothing to compare")
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    orders = evaluate_orders(processor, lists["test"])
    lengths = [len(row) for row in lists["test"][lists.schema.history[0].name][:]]
    rows: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for model in models:
        found = {arm: results(_path(folder, model, arm, seed) for seed in seeds) for arm in ARMS}
        measures = [name for name in MEASURES if name in found["with"][0]["test"]]
        for arm, runs in found.items():
            rows[f"{NAMES[model]} {arm} history"] = {
                **{name: mean_and_spread([run["test"][name] for run in runs]) for name in measures},
                "parameters": runs[0]["parameters"],
            }
        pairs = [
            [load_file(_path(folder, model, arm, seed).with_suffix(".safetensors")) for arm in ARMS] for seed in seeds
        ]
        changes[NAMES[model]] = {
            "differences": {
                name: paired(*([run["test"][name] for run in found[arm]] for arm in ("with", "without")))
                for name in measures
            },
            "over_users": {
                name: over_users(
                    np.mean([after[name] - before[name] for before, after in pairs], axis=0),
                    lists["test"][lists.schema.group][:],
                )
                for name in pairs[0][0]
            },
        }
    first = results([_path(folder, models[0], "with", seeds[0])])[0]
    return {
        "seeds": seeds,
        "orders": {name: {m: row[m] for m in MEASURES if m in row} for name, row in orders.items()},
        "rows": rows,
        "changes": changes,
        "history_length": {"mean": float(np.mean(lengths)), "median": float(np.median(lengths))},
        "lists": {split: len(lists[split]) for split in lists},
        "environment": first["environment"],
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """Formats two tables: every row, and the effect of the history."""
    names = list(next(iter(summary["changes"].values()))["differences"])
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for label, row in {"initial order": summary["orders"]["initial"], **summary["rows"]}.items():
        cells = [row.get(name) for name in names]
        shown = ["" if cell is None else f"{cell['mean'] if isinstance(cell, dict) else cell:.4f}" for cell in cells]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    lines += ["", f"| with history - without | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for model, change in summary["changes"].items():
        cells = [f"{v['mean']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]" for v in change["differences"].values()]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _path(folder: Path, model: str, arm: str, seed: int) -> Path:
    return folder / "runs" / f"{model}-{arm}-{seed}.json"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--data", type=Path, help="prepared lists with a history (default: simulated Ad lists)")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--models", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--lists", type=int, default=40_000, help="simulated lists, before the window rule")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1, help="processes that train in parallel")
    return parser.parse_args()


if __name__ == "__main__":
    main()
