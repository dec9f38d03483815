"""RerankCollator: one batch from any form of lists; labels, ids and the other tensors; errors that say where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from all_features import OUTCOME, SCHEMA, made_rows
from datasets import Dataset
from torch.utils.data import DataLoader

from hf_rerank import Categorical, Dense, InputError, ListProcessor, ListSchema, RerankCollator
from hf_rerank.processing.collator import decode_list_ids, hash_list_ids
from hf_rerank.schema import MODEL_TENSORS, TENSORS

ROWS = made_rows(12, seed=4, outcome=True)
OF_ITEMS = ("item_id", "shop", "price", "stars", "text", "place", "earlier", "sku", *OUTCOME)
OF_HISTORY = ("seen", "page", "hours")


def as_items(row: dict[str, Any], *, with_history: bool = True) -> dict[str, Any]:
    """The same list with a dict per item, and one per history item."""

    def entries(names: tuple[str, ...]) -> list[dict[str, Any]]:
        there = [name for name in names if name in row]
        return [dict(zip(there, values, strict=True)) for values in zip(*(row[name] for name in there), strict=True)]

    columns = (*OF_ITEMS, *OF_HISTORY) if with_history else OF_ITEMS
    whole = {name: value for name, value in row.items() if name not in columns}
    return {**whole, "items": entries(OF_ITEMS), **({"history": entries(OF_HISTORY)} if with_history else {})}


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def test_docstring_example() -> None:
    lists = [{"category": ["shoes", "bags"], "click": [0, 1]}, {"category": ["bags"], "click": [1]}]
    schema = ListSchema(items=[Categorical("category", min_count=1)])
    batch = RerankCollator(ListProcessor.from_lists(pa.Table.from_pylist(lists), schema=schema))(lists)
    assert {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in batch.items()} == {
        "item_categorical": ("torch.int64", [[[3], [2]], [[2], [0]]]),
        "mask": ("torch.bool", [[True, True], [True, False]]),
        "position_ids": ("torch.int64", [[0, 1], [0, 1]]),
        "labels": ("torch.float32", [[0.0, 1.0], [1.0, -100.0]]),
    }


FORMS = {
    "table": lambda: pa.Table.from_pylist(ROWS),
    "record batch": lambda: pa.Table.from_pylist(ROWS).to_batches()[0],
    "tuple": lambda: tuple(ROWS),
    "items": lambda: [as_items(row) for row in ROWS],
    "items, history as columns": lambda: [as_items(row, with_history=False) for row in ROWS],
    "rows of a dataset": lambda: [Dataset.from_list(ROWS)[number] for number in range(len(ROWS))],
    "arrays": lambda: [{**row, "price": np.array(row["price"]), "click": np.array(row["click"])} for row in ROWS],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_batch(form: str, processor: ListProcessor) -> None:
    collator = RerankCollator(processor, all_tensors=True)
    expected = collator(ROWS)
    assert set(expected) == set(TENSORS)
    assert_same(collator(FORMS[form]()), expected)


def test_batch_equals_the_output_of_the_processor_with_labels(processor: ListProcessor) -> None:
    assert_same(RerankCollator(processor)(ROWS), processor(ROWS, with_labels=True))


def test_batch_holds_only_model_tensors_unless_all_are_asked_for(processor: ListProcessor) -> None:
    assert set(RerankCollator(processor)(ROWS)) == set(MODEL_TENSORS)
    bare = [{name: value for name, value in row.items() if name not in OUTCOME} for row in ROWS]
    features = RerankCollator(processor, with_labels=False)(bare)
    assert set(MODEL_TENSORS) - set(features) == {"labels", "weights", "propensities"}
    everything = RerankCollator(processor, with_labels=False, all_tensors=True)(bare)
    assert set(everything) - set(features) == {"list_id"}


def test_collator_works_in_a_data_loader(processor: ListProcessor) -> None:
    loader: Any = DataLoader(ROWS, batch_size=5, collate_fn=RerankCollator(processor))  # type: ignore[arg-type]
    for number, batch in enumerate(loader):
        assert_same(batch, RerankCollator(processor)(ROWS[5 * number : 5 * number + 5]))
    assert number == 2


def test_list_ids_come_from_the_column_or_are_numbers(processor: ListProcessor) -> None:
    collator = RerankCollator(processor, all_tensors=True)
    rows = [{**row, "list_id": name} for row, name in zip(ROWS, ("a", "商品 7", "", "a longer one"), strict=False)]
    assert decode_list_ids(collator(rows)["list_id"]) == ["a", "商品 7", "", "a longer one"]
    unnamed = [{name: value for name, value in row.items() if name != "list_id"} for row in ROWS[:3]]
    assert decode_list_ids(collator(unnamed)["list_id"]) == ["0", "1", "2"]
    given = collator.to_tensors(collator.encode(unnamed, first=10))
    assert decode_list_ids(given["list_id"]) == ["10", "11", "12"]
    named = collator.to_tensors(collator.encode(unnamed, ids=["x", "y", "z"]))
    assert decode_list_ids(named["list_id"]) == ["x", "y", "z"]
    assert decode_list_ids(collator.to_tensors(collator.encode(rows[:1], ids=["x"]))["list_id"]) == ["a"]


def test_hash_of_a_list_id_is_the_same_in_any_batch(processor: ListProcessor) -> None:
    """However long the other ids are; and different ids have different hashes."""
    collator = RerankCollator(processor, all_tensors=True)
    keys = hash_list_ids(collator(ROWS)["list_id"])
    assert keys.dtype == torch.int64
    assert len(set(keys.tolist())) == len(ROWS)
    beside = collator([ROWS[3], {**ROWS[0], "list_id": "a" * 100}])["list_id"]
    assert hash_list_ids(beside)[0] == keys[3]


def test_truncating_keeps_the_first_positions(processor: ListProcessor) -> None:
    short = ListProcessor(processor.schema.replace(max_list_length=2), processor.vocabularies, processor.scales)
    row = {**next(row for row in ROWS if len(row["item_id"]) > 3)}
    with pytest.raises(InputError, match=rf"list {row['list_id']} has {len(row['item_id'])} items.*max_list_length=2"):
        RerankCollator(short)([row])
    batch = RerankCollator(short, truncate=True)([row])
    kept = [slot for slot, place in enumerate(row["place"]) if place < 2]
    assert batch["labels"].tolist() == [[row["click"][slot] for slot in kept]]
    assert batch["position_ids"].tolist() == [[row["place"][slot] for slot in kept]]


SMALL = ListSchema(items=[Categorical("item_id"), Dense("price")], user=[Categorical("city")], list_id="query")


def small(name: str = "second", **changes: Any) -> dict[str, Any]:
    """A list of two items; ``...`` leaves a column out."""
    columns = {"query": name, "item_id": [5, 5], "price": [1.0, 2.0], "city": 7, "click": [0, 1], **changes}
    return {column: value for column, value in columns.items() if value is not ...}


def small_items(**changes: Any) -> dict[str, Any]:
    items = [{"item_id": 5, "price": 1.0, "click": 0}, {"item_id": 5, "price": 2.0, "click": 1}]
    return {"query": "second", "city": 7, "items": items, **changes}


IN_COLUMNS = [
    ([small("first"), small(click=...)], r"list 1 \(id second\) lacks the column 'click', which other lists have"),
    ([small(click=...)], r"no column 'click'; their columns: query, item_id, price, city"),
    ([small("first"), small(price=[1.0])], r"list 1 \(id second\) is ragged: column 'price' has 1 values.*'item_id'"),
    (
        [small("first"), small(click=[0, -1])],
        r"'click' holds -1.* in list 1 \(id second\), item 1: expected at le",
    ),
    (
        [small("first"), small(price=[1.0, "dear"])],
        r"column 'price' of list 1 \(id second\) holds values of sev",
    ),
    ([small("first"), "second"], "list 1 is a str: expected a dictionary of columns"),
    (small(), "expected a sequence of lists, one dict per list, got dict"),
]
IN_ITEMS = [
    ([small_items(), small_items(items=...)], "list 1 has no 'items', which other lists have: give all lists in the "),
    ([small_items(), small()], "list 1 has no 'items', which other lists have: give all lists in the same form"),
    ([small_items(), small_items(items=[{"item_id": 5}, 7])], "item 1 of list 1 is a int: expected a dict"),
    ([small_items(), small_items(items="ab")], "item 0 of list 1 is in a str: expected a list of dicts"),
    (
        [small_items(items=[{"item_id": 5, "price": 1.0}, {"item_id": 5, "pirce": 1.0}])],
        "item 1 of list 0 lacks 'price', which item 0 of list 0 has: give every .*missing; did you mean 'pirce'",
    ),
    (
        [small_items(items=[{"item_id": 5}, {"item_id": 5, "price": 1.0}])],
        "item 0 of list 0 lacks 'price', which item 1 of list 0 has",
    ),
    ([small_items(items=[{"item_id": 5, "price": 1.0}])], "no column 'click'"),
    ([small_items(), small_items(items=[])], "list 1 is empty: expected at least one item; leave it out"),
    ([small_items(items=[])], "list 0 is empty: expected at least one item; leave it out"),
    ([small_items(items=[7])], "item 0 of list 0 is a int: expected a dict"),
    ([small_items(items=7)], "item 0 of list 0 is in a int: expected a list of dicts"),
    ([small(), small_items()], r"list 1 \(id second\) lacks the column '(item_id|price)', which other lists have"),
]


@pytest.mark.parametrize(("lists", "message"), [*IN_COLUMNS, *IN_ITEMS])
def test_error_names_the_wrong_list(lists: Any, message: str) -> None:
    processor = ListProcessor.from_lists(pa.Table.from_pylist([small(), small()]), schema=SMALL)
    if isinstance(lists, list):
        lists = [{k: v for k, v in row.items() if v is not ...} if isinstance(row, dict) else row for row in lists]
    with pytest.raises(InputError, match=message) as caught:
        RerankCollator(processor)(lists)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lists", "message"), [IN_COLUMNS[1], IN_COLUMNS[2], IN_COLUMNS[3]])
def test_wrong_tables_give_the_same_messages_as_dicts(lists: Any, message: str) -> None:
    processor = ListProcessor.from_lists(pa.Table.from_pylist([small(), small()]), schema=SMALL)
    with pytest.raises(InputError, match=message):
        RerankCollator(processor)(pa.Table.from_pylist(lists))


def test_label_above_the_highest_label_is_refused() -> None:
    processor = ListProcessor.from_lists(pa.Table.from_pylist([small(), small()]), schema=SMALL)
    lists = [small("first"), small(click=[0, 3])]
    assert RerankCollator(processor)(lists)["labels"].tolist() == [[0, 1], [0, 3]]
    with pytest.raises(InputError, match=r"label 3 in list second: .* from 0 to 1 \(column 'click'\).*softmax_loss"):
        RerankCollator(processor, highest_label=1)(lists)


def test_a_feature_named_items_is_a_column() -> None:
    schema = ListSchema(items=[Categorical("items", min_count=1)])
    lists = [{"items": ["a", "b"], "click": [0, 1]}]
    processor = ListProcessor.from_lists(pa.Table.from_pylist(lists), schema=schema)
    assert RerankCollator(processor)(lists)["item_categorical"].tolist() == [[[2], [3]]]
