"""Speed of PRM: cost of principled learning per step, overhead of the trainer, lists/s in training and ranking.

    python scripts/benchmarks/speed.py [--output FILE] [--rounds 15] [--threads 1]

Lists of 30 items with 5 categorical and 19 dense features, 3 categorical user features; PRM with its default sizes
(hidden size 64, 2 layers, 1 head, intermediate size 128). Compared settings run in turn within each round, and medians
over rounds are printed: ratios are reliable on a noisy machine, absolute times are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LENGTH, BATCH, RANKING_BATCH = 30, 256, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    import torch

    from hf_rerank.evaluation.results import describe_environment
    from hf_rerank.storage import write_json

    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "rounds": options.rounds,
        "threads": options.threads,
        "environment": describe_environment(),
    }
    results["step"] = step_times(options.rounds)
    results["trainer"] = trainer_overhead(options.rounds)
    results["million_ids"] = million_ids(options.rounds)
    print(json.dumps({name: value for name, value in results.items() if name != "environment"}, indent=2))
    if options.output:
        write_json(options.output, results)


def step_times(rounds: int) -> dict[str, float]:
    """Returns the milliseconds of a step: the task loss alone, three separate passes, the principled objective."""
    import torch

    from hf_rerank.principled import PRESETS

    model, batch = _model(ids=20_000), _batch(BATCH, ids=20_000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(loss: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return run

    model.train()
    times = _in_turn(
        {
            "base": step(lambda: model(**batch).loss),
            "three_separate_passes": step(lambda: _three_passes(model, batch)),
            "scaled": step(lambda: model(**batch, objective=PRESETS["scaled"]).loss),
            "paper": step(lambda: model(**batch, objective=PRESETS["paper"]).loss),
        },
        rounds,
    )
    medians = {f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()}
    for name in ("three_separate_passes", "scaled", "paper"):
        ratios = [a / b for a, b in zip(times[name], times["base"], strict=True)]
        medians[f"{name}_over_base"] = statistics.median(ratios)
    return medians


def _three_passes(model: Any, batch: dict[str, Any]) -> Any:
    """Computes the objective in a straightforward way: three calls of the whole model."""
    from hf_rerank.losses import probabilities
    from hf_rerank.principled import consistency_loss, perturb, positions_from_scores

    mask, given = batch["mask"], batch["position_ids"]
    features = {name: value for name, value in batch.items() if name not in ("labels", "position_ids")}
    first = model(**batch)
    own, swapped = positions_from_scores(first.logits.detach(), mask), perturb(given, mask)
    scores = probabilities(first.logits, "binary_log_loss", mask=mask)
    loss = first.loss
    for weight, order in ((20.0, own), (5.0, swapped)):
        logits = model(**features, position_ids=order).logits
        other = probabilities(logits, "binary_log_loss", mask=mask)
        loss = loss + weight * consistency_loss(scores, other, given, order, mask=mask, reduction="weighted_mean")
    return loss


def trainer_overhead(rounds: int, steps: int = 10) -> dict[str, float]:
    """Returns the milliseconds per step of ``RerankTrainer`` and of a plain loop, over the same raw lists and model.

    The time of ``steps`` steps is subtracted from that of three times as many, so that the setup does not count.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.utils import logging

    from hf_rerank import ListProcessor, PRMConfig, PRMForReranking, RerankTrainer, RerankTrainingArguments

    logging.disable_progress_bar()
    columns, schema = _raw_lists(BATCH * 3 * steps, ids=20_000)
    lists = Dataset.from_dict(columns)
    processor = ListProcessor.from_lists(lists, schema=schema)
    config = PRMConfig.for_schema(processor.schema)
    table = lists.with_format("arrow")

    with tempfile.TemporaryDirectory() as folder:

        def with_trainer(count: int) -> Callable[[], None]:
            arguments = RerankTrainingArguments(
                folder,
                principled="none",
                max_steps=count,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                logging_strategy="no",
                disable_tqdm=True,
            )

            def run() -> None:
                trainer = RerankTrainer(PRMForReranking(config), arguments, lists, processing_class=processor)
                trainer.remove_callback(PrinterCallback)
                trainer.train()

            return run

        def plain_loop(count: int) -> Callable[[], None]:
            def run() -> None:
                model = PRMForReranking(config).train()
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
                for number in range(count):
                    batch = processor(table[number * BATCH : (number + 1) * BATCH], with_labels=True)
                    model(**batch).loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()

            return run

        work = {"trainer": with_trainer, "plain_loop": plain_loop}
        times = _in_turn(
            {f"{name} {count}": make(count) for name, make in work.items() for count in (steps, 3 * steps)},
            max(5, rounds // 2),
        )
    a_step = {
        name: [
            1000 * (long - short) / (2 * steps)
            for short, long in zip(times[f"{name} {steps}"], times[f"{name} {3 * steps}"], strict=True)
        ]
        for name in work
    }
    differences = [one - other for one, other in zip(a_step["trainer"], a_step["plain_loop"], strict=True)]
    medians = {f"{name}_ms": statistics.median(values) for name, values in a_step.items()}
    medians["trainer_minus_plain_loop_ms"] = statistics.median(differences)
    return medians


def million_ids(rounds: int) -> dict[str, float]:
    """Measures with a table of a million ids: training lists/s, latency of one raw list, ranking lists/s."""
    import torch

    from hf_rerank import ListProcessor, PRMConfig, PRMForReranking, Reranker

    ids = 1_000_000
    columns, schema = _raw_lists(2 * ids // LENGTH + 1, ids=ids, every_id=True)
    import pyarrow as pa

    processor = ListProcessor.from_lists(pa.table(columns), schema=schema)
    model = PRMForReranking(PRMConfig.for_schema(processor.schema))
    rows = pa.table(columns).slice(0, RANKING_BATCH).to_pylist()
    batch = processor(rows[:BATCH], with_labels=True)
    ranked = {name: value for name, value in processor(rows).items() if name != "labels"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)

    def train() -> None:
        model.train()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    train_times = _in_turn({"train": train}, rounds)["train"]
    optimizer.state.clear()  # as large as the table, and not needed for ranking
    reranker = Reranker(processor, model)
    one = [{name: value for name, value in rows[0].items() if name != "click"}]
    features = dict(processor(one).items())
    # One list per call, one call after the other, as in a service.
    times = {
        name: _in_turn({name: run}, count)[name]
        for name, run, count in (
            ("one_raw_list", lambda: reranker.rerank(one), 20 * rounds),
            ("one_list_tensors", lambda: model.rank(**features), 20 * rounds),
            ("batch_tensors", lambda: model.rank(**ranked), 3 * rounds),
            ("batch_raw", lambda: reranker.rerank(rows, batch_size=RANKING_BATCH), 3 * rounds),
        )
    }
    return {
        "table_rows": model.config.item_vocab_sizes[0],
        "training_lists_per_s": BATCH / statistics.median(train_times),
        "one_list_raw_ms": 1000 * statistics.median(times["one_raw_list"]),
        "one_list_raw_p99_ms": 1000 * float(np.quantile(times["one_raw_list"], 0.99)),
        "one_list_tensors_ms": 1000 * statistics.median(times["one_list_tensors"]),
        "ranking_tensors_lists_per_s": RANKING_BATCH / statistics.median(times["batch_tensors"]),
        "ranking_raw_lists_per_s": RANKING_BATCH / statistics.median(times["batch_raw"]),
    }


def _in_turn(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each piece of work in each round, after two warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 2):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            if number >= 2:
                times[name].append(time.perf_counter() - started)
    return times


def _model(ids: int) -> Any:
    import torch

    from hf_rerank import PRMConfig, PRMForReranking

    torch.manual_seed(0)
    return PRMForReranking(
        PRMConfig(item_vocab_sizes=[ids, 256, 6, 10, 6], num_item_dense=19, user_vocab_sizes=[10, 6, 10])
    )


def _batch(lists: int, ids: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (lists, LENGTH)
    categorical = [torch.randint(2, rows, shape, generator=generator) for rows in (ids, 256, 6, 10, 6)]
    user = [torch.randint(2, rows, (lists,), generator=generator) for rows in (10, 6, 10)]
    return {
        "item_categorical": torch.stack(categorical, dim=-1),
        "item_dense": torch.randn(*shape, 19, generator=generator),
        "user_categorical": torch.stack(user, dim=-1),
        "mask": torch.ones(shape, dtype=torch.bool),
        "position_ids": torch.rand(shape, generator=generator).argsort(-1),
        "labels": (torch.rand(shape, generator=generator) < 0.06).float(),
    }


def _raw_lists(count: int, ids: int, *, every_id: bool = False) -> tuple[dict[str, Any], Any]:
    """Makes raw lists as columns, and their schema. ``every_id``: each id occurs at least twice."""
    from hf_rerank import Categorical, Dense, ListSchema

    generator = np.random.default_rng(0)
    shape = (count, LENGTH)
    item_ids = generator.integers(0, ids, shape)
    if every_id:
        item_ids.ravel()[: 2 * ids] = np.arange(2 * ids) % ids
    columns: dict[str, Any] = {"item_id": list(item_ids)}
    for number, values in enumerate((256, 4, 8, 4), start=1):
        columns[f"item_{number}"] = list(generator.integers(0, values, shape))
    for number in range(19):
        columns[f"dense_{number}"] = list(generator.standard_normal(shape, dtype=np.float32))
    for number, values in enumerate((8, 4, 8)):
        columns[f"user_{number}"] = generator.integers(0, values, count)
    columns["click"] = list((generator.random(shape) < 0.06).astype(np.float32))
    schema = ListSchema(
        items=[
            Categorical("item_id"),
            *(Categorical(f"item_{number}") for number in range(1, 5)),
            *(Dense(f"dense_{number}") for number in range(19)),
        ],
        user=[Categorical(f"user_{number}") for number in range(3)],
    )
    return columns, schema


if __name__ == "__main__":
    main()
