"""Damaged, unfinished and foreign checkpoints are detected and named; none is deleted too early."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill_worker
import pytest

from hf_rerank import InputError, RerankTrainer
from hf_rerank.storage import MANIFEST
from hf_rerank.training import checkpointing_trainer, checkpoints
from hf_rerank.training.checkpoints import find_newest_checkpoint, list_checkpoints, verify_checkpoint

STATE_FILES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


@pytest.fixture
def run_copy(unbroken: Path, tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 3 and 4."""
    folder = tmp_path / "copy"
    for step in (3, 4):
        shutil.copytree(unbroken / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return folder


@pytest.fixture
def resume(run_copy: Path) -> Callable[..., Any]:
    trainer = kill_worker.make_trainer(run_copy, **kill_worker.EVERY_STEP)
    return lambda checkpoint: trainer.train(resume_from_checkpoint=checkpoint)


def delete(path: Path) -> None:
    path.unlink()


def truncate_to_zero(path: Path) -> None:
    path.write_bytes(b"")


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def replace_by_previous_step(path: Path) -> None:
    shutil.copyfile(path.parent.with_name("checkpoint-3") / path.name, path)


@pytest.mark.slow
@pytest.mark.parametrize("change", [delete, truncate_to_zero, cut_in_half, flip_a_bit, replace_by_previous_step])
def test_any_changed_file_of_a_checkpoint_is_detected(run_copy: Path, resume: Callable[..., Any], change: Any) -> None:
    checkpoint = run_copy / "checkpoint-4"
    fired = set()
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        change(path)
        if path.exists() and path.read_bytes() == content:
            continue  # the file is the same in both steps
        fired.add(path.name)
        for wanted in (str(checkpoint), True, "last", "auto"):
            if path.name == MANIFEST and change is delete and wanted != str(checkpoint):
                continue  # then it is unfinished and skipped: see below
            with pytest.raises(InputError) as caught:
                resume(wanted)
            message = str(caught.value)
            assert "\n" not in message
            # With the manifest of another step, the other files differ.
            named = str(checkpoint) if path.name == MANIFEST else str(path)
            assert named in message, message
        path.write_bytes(content)
    assert fired >= {*STATE_FILES, "model.safetensors", MANIFEST}
    if change is not replace_by_previous_step:
        assert fired == {path.name for path in checkpoint.iterdir()}
    verify_checkpoint(checkpoint)


def test_an_unfinished_checkpoint_is_skipped_by_last_but_rejected_by_name(
    run_copy: Path, resume: Callable[..., Any]
) -> None:
    (run_copy / "checkpoint-4" / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="checkpoint-4 in .*passed over"):
        assert find_newest_checkpoint(run_copy) == run_copy / "checkpoint-3"
    with pytest.raises(InputError, match=r"checkpoint-4 has no manifest\.json of a checkpoint: it is unfinished"):
        resume(str(run_copy / "checkpoint-4"))
    (run_copy / "checkpoint-3" / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="checkpoint-3, checkpoint-4"), pytest.raises(InputError, match="no complete"):
        resume("last")


@pytest.mark.parametrize("name", sorted({*STATE_FILES, "config.json"}))
def test_a_checkpoint_saved_without_part_of_its_state_is_rejected(
    run_copy: Path, resume: Callable[..., Any], name: str
) -> None:
    """The manifest is valid but lacks that part, as written by save_only_model."""
    checkpoint = run_copy / "checkpoint-4"
    (checkpoint / name).unlink()
    checkpoints.write_manifest(checkpoint, step=4, number=9, processes=1)
    verify_checkpoint(checkpoint)
    with pytest.raises(InputError, match=f"checkpoint-4 was saved without {name}"):
        resume("last")


def test_missing_and_foreign_checkpoints_are_rejected(
    run_copy: Path, resume: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no checkpoint .*checkpoint-7 \(.*holds checkpoint-3, checkpoint-4\)"):
        resume(str(run_copy / "checkpoint-7"))
    with pytest.raises(InputError, match="no complete checkpoint to resume from"):
        kill_worker.make_trainer(tmp_path / "new").train(resume_from_checkpoint=True)
    shutil.copytree(run_copy / "checkpoint-3", run_copy / "checkpoint-9")
    with pytest.raises(InputError, match="checkpoint-9 holds the checkpoint of step 3"):
        resume(str(run_copy / "checkpoint-9"))
    other = kill_worker.make_trainer(run_copy, **kill_worker.EVERY_STEP)
    other.model.config.hidden_dropout_prob = 0.3
    with pytest.raises(InputError, match=r"trained with hidden_dropout_prob=0\.2, this model has 0\.3"):
        other.train(resume_from_checkpoint=str(run_copy / "checkpoint-3"))
    with pytest.raises(InputError, match="was written by 1 processes, this run has 2"):
        verify_checkpoint(run_copy / "checkpoint-3", processes=2)


def test_the_best_checkpoint_is_found_after_moving_and_must_be_intact(unbroken: Path, tmp_path: Path) -> None:
    expected = json.loads(unbroken.with_name("outcome.json").read_text())
    best = f"checkpoint-{expected['best'][0]}"
    later = max(step for step in range(1, 11) if step != expected["best"][0])
    assert expected["best"][0] < later
    moved = tmp_path / "moved"
    shutil.copytree(unbroken, moved)

    def go_on() -> RerankTrainer:
        trainer = kill_worker.make_trainer(moved, **kill_worker.EVERY_STEP)
        trainer.train(resume_from_checkpoint=str(moved / f"checkpoint-{later}"))
        return trainer

    trainer = go_on()
    assert trainer.state.best_model_checkpoint == str(moved / best)
    assert kill_worker.digest(dict(trainer.model.state_dict())) == expected["model"]
    flip_a_bit(moved / best / "model.safetensors")
    with pytest.raises(InputError, match=rf"{best}/model\.safetensors is damaged or changed"):
        go_on()


def test_a_missing_best_checkpoint_is_an_error(unbroken: Path, tmp_path: Path) -> None:
    state = json.loads((unbroken / "checkpoint-10" / "trainer_state.json").read_text())
    lone = tmp_path / "lone" / "checkpoint-10"
    shutil.copytree(unbroken / "checkpoint-10", lone)
    state["best_model_checkpoint"] = "/nowhere/checkpoint-2"
    (lone / "trainer_state.json").write_text(json.dumps(state))
    checkpoints.write_manifest(lone, step=10, number=1, processes=1)
    with pytest.raises(InputError, match=r"the best checkpoint so far, .*lone/checkpoint-2, is gone"):
        kill_worker.make_trainer(tmp_path / "run", **kill_worker.EVERY_STEP).train(resume_from_checkpoint=str(lone))


@pytest.mark.slow
def test_in_a_folder_of_an_earlier_run_the_last_written_checkpoint_is_newest(tmp_path: Path) -> None:
    """The newest is the one written last, not that of the highest step; the best and the newest are kept."""
    folder = tmp_path / "run"
    kill_worker.train(folder, {})
    steps = [path.name for path in list_checkpoints(folder)]
    assert "checkpoint-10" in steps
    assert len(steps) == 2
    kill_worker.train(folder.with_name("other"), {})
    trainer = kill_worker.make_trainer(folder, max_steps=4, num_train_epochs=1)
    trainer.train()
    assert find_newest_checkpoint(folder) == folder / "checkpoint-4"
    for path in list_checkpoints(folder):
        verify_checkpoint(path)


def test_older_checkpoints_are_kept_until_the_newest_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is damaged as soon as it has its final name."""
    publish, fired = checkpoints.publish, []

    def damaging(written: Path, final: Path, **facts: Any) -> None:
        publish(written, final, **facts)
        if final.name == "checkpoint-4":
            flip_a_bit(final / "optimizer.pt")
            fired.append(final)

    monkeypatch.setattr(checkpointing_trainer, "publish", damaging)
    trainer = kill_worker.make_trainer(tmp_path / "run", save_total_limit=1, load_best_model_at_end=False)
    with pytest.raises(InputError, match=r"checkpoint-4/optimizer\.pt is damaged or changed"):
        trainer.train()
    assert len(fired) == 1
    verify_checkpoint(tmp_path / "run" / "checkpoint-2")


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path, run_copy: Path) -> None:
    """A checkpoint that was about to be replaced is restored."""
    shutil.move(run_copy / "checkpoint-4", run_copy / "tmp-replaced-checkpoint-4")
    for name in ("tmp-checkpoint-5/checkpoint-5", "tmp-deleted-checkpoint-2"):
        (run_copy / name).mkdir(parents=True)
        (run_copy / name / "model.safetensors").write_bytes(b"half")
    checkpoints.clean_up(run_copy)
    assert {path.name for path in run_copy.iterdir()} == {"checkpoint-3", "checkpoint-4"}
    verify_checkpoint(run_copy / "checkpoint-4")
