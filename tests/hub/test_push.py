"""Push and load, end to end, against a local Hub; the client runs in a separate process."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, running_hub
from huggingface_hub import ModelCard

from hf_rerank import InputError, ListProcessor, Reranker
from hf_rerank.hub.card import model_card
from hf_rerank.hub.push import PUSHED
from hf_rerank.principled import PRESETS
from hf_rerank.storage.hub_download import find_model_file

TOKEN = "hf_canaryCanaryCanary"
FILES = {
    "README.md",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "preprocessor_config.json",
    "vocabularies.safetensors",
    "results.json",
    "training_args.json",
}
FIGURES = {"training.png", "obedience.png"}

TRAIN_AND_PUSH = """
import json, sys
from pathlib import Path
import datasets
from hf_rerank import (Categorical, Dense, ListProcessor, ListSchema, PRMConfig, PRMForReranking, Reranker,
                       RerankTrainer, RerankTrainingArguments)
from hf_rerank.hub import push_model

folder, token = Path(sys.argv[1]), sys.argv[2]
schema = ListSchema(items=[Categorical("item_id"), Dense("price")], list_id="list_id", max_list_length=4)
rows = [{"list_id": str(number), "item_id": [number % 3, 1, 2], "price": [0.5, 1.0, float(number)], "click": [1, 0, 0]}
        for number in range(12)]
lists = datasets.Dataset.from_list(rows)
processor = ListProcessor.from_lists(lists, schema=schema)
sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
model = PRMForReranking(PRMConfig.for_schema(processor.schema, **sizes))
arguments = RerankTrainingArguments(str(folder / "tiny-prm"), num_train_epochs=2, per_device_train_batch_size=6,
                                    use_cpu=True, disable_tqdm=True, hub_token=token, hub_private_repo=True)
trainer = RerankTrainer(model=model, args=arguments, train_dataset=lists, eval_dataset=lists,
                        processing_class=processor)
trainer.train()
trainer.evaluate(lists, metric_key_prefix="test")
trainer.save_model()
(Path(arguments.output_dir) / "notes.pkl").write_bytes(b"not to be pushed")
first = trainer.push_to_hub(commit_message="A tiny one")
trainer.push_to_hub("club/named", private=False)
push_model(arguments.output_dir, "whole-run", commit_message="From the run's folder")
# Other ways to push, and to load.
reranker = Reranker(processor, trainer.model)
reranker.push_to_hub("someone/parts", private=True)
processor.push_to_hub("someone/parts", commit_message="The processor again")
trainer.results["note"] = "so that there is something to commit"
trainer.push_to_hub("someone/tiny-prm", revision="next", commit_message="On a branch")
pull_request = trainer.push_to_hub("someone/whole-run", private=False, create_pr=True)
import hf_rerank.models
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
from hf_rerank import AutoReranker
requests = [{"item_id": row["item_id"], "price": row["price"]} for row in rows]
(folder / "report.json").write_text(json.dumps({
    "commit": first.oid,
    "rows": requests,
    "expected": Reranker(processor, trainer.model).rerank(requests),
    "from_hub": Reranker.from_pretrained("someone/tiny-prm").rerank(requests),
    "at_revision": Reranker.from_pretrained("club/named", revision="main", token=token).rerank(requests),
    "at_commit": Reranker.from_pretrained("someone/tiny-prm", revision=first.oid).rerank(requests),
    "at_branch": Reranker.from_pretrained("someone/tiny-prm", revision="next").rerank(requests),
    "at_pull_request": Reranker.from_pretrained("someone/whole-run", revision="refs/pr/1").rerank(requests),
    "private": Reranker.from_pretrained("someone/parts").rerank(requests),
    "pull_request": pull_request.pr_url,
    "auto_reranker": Reranker(processor, AutoReranker.from_pretrained("someone/tiny-prm")).rerank(requests),
    "auto_model": Reranker(AutoFeatureExtractor.from_pretrained("someone/tiny-prm"),
                           AutoModel.from_pretrained("someone/tiny-prm")).rerank(requests),
    "auto_config": AutoConfig.from_pretrained("someone/tiny-prm").model_type,
}))
for source, options in (("someone/none", {}), ("someone/tiny-prm", {"revision": "v9"}), ("someone/empty", {})):
    try:
        Reranker.from_pretrained(source, **options)
    except ValueError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[str, Any], list[str], Path]]:
    folder = tmp_path_factory.mktemp("pushed")
    with running_hub("someone", TOKEN) as hub:
        hub.repositories["someone/empty"] = [{"id": "0" * 40, "message": "", "files": {"README.md": b"nothing"}}]
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-c", TRAIN_AND_PUSH, str(folder), TOKEN]
        ran = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=240, check=False, cwd=folder
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        assert TOKEN not in ran.stdout + ran.stderr
        errors = [line for line in ran.stdout.splitlines() if "Error" in line.split(" ", 1)[0]]
        yield hub, json.loads((folder / "report.json").read_text()), errors, folder


