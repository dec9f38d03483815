"""Personalised vectors: how much do they help PRM, and is it the vectors or the lists they were learned from?

    python scripts/experiments/vectors.py --output-dir RESULTS --seeds 5 --workers 2

Simulates lists (simulator seed 1). Three rows: PRM; PRM with the vectors of a click model trained on ``ranker_train``
(one click model per seed); PRM without vectors, trained on ``train`` and ``ranker_train`` together, the same number of
lists as used for the second row. For each row the learning rate is chosen on ``validation``, with a separate seed; the
best epoch of each run is chosen on ``validation`` by NDCG@10, and evaluated once on ``test``. Rows with the same seed
are paired. RESULTS gets ``lists/``, ``vectors-SEED/``, ``runs/*.json``, ``summary.json``, ``summary.md`` and, with
matplotlib, ``vectors.png``. Existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from grid import ENCODER
from runs import finish, mean_and_spread, over_users, paired, per_list, results, train
from worlds import prepare_lists

PLAIN, VECTORS, MORE_LISTS = "PRM", "PRM + vectors", "PRM + ranker_train lists"
ROWS = {PLAIN: "plain", VECTORS: "vectors", MORE_LISTS: "more_lists"}
COMPARISONS = ((VECTORS, PLAIN), (MORE_LISTS, PLAIN), (VECTORS, MORE_LISTS))
LEARNING_RATES = (1e-3, 2e-3)
CHOOSING_SEED = 1000
MEASURES = ("ndcg@10", "map@10", "expected_clicks", "expected_clicks_share", "auc", "gauc", "precision@5")
COMPARED = ("ndcg@10", "expected_clicks", "auc")


def main() -> None:
    options = _options()
    folder = options.output_dir
    prepare_lists("prm_public", folder / "raw", folder / "lists", options.lists, seed=1)
    rates = choose_learning_rates(folder, options)
    seeds = list(range(options.seeds))
    wanted = [(row, seed) for seed in seeds for row in ROWS]
    finish(
        [(_path(folder, *cell), (*cell, rates[cell[0]]["chosen"], options.epochs, options.dim)) for cell in wanted],
        run,
        options.workers,
    )
    summary = summarise(folder, seeds)
    summary |= {"learning_rates": rates, "dim": options.dim}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = as_markdown(summary)
    (folder / "summary.md").write_text(text)
    print(text)
    if options.seeds > 1:
        draw(summary, folder / "vectors.png")


def choose_learning_rates(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Finds, for each row, the learning rate with the best NDCG@10 on the validation lists."""
    wanted = {
        (row, rate): folder / "runs" / f"choose-{ROWS[row]}-{rate:g}.json" for row in ROWS for rate in LEARNING_RATES
    }
    finish(
        [(path, (*cell, options.epochs, options.dim)) for cell, path in wanted.items()],
        choose,
        options.workers,
    )
    rates = {}
    for row in ROWS:
        found = {rate: results([wanted[row, rate]])[0]["validation_ndcg@10"] for rate in LEARNING_RATES}
        rates[row] = {"chosen": max(found, key=lambda rate: found[rate]), "validation_ndcg@10": found}
    return rates


def choose(path: Path, row: str, rate: float, epochs: float, dim: int) -> dict[str, Any]:
    """Returns the best validation NDCG@10 of one learning rate."""
    trainer, *_ = _trained(path, row, CHOOSING_SEED, rate, epochs, dim)
    return {"validation_ndcg@10": trainer.state.best_metric, "best_step": trainer.state.best_global_step}


def run(path: Path, row: str, seed: int, rate: float, epochs: float, dim: int) -> dict[str, Any]:
    """Trains and evaluates one row with one seed."""
    from safetensors.numpy import save_file

    from hf_rerank.evaluation import evaluate

    trainer, lists, processor = _trained(path, row, seed, rate, epochs, dim)
    save_file(per_list(trainer.model, processor, lists["test"]), path.with_suffix(".safetensors"))
    return {**trainer.results, "test": evaluate(trainer.model, processor, lists["test"], max_steps=0, swaps="one")}


def _trained(path: Path, row: str, seed: int, rate: float, epochs: float, dim: int) -> tuple[Any, Any, Any]:
    from datasets import concatenate_datasets

    from hf_rerank import ListProcessor, load_lists

    folder = path.parents[1]
    lists = load_lists(_with_vectors(folder, seed, dim) if row == VECTORS else folder / "lists")
    if row == MORE_LISTS:
        lists["train"] = concatenate_datasets([lists["train"], lists["ranker_train"]])
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    trainer = train(
        path.with_suffix(""),
        lists,
        processor,
        model="prm",
        seed=seed,
        config={**ENCODER, "hidden_dropout_prob": 0.0},
        principled="none",
        num_train_epochs=epochs,
        learning_rate=rate,
        per_device_train_batch_size=128,
        encoded_cache=str(folder / "encoded"),
        save_total_limit=1,
        save_only_model=True,
    )
    return trainer, lists, processor


