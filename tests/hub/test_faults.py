"""Failures on the way to the Hub: the messages, the repository afterwards, and what is sent again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, Hub
from huggingface_hub import HfApi, constants
from samples import KEPT, TOKEN

from hf_rerank import InputError, ListProcessor, Reranker
from hf_rerank.cli import main
from hf_rerank.data.push_lists import push_lists
from hf_rerank.hub import push_model
from hf_rerank.storage import MANIFEST
from hf_rerank.storage.hub_errors import hide_tokens
from hf_rerank.storage.hub_repository import open_repository

KEY = "someone/prm"
FILES = {"README.md", "config.json", "manifest.json", "model.safetensors"} | {
    "preprocessor_config.json",
    "vocabularies.safetensors",
}
NOTHING = "Nothing was committed: the repository is as it was; large files that arrived are not sent again"
UNKNOWN = "It is unknown whether the commit arrived: rerun the same command, which commits nothing if it did"
PREUPLOAD, LFS, PUT, COMMIT = "/preupload/", "/lfs/objects/batch", "PUT /lfs/", "/commit/"


@pytest.fixture(autouse=True)
def no_token_anywhere(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Any:
    """After every test here: the token is in no message, log, stored object or file."""
    caplog.set_level(logging.DEBUG, logger="huggingface_hub")
    said: list[str] = []
    yield said
    out, err = capsys.readouterr()
    assert TOKEN not in "".join([out, err, caplog.text, *said])
    for body in (*hub.bodies, *hub.objects.values()):
        assert TOKEN.encode() not in body
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def refusal_message(push: Callable[[], object]) -> str:
    """The one-line message with which a call fails."""
    with pytest.raises(InputError) as caught:
        push()
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert TOKEN not in str(caught.value)
    return str(caught.value)


WHERE = "model repository someone/prm"
CREATE_LINE = f"the {WHERE} could not be opened: "
SEND_LINE = f"files could not be sent to the {WHERE}: "
COMMIT_LINE = f"the {WHERE} got the files but no commit: "
SAYS = " (the Hub says: a fault of this Hub)"
BUSY = "too many requests (429); wait 7 seconds, then run it again"
BROKEN = "the Hub has an internal error (500); run it again later"
FORBIDDEN = "the token may not do that there (403); use one that may, or a name in your own namespace"

# Fault, start of the line, end of the line, how often the client tries.
FAULTS = [
    (Fault("repos/create", 500), f"{CREATE_LINE}{BROKEN}{SAYS}", "", 1),
    (Fault("repos/create", 429, {"Retry-After": "7"}), f"{CREATE_LINE}{BUSY}{SAYS}", "", 1),
    (Fault("repos/create|GET /api/models", 403), f"{CREATE_LINE}{FORBIDDEN}{SAYS}", "", 2),
    (Fault("GET /api/models", 404), f"{CREATE_LINE}there is no such repository or revision", "", 1),
    (Fault("repos/create"), f"{CREATE_LINE}the connection failed (", "", 1),
    (Fault(PREUPLOAD, 500), f"{SEND_LINE}{BROKEN}{SAYS}", NOTHING, 6),
    (Fault(PREUPLOAD, 403), f"{SEND_LINE}{FORBIDDEN}{SAYS}", NOTHING, 1),
    (Fault(LFS, 429, {"Retry-After": "7"}), f"{SEND_LINE}{BUSY}{SAYS}", NOTHING, 6),
    (Fault(LFS, 413), f"{SEND_LINE}a file is too large for the Hub (413); save smaller shards{SAYS}", NOTHING, 1),
    (Fault(PUT, 500), f"{SEND_LINE}{BROKEN}{SAYS}", NOTHING, 6),
    (Fault(PUT, 403), f"{SEND_LINE}{FORBIDDEN}{SAYS}", NOTHING, 1),
    (Fault(PUT), f"{SEND_LINE}the connection failed (", NOTHING, 6),
    (Fault(COMMIT, 403), f"{COMMIT_LINE}{FORBIDDEN}{SAYS}", NOTHING, 1),
    (Fault(COMMIT, 429, {"Retry-After": "7"}), f"{COMMIT_LINE}{BUSY}{SAYS}", NOTHING, 1),
    (Fault(COMMIT, 412), f"{COMMIT_LINE}somebody else committed there meanwhile (412);", NOTHING, 1),
    (Fault(COMMIT, 500), f"{COMMIT_LINE}{BROKEN}{SAYS}", UNKNOWN, 1),
    (Fault(COMMIT), f"{COMMIT_LINE}the connection failed (", UNKNOWN, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "begins", "ends", "tries"),
    FAULTS,
    ids=[f"{fault.where}: {fault.status or 'reset'}" for fault, *_ in FAULTS],
)
def test_failed_push_is_one_line_without_a_commit_and_can_be_repeated(
    hub: Hub, run_folder: Path, fault: Fault, begins: str, ends: str, tries: int, no_token_anywhere: list[str]
) -> None:
    before = {"id": "b" * 40, "message": "before", "files": {MANIFEST: (KEPT / MANIFEST).read_bytes()}}
    hub.repositories[KEY] = [before]
    (run_folder / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    hub.faults = [Fault(fault.where, fault.status, fault.headers)]
    line = refusal_message(lambda: push_model(run_folder, KEY))
    no_token_anywhere.append(line)
    assert line.startswith(begins)
    assert line.endswith(ends)
    (fired,) = hub.faults
    # Two large files are sent in parallel, each with its own tries.
    assert tries <= fired.fired <= (2 * tries if fault.where == PUT else tries)
    assert hub.repositories[KEY] == [before]
    # What arrived is not sent again, and the second try is one complete commit.
    hub.faults, arrived, asked = [], set(hub.objects), len(hub.requests)
    push_model(run_folder, KEY)
    assert [commit["message"] for commit in hub.repositories[KEY]] == ["before", "Upload re-ranker"]
    sent = {request.rpartition("/")[2] for request in hub.requests[asked:] if request.startswith("PUT")}
    assert not sent & arrived
    assert hub.files(KEY)["README.md"].endswith(b"mine\n")


def test_client_waits_and_tries_again_after_too_many_requests(hub: Hub, run_folder: Path) -> None:
    hub.faults = [Fault(PREUPLOAD, 429, {"Retry-After": "3"}, times=2), Fault(PUT, 500, times=1)]
    push_model(run_folder, KEY)
    assert hub.files(KEY).keys() == FILES
    # The client waits one second longer than it is asked to; after a fault, one second.
    assert hub.waits == [4.0, 4.0, 1]


def test_file_is_sent_again_after_a_connection_reset(hub: Hub, run_folder: Path) -> None:
    hub.faults = [Fault(PUT, times=1)]
    push_model(run_folder, KEY)
    assert hub.faults[0].fired == 1
    assert hub.asked("^PUT") == 3
    assert hub.files(KEY)["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()
    assert len(hub.repositories[KEY]) == 1


def test_only_missing_files_are_sent_again(hub: Hub, run_folder: Path) -> None:
    """One of two large files arrives; the next push sends the other, and the one after that nothing."""
    import hashlib

    weights = hashlib.sha256((run_folder / "model.safetensors").read_bytes()).hexdigest()
    vocabularies = hashlib.sha256((run_folder / "vocabularies.safetensors").read_bytes()).hexdigest()
    hub.faults = [Fault(f"PUT /lfs/{weights}", 403, once_there=vocabularies)]
    refusal_message(lambda: push_model(run_folder, KEY))
    assert set(hub.objects) == {vocabularies}
    assert hub.repositories[KEY] == []
    hub.faults, asked = [], len(hub.requests)
    push_model(run_folder, KEY)
    assert [request for request in hub.requests[asked:] if "PUT" in request] == [f"PUT /lfs/{weights}"]
    asked, (commit,) = len(hub.requests), hub.repositories[KEY]
    again = push_model(run_folder, KEY)
    assert again.oid == commit["id"]
    assert hub.repositories[KEY] == [commit]
    assert not [request for request in hub.requests[asked:] if "PUT" in request or "commit" in request]


def test_push_after_a_lost_answer_adds_no_second_commit(hub: Hub, run_folder: Path) -> None:
    hub.faults = [Fault(COMMIT, times=1, after=True)]
    assert refusal_message(lambda: push_model(run_folder, KEY)).endswith(UNKNOWN)
    (commit,) = hub.repositories[KEY]
    assert push_model(run_folder, KEY).oid == commit["id"]
    assert hub.repositories[KEY] == [commit]


def test_folder_that_changes_during_the_upload_is_not_committed(
    hub: Hub, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, upload = tmp_path / "mine", HfApi.preupload_lfs_files
    shutil.copytree(run_folder, folder)

    def saved_meanwhile(*arguments: Any, **options: Any) -> None:
        upload(*arguments, **options)
        path = folder / "model.safetensors"
        other = path.with_name("other")
        shutil.copy2(path, other)
        other.replace(path)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", saved_meanwhile)
    line = refusal_message(lambda: push_model(folder, KEY))
    assert line == f"{folder / 'model.safetensors'} changed while it was read: run again when it is complete"
    assert hub.repositories.get(KEY, []) == []


def test_commit_by_somebody_else_meanwhile_stops_the_push(hub: Hub) -> None:
    repository = open_repository(KEY, "model")
    hub.commit(KEY, "main", [{"key": "header", "value": {"summary": "theirs"}}])
    line = refusal_message(lambda: repository.commit({"results.json": b"{}"}, owned=(), message="ours"))
    assert line.startswith(
        f"{COMMIT_LINE}somebody else committed there meanwhile (412); check that commit, and run it again"
    )
    assert line.endswith(NOTHING)
    assert [commit["message"] for commit in hub.repositories[KEY]] == ["theirs"]


# ---------------------------------------------------------------------------------------------------- names and tokens


def test_wrong_or_missing_token_is_explained(hub: Hub, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "hf_wrongWrongWrongWrongWrongWrong99999"
    remedy = "it is wrong, or no longer valid; log in with `hf auth login`, or set HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", wrong)
    line = refusal_message(lambda: push_model(run_folder, KEY))
    assert line.startswith(f"{CREATE_LINE}the Hub does not accept the token (401): {remedy}")
    assert wrong not in line
    monkeypatch.delenv("HF_TOKEN")
    line = refusal_message(lambda: push_model(run_folder, KEY))
    assert f"{CREATE_LINE}there is no token, and the Hub asks for one (401); log in with `hf auth login`" in line
    assert hub.repositories == {}


def test_token_in_a_message_of_the_hub_is_hidden(hub: Hub, run_folder: Path) -> None:
    hub.faults = [Fault("repos/create", 500, message=f"what is {TOKEN}?")]
    assert "(the Hub says: what is ***?)" in refusal_message(lambda: push_model(run_folder, KEY))
    assert hide_tokens("a hf_abcdefghijklmnopqrstuvw b") == "a *** b"
    assert hide_tokens("another kind of token", "kind of") == "another *** token"


def test_push_to_the_namespace_of_somebody_else_is_refused(hub: Hub, run_folder: Path) -> None:
    line = refusal_message(lambda: push_model(run_folder, "others/new"))
    assert line.startswith(f"the model repository others/new could not be opened: {FORBIDDEN}")
    hub.repositories["others/theirs"] = []
    line = refusal_message(lambda: push_model(run_folder, "others/theirs"))
    assert line.startswith(f"files could not be sent to the model repository others/theirs: {FORBIDDEN}")
    assert hub.repositories == {"others/theirs": []}


def test_repository_with_other_content_is_refused(hub: Hub, run_folder: Path) -> None:
    theirs = {"id": "1" * 40, "message": "", "files": {"config.json": b"{}", "pytorch_model.bin": b"pickle"}}
    hub.repositories["someone/bert"] = [theirs]
    assert refusal_message(lambda: push_model(run_folder, "someone/bert")) == (
        "someone/bert holds something else (such as config.json, pytorch_model.bin, and no manifest.json): choose "
        "another name, or another branch. Nothing was sent"
    )
    assert hub.repositories["someone/bert"] == [theirs]
    assert not hub.objects


def test_repository_with_a_gitignore_is_refused(hub: Hub, run_folder: Path) -> None:
    push_model(run_folder, KEY)
    hub.repositories[KEY][-1]["files"][".gitignore"] = b"*.safetensors"
    line = refusal_message(lambda: push_model(run_folder, KEY))
    assert line == "someone/prm has a .gitignore, which may keep files out: remove it there. Nothing was sent"


def test_saving_with_push_to_hub_commits_each_part(hub: Hub, run_folder: Path, tmp_path: Path) -> None:
    """As classes of transformers do: each part is one commit, and the manifest covers both."""
    reranker = Reranker.from_pretrained(run_folder)
    reranker.model.save_pretrained(tmp_path / "prm", push_to_hub=True, commit_message="The model", private=True)
    reranker.processor.save_pretrained(tmp_path / "prm", push_to_hub=True, commit_message="The processor")
    assert [commit["message"] for commit in hub.repositories[KEY]] == ["The model", "The processor"]
    assert hub.private == {KEY}
    assert hub.files(KEY).keys() == FILES
    reranker.save_pretrained(tmp_path / "both")
    saved = json.loads((tmp_path / "both" / MANIFEST).read_text())
    assert json.loads(hub.files(KEY)[MANIFEST])["files"] == saved["files"]
    Reranker.from_pretrained(KEY)
    assert {path.name for path in (tmp_path / "prm").iterdir()} == FILES - {"README.md", MANIFEST}


def test_private_push_to_a_public_repository_is_refused(hub: Hub, run_folder: Path) -> None:
    hub.repositories["someone/open"] = []
    assert refusal_message(lambda: push_model(run_folder, "someone/open", private=True)) == (
        "someone/open exists and is public: make it private in its settings, or choose another name. Nothing was sent"
    )
    assert hub.repositories["someone/open"] == []


def test_invalid_repo_ids_and_conflicting_options_are_refused(hub: Hub, run_folder: Path) -> None:
    for name, said in (("", "repo_id is empty"), ("a/b/c", "Repo id must"), ("someone/na me", "Repo id must")):
        assert said in refusal_message(lambda name=name: push_model(run_folder, name))
    assert "either a revision or create_pr, not both" in refusal_message(
        lambda: push_model(run_folder, KEY, revision="next", create_pr=True)
    )
    assert hub.requests == []


# --------------------------------------------------------------------------------------------------- without a network


def test_connection_failure_is_one_line_for_push_and_load(
    hub: Hub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    line = refusal_message(lambda: push_model(run_folder, KEY))
    assert line.startswith(f"{CREATE_LINE}the connection failed (")
    assert line.endswith("check the network, and run it again")
    line = refusal_message(lambda: Reranker.from_pretrained(KEY))
    assert line.startswith("there is no folder someone/prm, and preprocessor_config.json of a repository of that name")
    assert "is not in the cache and cannot be fetched: the connection failed (" in line


def test_offline_mode_sends_no_request(hub: Hub, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    remedy = "HF_HUB_OFFLINE is set, so no request is sent to the Hub; unset it to use the network"
    assert refusal_message(lambda: push_model(run_folder, KEY)) == f"{CREATE_LINE}{remedy}"
    assert refusal_message(lambda: Reranker.from_pretrained(KEY)).endswith(f"cannot be fetched: {remedy}")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "manifest.json"])
def test_truncated_cached_file_is_named_offline(
    hub: Hub, run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    commit = push_model(run_folder, KEY).oid
    rows = json.loads((KEPT.parent / "tiny_prm_expected.json").read_text())["lists"]
    expected = Reranker.from_pretrained(KEY).rerank(rows)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Reranker.from_pretrained(KEY).rerank(rows) == expected
    (cached,) = (tmp_path / "cache").glob(f"**/snapshots/*/{name}")
    content = cached.read_bytes()
    cached.resolve().write_bytes(content[: len(content) // 2])
    line = refusal_message(lambda: Reranker.from_pretrained(KEY))
    assert name in line
    assert line.endswith(f"fetch it again: hf download {KEY} --revision {commit} --force-download")


LOADING = [
    (Fault("resolve", 500), "the Hub has an internal error (500); run it again later"),
    (Fault("resolve", 429, {"Retry-After": "7"}), BUSY),
    (Fault("resolve", 403), FORBIDDEN),
    (Fault("resolve", 404, {"X-Error-Code": "RepoNotFound"}), "nor a model repository of that name that you may read"),
    (Fault("resolve", 404, {"X-Error-Code": "RevisionNotFound"}), "has no revision 'main'"),
    (Fault("resolve"), "the connection failed ("),
    (Fault("GET .*model.safetensors", 500), "the Hub has an internal error (500); run it again later"),
    (Fault("GET .*model.safetensors"), "the connection failed ("),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"), LOADING, ids=[f"{fault.where}: {fault.status or 'reset'}" for fault, _ in LOADING]
)
def test_failed_loading_is_one_line_and_can_be_repeated(
    hub: Hub, run_folder: Path, fault: Fault, said: str, no_token_anywhere: list[str]
) -> None:
    push_model(run_folder, KEY)
    hub.faults = [Fault(fault.where, fault.status, fault.headers)]
    no_token_anywhere.append(refusal_message(lambda: Reranker.from_pretrained(KEY, revision="main")))
    assert said in no_token_anywhere[0]
    assert hub.faults[0].fired
    hub.faults = []
    Reranker.from_pretrained(KEY)


def test_model_and_processor_come_from_one_commit(hub: Hub, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody pushes other weights while a re-ranker is loaded."""
    push_model(run_folder, KEY)
    first = Reranker.from_pretrained(run_folder)
    weight = next(first.model.parameters()).clone()
    load = ListProcessor.from_pretrained

    def overtaken(*arguments: Any, **options: Any) -> ListProcessor:
        processor = load(*arguments, **options)
        next(first.model.parameters()).data.add_(1.0)
        first.model.push_to_hub(KEY)
        return processor

    monkeypatch.setattr(ListProcessor, "from_pretrained", overtaken)
    loaded = Reranker.from_pretrained(KEY)
    assert len(hub.repositories[KEY]) == 2
    assert (next(loaded.model.parameters()) == weight).all()


