"""Every re-ranker with and without the principles: does each beat the initial order, and what do the principles do?

    python scripts/experiments/six_rerankers.py --output-dir RESULTS --seeds 5 --workers 2
    python scripts/experiments/six_rerankers.py --output-dir RESULTS_AD --format ad --seeds 5 --workers 2

Simulates lists of PRM Public or of Ad (simulator seed 1), then, for each model, chooses the learning rate on
``validation`` without the principles and with a seed of its own; then trains each model with that rate, without and
with ``principled="scaled"``, the latter with ten times the default's weights. The best epoch is chosen on
``validation`` by NDCG@10, and measured once on ``test``.
Runs of one model and seed share data, initial weights and batch order, so that differences are paired. RESULTS gets
``lists/``, ``runs/*.json``, ``summary.json``, ``summary.md`` and, with matplotlib, ``six_rerankers.png``. A run that
is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from runs import finish, mean_and_spread, over_users, paired, per_list, results, train

from hf_rerank.evaluation.comparing import holm

# Without dropout, as in the committed results.
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "hidden_dropout_prob": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "dnn": {"hidden_sizes": [200, 80]},
    "dlcm": {"hidden_size": 64},
    "midnn": {"hidden_sizes": [256, 128]},
    "prm": ENCODER,
    "setrank": {**ENCODER, "num_attention_heads": 2},
    "pear": {**ENCODER, "num_attention_heads": 2, "feature_hidden_size": 64},
    "raise": ENCODER,
}
NAMES = {"dnn": "DNN", "dlcm": "DLCM", "midnn": "MiDNN", "prm": "PRM", "setrank": "SetRank", "pear": "PEAR"}
NAMES["raise"] = "RAISE"
PRESETS = ("none", "scaled")
# Of ``scaled``: ten times the default's weights, as in the committed results.
STRONG = {"convergence_weight": 20.0, "adversarial_weight": 5.0}
# Raw format -> lists to simulate, all splits. Of PRM Public 45 % train; of Ad the window rule keeps 45 % of the lists,
# and of these two thirds train.
FORMATS = {"prm_public": 22_500, "ad": 40_000}
LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
CHOOSING_SEED = 1000
MEASURES = (
    *("ndcg@10", "expected_clicks", "expected_clicks_share", "auc", "gauc", "map@10", "precision@5"),
    *("p1_obedience", "p1_item_obedience", "p1_obedience@5", "p2_obedience", "p2_item_obedience", "p2_obedience@5"),
    *("fixed_point_rate", "score_spread"),
)
COMPARED = ("ndcg@10", "expected_clicks", "p1_obedience@5", "p1_item_obedience", "p2_item_obedience", "score_spread")
# A change counts as none where the interval's lower end is above this share of the value without principles.
TOLERANCE = -0.002


def main() -> None:
    options = _options()
    folder = options.output_dir
    lists = FORMATS[options.format] if options.lists is None else options.lists
    SIMULATE[options.format](folder, lists)
    rates = choose_learning_rates(folder, options)
    seeds = list(range(options.seeds))
    wanted = [(model, preset, seed) for seed in seeds for model in options.models for preset in PRESETS]
    finish(
        [(_path(folder, *cell), (*cell, rates[cell[0]]["chosen"], options.epochs)) for cell in wanted],
        run,
        options.workers,
    )
    summary = summarise(folder, options.models, seeds)
    summary["learning_rates"] = rates
    summary["format"], summary["simulated_lists"] = options.format, lists
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = as_markdown(summary)
    (folder / "summary.md").write_text(text)
    print(text)
    if options.seeds > 1:
        draw(summary, folder / "six_rerankers.png")


def simulate(folder: Path, lists: int) -> None:
    """Simulated lists of PRM Public, prepared in ``folder/lists``."""
    from hf_rerank.data.prm_public import prepare_prm_public
    from hf_rerank.data.simulation import simulate_prm

    if (folder / "lists" / "schema.json").is_file():
        return
    simulate_prm(folder / "raw", lists, seed=1)
    prepare_prm_public(folder / "raw", folder / "lists")


def simulate_with_history(folder: Path, lists: int) -> None:
    """Simulated lists of Ad, each with the last behaviours of its user, prepared in ``folder/lists``."""
    from hf_rerank.data.ad import prepare_ad
    from hf_rerank.data.simulation import simulate_ad

    if (folder / "lists" / "schema.json").is_file():
        return
    simulate_ad(folder / "raw", lists, seed=1)
    prepare_ad(folder / "raw", folder / "lists", progress=False)


SIMULATE = {"prm_public": simulate, "ad": simulate_with_history}


def choose_learning_rates(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """For each model the learning rate with the best NDCG@10 on the validation lists, without the principles."""
    wanted = {
        (model, rate): folder / "runs" / f"choose-{model}-{rate:g}.json"
        for model in options.models
        for rate in LEARNING_RATES
    }
    finish([(path, (*cell, options.epochs)) for cell, path in wanted.items()], choose, options.workers)
    rates = {}
    for model in options.models:
        found = {rate: results([wanted[model, rate]])[0]["validation_ndcg@10"] for rate in LEARNING_RATES}
        rates[model] = {"chosen": max(found, key=lambda rate: found[rate]), "validation_ndcg@10": found}
    return rates


def choose(path: Path, model: str, rate: float, epochs: float) -> dict[str, Any]:
    """The best validation NDCG@10 of one learning rate."""
    trainer, *_ = trained(path, model, CHOOSING_SEED, rate, epochs, principled="none")
    return {"validation_ndcg@10": trainer.state.best_metric, "best_step": trainer.state.best_global_step}


def run(path: Path, model: str, preset: str, seed: int, rate: float, epochs: float) -> dict[str, Any]:
    """Trains and measures one model with one seed."""
    weights = STRONG if preset == "scaled" else None
    return measured(path, *trained(path, model, seed, rate, epochs, principled=preset, principled_kwargs=weights))


def trained(
    path: Path,
    model: str,
    seed: int,
    rate: float,
    epochs: float,
    config: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> tuple[Any, Any, Any]:
    """The trainer, the lists and the processor of a run; ``config`` changes the model's, ``arguments`` are further."""
    from hf_rerank import ListProcessor, load_lists

    lists = load_lists(path.parents[1] / "lists")
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    trainer = train(
        path.with_suffix(""),
        lists,
        processor,
        model=model,
        seed=seed,
        config={**MODELS[model], **(config or {})},
        num_train_epochs=epochs,
        learning_rate=rate,
        per_device_train_batch_size=128,
        save_total_limit=1,
        save_only_model=True,
        **arguments,
    )
    return trainer, lists, processor


