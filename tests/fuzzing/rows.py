"""Kind ``rows``: lists given in Python, one of which contains a value that no list should."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from all_features import SCHEMA, made_rows

from fuzzing.judging import ANY, SAME, judge, wrong_rankings
from fuzzing.values import PYTHON_VALUES
from hf_rerank import ListProcessor, Reranker

HISTORY = tuple(feature.name for feature in SCHEMA.history)
USER = ("list_id", *(feature.name for feature in SCHEMA.user))
COUNT = 4


class SumScorer:
    """Scores each item by the sum of its features, which shows what would reach a model."""

    schema_fingerprint = None
    task_loss = "binary_log_loss"

    def scores(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        item = features["item_dense"].sum(-1) + features["item_vectors"].sum(-1) + features["item_categorical"].sum(-1)
        user = features["user_dense"].sum(-1) + features["user_categorical"].sum(-1)
        history = features["history_categorical"].sum((1, 2)) + features["history_dense"].sum((1, 2))
        return (item - features["position_ids"] + (user + history)[:, None]).astype(np.float32)

    def save_pretrained(self, folder: Path) -> None:
        raise NotImplementedError


class Rows:
    def __init__(self, folder: Path) -> None:
        del folder
        learned = pa.Table.from_pylist(made_rows(50))
        self.reranker = Reranker(ListProcessor.from_lists(learned, schema=SCHEMA), SumScorer())
        self.rows = made_rows(COUNT, seed=1)
        self.expected = self.reranker.rerank(self.rows)

    def try_one(self, draw: random.Random) -> tuple[str, str]:
        ways = (
            self._column,
            self._entry,
            self._extra_column,
            self._missing_values,
            self._row,
            self._items,
            self._frame,
            self._option,
        )
        return draw.choice(ways)(draw)

    def _judge(self, lists: Any, broken: int | None, expected: str = ANY, **options: Any) -> str:
        """``broken``: index of the damaged list, whose result may be anything; None: no list is damaged."""

        def check(results: Any) -> str | None:
            if not isinstance(results, list):
                results = pl.DataFrame(results).to_dicts()
                return None if results else "nothing is ranked"
            lengths = [len(row["item_id"]) for row in self.rows]
            if broken is not None:
                lengths[broken] = len(results[broken]["order"])
            if options.get("top_k") is not None:
                return None
            others = [number for number in range(COUNT) if number != broken]
            changed = any(results[number] != self.expected[number] for number in others)
            return "another list changed" if changed else wrong_rankings(results, lengths)

        return judge(lambda: self.reranker.rerank(lists, **options), check, expected)

    def _copies(self, draw: random.Random) -> tuple[list[dict[str, Any]], int]:
        return copy.deepcopy(self.rows), draw.randrange(COUNT)

    def _column(self, draw: random.Random) -> tuple[str, str]:
        rows, number = self._copies(draw)
        name = draw.choice(list(rows[number]))
        rows[number][name] = draw.choice(PYTHON_VALUES)()
        return f"column {name}", self._judge(rows, number)

    def _entry(self, draw: random.Random) -> tuple[str, str]:
        rows, number = self._copies(draw)
        name = draw.choice([name for name, value in rows[number].items() if isinstance(value, list) and value])
        rows[number][name][draw.randrange(len(rows[number][name]))] = draw.choice(PYTHON_VALUES)()
        return f"entry of {name}", self._judge(rows, number)

    def _extra_column(self, draw: random.Random) -> tuple[str, str]:
        """Adds a column that nothing reads: its name and values must change nothing."""
        rows, number = self._copies(draw)
        names = (1, None, 1.5, (1, 2), b"price", "", "\ud800", "a\nb", 10**5000, True, "note")
        rows[number][draw.choice(names)] = draw.choice(PYTHON_VALUES)()  # type: ignore[index]
        lost = draw.random() < 0.3
        if lost:  # the message then lists the column names
            for row in rows:
                del row["price"]
        return "more columns", self._judge(rows, None, ANY if lost else SAME)

    def _missing_values(self, draw: random.Random) -> tuple[str, str]:
        rows, number = self._copies(draw)
        name = draw.choice(list(rows[number]))
        how = draw.choice(("drop", "drop from all", "rename", "shorten", "lengthen"))
        value = rows[number][name]
        if how == "drop from all":
            for row in rows:
                del row[name]
            return f"{how} {name}", judge(lambda: self.reranker.rerank(rows), lambda results: None)
        if how in ("drop", "rename"):
            rows[number].pop(name)
        if how == "rename":
            rows[number][name + "s"] = value
        if how == "shorten" and isinstance(value, list):
            rows[number][name] = value[:-1]
        if how == "lengthen" and isinstance(value, list):
            rows[number][name] = value * 2
        return f"{how} {name}", self._judge(rows, number)

    def _row(self, draw: random.Random) -> tuple[str, str]:
        rows: Any
        rows, number = self._copies(draw)
        value = draw.choice(PYTHON_VALUES)()
        if draw.random() < 0.5:
            rows[number] = value
            return "a row", self._judge(rows, number)
        return "all rows", judge(
            lambda: self.reranker.rerank(value), lambda results: None if results == [] else "ranked"
        )

    def _items(self, draw: random.Random) -> tuple[str, str]:
        """Passes the same lists as dicts of items, one of them with a changed key or value."""
        rows, number = self._copies(draw)
        lists = [self._as_items(row) for row in rows]
        items = lists[number]["items"]
        what = draw.choice(("nothing", "value", "key", "item", "items"))
        if what == "value":
            items[0][draw.choice(list(items[0]))] = draw.choice(PYTHON_VALUES)()
        elif what == "key":
            items[-1][draw.choice((1, "\ud800", "a\nb", None, "prise", 10**5000))] = 1  # type: ignore[index]
        elif what == "item":
            items[-1] = draw.choice(PYTHON_VALUES)()
        elif what == "items":
            lists[number]["items"] = draw.choice(PYTHON_VALUES)()
        broken = None if what == "nothing" else number
        return f"dicts of items: {what}", self._judge(lists, broken, SAME if what == "nothing" else ANY)

    @staticmethod
    def _as_items(row: dict[str, Any]) -> dict[str, Any]:
        of_items = [name for name in row if name not in (*USER, *HISTORY)]
        found: dict[str, Any] = {name: row[name] for name in USER}
        for key, names in (("items", of_items), ("history", list(HISTORY))):
            found[key] = [
                dict(zip(names, values, strict=True)) for values in zip(*(row[n] for n in names), strict=True)
            ]
        return found

    def _frame(self, draw: random.Random) -> tuple[str, str]:
        rows, number = self._copies(draw)
        name = draw.choice(list(rows[number]))
        if draw.random() < 0.7:
            rows[number][name] = draw.choice(PYTHON_VALUES)()
        frame = pd.DataFrame({column: pd.Series([row[column] for row in rows], dtype=object) for column in rows[0]})
        if draw.random() < 0.3:
            frame[draw.choice((1, None, ("a", "b")))] = 1
        return f"frame with another {name}", self._judge(frame, number)

    def _option(self, draw: random.Random) -> tuple[str, str]:
        name = draw.choice(("top_k", "batch_size", "truncate", "with_report"))
        if name == "with_report":
            return name, self._judge(self.rows, None, SAME)
        value = draw.choice(PYTHON_VALUES)()
        return f"option {name}", self._judge(self.rows, None, ANY, **{name: value})
