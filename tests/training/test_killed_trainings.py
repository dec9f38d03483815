"""Killed trainings resume to identical results; two trainings in one folder; the one private method overridden."""

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
def test_killed_and_resumed_trainings_give_identical_results(tmp_path: Path) -> None:
    """Killed during a save, between steps, during the start, with workers, once and twice."""
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
                # Ends mid-epoch; a checkpoint and a log at each step.
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
        assert kill["left"] == [], "no unfinished files are left"
    assert len({kill["resumed_from"] for kill in killed}) > 4
    assert {7, 10, 18} & {kill["resumed_from"] for kill in killed}, "also after a last step"
    # 72 lists, 8 per batch, 2 batches per step: 4.5 steps per epoch, so 5, twice; or 9, twice; or max_steps.
    assert [training["expected"]["step"] for training in report] == [10, 10, 18, 7]


def hold_run_lock(folder: Path, held: Path) -> None:
    """Locks the folder of a run, reports it, and waits to be killed."""
    with checkpoints.lock_run(folder):
        held.touch()
        time.sleep(300)


@pytest.mark.slow
def test_a_second_training_in_the_same_folder_is_rejected(tmp_path: Path) -> None:
    """The error names the first process; once that has ended, training is possible again."""
    folder, held = tmp_path / "run", tmp_path / "held"
    holder = warm.start(hold_run_lock, folder, held, log=tmp_path / "log")
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


def test_upstream_still_saves_checkpoints_with_the_overridden_private_method() -> None:
    """If upstream renamed it, checkpoints would silently be written in place again."""
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


def test_an_undisturbed_run_gives_no_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kill_worker.make_trainer(tmp_path / "run", max_steps=2).train()
