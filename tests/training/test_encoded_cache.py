"""The cache gives the batches of ``EncodedLists`` bit for bit; partial, damaged or foreign files are never read."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import warm
from tiny_world import collator_of
from torch.utils.data import DataLoader

from hf_rerank import Categorical, Dense, InputError, ListProcessor, ListSchema
from hf_rerank.schema import Vector
from hf_rerank.training import encoded_cache
from hf_rerank.training.encoded_cache import CachedLists
from hf_rerank.training.encoded_lists import EncodedLists, collate

RICH = ListSchema(
    items=[Categorical("item_id", min_count=1), Dense("price", missing="indicator"), Vector("text", 3)],
    user=[Categorical("gender", min_count=1), Dense("age")],
    history=[Categorical("seen", shares="item_id"), Dense("minutes", scale="log")],
    position="position",
    weight="weight",
    list_id="list_id",
    max_list_length=6,
    max_history_length=5,
)


def rich_lists(count: int, *, length: int | None = None, with_history: bool = True) -> datasets.Dataset:
    """Lists with everything that a schema can name; ids of different lengths, missing values, empty histories."""
    random = np.random.default_rng(count)
    rows = []
    for number in range(count):
        items = int(random.integers(1, 7)) if length is None else length
        history = int(random.integers(0, 8)) if with_history else 0
        rows.append(
            {
                "list_id": f"ü{number}" + "x" * (number % 4),
                "item_id": random.integers(40, size=items).tolist(),
                "price": [None if random.random() < 0.2 else float(random.normal()) for _ in range(items)],
                "text": random.normal(size=(items, 3)).tolist(),
                "gender": ["a", "b", None][number % 3],
                "age": float(random.integers(90)),
                "seen": random.integers(50, size=history).tolist(),
                "minutes": random.random(history).tolist(),
                "position": random.permutation(items).tolist(),
                "weight": random.random(items).tolist(),
                "click": random.integers(2, size=items).tolist(),
            }
        )
    features = datasets.Dataset.from_list(rows).features
    for name in ("seen", "minutes"):  # also if no list has a history
        features[name] = datasets.List(datasets.Value("int64" if name == "seen" else "float64"))
    return datasets.Dataset.from_list(rows, features=features)


def assert_same_batches(cached: Any, encoded: Any, batches: list[list[int]]) -> None:
    for indices in batches:
        found, expected = (collate(lists.__getitems__(indices)) for lists in (cached, encoded))
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert found[name].shape == tensor.shape, name
            # Compared as bytes, to include the signs of zeros.
            assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


@pytest.mark.parametrize("options", [{}, {"length": 4}, {"with_history": False}, {"length": 1}])
def test_cached_batches_equal_encoded_lists(tmp_path: Path, options: dict[str, Any]) -> None:
    lists = rich_lists(50, **options)
    processor = ListProcessor.from_lists(lists.select(range(30)), schema=RICH)
    cached = CachedLists(tmp_path, lists, collator_of(processor))
    order = np.random.default_rng(0).permutation(50).tolist()
    batches = [order, order[:7], [3], [3, 3, 0], [49], list(range(50)), *([number] for number in order)]
    assert len(cached) == 50
    assert_same_batches(cached, EncodedLists(lists, collator_of(processor)), batches)
    assert collate(cached[11]).keys() == collate(cached.__getitems__([11])).keys()
    # A second reader finds the cache and encodes nothing.
    assert_same_batches(
        CachedLists(tmp_path, lists, collator_of(processor)), EncodedLists(lists, collator_of(processor)), batches[:2]
    )
    assert [path.name for path in tmp_path.iterdir()] == [cached.folder.name], "no lock and no other folder is left"


def test_lists_encoded_in_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_cache, "ENCODING_BATCH", 7)
    lists = rich_lists(50).remove_columns("list_id")  # their indices are their ids
    processor = ListProcessor.from_lists(lists, schema=RICH)
    cached = CachedLists(tmp_path, lists, collator_of(processor, truncate=True, highest_label=1.0))
    assert_same_batches(
        cached, EncodedLists(lists, collator_of(processor, truncate=True)), [[49, 0, 20], list(range(50))]
    )


def test_truncated_lists_are_cached(tmp_path: Path) -> None:
    lists = rich_lists(40)
    processor = ListProcessor.from_lists(lists, schema=RICH.replace(max_list_length=3, max_history_length=2))
    with pytest.raises(InputError, match=r"items, but the schema allows max_list_length=3"):
        CachedLists(tmp_path, lists, collator_of(processor))
    assert not list(tmp_path.glob(".*.tmp"))
    cached = CachedLists(tmp_path, lists, collator_of(processor, truncate=True))
    assert_same_batches(cached, EncodedLists(lists, collator_of(processor, truncate=True)), [list(range(40))])


def test_lists_with_item_features_only(tmp_path: Path) -> None:
    lists = rich_lists(20)
    schema = ListSchema(items=[Dense("price")], max_list_length=6)
    processor = ListProcessor.from_lists(lists, schema=schema)
    assert_same_batches(
        CachedLists(tmp_path, lists, collator_of(processor)),
        EncodedLists(lists, collator_of(processor)),
        [[4, 2], [0]],
    )


@pytest.mark.slow
def test_workers_read_the_same_batches(tmp_path: Path) -> None:
    lists = rich_lists(24)
    processor = ListProcessor.from_lists(lists, schema=RICH)
    cached = CachedLists(tmp_path, lists, collator_of(processor))
    loader = DataLoader(cached, batch_size=5, num_workers=2, collate_fn=collate)
    expected = EncodedLists(lists, collator_of(processor))
    for number, batch in enumerate(loader):
        for name, tensor in collate(expected.__getitems__(list(range(24))[5 * number : 5 * number + 5])).items():
            assert batch[name].equal(tensor), name
    # As sent to a spawned worker: small, whatever the size of the files.
    pickled = pickle.dumps(cached)
    assert len(pickled) < 5_000
    assert_same_batches(pickle.loads(pickled), expected, [[3, 1, 2]])


@pytest.mark.slow
def test_every_change_of_the_batches_creates_a_new_cache(tmp_path: Path) -> None:
    lists = rich_lists(30)
    processor = ListProcessor.from_lists(lists, schema=RICH)

    def changed(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {"age": row["age"] + (number == 17)}

    others = {
        "a value": (lists.map(changed, with_indices=True), processor, {}),
        "the order": (lists.select([1, 0, *range(2, 30)]), processor, {}),
        "an added column": (lists.remove_columns("age").add_column("age", [0.0] * 30), processor, {}),
        "a vocabulary": (lists, ListProcessor.from_lists(lists.select(range(29)), schema=RICH), {}),
        "the longest history": (
            lists,
            ListProcessor.from_lists(lists, schema=RICH.replace(max_history_length=2)),
            {},
        ),
        "cutting": (lists, processor, {"truncate": True}),
        "the highest label": (lists, processor, {"highest_label": 1.0}),
    }
    folders = {CachedLists(tmp_path, lists, collator_of(processor)).folder}
    for what, (other, by, options) in others.items():
        cached = CachedLists(tmp_path, other, collator_of(by, **options))
        assert cached.folder not in folders, what
        folders.add(cached.folder)
        assert_same_batches(cached, EncodedLists(other, collator_of(by, **options)), [list(range(30))])
    assert CachedLists(tmp_path, lists.select(range(30)), collator_of(processor)).folder in folders, (
        "the same lists, selected differently"
    )


@pytest.mark.slow
def test_damaged_caches_are_rejected(tmp_path: Path) -> None:
    lists = rich_lists(30)
    processor = ListProcessor.from_lists(lists, schema=RICH)
    folder = CachedLists(tmp_path, lists, collator_of(processor)).folder
    files = sorted(folder.iterdir())
    assert len(files) > 12
    for path in files:
        content = path.read_bytes()
        flipped = bytes([content[0] ^ 1]) + content[1:]
        for damaged in (content[:-2], b"", flipped, None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(InputError, match=rf"{folder.name}.*(damaged|truncated|missing|does not match)"):
                CachedLists(tmp_path, lists, collator_of(processor))
            path.write_bytes(content)
    (folder / "extra.raw").write_bytes(b"x")
    with pytest.raises(InputError, match=r"extra\.raw is not one of the files"):
        CachedLists(tmp_path, lists, collator_of(processor))
    (folder / "extra.raw").unlink()
    other = rich_lists(31)
    elsewhere = CachedLists(tmp_path, other, collator_of(processor)).folder
    shutil.rmtree(elsewhere)
    folder.rename(elsewhere)
    with pytest.raises(InputError, match="does not match its name"):
        CachedLists(tmp_path, other, collator_of(processor))


def test_an_unwritable_folder_is_an_error_only_if_a_cache_must_be_written(tmp_path: Path) -> None:
    """An existing cache is read without writing anything; otherwise the error names the folder."""
    lists = rich_lists(5)
    processor = ListProcessor.from_lists(lists, schema=RICH)
    cached = CachedLists(tmp_path / "cache", lists, collator_of(processor))
    for lock in (tmp_path / "cache").glob("*.lock"):
        lock.unlink()
    before = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert_same_batches(CachedLists(tmp_path / "cache", lists, collator_of(processor)), cached, [[3, 1]])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is a file: expected a folder"):
        CachedLists(tmp_path / "file", lists, collator_of(processor))
    # A folder in place of its lock file.
    (tmp_path / "other" / f"{cached.folder.name}.lock").mkdir(parents=True)
    with pytest.raises(
        OSError, match=r"other/lists-\w+\.lock could not be written: .* choose a folder that you may write to"
    ):
        CachedLists(tmp_path / "other", lists, collator_of(processor))


@pytest.mark.slow
def test_a_full_disk_leaves_no_partial_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Nth flush to disk fails, for every N."""
    lists = rich_lists(10)
    processor = ListProcessor.from_lists(lists, schema=RICH)
    calls, fail_at, fired = 0, 0, 0

    def failing(descriptor: int, fsync: Any = os.fsync) -> None:
        nonlocal calls, fired
        calls += 1
        if calls == fail_at:
            fired += 1
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    for number in range(1, 50):
        calls, fail_at = 0, number
        try:
            CachedLists(tmp_path / "cache", lists, collator_of(processor))
        except OSError as error:
            message = str(error)
        else:
            break
        assert "could not be written: " in message
        assert "MB are free" in message
        assert "No space left" in message
        assert not list((tmp_path / "cache").glob(".*.tmp"))
        if list((tmp_path / "cache").glob("lists-*[0-9a-f]")) and any(
            path.is_dir() for path in (tmp_path / "cache").iterdir()
        ):
            # Only flushing the name to disk failed: the folder is intact.
            assert_same_batches(
                CachedLists(tmp_path / "cache", lists, collator_of(processor)),
                EncodedLists(lists, collator_of(processor)),
                [[1, 2]],
            )
    assert fired == number - 1 > 10


