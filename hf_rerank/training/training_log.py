"""``TrainingLog``: means over the steps since the last log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_rerank.principled.obedience import COLLAPSED_SPREAD, compute_spread


class TrainingLog:
    """Means over batches of the loss, of each of its terms, and of the spread of a list's scores.

    The sums stay on the device, so that no step waits for them.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    def add(self, output: Any, mask: Tensor) -> None:
        """Adds a batch.

        Args:
            output: Model output, with ``loss``, ``losses`` and ``logits`` [B, L].
            mask: bool [B, L].
        """
        values = {
            "loss": output.loss,
            **(output.losses or {}),
            **_summarize_spread(output.logits.detach(), mask),
        }
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        self._batches += 1

    def take_means(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Returns the means since the last call, and resets them; empty if there was no batch.

        Args:
            gather: Joins a tensor [1] of each process.
        """
        means = {name: gather(total.reshape(1)).mean().item() / self._batches for name, total in self._sums.items()}
        self._sums, self._batches = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Returns the sums as plain numbers, for a checkpoint."""
        return {"log_steps": self._batches, "log_sums": {name: total.item() for name, total in self._sums.items()}}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Restores the sums of a checkpoint.

        With several processes these are the sums of the first; until the next log, the others use them too.
        """
        self._batches = state["log_steps"]
        self._sums = {name: torch.tensor(total, device=device) for name, total in state["log_sums"].items()}


def _summarize_spread(logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Computes, over lists of at least two items, the mean spread of scores and the share of collapsed lists."""
    spread = compute_spread(logits, mask)
    lists = mask.sum(-1) >= 2
    counted = lists.sum().clamp(min=1)
    return {
        "score_spread": torch.where(lists, spread, 0.0).sum() / counted,
        "collapsed_share": (lists & (spread < COLLAPSED_SPREAD)).sum() / counted,
    }
