"""The metric that chooses the best checkpoint: its default, and checks that an evaluation computes it."""

from __future__ import annotations

from typing import Any

from hf_rerank.errors import InputError, suggestion
from hf_rerank.models.config import RerankerConfig
from hf_rerank.schema import ListSchema

DEFAULT_METRIC, CORRECTED_METRIC = "ndcg@10", "loss"
# Measures of an evaluation: at cut-offs of metric_ks; at obedience_k; with or without a cut-off; and without one.
_AT_KS = ("ndcg", "map", "precision", "recall", "mrr", "clicks", "ips_clicks", "snips_clicks")
_AT_OBEDIENCE_K = ("p1_set_obedience", "p2_set_obedience")
_WITH_OR_WITHOUT = ("p1_obedience", "p2_obedience")
_NEVER_CUT = (
    *("loss", "auc", "gauc", "expected_clicks", "expected_clicks_share", "score_spread"),
    *("p1_item_obedience", "p1_kendall_tau", "p2_item_obedience", "p2_kendall_tau"),
)
_MEASURES = (*_AT_KS, *_AT_OBEDIENCE_K, *_WITH_OR_WITHOUT, *_NEVER_CUT)


def fill_in_best_metric(args: Any, config: RerankerConfig, *, propensities: bool) -> None:
    """Fills in the metric, if it is not given and a best checkpoint is chosen.

    Where the task loss is corrected for position bias it is ``loss``, since measures of the biased clicks would prefer
    models that repeat the display order; otherwise it is ``ndcg@10``.

    Args:
        args: ``RerankTrainingArguments``; ``metric_for_best_model`` and ``greater_is_better`` are changed.
        config: Config of the model.
        propensities: Whether propensities of the lists reach the task loss.
    """
    if args.metric_for_best_model is not None or not (args.load_best_model_at_end or args.save_strategy == "best"):
        return
    corrected = config.position_tower != "none" or (propensities and config.propensity_floor < 1)
    args.metric_for_best_model, args.greater_is_better = (
        (CORRECTED_METRIC, False) if corrected else (DEFAULT_METRIC, True)
    )


def check_best_metric(args: Any) -> None:
    """Refuses a metric that no evaluation can compute, as far as the arguments alone can tell.

    Args:
        args: ``RerankTrainingArguments``; a name that is not a measure may be one of the trainer's
            ``compute_metrics``, or a measure prefixed with the name of an evaluation set.

    Raises:
        InputError: ``metric_for_best_model`` is misspelled, or its cut-off is missing or not among those computed.
    """
    best = _requested_metric(args)
    name = best.partition("@")[0]
    if name in _MEASURES:
        _check_cut(args, best)
    elif not any(name.endswith(f"_{measure}") for measure in _MEASURES) and (meant := suggestion(name, _MEASURES)):
        raise InputError(f"metric_for_best_model is {best!r}: no such measure{meant}")


def check_best_metric_of_sets(args: Any, eval_dataset: Any, compute_metrics: Any, schema: ListSchema) -> None:
    """Refuses a metric that no evaluation of these sets would compute.

    Args:
        args: ``RerankTrainingArguments``.
        eval_dataset: Lists to evaluate on, or several by name.
        compute_metrics: The user's function, which may compute it. None: there is none.
        schema: Schema of the lists; some measures need its attraction or propensity.

    Raises:
        InputError: As in ``check_best_metric``; or the name is not that of a measure, or not of an evaluation set.
    """
    best = _requested_metric(args)
    if not best:
        return
    measure = best
    if isinstance(eval_dataset, dict):
        of_set = next((name for name in eval_dataset if best.startswith(f"{name}_")), None)
        if of_set is None:
            raise InputError(
                f"metric_for_best_model is {best!r}, and the evaluation sets are {', '.join(eval_dataset)}: choose "
                f"the metric of one of them, such as {next(iter(eval_dataset), 'name')}_{best}"
            )
        measure = best.removeprefix(f"{of_set}_")
    if compute_metrics is not None:
        return
    name = measure.partition("@")[0]
    if name not in _MEASURES:
        raise InputError(
            f"metric_for_best_model is {best!r}: no such measure, and there are no compute_metrics"
            f"{suggestion(name, _MEASURES)}"
        )
    if name.endswith("ips_clicks") and schema.propensity is None:
        raise InputError(
            f"metric_for_best_model is {best!r}, which needs the probability that each item was examined (the "
            "schema's propensity): choose another, or add one with hf-rerank propensities"
        )
    if name.startswith("expected_clicks") and schema.attraction is None:
        raise InputError(
            f"metric_for_best_model is {best!r}, which needs the true attraction of simulated lists (the schema's "
            "attraction): choose another"
        )
    _check_cut(args, measure)


def _requested_metric(args: Any) -> str:
    return (args.metric_for_best_model or "").removeprefix("eval_")


def _check_cut(args: Any, measure: str) -> None:
    name, at, cut = measure.partition("@")
    said = f"metric_for_best_model is {_requested_metric(args)!r}"
    if args.prediction_loss_only and name != "loss":
        raise InputError(
            f"{said}, which is not computed with prediction_loss_only=True: leave that off, or choose the best by loss"
        )
    option, cuts = ("metric_ks", args.metric_ks) if name in _AT_KS else ("obedience_k", [args.obedience_k])
    if at and name in _NEVER_CUT:
        raise InputError(f"{said}: {name} has no cut-off, leave out @{cut}")
    if not at and name in (*_AT_KS, *_AT_OBEDIENCE_K):
        raise InputError(f"{said}: expected a cut-off of {option} after it, such as {name}@{cuts[-1]}")
    if at and cut not in map(str, cuts):
        raise InputError(f"{said}, but {option} is {cuts}: {cut or 'the cut-off'} must be in {option}")
