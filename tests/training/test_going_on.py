"""A training resumed from any of its checkpoints, even repeatedly, equals an unbroken one bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import kill_worker
import pytest

from hf_rerank.training.checkpoints import list_checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("chain", [(1, 4, 5, 6, 9), (3, 10), (2, 7, 8)])
def test_resuming_at_any_step_repeatedly_gives_identical_results(
    unbroken: Path, tmp_path: Path, chain: tuple[int, ...]
) -> None:
    """Steps 5 and 10 end an epoch; each training resumes from one that was itself resumed."""
    expected = json.loads(unbroken.with_name("outcome.json").read_text())
    source = unbroken
    for number, step in enumerate(chain):
        folder = tmp_path / str(number)
        trainer = kill_worker.make_trainer(folder, seed=9, **kill_worker.EVERY_STEP)
        checkpoint = source / f"checkpoint-{step}"
        trainer.train(resume_from_checkpoint=str(checkpoint))
        if step == 10:  # nothing was left to do
            assert list_checkpoints(folder) == []
            assert kill_worker.digest(dict(trainer.model.state_dict())) == expected["model"]
            continue
        found = kill_worker.outcome(trainer)
        assert found == {name: value for name, value in expected.items() if name != "resumed_from"}, step
        source = folder


@pytest.mark.slow
def test_resuming_a_finished_training_mid_epoch_trains_no_further_step(tmp_path: Path) -> None:
    """Upstream would train one more step."""
    options = {**kill_worker.EVERY_STEP, "max_steps": 7}
    kill_worker.train(tmp_path / "run", options, tmp_path / "outcome.json")
    expected = json.loads((tmp_path / "outcome.json").read_text())
    kill_worker.train(tmp_path / "run", options, tmp_path / "again.json", seed=9)
    again = json.loads((tmp_path / "again.json").read_text())
    assert (expected.pop("resumed_from"), again.pop("resumed_from")) == (0, 7)
    assert again == expected
