"""Checks that a run that resumes from a checkpoint reads the batches that the first run would have read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.training.checkpoints import write_part

RUN_FILE = "run.json"
# Options that decide which lists make which batch.
ORDER = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed", "train_sampling_strategy"),
    *("dataloader_drop_last", "truncate_lists"),
)
STREAM_ORDER = ("stream_window", "train_batch_size")
# The same, in accelerator_config.
ACCELERATOR_ORDER = ("split_batches", "even_batches", "use_seedable_sampler")
# Options that the optimizer and the schedule take from their saved state, whatever the arguments say.
OPTIMIZER = (
    *("optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
)
# Options that decide how checkpoints are compared with the best so far.
BEST = ("metric_for_best_model", "greater_is_better", "no_click", "gain", "click_above")
# Options that, like the objective, take effect from here on and change what is learned.
LEARNING = ("max_grad_norm", "bf16", "fp16")
# Length of a run, on which the learning-rate schedule depends.
LENGTH = ("max_steps", "num_train_epochs")
NAMES_SHOWN = 3
REMEDY = "give the same, or start afresh from the checkpoint's weights with from_pretrained"


def describe_run(
    args: Any, data: dict[str, Any], objective: dict[str, Any], frozen: Sequence[str] = ()
) -> dict[str, Any]:
    """Describes a run for its checkpoints, as plain JSON values.

    Args:
        args: Training arguments.
        data: Split -> its identity, from ``results.data_identity``.
        objective: Settings of the objective.
        frozen: Names of parameters that are not trained.
    """
    # The batch size per device, times the devices of a process.
    plain = {**args.to_dict(), "train_batch_size": args.train_batch_size}
    named = (*ORDER, *STREAM_ORDER, *OPTIMIZER, *BEST)
    accelerator = {f"accelerator_config.{name}": plain["accelerator_config"][name] for name in ACCELERATOR_ORDER}
    return {
        "data": data,
        "frozen": list(frozen),
        "length": {name: plain[name] for name in LENGTH},
        "learning": {**{name: plain[name] for name in LEARNING}, **objective},
        "options": {**{name: plain[name] for name in named}, **accelerator},
    }


def write_run(folder: Path, run: dict[str, Any], lists_per_pass: int) -> None:
    """Writes ``run.json`` into a checkpoint that is being written.

    Args:
        folder: Folder of the checkpoint.
        run: The run, from ``describe_run``.
        lists_per_pass: Number of lists of the training stream; 0 if it is unknown, or there is no stream.
    """
    write_part(folder / RUN_FILE, {**run, "lists_per_pass": lists_per_pass})


def refuse_another_run(checkpoint: Path, run: dict[str, Any], *, stream: bool) -> int:
    """Refuses to resume with other lists, another order, options that would be ignored, or another metric.

    Other options take effect from here on. Another objective, other evaluation lists and another number of steps give
    warnings.

    Args:
        checkpoint: Checkpoint to resume from.
        run: The run that would resume, from ``describe_run``.
        stream: Whether it trains on a stream.

    Returns:
        Number of lists of the stream; 0: unknown.

    Raises:
        InputError: The runs differ; the message says how.
    """
    path = checkpoint / RUN_FILE
    if not path.is_file():
        raise InputError(f"{checkpoint} was saved without {RUN_FILE}, so it is unknown which lists it was trained on")
    saved = json.loads(path.read_text(encoding="utf-8"))
    if not saved.keys() >= run.keys() or not saved["options"].keys() >= run["options"].keys():
        raise InputError(
            f"{checkpoint} was saved by another version of hf-rerank: resume with that version; or {REMEDY}"
        )
    if saved["frozen"] != run["frozen"]:
        raise InputError(
            f"{checkpoint} was trained with {_list_names(saved['frozen'])} frozen, this run has "
            f"{_list_names(run['frozen'])}: the optimizer's state would go to other parameters; freeze the same "
            "(--freeze), or start afresh from the checkpoint's weights with from_pretrained"
        )
    effects = dict.fromkeys(run["options"], "batches would differ")
    effects |= dict.fromkeys(OPTIMIZER, "it would be ignored")
    effects |= dict.fromkeys(BEST, "the best checkpoint so far would be compared by another measure")
    unused: tuple[str, ...] = () if stream else STREAM_ORDER
    if None in (saved["options"]["metric_for_best_model"], run["options"]["metric_for_best_model"]):
        unused += BEST
    for name, effect in effects.items():
        theirs, ours = saved["options"][name], run["options"][name]
        if theirs != ours and name not in unused:
            raise InputError(f"{checkpoint} was trained with {name}={theirs}, this run has {ours}: {effect}; {REMEDY}")
    for split, identity in run["data"].items():
        theirs = saved["data"].get(split)
        if theirs == identity:
            continue
        message = f"{checkpoint} {_describe_difference(split, theirs, identity)}"
        if split == "train":
            raise InputError(f"{message}; {REMEDY}")
        warnings.warn(f"{message}: metrics, and the best checkpoint so far, are not comparable", stacklevel=2)
    changed = [name for name, ours in run["learning"].items() if saved["learning"].get(name) != ours]
    if changed:
        differences = ", ".join(f"{name}={saved['learning'].get(name)} ({run['learning'][name]})" for name in changed)
        warnings.warn(
            f"{checkpoint} was trained with {differences}; values in brackets take effect from here on, so the model "
            "will match neither",
            stacklevel=2,
        )
    for name, theirs in saved["length"].items():
        if theirs != run["length"][name]:
            warnings.warn(
                f"{checkpoint} was trained with {name}={theirs}, this run has {run['length'][name]}: from here on "
                "the learning rate is that of a run of the new length",
                stacklevel=2,
            )
    return saved["lists_per_pass"]


def refuse_different_lists(data: Sequence[dict[str, Any]]) -> None:
    """Refuses processes that were given different lists.

    Args:
        data: For each process, split -> identity.
    """
    if any(other != data[0] for other in data):
        raise InputError(
            "the processes were given different lists, or in different orders: give the same to all; a stream that "
            "was shuffled before must be shuffled with a seed"
        )


def _list_names(names: Sequence[str]) -> str:
    """Lists the first few of many names."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more if names else "nothing"


def _describe_difference(split: str, theirs: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    if theirs is None:
        return f"had no {split} lists, this run has some"
    for what in ("lists", "shards"):
        if theirs.get(what) != ours.get(what):
            return f"had {theirs.get(what) or 'no'} {what} in {split}, this run has {ours.get(what) or 'none'}"
    return f"had other lists in {split}, or in another order, than this run (their SHA-256 differ)"
