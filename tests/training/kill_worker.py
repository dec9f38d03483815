"""Kills trainings with SIGKILL, resumes them, and reports the outcome of each.

``main(PLAN, REPORT)``: two JSON files. The libraries are loaded once; a training is a forked process. A plan holds
``folder`` and ``trainings``, each with ``options`` (of the training arguments) and ``kills``, each with one of

``calls``: the process ends itself by SIGKILL just before the Nth operation on files below the run's folder (see
``kill_points``);
``share_of_calls``: the same, as a share of all such operations of the unbroken training;
``seconds``: the process is killed from outside this long after its start;
``share``: the same, as a share of the duration of the unbroken training.

A kill may be a list of these: the training is killed, resumed, killed again, and so on. Then it is resumed to its end
with ``resume_from_checkpoint="auto"``, and its outcome is compared with that of an uninterrupted training.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import kill_points
import numpy as np
import torch
from transformers.utils import logging

from hf_rerank import (
    Categorical,
    Dense,
    ListProcessor,
    ListSchema,
    PRMConfig,
    PRMForReranking,
    RerankTrainer,
    RerankTrainingArguments,
)

SCHEMA = ListSchema(items=[Categorical("item_id"), Dense("price")], list_id="list_id", max_list_length=6)
# Three passes of the model, dropout, unknown ids, shuffling, two batches per step, 5 steps per epoch of which the last
# is half a step; logging every 3 steps and a checkpoint every 2.
OPTIONS: dict[str, Any] = {
    "principled": "scaled",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 0.02,
    "logging_strategy": "steps",
    "logging_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "obedience_k": 3,
    "use_cpu": True,
    "disable_tqdm": True,
}
# A checkpoint and its evaluation at each of the 10 steps.
EVERY_STEP: dict[str, Any] = {"save_steps": 1, "eval_steps": 1, "save_total_limit": None}
TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def make_lists(count: int, seed: int) -> datasets.Dataset:
    """Lists of 3 to 6 items."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(random.integers(3, 7))
        rows.append(
            {
                "list_id": f"{seed}-{number}",
                "item_id": random.integers(12, size=length).tolist(),
                "price": random.normal(size=length).tolist(),
                "click": (random.random(length) < 0.4).astype(int).tolist(),
            }
        )
    return datasets.Dataset.from_list(rows)


def make_trainer(folder: Path, seed: int = 7, **options: Any) -> RerankTrainer:
    """A tiny training of 72 lists."""
    torch.manual_seed(seed)
    train = make_lists(72, 1)
    processor = ListProcessor.from_lists(train, schema=SCHEMA)
    config = PRMConfig.for_schema(
        processor.schema,
        hidden_size=4,
        num_hidden_layers=1,
        intermediate_size=4,
        embedding_dim=2,
        hidden_dropout_prob=0.2,
        unknown_rate=0.1,
    )
    return RerankTrainer(
        model=PRMForReranking(config),
        args=RerankTrainingArguments(str(folder), **{**OPTIONS, **options}),
        train_dataset=train,
        eval_dataset=make_lists(20, 2),
        processing_class=processor,
    )


