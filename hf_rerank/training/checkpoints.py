"""Checkpoints that are whole or not there: a run that is killed at any moment goes on as if nothing had happened.

A checkpoint is written under another name, brought to the disk with a manifest of its files' digests, and only then
named ``checkpoint-N``. Older ones are deleted after it has been verified. A run goes on from a checkpoint only if
every file of it is the one that was saved.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainerState

from hf_rerank.errors import InputError
from hf_rerank.storage import MANIFEST, naming_failures, read_manifest, remove_leftovers, sync, verify, write_manifest

STATE = "trainer_state.json"
LOCK = "training.lock"
# What begins with these was never finished, or is no longer wanted: the next start removes it.
UNFINISHED, REPLACED, DELETED = "tmp-checkpoint-", "tmp-replaced-", "tmp-deleted-"
REMEDY = "go on from another checkpoint, or delete this one; a run never goes on with a part of its state made new"
# Which files of a checkpoint the Trainer may read; others, such as notes, are nobody's business.
_READ = (".bin", ".json", ".pt", ".pth", ".safetensors")


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM, after the step at hand and a checkpoint of it.

    Attributes:
        signal: The number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


# -------------------------------------------------------------------------------------------- the checkpoints of a run


def checkpoints_in(run: Path) -> list[Path]:
    """The folders ``checkpoint-N`` of a run, by N; whether they are complete is not looked at."""
    found = [(_step_of(path), path) for path in run.glob("checkpoint-*") if path.is_dir()]
    return [path for step, path in sorted((step, path) for step, path in found if step is not None)]


def newest_checkpoint(run: Path) -> Path | None:
    """The complete checkpoint that was written last; None if there is none.

    That is not always the one of the highest step: a run may have gone back to an earlier one. Folders without a
    manifest were never finished, or written by something else; a warning names them.

    Raises:
        InputError: A manifest is damaged.
    """
    complete, others = [], []
    for folder in checkpoints_in(run):
        manifest = read_manifest(folder)
        if manifest is None or "number" not in manifest:
            others.append(folder.name)
        else:
            complete.append((manifest["number"], folder))
    if others:
        warnings.warn(
            f"{', '.join(others)} in {run}: passed over, unfinished or not written by this library (no {MANIFEST} of "
            "a checkpoint)",
            UserWarning,
            stacklevel=2,
        )
    return max(complete)[1] if complete else None


def verify_checkpoint(folder: Path, needs: tuple[str, ...] = (), processes: int = 1) -> dict[str, Any]:
    """Checks every file of a checkpoint.

    Args:
        folder: The checkpoint.
        needs: Files without which a run could not go on as it was.
        processes: How many processes will go on.

    Returns:
        Its manifest.

    Raises:
        InputError: There is no checkpoint; or a file is missing, cut, changed, or of another step.
    """
    if not folder.is_dir():
        there = ", ".join(path.name for path in checkpoints_in(folder.parent)) or "no checkpoint"
        raise InputError(f"there is no checkpoint {folder} ({folder.parent} holds {there})")
    manifest = verify(folder, lambda name: name.endswith(_READ), REMEDY)
    if manifest is None or "number" not in manifest:
        raise InputError(
            f"{folder} has no {MANIFEST} of a checkpoint: it is unfinished or was not written by this library, so "
            "nothing says whether it is whole; go on from another checkpoint, or load its weights with "
            "from_pretrained and train anew"
        )
    step = _step_of(folder)
    if step not in (None, manifest["step"]):
        raise InputError(f"{folder} holds the checkpoint of step {manifest['step']}: the folder was renamed; {REMEDY}")
    if manifest["processes"] != processes:
        raise InputError(
            f"{folder} was written by {manifest['processes']} processes, this run has {processes}: their random "
            "states and batches would differ; start as many"
        )
    for name in needs:
        if name not in manifest["files"]:
            raise InputError(f"{folder} was saved without {name} (see save_only_model): {REMEDY}")
    return manifest


def publish(written: Path, final: Path, **facts: Any) -> None:
    """Gives a written checkpoint its manifest and its final name.

    Args:
        written: The folder with all files, on the same disk.
        final: Its name; a checkpoint of that name is replaced.
        facts: Of the manifest.
    """
    run = final.parent
    numbers = [manifest.get("number", 0) for path in checkpoints_in(run) if (manifest := _manifest_or_none(path))]
    write_manifest(written, number=1 + max(numbers, default=0), **facts)
    replaced = run / f"{REPLACED}{final.name}"
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    os.rename(written, final)
    sync(run)
    shutil.rmtree(replaced, ignore_errors=True)


def rotate(run: Path, newest: Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest complete checkpoints beyond ``limit``, once the newest is verified; never it nor the best.

    Args:
        run: The folder of the run.
        newest: The checkpoint just written.
        limit: How many to keep. None or 0: all.
        best: The best one.
    """
    found = [
        (manifest["number"], path)
        for path in checkpoints_in(run)
        if (manifest := _manifest_or_none(path)) is not None and "number" in manifest
    ]
    if not limit or limit < 0 or len(found) <= limit:
        return
    verify(newest, lambda name: True, REMEDY)
    kept = {newest.resolve(), *(() if best is None else (Path(best).resolve(),))}
    surplus = len(found) - max(limit, len(kept))
    for _, path in sorted(found):
        if surplus > 0 and path.resolve() not in kept:
            delete(path)
            surplus -= 1


