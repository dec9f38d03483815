"""Reranker: raw lists in, ordered items out; the same numbers as the model on tensors padded here by hand."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_rerank import (
    AutoReranker,
    Categorical,
    Dense,
    DNNConfig,
    DNNForReranking,
    InputError,
    ListProcessor,
    ListSchema,
    PRMConfig,
    PRMForReranking,
    Reranker,
)

SCHEMA = ListSchema(
    items=[Categorical("item_id", min_count=1), Dense("price", scale="none")],
    user=[Categorical("gender", min_count=1)],
    position="position",
    list_id="list_id",
    max_list_length=5,
)
ROWS: list[dict[str, Any]] = [
    {"list_id": "a", "item_id": [10, 30, 20], "price": [0.5, -1.0, 2.0], "gender": 1, "position": [2, 0, 1]},
    {"list_id": "b", "item_id": [40, 10, 50, 20, 30], "price": [1.0, 0.0, 0.3, 0.7, -2.0], "gender": 0},
    {"list_id": "c", "item_id": [50], "price": [0.1], "gender": 1, "position": [0]},
    {"list_id": "d", "item_id": [20, 30], "price": [3.0, 1.5], "gender": 0, "position": [1, 0]},
]
ROWS[1]["position"] = [4, 2, 0, 1, 3]


def column(name: str) -> list[Any]:
    return [row[name] for row in ROWS]


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    table = pa.table({name: column(name) for name in ROWS[0]})
    return ListProcessor.from_lists(table, schema=SCHEMA)


@pytest.fixture(scope="module")
def reranker(processor: ListProcessor) -> Reranker:
    torch.manual_seed(0)
    config = PRMConfig.for_schema(processor.schema, d_model=8, num_blocks=1, inner_width=8, initializer_range=1.0)
    return Reranker(PRMForReranking(config), processor)


@pytest.fixture(scope="module")
def folder(reranker: Reranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "saved"
    reranker.save_pretrained(path)
    return path


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def test_equals_the_model_on_tensors_padded_by_hand(reranker: Reranker) -> None:
    ids: list[int] = reranker.processor.vocabularies["item_id"].values.tolist()  # type: ignore[union-attr]
    genders: list[int] = reranker.processor.vocabularies["gender"].values.tolist()  # type: ignore[union-attr]
    features = {
        "item_categorical": torch.zeros(4, 5, 1, dtype=torch.int64),
        "item_dense": torch.zeros(4, 5, 1),
        "user_categorical": torch.tensor([[2 + genders.index(gender)] for gender in column("gender")]),
        "mask": torch.zeros(4, 5, dtype=torch.bool),
        "position_ids": torch.arange(5).repeat(4, 1),
    }
    for number, row in enumerate(ROWS):
        for slot, item in enumerate(row["item_id"]):
            features["item_categorical"][number, slot, 0] = 2 + ids.index(item)
            features["item_dense"][number, slot, 0] = row["price"][slot]
            features["position_ids"][number, slot] = row["position"][slot]
            features["mask"][number, slot] = True
    order, scores = reranker.model.rank(**features)
    for number, (row, result) in enumerate(zip(ROWS, reranker.rerank(ROWS), strict=True)):
        length = len(row["item_id"])
        assert result["order"] == order[number, :length].tolist()
        assert result["scores"] == pytest.approx(scores[number][order[number, :length]].tolist(), abs=1e-6)


def test_format(reranker: Reranker) -> None:
    results = reranker.rerank(ROWS)
    assert [result["list_id"] for result in results] == ["a", "b", "c", "d"]
    for row, result in zip(ROWS, results, strict=True):
        assert list(result) == ["order", "scores", "list_id", "item_id"]
        assert sorted(result["order"]) == list(range(len(row["item_id"])))
        assert result["scores"] == sorted(result["scores"], reverse=True)
        assert result["item_id"] == [row["item_id"][slot] for slot in result["order"]]
        assert all(type(value) is int for value in result["order"])
        assert all(type(value) is float for value in result["scores"])
    assert results[2]["order"] == [0]
    assert "list_id" not in reranker.rerank([without(ROWS[0], "list_id")])[0]
    assert reranker.rerank([]) == []


def test_arrays_as_columns(reranker: Reranker) -> None:
    row = {**ROWS[1], "item_id": np.array(ROWS[1]["item_id"]), "price": np.array(ROWS[1]["price"], dtype=np.float32)}
    (result,) = reranker.rerank((row,))
    assert result["order"] == reranker.rerank([ROWS[1]])[0]["order"]


@pytest.mark.parametrize("top_k", [1, 2, 5, 100])
def test_top_k(reranker: Reranker, top_k: int) -> None:
    for whole, top in zip(reranker.rerank(ROWS), reranker.rerank(ROWS, top_k=top_k), strict=True):
        for name in ("order", "scores", "item_id"):
            assert top[name] == whole[name][:top_k]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_does_not_matter(reranker: Reranker, batch_size: int) -> None:
    for whole, other in zip(reranker.rerank(ROWS), reranker.rerank(ROWS, batch_size=batch_size), strict=True):
        assert other["order"] == whole["order"]
        assert other["scores"] == pytest.approx(whole["scores"], abs=1e-6)


def test_the_position_column_is_the_initial_order(reranker: Reranker) -> None:
    """Rows sorted by position, without the column, are the same lists with other slots."""
    scores_differ = False
    for row in (ROWS[0], ROWS[1], ROWS[3]):
        by_place = sorted(range(len(row["position"])), key=lambda slot: row["position"][slot])
        in_order = {name: [row[name][slot] for slot in by_place] for name in ("item_id", "price")}
        (given,) = reranker.rerank([row])
        (sorted_result,) = reranker.rerank([{**in_order, "gender": row["gender"]}])
        assert sorted_result["item_id"] == given["item_id"]
        assert [by_place[slot] for slot in sorted_result["order"]] == given["order"]
        assert sorted_result["scores"] == pytest.approx(given["scores"], abs=1e-6)
        (as_stored,) = reranker.rerank([without(row, "position")])
        scores_differ |= as_stored["scores"] != pytest.approx(given["scores"], abs=1e-3)
    assert scores_differ, "this model does not read positions: the test says nothing"


LONG = {
    "list_id": "long",
    "item_id": [10, 20, 30, 40, 50, 10, 20],
    "price": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
    "gender": 1,
    "position": [6, 0, 5, 1, 2, 3, 4],
}


def test_too_long_is_refused(reranker: Reranker) -> None:
    with pytest.raises(InputError, match=r"list long has 7 items.*max_list_length=5.*truncate=True"):
        reranker.rerank([ROWS[0], LONG])


@pytest.mark.parametrize("with_positions", [True, False])
def test_truncate_keeps_the_first_places(reranker: Reranker, with_positions: bool) -> None:
    row = LONG if with_positions else without(LONG, "position")
    kept = [1, 3, 4, 5, 6] if with_positions else [0, 1, 2, 3, 4]
    short = ROWS[0] if with_positions else without(ROWS[0], "position")
    results, report = reranker.rerank([short, row], truncate=True, with_report=True)
    assert results[0]["order"] == reranker.rerank([short])[0]["order"]
    assert sorted(results[1]["order"]) == kept
    assert results[1]["item_id"] == [row["item_id"][slot] for slot in results[1]["order"]]
    cut = {
        name: [value[slot] for slot in kept] if isinstance(value, list) else value for name, value in row.items()
    }  # positions 0 to 4, as they stand
    (alone,) = reranker.rerank([cut])
    assert [kept[slot] for slot in alone["order"]] == results[1]["order"]
    assert alone["scores"] == pytest.approx(results[1]["scores"], abs=1e-6)
    assert (report.lists, report.cut_lists, report.cut_items) == (2, 1, 2)


def test_report_counts_unknown_and_missing(reranker: Reranker) -> None:
    rows = [
        {"item_id": [10, 99, None], "price": [1.0, None, 2.0], "gender": 7},
        {"item_id": [98, 20], "price": [None, None], "gender": 0},
    ]
    results, report = reranker.rerank(rows, with_report=True, batch_size=1)
    assert len(results) == 2
    assert report.values == {"item_id": 5, "price": 5, "gender": 2}
    assert report.unknown == {"item_id": 3, "gender": 1}
    assert report.missing == {"item_id": 1, "price": 3}
    assert report.unknown_share() == {"item_id": 3 / 5, "gender": 1 / 2}


# ----------------------------------------------------------------------------------------------------- saving, loading


def test_saved_and_loaded_is_equal_to_the_bit(reranker: Reranker, folder: Path) -> None:
    loaded = Reranker.from_pretrained(folder)
    for name, value in reranker.model.state_dict().items():
        assert loaded.model.state_dict()[name].equal(value), name
    assert loaded.rerank(ROWS) == reranker.rerank(ROWS)
    assert not loaded.model.training
    assert loaded.processor.schema == reranker.processor.schema
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "manifest.json",
        "model.safetensors",
        "preprocessor_config.json",
        "vocabularies.safetensors",
    }
    assert Reranker.from_pretrained(str(folder), device="cpu", dtype=torch.float32).rerank(ROWS) == loaded.rerank(ROWS)


def test_a_model_of_another_processor_is_refused(reranker: Reranker, tmp_path: Path) -> None:
    other = ListProcessor.from_lists(pa.table({name: column(name)[:2] for name in ROWS[0]}), schema=SCHEMA)
    with pytest.raises(InputError, match="fingerprint"):
        Reranker(reranker.model, other)
    reranker.model.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="do not belong together"):
        Reranker.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "preprocessor_config.json", "vocabularies.safetensors"]
)
def test_a_folder_that_lacks_a_file(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        Reranker.from_pretrained(tmp_path / "copy")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "copy") in str(caught.value)


def broken(folder: Path, copy: Path, change: Any) -> Path:
    """A copy of the folder whose weights are changed, as others would save it: without a manifest."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("manifest.json"))
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_every_weight_must_be_there(folder: Path, tmp_path: Path) -> None:
    """transformers would go on with random numbers and a warning."""
    names = sorted(load_file(folder / "model.safetensors"))
    assert len(names) > 10
    for number, name in enumerate(names):
        path = broken(folder, tmp_path / str(number), lambda weights, name=name: weights.pop(name))
        with pytest.raises(InputError, match=f"missing: {name}"):
            Reranker.from_pretrained(path)


