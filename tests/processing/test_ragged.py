"""Encoded lists before padding: selected, reordered or joined, they equal the same lists encoded at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from all_features import SCHEMA, made_rows

from hf_rerank import ListProcessor, RerankCollator
from hf_rerank.processing.ragged import RaggedLists, concatenate
from hf_rerank.schema import AFTER_THE_ITEMS, TENSORS

ROWS = made_rows(20, seed=2, outcome=True)
EVEN = [{name: value[:3] if isinstance(value, list) else value for name, value in row.items()} for row in ROWS]
EVEN = [row for row in EVEN if len(row["item_id"]) == 3]
for number, even in enumerate(EVEN):
    even["place"] = [[0, 1, 2], [2, 0, 1]][number % 2]


@pytest.fixture(scope="module")
def collator() -> RerankCollator:
    return RerankCollator(ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA), all_tensors=True)


def assert_same(found: RaggedLists, expected: RaggedLists) -> None:
    first, second = found.pad(), expected.pad()
    assert first.keys() == second.keys() == set(TENSORS)
    for name, array in first.items():
        assert array.dtype == second[name].dtype == TENSORS[name].dtype
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.parametrize("rows", [ROWS, EVEN], ids=["of any length", "equally long"])
def test_taken_lists_equal_the_same_lists_encoded(rows: list[dict], collator: RerankCollator) -> None:
    whole = collator.encode(rows)
    assert len(whole) == len(rows)
    for chosen in ([0], [3, 1, 1, 5], range(len(rows)), np.array([len(rows) - 1, 0])):
        assert_same(whole.take(chosen), collator.encode([rows[number] for number in chosen]))


@pytest.mark.parametrize("rows", [ROWS, EVEN], ids=["of any length", "equally long"])
def test_concatenated_parts_equal_lists_encoded_together(rows: list[dict], collator: RerankCollator) -> None:
    parts = [collator.encode(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    assert_same(concatenate(parts), collator.encode(rows))
    assert_same(concatenate(parts[:1]), parts[0])


def test_empty_lists_that_fill_a_batch_hold_only_padding(collator: RerankCollator) -> None:
    whole = collator.encode(ROWS[:3])
    filled = concatenate([whole, whole.make_empty(2)])
    assert len(filled) == 5
    arrays, before = filled.pad(), whole.pad()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array[:3], before[name], err_msg=name)
        spec = TENSORS[name]
        if name.startswith("user"):
            np.testing.assert_array_equal(array[3:], np.repeat(before[name][:1], 2, axis=0))
        elif spec.fill == AFTER_THE_ITEMS:
            assert (array[3:] == np.arange(array.shape[1])).all()
        else:
            assert (array[3:] == spec.fill).all(), name
    alone = whole.make_empty(2).pad()
    assert alone["mask"].tolist() == [[False], [False]]  # models never receive an axis of length 0
    assert alone["item_categorical"].shape == (2, 1, 2)


def test_batch_arrays_share_no_memory_with_the_input(collator: RerankCollator) -> None:
    """They are writable, and not memory of the caller, of Arrow or of another batch: training may change them."""
    prices = np.array([1.0, 2.0, 3.0])
    table = pa.Table.from_pylist(EVEN)
    kept = table.to_pylist()
    for lists in ([{**EVEN[0], "price": prices}], table):
        for array in collator.encode(lists).pad().values():
            assert array.flags.writeable
            array[...] = 0
    assert prices.tolist() == [1.0, 2.0, 3.0]
    assert table.to_pylist() == kept


def test_with_ids_accepts_ids_of_any_length(collator: RerankCollator) -> None:
    whole = collator.encode(ROWS[:3])
    ids = whole.with_ids(["", "ü", "abc"]).pad()["list_id"]
    assert ids.tolist() == [[0, 0, 0], [0xC3, 0xBC, 0], [97, 98, 99]]
    assert whole.with_ids(["a", "b", "c"]).rows["labels"] is whole.rows["labels"]
