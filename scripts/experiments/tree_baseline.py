"""Baselines on logs with real features: logged order, logistic regression, and boosted trees chosen on validation.

python scripts/experiments/tree_baseline.py --root /data/logs --log clara2_display --scores tree_scores
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tree_logs import NAMES, SPLITS, Log, load

from hf_rerank.schema import NO_ORDER, Categorical

LEAVES, ROUNDS = (7, 15, 31), (50, 100, 300)
OBJECTIVES = ("lambdarank", "rank_xendcg", "binary")


def flat(log: Log, split: str, *, ids: bool, position: bool) -> tuple[np.ndarray, list[int]]:
    """Returns raw features, float64 [N, F], NaN if missing, and the numbers of the categorical columns."""
    table, columns, categories = log.splits[split], [], []
    lengths = lengths_of(log, split)
    for part, features in (("items", log.schema.items), ("user", log.schema.user)):
        for feature in features:
            if isinstance(feature, Categorical):
                if not ids and part == "items" and feature.name == ID_COLUMNS.get(log.name):
                    continue
                categories.append(len(columns))
            column = table.column(feature.name).combine_chunks()
            if part == "items":
                column = column.flatten()
            values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
            columns.append(values if part == "items" else np.repeat(values, lengths))
    if position and has_order(log):
        columns.append(items(log, split, log.schema.position).astype(float))
    return np.stack(columns, 1), categories


ID_COLUMNS = {"clara2_display": "doc", "clara2_lambdamart": "doc", "simulated": "hotel"}


def items(log: Log, split: str, name: str) -> np.ndarray:
    """Returns an item column, the items of all lists one after another."""
    return log.splits[split].column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def lengths_of(log: Log, split: str) -> np.ndarray:
    """Returns the number of items of each list."""
    return np.array([len(row) for row in log.splits[split].column(log.schema.label).to_pylist()])


def ndcg_by_list(scores: np.ndarray, labels: np.ndarray, lengths: np.ndarray, k: int = 10) -> np.ndarray:
    """Computes the NDCG@k of each list, gain 2^y - 1; NaN for a list without a positive label."""
    values = np.full(len(lengths), np.nan)
    ends = np.cumsum(lengths)
    for number, (start, end) in enumerate(zip(ends - lengths, ends, strict=True)):
        gains = 2.0 ** labels[start:end] - 1
        if not gains.any():
            continue
        discounts = 1 / np.log2(np.arange(2, min(k, end - start) + 2))
        order = np.argsort(-scores[start:end], kind="stable")[:k]
        values[number] = (gains[order] * discounts).sum() / (np.sort(gains)[::-1][:k] * discounts).sum()
    return values


def has_order(log: Log) -> bool:
    """Whether the lists come in a meaningful order."""
    return log.schema.position not in (None, NO_ORDER)


def score_logged_order(log: Log, split: str) -> np.ndarray:
    """Returns minus the position in the initial order."""
    if has_order(log):
        return -items(log, split, log.schema.position).astype(float)
    return -np.concatenate([np.arange(length) for length in lengths_of(log, split)]).astype(float)


def logistic_scores(log: Log) -> dict[str, np.ndarray]:
    """Logistic regression on standardized numbers (log of skewed ones), missing indicators, one-hot categories."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    parts, best = {}, None
    raw = {split: flat(log, split, ids=False, position=False) for split in SPLITS}
    categories = raw["train"][1]
    numbers = [column for column in range(raw["train"][0].shape[1]) if column not in categories]
    scaler, encoder = StandardScaler(), OneHotEncoder(handle_unknown="ignore", min_frequency=20)
    for split in SPLITS:
        values = raw[split][0]
        missing = np.isnan(values[:, numbers])
        known = np.nan_to_num(values[:, numbers])
        filled = np.sign(known) * np.log1p(np.abs(known))
        scaled = scaler.fit_transform(filled) if split == "train" else scaler.transform(filled)
        blocks = [scaled, missing.astype(float)]
        if categories:
            texts = np.nan_to_num(values[:, categories], nan=-1)
            hot = encoder.fit_transform(texts) if split == "train" else encoder.transform(texts)
            blocks.append(hot.toarray())
        parts[split] = np.concatenate(blocks, 1)
    labels = (items(log, "train", log.schema.label) > 0).astype(int)
    for c in (0.01, 0.1, 1.0):
        model = LogisticRegression(C=c, max_iter=500).fit(parts["train"], labels)
        scores = {split: model.decision_function(parts[split]) for split in SPLITS}
        value = mean_ndcg(log, "validation", scores["validation"])
        if best is None or value > best[0]:
            best = (value, scores)
    assert best is not None
    return best[1]


