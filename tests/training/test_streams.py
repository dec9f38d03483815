"""Streams: each list once per epoch, in the same order for any number of workers and processes; resumable anywhere."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pytest
import stream_worker
import warm
from tiny_world import SCHEMA, collator_of, tiny_lists
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker as torch_worker
from two_processes import run_on_two

from hf_rerank import InputError, ListProcessor, Reranker, RerankTrainer
from hf_rerank.data import prm_public
from hf_rerank.data.loading import load_lists
from hf_rerank.data.simulation import simulate_prm
from hf_rerank.processing.collator import decode_list_ids
from hf_rerank.storage import write_file
from hf_rerank.training.encoded_lists import EncodedLists, collate
from hf_rerank.training.streams import EncodedStream, collate_stream

Make = Callable[..., RerankTrainer]


def stream_of(lists: datasets.Dataset, processor: ListProcessor, shards: int = 1, **options: Any) -> EncodedStream:
    return EncodedStream(lists.to_iterable_dataset(num_shards=shards), collator_of(processor), **options)


def batches_of(stream: EncodedStream, count: int | None = None, workers: int = 0) -> list[list[str]]:
    """The ids of the first batches; empty for placeholders."""
    batches: list[list[str]] = []
    for batch in DataLoader(stream, stream.step, num_workers=workers, collate_fn=collate_stream):
        batches.append(decode_list_ids(batch["list_id"]) if batch else [])
        if len(batches) == count:
            break
    return batches


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("window", [1, 20, 100, 1000])
def test_each_epoch_gives_every_list_once_in_a_reproducible_order(
    lists: dict[str, Any], processor: ListProcessor, shards: int, window: int
) -> None:
    """240 lists, 24 per step: ten batches per epoch. The order differs between epochs and seeds."""
    ids = lists["train"]["list_id"]

    def order(seed: int) -> list[str]:
        stream = stream_of(lists["train"], processor, shards, seed=seed, window=window, endless=True, batch_size=24)
        batches = batches_of(stream, 30)
        assert {len(batch) for batch in batches} == {24}
        assert stream.lists_per_pass == 240
        return list(chain(*batches))

    first = order(0)
    passes = [first[start : start + 240] for start in (0, 240, 480)]
    for found in passes:
        assert sorted(found) == sorted(ids)
    assert order(0) == first
    if window > 1:
        assert passes[0] != passes[1] != passes[2]
        assert order(1) != first


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_workers_do_not_change_the_order(lists: dict[str, Any], processor: ListProcessor, workers: int) -> None:
    """Also with more workers than shards."""
    options = {"seed": 4, "window": 50, "endless": True, "batch_size": 7}
    expected = batches_of(stream_of(lists["train"], processor, 2, **options), 50)
    assert batches_of(stream_of(lists["train"], processor, 2, **options), 50, workers) == expected
    once = {"batch_size": 32}
    expected = batches_of(stream_of(lists["train"], processor, 2, **once), None)
    assert [len(batch) for batch in expected] == [32] * 7 + [16]
    assert list(chain(*expected)) == lists["train"]["list_id"], "in evaluation, in stream order"
    assert batches_of(stream_of(lists["train"], processor, 2, **once), None, workers) == expected


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 20, 100])
def test_streams_resume_at_any_batch(make_lists: Any, processor: ListProcessor, window: int) -> None:
    """Two epochs of 250 lists, 8 per step: a stream resumes where it was cut, whether or not its length is known."""
    lists = make_lists(250, 3)
    options = {"seed": 2, "window": window, "endless": True, "batch_size": 8}
    whole = batches_of(stream_of(lists, processor, 3, **options), 70)
    ids = sorted(lists["list_id"])
    flat = list(chain(*whole))
    assert sorted(flat[:250]) == sorted(flat[250:500]) == ids
    for cut in range(1, 67, 5):
        for known in (0, 250):
            stream = stream_of(lists, processor, 3, **options)
            stream.skip_to(8 * cut, known)
            found = batches_of(stream, cut + 4)
            assert found == [[]] * cut + whole[cut : cut + 4], (cut, known)


@pytest.mark.slow
def test_streams_resume_after_any_list(make_lists: Any, processor: ListProcessor) -> None:
    """An epoch cut after each of its lists, with three windows in turn: none lost or repeated, in the same order."""
    lists = make_lists(300, 5).select_columns("list_id")  # nothing is encoded here
    ids = [lists.shard(num_shards=3, index=shard)["list_id"][:] for shard in range(3)]

    def pass_from(cut: int, window: int) -> list[str]:
        stream = stream_of(lists, processor, 3, seed=0, window=window, endless=True)
        stream.skip_to(cut)
        order: list[str] = []
        last, of_window = None, []
        for place, _ in zip(stream, range(300), strict=False):
            if place.window is None:
                order.append("skipped")
                continue
            if place.window is not last:
                last = place.window
                of_window = [
                    name for shard, first, part in last._parts for name in ids[shard][first : first + len(part)]
                ]
            order.append(of_window[place.row])
        assert order[:cut] == ["skipped"] * cut
        return order[cut:]

    windows = (1, 20, 100)
    whole = [pass_from(0, window) for window in windows]
    for order in whole:
        assert sorted(order) == sorted(lists["list_id"])
    for cut in range(301):
        assert pass_from(cut, windows[cut % 3]) == whole[cut % 3][cut:], cut


def test_skipped_lists_are_not_encoded(
    make_lists: Any, processor: ListProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    original = processor.encode

    def counting(lists: Any, **options: Any) -> Any:
        encoded.append(len(lists))
        return original(lists, **options)

    monkeypatch.setattr(processor, "encode", counting)
    stream = stream_of(make_lists(300, 6), processor, seed=0, window=50, endless=True, batch_size=10)
    stream.skip_to(200 + 600, 300)  # 200 lists into the third epoch
    assert batches_of(stream, 82)[-2:] != [[], []]
    assert sum(encoded) <= 100


def test_batches_of_a_stream_equal_those_of_the_dataset(lists: dict[str, Any], processor: ListProcessor) -> None:
    """Bit for bit, also for batches from two windows; without ids, ids consist of shard and row."""
    number = {name: index for index, name in enumerate(lists["train"]["list_id"])}
    stream = stream_of(lists["train"], processor, 3, seed=1, window=17, endless=True, batch_size=16)
    encoded = EncodedLists(lists["train"], collator_of(processor))
    for batch, _ in zip(DataLoader(stream, 16, collate_fn=collate_stream), range(20), strict=False):
        expected = collate(encoded.__getitems__([number[name] for name in decode_list_ids(batch["list_id"])]))
        assert batch.keys() == expected.keys()
        for name, tensor in expected.items():
            assert batch[name].dtype == tensor.dtype
            if name != "list_id":  # as wide as the longest id of a window
                assert batch[name].equal(tensor), name
    bare = stream_of(lists["train"].remove_columns("list_id"), processor, 3, batch_size=240)
    assert batches_of(bare)[0][::80] == ["0-0", "1-0", "2-0"]


def test_a_stream_that_is_already_shuffled(lists: dict[str, Any], processor: ListProcessor) -> None:
    shuffled = lists["train"].to_iterable_dataset(num_shards=3).shuffle(seed=3, buffer_size=64)
    options = {"seed": 1, "window": 30, "endless": True, "batch_size": 24}
    whole = batches_of(EncodedStream(shuffled, collator_of(processor), **options), 25)
    flat = list(chain(*whole))
    assert sorted(flat[:240]) == sorted(flat[240:480]) == sorted(lists["train"]["list_id"])
    stream = EncodedStream(shuffled, collator_of(processor), **options)
    stream.skip_to(24 * 13)
    assert batches_of(stream, 25) == [[]] * 13 + whole[13:]
    # Without a seed: each epoch in the order of the stream's own shuffle.
    as_it_comes = list(
        chain(*batches_of(EncodedStream(shuffled, collator_of(processor), endless=True, batch_size=24), 20))
    )
    assert sorted(as_it_comes[:240]) == sorted(as_it_comes[240:])
    assert as_it_comes[:240] != as_it_comes[240:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 1])
def test_a_stream_whose_take_does_not_split_by_shard(
    lists: dict[str, Any], processor: ListProcessor, seed: int | None
) -> None:
    """Shards of 24 lists: the first 30 are a whole shard and a quarter of the next, not a part of each shard."""
    whole = lists["train"].to_iterable_dataset(num_shards=10)
    other = lists["validation"].to_iterable_dataset(num_shards=2)
    for cut in (
        whole.take(30),
        whole.skip(30),
        whole.skip(30).take(30).shuffle(seed=3, buffer_size=5),
        datasets.interleave_datasets([whole, other]),
        whole.take(30).repeat(2),
        datasets.concatenate_datasets([whole.take(30), other]),
    ):
        expected = [row["list_id"] for row in cut]
        for workers in (0, 2):
            stream = EncodedStream(cut, collator_of(processor), seed=seed, window=7, batch_size=8)
            found = list(chain(*batches_of(stream, workers=workers)))
            assert sorted(found) == sorted(expected)
            assert (found == expected) == (seed is None)


def test_a_stream_that_changes_between_epochs_is_rejected(make_lists: Any, processor: ListProcessor) -> None:
    stream = stream_of(make_lists(30, 1), processor, seed=0, endless=True, batch_size=10)
    stream.skip_to(60, 31)
    with pytest.raises(InputError, match="gave 30 lists in one pass and 31 in another"):
        batches_of(stream, 12)
    with pytest.raises(InputError, match="to evaluate on has no lists"):
        batches_of(EncodedStream(datasets.IterableDataset.from_generator(lambda: iter(())), collator_of(processor)), 1)


def test_errors_name_the_list(make_lists: Any, processor: ListProcessor) -> None:
    rows = make_lists(20, 5).to_list()
    rows[13]["click"][0] = -1
    lists = datasets.Dataset.from_list(rows).remove_columns("list_id")
    with pytest.raises(InputError, match=r"list 3\b.*shard 1 of the stream"):
        batches_of(stream_of(lists, processor, 2, seed=0, endless=True), 20)


@pytest.fixture
def raw_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulated PRM Public text of 300 lists, in several shards, and the prepared lists next to it."""
    simulate_prm(tmp_path / "raw", 300, seed=1)
    prm_public.prepare_prm_public(tmp_path / "raw", tmp_path / "lists")
    monkeypatch.setattr(prm_public, "find_ranges", functools.partial(prm_public.find_ranges, range_bytes=120_000))
    return tmp_path / "raw"


