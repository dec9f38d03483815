"""Which options of ``transformers.TrainingArguments`` are supported for re-rankers, and which values make sense.

The tests train with every option in ``SUPPORTED``. The others are passed to transformers as they are, which is logged
once. Errors that upstream raises while a training is set up become a one-line ``InputError``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

from hf_rerank.errors import InputError, TrainingStopped

_log = logging.get_logger(__name__)

SUPPORTED = frozenset(
    (
        *("output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "max_steps"),
        *(
            "gradient_accumulation_steps",
            "learning_rate",
            "lr_scheduler_type",
            "lr_scheduler_kwargs",
            "warmup_steps",
            "optim",
            "optim_args",
        ),
        *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16", "use_cpu"),
        *(
            "activation_checkpointing",
            "activation_checkpointing_kwargs",
            "gradient_checkpointing",
            "gradient_checkpointing_kwargs",
        ),
        *(
            "eval_strategy",
            "eval_steps",
            "eval_delay",
            "eval_on_start",
            "eval_accumulation_steps",
            "prediction_loss_only",
            "batch_eval_metrics",
        ),
        *(
            "logging_strategy",
            "logging_steps",
            "logging_first_step",
            "logging_nan_inf_filter",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
        ),
        *("report_to", "run_name"),
        *(
            "save_strategy",
            "save_steps",
            "save_total_limit",
            "save_only_model",
            "load_best_model_at_end",
            "metric_for_best_model",
        ),
        *("greater_is_better", "resume_from_checkpoint", "ignore_data_skip"),
        *(
            "seed",
            "data_seed",
            "full_determinism",
            "accelerator_config",
            "train_sampling_strategy",
            "remove_unused_columns",
        ),
        *(
            "dataloader_drop_last",
            "dataloader_num_workers",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
        ),
        *("dataloader_multiprocessing_context", "dataloader_pin_memory", "dataloader_in_order"),
        *("hub_model_id", "hub_token", "hub_private_repo", "hub_revision"),
        *("do_train", "do_eval", "do_predict", "local_rank"),
    )
)
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd")
_TIES = "creates ties of scores, which would count as obedience: leave it off"
# Options that cannot work here -> why, and what to do.
REFUSED = {
    "neftune_noise_alpha": "adds noise to the embeddings of tokens, and a re-ranker has none: leave it out",
    "use_liger_kernel": "replaces layers of language models, and a re-ranker has none of these: leave it out",
    "debug": "cannot read the masks of lists: leave it out; training stops at the first value that is not finite",
    "label_smoothing_factor": "is not used by the losses here: leave it at 0",
    "remove_unused_columns": "would drop the raw columns that the processor reads: leave it off",
    "push_to_hub": "would upload the run's folder, checkpoints and pickles included: call trainer.push_to_hub() after "
    "training, or hf-rerank push",
    "bf16_full_eval": f"{_TIES}; bf16=True trains in bf16 and evaluates in float32",
    "fp16_full_eval": f"{_TIES}; fp16=True trains in fp16 and evaluates in float32",
}
# Option -> lowest and highest value, and whether the lowest is allowed. None stays None.
_RANGES: dict[str, tuple[float, float, bool]] = {
    "per_device_train_batch_size": (1, math.inf, True),
    "per_device_eval_batch_size": (1, math.inf, True),
    "num_train_epochs": (0, math.inf, False),
    "gradient_accumulation_steps": (1, math.inf, True),
    "learning_rate": (0, math.inf, False),
    "weight_decay": (0, math.inf, True),
    "adam_epsilon": (0, math.inf, True),
    "max_grad_norm": (0, math.inf, True),
    "warmup_steps": (0, math.inf, True),
    "seed": (0, 2**32 - 1, True),
    "data_seed": (0, 2**32 - 1, True),
    "eval_delay": (0, math.inf, True),
    "eval_steps": (0, math.inf, False),
    "logging_steps": (0, math.inf, False),
    "save_steps": (0, math.inf, False),
    "save_total_limit": (0, math.inf, True),
    "eval_accumulation_steps": (1, math.inf, True),
    "dataloader_num_workers": (0, math.inf, True),
    "dataloader_prefetch_factor": (1, math.inf, True),
    "stream_window": (1, math.inf, True),
    "obedience_k": (1, math.inf, True),
}
_BY_LISTS = ("per_device_train_batch_size", "num_train_epochs")
# Errors that upstream raises for options that it cannot carry out; not OSError, whose message names the file.
SETUP_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError),
)
_LONGEST = 400


def check_values(args: Any) -> None:
    """Refuses numbers out of range, and options that cannot work here.

    Args:
        args: ``RerankTrainingArguments``.

    Raises:
        InputError: The message names the option, its value and the expected range.
    """
    for name, reason in REFUSED.items():
        if getattr(args, name):
            value = getattr(args, name)
            shown = (
                " ".join(str(getattr(entry, "value", entry)) for entry in value) if isinstance(value, list) else value
            )
            raise InputError(f"{name}={shown} {reason}")
    for name, (lowest, highest, with_lowest) in _RANGES.items():
        value = getattr(args, name)
        if value is None:
            continue
        expected = f"at least {lowest:g}" if with_lowest else f"more than {lowest:g}"
        if highest < math.inf:
            expected += f" and at most {highest:.0f}"
        if name in _BY_LISTS:
            expected += "; leave it out to let the number of training lists decide"
        above = value >= lowest if with_lowest else value > lowest
        if not (above and value <= highest and value < math.inf):
            raise InputError(f"{name} is {value:g}: expected {expected}")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            raise InputError(f"{name} is {getattr(args, name):g}: expected at least 0 and less than 1")
    if args.max_steps != -1 and args.max_steps < 1:
        raise InputError(f"max_steps is {args.max_steps}: expected at least 1, or -1 to train by epochs")


def find_untested_options(args: Any) -> dict[str, Any]:
    """Finds the options of transformers that were given and are not in ``SUPPORTED``.

    Args:
        args: ``RerankTrainingArguments``, as they were given.
    """
    found: dict[str, Any] = {}
    for field in fields(TrainingArguments):
        value = getattr(args, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in SUPPORTED and value and value not in (default, "no"):
            found[field.name] = value
    if str(getattr(args.optim, "value", args.optim)) not in OPTIMIZERS:
        found["optim"] = str(getattr(args.optim, "value", args.optim))
    return found


def note_untested(options: dict[str, Any]) -> None:
    """Logs, once per set of options, that they are passed to transformers as they are."""
    if options:
        _log.warning_once(
            f"{_list_options(options)}: passed to transformers as given; not tested with re-rankers (see "
            "hf_rerank/training/README.md)"
        )


@contextmanager
def convert_setup_errors(untested: dict[str, Any]) -> Iterator[None]:
    """Turns errors raised while arguments, trainer or optimizer are created into a one-line ``InputError``.

    Args:
        untested: Options from ``find_untested_options``; the message names them.
    """
    try:
        yield
    except (InputError, TrainingStopped):
        raise
    except SETUP_ERRORS as error:
        raise InputError(describe_setup_failure(error, untested)) from error


def describe_setup_failure(error: BaseException, untested: dict[str, Any]) -> str:
    """Describes in one line why a training cannot be set up."""
    said = " ".join(str(error).split()) or type(error).__name__
    if len(said) > _LONGEST:
        said = f"{said[:_LONGEST]} ..."
    passed = f" (options passed to transformers as given: {_list_options(untested)})" if untested else ""
    return f"the training cannot be set up: {said}{passed}"


def _list_options(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={getattr(value, 'value', value)}" for name, value in options.items())
