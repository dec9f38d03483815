"""``CheckpointingTrainer``: a ``Trainer`` that resumes exactly where it was interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, Trainer, TrainerState

from hf_rerank.errors import InputError, TrainingStopped
from hf_rerank.storage import name_failures, verify
from hf_rerank.training.callbacks import CheckpointFlow
from hf_rerank.training.checkpoints import (
    READ,
    REMEDY,
    STATE,
    UNFINISHED,
    clean_up,
    find_newest_checkpoint,
    lock_run,
    publish,
    rotate,
    verify_checkpoint,
)
from hf_rerank.training.supported_options import SETUP_ERRORS, describe_setup_failure, find_untested_options

# Filled in from the evaluation lists, which may differ when a run resumes.
_RATES = ("item_unknown_rates", "user_unknown_rates")


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM, after the current step and a checkpoint of it.

    Attributes:
        signal: The number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class CheckpointingTrainer(Trainer):
    """A ``Trainer`` whose checkpoints are complete, verified, and enough to resume with bitwise equal results.

    It overrides one private method, ``_save_checkpoint``: upstream has no public hook between choosing a checkpoint's
    folder and writing to it, and writes under the final name. A test fails if upstream renames it.
    """

    def __init__(self, *, callbacks: list[Any] | None = None, **options: Any) -> None:
        self.flow = CheckpointFlow()
        self.resumed_step = 0
        self.resumed_rates: dict[str, list[float]] = {}
        self.checkpoints_kept: int | None = None
        # Last, after all callbacks that may request a checkpoint.
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
            trial: As in ``transformers.Trainer``.
            ignore_keys_for_eval: As in ``transformers.Trainer``.

        Raises:
            InputError: The checkpoint is incomplete, or not of this model; another process trains in the folder; or
                an option cannot be carried out, such as an optimizer that is not installed.
            OSError: A checkpoint could not be written; earlier ones are untouched.
            TrainingInterrupted: Ctrl-C or SIGTERM, after a checkpoint. A second one stops at once.
        """
        run, limit = Path(str(self.args.output_dir)), self.args.save_total_limit
        with lock_run(run) if self.args.should_save else nullcontext():
            if self.args.should_save:
                clean_up(run)
            checkpoint = self._find_checkpoint(resume_from_checkpoint)
            self.flow.signal, self.flow.best, self.flow.begun, self.resumed_step = None, None, False, 0
            self.resumed_rates = {}
            if checkpoint is not None:
                self._verify(checkpoint)
            self.prepare_state(checkpoint)
            # Upstream deletes in place and unverified, so it keeps all, and rotate() deletes.
            self.checkpoints_kept, self.args.save_total_limit = limit, None
            try:
                with _catch_signals(self.flow):
                    output = super().train(
                        None if checkpoint is None else str(checkpoint), trial, ignore_keys_for_eval
                    )
            except SETUP_ERRORS as error:
                if self.flow.begun or isinstance(error, InputError | TrainingStopped):
                    raise
                # Optimizer, schedule and wrapped model are made here, from the arguments.
                raise InputError(describe_setup_failure(error, find_untested_options(self.args))) from error
            finally:
                self.args.save_total_limit = limit
                self.is_in_train = False
            best = self.state.best_model_checkpoint
            if self.args.load_best_model_at_end and best is not None:
                # The weights that upstream has just loaded, unverified.
                verify(Path(best), lambda name: name.endswith(READ), REMEDY)
            if self.args.should_save and limit == 1 and best is not None and self.flow.signal is None:
                rotate(run, Path(best), limit, best)
        if self.flow.signal is not None:
            raise TrainingInterrupted(
                f"stopped by {'Ctrl-C' if self.flow.signal == signal.SIGINT else 'SIGTERM'} after step "
                f"{self.state.global_step}; newest checkpoint: {find_newest_checkpoint(run)}. The same command with "
                "--resume-from-checkpoint last resumes from it",
                self.flow.signal,
            )
        return output

    def prepare_state(self, checkpoint: Path | None) -> None:
        """Prepares the state that a subclass keeps in addition to the Trainer's; called before training begins.

        Args:
            checkpoint: A verified checkpoint to resume from. None: a fresh start.
        """

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """As upstream, but resuming from the last step trains no further; upstream would train one more step.

        The model, which ``model_init`` may have just created, gets the checkpoint's rates of unknown values.
        """
        for name, rates in self.resumed_rates.items():
            setattr(self.model.config, name, rates)  # type: ignore[union-attr]
        passes, steps_a_pass, *others, max_steps = super().set_initial_training_values(args, dataloader)
        if self.resumed_step >= max_steps:
            passes = min(passes, self.resumed_step // steps_a_pass)
        return (passes, steps_a_pass, *others, max_steps)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run, step = Path(str(self.args.output_dir)), self.state.global_step
        staging, final = run / f"{UNFINISHED}{step}", run / f"checkpoint-{step}"
        written, done = staging / final.name, False
        try:
            with name_failures(final, self._estimate_bytes()):
                # Upstream writes to the folder checkpoint-N inside this one.
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

    def _find_checkpoint(self, wanted: str | bool | None) -> Path | None:
        """Finds the checkpoint folder that ``resume_from_checkpoint`` names."""
        if not wanted:
            return None
        if wanted not in (True, "last", "auto"):
            return Path(str(wanted))
        newest = find_newest_checkpoint(Path(str(self.args.output_dir)))
        if newest is None and wanted != "auto":
            raise InputError(
                f"{self.args.output_dir} has no complete checkpoint to resume from: leave --resume-from-checkpoint "
                "out, or give auto, which resumes if it can and starts afresh otherwise"
            )
        return newest

    def _verify(self, folder: Path) -> None:
        """Refuses a checkpoint from which the run would not resume exactly; records its step and best checkpoint."""
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
            if name in _RATES and saved.unknown_rate is None:
                self.resumed_rates[name] = theirs
            elif ours != theirs:
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

    def _estimate_bytes(self) -> int:
        """Estimates the bytes of a checkpoint: weights and optimizer."""
        assert self.model is not None
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for state in () if self.optimizer is None else self.optimizer.state.values():
            tensors += [value for value in state.values() if torch.is_tensor(value)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _catch_signals(flow: CheckpointFlow) -> Iterator[None]:
    """Records the first Ctrl-C or SIGTERM in ``flow``; signals that the caller handles are left alone."""
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
