"""The commands with lists, revisions of models, and exported graphs on the Hub."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import Fault, Hub
from mistakes import mistake

from hf_rerank import ListProcessor, Reranker, load_lists
from hf_rerank.cli import main
from hf_rerank.data.push_lists import push_lists
from hf_rerank.inference.export import export_onnx
from hf_rerank.models.auto import RERANKERS

pytestmark = pytest.mark.slow  # two models are exported for all of them
OLD, NEW = "1" * 40, "2" * 40
TRAIN = "--set hidden_sizes=[4] --max_steps 2 --per_device_train_batch_size 16 --disable_tqdm true"


@pytest.fixture(scope="module")
def folders(own_lists: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with different random weights, ``old`` and ``new``, their graphs, and lists to rank."""
    folder = tmp_path_factory.mktemp("models")
    lists = load_lists(own_lists)
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    config, model = RERANKERS["dnn"]
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        made = model(config.for_schema(processor.schema, hidden_sizes=[4], initializer_range=0.5))
        Reranker(processor, made).save_pretrained(folder / name)
        export_onnx(folder / name, folder / f"{name}_graph")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists["train"].to_list()))
    return folder


@pytest.fixture
def models(hub: Hub, folders: Path) -> Hub:
    """``someone/dnn`` and ``someone/graph`` of two commits each; the old one is the branch v1."""
    for repository, suffix in (("someone/dnn", ""), ("someone/graph", "_graph")):
        old, new = (
            {path.name: path.read_bytes() for path in (folders / f"{name}{suffix}").iterdir()}
            for name in ("old", "new")
        )
        hub.repositories[repository] = [
            {"id": OLD, "message": "", "files": old, "branch": "v1"},
            {"id": NEW, "message": "", "files": new},
        ]
    return hub


