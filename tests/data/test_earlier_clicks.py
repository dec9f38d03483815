"""Histories from earlier lists, against a loop over dictionaries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hf_rerank.data.earlier_clicks import clicks_of


def slow(rows: list[dict[str, Any]], columns: list[str], longest: int) -> list[dict[str, list[Any]]]:
    """The obvious way: a list of clicks for each user, appended to after its list was read."""
    clicks: dict[Any, list[dict[str, Any]]] = {}
    found = []
    for number, row in enumerate(rows):
        newest_first = clicks.setdefault(row["user"], [])[::-1][:longest]
        history = {f"history_{name}": [click[name] for click in newest_first] for name in columns}
        found.append({**history, "history_lists_ago": [number - click["number"] for click in newest_first]})
        for slot, label in enumerate(row["click"]):
            if label > 0:
                clicks[row["user"]].append({"number": number, **{name: row[name][slot] for name in columns}})
    return found


def test_by_hand() -> None:
    rows = [
        {"user": "a", "item": [5, 6, 7], "click": [1, 0, 1]},
        {"user": "b", "item": [8], "click": [1]},
        {"user": "a", "item": [9, 5], "click": [0, 2]},
        {"user": "a", "item": [1], "click": [0]},
    ]
    table = pa.Table.from_pylist(rows)
    found = clicks_of([table], ["item"], label="click", group="user").histories(table, 0, 2)
    assert found["history_item"].to_pylist() == [[], [], [7, 5], [5, 7]]
    assert found["history_lists_ago"].to_pylist() == [[], [], [2, 2], [1, 3]]


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_slow_way_over_batches(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(int(random.integers(1, 60))):
        length = int(random.integers(1, 5))
        rows.append(
            {
                "user": int(random.integers(6)) if seed % 2 else f"user {random.integers(6)}",
                "item": random.integers(0, 9, length).tolist(),
                "brand": [None if value == 0 else f"b{value}" for value in random.integers(0, 4, length)],
                "click": random.integers(0, 2, length).tolist(),
            }
        )
    types = pa.schema(
        [
            ("user", pa.int64() if seed % 2 else pa.string()),
            ("item", pa.list_(pa.int64())),
            ("brand", pa.list_(pa.string())),
            ("click", pa.list_(pa.int8())),
        ]
    )
    table = pa.Table.from_pylist(rows, types)
    size = int(random.integers(1, 20))
    batches = [table.slice(start, size) for start in range(0, len(rows), size)]
    clicks = clicks_of(batches, ["item", "brand"], label="click", group="user")
    found: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        columns = clicks.histories(batch, number * size, 4)
        found += pa.table(columns).to_pylist()
    assert found == slow(rows, ["item", "brand"], 4)
