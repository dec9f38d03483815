"""Detects losses and gradients that are not finite, without waiting for the device, and blocks later updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_rerank.errors import InputError, TrainingStopped
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.processing.collator import decode_list_ids

IDS_IN_A_MESSAGE = 5
ID_BYTES = 64
REMEDY = "lower learning_rate or the weights of the consistency terms; checkpoints before this step are unchanged"


class FiniteGuard:
    """A flag on the device that is set at the first bad step of a training and stays set.

    Fused optimizers read it as ``found_inf`` and skip their update, so the weights stay those before the bad step.
    ``check`` reads the flag, and raises an error with the step, the terms and the lists that were recorded with it. On
    the CPU, where reading a flag does not wait, and with other optimizers, it is read at every step.

    Args:
        device: Device of the training.
        at_every_step: Whether ``check_at_once`` reads the flag.

    Attributes:
        found_inf: float32 scalar on the device, 1 from the first bad step on.
    """

    def __init__(self, device: torch.device, *, at_every_step: bool) -> None:
        self.at_every_step = at_every_step
        self.found_inf = torch.zeros((), device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._loss_is_bad = torch.zeros((), dtype=torch.bool, device=device)
        self._lists_are_bad = torch.zeros((), dtype=torch.bool, device=device)
        self._ids = torch.zeros((IDS_IN_A_MESSAGE, ID_BYTES), dtype=torch.uint8, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._terms: dict[str, Tensor] = {}
        self._batch: dict[str, Tensor] = {}

    def observe_loss(self, step: int, output: Any, mask: Tensor, list_id: Tensor | None) -> None:
        """Checks the loss of a batch.

        Args:
            step: Number of the step, from 1, for the message.
            output: Model output, with ``loss``, ``losses`` and ``logits`` [B, L].
            mask: bool [B, L].
            list_id: uint8 [B, W], or None if the lists have no ids.
        """
        bad = ~torch.isfinite(output.loss.detach())
        bad_lists = (~torch.isfinite(output.logits.detach()) & mask).any(-1)
        self._batch = {} if list_id is None else {"list_id": list_id, "bad": bad_lists}
        if self.at_every_step and not bool(bad):
            return
        first = self._set(bad, step, self._loss_is_bad)
        for name, value in (output.losses or {}).items():
            value = value.detach().float()
            self._terms[name] = torch.where(first, value, self._terms.get(name, torch.zeros_like(value)))

    def observe_gradients(self, step: int, parameters: Iterable[Tensor]) -> None:
        """Checks the gradients of a step, accumulated over all its batches.

        Args:
            step: Number of the step, from 1, for the message.
            parameters: Parameters with their gradients.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            bad = ~torch.isfinite(nn.utils.get_total_norm(gradients))
            if not self.at_every_step or bool(bad):
                self._set(bad.to(self.found_inf.device), step, None)

    def block(self, optimizer: Any) -> bool:
        """Makes an optimizer skip its updates once the flag is set.

        Returns:
            Whether the optimizer supports this; if not, the flag is read at every step instead.
        """
        fused = any(group.get("fused") for group in optimizer.param_groups)
        if fused:
            optimizer.found_inf = self.found_inf
        else:
            self.at_every_step = True
        return fused

    def reset(self) -> None:
        """Resets the flag for a new training."""
        self.found_inf.zero_()
        self._loss_is_bad.zero_()

    def check(self, model: nn.Module, gather: Callable[[Tensor], Tensor] | None = None) -> None:
        """Raises if a bad step was seen.

        Args:
            model: The model in training.
            gather: Joins a tensor [1] of each process. None: only this process is checked.

        Raises:
            TrainingStopped: A step was bad; the message names the step, the terms and the lists.
        """
        flags = self.found_inf.reshape(1)
        if not bool((flags if gather is None else gather(flags)).max()):
            return
        if not bool(self.found_inf):
            raise TrainingStopped(f"the loss or a gradient is not finite in another process; {REMEDY}")
        step = int(self._step)
        if not bool(self._loss_is_bad):
            which = self._list_broken_gradients(model)
            raise TrainingStopped(f"the gradient is not finite at step {step}{which}; {self._list_ids()}; {REMEDY}")
        values = {name: float(value) for name, value in self._terms.items()}
        wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        raise TrainingStopped(
            f"the loss is not finite at step {step}: {', '.join(wrong) or 'the sum'}; {self._list_ids()}; check "
            f"these lists, or {REMEDY}"
        )

    def check_at_once(self, model: nn.Module) -> None:
        """Checks, if every step is checked."""
        if self.at_every_step:
            self.check(model)

    def _list_broken_gradients(self, model: nn.Module) -> str:
        if not self.at_every_step:  # by now the gradients are those of a later step
            return ""
        broken = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
        ]
        return f": that of {', '.join(broken[:5]) or 'all weights together, which overflows'}"

    def _set(self, bad: Tensor, step: int, kind: Tensor | None) -> Tensor:
        """Sets the flag and records the step and the lists; returns whether this is the first bad step."""
        first = bad & (self.found_inf == 0)
        self.found_inf.copy_(torch.where(bad, 1.0, self.found_inf))
        self._step.copy_(torch.where(first, step, self._step))
        if kind is not None:
            kind.copy_(kind | first)
        if self._batch:
            ids, bad_lists = self._batch["list_id"], self._batch["bad"]
            # The lists with broken scores come first; if there are none, all lists of the batch count.
            chosen = bad_lists.to(torch.float32).topk(min(IDS_IN_A_MESSAGE, len(ids))).indices
            shown = ids[chosen][:, :ID_BYTES]
            padded = torch.zeros_like(self._ids)
            padded[: shown.shape[0], : shown.shape[1]] = shown
            count = torch.where(bad_lists.any(), bad_lists.sum(), len(ids))
            self._ids.copy_(torch.where(first, padded, self._ids))
            self._count.copy_(torch.where(first, count, self._count))
            self._lists_are_bad.copy_(torch.where(first, bad_lists.any(), self._lists_are_bad))
        return first

    def _list_ids(self) -> str:
        count = int(self._count)
        if not count:
            return "the lists have no ids"
        shown = decode_list_ids(self._ids[: min(count, IDS_IN_A_MESSAGE)])
        more = f" and {count - len(shown)} more" if count > len(shown) else ""
        what = "with scores that are not finite" if bool(self._lists_are_bad) else "of the batch"
        return f"lists {what}: {', '.join(shown)}{more}"


def find_broken_lists(logits: Tensor, mask: Tensor, list_id: Tensor) -> list[str]:
    """Finds the lists of a batch with non-finite scores of items, by id.

    Args:
        logits: [B, L].
        mask: bool [B, L].
        list_id: uint8 [B, W].
    """
    return decode_list_ids(list_id[(~torch.isfinite(logits) & mask).any(-1)])


def refuse_broken_weights(model: PreTrainedReranker, step: int) -> None:
    """Raises ``TrainingStopped`` if a weight is not finite."""
    try:
        model.refuse_non_finite_weights("so the model is not saved or pushed")
    except InputError as error:
        raise TrainingStopped(
            f"{error} (step {step}): resume from an earlier checkpoint, and lower learning_rate or the weights of the "
            "consistency terms"
        ) from None


class OptimizerGuard(TrainerCallback):
    """Connects the optimizer of a training to the guard's flag."""

    def __init__(self, guard: FiniteGuard) -> None:
        self.guard = guard

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any) -> None:
        self.guard.block(getattr(optimizer, "optimizer", optimizer))
