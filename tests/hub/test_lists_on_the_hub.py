"""Prepared lists to the Hub and back: whole, by revision and as a stream; and those that must not be redistributed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hub_server import Fault, Hub, running_hub
from huggingface_hub import DatasetCard, constants
from samples import TOKEN

from hf_rerank import InputError, load_lists
from hf_rerank.cli import main
from hf_rerank.data.ad import prepare_ad
from hf_rerank.data.prepared import find_licence
from hf_rerank.data.prepared.earlier_clicks import add_earlier_clicks
from hf_rerank.data.prm_public import prepare_prm_public
from hf_rerank.data.push_lists import push_lists
from hf_rerank.data.simulation import simulate_ad, simulate_prm
from hf_rerank.hub import push_model

KEY = "datasets/someone/lists"
SPLITS = ("ranker_train", "train", "validation", "test")
FILES = {"README.md", "manifest.json", "report.json", "schema.json"}
SHARDS = {f"{split}-00000-of-00001.parquet" for split in SPLITS}


def two_shards(folder: Path) -> None:
    """Turns the only shard of train into two."""
    table = pq.read_table(folder / "train-00000-of-00001.parquet")
    pq.write_table(table.slice(0, 20), folder / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(20), folder / "train-00001-of-00002.parquet")
    (folder / "train-00000-of-00001.parquet").unlink()


# ------------------------------------------------------------------------------------------------------ there and back


def test_push_is_one_commit_of_shards_schema_report_and_card(hub: Hub, own_lists: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(own_lists, tmp_path / "lists"))
    (folder / "rejects.jsonl").write_text("a damaged line\n")
    (folder / "ranker").mkdir()
    (folder / "ranker" / "model.safetensors").write_bytes(b"stays at home")
    push_lists(folder, "someone/lists", private=True, commit_message="My lists")
    (commit,) = hub.repositories[KEY]
    assert commit["message"] == "My lists"
    assert hub.private == {KEY}
    assert commit["files"].keys() == FILES | SHARDS
    listed = json.loads(commit["files"]["manifest.json"])["files"]
    assert {name: entry["sha256"] for name, entry in listed.items()} == {
        name: hashlib.sha256(commit["files"][name]).hexdigest() for name in SHARDS | {"schema.json", "report.json"}
    }
    card = DatasetCard(commit["files"]["README.md"].decode())
    assert card.data.license == "other"
    assert card.data.to_dict()["license_name"] == "own"
    assert 'load_lists("someone/lists")' in card.text
    assert "path/to/this/folder" not in card.text


@pytest.mark.slow
def test_pushed_lists_are_loaded_at_any_revision(hub: Hub, own_lists: Path, tmp_path: Path, local_rows: dict) -> None:
    first = push_lists(own_lists, "someone/lists").oid
    changed = Path(shutil.copytree(own_lists, tmp_path / "changed"))
    two_shards(changed)
    push_lists(changed, "someone/lists", revision="next")
    push_lists(changed, "someone/lists")
    # The old shard is gone: next to the two new ones it would belong to no complete set.
    assert hub.files(KEY).keys() == FILES | SHARDS - {"train-00000-of-00001.parquet"} | {
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    }
    for revision in (None, "main", "next", first):
        lists = load_lists("someone/lists", revision=revision)
        assert lists.schema == load_lists(own_lists).schema
        assert {split: rows.to_list() for split, rows in lists.items()} == local_rows, revision


@pytest.mark.slow
def test_cached_lists_are_loaded_offline_and_damaged_ones_are_named(
    hub: Hub, own_lists: Path, local_rows: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = push_lists(own_lists, "someone/lists").oid
    load_lists("someone/lists")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert load_lists("someone/lists")["train"].to_list() == local_rows["train"]
    assert len(hub.requests) == asked
    for name in ("train-00000-of-00001.parquet", "schema.json", "manifest.json"):
        (cached,) = (tmp_path / "cache").glob(f"**/snapshots/*/{name}")
        content = cached.read_bytes()
        cached.resolve().write_bytes(content[:-10])
        with pytest.raises(InputError) as caught:
            load_lists("someone/lists")
        assert name in str(caught.value)
        command = f"hf download someone/lists --repo-type dataset --revision {commit} --force-download"
        assert str(caught.value).endswith(f"fetch it again: {command}")
        cached.resolve().write_bytes(content)
    load_lists("someone/lists")
    (cached,) = (tmp_path / "cache").glob("**/snapshots/*/test-00000-of-00001.parquet")
    cached.unlink()
    with pytest.raises(InputError, match=r"the lists of someone/lists could not be fetched: .*HF_HUB_OFFLINE"):
        load_lists("someone/lists")


def test_error_of_a_stream_says_which_step_failed(hub: Hub, own_lists: Path) -> None:
    push_lists(own_lists, "someone/lists")
    for where, what in (("GET .*/tree/", "listed"), ("GET .*/revision/", "streamed"), ("GET .*parquet", "streamed")):
        hub.faults = [Fault(where, 403)]
        with pytest.raises(InputError) as caught:
            load_lists("someone/lists", streaming=True)
        assert hub.faults[0].fired
        assert str(caught.value).startswith(f"the lists of someone/lists could not be {what}: the token may not do")


def test_nothing_is_sent_twice(hub: Hub, own_lists: Path) -> None:
    hub.faults = [Fault("/commit/", 500, times=1)]
    with pytest.raises(InputError, match="got the files but no commit"):
        push_lists(own_lists, "someone/lists")
    # Splits without lists have the same bytes, and are one object.
    arrived = hub.asked("^PUT")
    assert arrived == len(hub.objects) > 0
    push_lists(own_lists, "someone/lists")
    push_lists(own_lists, "someone/lists")
    assert hub.asked("^PUT") == arrived
    assert len(hub.repositories[KEY]) == 1


STREAM = """
import json, sys
from hf_rerank import load_lists
stream = load_lists("someone/lists", streaming=True)
pinned = load_lists("someone/lists", streaming=True, revision="old")
import datasets
plain = datasets.load_dataset("someone/lists", split="train", streaming=True)
print(json.dumps({"rows": {split: list(rows) for split, rows in stream.items()},
                  "old": [len(list(rows)) for rows in pinned.values()],
                  "plain": list(plain),
                  "kinds": [type(rows).__name__ for rows in stream.values()],
                  "schema": stream.schema.to_dict(),
                  "shards": stream["train"].num_shards}))
