"""Errors of ``RerankTrainer``: broken weights and lists, wrong input, and options that streams need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import TrainerCallback

from hf_rerank import InputError, ListProcessor, Reranker, RerankTrainer
from hf_rerank.errors import TrainingStopped

Make = Callable[..., RerankTrainer]


# ------------------------------------------------------------------------------------------------------------ stopping


class BreakWeights(TrainerCallback):
    """Sets one weight to NaN before step ``at``."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.at:
            with torch.no_grad():
                model.scorer.weight[0, 0] = float("nan")


@pytest.mark.slow
def test_nan_weights_stop_training_and_are_never_saved(make_trainer: Make, weights: Any) -> None:
    trainer = make_trainer(
        callbacks=[BreakWeights(5)],
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=None,
    )
    with pytest.raises(TrainingStopped, match=r"step 6: task_loss is nan.*list-1-\d+.* and 27 more") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    folder = Path(trainer.args.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == [f"checkpoint-{step}" for step in range(1, 6)]
    for path in folder.iterdir():
        assert all(value.isfinite().all() for value in weights(Reranker.from_pretrained(path).model).values())
    with pytest.raises(TrainingStopped, match=r"scorer\.weight.* not finite"):
        trainer.save_model()
    with pytest.raises(TrainingStopped, match=r"scorer\.weight.* not finite"):
        trainer.push_to_hub("someone/broken")
    assert not (folder / "model.safetensors").exists()
    assert not trainer.is_in_train


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_list_with_an_overflowing_feature_is_reported(
    make_trainer: Make, make_lists: Any, processor: ListProcessor
) -> None:
    rows = make_lists(24, 7).to_list()
    schema = processor.schema.replace(items=[processor.schema.items[0], type(processor.schema.items[1])("price")])
    scales = {"price": type(processor.scales["price"])(mean=0.0, std=1e-3)}
    rows[17]["price"][1] = 3e38  # finite in float32, but infinite after scaling
    plain = ListProcessor(schema, processor.vocabularies, scales)
    from hf_rerank import PRMConfig, PRMForReranking, RerankTrainingArguments

    torch.manual_seed(0)
    trainer = RerankTrainer(
        model=PRMForReranking(
            PRMConfig.for_schema(plain.schema, hidden_size=8, num_hidden_layers=1, intermediate_size=8)
        ),
        args=RerankTrainingArguments(
            make_trainer().args.output_dir, eval_strategy="no", load_best_model_at_end=False, use_cpu=True
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=plain,
    )
    with pytest.raises(TrainingStopped, match=r"step 1: task_loss is nan.*lists with scores .* finite: list-7-17;"):
        trainer.train()


# --------------------------------------------------------------------------------------------------------- wrong input


def test_wrong_trainer_inputs_are_rejected(
    make_trainer: Make, make_model: Any, make_lists: Any, lists: dict[str, Any]
) -> None:
    splits = datasets.DatasetDict(lists)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train_dataset": splits}, r"train, validation: choose one split.*lists\['train'\]"),
        ({"eval_dataset": splits}, "sets are train, validation: .*such as train_ndcg@10"),
        ({"train_dataset": lists["train"].select([])}, "no list"),
        ({"eval_dataset": lists["train"].select([])}, "no list"),
        ({"train_dataset": [{"item_id": [1]}]}, "datasets? .*list"),
        ({"model": make_model(schema_fingerprint="0123456789abcdef")}, "fingerprint 0123456789abcdef.*for_schema"),
    ]
    for given, message in cases:
        with pytest.raises(InputError, match=message):
            make_trainer(**given)
    trainer = make_trainer()
    with pytest.raises(InputError, match=r"datasets Dataset.*'test': the trainer has evaluation lists without a name"):
        trainer.evaluate("test")
    with pytest.raises(InputError, match="args is a dict"):
        RerankTrainer(trainer.model, {"output_dir": "x"}, processing_class=trainer.processor)
    with pytest.raises(InputError, match="processing_class is missing"):
        RerankTrainer(trainer.model, trainer.args)


def test_graded_labels_require_a_listwise_loss(make_trainer: Make, make_model: Any, make_lists: Any) -> None:
    rows = make_lists(16, 8).to_list()
    rows[11]["click"][2] = 2
    graded = datasets.Dataset.from_list(rows)
    with pytest.raises(InputError, match="label 2 in list list-8-11: a log-loss takes labels from 0 to 1"):
        make_trainer(train_dataset=graded).train()
    trainer = make_trainer(make_model(task_loss="softmax_loss"), folder="graded", train_dataset=graded)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.slow
def test_too_long_lists_are_rejected_or_truncated(
    tmp_path: Path, lists: dict[str, Any], processor: ListProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_rerank import PRMConfig, PRMForReranking, RerankTrainingArguments

    short = ListProcessor(processor.schema.replace(max_list_length=4), processor.vocabularies, processor.scales)

    def make(**options: Any) -> RerankTrainer:
        return RerankTrainer(
            model=PRMForReranking(
                PRMConfig.for_schema(short.schema, hidden_size=8, num_hidden_layers=1, intermediate_size=8)
            ),
            args=RerankTrainingArguments(str(tmp_path / "short"), num_train_epochs=1, use_cpu=True, **options),
            train_dataset=lists["train"],
            eval_dataset=lists["validation"],
            processing_class=short,
        )

    with pytest.raises(InputError, match=r"list list-1-\d+ has \d items.*max_list_length=4"):
        make().train()
    trainer = make(truncate_lists=True)
    trainer.train()
    lengths = [min(len(row), 4) for row in lists["validation"]["item_id"]]
    assert trainer.evaluate()["eval_items"] == sum(lengths) < 50 * 4 + 1


# ------------------------------------------------------------------------------------------------------------- streams


def test_a_stream_needs_max_steps(make_trainer: Make, lists: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        make_trainer(train_dataset=lists["train"].to_iterable_dataset())


def test_auto_find_batch_size_is_rejected_for_streams(make_trainer: Make, lists: dict[str, Any]) -> None:
    stream = lists["train"].to_iterable_dataset()
    with pytest.raises(InputError, match="auto_find_batch_size would lose the position in a stream"):
        make_trainer(train_dataset=stream, max_steps=1, auto_find_batch_size=True)
