"""results.json: plain JSON, written whole or not at all, and a data identity that detects changes."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from hf_rerank import Categorical, ListProcessor, ListSchema
from hf_rerank.evaluation.results import data_identity, describe_environment
from hf_rerank.storage import write_json

SCHEMA = ListSchema(items=[Categorical("item_id", min_count=1)], list_id="list_id")


@pytest.fixture(scope="module")
def lists() -> dict[str, Any]:
    """50 lists of one to four items."""
    rows = [
        {
            "list_id": f"list-{number}",
            "item_id": [number, *range(number % 4)],
            "click": [number % 2, *[0] * (number % 4)],
        }
        for number in range(50)
    ]
    return {"validation": datasets.Dataset.from_list(rows)}


@pytest.fixture(scope="module")
def processor(lists: dict[str, Any]) -> ListProcessor:
    return ListProcessor.from_lists(lists["validation"], schema=SCHEMA)


def test_values_are_written_as_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    values = {
        "nan": float("nan"),
        "inf": [float("inf")],
        3: (1, 2.5, None, True),
        "path": Path("x"),
        "deep": {"a": {}},
    }
    write_json(path, values)
    expected = {"nan": None, "inf": [None], "3": [1, 2.5, None, True], "path": "x", "deep": {"a": {}}}
    assert json.loads(path.read_text()) == expected
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"run": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"run": 2})
    assert json.loads(path.read_text()) == {"run": 1}


def test_environment_contains_versions_and_threads() -> None:
    found = describe_environment()
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["transformers"] == metadata.version("transformers")
    assert found["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found


def test_data_identity_depends_on_labels_ids_and_order(lists: dict[str, Any], processor: ListProcessor) -> None:
    schema, given = processor.schema, lists["validation"]
    identity = data_identity(given, schema)
    assert identity["lists"] == 50
    assert len(identity["sha256"]) == 64
    assert data_identity(given.select(range(50)), schema) == identity

    def flipped(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {"click": [1 - row["click"][0], *row["click"][1:]]} if number == 9 else row

    changed = {
        "label": given.map(flipped, with_indices=True),
        "id": given.map(lambda row: {"list_id": row["list_id"] + "x"}),
        "order": given.select([1, 0, *range(2, 50)]),
        "fewer": given.select(range(49)),
    }
    digests = {name: data_identity(other, schema)["sha256"] for name, other in changed.items()}
    assert len({identity["sha256"], *digests.values()}) == 5, digests


def test_data_identity_without_ids_and_of_a_stream(lists: dict[str, Any], processor: ListProcessor) -> None:
    given = lists["validation"]
    bare = data_identity(given.remove_columns("list_id"), processor.schema)
    assert bare["lists"] == 50
    assert bare["sha256"] != data_identity(given, processor.schema)["sha256"]
    stream = data_identity(given.to_iterable_dataset(num_shards=2), processor.schema)
    assert (stream["lists"], stream["shards"]) == (None, 2)
    other = data_identity(given.select([1, 0, *range(2, 50)]).to_iterable_dataset(num_shards=2), processor.schema)
    assert len(stream["first_lists_sha256"]) == 64
    assert other["first_lists_sha256"] != stream["first_lists_sha256"]
