"""scripts/publish, with tiny models and lists: what it prepares, what a Hub receives, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Fault, Hub
from huggingface_hub import ModelCard, constants

from hf_rerank import Reranker, load_lists

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
sys.path.insert(0, str(SCRIPTS / "experiments"))

import grid  # noqa: E402
import publish_models  # noqa: E402
import worlds  # noqa: E402

import model_cards  # noqa: E402

NAME = "prm_public_simulated-prm"
MEASURES = ("expected_clicks_share", "ndcg@10", "auc", "gauc", "map@10", "p1_obedience@5", "p1_item_obedience")
MEASURES += ("p2_obedience@5", "p2_item_obedience", "score_spread")


@pytest.fixture(scope="module")
def lists_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for simulated lists, which are made once."""
    return tmp_path_factory.mktemp("lists")


@pytest.fixture
def publish(lists_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Calls the command in a small world, with runs of the grid for two seeds."""
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    for module in (worlds, grid, model_cards):
        monkeypatch.setattr(module, "WORLDS", {**worlds.WORLDS, "trained": ("prm_public", 200, "moderate")})
    monkeypatch.setattr(grid, "MODELS", {**grid.MODELS, "prm": tiny})
    monkeypatch.setattr(grid, "EPOCHS", 1)
    cells = tmp_path / "cells"
    cells.mkdir()
    # Without the principles 1.0 and 2.0, with them 1.1 and 2.2, the initial order 1.0: +0.15 of 1.5, and +0.65 of 1.0.
    for arm, clicks in {"none": (1.0, 2.0), "augmented": (1.1, 2.2)}.items():
        for seed, value in enumerate(clicks):
            cell = {"arm": arm, "seed": seed, "learning_rate": 2e-3, "initial": {"expected_clicks": 1.0, "ndcg@10": 1}}
            cell["test"] = {**dict.fromkeys(MEASURES, 0.5), "expected_clicks": value}
            (cells / f"trained-30-prm-{arm}-{seed}.json").write_text(json.dumps(cell))

    def call(*arguments: str) -> None:
        folders = {"--output-dir": tmp_path / "out", "--lists-dir": lists_dir, "--cells": cells}
        options = [word for option, folder in folders.items() for word in (option, str(folder))]
        publish_models.main(["--namespace", "someone", *options, *arguments])

    return call


@pytest.mark.slow
def test_a_dry_run_prepares_what_is_then_pushed(
    publish: Callable[..., None],
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = ("--only", NAME, "prm_public_simulated")
    publish(*only, "--dry-run")
    said = capsys.readouterr().out
    assert f"would push someone/{NAME}: " in said
    assert "would push someone/prm_public_simulated: " in said
    assert not hub.requests
    folder = tmp_path / "out" / NAME
    prepared = {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
    card = ModelCard.load(folder / "README.md")
    claims = card.text.split("\n\n")[1].splitlines()
    assert [line[:2] for line in claims] == ["- "] * 3
    assert "against the initial order, that of a moderate LambdaMART trained on clicks: +65.00 % [" in claims[1]
    assert "in them: +10.00 % [" in claims[2]
    assert "which may be chance" in claims[2]
    assert f"[PRM]({NAME}/README.md)" in (tmp_path / "out" / "README.md").read_text()

    # A second call trains nothing, and pushes the same bytes.
    monkeypatch.setattr(publish_models, "train_model", None)
    publish(*only)
    assert hub.files(f"someone/{NAME}") == prepared
    assert capsys.readouterr().out.count("pushed: ") == 2
    results = json.loads(prepared["results.json"])
    assert results["training_arguments"]["principled"] == "augmented"
    (scores,) = Reranker.from_pretrained(f"someone/{NAME}").predict([results["example"]["list"]])
    assert scores.tolist() == pytest.approx(results["example"]["scores"], abs=1e-5)
    assert {"train", "test"} <= set(load_lists("someone/prm_public_simulated"))


def test_damaged_folder_does_not_count_as_finished(publish: Callable[..., None], tmp_path: Path) -> None:
    folder = tmp_path / "out" / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert not publish_models.is_finished(folder)


def test_mistakes_are_refused_before_anything_is_trained(
    publish: Callable[..., None], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ("--only", NAME)

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as error:
            publish(*arguments)
        assert not (tmp_path / "out").exists()
        line = str(error.value)
        assert line.startswith("publish: ")
        assert "\n" not in line
        return line

    assert "did you mean 'ad_simulated-prm'" in refused("--only", "ad_simulated-pmr")
    hub.repositories[f"someone/{NAME}"] = [{"id": "1" * 40, "message": "", "files": {"notes.txt": b"mine"}}]
    assert "holds something else (such as notes.txt" in refused(*only)
    del hub.repositories[f"someone/{NAME}"]
    hub.faults = [Fault("POST /api/repos/create")]
    assert "check the network" in refused(*only)
    hub.faults = []
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(*only)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(*only)
    (tmp_path / "cells" / "trained-30-prm-augmented-0.json").unlink()
    assert "make it with scripts/experiments/grid.py" in refused(*only, "--dry-run")
