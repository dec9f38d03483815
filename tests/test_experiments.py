"""The experiments: written-out statistics, and finished runs that are not repeated."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hf_rerank.data.simulation import PRMWorld

FOLDER = Path(__file__).parents[1] / "scripts" / "experiments"
RunScript = Callable[..., str]
sys.path.insert(0, str(FOLDER))

import weights  # noqa: E402
from position_bias import summarize, true_curve  # noqa: E402
from runs import finish, mean_and_spread, results  # noqa: E402


def test_mean_and_spread() -> None:
    """1, 2, 6: mean 3, squares 4 + 1 + 9 = 14 over 2."""
    assert mean_and_spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "std": pytest.approx(7**0.5), "values": [1.0, 2.0, 6.0]}
    assert mean_and_spread([5.0])["std"] == 0.0


def test_finished_runs_are_not_repeated(tmp_path: Path) -> None:
    made: list[str] = []

    def run(path: Path, value: int) -> dict[str, int]:
        made.append(path.stem)
        if value == 3:
            raise KeyboardInterrupt
        return {"value": value}

    runs = [(tmp_path / "runs" / f"{value}.json", (value,)) for value in (1, 2, 3, 4)]
    with pytest.raises(KeyboardInterrupt):
        finish(runs, run, workers=1)
    assert made == ["1", "2", "3"]
    assert not (tmp_path / "runs" / "3.json").exists()
    runs[2] = (runs[2][0], (33,))
    finish(runs, run, workers=1)
    assert made == ["1", "2", "3", "3", "4"]
    assert results(path for path, _ in runs) == [{"value": value} for value in (1, 2, 33, 4)]


@pytest.mark.slow
def test_two_processes_complete_every_run(tmp_path: Path) -> None:
    """Each run is ``os.path.join(path, value)``, which a process can import without the library."""
    runs = [(tmp_path / "runs" / f"{value}.json", (value,)) for value in "abc"]
    finish(runs, os.path.join, workers=2)
    assert results(path for path, _ in runs) == [f"{tmp_path}/runs/{value}.json/{value}" for value in "abc"]


@pytest.mark.slow
def test_weights_experiment_end_to_end(tmp_path: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed of the smallest experiment, with few cells: all of them, and every documented file."""
    assert {preset: len(factors) for preset, factors in weights.FACTORS.items()} == {"scaled": 8, "paper": 6}
    monkeypatch.setattr(weights, "LENGTHS", (10, 30))
    monkeypatch.setattr(weights, "FACTORS", {"scaled": (1.0, 3.0), "paper": (1.0,)})
    command = [FOLDER / "weights.py", "--output-dir", tmp_path, "--seeds", 1, "--lists", 300, "--epochs", 1]
    run_script(*command)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["cells"]) == 2 * (1 + 2 + 1)
    assert summary["chosen_on_validation"].keys() == {f"{p}, n = {n}" for p in ("scaled", "paper") for n in (10, 30)}
    cell = next(c for c in summary["cells"] if (c["length"], c["preset"], c["factor"]) == (30, "scaled", 3.0))
    assert cell["weights"] == [60.0, 15.0]
    base = next(c for c in summary["cells"] if (c["length"], c["preset"]) == (30, "none"))
    clicks = [c["test"]["expected_clicks"]["mean"] for c in (cell, base)]
    assert cell["difference"]["expected_clicks"]["mean"] == pytest.approx(clicks[0] - clicks[1])
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(runs) == 8
    assert "0 runs to make" in run_script(*command)
    assert runs == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}


