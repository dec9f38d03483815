"""The options of training: those of transformers, with defaults for small listwise models, and our own."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch
from transformers import TrainingArguments

from hf_rerank.errors import InputError, suggestion
from hf_rerank.losses import TASK_LOSSES
from hf_rerank.principled import PrincipledObjective

# Names that an evaluation gives, without their cut-offs; evaluation sets by name come before them.
_MEASURES = (
    *("loss", "auc", "gauc", "ndcg", "map", "precision", "recall", "mrr", "clicks"),
    *("expected_clicks", "expected_clicks_share", "score_spread"),
    *("p1_obedience", "p1_set_obedience", "p1_item_obedience", "p1_kendall_tau"),
    *("p2_obedience", "p2_set_obedience", "p2_item_obedience", "p2_kendall_tau"),
)


@dataclass
class RerankTrainingArguments(TrainingArguments):
    """Options of ``RerankTrainer``: the fields below and every one of ``transformers.TrainingArguments``.

    Defaults that differ from there: evaluation and a checkpoint each epoch, the best by ``ndcg@10`` on the evaluation
    lists loaded at the end, two checkpoints kept; 10 epochs, batches of 256 (evaluation: 512), learning rate 1e-3;
    no reports to outside services; raw columns are kept, and metrics are computed batch by batch.
    """

    principled: str = field(
        default="scaled",
        metadata={
            "help": "Preset of principled learning: scaled, paper (the literal formula), reference (the authors' "
            "public code), or none."
        },
    )
    task_loss: str | None = field(
        default=None,
        metadata={"help": "Task loss, or own (that of the model's paper). Not given: the config's; reference: own."},
    )
    convergence_weight: float | None = field(
        default=None, metadata={"help": "w1, of convergence consistency (passes 1, 2). Not given: the preset's."}
    )
    adversarial_weight: float | None = field(
        default=None, metadata={"help": "w2, of adversarial consistency (passes 1, 3). Not given: the preset's."}
    )
    cross_weight: float | None = field(
        default=None, metadata={"help": "Weight of the consistency of passes 2 and 3. Not given: the preset's."}
    )
    consistency_space: Literal["probability", "logit", "output"] | None = field(
        default=None,
        metadata={
            "help": "What scores are compared as: probability, logit (centred where the loss ignores a shift), or "
            "output (as they come). Not given: the preset's."
        },
    )
    consistency_positions: Literal["input", "output"] | None = field(
        default=None,
        metadata={
            "help": "Score differences are weighted by how far items moved between the orders shown (input), or "
            "between the rankings given (output). Not given: the preset's."
        },
    )
    consistency_reduction: Literal["sum", "mean", "weighted_mean"] | None = field(
        default=None, metadata={"help": "Of a consistency term over a list's items. Not given: the preset's."}
    )
    task_loss_passes: Literal["first", "every"] | None = field(
        default=None, metadata={"help": "Task loss of the first pass, or of every pass. Not given: the preset's."}
    )
    perturbed_order: Literal["initial", "own"] | None = field(
        default=None, metadata={"help": "Which order pass 3 perturbs: initial, or own. Not given: the preset's."}
    )
    perturbation: str | None = field(
        default=None,
        metadata={
            "help": "adjacent_swap (if not given), random_swap, window_shuffle, reverse_window, or score_noise."
        },
    )
    perturbation_strength: float | None = field(
        default=None,
        metadata={"help": "How many swaps, places of the window beyond its first, or places of noise. Not given: 1."},
    )
    ranking_gradient: Literal["hard", "softsort", "neuralsort"] = field(
        default="hard",
        metadata={"help": "The model's own order as a constant (hard), or as a soft order with a gradient."},
    )
    temperature: float | None = field(
        default=None, metadata={"help": "Of the soft order, in units of the logits. Not given: 1."}
    )
    sinkhorn: int | None = field(
        default=None, metadata={"help": "Sinkhorn normalisations of the soft order. Not given: 0."}
    )
    straight_through: bool = field(
        default=False, metadata={"help": "Show the hard order, with the gradient of the soft one."}
    )
    stop_gradient: Literal["none", "first", "second"] = field(
        default="none", metadata={"help": "Which side of each pair of passes counts as a constant."}
    )
    consistency_fraction: float = field(
        default=1.0, metadata={"help": "Share of each batch's lists on which passes 2 and 3 are run, above 0."}
    )
    consistency_warmup: float = field(
        default=0.0, metadata={"help": "Share of all steps over which the consistency weights rise from 0."}
    )
    metric_ks: list[int] = field(default_factory=lambda: [5, 10], metadata={"help": "Cut-offs of the metrics."})
    no_click: Literal["zero", "skip"] = field(
        default="zero", metadata={"help": "Lists without a click count 0 in every metric, or are left out of it."}
    )
    obedience_k: int = field(default=5, metadata={"help": "Cut-off of the obedience at the top of the list."})
    truncate_lists: bool = field(
        default=False,
        metadata={"help": "Cut lists that are too long to their first places, instead of refusing them."},
    )

    encoded_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder in which lists are kept encoded, about 3 KB each for 30 items with 24 features, so that "
            "later passes and runs need not encode them; made anew when lists, vocabularies or options change. "
            "Not given: nothing is kept."
        },
    )

    stream_window: int = field(
        default=10_000,
        metadata={
            "help": "Lists of a stream that are shuffled among each other, and held in memory, in each data-loader "
            "worker; shards are shuffled too. train_sampling_strategy=sequential: neither."
        },
    )

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the processor reads the raw columns."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept; the best is always kept."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Load the best checkpoint after training."})
    metric_for_best_model: str | None = field(default="ndcg@10", metadata={"help": "Which metric chooses the best."})
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether more of it is better. Not given: yes, unless it is a loss."}
    )
    batch_eval_metrics: bool = field(default=True, metadata={"help": "Metrics batch by batch, in bounded memory."})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Lists a training batch on each device."})
    per_device_eval_batch_size: int = field(
        default=512, metadata={"help": "Lists an evaluation batch on each device."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the training lists."})
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
        if self.remove_unused_columns:
            raise InputError(
                "remove_unused_columns=True would drop the raw columns that the processor reads: leave it off"
            )
        if self.push_to_hub:
            raise InputError(
                "push_to_hub=True would upload the run's folder, checkpoints and pickles included: call "
                "trainer.push_to_hub() after training"
            )
        if not self.batch_eval_metrics:
            raise InputError("batch_eval_metrics=False would hold every score in memory: leave it on")
        if not self.metric_ks or min(self.metric_ks) < 1:
            raise InputError(f"metric_ks is {self.metric_ks}: expected cut-offs of at least 1")
        if self.stream_window < 1:
            raise InputError(f"stream_window is {self.stream_window}: expected at least 1")
        if self.encoded_cache is not None and not str(self.encoded_cache).strip():
            raise InputError("encoded_cache is empty: expected a folder, or leave it out")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise InputError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r}: expected random or sequential; the "
                "lengths of lists, which the others go by, are known only where batches are encoded"
            )
        if not self.dataloader_in_order:
            raise InputError(
                "dataloader_in_order=False gives batches as workers happen to finish them, so that no run could go on "
                "from a checkpoint: leave it on"
            )
        if self.label_smoothing_factor:
            raise InputError("label_smoothing_factor has no part in the losses of lists: leave it at 0")
        if self.obedience_k < 1:
            raise InputError(f"obedience_k is {self.obedience_k}: expected at least 1")
        if self.bf16_full_eval or self.fp16_full_eval:
            raise InputError(
                "bf16_full_eval and fp16_full_eval make ties of scores, which would pass for obedience: leave them "
                "off; bf16=True trains in bf16 and evaluates in float32"
            )
        if self.task_loss is None and self.principled == "reference":
            self.task_loss = "own"
        losses = ("own", *TASK_LOSSES)
        if self.task_loss is not None and self.task_loss not in losses:
            raise InputError(
                f"task_loss is {self.task_loss!r}: expected one of {', '.join(losses)}"
                f"{suggestion(self.task_loss, losses)}"
            )
        self.objective()
        # Pinned memory speeds copies to a device; without one it only warns.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        if not self.load_best_model_at_end and self.metric_for_best_model == "ndcg@10":
            self.metric_for_best_model, self.greater_is_better = None, None
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:  # type: ignore[union-attr]
            # Each process reads its own lists of a stream, instead of the first reading for all.
            self.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        best = (self.metric_for_best_model or "").removeprefix("eval_")
        name, _, cut = best.partition("@")
        if best and not any(name == known or name.endswith(f"_{known}") for known in _MEASURES):
            raise InputError(f"metric_for_best_model is {best!r}: no such measure{suggestion(name, _MEASURES)}")
        if not cut.isdigit():
            return
        option, cuts = ("metric_ks", self.metric_ks)
        if name.endswith("_obedience"):
            option, cuts = ("obedience_k", [self.obedience_k])
        if int(cut) not in cuts:
            raise InputError(f"metric_for_best_model is {best!r}, but {option} is {cuts}: {cut} must be in {option}")

    def objective(self, task_loss: str | None = None) -> PrincipledObjective:
        """The objective that these options describe.

        Args:
            task_loss: Of the model. None: that of these options, if it is named here.

        Raises:
            InputError: An unknown value, or options that make no sense together.
        """
        if task_loss is None:
            task_loss = "binary_log_loss" if self.task_loss is None or self.task_loss == "own" else self.task_loss
        names = {entry.name for entry in fields(PrincipledObjective)} - {"preset", "task_loss"}
        options = {name: getattr(self, name) for name in names}
        return PrincipledObjective(preset=self.principled, task_loss=task_loss, **options)
