"""The experiment on a real log: the order of trees, and differences over seeds and queries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("lightgbm")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "experiments"))

import real_log


def test_the_largest_score_of_a_list_has_position_0() -> None:
    table = real_log._add_positions(
        pa.table({"click": [[0, 1, 0], [1, 0]]}), np.array([0.1, 0.9, 0.5, -1.0, 2.0]), np.array([3, 2])
    )
    assert table.column("position_trees_display").to_pylist() == [[2, 0, 1], [1, 0]]


def write_run(folder: Path, order: str, arm: str, seed: int, values: list[float | None]) -> None:
    measures: dict[str, Any] = dict.fromkeys(real_log.MEASURES, 0.5)
    result = {"order": order, "arm": arm, "seed": seed, "test": measures, "ndcg@10": values}
    (folder / f"{order}-{arm}-{seed}.json").write_text(json.dumps(result))


def test_differences_are_paired_by_seed_over_lists_with_a_click(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over lists with a click: PRM .5 and .6, with principles .7 and .9, so the changes are .2 and .3."""
    queries = pa.table({"query": ["a", "b", "b"]})
    monkeypatch.setattr(real_log, "load", lambda name, root: SimpleNamespace(splits={"test": queries}))
    monkeypatch.setattr(real_log, "_logged", lambda order, root: {"order": order, "arm": "initial", "ndcg@10": 0.4})
    write_run(tmp_path, "display", "none", 0, [0.4, None, 0.6])
    write_run(tmp_path, "display", "none", 1, [0.5, None, 0.7])
    write_run(tmp_path, "display", "scaled", 0, [0.6, None, 0.8])
    write_run(tmp_path, "display", "scaled", 1, [0.8, None, 1.0])
    summary = real_log.summarise(tmp_path, tmp_path)
    initial, base, principled = summary["rows"]
    assert (initial["ndcg@10"], base["arm"], principled["seeds"]) == (0.4, "none", 2)
    assert base["ndcg@10"] == pytest.approx(0.55)
    assert principled["ndcg@10"] == pytest.approx(0.8)
    change = principled["ndcg@10 - none"]
    assert change["mean"] == pytest.approx(0.25)
    # Two differences .2 and .3: standard error .05, and t of one degree of freedom at 97.5 % is 12.706.
    assert change["low"] == pytest.approx(0.25 - 12.706 * 0.05, abs=1e-3)
    # Both lists change by the same .25, and so does every resample of the queries.
    assert principled["ndcg@10 - none, queries"]["low"] == pytest.approx(0.25)
    assert "+0.2500" in real_log.as_markdown(summary)


def test_a_folder_without_runs_is_rejected_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an empty table would replace the committed one."""
    (tmp_path / "clara2").mkdir()
    monkeypatch.setattr(real_log, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["real_log.py", "--root", str(tmp_path), "--summary", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"has no runs \(\*\.json\)"):
        real_log.main()
    assert not (tmp_path / "results").exists()
