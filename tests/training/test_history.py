"""PEAR and RAISE on lists with histories of all lengths: simulated, prepared, trained, ranked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import collator_of
from torch.utils.data import DataLoader

from hf_rerank import (
    AutoReranker,
    InputError,
    ListProcessor,
    PEARConfig,
    PEARForReranking,
    RAISEConfig,
    RAISEForReranking,
    Reranker,
    RerankTrainer,
    RerankTrainingArguments,
    load_lists,
)
from hf_rerank.data.prm_public import prepare_prm_public
from hf_rerank.data.simulation import PRMWorld, simulate_prm
from hf_rerank.processing.collator import decode_list_ids
from hf_rerank.schema import FEATURE_TENSORS
from hf_rerank.training import streams
from hf_rerank.training.encoded_lists import EncodedLists, collate
from hf_rerank.training.streams import EncodedStream, collate_stream

HISTORY = ["item_id", "item_1", "item_3", "basic_2", "price_gap", "minutes_ago"]
NEWEST = 6
MODELS = {
    "pear": (
        PEARConfig,
        PEARForReranking,
        {"feature_hidden_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
    ),
    "raise": (
        RAISEConfig,
        RAISEForReranking,
        {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_mixtures": 2},
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """About 130 training lists of 6 items; histories have 4 clicks on average, of which the newest 6 are read."""
    folder = tmp_path_factory.mktemp("world")
    world = PRMWorld(list_length=6, pool_size=30, n_items=60, history_length=4.0)
    simulate_prm(folder / "raw", 300, world=world)
    prepare_prm_public(folder / "raw", folder / "lists", progress=False)
    lists = load_lists(folder / "lists")
    schema = lists.schema.replace(max_history_length=NEWEST)
    return SimpleNamespace(lists=lists, processor=ListProcessor.from_lists(lists["train"], schema=schema))


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model after eight steps of the trainer, its weights before, and the trainer."""
    config, model, sizes = MODELS[request.param]
    torch.manual_seed(0)
    model = model(config.for_schema(world.processor.schema, embedding_dim=4, initializer_range=0.3, **sizes))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    arguments = RerankTrainingArguments(
        str(tmp_path_factory.mktemp(request.param) / "run"),
        max_steps=8,
        per_device_train_batch_size=32,
        learning_rate=0.02,
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = RerankTrainer(
        model=model,
        args=arguments,
        train_dataset=world.lists["train"],
        eval_dataset=world.lists["validation"],
        processing_class=world.processor,
    )
    trainer.train()
    return SimpleNamespace(trainer=trainer, before=before, reranker=Reranker(world.processor, trainer.model))


def row_with_history(world: Any) -> dict[str, Any]:
    return next(row for row in world.lists["test"] if 3 <= len(row["history_item_id"]) <= NEWEST)


def keep_history_slots(row: dict[str, Any], slots: list[int]) -> dict[str, Any]:
    """The list with only the history items of these slots."""
    return {**row, **{f"history_{name}": [row[f"history_{name}"][slot] for slot in slots] for name in HISTORY}}


def scores(reranker: Reranker, row: dict[str, Any]) -> np.ndarray:
    return np.array(reranker.rerank([row])[0]["scores"])


@pytest.mark.slow
def test_training_updates_the_history_weights(trained: Any) -> None:
    losses = [entry["loss"] for entry in trained.trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert np.isfinite(losses).all()
    of_history = [name for name in trained.before if "history" in name]
    assert len(of_history) >= 2
    for name, value in trained.trainer.model.named_parameters():
        if name in of_history:
            assert not value.equal(trained.before[name]), name


def test_evaluation_with_histories(trained: Any) -> None:
    metrics = trained.trainer.evaluate()
    assert 0 < metrics["eval_ndcg@10"] < 1


def test_scores_depend_on_the_history(trained: Any, world: Any) -> None:
    row = row_with_history(world)
    slots = list(range(len(row["history_item_id"])))
    whole = scores(trained.reranker, row)
    assert np.abs(scores(trained.reranker, keep_history_slots(row, [])) - whole).max() > 1e-4
    assert np.abs(scores(trained.reranker, keep_history_slots(row, slots[1:])) - whole).max() > 1e-4
    gaps = {"history_price_gap": [-2 - gap for gap in row["history_price_gap"]]}
    assert np.abs(scores(trained.reranker, {**row, **gaps}) - whole).max() > 1e-4


@pytest.mark.slow
def test_other_histories_in_the_batch_do_not_change_scores(
    trained: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Histories from empty to longer than the limit: alone, together as rows, and from a stream, collated in other
    batches than they were encoded in."""
    monkeypatch.setattr(streams, "STREAM_BATCH", 3)
    rows = list(world.lists["test"])[:24]
    lengths = [len(row["history_item_id"]) for row in rows]
    assert min(lengths) == 0
    assert max(lengths) > NEWEST
    together, report = trained.reranker.rerank(rows, with_report=True)
    for row, result in zip(rows, together, strict=True):
        (alone,) = trained.reranker.rerank([row])
        np.testing.assert_allclose(result["scores"], alone["scores"], atol=1e-5)
    assert report.cut_histories == sum(length > NEWEST for length in lengths)
    assert report.cut_history_items == sum(max(0, length - NEWEST) for length in lengths)

    stream = EncodedStream(world.lists["test"].to_iterable_dataset(), collator_of(world.processor))
    of_list = {row["list_id"]: result for row, result in zip(rows, together, strict=True)}
    for batch in DataLoader(stream, batch_size=5, collate_fn=collate_stream):
        names = decode_list_ids(batch.pop("list_id"))
        features = {name: batch[name] for name in FEATURE_TENSORS if name in batch}
        _, by_slot = trained.reranker.model.rank(**features)
        for name, found in zip(names, by_slot.tolist(), strict=True):
            if name in of_list:
                expected = of_list[name]
                ordered = [found[slot] for slot in expected["order"]]
                np.testing.assert_allclose(ordered, expected["scores"], atol=1e-5)


def test_only_the_newest_entries_of_a_long_history_are_read(trained: Any, world: Any) -> None:
    row = next(row for row in world.lists["test"] if len(row["history_item_id"]) > NEWEST)
    whole = scores(trained.reranker, row)
    newest = keep_history_slots(row, list(range(NEWEST)))
    np.testing.assert_allclose(scores(trained.reranker, newest), whole, atol=1e-6)
    oldest = keep_history_slots(row, list(range(len(row["history_item_id"]) - NEWEST, len(row["history_item_id"]))))
    assert np.abs(scores(trained.reranker, oldest) - whole).max() > 1e-4


def test_streams_and_datasets_give_the_same_histories(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAM_BATCH", 3)
    lists = world.lists["validation"]
    stream = EncodedStream(lists.to_iterable_dataset(), collator_of(world.processor))
    joined = collate_stream(list(stream))
    whole = collate(EncodedLists(lists, collator_of(world.processor)).__getitems__(range(len(lists))))
    assert {"history_categorical", "history_dense", "history_mask"} <= whole.keys()
    for name, tensor in whole.items():
        assert joined[name].equal(tensor), name


def test_nulls_in_a_history_are_counted_and_ranked(trained: Any, world: Any) -> None:
    """A null is read as the unknown id or the mean."""
    row = row_with_history(world)
    holes = {name: [None, *row[name][1:]] for name in ("history_item_id", "history_price_gap")}
    (result,), report = trained.reranker.rerank([{**row, **holes}], with_report=True)
    assert np.isfinite(result["scores"]).all()
    assert report.missing["history_item_id"] == report.missing["history_price_gap"] == 1


def test_wrong_histories_are_rejected(trained: Any, world: Any) -> None:
    row = row_with_history(world)
    without = {name: value for name, value in row.items() if name != "history_item_1"}
    with pytest.raises(InputError, match="no column 'history_item_1'"):
        trained.reranker.rerank([without])
    with pytest.raises(InputError, match=r"column 'history_item_1' has 0 values, column 'history_item_id' has \d"):
        trained.reranker.rerank([{**row, "history_item_1": []}])
    with pytest.raises(InputError, match=r"'history_item_id' of list 1 .* is null: .*empty where there is no history"):
        trained.reranker.rerank([row, {**row, "history_item_id": None}])


def test_saved_reranker_with_histories_gives_the_same_results(trained: Any, world: Any, tmp_path: Path) -> None:
    trained.reranker.save_pretrained(tmp_path / "saved")
    row = row_with_history(world)
    loaded = Reranker.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded.model, type(AutoReranker.from_pretrained(tmp_path / "saved")))
    assert loaded.rerank([row]) == trained.reranker.rerank([row])
