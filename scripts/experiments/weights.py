"""Does one pair of consistency weights serve lists of every length? PRM at n = 10, 30 and 50 items.

    python scripts/experiments/weights.py --output-dir RESULTS --seeds 5 --workers 2

For each length the same world is simulated with lists of that length. A run is one (length, preset, factor, seed):
both weights of the preset are multiplied by the factor, and the model is trained for a fixed number of epochs, then
evaluated once on ``validation`` (to choose the best factor by expected clicks) and once on ``test`` (the reported
result). Runs of one length and seed share data, initial weights and batch order, so that differences from the run
without principles are paired. RESULTS gets ``lists/``, ``runs/LENGTH-PRESET-FACTOR-SEED.json``, ``summary.json``,
``summary.md`` and, with matplotlib, ``weights.png``. Existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runs import finish, mean_and_spread, paired, results, train

LENGTHS = (10, 30, 50)
# Preset -> factors on both of its weights. Between two random orders the sum over a list is (n^2 - 1) / 3 times the
# weighted mean, 833 times at n = 50: ``scaled`` gets larger factors, so that the ranges of both presets meet.
WEIGHTS = {
    "none": (),
    "scaled": (20.0, 5.0),
    "paper": (1.0, 1.0),
}  # at factor 1; ten times the default's of ``scaled``
FACTORS = {
    "scaled": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    "paper": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
}
MEASURES = (
    *("expected_clicks", "ndcg@10", "auc", "score_spread"),
    *("p1_obedience@5", "p1_item_obedience", "p2_obedience@5", "p2_item_obedience"),
)
# Without dropout, as in the committed results.
PRM_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
}


def main() -> None:
    options = _options()
    for length in LENGTHS:
        simulate(options.output_dir, length, options.lists)
    seeds = range(options.seeds)
    cells = [("none", 0.0), *((preset, factor) for preset in FACTORS for factor in FACTORS[preset])]
    # Seed by seed, so that an interrupted experiment has every cell for the finished seeds.
    wanted = [(length, preset, factor, seed) for seed in seeds for length in LENGTHS for preset, factor in cells]
    finish([(_path(options.output_dir, *cell), (*cell, options.epochs)) for cell in wanted], run, options.workers)
    summary = summarise(options.output_dir, list(seeds))
    (options.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = as_markdown(summary)
    (options.output_dir / "summary.md").write_text(text)
    print(text)
    if options.seeds > 1:
        draw(summary, options.output_dir / "weights.png")


def simulate(folder: Path, length: int, lists: int) -> None:
    """Prepares lists of this length in ``folder/lists/LENGTH``."""
    from hf_rerank.data.prm_public import prepare_prm_public
    from hf_rerank.data.simulation import PRMWorld, simulate_prm

    prepared = folder / "lists" / str(length)
    if (prepared / "schema.json").is_file():
        return
    raw = folder / "raw" / str(length)
    simulate_prm(raw, lists, seed=0, world=PRMWorld(list_length=length))
    prepare_prm_public(raw, prepared, max_list_length=length)


def run(path: Path, length: int, preset: str, factor: float, seed: int, epochs: float) -> dict[str, Any]:
    """Trains and evaluates one cell with one seed."""
    from hf_rerank import ListProcessor, load_lists
    from hf_rerank.evaluation import evaluate

    lists = load_lists(path.parents[1] / "lists" / str(length))
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    names = ("convergence_weight", "adversarial_weight")
    weights = {name: factor * weight for name, weight in zip(names, WEIGHTS[preset], strict=False)}
    trainer = train(
        path.with_suffix(""),
        lists,
        processor,
        model="prm",
        seed=seed,
        config=PRM_SIZES,
        principled=preset,
        principled_kwargs=weights,
        num_train_epochs=epochs,
        learning_rate=2e-3,
        per_device_train_batch_size=128,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
    )
    measured = {
        split: evaluate(trainer.model, processor, lists[split], swaps="one", max_steps=0)
        for split in ("validation", "test")
    }
    return {**trainer.results, **measured}


def summarise(folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Computes means over seeds, differences from no principles on test, and the factor chosen on validation."""
    cells: list[dict[str, Any]] = []
    chosen: dict[str, Any] = {}
    for length in LENGTHS:
        base = results(_path(folder, length, "none", 0.0, seed) for seed in seeds)
        cells.append({"length": length, "preset": "none", "factor": 0.0, "test": _means(base)})
        for preset, factors in FACTORS.items():
            validation = {}
            for factor in factors:
                found = results(_path(folder, length, preset, factor, seed) for seed in seeds)
                cells.append(
                    {
                        "length": length,
                        "preset": preset,
                        "factor": factor,
                        "weights": [term["weight"] for term in found[0]["objective"]["terms"]],
                        "test": _means(found),
                        "difference": {
                            measure: paired(
                                [result["test"][measure] for result in found],
                                [result["test"][measure] for result in base],
                            )
                            for measure in MEASURES
                        },
                    }
                )
                clicks = [result["validation"]["expected_clicks"] for result in found]
                validation[factor] = sum(clicks) / len(clicks)
            best = max(factors, key=lambda factor: validation[factor])
            chosen[f"{preset}, n = {length}"] = {"factor": best, "validation_expected_clicks": validation}
    first = results([_path(folder, LENGTHS[0], "none", 0.0, seeds[0])])[0]
    return {
        "seeds": seeds,
        "cells": cells,
        "chosen_on_validation": chosen,
        "training": {
            name: first["training_arguments"][name]
            for name in ("num_train_epochs", "learning_rate", "per_device_train_batch_size")
        },
        "model": PRM_SIZES,
        "training_lists": {
            str(length): results([_path(folder, length, "none", 0.0, seeds[0])])[0]["data"]["train"]
            for length in LENGTHS
        },
        "environment": first["environment"],
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """Formats differences from the run without principles, one row per cell; the chosen factor is marked."""
    shown = {"expected_clicks": "exp. clicks", "ndcg@10": "NDCG@10"}
    obeyed = {"p1_item_obedience": "P1 by item", "p2_item_obedience": "P2 by item", "score_spread": "spread"}
    lines = [
        f"| n | preset | factor | w1, w2 | {' | '.join(shown.values())} | {' | '.join(obeyed.values())} |",
        f"|---|---|---|---|{'---|' * (len(shown) + len(obeyed))}",
    ]
    for cell in summary["cells"]:
        values = [f"{cell['test'][name]['mean']:.3f}" for name in obeyed]
        if cell["preset"] == "none":
            base = [f"{cell['test'][name]['mean']:.4f}" for name in shown]
            lines.append(f"| {cell['length']} | none | | 0, 0 | {' | '.join(base)} | {' | '.join(values)} |")
            continue
        best = summary["chosen_on_validation"][f"{cell['preset']}, n = {cell['length']}"]["factor"] == cell["factor"]
        changes = [
            f"{v['mean']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]"
            for v in (cell["difference"][name] for name in shown)
        ]
        lines.append(
            f"| {cell['length']} | {cell['preset']} | {cell['factor']:g}{' *' if best else ''} | "
            f"{cell['weights'][0]:g}, {cell['weights'][1]:g} | {' | '.join(changes)} | {' | '.join(values)} |"
        )
    return "\n".join(lines) + "\n\n`*`: the factor with most expected clicks on the validation lists.\n"


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draws the effect of the weights, one line per length, one column per preset."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: matplotlib is not installed (pip install hf-rerank[plots])")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {
        "expected_clicks": "expected clicks,\nchange in % of no principles",
        "p1_item_obedience": "P1: share of items\nthat keep their place",
        "p2_item_obedience": "P2: share of items\nthat keep their place",
    }
    figure, axes = plt.subplots(len(rows), len(FACTORS), figsize=(8.5, 8), sharex="col", sharey="row")
    base = {cell["length"]: cell["test"] for cell in summary["cells"] if cell["preset"] == "none"}
    for column, preset in enumerate(FACTORS):
        for row, (measure, label) in enumerate(rows.items()):
            axis = axes[row, column]
            for length in LENGTHS:
                cells = [c for c in summary["cells"] if (c["preset"], c["length"]) == (preset, length)]
                factors = [cell["factor"] for cell in cells]
                if measure == "expected_clicks":
                    scale = 100 / base[length][measure]["mean"]
                    values = [scale * cell["difference"][measure]["mean"] for cell in cells]
                    errors = [
                        scale * (c["difference"][measure]["high"] - c["difference"][measure]["mean"]) for c in cells
                    ]
                else:
                    values = [cell["test"][measure]["mean"] for cell in cells]
                    errors = [cell["test"][measure]["std"] for cell in cells]
                axis.errorbar(factors, values, yerr=errors, marker="o", markersize=4, capsize=3, label=f"n = {length}")
            if measure == "expected_clicks":
                axis.axhline(0, color="grey", linewidth=1, linestyle=":")
            axis.set_xscale("log")
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(preset)
        axes[-1, column].set_xlabel("factor on both weights of the preset")
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"figure: {path}")


def _means(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {measure: mean_and_spread([result["test"][measure] for result in found]) for measure in MEASURES}


def _path(folder: Path, length: int, preset: str, factor: float, seed: int) -> Path:
    return folder / "runs" / f"{length}-{preset}-{factor:g}-{seed}.json"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--lists", type=int, default=10_000, help="simulated lists of each length, all splits")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1, help="processes that train in parallel")
    return parser.parse_args()


if __name__ == "__main__":
    main()
