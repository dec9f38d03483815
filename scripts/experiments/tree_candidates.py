"""Candidates for the defaults on real features, one change each, on lists used only for this (never test lists).

    python scripts/experiments/tree_candidates.py run --root /data/logs --work candidates --log simulated --seeds 0
    python scripts/experiments/tree_candidates.py table --root /data/logs --work candidates

A plain training loop around the library's models, processor, budget and losses; adopted candidates are measured again
with the trainer (``tree_table.py``). A candidate changes one thing in ``now`` or ``on top``, and is compared with it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tree_baseline import ID_COLUMNS, items, lengths_of, mean_ndcg, ndcg_by_list
from tree_logs import COMPARE, NAMES, Log, load
from tree_table import RESULTS, interval, schema_of

from hf_rerank.losses import TASK_LOSSES
from hf_rerank.models.auto import reranker_classes
from hf_rerank.processing import ListProcessor, RaggedLists
from hf_rerank.schema import FEATURE_TENSORS, Categorical
from hf_rerank.training.budget import fill_in_budget
from hf_rerank.training.starting_point import fit_calibration
from hf_rerank.validation import Lists

# ``rate``: learning rate; ``bins``: number of piecewise linear features added per dense feature; ``average``: decay of
# the moving average of the weights, which is evaluated instead of the last weights.
NOW: dict[str, Any] = {
    "model": "prm",
    "scale": "quantile",
    "config": {},
    "loss": "binary_log_loss",
    "epochs": 5,
    "batch": 0,
    "rate": 1e-3,
    "decay": 0.0,
    "ids": True,
    "min_count": None,
    "bins": 0,
    "average": 0.0,
}
CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    "relative features": {"config": {"relative_features": True}},
    "softmax loss": {"loss": "softmax_loss"},
    "lambda loss": {"loss": "lambda_loss"},
    "approximate NDCG": {"loss": "approx_ndcg_loss"},
    "learning rate 3e-4": {"rate": 3e-4},
    "learning rate 2e-3": {"rate": 2e-3},
    "learning rate 4e-3": {"rate": 4e-3},
    "3 epochs": {"epochs": 3},
    "10 epochs": {"epochs": 10},
    "20 epochs": {"epochs": 20},
    "half the batch": {"batch": 0.5},
    "twice the batch": {"batch": 2},
    "8 bins": {"bins": 8},
    "16 bins": {"bins": 16},
    "16 bins, relative features": {"bins": 16, "config": {"relative_features": True}},
    "standard scale": {"scale": "standard"},
    "log scale": {"scale": "log"},
    "without ids": {"ids": False},
    "ids seen 10 times": {"min_count": 10},
    "unknown rate 0.01": {"config": {"unknown_rate": 0.01}},
    "tables drawn wider": {"config": {"initializer_range": 0.1}},
    "weight decay 0.1": {"decay": 0.1},
    "weight decay 1": {"decay": 1.0},
    "no dropout": {"config": {"hidden_dropout_prob": 0.0}},
    "dropout 0.3": {"config": {"hidden_dropout_prob": 0.3}},
    "averaged weights": {"average": 0.99},
    "hidden size 128": {"config": {"hidden_size": 128, "intermediate_size": 256}},
    "hidden size 32": {"config": {"hidden_size": 32, "intermediate_size": 64}},
    "1 layer": {"config": {"num_hidden_layers": 1}},
    "4 heads": {"config": {"num_attention_heads": 4}},
    "DNN": {"model": "dnn"},
    "SetRank": {"model": "setrank"},
    "score as a feature": {"config": {"initial_score": "feature"}},
    "without relative features": {"config": {"relative_features": False}},
    "learning rate 1e-3": {"rate": 1e-3},
    "learning rate 1e-4": {"rate": 1e-4},
}
BASES: dict[str, dict[str, Any]] = {
    "now": {},
    "on top": {"rate": 3e-4, "config": {"initial_score": "start", "relative_features": True}},
}


def options_of(candidate: str) -> dict[str, Any]:
    """Returns the options of ``now`` or ``on top``, optionally followed by ``: change + change``."""
    base, _, changes = candidate.partition(": ")
    options = {**NOW, **BASES[base]}
    for change in changes.split(" + "):
        changed = CHANGES[change]
        options = {**options, **changed, "config": {**options["config"], **changed.get("config", {})}}
    return options


def tree_scores(log: Log, cache: Path) -> dict[str, np.ndarray]:
    """Returns scores of the library's own trees by split, cross-fitted for the training lists."""
    path = cache / f"{log.name}-on_top.npz"
    if path.exists():
        return dict(np.load(path))
    from datasets import Dataset

    from hf_rerank.initial_rankers.on_top import SCORE_COLUMN, fit_on_top

    lists = {split: Dataset(table) for split, table in log.splits.items()}
    processor = ListProcessor.from_lists(lists["train"], schema=schema_of(log, "quantile"))
    found = fit_on_top(processor, lists["train"], lists["validation"])
    scores = {
        split: found.processor.encode(Lists.from_arrow(table, found.processor.schema))[0].rows["initial_scores"]
        for split, table in log.splits.items()
        if split in ("validation", COMPARE)
    }
    scores["train"] = np.concatenate(found.train.with_format("arrow")[:].column(SCORE_COLUMN).to_pylist())
    np.savez(path, **scores)
    print(log.name, found.settings, flush=True)
    return scores


