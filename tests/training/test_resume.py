"""A run resumes only with the lists and the order that it started with; errors name the difference."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_rerank import InputError, RerankTrainer, RerankTrainingArguments, freeze
from hf_rerank.storage import write_manifest
from hf_rerank.training.resume import describe_run, refuse_another_run

Make = Callable[..., RerankTrainer]
BEGUN = {
    "max_steps": 3,
    "per_device_train_batch_size": 16,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
}


@pytest.fixture(scope="module")
def first_checkpoint(tmp_path_factory: pytest.TempPathFactory, lists: Any, processor: Any, make_model: Any) -> Path:
    """The first checkpoint of a run of three steps of 16 lists."""
    trainer = RerankTrainer(
        model=make_model(),
        args=RerankTrainingArguments(
            str(tmp_path_factory.mktemp("begun") / "run"),
            save_total_limit=None,
            per_device_eval_batch_size=32,
            num_train_epochs=1,
            learning_rate=0.02,
            use_cpu=True,
            disable_tqdm=True,
            **BEGUN,
        ),
        train_dataset=lists["train"],
        eval_dataset=lists["validation"],
        processing_class=processor,
    )
    trainer.train()
    return Path(str(trainer.args.output_dir)) / "checkpoint-1"


@pytest.fixture
def checkpoint(first_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of this checkpoint."""
    return Path(shutil.copytree(first_checkpoint, tmp_path / "begun" / first_checkpoint.name))


