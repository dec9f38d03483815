"""Writes that fail while a training saves: a full disk, a file in place of a folder, missing permission."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import kill_worker
import pytest
import torch
import warm

from hf_rerank import InputError, Reranker
from hf_rerank.storage import verify
from hf_rerank.training.checkpoints import list_checkpoints, verify_checkpoint


def fill_the_disk(folder: Path, limits: tuple[int, ...], report: Path) -> None:
    """Trains, and saves again under each limit on the size of files."""
    torch.set_num_threads(1)
    trainer = kill_worker.make_trainer(folder, save_total_limit=None)
    trainer.train(resume_from_checkpoint="auto")
    before = sorted(path.name for path in folder.iterdir())
    again = kill_worker.make_trainer(folder, num_train_epochs=3, save_total_limit=None)
    results = []
    # Printed output goes to a file, too, and would hit the limit.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for write in (
            lambda: again.train(resume_from_checkpoint="last"),
            lambda: trainer.save_model(),
            lambda: trainer.save_model(str(folder / "model")),
        ):
            try:
                write()
                results.append("written")
            except OSError as error:
                results.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report.write_text(json.dumps([results, before, sorted(path.name for path in folder.iterdir())]))


@pytest.mark.slow
def test_a_full_disk_is_reported_and_training_can_be_resumed(tmp_path: Path) -> None:
    """A limit on file size makes writes fail as on a full disk, in Python, torch and safetensors."""
    folder = tmp_path / "run"
    warm.run(fill_the_disk, folder, (200, 1500, 4000), tmp_path / "report.json", log=tmp_path / "log")
    results, before, after = json.loads((tmp_path / "report.json").read_text())
    assert len(results) == 9
    for number, result in enumerate(results):
        what = ("run/checkpoint-12", "run", "run/model")[number % 3]
        assert f"{tmp_path}/{what} could not be written" in result, result
        assert "MB are free" in result
        assert "\n" not in result
        assert ("are needed" in result) is (what == "run/checkpoint-12")
    assert before == after, "no new files, and nothing partially written"
    for path in list_checkpoints(folder):
        verify_checkpoint(path)
    trainer = kill_worker.make_trainer(folder, num_train_epochs=3, save_total_limit=None)
    trainer.train(resume_from_checkpoint="last")
    assert trainer.resumed_step == 10
    assert trainer.state.global_step == 15


@pytest.mark.slow
@pytest.mark.parametrize("what", ["checkpoint", "model"])
def test_a_failed_save_leaves_the_older_files(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails at the Nth flush, for every N: either all old files remain, or all new ones are in place."""
    folder = tmp_path / "run"
    trainer = kill_worker.make_trainer(folder, max_steps=2)
    trainer.train()
    trainer.save_model()
    old = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    calls, fail_at, untouched, replaced = 0, 0, 0, 0

    def failing(descriptor: int, fsync: Any = os.fsync) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    def save() -> None:
        if what == "model":
            trainer.save_model()
        else:
            again = kill_worker.make_trainer(folder, max_steps=4)
            again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))

    monkeypatch.setattr(os, "fsync", failing)
    with torch.no_grad():
        trainer.model.scorer.bias.add_(1.0)
    for number in range(1, 100):
        calls, fail_at = 0, number
        try:
            save()
        except OSError as error:
            message = str(error)
        else:
            break
        assert "No space left on device" in message
        assert str(folder) in message
        assert not list(folder.glob("tmp-*"))
        now = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        if {path: now.get(path) for path in old} == old:
            untouched += 1
            assert now.keys() == old.keys() or what == "checkpoint"
        else:
            replaced += 1
        for path in (folder, *list_checkpoints(folder)):
            Reranker.from_pretrained(path)
            assert verify(path, lambda name: True, "") is not None
    # Each file and the folder are flushed to disk, then the parent folder with the new name.
    assert number - 1 == untouched + replaced == expected_flushes(what)
    assert replaced <= 1, "only the last call comes after the new files are in place"


def expected_flushes(what: str) -> int:
    """The number of flushes of a save: each file, their folder, and its parent folder."""
    files = 6 if what == "model" else 11
    of_the_processor = 2  # which also writes and flushes its config
    return files + 1 + 1 + 1 + of_the_processor


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    trainer = kill_worker.make_trainer(tmp_path / "run", max_steps=2)
    (tmp_path / "file").write_text("here first")
    with pytest.raises(InputError, match="file is a file: expected a folder"):
        trainer.save_model(str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"model/\.saving\.lock could not be written"):
        trainer.save_model(str(tmp_path / "file" / "model"))
    assert (tmp_path / "file").read_text() == "here first"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_reported(tmp_path: Path) -> None:
    trainer = kill_worker.make_trainer(tmp_path / "run", max_steps=2)
    (tmp_path / "run").chmod(0o500)
    with pytest.raises(OSError, match=r"run could not be written.*Permission denied"):
        trainer.train()
    (tmp_path / "run").chmod(0o700)
