"""Callbacks: health warnings, a figure, the results, and when to save, log and evaluate."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from hf_rerank.errors import InputError
from hf_rerank.evaluation.plots import plot_training, require_matplotlib
from hf_rerank.principled import PrincipledObjective

# Above this share of collapsed lists (see ``obedience``), or this multiple of the norm that gradients are clipped to.
COLLAPSED_SHARE = 0.1
EXPLODING_NORM = 100.0


class HealthCallback(TrainerCallback):
    """Warns once of collapsed scores (all equal), and once of exploding gradients.

    Args:
        objective: Objective of the training; the warnings name its weights.
    """

    def __init__(self, objective: PrincipledObjective) -> None:
        self.objective = objective
        self.warned: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **others: Any) -> None:
        logs = logs or {}
        share = logs.get("collapsed_share", 0.0)
        if share > COLLAPSED_SHARE:
            self._warn(
                "collapse",
                f"the scores of {share:.0%} of the lists have a spread below 0.001 (step {state.global_step}): "
                "equal scores obey both principles and are useless; "
                f"{self._remedy(logs, 'or set a warmup')}",
            )
        limit = EXPLODING_NORM * (args.max_grad_norm or 1.0)
        norm = logs.get("grad_norm", 0.0)
        if norm > limit:
            clipped = f"clipped to max_grad_norm={args.max_grad_norm}" if args.max_grad_norm else "not clipped"
            self._warn(
                "explosion",
                f"the gradient norm is {norm:.3g} (step {state.global_step}), {clipped}: the training may explode; "
                f"{self._remedy(logs, 'or learning_rate')}",
            )

    def _remedy(self, logs: dict[str, float], otherwise: str) -> str:
        """Names what to lower: the weight of the term that is largest in the loss."""
        parts = {"learning_rate": logs.get("task_loss", 0.0) + logs.get("further_task_loss", 0.0)}
        weights = {f"{term.name}_weight": term.weight for term in self.objective.terms}
        for term in self.objective.terms:
            parts[f"{term.name}_weight"] = term.weight * logs.get(f"{term.name}_loss", 0.0)
        largest = max(parts, key=lambda name: parts[name])
        if largest == "learning_rate":
            return f"lower {' or '.join(parts)}"
        share = parts[largest] / sum(parts.values())
        return f"lower {largest} (now {weights[largest]:g}, its term is {share:.0%} of the loss), {otherwise}"

    def _warn(self, what: str, message: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            warnings.warn(message, UserWarning, stacklevel=2)


class PlotCallback(TrainerCallback):
    """Redraws ``training.png`` at every evaluation and at the end of training, on the main process.

    Args:
        folder: Folder of the figure. None: ``plots`` in the training's output folder.

    Raises:
        InputError: matplotlib is missing.

    Attributes:
        drawn: Path of the figure; None until it is drawn.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        require_matplotlib()
        self.folder = folder
        self.drawn: Path | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._draw(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._draw(args, state)

    def _draw(self, args: Any, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(self.folder or Path(args.output_dir) / "plots") / "training.png"
        try:
            plot_training(state.log_history, path)
        except InputError:  # the log has nothing to draw yet
            return
        except OSError as error:  # a missing figure must not end a training
            warnings.warn(f"{path} could not be written: {error}", UserWarning, stacklevel=2)
            return
        self.drawn = path


class ResultsCallback(TrainerCallback):
    """Records what is needed to reproduce a training, and its outcome; saving a model writes it as ``results.json``.

    Attributes:
        values: Facts known before the training, filled in by the trainer; ``training`` with seconds, steps, best
            metric and log; ``evaluations`` by their prefix.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"evaluations": {}}
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._started = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.values["training"] = {
            "seconds": time.monotonic() - self._started,
            "steps": state.global_step,
            "best_metric": state.best_metric,
            "best_step": state.best_global_step,
            "log": state.log_history,
        }


class StreamPasses(TrainerCallback):
    """Logs, evaluates and saves at the end of each pass over a stream, if the strategy is ``epoch``.

    For the Trainer the whole training on a stream is one epoch, so that its position is a number of batches.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        stream: Any = getattr(train_dataloader, "dataset", None)
        stream = getattr(stream, "dataset", stream)  # with several processes
        if not getattr(stream, "lists_per_pass", 0) or state.global_step >= state.max_steps:
            return
        lists = stream.step * args.gradient_accumulation_steps
        taken, a_pass = state.global_step * lists, stream.lists_per_pass
        if taken // a_pass > (taken - lists) // a_pass:
            control.should_log |= args.logging_strategy == "epoch"
            control.should_evaluate |= args.eval_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"


class CheckpointFlow(TrainerCallback):
    """Decides when to save and when to stop, so that a resumed run repeats nothing and omits nothing.

    Attributes:
        signal: The signal that asked training to stop; None if there was none.
        best: The best checkpoint of a resumed run.
        begun: Whether setup is complete and the first step may start.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.best: Path | None = None
        self.begun = False
        self._save_at_the_end_of_the_pass = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.begun = True
        if self.best is not None:
            # Its current path: the state holds the path at which it was written.
            state.best_model_checkpoint = str(self.best)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.signal is not None:
            control.should_save = control.should_training_stop = True
        # The log and the evaluation at the end of a pass come after this; a checkpoint before them would lose them.
        self._save_at_the_end_of_the_pass = control.should_save and _ends_a_pass(state)
        control.should_save = control.should_save and not self._save_at_the_end_of_the_pass

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.signal is not None and not _ends_a_pass(state):
            # An uninterrupted run would neither log nor evaluate here.
            control.should_log = control.should_evaluate = control.should_save = False
        elif self._save_at_the_end_of_the_pass:
            control.should_save = True
        self._save_at_the_end_of_the_pass = False


def _ends_a_pass(state: TrainerState) -> bool:
    return state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()
