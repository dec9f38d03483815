"""Test lists with every kind of feature and every tensor of ``hf_rerank.schema.TENSORS``."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_rerank import Categorical, Dense, ListSchema, Vector

LONGEST = 30
SCHEMA = ListSchema(
    items=[
        Categorical("item_id", min_count=1),
        Categorical("shop", min_count=1),
        Dense("price", scale="log"),
        Dense("stars", missing="indicator"),
        Vector("text", dim=3),
    ],
    user=[Categorical("gender", min_count=1), Dense("age")],
    history=[Categorical("seen", shares="item_id"), Categorical("page", min_count=1), Dense("hours")],
    position="place",
    initial_score="earlier",
    weight="weight",
    propensity="looked",
    attraction="truth",
    id="sku",
    list_id="list_id",
    cut_label="cut",
    max_list_length=LONGEST,
    max_history_length=6,
)
# Outcome columns, absent from lists to be ranked.
OUTCOME = ("click", "weight", "looked", "truth")


def made_rows(count: int, seed: int = 0, *, outcome: bool = False) -> list[dict[str, Any]]:
    """Lists of 1 to 30 items, with histories of 0 to 8 entries, in a random initial order.

    Args:
        count: Number of lists.
        seed: Seed of all values.
        outcome: Whether to include labels, weights, propensities and true attraction.
    """
    draw, more = np.random.default_rng(seed), np.random.default_rng([seed, 1])

    def row(number: int) -> dict[str, Any]:
        length, history = int(draw.integers(1, LONGEST + 1)), int(draw.integers(0, 9))
        stars = draw.normal(size=length)
        columns = {
            "list_id": f"list-{number}",
            "item_id": draw.integers(200, size=length).tolist(),
            "shop": [f"shop {shop}" for shop in draw.integers(5, size=length)],
            "price": draw.lognormal(size=length).tolist(),
            "stars": [None if draw.random() < 0.1 else float(value) for value in stars],
            "text": draw.normal(size=(length, 3)).tolist(),
            "gender": int(draw.integers(2)),
            "age": float(draw.normal()),
            "seen": draw.integers(200, size=history).tolist(),
            "page": draw.integers(4, size=history).tolist(),
            "hours": draw.random(history).tolist(),
            "place": draw.permutation(length).tolist(),
            "earlier": more.normal(size=length).tolist(),
            "sku": [f"sku {item}" for item in more.integers(10**6, size=length)],
            "click": more.integers(2, size=length).tolist(),
            "weight": more.random(length).tolist(),
            "looked": (1 - more.random(length)).tolist(),
            "truth": more.random(length).tolist(),
        }
        if outcome:
            columns["cut"] = [number % 2] * (number % 3)
        return {name: value for name, value in columns.items() if outcome or name not in OUTCOME}

    return [row(number) for number in range(count)]


ROWS = made_rows(1000)
