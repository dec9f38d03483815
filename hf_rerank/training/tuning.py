"""Hyperparameter search with optuna: pruning, a study that resumes, and the best run saved as a finished model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import BestRun

from hf_rerank.errors import InputError, TrainingStopped, suggestion
from hf_rerank.storage import format_json, hold_lock, remove, to_json_values
from hf_rerank.training.arguments import RerankTrainingArguments
from hf_rerank.training.checkpointing_trainer import TrainingInterrupted
from hf_rerank.training.search_spaces import LEARNING_RATE, spaces_of_weights, suggest

STUDY, BEST = "study.sqlite3", "best"
_STUDY_NAME, _CONFIGURATION, _FAILED = "hf-rerank tune", "configuration", "failed"
# Number of first trials that are never pruned, and of a trial's evaluations before it may be pruned.
STARTUP_TRIALS, WARMUP_EVALUATIONS = 5, 1


def require_optuna() -> Any:
    """Imports optuna.

    Raises:
        InputError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError('a hyperparameter search needs optuna: pip install "hf-rerank[tune]"') from None
    # One line per trial is printed here.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def search(
    trainer: Any,
    hp_space: Callable[[Any], dict[str, Any]] | None,
    trials: int,
    *,
    sampler: Any = None,
    pruner: Any = None,
    configuration: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> BestRun:
    """Trains one model per trial; see ``RerankTrainer.hyperparameter_search``.

    Args:
        trainer: Trainer with the options, the processor and ``model_init``.
        hp_space: As in ``hyperparameter_search``.
        trials: Number of trials in the whole study.
        sampler, pruner: Sampler and pruner of optuna. None: TPE, and the median of the other trials.
        configuration: Other settings that the values depend on, as plain JSON values; in the same folder, a different
            configuration is refused.
        say: Called with each line of progress. None: print.
    """
    optuna = require_optuna()
    args = trainer.args
    say = say or (lambda line: print(line, flush=True))
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if not metric or not args.load_best_model_at_end:
        raise InputError("a search compares trials by metric_for_best_model: set it, and load_best_model_at_end")
    if trials < 1:
        raise InputError(f"the number of trials is {trials}: expected at least 1")
    if hp_space is None:
        # The weights of an objective that was given are not training options.
        weights = {} if trainer.given["objective"] is not None else spaces_of_weights(trainer.principled_objective)

        def hp_space(trial: Any) -> dict[str, Any]:
            chosen = suggest(trial, weights)
            numbers = {"principled_kwargs": {**(args.principled_kwargs or {}), **chosen}} if chosen else {}
            return suggest(trial, LEARNING_RATE) | numbers

    folder = Path(str(args.output_dir))
    facts = {"metric": metric, "arguments": _describe_options(args), "lists": trainer.results["data"]}
    facts |= dict(configuration or {})

    def describe_busy(process: str) -> str:
        return f"{process} searches in {folder}: wait until it ends, or give another folder"

    with hold_lock(folder / ".tune.lock", describe_busy):
        study = optuna.create_study(
            study_name=_STUDY_NAME,
            storage=f"sqlite:///{(folder / STUDY).resolve()}",
            load_if_exists=True,
            direction="maximize" if args.greater_is_better else "minimize",
            pruner=pruner or optuna.pruners.MedianPruner(STARTUP_TRIALS, WARMUP_EVALUATIONS),
        )
        _claim(study, format_json(facts), folder)
        _requeue_interrupted(optuna, study)
        # A sampler with the same seed would repeat its suggestions from before the interruption.
        study.sampler = sampler or optuna.samplers.TPESampler(seed=args.seed + len(study.trials))
        while (done := len(_find_finished(study))) < trials:
            _run_trial(optuna, study, trainer, hp_space, metric, f"[{done + 1}/{trials}]", say)
        complete = [entry for entry in study.trials if entry.state == optuna.trial.TrialState.COMPLETE]
        if not complete:
            raise InputError(f"all {trials} trials failed, the last with: {study.trials[-1].user_attrs.get(_FAILED)}")
        best = study.best_trial
        return BestRun(str(best.number), best.value, best.params, None)