@pytest.mark.slow
def test_raw_text_and_parquet_streams_give_the_same_lists_and_can_resume(raw_text: Path, tmp_path: Path) -> None:
    """The shards of both, through two epochs and resumed within the second."""
    sources: list[tuple[Any, dict[str, Any]]] = [("prm_public", {"data_dir": raw_text}), (tmp_path / "lists", {})]
    found = []
    for source, options in sources:
        lists = load_lists(source, streaming=True, **options)
        processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)

        def stream(lists: Any = lists, processor: ListProcessor = processor) -> EncodedStream:
            return EncodedStream(
                lists["train"], collator_of(processor), seed=3, window=40, endless=True, batch_size=10
            )

        whole = batches_of(stream(), 30)
        count = len(load_lists(tmp_path / "lists")["train"])
        flat = list(chain(*whole))
        assert sorted(flat[:count]) == sorted(flat[count : 2 * count])
        for known in (0, count):
            again = stream()
            again.skip_to(10 * 17, known)
            assert batches_of(again, 30) == [[]] * 17 + whole[17:]
        found.append((lists["train"].num_shards, sorted(flat[:count])))
    assert found[0][0] > 3
    assert found[0][1] == found[1][1] == sorted(load_lists(tmp_path / "lists")["train"]["list_id"])


