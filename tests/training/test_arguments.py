"""Options: which defaults differ from transformers, and what is refused before anything runs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_rerank import InputError, RerankTrainingArguments
from hf_rerank import cli as command_line
from hf_rerank.commands import train
from hf_rerank.principled.objective import PrincipledObjective


def make(folder: Path, **options: Any) -> RerankTrainingArguments:
    return RerankTrainingArguments(str(folder / "run"), use_cpu=True, **options)


def test_defaults_that_differ(tmp_path: Path) -> None:
    arguments = make(tmp_path)
    assert arguments.task_loss is None
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
        ({"encoded_cache": ""}, "encoded_cache is empty: expected a folder"),
        ({"train_sampling_strategy": "group_by_length"}, "is 'group_by_length': expected random or sequential"),
        ({"dataloader_in_order": False}, "dataloader_in_order=False gives batches as workers happen to finish"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no part"),
        ({"metric_ks": []}, "metric_ks"),
        ({"metric_ks": [5, 0]}, "metric_ks"),
        ({"obedience_k": 0}, "obedience_k"),
        ({"bf16": True, "bf16_full_eval": True}, "bf16_full_eval.*bf16=True trains in bf16 and evaluates in float32"),
        ({"fp16_full_eval": True}, "fp16_full_eval"),
        ({"task_loss": "softmax"}, "task_loss is 'softmax': expected one of own, .*did you mean 'softmax_loss'"),
        ({"convergence_weight": -1.0}, "convergence_weight is -1.0"),
        ({"adversarial_weight": math.nan}, "adversarial_weight is nan"),
        ({"cross_weight": 1.0, "adversarial_weight": 0.0}, "cross_weight=1.0 .*must both be above 0"),
        ({"consistency_reduction": "avg"}, "consistency_reduction is 'avg'"),
        ({"consistency_space": "logits"}, "consistency_space is 'logits'.*did you mean 'logit'"),
        ({"consistency_space": "probability", "task_loss": "lambda_loss"}, "lambda_loss has no probabilities"),
        ({"consistency_positions": "shown"}, "consistency_positions is 'shown'"),
        ({"task_loss_passes": "all"}, "task_loss_passes is 'all'"),
        ({"perturbed_order": "initially"}, "perturbed_order is 'initially'.*did you mean 'initial'"),
        ({"perturbation": "swap"}, "perturbation 'swap': expected one of adjacent_swap"),
        ({"perturbation_strength": 1.5}, "perturbation_strength of adjacent_swap is 1.5: expected a whole number"),
        ({"perturbation": "score_noise", "perturbation_strength": 0.0}, "expected a number above 0"),
        ({"perturbed_order": "own", "adversarial_weight": 0.0}, "perturbed_order='own' changes nothing"),
        ({"perturbation": "random_swap", "principled": "none"}, "perturbation='random_swap' changes nothing"),
        ({"consistency_space": "logit", "principled": "none"}, "consistency_space='logit' changes nothing"),
        ({"consistency_positions": "output", "principled": "none"}, "consistency_positions='output' changes nothing"),
        ({"consistency_reduction": "sum", "principled": "none"}, "consistency_reduction='sum' changes nothing"),
        ({"task_loss_passes": "every", "principled": "none"}, "task_loss_passes='every' changes nothing"),
        ({"stop_gradient": "first", "principled": "none"}, "stop_gradient='first' changes nothing"),
        ({"consistency_fraction": 0.5, "principled": "none"}, "consistency_fraction=0.5 changes nothing"),
        ({"consistency_warmup": 0.5, "principled": "none"}, "consistency_warmup=0.5 changes nothing"),
        ({"ranking_gradient": "soft"}, "ranking_gradient is 'soft'"),
        ({"temperature": 0.5}, "temperature=0.5 belongs to a soft order"),
        ({"sinkhorn": 3}, "sinkhorn=3 belongs to a soft order"),
        ({"straight_through": True}, "straight_through=True belongs to a soft order"),
        ({"ranking_gradient": "softsort", "temperature": -1.0}, "temperature is -1.0"),
        ({"ranking_gradient": "softsort", "sinkhorn": -1}, "sinkhorn is -1"),
        ({"ranking_gradient": "softsort", "convergence_weight": 0.0}, "never shown its own order"),
        ({"ranking_gradient": "softsort", "stop_gradient": "second"}, "stop_gradient='second' cuts it off"),
        ({"stop_gradient": "both"}, "stop_gradient is 'both'"),
        ({"consistency_fraction": 0.0}, "consistency_fraction is 0.0"),
        ({"consistency_fraction": 1.5}, "consistency_fraction is 1.5"),
        ({"consistency_warmup": -0.5}, "consistency_warmup is -0.5"),
        ({"consistency_warmup": 2.0}, "consistency_warmup is 2.0"),
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


def test_a_file_is_no_folder_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("mine")
    with pytest.raises(InputError, match=r"lists\.csv', which is a file: expected a folder"):
        RerankTrainingArguments(str(tmp_path / "lists.csv"))


def test_the_cache_may_be_a_path(tmp_path: Path) -> None:
    assert make(tmp_path, encoded_cache=tmp_path / "cache").encoded_cache == tmp_path / "cache"


def test_best_metric_may_be_a_loss_or_an_obedience(tmp_path: Path) -> None:
    assert make(tmp_path, metric_for_best_model="loss").greater_is_better is False
    assert make(tmp_path, metric_for_best_model="eval_p1_obedience@5", metric_ks=[10]).greater_is_better is True


def test_without_a_best_checkpoint_no_metric_is_needed(tmp_path: Path) -> None:
    arguments = make(tmp_path, load_best_model_at_end=False, metric_ks=[3])
    assert arguments.metric_for_best_model is None


# Every choice of the objective, none at its default; two rows, since some exclude each other.
CHOSEN: tuple[dict[str, Any], ...] = (
    {
        "convergence_weight": 0.25,
        "adversarial_weight": 3.0,
        "cross_weight": 0.5,
        "consistency_space": "logit",
        "consistency_positions": "output",
        "consistency_reduction": "mean",
        "task_loss_passes": "every",
        "perturbed_order": "own",
        "perturbation": "score_noise",
        "perturbation_strength": 1.5,
        "stop_gradient": "first",
        "consistency_fraction": 0.5,
        "consistency_warmup": 0.1,
        "seed": 7,
    },
    {"ranking_gradient": "neuralsort", "temperature": 0.5, "sinkhorn": 3, "straight_through": True},
)
OF_THE_OBJECTIVE = [
    entry for entry in dataclasses.fields(PrincipledObjective) if entry.name not in ("preset", "task_loss")
]


@pytest.mark.parametrize("entry", OF_THE_OBJECTIVE, ids=lambda entry: entry.name)
def test_every_choice_of_the_objective_is_an_option(entry: dataclasses.Field) -> None:
    """Of the same name; the same default, but for the seed, which is that of the whole run; and a line of help."""
    options = {option.name: option for option in dataclasses.fields(RerankTrainingArguments)}
    assert entry.name in options
    assert any(entry.name in row and row[entry.name] != entry.default for row in CHOSEN)
    if entry.name == "seed":
        return
    option = options[entry.name]
    assert option.default == entry.default
    assert type(option.default) is type(entry.default)
    assert len(option.metadata["help"]) > 20
    assert option.metadata["help"].endswith(".")
    assert "\n" not in option.metadata["help"]


@pytest.mark.parametrize("chosen", CHOSEN)
def test_the_objective_is_that_of_the_options(tmp_path: Path, chosen: dict[str, Any]) -> None:
    objective = make(tmp_path, principled="paper", **chosen).objective("softmax_loss")
    assert objective == PrincipledObjective("paper", task_loss="softmax_loss", **{"seed": 42, **chosen})
    assert chosen.items() <= objective.settings().items()


@pytest.mark.parametrize(
    ("preset", "weights", "reduction"),
    [
        ("scaled", (20.0, 5.0, 0.0), "weighted_mean"),
        ("paper", (1.0, 1.0, 0.0), "sum"),
        ("reference", (1.0, 1.0, 1.0), "mean"),
        ("none", (0.0, 0.0, 0.0), None),
    ],
)
def test_presets(tmp_path: Path, preset: str, weights: tuple[float, ...], reduction: str | None) -> None:
    objective = make(tmp_path, principled=preset).objective()
    assert (objective.convergence_weight, objective.adversarial_weight, objective.cross_weight) == weights
    assert objective.consistency_reduction == reduction


@pytest.mark.parametrize(
    ("options", "task_loss", "of_the_objective"),
    [
        ({}, None, "binary_log_loss"),
        ({"principled": "paper"}, None, "binary_log_loss"),
        ({"task_loss": "listnet_loss"}, "listnet_loss", "listnet_loss"),
        ({"principled": "reference"}, "own", "binary_log_loss"),
        ({"principled": "reference", "task_loss": "softmax_loss"}, "softmax_loss", "softmax_loss"),
    ],
)
def test_task_loss(tmp_path: Path, options: dict[str, Any], task_loss: str | None, of_the_objective: str) -> None:
    """Preset ``reference`` takes the model's own; what that is only the model knows, and ``objective`` is told it."""
    arguments = make(tmp_path, **options)
    assert arguments.task_loss == task_loss
    assert arguments.objective().task_loss == of_the_objective
    assert arguments.objective("softmax_loss").task_loss == "softmax_loss"