"""


@pytest.fixture
def streaming_hub(own_lists: Path, tmp_path: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    """A Hub with a private repository of lists, of which train has two shards; and an environment for its client."""
    changed = Path(shutil.copytree(own_lists, tmp_path / "changed"))
    two_shards(changed)
    with running_hub("someone", TOKEN) as hub:
        content = {path.name: path.read_bytes() for path in changed.iterdir()}
        old = {path.name: path.read_bytes() for path in own_lists.iterdir()}
        hub.repositories[KEY] = [
            {"id": "1" * 40, "message": "", "files": old, "branch": "old"},
            {"id": "2" * 40, "message": "", "files": content},
        ]
        hub.private.add(KEY)
        yield (
            hub,
            {
                **os.environ,
                "HF_ENDPOINT": hub.url,
                "HF_TOKEN": TOKEN,
                "HF_HOME": str(tmp_path / "home"),
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_OFFLINE": "0",
                "NO_PROXY": "127.0.0.1",
            },
        )


@pytest.mark.slow
def test_streamed_lists_equal_local_ones_and_are_not_cached(
    streaming_hub: tuple[Hub, dict[str, str]], local_rows: dict, own_lists: Path, tmp_path: Path
) -> None:
    hub, environment = streaming_hub
    command = [sys.executable, "-c", STREAM]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert TOKEN not in ran.stdout + ran.stderr
    found = json.loads(ran.stdout)
    assert found["rows"] == local_rows
    assert found["old"] == [len(rows) for rows in local_rows.values()]
    assert found["plain"] == local_rows["train"]
    assert set(found["kinds"]) == {"IterableDataset"}
    assert found["schema"] == load_lists(own_lists).schema.to_dict()
    assert found["shards"] == 2
    # Lists come from the network as they are read, all from one commit; no shard is cached.
    for number in (0, 1):
        assert hub.asked(f"GET /{KEY}/resolve/2{{40}}/train-0000{number}-of-00002.parquet") > 0
    assert not list((tmp_path / "home").rglob("*.parquet"))


# -------------------------------------------------------------------------------------------------- wrong repositories


def test_repositories_without_lists_and_misplaced_options_are_refused(
    hub: Hub, run_folder: Path, own_lists: Path
) -> None:
    push_model(run_folder, "someone/prm")
    push_lists(own_lists, "someone/lists")
    hub.repositories["datasets/someone/photos"] = [{"id": "3" * 40, "message": "", "files": {"cat.jpg": b""}}]
    no_shards = {"schema.json": hub.files(KEY)["schema.json"]}
    hub.repositories["datasets/someone/empty"] = [{"id": "4" * 40, "message": "", "files": no_shards}]
    for source, options, said in (
        ("someone/prm", {}, "nor a dataset repository of that name that you may read"),
        ("someone/photos", {}, "the repository someone/photos has no schema.json"),
        ("someone/lists", {"revision": "v9"}, "the repository someone/lists has no revision 'v9'"),
        ("someone/empty", {"streaming": True}, "someone/empty has a schema.json but no shards"),
        ("someone/empty", {}, "has a schema.json but no shards"),
        (own_lists, {"revision": "main"}, "revision= belongs to a repository on the Hub"),
        ("simulated_prm", {"token": "x"}, "token= belongs to a repository on the Hub"),
    ):
        with pytest.raises(InputError) as caught:
            load_lists(source, **options)
        assert said in str(caught.value)
    hub.repositories["someone/taken"] = [{"id": "5" * 40, "message": "", "files": {"train.csv": b"1"}}]
    with pytest.raises(InputError, match=r"someone/taken holds something else \(such as train\.csv"):
        push_model(run_folder, "someone/taken")


# ------------------------------------------------------------------------------------------------ who may redistribute


@pytest.fixture(scope="module")
def by_licence(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared lists of the two public datasets: simulated, and as if they were real (without files of truth)."""
    folder = tmp_path_factory.mktemp("licences")
    simulate_prm(folder / "prm", 60, seed=0)
    prepare_prm_public(folder / "prm", folder / "simulated_prm", progress=False)
    simulate_ad(folder / "ad", 60, seed=0)
    prepare_ad(folder / "ad", folder / "simulated_ad", progress=False)
    for raw in ("prm", "ad"):
        for path in (folder / raw).glob("*.truth.parquet"):
            path.unlink()
    prepare_prm_public(folder / "prm", folder / "real_prm", progress=False)
    prepare_ad(folder / "ad", folder / "real_ad", progress=False)
    return {name: folder / name for name in ("simulated_prm", "simulated_ad", "real_prm", "real_ad")}


