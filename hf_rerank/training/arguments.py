"""The options of training: those of transformers, with defaults for small listwise models, and our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments

from hf_rerank.errors import InputError, suggestion
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
        metadata={"help": "Preset of principled learning: scaled, paper (the literal formula), or none."},
    )
    convergence_weight: float | None = field(
        default=None, metadata={"help": "w1, of convergence consistency. Not given: the preset's."}
    )
    adversarial_weight: float | None = field(
        default=None, metadata={"help": "w2, of adversarial consistency. Not given: the preset's."}
    )
    consistency_reduction: Literal["sum", "mean", "weighted_mean"] | None = field(
        default=None, metadata={"help": "Of a consistency term over a list's items. Not given: the preset's."}
    )
    consistency_space: Literal["probability", "logit"] = field(
        default="probability", metadata={"help": "What scores are compared as in the consistency terms."}
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
        if self.obedience_k < 1:
            raise InputError(f"obedience_k is {self.obedience_k}: expected at least 1")
        self.objective()
        # Pinned memory speeds copies to a device; without one it only warns.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        if not self.load_best_model_at_end and self.metric_for_best_model == "ndcg@10":
            self.metric_for_best_model, self.greater_is_better = None, None
        super().__post_init__()
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

    def objective(self, task_loss: str = "binary_log_loss") -> PrincipledObjective:
        """The objective that these options describe, for a model with this task loss."""
        return PrincipledObjective(
            preset=self.principled,
            convergence_weight=self.convergence_weight,
            adversarial_weight=self.adversarial_weight,
            reduction=self.consistency_reduction,
            space=self.consistency_space,
            task_loss=task_loss,
            seed=self.seed,
        )