def mean_ndcg(log: Log, split: str, scores: np.ndarray) -> float:
    """Computes the mean over the lists with a positive label."""
    return float(np.nanmean(ndcg_by_list(scores, items(log, split, log.schema.label), lengths_of(log, split))))


def tuned_trees(
    log: Log, objective: str, *, position: bool = False, seed: int = 0
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Finds the best of the grid on validation (leaves, rounds, with or without the id column), and its scores."""
    import lightgbm

    best: tuple[float, dict[str, Any], Any] | None = None
    labels, lengths = items(log, "train", log.schema.label), lengths_of(log, "train")
    for ids in (False, True) if log.name in ID_COLUMNS else (False,):
        values = {split: flat(log, split, ids=ids, position=position) for split in SPLITS}
        for leaves in LEAVES:
            options = {
                "objective": objective,
                "learning_rate": 0.05,
                "num_leaves": leaves,
                "min_data_in_leaf": 50 if len(labels) > 10_000 else 20,
                "seed": seed,
                "deterministic": True,
                "force_row_wise": True,
                "num_threads": 1,
                "verbose": -1,
            }
            if seed:
                options |= {"bagging_fraction": 0.9, "bagging_freq": 1, "feature_fraction": 0.9}
            target = (labels > 0).astype(int) if objective == "binary" else labels
            data = lightgbm.Dataset(
                values["train"][0], target, group=lengths, categorical_feature=values["train"][1], free_raw_data=False
            )
            booster = lightgbm.train(options, data, max(ROUNDS))
            for rounds in ROUNDS:
                predicted = booster.predict(values["validation"][0], num_iteration=rounds, num_threads=1)
                value = mean_ndcg(log, "validation", predicted)
                if best is None or value > best[0]:
                    scores = {
                        split: booster.predict(values[split][0], num_iteration=rounds, num_threads=1)
                        for split in ("validation", "test")
                    }
                    best = (value, {"objective": objective, "leaves": leaves, "rounds": rounds, "ids": ids}, scores)
    assert best is not None
    return {**best[1], "validation": best[0]}, best[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--log", choices=NAMES, action="append")
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--scores", type=Path, required=True, help="folder of the scores; existing ones are kept")
    args = parser.parse_args()
    args.scores.mkdir(parents=True, exist_ok=True)
    for name in args.log or NAMES:
        log, path = load(name, args.root), args.scores / f"{name}.npz"
        kept = dict(np.load(path)) if path.exists() else {}
        makers: dict[str, Callable[[], Any]] = {
            "logged order": partial(
                _with_facts, lambda log=log: {each: score_logged_order(log, each) for each in SPLITS}
            ),
            "logistic regression": partial(_with_facts, partial(logistic_scores, log)),
        }
        for objective, position in itertools.product(args.objective, (False, True)):
            if has_order(log) or not position:
                row = objective + (" + position" if position else "")
                makers[row] = partial(tuned_trees, log, objective, position=position)
        for row, make in makers.items():
            if f"{row}/test" in kept:
                continue
            started = time.monotonic()
            facts, scores = make()
            kept |= {f"{row}/{split}": scores[split] for split in ("validation", "test")}
            np.savez(path, **kept)
            facts["validation"] = round(mean_ndcg(log, "validation", scores["validation"]), 4)
            print(name, row, json.dumps(facts), f"{time.monotonic() - started:.0f} s", flush=True)


def _with_facts(make: Callable[[], dict[str, np.ndarray]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return {}, make()


if __name__ == "__main__":
    main()
