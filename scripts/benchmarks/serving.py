"""Latency of one list, from a dict to its items in order: ``Reranker`` with PyTorch and with ONNX Runtime.

    python scripts/benchmarks/serving.py --output-dir RESULTS [--models prm dlcm ...] [--calls 1000]

Writes RESULTS/serving.json and RESULTS/serving.md, and prints the latter. One list of 30 items with the features of
PRM Public (5 categorical and 19 dense per item, 3 categorical per user, no history), tables of 20,000 ids, default
sizes of each model, one thread, one list per call, cycling through 100 lists. Milliseconds per call: 10th percentile,
median, 99th percentile, and the median CPU time, which other work on the machine affects less. Blocks of 50 calls of
all models and both runtimes take turns, so that a busy machine slows all; the first block of each is not counted.

The parts are timed in separate calls: *check* is ``Lists.from_rows``, *encode* ``ListProcessor.encode`` and padding,
*model* the scores of ``Reranker.scorer``, *order* the rest: sorting and the result. Needs the extra ``[onnx]``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Must be set before torch and numpy are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

LENGTH, LISTS, IDS = 30, 100, 20_000
BLOCK = 50
PARTS = ("check", "encode", "model", "order")


def main() -> None:
    options = _options()
    import torch

    from hf_rerank.evaluation.results import describe_environment
    from hf_rerank.models.auto import RERANKERS
    from hf_rerank.storage import write_json

    torch.set_num_threads(1)
    processor, rows = processor_and_lists()
    measured = measure(options.models or list(RERANKERS), processor, rows, options.calls)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    results = {"threads": 1, "calls": options.calls, "items": LENGTH, "ids": IDS, "rows": measured}
    write_json(options.output_dir / "serving.json", {**results, "environment": describe_environment()})
    (options.output_dir / "serving.md").write_text(as_markdown(measured))
    print(as_markdown(measured))


def processor_and_lists() -> tuple[Any, list[dict[str, Any]]]:
    """Makes a processor for PRM Public's features with ``IDS`` ids, and ``LISTS`` random lists without labels."""
    import pyarrow as pa

    from hf_rerank import Categorical, Dense, ListProcessor, ListSchema

    draw = np.random.default_rng(0)
    categories = {"item_category": 254, "item_city": 6, "item_grade": 8, "item_kind": 4}
    users = {"user_gender": 8, "user_age": 4, "user_level": 8}
    numbers = [f"basic_{number}" for number in range(19)]

    def row(ids: np.ndarray) -> dict[str, Any]:
        return {
            "item_id": ids.tolist(),
            **{name: draw.integers(size, size=len(ids)).tolist() for name, size in categories.items()},
            **{name: draw.normal(size=len(ids)).tolist() for name in numbers},
            **{name: int(draw.integers(size)) for name, size in users.items()},
        }

    schema = ListSchema(
        items=[
            *(Categorical(name, min_count=1) for name in ("item_id", *categories)),
            *(Dense(name) for name in numbers),
        ],
        user=[Categorical(name, min_count=1) for name in users],
        max_list_length=LENGTH,
    )
    known = pa.Table.from_pylist([row(ids) for ids in np.arange(IDS).reshape(-1, 25)])
    processor = ListProcessor.from_lists(known, schema=schema)
    return processor, [row(draw.choice(IDS, LENGTH, replace=False)) for _ in range(LISTS)]


def measure(names: list[str], processor: Any, rows: list[dict[str, Any]], calls: int) -> list[dict[str, Any]]:
    """Returns, for each model, a row for torch and one for ONNX Runtime."""
    clocks = {name: clocks_of(name, processor) for name in names}
    for start in range(-BLOCK, calls, BLOCK):
        block = [rows[number % len(rows)] for number in range(start, min(start + BLOCK, calls))]
        for _, of_model in clocks.values():
            for clock in of_model.values():
                clock.time(block, counted=start >= 0)
    return [
        {"model": name, "runtime": runtime, "largest_difference": difference, **clock.summary()}
        for name, (difference, of_model) in clocks.items()
        for runtime, clock in of_model.items()
    ]


