"""Reranker: raw lists in, ordered items out; the same numbers as the model on manually padded tensors."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from copy import deepcopy
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
from hf_rerank.storage import write_manifest

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
    config = PRMConfig.for_schema(
        processor.schema, hidden_size=8, num_hidden_layers=1, intermediate_size=8, initializer_range=1.0
    )
    return Reranker(processor, PRMForReranking(config))


@pytest.fixture(scope="module")
def folder(reranker: Reranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "saved"
    reranker.save_pretrained(path)
    return path


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def test_results_equal_the_model_on_manually_padded_tensors(reranker: Reranker) -> None:
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


def test_result_format(reranker: Reranker) -> None:
    results = reranker.rerank(ROWS)
    assert [result["list_id"] for result in results] == ["a", "b", "c", "d"]
    for row, result in zip(ROWS, results, strict=True):
        assert list(result) == ["list_id", "order", "scores", "ids"]
        assert sorted(result["order"]) == list(range(len(row["item_id"])))
        assert result["scores"] == sorted(result["scores"], reverse=True)
        assert result["ids"] == [row["item_id"][slot] for slot in result["order"]]
        assert all(type(value) is int for value in result["order"])
        assert all(type(value) is float for value in result["scores"])
    assert results[2]["order"] == [0]
    unnamed = [without(row, "list_id") for row in ROWS]
    numbered = reranker.rerank(unnamed, batch_size=3)
    assert [result["list_id"] for result in numbered] == [0, 1, 2, 3]
    assert reranker.rerank([]) == []


def test_columns_may_be_arrays(reranker: Reranker) -> None:
    row = {**ROWS[1], "item_id": np.array(ROWS[1]["item_id"]), "price": np.array(ROWS[1]["price"], dtype=np.float32)}
    (result,) = reranker.rerank((row,))
    (expected,) = reranker.rerank([ROWS[1]])
    assert (result["order"], result["ids"]) == (expected["order"], expected["ids"])
    assert all(type(value) is int for value in result["ids"])  # as JSON requires


@pytest.mark.parametrize("top_k", [1, 2, 5, 100])
def test_top_k_keeps_the_best_items(reranker: Reranker, top_k: int) -> None:
    for whole, top in zip(reranker.rerank(ROWS), reranker.rerank(ROWS, top_k=top_k), strict=True):
        for name in ("order", "scores", "ids"):
            assert top[name] == whole[name][:top_k]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_does_not_change_results(reranker: Reranker, batch_size: int) -> None:
    for whole, other in zip(reranker.rerank(ROWS), reranker.rerank(ROWS, batch_size=batch_size), strict=True):
        assert other["order"] == whole["order"]
        assert other["scores"] == pytest.approx(whole["scores"], abs=1e-6)


def test_position_column_gives_the_initial_order(reranker: Reranker) -> None:
    """Rows sorted by position, without the column, are the same lists with other slots."""
    scores_differ = False
    for row in (ROWS[0], ROWS[1], ROWS[3]):
        by_place = sorted(range(len(row["position"])), key=lambda slot: row["position"][slot])
        in_order = {name: [row[name][slot] for slot in by_place] for name in ("item_id", "price")}
        (given,) = reranker.rerank([row])
        (sorted_result,) = reranker.rerank([{**in_order, "gender": row["gender"]}])
        assert sorted_result["ids"] == given["ids"]
        assert [by_place[slot] for slot in sorted_result["order"]] == given["order"]
        assert sorted_result["scores"] == pytest.approx(given["scores"], abs=1e-6)
        (as_stored,) = reranker.rerank([without(row, "position")])
        scores_differ |= as_stored["scores"] != pytest.approx(given["scores"], abs=1e-3)
    assert scores_differ, "this model does not read positions: the test proves nothing"


LONG = {
    "list_id": "long",
    "item_id": [10, 20, 30, 40, 50, 10, 20],
    "price": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
    "gender": 1,
    "position": [6, 0, 5, 1, 2, 3, 4],
}


def test_too_long_lists_are_rejected(reranker: Reranker) -> None:
    with pytest.raises(InputError, match=r"list long has 7 items.*max_list_length=5.*truncate=True"):
        reranker.rerank([ROWS[0], LONG])


@pytest.mark.parametrize("with_positions", [True, False])
def test_truncate_keeps_the_top_positions(reranker: Reranker, with_positions: bool) -> None:
    row = LONG if with_positions else without(LONG, "position")
    kept = [1, 3, 4, 5, 6] if with_positions else [0, 1, 2, 3, 4]
    short = ROWS[0] if with_positions else without(ROWS[0], "position")
    results, report = reranker.rerank([short, row], truncate=True, with_report=True)
    assert results[0]["order"] == reranker.rerank([short])[0]["order"]
    assert sorted(results[1]["order"]) == kept
    assert results[1]["ids"] == [row["item_id"][slot] for slot in results[1]["order"]]
    cut = {
        name: [value[slot] for slot in kept] if isinstance(value, list) else value for name, value in row.items()
    }  # positions 0 to 4, in slot order
    (alone,) = reranker.rerank([cut])
    assert [kept[slot] for slot in alone["order"]] == results[1]["order"]
    assert alone["scores"] == pytest.approx(results[1]["scores"], abs=1e-6)
    assert (report.lists, report.cut_lists, report.cut_items) == (2, 1, 2)


def test_report_counts_unknown_and_missing_values(reranker: Reranker) -> None:
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


def test_saved_reranker_loads_bit_for_bit(reranker: Reranker, folder: Path) -> None:
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
    (folder.parent / "new").touch()  # other accounts may read what they may read of any new file
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder.parent / "new").stat().st_mode}
    assert Reranker.from_pretrained(str(folder), device="cpu", dtype=torch.float32).rerank(ROWS) == loaded.rerank(ROWS)


def test_a_model_of_another_processor_is_rejected(reranker: Reranker, tmp_path: Path) -> None:
    other = ListProcessor.from_lists(pa.table({name: column(name)[:2] for name in ROWS[0]}), schema=SCHEMA)
    with pytest.raises(InputError, match="fingerprint"):
        Reranker(other, reranker.model)
    reranker.model.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="do not belong together"):
        Reranker.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "preprocessor_config.json", "vocabularies.safetensors"]
)
def test_a_folder_with_a_missing_file_is_rejected(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        Reranker.from_pretrained(tmp_path / "copy")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "copy") in str(caught.value)


def copy_with_weights(folder: Path, copy: Path, change: Any) -> Path:
    """A copy of the folder with changed weights and without a manifest, as if another library had saved it."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("manifest.json"))
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.slow
def test_every_missing_weight_is_an_error(folder: Path, tmp_path: Path) -> None:
    """transformers would continue with random weights and a warning."""
    names = sorted(load_file(folder / "model.safetensors"))
    assert len(names) > 10
    for number, name in enumerate(names):
        path = copy_with_weights(folder, tmp_path / str(number), lambda weights, name=name: weights.pop(name))
        with pytest.raises(InputError, match=f"missing: {name}"):
            Reranker.from_pretrained(path)