def encode(log: Log, options: dict[str, Any], cache: Path) -> tuple[ListProcessor, dict[str, RaggedLists]]:
    """Encodes the lists of every split except test, with the features that a candidate adds."""
    schema = schema_of(log, options["scale"])
    kept = [feature for feature in schema.items if options["ids"] or feature.name != ID_COLUMNS.get(log.name)]
    if options["min_count"]:
        kept = [
            Categorical(feature.name, min_count=options["min_count"]) if isinstance(feature, Categorical) else feature
            for feature in kept
        ]
    schema = schema.replace(items=kept)
    processor = ListProcessor.from_lists(log.splits["train"], schema=schema)
    encoded = {
        split: processor.encode(Lists.from_arrow(table, processor.schema, with_labels=True))[0]
        for split, table in log.splits.items()
        if split != "test"
    }
    if options["bins"]:
        for ragged in encoded.values():
            ragged.rows["item_vectors"] = piecewise(ragged.rows["item_dense"], options["bins"])
    if options["config"].get("initial_score", "none") != "none":
        scores = tree_scores(log, cache)
        for split, ragged in encoded.items():
            ragged.rows["initial_scores"] = scores[split].astype(np.float32)
    return processor, encoded


def piecewise(values: np.ndarray, bins: int) -> np.ndarray:
    """Encodes standard normal values piecewise linearly (Gorishniy et al. 2022): [N, F] to [N, F * bins]."""
    from scipy.special import ndtr

    share = ndtr(values)[:, :, None] * bins - np.arange(bins)
    return np.clip(share, 0, 1).reshape(len(values), -1).astype(np.float32)


def batch_of(ragged: RaggedLists, lists: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    arrays = ragged.take(lists).pad()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: tensors[name] for name in FEATURE_TENSORS if name in tensors}, tensors["labels"]


def scores_of(model: Any, ragged: RaggedLists) -> np.ndarray:
    model.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(ragged), 512):
            features, _ = batch_of(ragged, np.arange(start, min(start + 512, len(ragged))))
            found.append(model(**features).logits[features["mask"]].numpy())
    return np.concatenate(found)


def config_of(options: dict[str, Any], processor: ListProcessor, encoded: dict[str, RaggedLists]) -> Any:
    """Makes the config of a candidate; its start is calibrated, its unknown rates follow the validation lists."""
    config = dict(options["config"])
    if options["bins"]:
        config["item_vector_dim"] = encoded["train"].rows["item_vectors"].shape[1]
    if config.get("initial_score", "none") != "none":
        arrays = {name: torch.from_numpy(array) for name, array in encoded["train"].pad().items()}
        names = ("initial_score_scale", "initial_score_offset", "initial_score_positions")
        loss = options["loss"] if options["loss"] in ("binary_log_loss", "softmax_loss") else "softmax_loss"
        found = fit_calibration(arrays, TASK_LOSSES[loss], positions=processor.schema.max_list_length)
        config |= dict(zip(names, found, strict=True))
    if "unknown_rate" not in config:
        rows = encoded["validation"].rows
        config |= {
            f"{part}_unknown_rates": [max(0.01, float(share)) for share in (rows[f"{part}_categorical"] == 1).mean(0)]
            for part in ("item", "user")
            if f"{part}_categorical" in rows and rows[f"{part}_categorical"].shape[1]
        }
    config_class, _ = reranker_classes(options["model"])
    known = config_class.__dataclass_fields__
    return config_class.for_schema(
        processor.schema,
        task_loss=options["loss"],
        **{name: value for name, value in config.items() if name in known},
    )