@pytest.mark.slow
def test_every_push_is_one_commit_of_the_allowed_files(pushed: tuple[Hub, dict[str, Any], list[str], Path]) -> None:
    hub, report, _, _ = pushed
    first, branch = hub.repositories["someone/tiny-prm"]
    (named,) = hub.repositories["club/named"]
    whole, pull_request = hub.repositories["someone/whole-run"]
    for commit, message in (
        (first, "A tiny one"),
        (branch, "On a branch"),
        (named, "Upload re-ranker"),
        # The folder of the run holds checkpoints and more.
        (whole, "From the run's folder"),
        (pull_request, "Upload re-ranker"),
    ):
        assert commit["message"] == message
        assert commit["files"].keys() == FILES | FIGURES
    assert report["commit"] == first["id"]
    assert (branch["branch"], pull_request["branch"]) == ("next", "refs/pr/1")
    assert report["pull_request"] == f"{hub.url}/someone/whole-run/discussions/1"
    # Files are stored once uploaded, even without a commit: one model and one processor, each uploaded only once.
    assert len(hub.objects) == 2
    assert hub.asked("^PUT") == 2


@pytest.mark.slow
def test_every_manifest_lists_every_file(pushed: tuple[Hub, dict[str, Any], list[str], Path]) -> None:
    hub, _, _, _ = pushed
    for key in ("someone/tiny-prm", "club/named", "someone/whole-run", "someone/parts"):
        for commit in hub.repositories[key]:
            listed = json.loads(commit["files"]["manifest.json"])["files"]
            assert {name: entry["sha256"] for name, entry in listed.items()} == {
                name: hashlib.sha256(content).hexdigest()
                for name, content in commit["files"].items()
                if name not in ("manifest.json", "README.md")
            }


@pytest.mark.slow
def test_reranker_without_results_gets_a_plain_card(pushed: tuple[Hub, dict[str, Any], list[str], Path]) -> None:
    hub, _, _, _ = pushed
    (commit,) = hub.repositories["someone/parts"]  # the processor had not changed, so there was nothing to commit
    # One is private by an option of the call, the other by the training arguments.
    assert hub.private == {"someone/parts", "someone/tiny-prm"}
    assert commit["files"].keys() == FILES - {"results.json", "training_args.json"}
    card = ModelCard(commit["files"]["README.md"].decode())
    assert card.data.library_name == "hf_rerank"
    assert 'Reranker.from_pretrained("someone/parts")' in card.text


@pytest.mark.slow
def test_the_run_folder_held_more_than_was_pushed(pushed: tuple[Hub, dict[str, Any], list[str], Path]) -> None:
    _, _, _, folder = pushed
    names = {path.name for path in (folder / "tiny-prm").rglob("*")}
    assert {"notes.pkl", "checkpoint-2", "optimizer.pt"} <= names
    assert "training_args.bin" not in names


@pytest.mark.slow
def test_no_token_in_any_file(pushed: tuple[Hub, dict[str, Any], list[str], Path]) -> None:
    hub, _, _, folder = pushed
    assert any(b"A tiny one" in body for body in hub.bodies)
    for body in (*hub.bodies, *hub.objects.values()):
        assert TOKEN.encode() not in body
    for commits in hub.repositories.values():
        for commit in commits:
            for name, content in commit["files"].items():
                assert TOKEN.encode() not in content, name
    for path in (folder / "tiny-prm").rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_card_and_results(pushed: tuple[Hub, dict[str, Any], list[str], Path]) -> None:
    hub, _, _, _ = pushed
    for repo_id in ("someone/tiny-prm", "club/named"):
        files = hub.files(repo_id)
        card = ModelCard(files["README.md"].decode())
        assert card.data.library_name == "hf_rerank"
        assert "re-ranking" in card.data.tags
        assert f'Reranker.from_pretrained("{repo_id}")' in card.text
    results = json.loads(files["results.json"])
    assert f"| ndcg@10 | {results['evaluations']['test']['test_ndcg@10']:.4f} |" in card.text
    assert re.search(r"`augmented`: `convergence`, weight 6, .*`adversarial`, weight 1.5, ", card.text)
    assert "| price | items | dense |" in card.text
    assert json.loads(files["training_args.json"])["hub_token"] != TOKEN