def test_loading_fails_if_the_manifest_cannot_be_fetched(hub: Hub, run_folder: Path) -> None:
    push_model(run_folder, KEY)
    hub.faults = [Fault("HEAD .*manifest.json", 503)]
    line = refusal_message(lambda: Reranker.from_pretrained(KEY))
    assert "manifest.json of a repository of that name is not in the cache and cannot be fetched: the Hub has" in line


# -------------------------------------------------------------------------------------------------- what is not pushed


def test_folder_that_cannot_be_loaded_is_not_pushed(hub: Hub, run_folder: Path, tmp_path: Path) -> None:
    assert "there is no folder" in refusal_message(lambda: push_model(tmp_path / "none", KEY))
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal_message(lambda: push_model(tmp_path / "empty", KEY))
    weights = (run_folder / "model.safetensors").read_bytes()
    (run_folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "its SHA-256 is not that of the saved file; save it again" in refusal_message(
        lambda: push_model(run_folder, KEY)
    )
    assert hub.requests == []


def test_weights_that_are_not_finite_are_not_pushed(hub: Hub, run_folder: Path) -> None:
    reranker = Reranker.from_pretrained(run_folder)
    next(reranker.model.parameters()).data[-1] = float("nan")
    for push in (reranker.push_to_hub, reranker.model.push_to_hub):
        assert "are not finite, so the model is not pushed" in refusal_message(lambda push=push: push(KEY))
    assert hub.requests == []


# -------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "fault", "said"),
    [
        (["--model", str(KEPT)], Fault("repos/create", 403), FORBIDDEN),
        (["--data", str(KEPT)], Fault("never", 500), "is not a folder of prepared lists (it has no schema.json)"),
        ([], Fault("never", 500), "one of the arguments --model --data is required"),
        (["--model", "none"], Fault("never", 500), "there is no folder none"),
        (
            ["--model", str(KEPT), "--i-have-the-right-to-redistribute"],
            Fault("never", 500),
            "use it with --data",
        ),
    ],
)
def test_mistakes_on_the_command_line(
    hub: Hub, capsys: pytest.CaptureFixture[str], arguments: list[str], fault: Fault, said: str
) -> None:
    hub.faults = [fault]
    assert main(["push", "--repo-id", KEY, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("hf-rerank: ")]
    assert said in line
    assert "Traceback" not in err


def test_push_command_commits_to_branches_and_pull_requests(
    hub: Hub, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["push", "--model", str(run_folder), "--repo-id", "prm", "--private", "--message", "The first"]
    assert main([*arguments, "--revision", "next"]) == 0
    (commit,) = hub.repositories[KEY]
    assert (commit["message"], commit["branch"], hub.private) == ("The first", "next", {KEY})
    assert commit["files"].keys() == FILES
    assert capsys.readouterr().out.splitlines()[-1] == f"pushed: {hub.url}/{KEY}/commit/{commit['id']}"
    assert main([*arguments, "--create-pr"]) == 0
    assert hub.repositories[KEY][1]["branch"] == "refs/pr/1"
    assert capsys.readouterr().out.splitlines()[-1] == f"pushed: {hub.url}/{KEY}/discussions/1"
    assert hub.files(KEY) == {}
    # Nothing has changed on the branch: the line names the commit that is there.
    assert main([*arguments, "--revision", "next"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"pushed: {hub.url}/{KEY}/commit/{commit['id']}"
    assert len(hub.repositories[KEY]) == 2


def test_failed_push_of_lists_is_one_line_without_a_commit(hub: Hub, own_lists: Path) -> None:
    hub.faults = [Fault(PUT, 500)]
    line = refusal_message(lambda: push_lists(own_lists, "someone/lists"))
    assert line.startswith(f"files could not be sent to the dataset repository someone/lists: {BROKEN}")
    assert line.endswith(NOTHING)
    assert hub.repositories == {"datasets/someone/lists": []}
