"""A few hundred damaged inputs of each kind, the same ones every time; ``scripts/fuzz.py`` tries many more."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import KINDS, make_kind
from fuzzing.judging import CORRECT, REJECTED

COUNT = 200


@pytest.mark.parametrize("name", KINDS)
def test_every_input_is_ranked_correctly_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    kind = make_kind(name, tmp_path)
    outcomes = Counter[str]()
    for number in range(COUNT):
        what, outcome = kind.try_one(random.Random(f"{name} 0 {number}"))
        assert outcome in (CORRECT, REJECTED), f"{name} {number}, {what}: {outcome}"
        outcomes[outcome] += 1
    # It is a test of neither if all are of one sort.
    assert min(outcomes[CORRECT], outcomes[REJECTED]) >= 5