def _run_trial(
    optuna: Any, study: Any, trainer: Any, space: Any, metric: str, prefix: str, say: Callable[[str], None]
) -> None:
    trial = study.ask()
    parent = Path(str(trainer.args.output_dir))
    folder = parent / "trials" / str(trial.number)
    state, value = optuna.trial.TrialState.FAIL, None
    remove(folder)
    try:
        run = _make_trainer(optuna, trainer, trial, space, folder, metric)
        run.train()
        value = run.evaluate()[f"eval_{metric}"]
        if _is_best(optuna, study, value):
            run.results["tuning"] = {"trial": trial.number, "options": to_json_values(trial.params), metric: value}
            run.save_model(str(parent / BEST))
        state = optuna.trial.TrialState.COMPLETE
        outcome = f"{metric} {value:.4f}"
    except optuna.TrialPruned:
        state, outcome = optuna.trial.TrialState.PRUNED, "pruned"
    except TrainingInterrupted as stopped:
        # The trial stays unfinished, and the next call runs its options again.
        raise TrainingInterrupted(
            f"stopped in trial {trial.number}; the same command resumes the study in {parent / STUDY}", stopped.signal
        ) from None
    except (InputError, TrainingStopped) as error:
        outcome = f"failed: {' '.join(str(error).split())}"
        trial.set_user_attr(_FAILED, str(error))
    study.tell(trial, value, state=state)
    remove(folder)
    options = ", ".join(f"{name} {_format(option)}" for name, option in trial.params.items())
    say(f"{prefix} {outcome} ({options})" if options else f"{prefix} {outcome}")


def _make_trainer(optuna: Any, trainer: Any, trial: Any, space: Any, folder: Path, metric: str) -> Any:
    chosen = space(trial)
    names = {entry.name for entry in dataclasses.fields(RerankTrainingArguments)}
    for name in chosen:
        if name not in names or name in ("output_dir", "metric_for_best_model"):
            raise InputError(
                f"hp_space gives {name!r}, which is not an option of a trial's training{suggestion(name, names)}; "
                "options of the model are suggested by model_init(trial)"
            )
    args = dataclasses.replace(trainer.args, output_dir=str(folder), disable_tqdm=True, **chosen)

    class Pruning(TrainerCallback):
        """Ends a trial that is worse than the others were after as many evaluations."""

        evaluations = 0

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any) -> None:
            if run.is_in_train:
                self.evaluations += 1
                trial.report(metrics[f"eval_{metric}"], self.evaluations)
                if trial.should_prune():
                    raise optuna.TrialPruned

    run = type(trainer)(
        args=args,
        processing_class=trainer.processor,
        model_init=lambda: trainer.call_model_init(trial),
        callbacks=[Pruning()],
        **trainer.given,
    )
    run.remove_callback(PrinterCallback)
    return run


def _is_best(optuna: Any, study: Any, value: float) -> bool:
    complete = [entry.value for entry in study.trials if entry.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        return True
    return value > max(complete) if study.direction.name == "MAXIMIZE" else value < min(complete)


def _find_finished(study: Any) -> list[Any]:
    """Trials that ended by themselves; for one that an interruption ended, no failure is recorded."""
    return [entry for entry in study.trials if entry.state.is_finished() and _has_ended(entry)]


def _has_ended(entry: Any) -> bool:
    return entry.state.name != "FAIL" or _FAILED in entry.user_attrs


def _requeue_interrupted(optuna: Any, study: Any) -> None:
    """Queues the options of trials that a kill left unfinished."""
    for entry in study.trials:
        if entry.state == optuna.trial.TrialState.RUNNING:
            study.tell(entry.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(entry.params)


def _claim(study: Any, configuration: str, folder: Path) -> None:
    known = study.user_attrs.get(_CONFIGURATION)
    if known is None:
        study.set_user_attr(_CONFIGURATION, configuration)
    elif known != configuration:
        raise InputError(
            f"{folder / STUDY} holds a study with other lists or options, whose trials are not comparable with new "
            "ones: give another folder, or the same command"
        )


def _describe_options(args: Any) -> dict[str, Any]:
    """Describes the options that the result of a trial depends on."""
    plain = args.to_dict()
    for name in ("output_dir", "logging_dir", "run_name", "disable_tqdm", "encoded_cache"):
        plain.pop(name, None)
    return plain


def _format(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
