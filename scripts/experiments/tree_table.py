"""Re-rankers against tree models on logs with real features: the table, with intervals.

    python scripts/experiments/tree_table.py run --root /data/logs --work tree_runs --log clara2_display --seeds 0 1 2
    python scripts/experiments/tree_table.py table --root /data/logs --work tree_runs --scores tree_scores

``run`` trains each arm with the library's own trainer and its defaults, and keeps NDCG@10 of every test list.
``table`` compares arms: the mean over seeds of each list's NDCG, bootstrapped over groups of lists (queries, where a
log has several lists per query). The trees are the best of a grid on validation (``tree_baseline.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from tree_baseline import items, lengths_of, ndcg_by_list
from tree_logs import NAMES, Log, load

from hf_rerank.schema import Dense, ListSchema

BEFORE = {"per_device_train_batch_size": 256, "num_train_epochs": 10, "lr_scheduler_type": "linear", "warmup_steps": 0}
OLD_CONFIG = {"unknown_rate": 0.01}
# What each arm changes of the defaults of the library.
ARMS: dict[str, dict[str, Any]] = {
    "DNN": {"model": "dnn"},
    "PRM before": {"arguments": BEFORE, "config": OLD_CONFIG, "scale": "standard"},
    "PRM now": {},
    "PRM on top": {"on_top": True},
    "PRM now, softmax": {"config": {"task_loss": "softmax_loss"}},
    "PRM on top, softmax": {"on_top": True, "config": {"task_loss": "softmax_loss"}},
    "PRM now, relative features": {"config": {"relative_features": True}},
    "PRM now, standard scale": {"scale": "standard"},
    "PRM now, unknown rate 0.01": {"config": {"unknown_rate": 0.01}},
    "PRM now, before's schedule": {"arguments": BEFORE},
    "PRM on top, without relative features": {"on_top": True, "config": {"relative_features": False}},
    "PRM on top, score as a feature": {"on_top": True, "config": {"initial_score": "feature"}},
    "start alone": {"on_top": True, "untrained": True},
    "PRM on top, trees read the order": {"on_top": True, "with_position": True},
    "PRM on top, trees do not read the order": {"on_top": True, "with_position": False},
    "PRM on top, without order": {"on_top": True, "with_position": False, "config": {"position_input": "none"}},
    "PRM now, without order": {"config": {"position_input": "none"}},
    "PRM before, scaled": {"arguments": BEFORE, "config": OLD_CONFIG, "scale": "standard", "principled": "scaled"},
    "PRM now, scaled": {"principled": "scaled"},
    "PRM on top, scaled": {"on_top": True, "principled": "scaled"},
}
DRAWS = 4_000
# Trees that were learned already, by log, schema and whether they read the position.
TREES: dict[Any, Any] = {}


def schema_of(log: Log, scale: str) -> ListSchema:
    """The schema with every dense feature on one scale."""

    def changed(feature: Any) -> Any:
        return Dense(feature.name, scale=scale, missing=feature.missing) if isinstance(feature, Dense) else feature

    return log.schema.replace(items=[*map(changed, log.schema.items)], user=[*map(changed, log.schema.user)])


def run_arm(log: Log, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains one arm, and measures it on the test lists."""
    import torch
    from datasets import Dataset
    from transformers import set_seed

    from hf_rerank import Reranker
    from hf_rerank.commands.train import ON_TOP_LEARNING_RATE
    from hf_rerank.initial_rankers.on_top import fit_on_top
    from hf_rerank.models.auto import reranker_classes
    from hf_rerank.processing import ListProcessor
    from hf_rerank.training import RerankTrainer, RerankTrainingArguments, calibrate_initial_score

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options = ARMS[arm]
    schema = schema_of(log, options.get("scale", "quantile"))
    lists = {split: Dataset(table) for split, table in log.splits.items()}
    started = time.monotonic()
    processor = ListProcessor.from_lists(lists["train"], schema=schema)
    train, config, trees = lists["train"], dict(options.get("config", {})), None
    if items(log, "train", log.schema.label).max() > 1:
        config.setdefault("task_loss", "softmax_loss")  # grades
    if options.get("on_top"):
        # The trees are the same for all seeds; folds and trees of one's own per seed would cost most of the time.
        key = (log.name, schema, options.get("with_position"))
        if key not in TREES:
            TREES[key] = fit_on_top(processor, train, lists["validation"], with_position=key[2])
        on_top = TREES[key]
        processor, train, trees = on_top.processor, on_top.train, on_top.settings
        config = {"initial_score": "start", "relative_features": True, **config}
    tree_seconds = time.monotonic() - started
    config_class, model_class = reranker_classes(options.get("model", "prm"))
    made = config_class.for_schema(processor.schema, **config)
    if made.initial_score != "none":
        calibrate_initial_score(made, processor, train)
    set_seed(seed)
    arguments = RerankTrainingArguments(
        str(folder),
        seed=seed,
        principled=options.get("principled", "none"),
        no_click="skip",
        disable_tqdm=True,
        save_only_model=True,
        use_cpu=True,
        **({"learning_rate": ON_TOP_LEARNING_RATE} if options.get("on_top") else {}),
        **options.get("arguments", {}),
    )
    trainer = RerankTrainer(model_class(made), arguments, train, lists["validation"], processor)
    if not options.get("untrained"):
        trainer.train()
    reranker = Reranker(processor, trainer.model)
    rows = [lists["test"].with_format("arrow")[:]]
    scores = []
    for table in rows:
        for start in range(0, table.num_rows, 500):
            tensors = processor(table.slice(start, 500), return_tensors="np")
            logits = reranker.scorer.scores(
                {name: tensors[name] for name in tensors if name not in ("labels", "weights")}
            )
            scores.append(logits[tensors["mask"]])
    values = ndcg_by_list(np.concatenate(scores), items(log, "test", log.schema.label), lengths_of(log, "test"))
    obedience = trainer.evaluate(lists["validation"], metric_key_prefix="validation")
    return {
        "log": log.name,
        "arm": arm,
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "tree_seconds": round(tree_seconds, 1),
        "trees": trees,
        "validation": trainer.state.best_metric or obedience["validation_ndcg@10"],
        "curve": [row["eval_ndcg@10"] for row in trainer.state.log_history if "eval_ndcg@10" in row],
        "steps": trainer.state.global_step,
        "p1": obedience.get("validation_p1_item_obedience"),
        "p2": obedience.get("validation_p2_item_obedience"),
        "test": [None if np.isnan(value) else round(float(value), 6) for value in values],
    }


