"""Re-rankers against tree models on logs with real features: the table, with intervals.

    python scripts/experiments/tree_table.py run --root /data/logs --work tree_runs --log clara2_display --seeds 0 1 2
    python scripts/experiments/tree_table.py table --root /data/logs --work tree_runs --scores tree_scores
    python scripts/experiments/tree_table.py show

``run`` trains each arm with the library's own trainer and its defaults, and stores the NDCG@10 of every test list.
``table`` compares arms: the mean over seeds of each list's NDCG, bootstrapped over groups of lists (queries, if a log
has several lists per query). The trees are the best of a grid on validation (``tree_baseline.py``). It writes
``results/trees/summary.json``. ``show`` needs no lists: it makes ``results/trees/summary.md`` from the JSON files
there.
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
THREE, FIVE = {"num_train_epochs": 3}, {"num_train_epochs": 5}
NOW, ON_TOP = "PRM now", "PRM on top"
NOW_THREE, ON_TOP_THREE = "PRM (3 epochs)", "PRM on top (3 epochs)"
# The options of each arm that differ from the defaults of ``hf-rerank train``.
ARMS: dict[str, dict[str, Any]] = {
    "PRM before": {"arguments": BEFORE, "config": OLD_CONFIG, "scale": "standard"},
    NOW_THREE: {"arguments": THREE},
    ON_TOP_THREE: {"arguments": THREE, "on_top": True},
    f"{NOW}, without order": {"config": {"position_input": "none"}},
    f"{ON_TOP}, without order": {"on_top": True, "with_position": False, "config": {"position_input": "none"}},
    "DNN": {"arguments": FIVE, "model": "dnn"},
    NOW: {"arguments": FIVE},
    f"{NOW}, softmax": {"arguments": FIVE, "config": {"task_loss": "softmax_loss"}},
    f"{NOW}, relative features": {"arguments": FIVE, "config": {"relative_features": True}},
    f"{NOW}, standard scale": {"arguments": FIVE, "scale": "standard"},
    f"{NOW}, unknown rate 0.01": {"arguments": FIVE, "config": {"unknown_rate": 0.01}},
    f"{NOW}, scaled": {"arguments": FIVE, "principled": "scaled"},
    ON_TOP: {"arguments": FIVE, "on_top": True},
    f"{ON_TOP}, softmax": {"arguments": FIVE, "on_top": True, "config": {"task_loss": "softmax_loss"}},
    f"{ON_TOP}, without relative features": {
        "arguments": FIVE,
        "on_top": True,
        "config": {"relative_features": False},
    },
    f"{ON_TOP}, score as a feature": {"arguments": FIVE, "on_top": True, "config": {"initial_score": "feature"}},
    f"{ON_TOP}, trees read the order": {"arguments": FIVE, "on_top": True, "with_position": True},
    f"{ON_TOP}, trees do not read the order": {"arguments": FIVE, "on_top": True, "with_position": False},
    f"{ON_TOP}, untrained": {"on_top": True, "untrained": True},
    f"{ON_TOP}, scaled": {"arguments": FIVE, "on_top": True, "principled": "scaled"},
    "PRM before, scaled": {"arguments": BEFORE, "config": OLD_CONFIG, "scale": "standard", "principled": "scaled"},
}
# The arm that each arm is compared with, besides the trees.
BASES = {
    **{arm: base for base in (NOW, ON_TOP) for arm in ARMS if arm.startswith(f"{base}, ")},
    NOW_THREE: NOW,
    ON_TOP_THREE: ON_TOP,
    "PRM before": NOW,
    "PRM before, scaled": "PRM before",
    ON_TOP: NOW,
}
TITLES = {
    "simulated": "simulated",
    "clara2_display": "CLARA 2, display order",
    "clara2_lambdamart": "CLARA 2, LambdaMART order",
    "lightgbm": "LightGBM's example",
}
ROWS = {
    "logged order": "logged order",
    "logistic regression": "logistic regression",
    "trees": "tuned trees",
    "trees + position": "tuned trees that read the position",
    "DNN": "DNN",
    "PRM before": "PRM, earlier defaults",
    NOW: "PRM",
    NOW_THREE: "PRM, 3 epochs",
    ON_TOP: "PRM on top of trees",
    ON_TOP_THREE: "PRM on top of trees, 3 epochs",
}
RESULTS = Path(__file__).parent / "results" / "trees"
DRAWS = 4_000
# Cache of trained trees by log, schema and whether they read the position.
TREES: dict[Any, Any] = {}


def schema_of(log: Log, scale: str) -> ListSchema:
    """Returns the schema with every dense feature on one scale."""

    def changed(feature: Any) -> Any:
        return Dense(feature.name, scale=scale, missing=feature.missing) if isinstance(feature, Dense) else feature

    return log.schema.replace(items=[*map(changed, log.schema.items)], user=[*map(changed, log.schema.user)])


def run_arm(log: Log, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains one arm, and evaluates it on the test lists."""
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
        # The trees are the same for all seeds; separate folds and trees per seed would take most of the time.
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
    """Trains the missing runs, seed by seed, so that all arms have about the same number of seeds at any time."""
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
    """Measures the milliseconds to rank one raw list and 256, with and without trees; PyTorch and ONNX Runtime."""
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
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "latency.json").write_text(json.dumps(measured, indent=1) + "\n")


