"""``RerankTrainer``: the transformers Trainer on lists, with the principled objective and re-ranking metrics.

It overrides what a re-ranker needs (the loss, one evaluation step, the log, saving, pushing) through public methods
only; ``CheckpointingTrainer`` writes and resumes checkpoints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from hf_rerank.errors import InputError, TrainingStopped
from hf_rerank.evaluation.evaluator import comparable_scores, measured
from hf_rerank.evaluation.results import describe_training
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput
from hf_rerank.principled import PRESETS, PrincipledObjective
from hf_rerank.principled.obedience import COLLAPSED_SPREAD, MAX_STEPS
from hf_rerank.processing import ListProcessor
from hf_rerank.processing.collator import RerankCollator, list_keys
from hf_rerank.schema import MODEL_TENSORS
from hf_rerank.storage import replacing, write_json
from hf_rerank.training.arguments import RerankTrainingArguments
from hf_rerank.training.batch_metrics import BatchMetrics
from hf_rerank.training.callbacks import HealthCallback, ResultsCallback, StreamPasses
from hf_rerank.training.checkpointing_trainer import CheckpointingTrainer
from hf_rerank.training.datasets import encode_lists
from hf_rerank.training.finite import FiniteGuard, OptimizerGuard, lists_with_broken_scores
from hf_rerank.training.resume import describe_run, refuse_another_run, write_run
from hf_rerank.training.streams import EncodedStream, collate_stream

# What a resumed run needs beside the Trainer's own state: sums for the next log, and the factors of the terms.
STATE_FILE = "rerank_state.json"
# The first word of an objective's name in results where it is none of the presets.
CUSTOM = "custom"


class RerankTrainer(CheckpointingTrainer):
    """Trains a re-ranker on raw lists.

    Args:
        model: A re-ranker of this library.
        args: Options.
        train_dataset: Raw lists: a ``datasets`` Dataset, or an IterableDataset (then ``max_steps`` must be set). A
            stream is read pass after pass, each list once per pass, shuffled (see ``stream_window``); the batch at
            the end of a pass is filled up from the next. What is to be done each epoch is done at the end of a pass;
            the ``epoch`` of the log is the fraction of ``max_steps``.
        eval_dataset: Raw lists to choose the best checkpoint on, or several by name: the validation split, never the
            test split.
        processing_class: The processor whose schema the model was configured for.
        objective: What to train on besides the presets of ``args.principled``, which must then be left at its
            default.
        compute_loss_func: ``(outputs, labels, num_items_in_batch) -> scalar``, in place of the task loss of every
            pass; labels are -100 at padding, and the result is a mean over the lists of the batch.
        compute_metrics: As of ``transformers.Trainer``, beside the built-in metrics; see ``BatchMetrics``.
        callbacks: As of ``transformers.Trainer``.
        optimizers: As of ``transformers.Trainer``.

    Raises:
        InputError: Model and processor do not belong together, or lists or options are wrong.

    Attributes:
        principled_objective: The objective that is trained on.
        term_factors: Name of each of its terms -> a factor on its weight, a scalar tensor on the device; part of every
            checkpoint. A callback may change it in place while training runs
            (``term_factors["convergence"].fill_(0.5)``).
        results: Everything that is needed to repeat the run, and its outcome; ``save_model`` writes ``results.json``.
    """

    args: RerankTrainingArguments
    model: PreTrainedReranker

    # The loss is a mean over a batch's lists: the Trainer divides it by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedReranker,
        args: RerankTrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ListProcessor | None = None,
        *,
        objective: PrincipledObjective | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        if not isinstance(args, RerankTrainingArguments):
            raise InputError(f"args is a {type(args).__name__}: expected RerankTrainingArguments")
        if processing_class is None:
            raise InputError(
                "processing_class is missing: expected the ListProcessor that the model was configured for"
            )
        processing_class.check_fingerprint(model.config.schema_fingerprint, "the model")
        if train_dataset is not None and not hasattr(train_dataset, "__len__") and args.max_steps < 1:
            raise InputError("train_dataset is a stream of unknown length: set max_steps in the arguments")
        self.processor = processing_class
        chosen = args.objective() if objective is None else objective
        self.principled_objective = self._resolve_task_loss(chosen, model, args)
        bounded = model.config.task_loss_name == "binary_log_loss" and compute_loss_func is None
        self._collator = RerankCollator(
            processing_class,
            highest_label=1.0 if bounded else float("inf"),
            truncate=args.truncate_lists,
            all_tensors=True,
        )
        self._metrics = BatchMetrics(
            args.metric_ks, args.no_click, processing_class.schema.examination, compute_metrics
        )
        self._others: dict[str, Tensor] = {}
        self._log_sums: dict[str, Tensor] = {}
        self._log_steps = 0
        named = args.principled if objective is None else CUSTOM
        self._results = ResultsCallback(
            describe_training(model, processing_class, args, train=train_dataset, validation=eval_dataset)
            | {"objective": {"principled": named, **self.principled_objective.settings()}}
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_stream,
            train_dataset=encode_lists(train_dataset, self._collator, args, train=True, use_cache=True),
            eval_dataset=encode_lists(eval_dataset, self._collator, args, train=False, use_cache=True),
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=self._metrics,
            callbacks=[
                HealthCallback(self.principled_objective),
                StreamPasses(),
                self._results,
                *(callbacks or []),
            ],
            optimizers=optimizers,
        )
        device = self.args.device
        self.term_factors = {term.name: torch.ones((), device=device) for term in self.principled_objective.terms}
        self.guard = FiniteGuard(device, at_every_step=device.type == "cpu" and self.args.world_size == 1)
        # Under fp16 the scaler meets infinite gradients by design, and skips their step; shards know only a part.
        self._guards_gradients = not (self.args.fp16 or self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if self._guards_gradients:
            self.add_callback(OptimizerGuard(self.guard))

    @staticmethod
    def _resolve_task_loss(
        objective: PrincipledObjective, model: PreTrainedReranker, args: RerankTrainingArguments
    ) -> PrincipledObjective:
        """Gives model and objective one task loss: that of the arguments, else the objective's, else the config's."""
        asked = args.task_loss or objective.task_loss
        if asked is not None:
            model.config.task_loss = asked
        return objective.for_task_loss(model.config.task_loss_name)

    @property
    def results(self) -> dict[str, Any]:
        """Everything that is needed to repeat the run, and its outcome so far."""
        return self._results.values

    def prepare_state(self, checkpoint: Path | None) -> None:
        """Resumes the sums for the next log, the factors of the terms, and the place in a stream."""
        self._log_sums, self._log_steps = {}, 0
        stream = self.train_dataset if isinstance(self.train_dataset, EncodedStream) else None
        if stream is not None:
            stream.go_on(0)
        if self.args.world_size > 1 and any(
            data != self.results["data"] for data in gather_object([self.results["data"]])
        ):
            raise InputError(
                "the processes were given different lists, or in different orders: give all the same; a stream that "
                "is shuffled before it comes here must be shuffled with a seed"
            )
        if checkpoint is None:
            return
        known = refuse_another_run(checkpoint, self._run(), stream=stream is not None)
        if stream is not None and not self.args.ignore_data_skip:
            stream.go_on(self.resumed_step * self.args.gradient_accumulation_steps * stream.step, known)
        # In several processes these are the sums of the first: until the next log, the others take them for their own.
        saved = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        self._log_steps = saved["log_steps"]
        self._log_sums = {
            name: torch.tensor(total, dtype=torch.float32, device=self.args.device)
            for name, total in saved["log_sums"].items()
        }
        for name, factor in saved["term_factors"].items():
            self.term_factors[name].fill_(factor)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        """As upstream; what the model does not take is set aside; gradients are checked before they are applied."""
        loss = super().training_step(model, self._set_aside(inputs), *args, **options)
        if self._guards_gradients and self.accelerator.sync_gradients:  # else more batches of this step follow
            self.guard.observe_gradients(self.state.global_step + 1, model.parameters())
            self._check_at_once()
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The principled objective of one batch, in one call of the model's ``forward``."""
        features = self._set_aside(inputs)
        list_id = self._others.get("list_id")
        list_id = None if list_id is None else list_id.to(self.args.device)
        objective = self.principled_objective.at(
            step=self.state.global_step,
            steps=self.state.max_steps,
            list_keys=None if list_id is None else list_keys(list_id),
            factors=self.term_factors,
        )
        output = model(**features, objective=self._with_loss_func(objective))
        self._add_to_log(output, features["mask"])
        self.guard.observe_loss(self.state.global_step + 1, output, features["mask"], list_id)
        self._check_at_once()
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Task loss, scores and obedience of one evaluation batch.

        During training obedience is measured on one swap per list and without fixed points; otherwise on all swaps.
        """
        inputs = {name: value.to(self.args.device) for name, value in inputs.items()}
        features = self._set_aside(inputs)
        # Rankings are compared in float32: ties in bf16 would inflate obedience. A sharded model runs only as wrapped.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled

        def forward(objective: Callable[..., Any], **tensors: Tensor) -> RerankerOutput:
            asked = self._with_loss_func(objective)
            if sharded:
                return model(**tensors, objective=asked)
            return type(self.model).forward(self.model, **tensors, objective=asked)

        with torch.no_grad(), torch.autocast(self.args.device.type, enabled=False):
            if prediction_loss_only:
                return forward(PRESETS["none"], **features).loss.detach().float(), None, None  # type: ignore[union-attr]
            output = measured(
                forward,
                features,
                obedience_k=self.args.obedience_k,
                swaps="one" if self.is_in_train else "all",
                max_steps=0 if self.is_in_train else MAX_STEPS,
                list_keys=list_keys(self._others["list_id"]),
            )
        broken = lists_with_broken_scores(output.logits, features["mask"], self._others["list_id"])
        if broken:
            raise TrainingStopped(
                f"scores are not finite in an evaluation (step {self.state.global_step}), those of lists "
                f"{', '.join(broken[:5])}: such a model is never the best; look at these lists, or lower "
                "learning_rate; checkpoints are unchanged"
            )
        scores = comparable_scores(output.logits, self.model.config.task_loss_name, features["mask"])
        self._metrics.measures = list(output.losses)
        self._metrics.columns = [name for name in ("attraction", "propensities") if name in self._others]
        others = [self._others[name] for name in self._metrics.columns]
        predictions = (scores, torch.stack(list(output.losses.values()), dim=-1))
        return output.loss.detach().float(), predictions, (features["labels"], features["position_ids"], *others)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of raw lists, each named ``eval_...``; the results keep them under the prefix.

        Args:
            eval_dataset: Raw lists, or a dict of them by name. None: those given at the start.
            ignore_keys: As of ``transformers.Trainer``.
            metric_key_prefix: Before each name.
        """
        if self.is_in_train:
            self._check_finite()
            self._refuse_broken_weights()
        lists = encode_lists(eval_dataset, self._collator, self.args, train=False, use_cache=False)
        self._metrics.reset()
        metrics = super().evaluate(lists, ignore_keys, metric_key_prefix)
        chooser = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        if self.is_in_train and chooser in metrics and not math.isfinite(metrics[chooser]):
            raise TrainingStopped(
                f"{chooser}, which chooses the best checkpoint, is {metrics[chooser]} at step "
                f"{self.state.global_step}: no list of the evaluation set counts in it, or scores are broken; choose "
                "another metric_for_best_model, or look at the lists"
            )
        several = isinstance(lists, dict) or (lists is None and isinstance(self.eval_dataset, dict))
        if not self.is_in_train and not several:
            self.results["evaluations"][metric_key_prefix] = metrics
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """Scores of raw lists with labels; ``Reranker.predict`` and ``rerank`` take lists without."""
        self._metrics.reset()
        lists = encode_lists(test_dataset, self._collator, self.args, train=False, use_cache=False)
        return super().predict(lists, ignore_keys, metric_key_prefix)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As upstream, but of all lists (``dataloader_drop_last`` is for training), and of those that are given:
        upstream's persistent workers keep the lists that were evaluated first."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            return self.get_test_dataloader(eval_dataset)
        with self._without_drop_last():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As upstream, but of all lists."""
        with self._without_drop_last():
            return super().get_test_dataloader(test_dataset)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean over batches of the loss, each of its terms and the score spread since the last log.

        Raises:
            TrainingStopped: A loss or gradient since the last log was not finite.
        """
        if "loss" in logs and self._log_steps:
            self._check_finite()
            for name, total in self._log_sums.items():
                logs[name] = self.accelerator.gather(total.reshape(1)).mean().item() / self._log_steps
            self._log_sums, self._log_steps = {}, 0
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes model, processor, ``training_args.json`` and ``results.json``, with a manifest: all of it or nothing.

        No pickle is among them. For a checkpoint the Trainer calls this itself (``_internal_call``).

        Raises:
            TrainingStopped: A weight, a loss or a gradient is not finite; nothing is written.
            OSError: Something could not be written; files saved there before are unchanged.
        """
        self._check_finite()
        self._refuse_broken_weights()
        assert self.args.output_dir is not None  # the arguments fill it in
        folder = Path(output_dir or self.args.output_dir)
        whole = replacing(folder) if self.args.should_save and not _internal_call else nullcontext(folder)
        with whole as staging:
            super().save_model(str(staging), _internal_call)
            if not self.args.should_save:
                return
            (staging / "training_args.bin").unlink(missing_ok=True)
            write_json(staging / "training_args.json", self.results["training_arguments"])
            if _internal_call:
                self._write_state(staging)
            else:
                write_json(staging / "results.json", self.results)

    def push_to_hub(self, repo_id: str | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Uploads the model, its processor, card with figures, and results in one commit, and nothing else.

        Args:
            repo_id: ``"someone/name"``. None: ``args.hub_model_id``, or the name of ``args.output_dir``.
            options: ``commit_message``, ``private``, ``token``, ``revision``, ``create_pr``, as of
                ``hf_rerank.hub.push_model``; else those of the arguments.

        Returns:
            The ``CommitInfo``; None on processes other than the main one.

        Raises:
            TrainingStopped: A weight is not finite.
            InputError: As ``hf_rerank.hub.push_model``.
        """
        if not self.is_world_process_zero():
            return None
        from hf_rerank.hub.push import save_and_push

        self._refuse_broken_weights()
        args, folder = self.args, str(self.args.output_dir)
        asked: dict[str, Any] = {
            "private": args.hub_private_repo,
            "token": args.hub_token,
            "revision": args.hub_revision,
        }
        asked |= {name: value for name, value in options.items() if value is not None}
        asked.setdefault("commit_message", "Upload re-ranker")

        def save(staging: Path) -> None:
            self.model.save_pretrained(staging)
            self.processor.save_pretrained(staging)
            write_json(staging / "training_args.json", self.results["training_arguments"])
            write_json(staging / "results.json", self.results)

        return save_and_push(save, repo_id or args.hub_model_id or Path(folder).name, **asked)

    def _set_aside(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What ``forward`` takes of a batch; the ids and the ground truth are kept in ``_others``."""
        others = {name: value for name, value in inputs.items() if name not in MODEL_TENSORS}
        if others:
            self._others = others
        return {name: value for name, value in inputs.items() if name in MODEL_TENSORS}

    def _with_loss_func(self, objective: Callable[..., Any]) -> Callable[..., Any]:
        """The objective with ``compute_loss_func`` in place of the task loss, where there is one."""
        function = self.compute_loss_func
        if function is None:
            return objective

        def replaced(score: Any, position_ids: Tensor, labels: Tensor, mask: Tensor, task_loss: Any) -> Any:
            def loss(output: RerankerOutput, lists: Tensor | None = None) -> Tensor:
                return function(output, labels if lists is None else labels[lists], num_items_in_batch=None)

            return objective(score, position_ids, labels, mask, loss)

        return replaced

    def _add_to_log(self, output: RerankerOutput, mask: Tensor) -> None:
        """Keeps sums for the next log on the device, so that nothing waits for them."""
        assert output.logits is not None
        logits = torch.where(mask, output.logits.detach().float(), 0.0)
        count = mask.sum(-1).clamp(min=1)
        mean = (logits.sum(-1) / count).unsqueeze(-1)
        spread = (torch.where(mask, logits - mean, 0.0).square().sum(-1) / count).sqrt()
        lists = mask.sum(-1) >= 2
        counted = lists.sum().clamp(min=1)
        assert output.loss is not None
        terms = {
            "loss": output.loss,
            **(output.losses or {}),
            "score_spread": torch.where(lists, spread, 0.0).sum() / counted,
            "collapsed_share": (lists & (spread < COLLAPSED_SPREAD)).sum() / counted,
        }
        for name, value in terms.items():
            self._log_sums[name] = self._log_sums.get(name, 0.0) + value.detach().float()
        self._log_steps += 1

    def _check_at_once(self) -> None:
        if self.guard.at_every_step:
            self.guard.check(dict(self.model.named_parameters()))

    def _check_finite(self) -> None:
        gathered = self.accelerator.gather(self.guard.found_inf.reshape(1)) if self.args.world_size > 1 else None
        self.guard.check(dict(self.model.named_parameters()), gathered)

    def _refuse_broken_weights(self) -> None:
        try:
            self.model.refuse_non_finite_weights("so the model is not saved nor pushed")
        except InputError as error:
            raise TrainingStopped(
                f"{error} (step {self.state.global_step}): resume from an earlier checkpoint, and lower learning_rate "
                "or the weights of the consistency terms"
            ) from None

    def _write_state(self, checkpoint: Path) -> None:
        state = {
            "log_steps": self._log_steps,
            "log_sums": {name: total.item() for name, total in self._log_sums.items()},
            "term_factors": {name: factor.item() for name, factor in self.term_factors.items()},
        }
        write_json(checkpoint / STATE_FILE, state)
        write_run(checkpoint, self._run(), getattr(self.train_dataset, "lists_a_pass", 0))

    def _run(self) -> dict[str, Any]:
        """What decides which batches this run reads, and which parameters they train."""
        frozen = [name for name, parameter in self.model.named_parameters() if not parameter.requires_grad]
        return describe_run(self.args, self.results["data"], self.results["objective"], frozen)

    @contextmanager
    def _without_drop_last(self) -> Iterator[None]:
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = dropped