def run(args: argparse.Namespace) -> None:
    """Trains what is not there yet, seed by seed, so that all arms have as many seeds at any time."""
    args.work.mkdir(parents=True, exist_ok=True)
    logs = {name: load(name, args.root) for name in args.log}
    for seed in args.seeds:
        for name, log in logs.items():
            for arm in args.arm:
                path = args.work / f"{name}-{arm.replace(' ', '_').replace(',', '')}-{seed}.json"
                if path.exists():
                    continue
                folder = args.work / f"run-{os.getpid()}"  # processes may share the work folder
                shutil.rmtree(folder, ignore_errors=True)
                row = run_arm(log, arm, seed, folder)
                path.write_text(json.dumps(row))
                mean = np.nanmean([np.nan if value is None else value for value in row["test"]])
                print(
                    name,
                    arm,
                    seed,
                    row["seconds"],
                    "validation",
                    round(row["validation"], 4),
                    row["curve"],
                    flush=True,
                )
                if args.show_test:
                    print("   test", round(float(mean), 4), flush=True)


def latency(args: argparse.Namespace) -> None:
    """Milliseconds to rank one raw list, and 256 of them, with and without trees; PyTorch and ONNX Runtime."""
    import tempfile

    import torch
    from datasets import Dataset

    from hf_rerank import Reranker
    from hf_rerank.inference.export import export_onnx
    from hf_rerank.initial_rankers.on_top import fit_on_top
    from hf_rerank.models.prm import PRMConfig, PRMForReranking
    from hf_rerank.processing import ListProcessor

    torch.set_num_threads(1)
    log = load("simulated", args.root)
    lists = {split: Dataset(table) for split, table in log.splits.items()}
    plain = ListProcessor.from_lists(lists["train"], schema=schema_of(log, "quantile"))
    found = fit_on_top(plain, lists["train"].select(range(2000)), lists["validation"])
    rows = lists["test"].select(range(256)).remove_columns("click").to_list()
    measured: dict[str, Any] = {"trees": {name: found.settings[name] for name in ("trees", "leaves")}}
    measured["items"] = float(np.mean([len(row["hotel"]) for row in rows]))
    for name, processor, options in (
        ("PRM", plain, {}),
        ("PRM, relative features", plain, {"relative_features": True}),
        ("PRM on top", found.processor, {"initial_score": "start", "relative_features": True}),
    ):
        reranker = Reranker(processor, PRMForReranking(PRMConfig.for_schema(processor.schema, **options)))
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(reranker, folder)
            for engine, ranks in (("torch", reranker), ("onnx", Reranker.from_pretrained(folder))):
                measured[f"{name}, {engine}"] = {
                    "one list": _median(ranks, rows[:1], 200),
                    "256 lists": _median(ranks, rows, 8),
                }
                print(name, engine, measured[f"{name}, {engine}"], flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(measured, indent=1) + "\n")