def measured(path: Path, trainer: Any, lists: Any, processor: Any) -> dict[str, Any]:
    """The results of a run on the test lists; list by list beside ``path``."""
    from safetensors.numpy import save_file

    from hf_rerank.evaluation import evaluate

    save_file(per_list(trainer.model, processor, lists["test"]), path.with_suffix(".safetensors"))
    return {**trainer.results, "test": evaluate(trainer.model, processor, lists["test"])}


def summarise(folder: Path, models: list[str], seeds: list[int]) -> dict[str, Any]:
    """Means over seeds, and paired differences: to the initial order, and of the principles."""
    from safetensors.numpy import load_file

    from hf_rerank import ListProcessor, load_lists
    from hf_rerank.evaluation import evaluate_orders

    lists = load_lists(folder / "lists")
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    users = lists["test"][lists.schema.group][:]
    orders = evaluate_orders(processor, lists["test"])
    found = {
        (model, preset): results(_path(folder, model, preset, seed) for seed in seeds)
        for model in models
        for preset in PRESETS
    }
    changes: dict[str, Any] = {}
    for model in models:
        base, principled = ([run["test"] for run in found[model, preset]] for preset in PRESETS)
        # Of two runs of a seed, list by list, and then a mean over seeds.
        lists_of = [
            [load_file(_path(folder, model, preset, seed).with_suffix(".safetensors")) for preset in PRESETS]
            for seed in seeds
        ]
        changes[model] = {
            "differences": {name: paired(_of(principled, name), _of(base, name)) for name in MEASURES},
            "over_users": {
                name: over_users(np.mean([after[name] - before[name] for before, after in lists_of], axis=0), users)
                for name in ("ndcg@10", "expected_clicks")
            },
            "p_value": paired(_of(principled, "ndcg@10"), _of(base, "ndcg@10"))["p_value"],
            "over_initial_order": {
                name: paired(_of(base, name), [orders["initial"][name]] * len(seeds))
                for name in ("ndcg@10", "expected_clicks")
            },
        }
        lowest = changes[model]["differences"]["expected_clicks"]["low"]
        level = float(np.mean(_of(base, "expected_clicks")))
        changes[model]["does_not_lower_expected_clicks"] = bool(lowest > TOLERANCE * level)
    adjusted = holm([changes[model]["p_value"] for model in models])
    for model, value in zip(models, adjusted, strict=True):
        changes[model]["p_value_holm"] = value
    first = found[models[0], "none"][0]
    return {
        "seeds": seeds,
        "orders": {name: {m: row[m] for m in MEASURES if m in row} for name, row in orders.items()},
        "rows": {
            f"{model} {preset}": {
                **{name: mean_and_spread(_of([run["test"] for run in runs], name)) for name in MEASURES},
                "seconds": mean_and_spread([run["training"]["seconds"] for run in runs]),
                "best_step": mean_and_spread([run["training"]["best_step"] for run in runs]),
            }
            for (model, preset), runs in found.items()
        },
        "changes": changes,
        "parameters": {model: found[model, "none"][0]["parameters"] for model in models},
        "models": {model: MODELS[model] for model in models},
        "objectives": {preset: _settings(found[models[0], preset][0]["objective"]) for preset in PRESETS},
        "training": {
            name: first["training_arguments"][name] for name in ("num_train_epochs", "per_device_train_batch_size")
        },
        "data": first["data"],
        "schema": first["schema"],
        "settings": first["test"]["settings"],
        "environment": first["environment"],
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """Two tables: every row, and what the principles change."""
    from hf_rerank.evaluation.tables import RESULT_COLUMNS

    labels = {"random": "random", "initial": "initial order", "true_attraction": "order by true attraction"}
    rows = {labels[name]: row for name, row in summary["orders"].items() if name != "true_attraction"}
    for name, row in summary["rows"].items():
        model, preset = name.split()
        rows[NAMES[model] + (" + principles" if preset != "none" else "")] = {
            measure: value["mean"] for measure, value in row.items()
        }
    if "true_attraction" in summary["orders"]:
        rows[labels["true_attraction"]] = summary["orders"]["true_attraction"]
    shown = {heading: name for heading, name in RESULT_COLUMNS.items() if any(name in row for row in rows.values())}
    lines = [f"| | {' | '.join(shown)} |", f"|---|{'---|' * len(shown)}"]
    for label, row in rows.items():
        cells = [f"{row[name]:.4f}" if name in row else "" for name in shown.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    heads = [f"change in {name}" for name in COMPARED]
    lines += ["", f"| model | parameters | learning rate | {' | '.join(heads)} | p (Holm), NDCG@10 |"]
    lines.append(f"|---|---|---|{'---|' * len(COMPARED)}---|")
    for model, change in summary["changes"].items():
        cells = [
            f"{v['mean']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]"
            for v in (change["differences"][name] for name in COMPARED)
        ]
        rate = summary["learning_rates"][model]["chosen"]
        lines.append(
            f"| {NAMES[model]} | {summary['parameters'][model]:,} | {rate:g} | {' | '.join(cells)} | "
            f"{change['p_value_holm']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def draw(summary: dict[str, Any], path: Path) -> None:
    """For each model the way from without to with the principles: clicks, and obedience to both."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: matplotlib is not installed (pip install hf-rerank[plots])")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(summary["changes"])
    panels = {
        "expected_clicks": "expected clicks a list",
        "p1_item_obedience": "P1: items that keep their place",
        "p2_item_obedience": "P2: items that keep their place",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3.4), sharey=True)
    places = np.arange(len(models))[::-1]
    for axis, (measure, label) in zip(axes, panels.items(), strict=True):
        before, after = ([summary["rows"][f"{model} {preset}"][measure] for model in models] for preset in PRESETS)
        axis.hlines(places, [v["mean"] for v in before], [v["mean"] for v in after], color="lightgrey", linewidth=3)
        for values, name, colour in ((before, "without", "tab:grey"), (after, "with the principles", "tab:blue")):
            means, spreads = [v["mean"] for v in values], [v["std"] for v in values]
            axis.errorbar(means, places, xerr=spreads, fmt="o", color=colour, capsize=3, label=name)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    initial = summary["orders"]["initial"]["expected_clicks"]
    axes[0].axvline(initial, color="grey", linewidth=1, linestyle=":")
    axes[0].annotate("initial order", (initial, 1.0), xycoords=("data", "axes fraction"), fontsize=8, color="grey")
    axes[0].set_yticks(places, [NAMES[model] for model in models])
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=2, loc="upper right")
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"figure: {path}")


def _settings(objective: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in objective.items() if name != "principled"}


def _of(measured: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in measured]


def _path(folder: Path, model: str, preset: str, seed: int) -> Path:
    return folder / "runs" / f"{model}-{preset}-{seed}.json"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--format", choices=list(FORMATS), default="prm_public", help="of the raw files")
    parser.add_argument("--lists", type=int, help="simulated lists, all splits (default: 22,500; ad: 40,000)")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1, help="processes that make runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
