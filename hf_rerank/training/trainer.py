"""``RerankTrainer``: the transformers Trainer on lists, with the principled objective and re-ranking's metrics.

It overrides what a re-ranker needs (the loss, one evaluation step, the log, saving, pushing) through public methods
only; checkpoints are the matter of ``CheckpointingTrainer``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import EvalPrediction

from hf_rerank.errors import InputError, TrainingStopped
from hf_rerank.evaluation import EXTRAS, EvaluationSums, comparable_scores, measured
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput
from hf_rerank.principled.obedience import COLLAPSED_SPREAD
from hf_rerank.principled.objective import PrincipledObjective
from hf_rerank.processing import ListProcessor
from hf_rerank.storage import replacing, write_json
from hf_rerank.training.arguments import RerankTrainingArguments
from hf_rerank.training.batches import EncodedLists, ids_from_bytes, list_keys
from hf_rerank.training.checkpoints import CheckpointingTrainer
from hf_rerank.training.encoded_cache import CachedLists
from hf_rerank.training.health import HealthCallback
from hf_rerank.training.results import data_identity, environment
from hf_rerank.training.resume import describe_run, refuse_another_run, write_run
from hf_rerank.training.streams import EncodedStream, StreamPasses, collate_stream
from hf_rerank.vocabularies import TableVocabulary

IDS_IN_A_MESSAGE = 5
FIXED_POINT_STEPS = 10
# The sums since the last log, so that a run that goes on logs what the unbroken one would.
LOG_SUMS_FILE = "log_sums.json"


class RerankTrainer(CheckpointingTrainer):
    """Trains a re-ranker on raw lists.

    Args:
        model: A re-ranker of this library.
        args: Options.
        train_dataset: Raw lists: a ``datasets`` Dataset, or an IterableDataset (then ``max_steps`` must be set). A
            stream is read pass after pass, each list once a pass, shuffled (see ``stream_window``); the batch at the
            end of a pass is filled up from the next. What is to be done each epoch is done at the end of a pass; the
            ``epoch`` of the log is the share of ``max_steps``.
        eval_dataset: Raw lists to choose the best checkpoint on: the validation split, never the test split.
        processing_class: The processor whose schema the model was configured for.
        callbacks: As of ``transformers.Trainer``.
        optimizers: As of ``transformers.Trainer``.

    Raises:
        InputError: Model and processor do not belong together, or lists are wrong.

    Attributes:
        results: All that is needed to repeat the run and what came of it; ``save_model`` writes it as
            ``results.json``.
    """

    args: RerankTrainingArguments
    model: PreTrainedReranker
    objective: PrincipledObjective

    # The loss is a mean over a batch's lists: the Trainer divides it by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedReranker,
        args: RerankTrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ListProcessor | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        if not isinstance(args, RerankTrainingArguments):
            raise InputError(f"args is a {type(args).__name__}: expected RerankTrainingArguments")
        if processing_class is None:
            raise InputError(
                "processing_class is missing: expected the ListProcessor that the model was configured for"
            )
        expected, found = model.config.schema_fingerprint, processing_class.schema.fingerprint
        if expected not in (None, found):
            raise InputError(
                f"the model was configured for lists with fingerprint {expected}, the processor has {found}: use the "
                "processor saved beside the model, or make the config with for_schema(processor.schema)"
            )
        if train_dataset is not None and not hasattr(train_dataset, "__len__") and args.max_steps < 1:
            raise InputError("train_dataset is a stream, whose length nobody knows: set max_steps in the arguments")
        self.args, self.processor = args, processing_class
        if args.task_loss is not None:
            model.config.task_loss = args.task_loss  # type: ignore[assignment]
        self._encode_options: dict[str, Any] = {
            "highest_label": 1.0 if model.config.task_loss_name == "binary_log_loss" else float("inf"),
            "truncate": args.truncate_lists,
        }
        self.objective = args.objective(model.config.task_loss_name)
        self._evaluation: EvaluationSums | None = None
        self._measure_names: list[str] = []
        self._extra_names: list[str] = []
        self._log_sums: dict[str, Tensor] = {}
        self._log_steps = 0
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_stream,
            train_dataset=self._encoded(train_dataset, cache=args.encoded_cache, train=True),
            eval_dataset=self._encoded(eval_dataset, cache=args.encoded_cache),
            processing_class=processing_class,
            compute_metrics=self._add_evaluation_batch,
            callbacks=[HealthCallback(self.objective), StreamPasses(), *(callbacks or [])],
            optimizers=optimizers,
        )
        self.results: dict[str, Any] = {
            "model": model.config.to_dict(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training_arguments": args.to_dict(),
            "objective": self.objective.settings(),
            "task_loss": model.config.task_loss_name,
            "schema": processing_class.schema.to_dict(),
            "processor": processing_class.fit_report,
            "text_columns": [
                name
                for name, vocabulary in processing_class.vocabularies.items()
                if isinstance(vocabulary, TableVocabulary) and vocabulary.is_text
            ],
            "data": {
                split: data_identity(dataset, processing_class.schema)
                for split, dataset in (("train", train_dataset), ("validation", eval_dataset))
                if dataset is not None
            },
            "environment": environment(),
            "evaluations": {},
        }

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains, as ``CheckpointingTrainer.train``; the results get the log and the best checkpoint's metric.

        Raises:
            InputError: A list is wrong; or the checkpoint is not whole, not of this model, or of a run on other
                lists or in another order.
            TrainingStopped: The loss, a gradient, a weight or a score is not finite.
            OSError: A checkpoint could not be written; those before are untouched.
            TrainingInterrupted: Ctrl-C or SIGTERM, after a checkpoint of the step at hand.
        """
        started = time.monotonic()
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self.results["training"] = {
            "seconds": time.monotonic() - started,
            "steps": self.state.global_step,
            "best_metric": self.state.best_metric,
            "best_step": self.state.best_global_step,
            "log": self.state.log_history,
        }
        return output

    def prepare_state(self, checkpoint: Path | None) -> None:
        """Goes on with the sums for the next log, and at the same place of a stream."""
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
        saved = json.loads((checkpoint / LOG_SUMS_FILE).read_text(encoding="utf-8"))
        self._log_steps = saved["steps"]
        self._log_sums = {
            name: torch.tensor(total, dtype=torch.float32, device=self.args.device)
            for name, total in saved["sums"].items()
        }

    def training_step(self, model: nn.Module, *args: Any, **options: Any) -> Tensor:
        """As upstream; gradients that are not finite stop training before they reach the weights."""
        loss = super().training_step(model, *args, **options)
        # Under fp16 the scaler meets infinite gradients by design, and skips their step; shards know only a part.
        if self.args.fp16 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return loss
        if not self.accelerator.sync_gradients:  # more batches of this step are to come
            return loss
        if not bool(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).isfinite()):
            names = [
                name
                for name, parameter in self.model.named_parameters()
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
            ]
            raise TrainingStopped(
                f"the gradient is not finite at step {self.state.global_step + 1}: that of "
                f"{', '.join(names[:5]) or 'all weights together, which is too large for a number'}. Lower "
                "learning_rate or the consistency weights; checkpoints before this step are untouched"
            )
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The principled objective of one batch, in one call of the model's ``forward``."""
        features = {name: value for name, value in inputs.items() if name not in EXTRAS}
        objective = self.objective.at(
            step=self.state.global_step, steps=self.state.max_steps, list_keys=list_keys(inputs["list_id"])
        )
        output = model(**features, objective=objective)
        self._remember(output, features["mask"])
        if not bool(torch.isfinite(output.loss)):
            raise TrainingStopped(self._not_finite(output, inputs))
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Task loss, scores and obedience of one evaluation batch.

        During training obedience is measured on one swap a list and without fixed points; otherwise on all swaps.
        """
        inputs = {name: value.to(self.args.device) for name, value in inputs.items()}
        extras = {name: inputs.pop(name) for name in EXTRAS if name in inputs}
        # Rankings are compared in float32: ties in bf16 would fake obedience. A sharded model runs only as wrapped.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        forward: Any = model if sharded else partial(type(self.model).forward, self.model)
        with torch.no_grad(), torch.autocast(self.args.device.type, enabled=False):
            if prediction_loss_only:
                return forward(**inputs).loss.detach().float(), None, None
            output = measured(
                forward,
                inputs,
                obedience_k=self.args.obedience_k,
                swaps="one" if self.is_in_train else "all",
                max_steps=0 if self.is_in_train else FIXED_POINT_STEPS,
                list_keys=list_keys(extras["list_id"]),
            )
        if bool((~torch.isfinite(output.logits) & inputs["mask"]).any()):
            raise TrainingStopped(
                f"scores are not finite in an evaluation (step {self.state.global_step}): "
                f"{self._lists_with_broken_scores(output, {**inputs, **extras})}. Such a model is never the best; "
                "look at these lists, or lower learning_rate; checkpoints are untouched"
            )
        scores = comparable_scores(output.logits, self.model.config.task_loss_name, inputs["mask"])
        self._measure_names = list(output.losses)
        predictions = (scores, torch.stack(list(output.losses.values()), dim=-1))
        self._extra_names = [name for name in ("attraction", "propensities") if name in extras]
        truth = [extras[name] for name in self._extra_names]
        return output.loss.detach().float(), predictions, (inputs["labels"], inputs["position_ids"], *truth)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of raw lists, each named ``eval_...``; the results keep them under the prefix.

        Args:
            eval_dataset: Raw lists, or a dictionary of them by name. None: those given at the start.
            ignore_keys: As of ``transformers.Trainer``.
            metric_key_prefix: Before each name.
        """
        if not isinstance(eval_dataset, dict):
            eval_dataset = self._encoded(eval_dataset)
        if self.is_in_train:
            self._refuse_broken_weights()
        self._evaluation = None  # what an evaluation that failed may have left
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        chooser = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        if self.is_in_train and chooser in metrics and not math.isfinite(metrics[chooser]):
            raise TrainingStopped(
                f"{chooser}, which chooses the best checkpoint, is {metrics[chooser]} at step "
                f"{self.state.global_step}: no list of the evaluation set counts in it, or scores are broken; choose "
                "another metric_for_best_model, or look at the lists"
            )
        if not self.is_in_train and not isinstance(eval_dataset, dict):
            self.results["evaluations"][metric_key_prefix] = metrics
        return metrics

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As upstream, but of all lists (``dataloader_drop_last`` is for training), and of those that are given:
        upstream's persistent workers go on giving the lists that were evaluated first."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            return self.get_test_dataloader(eval_dataset)
        with self._no_list_dropped():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As upstream, but of all lists."""
        with self._no_list_dropped():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _no_list_dropped(self) -> Iterator[None]:
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = dropped

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """Scores of raw lists with labels; ``Reranker.rerank`` ranks lists without."""
        self._evaluation = None
        return super().predict(self._encoded(test_dataset), ignore_keys, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean over batches of the loss, each of its terms and the score spread since the last log."""
        if "loss" in logs and self._log_steps:
            for name, total in self._log_sums.items():
                logs[name] = self.accelerator.gather(total.reshape(1)).mean().item() / self._log_steps
            self._log_sums, self._log_steps = {}, 0
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes model, processor, ``training_args.json`` and ``results.json``, with a manifest: all of it or nothing.

        No pickle is among them. For a checkpoint the Trainer calls this itself (``_internal_call``).

        Raises:
            TrainingStopped: A weight is not finite; nothing is written.
            OSError: Something could not be written; files saved there before are untouched.
        """
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
                sums = {name: total.item() for name, total in self._log_sums.items()}
                write_json(staging / LOG_SUMS_FILE, {"steps": self._log_steps, "sums": sums})
                write_run(staging, self._run(), getattr(self.train_dataset, "lists_a_pass", 0))
            else:
                write_json(staging / "results.json", self.results)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str | None = None,
        *,
        commit_message: str = "Upload re-ranker",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> Any:
        """Uploads the model, its processor, card with figures, and results in one commit, and nothing else.

        Args:
            repo_id: ``"someone/name"``. None: ``args.hub_model_id``, or the name of ``args.output_dir``.
            commit_message: Of the commit.
            private: A repository that this creates is private; one that is there must be. None:
                ``args.hub_private_repo``.
            token: None: ``args.hub_token``, or the one you logged in with.
            revision: Branch to commit to, made if there is none. None: ``args.hub_revision``, or main.
            create_pr: Open a pull request instead.

        Returns:
            The ``CommitInfo``; None on processes other than the main one.

        Raises:
            TrainingStopped: A weight is not finite.
            InputError: As ``hf_rerank.hub.push_model``.
        """
        if not self.is_world_process_zero():
            return None
        from hf_rerank.hub.push import push_saved

        self._refuse_broken_weights()
        assert self.args.output_dir is not None

        def save(folder: Path) -> None:
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
            write_json(folder / "training_args.json", self.results["training_arguments"])
            write_json(folder / "results.json", self.results)

        return push_saved(
            save,
            repo_id or self.args.hub_model_id or Path(self.args.output_dir).name,
            commit_message=commit_message,
            private=self.args.hub_private_repo if private is None else private,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            create_pr=create_pr,
        )

    def _encoded(self, lists: Any, *, cache: str | None = None, train: bool = False) -> Any:
        """Raw lists as batches; those given at the start, which are read again and again, through the cache."""
        if lists is None or isinstance(lists, EncodedLists | CachedLists | EncodedStream):
            return lists
        from datasets import Dataset, IterableDataset

        if isinstance(lists, IterableDataset):
            if cache is not None:
                raise InputError(
                    "encoded_cache is for lists that are all there, and a stream is not: leave it out, or load the "
                    "lists with streaming=False"
                )
            args, config = self.args, self.args.accelerator_config
            if args.world_size > 1 and (config.dispatch_batches or config.split_batches):  # type: ignore[union-attr]
                raise InputError(
                    "dispatch_batches and split_batches of accelerator_config would give the lists of a stream to "
                    "other processes: leave them off"
                )
            if args.auto_find_batch_size:
                raise InputError("auto_find_batch_size would lose the place in a stream: set the batch size yourself")
            seed = args.seed if args.data_seed is None else args.data_seed
            shuffled = train and args.train_sampling_strategy != "sequential"
            return EncodedStream(
                lists,
                self.processor,
                **self._encode_options,
                seed=seed if shuffled else None,
                window=args.stream_window,
                endless=train,
                batch_size=args.train_batch_size if train else args.eval_batch_size,
                processes=args.world_size,
            )
        if isinstance(lists, Dataset):
            if not len(lists):
                raise InputError(
                    f"the dataset to {'train' if train else 'evaluate'} on holds no list: expected at least one"
                )
            if cache is not None:
                return CachedLists(cache, lists, self.processor, **self._encode_options)
            return EncodedLists(lists, self.processor, **self._encode_options)
        if isinstance(lists, dict):
            raise InputError(
                f"expected one split, got a dictionary of {', '.join(lists)}: choose one, such as lists['train']"
            )
        raise InputError(f"expected a datasets Dataset or IterableDataset of lists, got {type(lists).__name__}")

    def _add_evaluation_batch(self, batch: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        if self._evaluation is None:
            self._evaluation = EvaluationSums(
                self.args.metric_ks, no_click=self.args.no_click, examination=self.processor.schema.examination
            )
        predictions: Any = batch.predictions
        label_ids: Any = batch.label_ids
        (scores, measures), (labels, positions, *truth) = predictions, label_ids
        # Across processes all is padded with -100; the mask comes from the labels, never from scores. Lists without
        # items fill up the last batch of a stream.
        real = (labels >= 0).any(-1)
        if not bool(real.all()):
            (scores, measures, labels, positions), truth = (
                [array[real] for array in arrays] for arrays in ((scores, measures, labels, positions), truth)
            )
        self._evaluation.add(
            scores.cpu(),
            labels.cpu(),
            (labels >= 0).cpu(),
            positions.cpu(),
            **{name: array.cpu() for name, array in zip(self._extra_names, truth, strict=True)},
            measures={name: measures[:, column].cpu() for column, name in enumerate(self._measure_names)},
        )
        if not compute_result:
            return {}
        results, self._evaluation = self._evaluation.compute(), None
        return results

    def _remember(self, output: RerankerOutput, mask: Tensor) -> None:
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

    def _run(self) -> dict[str, Any]:
        """What decides on which batches this run reads, and which parameters they train."""
        assert self.model is not None
        frozen = [name for name, parameter in self.model.named_parameters() if not parameter.requires_grad]
        return describe_run(self.args, self.results["data"], self.results["objective"], frozen)

    def _refuse_broken_weights(self) -> None:
        assert self.model is not None
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise TrainingStopped(
                    f"weights {name} are not finite at step {self.state.global_step}, so the model is not saved "
                    "nor pushed: go back to a checkpoint and lower learning_rate or the consistency weights"
                )

    def _not_finite(self, output: RerankerOutput, inputs: dict[str, Any]) -> str:
        terms = {name: value.item() for name, value in (output.losses or {}).items()}
        wrong = [f"{name} is {value}" for name, value in terms.items() if not torch.isfinite(torch.tensor(value))]
        return (
            f"the loss is not finite at step {self.state.global_step + 1}: {', '.join(wrong) or 'the sum'}; "
            f"{self._lists_with_broken_scores(output, inputs)}. Lower learning_rate or the consistency weights, or "
            "look at these lists; checkpoints before this step are untouched"
        )

    def _lists_with_broken_scores(self, output: RerankerOutput, inputs: dict[str, Any]) -> str:
        """Names the lists of a batch whose scores are not finite; all of its lists, if none is."""
        assert output.logits is not None
        bad_lists = (~torch.isfinite(output.logits) & inputs["mask"]).any(-1)
        ids = ids_from_bytes(inputs["list_id"][bad_lists] if bool(bad_lists.any()) else inputs["list_id"])
        shown = ", ".join(ids[:IDS_IN_A_MESSAGE]) + (
            f" and {len(ids) - IDS_IN_A_MESSAGE} more" if len(ids) > IDS_IN_A_MESSAGE else ""
        )
        return f"lists {'with scores that are not finite' if bool(bad_lists.any()) else 'of the batch'}: {shown}"
