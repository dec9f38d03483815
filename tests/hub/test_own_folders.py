"""Nothing sent to the Hub names a local folder: the rule, and everything that a Hub receives from whole commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

from hf_rerank.cli import main
from hf_rerank.hub.own_folders import remove_own_folders


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("/home/alice/runs/prm", "prm"),
        ("/home/alice/runs/prm/", "prm"),
        ("/home/al ice/runs/prm", "prm"),
        ("C:\\Users\\alice\\runs\\prm", "prm"),
        ("c:/Users/alice/prm", "prm"),
        ("\\\\server\\alice\\prm", "prm"),
        ("~/runs/prm", "prm"),
        ("~alice/prm", "prm"),
        ("../alice/prm", "prm"),
        ("file:///home/alice/prm", "prm"),
        ("zero=/home/alice/a.json,b=2", "zero=a.json,b=2"),
        ("from /home/alice/a (see C:\\alice\\b)", "from a (see b)"),
        # Not paths, or paths relative to the working folder.
        *((same, same) for same in ("runs/prm", "someone/prm", "https://hub.co/someone/prm", "clicks / shown", "n/a")),
        *((same, same) for same in ("adamw_torch", "", "~", "10:30", "a: b", 3, 0.5, None, True)),
    ],
)
def test_local_folders_are_removed_from_values(value: Any, sent: Any) -> None:
    given = {"key": value, "deep": {"list": [value, {"key": value}]}}
    assert remove_own_folders(given) == {"key": sent, "deep": {"list": [sent, {"key": sent}]}}


def test_column_names_are_kept() -> None:
    given = {"schema": {"items": [{"name": "/home/alice"}]}, "text_columns": ["~/x"]}
    assert remove_own_folders(given) == given


CANARY = "canary-alice"
TINY = "--num_train_epochs 1 --disable_tqdm true"


@pytest.mark.slow
def test_commands_send_no_local_folder_names(hub: Hub, tmp_path: Path) -> None:
    """From raw lists to the Hub in a folder with a name to search for; the tuned model records where it came from."""
    home = tmp_path / CANARY
    raw, lists, run, tuned = (home / name for name in ("raw", "lists", "run", "tuned"))
    for command in (
        f"simulate prm_public --output-dir {raw} --lists 150 --seed 1",
        f"prepare prm_public --raw-dir {raw} --output-dir {lists}",
        f"train --model prm --data {lists} --output-dir {run} --set hidden_size=8 {TINY}",
        f"train --from {run} --data {lists} --output-dir {tuned} {TINY} --plots --encoded_cache {home}/cache "
        "--resume_from_checkpoint auto",
        f"evaluate --model {tuned} --data {lists} --add-to-results --plots {tuned}",
        f"push --model {tuned} --repo-id someone/prm",
    ):
        assert main(command.split()) == 0
    here = {name: (tuned / name).read_text() for name in ("results.json", "training_args.json")}
    for text in here.values():
        assert CANARY in text
    files = hub.files("someone/prm")
    received = [*files.values(), *hub.bodies, *hub.objects.values(), *(text.encode() for text in hub.requests)]
    for content in received:
        assert CANARY.encode() not in content
    sent = json.loads(files["results.json"])
    assert sent["model"]["_name_or_path"] == "run"
    for arguments in (sent["training_arguments"], json.loads(files["training_args.json"])):
        assert arguments["output_dir"] == "tuned"
        assert arguments["encoded_cache"] == "cache"
    assert json.loads(here["results.json"])["evaluations"] == sent["evaluations"]
    assert {"README.md", "training.png", "obedience.png"} <= files.keys()
    assert "| measure | validation | validation, initial order | test | test, initial order |" in str(
        files["README.md"], "utf-8"
    )
