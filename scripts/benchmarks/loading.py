"""How fast lists are read and encoded, from Parquet and from the encoded cache, and how long training waits for them.

    python scripts/benchmarks/loading.py [--lists 40000] [--ids 3000000] [--rounds 5] [--output-dir DIR]

Lists of 30 items with 5 categorical and 19 dense features, 3 categorical user features; the item ids have a
vocabulary of ``--ids``. One core. From Parquet: decoded, checked and encoded as padded batches. From the cache: whole
padded batches of shuffled lists. The share of a training step spent waiting for data is measured with the default PRM
and the scaled preset, in the process that reads the cache; its item table has 20,000 rows, because with millions a
dense optimizer would make steps long and waiting look short. Medians over rounds are written to ``loading.{json,md}``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LENGTH, PARQUET_BATCH, SMALL_TABLE = 30, 2_048, 20_000
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=40_000)
    parser.add_argument("--ids", type=int, default=3_000_000, help="size of the vocabulary of item ids")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--steps", type=int, default=20, help="training steps per round")
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    options = parser.parse_args()

    import datasets
    import torch

    from hf_rerank.evaluation.results import describe_environment
    from hf_rerank.storage import write_json

    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    datasets.disable_progress_bars()
    settings = {name: value for name, value in vars(options).items() if name != "output_dir"}
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), **settings)
    results = {"settings": settings, "rows": rows, "environment": describe_environment()}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / "loading.json", results)
    text = table(rows, settings)
    (options.output_dir / "loading.md").write_text(text, encoding="utf-8")
    print(text, end="")


def measured(
    folder: Path, *, lists: int, ids: int, rounds: int, batch_sizes: list[int], steps: int
) -> list[dict[str, Any]]:
    """Returns one row per measurement: name, unit, rounds and their median."""
    import datasets

    from hf_rerank.evaluation.results import data_identity
    from hf_rerank.processing import RerankCollator
    from hf_rerank.training.encoded_cache import CachedLists
    from hf_rerank.training.encoded_lists import EncodedLists

    file = folder / "lists.parquet"
    write_lists(file, lists, ids)
    processor = made_processor(ids)
    raw = datasets.Dataset.from_parquet(str(file), cache_dir=str(folder / "datasets"))
    random = np.random.default_rng(0)
    found: list[dict[str, Any]] = []

    def note(what: str, unit: str, values: list[float]) -> None:
        found.append({"what": what, "unit": unit, "median": statistics.median(values), "rounds": values})

    collator = RerankCollator(processor, highest_label=1.0, all_tensors=True)
    note("from Parquet, encoded", "lists/s", [lists / timed(encode_parquet, file, collator) for _ in range(rounds)])
    folders = [folder / f"cache{number}" for number in range(rounds)]
    note("written to the cache", "lists/s", [lists / timed(CachedLists, place, raw, collator) for place in folders])
    cached = CachedLists(folders[0], raw, collator)
    size = sum(path.stat().st_size for path in cached.folder.iterdir())
    note("size of the cache", "bytes a list", [size / lists])
    note(
        "the cache opened and verified",
        "lists/s",
        [lists / timed(CachedLists, folders[0], raw, collator) for _ in range(rounds)],
    )
    note(
        "of that, the lists identified",
        "lists/s",
        [lists / timed(data_identity, raw, processor.schema) for _ in range(rounds)],
    )
    for size in batch_sizes:
        for name, source in (
            ("shuffled, from the cache", cached),
            ("shuffled, encoded each time", EncodedLists(raw, collator)),
        ):
            speeds = []
            for _ in range(rounds):
                order = random.permutation(lists)[: lists // size * size].reshape(-1, size).tolist()
                speeds.append(len(order) * size / timed(read_batches, source, order))
            note(f"{name}, batches of {size}", "lists/s", speeds)
        waiting = [share_waiting(cached, processor, size, steps) for _ in range(rounds)]
        note(f"training step of {size}, from the cache", "ms", [1000 * step for step, _ in waiting])
        note(f"of that waiting for data, batches of {size}", "% of the step", [100 * share for _, share in waiting])
    return found


def timed(work: Any, *arguments: Any) -> float:
    """Measures the seconds that ``work`` takes."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def encode_parquet(file: Path, collator: Any) -> None:
    """Encodes all lists of a Parquet file as padded batches."""
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(PARQUET_BATCH, use_threads=False):
            collator(pa.Table.from_batches([batch]))


