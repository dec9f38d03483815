"""Batches: the trainer reads the lists as the processor encodes them, whatever their place in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tiny_world import collator_of

from hf_rerank import Categorical, InputError, ListProcessor, ListSchema
from hf_rerank.processing.collator import decode_list_ids, hash_list_ids
from hf_rerank.processing.ragged import RaggedLists
from hf_rerank.training.encoded_lists import EncodedLists, collate

IDS = ["a", "list-17", "ü€", "list-1"]


def encode_ids(ids: list[str]) -> torch.Tensor:
    lists = RaggedLists({"L": np.zeros(len(ids), dtype=np.int64)}, {})
    return torch.from_numpy(lists.with_ids(ids).pad()["list_id"])


def test_ids_are_encoded_as_bytes_and_decoded() -> None:
    coded = encode_ids(IDS)
    assert coded.dtype == torch.uint8
    assert decode_list_ids(coded) == IDS
    assert decode_list_ids(encode_ids(["", ""])) == ["", ""]


def test_list_keys_do_not_depend_on_the_batch() -> None:
    """Ids are padded with zeros next to longer ones; the keys stay the same, and differ between lists."""
    coded = encode_ids(IDS)
    keys = hash_list_ids(coded)
    assert keys.dtype == torch.int64
    assert len(set(keys.tolist())) == len(IDS)
    for number, text in enumerate(IDS):
        assert hash_list_ids(encode_ids([text])) == keys[number]
    assert hash_list_ids(torch.nn.functional.pad(coded, (0, 9))).equal(keys)
    # The definition of the key: sum of byte i times the (i + 1)-th power of the FNV prime, modulo 2**64.
    expected = sum(byte * 0x100000001B3 ** (place + 1) for place, byte in enumerate(b"list-17"))
    assert (int(keys[1]) - expected) % 2**64 == 0


def test_a_batch_equals_the_output_of_the_processor(lists: dict[str, Any], processor: ListProcessor) -> None:
    indices = [5, 0, 11]
    batch = collate(EncodedLists(lists["train"], collator_of(processor)).__getitems__(indices))
    expected = processor([lists["train"][index] for index in indices], with_labels=True)
    assert decode_list_ids(batch.pop("list_id")) == [lists["train"][index]["list_id"] for index in indices]
    for number, index in enumerate(indices):  # true attraction is for metrics, not a model input
        true = lists["train"][index]["attraction"]
        assert batch["attraction"][number, : len(true)].tolist() == pytest.approx(true)
    batch.pop("attraction")
    assert batch.keys() == expected.keys() - {"attraction"}
    for name, tensor in batch.items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.equal(expected[name]), name


def test_collating_single_lists_equals_a_whole_batch(lists: dict[str, Any], processor: ListProcessor) -> None:
    encoded = EncodedLists(lists["train"], collator_of(processor))
    indices = list(range(20))
    whole, joined = collate(encoded.__getitems__(indices)), collate([encoded[index] for index in indices])
    assert whole.keys() == joined.keys()
    assert len({int(encoded[index].lengths["L"][0]) for index in indices}) > 1
    for name in whole:
        assert joined[name].dtype == whole[name].dtype, name
        assert joined[name].equal(whole[name]), name


def test_history_is_padded_separately_from_items() -> None:
    schema = ListSchema(
        items=[Categorical("item_id", min_count=1)],
        history=[Categorical("seen", shares="item_id")],
        list_id="list_id",
    )
    rows = [
        {"list_id": "a", "item_id": [1, 2, 3], "seen": [1], "click": [0, 1, 0]},
        {"list_id": "b", "item_id": [2], "seen": [3, 2, 1, 1], "click": [1]},
        {"list_id": "c", "item_id": [2, 1], "seen": [], "click": [0, 0]},
    ]
    lists = datasets.Dataset.from_list(rows)
    encoded = EncodedLists(lists, collator_of(ListProcessor.from_lists(lists, schema=schema)))
    joined = collate([encoded[number] for number in range(3)])
    assert joined["mask"].sum(-1).tolist() == [3, 1, 2]
    assert joined["history_mask"].sum(-1).tolist() == [1, 4, 0]
    assert joined["labels"].tolist() == [[0, 1, 0], [1, -100, -100], [0, 0, -100]]
    assert joined["position_ids"].tolist() == [[0, 1, 2]] * 3
    for name, tensor in collate(encoded.__getitems__([0, 1, 2])).items():
        assert joined[name].equal(tensor), name


@pytest.mark.parametrize("with_ids", [True, False])
def test_errors_name_the_list_by_id_or_dataset_index(
    make_lists: Callable[..., datasets.Dataset], processor: ListProcessor, with_ids: bool
) -> None:
    """The fourth list of the batch is list 13 of the dataset: the message has its id or, without ids, its index."""
    rows = make_lists(20, 5).to_list()
    rows[13]["click"][0] = 2
    rows[14]["click"][0] = -1
    rows[15]["position"][0] = 9
    lists = datasets.Dataset.from_list(rows)
    if not with_ids:
        lists = lists.remove_columns("list_id")
    encoded = EncodedLists(lists, collator_of(processor, highest_label=1.0))
    with pytest.raises(InputError, match=r"label 2 .*list-5-13" if with_ids else r"label 2 in list 13:"):
        encoded.__getitems__([2, 3, 4, 13])
    for wrong in (14, 15):
        with pytest.raises(InputError, match=rf"list {wrong}\b"):
            encoded.__getitems__([2, wrong, 4])
    assert EncodedLists(lists, collator_of(processor)).__getitems__([13]).rows["labels"].max() == 2


def test_without_ids_the_dataset_index_is_the_id(lists: dict[str, Any], processor: ListProcessor) -> None:
    """So that a list has the same key in any batch."""
    encoded = EncodedLists(lists["train"].remove_columns("list_id"), collator_of(processor))
    assert decode_list_ids(collate(encoded.__getitems__([7, 3]))["list_id"]) == ["7", "3"]


def test_too_long_lists_are_rejected_or_truncated(
    make_lists: Callable[..., datasets.Dataset], processor: ListProcessor
) -> None:
    short = ListProcessor(processor.schema.replace(max_list_length=4), processor.vocabularies, processor.scales)
    lists = make_lists(12, 6)
    lengths = [len(row) for row in lists["item_id"]]
    longest = int(np.argmax(lengths))
    with pytest.raises(InputError, match=rf"list-6-{longest} has {lengths[longest]} items.*max_list_length=4"):
        EncodedLists(lists, collator_of(short))[longest]
    cut = collate(EncodedLists(lists, collator_of(short, truncate=True))[longest])
    assert sorted(cut["position_ids"][0].tolist()) == [0, 1, 2, 3]
    kept = [slot for slot, place in enumerate(lists[longest]["position"]) if place < 4]
    assert cut["labels"][0].tolist() == [lists[longest]["click"][slot] for slot in kept]
