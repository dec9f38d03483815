"""``TorchScorer``: scores encoded lists with a PyTorch model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_rerank.errors import InputError
from hf_rerank.models.auto import AutoReranker
from hf_rerank.models.config import RerankerConfig


class TorchScorer:
    """A re-ranker as a function from arrays to scores.

    Args:
        model: A re-ranker of this library; put into evaluation mode here, never when it scores.

    Raises:
        InputError: ``model`` is not a re-ranker of this library.
    """

    def __init__(self, model: Any) -> None:
        # Checked by its config: a model compiled by torch has another class.
        if not isinstance(getattr(model, "config", None), RerankerConfig):
            raise InputError(
                f"expected a re-ranker of this library, got {type(model).__name__}; Reranker.from_pretrained loads a "
                "model and its processor from a folder"
            )
        self.model = model.eval()
        self.schema_fingerprint = model.config.schema_fingerprint
        self.task_loss = model.config.task_loss_name

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: Any = None, **options: Any) -> TorchScorer:
        """Loads the model of a folder or repository; see ``Reranker.from_pretrained``."""
        if device is not None:
            check_device(device)
        model: Any = AutoReranker.from_pretrained(source, **options)
        return cls(model if device is None else model.to(device))

    def scores(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scores a batch: float32 [B, L], by slot.

        Raises:
            InputError: The model has been put into training mode, in which dropout would change the ranking.
        """
        if self.model.training:
            raise InputError("the model is in training mode: call model.eval() before ranking")
        device = next(self.model.parameters()).device
        tensors = {name: torch.from_numpy(array).to(device) for name, array in features.items()}
        with torch.no_grad():
            return self.model(**tensors).logits.float().cpu().numpy()

    def save_pretrained(self, folder: Path) -> None:
        """Writes config and weights."""
        self.model.save_pretrained(folder)


def check_device(device: Any) -> None:
    """Raises an InputError for a device that torch does not know or that is not available."""
    if isinstance(device, int):  # as transformers counts: accelerators from 0, and -1 for the CPU
        available = device < 0 or (torch.accelerator.is_available() and device < torch.accelerator.device_count())
        why = "" if available else "torch finds no accelerator with that number"
    else:
        try:
            torch.empty(0, device=device)
            why = ""
        except (RuntimeError, AssertionError, TypeError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
    if why:
        raise InputError(f"device is {device!r}: expected one that is available, such as 'cpu' ({why})")