def clocks_of(name: str, processor: Any) -> tuple[float, dict[str, Clock]]:
    """Returns how far the scores of the graph are from the model's, and a clock for each runtime."""
    import torch

    from hf_rerank import Reranker
    from hf_rerank.inference.export import export_onnx
    from hf_rerank.models.auto import reranker_classes

    config, model = reranker_classes(name)
    torch.manual_seed(0)
    with_torch = Reranker(processor, model(config.for_schema(processor.schema)))
    with tempfile.TemporaryDirectory() as folder:
        difference = export_onnx(with_torch, folder)
        with_onnx = Reranker.from_pretrained(folder)
    return difference, {"torch": Clock(with_torch), "onnxruntime": Clock(with_onnx)}


class Clock:
    """Times calls of one re-ranker, and its parts inside other calls."""

    def __init__(self, reranker: Any) -> None:
        from hf_rerank.processing import RaggedLists
        from hf_rerank.validation import Lists

        self.reranker = reranker
        self.parts = (
            ("check", Lists, "from_rows"),
            ("encode", reranker.processor, "encode"),
            ("encode", RaggedLists, "pad"),
            ("model", reranker.scorer, "scores"),
        )
        self.seconds: dict[str, list[float]] = {part: [] for part in ("total", "cpu", *PARTS)}

    def time(self, rows: list[dict[str, Any]], counted: bool) -> None:
        """Ranks each list separately: once as it is, and once with the parts timed."""
        times: list[dict[str, float]] = []
        for row in rows:
            started, started_cpu = time.perf_counter(), time.thread_time()
            self.reranker.rerank([row])
            times.append({"total": time.perf_counter() - started, "cpu": time.thread_time() - started_cpu})
        spent: dict[str, float] = {}
        with _timed(self.parts, spent):
            for row, found in zip(rows, times, strict=True):
                spent.update(dict.fromkeys(PARTS, 0.0))
                started = time.perf_counter()
                self.reranker.rerank([row])
                whole = time.perf_counter() - started
                found.update(spent, order=whole - sum(spent.values()))
        for found in times if counted else ():
            for part, seconds in found.items():
                self.seconds[part].append(seconds)

    def summary(self) -> dict[str, float]:
        """Milliseconds: three percentiles of the total, medians of its CPU time and of the parts."""
        total = self.seconds["total"]
        numbers = {"p10_ms": float(np.quantile(total, 0.1)), "median_ms": statistics.median(total)}
        numbers["p99_ms"] = float(np.quantile(total, 0.99))
        numbers |= {f"{part}_ms": statistics.median(self.seconds[part]) for part in ("cpu", *PARTS)}
        return {name: 1000 * value for name, value in numbers.items()}


@contextmanager
def _timed(parts: Sequence[tuple[str, Any, str]], spent: dict[str, float]) -> Iterator[None]:
    """Adds the seconds spent in methods to ``spent``."""

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                spent[part] += time.perf_counter() - started

        return run

    there = [vars(owner).get(name) for _, owner, name in parts]
    for part, owner, name in parts:
        setattr(owner, name, timed(part, getattr(owner, name)))
    try:
        yield
    finally:
        for (_, owner, name), method in zip(parts, there, strict=True):
            # Removes the instance attribute, so that the method of the class is used again.
            setattr(owner, name, method) if method is not None else delattr(owner, name)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table, milliseconds, one row a model and runtime."""
    heads = ["model", "runtime", "10 %, ms", "median", "99 %", "CPU", *PARTS]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        numbers = [
            row[name] for name in ("p10_ms", "median_ms", "p99_ms", *(f"{part}_ms" for part in ("cpu", *PARTS)))
        ]
        lines.append(f"| {row['model']} | {row['runtime']} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--models", nargs="+", help="default: all")
    parser.add_argument("--calls", type=int, default=1000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
