"""What principled learning changes: PRM with and without the principles, beside the DNN, over seeds.

    python scripts/experiments/principles.py --data LISTS --output-dir RESULTS --seeds 5

Every run is one (row, seed): trained on ``train``, its best epoch chosen on ``validation`` by NDCG@10, measured once
on ``test``. Rows of one seed share data, initial weights and batch order, so that differences are paired. A run that
is already in RESULTS is not repeated: an interrupted experiment goes on where it was. RESULTS gets
``runs/ROW-SEED.json``, ``summary.json`` and, with matplotlib, ``principles.png``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

# Row -> (model, preset of principled learning, options of the config). A PRM that is not shown the order obeys both
# principles by construction: what it loses against PRM is what the order is worth to the model.
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "DNN": ("dnn", "none", {}),
    "PRM": ("prm", "none", {}),
    "PRM + principles": ("prm", "scaled", {}),
    "PRM + literal formula": ("prm", "paper", {}),
    "PRM without order": ("prm", "none", {"position_input": "none"}),
}
# Chosen on the validation lists of the base PRM. Without dropout, as in the committed results; ``--dropout`` sets it.
PRM_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64}
MODEL_OPTIONS: dict[str, dict[str, Any]] = {"dnn": {"hidden_sizes": [200, 80]}, "prm": PRM_SIZES}
COMPARISONS = (
    ("PRM", "DNN"),
    ("PRM + principles", "PRM"),
    ("PRM + literal formula", "PRM"),
    ("PRM + principles", "PRM + literal formula"),
    ("PRM without order", "PRM"),
    ("PRM + principles", "PRM without order"),
)
MEASURES = (
    "ndcg@10",
    "expected_clicks",
    "expected_clicks_share",
    "auc",
    "gauc",
    "map@10",
    "precision@5",
    "p1_obedience",
    "p1_item_obedience",
    "p1_obedience@5",
    "p2_obedience",
    "p2_item_obedience",
    "p2_obedience@5",
    "fixed_point_rate",
    "score_spread",
)


def main() -> None:
    options = _options()
    from hf_rerank.evaluation.tables import results_table

    rows = {name: ROWS[name] for name in options.rows}
    (options.output_dir / "runs").mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
    experiment = Experiment(options)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name, (model, preset, changes) in rows.items():
            path = options.output_dir / "runs" / f"{_file_name(name)}-{seed}.json"
            if not path.is_file():
                print(f"{name}, seed {seed}", flush=True)
                experiment.run(path, model, preset, changes, seed)
            runs[name].append(json.loads(path.read_text()))
    summary = summarise(experiment.reference_rows(), runs)
    summary["bootstrap"] = experiment.bootstrap(list(rows), summary["seeds"])
    (options.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (options.output_dir / "summary.md").write_text(as_markdown(summary))
    print()
    print(results_table({name: _means(row) for name, row in summary["rows"].items()}))
    _print_differences(summary)
    if options.seeds > 1:
        draw(summary, options.output_dir / "principles.png")


class Experiment:
    """The lists, their processor, and how one run is made."""

    def __init__(self, options: argparse.Namespace) -> None:
        from hf_rerank import ListProcessor, load_lists

        self.options = options
        self.lists = load_lists(options.data)
        self.processor = ListProcessor.from_lists(self.lists["train"], schema=self.lists.schema)

    def run(self, path: Path, model_name: str, preset: str, changes: dict[str, Any], seed: int) -> None:
        """Trains one row with one seed, measures it on the test lists and writes the result."""
        from runs import per_list, train
        from safetensors.numpy import save_file

        from hf_rerank.evaluation import evaluate
        from hf_rerank.storage import write_json

        folder = path.with_suffix("")
        trainer = train(
            folder,
            self.lists,
            self.processor,
            model=model_name,
            seed=seed,
            config={**MODEL_OPTIONS[model_name], "hidden_dropout_prob": self.options.dropout, **changes},
            progress=self.options.progress,
            principled=preset,
            num_train_epochs=self.options.epochs,
            learning_rate=self.options.learning_rate,
            per_device_train_batch_size=self.options.batch_size,
            save_total_limit=1,
            save_only_model=True,
        )
        test = evaluate(trainer.model, self.processor, self.lists["test"])
        trainer.results["evaluations"]["test"] = test
        trainer.save_model(str(folder))
        save_file(per_list(trainer.model, self.processor, self.lists["test"]), folder / "per_list.safetensors")
        write_json(path, {**trainer.results, "test": test})

    def bootstrap(self, rows: list[str], seeds: list[int]) -> dict[str, Any]:
        """Intervals of the differences over the users of the test lists, each list's difference a mean over seeds."""
        from paired import bootstrap_over_users
        from safetensors.numpy import load_file

        users = self.lists["test"][self.lists.schema.group][:]
        found: dict[str, list[dict[str, np.ndarray]]] = {
            row: [
                load_file(self.options.output_dir / "runs" / f"{_file_name(row)}-{seed}" / "per_list.safetensors")
                for seed in seeds
            ]
            for row in rows
        }
        return {
            f"{one} - {other}": {
                measure: bootstrap_over_users(
                    np.mean([a[measure] - b[measure] for a, b in zip(found[one], found[other], strict=True)], axis=0),
                    users,
                )
                for measure in found[one][0]
            }
            for one, other in COMPARISONS
            if one in rows and other in rows
        }

    def reference_rows(self) -> dict[str, dict[str, float]]:
        """Random, initial order and, where known, the order by true attraction."""
        from hf_rerank.evaluation import evaluate_orders

        rows = evaluate_orders(self.processor, self.lists["test"])
        labels = {"random": "random", "initial": "initial order", "true_attraction": "order by true attraction"}
        return {labels[name]: row for name, row in rows.items()}


