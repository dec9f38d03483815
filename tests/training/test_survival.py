"""Trainings that are killed, stopped, short of disk or given damaged files: the same bits, or a named error.

Every fault here is real (a process that is killed, a file that is changed, a write that fails), and every test asserts
that its fault fired.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import kill_worker
import pytest
import torch
import warm
from transformers import Trainer, TrainerCallback

from hf_rerank import InputError, Reranker, RerankTrainer, cli
from hf_rerank.errors import TrainingStopped
from hf_rerank.storage import MANIFEST, verify
from hf_rerank.training import checkpointing_trainer, checkpoints
from hf_rerank.training.checkpointing_trainer import TrainingInterrupted
from hf_rerank.training.checkpoints import find_newest_checkpoint, list_checkpoints, verify_checkpoint
from hf_rerank.training.datasets import encode_lists

STATE_FILES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


# -------------------------------------------------------------------------------------------------------------- killed


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


# ----------------------------------------------------------------------------------------------------- at every step


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of 10 steps, with a checkpoint of each, and its outcome beside it."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    kill_worker.train(folder, EVERY_STEP, folder.with_name("outcome.json"))
    return folder


EVERY_STEP: dict[str, Any] = {"save_steps": 1, "eval_steps": 1, "save_total_limit": None}


@pytest.mark.parametrize("chain", [(1, 4, 5, 6, 9), (3, 10), (2, 7, 8)])
def test_going_on_at_any_step_and_again(unbroken: Path, tmp_path: Path, chain: tuple[int, ...]) -> None:
    """Steps 5 and 10 end a pass; each training goes on from one that had gone on itself."""
    expected = json.loads(unbroken.with_name("outcome.json").read_text())
    source = unbroken
    for number, step in enumerate(chain):
        folder = tmp_path / str(number)
        trainer = kill_worker.make_trainer(folder, seed=9, **EVERY_STEP)
        checkpoint = source / f"checkpoint-{step}"
        trainer.train(resume_from_checkpoint=str(checkpoint))
        if step == 10:  # nothing was left to do, and nothing was done
            assert list_checkpoints(folder) == []
            assert kill_worker.digest(dict(trainer.model.state_dict())) == expected["model"]
            continue
        found = kill_worker.outcome(trainer)
        assert found == {name: value for name, value in expected.items() if name != "resumed_from"}, step
        source = folder


def test_nothing_is_trained_after_a_last_step_in_the_middle_of_a_pass(tmp_path: Path) -> None:
    """Upstream would train a step more."""
    options = {**EVERY_STEP, "max_steps": 7}
    kill_worker.train(tmp_path / "run", options, tmp_path / "outcome.json")
    expected = json.loads((tmp_path / "outcome.json").read_text())
    kill_worker.train(tmp_path / "run", options, tmp_path / "again.json", seed=9)
    again = json.loads((tmp_path / "again.json").read_text())
    assert (expected.pop("resumed_from"), again.pop("resumed_from")) == (0, 7)
    assert again == expected


# ----------------------------------------------------------------------------------------------- damaged checkpoints


@pytest.fixture
def copy(unbroken: Path, tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 3 and 4."""
    folder = tmp_path / "copy"
    for step in (3, 4):
        shutil.copytree(unbroken / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return folder


@pytest.fixture
def resume(copy: Path) -> Callable[..., Any]:
    trainer = kill_worker.make_trainer(copy, **EVERY_STEP)
    return lambda checkpoint: trainer.train(resume_from_checkpoint=checkpoint)


def deleted(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def of_the_step_before(path: Path) -> None:
    shutil.copyfile(path.parent.with_name("checkpoint-3") / path.name, path)


@pytest.mark.parametrize("change", [deleted, emptied, cut, flipped, of_the_step_before])
def test_no_file_of_a_checkpoint_changes_unseen(copy: Path, resume: Callable[..., Any], change: Any) -> None:
    checkpoint = copy / "checkpoint-4"
    fired = set()
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        change(path)
        if path.exists() and path.read_bytes() == content:
            continue  # the file was the same in both steps
        fired.add(path.name)
        for wanted in (str(checkpoint), True, "last", "auto"):
            if path.name == MANIFEST and change is deleted and wanted != str(checkpoint):
                continue  # then it is unfinished, and passed over: see below
            with pytest.raises(InputError) as caught:
                resume(wanted)
            message = str(caught.value)
            assert "\n" not in message
            # With the manifest of another step, it is the other files that differ.
            named = str(checkpoint) if path.name == MANIFEST else str(path)
            assert named in message, message
        path.write_bytes(content)
    assert fired >= {*STATE_FILES, "model.safetensors", MANIFEST}
    if change is not of_the_step_before:
        assert fired == {path.name for path in checkpoint.iterdir()}
    verify_checkpoint(checkpoint)


def test_an_unfinished_checkpoint_is_passed_over_by_last_only(copy: Path, resume: Callable[..., Any]) -> None:
    (copy / "checkpoint-4" / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="checkpoint-4 in .*passed over"):
        assert find_newest_checkpoint(copy) == copy / "checkpoint-3"
    with pytest.raises(InputError, match=r"checkpoint-4 has no manifest\.json of a checkpoint: it is unfinished"):
        resume(str(copy / "checkpoint-4"))
    (copy / "checkpoint-3" / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="checkpoint-3, checkpoint-4"), pytest.raises(InputError, match="no complete"):
        resume("last")


@pytest.mark.parametrize("name", sorted({*STATE_FILES, "config.json"}))
def test_a_checkpoint_saved_without_a_part_of_its_state(copy: Path, resume: Callable[..., Any], name: str) -> None:
    """The manifest is in order, and the part is not in it: as save_only_model would write it."""
    checkpoint = copy / "checkpoint-4"
    (checkpoint / name).unlink()
    checkpoints.write_manifest(checkpoint, step=4, number=9, processes=1)
    verify_checkpoint(checkpoint)
    with pytest.raises(InputError, match=f"checkpoint-4 was saved without {name}"):
        resume("last")


def test_checkpoints_that_are_not_those_of_this_run(copy: Path, resume: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint .*checkpoint-7 \(.*holds checkpoint-3, checkpoint-4\)"):
        resume(str(copy / "checkpoint-7"))
    with pytest.raises(InputError, match="no complete checkpoint to resume from"):
        kill_worker.make_trainer(tmp_path / "new").train(resume_from_checkpoint=True)
    shutil.copytree(copy / "checkpoint-3", copy / "checkpoint-9")
    with pytest.raises(InputError, match="checkpoint-9 holds the checkpoint of step 3"):
        resume(str(copy / "checkpoint-9"))
    other = kill_worker.make_trainer(copy, **EVERY_STEP)
    other.model.config.hidden_dropout_prob = 0.3
    with pytest.raises(InputError, match=r"trained with hidden_dropout_prob=0\.2, this model has 0\.3"):
        other.train(resume_from_checkpoint=str(copy / "checkpoint-3"))
    with pytest.raises(InputError, match="was written by 1 processes, this run has 2"):
        verify_checkpoint(copy / "checkpoint-3", processes=2)


def test_the_best_checkpoint_moves_with_its_folder_and_must_be_whole(unbroken: Path, tmp_path: Path) -> None:
    expected = json.loads(unbroken.with_name("outcome.json").read_text())
    best = f"checkpoint-{expected['best'][0]}"
    later = max(step for step in range(1, 11) if step != expected["best"][0])
    assert expected["best"][0] < later
    moved = tmp_path / "moved"
    shutil.copytree(unbroken, moved)

    def skip_to() -> RerankTrainer:
        trainer = kill_worker.make_trainer(moved, **EVERY_STEP)
        trainer.train(resume_from_checkpoint=str(moved / f"checkpoint-{later}"))
        return trainer

    trainer = skip_to()
    assert trainer.state.best_model_checkpoint == str(moved / best)
    assert kill_worker.digest(dict(trainer.model.state_dict())) == expected["model"]
    flipped(moved / best / "model.safetensors")
    with pytest.raises(InputError, match=rf"{best}/model\.safetensors is damaged or changed"):
        skip_to()


def test_the_best_checkpoint_that_is_gone_is_missed(unbroken: Path, tmp_path: Path) -> None:
    state = json.loads((unbroken / "checkpoint-10" / "trainer_state.json").read_text())
    lone = tmp_path / "lone" / "checkpoint-10"
    shutil.copytree(unbroken / "checkpoint-10", lone)
    state["best_model_checkpoint"] = "/nowhere/checkpoint-2"
    (lone / "trainer_state.json").write_text(json.dumps(state))
    checkpoints.write_manifest(lone, step=10, number=1, processes=1)
    with pytest.raises(InputError, match=r"the best checkpoint so far, .*lone/checkpoint-2, is gone"):
        kill_worker.make_trainer(tmp_path / "run", **EVERY_STEP).train(resume_from_checkpoint=str(lone))


# ------------------------------------------------------------------------------------------------- old checkpoints


def test_a_folder_with_the_checkpoints_of_an_earlier_run(tmp_path: Path) -> None:
    """The newest is the one written last, not the one of the highest step; the best and the newest are kept."""
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


def test_nothing_older_is_deleted_before_the_newest_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is damaged as soon as it has its name."""
    publish, fired = checkpoints.publish, []

    def damaging(written: Path, final: Path, **facts: Any) -> None:
        publish(written, final, **facts)
        if final.name == "checkpoint-4":
            flipped(final / "optimizer.pt")
            fired.append(final)

    monkeypatch.setattr(checkpointing_trainer, "publish", damaging)
    trainer = kill_worker.make_trainer(tmp_path / "run", save_total_limit=1, load_best_model_at_end=False)
    with pytest.raises(InputError, match=r"checkpoint-4/optimizer\.pt is damaged or changed"):
        trainer.train()
    assert len(fired) == 1
    verify_checkpoint(tmp_path / "run" / "checkpoint-2")


def test_what_a_killed_run_left_is_removed(tmp_path: Path, copy: Path) -> None:
    """And a checkpoint that was about to be replaced is put back."""
    shutil.move(copy / "checkpoint-4", copy / "tmp-replaced-checkpoint-4")
    for name in ("tmp-checkpoint-5/checkpoint-5", "tmp-deleted-checkpoint-2"):
        (copy / name).mkdir(parents=True)
        (copy / name / "model.safetensors").write_bytes(b"half")
    checkpoints.clean_up(copy)
    assert {path.name for path in copy.iterdir()} == {"checkpoint-3", "checkpoint-4"}
    verify_checkpoint(copy / "checkpoint-4")


def hold(folder: Path, held: Path) -> None:
    """Holds the folder of a run, says so, and waits to be killed."""
    with checkpoints.lock_run(folder):
        held.touch()
        time.sleep(300)


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    """The second is refused by the number of the first process, which may be alone again once that has ended."""
    folder, held = tmp_path / "run", tmp_path / "held"
    holder = warm.start(hold, folder, held, log=tmp_path / "log")
    try:
        while not held.exists():
            assert holder.is_alive(), (tmp_path / "log").read_text()
            time.sleep(0.01)
        with pytest.raises(InputError, match=f"run is being trained in by process {holder.pid}: wait for it"):
            kill_worker.make_trainer(folder).train()
    finally:
        holder.kill()
        holder.join()
    trainer = kill_worker.make_trainer(folder, max_steps=2)
    trainer.train()
    assert not (folder / checkpoints.LOCK).exists()


# -------------------------------------------------------------------------------------------------- writes that fail


def fill_the_disk(folder: Path, limits: tuple[int, ...], report: Path) -> None:
    """Trains, and saves again under each limit on the size of files."""
    torch.set_num_threads(1)
    trainer = kill_worker.make_trainer(folder, save_total_limit=None)
    trainer.train(resume_from_checkpoint="auto")
    before = sorted(path.name for path in folder.iterdir())
    again = kill_worker.make_trainer(folder, num_train_epochs=3, save_total_limit=None)
    results = []
    # What is printed goes to a file, too.
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


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files makes writes fail as a full disk does, in Python, in torch and in safetensors."""
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
    assert before == after, "no new name, and nothing half-written"
    for path in list_checkpoints(folder):
        verify_checkpoint(path)
    trainer = kill_worker.make_trainer(folder, num_train_epochs=3, save_total_limit=None)
    trainer.train(resume_from_checkpoint="last")
    assert trainer.resumed_step == 10
    assert trainer.state.global_step == 15


@pytest.mark.parametrize("what", ["checkpoint", "model"])
def test_a_failed_save_leaves_the_older_files(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk gives out at the Nth file brought to it, for every N: all the old files are there, or all the new."""
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
    # Each file and the folder are brought to the disk, then the folder that holds the new name.
    assert number - 1 == untouched + replaced == calls_of(what)
    assert replaced <= 1, "only the last call comes after the new files are in place"


def calls_of(what: str) -> int:
    """How often a save must bring something to the disk: each file, the folder they are in, and that of the name."""
    files = 6 if what == "model" else 11
    of_the_processor = 2  # which writes its config by itself, and brings that to the disk
    return files + 1 + 1 + 1 + of_the_processor


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    trainer = kill_worker.make_trainer(tmp_path / "run", max_steps=2)
    (tmp_path / "file").write_text("here first")
    with pytest.raises(InputError, match="file is a file: expected a folder"):
        trainer.save_model(str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"model/\.saving\.lock could not be written"):
        trainer.save_model(str(tmp_path / "file" / "model"))
    assert (tmp_path / "file").read_text() == "here first"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    trainer = kill_worker.make_trainer(tmp_path / "run", max_steps=2)
    (tmp_path / "run").chmod(0o500)
    with pytest.raises(OSError, match=r"run could not be written.*Permission denied"):
        trainer.train()
    (tmp_path / "run").chmod(0o700)


# ----------------------------------------------------------------------------------------------------- not a number


class Break(TrainerCallback):
    """Breaks something after step 3."""

    def __init__(self, what: str) -> None:
        self.what, self.fired = what, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 3 and not self.fired:
            self.fired += 1
            weight = model.scorer.weight
            if self.what == "gradient":
                self.hook = weight.register_hook(lambda gradient: gradient * float("inf"))
            elif self.what == "large gradient":
                self.hook = weight.register_hook(lambda gradient: torch.full_like(gradient, 1e38))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 4 and self.what == "weight":
            self.fired += 1
            with torch.no_grad():
                model.scorer.weight[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("what", "message", "last"),
    [
        ("gradient", r"gradient is not finite at step 4: that of scorer\.weight", 3),
        ("large gradient", "gradient is not finite at step 4: that of all weights together", 3),
        ("weight", r"weights scorer\.weight are not finite.*\(step 4\)", 3),
    ],
)
def test_what_is_not_finite_is_never_saved(tmp_path: Path, what: str, message: str, last: int) -> None:
    breaking = Break(what)
    trainer = kill_worker.make_trainer(tmp_path / "run", **EVERY_STEP)
    trainer.add_callback(breaking)
    with pytest.raises(TrainingStopped, match=message) as caught:
        trainer.train()
    assert breaking.fired
    assert "\n" not in str(caught.value)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [
        f"checkpoint-{n}" for n in range(1, last + 1)
    ]
    for path in list_checkpoints(tmp_path / "run"):
        weights = Reranker.from_pretrained(path).model.state_dict()
        assert all(value.isfinite().all() for value in weights.values())
    if what == "weight":
        with pytest.raises(TrainingStopped, match=r"scorer\.weight are not finite"):
            trainer.save_model()
        assert not (tmp_path / "run" / "model.safetensors").exists()


def encoded(trainer: RerankTrainer, rows: list[dict[str, Any]]) -> Any:
    return encode_lists(
        datasets.Dataset.from_list(rows), trainer.list_collator, trainer.args, train=True, use_cache=False
    )


def test_a_metric_that_is_no_number_chooses_nothing(tmp_path: Path) -> None:
    rows = kill_worker.make_lists(20, 2).to_list()
    trainer = kill_worker.make_trainer(tmp_path / "run", no_click="skip")
    for row in rows:
        row["click"] = [0] * len(row["click"])
    trainer.eval_dataset = encoded(trainer, rows)
    with pytest.raises(TrainingStopped, match=r"eval_ndcg@10, which chooses the best checkpoint, is nan at step 2"):
        trainer.train()
    assert list_checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused_with_list_and_column(tmp_path: Path, value: float) -> None:
    rows = kill_worker.make_lists(72, 1).to_list()
    rows[40]["price"][1] = value
    trainer = kill_worker.make_trainer(tmp_path / "run")
    trainer.train_dataset = encoded(trainer, rows)
    with pytest.raises(InputError, match=r"1-40") as caught:
        trainer.train()
    assert "price" in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ stopped


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
    """As a program starts with; test runners have their own."""
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


@pytest.mark.usefixtures("_usual_handlers")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_signal_ends_the_step_and_saves(tmp_path: Path, name: str) -> None:
    """In the middle of a pass, at its end (step 5), and at the very end (step 10); Ctrl-C and SIGTERM in turn."""
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
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    trainer, sending = kill_worker.make_trainer(tmp_path / "run"), Signal(signal.SIGINT, at=3, twice=True)
    trainer.add_callback(sending)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    assert not isinstance(caught.value, TrainingInterrupted)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]


def the_command(arguments: list[str]) -> int:
    """As a shell starts it: one that runs in the background has its children ignore Ctrl-C."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return cli.main(arguments)


@pytest.mark.slow
def test_the_command_stops_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists, whole = str(tmp_path / "lists"), tmp_path / "whole"
    assert cli.main(["simulate", "prm_public", "--output-dir", str(tmp_path / "raw"), "--lists", "200"]) == 0
    assert cli.main(["prepare", "prm_public", "--raw-dir", str(tmp_path / "raw"), "--output-dir", lists]) == 0
    command = ["train", "--model", "prm", "--data", lists, "--set", "hidden_size=8", "--set", "intermediate_size=8"]
    command += ["--num_train_epochs", "3", "--per_device_train_batch_size", "16", "--disable_tqdm", "true"]
    command += ["--logging_strategy", "steps", "--logging_steps", "1"]
    assert cli.main([*command, "--output-dir", str(whole)]) == 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        run, log = tmp_path / f"run{code}", tmp_path / f"log{code}"
        training = warm.start(the_command, [*command, "--output-dir", str(run)], log=log)
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


# ------------------------------------------------------------------------------------------------ the one private name


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
