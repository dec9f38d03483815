"""Personalised vectors: the last hidden layer of a click model trained on ``ranker_train`` only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from folders import digests
from prepared_folders import changed, table_of, with_column
from safetensors.numpy import load_file

from hf_rerank import (
    InputError,
    ListProcessor,
    PRMConfig,
    PRMForReranking,
    Reranker,
    Vector,
    cli,
    load_lists,
)
from hf_rerank.data.prm_public import prepare_prm_public
from hf_rerank.data.simulation import simulate_prm
from hf_rerank.initial_rankers.click_model import ClickModel
from hf_rerank.initial_rankers.qualities import QUALITIES, Quality
from hf_rerank.personalised_vectors import PersonalisedVectors, add_personalised_vectors


@pytest.fixture(autouse=True, scope="module")
def _short_training() -> Any:
    """One epoch instead of twenty."""
    with pytest.MonkeyPatch.context() as patch:
        strong = QUALITIES["strong"]
        patch.setitem(QUALITIES, "strong", Quality(**{**vars(strong), "epochs": 1}))
        yield


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 simulated lists, prepared."""
    folder = tmp_path_factory.mktemp("vectors")
    simulate_prm(folder / "raw", 300, seed=4, progress=False)
    prepare_prm_public(folder / "raw", folder / "lists", progress=False)
    return folder / "lists"


@pytest.fixture(scope="module")
def with_vectors(lists: Path) -> Path:
    folder = lists.with_name("with_vectors")
    add_personalised_vectors(lists, folder, dim=5, progress=False)
    return folder


def vectors_of(folder: Path, split: str) -> np.ndarray:
    return np.array(table_of(folder, split).column("personalised").to_pylist(), dtype=np.float32)


