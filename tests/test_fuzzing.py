"""Some damaged inputs of each kind, the same ones every time; ``scripts/fuzz.py`` tries many more."""

from __future__ import annotations

import importlib.util
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import KINDS, make_kind
from fuzzing.judging import CORRECT, REJECTED

COUNT = 80


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_input_is_ranked_correctly_or_rejected_with_one_line(name: str, tmp_path: Path) -> None:
    kind = make_kind(name, tmp_path)
    outcomes = Counter[str]()
    for number in range(COUNT):
        what, outcome = kind.try_one(random.Random(f"{name} 0 {number}"))
        assert outcome in (CORRECT, REJECTED), f"{name} {number}, {what}: {outcome}"
        outcomes[outcome] += 1
    # Both outcomes must occur, otherwise one of them is not tested.
    assert min(outcomes[CORRECT], outcomes[REJECTED]) > 0


def test_the_readme_contains_the_counts_of_the_long_run() -> None:
    found = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts" / "fuzz.py")
    assert found is not None
    assert found.loader is not None
    fuzz = importlib.util.module_from_spec(found)
    found.loader.exec_module(fuzz)
    report = json.loads((ROOT / "scripts" / "benchmarks" / "results" / "fuzz.json").read_text())
    assert report["kinds"].keys() == KINDS.keys()
    for row in report["kinds"].values():
        assert row["tried"] == row["correct"] + row["rejected"] > 0
        assert row["anything_else"] == 0
    assert fuzz.table(report) in (ROOT / "hf_rerank" / "inference" / "README.md").read_text()
