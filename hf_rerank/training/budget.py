"""The training budget: batch size and epochs chosen by the number of training lists."""

from __future__ import annotations

import warnings
from typing import Any

from hf_rerank.errors import InputError

# A pass over the lists should take about this many steps, as far as the batch sizes below allow.
STEPS_PER_EPOCH = 100
SMALLEST_BATCH, LARGEST_BATCH = 16, 256
# Epochs for many lists; for few lists, as many as give this number of steps, with an upper bound.
EPOCHS, MOST_EPOCHS = 5, 40
STEPS = 400
# With fewer steps a network has hardly left its initialization.
VERY_FEW_STEPS = 100


def fill_in_budget(args: Any, lists: int | None) -> None:
    """Fills in the batch size and the number of epochs if they are None, by the number of training lists.

    The batch is the power of two that gives about 100 steps per epoch, from 16 to 256 lists over all devices and
    accumulated batches. Epochs are 5, or more if that would be under 400 steps, at most 40. A warm-up given as a
    fraction of the steps is left out if there are fewer than 100 steps, since its first step would change nothing.

    Args:
        args: ``RerankTrainingArguments``; batch size, epochs and warm-up are changed.
        lists: Number of training lists. None: a stream, trained for ``max_steps``; or there are none.

    Raises:
        InputError: With ``dataloader_drop_last``, the lists do not fill one batch.
    """
    together = max(1, args.n_gpu) * args.world_size * args.gradient_accumulation_steps
    if args.per_device_train_batch_size is None:
        batch = LARGEST_BATCH if lists is None else SMALLEST_BATCH
        while lists is not None and batch < LARGEST_BATCH and lists >= 2 * batch * STEPS_PER_EPOCH:
            batch *= 2
        args.per_device_train_batch_size = max(1, batch // together)
    a_batch = args.per_device_train_batch_size * max(1, args.n_gpu) * args.world_size
    if args.dataloader_drop_last and lists is not None and lists < a_batch:
        raise InputError(
            f"dataloader_drop_last=True leaves out the last, incomplete batch, and {lists:,} lists do not fill one "
            f"of {a_batch:,}: lower per_device_train_batch_size, or leave dataloader_drop_last off"
        )
    if lists is None:
        # For the Trainer a stream is one epoch of max_steps steps.
        args.num_train_epochs = 1.0 if args.num_train_epochs is None else args.num_train_epochs
        if args.max_steps <= 0:
            return
    total = args.max_steps
    if lists is not None:
        steps = max(1, -(-lists // (args.per_device_train_batch_size * together)))
        if args.num_train_epochs is None:
            args.num_train_epochs = float(min(MOST_EPOCHS, max(EPOCHS, -(-STEPS // steps))))
        if args.max_steps <= 0:
            total = round(steps * args.num_train_epochs)
    if total >= VERY_FEW_STEPS:
        return
    if args.warmup_steps < 1:
        args.warmup_steps = 0
    if args.max_steps <= 0 and args.process_index == 0:
        warnings.warn(
            f"this training takes {total} steps ({lists:,} lists in batches of "
            f"{args.per_device_train_batch_size * together}): too few to learn much; lower "
            "per_device_train_batch_size or raise num_train_epochs",
            UserWarning,
            stacklevel=3,
        )