@pytest.mark.slow
def test_raw_text_streams_in_spawned_workers(raw_text: Path) -> None:
    lists = load_lists("prm_public", data_dir=raw_text, streaming=True)
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    stream = EncodedStream(lists["train"], collator_of(processor), seed=3, window=40, endless=True, batch_size=10)
    expected = batches_of(stream, 30)
    fresh = EncodedStream(lists["train"], collator_of(processor), seed=3, window=40, endless=True, batch_size=10)
    loader = DataLoader(fresh, 10, num_workers=1, collate_fn=collate_stream, multiprocessing_context="spawn")
    assert [decode_list_ids(batch["list_id"]) for batch, _ in zip(loader, range(30), strict=False)] == expected
    assert fresh.lists_per_pass == stream.lists_per_pass, "the length found by a worker is known here"


def stream_until_killed(numbers: Path) -> None:
    """Streams with two workers, writes their process ids, and waits; torch's own check of the parent is off."""
    torch_worker.MP_STATUS_CHECK_INTERVAL = 3_600
    lists = tiny_lists(240, 1)
    processor = ListProcessor.from_lists(lists, schema=SCHEMA)
    stream = stream_of(lists, processor, seed=0, endless=True, batch_size=8)
    batches: Any = iter(DataLoader(stream, 8, num_workers=2, collate_fn=collate_stream))
    next(batches)
    write_file(numbers, " ".join(str(worker.pid) for worker in batches._workers))
    time.sleep(300)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the states of processes")
def test_workers_end_when_the_training_is_killed(tmp_path: Path) -> None:
    numbers, log = tmp_path / "numbers", tmp_path / "log"
    process = warm.start(stream_until_killed, numbers, log=log)
    while not numbers.exists():
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    process.kill()
    process.join()
    states = [Path(f"/proc/{number}/stat") for number in numbers.read_text().split()]
    assert len(states) == 2
    stop = time.monotonic() + 60
    while any(state.exists() and ") Z " not in state.read_text() for state in states):
        assert time.monotonic() < stop, "a worker is still running"
        time.sleep(0.05)


# -------------------------------------------------------------------------------------------------------- the trainer