def _median(reranker: Any, rows: list[Any], times: int) -> float:
    """Returns milliseconds of processor time per call, which a busy machine hardly affects."""
    seconds = []
    for _ in range(times):
        started = time.process_time()
        reranker.rerank(rows)
        seconds.append(time.process_time() - started)
    return round(1000 * float(np.median(seconds)), 3)


def table(args: argparse.Namespace) -> None:
    """Writes means and paired intervals of each log as JSON."""
    path = args.results / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    summary |= {"draws": DRAWS, "logs": summary.get("logs", {})}
    for name in args.log:
        log = load(name, args.root)
        labels, lengths = items(log, "test", log.schema.label), lengths_of(log, "test")
        kept = np.load(args.scores / f"{name}.npz")
        rows = {
            row: ndcg_by_list(kept[f"{row}/test"], labels, lengths)
            for row in dict.fromkeys(entry.split("/")[0] for entry in kept.files)
        }
        groups = log.splits["test"].column(log.group).to_pylist()
        best = best_tree(kept, log)
        found: dict[str, Any] = {
            "lists": int(np.isfinite(rows["logged order"]).sum()),
            "groups": len(set(np.array(groups, dtype=str)[np.isfinite(rows["logged order"])])),
            "tuned trees": best,
            "reference": max(best, key=lambda which: mean_of_validation(best[which], kept, log)),
            "rows": {row: {"ndcg@10": mean_of(values)} for row, values in rows.items()},
        }
        runs = {arm: runs_of(args.work, name, arm) for arm in ARMS}
        runs = {arm: by_seed for arm, by_seed in runs.items() if by_seed}
        for arm, by_seed in runs.items():
            rows[arm] = np.mean([values_of(run) for run in by_seed.values()], axis=0)
            found["rows"][arm] = facts_of(by_seed) | {"ndcg@10": mean_of(rows[arm])}
            base, seeds = BASES.get(arm), sorted(by_seed)
            if base in runs and (seeds := sorted(set(by_seed) & set(runs[base]))):
                difference = np.mean(
                    [values_of(by_seed[seed]) - values_of(runs[base][seed]) for seed in seeds], axis=0
                )
                found["rows"][arm]["ablation"] = {
                    "base": base, "seeds": len(seeds), "minus base": interval(difference, groups)
                }  # fmt: skip
        for row, values in rows.items():
            for which, tree in best.items():
                if tree != row:
                    found["rows"][row][f"minus {which}"] = interval(values - rows[tree], groups)
        summary["logs"][name] = found
        print(name, json.dumps(found["tuned trees"]), flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n")


def runs_of(work: Path, log: str, arm: str) -> dict[int, dict[str, Any]]:
    """Seed -> the result stored by ``run``."""
    paths = work.glob(f"{log}-{arm.replace(' ', '_').replace(',', '')}-[0-9]*.json")
    found = [json.loads(path.read_text()) for path in sorted(paths)]
    return {run["seed"]: run for run in found}


def values_of(run: dict[str, Any]) -> np.ndarray:
    """Returns the NDCG@10 of each test list, NaN without a click."""
    return np.array(run["test"], dtype=float)


def mean_of(values: np.ndarray) -> float:
    """Computes the mean over lists with a click."""
    return round(float(np.nanmean(values)), 4)


def facts_of(by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Returns the facts about an arm that the table shows besides its quality."""
    found: dict[str, Any] = {
        "seeds": len(by_seed),
        "by_seed": [mean_of(values_of(run)) for run in by_seed.values()],
    }
    for measure in ("p1", "p2", "seconds", "tree_seconds"):
        values = [run[measure] for run in by_seed.values() if run[measure] is not None]
        found[measure] = round(float(np.mean(values)), 4) if values else None
    trees = next(iter(by_seed.values()))["trees"]
    return found | ({"trees": {name: trees[name] for name in ("trees", "leaves", "with_position")}} if trees else {})


def best_tree(kept: Any, log: Log) -> dict[str, str]:
    """Finds the objective that is best on validation, without and with the position as a feature."""
    values = {
        row: mean_of_validation(row, kept, log)
        for row in dict.fromkeys(entry.split("/")[0] for entry in kept.files)
        if row.split(" ")[0] in ("lambdarank", "rank_xendcg", "binary")
    }
    found = {}
    for which, with_position in (("trees", False), ("trees + position", True)):
        chosen = {row: value for row, value in values.items() if row.endswith("+ position") == with_position}
        if chosen:
            found[which] = max(chosen, key=lambda row: chosen[row])
    return found


def mean_of_validation(row: str, kept: Any, log: Log) -> float:
    """Returns the validation NDCG@10 by which trees are selected."""
    labels, lengths = items(log, "validation", log.schema.label), lengths_of(log, "validation")
    return float(np.nanmean(ndcg_by_list(kept[f"{row}/validation"], labels, lengths)))


def interval(difference: np.ndarray, groups: list[Any], seed: int = 0) -> list[float]:
    """Returns the mean and the 95 % interval of a bootstrap over groups."""
    there = np.isfinite(difference)
    numbers = np.unique([str(group) for group in groups], return_inverse=True)[1][there]
    sums = np.bincount(numbers, difference[there])
    counts = np.bincount(numbers).astype(float)
    sums, counts = sums[counts > 0], counts[counts > 0]
    draw = np.random.default_rng(seed)
    chosen = draw.integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    return [round(float(value), 4) for value in (difference[there].mean(), *np.quantile(means, [0.025, 0.975]))]


def show(args: argparse.Namespace) -> None:
    """Makes ``summary.md`` from ``summary.json``, ``candidates.json`` and ``latency.json``."""
    summary = json.loads((args.results / "summary.json").read_text())
    text = [_table_of_logs(summary), _table_of_ablations(summary)]
    for name, make in (("candidates.json", _table_of_candidates), ("latency.json", _table_of_latency)):
        if (args.results / name).exists():
            text.append(make(json.loads((args.results / name).read_text())))
    (args.results / "summary.md").write_text("\n\n".join(text) + "\n")


def _table_of_logs(summary: dict[str, Any]) -> str:
    logs = [name for name in TITLES if name in summary["logs"]]
    head, cells = ["| |"], []
    for name in logs:
        log = summary["logs"][name]
        count = f"{log['lists']:,} lists" + (f" of {log['groups']:,} queries" if log["groups"] < log["lists"] else "")
        head.append(f" {TITLES[name]}, {count} | minus trees |")
    head.append("\n|---" + "|---" * (2 * len(logs)) + "|")
    for row, title in ROWS.items():
        line = f"| {title} |"
        for name in logs:
            log = summary["logs"][name]
            best, reference = log["tuned trees"], log["reference"]
            entry = log["rows"].get(best.get(row, row), {})
            difference = "the trees" if row == reference else spell(entry.get(f"minus {reference}"))
            line += f" {number(entry.get('ndcg@10'))} | {difference} |"
        if line.strip("| ") != title:
            cells.append(line)
    return "".join(head) + "\n" + "\n".join(cells)


def _table_of_ablations(summary: dict[str, Any]) -> str:
    logs = [name for name in TITLES if name in summary["logs"]]
    lines = [
        "| test lists (seeds) | " + " | ".join(TITLES[name] for name in logs) + " |",
        "|---" * (len(logs) + 1) + "|",
    ]
    for arm in ARMS:
        found = [summary["logs"][name]["rows"].get(arm, {}).get("ablation") for name in logs]
        if any(found):
            base = next(entry["base"] for entry in found if entry)
            cells = [f"{spell(entry['minus base'])} ({entry['seeds']})" if entry else "" for entry in found]
            lines.append(f"| {arm} - {base} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _table_of_candidates(candidates: dict[str, Any]) -> str:
    logs = [name for name in TITLES if any(name in entry for entry in candidates.values())]
    lines = [
        "| compare lists (seeds) | " + " | ".join(TITLES[name] for name in logs) + " |",
        "|---" * (len(logs) + 1) + "|",
    ]
    for candidate, entry in candidates.items():
        cells = []
        for name in logs:
            found = entry.get(name, {})
            value = spell(found.get("minus base")) if ":" in candidate else number(found.get("ndcg@10"))
            cells.append(f"{value} ({found['seeds']})" if value else "")
        lines.append(f"| {candidate} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _table_of_latency(latency: dict[str, Any]) -> str:
    trees = latency["trees"]
    title = f"ms, lists of {latency['items']:.0f} items; {trees['trees']} trees of {trees['leaves']} leaves"
    lines = [f"| {title} | one list | 256 lists |", "|---|---|---|"]
    lines += [
        f"| {name} | {entry['one list']:.1f} | {entry['256 lists']:.0f} |"
        for name, entry in latency.items()
        if isinstance(entry, dict) and "one list" in entry
    ]
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Formats four digits without the leading zero."""
    return "" if value is None else f"{value:.4f}".lstrip("0")


def spell(entry: list[float] | None) -> str:
    """Formats a difference and its interval."""
    return "" if entry is None else f"{entry[0]:+.4f} [{entry[1]:+.4f}, {entry[2]:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "latency", "show"))
    parser.add_argument("--root", type=Path, help="folder of the logs")
    parser.add_argument("--work", type=Path, help="folder of the runs, one JSON file each")
    parser.add_argument("--log", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--arm", nargs="+", choices=list(ARMS), default=["PRM on top", "PRM now", "PRM before"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--scores", type=Path, help="folder of the scores stored by tree_baseline.py")
    parser.add_argument("--show-test", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the committed results")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    {"run": run, "table": table, "latency": latency, "show": show}[args.what](args)


if __name__ == "__main__":
    main()
