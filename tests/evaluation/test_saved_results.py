"""Adding an evaluation to the results of a saved model: the new content, repetitions and refusals."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from folders import digests

from hf_rerank.errors import InputError
from hf_rerank.evaluation import saved_results
from hf_rerank.evaluation.saved_results import add_evaluation, read_saved_results
from hf_rerank.storage import MANIFEST, format_json, read_json, verify, write_manifest

BEFORE: dict[str, Any] = {
    "parameters": 7,
    "evaluations": {"validation": {"validation_auc": 0.5, "validation_runtime": 3.1}},
    "orders": {"validation": {"initial": {"auc": 0.4}}},
    "environment": {"cpus": 2},
}
ADDED: dict[str, Any] = {
    "measures": {
        "auc": 0.75,
        "gauc": float("nan"),
        "lists": 3,
        "unknown_share": {"item": 0.5},
        "settings": {"ks": [5]},
    },
    "initial": {"auc": 0.25, "lists": 3},
    "settings": {"ks": (5,), "no_click": "zero", "swaps": "one"},
    "data": {"lists": 3, "sha256": "ab"},
}
AFTER: dict[str, Any] = {
    "parameters": 7,
    "evaluations": {
        "validation": {"validation_auc": 0.5, "validation_runtime": 3.1},
        "test": {"test_auc": 0.75, "test_gauc": None, "test_lists": 3},
    },
    "orders": {"validation": {"initial": {"auc": 0.4}}, "test": {"initial": {"auc": 0.25, "lists": 3}}},
    "environment": {"cpus": 2},
    "evaluation_settings": {"test": {"ks": [5], "no_click": "zero", "swaps": "one"}},
    "evaluation_data": {"test": {"lists": 3, "sha256": "ab"}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(format_json(BEFORE))
    (tmp_path / "run" / "config.json").write_text("{}")
    write_manifest(tmp_path / "run")
    return tmp_path / "run"


def is_intact(folder: Path) -> bool:
    return verify(folder, lambda name: True, "") is not None


def test_evaluation_is_added_to_the_saved_results(folder: Path) -> None:
    assert add_evaluation(folder, "test", **ADDED) == "added"
    assert json.loads((folder / "results.json").read_text()) == AFTER
    assert is_intact(folder)
    assert set(digests(folder)) == {"results.json", "config.json", MANIFEST}


def test_two_concurrent_evaluations_are_both_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second starts when the first has read the file, and waits for it."""
    others = [threading.Thread(target=add_evaluation, args=(folder, "other"), kwargs=ADDED)]

    def text(values: dict[str, Any]) -> str:
        while others:
            others[0].start()
            started.append(others.pop())
        return format_json(values)

    started: list[threading.Thread] = []
    monkeypatch.setattr(saved_results, "format_json", text)
    add_evaluation(folder, "test", **ADDED)
    for thread in started:
        thread.join()
    assert len(started) == 1
    assert read_json(folder / "results.json")["evaluations"].keys() == {"validation", "test", "other"}
    assert is_intact(folder)


def test_adding_the_same_evaluation_again_changes_no_byte(folder: Path) -> None:
    add_evaluation(folder, "test", **ADDED)
    before = digests(folder)
    assert add_evaluation(folder, "test", **ADDED) == "unchanged"
    assert digests(folder) == before


def test_a_new_evaluation_replaces_only_that_of_its_split(folder: Path) -> None:
    add_evaluation(folder, "test", **ADDED)
    before = digests(folder)
    assert add_evaluation(folder, "test", **{**ADDED, "measures": {"auc": 0.5}}) == "replaced"
    expected = {**AFTER["evaluations"], "test": {"test_auc": 0.5}}
    assert json.loads((folder / "results.json").read_text()) == {**AFTER, "evaluations": expected}
    assert is_intact(folder)
    assert add_evaluation(folder, "test", **ADDED) == "replaced"
    assert digests(folder) == before


def test_no_manifest_is_added_to_a_folder_without_one(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert add_evaluation(folder, "test", **ADDED) == "added"
    assert json.loads((folder / "results.json").read_text()) == AFTER
    assert set(digests(folder)) == {"results.json", "config.json"}


def test_missing_and_damaged_results_are_rejected(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no folder someone/prm whose results\.json could be added to.*hf download"):
        read_saved_results("someone/prm")
    path = folder / "results.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(InputError, match=r"results\.json is damaged or changed"):
        read_saved_results(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"run has no results\.json to add to: expected a folder that the trainer"):
        read_saved_results(folder)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not valid JSON: "), ("[]", "holds a list: expected a JSON object")]
)
def test_a_results_file_that_is_not_a_json_object_is_rejected(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=rf"results\.json {words}.*; fix or remove it"):
        read_json(tmp_path / "results.json")