def _median(reranker: Any, rows: list[Any], times: int) -> float:
    """Milliseconds of processor time of one call, which a busy machine hardly changes."""
    seconds = []
    for _ in range(times):
        started = time.process_time()
        reranker.rerank(rows)
        seconds.append(time.process_time() - started)
    return round(1000 * float(np.median(seconds)), 3)


def table(args: argparse.Namespace) -> None:
    """Writes means and paired intervals, and prints them as Markdown."""
    summary: dict[str, Any] = {"draws": DRAWS, "logs": {}}
    for name in args.log:
        log = load(name, args.root)
        labels, lengths = items(log, "test", log.schema.label), lengths_of(log, "test")
        rows: dict[str, np.ndarray] = {}
        kept = np.load(args.scores / f"{name}.npz")
        for row in dict.fromkeys(entry.split("/")[0] for entry in kept.files):
            rows[row] = ndcg_by_list(kept[f"{row}/test"], labels, lengths)
        facts: dict[str, Any] = {}
        for arm in ARMS:
            found = [
                json.loads(path.read_text())
                for path in sorted(args.work.glob(f"{name}-{arm.replace(' ', '_').replace(',', '')}-[0-9]*.json"))
            ]
            if found:
                rows[arm] = np.mean([np.array(row["test"], dtype=float) for row in found], axis=0)
                by_seed = [float(np.nanmean(np.array(row["test"], dtype=float))) for row in found]
                facts[arm] = {"seeds": len(found), "by_seed": [round(value, 4) for value in by_seed]}
                for measure in ("p1", "p2", "seconds", "tree_seconds"):
                    values = [row[measure] for row in found if row[measure] is not None]
                    facts[arm][measure] = round(float(np.mean(values)), 4) if values else None
        groups = log.splits["test"].column(log.group).to_pylist()
        best = best_tree(args, name, kept, log)
        summary["logs"][name] = {
            "lists": int(np.isfinite(rows["logged order"]).sum()),
            "tuned trees": best,
            "rows": {},
        }
        print(f"\n{name}: {summary['logs'][name]['lists']} test lists with a click; tuned trees: {best}\n")
        print("| | NDCG@10 | minus tuned trees | minus the same trees with the position |\n|---|---|---|---|")
        for row, values in rows.items():
            entry = {"ndcg@10": round(float(np.nanmean(values)), 4), **facts.get(row, {})}
            for which, base in best.items():
                if base != row:
                    entry[f"minus {which}"] = interval(values - rows[base], groups)
            summary["logs"][name]["rows"][row] = entry
            cells = [show(entry.get(f"minus {which}")) for which in ("trees", "trees + position")]
            print(f"| {row} ({entry.get('seeds', 1)}) | {entry['ndcg@10']:.4f} | {cells[0]} | {cells[1]} |")
        if "PRM now" in rows and "PRM before" in rows:
            summary["logs"][name]["now minus before"] = interval(rows["PRM now"] - rows["PRM before"], groups)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(summary, indent=1) + "\n")


def best_tree(args: argparse.Namespace, name: str, kept: Any, log: Log) -> dict[str, str]:
    """The objective that is best on validation, without and with the position as a feature."""
    labels, lengths = items(log, "validation", log.schema.label), lengths_of(log, "validation")
    values = {
        row: float(np.nanmean(ndcg_by_list(kept[f"{row}/validation"], labels, lengths)))
        for row in dict.fromkeys(entry.split("/")[0] for entry in kept.files)
        if row.split(" ")[0] in ("lambdarank", "rank_xendcg", "binary")
    }
    found = {}
    for which, with_position in (("trees", False), ("trees + position", True)):
        chosen = {row: value for row, value in values.items() if row.endswith("+ position") == with_position}
        if chosen:
            found[which] = max(chosen, key=lambda row: chosen[row])
    return found


def interval(difference: np.ndarray, groups: list[Any], seed: int = 0) -> list[float]:
    """Mean, and the 95 % interval of a bootstrap over groups."""
    there = np.isfinite(difference)
    numbers = np.unique([str(group) for group in groups], return_inverse=True)[1][there]
    sums = np.bincount(numbers, difference[there])
    counts = np.bincount(numbers).astype(float)
    sums, counts = sums[counts > 0], counts[counts > 0]
    draw = np.random.default_rng(seed)
    chosen = draw.integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    return [round(float(value), 4) for value in (difference[there].mean(), *np.quantile(means, [0.025, 0.975]))]


def show(entry: list[float] | None) -> str:
    return "" if entry is None else f"{entry[0]:+.4f} [{entry[1]:+.4f}, {entry[2]:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "latency"))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--log", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--arm", nargs="+", choices=list(ARMS), default=["PRM on top", "PRM now", "PRM before"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--scores", type=Path, help="folder of the scores that tree_baseline.py kept")
    parser.add_argument("--show-test", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    {"run": run, "table": table, "latency": latency}[args.what](args)


if __name__ == "__main__":
    main()