def ranked(model: object, folders: Path, output: Path, *more: str) -> list[dict]:
    arguments = ["rank", "--model", model, "--input", folders / "rows.jsonl", "--output", output, *more]
    assert main([str(argument) for argument in arguments]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ models and revisions


@pytest.mark.parametrize(
    ("more", "name"), [((), "new"), (("--revision", "v1"), "old"), (("--revision", OLD), "old")], ids=str
)
@pytest.mark.parametrize(("repository", "suffix"), [("someone/dnn", ""), ("someone/graph", "_graph")])
def test_rank_uses_the_given_revision(
    models: Hub, folders: Path, tmp_path: Path, repository: str, suffix: str, more: tuple[str, ...], name: str
) -> None:
    expected = ranked(folders / f"{name}{suffix}", folders, tmp_path / "local.jsonl")
    other = ranked(folders / f"{'old' if name == 'new' else 'new'}{suffix}", folders, tmp_path / "other.jsonl")
    assert expected != other
    assert ranked(repository, folders, tmp_path / "hub.jsonl", *more) == expected
    # All files come from one commit, whatever happens to the branch meanwhile.
    commit = NEW if name == "new" else OLD
    assert {path.name for path in (tmp_path / "cache").glob("**/snapshots/*")} == {commit}


def test_graph_next_to_weights_is_not_downloaded(models: Hub, folders: Path, tmp_path: Path) -> None:
    both = models.repositories["someone/dnn"][1]
    both["files"] = {**both["files"], "model.onnx": b"no graph"}
    assert ranked("someone/dnn", folders, tmp_path / "hub.jsonl") == ranked(
        folders / "new", folders, tmp_path / "local.jsonl"
    )
    assert models.asked("model.onnx") == 0


@pytest.mark.parametrize("where", ["GET .*model.safetensors", "HEAD .*model.safetensors", "GET .*model.onnx"])
def test_network_error_while_choosing_weights_or_graph_is_one_line(
    models: Hub, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    models.faults = [Fault(where, 403)]
    repository = "someone/graph" if "onnx" in where else "someone/dnn"
    line = mistake(f"rank --model {repository} --input {folders}/rows.jsonl --output {tmp_path}/o.jsonl", capsys)
    assert models.faults[0].fired
    assert "the token may not do that there (403)" in line


def test_rank_works_offline_from_the_cache(
    models: Hub, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    expected = {name: ranked(name, folders, tmp_path / "o.jsonl") for name in ("someone/dnn", "someone/graph")}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(models.requests)
    assert {name: ranked(name, folders, tmp_path / "o.jsonl") for name in expected} == expected
    assert len(models.requests) == asked


def test_export_evaluate_and_train_take_a_revision(
    models: Hub, folders: Path, own_lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"export --model someone/dnn --revision v1 --output-dir {tmp_path}/graph".split()) == 0
    assert ranked(tmp_path / "graph", folders, tmp_path / "o.jsonl") == ranked(
        folders / "old_graph", folders, tmp_path / "o.jsonl"
    )
    rows = {}
    for name, model in {"hub": "someone/dnn --revision v1", "old": folders / "old", "new": folders / "new"}.items():
        command = f"evaluate --model {model} --data {own_lists} --split train --json {tmp_path}/{name}.json"
        assert main(command.split()) == 0
        results = json.loads((tmp_path / f"{name}.json").read_text())
        assert results.get("revision") == ("v1" if name == "hub" else None)
        rows[name] = results["rows"]["model"]
    assert rows["hub"] == rows["old"] != rows["new"]
    before = {}
    for name, model in {"hub": "someone/dnn --revision v1", "old": folders / "old"}.items():
        command = f"train --from {model} --data {own_lists} --output-dir {tmp_path}/{name} {TRAIN}"
        assert main(command.replace("--set hidden_sizes=[4] ", "").split()) == 0
        before[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert before["hub"] == before["old"]


@pytest.mark.parametrize(
    "command",
    [
        "rank --model someone/{0} --input {1}/rows.jsonl --output {2}/o.jsonl",
        "evaluate --model someone/{0} --data {3}",
        "export --model someone/{0} --output-dir {2}/graph",
        "train --from someone/{0} --data {3} --output-dir {2}/run",
    ],
)
def test_missing_revision_or_repository_is_named(
    models: Hub,
    folders: Path,
    own_lists: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    line = mistake(command.format("dnn", folders, tmp_path, own_lists) + " --revision v9", capsys)
    assert line == "hf-rerank: the repository someone/dnn has no revision 'v9'"
    line = mistake(command.format("none", folders, tmp_path, own_lists), capsys)
    assert line.startswith("hf-rerank: there is neither a folder someone/none nor a model repository of that name")
    assert line.endswith("or log in with `hf auth login`, or set HF_TOKEN (in Python also token=)")


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --model someone/graph --data {0}",
        "train --from someone/graph --data {0} --output-dir {1}/run",
        "export --model someone/graph --output-dir {1}/graph",
    ],
)
def test_commands_that_need_weights_refuse_a_graph(
    models: Hub, own_lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    line = mistake(command.format(own_lists, tmp_path), capsys)
    assert line.startswith(
        "hf-rerank: someone/graph holds an exported graph (model.onnx) and no PyTorch weights: give the model that"
    )
    assert models.asked("model.onnx") == 0
    assert not (tmp_path / "graph").exists()


def test_revision_in_train_requires_from(own_lists: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(f"train --model dnn --revision v1 --data {own_lists} --output-dir run", capsys)
    assert line == "hf-rerank: --revision goes with --from only: see hf-rerank train --help"


# --------------------------------------------------------------------------------------------------------------- lists


@pytest.fixture
def sorted_lists(own_lists: Path, tmp_path: Path) -> Path:
    """Lists whose report names an initial ranker."""
    folder = Path(shutil.copytree(own_lists, tmp_path / "sorted"))
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**report, "initial_ranker": {"ranker": "by hand"}}))
    return folder


def test_lists_of_the_hub_train_and_evaluate_like_local_ones(hub: Hub, sorted_lists: Path, tmp_path: Path) -> None:
    push_lists(sorted_lists, "someone/lists")
    numbers = {}
    for name, data in {"hub": "someone/lists", "local": sorted_lists}.items():
        run = tmp_path / name
        assert main(f"train --model dnn --data {data} --output-dir {run} {TRAIN}".split()) == 0
        assert json.loads((run / "results.json").read_text())["initial_ranker"] == {"ranker": "by hand"}
        assert main(f"evaluate --model {run} --data {data} --split train --json {run}.json".split()) == 0
        results = json.loads(Path(f"{run}.json").read_text())
        assert results["initial_ranker"] == {"ranker": "by hand"}
        numbers[name] = (results["rows"], (run / "model.safetensors").read_bytes())
    assert numbers["hub"] == numbers["local"]
    assert hub.asked("GET /datasets/someone/lists/resolve/.*/train-00000-of-00001.parquet") == 1


def test_unknown_initial_ranker_is_left_out_of_the_results(
    hub: Hub, own_lists: Path, folders: Path, tmp_path: Path
) -> None:
    push_lists(own_lists, "someone/lists")
    for report in (True, False):
        if not report:  # pushed by hand, without the report and the manifest that lists it
            files = hub.files("datasets/someone/lists")
            kept = {name: content for name, content in files.items() if name not in ("report.json", "manifest.json")}
            hub.repositories["datasets/someone/lists"] = [{"id": "3" * 40, "message": "", "files": kept}]
        output = tmp_path / f"{report}.json"
        command = f"evaluate --model {folders}/new --data someone/lists --split train --json {output}"
        assert main(command.split()) == 0
        assert "initial_ranker" not in json.loads(output.read_text())


def test_vectors_for_lists_of_the_hub_equal_those_for_local_ones(hub: Hub, own_lists: Path, tmp_path: Path) -> None:
    push_lists(own_lists, "someone/lists")
    for name, data in {"hub": "someone/lists", "local": own_lists}.items():
        assert main(f"vectors --data {data} --output-dir {tmp_path}/{name} --dim 2".split()) == 0
    found, expected = (
        {split: rows.to_list() for split, rows in load_lists(tmp_path / name).items()} for name in ("hub", "local")
    )
    assert found == expected
    assert len(found["train"][0]["personalised"][0]) == 2


def test_initial_order_of_lists_of_the_hub_equals_that_of_local_ones(
    hub: Hub, own_lists: Path, tmp_path: Path
) -> None:
    push_lists(own_lists, "someone/lists")
    for name, data in {"hub": "someone/lists", "local": own_lists}.items():
        command = f"initial-rank --data {data} --output-dir {tmp_path}/{name} --ranker dnn --quality poor"
        assert main(command.split()) == 0
    found, expected = (
        {split: rows.to_list() for split, rows in load_lists(tmp_path / name).items()} for name in ("hub", "local")
    )
    assert found == expected
    assert sorted(found["train"][0]["position"]) == [0, 1, 2]


def test_local_folder_takes_precedence_over_a_repository(
    hub: Hub, own_lists: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(own_lists, tmp_path / "someone" / "lists")
    assert main(f"evaluate --model {folders}/new --data someone/lists --split train".split()) == 0
    assert hub.requests == []


DATA_COMMANDS = [
    "train --model dnn --data {0} --output-dir {1}/run",
    "evaluate --model {2}/new --data {0}",
    "vectors --data {0} --output-dir {1}/with_vectors",
    "initial-rank --data {0} --output-dir {1}/sorted --ranker dnn",
]


@pytest.mark.parametrize("command", DATA_COMMANDS, ids=lambda command: command.split()[0])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("lists", "^hf-rerank: lists is not a folder of prepared lists .it has no schema.json.: make one with"),
        ("./some/lists", "^hf-rerank: ./some/lists is not a folder of prepared lists"),
        ("some/lists.parquet", "^hf-rerank: some/lists.parquet is not a folder of prepared lists"),
        ("empty/folder", "^hf-rerank: empty/folder is not a folder of prepared lists"),
        ("someone/none", "neither a folder someone/none nor a dataset repository of that name that you may read"),
        ("someone/dnn", "neither a folder someone/dnn nor a dataset repository of that name that you may read"),
        ("someone/photos", "the repository someone/photos has no schema.json"),
        ("begun/lists", "^hf-rerank: begun/lists is not finished, see begun/lists.partial"),
    ],
)
def test_missing_lists_are_a_one_line_error(
    models: Hub,
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    data: str,
    words: str,
) -> None:
    models.repositories["datasets/someone/photos"] = [{"id": "3" * 40, "message": "", "files": {"cat.jpg": b""}}]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    (tmp_path / "begun" / "lists.partial").mkdir(parents=True)
    (tmp_path / "begun" / "lists.partial" / "begun.json").write_text("{}")
    line = mistake(command.format(data, tmp_path, folders), capsys)
    assert re.search(words, line), line
    assert (models.asked("datasets/") > 0) == data.startswith("someone/")


def test_offline_error_mentions_folder_and_repository(
    hub: Hub, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name could be that of a folder or of a repository."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = mistake(f"evaluate --model {folders}/new --data someone/lists", capsys)
    assert line.startswith(
        "hf-rerank: there is no folder someone/lists, and schema.json of a repository of that name is not in the cache"
    )


def test_misspelled_folders_are_not_looked_up_on_the_hub(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    near = r"runs/frist is neither a folder here nor a repository of the Hub \(/.*/runs holds first\): check the name"
    for arguments, words in (
        ("train --model prm --data runs/lists --output-dir out", "runs/lists is not a folder of prepared lists"),
        ("evaluate --model runs/frist --data runs/lists", near),
        (
            "export --model /runs/none/such --output-dir out",
            r"repository of the Hub \(/runs/none does not exist either\): check",
        ),
        (
            "export --model frist --output-dir out",
            "^hf-rerank: frist is neither a folder here nor a reposit",
        ),
        ("evaluate --model ./some/one --data x", r"^hf-rerank: \./some/one is neither a folder"),
    ):
        assert main(arguments.split()) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-rerank: ")]
        assert re.search(words, line), line
    assert hub.requests == []


def test_missing_repository_is_requested_only_once(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        "train --model prm --data someone/none --output-dir out",
        "evaluate --model someone/none --data x",
        "export --model someone/none --output-dir out",
    ):
        before = len(hub.requests)
        assert main(arguments.split()) == 2
        assert "hf-rerank: there is neither a folder someone/none" in capsys.readouterr().err
        assert len(hub.requests) == before + 1
    assert hub.waits == []


def test_unreachable_hub_is_not_tried_again(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    template = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for arguments in (
        "train --model prm --data someone/lists --output-dir out",
        "evaluate --model someone/prm --data x",
    ):
        assert main(arguments.split()) == 2
        assert "cannot be fetched: the connection failed" in capsys.readouterr().err
    assert hub.waits == [], "the client waited to try again"
