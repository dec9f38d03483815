"""The example script for newcomers, run unchanged: from a CSV to a model that is loaded back from a Hub."""

from __future__ import annotations

import ast
import random
import runpy
import sys
from pathlib import Path

import pytest
from hub_server import Hub
from samples import TOKEN

SCRIPT = Path(__file__).parents[2] / "scripts" / "from_csv_to_hub.py"


@pytest.mark.slow
def test_example_script_goes_from_a_csv_to_the_hub_and_back(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(0)
    lines = ["request,user,rank,item_id,category,price,click"]
    for request in range(300):
        for rank, item in enumerate(draw.sample(range(1, 30), 5)):
            price = "" if draw.random() < 0.1 else f"{draw.lognormvariate(2, 1):.2f}"
            lines.append(f"r{request},{request % 90},{rank},{item},{'ab'[item % 2]},{price},{int(item < 6)}")
    (tmp_path / "lists.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["--lists", "lists.csv", "--output-dir", "run", "--repo-id", "someone/mine", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed, errors = capsys.readouterr()
    (commit,) = hub.repositories["someone/mine"]
    assert {"config.json", "model.safetensors", "README.md", "results.json"} <= commit["files"].keys()
    assert "re-ranker" in printed
    (ranked,) = ast.literal_eval(printed.splitlines()[-1])
    assert len(ranked["order"]) == 2
    assert set(ranked["ids"]) < {1, 2, 3}
    assert TOKEN not in printed + errors