def test_unknown_reshaped_and_truncated_weights_are_rejected(folder: Path, tmp_path: Path) -> None:
    extra = copy_with_weights(folder, tmp_path / "extra", lambda weights: weights.update(other=torch.zeros(2)))
    with pytest.raises(InputError, match="unknown: other"):
        Reranker.from_pretrained(extra)
    shape = copy_with_weights(
        folder, tmp_path / "shape", lambda weights: weights.update({"scorer.bias": torch.zeros(2)})
    )
    with pytest.raises(InputError, match=r"wrong shape: scorer\.bias"):
        Reranker.from_pretrained(shape)
    cut = copy_with_weights(folder, tmp_path / "cut", lambda weights: None)
    whole = (cut / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (cut / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut"):
            Reranker.from_pretrained(cut)


def test_nan_weights_raise_an_error_instead_of_ranking(folder: Path, tmp_path: Path) -> None:
    """NaN breaks comparisons: such an order could contain one item twice and lose another."""
    path = copy_with_weights(folder, tmp_path / "nan", lambda weights: weights["scorer.weight"].fill_(math.nan))
    with pytest.raises(InputError, match="list a gets scores that are not finite"):
        Reranker.from_pretrained(path).rerank(ROWS)


def test_a_value_far_outside_the_training_range_is_reported(reranker: Reranker) -> None:
    rows = [ROWS[0], {**ROWS[3], "price": [3e38, 1.0]}]
    with pytest.raises(InputError, match="list d contains a number far outside the range of the training data"):
        reranker.rerank(rows)


def test_auto_reranker_loads_the_right_class(folder: Path, reranker: Reranker, tmp_path: Path) -> None:
    assert type(AutoReranker.from_pretrained(folder)) is PRMForReranking
    model = DNNForReranking(DNNConfig.for_schema(reranker.processor.schema, hidden_sizes=[4]))
    Reranker(reranker.processor, model).save_pretrained(tmp_path / "dnn")
    loaded = Reranker.from_pretrained(tmp_path / "dnn")
    assert type(loaded.model) is DNNForReranking
    assert [len(result["order"]) for result in loaded.rerank(ROWS)] == [3, 5, 1, 2]


OFFLINE = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was accessed")

socket.socket.connect = refuse
from hf_rerank import InputError, Reranker
for source in sys.argv[1:]:
    try:
        Reranker.from_pretrained(source)
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_missing_folder_is_reported_without_network_access(tmp_path: Path) -> None:
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
        (ROWS[0], r"got one dict: put it in brackets"),
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
        ([{**ROWS[0], "position": [1, 2, 3]}, ROWS[1]], "start at 1, and those of other lists do not"),
        ([{**ROWS[0], "item_id": ["a", "b", "c"]}], "'item_id' holds text"),
        ([{**ROWS[0], "gender": [1, 0, 1]}], "gender"),
    ],
)
def test_wrong_lists_are_rejected(reranker: Reranker, lists: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        reranker.rerank(lists)
    assert "\n" not in str(caught.value)


def test_wrong_list_in_a_later_batch_is_reported_by_its_index(reranker: Reranker) -> None:
    with pytest.raises(InputError, match=r"list 3 \(id d\)"):
        reranker.rerank([*ROWS[:3], {**ROWS[3], "price": [1.0]}], batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0: expected at least 1$"),
        ({"top_k": -1}, "top_k is -1: expected at least 1$"),
        ({"top_k": "3"}, "top_k is '3': expected at least 1, a whole number, or None"),
        ({"top_k": 1.5}, r"top_k is 1\.5: expected at least 1, a whole number"),
        ({"top_k": True}, "top_k is True: expected at least 1, a whole number"),
        ({"batch_size": 0}, "batch_size is 0: expected at least 1$"),
        ({"batch_size": None}, "batch_size is None: expected at least 1, a whole number$"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5: expected at least 1, a whole number"),
        ({"truncate": "no"}, "truncate is 'no': expected True or False"),
    ],
)
def test_wrong_options_are_rejected(reranker: Reranker, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reranker.rerank(ROWS, **options)


def test_numpy_integers_are_accepted_as_options(reranker: Reranker) -> None:
    options: Any = {"top_k": np.int64(2), "batch_size": np.int32(3)}
    assert reranker.rerank(ROWS, **options) == reranker.rerank(ROWS, top_k=2, batch_size=3)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {}, "expected a folder, or the id of a repository, got NoneType"),
        ("", {}, "expected a folder, or the id of a repository, got an empty string"),
        (3, {}, "expected a folder, or the id of a repository, got int"),
        ("{folder}/config.json", {}, r"config\.json is a file: expected the folder that holds it"),
        ("{folder}", {"devic": "cpu"}, "there is no option 'devic' of loading; did you mean 'device'"),
        ("{folder}", {"device": "gpu"}, "device is 'gpu': expected one that is available, such as 'cpu'"),
        ("{folder}", {"device": "cuda:99"}, "device is 'cuda:99': expected one that is available"),
        ("{folder}", {"device": 99}, "device is 99: expected one that is available"),
        ("{folder}", {"dtype": "float99"}, "dtype is 'float99': expected a torch dtype"),
    ],
)
def test_wrong_loading_options_are_rejected(folder: Path, source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Reranker.from_pretrained(source.format(folder=folder) if isinstance(source, str) else source, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "8"}, r"config\.json of .*Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 0}, r"config\.json of .*num_attention_heads is 0: expected at least 1"),
        ({"position_input": "embed"}, r"config\.json of .*'position_input' expected one of \('embedding', 'none'\)"),
        ({"depth": 3}, r"config\.json of .*PRMConfig has no option 'depth'"),
        ({"model_type": None}, "it has no model_type"),
    ],
)
def test_an_edited_config_is_rejected(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    copy = copy_with_weights(folder, tmp_path / "copy", lambda weights: None)
    plain = {**json.loads((copy / "config.json").read_text()), **change}
    (copy / "config.json").write_text(json.dumps({key: value for key, value in plain.items() if value is not None}))
    with pytest.raises(InputError, match=message) as caught:
        Reranker.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def test_weights_of_the_wrong_shape_give_a_one_line_error(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers would print a table first."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING, logger=logger.name)
    copy = copy_with_weights(
        folder, tmp_path / "copy", lambda weights: weights.update({"scorer.bias": torch.zeros(2)})
    )
    try:
        with pytest.raises(InputError, match=r"wrong shape: scorer\.bias"):
            Reranker.from_pretrained(copy)
    finally:
        logger.removeHandler(caplog.handler)
    assert "LOAD REPORT" not in caplog.text


def test_objects_that_are_not_rerankers_are_rejected(reranker: Reranker) -> None:
    for model in (torch.nn.Linear(1, 1), "runs/prm", reranker):
        with pytest.raises(InputError, match="expected a re-ranker of this library, got"):
            Reranker(reranker.processor, model)
    with pytest.raises(InputError, match="processor is a PRMForReranking: expected a ListProcessor, as in Reranker"):
        Reranker(reranker.model, reranker.processor)


def test_onnx_graphs_and_pytorch_weights_are_not_confused(folder: Path, tmp_path: Path) -> None:
    """A file named as a graph is passed to ONNX Runtime and to nothing else."""
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    (copy / "model.safetensors").rename(copy / "model.onnx")
    with pytest.raises(InputError, match=r"copy holds an exported graph \(model\.onnx\) and no PyTorch weights"):
        AutoReranker.from_pretrained(copy)
    with pytest.raises(InputError, match=r"copy has no manifest\.json"):
        Reranker.from_pretrained(copy)
    write_manifest(copy)
    with pytest.raises(InputError, match=r"onnxruntime .* cannot load .*model\.onnx"):
        Reranker.from_pretrained(copy)


# ----------------------------------------------------------------------------------------------------- several at once


@pytest.mark.slow
def test_eight_threads_give_the_same_results_as_one(processor: ListProcessor) -> None:
    """Dropout of 0.5 would reveal a pass in training mode; the threads rank different lists at the same time."""
    torch.manual_seed(0)
    config = PRMConfig.for_schema(
        processor.schema, hidden_size=8, num_hidden_layers=1, hidden_dropout_prob=0.5, initializer_range=1.0
    )
    shared = Reranker(processor, PRMForReranking(config))
    draw = random.Random(0)
    requests = [[draw.choice(ROWS) for _ in range(draw.randint(1, 6))] for _ in range(400)]
    expected = [shared.rerank(lists, top_k=3, batch_size=4) for lists in requests]
    predicted = [shared.predict(lists)[0].tolist() for lists in requests]
    start = threading.Barrier(8)

    def rank(part: int) -> list[Any]:
        start.wait(30)
        return [
            (shared.rerank(lists, top_k=3, batch_size=4), shared.predict(lists)[0].tolist())
            for lists in requests[part::8]
        ]

    with ThreadPoolExecutor(8) as pool:
        for part, found in enumerate(pool.map(rank, range(8))):
            assert found == list(zip(expected[part::8], predicted[part::8], strict=True))
    assert not shared.model.training


def test_ranking_never_switches_the_mode_of_the_model(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch, processor: ListProcessor
) -> None:
    """Only the constructor puts the model into evaluation mode; later, training mode is an error."""
    model = deepcopy(reranker.model).train()
    shared = Reranker(processor, model)
    assert not model.training
    expected = shared.rerank(ROWS)

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("the mode was switched")

    with monkeypatch.context() as patch:
        for name in ("train", "eval"):
            patch.setattr(torch.nn.Module, name, refuse)
        assert shared.rerank(ROWS) == expected
        shared.predict(ROWS, probabilities=True)
    model.train()
    for rank in (shared.rerank, shared.predict):
        with pytest.raises(InputError, match=r"^the model is in training mode: call model\.eval\(\) before ranking$"):
            rank(ROWS)
    assert model.training
    model.eval()
    assert shared.rerank(ROWS) == expected


def test_reranker_can_be_pickled_for_another_process(reranker: Reranker) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(reranker.rerank, ROWS).result(60) == reranker.rerank(ROWS)
    assert pickle.loads(pickle.dumps(reranker)).rerank(ROWS) == reranker.rerank(ROWS)
