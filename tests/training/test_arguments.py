"""Options: which defaults differ from transformers, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_rerank import InputError, RerankTrainingArguments


def make(folder: Path, **options: Any) -> RerankTrainingArguments:
    return RerankTrainingArguments(str(folder / "run"), use_cpu=True, **options)


def test_defaults_that_differ(tmp_path: Path) -> None:
    arguments = make(tmp_path)
    promised = {
        "remove_unused_columns": False,
        "metric_for_best_model": "ndcg@10",
        "greater_is_better": True,
        "load_best_model_at_end": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_nan_inf_filter": False,
        "batch_eval_metrics": True,
        "push_to_hub": False,
        "principled": "scaled",
    }
    assert {name: getattr(arguments, name) for name in promised} == promised
    assert arguments.report_to == []
    assert arguments.max_grad_norm == TrainingArguments(str(tmp_path), use_cpu=True).max_grad_norm > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"principled": "scald"}, "did you mean 'scaled'"),
        ({"push_to_hub": True}, r"trainer\.push_to_hub\(\)"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"batch_eval_metrics": False}, "batch_eval_metrics"),
        ({"metric_ks": []}, "metric_ks"),
        ({"metric_ks": [5, 0]}, "metric_ks"),
        ({"obedience_k": 0}, "obedience_k"),
        ({"convergence_weight": -1.0}, "convergence_weight"),
        ({"adversarial_weight": float("nan")}, "adversarial_weight"),
        ({"consistency_reduction": "avg"}, "reduction"),
        ({"consistency_space": "logits"}, "space"),
        ({"metric_ks": [5], "metric_for_best_model": "ndcg@10"}, r"ndcg@10.*metric_ks is \[5\]"),
        ({"metric_for_best_model": "nddcg@10"}, r"nddcg@10.*did you mean 'ndcg'"),
        ({"metric_for_best_model": "eval_map@7"}, r"map@7.*metric_ks"),
        ({"metric_for_best_model": "p1_obedience@10"}, r"p1_obedience@10.*obedience_k"),
    ],
)
def test_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_best_metric_may_be_a_loss_or_an_obedience(tmp_path: Path) -> None:
    assert make(tmp_path, metric_for_best_model="loss").greater_is_better is False
    assert make(tmp_path, metric_for_best_model="eval_p1_obedience@5", metric_ks=[10]).greater_is_better is True


def test_without_a_best_checkpoint_no_metric_is_needed(tmp_path: Path) -> None:
    arguments = make(tmp_path, load_best_model_at_end=False, metric_ks=[3])
    assert arguments.metric_for_best_model is None


@pytest.mark.parametrize(
    ("options", "weights", "reduction"),
    [
        ({}, (20.0, 5.0), "weighted_mean"),
        ({"principled": "paper"}, (1.0, 1.0), "sum"),
        ({"principled": "none"}, (0.0, 0.0), "weighted_mean"),
        ({"principled": "paper", "convergence_weight": 0.3, "consistency_reduction": "mean"}, (0.3, 1.0), "mean"),
    ],
)
def test_objective(tmp_path: Path, options: dict[str, Any], weights: tuple[float, float], reduction: str) -> None:
    objective = make(tmp_path, seed=7, **options).objective("softmax_loss")
    assert (objective.convergence_weight, objective.adversarial_weight) == weights
    assert (objective.reduction, objective.task_loss, objective.seed) == (reduction, "softmax_loss", 7)


def test_plain_json_without_the_token(tmp_path: Path) -> None:
    plain = json.dumps(
        make(tmp_path, hub_token="hf_canary", metric_ks=[1, 3], metric_for_best_model="mrr@3").to_dict()
    )
    assert "hf_canary" not in plain
    read = json.loads(plain)
    assert (read["metric_ks"], read["principled"], read["metric_for_best_model"]) == ([1, 3], "scaled", "mrr@3")