@pytest.fixture
def trained_ids(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ids of each training batch of a trainer."""
    seen: list[list[str]] = []
    original = RerankTrainer.training_step

    def noting(trainer: RerankTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(decode_list_ids(inputs["list_id"]))
        return original(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(RerankTrainer, "training_step", noting)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_stream(make_trainer: Make, lists: dict[str, Any], trained_ids: Any, workers: int) -> None:
    """Two and a half epochs of ten steps; evaluated, logged and saved after each, and at the end."""
    trainer = make_trainer(
        train_dataset=lists["train"].to_iterable_dataset(num_shards=4),
        eval_dataset=lists["validation"].to_iterable_dataset(num_shards=2),
        per_device_train_batch_size=24,
        dataloader_num_workers=workers,
        max_steps=25,
        save_total_limit=None,
    )
    trainer.train()
    assert trainer.state.global_step == len(trained_ids) == 25
    passes = [list(chain(*trained_ids[start : start + 10])) for start in (0, 10)]
    for ids in passes:
        assert sorted(ids) == sorted(lists["train"]["list_id"])
    assert passes[0] != passes[1]
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "eval_ndcg@10" in entry] == [10, 20, 25]
    assert [entry["step"] for entry in history if "loss" in entry] == [10, 20, 25]
    folder = Path(trainer.args.output_dir)
    assert {path.name for path in folder.iterdir()} == {f"checkpoint-{step}" for step in (10, 20, 25)}
    assert trainer.evaluate()["eval_lists"] == 50
    assert trainer.results["data"]["train"]["shards"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("first_workers", [0, 2])
def test_stream_training_resumes_in_any_epoch_repeatedly(
    make_trainer: Make, make_model: Any, weights: Any, make_lists: Any, trained_ids: Any, first_workers: int
) -> None:
    """Epochs of 6.25 batches, two per step; a chain of runs with other worker counts, the last beyond three epochs."""
    stream = make_lists(100, 4).to_iterable_dataset(num_shards=3)
    options = {
        "train_dataset": stream,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_steps": 12,
        "stream_window": 30,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "save_total_limit": None,
        "logging_strategy": "steps",
        "logging_steps": 5,
    }
    unbroken = make_trainer(
        make_model(hidden_dropout_prob=0.2), "unbroken", dataloader_num_workers=first_workers, **options
    )
    unbroken.train()
    whole, source = list(trained_ids), unbroken
    for number, (cut, workers) in enumerate([(2, 0), (4, 2), (7, 1), (11, 0), (12, 0)]):
        trained_ids.clear()
        again = make_trainer(
            make_model(hidden_dropout_prob=0.2, seed=9), f"again{number}", dataloader_num_workers=workers, **options
        )
        again.train(resume_from_checkpoint=f"{source.args.output_dir}/checkpoint-{cut}")
        assert trained_ids == whole[2 * cut :]
        assert all(value.equal(weights(unbroken.model)[name]) for name, value in weights(again.model).items()), cut
        losses = [[entry for entry in run.state.log_history if "loss" in entry] for run in (unbroken, again)]
        assert losses[0] == losses[1]
        source = again


@pytest.mark.slow
def test_two_processes_share_a_stream(
    tmp_path: Path, make_lists: Any, processor: ListProcessor, make_model: Any
) -> None:
    """Together their batches are those of one process, none repeated or left out; both stop and evaluate alike."""
    Reranker(processor, make_model(hidden_dropout_prob=0.0, unknown_rate=0.0)).save_pretrained(tmp_path / "model")
    train, validation = make_lists(20, 7), make_lists(13, 8)
    train.save_to_disk(tmp_path / "train")
    validation.save_to_disk(tmp_path / "validation")
    one_output, output = tmp_path / "on1", tmp_path / "on2"
    warm.run(stream_worker.main, tmp_path, one_output, 8, log=tmp_path / "log")
    run_on_two(stream_worker.main, tmp_path, output, 4, folder=tmp_path)
    one = json.loads((one_output / "rank0.json").read_text())
    both = [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [report["world_size"] for report in both] == [2, 2]
    assert one["refused"] == ""
    assert all("shuffled with a seed" in report["refused"] for report in both)
    flat = list(chain(*one["ids"]))
    assert sorted(flat[:20]) == sorted(flat[20:40]) == sorted(train["list_id"])
    assert [first + second for first, second in zip(both[0]["ids"], both[1]["ids"], strict=True)] == one["ids"]
    for report in (one, *both):
        assert len(report["ids"]) == 7
        assert report["again"] == report["ids"][4:]
        assert report["checksums"][0] == report["checksums"][1]
        # Epochs of 20 lists end within steps 3 and 5, whichever process has the last of them.
        items = sum(len(row) for row in validation["item_id"])
        assert report["evaluated"] == [[step, 13, items] for step in (3, 5, 7)]
    assert both[0]["checksums"] == both[1]["checksums"] == pytest.approx(one["checksums"], rel=1e-5)
    assert both[0]["ndcg"] == pytest.approx(one["ndcg"], abs=1e-5)
    assert both[0]["obedience"] == pytest.approx(one["obedience"], abs=1e-5)
