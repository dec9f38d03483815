"""The script that a newcomer reads, run as it stands: from a CSV to a model that is loaded back from a Hub."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import running_hub
from samples import TOKEN

SCRIPT = Path(__file__).parents[2] / "scripts" / "from_csv_to_hub.py"


@pytest.mark.slow
def test_from_a_csv_to_the_hub(tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = ["request,user,rank,item_id,category,price,click"]
    for request in range(300):
        for rank, item in enumerate(draw.sample(range(1, 30), 5)):
            price = "" if draw.random() < 0.1 else f"{draw.lognormvariate(2, 1):.2f}"
            lines.append(f"r{request},{request % 90},{rank},{item},{'ab'[item % 2]},{price},{int(item < 6)}")
    (tmp_path / "lists.csv").write_text("\n".join(lines) + "\n")
    with running_hub("someone", TOKEN) as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, str(SCRIPT), "--lists", "lists.csv", "--output-dir", "run"]
        command += ["--repo-id", "someone/mine", "--epochs", "2"]
        ran = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False, cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        (commit,) = hub.repositories["someone/mine"]
    assert {"config.json", "model.safetensors", "README.md", "results.json"} <= commit["files"].keys()
    assert "re-ranker" in ran.stdout
    (ranked,) = ast.literal_eval(ran.stdout.splitlines()[-1])
    assert len(ranked["order"]) == 2
    assert set(ranked["ids"]) < {1, 2, 3}
    assert TOKEN not in ran.stdout + ran.stderr
