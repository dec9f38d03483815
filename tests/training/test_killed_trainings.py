"""Trainings that are killed go on to the same bits; two in one folder; what saves is replaced by one private name."""

from __future__ import annotations

import ast
import inspect
import json
import random
import time
import warnings
from pathlib import Path

import kill_worker
import pytest
import warm
from transformers import Trainer

from hf_rerank import InputError
from hf_rerank.training import checkpointing_trainer, checkpoints


@pytest.mark.slow
def test_killed_trainings_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Killed inside a save, between steps, while starting, in workers' presence, once and twice."""
    draw = random.Random(0)
    steps = [{"share_of_calls": (number + draw.random()) / 5} for number in range(5)]
    plan = {
        "folder": str(tmp_path / "trainings"),
        "trainings": [
            {"options": {}, "kills": [*steps, {"share": 0.6}, [{"share_of_calls": 0.4}, {"share_of_calls": 0.3}]]},
            {
                "options": {"dataloader_num_workers": 2, "save_total_limit": 1},
                "kills": [{"share_of_calls": share} for share in (0.35, 0.97)],
            },
            {
                "options": {
                    **{f"{what}_strategy": "epoch" for what in ("save", "eval", "logging")},
                    "gradient_accumulation_steps": 1,
                },
                "kills": [{"share_of_calls": share} for share in (0.55, 0.99)],
            },
            {
                # Ends in the middle of a pass; a checkpoint and its log at each step.
                "options": {"max_steps": 7, "save_steps": 1, "eval_steps": 1, "metric_for_best_model": "loss"},
                "kills": [{"share_of_calls": share} for share in (0.45, 0.995)],
            },
        ],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    warm.run(kill_worker.main, tmp_path / "plan.json", tmp_path / "report.json", log=tmp_path / "log", timeout=500)
    report = json.loads((tmp_path / "report.json").read_text())
    killed = [kill for training in report for kill in training["kills"]]
    assert len(killed) == 13
    for kill in killed:
        assert kill["fired"] == len(kill["kills"]), kill
        assert kill["ended"], kill
        assert kill["different"] == [], kill
        assert kill["left"] == [], "nothing unfinished is left behind"
    assert len({kill["resumed_from"] for kill in killed}) > 4
    assert {7, 10, 18} & {kill["resumed_from"] for kill in killed}, "also after a last step"
    # 72 lists, 8 a batch, 2 batches a step: 4.5 steps a pass, so 5, twice; or 9, twice; or as many as were asked for.
    assert [training["expected"]["step"] for training in report] == [10, 10, 18, 7]


def hold(folder: Path, held: Path) -> None:
    """Holds the folder of a run, says so, and waits to be killed."""
    with checkpoints.lock_run(folder):
        held.touch()
        time.sleep(300)


@pytest.mark.slow
def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    """The second is refused by the number of the first process, which may be alone again once that has ended."""
    folder, held = tmp_path / "run", tmp_path / "held"
    holder = warm.start(hold, folder, held, log=tmp_path / "log")
    try:
        while not held.exists():
            assert holder.is_alive(), (tmp_path / "log").read_text()
            time.sleep(0.01)
        with pytest.raises(InputError, match=f"process {holder.pid} is training in .*run: wait for it"):
            kill_worker.make_trainer(folder).train()
    finally:
        holder.kill()
        holder.join()
    trainer = kill_worker.make_trainer(folder, max_steps=2)
    trainer.train()
    assert not (folder / checkpoints.LOCK).exists()


def test_the_private_method_is_still_the_one_that_saves() -> None:
    """If upstream renames it, checkpoints would be written in place again, without a word."""
    assert list(inspect.signature(Trainer._save_checkpoint).parameters) == ["self", "model", "trial"]
    assert "self._save_checkpoint(model, trial)" in inspect.getsource(Trainer._maybe_log_save_evaluate)
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "self._get_output_dir" in source
    assert "self.args.output_dir" in inspect.getsource(Trainer._get_output_dir)
    ours = ast.parse(inspect.getsource(checkpointing_trainer))
    upstream = {name for name in dir(Trainer) if name.startswith("_") and not name.startswith("__")}
    used = {node.attr for node in ast.walk(ours) if isinstance(node, ast.Attribute)}
    used |= {node.name for node in ast.walk(ours) if isinstance(node, ast.FunctionDef)}
    assert used & upstream == {"_save_checkpoint"}


def test_no_warning_in_an_undisturbed_run(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kill_worker.make_trainer(tmp_path / "run", max_steps=2).train()
