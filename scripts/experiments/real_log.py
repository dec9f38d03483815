"""Principled learning on a real log, CLARA 2, in three initial orders that depend differently on the display order.

    python scripts/experiments/real_log.py --root LOGS --output-dir RUNS --seeds 5
    python scripts/experiments/real_log.py --summary RUNS --root LOGS
    python scripts/experiments/real_log.py --write-lists LISTS --root LOGS   # for hf-rerank compare --data LISTS/trees

``LOGS/clara2`` contains the lists of a public web search log, which is not part of this project. The same lists come
in three initial orders:

- ``trees``: a LambdaMART trained on other lists, without the features that reveal where a document was shown. The
  protocol of the paper.
- ``trees_display``: the same trees with the display position and those features.
- ``display``: the order in which the clicks were logged.

PRM has the defaults of ``hf-rerank train`` and its dense features on the ``quantile`` scale. A run is one (order, arm,
seed), stored as one JSON file and not repeated; the model without order is the same for every initial order and is
trained once per seed. Runs with the same seed share initial weights and batches. Labels are logged clicks, which in
display order carry position bias: a drop in NDCG may be a smaller bias. ``results/real_log/`` gets only the numbers;
the files of the runs are in its folder ``cells``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from runs import finish, per_list, train
from tree_baseline import flat, lengths_of
from tree_logs import COMPARE, SPLITS, Log, load
from tree_table import schema_of

from hf_rerank.evaluation.comparing import bootstrap_interval, holm, t_interval

RESULTS = Path(__file__).parent / "results" / "real_log"
ORDERS = {
    "trees": "trees that do not see the display order",
    "trees_display": "trees that see the display order",
    "display": "display order",
}
# Arm -> preset and weights; without weights, those of the preset.
ARMS: dict[str, tuple[str, dict[str, float]]] = {
    "none": ("none", {}),
    "no_order": ("none", {}),
    "augmented": ("augmented", {}),
    "augmentation": ("augmentation", {}),
    "scaled": ("scaled", {}),
    "scaled_x10": ("scaled", {"convergence_weight": 20.0, "adversarial_weight": 5.0}),
    "paper": ("paper", {}),
}
NAMES = {
    "none": "PRM",
    "no_order": "PRM without order",
    "scaled": "PRM + principles (`scaled`)",
    "augmented": "PRM + principles",
    "augmentation": "PRM + augmentation",
    "scaled_x10": "PRM + principles, ten times the weights",
    "paper": "PRM + literal formula (`paper`)",
}
TREES = {
    "objective": "lambdarank",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}
ROUNDS = 150
MEASURES = ("ndcg@10", "gauc", "auc", "p1_obedience@5", "p2_obedience@5", "score_spread")


def load_order(root: Path, order: str) -> Log:
    """Loads the log with one of the three initial orders as its ``position``."""
    if order != "trees_display":
        return load({"trees": "clara2_lambdamart", "display": "clara2_display"}[order], root)
    log = load("clara2_display", root)
    booster = _fit_trees(log)
    for split in SPLITS:
        scores = booster.predict(flat(log, split, ids=False, position=True)[0], num_threads=1)
        log.splits[split] = _add_positions(log.splits[split], scores, lengths_of(log, split))
    log.schema = log.schema.replace(position="position_trees_display")
    return log


def write_lists(folder: Path, root: Path) -> None:
    """Writes one folder of prepared lists per initial order, for ``hf-rerank compare`` and ``hf-rerank tune``."""
    for order in ORDERS:
        log = load_order(root, order)
        (folder / order).mkdir(parents=True, exist_ok=True)
        schema_of(log, "quantile").save(folder / order / "schema.json")
        for split in SPLITS:
            pq.write_table(log.splits[split], folder / order / f"{split}-00000-of-00001.parquet")


def _fit_trees(log: Log) -> Any:
    """Fits LambdaMART on the lists of the initial ranker, on which no re-ranker is trained or evaluated."""
    import lightgbm

    features, categories = flat(log, COMPARE, ids=False, position=True)
    labels = np.concatenate(log.splits[COMPARE].column(log.schema.label).to_pylist())
    data = lightgbm.Dataset(features, labels, group=lengths_of(log, COMPARE), categorical_feature=categories)
    return lightgbm.train(TREES, data, ROUNDS)


def _add_positions(table: pa.Table, scores: np.ndarray, lengths: np.ndarray) -> pa.Table:
    """Appends ``position_trees_display``: 0 for the largest score of a list."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-scores, owner))
    positions = np.empty(len(scores), dtype=np.int64)
    positions[order] = np.arange(len(scores)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())
    return table.append_column("position_trees_display", pa.ListArray.from_arrays(offsets, pa.array(positions)))