def delete(checkpoint: Path) -> None:
    """Deletes a checkpoint under another name, so that half of one never bears the name of a whole one."""
    aside = checkpoint.with_name(f"{DELETED}{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)


def clean(run: Path) -> None:
    """Removes what a killed run left unfinished, and puts back a checkpoint that was about to be replaced."""
    for replaced in run.glob(f"{REPLACED}*"):
        final = run / replaced.name.removeprefix(REPLACED)
        if not final.exists():
            os.rename(replaced, final)
    for left in (*run.glob(f"{UNFINISHED}*"), *run.glob(f"{REPLACED}*"), *run.glob(f"{DELETED}*")):
        shutil.rmtree(left, ignore_errors=True)
    remove_leftovers(run)


@contextmanager
def owned(run: Path) -> Iterator[None]:
    """Holds the folder of a run, so that two trainings never write to it at once.

    The lock belongs to the process and ends with it, however it ends; data-loader workers do not inherit it.

    Raises:
        InputError: Another process trains there; it is named.
        OSError: Nothing can be written there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with naming_failures(run):
        run.mkdir(parents=True, exist_ok=True)
        file = _locked(run / LOCK, fcntl.lockf, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        (run / LOCK).unlink(missing_ok=True)
        file.close()


def _locked(path: Path, lock: Any, how: int) -> Any:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            lock(file, how)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            process = file.read().strip() or "another"
            file.close()
            raise InputError(
                f"{path.parent} is being trained in by process {process}: wait for it, or choose another folder"
            ) from None
        # The process before may have removed the file between opening and locking it.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
        file.close()


def _manifest_or_none(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None also if it is damaged: such a folder is left as it is."""
    try:
        return read_manifest(folder)
    except InputError:
        return None


def _step_of(folder: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else None


# --------------------------------------------------------------------------------------------------------- the trainer


class CheckpointFlow(TrainerCallback):
    """Says when to save and when to stop, so that a run that goes on from a checkpoint repeats and leaves out nothing.

    Attributes:
        signal: The signal that asked training to stop; None so far.
        best: The best checkpoint of a run that goes on.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.best: Path | None = None
        self._save_at_the_end_of_the_pass = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.best is not None:
            # Where it is now: the state names the folder in which it was written.
            state.best_model_checkpoint = str(self.best)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.signal is not None:
            control.should_save = control.should_training_stop = True
        # The log and the evaluation at the end of a pass come after this; a checkpoint before them would lose them.
        self._save_at_the_end_of_the_pass = control.should_save and _ends_a_pass(state)
        control.should_save = control.should_save and not self._save_at_the_end_of_the_pass

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.signal is not None and not _ends_a_pass(state):
            # The unbroken run would neither log nor evaluate here.
            control.should_log = control.should_evaluate = control.should_save = False
        elif self._save_at_the_end_of_the_pass:
            control.should_save = True
        self._save_at_the_end_of_the_pass = False


def _ends_a_pass(state: TrainerState) -> bool:
    return state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()


class CheckpointingTrainer(Trainer):
    """A ``Trainer`` whose checkpoints are complete, verified, and enough to go on to the same bits.

    It overrides one private method, ``_save_checkpoint``: upstream has no public place between choosing a checkpoint's
    folder and writing to it, and writes under the final name. A test fails if upstream renames it.
    """

    def __init__(self, *, callbacks: list[Any] | None = None, **options: Any) -> None:
        self.flow = CheckpointFlow()
        self.resumed_step = 0
        self.checkpoints_kept: int | None = None
        # Last, after all that ask for a checkpoint.
        super().__init__(callbacks=[*(callbacks or []), self.flow], **options)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains, as ``transformers.Trainer.train``.

        Args:
            resume_from_checkpoint: A checkpoint; ``True`` or ``"last"``: the newest complete one of the run's folder;
                ``"auto"``: that, or a fresh start if there is none.
            trial: As of ``transformers.Trainer``.
            ignore_keys_for_eval: As of ``transformers.Trainer``.

        Raises:
            InputError: The checkpoint is not whole, or not of this model; or another process trains in the folder.
            OSError: A checkpoint could not be written; those before are untouched.
            TrainingInterrupted: Ctrl-C or SIGTERM, after a checkpoint. A second one stops at once.
        """
        run, limit = Path(str(self.args.output_dir)), self.args.save_total_limit
        with owned(run) if self.args.should_save else nullcontext():
            if self.args.should_save:
                clean(run)
            checkpoint = self._checkpoint(resume_from_checkpoint)
            self.flow.signal, self.flow.best, self.resumed_step = None, None, 0
            if checkpoint is not None:
                self._verify(checkpoint)
            self.prepare_state(checkpoint)
            # Upstream deletes in place and unverified, so it keeps all, and rotate() deletes.
            self.checkpoints_kept, self.args.save_total_limit = limit, None
            try:
                with _noticing_signals(self.flow):
                    output = super().train(
                        None if checkpoint is None else str(checkpoint), trial, ignore_keys_for_eval
                    )
            finally:
                self.args.save_total_limit = limit
                self.is_in_train = False
            best = self.state.best_model_checkpoint
            if self.args.load_best_model_at_end and best is not None:
                # The weights that upstream has just loaded, unverified.
                verify(Path(best), lambda name: name.endswith(_READ), REMEDY)
            if self.args.should_save and limit == 1 and best is not None and self.flow.signal is None:
                rotate(run, Path(best), limit, best)
        if self.flow.signal is not None:
            raise TrainingInterrupted(
                f"stopped by {'Ctrl-C' if self.flow.signal == signal.SIGINT else 'SIGTERM'} after step "
                f"{self.state.global_step}; newest checkpoint: {newest_checkpoint(run)}. The same command with "
                "--resume_from_checkpoint last goes on from it",
                self.flow.signal,
            )
        return output

    def prepare_state(self, checkpoint: Path | None) -> None:
        """Called before a training begins: for what subclasses keep beside the Trainer's own state.

        Args:
            checkpoint: A verified checkpoint to go on from. None: a fresh start.
        """

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """As upstream, but no pass after the last step: upstream would train a step more from its checkpoint."""
        passes, steps_a_pass, *others, max_steps = super().set_initial_training_values(args, dataloader)
        if self.resumed_step >= max_steps:
            passes = min(passes, self.resumed_step // steps_a_pass)
        return (passes, steps_a_pass, *others, max_steps)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run, step = Path(str(self.args.output_dir)), self.state.global_step
        staging, final = run / f"{UNFINISHED}{step}", run / f"checkpoint-{step}"
        written, done = staging / final.name, False
        try:
            with naming_failures(final, self._bytes()):
                # Upstream writes to the folder checkpoint-N of this one.
                self.args.output_dir = str(staging)
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.state.best_model_checkpoint == str(written):
                    self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self.state.save_to_json(str(written / STATE))
                    publish(written, final, step=step, processes=self.args.world_size)
                    staging.rmdir()
                    rotate(run, final, self.checkpoints_kept, self.state.best_model_checkpoint)
                done = True
        finally:
            self.args.output_dir = str(run)
            if not done:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _checkpoint(self, wanted: str | bool | None) -> Path | None:
        """The folder that ``resume_from_checkpoint`` means."""
        if not wanted:
            return None
        if wanted not in (True, "last", "auto"):
            return Path(str(wanted))
        newest = newest_checkpoint(Path(str(self.args.output_dir)))
        if newest is None and wanted != "auto":
            raise InputError(
                f"{self.args.output_dir} has no complete checkpoint to go on from: leave --resume_from_checkpoint "
                "out, or say auto, which goes on if it can and else starts afresh"
            )
        return newest

    def _verify(self, folder: Path) -> None:
        """Refuses a checkpoint from which the run would not go on exactly; notes its step and best checkpoint."""
        processes = self.args.world_size
        states = [f"rng_state_{number}.pth" for number in range(processes)] if processes > 1 else ["rng_state.pth"]
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            states += ["optimizer.pt", "scheduler.pt"]
        manifest = verify_checkpoint(folder, (STATE, "config.json", *states), processes)
        assert self.model is not None
        kind: Any = type(self.model.config)
        saved = kind.from_pretrained(folder)
        for name in kind.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys():
            ours, theirs = getattr(self.model.config, name), getattr(saved, name)
            if ours != theirs:
                raise InputError(
                    f"{folder} was trained with {name}={theirs!r}, this model has {ours!r}: give the model the same "
                    "options, or start afresh from the checkpoint's weights with from_pretrained"
                )
        state = TrainerState.load_from_json(str(folder / STATE))
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            recorded = Path(state.best_model_checkpoint)
            places = (folder.parent / recorded.name, recorded)
            best = next((place for place in places if place.is_dir()), None)
            if best is None:
                raise InputError(
                    f"the best checkpoint so far, {places[0]}, is gone, and load_best_model_at_end needs it: put it "
                    "back, or set load_best_model_at_end to false"
                )
            verify_checkpoint(best, processes=processes)
            self.flow.best = best
        self.resumed_step = manifest["step"]

    def _bytes(self) -> int:
        """About how many bytes a checkpoint has: weights and optimizer."""
        assert self.model is not None
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for state in () if self.optimizer is None else self.optimizer.state.values():
            tensors += [value for value in state.values() if torch.is_tensor(value)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _noticing_signals(flow: CheckpointFlow) -> Iterator[None]:
    """Notes the first Ctrl-C or SIGTERM in ``flow``; leaves alone what the caller handles in a way of his own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()
    former: dict[int, Any] = {}

    def notice(number: int, frame: Any) -> None:
        if os.getpid() == owner:
            flow.signal = number
            restore()
        elif number == signal.SIGTERM:  # in a data-loader worker, which inherits this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def restore() -> None:
        for number, handler in former.items():
            if signal.getsignal(number) is notice:
                signal.signal(number, handler)

    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:
            former[number] = signal.signal(number, notice)
    try:
        yield
    finally:
        restore()
