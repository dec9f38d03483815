"""Figures of a card: pushed with it, shown by it, reproducible, and left out where they cannot be drawn."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

from hf_rerank import Reranker
from hf_rerank.cli import main
from hf_rerank.hub import push_model
from hf_rerank.hub.figures import draw_figures
from hf_rerank.storage import MANIFEST, write_manifest

KEY = "someone/prm"
LOG = [{"step": 1, "loss": 0.5, "task_loss": 0.4}, {"step": 2, "loss": 0.4, "task_loss": 0.3}]
OBEDIENCE = {"p1_item_obedience": 0.25, "p2_item_obedience": 0.75, "score_spread": 0.5, "obedience_lists": 9}
RESULTS: dict[str, Any] = {
    "training": {"log": LOG, "seconds": 1.0, "steps": 2},
    "evaluations": {
        "test": {f"test_{name}": value for name, value in OBEDIENCE.items()},
        "later": {"later_p1_item_obedience": 0.5},
    },
}
NO_MATPLOTLIB = "the card has no figures: figures need matplotlib: pip install hf-rerank[plots]"


@pytest.fixture
def run(run_folder: Path) -> Path:
    """A saved re-ranker with results that can be drawn."""
    (run_folder / "results.json").write_text(json.dumps(RESULTS))
    write_manifest(run_folder)
    return run_folder


def pictures(hub: Hub) -> set[str]:
    return {name for name in hub.files(KEY) if name.endswith(".png")}


@pytest.mark.slow
def test_figures_are_pushed_with_the_card_and_are_reproducible(hub: Hub, run: Path) -> None:
    push_model(run, KEY)
    files = hub.files(KEY)
    card = files["README.md"].decode()
    for name, words in (("training.png", "loss terms"), ("obedience.png", "on the lists of test")):
        assert files[name].startswith(b"\x89PNG")
        entry = json.loads(files[MANIFEST])["files"][name]
        assert entry == {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        (shown,) = [line for line in card.splitlines() if line.endswith(f"]({name})")]
        assert shown.startswith("![")
        assert words in shown
    push_model(run, KEY)
    assert len(hub.repositories[KEY]) == 1
    assert {path.name for path in run.glob("*.png")} == set()
    Reranker.from_pretrained(KEY)


@pytest.mark.slow
def test_existing_figure_in_the_folder_is_drawn_again(hub: Hub, run: Path) -> None:
    """``hf-rerank evaluate --plots RUN`` may have put some there; they are not part of what was saved."""
    (run / "training.png").write_bytes(b"of another training")
    push_model(run, KEY)
    assert hub.files(KEY)["training.png"].startswith(b"\x89PNG")


@pytest.mark.slow
def test_custom_card_gets_no_figures(hub: Hub, run: Path) -> None:
    push_model(run, KEY)
    assert pictures(hub) == {"training.png", "obedience.png"}
    (run / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    (run / "training.png").write_bytes(b"of another training")
    push_model(run, KEY)
    assert pictures(hub) == set()
    assert not [name for name in json.loads(hub.files(KEY)[MANIFEST])["files"] if name.endswith(".png")]


def test_custom_card_keeps_the_figures_that_it_shows(hub: Hub, run: Path) -> None:
    """As in a folder that was downloaded, with the card that was made for it."""
    (run / "README.md").write_text("---\nlicense: mit\n---\n![mine](training.png)\n")
    (run / "training.png").write_bytes(b"mine")
    (run / "obedience.png").write_bytes(b"not shown")
    push_model(run, KEY)
    assert pictures(hub) == {"training.png"}
    assert hub.files(KEY)["training.png"] == b"mine"


@pytest.mark.usefixtures("without_matplotlib")
def test_push_without_matplotlib_warns_and_sends_no_figures(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="the card has no figures") as said:
        push_model(run, KEY)
    assert [str(warning.message) for warning in said if warning.category is UserWarning] == [NO_MATPLOTLIB]
    assert pictures(hub) == set()
    assert ".png" not in hub.files(KEY)["README.md"].decode()
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert main(["push", "--model", str(run), "--repo-id", "someone/other"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == NO_MATPLOTLIB
    assert second.startswith("pushed: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({}, {"training.png", "obedience.png"}),
        ({"training": {}}, {"obedience.png"}),
        ({"training": {"log": []}}, {"obedience.png"}),
        ({"training": {"log": 3}}, {"obedience.png"}),
        ({"training": {"log": [3, {"step": 1}]}}, {"obedience.png"}),
        ({"training": {"log": [{"step": 1, "loss": 10**400}]}}, {"obedience.png"}),
        ({"training": {"log": [{"step": 1, "loss": 1e308, "task_loss": 1e308}]}}, {"obedience.png"}),
        ({"evaluations": {}}, {"training.png"}),
        ({"evaluations": {"test": {"test_auc": 0.5}}}, {"training.png"}),
        ({"evaluations": {"test": {"test_p1_item_obedience": None}}}, {"training.png"}),
    ],
)
def test_figures_are_drawn_only_from_usable_results(changes: dict[str, Any], drawn: set[str]) -> None:
    assert draw_figures({**RESULTS, **changes}).keys() == drawn


@pytest.mark.slow
def test_obedience_figure_shows_the_test_split_or_the_last_evaluation() -> None:
    """That of the test split, whatever else there is; without it, the last one."""
    later_evaluation = RESULTS["evaluations"]["later"]
    both = draw_figures(RESULTS)["obedience.png"]
    test = draw_figures({"evaluations": {"test": RESULTS["evaluations"]["test"]}})
    later = draw_figures({"evaluations": {"later": later_evaluation}})
    assert both == test["obedience.png"] != later["obedience.png"]
    without = {"evaluations": {"first": {"first_p1_item_obedience": 0.1}, "later": later_evaluation}}
    assert draw_figures(without)["obedience.png"] == later["obedience.png"]