def summarise(references: dict[str, dict[str, float]], runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over seeds and paired differences, as plain values."""
    from paired import mean_and_spread, paired_interval

    rows: dict[str, Any] = {}
    for name, row in references.items():
        if name != "order by true attraction":
            rows[name] = {measure: {"mean": row[measure], "std": 0.0} for measure in MEASURES if measure in row}
    for name, results in runs.items():
        rows[name] = {
            measure: mean_and_spread([result["test"][measure] for result in results])
            for measure in MEASURES
            if measure in results[0]["test"]
        }
        rows[name]["seconds"] = mean_and_spread([result["training"]["seconds"] for result in results])
    if "order by true attraction" in references:
        row = references["order by true attraction"]
        rows["order by true attraction"] = {m: {"mean": row[m], "std": 0.0} for m in MEASURES if m in row}
    differences = {}
    for one, other in COMPARISONS:
        if one not in runs or other not in runs:
            continue
        differences[f"{one} - {other}"] = {
            measure: paired_interval(
                [result["test"][measure] for result in runs[one]], [result["test"][measure] for result in runs[other]]
            )
            for measure in MEASURES
            if measure in runs[one][0]["test"]
        }
    first = next(iter(runs.values()))[0]
    return {
        "rows": rows,
        "differences": differences,
        "seeds": [result["training_arguments"]["seed"] for result in next(iter(runs.values()))],
        "settings": first["test"]["settings"],
        "data": first["data"],
        "environment": first["environment"],
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """The table of rows and the table of differences, to paste into a page."""
    from hf_rerank.evaluation.tables import RESULT_COLUMNS

    every = summary["rows"].values()
    shown = {heading: name for heading, name in RESULT_COLUMNS.items() if any(name in row for row in every)}
    lines = [f"| | {' | '.join(shown)} |", f"|---|{'---|' * len(shown)}"]
    for label, row in summary["rows"].items():
        cells = [f"{row[name]['mean']:.4f}" if name in row else "" for name in shown.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if len(summary["seeds"]) < 2:
        return "\n".join(lines) + "\n"
    compared = ["ndcg@10", "expected_clicks", "p1_obedience@5", "p1_item_obedience", "p2_obedience"]
    compared = [name for name in compared if name in next(iter(summary["differences"].values()))]
    lines += ["", f"| difference | {' | '.join(compared)} |", f"|---|{'---|' * len(compared)}"]
    for label, measures in summary["differences"].items():
        cells = [f"{v['mean']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]" for v in map(measures.get, compared)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(summary: dict[str, Any], path: Path) -> None:
    """Quality against obedience, one point a row, bars of one standard deviation over seeds."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: matplotlib is not installed (pip install hf-rerank[plots])")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    shown = [name for name in summary["rows"] if "p1_item_obedience" in summary["rows"][name]]
    quality = "expected_clicks" if "expected_clicks" in summary["rows"][shown[0]] else "ndcg@10"
    for axis, measure, label in zip(
        axes,
        ("p1_item_obedience", "p2_item_obedience"),
        ("items that keep their place, shown the model's own order", "items that keep their place after a swap"),
        strict=True,
    ):
        for name in shown:
            row = summary["rows"][name]
            axis.errorbar(
                row[measure]["mean"],
                row[quality]["mean"],
                xerr=row[measure]["std"],
                yerr=row[quality]["std"],
                fmt="o",
                capsize=3,
                label=name,
            )
        initial = summary["rows"]["initial order"][quality]["mean"]
        axis.axhline(initial, color="grey", linewidth=1, linestyle=":")
        axis.annotate("initial order", (0.02, initial), xycoords=("axes fraction", "data"), va="bottom", color="grey")
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel({"expected_clicks": "expected clicks a list", "ndcg@10": "NDCG@10"}[quality])
    axes[1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"\nfigure: {path}")


def _print_differences(summary: dict[str, Any]) -> None:
    from hf_rerank.evaluation.tables import text_table

    if len(summary["seeds"]) < 2:
        return
    for name, measures in summary["differences"].items():
        print(f"\n{name}: mean difference over {len(summary['seeds'])} seeds, 95 % interval")
        body = [
            [measure, f"{value['mean']:+.4f}", f"[{value['low']:+.4f}, {value['high']:+.4f}]"]
            for measure, value in measures.items()
        ]
        body += [
            [f"{measure}, over users", f"{value['mean']:+.4f}", f"[{value['low']:+.4f}, {value['high']:+.4f}]"]
            for measure, value in summary["bootstrap"][name].items()
        ]
        print(text_table(["measure", "difference", "interval"], body))


def _means(row: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: value["mean"] for name, value in row.items()}


def _file_name(row: str) -> str:
    return row.lower().replace(" + ", "-").replace(" ", "-")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of prepared lists")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--progress", action="store_true", help="show the trainer's log and bars")
    return parser.parse_args()


if __name__ == "__main__":
    main()
