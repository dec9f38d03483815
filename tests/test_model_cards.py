"""The committed models: intact, small, with the scores saved at training and the numbers of the grid's runs."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy import stats

from hf_rerank import Reranker
from hf_rerank.hub.push import PUSHED
from hf_rerank.storage import verify

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "model_cards"
sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "scripts" / "experiments"))

from publish_models import CELLS  # noqa: E402

from model_cards import DATASETS, index_text, write_card  # noqa: E402

NAMES = sorted(path.parent.name for path in COMMITTED.glob("*/config.json"))


def test_every_model_of_both_formats_is_committed() -> None:
    assert len(NAMES) == 14, NAMES


def results_of(name: str) -> dict[str, Any]:
    return json.loads((COMMITTED / name / "results.json").read_text(encoding="utf-8"))


def runs_of(name: str, arm: str) -> dict[int, dict[str, Any]]:
    """Seed -> run of a model in the grid."""
    data, model = name.split("-")
    pattern = f"{DATASETS[data].world}-{DATASETS[data].length}-{model}-{arm}-[0-9]*.json"
    return {cell["seed"]: cell for cell in (json.loads(path.read_text()) for path in sorted(CELLS.glob(pattern)))}


@pytest.mark.parametrize("name", NAMES)
def test_each_folder_is_intact_and_contains_only_pushed_files(name: str) -> None:
    folder = COMMITTED / name
    assert verify(folder, lambda _: True, "") is not None
    files = {path.name: path.stat().st_size for path in folder.iterdir() if not path.name.startswith(".")}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "manifest.json"} <= set(files)
    assert set(files) <= set(PUSHED)  # no pickle among them
    assert sum(files.values()) <= 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_each_loaded_model_gives_the_scores_saved_at_training(name: str) -> None:
    example = results_of(name)["example"]
    (scores,) = Reranker.from_pretrained(COMMITTED / name).predict([example["list"]])
    assert scores.tolist() == pytest.approx(example["scores"], abs=1e-4)
    assert len(set(example["scores"])) > 1


@pytest.mark.parametrize("name", NAMES)
def test_each_model_reproduces_its_run_of_the_grid(name: str) -> None:
    """Same seed and learning rate and, up to rounding on other machines or versions, the same expected clicks."""
    results = results_of(name)
    arguments = results["training_arguments"]
    cell = runs_of(name, "augmented")[arguments["seed"]]
    assert arguments["learning_rate"] == cell["learning_rate"]
    assert (arguments["principled"], arguments["seed"]) == ("augmented", 0)
    measured = results["evaluations"]["test"]["test_expected_clicks"]
    assert measured == pytest.approx(cell["test"]["expected_clicks"], rel=0.005)
    repeat = results["experiment"]["repeat"]
    assert repeat["relative_difference"] == pytest.approx(measured / cell["test"]["expected_clicks"] - 1)


@pytest.mark.parametrize("name", NAMES)
def test_each_card_reports_the_measured_values(name: str) -> None:
    """Its claims, with intervals recomputed here; and nothing about the machine."""
    card = ModelCard.load(COMMITTED / name / "README.md")
    claims = card.text.split("\n\n")[1].splitlines()
    principled, plain = runs_of(name, "augmented"), runs_of(name, "none")
    for claim, bases, part in ((claims[1], principled, "initial"), (claims[2], plain, "test")):
        seeds = sorted(set(principled) & set(bases))
        after = np.array([principled[seed]["test"]["expected_clicks"] for seed in seeds])
        before = np.array([bases[seed][part]["expected_clicks"] for seed in seeds])
        changes = 100 * (after - before) / before.mean()
        if len(seeds) == 1:
            assert "not known, of one seed" in claim
            continue
        low, high = stats.t.interval(0.95, len(seeds) - 1, changes.mean(), stats.sem(changes))
        assert f"{changes.mean():+.2f} % [{low:+.2f}, {high:+.2f}]" in claim
        assert ("which may be chance" in claim) == (low <= 0 <= high)
    assert "trained on clicks" in claims[1]
    assert "One run, seed 0" in card.text
    assert "scripts/experiments/README.md" in card.text
    for entry in card.data.eval_results:
        if entry.dataset_split == "test":
            assert entry.metric_value == results_of(name)["evaluations"]["test"][f"test_{entry.metric_type}"]
    assert not re.search(r"(^|[\s\"'`(])/\w|hf_[A-Za-z0-9]{16,}", html.unescape(card.text))


@pytest.mark.slow
def test_cards_and_index_match_the_output_of_the_script(tmp_path: Path) -> None:
    """From the committed runs and results."""
    for name in NAMES:
        shutil.copytree(COMMITTED / name, tmp_path / name)
        write_card(tmp_path / name, f"model_cards/{name}", *name.split("-"), CELLS)
        for file in ("README.md", "results.json", "manifest.json"):
            assert (tmp_path / name / file).read_bytes() == (COMMITTED / name / file).read_bytes(), f"{name}/{file}"
    assert index_text(tmp_path) == (COMMITTED / "README.md").read_text(encoding="utf-8")
