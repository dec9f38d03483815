"""A picture of a training while it runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_rerank.errors import InputError
from hf_rerank.evaluation.plots import require_matplotlib, training_figure


class PlotCallback(TrainerCallback):
    """Redraws ``training.png`` at every evaluation and at the end of training, on the main process.

    Args:
        folder: Where the picture goes. None: ``plots`` in the training's output folder.

    Raises:
        InputError: matplotlib is missing.

    Attributes:
        drawn: Path of the picture; None until there is one.
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
            training_figure(state.log_history, path)
        except InputError:  # the log holds nothing to draw yet
            return
        except OSError as error:  # a picture is not worth a training
            warnings.warn(f"{path} could not be written: {error}", UserWarning, stacklevel=2)
            return
        self.drawn = path
