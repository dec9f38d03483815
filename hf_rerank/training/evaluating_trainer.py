"""``EvaluatingTrainer``: a ``Trainer`` with this library's evaluation of lists, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import IntervalStrategy
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from hf_rerank.errors import InputError, TrainingStopped
from hf_rerank.evaluation.evaluator import EvaluationSums, make_comparable, measure_obedience
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput
from hf_rerank.principled import PRESETS
from hf_rerank.principled.obedience import MAX_STEPS
from hf_rerank.processing.collator import RerankCollator, hash_list_ids
from hf_rerank.training.arguments import RerankTrainingArguments
from hf_rerank.training.batch_metrics import BatchMetrics
from hf_rerank.training.best_metric import check_best_metric_of_sets
from hf_rerank.training.checkpointing_trainer import CheckpointingTrainer
from hf_rerank.training.datasets import encode_lists
from hf_rerank.training.encoded_lists import split_batch
from hf_rerank.training.finite import find_broken_lists
from hf_rerank.training.task_loss import replace_task_loss

_log = logging.get_logger(__name__)


class EvaluatingTrainer(CheckpointingTrainer):
    """Evaluates raw lists: ranking metrics, obedience, and the user's metrics, batch by batch.

    Args:
        args: Options.
        collator: Encodes the lists.
        eval_dataset: Raw lists, or several by name.
        compute_metrics: The user's metrics; see ``BatchMetrics``.
        options: Options of ``CheckpointingTrainer``.
    """

    args: RerankTrainingArguments
    model: PreTrainedReranker

    def __init__(
        self,
        *,
        args: RerankTrainingArguments,
        collator: RerankCollator,
        eval_dataset: Any = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        **options: Any,
    ) -> None:
        check_best_metric_of_sets(args, eval_dataset, compute_metrics, collator.processor.schema)
        self.list_collator = collator
        self._names = list(eval_dataset) if isinstance(eval_dataset, dict) else []

        def make_sums() -> EvaluationSums:
            return EvaluationSums(
                args.metric_ks,
                no_click=args.no_click,
                gain=args.gain,
                click_above=args.click_above,
                examination=collator.processor.schema.examination,
            )

        self.batch_metrics = BatchMetrics(make_sums, compute_metrics)
        super().__init__(
            args=args,
            eval_dataset=encode_lists(eval_dataset, collator, args, train=False, use_cache=True),
            compute_metrics=self.batch_metrics,
            **options,
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Computes the metrics of raw lists, each named ``eval_...``.

        Args:
            eval_dataset: Raw lists, or a dict of them by name. None: the trainer's evaluation lists.
            ignore_keys: As in ``transformers.Trainer``.
            metric_key_prefix: Prefix of each name.

        Raises:
            TrainingStopped: A score is not finite; or, during training, the metric that chooses the best checkpoint
                is not finite or not computed.
        """
        if isinstance(eval_dataset, str) and eval_dataset not in self._names:
            named = f"named {', '.join(self._names)}" if self._names else "without a name"
            raise InputError(
                f"expected a datasets Dataset or IterableDataset of lists, got {eval_dataset!r}: the "
                f"trainer has evaluation lists {named}"
            )
        lists = encode_lists(eval_dataset, self.list_collator, self.args, train=False, use_cache=False)
        self.batch_metrics.reset()
        metrics = super().evaluate(lists, ignore_keys, metric_key_prefix)
        best = (self.args.metric_for_best_model or "").removeprefix("eval_")
        chooser = f"eval_{best}"
        # With several sets this is called once per set, and then with the metrics of all.
        if self.is_in_train and best and eval_dataset is None and chooser not in metrics:
            known = sorted(name.removeprefix("eval_") for name in metrics)
            raise TrainingStopped(
                f"metric_for_best_model is {best!r}, and the evaluation computes {', '.join(known)}: choose one of "
                "these"
            )
        if self.is_in_train and chooser in metrics and not math.isfinite(metrics[chooser]):
            raise TrainingStopped(
                f"{chooser}, which chooses the best checkpoint, is {metrics[chooser]} at step "
                f"{self.state.global_step}: no list of the evaluation set counts in it, or scores are broken; choose "
                "another metric_for_best_model, or check the lists"
            )
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """Scores raw lists with labels; ``Reranker.predict`` and ``rerank`` need no labels.

        Returns:
            As upstream. ``predictions``: the scores [N, L] and the measures of each list; ``label_ids``: the labels
            [N, L], -100 at padding, the positions, and other columns.
        """
        lists = encode_lists(test_dataset, self.list_collator, self.args, train=False, use_cache=False)
        self.batch_metrics.reset()
        found = super().predict(lists, ignore_keys, metric_key_prefix)
        # Lists without items fill up the last batch of several processes.
        given: tuple[Any, Any] = (found.predictions, found.label_ids)
        real = (given[1][0] >= 0).any(-1)
        kept: list[Any] = [tuple(array[real] for array in arrays) for arrays in given]
        return PredictionOutput(predictions=kept[0], label_ids=kept[1], metrics=found.metrics)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Computes task loss, scores and obedience of one batch.

        During training, obedience is measured on one swap per list and without fixed points; otherwise on the swaps
        that ``args.swaps`` selects. With ``args.prediction_loss_only`` it is not measured.

        Raises:
            TrainingStopped: A score is not finite.
        """
        features, others = split_batch({name: value.to(self.args.device) for name, value in inputs.items()})
        # A sharded model runs only inside its wrapper.
        run = model if self.is_fsdp_enabled or self.is_deepspeed_enabled else self._forward

        def forward(objective: Callable[..., Any], **tensors: Tensor) -> RerankerOutput:
            return run(**tensors, objective=replace_task_loss(objective, self.compute_loss_func))

        output: Any
        # Rankings are compared in float32: ties in bf16 would inflate obedience.
        with torch.no_grad(), torch.autocast(self.args.device.type, enabled=False):
            if prediction_loss_only:
                output = forward(PRESETS["none"], **features)
                output.losses = {}
            else:
                output = measure_obedience(
                    forward,
                    features,
                    obedience_k=self.args.obedience_k,
                    swaps="one" if self.is_in_train else self.args.swaps,
                    max_steps=0 if self.is_in_train else MAX_STEPS,
                    list_keys=hash_list_ids(others["list_id"]),
                )
        broken = find_broken_lists(output.logits, features["mask"], others["list_id"])
        if broken:
            raise TrainingStopped(
                f"scores are not finite in an evaluation (step {self.state.global_step}), those of lists "
                f"{', '.join(broken[:5])}: such a model is never the best; check these lists, or lower "
                "learning_rate; checkpoints are unchanged"
            )
        scores = make_comparable(output.logits, self.model.config.task_loss_name, features["mask"])
        # A mean over the batch's lists: stored for each list, it weights a short batch by its number of lists. A NaN
        # among measures would be left out.
        loss = _loss(output).nan_to_num(nan=math.inf).expand(len(scores))
        predictions, labels = self.batch_metrics.pack(scores, {**output.losses, "loss": loss}, features, others)
        return _loss(output), predictions, labels

    def _forward(self, **tensors: Any) -> RerankerOutput:
        """Calls the model's own ``forward``, without the autocast that the Trainer wraps around it."""
        return type(self.model).forward(self.model, **tensors)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As upstream, but with all lists (``dataloader_drop_last`` is for training), and with the lists given here:
        upstream's persistent workers keep those that were evaluated first."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            return self.get_test_dataloader(eval_dataset)
        with self._keep_last_batch():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As upstream, but with all lists."""
        with self._keep_last_batch():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keep_last_batch(self) -> Iterator[None]:
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = dropped


def evaluate_nothing(args: RerankTrainingArguments) -> None:
    """Changes the arguments for a training without evaluation lists: no evaluation, and no best checkpoint.

    Raises:
        InputError: The learning-rate schedule, or the saving strategy, depends on evaluations.
    """
    for name, value in (
        ("save_strategy", "best"),
        ("lr_scheduler_type", "reduce_lr_on_plateau"),
        ("lr_scheduler_type", "greedy"),
        ("eval_on_start", True),
    ):
        if getattr(args, name) == value:
            raise InputError(
                f"{name}={value} needs evaluations, and there are no evaluation lists: give eval_dataset, or choose "
                "another"
            )
    if args.load_best_model_at_end and args.process_index == 0:
        _log.warning_once(
            "no evaluation lists: nothing is evaluated during training, no checkpoint is chosen as the best, and the "
            "model is that of the last step"
        )
    args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
    args.metric_for_best_model, args.greater_is_better = None, None


def _loss(output: RerankerOutput) -> Tensor:
    assert output.loss is not None
    return output.loss.detach().float()
