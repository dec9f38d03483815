"""Logs with real features, and simulated ones, for comparing re-rankers with tree models.

The real logs are not part of this project; ``load`` reads them from a given folder:

- ``clara2_display``, ``clara2_lambdamart``: a web search log as lists (CLARA 2), in the displayed order, or that of a
  LambdaMART trained on other lists.
- ``lightgbm``: the example of LightGBM's lambdarank, 201 training queries with grades 0 to 4.
- ``simulated``: hotel-like lists with heavy tails, ids, categories and missing values; clicks depend on thresholds of
  an item's own features and on how it compares with the other items.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_rerank.schema import NO_ORDER, Categorical, Dense, ListSchema

SPLITS = ("train", "validation", "test")
# Lists only for comparing candidates, because the validation split is small and the test split must stay unseen.
COMPARE = "compare"
NAMES = ("clara2_display", "clara2_lambdamart", "lightgbm", "simulated")
CLARA2_DENSE = (
    *("debiased_ctr", "raw_ctr", "last_click_rate", "log_clicks", "log_impressions", "shown_share", "recent_share"),
    *("unseen", "doc_ctr_elsewhere", "doc_log_impressions_elsewhere", "mean_position", "best_position"),
)
CLARA2_USER = (
    *("history_pages", "history_ctr", "history_top_share"),
    *("log_session_pages", "log_session_repeats", "log_session_minutes"),
)


@dataclass
class Log:
    """Lists by split, with their schema.

    Attributes:
        name: Name of the log.
        splits: Split -> arrow table, one row per list.
        schema: Schema as a user would write it; every dense feature on its default scale.
        group: Column with the unit of resampling for the bootstrap.
    """

    name: str
    splits: dict[str, pa.Table]
    schema: ListSchema
    group: str


def load(name: str, root: Path) -> Log:
    """Loads the log ``name``; ``root`` contains the folders ``clara2`` and ``lightgbm``."""
    if name == "simulated":
        return _simulated()
    if name == "lightgbm":
        return _lightgbm(root / "lightgbm")
    splits = {split: pq.read_table(root / "clara2" / f"{split}.parquet") for split in SPLITS}
    splits[COMPARE] = pq.read_table(root / "clara2" / "initial.parquet")
    schema = ListSchema(
        items=[Categorical("doc"), *(Dense(column) for column in CLARA2_DENSE)],
        user=[Categorical("query_frequency"), Categorical("hour"), *(Dense(column) for column in CLARA2_USER)],
        position=name.replace("clara2", "position"),
        list_id="list_id",
        group="query",
        max_list_length=10,
    )
    return Log(name, splits, schema, "query")


def _lightgbm(folder: Path) -> Log:
    splits = {}
    lists = {part: _svm_lists(folder, part) for part in ("train", "test")}
    # The example has no validation part: every fifth training query is used instead.
    parts = {
        "train": [entry for number, entry in enumerate(lists["train"]) if number % 5],
        "validation": lists["train"][::5],
        "test": lists["test"],
        COMPARE: lists["train"][::5],
    }
    names = [f"x{column}" for column in range(1, 301)]
    for split, entries in parts.items():
        columns: dict[str, Any] = {"query": [f"{split}-{number}" for number in range(len(entries))]}
        columns["click"] = [labels.tolist() for labels, _ in entries]
        for number, column in enumerate(names):
            columns[column] = [values[:, number].tolist() for _, values in entries]
        splits[split] = pa.table(columns)
    longest = max(len(labels) for entries in parts.values() for labels, _ in entries)
    schema = ListSchema(
        items=[Dense(name) for name in names], position=NO_ORDER, list_id="query", max_list_length=longest
    )
    return Log("lightgbm", splits, schema, "query")


def _svm_lists(folder: Path, part: str) -> list[tuple[np.ndarray, np.ndarray]]:
    lines = (folder / f"rank.{part}").read_text().splitlines()
    labels, values = np.zeros(len(lines), dtype=np.int64), np.zeros((len(lines), 300))
    for row, line in enumerate(lines):
        label, *entries = line.split()
        labels[row] = int(label)
        for entry in entries:
            column, value = entry.split(":")
            values[row, int(column) - 1] = float(value)
    ends = np.cumsum([int(line) for line in (folder / f"rank.{part}.query").read_text().split()])
    return [(labels[start:end], values[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _simulated(seed: int = 0) -> Log:
    draw = np.random.default_rng(seed)
    hotels, brands = 6_000, 120
    quality = draw.normal(size=hotels)
    world = {
        "brand": draw.zipf(1.6, hotels) % brands,
        "stars": np.clip(np.round(3 + 0.8 * quality + 0.7 * draw.normal(size=hotels)), 1, 5),
        "reviews": np.floor(draw.pareto(0.8, hotels) * 20 * np.exp(0.3 * quality)),
        "rating": np.round(7 + quality + 0.6 * draw.normal(size=hotels), 1),
        "base_price": np.exp(4.5 + 0.35 * quality + 0.6 * draw.normal(size=hotels)),
        "distance": draw.exponential(3.0, hotels) ** 1.5,
        "kind": draw.integers(0, 9, hotels),
    }
    brand_effect, kind_effect = draw.normal(size=brands) * 0.5, draw.normal(size=(4, 9)) * 0.6
    splits = {}
    for split, count in (("train", 6_000), ("validation", 800), ("test", 3_000), (COMPARE, 3_000)):
        rows = [_search(draw, world, quality, brand_effect, kind_effect, split, number) for number in range(count)]
        splits[split] = pa.Table.from_pylist(rows)
    schema = ListSchema(
        items=[
            *(Categorical("hotel"), Categorical("brand"), Categorical("kind"), Dense("stars")),
            *(Dense("rating", missing="indicator"), Dense("reviews"), Dense("price"), Dense("distance")),
            *(Dense("discount", missing="indicator"), Dense("sponsored")),
        ],
        user=[
            Categorical("device"),
            Categorical("purpose"),
            Dense("days_ahead"),
            Dense("budget", missing="indicator"),
        ],
        position="position",
        list_id="list_id",
        max_list_length=25,
    )
    return Log("simulated", splits, schema, "list_id")


def _search(
    draw: np.random.Generator,
    world: dict[str, np.ndarray],
    quality: np.ndarray,
    brand_effect: np.ndarray,
    kind_effect: np.ndarray,
    split: str,
    number: int,
) -> dict[str, Any]:
    """Draws one list with at least one click."""
    hotels = len(quality)
    while True:
        length = int(draw.integers(6, 26))
        # Most searches show hotels that are rare in training: the lower part of a long tail.
        chosen = np.unique(
            np.minimum((draw.pareto(0.6, length) * 60).astype(int), hotels - 1 - draw.integers(0, 3000))
        )
        length = len(chosen)
        if length < 4:
            continue
        purpose, device = int(draw.integers(0, 4)), int(draw.integers(0, 3))
        days, budget = float(np.floor(draw.pareto(0.9) * 5)), float(np.exp(4.6 + 0.5 * draw.normal()))
        price = world["base_price"][chosen] * np.exp(0.25 * draw.normal(size=length)) * (1.5 if days < 2 else 1.0)
        price = np.where(draw.random(length) < 0.002, price * 1000, price)
        discount = np.where(draw.random(length) < 0.3, np.round(draw.beta(2, 6, length) * 100), np.nan)
        rating = np.where(draw.random(length) < 0.25, np.nan, world["rating"][chosen])
        reviews, stars = world["reviews"][chosen], world["stars"][chosen]
        cheaper = (price[:, None] > price).mean(1)
        rivals = (world["brand"][chosen][:, None] == world["brand"][chosen]).sum(1) - 1
        relative = np.log(price) - np.log(price).mean()
        logit = (
            -3.2
            + 0.5 * quality[chosen]
            + brand_effect[world["brand"][chosen]]
            + kind_effect[purpose, world["kind"][chosen]]
            + 0.8 * (np.nan_to_num(rating, nan=6.5) > 7.5)
            + 0.5 * (reviews > 50)
            - 0.8 * (price > 1.4 * budget)
            + 0.6 * (np.nan_to_num(discount) > 25)
            + 0.3 * (stars >= 4) * (purpose == 1)
            - 0.4 * np.log1p(world["distance"][chosen]) * (purpose != 2)
            - (1.2 if device == 0 else 0.5) * relative
            + 0.8 * (cheaper < 0.15)
            - 0.7 * np.minimum(rivals, 3)
            + 0.4 * (stars - stars.mean())
        )
        shown = np.empty(length, dtype=int)
        shown[np.argsort(-(logit + 1.6 * draw.normal(size=length)), kind="stable")] = np.arange(length)
        click = draw.random(length) < 1 / (1 + np.exp(-logit - 1.2)) * (1 / (1 + 0.25 * shown))
        if not click.any():
            continue
        nullable = {"rating": rating, "discount": discount}
        row = {name: [None if np.isnan(v) else float(v) for v in values] for name, values in nullable.items()}
        return row | {
            "list_id": f"{split}-{number}",
            "hotel": chosen.tolist(),
            "brand": world["brand"][chosen].tolist(),
            "kind": world["kind"][chosen].tolist(),
            "stars": stars.tolist(),
            "reviews": reviews.tolist(),
            "price": np.round(price, 2).tolist(),
            "distance": np.round(world["distance"][chosen], 2).tolist(),
            "sponsored": (draw.random(length) < 0.05).astype(float).tolist(),
            "device": device,
            "purpose": purpose,
            "days_ahead": days,
            "budget": None if draw.random() < 0.3 else budget,
            "position": shown.tolist(),
            "click": click.astype(int).tolist(),
        }