@pytest.mark.parametrize("limit", [8_000, 40_000])
def test_a_limit_on_file_size_is_reported(tmp_path: Path, limit: int) -> None:
    """Each file except the manifest is larger than one of the limits."""
    resource = pytest.importorskip("resource")
    lists = rich_lists(2_100, length=6)
    processor = ListProcessor.from_lists(lists, schema=RICH)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"could not be written: about .* MB are needed.*File too large"):
            CachedLists(tmp_path / "cache", lists, collator_of(processor))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_temporary_write_error_is_not_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write is an error even if all later writes succeed."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(encoded_cache, "ENCODING_BATCH", 10)
    lists = rich_lists(40, length=6)
    processor = ListProcessor.from_lists(lists, schema=RICH)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = 0

    def write(file: Any, rows: np.ndarray, write: Any = encoded_cache._ArrayFile.write) -> None:
        nonlocal calls
        calls += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 if calls == 20 else hard, hard))
        try:
            write(file, rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    monkeypatch.setattr(encoded_cache._ArrayFile, "write", write)
    with pytest.raises(OSError, match="File too large"):
        CachedLists(tmp_path / "cache", lists, collator_of(processor))
    assert calls == 20


def write_in_steps(cache: Path, report: Path) -> None:
    """Encodes 50 lists; reports when half done, and waits until it may continue."""
    lists = rich_lists(50)
    processor = ListProcessor.from_lists(lists, schema=RICH)
    encoded_cache.ENCODING_BATCH = 10
    write, writes = encoded_cache._ArrayFile.write, 0

    def stopping(file: Any, rows: np.ndarray) -> None:
        nonlocal writes
        writes += 1
        write(file, rows)
        if writes == 30:
            report.with_suffix(".half").touch()
            wait_for(report.with_suffix(".go"))

    encoded_cache._ArrayFile.write = stopping  # type: ignore[method-assign]
    report.with_suffix(".begun").touch()
    report.write_text(f"{CachedLists(cache, lists, collator_of(processor)).folder} {writes}")


def wait_for(path: Path) -> None:
    for _ in range(6_000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"no {path.name} within a minute")


@pytest.mark.slow
def test_killed_and_concurrent_writers(tmp_path: Path) -> None:
    """The first is killed half way; of the next two, one writes while the other waits and then reads the result."""
    cache = tmp_path / "cache"
    killed, first, second = (tmp_path / name for name in ("killed", "first", "second"))

    def writer(report: Path) -> Any:
        return warm.start(write_in_steps, cache, report, log=report.with_suffix(".log"))

    process = writer(killed)
    wait_for(killed.with_suffix(".half"))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = cache.glob(".*.tmp")
    assert list(left.iterdir()), "it was killed while writing"
    writers = [writer(first)]
    wait_for(first.with_suffix(".half"))
    writers.append(writer(second))
    wait_for(second.with_suffix(".begun"))
    time.sleep(0.5)
    assert writers[1].is_alive(), "it waits for the first"
    assert not second.exists()
    first.with_suffix(".go").touch()
    for process in writers:
        process.join(60)
        assert process.exitcode == 0
    folder, writes = first.read_text().split()
    assert int(writes) > 30
    assert second.read_text().split() == [folder, "0"]
    assert not list(cache.glob(".*.tmp"))
    lists = rich_lists(50)
    processor = ListProcessor.from_lists(lists, schema=RICH)
    cached = CachedLists(cache, lists, collator_of(processor))
    assert str(cached.folder) == folder
    assert_same_batches(cached, EncodedLists(lists, collator_of(processor)), [list(range(50))])


@pytest.mark.slow
def test_training_from_the_cache_gives_identical_weights(
    make_trainer: Any, make_model: Any, weights: Any, tmp_path: Path, lists: Any
) -> None:
    plain, cached = make_model(hidden_dropout_prob=0.1), make_model(hidden_dropout_prob=0.1)
    first = make_trainer(plain, folder="plain")
    first.train()
    evaluated = first.evaluate()["eval_loss"]
    trainer = make_trainer(cached, folder="cached", encoded_cache=str(tmp_path / "cache"))
    assert isinstance(trainer.train_dataset, CachedLists)
    assert isinstance(trainer.eval_dataset, CachedLists)
    trainer.train()
    assert all(value.equal(weights(plain)[name]) for name, value in weights(cached).items())
    assert first.state.log_history[0]["loss"] == trainer.state.log_history[0]["loss"]
    # Lists passed to evaluate() are not cached.
    before = sorted((tmp_path / "cache").iterdir())
    trainer.evaluate(lists["train"].select(range(5)))
    assert sorted((tmp_path / "cache").iterdir()) == before
    assert trainer.evaluate()["eval_loss"] == evaluated
    with pytest.raises(InputError, match="these lists are a stream"):
        make_trainer(
            train_dataset=lists["train"].to_iterable_dataset(), max_steps=1, encoded_cache=str(tmp_path / "cache")
        )