# ---------------------------------------------------------------------------------------------------- the command line


def from_command_line(folder: Path, *options: str) -> RerankTrainingArguments:
    words = ["train", "--model", "prm", "--data", "lists", "--output-dir", str(folder / "run"), *options]
    known, known.others = command_line._parser().parse_known_args(words)
    return train._training_arguments(known)


@pytest.mark.parametrize("chosen", CHOSEN)
def test_every_choice_is_an_option_of_the_command_line(tmp_path: Path, chosen: dict[str, Any]) -> None:
    """With the types that it has in Python."""
    words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    arguments = from_command_line(
        tmp_path, "--use_cpu", "--principled", "paper", "--task_loss", "softmax_loss", *words
    )
    assert (arguments.principled, arguments.task_loss) == ("paper", "softmax_loss")
    for name, value in chosen.items():
        assert getattr(arguments, name) == value
        assert type(getattr(arguments, name)) is type(value)


def test_a_switch_needs_no_value(tmp_path: Path) -> None:
    words = ("--ranking_gradient", "softsort", "--straight_through")
    assert from_command_line(tmp_path, "--use_cpu", *words).straight_through is True


def test_what_the_command_line_does_not_name_keeps_its_default(tmp_path: Path) -> None:
    arguments = from_command_line(tmp_path, "--use_cpu")
    assert arguments.objective() == PrincipledObjective(seed=arguments.seed)
    assert arguments.task_loss is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--consistency_space", "logits"), "consistency_space.*invalid choice: 'logits'"),
        (("--stop_gradient", "both"), "stop_gradient.*invalid choice: 'both'"),
        (("--sinkhorn", "2.5"), "sinkhorn.*invalid int value: '2.5'"),
        (("--convergence_weight", "much"), "convergence_weight.*invalid float value: 'much'"),
        (("--consistency_fraction", "2"), "consistency_fraction is 2.0"),
        (("--temperature", "2"), "temperature=2.0 belongs to a soft order"),
        (("--task_loss", "softmax"), "task_loss is 'softmax'"),
        (("--bf16_full_eval",), "bf16_full_eval"),
        (("--consistency_warm_up", "0.1"), "'--consistency_warm_up' of train.*did you mean '--consistency_warmup'"),
    ],
)
def test_refused_on_the_command_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_command_line(tmp_path, "--use_cpu", *words)


# ---------------------------------------------------------------------------------------------------------------- JSON


def test_plain_json_without_the_token(tmp_path: Path) -> None:
    plain = json.dumps(
        make(tmp_path, hub_token="hf_canary", metric_ks=[1, 3], metric_for_best_model="mrr@3").to_dict()
    )
    assert "hf_canary" not in plain
    read = json.loads(plain)
    assert (read["metric_ks"], read["principled"], read["metric_for_best_model"]) == ([1, 3], "scaled", "mrr@3")


def test_options_of_streams_and_of_the_cache(tmp_path: Path) -> None:
    options = RerankTrainingArguments(str(tmp_path))
    assert options.encoded_cache is None, "nobody's disk is filled unasked"
    assert options.stream_window == 10_000
    for given in (None, {"even_batches": True}):
        options = RerankTrainingArguments(str(tmp_path), accelerator_config=given)
        assert options.accelerator_config.dispatch_batches is False
    assert RerankTrainingArguments(
        str(tmp_path), accelerator_config={"dispatch_batches": True}
    ).accelerator_config.dispatch_batches
    with pytest.raises(InputError, match="stream_window is 0: expected at least 1"):
        RerankTrainingArguments(str(tmp_path), stream_window=0)
