"""A training goes on from any of its checkpoints, again and again, to the bits of an unbroken one."""

from __future__ import annotations

import json
from pathlib import Path

import kill_worker
import pytest

from hf_rerank.training.checkpoints import list_checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("chain", [(1, 4, 5, 6, 9), (3, 10), (2, 7, 8)])
def test_going_on_at_any_step_and_again(unbroken: Path, tmp_path: Path, chain: tuple[int, ...]) -> None:
    """Steps 5 and 10 end a pass; each training goes on from one that had gone on itself."""
    expected = json.loads(unbroken.with_name("outcome.json").read_text())
    source = unbroken
    for number, step in enumerate(chain):
        folder = tmp_path / str(number)
        trainer = kill_worker.make_trainer(folder, seed=9, **kill_worker.EVERY_STEP)
        checkpoint = source / f"checkpoint-{step}"
        trainer.train(resume_from_checkpoint=str(checkpoint))
        if step == 10:  # nothing was left to do, and nothing was done
            assert list_checkpoints(folder) == []
            assert kill_worker.digest(dict(trainer.model.state_dict())) == expected["model"]
            continue
        found = kill_worker.outcome(trainer)
        assert found == {name: value for name, value in expected.items() if name != "resumed_from"}, step
        source = folder


@pytest.mark.slow
def test_nothing_is_trained_after_a_last_step_in_the_middle_of_a_pass(tmp_path: Path) -> None:
    """Upstream would train a step more."""
    options = {**kill_worker.EVERY_STEP, "max_steps": 7}
    kill_worker.train(tmp_path / "run", options, tmp_path / "outcome.json")
    expected = json.loads((tmp_path / "outcome.json").read_text())
    kill_worker.train(tmp_path / "run", options, tmp_path / "again.json", seed=9)
    again = json.loads((tmp_path / "again.json").read_text())
    assert (expected.pop("resumed_from"), again.pop("resumed_from")) == (0, 7)
    assert again == expected
