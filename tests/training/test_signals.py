"""Trainings stopped by Ctrl-C or SIGTERM finish the step, save, and can be resumed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kill_worker
import pytest
import torch
import warm
from transformers import TrainerCallback

from hf_rerank import cli
from hf_rerank.training.checkpointing_trainer import TrainingInterrupted


class Signal(TrainerCallback):
    """Sends this process a signal when step ``at`` + 1 begins."""

    def __init__(self, number: int, at: int, twice: bool = False) -> None:
        self.number, self.at, self.twice, self.fired = number, at, twice, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.at:
            self.fired += 1
            os.kill(os.getpid(), self.number)
            if self.twice:
                os.kill(os.getpid(), self.number)


@pytest.fixture
def _usual_handlers() -> Iterator[None]:
    """The default handlers of a program; test runners install their own."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


OPTIONS = {
    "steps": {},
    "passes": {f"{what}_strategy": "epoch" for what in ("save", "eval", "logging")},
    "saved at steps, measured at passes": {
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "load_best_model_at_end": False,
    },
}


@pytest.mark.slow
@pytest.mark.usefixtures("_usual_handlers")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_signal_ends_the_step_and_saves(tmp_path: Path, name: str) -> None:
    """Mid-epoch, at the end of an epoch (step 5), and at the end (step 10); Ctrl-C and SIGTERM in turn."""
    options, expected_file = OPTIONS[name], tmp_path / "expected.json"
    kill_worker.train(tmp_path / "unbroken", options, expected_file)
    expected = json.loads(expected_file.read_text())
    del expected["resumed_from"]
    first = list(OPTIONS).index(name)
    for turn, at in enumerate((0, 3, 4, 9), start=first):
        number, folder = (signal.SIGINT, signal.SIGTERM)[turn % 2], tmp_path / f"run{at}"
        trainer, sending = kill_worker.make_trainer(folder, **options), Signal(number, at)
        trainer.add_callback(sending)
        with pytest.raises(
            TrainingInterrupted, match=rf"after step {at + 1}; .*checkpoint-{at + 1}\. .*last resumes from it"
        ) as caught:
            trainer.train()
        assert sending.fired == 1
        assert caught.value.signal == number
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        again = kill_worker.make_trainer(folder, seed=9, **options)
        again.train(resume_from_checkpoint="last")
        assert again.resumed_step == at + 1
        assert kill_worker.outcome(again) == expected


@pytest.mark.usefixtures("_usual_handlers")
def test_a_second_ctrl_c_stops_immediately(tmp_path: Path) -> None:
    trainer, sending = kill_worker.make_trainer(tmp_path / "run"), Signal(signal.SIGINT, at=3, twice=True)
    trainer.add_callback(sending)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    assert not isinstance(caught.value, TrainingInterrupted)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]


def run_command_with_default_signals(arguments: list[str]) -> int:
    """As started from a shell; a background process would make its children ignore Ctrl-C."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return cli.main(arguments)


@pytest.mark.slow
def test_train_command_stops_on_signals_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists, whole = str(tmp_path / "lists"), tmp_path / "whole"
    assert cli.main(["simulate", "prm_public", "--output-dir", str(tmp_path / "raw"), "--lists", "200"]) == 0
    assert cli.main(["prepare", "prm_public", "--raw-dir", str(tmp_path / "raw"), "--output-dir", lists]) == 0
    command = ["train", "--model", "prm", "--data", lists, "--set", "hidden_size=8", "--set", "intermediate_size=8"]
    command += ["--num_train_epochs", "3", "--per_device_train_batch_size", "16", "--disable_tqdm", "true"]
    command += ["--logging_strategy", "steps", "--logging_steps", "1"]
    assert cli.main([*command, "--output-dir", str(whole)]) == 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        run, log = tmp_path / f"run{code}", tmp_path / f"log{code}"
        training = warm.start(run_command_with_default_signals, [*command, "--output-dir", str(run)], log=log)
        assert training.pid is not None
        while not log.exists() or "'loss'" not in log.read_text():
            assert training.is_alive(), log.read_text()
            time.sleep(0.02)
        os.kill(training.pid, number)
        training.join(60)
        assert training.exitcode == code, log.read_text()[-2000:]
        (said,) = (line for line in log.read_text().splitlines() if line.startswith("hf-rerank: "))
        assert "--resume-from-checkpoint last" in said
        assert not (run / "model.safetensors").exists()
        assert cli.main([*command, "--output-dir", str(run), "--resume_from_checkpoint", "last"]) == 0
        assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert cli.main([*command, "--output-dir", str(tmp_path / "none"), "--resume_from_checkpoint", "last"]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
