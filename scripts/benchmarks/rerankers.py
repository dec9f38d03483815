"""Size and speed of every re-ranker: training lists/s without and with the principles, latency of ranking.

    python scripts/benchmarks/rerankers.py --output-dir RESULTS [--models prm dlcm ...] [--presets default paper ...]
        [--rounds 7] [--threads 1]

Writes RESULTS/rerankers.json and RESULTS/rerankers.md, and prints the latter. Each model is measured with its default
sizes and those of its presets. Lists: 30 items with the features of PRM Public (5 categorical and 19 dense per item, 3
categorical per user); for ``librerank-ad`` 10 items with those of Ad (5 categorical and 1 dense per item, 8
categorical per user). No history. Tables of 20,000 ids.

Training: a step of forward, backward, clipping and AdamW on 128 lists; without the principles and with
``principled="scaled"`` in turn, medians over rounds, and the median ratio of a round. Latency: ``model.rank`` of one
list, median and 99th percentile of 200 calls; and of 512 lists, over 25 calls (their 99th percentile is close to the
maximum), and as lists/s at the median. Ratios are reliable on a noisy machine, absolute times are not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TRAINING_BATCH, RANKING_BATCH = 128, 512
CALLS_OF_ONE, CALLS_OF_MANY = 200, 25
DEFAULT = "default"


@dataclass(frozen=True)
class Features:
    """Features of a list: its length, rows of the item and user tables, numbers per item."""

    length: int
    items: tuple[int, ...]
    dense: int
    user: tuple[int, ...]


PRM_PUBLIC = Features(30, (20_000, 256, 8, 10, 6), 19, (10, 6, 10))
AD = Features(10, (20_000, 12_978, 20_000, 20_000, 20_000), 1, (97, 13, 3, 7, 4, 4, 3, 5))


def main() -> None:
    options = _options()
    import torch

    from hf_rerank.evaluation.results import describe_environment
    from hf_rerank.models.auto import RERANKERS, reranker_classes
    from hf_rerank.storage import write_json

    torch.set_num_threads(options.threads)
    rows = []
    for name in options.models or list(RERANKERS):
        config, _ = reranker_classes(name)
        for preset in (DEFAULT, *config.presets):
            if options.presets and preset not in options.presets:
                continue
            rows.append(measure(name, preset, options.rounds))
            print(as_markdown(rows[-1:]).splitlines()[-1], flush=True)
    results = {
        "threads": options.threads,
        "rounds": options.rounds,
        "batches": {"training": TRAINING_BATCH, "ranking": RANKING_BATCH},
        "rows": rows,
        "environment": describe_environment(),
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / "rerankers.json", results)
    (options.output_dir / "rerankers.md").write_text(as_markdown(rows))
    print(f"\n{as_markdown(rows)}")


def measure(name: str, preset: str, rounds: int) -> dict[str, Any]:
    """Measures one model with the sizes of one preset."""
    import torch

    from hf_rerank.principled import PRESETS

    lists = AD if preset == "librerank-ad" else PRM_PUBLIC
    model = made(name, preset, lists)
    objective = PRESETS["scaled"].for_task_loss(model.config.task_loss_name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = batch_of(TRAINING_BATCH, lists)

    def step(objective: Any) -> Callable[[], None]:
        def run() -> None:
            model(**batch, objective=objective).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return run

    model.train()
    base, principled = _in_turn([step(None), step(objective)], rounds)
    model.eval()
    tables = [part for part in model.item_embedding.modules() if isinstance(part, torch.nn.Embedding)]
    one, many = ({k: v for k, v in batch_of(count, lists).items() if k != "labels"} for count in (1, RANKING_BATCH))
    (latency,) = _in_turn([lambda: model.rank(**one)], CALLS_OF_ONE)
    (ranking,) = _in_turn([lambda: model.rank(**many)], CALLS_OF_MANY)
    return {
        "model": name,
        "preset": preset,
        "task_loss": model.config.task_loss_name,
        "list_length": lists.length,
        "parameters": model.num_parameters(),
        "parameters_of_tables": sum(table.weight.numel() for table in tables),
        "training_lists_per_s": TRAINING_BATCH / statistics.median(base),
        "principled_lists_per_s": TRAINING_BATCH / statistics.median(principled),
        "principled_over_base": statistics.median([b / a for a, b in zip(base, principled, strict=True)]),
        "one_list_ms": 1000 * statistics.median(latency),
        "one_list_p99_ms": 1000 * float(np.quantile(latency, 0.99)),
        "batch_ms": 1000 * statistics.median(ranking),
        "batch_p99_ms": 1000 * float(np.quantile(ranking, 0.99)),
        "ranking_lists_per_s": RANKING_BATCH / statistics.median(ranking),
    }


def made(name: str, preset: str, lists: Features) -> Any:
    """Makes a new model with these features."""
    import torch

    from hf_rerank.models.auto import reranker_classes

    config, model = reranker_classes(name)
    torch.manual_seed(0)
    return model(
        config(
            item_vocab_sizes=list(lists.items),
            num_item_dense=lists.dense,
            user_vocab_sizes=list(lists.user),
            max_list_length=lists.length,
            **({} if preset == DEFAULT else config.presets[preset]),
        )
    )


def batch_of(count: int, lists: Features) -> dict[str, Any]:
    """Random lists, all of full length."""
    import torch

    draw = torch.Generator().manual_seed(0)
    shape = (count, lists.length)
    items = [torch.randint(2, rows, shape, generator=draw) for rows in lists.items]
    user = [torch.randint(2, rows, (count,), generator=draw) for rows in lists.user]
    return {
        "item_categorical": torch.stack(items, dim=-1),
        "item_dense": torch.randn(*shape, lists.dense, generator=draw),
        "user_categorical": torch.stack(user, dim=-1),
        "mask": torch.ones(shape, dtype=torch.bool),
        "position_ids": torch.rand(shape, generator=draw).argsort(-1),
        "labels": (torch.rand(shape, generator=draw) < 0.06).float(),
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table, one row a model and preset; parameters without and with the embedding tables."""
    heads = ["model", "sizes", "items", "parameters", "with tables", "training lists/s", "with principles", "ratio"]
    heads += ["one list, ms", "99 %", "512 lists, ms", "99 %", "ranking lists/s"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [row["model"], row["preset"], str(row["list_length"])]
        cells += [f"{row['parameters'] - row['parameters_of_tables']:,}", f"{row['parameters']:,}"]
        cells += [f"{row[name]:,.0f}" for name in ("training_lists_per_s", "principled_lists_per_s")]
        cells += [f"{row[name]:.2f}" for name in ("principled_over_base", "one_list_ms", "one_list_p99_ms")]
        cells += [f"{row[name]:,.0f}" for name in ("batch_ms", "batch_p99_ms", "ranking_lists_per_s")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _in_turn(work: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Returns the seconds of each piece of work in each round, after one warm-up round."""
    times: list[list[float]] = [[] for _ in work]
    for number in range(rounds + 1):
        for spent, run in zip(times, work, strict=True):
            started = time.perf_counter()
            run()
            if number:
                spent.append(time.perf_counter() - started)
    return times


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--models", nargs="+", help="default: all")
    parser.add_argument("--presets", nargs="+", help="default, paper, librerank-ad, librerank-prm (default: all)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
