"""Options of transformers: supported and tested, rejected with one line, or passed on with a note."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import tiny_model
from transformers.utils import logging

from hf_rerank import InputError, RerankTrainer, RerankTrainingArguments
from hf_rerank.training import supported_options
from hf_rerank.training.supported_options import OPTIMIZERS, REFUSED, SUPPORTED, find_untested_options, note_untested

# Each set of options is one short training. Together they cover every supported option except those in ELSEWHERE.
TRAININGS: list[dict[str, Any]] = [
    {
        "max_steps": 3,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-4},
        "warmup_steps": 1,
        "weight_decay": 0.1,
        "adam_beta1": 0.8,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 0.5,
        "bf16": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_delay": 1,
        "eval_on_start": True,
        "save_steps": 1,
        "save_total_limit": 1,
        "metric_for_best_model": "map@5",
        "greater_is_better": True,
        "load_best_model_at_end": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_first_step": True,
        "seed": 7,
        "data_seed": 8,
        "run_name": "first",
        "report_to": "none",
    },
    {
        "num_train_epochs": 0.2,
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "prediction_loss_only": True,
        "metric_for_best_model": "loss",
        "save_strategy": "best",
        "dataloader_drop_last": True,
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "dataloader_prefetch_factor": 1,
        "dataloader_multiprocessing_context": "fork",
        "per_device_eval_batch_size": 20,
        "eval_accumulation_steps": 1,
        "accelerator_config": {"even_batches": True},
    },
    {
        "max_steps": 2,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 1,
        "save_only_model": True,
        "train_sampling_strategy": "sequential",
        "log_level": "error",
        "log_level_replica": "error",
        "do_train": True,
        "do_predict": True,
    },
    *(
        {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "optim": name, "optim_args": None}
        for name in OPTIMIZERS
    ),
]
# Supported options that other files test, or that need machines and accounts that no test has.
ELSEWHERE = {
    *("output_dir", "use_cpu", "disable_tqdm", "fp16", "dataloader_pin_memory", "local_rank", "do_eval"),
    *("resume_from_checkpoint", "ignore_data_skip"),  # test_resume.py
    *("hub_model_id", "hub_token", "hub_private_repo", "hub_revision"),  # tests/hub
    *(
        "batch_eval_metrics",
        "remove_unused_columns",
        "dataloader_in_order",
        "logging_nan_inf_filter",
    ),  # only one value
    "full_determinism",  # it would change torch's settings for all later tests
}


def test_every_supported_option_is_tested() -> None:
    trained = {name for options in TRAININGS for name in options}
    assert trained & ELSEWHERE == set()
    assert trained | ELSEWHERE == SUPPORTED
    assert {options["optim"] for options in TRAININGS if "optim" in options} == set(OPTIMIZERS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this training takes", "ignore:.*gradient_checkpointing.*deprecated")
@pytest.mark.parametrize("options", TRAININGS, ids=lambda options: options.get("optim", next(iter(options))))
def test_training_with_supported_options_runs_and_updates_weights(
    make_trainer: Any, weights: Any, options: dict[str, Any]
) -> None:
    level = logging.get_verbosity()
    try:
        trainer = make_trainer(**options)
        before = weights(trainer.model)
        trainer.train()
    finally:
        logging.set_verbosity(level)
    assert trainer.state.global_step == (options.get("max_steps") or 2)  # 0.2 epochs of 7 full batches of 32: 1.4
    assert find_untested_options(trainer.args) == {}
    assert any(not torch.equal(value, before[name]) for name, value in weights(trainer.model).items())


# ------------------------------------------------------------------------------------------------------------ rejected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({name: value}, rf"^{name} is {shown}: expected {expected}$")
            for name, value, shown, expected in (
                ("learning_rate", -1.0, "-1", "more than 0"),
                ("learning_rate", float("nan"), "nan", "more than 0"),
                ("learning_rate", float("inf"), "inf", "more than 0"),
                ("gradient_accumulation_steps", 0, "0", "at least 1"),
                ("dataloader_num_workers", -1, "-1", "at least 0"),
                ("seed", -1, "-1", "at least 0 and at most 4294967295"),
                ("seed", 2**32, "4.29497e\\+09", "at least 0 and at most 4294967295"),
                ("data_seed", -1, "-1", "at least 0 and at most 4294967295"),
                ("adam_beta1", 2.0, "2", "at least 0 and less than 1"),
                ("adam_beta2", 1.0, "1", "at least 0 and less than 1"),
                ("adam_epsilon", -1.0, "-1", "at least 0"),
                ("weight_decay", -1.0, "-1", "at least 0"),
                ("max_grad_norm", -1.0, "-1", "at least 0"),
                ("warmup_steps", -3, "-3", "at least 0"),
                ("save_steps", 0, "0", "more than 0"),
                ("logging_steps", 0, "0", "more than 0"),
                ("per_device_eval_batch_size", 0, "0", "at least 1"),
                ("eval_accumulation_steps", 0, "0", "at least 1"),
                ("max_steps", 0, "0", "at least 1, or -1 to train by epochs"),
                ("max_steps", -5, "-5", "at least 1, or -1 to train by epochs"),
                (
                    "per_device_train_batch_size",
                    0,
                    "0",
                    "at least 1; leave it out to let the number of training lists decide",
                ),
                (
                    "num_train_epochs",
                    0,
                    "0",
                    "more than 0; leave it out to let the number of training lists decide",
                ),
            )
        ),
        *(({name: True}, f"^{name}=True ") for name in REFUSED if name not in ("neftune_noise_alpha", "debug")),
        ({"neftune_noise_alpha": 5.0}, "^neftune_noise_alpha=5.0 adds noise to the embeddings of tokens"),
        ({"debug": "underflow_overflow"}, "^debug=underflow_overflow cannot read the masks"),
        ({"metric_for_best_model": "ndcg"}, "'ndcg': expected a cut-off of metric_ks after it, such as ndcg@10$"),
        ({"metric_for_best_model": "p1_set_obedience"}, "a cut-off of obedience_k after it, such as p1_set_obed.*@5$"),
        ({"metric_for_best_model": "auc@5"}, "'auc@5': auc has no cut-off, leave out @5"),
        ({"metric_for_best_model": "map@"}, "the cut-off must be in metric_ks"),
        ({"prediction_loss_only": True}, "'ndcg@10', which is not computed with prediction_loss_only=True"),
        ({"eval_strategy": "no", "load_best_model_at_end": True}, "^load_best_model_at_end=True needs evaluations"),
        ({"eval_strategy": "no", "save_strategy": "best"}, "^save_strategy=best needs evaluations"),
        ({"eval_strategy": "steps", "save_strategy": "epoch"}, "^eval_strategy is steps and save_strategy epoch: the"),
        # Errors raised by upstream while it creates the arguments are one line as well.
        ({"eval_strategy": "sometimes"}, "^the training cannot be set up: sometimes is not a valid IntervalStrategy"),
        ({"lr_scheduler_type": "bent"}, "^the training cannot be set up: bent is not a valid SchedulerType"),
        ({"tf32": True}, r"^the training cannot be set up: --tf32 requires .* as given: tf32=True\)$"),
        ({"deepspeed": "ds.json"}, r"^the training cannot be set up: .*deepspeed.* as given: deepspeed=ds.json\)$"),
        ({"accelerator_config": {"a": 1}}, "^the training cannot be set up: .*unexpected keyword argument 'a'"),
        ({"lr_scheduler_kwargs": "{"}, "^the training cannot be set up: "),
    ],
)
def test_wrong_options_are_rejected_by_the_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    if "tf32" in options and torch.cuda.is_available():
        pytest.skip("this machine may have it")
    with pytest.raises(InputError, match=message) as caught:
        RerankTrainingArguments(str(tmp_path / "run"), use_cpu=True, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report_to": "wandb"}, "requires wandb to be installed"),
        ({"torch_compile_backend": "nonsense"}, "NONSENSE.* as given: torch_compile=True, torch_compile_backend=nons"),
        ({"fsdp": "full_shard"}, "only works in distributed training.*as given: fsdp=True"),
        ({"optim": "adamw_bnb_8bit"}, r"install `bitsandbytes`.*as given: optim=adamw_bnb_8bit\)$"),
        ({"optim": "lomo"}, r"install `lomo_optim`.*as given: optim=lomo\)$"),
        ({"lr_scheduler_kwargs": {"a": 1}}, "unexpected keyword argument 'a'"),
        ({"dataloader_multiprocessing_context": "thread", "dataloader_num_workers": 1}, "multiprocessing_context"),
    ],
)
def test_setup_errors_before_the_first_step_are_one_line(
    make_trainer: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_trainer(**options).train()
    assert str(caught.value).startswith("the training cannot be set up: ")
    assert "\n" not in str(caught.value)


def test_errors_after_the_first_step_keep_their_type(make_trainer: Any) -> None:
    """They are errors in code, not in an option, and need their traceback."""

    def broken(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        make_trainer(compute_loss_func=broken).train()


def test_drop_last_with_too_few_lists_for_a_batch_is_rejected(make_trainer: Any) -> None:
    with pytest.raises(
        InputError, match=r"^dataloader_drop_last=True .* 240 lists do not fill one of 241: lower per_dev"
    ):
        make_trainer(dataloader_drop_last=True, per_device_train_batch_size=241)
    assert make_trainer(dataloader_drop_last=True, per_device_train_batch_size=240)


@pytest.mark.parametrize("name", ["dnn", "dlcm", "midnn"])
def test_activation_checkpointing_is_rejected_for_models_without_blocks(
    make_trainer: Any, processor: Any, name: str
) -> None:
    model = tiny_model(name, processor.schema)
    with pytest.raises(InputError, match=f"{type(model).__name__} has no encoder blocks to checkpoint; only PRM"):
        make_trainer(model=model, activation_checkpointing=True)


# ------------------------------------------------------------------------------------------------------------ reported


def test_untested_options_are_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(supported_options._log, "warning_once", notes.append)
    RerankTrainingArguments(str(tmp_path), use_cpu=True)
    assert notes == []
    RerankTrainingArguments(str(tmp_path), use_cpu=True, auto_find_batch_size=True, optim="lomo")
    assert notes == [
        "auto_find_batch_size=True, optim=lomo: passed to transformers as given; not tested with re-rankers (see "
        "hf_rerank/training/README.md)"
    ]
    note_untested({})
    assert len(notes) == 1


# ---------------------------------------------------------------------------------------------------------- strategies


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("epoch", "epoch", 500, True)),
        ({"eval_strategy": "no"}, ("no", "epoch", 500, False)),
        ({"eval_strategy": "steps"}, ("steps", "steps", 500, True)),
        ({"eval_strategy": "steps", "eval_steps": 3}, ("steps", "steps", 3, True)),
        ({"eval_strategy": "steps", "eval_steps": 3, "save_steps": 6}, ("steps", "steps", 6, True)),
        ({"eval_strategy": "steps", "logging_steps": 7}, ("steps", "steps", 7, True)),
        ({"save_strategy": "no"}, ("epoch", "no", 500, False)),
        ({"save_strategy": "best"}, ("epoch", "best", 500, True)),
        ({"save_strategy": "best", "load_best_model_at_end": False}, ("epoch", "best", 500, False)),
        (
            {"eval_strategy": "steps", "save_strategy": "epoch", "load_best_model_at_end": False},
            ("steps", "epoch", 500, False),
        ),
    ],
)
def test_save_strategy_follows_eval_strategy(tmp_path: Path, options: Any, expected: Any) -> None:
    args = RerankTrainingArguments(str(tmp_path), use_cpu=True, **options)
    strategies = (args.eval_strategy.value, args.save_strategy.value, args.save_steps)
    assert (*strategies, args.load_best_model_at_end) == expected


# ------------------------------------------------------------------------------------------ metrics of the best


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("cips_clicks@5", "no such measure, and there are no compute_metrics.*did you mean"),
        ("mine", "no such measure, and there are no compute_metrics$"),
    ],
)
def test_unknown_metrics_for_the_best_model_are_rejected(make_trainer: Any, metric: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer(metric_for_best_model=metric)


def test_metric_for_the_best_model_names_an_evaluation_set(make_trainer: Any, lists: Any) -> None:
    sets = {"a": lists["validation"], "b_c": lists["validation"]}
    for metric, message in (
        ("a_ndcg", "'a_ndcg': expected a cut-off of metric_ks"),
        ("b_c_map@7", r"metric_ks is \[5, 10\]: 7 must be in"),
        ("ndcg@10", "the evaluation sets are a, b_c: choose the metric of one of them, such as a_ndcg@10"),
    ):
        with pytest.raises(InputError, match=message):
            make_trainer(eval_dataset=sets, metric_for_best_model=metric)
    assert make_trainer(eval_dataset=sets, metric_for_best_model="b_c_map@5")


def test_expected_clicks_require_true_attraction(
    tmp_path: Path, lists: Any, processor: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = RerankTrainingArguments(str(tmp_path), use_cpu=True, metric_for_best_model="expected_clicks")
    RerankTrainer(make_model(), args, lists["train"], lists["validation"], processor)
    monkeypatch.setattr(processor, "schema", processor.schema.replace(attraction=None))
    with pytest.raises(InputError, match="'expected_clicks', which needs the true attraction of simulated lists"):
        RerankTrainer(make_model(), args, lists["train"], lists["validation"], processor)


def test_clicks_corrected_by_propensities_require_propensities(
    tmp_path: Path, lists: Any, processor: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = RerankTrainingArguments(str(tmp_path), use_cpu=True, metric_for_best_model="snips_clicks@5")
    with pytest.raises(InputError, match="'snips_clicks@5', which needs the probability that each item was examined"):
        RerankTrainer(make_model(), args, lists["train"], lists["validation"], processor)
    monkeypatch.setattr(processor, "schema", processor.schema.replace(propensity="propensity"))
    RerankTrainer(make_model(), args, lists["train"], lists["validation"], processor)


def test_a_custom_metric_that_is_not_computed_stops_training(make_trainer: Any) -> None:
    from hf_rerank.errors import TrainingStopped

    trainer = make_trainer(metric_for_best_model="mine", compute_metrics=lambda prediction: {"other": 1.0})
    with pytest.raises(TrainingStopped, match=r"is 'mine', and the evaluation computes .*other.*: c"):
        trainer.train()


# -------------------------------------------------------------------------------- without evaluation, adapters


def test_training_without_evaluation_lists(
    tmp_path: Path, lists: Any, processor: Any, make_model: Any, weights: Any
) -> None:
    args = RerankTrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, num_train_epochs=2, per_device_train_batch_size=60
    )
    trainer = RerankTrainer(make_model(), args, lists["train"], None, processor)
    trainer.train()
    assert trainer.state.global_step == 8  # 240 lists in batches of 60, twice
    assert (trainer.state.best_metric, trainer.state.best_model_checkpoint) == (None, None)
    assert not any(name.startswith("eval_") for entry in trainer.state.log_history for name in entry)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    trainer.save_model(str(tmp_path / "model"))
    last = type(trainer.model).from_pretrained(tmp_path / "checkpoint-8")
    for name, value in weights(trainer.model).items():
        assert torch.equal(value, last.state_dict()[name]), name


@pytest.mark.parametrize(
    "options", [{"save_strategy": "best"}, {"lr_scheduler_type": "reduce_lr_on_plateau"}, {"eval_on_start": True}]
)
def test_options_that_need_evaluation_lists_are_rejected_without_them(
    tmp_path: Path, lists: Any, processor: Any, make_model: Any, options: dict[str, Any]
) -> None:
    args = RerankTrainingArguments(str(tmp_path), use_cpu=True, **options)
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"^{name}={value} needs evaluations, and there are no evaluation lists"):
        RerankTrainer(make_model(), args, lists["train"], None, processor)


def test_peft_adapters_are_rejected(make_trainer: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft is not installed here: a module of the same name replaces it."""
    peft = types.ModuleType("peft")
    names = {"__module__": "peft.peft_model", "__init__": lambda self, model: (super(kind, self).__init__(), None)[1]}
    kind = type("PeftModel", (torch.nn.Module,), names)
    layer = type("Linear", (torch.nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    monkeypatch.setitem(sys.modules, "peft", peft)
    with pytest.raises(InputError, match=r"^model is a PeftModel of peft.*model\.merge_and_unload\(\)") as caught:
        make_trainer(model=kind(make_model()))
    assert "\n" not in str(caught.value)
    model = make_model()
    model.scorer = layer(8, 1)
    with pytest.raises(InputError, match=r"^model is a PRMForReranking with layers of peft"):
        make_trainer(model=model)