def digest(values: Any) -> str:
    """SHA-256 of nested dictionaries and lists of tensors and numbers."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if torch.is_tensor(value):
            sha.update(f"{value.dtype}{list(value.shape)}".encode())
            sha.update(value.detach().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for name, entry in sorted(value.items(), key=lambda pair: str(pair[0])):
                sha.update(str(name).encode())
                add(entry)
        elif isinstance(value, list | tuple):
            for entry in value:
                add(entry)
        else:
            sha.update(repr(value).encode())

    add(values)
    return sha.hexdigest()


def outcome(trainer: RerankTrainer) -> dict[str, Any]:
    """The results that two equal trainings must share, bit for bit."""
    last = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    files = {
        name: hashlib.sha256((last / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "rng_state.pth", "scheduler.pt", "rerank_state.json")
        if last.is_dir()  # the only checkpoint that is kept may be the best instead
    }
    log = [
        {name: value for name, value in entry.items() if not name.endswith(TIMES)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]
    return {
        "step": trainer.state.global_step,
        "model": digest(dict(trainer.model.state_dict())),
        "optimizer": digest(trainer.optimizer.state_dict()),
        "best": [trainer.state.best_global_step, trainer.state.best_metric],
        "log": log,
        "last": files,
    }


def run_forked(work: Callable[[], None], stop_after: float | None = None) -> int:
    """Runs ``work`` in a separate process, killed after ``stop_after`` seconds. Returns its exit code; -9: killed."""
    run = kill_points.forked(work)
    if stop_after is not None:
        time.sleep(stop_after)
        os.kill(run.pid, signal.SIGKILL)  # harmless if it has ended: it has not been waited for yet
    code, printed = run.end()
    print(printed, flush=True)
    return code


def train(folder: Path, options: dict[str, Any], result: Path | None = None, seed: int = 7) -> None:
    """Trains to the end, from the newest checkpoint if there is one."""
    trainer = make_trainer(folder, seed=seed, **options)
    trainer.train(resume_from_checkpoint="auto")
    if result is not None:
        result.write_text(json.dumps({**outcome(trainer), "resumed_from": trainer.resumed_step}))


def killed_and_resumed(
    folder: Path, options: dict[str, Any], kills: list[dict[str, Any]], expected: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Kills a training as specified, resumes it to its end, and compares the outcomes."""
    shutil.rmtree(folder, ignore_errors=True)
    fired, result = 0, folder.with_name(f"{folder.name}.json")
    result.unlink(missing_ok=True)
    for kill in kills:

        def work(kill: dict[str, Any] = kill) -> None:
            if "calls" in kill:
                kill_points.die_at(folder, kill["calls"])
            train(folder, options)

        after = kill.get("seconds", kill["share"] * seconds if "share" in kill else None)
        code = run_forked(work, after)
        while after is not None and code == 0 and len(kills) == 1:
            # It ended before it was to be killed: try again with an earlier kill.
            shutil.rmtree(folder)
            after *= 0.7
            code = run_forked(work, after)
        fired += code == -signal.SIGKILL
    # Different initial weights: all weights must come from the checkpoint, if there is one.
    started = any(path.name.startswith("checkpoint-") for path in folder.glob("*"))
    code = run_forked(lambda: train(folder, options, result, seed=9 if started else 7))
    found = json.loads(result.read_text()) if result.exists() else {}
    resumed_from = found.pop("resumed_from", None)
    different = sorted(name for name in expected if found.get(name) != expected[name])
    return {
        "kills": kills,
        "fired": fired,
        "ended": code == 0,
        "resumed_from": resumed_from,
        "different": different,
        "left": sorted(path.name for path in folder.glob("*") if not path.name.startswith("checkpoint-")),
    }


def main(plan_file: Path, report_file: Path) -> None:
    """Carries out the plan."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    plan = json.loads(plan_file.read_text())
    report = []
    for number, training in enumerate(plan["trainings"]):
        folder = Path(plan["folder"]) / str(number)
        folder.mkdir(parents=True)
        report.append(killed_trainings(folder, training["options"], training["kills"]))
        report_file.write_text(json.dumps(report))


def killed_trainings(folder: Path, options: dict[str, Any], kills: list[Any]) -> dict[str, Any]:
    """Runs the unbroken training, and reports the outcome of each killed one."""
    result, counted = folder / "unbroken.json", folder / "calls"

    def counting() -> None:
        kill_points.count_operations(folder / "counted", counted)
        train(folder / "counted", options)

    started = time.monotonic()
    codes = [run_forked(counting), run_forked(lambda: train(folder / "unbroken", options, result))]
    seconds = (time.monotonic() - started) / 2
    if any(codes):
        raise SystemExit(f"uninterrupted trainings ended with {codes}")
    expected = json.loads(result.read_text())
    expected.pop("resumed_from")
    report: dict[str, Any] = {
        "options": options,
        "calls": counted.stat().st_size,
        "seconds": seconds,
        "expected": expected,
        "kills": [],
    }
    for kill in kills:
        chain = [
            {"calls": int(report["calls"] * entry["share_of_calls"]) + 1} if "share_of_calls" in entry else entry
            for entry in (kill if isinstance(kill, list) else [kill])
        ]
        report["kills"].append(killed_and_resumed(folder / "killed", options, chain, expected, seconds))
    return report
