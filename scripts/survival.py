"""Breaks trainings and saved models in every way that the tests cover, and counts silently wrong results.

``scripts/survival.py [--kills 200] [--seed 0] [--output FILE]``: kills trainings and resumes them; flips every bit of
a tiny saved model and truncates it at every length; damages every file of a checkpoint. Prints, and writes as JSON,
for each kind of fault how many were triggered, how many ended correctly (the same bits, or an error that names the
file) and how many silently gave a different result. That last number must be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training")]
EPOCHS = {f"{what}_strategy": "epoch" for what in ("save", "eval", "logging")}
# The trainings to kill, each equally often; tests/training/kill_worker.py has their common options.
TRAININGS: tuple[dict[str, Any], ...] = (
    {},
    {"dataloader_num_workers": 2, "save_total_limit": 1},
    {**EPOCHS, "gradient_accumulation_steps": 1},
    {"max_steps": 7, "save_steps": 1, "eval_steps": 1, "metric_for_best_model": "loss"},
    {"save_steps": 1, "eval_steps": 1, "save_total_limit": 1, "principled": "paper"},
)


def main() -> int:
    """Runs all faults and writes the counts; the exit code is 1 if any result was silently wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="trainings to kill (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "scripts" / "benchmarks" / "results" / "survival.json", help="JSON file"
    )
    options = parser.parse_args()
    from transformers.utils import logging

    logging.disable_progress_bar()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "trainings killed (rows 6, 7, 15)": kills(Path(folder), options.kills, options.seed),
            **checkpoint_files(Path(folder) / "checkpoints"),
            **model_files(Path(folder) / "models"),
        }
    total = {
        name: sum(row[name] for row in rows.values()) for name in ("fired", "as_they_should", "silent_wrong_results")
    }
    for name, row in {**rows, "all": total}.items():
        print(f"{name:58} {row['fired']:7,} fired {row['silent_wrong_results']:4} silent wrong results")
    report = {"rows": rows, "all": total, "seconds": round(time.monotonic() - started)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.output}")
    return int(total["silent_wrong_results"] > 0 or total["fired"] != total["as_they_should"])


def figures(outcomes: list[str]) -> dict[str, Any]:
    """Counts ``"same"``, ``"refused"``, ``"silent"``, and any other outcome, which is unexpected."""
    good = sum(outcome in ("same", "refused") for outcome in outcomes)
    return {
        "fired": len(outcomes),
        "as_they_should": good,
        "silent_wrong_results": outcomes.count("silent"),
        "others": sorted({outcome for outcome in outcomes if outcome not in ("same", "refused", "silent")}),
    }


