"""Cost of principled learning per training step: time and peak memory, by model, preset, fraction and batch size.

    python scripts/benchmarks/principled_cost.py --output-dir RESULTS [--models prm dnn]
        [--presets none scaled paper reference] [--fractions 1 0.5 0.25] [--batch-sizes 128 512]
        [--variants float32 bf16 compiled] [--repeats 5] [--device cpu|cuda|auto] [--threads 1]

Writes RESULTS/principled_cost.json and RESULTS/principled_cost.md, and prints the latter. Lists of 30 items with the
features of PRM Public: 5 categorical and 19 dense per item, 3 categorical per user; models with the default sizes.

A step is forward with the objective, backward, clipping and AdamW. ``none`` is the task loss alone and ``naive`` the
losses of ``scaled`` from three separate calls of the whole model; both are always measured. Fractions apply to
``scaled``. Variants: ``float32``; ``bf16``, forward under autocast; ``compiled``, by torch.compile. The default is all
three on a GPU, and ``float32`` on the CPU.

Time: the settings of one model and batch size run in turn, a block of 3 steps each, ``--repeats`` rounds. The table
shows the median over the rounds, and median and extremes of the ratio to ``none`` of the same variant in the same
round: ratios are reliable on a noisy machine, absolute times are not.

Memory: the memory that the first steps need in addition to the model and the batches, that is gradients, the state of
AdamW, activations and temporaries. On the CPU: the peak resident memory (ru_maxrss) of a fresh process per row, minus
the resident memory before. Values below some 10 MiB are unreliable, and those of compiled rows include the compiler.
On a GPU: torch.cuda.max_memory_allocated minus the memory allocated before.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

LENGTH, ITEM_VALUES, USER_VALUES, DENSE = 30, (20_000, 256, 6, 10, 6), (10, 6, 10), 19
RING, WARM_UP, BLOCK = 4, 3, 3  # batches in turn; steps before a measurement; steps of a timed block
VARIANTS = ("float32", "bf16", "compiled")


@dataclass(frozen=True)
class Setting:
    """How a step is computed. ``preset``: a preset of the objective, or ``naive``."""

    preset: str
    fraction: float = 1.0
    variant: str = "float32"

    @property
    def name(self) -> str:
        fraction = "" if self.fraction == 1 else f", fraction {self.fraction:g}"
        return self.preset + fraction + ("" if self.variant == "float32" else f", {self.variant}")


class Training:
    """Training of a new model in one setting, cycling through a few batches."""

    def __init__(self, model: str, batches: list[dict[str, Any]], setting: Setting, device: str) -> None:
        import torch

        from hf_rerank.models.auto import reranker_classes
        from hf_rerank.principled import preset_objective

        config_class, model_class = reranker_classes(model)
        torch.manual_seed(0)
        config = config_class(
            item_vocab_sizes=list(ITEM_VALUES), num_item_dense=DENSE, user_vocab_sizes=list(USER_VALUES)
        )
        self.model = model_class(config).to(device).train()
        self.task_loss = config.task_loss_name
        self.objective = (
            None
            if setting.preset == "naive"
            else preset_objective(setting.preset, fraction=setting.fraction).for_task_loss(self.task_loss)
        )
        self.call: Callable[..., Any] = self.model
        if setting.variant == "compiled":
            torch._dynamo.reset()  # otherwise a new batch size would be compiled with dynamic shapes, and run slower
            torch._dynamo.config.recompile_limit = 64  # all settings share the code of one forward
            self.call = torch.compile(self.model)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=setting.variant == "bf16")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.batches, self.steps = batches, 0

    def step(self) -> None:
        import torch

        with self.autocast:
            loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def loss(self) -> Any:
        from hf_rerank.principled.orders import step_keys

        batch = dict(self.batches[self.steps % len(self.batches)])
        list_keys = batch.pop("list_keys")
        if self.objective is None:
            return three_calls(self.call, batch, step_keys(list_keys, seed=0, step=self.steps), self.task_loss)
        return self.call(**batch, objective=self.objective.at(step=self.steps, list_keys=list_keys)).loss


def three_calls(model: Callable[..., Any], batch: dict[str, Any], keys: Any, task_loss: str) -> Any:
    """Computes the loss of ``scaled`` in a straightforward way: three calls of the whole model."""
    from hf_rerank.losses import probabilities
    from hf_rerank.principled import PRESETS, consistency_loss, positions_from_scores
    from hf_rerank.principled.orders import perturb_by_key

    mask, given = batch["mask"], batch["position_ids"]
    weights = [term.weight for term in PRESETS["scaled"].terms]
    features = {name: value for name, value in batch.items() if name not in ("labels", "position_ids")}
    first = model(**batch)
    scores = probabilities(first.logits, task_loss, mask=mask)
    own, perturbed = positions_from_scores(first.logits.detach().float(), mask), perturb_by_key(given, mask, keys)
    loss = first.loss
    for weight, order in zip(weights, (own, perturbed), strict=True):
        other = probabilities(model(**features, position_ids=order).logits, task_loss, mask=mask)
        loss = loss + weight * consistency_loss(scores, other, given, order, mask=mask, reduction="weighted_mean")
    return loss


def made_batches(count: int, size: int, device: str) -> list[dict[str, Any]]:
    """Makes ``count`` different batches of ``size`` lists."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (size, LENGTH)
    found = []
    for number in range(count):
        items = [torch.randint(2, rows, shape, generator=generator) for rows in ITEM_VALUES]
        user = [torch.randint(2, rows, (size,), generator=generator) for rows in USER_VALUES]
        batch = {
            "item_categorical": torch.stack(items, dim=-1),
            "item_dense": torch.randn(*shape, DENSE, generator=generator),
            "user_categorical": torch.stack(user, dim=-1),
            "mask": torch.ones(shape, dtype=torch.bool),
            "position_ids": torch.rand(shape, generator=generator).argsort(-1),
            "labels": (torch.rand(shape, generator=generator) < 0.06).float(),
            "list_keys": torch.arange(size) + number * size,
        }
        found.append({name: value.to(device) for name, value in batch.items()})
    return found