@pytest.mark.slow
def test_licence_is_recorded_in_report_and_card(by_licence: dict[str, Path], own_lists: Path, tmp_path: Path) -> None:
    # Lists made from other lists have the same licence.
    add_earlier_clicks(by_licence["real_prm"], tmp_path / "lists", history_length=3, progress=False)
    for name, folder in {**by_licence, "own": own_lists, "real_with_history": tmp_path / "lists"}.items():
        licence = {"simulated": "simulated", "real": "no-redistribution", "own": "own"}[name.split("_")[0]]
        assert find_licence(folder) == licence
        assert json.loads((folder / "report.json").read_text())["licence"] == licence
        assert DatasetCard.load(folder / "README.md").data.to_dict()["license_name"] == licence


@pytest.mark.parametrize("name", ["real_prm", "real_ad"])
def test_push_of_lists_that_may_not_be_redistributed_needs_a_confirmation(
    hub: Hub, by_licence: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["push", "--data", str(by_licence[name]), "--repo-id", "someone/lists"]
    for more in ([], ["--private"]):
        assert main([*arguments, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "may not be redistributed (see Licence in README.md), and a push, even a private one" in line
        assert line.endswith("(--i-have-the-right-to-redistribute)")
    assert hub.requests == []
    assert main([*arguments, "--private", "--i-have-the-right-to-redistribute"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"pushed: {hub.url}/{KEY}/commit/")
    assert hub.private == set(hub.repositories) == {KEY}


@pytest.mark.parametrize("edit", ["card without licence", "report without licence", "both without licence", "no card"])
def test_stricter_licence_of_card_and_report_counts(
    hub: Hub, by_licence: dict[str, Path], tmp_path: Path, edit: str
) -> None:
    folder = Path(shutil.copytree(by_licence["real_prm"], tmp_path / "lists"))
    card, report = folder / "README.md", json.loads((folder / "report.json").read_text())
    del report["licence"]
    if edit == "card without licence":
        card.write_text("---\npretty_name: x\n---\n# x\n")
    elif edit == "report without licence":
        (folder / "report.json").write_text(json.dumps(report))
    elif edit == "both without licence":  # a folder from before licences had names
        (folder / "report.json").write_text(json.dumps(report))
        card.write_text(card.read_text().replace("license_name: no-redistribution\n", ""))
    else:
        card.unlink()
    with pytest.raises(InputError, match="may not be redistributed"):
        push_lists(folder, "someone/lists")
    assert hub.requests == []


def test_lists_without_a_licence_or_a_shard_are_not_pushed(hub: Hub, own_lists: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    for path in (own_lists / "schema.json", *own_lists.glob("*.parquet")):
        shutil.copy(path, folder)
    with pytest.raises(InputError, match=r"does not say who may redistribute its lists.*'## Licence'"):
        push_lists(folder, "someone/lists")
    with pytest.raises(InputError, match="is not a folder of prepared lists"):
        push_lists(tmp_path, "someone/lists")
    (folder / "test-00000-of-00001.parquet").rename(folder / "test-00000-of-00002.parquet")
    with pytest.raises(InputError, match=r"lacks the shard test-00001-of-00002\.parquet"):
        push_lists(folder, "someone/lists")
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simulated_prm", "simulated_ad"])
def test_simulated_lists_may_be_pushed(hub: Hub, by_licence: dict[str, Path], name: str) -> None:
    push_lists(by_licence[name], "someone/lists")
    lists = load_lists("someone/lists")
    assert {split: len(rows) for split, rows in lists.items()} == {
        split: len(rows) for split, rows in load_lists(by_licence[name]).items()
    }
