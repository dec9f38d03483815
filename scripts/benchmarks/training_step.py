"""Time of one training step, printed as JSON, for measuring the cost of dropout or of a principled preset.

    python scripts/benchmarks/training_step.py [--model prm] [--principled none] [--dropout 0.1] [--batch-size 128]
        [--steps 30] [--device cpu] [--threads 1]

Lists of 30 items with 5 categorical and 19 dense features, and 3 categorical user features; the model has its default
sizes. A step is forward with the objective, backward, clipping and AdamW, in training mode. The JSON contains the
options, and ``median_ms``, ``fastest_ms`` and ``cpu_ms``, the median CPU time of the process, which other work on the
machine affects less. To compare two versions of the code, run the script with each of them in turn, several times,
and compare the runs pairwise: ratios are reliable on a noisy machine, absolute times are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

LENGTH, ITEM_VALUES, USER_VALUES, DENSE, WARM_UP = 30, (20_000, 256, 6, 10, 6), (10, 6, 10), 19, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="prm")
    parser.add_argument("--principled", default="none", help="preset of the objective")
    parser.add_argument("--dropout", type=float, default=0.1, help="hidden_dropout_prob of the model")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    wall, cpu = zip(*step_times(options), strict=True)
    measured = {"median_ms": statistics.median(wall), "fastest_ms": min(wall), "cpu_ms": statistics.median(cpu)}
    print(json.dumps({**vars(options), **measured}))


def step_times(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Returns the milliseconds of each step and of its CPU time, after some warm-up steps."""
    import torch

    from hf_rerank.models import reranker_classes
    from hf_rerank.principled import preset_objective

    config_class, model_class = reranker_classes(options.model)
    torch.manual_seed(0)
    config = config_class(
        item_vocab_sizes=list(ITEM_VALUES),
        num_item_dense=DENSE,
        user_vocab_sizes=list(USER_VALUES),
        hidden_dropout_prob=options.dropout,
    )
    model = model_class(config).to(options.device).train()
    objective = preset_objective(options.principled).for_task_loss(config.task_loss_name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {name: tensor.to(options.device) for name, tensor in random_batch(options.batch_size).items()}
    keys = torch.arange(options.batch_size, device=options.device)

    times = []
    for step in range(WARM_UP + options.steps):
        _wait(options.device)
        started, started_cpu = time.perf_counter(), time.process_time()
        model(**batch, objective=objective.at(step=step, list_keys=keys)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _wait(options.device)
        times.append((1000 * (time.perf_counter() - started), 1000 * (time.process_time() - started_cpu)))
    return times[WARM_UP:]


def random_batch(size: int) -> dict[str, Any]:
    """Random lists, all of full length."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (size, LENGTH)
    items = [torch.randint(2, rows, shape, generator=generator) for rows in ITEM_VALUES]
    user = [torch.randint(2, rows, (size,), generator=generator) for rows in USER_VALUES]
    return {
        "item_categorical": torch.stack(items, dim=-1),
        "item_dense": torch.randn(*shape, DENSE, generator=generator),
        "user_categorical": torch.stack(user, dim=-1),
        "mask": torch.ones(shape, dtype=torch.bool),
        "position_ids": torch.rand(shape, generator=generator).argsort(-1),
        "labels": (torch.rand(shape, generator=generator) < 0.06).float(),
    }


def _wait(device: str) -> None:
    """Waits until the device has finished."""
    if device != "cpu":
        import torch

        torch.accelerator.synchronize()


if __name__ == "__main__":
    main()
