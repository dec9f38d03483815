"""Candidates for training on real features, each measured alone and together, on lists kept for comparing them.

    python scripts/experiments/tree_candidates.py --root /data/logs --cache trees_cache --log clara2_display \
        --candidate default quantile --seeds 3 --output results.jsonl

A plain training loop around the library's models, processor and losses, so that a run takes seconds; what is kept is
measured again with the trainer (``tree_table.py``).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tree_baseline import ID_COLUMNS, flat, items, lengths_of, mean_ndcg
from tree_logs import COMPARE, Log, load

from hf_rerank.losses import TASK_LOSSES
from hf_rerank.models.auto import reranker_classes
from hf_rerank.processing import ListProcessor, RaggedLists
from hf_rerank.processing.vocabularies import blake2b_64
from hf_rerank.schema import FEATURE_TENSORS, Categorical, Dense
from hf_rerank.training.starting_point import calibration
from hf_rerank.validation import Lists

FOLDS = 5
# What each candidate changes of ``DEFAULT``.
DEFAULT: dict[str, Any] = {
    "model": "prm",
    "scale": "standard",
    "config": {},
    "loss": "binary_log_loss",
    "batch": 256,
    "epochs": 10,
    "lr": 1e-3,
    "schedule": "linear",
    "weight_decay": 0.0,
    "ids": True,
    "min_count": 2,
    "average": 0.0,
    "tree": "lambdarank",
    "tree_position": False,
    "match_unknown": False,
    "start_positions": False,
    "patience": 3,
}
SMALL = {"batch": 64, "schedule": "onecycle", "epochs": 8}
GOOD = {**SMALL, "scale": "quantile"}
REL = {"relative_features": True}
M = {**GOOD, "match_unknown": True}
MR = {**M, "config": REL}
C5 = {**MR, "schedule": "cosine", "epochs": 5}
START = {"config": {**REL, "initial_score": "start"}}
SL = {**C5, **START, "tree_position": True, "lr": 3e-4}
CANDIDATES: dict[str, dict[str, Any]] = {
    "m": M,
    "mr": MR,
    "m standard": {**M, "scale": "standard"},
    "c5": C5,
    "c5 ema": {**C5, "average": 0.99},
    "c5 start position": {**C5, **START, "tree_position": True},
    "c5 start position ema": {**C5, **START, "tree_position": True, "average": 0.99},
    "c5 start position softmax": {**C5, **START, "tree_position": True, "loss": "softmax_loss"},
    "c5 start position softmax ema": {**C5, **START, "tree_position": True, "loss": "softmax_loss", "average": 0.99},
    "c5 feature position": {**C5, "config": {**REL, "initial_score": "feature"}, "tree_position": True},
    "s lr3": SL,
    "b lr3": {**SL, "tree_position": False, "start_positions": True},
    "b": {**SL, "tree_position": False, "start_positions": True, "lr": 1e-3},
    "b5": {**SL, "tree_position": False, "start_positions": True, "lr": 5e-4},
    "s lr3 drop3": {**SL, "config": {**SL["config"], "hidden_dropout_prob": 0.3}},
    "s lr3 no ids": {**SL, "ids": False},
    "s lr3 without position": {**SL, "tree_position": False},
    "s lr3 wd": {**SL, "weight_decay": 1.0},
    "s lr3 softmax": {**SL, "loss": "softmax_loss"},
    "s lr3 ema": {**SL, "average": 0.99},
    "s lr3 not relative": {**SL, "config": {"initial_score": "start"}},
    "s lr3 feature": {**SL, "config": {**REL, "initial_score": "feature"}},
    "c5 softmax": {**C5, "loss": "softmax_loss"},
    "c5 softmax ema": {**C5, "loss": "softmax_loss", "average": 0.99},
    "c5 start position lr3": {**C5, **START, "tree_position": True, "lr": 3e-4},
    "c5 start position softmax lr3": {**C5, **START, "tree_position": True, "lr": 3e-4, "loss": "softmax_loss"},
    "c5 not relative": {**C5, "config": {}},
    "c5 not quantile": {**C5, "scale": "standard"},
    "c5 log": {**C5, "scale": "log"},
    "c5 unknown": {**C5, "match_unknown": False},
    "c5 nodrop": {**C5, "config": {**REL, "hidden_dropout_prob": 0.0}},
    "c5 drop3": {**C5, "config": {**REL, "hidden_dropout_prob": 0.3}},
    "mr ep3": {**MR, "epochs": 3},
    "mr start ep3": {**MR, "epochs": 3, "config": {**REL, "initial_score": "start"}},
    "mr start ep3 drop3": {**MR, "epochs": 3, "config": {**REL, "initial_score": "start", "hidden_dropout_prob": 0.3}},
    "mr ep3 drop3": {**MR, "epochs": 3, "config": {**REL, "hidden_dropout_prob": 0.3}},
    "mr ep3 softmax": {**MR, "epochs": 3, "loss": "softmax_loss"},
    "m ep3": {**M, "epochs": 3},
    "m ep3 standard": {**M, "epochs": 3, "scale": "standard"},
    "mr ep3 wd": {**MR, "epochs": 3, "weight_decay": 1.0},
    "mr lr3": {**MR, "lr": 3e-4},
    "mr softmax": {**MR, "loss": "softmax_loss"},
    "mr softmax lr3": {**MR, "loss": "softmax_loss", "lr": 3e-4},
    "mr drop3": {**MR, "config": {**REL, "hidden_dropout_prob": 0.3}},
    "mr wd": {**MR, "weight_decay": 0.3},
    "m start": {**M, "config": {"initial_score": "start"}},
    "mr start": {**MR, "config": {**REL, "initial_score": "start"}},
    "mr feature": {**MR, "config": {**REL, "initial_score": "feature"}},
    "mr start softmax": {**MR, "loss": "softmax_loss", "config": {**REL, "initial_score": "start"}},
    "mr start lr3": {**MR, "lr": 3e-4, "config": {**REL, "initial_score": "start"}},
    "mr start softmax lr3": {**MR, "loss": "softmax_loss", "lr": 3e-4, "config": {**REL, "initial_score": "start"}},
    "mr start position": {**MR, "config": {**REL, "initial_score": "start"}, "tree_position": True},
    "default": {},
    "dnn": {"model": "dnn"},
    "log": {"scale": "log"},
    "quantile": {"scale": "quantile"},
    "batch64": {"batch": 64},
    "onecycle": {"schedule": "onecycle"},
    "batch64 onecycle": SMALL,
    "no ids": {"ids": False},
    "softmax": {"loss": "softmax_loss"},
    "relative": {"config": REL},
    "good": GOOD,
    "good relative": {**GOOD, "config": REL},
    "good softmax": {**GOOD, "loss": "softmax_loss"},
    "good relative softmax": {**GOOD, "loss": "softmax_loss", "config": REL},
    "good relative no ids": {**GOOD, "config": REL, "ids": False},
    "good relative min10": {**GOOD, "config": REL, "min_count": 10},
    "good relative unknown.2": {**GOOD, "config": {**REL, "unknown_rate": 0.2}},
    "good relative nodrop": {**GOOD, "config": {**REL, "hidden_dropout_prob": 0.0}},
    "good relative drop.3": {**GOOD, "config": {**REL, "hidden_dropout_prob": 0.3}},
    "good relative wd.1": {**GOOD, "config": REL, "weight_decay": 0.1},
    "good relative ema": {**GOOD, "config": REL, "average": 0.99},
    "good relative ep5": {**GOOD, "config": REL, "epochs": 5},
    "good relative ep20": {**GOOD, "config": REL, "epochs": 20},
    "good relative lr3": {**GOOD, "config": REL, "lr": 3e-4},
    "good relative lr30": {**GOOD, "config": REL, "lr": 3e-3},
    "good relative lambda": {**GOOD, "loss": "lambda_loss", "config": REL},
    "good relative approx": {**GOOD, "loss": "approx_ndcg_loss", "config": REL},
    "good relative start position": {**GOOD, "config": {**REL, "initial_score": "start"}, "tree_position": True},
    "good feature": {**GOOD, "config": {"initial_score": "feature"}},
    "good start": {**GOOD, "config": {"initial_score": "start"}},
    "good relative feature": {**GOOD, "config": {**REL, "initial_score": "feature"}},
    "good relative start": {**GOOD, "config": {**REL, "initial_score": "start"}},
    "good relative start softmax": {**GOOD, "loss": "softmax_loss", "config": {**REL, "initial_score": "start"}},
    "good relative feature softmax": {**GOOD, "loss": "softmax_loss", "config": {**REL, "initial_score": "feature"}},
}


def tree_scores(log: Log, cache: Path, *, objective: str, position: bool, leaves: int = 7) -> dict[str, np.ndarray]:
    """Scores of boosted trees by split: of the training lists cross-fitted over 5 folds by group.

    Rounds are chosen on validation, for the trees of all training lists; the folds use as many.
    """
    path = cache / f"{log.name}-{objective}-{position}-{leaves}.npz"
    if path.exists():
        return dict(np.load(path))
    import lightgbm

    values = {split: flat(log, split, ids=False, position=position) for split in log.splits}
    labels, lengths = items(log, "train", log.schema.label), lengths_of(log, "train")
    target = (labels > 0).astype(int) if objective == "binary" else labels
    options = {
        "objective": objective,
        "learning_rate": 0.05,
        "num_leaves": leaves,
        "min_data_in_leaf": 50 if len(labels) > 10_000 else 20,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbose": -1,
    }

    def fit(lists: np.ndarray, rounds: int) -> Any:
        rows = np.repeat(lists, lengths)
        data = lightgbm.Dataset(
            values["train"][0][rows], target[rows], group=lengths[lists], categorical_feature=values["train"][1]
        )
        return lightgbm.train(options, data, rounds)

    whole = fit(np.ones(len(lengths), dtype=bool), 300)
    tried = {
        rounds: mean_ndcg(log, "validation", whole.predict(values["validation"][0], num_iteration=rounds))
        for rounds in (25, 50, 100, 200, 300)
    }
    rounds = max(tried, key=lambda number: tried[number])
    scores = {split: whole.predict(values[split][0], num_iteration=rounds) for split in log.splits if split != "train"}
    names = [str(name) for name in log.splits["train"].column(log.group).to_pylist()]
    fold = np.array([blake2b_64(name) % FOLDS for name in names])
    scores["train"] = np.zeros(len(labels))
    for number in range(FOLDS):
        held = np.repeat(fold == number, lengths)
        scores["train"][held] = fit(fold != number, rounds).predict(values["train"][0][held])
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(path, **scores)
    compared = mean_ndcg(log, COMPARE, scores[COMPARE])
    print(log.name, objective, position, "rounds", tried, rounds, "compare", round(compared, 4), flush=True)
    return scores


def encode(log: Log, options: dict[str, Any], cache: Path) -> tuple[ListProcessor, dict[str, RaggedLists]]:
    """The lists of every split as the processor encodes them, with the trees' scores where a candidate reads them."""

    def changed(feature: Any) -> Any:
        if isinstance(feature, Dense):
            return Dense(feature.name, scale=options["scale"], missing=feature.missing)
        return Categorical(feature.name, min_count=options["min_count"])

    kept = [feature for feature in log.schema.items if options["ids"] or feature.name != ID_COLUMNS.get(log.name)]
    schema = log.schema.replace(items=[*map(changed, kept)], user=[*map(changed, log.schema.user)])
    processor = ListProcessor.from_lists(log.splits["train"], schema=schema)
    encoded = {
        split: processor.encode(Lists.from_arrow(table, processor.schema, with_labels=True))[0]
        for split, table in log.splits.items()
    }
    if options["config"].get("initial_score", "none") != "none":
        scores = tree_scores(log, cache, objective=options["tree"], position=options["tree_position"])
        for split, ragged in encoded.items():
            ragged.rows["initial_scores"] = scores[split].astype(np.float32)
    return processor, encoded


