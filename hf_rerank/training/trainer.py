"""``RerankTrainer``: the transformers Trainer on lists, with the principled objective and re-ranking metrics.

It overrides the loss, the log, saving and pushing, through public methods only. ``EvaluatingTrainer`` evaluates, and
``CheckpointingTrainer`` writes and resumes checkpoints.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import set_seed

from hf_rerank.errors import InputError
from hf_rerank.evaluation.results import describe_training
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.principled import DEFAULT_PRESET, PrincipledObjective
from hf_rerank.processing import ListProcessor
from hf_rerank.processing.collator import RerankCollator, hash_list_ids
from hf_rerank.storage import save_files
from hf_rerank.training.adapters import refuse_adapters
from hf_rerank.training.arguments import RerankTrainingArguments
from hf_rerank.training.best_metric import fill_in_best_metric
from hf_rerank.training.budget import fill_in_budget
from hf_rerank.training.callbacks import HealthCallback, ResultsCallback, StreamPasses
from hf_rerank.training.checkpoints import write_part
from hf_rerank.training.datasets import encode_lists
from hf_rerank.training.encoded_lists import split_batch
from hf_rerank.training.evaluating_trainer import EvaluatingTrainer, evaluate_nothing
from hf_rerank.training.finite import FiniteGuard, OptimizerGuard, refuse_broken_weights
from hf_rerank.training.resume import describe_run, refuse_another_run, refuse_different_lists, write_run
from hf_rerank.training.starting_point import match_unknown_values, warn_of_biased_start
from hf_rerank.training.streams import EncodedStream, collate_stream
from hf_rerank.training.supported_options import convert_setup_errors, find_untested_options
from hf_rerank.training.task_loss import replace_task_loss, set_task_loss
from hf_rerank.training.training_log import TrainingLog

# State of a resumed run in addition to the Trainer's: sums for the next log, and the factors of the terms.
STATE_FILE = "rerank_state.json"


class RerankTrainer(EvaluatingTrainer):
    """Trains a re-ranker on raw lists.

    Args:
        model: A re-ranker of this library. None: ``model_init`` creates it.
        args: Options; they stay as they are, for further trainers. ``trainer.args`` is a copy of them, filled in for
            these lists.
        train_dataset: Raw lists: a ``datasets`` Dataset, or an IterableDataset (then ``max_steps`` must be set). A
            stream is read pass after pass, shuffled (see ``EncodedStream``). Actions of strategy ``epoch`` happen at
            the end of a pass; the ``epoch`` of the log is the fraction of ``max_steps``.
        eval_dataset: Raw lists to choose the best checkpoint on, or several by name: the validation split, never the
            test split. None: nothing is evaluated during training, no checkpoint is chosen as the best, and the model
            is that of the last step (``eval_strategy``, ``load_best_model_at_end`` and ``metric_for_best_model`` of
            ``trainer.args`` are changed accordingly).
        processing_class: The processor whose schema the model was configured for.
        objective: Objective to train on instead of a preset; ``args.principled`` must then be left at its default.
        model_init: ``model_init()`` or ``model_init(trial)`` creates a new model, instead of ``model``: at the start
            of every ``train()``, and for every trial of ``hyperparameter_search``. ``trial`` is None outside of it.
        compute_loss_func: ``(outputs, labels, num_items_in_batch) -> scalar``, in place of the task loss of every
            pass; labels are -100 at padding, and the result is a mean over the lists of the batch. Weights and
            propensities of the lists do not reach it.
        compute_metrics: As in ``transformers.Trainer``, in addition to the built-in metrics; see ``BatchMetrics``.
        callbacks: As in ``transformers.Trainer``.
        optimizers: As in ``transformers.Trainer``.

    Raises:
        InputError: Model and processor do not belong together, lists or options are invalid, the model has a peft
            adapter, or transformers cannot carry out an option.

    Attributes:
        principled_objective: The objective that is trained on.
        term_factors: Name of each of its terms -> a factor on its weight, a scalar tensor on the device; part of every
            checkpoint. A callback may change it while training runs (``term_factors["convergence"].fill_(0.5)``).
        given: Lists, objective, loss and metrics as they were given, for further trainers of the same lists.
        results: Everything needed to reproduce the run, and its outcome; ``save_model`` writes ``results.json``.
    """

    # The loss is a mean over a batch's lists: the Trainer divides it by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedReranker | None = None,
        args: RerankTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ListProcessor | None = None,
        *,
        objective: PrincipledObjective | None = None,
        model_init: Callable[..., PreTrainedReranker] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        if not isinstance(args, RerankTrainingArguments):
            raise InputError(f"args is a {type(args).__name__}: expected RerankTrainingArguments")
        if processing_class is None:
            raise InputError("processing_class is missing: expected the ListProcessor the model was configured for")
        if (model is None) == (model_init is None):
            raise InputError("expected one of model and model_init: a model, or a function that makes one")
        if train_dataset is not None and not hasattr(train_dataset, "__len__") and args.max_steps < 1:
            raise InputError("train_dataset is a stream of unknown length: set max_steps in the arguments")
        # Shallow: deepspeed's config, to which transformers keeps a global reference, stays the same object.
        args = copy.copy(args)
        if eval_dataset is None:
            evaluate_nothing(args)
        fill_in_budget(args, len(train_dataset) if hasattr(train_dataset, "__len__") else None)
        self.processor = processing_class
        if objective is not None and (args.principled, args.principled_kwargs) != (DEFAULT_PRESET, None):
            raise InputError("objective and principled exclude each other: leave out one of them")
        self.given = {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "objective": objective}
        self.given |= {"compute_loss_func": compute_loss_func, "compute_metrics": compute_metrics}
        if model is None:
            set_seed(args.seed)
            model = _call_with_trial(model_init, None)
        self._prepare_model(model, args)
        fill_in_best_metric(args, model.config, propensities=self._has_propensities)
        bounded = model.config.task_loss_name == "binary_log_loss" and compute_loss_func is None
        collator = RerankCollator(
            processing_class,
            highest_label=1.0 if bounded else float("inf"),
            truncate=args.truncate_lists,
            all_tensors=True,
        )
        self._log = TrainingLog()
        self._others: dict[str, Tensor] = {}  # tensors of the current batch that the model does not take
        self._results = ResultsCallback()
        encoded = encode_lists(train_dataset, collator, args, train=True, use_cache=True)
        with convert_setup_errors(find_untested_options(args)):
            super().__init__(
                model=model,
                args=args,
                collator=collator,
                data_collator=collate_stream,
                train_dataset=encoded,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_loss_func=compute_loss_func,
                compute_metrics=compute_metrics,
                callbacks=[
                    HealthCallback(self.principled_objective),
                    StreamPasses(),
                    self._results,
                    *(callbacks or []),
                ],
                optimizers=optimizers,
            )
        # Given to upstream's constructor, it would make a second model there.
        self.model_init = model_init  # type: ignore[assignment]
        facts = describe_training(model, processing_class, args, train=train_dataset, validation=eval_dataset)
        named = args.principled if objective is None else "custom"
        self.results.update(facts, objective={"principled": named, **self.principled_objective.settings()})
        device = self.args.device
        self.term_factors = {term.name: torch.ones((), device=device) for term in self.principled_objective.terms}
        self.guard = FiniteGuard(device, at_every_step=device.type == "cpu" and self.args.world_size == 1)
        # Under fp16 the scaler sees infinite gradients by design, and skips their step; shards see only a part.
        self._guards_gradients = not (self.args.fp16 or self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if self._guards_gradients:
            self.add_callback(OptimizerGuard(self.guard))

    @property
    def results(self) -> dict[str, Any]:
        """Everything needed to reproduce the run, and its outcome so far."""
        return self._results.values

    def _prepare_model(self, model: PreTrainedReranker, args: RerankTrainingArguments) -> None:
        """Checks a model and fills in the options of its config for the lists and the loss."""
        refuse_adapters(model)
        self.processor.check_fingerprint(model.config.schema_fingerprint, "the model")
        if args.activation_checkpointing and not model.supports_gradient_checkpointing:
            raise InputError(
                f"activation_checkpointing (or gradient_checkpointing): {type(model).__name__} has no encoder blocks "
                "to checkpoint; only PRM, SetRank, PEAR and RAISE have: leave it off"
            )
        if self.given["compute_loss_func"] is not None and model.config.position_tower != "none":
            raise InputError(
                f"the config has position_tower={model.config.position_tower!r}, which corrects the model's own task "
                "loss, and compute_loss_func replaces that loss: leave one of them out"
            )
        cuts = args.truncate_lists and self.processor.schema.position_column is not None
        if model.config.position_tower == "rows" and cuts:
            raise InputError(
                "position_tower='rows' reads display positions from whole rows, and truncate_lists cuts them by the "
                f"positions of column {self.processor.schema.position!r}: leave truncate_lists out and raise "
                "max_list_length of the schema, or leave position_tower out"
            )
        lists = self.given["eval_dataset"]
        if model.config.unknown_rate is None and self.given["train_dataset"] is not None:
            first = next(iter(lists.values())) if isinstance(lists, dict) else lists
            if hasattr(first, "select") and len(first):
                match_unknown_values(model.config, self.processor, first)
        given = self.given["objective"]
        chosen = args.objective() if given is None else given
        self.principled_objective = set_task_loss(chosen, model, args.task_loss, propensities=self._has_propensities)

    @property
    def _has_propensities(self) -> bool:
        """Whether propensities of the lists reach the task loss."""
        return self.processor.schema.propensity is not None and self.given["compute_loss_func"] is None

    def call_model_init(self, trial: Any = None) -> PreTrainedReranker:
        """Creates a new model with ``model_init``, for the lists and the loss of this training."""
        model = _call_with_trial(self.model_init, trial)
        self._prepare_model(model, self.args)
        return model

    def hyperparameter_search(  # type: ignore[override]
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | None = None,
        backend: str | None = None,
        hp_name: None = None,
        **options: Any,
    ) -> Any:
        """Searches options with optuna; the study resumes, and the best run is saved as a finished model.

        Everything is written to ``args.output_dir``: ``study.sqlite3``, and the best model so far in ``best``. Each
        trial is a separate training of a new model from ``model_init(trial)``; one that is worse than the median of
        the others after as many evaluations is pruned.

        Args:
            hp_space: ``hp_space(trial)`` returns training options, including ``principled_kwargs``, such as
                ``{"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}``. Options of the model
                are suggested by ``model_init(trial)``. None: learning rate, and the weights of the principles in
                addition to the other ``principled_kwargs``; with ``objective``, the learning rate only.
            compute_objective: Not supported: trials are compared by ``args.metric_for_best_model`` on the evaluation
                lists.
            n_trials: Number of trials, including those of earlier calls in the folder.
            direction: Not supported: the metric determines it.
            backend: None or ``"optuna"``.
            hp_name: Not supported.
            options: ``sampler`` and ``pruner`` of optuna.

        Returns:
            ``transformers.trainer_utils.BestRun``: number of the trial, value of the metric, chosen options.

        Raises:
            InputError: optuna is missing, an option is invalid, the trainer has no ``model_init``, or the folder has
                another study.
        """
        from hf_rerank.training.tuning import search

        refused = {"compute_objective": compute_objective, "direction": direction, "hp_name": hp_name}
        for name, value in refused.items():
            if value is not None:
                raise InputError(
                    f"{name} is not supported: trials are compared by metric_for_best_model on the evaluation lists"
                )
        if backend not in (None, "optuna"):
            raise InputError(f"backend is {backend!r}: expected 'optuna', or leave it out")
        if self.model_init is None:
            raise InputError("a search trains several models: give the trainer model_init in place of model")
        return search(self, hp_space, n_trials, **options)

    def prepare_state(self, checkpoint: Path | None) -> None:
        """Resumes the sums for the next log, the factors of the terms, and the position in a stream."""
        self._log = TrainingLog()
        self.guard.reset()
        stream = self.train_dataset if isinstance(self.train_dataset, EncodedStream) else None
        if stream is not None:
            stream.skip_to(0)
        if self.args.world_size > 1:
            refuse_different_lists(gather_object([self.results["data"]]))
        if checkpoint is None:
            if self.is_world_process_zero():
                warn_of_biased_start(self.model.config)
            return
        lists_per_pass = refuse_another_run(checkpoint, self._describe_run(), stream=stream is not None)
        self.results["model"].update(self.resumed_rates)
        if stream is not None and not self.args.ignore_data_skip:
            stream.skip_to(self.resumed_step * self.args.gradient_accumulation_steps * stream.step, lists_per_pass)
        saved = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        self._log.load(saved, self.args.device)
        for name, factor in saved["term_factors"].items():
            if name in self.term_factors:  # not if the objective changed, which gave a warning
                self.term_factors[name].fill_(factor)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        """As upstream, but sets aside tensors that the model does not take, and checks gradients before their use."""
        features, self._others = split_batch(inputs)
        loss = super().training_step(model, features, *args, **options)
        if self._guards_gradients and self.accelerator.sync_gradients:  # otherwise more batches follow
            self.guard.observe_gradients(self.state.global_step + 1, model.parameters())
            self.guard.check_at_once(self.model)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Computes the principled objective of one batch, in one call of the model's ``forward``."""
        features, others = split_batch(inputs)
        list_id = (others or self._others).get("list_id")
        list_id = None if list_id is None else list_id.to(self.args.device)
        objective = self.principled_objective.at(
            step=self.state.global_step,
            steps=self.state.max_steps,
            list_keys=None if list_id is None else hash_list_ids(list_id),
            factors=self.term_factors,
        )
        output = model(**features, objective=replace_task_loss(objective, self.compute_loss_func))
        self._log.add(output, features["mask"])
        self.guard.observe_loss(self.state.global_step + 1, output, features["mask"], list_id)
        self.guard.check_at_once(self.model)
        return (output.loss, output) if return_outputs else output.loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As ``EvaluatingTrainer.evaluate``; ``results`` keeps the metrics under the prefix.

        Raises:
            TrainingStopped: During training, a weight, a loss or a gradient is not finite.
        """
        if self.is_in_train:
            self._refuse_broken(in_any_process=True)
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)
        if not self.is_in_train and not several:  # of several sets, each was recorded by its own call
            self.results["evaluations"][metric_key_prefix] = metrics
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last log of the loss, its terms and the score spread.

        Raises:
            TrainingStopped: A loss or gradient of this training was not finite.
        """
        if self.is_in_train:
            self.guard.check(self.model, self.accelerator.gather)
        if "loss" in logs:
            logs.update(self._log.take_means(self.accelerator.gather))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes model, processor, ``training_args.json`` and ``results.json``, with a manifest: all of it or nothing.

        None of these is a pickle. For a checkpoint the Trainer calls this itself (``_internal_call``).

        Raises:
            TrainingStopped: A weight, a loss or a gradient is not finite; nothing is written.
            OSError: Something could not be written; files saved there before are unchanged.
        """
        # A user may call it on one process only, which must not wait for the others.
        self._refuse_broken(in_any_process=_internal_call)
        folder = Path(str(output_dir or self.args.output_dir))
        whole = save_files(folder) if self.args.should_save and not _internal_call else nullcontext(folder)
        with whole as staging:
            super().save_model(str(staging), _internal_call)
            if not self.args.should_save:
                return
            (staging / "training_args.bin").unlink(missing_ok=True)
            self._write_facts(staging, with_results=not _internal_call)
            if _internal_call:
                factors = {name: factor.item() for name, factor in self.term_factors.items()}
                write_part(staging / STATE_FILE, {**self._log.state(), "term_factors": factors})
                write_run(staging, self._describe_run(), getattr(self.train_dataset, "lists_per_pass", 0))

    def push_to_hub(self, repo_id: str | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Uploads the model, its processor, card with figures, and results in one commit, and nothing else.

        Args:
            repo_id: ``"someone/name"``. None: ``args.hub_model_id``, or the name of ``args.output_dir``.
            options: ``commit_message``, ``private``, ``token``, ``revision``, ``create_pr``, as in
                ``hf_rerank.hub.push_model``; if not given, those of ``args``.

        Returns:
            The ``CommitInfo``; None on processes other than the main one.

        Raises:
            TrainingStopped: As in ``save_model``.
            InputError: As in ``hf_rerank.hub.push_model``.
        """
        if not self.is_world_process_zero():
            return None
        from hf_rerank.hub.push import save_and_push

        args = self.args
        self._refuse_broken(in_any_process=False)
        asked: dict[str, Any] = {"commit_message": "Upload re-ranker", "private": args.hub_private_repo}
        asked |= {"token": args.hub_token, "revision": args.hub_revision}
        asked |= {name: value for name, value in options.items() if value is not None}

        def save(staging: Path) -> None:
            self.model.save_pretrained(staging)
            self.processor.save_pretrained(staging)
            self._write_facts(staging)

        return save_and_push(save, repo_id or args.hub_model_id or Path(str(args.output_dir)).name, **asked)

    def _write_facts(self, folder: Path, with_results: bool = True) -> None:
        write_part(folder / "training_args.json", self.results["training_arguments"])
        if with_results:
            write_part(folder / "results.json", self.results)

    def _refuse_broken(self, *, in_any_process: bool) -> None:
        refuse_broken_weights(self.model, self.state.global_step)
        self.guard.check(self.model, self.accelerator.gather if in_any_process else None)

    def _describe_run(self) -> dict[str, Any]:
        """Describes everything that determines the batches of this run and the parameters that it trains."""
        frozen = [name for name, parameter in self.model.named_parameters() if not parameter.requires_grad]
        return describe_run(self.args, self.results["data"], self.results["objective"], frozen)


def _call_with_trial(model_init: Any, trial: Any) -> PreTrainedReranker:
    """Calls ``model_init()`` or ``model_init(trial)``, by the number of its arguments."""
    takes_trial = bool(inspect.signature(model_init).parameters)
    model = model_init(trial) if takes_trial else model_init()
    if not isinstance(model, PreTrainedReranker):
        raise InputError(f"model_init returned a {type(model).__name__}: expected a re-ranker")
    return model