@pytest.mark.slow
def test_vectors_experiment_end_to_end(tmp_path: Path, run_script: RunScript) -> None:
    """Two seeds of the smallest experiment: rows are trained on the documented lists, and differences are paired."""
    command = [FOLDER / "vectors.py", "--output-dir", tmp_path, "--seeds", 2]
    run_script(*command, "--lists", 300, "--epochs", 1, "--dim", 4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    counts = json.loads((tmp_path / "lists" / "report.json").read_text())["lists"]
    assert {row: data["train"]["lists"] for row, data in summary["data"].items()} == {
        "PRM": counts["train"],
        "PRM + vectors": counts["train"],
        "PRM + ranker_train lists": counts["train"] + counts["ranker_train"],
    }
    values = [summary["rows"][row]["ndcg@10"]["values"] for row in ("PRM + vectors", "PRM")]
    change = summary["differences"]["PRM + vectors - PRM"]
    assert change["over_seeds"]["ndcg@10"]["mean"] == pytest.approx(np.mean(np.subtract(*values)))
    assert change["over_users"]["ndcg@10"]["mean"] == pytest.approx(np.mean(np.subtract(*values)))
    assert [model["seed"] for model in summary["click_models"]] == [0, 1]
    assert {model["dim"] for model in summary["click_models"]} == {4}
    assert "| PRM + vectors - PRM |" in (tmp_path / "summary.md").read_text()


@pytest.mark.slow
def test_initial_rankers_experiment_end_to_end(tmp_path: Path, run_script: RunScript) -> None:
    """One seed: all orders contain the same lists, and PRM's gain is its value minus that of the order."""
    command = [FOLDER / "initial_rankers.py", "--output-dir", tmp_path, "--seeds", 1]
    run_script(*command, "--lists", 300, "--epochs", 1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["rows"]) == 1 + 2 * 3 + 1
    for name, row in summary["rows"].items():
        if name == "no order":
            continue
        ours = row["prm"]["expected_clicks"]["mean"] - row["initial"]["expected_clicks"]
        assert row["gain"]["expected_clicks"]["mean"] == pytest.approx(ours)
        assert row["initial"]["expected_clicks"] < summary["best"]["expected_clicks"]
        if name != "simulator's own":
            assert name == f"{row['ranker']['ranker']}, {row['ranker']['quality']}"
            assert row["ranker"]["cut_lists"] == 0
    assert "| lambdamart, strong |" in (tmp_path / "summary.md").read_text()


@pytest.mark.slow
def test_fine_tuning_experiment_end_to_end(tmp_path: Path, run_script: RunScript) -> None:
    """Two seeds of the smallest experiment: as few lists as documented, and differences are paired."""
    command = [FOLDER / "fine_tuning.py", "--output-dir", tmp_path, "--seeds", 2, "--few", 20]
    run_script(*command, "--first-lists", 300, "--second-lists", 200, "--first-epochs", 1, "--epochs", 1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    first, second = (
        json.loads((tmp_path / name / "lists" / "report.json").read_text())["lists"] for name in ("first", "second")
    )
    assert summary["first_lists"] == first["train"]
    assert summary["test_lists"] == second["test"] + second["ranker_train"]
    for seed in (0, 1):
        for way in ("nothing", "tuned"):
            made = json.loads((tmp_path / "runs" / f"{way}-20-{seed}.json").read_text())
            assert made["data"]["train"]["lists"] == 20
            rates = summary["learning_rates"][{"nothing": "from nothing", "tuned": "fine-tuned"}[way] + ", 20 lists"]
            assert made["training_arguments"]["learning_rate"] == rates["chosen"]
    assert min(summary["new_items"]["fine-tuned, 20 lists"]) > 0
    values = [summary["rows"][row]["ndcg@10"]["values"] for row in ("fine-tuned, 20 lists", "from nothing, 20 lists")]
    change = summary["differences"]["fine-tuned, 20 lists - from nothing, 20 lists"]
    assert change["over_seeds"]["ndcg@10"]["mean"] == pytest.approx(np.mean(np.subtract(*values)))
    assert change["over_users"]["ndcg@10"]["mean"] == pytest.approx(np.mean(np.subtract(*values)))
    assert "| not tuned |" in (tmp_path / "summary.md").read_text()


def test_position_bias_summary_reports_the_recovered_fraction(tmp_path: Path) -> None:
    """Unbiased clicks give 0.2 more than none, the estimate 0.1 more: half. Seed 2 lacks some arms."""
    more = {"none": 0.0, "true": 0.15, "em": 0.1, "regression-em": 0.05, "harvest": -0.1, "tower": 0.12}
    more["unbiased"] = 0.2
    for arm, gain in more.items():
        for seed in (0, 1, 2) if arm == "none" else (0, 1):
            run = {"world": "weak", "order": "no order", "arm": arm, "seed": seed}
            curve = PRMWorld().examination.tolist() if arm == "true" else None
            result = {**run, "propensities": curve, "test": {"expected_clicks": 1.5 + seed / 4 + gain}}
            (tmp_path / f"weak-no_order-{arm}-{seed}.json").write_text(json.dumps(result))
    table = [line.split(" | ") for line in summarize(tmp_path).splitlines() if line.startswith("| weak")]
    assert [[row[2], row[3], row[4], row[6]] for row in table] == [
        ["`none`", "2", "1.6250", "-"],
        ["`true`", "2", "1.7750", "75 %"],
        ["`em`", "2", "1.7250", "50 %"],
        ["`regression-em`", "2", "1.6750", "25 %"],
        ["`harvest`", "2", "1.5250", "-50 %"],
        ["`tower`", "2", "1.7450", "60 %"],
        ["`unbiased`", "2", "1.8250", "-"],
    ]
    assert table[1][7] == "0.000 |"


def test_examination_follows_the_clicks_above() -> None:
    """After a click, a user browsing model starts its curve again."""
    clicks = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]])
    first, second, third = PRMWorld().examination[:3]
    expected = [first, (3 * second + first) / 4, (first + 2 * third + second) / 4]
    assert true_curve("browsing", clicks) == pytest.approx(expected)


def test_position_bias_table_matches_the_committed_runs() -> None:
    kept = FOLDER / "results" / "position_bias"
    assert summarize(kept) == (kept / "summary.md").read_text(encoding="utf-8")


def test_tree_tables_match_the_committed_numbers(tmp_path: Path, run_script: RunScript) -> None:
    """``show`` creates the committed file from the JSON next to it, and the README there contains its tables."""
    import shutil

    kept = FOLDER / "results" / "trees"

    for path in kept.glob("*.json"):
        shutil.copy(path, tmp_path)
    run_script(FOLDER / "tree_table.py", "show", "--results", tmp_path)
    made = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert made == (kept / "summary.md").read_text(encoding="utf-8")
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(table in readme for table in made.strip().split("\n\n"))
    # Two cells, recomputed from the numbers.
    numbers = json.loads((kept / "summary.json").read_text(encoding="utf-8"))["logs"]["simulated"]
    low, mean, high = (numbers["rows"]["PRM now"]["minus trees + position"][place] for place in (1, 0, 2))
    assert f"| PRM | .{round(numbers['rows']['PRM now']['ndcg@10'] * 1e4):04d} |" in made
    assert f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]" in made