def calibrated(ragged: RaggedLists, loss: Any, positions: int) -> dict[str, Any]:
    """The config of a start that minimizes the loss on its own."""
    arrays = {name: torch.from_numpy(array) for name, array in ragged.padded().items()}
    names = ("initial_score_scale", "initial_score_offset", "initial_score_positions")
    return dict(zip(names, calibration(arrays, loss, positions=positions), strict=True))


def batch_of(ragged: RaggedLists, lists: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    arrays = ragged.take(lists).padded()
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


def train(log: Log, options: dict[str, Any], encoded: Any, processor: Any, seed: int) -> dict[str, Any]:
    """Trains once, keeps the epoch that is best on validation, and measures it."""
    torch.manual_seed(seed)
    loss = TASK_LOSSES[options["loss"]]
    config_class, model_class = reranker_classes(options["model"])
    config = dict(options["config"])
    if config.get("initial_score", "none") != "none":
        positions = processor.schema.max_list_length if options["start_positions"] else 0
        config |= calibrated(encoded["train"], loss, positions)
    if options["match_unknown"]:
        rows = encoded["validation"].rows
        config |= {
            f"{part}_unknown_rates": [max(0.01, float(share)) for share in (rows[f"{part}_categorical"] == 1).mean(0)]
            for part in ("item", "user")
            if f"{part}_categorical" in rows and rows[f"{part}_categorical"].shape[1]
        }
    model = model_class(config_class.for_schema(processor.schema, task_loss=options["loss"], **config))
    draw, count = np.random.default_rng(seed), len(encoded["train"])
    steps = options["epochs"] * math.ceil(count / options["batch"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options["lr"], weight_decay=options["weight_decay"])
    warm = max(1, int({"onecycle": 0.3, "cosine": 0.1, "linear": 0.0}[options["schedule"]] * steps))

    def factor(step: int) -> float:
        if options["schedule"] == "linear":
            return 1 - step / steps
        if step < warm:
            return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / warm))
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    averaged = (
        torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options["average"])
        )
        if options["average"]
        else None
    )
    best: tuple[float, int, dict[str, float]] = (-1.0, 0, {})
    curve = []
    for epoch in range(options["epochs"]):
        model.train()
        order = draw.permutation(count)
        for start in range(0, count, options["batch"]):
            features, labels = batch_of(encoded["train"], order[start : start + options["batch"]])
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
        if epoch - best[1] >= options["patience"]:
            break
        if value > best[0]:
            best = (value, epoch, {COMPARE: mean_ndcg(log, COMPARE, scores_of(measured, encoded[COMPARE]))})
    last = mean_ndcg(log, COMPARE, scores_of(measured, encoded[COMPARE]))
    return {"validation": best[0], "epoch": best[1], "compare": best[2][COMPARE], "last": last, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--candidate", nargs="+", default=list(CANDIDATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = load(args.log, args.root)
    for name in args.candidate:
        options = {**DEFAULT, **CANDIDATES[name]}
        processor, encoded = encode(log, options, args.cache)
        for seed in range(args.seeds):
            started = time.monotonic()
            row = {"log": args.log, "candidate": name, "seed": seed, **train(log, options, encoded, processor, seed)}
            row["seconds"] = round(time.monotonic() - started, 1)
            print(
                {key: row[key] for key in ("candidate", "seed", "validation", "epoch", "compare", "last", "seconds")},
                flush=True,
            )
            with args.output.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