def read_batches(source: Any, batches: list[list[int]]) -> None:
    """Reads the batches of these lists."""
    for indices in batches:
        source.__getitems__(indices)


def share_waiting(cached: Any, processor: Any, size: int, steps: int) -> tuple[float, float]:
    """Returns the seconds of a training step of the default PRM, and the share spent waiting for the batch."""
    import torch
    from torch.utils.data import DataLoader

    from hf_rerank import PRMConfig, PRMForReranking
    from hf_rerank.principled import PRESETS
    from hf_rerank.training.encoded_lists import collate

    torch.manual_seed(0)
    config = PRMConfig.for_schema(processor.schema)
    config.item_vocab_sizes = [SMALL_TABLE, *config.item_vocab_sizes[1:]]
    model, objective = PRMForReranking(config).train(), PRESETS["scaled"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    waited = worked = 0.0
    batches = iter(DataLoader(cached, batch_size=size, shuffle=True, drop_last=True, collate_fn=collate))
    for number in range(min(steps, len(cached) // size)):
        started = time.perf_counter()
        batch = next(batches)
        came = time.perf_counter()
        batch.pop("list_id")
        batch["item_categorical"][..., 0] %= SMALL_TABLE
        model(**batch, objective=objective).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number:  # the first warms up
            waited, worked = waited + came - started, worked + time.perf_counter() - came
    return (waited + worked) / max(1, min(steps, len(cached) // size) - 1), waited / (waited + worked)


def write_lists(file: Path, count: int, ids: int) -> None:
    """Writes lists in the format of ``hf-rerank prepare``."""
    random = np.random.default_rng(0)

    def items(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(np.arange(0, values.size + 1, LENGTH, dtype=np.int32), values)

    columns: dict[str, Any] = {"list_id": [f"set1.train.txt.part1:{number}" for number in range(count)]}
    for number, values in enumerate((ids, 256, 4, 8, 4)):
        columns[f"item_{number}"] = items(random.integers(0, values, count * LENGTH))
    for number in range(19):
        columns[f"dense_{number}"] = items(random.standard_normal(count * LENGTH, dtype=np.float32))
    for number, values in enumerate((8, 4, 8)):
        columns[f"user_{number}"] = random.integers(0, values, count)
    columns["click"] = items((random.random(count * LENGTH) < 0.06).astype(np.float32))
    floats = [f"{name}.list.element" for name in columns if name.startswith("dense_")]
    table = pa.table(columns)
    others = [name for name in table.column_names if f"{name}.list.element" not in floats]
    dictionaries = [
        f"{name}.list.element" if pa.types.is_list(table.schema.field(name).type) else name for name in others
    ]
    pq.write_table(
        table, file, compression="zstd", compression_level=1, row_group_size=4_096, use_dictionary=dictionaries
    )


def made_processor(ids: int) -> Any:
    """A processor that knows ``ids`` item ids."""
    from hf_rerank import Categorical, Dense, ListProcessor, ListSchema
    from hf_rerank.processing.scaling import DenseScale
    from hf_rerank.processing.vocabularies import TableVocabulary

    sizes = {"item_0": ids, "item_1": 256, "item_2": 4, "item_3": 8, "item_4": 4}
    users = {"user_0": 8, "user_1": 4, "user_2": 8}
    dense = [f"dense_{number}" for number in range(19)]
    schema = ListSchema(
        items=[*(Categorical(name) for name in sizes), *(Dense(name) for name in dense)],
        user=[Categorical(name) for name in users],
        list_id="list_id",
    )
    vocabularies = {name: TableVocabulary(np.arange(size)) for name, size in (sizes | users).items()}
    return ListProcessor(schema, vocabularies, {name: DenseScale(0.0, 1.0) for name in dense})


def table(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        f"{settings['lists']:,} lists of {LENGTH} items, {settings['ids']:,} item ids, one core; medians of "
        f"{settings['rounds']} rounds [lowest, highest]. Made by `scripts/benchmarks/loading.py`.",
        "",
        "| what | median | rounds | unit |",
        "|---|---:|---:|---|",
    ]
    for row in rows:
        low, median, high = (
            f"{value:,.{0 if value >= 100 else 2}f}"
            for value in (min(row["rounds"]), row["median"], max(row["rounds"]))
        )
        lines.append(f"| {row['what']} | {median} | [{low}, {high}] | {row['unit']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