def step_times(
    model: str, batch_size: int, settings: Sequence[Setting], repeats: int, device: str
) -> dict[Setting, list[float]]:
    """Returns the milliseconds per step of each setting in each round."""
    batches = made_batches(RING, batch_size, device)
    trainings = {setting: Training(model, batches, setting, device) for setting in settings}
    for training in trainings.values():
        for _ in range(WARM_UP):
            training.step()
    times: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for _ in range(repeats):
        for setting, training in trainings.items():
            times[setting].append(milliseconds(training.step, BLOCK, device) / BLOCK)
    return times


def milliseconds(work: Callable[[], None], times: int, device: str) -> float:
    """Measures ``times`` repetitions of the work; on a GPU, until it has finished."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    started = time.perf_counter()
    for _ in range(times):
        work()
    return 1000 * (time.perf_counter() - started)


def peak_memory(model: str, batch_size: int, setting: Setting, device: str, threads: int) -> float:
    """Returns MiB, see the top of the file; on the CPU from a new process, since a peak never decreases."""
    if device == "cuda":
        return peak_in_this_process(model, batch_size, setting, device, threads)
    # Forked from a server that has imported everything and run nothing: quick, and without this process's own peak.
    context = get_context("forkserver")
    context.set_forkserver_preload(["hf_rerank.models.auto", "psutil"])
    # With a fixed threshold the C library returns large blocks when they are freed, so that memory of earlier steps
    # does not count as memory at the start. It reads this when the server starts.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(peak_in_this_process, model, batch_size, setting, device, threads).result()


def peak_in_this_process(model: str, batch_size: int, setting: Setting, device: str, threads: int) -> float:
    import psutil
    import torch

    torch.set_num_threads(threads)
    # Memory that the first step of any model allocates once is not counted.
    Training(model, made_batches(1, 2, device), Setting("scaled"), device).step()
    gc.collect()
    training = Training(model, made_batches(RING, batch_size, device), setting, device)
    before = torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss
    for number in range(WARM_UP):
        if device == "cuda" and number == 1:
            torch.cuda.reset_peak_memory_stats()  # the first step also compiled and tried out kernels
        training.step()
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / 2**20


def compared(
    model: str, batch_size: int, times: dict[Setting, list[float]], memory: dict[Setting, float]
) -> list[dict[str, Any]]:
    """Returns the rows of one model and batch size: medians, and ratios to ``none`` of the same variant."""
    rows = []
    for setting, rounds in times.items():
        base = Setting("none", variant=setting.variant)
        ratios = [time / none for time, none in zip(rounds, times[base], strict=True)]
        rows.append(
            {
                "model": model,
                "batch_size": batch_size,
                "setting": setting.name,
                **asdict(setting),
                "step_ms": statistics.median(rounds),
                "step_ms_rounds": rounds,
                "ratio_to_none": statistics.median(ratios),
                "ratio_to_none_min": min(ratios),
                "ratio_to_none_max": max(ratios),
                "peak_memory_mib": memory[setting],
                "peak_memory_ratio_to_none": memory[setting] / memory[base],
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| model | lists a batch | setting | ms a step | times `none` [min, max] | peak memory, MiB | times `none` |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "{ratio_to_none:.2f} [{ratio_to_none_min:.2f}, {ratio_to_none_max:.2f}]".format(**row)
        lines.append(
            f"| {row['model']} | {row['batch_size']} | {row['setting']} | {row['step_ms']:.1f} | {ratio} "
            f"| {row['peak_memory_mib']:.1f} | {row['peak_memory_ratio_to_none']:.2f} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    from hf_rerank.evaluation.results import describe_environment

    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {**describe_environment(), "cpu": cpu, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def count(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--models", nargs="+", help="default: all")
    parser.add_argument("--presets", nargs="+", default=["none", "scaled", "paper", "reference"])
    parser.add_argument("--fractions", nargs="+", type=float, default=[1.0, 0.5, 0.25])
    parser.add_argument("--batch-sizes", nargs="+", type=count, default=[128, 512])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--threads", type=count, default=1)
    options = parser.parse_args()

    import torch

    from hf_rerank.errors import InputError
    from hf_rerank.models.auto import RERANKERS, reranker_classes
    from hf_rerank.principled import preset_objective
    from hf_rerank.storage import write_json

    models = options.models or list(RERANKERS)
    try:
        for model in models:
            reranker_classes(model)
        for preset in options.presets:
            preset_objective(preset)
        for fraction in options.fractions:
            preset_objective("scaled", fraction=fraction)
    except InputError as error:
        parser.error(str(error))
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch finds no GPU")
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    variants = options.variants or (VARIANTS if device == "cuda" else VARIANTS[:1])
    # Presets and fractions given twice are measured once.
    settings = list(
        dict.fromkeys(
            Setting(preset, fraction, variant)
            for variant in variants
            for preset in ("none", "naive", *options.presets)
            for fraction in (options.fractions if preset == "scaled" else [1.0])
        )
    )
    torch.set_num_threads(options.threads)
    rows = []
    for model, size in product(models, options.batch_sizes):
        print(f"{model}, {size} lists a batch: {len(settings)} settings", file=sys.stderr)
        memory = {setting: peak_memory(model, size, setting, device, options.threads) for setting in settings}
        rows += compared(model, size, step_times(model, size, settings, options.repeats, device), memory)

    results = {
        "models": models,
        "presets": options.presets,
        "fractions": options.fractions,
        "batch_sizes": options.batch_sizes,
        "variants": list(variants),
        "repeats": options.repeats,
        "device": device,
        "threads": options.threads,
        "list_length": LENGTH,
        "steps_a_block": BLOCK,
        "machine": machine(),
        "rows": rows,
    }
    write_json(options.output_dir / "principled_cost.json", results)
    found = results["machine"]
    text = (
        f"# Cost of a training step\n\n{found['device'] if device == 'cuda' else found['cpu']}, {options.threads} "
        f"thread(s), torch {found['versions']['torch']}, {found['date']}. Lists of {LENGTH} items. Medians over "
        f"{options.repeats} rounds; ratios are to `none` of the same variant in the same round. Peak memory is what "
        f"the steps take on top of the model and the batches.\n\n{table(rows)}\n"
    )
    (options.output_dir / "principled_cost.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