def _with_vectors(folder: Path, seed: int, dim: int) -> Path:
    """Returns the lists with the vectors of one seed's click model; made once, while other processes wait."""
    from filelock import FileLock

    from hf_rerank.personalised_vectors import add_personalised_vectors

    output = folder / f"vectors-{seed}"
    with FileLock(folder / f"vectors-{seed}.lock"):
        if not output.is_dir():
            add_personalised_vectors(folder / "lists", output, dim=dim, seed=seed, progress=False)
    return output


def summarise(folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Computes means over seeds, and paired differences."""
    from safetensors.numpy import load_file

    from hf_rerank import ListProcessor, load_lists
    from hf_rerank.evaluation import evaluate_orders

    lists = load_lists(folder / "lists")
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    users = lists["test"][lists.schema.group][:]
    orders = evaluate_orders(processor, lists["test"])
    found = {row: results(_path(folder, row, seed) for seed in seeds) for row in ROWS}
    of_lists = {
        row: [load_file(_path(folder, row, seed).with_suffix(".safetensors")) for seed in seeds] for row in ROWS
    }
    differences = {}
    for one, other in COMPARISONS:
        pairs = list(zip(of_lists[one], of_lists[other], strict=True))
        differences[f"{one} - {other}"] = {
            "over_seeds": {
                name: paired(*([run["test"][name] for run in found[row]] for row in (one, other))) for name in MEASURES
            },
            "over_users": {
                name: over_users(np.mean([a[name] - b[name] for a, b in pairs], axis=0), users)
                for name in ("ndcg@10", "expected_clicks")
            },
        }
    first = found[PLAIN][0]
    click_models = [json.loads((folder / f"vectors-{seed}" / "report.json").read_text()) for seed in seeds]
    return {
        "seeds": seeds,
        "orders": {name: {m: row[m] for m in MEASURES if m in row} for name, row in orders.items()},
        "rows": {
            row: {
                **{name: mean_and_spread([run["test"][name] for run in runs]) for name in MEASURES},
                "seconds": mean_and_spread([run["training"]["seconds"] for run in runs]),
                "best_step": mean_and_spread([run["training"]["best_step"] for run in runs]),
            }
            for row, runs in found.items()
        },
        "differences": differences,
        "click_models": [report["personalised_vectors"] for report in click_models],
        "training": {
            name: first["training_arguments"][name] for name in ("num_train_epochs", "per_device_train_batch_size")
        },
        "data": {row: runs[0]["data"] for row, runs in found.items()},
        "settings": first["test"]["settings"],
        "environment": first["environment"],
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """Formats two tables: every row, and the differences."""
    from hf_rerank.evaluation.tables import RESULT_COLUMNS

    rows: dict[str, dict[str, float]] = {"initial order": summary["orders"]["initial"]}
    lists = {row: data["train"]["lists"] for row, data in summary["data"].items()}
    for row, measures in summary["rows"].items():
        rows[row] = {name: measures[name]["mean"] for name in MEASURES}
    shown = {heading: name for heading, name in RESULT_COLUMNS.items() if any(name in row for row in rows.values())}
    lines = [f"| | lists | {' | '.join(shown)} |", f"|---|---|{'---|' * len(shown)}"]
    for label, row in rows.items():
        cells = [f"{row[name]:.4f}" if name in row else "" for name in shown.values()]
        lines.append(f"| {label} | {lists.get(label, '')} | {' | '.join(cells)} |")
    lines += ["", f"| difference | {' | '.join(COMPARED)} |", f"|---|{'---|' * len(COMPARED)}"]
    for label, found in summary["differences"].items():
        intervals = [found["over_seeds"][name] for name in COMPARED]
        cells = [f"{v['mean']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]" for v in intervals]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draws NDCG@10 and expected clicks of each row: one point per seed, lines between the rows of one seed."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: matplotlib is not installed (pip install hf-rerank[plots])")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    places = np.arange(len(ROWS))
    for axis, (measure, label) in zip(
        axes, {"ndcg@10": "NDCG@10", "expected_clicks": "expected clicks a list"}.items(), strict=True
    ):
        values = np.array([summary["rows"][row][measure]["values"] for row in ROWS])
        axis.plot(places, values, color="lightgrey", marker="o", markersize=3)
        axis.plot(places, values.mean(1), color="tab:blue", marker="o", linewidth=0, markersize=8, label="mean")
        axis.set_xticks(places, [row.replace(" + ", "\n+ ") for row in ROWS])
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.15)
    axes[1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"figure: {path}")


def _path(folder: Path, row: str, seed: int) -> Path:
    return folder / "runs" / f"{ROWS[row]}-{seed}.json"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--lists", type=int, default=24_000, help="simulated lists, all splits; 45 %% train")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--dim", type=int, default=32, help="size of a vector")
    parser.add_argument("--workers", type=int, default=1, help="processes that train in parallel")
    return parser.parse_args()


if __name__ == "__main__":
    main()
