"""Plain rows: converting them at once or column by column gives the same lists and the same errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hf_rerank import validation
from hf_rerank.errors import InputError
from hf_rerank.fast_rows import PlainColumns, read_plain_columns
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector
from hf_rerank.validation import Lists

SCHEMA = ListSchema(
    items=[Categorical("item"), Categorical("shop"), Dense("price"), Dense("stars", missing="error"), Vector("v", 1)],
    user=[Categorical("city"), Categorical("group"), Dense("age"), Dense("visits")],
    history=[Categorical("seen", shares="item")],
    label="click",
)
OF_ITEMS, OF_USER = ("item", "shop", "price", "stars"), ("city", "group", "age", "visits")


def plain_row(**changes: Any) -> dict[str, Any]:
    """A plain list of three items; a value of ``...`` leaves out the column."""
    columns = {
        "item": [5, 7, 6],
        "shop": [0, 2, 0],
        "price": [1.5, 2.5, 1e30],
        "stars": [3, 4, 2**40],
        "v": [[0.5], [1.0], [1.5]],
        "city": 3,
        "group": 0,
        "age": 31.5,
        "visits": 2,
        "seen": [7],
        **changes,
    }
    return {name: value for name, value in columns.items() if value is not ...}


# Replacements for the three values of an item column.
ODD_ITEMS: dict[str, Any] = {
    "absent": ...,
    "none": None,
    "empty": [],
    "short": [1, 2],
    "long": [1, 2, 3, 4],
    "one value": 5,
    "text": ["a", "b", "c"],
    "one text": "abc",
    "tuple": (1, 2, 3),
    "range": range(3),
    "mixed": [1, "a", 2],
    "null": [1, None, 2],
    "nulls": [None] * 3,
    "negative": [1, -2, 3],
    "booleans": [True, False, True],
    "boolean first": [True, 1, 2],
    "boolean last": [1, 2, True],
    "boolean among numbers": [1.5, 2.5, True],
    "NaN": [1.0, math.nan, 2.0],
    "infinity": [1.0, math.inf, 2.0],
    "beyond float32": [1.0, 2.0, 1e39],
    "integers and numbers": [1, 2.5, 3],
    "beyond float64": [2**60 + 1, 2.5, 3],
    "largest": [2**63 - 1, 1, 2],
    "beyond int64": [2**63, 1, 2],
    "nested": [[1], [2], [3]],
    "bytes": [b"a", b"b", b"c"],
    "dictionary": {"a": 1},
    "int64 array": np.array([1, 2, 3]),
    "float32 array": np.array([1.5, 2.5, 3.5], np.float32),
    "matrix": np.ones((3, 1)),
    "scalars": [np.int8(1), np.int8(2), np.int8(3)],
    "uint64": np.array([2**63] * 3),
    "float32 scalars": [np.float32(1.5), 1.5, 2.5],
    "float NaN array": np.array([1.0, np.nan, 1.0]),
}
ODD_USER: dict[str, Any] = {
    "absent": ...,
    "none": None,
    "text": "a",
    "list": [1],
    "negative": -1,
    "boolean": True,
    "NaN": math.nan,
    "infinity": -math.inf,
    "number": 1.5,
    "beyond int64": 2**63,
    "numpy": np.int64(4),
    "float32": np.float32(0.1),
}
CASES = [(name, odd, value) for name in OF_ITEMS for odd, value in ODD_ITEMS.items()]
CASES += [(name, odd, value) for name in OF_USER for odd, value in ODD_USER.items()]


def columns_or_error(rows: list[dict[str, Any]], schema: ListSchema) -> Any:
    """The columns as numbers or text and the other fields, or the error message."""
    try:
        lists = Lists.from_rows(rows, schema)
    except InputError as error:
        return str(error)
    parts = {**lists.items, **lists.user, **lists.history}
    return (
        {name: column.tolist() if hasattr(column, "tolist") else column.to_pylist() for name, column in parts.items()},
        [lists.lengths.tolist(), lists.history_lengths.tolist(), lists.positions.tolist(), lists.labels, lists.ids],
    )


@pytest.mark.parametrize(("name", "odd", "value"), CASES, ids=[f"{name}: {odd}" for name, odd, _ in CASES])
def test_fast_and_slow_conversion_give_the_same_lists_and_errors(
    name: str, odd: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, among = [plain_row(**{name: value})], [plain_row(), plain_row(**{name: value}), plain_row(item=[1, 2, 3])]
    short = ListSchema(items=[Categorical("item"), *([] if name == "item" else SCHEMA.items[1:4])], user=SCHEMA.user)
    at_once = [columns_or_error(rows, schema) for rows in (alone, among) for schema in (SCHEMA, short)]
    monkeypatch.setattr(validation, "read_plain_columns", lambda *_: PlainColumns(None, {}))
    assert at_once == [columns_or_error(rows, schema) for rows in (alone, among) for schema in (SCHEMA, short)]


def test_plain_columns_are_read() -> None:
    found = read_plain_columns([plain_row(), plain_row(item=[1, 2, 3])], SCHEMA)
    assert set(found.columns) == {*OF_ITEMS, *OF_USER}
    assert found.lengths is not None
    assert found.lengths.tolist() == [3, 3]
    assert found.columns["item"].to_pylist() == [5, 7, 6, 1, 2, 3]
    assert found.columns["price"].to_pylist() == [1.5, 2.5, 1e30] * 2
    assert found.columns["age"].to_pylist() == [31.5, 31.5]


def test_a_column_that_is_not_plain_only_affects_columns_of_its_kind() -> None:
    found = read_plain_columns([plain_row(shop=["a", "b", "c"], age=None)], SCHEMA)
    assert set(found.columns) == {"price", "stars", "city", "group"}
    assert not read_plain_columns([plain_row(item=[])], SCHEMA).columns.keys() & set(OF_ITEMS)


def test_empty_input_gives_no_columns() -> None:
    assert read_plain_columns([], SCHEMA).columns == {}
    assert len(Lists.from_rows([], SCHEMA)) == 0
