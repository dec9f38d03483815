"""Exported graphs: PyTorch's ranking for every model, ragged lists, all kinds of features; damage is rejected."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from all_features import ROWS, SCHEMA, made_rows

from hf_rerank import InputError, ListProcessor, Reranker, cli
from hf_rerank.inference import export as exporting
from hf_rerank.inference.export import export_onnx
from hf_rerank.inference.onnx_scorer import OnnxScorer
from hf_rerank.inference.ranking import EncodedBatch
from hf_rerank.models.auto import RERANKERS
from hf_rerank.schema import TENSORS
from hf_rerank.storage import write_manifest

# Scores lie between about -5 and 5; float32 has seven digits, and the two runtimes sum in different orders.
CLOSE = 1e-5
# 40 items, the first ten positions in the last ten slots.
LONG = {
    **{
        name: value[:1] * 40 if name in ("item_id", "shop", "price", "stars", "text", "earlier", "sku") else value
        for name, value in made_rows(1)[0].items()
    },
    "place": [*range(10, 40), *range(10)],
}


@pytest.fixture(scope="session")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA)


def make_reranker(name: str, processor: ListProcessor, **options: Any) -> Reranker:
    """A model of default width whose random weights give distinct scores; encoders other than PRM have one layer."""
    config, model = RERANKERS[name]
    if name in ("setrank", "pear", "raise"):
        options = {"num_hidden_layers": 1, **options}
    torch.manual_seed(0)
    return Reranker(processor, model(config.for_schema(processor.schema, initializer_range=0.5, **options)))


@pytest.fixture(scope="session")
def exported(processor: ListProcessor, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SimpleNamespace]:
    """``exported(name)``: the model, its folder, the graph loaded from it; each exported once."""
    done: dict[str, SimpleNamespace] = {}

    def export(name: str) -> SimpleNamespace:
        if name not in done:
            with_torch, folder = make_reranker(name, processor), tmp_path_factory.mktemp("exported") / name
            difference = export_onnx(with_torch, folder)
            done[name] = SimpleNamespace(
                torch=with_torch, folder=folder, onnx=Reranker.from_pretrained(folder), difference=difference
            )
        return done[name]

    return export


@pytest.fixture
def folder_copy(exported: Callable[[str], SimpleNamespace], tmp_path: Path) -> Path:
    """A copy of an exported folder that a test may damage."""
    return Path(shutil.copytree(exported("dnn").folder, tmp_path / "copy"))


# --------------------------------------------------------------------------------------------------------- the ranking


@pytest.mark.slow
@pytest.mark.parametrize("name", RERANKERS)
def test_graph_ranks_like_pytorch(
    name: str, exported: Callable[[str], SimpleNamespace], record_property: Callable[[str, object], None]
) -> None:
    both = exported(name)
    largest, same = 0.0, 0
    for expected, found in zip(both.torch.rerank(ROWS), both.onnx.rerank(ROWS), strict=True):
        assert expected.keys() == found.keys()
        by_slot = dict(zip(expected["order"], expected["scores"], strict=True))
        assert by_slot.keys() == set(found["order"])
        of_torch = np.array([by_slot[slot] for slot in found["order"]])
        largest = max(largest, float(np.abs(of_torch - found["scores"]).max()))
        # Two items whose scores differ only by rounding may be swapped.
        assert (np.diff(of_torch) <= 2 * CLOSE).all()
        same += (expected["order"], expected["ids"]) == (found["order"], found["ids"])
    record_property("largest_difference", largest)
    assert largest < CLOSE
    assert both.difference < CLOSE
    assert same >= 998
    for row in ROWS[:20]:  # alone: batches of one, lists of few slots, histories of none
        (expected,), (found,) = both.torch.rerank([row]), both.onnx.rerank([row])
        assert found["order"] == expected["order"]
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", RERANKERS)
def test_an_all_padding_list_does_not_change_other_lists(
    name: str, exported: Callable[[str], SimpleNamespace]
) -> None:
    """Servers that pad their batches send such lists."""
    both = exported(name)
    features = EncodedBatch.encode(ROWS[:4], both.onnx.processor).features
    whole = both.onnx.scorer.scores(features)
    mask = features["mask"].copy()
    mask[2] = False
    scores = both.onnx.scorer.scores({**features, "mask": mask})
    assert np.isfinite(scores).all()
    rest = [0, 1, 3]
    np.testing.assert_allclose(scores[rest][mask[rest]], whole[rest][mask[rest]], atol=CLOSE)


@pytest.mark.slow
def test_graph_accepts_the_same_arguments_as_the_model(exported: Callable[[str], SimpleNamespace]) -> None:
    both = exported("dnn")
    rows = [*ROWS[:9], {**LONG, "item_id": [987_654] * 40}]
    for options in ({"top_k": 3}, {"top_k": 50}, {"batch_size": 4}):
        found, report = both.onnx.rerank(rows, truncate=True, with_report=True, **options)
        expected, expected_report = both.torch.rerank(rows, truncate=True, with_report=True, **options)
        assert report == expected_report
        assert report.unknown["item_id"] == 40
        assert report.cut_items == 10
        assert [list(row) for row in found] == [["list_id", "order", "scores", "ids"]] * 10
        assert [row["order"] for row in found[:9]] == [row["order"] for row in expected[:9]]
        assert all(type(value) is int for row in found for value in row["order"])
        assert all(type(value) is float for row in found for value in row["scores"])
        # The first places lie in the last ten slots and in the first twenty.
        assert set(found[9]["order"]) <= {*range(20), *range(30, 40)}
        assert len(found[9]["order"]) == min(options.get("top_k", 30), 30)
    assert both.onnx.rerank([]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([ROWS[0], {**ROWS[1], "price": ["much"]}],), r"'price' of list 1 .*several types"),
        ((ROWS[0],), "got one dict: put it in brackets"),
        ((iter(ROWS),), r"got list_iterator: give list\(\.\.\.\)"),
        ((ROWS[:1], 0), "top_k is 0: expected at least 1"),
        (([{**ROWS[0], "age": float("nan")}],), "'age' holds nan in list 0"),
        (([LONG],), "list list-0 has 40 items.*truncate=True"),
        ((ROWS[:1], 1.5), r"top_k is 1\.5: expected at least 1, a whole number"),
        ((ROWS[:1], 1, "no"), "truncate is 'no': expected True or False"),
        # A layer norm turns it into NaN in torch and into an ordinary number in ONNX Runtime.
        (([{**ROWS[0], "age": 1e38}],), "list list-0 contains a number far outside the range of the training data"),
    ],
)
def test_graph_raises_the_same_errors_as_the_model(
    arguments: tuple[Any, ...], message: str, exported: Callable[[str], SimpleNamespace]
) -> None:
    both = exported("dnn")
    messages = []
    for reranker in (both.torch, both.onnx):
        with pytest.raises(InputError, match=message) as error:
            reranker.rerank(*arguments)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_more_slots_than_positions_are_rejected(exported: Callable[[str], SimpleNamespace]) -> None:
    graph = exported("dnn").onnx
    scorer = graph.scorer
    short = Reranker(
        graph.processor, OnnxScorer(scorer.session, {**scorer.config, "max_list_length": 2}, scorer.folder)
    )
    assert len(short.rerank([row for row in ROWS[:50] if len(row["item_id"]) <= 2])) > 0
    with pytest.raises(InputError, match="lists of 30 slots: the model has positions for max_list_length=2"):
        short.rerank([next(row for row in ROWS if len(row["item_id"]) == 30)])


# ---------------------------------------------------------------------------------------------------------- the folder


def test_exported_folder_contains_all_files_and_no_pytorch_weights(exported: Callable[[str], SimpleNamespace]) -> None:
    folder = exported("dnn").folder
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "model.onnx",
        "config.json",
        "manifest.json",
        "preprocessor_config.json",
        "vocabularies.safetensors",
    }
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(listed) == names - {"manifest.json"}
    assert json.loads((folder / "config.json").read_text())["model_type"] == "rerank_dnn"


def test_graph_has_dynamic_list_item_and_history_axes(exported: Callable[[str], SimpleNamespace]) -> None:
    graph = onnx.load(exported("dnn").folder / "model.onnx").graph
    found = {entry.name: [axis.dim_value for axis in entry.type.tensor_type.shape.dim] for entry in graph.input}
    # 0 means any size. Dense: price, and stars with its indicator; age; hours.
    expected = {
        "item_categorical": [0, 0, 2],
        "item_dense": [0, 0, 3],
        "item_vectors": [0, 0, 3],
        "user_categorical": [0, 1],
        "user_dense": [0, 1],
        "history_categorical": [0, 0, 2],
        "history_dense": [0, 0, 1],
        "history_mask": [0, 0],
        "mask": [0, 0],
        "position_ids": [0, 0],
        "initial_scores": [0, 0],
    }
    assert found == expected
    assert list(expected) == SCHEMA.feature_tensors()
    kinds = {"int64": onnx.TensorProto.INT64, "float32": onnx.TensorProto.FLOAT, "bool": onnx.TensorProto.BOOL}
    for entry in graph.input:
        assert entry.type.tensor_type.elem_type == kinds[TENSORS[entry.name].dtype], entry.name
    assert [output.name for output in graph.output] == ["logits"]


@pytest.mark.slow
def test_ranks_in_a_process_without_torch(exported: Callable[[str], SimpleNamespace], tmp_path: Path) -> None:
    both = exported("dnn")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[:5]))
    code = (
        "import json, sys\nfrom hf_rerank import Reranker\n"
        "ranked = Reranker.from_pretrained(sys.argv[1]).rerank(json.load(open(sys.argv[2])))\n"
        "print(json.dumps([[row['order'] for row in ranked], {'torch', 'transformers'} & set(sys.modules) == set()]))"
    )
    command = [sys.executable, "-c", code, str(both.folder), str(tmp_path / "rows.json")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=os.environ)
    assert json.loads(ran.stdout) == [[row["order"] for row in both.torch.rerank(ROWS[:5])], True]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _cut(folder / "model.onnx"), r"model\.onnx has .* bytes, .* were saved: it is truncated"),
        (lambda folder: _flip(folder / "model.onnx"), r"model\.onnx is damaged or changed"),
        (lambda folder: _flip(folder / "config.json"), r"config\.json is damaged or changed"),
        (lambda folder: _flip(folder / "vocabularies.safetensors"), r"vocabularies\.safetensors is damaged"),
        (lambda folder: _cut(folder / "manifest.json"), r"manifest\.json is damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), r"has no manifest\.json"),
        (lambda folder: (folder / "model.onnx.data").write_bytes(b"x"), r"model\.onnx\.data is not one of the files"),
        (lambda folder: (folder / "model.onnx").unlink(), r"has no model\.onnx \(it holds config\.json, manifest"),
    ],
    ids=["cut", "flipped", "config", "vocabularies", "manifest cut", "no manifest", "one more", "no graph"],
)
def test_damaged_folders_are_rejected(damage: Callable[[Path], object], message: str, folder_copy: Path) -> None:
    assert Reranker.from_pretrained(folder_copy).rerank(ROWS[:1])
    damage(folder_copy)
    with pytest.raises(InputError, match=message):
        Reranker.from_pretrained(folder_copy)


def test_a_graph_that_onnxruntime_cannot_read_is_rejected(folder_copy: Path) -> None:
    """Intact by its manifest, like a graph in a newer format."""
    _cut(folder_copy / "model.onnx")
    (folder_copy / "manifest.json").unlink()
    write_manifest(folder_copy)
    with pytest.raises(InputError, match=r"onnxruntime .* cannot load .*model\.onnx: .*export it again") as error:
        Reranker.from_pretrained(folder_copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {}, "expected a folder, or the id of a repository, got NoneType"),
        ("{folder}/model.onnx", {}, r"model\.onnx is a file: expected the folder that holds it"),
        ("{folder}", {"threads": "2"}, "threads is '2': expected at least 1, a whole number"),
        ("{folder}", {"device": "cpu"}, "device is an option of PyTorch models, but .* is an exported graph"),
        (
            "{folder}",
            {"revison": "main"},
            "'revison' of loading an exported graph; did you mean 'revision'",
        ),
    ],
)
def test_wrong_loading_options_are_rejected(
    folder_copy: Path, source: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Reranker.from_pretrained(source and source.format(folder=folder_copy), **options)


def test_threads_share_a_graph_that_cannot_be_pickled_or_copied(exported: Callable[[str], SimpleNamespace]) -> None:
    """Threads share one graph; sending it to another process is a clear error."""
    graph = exported("dnn").onnx
    expected = [graph.rerank([row]) for row in ROWS[:50]]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: graph.rerank([row]), ROWS[:50])) == expected
    for send in (pickle.dumps, copy.deepcopy):
        with pytest.raises(InputError, match=r"cannot be pickled or copied.*load it there"):
            send(graph)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_processor_fitted_on_other_lists_is_rejected(
    exported: Callable[[str], SimpleNamespace], folder_copy: Path, tmp_path: Path
) -> None:
    other = ListProcessor.from_lists(pa.Table.from_pylist(made_rows(50, seed=9)), schema=SCHEMA)
    scorer = exported("dnn").onnx.scorer
    with pytest.raises(InputError, match=f"fingerprint {scorer.schema_fingerprint}.*do not belong together"):
        Reranker(other, scorer)
    other.save_pretrained(folder_copy)
    with pytest.raises(InputError, match=r"truncated or changed|damaged or changed"):
        Reranker.from_pretrained(folder_copy)


# ----------------------------------------------------------------------------------------------------------- exporting


@pytest.mark.slow
def test_exporting_leaves_the_model_unchanged(processor: ListProcessor, tmp_path: Path) -> None:
    """A bfloat16 model is exported in float32, and keeps its dtype, mode and weights."""
    reranker = make_reranker("dnn", processor, hidden_sizes=[4])
    reranker.model.to(torch.bfloat16).train()
    before = {name: weight.clone() for name, weight in reranker.model.state_dict().items()}
    assert export_onnx(reranker, tmp_path / "out") < CLOSE
    assert reranker.model.training
    assert all(torch.equal(weight, before[name]) for name, weight in reranker.model.state_dict().items())
    wide = make_reranker("dnn", processor, hidden_sizes=[4])
    wide.model.load_state_dict({name: weight.float() for name, weight in before.items()})
    (expected,), (found,) = wide.rerank(ROWS[:1]), Reranker.from_pretrained(tmp_path / "out").rerank(ROWS[:1])
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=CLOSE)


@pytest.mark.slow
def test_two_recurrent_models_can_be_exported_in_one_process(
    exported: Callable[[str], SimpleNamespace], processor: ListProcessor, tmp_path: Path
) -> None:
    """torch 2.13 on its own fails at the second export."""
    exported("dlcm")
    assert export_onnx(make_reranker("dlcm", processor, hidden_size=9), tmp_path / "out") < CLOSE


@pytest.mark.slow
def test_a_graph_with_different_scores_is_rejected_and_not_saved(
    processor: ListProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)  # so that any difference is too large
    with pytest.raises(InputError, match="the exported graph gives other scores than DNNForReranking on 1 lists of 2"):
        export_onnx(make_reranker("dnn", processor, hidden_sizes=[4]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_exporting_into_a_folder_that_is_not_empty_is_rejected(processor: ListProcessor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not an empty folder: choose another output folder"):
        export_onnx(make_reranker("dnn", processor), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_revision_is_rejected_for_a_reranker_object(processor: ListProcessor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="revision= applies only to Hub repositories, not to a Reranker"):
        export_onnx(make_reranker("dnn", processor), tmp_path / "out", revision="v1")


@pytest.mark.parametrize("absent", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_onnx_packages_are_reported_with_the_install_command(
    absent: str, folder_copy: Path, processor: ListProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == absent else find(name, *rest))
    message = rf'^{absent} is not installed: run pip install "hf-rerank\[onnx\]"$'
    with pytest.raises(InputError, match=message):
        export_onnx(make_reranker("dnn", processor), tmp_path / "out")
    if absent == "onnxruntime":  # the only package that ranking needs
        with pytest.raises(InputError, match=message):
            Reranker.from_pretrained(folder_copy)
    else:
        assert Reranker.from_pretrained(folder_copy).rerank(ROWS[:1])


@pytest.mark.slow
def test_export_command(processor: ListProcessor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reranker = make_reranker("dnn", processor, hidden_sizes=[4])
    reranker.save_pretrained(tmp_path / "run")
    command = ["export", "--model", str(tmp_path / "run"), "--output-dir", str(tmp_path / "exported")]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model.onnx (")
    assert "differ from those of the model by at most" in lines[1]
    graph = Reranker.from_pretrained(tmp_path / "exported")
    assert [row["order"] for row in graph.rerank(ROWS[:9])] == [row["order"] for row in reranker.rerank(ROWS[:9])]
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith(f"hf-rerank: {tmp_path / 'exported'} exists and is not an empty folder")
    assert cli.main(["export", "--model", str(tmp_path / "none"), "--output-dir", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
