"""A Hub for the tests of this process, and a re-ranker and lists to push to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub.utils
import pytest
from hub_server import Hub, running_hub
from huggingface_hub import constants
from samples import KEPT, SCHEMA, TOKEN

from hf_rerank import load_lists
from hf_rerank.data.custom.prepare import prepare_own


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A local Hub that the real client in this process talks to; ``hub.waits`` are the seconds it would sleep."""
    with running_hub("someone", TOKEN) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", running.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        running.waits = []
        clock = SimpleNamespace(sleep=running.waits.append)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
        yield running
        huggingface_hub.utils.close_session()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A saved re-ranker."""
    return Path(shutil.copytree(KEPT, tmp_path / "run"))


@pytest.fixture(scope="session")
def own_lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of prepared lists made from a user's own file."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {
            "list_id": number,
            "user_id": number % 40,
            "item_id": [number % 7, number % 5, number % 3],
            "price": [0.5, 1.0, float(number)],
            "click": [0, 1, 0],
        }
        for number in range(120)
    ]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_own(folder / "mine.jsonl", folder / "lists", schema=SCHEMA, ranker_train=True, progress=False)
    return folder / "lists"


@pytest.fixture
def local_rows(own_lists: Path) -> dict[str, list[dict]]:
    """Split -> its lists, as loaded from the folder."""
    return {split: lists.to_list() for split, lists in load_lists(own_lists).items()}