@pytest.mark.slow
def test_vectors_equal_the_last_hidden_layer(lists: Path, with_vectors: Path) -> None:
    """relu(relu(x W1 + b1) W2 + b2) from the saved weights, x the item's tables and numbers and the user's tables."""
    weights = load_file(with_vectors / "click_model" / "model.safetensors")
    processor = ListProcessor.from_pretrained(with_vectors / "click_model")
    test = table_of(lists, "test")
    encoded = processor(test.drop_columns(["position", "attraction"]), return_tensors="np")

    def looked_up(part: str, number: int) -> np.ndarray:
        return weights[f"item_embedding.{part}_tables.{number}.weight"][encoded[f"{part}_categorical"][..., number]]

    items = [looked_up("item", number) for number in range(5)]
    users = [np.repeat(looked_up("user", number)[:, None], 30, axis=1) for number in range(3)]
    x = np.concatenate([*items, encoded["item_dense"], *users], axis=-1)
    for layer in ("network.layers.0", "network.layers.1"):
        x = np.maximum(x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"], 0)
    found = vectors_of(with_vectors, "test")
    assert found.shape == (test.num_rows, 30, 5)
    assert found == pytest.approx(x, abs=1e-5)
    assert found.std() > 0.01


def test_vectors_are_added_to_a_new_folder(lists: Path, with_vectors: Path) -> None:
    loaded = load_lists(with_vectors)
    assert loaded.schema.items[-1] == Vector("personalised", 5)
    assert len(loaded["ranker_train"]) == 0
    for split in ("train", "validation", "test"):
        assert table_of(with_vectors, split).drop_columns(["personalised"]).equals(table_of(lists, split))
    report = json.loads((with_vectors / "report.json").read_text())
    facts = report["personalised_vectors"]
    assert facts["lists_learned_from"] + facts["lists_held_out"] == facts["lists_available"]
    assert facts["lists_available"] == table_of(lists, "ranker_train").num_rows
    assert report["lists"]["ranker_train"] == 0
    card = (with_vectors / "README.md").read_text()
    assert "`ranker_train` is left empty: the click model has seen its labels" in card
    assert "split: ranker_train" not in card
    processor = ListProcessor.from_lists(loaded["train"], schema=loaded.schema)
    assert PRMConfig.for_schema(processor.schema).item_vector_dim == 5


@pytest.mark.slow
def test_labels_of_other_splits_positions_and_attraction_are_not_read(
    lists: Path, with_vectors: Path, tmp_path: Path
) -> None:
    def lie(split: str, table: pa.Table) -> pa.Table:
        table = with_column(table, "position", lambda row: row[::-1])
        table = with_column(table, "attraction", lambda row: 1 - row)
        return table if split == "ranker_train" else with_column(table, "click", lambda row: 1 - row)

    add_personalised_vectors(changed(lists, tmp_path / "lied", lie), tmp_path / "new", dim=5, progress=False)
    for split in ("train", "validation", "test"):
        assert np.array_equal(vectors_of(tmp_path / "new", split), vectors_of(with_vectors, split))

    def flip(split: str, table: pa.Table) -> pa.Table:
        return with_column(table, "click", lambda row: 1 - row) if split == "ranker_train" else table

    add_personalised_vectors(changed(lists, tmp_path / "flipped", flip), tmp_path / "other", dim=5, progress=False)
    assert not np.array_equal(vectors_of(tmp_path / "other", "test"), vectors_of(with_vectors, "test"))


@pytest.mark.slow
def test_the_same_call_gives_the_same_bytes_even_after_a_failure(
    lists: Path, with_vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(ClickModel, "save_pretrained", fail)
        with pytest.raises(OSError, match="the disk is full"):
            add_personalised_vectors(lists, tmp_path / "new", dim=5, progress=False)
    assert not (tmp_path / "new").exists()
    add_personalised_vectors(lists, tmp_path / "new", dim=5, progress=False)
    assert digests(tmp_path / "new") == digests(with_vectors)
    add_personalised_vectors(lists, tmp_path / "other", dim=5, seed=1, progress=False)
    assert not np.array_equal(vectors_of(tmp_path / "other", "test"), vectors_of(with_vectors, "test"))


def test_new_lists_get_the_same_vectors_and_can_be_ranked(lists: Path, with_vectors: Path) -> None:
    vectors = PersonalisedVectors.from_pretrained(with_vectors)
    assert vectors.dim == 5
    rows = table_of(lists, "test").to_pylist()[:7]
    raw = [{name: value for name, value in row.items() if name not in ("click", "attraction")} for row in rows]
    # Lists of unequal lengths in one call.
    raw[2] = {name: value[:11] if isinstance(value, list) else value for name, value in raw[2].items()}
    raw[2]["position"] = list(range(11))
    added = vectors.add(raw)
    expected = vectors_of(with_vectors, "test")
    for number, row in enumerate(added):
        length = 11 if number == 2 else 30
        assert np.array(row["personalised"]) == pytest.approx(expected[number, :length], abs=1e-6)
        assert {name: row[name] for name in raw[number]} == raw[number]
    assert "personalised" not in raw[0]
    loaded = load_lists(with_vectors)
    processor = ListProcessor.from_lists(loaded["train"], schema=loaded.schema)
    torch.manual_seed(0)
    reranker = Reranker(processor, PRMForReranking(PRMConfig.for_schema(processor.schema)))
    with pytest.raises(InputError, match="no column 'personalised'"):
        reranker.rerank(raw)
    assert [len(row["order"]) for row in reranker.rerank(added)] == [30, 30, 11, 30, 30, 30, 30]
    assert vectors.add([]) == []
    assert PersonalisedVectors.from_pretrained(with_vectors / "click_model").add(raw) == added


def test_wrong_arguments_and_commands_are_rejected(
    lists: Path, with_vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="dim is 0: expected at least 1"):
        add_personalised_vectors(lists, tmp_path / "new", dim=0)
    with pytest.raises(InputError, match="has a column 'item_id' already"):
        add_personalised_vectors(lists, tmp_path / "new", column="item_id")
    with pytest.raises(InputError, match="list 0 has a column 'personalised' already"):
        PersonalisedVectors.from_pretrained(with_vectors).add(table_of(with_vectors, "test").to_pylist()[:1])
    # Learning the vectors has used up ranker_train.
    command = ["vectors", "--data", str(with_vectors), "--output-dir", str(tmp_path / "new")]
    assert cli.main(command) == 2
    assert "has a column 'personalised' already" in capsys.readouterr().err
    assert cli.main(["initial-rank", *command[1:], "--ranker", "dnn"]) == 2
    assert "has no ranker_train lists" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_vectors_command(lists: Path, with_vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["vectors", "--data", str(lists), "--output-dir", str(tmp_path / "new"), "--dim", "5"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "5 numbers per item" in printed
    assert "held out, log-loss" in printed
    assert digests(tmp_path / "new") == digests(with_vectors)
