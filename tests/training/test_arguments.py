"""Options: defaults that differ from transformers, and errors before anything runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_rerank import InputError, RerankTrainingArguments
from hf_rerank import cli as command_line
from hf_rerank.commands.training_options import parse_training_arguments
from hf_rerank.principled import DEFAULT_PRESET, PRESETS, preset_objective


def make(folder: Path, **options: Any) -> RerankTrainingArguments:
    return RerankTrainingArguments(str(folder / "run"), use_cpu=True, **options)


def test_defaults_that_differ_from_transformers(tmp_path: Path) -> None:
    arguments = make(tmp_path)
    assert arguments.task_loss is None
    promised = {
        "remove_unused_columns": False,
        "metric_for_best_model": None,  # the trainer decides, see test_best_metric.py
        "greater_is_better": None,
        "load_best_model_at_end": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_nan_inf_filter": False,
        "batch_eval_metrics": True,
        "push_to_hub": False,
        "principled": "augmented",
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
        ({"encoded_cache": ""}, "encoded_cache is empty: expected a folder"),
        ({"train_sampling_strategy": "group_by_length"}, "is 'group_by_length': expected random or sequential"),
        ({"dataloader_in_order": False}, "dataloader_in_order=False gives batches in the order in which"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is not used"),
        ({"metric_ks": []}, "metric_ks"),
        ({"metric_ks": [5, 0]}, "metric_ks"),
        ({"obedience_k": 0}, "obedience_k"),
        ({"bf16": True, "bf16_full_eval": True}, "bf16_full_eval.*bf16=True trains in bf16 and evaluates in float32"),
        ({"fp16_full_eval": True}, "fp16_full_eval"),
        ({"task_loss": "softmax"}, "task_loss is 'softmax': expected one of own, .*did you mean 'softmax_loss'"),
        ({"principled_kwargs": "{"}, "principled_kwargs is '{', which is not valid JSON"),
        ({"principled_kwargs": "7"}, "principled_kwargs is 7: expected a dict, or JSON such as"),
        ({"principled_kwargs": [7]}, r"principled_kwargs is \[7\]: expected a dict"),
        (
            {"principled_kwargs": {"convergence_wieght": 2}},
            "'augmented' has no option 'convergence_wieght': expected .*did you mean 'convergence_weight'",
        ),
        ({"principled_kwargs": {"cross_weight": 1.0}}, "'augmented' has no option 'cross_weight'"),
        ({"principled_kwargs": {"convergence_weight": -1.0}}, "weight of the term 'convergence' is -1.0"),
        ({"principled_kwargs": {"adversarial_weight": math.nan}}, "weight of the term 'adversarial' is nan"),
        ({"principled_kwargs": {"perturbation": "swap"}}, "perturbation 'swap': expected one of adjacent_swap"),
        ({"principled_kwargs": {"fraction": 0.0}}, "fraction is 0.0"),
        ({"principled_kwargs": {"fraction": 1.5}}, "fraction is 1.5"),
        ({"principled_kwargs": {"warmup": -0.5}}, "warmup is -0.5"),
        ({"principled_kwargs": {"warmup": 2.0}}, "warmup is 2.0"),
        *(
            ({"principled": "none", "principled_kwargs": options}, message)
            for options, message in (
                ({"fraction": 0.5}, "fraction and warmup change nothing with principled='none'"),
                ({"warmup": 0.5}, "fraction and warmup change nothing with principled='none'"),
                ({"perturbation": "random_swap"}, "principled='none' has no pass that is perturbed"),
                ({"convergence_weight": 1.0}, "'none' has no option 'convergence_weight'"),
            )
        ),
        (
            {"principled_kwargs": {"convergence_weight": 0, "adversarial_weight": 0, "warmup": 0.5}},
            "change nothing .* and these weights",
        ),
        ({"metric_ks": [5], "metric_for_best_model": "ndcg@10"}, r"ndcg@10.*metric_ks is \[5\]"),
        ({"metric_ks": [5]}, r"ndcg@10.*metric_ks is \[5\]"),
        (
            {"greater_is_better": False},
            "greater_is_better is False, and metric_for_best_model is not given: give both",
        ),
        ({"metric_for_best_model": "nddcg@10"}, r"nddcg@10.*did you mean 'ndcg'"),
        ({"metric_for_best_model": "eval_map@7"}, r"map@7.*metric_ks"),
        ({"metric_for_best_model": "p1_obedience@10"}, r"p1_obedience@10.*obedience_k"),
    ],
)
def test_wrong_arguments_are_rejected(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_a_file_as_output_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("mine")
    with pytest.raises(InputError, match=r"lists\.csv', which is a file: expected a folder"):
        RerankTrainingArguments(str(tmp_path / "lists.csv"))


def test_encoded_cache_may_be_a_path(tmp_path: Path) -> None:
    assert make(tmp_path, encoded_cache=tmp_path / "cache").encoded_cache == tmp_path / "cache"


def test_best_metric_may_be_a_loss_obedience_or_custom_metric(tmp_path: Path) -> None:
    assert make(tmp_path, metric_for_best_model="loss").greater_is_better is False
    assert make(tmp_path, metric_for_best_model="eval_p1_obedience@5", metric_ks=[10]).greater_is_better is True
    assert make(tmp_path, metric_for_best_model="share_of_mine").greater_is_better is True  # from compute_metrics


def test_without_a_best_checkpoint_no_metric_is_needed(tmp_path: Path) -> None:
    arguments = make(tmp_path, load_best_model_at_end=False, metric_ks=[3])
    assert arguments.metric_for_best_model is None


# Preset -> non-default values for its options.
CHOSEN: dict[str, dict[str, Any]] = {
    "scaled": {
        "convergence_weight": 0.25,
        "adversarial_weight": 3,
        "fraction": 0.5,
        "warmup": 0.1,
        "perturbation": "score_noise",
        "seed": 7,
    },
    "augmented": {"convergence_weight": 2.5, "fraction": 0.5},
    "paper": {"convergence_weight": 0},
    "reference": {"cross_weight": 0.5},
    "r_drop": {"r_drop_weight": 2.5},
    "augmentation": {"perturbation": "random_swap"},
    "none": {},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_objective_follows_the_options(tmp_path: Path, preset: str) -> None:
    """Each number takes effect; perturbations use the seed of the run, unless a seed is given."""
    options = CHOSEN[preset]
    found = make(tmp_path, principled=preset, principled_kwargs=options, seed=5).objective()
    assert found == preset_objective(preset, **{"seed": 5, **options})
    assert make(tmp_path, principled=preset, seed=5).objective() == replace(PRESETS[preset], seed=5)
    weights = {f"{term.name}_weight": term.weight for term in found.terms}
    for name, value in options.items():
        if name == "perturbation":
            assert [entry.order.kind for entry in found.passes if hasattr(entry.order, "kind")] == [value]
        elif name.endswith("_weight"):
            assert weights.get(name, 0) == value
        else:
            assert getattr(found, name) == value


@pytest.mark.parametrize(
    ("preset", "weights", "reduction"),
    [
        ("scaled", {"convergence": 2.0, "adversarial": 0.5}, "weighted_mean"),
        ("augmented", {"convergence": 6.0, "adversarial": 1.5}, "weighted_mean"),
        ("paper", {"convergence": 1.0, "adversarial": 1.0}, "sum"),
        ("reference", {"convergence": 1.0, "adversarial": 1.0, "cross": 1.0}, "mean"),
        ("none", {}, None),
    ],
)
def test_presets_have_the_documented_weights_and_reductions(
    tmp_path: Path, preset: str, weights: dict[str, float], reduction: str | None
) -> None:
    terms = make(tmp_path, principled=preset).objective().terms
    assert {term.name: term.weight for term in terms} == weights
    assert {term.reduction for term in terms} == ({reduction} - {None})


@pytest.mark.parametrize(
    ("options", "of_the_objective"),
    [
        ({}, None),
        ({"principled": "paper"}, None),
        ({"task_loss": "listnet_loss"}, None),
        ({"principled": "reference"}, "own"),
        ({"principled": "reference", "task_loss": "softmax_loss"}, "own"),
    ],
)
def test_task_loss_of_arguments_and_objective(
    tmp_path: Path, options: dict[str, Any], of_the_objective: str | None
) -> None:
    """The trainer uses the arguments' task loss, else the objective's (``reference``: the model's own), else the
    config's; see test_principled_training.py."""
    arguments = make(tmp_path, **options)
    assert arguments.task_loss == options.get("task_loss")
    assert arguments.objective().task_loss == of_the_objective


# ---------------------------------------------------------------------------------------------------- the command line


def from_command_line(folder: Path, *options: str) -> RerankTrainingArguments:
    words = ["train", "--model", "prm", "--data", "lists", "--output-dir", str(folder / "run"), *options]
    known, known.others = command_line._parser().parse_known_args(words)
    return parse_training_arguments(known)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_option_works_on_the_command_line(tmp_path: Path, preset: str) -> None:
    words = ["--use_cpu", "--principled", preset, "--principled_kwargs", json.dumps(CHOSEN[preset])]
    arguments = from_command_line(tmp_path, *words, "--task_loss", "softmax_loss")
    assert arguments.objective() == make(tmp_path, principled=preset, principled_kwargs=CHOSEN[preset]).objective()
    assert (arguments.principled, arguments.task_loss) == (preset, "softmax_loss")


def test_omitted_command_line_options_keep_their_defaults(tmp_path: Path) -> None:
    arguments = from_command_line(tmp_path, "--use_cpu")
    assert arguments.objective() == replace(PRESETS[DEFAULT_PRESET], seed=arguments.seed)
    assert arguments.task_loss is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--principled_kwargs", "convergence_weight=2"), "principled_kwargs is 'convergence_weight=2', which is not"),
        (("--principled_kwargs", '{"fraction": 2}'), "fraction is 2"),
        (("--principled_kwargs", '{"temperature": 2}'), "no option 'temperature'"),
        (("--learning_rate", "much"), "argument --learning-rate: invalid float value: 'much'"),
        (("--task_loss", "softmax"), "task_loss is 'softmax'"),
        (("--bf16_full_eval",), "bf16_full_eval"),
        (("--principled_kwarg", "{}"), "'--principled_kwarg' of train.*did you mean '--principled-kwargs'"),
    ],
)
def test_wrong_command_line_options_are_rejected(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_command_line(tmp_path, "--use_cpu", *words)


# ---------------------------------------------------------------------------------------------------------------- JSON


def test_arguments_as_json_omit_the_hub_token(tmp_path: Path) -> None:
    plain = json.dumps(
        make(tmp_path, hub_token="hf_canary", metric_ks=[1, 3], metric_for_best_model="mrr@3").to_dict()
    )
    assert "hf_canary" not in plain
    read = json.loads(plain)
    assert (read["metric_ks"], read["principled"], read["metric_for_best_model"]) == ([1, 3], "augmented", "mrr@3")


def test_options_for_streams_and_the_cache(tmp_path: Path) -> None:
    options = RerankTrainingArguments(str(tmp_path))
    assert options.encoded_cache is None, "the disk is not filled unless requested"
    assert options.stream_window == 10_000
    for given in (None, {"even_batches": True}):
        options = RerankTrainingArguments(str(tmp_path), accelerator_config=given)
        assert options.accelerator_config.dispatch_batches is False
    assert RerankTrainingArguments(
        str(tmp_path), accelerator_config={"dispatch_batches": True}
    ).accelerator_config.dispatch_batches
    with pytest.raises(InputError, match="stream_window is 0: expected at least 1"):
        RerankTrainingArguments(str(tmp_path), stream_window=0)