def test_unknown_reshaped_and_cut_weights(folder: Path, tmp_path: Path) -> None:
    extra = broken(folder, tmp_path / "extra", lambda weights: weights.update(other=torch.zeros(2)))
    with pytest.raises(InputError, match="unknown: other"):
        Reranker.from_pretrained(extra)
    shape = broken(folder, tmp_path / "shape", lambda weights: weights.update({"scorer.bias": torch.zeros(2)}))
    with pytest.raises(InputError, match=r"wrong shape: scorer\.bias"):
        Reranker.from_pretrained(shape)
    cut = broken(folder, tmp_path / "cut", lambda weights: None)
    whole = (cut / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (cut / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut"):
            Reranker.from_pretrained(cut)


def test_weights_that_are_no_numbers_never_rank(folder: Path, tmp_path: Path) -> None:
    """NaN compares with nothing: such an order would hold an item twice and lose another."""
    path = broken(folder, tmp_path / "nan", lambda weights: weights["scorer.weight"].fill_(math.nan))
    with pytest.raises(InputError, match="list a gets scores that are not finite"):
        Reranker.from_pretrained(path).rerank(ROWS)


def test_a_number_far_outside_is_named(reranker: Reranker) -> None:
    rows = [ROWS[0], {**ROWS[3], "price": [3e38, 1.0]}]
    with pytest.raises(InputError, match="list d gets scores that are not finite"):
        reranker.rerank(rows)


def test_auto_reranker_gives_the_class(folder: Path, reranker: Reranker, tmp_path: Path) -> None:
    assert type(AutoReranker.from_pretrained(folder)) is PRMForReranking
    model = DNNForReranking(DNNConfig.for_schema(reranker.processor.schema, hidden_sizes=[4]))
    Reranker(model, reranker.processor).save_pretrained(tmp_path / "dnn")
    loaded = Reranker.from_pretrained(tmp_path / "dnn")
    assert type(loaded.model) is DNNForReranking
    assert [len(result["order"]) for result in loaded.rerank(ROWS)] == [3, 5, 1, 2]


OFFLINE = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")

socket.socket.connect = refuse
from hf_rerank import InputError, Reranker
for source in sys.argv[1:]:
    try:
        Reranker.from_pretrained(source)
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_missing_folder_offline(tmp_path: Path) -> None:
    sources = [str(tmp_path / "nowhere"), "runs/nowhere", "nowhere"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", OFFLINE, *sources]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 3, lines
    for source, line in zip(sources, lines, strict=True):
        assert source in line
        assert "folder" in line


# --------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (ROWS[0], r"one dictionary: write rerank\(\[list\]\)"),
        (None, "NoneType"),
        (iter(ROWS), "sequence of lists"),
        (["abc"], "list 0 is a str"),
        ([ROWS[0], {**ROWS[1], "item_id": [], "price": [], "position": []}], r"list 1 \(id b\) is empty"),
        ([without(ROWS[0], "price")], "no column 'price'"),
        ([ROWS[0], without(ROWS[1], "price")], r"list 1 \(id b\) lacks the column 'price'"),
        ([{**without(ROWS[0], "price"), "pirce": [1.0, 2.0, 3.0]}], "did you mean 'pirce'"),
        ([ROWS[0], {**ROWS[2], "price": [math.nan]}], r"'price' holds nan in list 1 \(id c\), item 0"),
        ([{**ROWS[2], "price": [math.inf]}], "'price' holds inf"),
        ([{**ROWS[0], "price": [1.0]}], "ragged"),
        ([{**ROWS[0], "position": [1, 2, 3]}], "start at 1: subtract 1"),
        ([{**ROWS[0], "item_id": ["a", "b", "c"]}], "'item_id' holds text"),
        ([{**ROWS[0], "gender": [1, 0, 1]}], "gender"),
    ],
)
def test_wrong_lists(reranker: Reranker, lists: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        reranker.rerank(lists)
    assert "\n" not in str(caught.value)


def test_wrong_list_in_a_later_batch_has_its_number(reranker: Reranker) -> None:
    with pytest.raises(InputError, match=r"list 3 \(id d\)"):
        reranker.rerank([*ROWS[:3], {**ROWS[3], "price": [1.0]}], batch_size=2)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": -1}, {"batch_size": 0}])
def test_wrong_options(reranker: Reranker, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} is .*at least 1"):
        reranker.rerank(ROWS, **options)
