"""``hf-rerank rank`` with an exported folder: it ranks like its model, without torch; the other commands refuse it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from all_features import ROWS, SCHEMA
from mistakes import mistake

from hf_rerank import ListProcessor, Reranker, cli
from hf_rerank.inference.export import export_onnx
from hf_rerank.models.auto import RERANKERS

REFUSAL = (
    "hf-rerank: {0} holds an exported graph (model.onnx) and no PyTorch weights: give the model that it was "
    "exported from; a graph can only rank, with Reranker.from_pretrained or hf-rerank rank"
)


pytestmark = pytest.mark.slow  # a model is trained and exported for all of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists of all kinds of features in ``rows.jsonl``, a model of random weights ``run``, its graph ``exported``."""
    folder = tmp_path_factory.mktemp("exported")
    processor = ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA)
    config, model = RERANKERS["dnn"]
    torch.manual_seed(0)
    made = model(config.for_schema(processor.schema, hidden_sizes=[8], initializer_range=0.5))
    Reranker(processor, made).save_pretrained(folder / "run")
    export_onnx(folder / "run", folder / "exported")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:600]))
    return folder


def rank(model: Path, folder: Path, output: Path, *more: str) -> list[dict]:
    arguments = ["rank", "--model", model, "--input", folder / "rows.jsonl", "--output", output, *more]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_graph_ranks_like_the_model_that_it_was_exported_from(folder: Path, tmp_path: Path) -> None:
    expected = rank(folder / "run", folder, tmp_path / "torch.jsonl", "--top-k", "7")
    found = rank(folder / "exported", folder, tmp_path / "onnx.jsonl", "--top-k", "7")
    assert len(found) == 600
    assert len({str(row["order"]) for row in found}) > 300  # so that equal orders prove something
    for one, other in zip(expected, found, strict=True):
        assert {**one, "scores": None} == {**other, "scores": None}
        assert other["scores"] == pytest.approx(one["scores"], rel=0, abs=1e-5)


def test_graph_and_model_print_the_same_output(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rank(folder / "run", folder, tmp_path / "ranked.jsonl")
    expected = capsys.readouterr().out
    rank(folder / "exported", folder, tmp_path / "ranked.jsonl")
    assert capsys.readouterr().out == expected
    assert expected.startswith("600 lists ranked, in ")
    assert "histories were cut to the newest 6" in expected


def test_a_graph_ranks_without_torch(folder: Path, tmp_path: Path) -> None:
    heavy = "{'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys; from hf_rerank import cli; print(cli.main(sys.argv[1:]), *{heavy})"
    options = [
        "rank",
        "--model",
        folder / "exported",
        "--input",
        folder / "rows.jsonl",
        "--output",
        tmp_path / "o.jsonl",
    ]
    command = [sys.executable, "-c", code, *map(str, options)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.splitlines()[-1] == "0"


def test_folder_with_weights_and_graph_ranks_with_the_weights(folder: Path, tmp_path: Path) -> None:
    """The graph next to the weights is unreadable."""
    both = Path(shutil.copytree(folder / "run", tmp_path / "both"))
    (both / "model.onnx").write_bytes(b"no graph")
    expected = rank(folder / "run", folder, tmp_path / "run.jsonl")
    assert rank(both, folder, tmp_path / "both.jsonl") == expected


def test_missing_onnxruntime_is_a_one_line_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find(name, *rest)
    )
    line = mistake(
        f"rank --model {folder}/exported --input {folder}/rows.jsonl --output {tmp_path}/ranked.jsonl", capsys
    )
    assert line == 'hf-rerank: onnxruntime is not installed: run pip install "hf-rerank[onnx]"'
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "manifest.json", "model.onnx"])
def test_damaged_graph_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    damaged = Path(shutil.copytree(folder / "exported", tmp_path / "damaged"))
    (damaged / name).write_bytes((damaged / name).read_bytes()[:-5])
    line = mistake(f"rank --model {damaged} --input {folder}/rows.jsonl --output {tmp_path}/ranked.jsonl", capsys)
    assert f"{name} " in line
    assert "damaged" in line or "cut or changed" in line


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        "evaluate --model {0} --data {1}/lists",
        "export --model {0} --output-dir {1}/again",
        "push --model {0} --repo-id someone/graph",
    ],
)
def test_commands_that_need_weights_refuse_a_graph(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, manifest: bool
) -> None:
    exported = Path(shutil.copytree(folder / "exported", tmp_path / "exported"))
    if not manifest:
        (exported / "manifest.json").unlink()
    assert mistake(command.format(exported, tmp_path), capsys) == REFUSAL.format(exported)
    assert list(tmp_path.iterdir()) == [exported]


@pytest.mark.parametrize(
    "command",
    [
        "rank --model {0} --input {1}/rows.jsonl --output {2}/o.jsonl",
        "evaluate --model {0} --data {2}/lists",
        "export --model {0} --output-dir {2}/again",
        "train --from {0} --data {2}/lists --output-dir {2}/run",
    ],
)
@pytest.mark.parametrize("model", ["run", "exported"])
def test_revision_of_a_local_folder_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, model: str
) -> None:
    line = mistake(f"{command.format(folder / model, folder, tmp_path)} --revision v1", capsys)
    assert line == (
        f"hf-rerank: --revision v1 applies only to Hub repositories, but there is a local folder {folder / model}, "
        "which is used instead: leave it out"
    )
    assert list(tmp_path.iterdir()) == []