def train(log: Log, options: dict[str, Any], encoded: Any, processor: Any, seed: int) -> dict[str, Any]:
    """Trains once, keeps the epoch that is best on validation, and evaluates it."""
    torch.manual_seed(seed)
    loss = TASK_LOSSES[options["loss"]]
    config = config_of(options, processor, encoded)
    torch.manual_seed(seed)
    model = reranker_classes(options["model"])[1](config)
    draw, count = np.random.default_rng(seed), len(encoded["train"])
    budget = SimpleNamespace(
        n_gpu=0,
        world_size=1,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=None,
        num_train_epochs=options["epochs"],
        max_steps=-1,
        dataloader_drop_last=False,
        warmup_steps=0.1,
    )
    fill_in_budget(budget, count)
    size = int(budget.per_device_train_batch_size * (options["batch"] or 1))
    epochs = int(budget.num_train_epochs)
    steps = epochs * math.ceil(count / size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options["rate"], weight_decay=options["decay"])
    warm = max(1, int(0.1 * steps))

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    averaged = None
    if options["average"]:
        mean = torch.optim.swa_utils.get_ema_multi_avg_fn(options["average"])
        averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=mean)
    best: tuple[float, int, np.ndarray] = (-1.0, 0, np.zeros(0))
    curve = []
    for epoch in range(epochs):
        model.train()
        order = draw.permutation(count)
        for start in range(0, count, size):
            features, labels = batch_of(encoded["train"], order[start : start + size])
            value = loss(model(**features).logits, labels, mask=features["mask"])
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if averaged is not None:
                averaged.update_parameters(model)
        measured = model if averaged is None else averaged.module
        value = mean_ndcg(log, "validation", scores_of(measured, encoded["validation"]))
        curve.append(round(value, 4))
        if value > best[0]:
            best = (value, epoch, scores_of(measured, encoded[COMPARE]))
    values = ndcg_by_list(best[2], items(log, COMPARE, log.schema.label), lengths_of(log, COMPARE))
    return {"validation": best[0], "curve": curve, "compare": by_list(values)}


def by_list(values: np.ndarray) -> list[float | None]:
    """Replaces NaN by None, because JSON has no NaN."""
    return [None if np.isnan(value) else round(float(value), 5) for value in values]


def path_of(work: Path, log: str, candidate: str, seed: int) -> Path:
    return work / f"{log}-{candidate.replace(': ', '__').replace(' ', '_')}-{seed}.json"


def run(args: argparse.Namespace) -> None:
    """Trains the missing runs, seed by seed."""
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    logs: dict[str, Log] = {}
    for seed in args.seeds:
        for candidate in args.candidate:
            for name in args.log:
                path = path_of(args.work, name, candidate, seed)
                if path.exists():
                    continue
                log = logs[name] = logs.get(name) or load(name, args.root)
                options, started = options_of(candidate), time.monotonic()
                processor, encoded = encode(log, options, args.work)
                row = {"log": name, "candidate": candidate, "seed": seed}
                row |= train(log, options, encoded, processor, seed)
                row["seconds"] = round(time.monotonic() - started, 1)
                path.write_text(json.dumps(row))
                mean = np.nanmean(np.array(row["compare"], dtype=float))
                print(f"{name:16} {candidate:50} {seed} {mean:.4f} {row['curve']} {row['seconds']}", flush=True)


def table(args: argparse.Namespace) -> None:
    """Computes each candidate minus its base, over the common seeds, with an interval over groups of lists."""
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    validation: dict[tuple[str, str], list[float]] = {}
    for path in sorted(args.work.glob("*.json")):
        row = json.loads(path.read_text())
        values = np.array(row["compare"], dtype=float)
        found.setdefault(row["candidate"], {}).setdefault(row["log"], {})[row["seed"]] = values
        validation.setdefault((row["candidate"], row["log"]), []).append(row["validation"])
    summary: dict[str, Any] = {}
    for name in args.log:
        log = load(name, args.root)
        groups = log.splits[COMPARE].column(log.group).to_pylist()
        for candidate, by_log in found.items():
            if name not in by_log:
                continue
            base = found.get(candidate.partition(": ")[0], {}).get(name, {})
            seeds = sorted(set(base) & set(by_log[name]))
            entry: dict[str, Any] = {
                "seeds": len(by_log[name]),
                "ndcg@10": round(float(np.nanmean(list(by_log[name].values()))), 4),
                "validation": round(float(np.mean(validation[candidate, name])), 4),
            }
            if ":" in candidate and seeds:
                difference = np.mean([by_log[name][seed] - base[seed] for seed in seeds], axis=0)
                entry |= {"seeds": len(seeds), "minus base": interval(difference, groups)}
            summary.setdefault(candidate, {})[name] = entry
    for candidate, entry in summary.items():
        print(candidate, json.dumps(entry))
    (args.results / "candidates.json").write_text(json.dumps(summary, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs, one JSON file each")
    parser.add_argument("--log", nargs="+", choices=NAMES, default=["simulated", "clara2_display"])
    parser.add_argument("--candidate", nargs="+", default=["now", "on top"], help="such as 'now: softmax loss'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the committed results")
    args = parser.parse_args()
    {"run": run, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
