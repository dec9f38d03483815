"""The experiment that compares a tuned model with the defaults: its arithmetic, and one tiny run of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "scripts" / "experiments"
sys.path.insert(0, str(FOLDER))

import tuning  # noqa: E402


def test_change_is_paired_and_in_percent_of_the_default() -> None:
    """Defaults 2 and 4, tuned 2.3 and 4.6: differences .3 and .6, of the mean 3: 10 and 20 percent."""
    found = {
        arm: [{"test": {"ndcg@10": value}} for value in values]
        for arm, values in {"default": (2.0, 4.0), "tuned": (2.3, 4.6)}.items()
    }
    summary = tuning.summarize({}, found)
    assert summary["change in percent"]["ndcg@10"]["mean"] == pytest.approx(15.0)
    assert "| ndcg@10 | 3.0000 | 3.4500 | +15.00 [" in tuning.as_markdown(summary)


@pytest.mark.slow
def test_both_arms_are_trained_once_per_seed(
    tmp_path: Path, guide_files: Path, run_script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = tmp_path / "study" / "best"
    best.mkdir(parents=True)
    (best / "config.json").write_text('{"model_type": "rerank_dnn"}')
    (best / "results.json").write_text('{"tuning": {"options": {"learning_rate": 0.01, "hidden_sizes": [4]}}}')
    command = [FOLDER / "tuning.py", "--data", guide_files / "lists", "--study", tmp_path / "study"]
    command += ["--output-dir", tmp_path / "out", "--epochs", 1, "--seeds", 2]
    run_script(*command)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["options"] == {"learning_rate": 0.01, "hidden_sizes": [4]}
    runs = {path.stem: json.loads(path.read_text())["test"] for path in (tmp_path / "out" / "runs").glob("*.json")}
    assert runs.keys() == {"default-100", "default-101", "tuned-100", "tuned-101"}
    assert runs["default-100"] != runs["tuned-100"]
    assert "0 runs to make" in run_script(*command)


def test_a_folder_without_a_study_is_refused(tmp_path: Path, run_script: Callable[..., str]) -> None:
    with pytest.raises(SystemExit, match="has no best model: expected the output folder of hf-rerank tune"):
        run_script(FOLDER / "tuning.py", "--data", "lists", "--study", tmp_path, "--output-dir", tmp_path / "out")
