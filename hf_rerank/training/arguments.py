"""Training options: those of transformers, with defaults for small listwise models, and those of this library."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from hf_rerank.errors import InputError, suggestion
from hf_rerank.losses import TASK_LOSSES
from hf_rerank.principled import DEFAULT_PRESET, PrincipledObjective, preset_objective
from hf_rerank.training.best_metric import DEFAULT_METRIC, check_best_metric
from hf_rerank.training.supported_options import (
    check_values,
    convert_setup_errors,
    find_untested_options,
    note_untested,
)

AUTO = "auto"


@dataclass
class RerankTrainingArguments(TrainingArguments):
    """Options of ``RerankTrainer``: the fields below and every one of ``transformers.TrainingArguments``.

    Defaults that differ from upstream: evaluation and a checkpoint each epoch, the best on the evaluation lists loaded
    at the end (by ``ndcg@10``, or by ``loss`` if it is corrected for position bias), two checkpoints kept; batch size
    and epochs by the number of training lists (``hf_rerank.training.budget``; evaluation: 512 lists), learning rate
    1e-3 with a tenth of the steps as warm-up and a cosine after it; no reports to outside services; raw columns are
    kept, and metrics are computed batch by batch.
    """

    principled: str = field(
        default=DEFAULT_PRESET,
        metadata={
            "help": "Preset of principled learning: augmented, scaled (the task loss on the given order alone), paper "
            "(the literal formula), reference (the authors' public code), none, or a control: r_drop, augmentation."
        },
    )
    principled_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Numbers of the preset to change, as JSON such as '{\"convergence_weight\": 10}': "
            "<term>_weight (0 leaves the term out), fraction (of each batch's lists on which later passes run), "
            "warmup (fraction of the steps over which the weights rise from 0), perturbation."
        },
    )
    task_loss: str | None = field(
        default=None,
        metadata={"help": "Task loss, or own (that of the model's paper). Not given: the config's; reference: own."},
    )
    metric_ks: list[int] = field(default_factory=lambda: [5, 10], metadata={"help": "Cut-offs of the metrics."})
    no_click: Literal["zero", "skip"] = field(
        default="zero", metadata={"help": "Lists without a click count as 0 in every metric, or are left out."}
    )
    gain: Literal["exponential", "linear"] = field(
        default="exponential",
        metadata={"help": "Gain of a grade y in NDCG: 2^y - 1, or y, which suits grades above about 10."},
    )
    click_above: float | None = field(
        default=None,
        metadata={
            "help": "A click is a label above this number, in all metrics but NDCG. Not given: 0, and fractional "
            "labels make these metrics nan."
        },
    )
    swaps: Literal["all", "one"] = field(
        default="all",
        metadata={
            "help": "Obedience to P2 after training: on all adjacent swaps (64 of them in lists above 65 items), "
            "or on one per list. During training it is always one."
        },
    )
    obedience_k: int = field(default=5, metadata={"help": "Cut-off of the obedience at the top of the list."})
    truncate_lists: bool = field(
        default=False,
        metadata={"help": "Cut lists that are too long to their first positions, instead of refusing them."},
    )

    encoded_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder in which lists are kept encoded, about 3 KB each for 30 items with 24 features, so that "
            "later passes and runs need not encode them; rebuilt when lists, vocabularies or options change. "
            "Not given: nothing is kept."
        },
    )

    stream_window: int = field(
        default=10_000,
        metadata={
            "help": "Number of lists of a stream that are shuffled together, and held in memory, in each data-loader "
            "worker; shards are shuffled too. train_sampling_strategy=sequential: neither is shuffled."
        },
    )

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the processor reads the raw columns."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(
        default=AUTO,
        metadata={
            "help": "When to save a checkpoint: no, steps, epoch, best. auto: after each evaluation; without any, "
            "each epoch."
        },
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep, 0: all; the best is always kept."}
    )
    load_best_model_at_end: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Load the best checkpoint after training. Not given: yes, if the run evaluates and saves."},
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "Metric that chooses the best checkpoint. Not given: loss, if it is corrected for position bias "
            "(position tower or propensities), otherwise ndcg@10; the trainer fills it in."
        },
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether larger values of it are better. Not given: yes, unless it is a loss."}
    )
    batch_eval_metrics: bool = field(default=True, metadata={"help": "Compute metrics batch by batch."})
    per_device_train_batch_size: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Lists per training batch on each device. Not given: by the number of lists, 16 to 256."},
    )
    per_device_eval_batch_size: int = field(
        default=512, metadata={"help": "Lists per evaluation batch on each device."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Decay of the learning rate after warm-up."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of warm-up of the learning rate; below 1: as a fraction of all steps."}
    )
    num_train_epochs: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Passes over the training lists. Not given: by the number of lists, 5 to 40."},
    )
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: no, steps, epoch."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "A loss that is not finite stops training; it is not hidden from the log."}
    )
    # None first, as upstream writes it: its parser of command lines reads the second type.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Services to report to."}
    )

    def __post_init__(self) -> None:
        if self.output_dir is not None and Path(self.output_dir).is_file():
            raise InputError(f"output_dir is {self.output_dir!r}, which is a file: expected a folder for the run")
        if not self.batch_eval_metrics:
            raise InputError("batch_eval_metrics=False would hold every score in memory: leave it on")
        if not self.metric_ks or min(self.metric_ks) < 1:
            raise InputError(f"metric_ks is {self.metric_ks}: expected cut-offs of at least 1")
        _check_choice("gain", self.gain, ("exponential", "linear"))
        _check_choice("swaps", self.swaps, ("all", "one"))
        if self.click_above is not None and not 0 <= self.click_above < math.inf:
            raise InputError(f"click_above is {self.click_above}: expected a number of at least 0")
        check_values(self)
        if self.encoded_cache is not None and not str(self.encoded_cache).strip():
            raise InputError("encoded_cache is empty: expected a folder, or leave it out")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise InputError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r}: expected random or sequential; the "
                "others need the lengths of lists, which are known only once batches are encoded"
            )
        if not self.dataloader_in_order:
            raise InputError(
                "dataloader_in_order=False gives batches in the order in which workers finish, so no run could resume "
                "from a checkpoint: leave it on"
            )
        losses = ("own", *TASK_LOSSES)
        if self.task_loss is not None and self.task_loss not in losses:
            raise InputError(
                f"task_loss is {self.task_loss!r}: expected one of {', '.join(losses)}"
                f"{suggestion(self.task_loss, losses)}"
            )
        if isinstance(self.principled_kwargs, str):
            self.principled_kwargs = _read_options(self.principled_kwargs)
        self.objective()
        # Pinned memory speeds up copies to a device; without a device it only warns.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        untested = find_untested_options(self)
        self._choose_strategies()
        chooses = self.load_best_model_at_end or self.save_strategy == "best"
        if self.metric_for_best_model is None and self.greater_is_better is not None:
            raise InputError(
                f"greater_is_better is {self.greater_is_better}, and metric_for_best_model is not given: give both, "
                "or neither"
            )
        trainer_decides = bool(chooses) and self.metric_for_best_model is None
        if trainer_decides:  # upstream would take the loss
            self.metric_for_best_model = DEFAULT_METRIC
        with convert_setup_errors(untested):
            super().__post_init__()
        if self.process_index == 0:
            note_untested(untested)
        if self.accelerator_config.dispatch_batches is None:  # type: ignore[union-attr]
            # Each process reads its own lists of a stream, instead of the first reading for all.
            self.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        check_best_metric(self)
        if trainer_decides:
            self.metric_for_best_model, self.greater_is_better = None, None

    def _choose_strategies(self) -> None:
        """Fills in when to save, and whether to load the best checkpoint, if not given."""
        evaluates = self.eval_strategy
        if self.save_strategy == AUTO:
            self.save_strategy = "epoch" if evaluates == "no" else evaluates
            if evaluates == "steps":
                self.eval_steps = self.eval_steps or self.logging_steps
                if self.save_steps == type(self).save_steps:  # the default
                    self.save_steps = self.eval_steps
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = "no" not in (evaluates, self.save_strategy)
        if evaluates == "no" and (self.load_best_model_at_end or self.save_strategy == "best"):
            asked = "load_best_model_at_end=True" if self.load_best_model_at_end else "save_strategy=best"
            raise InputError(
                f"{asked} needs evaluations to choose the best checkpoint, and eval_strategy is no: choose steps or "
                f"epoch, or leave out {asked}"
            )
        if self.load_best_model_at_end and self.save_strategy not in ("best", evaluates):
            raise InputError(
                f"eval_strategy is {_plain_text(evaluates)} and save_strategy {_plain_text(self.save_strategy)}: the "
                "best checkpoint can be loaded only if both happen together; leave save_strategy out, or set "
                "load_best_model_at_end to false"
            )

    def objective(self) -> PrincipledObjective:
        """Builds the objective that ``principled`` and ``principled_kwargs`` describe.

        Raises:
            InputError: An unknown preset, option or value.
        """
        options = self.principled_kwargs or {}
        if not isinstance(options, dict):
            raise InputError(
                f"principled_kwargs is {options!r}: expected a dict, or JSON such as "
                "'{\"convergence_weight\": 10}' on the command line"
            )
        return preset_objective(self.principled, **{"seed": self.seed, **options})


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} is {value!r}: expected one of {', '.join(known)}{suggestion(str(value), known)}")


def _plain_text(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))


def _read_options(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            f"principled_kwargs is {text!r}, which is not valid JSON ({error}): expected JSON such as "
            "'{\"convergence_weight\": 10}'"
        ) from None
