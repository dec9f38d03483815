"""The grid of experiments on principled learning: its worlds, plan and runs, and the tables made from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from hf_rerank import Categorical, ListSchema

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "experiments"))

import grid
import questions
import worlds

SCHEMA = ListSchema(items=[Categorical("item_id")], position="position")
LISTS = datasets.Dataset.from_dict(
    {"item_id": [[7, 8, 9], [5]], "click": [[0, 1, 0], [1]], "position": [[2, 0, 1], [0]], "user": [1, 2]}
)


def test_lists_are_truncated_by_position_not_by_slot() -> None:
    """Of positions 2, 0, 1, the first two are in slots 1 and 2."""
    cut = worlds.cut_lists(LISTS, SCHEMA, 2)
    assert cut["item_id"][:] == [[8, 9], [5]]
    assert cut["click"][:] == [[1, 0], [1]]
    assert cut["position"][:] == [[0, 1], [0]]
    assert cut["user"][:] == [1, 2]


def test_without_a_position_column_lists_are_truncated_in_slot_order() -> None:
    assert worlds.cut_lists(LISTS, SCHEMA.replace(position=None), 2)["item_id"][:] == [[7, 8], [5]]


def test_reorder_keeps_positions_without_noise_and_permutes_at_random() -> None:
    assert worlds.reorder(LISTS, SCHEMA, noise=0.0, seed=3)["position"][:] == [[2, 0, 1], [0]]
    lists = datasets.Dataset.from_dict({"item_id": [list(range(50))], "click": [[0] * 50]})
    drawn = worlds.reorder(lists, SCHEMA, noise=None, seed=3)["position"][0]
    assert sorted(drawn) == list(range(50))
    assert drawn != list(range(50))
    assert worlds.reorder(lists, SCHEMA, noise=None, seed=3)["position"][0] == drawn


def test_the_plan_has_unique_runs_and_every_baseline() -> None:
    runs = list(grid.planned(grid.PLAN, 2))
    assert len(runs) == len({run.name for run in runs})
    for run in runs:
        assert any(other.arm == "none" and (other.world, other.length) == (run.world, run.length) for other in runs)


def test_arms_are_compared_with_the_same_settings_without_principles() -> None:
    bases = {"augmented_dropout": "none_dropout", "paper_rate0.0001": "none_rate0.0001", "augmented_x10": "none"}
    bases |= {"no_order": "none", "none_dropout": "none", "none_defaults_without_dropout": "none_defaults"}
    assert {arm: grid.base_of(arm) for arm in bases} == bases


def test_lists_are_grouped_by_whether_they_reach_a_fixed_point() -> None:
    """Two lists with clicks 1 and 3 reach a fixed point; one with 5 does not."""
    values = {
        "fixed_point_rate": np.array([1.0, 0.0, 1.0]),
        "p1_item_obedience": np.array([1.0, 0.2, 0.8]),
        **{name: np.array([1.0, 5.0, 3.0]) for name in ("expected_clicks", "initial_expected_clicks")},
        **{name: np.array([0.0, 0.0, 0.0]) for name in ("ndcg@10", "initial_ndcg@10")},
    }
    found = grid.by_fixed_point(values)
    assert (found["reach"]["lists"], found["reach"]["expected_clicks"]) == (2, 2.0)
    assert (found["do_not_reach"]["lists"], found["do_not_reach"]["expected_clicks"]) == (1, 5.0)


def result(arm: str, seed: int, clicks: float) -> dict[str, Any]:
    measures = dict.fromkeys(questions.MEASURES, 0.5)
    return {
        "world": "trained",
        "length": 30,
        "model": "prm",
        "arm": arm,
        "seed": seed,
        "cpu_seconds": 1.0,
        "initial": {"expected_clicks": 1.0},
        "test": {**measures, "expected_clicks": clicks},
    }


@pytest.mark.slow
def test_differences_are_paired_by_seed_and_in_percent_of_the_baseline(tmp_path: Path) -> None:
    """none: 2, 4 (mean 3); augmented: 2.3, 4.6. Differences .3 and .6 of 3 are 10 and 20 %: mean 15 %."""
    for arm, clicks in {"none": (2.0, 4.0), "augmented": (2.3, 4.6), "scaled": (2.0,)}.items():
        for seed, value in enumerate(clicks):
            (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps(result(arm, seed, value)))
    rows = questions.rows_of("1", questions.load(tmp_path), tmp_path, None)
    by_arm = {row["arm"]: row for row in rows}
    assert by_arm["augmented"]["expected_clicks - none"]["mean"] == pytest.approx(15.0)
    assert by_arm["augmented"]["p_holm"] == pytest.approx(by_arm["augmented"]["expected_clicks - none"]["p_value"])
    assert "expected_clicks - none" not in by_arm["scaled"]  # one seed has no interval
    assert "+15.00 [" in questions.as_markdown(rows)


@pytest.mark.slow
def test_grid_runs_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small world; DLCM without order is given a random one; a second call trains nothing."""
    orders = {"trained": "moderate", "display": "display"}
    monkeypatch.setattr(worlds, "WORLDS", {name: ("prm_public", 400, order) for name, order in orders.items()})
    monkeypatch.setattr(grid, "WORLDS", worlds.WORLDS)
    monkeypatch.setattr(grid, "EPOCHS", 1)
    monkeypatch.setattr(grid, "LEARNING_RATES", (1e-3,))
    monkeypatch.setattr(
        grid, "PLAN", {"1": [("display", 5, "dlcm", "no_order"), ("trained", 30, "prm", "augmented_random_swap_4")]}
    )
    command = ["grid.py", "--output-dir", str(tmp_path), "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--questions", "1"])
    grid.main()
    files = {path.stem: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert set(files) == {"display-5-dlcm-no_order-0", "trained-30-prm-augmented_random_swap_4-0"}
    made = json.loads((tmp_path / "trained-30-prm-augmented_random_swap_4-0.json").read_text())
    settled = [made["fixed_points"].get(group, {"lists": 0})["lists"] for group in ("reach", "do_not_reach")]
    assert sum(settled) == made["test"]["lists"]
    grid.main()
    assert {path.stem: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == files


def test_tables_without_runs_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise ``--paste`` would empty the tables of the pages."""
    monkeypatch.setattr(
        sys, "argv", ["questions.py", "--runs", str(tmp_path), "--output-dir", str(tmp_path / "results"), "--paste"]
    )
    with pytest.raises(SystemExit, match="has no runs"):
        questions.main()
    assert not (tmp_path / "results").exists()