def run(path: Path, root: Path, order: str, arm: str, seed: int) -> dict[str, Any]:
    """Trains one arm and evaluates it on the test lists; NDCG@10 per list, None for a list without a click."""
    import shutil

    import datasets

    from hf_rerank.evaluation import evaluate
    from hf_rerank.processing import ListProcessor

    log = load_order(root, order)
    schema = schema_of(log, "quantile")
    lists = {split: datasets.Dataset(log.splits[split]) for split in SPLITS}
    processor = ListProcessor.from_lists(lists["train"], schema=schema)
    preset, weights = ARMS[arm]
    folder = path.with_suffix("")
    trainer = train(
        folder,
        lists,
        processor,
        model="prm",
        seed=seed,
        config={"position_input": "none"} if arm == "no_order" else {},
        principled=preset,
        principled_kwargs=weights,
        no_click="skip",
        save_only_model=True,
        use_cpu=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    measured = evaluate(trainer.model, processor, lists["test"])
    ndcg = per_list(trainer.model, processor, lists["test"])["ndcg@10"]
    clicked = [any(labels) for labels in lists["test"][schema.label]]
    return {
        "order": order,
        "arm": arm,
        "seed": seed,
        "test": {name: measured[name] for name in MEASURES},
        "ndcg@10": [round(float(value), 6) if click else None for value, click in zip(ndcg, clicked, strict=True)],
    }


def summarise(folder: Path, root: Path) -> dict[str, Any]:
    """Computes, per order and arm, means over seeds, and differences from ``none`` over seeds and over queries."""
    runs = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    for found in runs.values():  # over the lists with a click, as in the other tables of real logs
        found["test"]["ndcg@10"] = float(np.mean([value for value in found["ndcg@10"] if value is not None]))
    if not runs:
        raise SystemExit(f"{folder} has no runs (*.json): give the folder of --output-dir")
    queries = load("clara2_display", root).splits["test"].column("query").to_pylist()
    rows: list[dict[str, Any]] = []
    for order in ORDERS:
        seeds = sorted(r["seed"] for r in runs.values() if (r["order"], r["arm"]) == (order, "none"))
        if not seeds:
            continue
        base = [runs[f"{order}-none-{seed}"] for seed in seeds]
        rows.append(_logged(order, root))
        for arm in ARMS:
            # The model without order is trained once per seed, on the lists in display order.
            names = [f"{'display' if arm == 'no_order' else order}-{arm}-{seed}" for seed in seeds]
            if not all(name in runs for name in names):
                continue
            found = [runs[name] for name in names]
            row: dict[str, Any] = {"order": order, "arm": arm, "seeds": len(seeds)}
            row |= {name: float(np.mean([r["test"][name] for r in found])) for name in MEASURES}
            if arm != "none":
                for name in ("ndcg@10", "gauc", "auc"):
                    pairs = zip(found, base, strict=True)
                    row[f"{name} - none"] = vars(t_interval([a["test"][name] - b["test"][name] for a, b in pairs]))
                row["ndcg@10 - none, queries"] = vars(_over_queries(found, base, queries))
            rows.append(row)
    tested = [row for row in rows if "ndcg@10 - none" in row]
    for row, p in zip(tested, holm([row["ndcg@10 - none"]["p_value"] for row in tested]), strict=True):
        row["p_holm"] = p
    return {"rows": rows}


def _logged(order: str, root: Path) -> dict[str, Any]:
    """Returns the NDCG@10 of the initial order itself."""
    from tree_baseline import mean_ndcg, score_logged_order

    log = load_order(root, order)
    return {"order": order, "arm": "initial", "ndcg@10": mean_ndcg(log, "test", score_logged_order(log, "test"))}


def _over_queries(found: list[dict[str, Any]], base: list[dict[str, Any]], queries: list[Any]) -> Any:
    one, other = (np.mean([np.array(r["ndcg@10"], dtype=float) for r in results], axis=0) for results in (found, base))
    clicked = ~np.isnan(one)
    return bootstrap_interval((one - other)[clicked], [query for query, c in zip(queries, clicked, strict=True) if c])


def as_markdown(summary: dict[str, Any]) -> str:
    heads = ["initial order", "", "NDCG@10", "GAUC", "change in NDCG@10", "over queries", "p (Holm)"]
    heads += ["change in GAUC", "P1@5", "P2@5"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in summary["rows"]:
        initial = row["arm"] == "initial"
        cells = [ORDERS[row["order"]], "the order itself" if initial else NAMES[row["arm"]], f"{row['ndcg@10']:.4f}"]
        cells.append("" if initial else f"{row['gauc']:.4f}")
        cells += [_spell(row.get("ndcg@10 - none")), _spell(row.get("ndcg@10 - none, queries"))]
        cells += [f"{row['p_holm']:.3f}" if "p_holm" in row else "", _spell(row.get("gauc - none"))]
        cells += [f"{row[name]:.2f}" if name in row else "" for name in ("p1_obedience@5", "p2_obedience@5")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spell(interval: dict[str, Any] | None) -> str:
    return "" if interval is None else f"{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, type=Path, help="folder that contains clara2")
    parser.add_argument("--output-dir", type=Path, help="train the missing runs in this folder")
    parser.add_argument("--summary", type=Path, metavar="RUNS", help="make the tables of the runs in this folder")
    parser.add_argument("--write-lists", type=Path, metavar="LISTS", help="write the lists of each initial order here")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if not (options.output_dir or options.summary or options.write_lists):
        parser.error("nothing to do: give --output-dir to train, --summary to make the tables, or --write-lists")
    if not (options.root / "clara2").is_dir():
        parser.error(f"--root {options.root} has no folder clara2 with the lists of the log")
    if options.write_lists:
        write_lists(options.write_lists, options.root)
    if options.output_dir:
        cells = [
            (order, arm, seed)
            for seed in range(options.seeds)
            for arm in options.arms
            for order in (["display"] if arm == "no_order" else ORDERS)
        ]
        wanted = [(options.output_dir / f"{'-'.join(map(str, cell))}.json", (options.root, *cell)) for cell in cells]
        finish(wanted, run, options.workers)
    if options.summary:
        from hf_rerank.storage import write_json

        summary = summarise(options.summary, options.root)
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_json(RESULTS / "summary.json", summary)
        (RESULTS / "summary.md").write_text(as_markdown(summary))
        print(as_markdown(summary))


if __name__ == "__main__":
    main()