def kills(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kills trainings during saves (at a file operation) and anywhere else; every tenth training twice."""
    import kill_worker

    draw = random.Random(seed)
    plan: dict[str, Any] = {"folder": str(folder / "trainings"), "trainings": []}
    for number, options in enumerate(TRAININGS):
        moments: list[Any] = []
        for kill in range(number, count, len(TRAININGS)):
            moment: Any = {"share_of_calls": draw.random()} if kill % 3 else {"share": 0.2 + 0.7 * draw.random()}
            moments.append([{"share_of_calls": draw.random()}, moment] if kill % 10 == 9 else moment)
        plan["trainings"].append({"options": options, "kills": moments})
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, kill_worker.__file__, str(folder / "plan.json"), str(folder / "report.json")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    with (folder / "log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=True)
    outcomes, resumed, planned = [], 0, 0
    for training in json.loads((folder / "report.json").read_text()):
        for kill in training["kills"]:
            planned += 1
            if not kill["fired"]:
                continue  # the training ended before the moment of the kill
            resumed += bool(kill["resumed_from"])
            result = "silent" if kill["different"] else "same"
            outcomes.append(result if kill["ended"] else "did not go on")
    return {**figures(outcomes), "planned": planned, "from_a_checkpoint": resumed}


def checkpoint_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Deletes, empties, and replaces every file of a checkpoint by that of another step; truncates it; flips bits."""
    import kill_worker
    import torch

    from hf_rerank import InputError

    torch.set_num_threads(1)
    run = folder / "run"
    with open(os.devnull, "w") as nowhere:
        printed, sys.stdout = sys.stdout, nowhere
        kill_worker.train(run, {"save_steps": 1, "eval_steps": 1, "save_total_limit": None, "max_steps": 4})
        sys.stdout = printed
    checkpoint, before = run / "checkpoint-4", run / "checkpoint-3"
    trainer = kill_worker.make_trainer(run, max_steps=4)
    names = sorted(path.name for path in checkpoint.iterdir())

    def resume(name: str) -> str:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        except InputError as error:
            return "refused" if str(checkpoint) in str(error) else f"{name}: {error}"
        return "silent"

    outcomes: dict[str, list[str]] = {
        "a file absent, empty, or of another step": [],
        "a file cut": [],
        "a bit flipped": [],
    }
    for name in names:
        path = checkpoint / name
        content = path.read_bytes()
        other = (before / name).read_bytes()
        changes = [("a file absent, empty, or of another step", change) for change in (None, b"", other)]
        changes += [("a file cut", content[: len(content) * part // 40]) for part in range(1, 40)]
        changes += [
            ("a bit flipped", flipped(content, 8 * len(content) * part // 40 + part % 8)) for part in range(40)
        ]
        for kind, change in changes:
            if change == content:
                continue
            if change is None:
                path.unlink()
            else:
                path.write_bytes(change)
            outcomes[kind].append("same" if same_json(name, change, content) else resume(name))
        path.write_bytes(content)
    return {f"checkpoint: {kind} (rows 4, 5, 13)": figures(found) for kind, found in outcomes.items()}


def model_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Flips every bit of every file of a tiny saved model, and truncates every file at every length."""
    import pyarrow as pa
    import torch

    from hf_rerank import (
        Categorical,
        Dense,
        InputError,
        ListProcessor,
        ListSchema,
        PRMConfig,
        PRMForReranking,
        Reranker,
    )

    rows = [{"item_id": [10, 30, 20], "price": [0.5, -1.0, 2.0]}, {"item_id": [30, 10], "price": [1.0, 0.0]}]
    schema = ListSchema(items=[Categorical("item_id"), Dense("price")], max_list_length=3)
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    processor = ListProcessor.from_lists(table, schema=schema)
    torch.manual_seed(0)
    sizes = {"hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 2}
    config = PRMConfig.for_schema(processor.schema, **sizes, embedding_dim=2)
    Reranker(processor, PRMForReranking(config)).save_pretrained(folder)
    expected = Reranker.from_pretrained(folder).rerank(rows)

    def load(path: Path) -> str:
        try:
            found = Reranker.from_pretrained(folder).rerank(rows)
        except InputError as error:
            return "refused" if path.name in str(error) or str(folder) in str(error) else f"{path.name}: {error}"
        return "same" if path.name == "manifest.json" and found == expected else "silent"

    figures_of = {}
    changes: tuple[tuple[str, Callable[[bytes], Iterator[bytes]]], ...] = (
        ("every bit flipped (row 4)", every_bit),
        ("cut at every length (row 13)", lambda content: (content[:length] for length in range(len(content)))),
    )
    for kind, changed in changes:
        outcomes = []
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            for change in changed(content):
                path.write_bytes(change)
                outcomes.append(load(path))
            path.write_bytes(content)
        figures_of[f"model: {kind}"] = figures(outcomes)
    return figures_of


def every_bit(content: bytes) -> Iterator[bytes]:
    """Yields the content with each of its bits flipped in turn."""
    return (flipped(content, bit) for bit in range(8 * len(content)))


def flipped(content: bytes, bit: int) -> bytes:
    """Returns the content with one bit flipped."""
    changed = bytearray(content)
    changed[min(bit // 8, len(content) - 1)] ^= 1 << bit % 8
    return bytes(changed)


def same_json(name: str, change: bytes | None, content: bytes) -> bool:
    """Whether a manifest has the same meaning as before, such as with a tab instead of a space."""
    if name != "manifest.json" or change is None:
        return False
    try:
        return bool(json.loads(change) == json.loads(content))
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