@pytest.mark.slow
def test_model_loaded_from_the_hub_ranks_the_same(pushed: tuple[Hub, dict[str, Any], list[str], Path]) -> None:
    _, report, _, _ = pushed
    assert len(report["expected"]) == 12
    ways = (
        "from_hub",
        "at_revision",
        "at_commit",
        "at_branch",
        "at_pull_request",
        "private",
        "auto_reranker",
        "auto_model",
    )
    for way in ways:
        assert report[way] == report["expected"], way
    assert report["auto_config"] == "rerank_prm"


@pytest.mark.slow
def test_missing_repository_revision_or_file_is_named(pushed: tuple[Hub, dict[str, Any], list[str], Path]) -> None:
    _, _, errors, _ = pushed
    assert [line.split(" ", 1)[0] for line in errors] == ["InputError"] * 3, errors
    no_repository, no_revision, no_file = errors
    assert "neither a folder someone/none nor a model repository" in no_repository
    assert "someone/tiny-prm has no revision 'v9'" in no_revision
    assert "someone/empty has no preprocessor_config.json" in no_file


# ------------------------------------------------------------------------------------------------------- without a Hub


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        *((name, True) for name in sorted(FILES | FIGURES)),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        *((name, False) for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "pytorch_model.bin")),
        *(
            (name, False)
            for name in ("trainer_state.json", ".env", "notes.txt", "other.png", "checkpoint-10/model.safetensors")
        ),
    ],
)
def test_only_allowed_file_names_may_be_pushed(name: str, allowed: bool) -> None:
    assert any(fnmatch.fnmatch(name, pattern) for pattern in PUSHED) is allowed


RESULTS: dict[str, Any] = {
    "model": {"model_type": "rerank_prm"},
    "parameters": 12345,
    "task_loss": "binary_log_loss",
    "objective": {
        "principled": "scaled",
        **PRESETS["scaled"].settings(),
    },
    "schema": {
        "items": [{"kind": "categorical", "name": "item_id"}],
        "user": [{"kind": "dense", "name": "age"}],
        "history": [],
        "max_list_length": 30,
    },
    "data": {"train": {"lists": 100}},
    "training_arguments": {"seed": 3},
    "evaluations": {"test": {"test_auc": 0.71234, "test_p1_obedience": 0.5, "test_runtime": 3.0}},
}


def test_card_text() -> None:
    card = ModelCard(model_card("someone/prm", RESULTS))
    assert card.data.library_name == "hf_rerank"
    assert card.text.count("\n# ") + card.text.startswith("# ") == 1
    for line in (
        "# someone/prm",
        "## Results",
        "| auc | 0.7123 |",
        "| p1_obedience | 0.5000 |",
        "| item_id | items | categorical |  |",
        "| age | user | dense | 1 |",
    ):
        assert line in card.text.splitlines(), line
    assert "12,345 parameters" in card.text
    assert "runtime" not in card.text
    assert "Results" not in ModelCard(model_card("x/y", {**RESULTS, "evaluations": {}})).text


def test_find_model_file_in_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find_model_file(tmp_path, "config.json") == tmp_path / "config.json"
    assert find_model_file(str(tmp_path), "config.json").read_text() == "{}"
    with pytest.raises(InputError, match=r"has no model\.safetensors \(it holds config\.json\)"):
        find_model_file(tmp_path, "model.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="it holds nothing"):
        find_model_file(tmp_path / "empty", "config.json")
    for load in (ListProcessor.from_pretrained, Reranker.from_pretrained):
        with pytest.raises(InputError, match="empty has no"):
            load(tmp_path / "empty")