@pytest.mark.slow
def test_options_that_change_batches_or_the_optimizer_are_rejected(make_trainer: Make, checkpoint: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"per_device_train_batch_size": 32}, "per_device_train_batch_size=16, this run has 32: batches would differ"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=1, this run has 2: batches"),
        ({"seed": 7}, "seed=42, this run has 7: batches"),
        ({"data_seed": 7}, "data_seed=None, this run has 7: batches"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy=random, this run has sequential"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last=False, this run has True: batches"),
        ({"truncate_lists": True}, "truncate_lists=False, this run has True: batches"),
        ({"learning_rate": 0.5}, r"learning_rate=0\.02, this run has 0\.5: it would be ignored"),
        ({"optim": "sgd"}, r"optim=adamw\w*, this run has sgd: it would be ignored"),
        ({"lr_scheduler_type": "constant"}, "lr_scheduler_type=cosine, this run has constant: it would"),
        (
            {"lr_scheduler_kwargs": {"num_cycles": 2}},
            "lr_scheduler_kwargs=None, this run has {'num_cycles': 2}: it would",
        ),
        (
            {"accelerator_config": {"use_seedable_sampler": False}},
            "accelerator_config.use_seedable_sampler=True, this",
        ),
    ]
    for changed, message in cases:
        trainer = make_trainer(folder="other", **{**BEGUN, **changed})
        with pytest.raises(InputError, match=rf"checkpoint-1 was trained with {message}.*from_pretrained") as caught:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_another_metric_for_the_best_model_is_rejected(make_trainer: Make) -> None:
    """1.9 clicks would remain better than any ndcg forever."""
    measured = {**BEGUN, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    first_run = make_trainer(folder="begun", save_total_limit=None, **measured, metric_for_best_model="clicks@10")
    first_run.train()
    for changed, message in (
        (
            {"metric_for_best_model": "ndcg@10"},
            "metric_for_best_model=clicks@10, this run has ndcg@10: the best check",
        ),
        ({"metric_for_best_model": "clicks@10", "no_click": "skip"}, "no_click=zero, this run has skip: the best"),
    ):
        with pytest.raises(InputError, match=message):
            make_trainer(folder="other", **measured, **changed).train(
                resume_from_checkpoint=f"{first_run.args.output_dir}/checkpoint-1"
            )
    # Without best-model selection, nothing is compared.
    make_trainer(folder="other", **BEGUN).train(resume_from_checkpoint=f"{first_run.args.output_dir}/checkpoint-1")


@pytest.mark.slow
def test_a_changed_objective_gives_a_warning(make_trainer: Make, checkpoint: Path) -> None:
    options = {"principled_kwargs": {"adversarial_weight": 0.25}, "max_grad_norm": 3.0}
    trainer = make_trainer(folder="other", **BEGUN, **options)
    message = r"max_grad_norm=1\.0 \(3\.0\), terms=.*'adversarial'.*0\.25.*; values in brackets take effect from here"
    with pytest.warns(UserWarning, match=message):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    # With new terms, the saved factors of the old ones are ignored.
    other = make_trainer(folder="r_drop", **BEGUN, principled="r_drop")
    with pytest.warns(UserWarning, match="principled=augmented"):
        other.train(resume_from_checkpoint=str(checkpoint))
    assert other.term_factors.keys() == {"r_drop"}


@pytest.mark.slow
def test_different_frozen_parameters_are_rejected(make_trainer: Make, make_model: Callable[..., Any]) -> None:
    """With equally many of the same shapes, torch would silently assign optimizer state to the wrong ones."""

    def model_with_frozen(*names: str) -> Any:
        model = make_model()
        freeze(model, *names)
        return model

    first_run = make_trainer(folder="begun", model=model_with_frozen("blocks.0.intermediate.bias"), **BEGUN)
    first_run.train()
    folder = Path(first_run.args.output_dir) / "checkpoint-3"
    for model, shown in (
        (model_with_frozen("scorer.bias"), r"scorer\.bias"),
        (model_with_frozen("blocks.0"), r"(blocks\.0\.\w+\.\w+(, )?){3} and \d+ more"),
        (make_model(), "nothing"),
    ):
        message = (
            rf"trained with blocks\.0\.intermediate\.bias frozen, this run has {shown}: .*freeze the same \(--freeze\)"
        )
        with pytest.raises(InputError, match=message):
            make_trainer(folder="other", model=model, **BEGUN).train(resume_from_checkpoint=str(folder))
    make_trainer(folder="other", model=model_with_frozen("blocks.0.intermediate.bias"), **BEGUN).train(
        resume_from_checkpoint=str(folder)
    )


def test_a_stream_on_a_different_number_of_devices_is_rejected(make_trainer: Make, lists: dict[str, Any]) -> None:
    """Eight lists on each of two devices equal sixteen on one, but the options differ."""
    first_run = make_trainer(folder="begun", train_dataset=lists["train"].to_iterable_dataset(), **BEGUN)
    first_run.train()
    saved = json.loads((Path(first_run.args.output_dir) / "checkpoint-3" / "run.json").read_text())
    assert saved["options"]["train_batch_size"] == 16
    first_run.args._n_gpu = 2
    described = describe_run(first_run.args, saved["data"], saved["learning"])
    with pytest.raises(InputError, match="train_batch_size=16, this run has 32: batches would differ"):
        refuse_another_run(Path(first_run.args.output_dir) / "checkpoint-3", described, stream=True)


@pytest.mark.slow
def test_different_training_lists_are_rejected(
    make_trainer: Make, checkpoint: Path, lists: dict[str, Any], make_lists: Any
) -> None:
    train = lists["train"]

    def dearer(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {"price": [price + (number == 30) for price in row["price"]]}

    cases = [
        (train.select(range(239)), "had 240 lists in train, this run has 239"),
        (make_lists(240, 99), "had other lists in train, or in another order"),
        (train.select([1, 0, *range(2, 240)]), "had other lists in train, or in another order"),
        (train.map(dearer, with_indices=True), "had other lists in train, or in another order"),
        (train.to_iterable_dataset(), "had 240 lists in train, this run has none"),
    ]
    for other, message in cases:
        trainer = make_trainer(folder="other", train_dataset=other, **BEGUN)
        with pytest.raises(InputError, match=f"checkpoint-1 {message}"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer = make_trainer(folder="other", eval_dataset=train.select(range(9)), **BEGUN)
    with pytest.warns(UserWarning, match="had 50 lists in validation, this run has 9: metrics, and the best"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_other_evaluation_lists_keep_the_rates_of_unknown_values(
    make_trainer: Make, make_model: Any, checkpoint: Path, lists: dict[str, Any]
) -> None:
    """All ids of the first run's evaluation lists were known: the lowest rate. Here all are unknown: a rate of 1."""
    new = lists["validation"].map(lambda row: {"item_id": [item + 1_000 for item in row["item_id"]]})
    for model_init in (None, lambda: make_model()):
        trainer = make_trainer(folder="other", eval_dataset=new, **BEGUN)
        assert trainer.model.config.item_unknown_rates == [1.0]
        trainer.model_init = model_init
        with pytest.warns(UserWarning, match="had other lists in validation"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        assert trainer.state.global_step == 3
        assert trainer.model.config.item_unknown_rates == [0.01]
        assert trainer.results["model"]["item_unknown_rates"] == [0.01]


@pytest.mark.slow
def test_different_streams_are_rejected(make_trainer: Make, lists: dict[str, Any]) -> None:
    def stream(shards: int = 2, *, seed: int | None = None) -> Any:
        given = lists["train"].to_iterable_dataset(num_shards=shards)
        return given if seed is None else given.shuffle(seed=seed, buffer_size=50)

    first_run = make_trainer(folder="begun", train_dataset=stream(), save_total_limit=None, **BEGUN)
    first_run.train()
    checkpoint = f"{first_run.args.output_dir}/checkpoint-2"
    for other, options, message in (
        (stream(3), {}, "had 2 shards in train, this run has 3"),
        (stream(seed=1), {}, "had other lists in train, or in another order"),
        (stream(), {"stream_window": 9}, "stream_window=10000, this run has 9: batches would differ"),
    ):
        trainer = make_trainer(folder="other", train_dataset=other, **{**BEGUN, **options})
        with pytest.raises(InputError, match=message):
            trainer.train(resume_from_checkpoint=checkpoint)
    # A shuffle without a seed differs each time, and is detected.
    unseeded = lists["train"].to_iterable_dataset(num_shards=2).shuffle(buffer_size=50)
    first_run = make_trainer(folder="unseeded", train_dataset=unseeded, save_total_limit=None, **BEGUN)
    first_run.train()
    again = lists["train"].to_iterable_dataset(num_shards=2).shuffle(buffer_size=50)
    with pytest.raises(InputError, match="or in another order"):
        make_trainer(folder="other", train_dataset=again, **BEGUN).train(
            resume_from_checkpoint=f"{first_run.args.output_dir}/checkpoint-2"
        )


@pytest.mark.slow
def test_options_that_do_not_change_batches_are_allowed(make_trainer: Make, checkpoint: Path) -> None:
    trainer = make_trainer(folder="other", **BEGUN, dataloader_num_workers=1, stream_window=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 3


@pytest.mark.slow
def test_a_longer_run_gives_a_warning(make_trainer: Make, checkpoint: Path) -> None:
    """A cosine from 0.02 to 0: the fourth of five steps is at three fifths."""
    trainer = make_trainer(folder="longer", **{**BEGUN, "max_steps": 5})
    message = "max_steps=3, this run has 5: from here on the learning rate is that of a run"
    with pytest.warns(UserWarning, match=message):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    rates = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}
    assert rates[4] == pytest.approx(0.02 * (1 + math.cos(math.pi * 3 / 5)) / 2)


def test_a_checkpoint_without_complete_run_information_is_rejected(make_trainer: Make, checkpoint: Path) -> None:
    saved = json.loads((checkpoint / "run.json").read_text())
    assert saved["data"]["train"]["lists"] == 240
    for old in (
        {name: part for name, part in saved.items() if name != "learning"},
        {**saved, "options": {name: value for name, value in saved["options"].items() if name != "no_click"}},
    ):
        (checkpoint / "run.json").write_text(json.dumps(old))
        write_manifest(checkpoint, step=1, number=1, processes=1)
        with pytest.raises(InputError, match="was saved by another version of hf-rerank"):
            make_trainer(folder="other", **BEGUN).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "run.json").unlink()
    write_manifest(checkpoint, step=1, number=1, processes=1)
    with pytest.raises(InputError, match=r"saved without run\.json"):
        make_trainer(folder="other", **BEGUN).train(resume_from_checkpoint=str(checkpoint))
    shutil.rmtree(checkpoint)
