"""How much of the loss from position bias does correction by propensities recover, on simulated clicks?

    python scripts/experiments/position_bias.py --output-dir RESULTS --lists-dir LISTS [--seeds 5]
    python scripts/experiments/position_bias.py --output-dir RESULTS --summary

Clicks are logged in a display order. In the world ``weak`` it is nearly random (``display_noise`` 8, the default of
the simulator); in ``strong`` a good ranker made it (``display_noise`` 1): items near the top are also better. In both,
readers follow the position-based model, which the corrections assume. ``browsing`` has the display order of
``strong``, and readers who follow a user browsing model: a click makes them read on, so whether a position is examined
depends on the clicks above it.

PRM is trained on the clicks on three inputs: the display order, no order, and the order of a LambdaMART trained on
earlier clicks; in ``browsing`` on the display order alone. Arms:

- ``none``: the uncorrected clicks.
- ``true``: corrected by the true examination probabilities of each position; in ``browsing`` by their means over the
  lists.
- ``em``, ``regression-em``, ``harvest``: corrected by estimates of ``hf-rerank propensities`` from the clicks of the
  same lists.
- ``tower``: the uncorrected clicks, with a position tower that is trained with the model.
- ``principles``: the uncorrected clicks, with principled learning, where the model reads an order. Only this arm and
  the next have it.
- ``tower-principles``: a position tower and principled learning.
- ``unbiased``: new clicks on the same lists, as many on average, drawn as if every position were examined equally
  often. No correction can be expected to do better.

Every run is evaluated by true expected clicks on the test lists, of readers who follow the position-based model. The
best epoch is that of the lowest validation loss, which is corrected if the training is. Runs with the same seed share
lists, initial weights and batch order. A run whose file exists is not repeated.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hf_rerank.data.simulation import PRMWorld

WORLDS: dict[str, dict[str, Any]] = {
    "weak": {"display_noise": 8.0},
    "strong": {"display_noise": 1.0},
    "browsing": {"display_noise": 1.0, "click_model": "user_browsing"},
}
# What the model reads -> its options, and where a position tower finds the display order.
INPUTS = {
    "display order": ("embedding", "given"),
    "no order": ("none", "given"),
    "trained order": ("embedding", "rows"),
}
ESTIMATES = ("em", "regression-em", "harvest")
PRINCIPLED = ("principles", "tower-principles")
ARMS = ("none", "true", *ESTIMATES, "tower", *PRINCIPLED, "unbiased")
EXAMINATION = np.asarray(PRMWorld().examination)  # by position, of readers of the position-based model
LISTS = 12_000
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64}
SCHEDULE: dict[str, Any] = {"num_train_epochs": 5, "per_device_train_batch_size": 128, "learning_rate": 2e-3}


def planned_arms(world: str, order: str) -> tuple[str, ...]:
    """Returns the arms that are run in a world on an input."""
    if order != "display order" and world not in ("weak", "strong"):
        return ()
    return tuple(arm for arm in ARMS if order != "no order" or arm not in PRINCIPLED)


@cache
def prepared_lists(root: Path, world: str) -> Path:
    """Returns the folder of prepared lists of a world; makes it if missing."""
    name = "" if world == "weak" else f"-{world}"
    raw, prepared = (root / f"{what}-{LISTS}-0{name}" for what in ("raw", "prepared"))
    if not prepared.is_dir():
        parameters = [part for key, value in WORLDS[world].items() for part in ("--world", f"{key}={value}")]
        _run("simulate", "prm_public", "--output-dir", raw, "--lists", LISTS, *parameters)
        _run("prepare", "prm_public", "--raw-dir", raw, "--output-dir", prepared)
    return prepared


@cache
def ranked_lists(root: Path, world: str) -> Path:
    """Returns the folder of a world's lists with the order of a trained LambdaMART as the given one."""
    prepared = prepared_lists(root, world)
    ranked = prepared.with_name(prepared.name.replace("prepared", "ranked"))
    if not ranked.is_dir():
        _run("initial-rank", "--data", prepared, "--output-dir", ranked, "--quality", "moderate")
    return ranked


@cache
def curve_of(root: Path, world: str, method: str) -> tuple[float, ...]:
    """Returns the estimated propensities by position."""
    from hf_rerank.data.position_bias import REPORT_KEY, add_propensities
    from hf_rerank.data.prepared import read_report

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lists"
        add_propensities(prepared_lists(root, world), output, method=method, display_order="rows", progress=False)
        return tuple(row["propensity"] for row in read_report(output)[REPORT_KEY]["curve"])


@cache
def lists_of(root: Path, world: str, order: str, arm: str) -> tuple[dict[str, Any], Any, list[float] | None]:
    """Returns splits and processor of an input and an arm, and the propensities by display position."""
    from hf_rerank import ListProcessor, load_lists

    trained = order == "trained order"
    loaded = load_lists(ranked_lists(root, world) if trained else prepared_lists(root, world))
    schema = loaded.schema if trained else loaded.schema.replace(position=None)
    # Readers of other models have no curve by position; all are evaluated by that of the position-based model.
    schema = schema.replace(examination=EXAMINATION.tolist())
    curve: list[float] | None = None
    if arm == "true":
        curve = true_curve(world, np.array(loaded["train"][schema.label])).tolist()
    elif arm in ESTIMATES:
        curve = list(curve_of(root, world, arm))
    splits = {split: loaded[split] for split in ("train", "validation", "test")}
    if curve is not None:
        schema = schema.replace(propensity="propensity")
        splits = {
            split: lists.add_column("propensity", [curve[: len(labels)] for labels in lists[schema.label]])
            for split, lists in splits.items()
        }
    if arm == "unbiased":
        for split in ("train", "validation"):
            splits[split] = _redrawn(splits[split], schema)
    return splits, ListProcessor.from_lists(splits["train"], schema=schema), curve


def true_curve(world: str, clicks: np.ndarray) -> np.ndarray:
    """Computes how often each display position was examined.

    Args:
        world: A key of ``WORLDS``.
        clicks: [lists, items], in display order.

    Returns:
        [items].
    """
    if "click_model" not in WORLDS[world]:
        return EXAMINATION
    examined = np.empty(clicks.shape)
    since = np.zeros(len(clicks), np.int64)  # positions since the last click, or since the top
    for position, click in enumerate(clicks.T > 0):
        examined[:, position] = EXAMINATION[since]
        since = np.where(click, 0, since + 1)
    return examined.mean(axis=0)


def _redrawn(lists: Any, schema: Any) -> Any:
    """Returns the lists with clicks that do not depend on the position, as many on average."""
    attraction, clicks = (np.array(lists[name]) for name in (schema.attraction, schema.label))
    chance = attraction * clicks.sum() / attraction.sum()
    drawn = (np.random.default_rng(0).random(chance.shape) < chance).astype(clicks.dtype)
    kind = lists.features[schema.label]
    return lists.remove_columns(schema.label).add_column(schema.label, drawn.tolist()).cast_column(schema.label, kind)


def run_one(path: Path, root: Path, world: str, order: str, arm: str, seed: int) -> dict[str, Any]:
    """Trains and evaluates; returns JSON values."""
    import runs

    splits, processor, curve = lists_of(root, world, order, arm)
    position_input, display = INPUTS[order]
    folder = path.parent / "runs" / path.stem
    started = time.process_time()
    trainer = runs.train(
        folder,
        splits,
        processor,
        model="prm",
        seed=seed,
        config={
            **SIZES,
            "hidden_dropout_prob": 0.0,
            "position_input": position_input,
            "position_tower": display if arm.startswith("tower") else "none",
        },
        principled="augmented" if arm in PRINCIPLED else "none",
        metric_for_best_model="loss",
        save_total_limit=1,
        save_only_model=True,
        **SCHEDULE,
    )
    seconds = time.process_time() - started
    if trainer.model.position_tower is not None:
        curve = trainer.model.position_tower.propensities()
    test = runs.per_list(trainer.model, processor, splits["test"])
    shutil.rmtree(folder, ignore_errors=True)
    best = min((entry for entry in trainer.state.log_history if "eval_loss" in entry), key=lambda e: e["eval_loss"])
    return {
        "world": world,
        "order": order,
        "arm": arm,
        "seed": seed,
        "cpu_seconds": seconds,
        "best_epoch": best["epoch"],
        "propensities": curve,
        "test": {name: float(values.mean()) for name, values in test.items()},
    }


def summarize(folder: Path) -> str:
    """Formats the table of existing runs: means over seeds, and paired differences with 95 % t-intervals."""
    import runs

    from hf_rerank.evaluation.comparing import t_interval

    found = runs.results(sorted(folder.glob("*-*.json")))
    lines = [
        "| world | input | arm | seeds | expected clicks | against `none` | of the loss won back | curve error |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for world in WORLDS:
        for order in INPUTS:
            by_arm: dict[str, dict[int, dict[str, Any]]] = {}
            for run in found:
                if (run["world"], run["order"]) == (world, order):
                    by_arm.setdefault(run["arm"], {})[run["seed"]] = run
            # Seeds for which every arm exists.
            arms = planned_arms(world, order)
            seeds = sorted(set.intersection(*(set(by_arm.get(arm, {})) for arm in arms))) if arms else []
            if not seeds:
                continue
            clicks = {arm: [by_arm[arm][seed]["test"]["expected_clicks"] for seed in seeds] for arm in arms}
            differences = {
                arm: t_interval([a - b for a, b in zip(clicks[arm], clicks["none"], strict=True)]) for arm in arms
            }
            lost = differences["unbiased"]
            true = np.array(by_arm["true"][seeds[0]]["propensities"])
            for arm in arms:
                row = differences[arm]
                share = (
                    f"{100 * row.mean / lost.mean:.0f} %" if lost.low > 0 and arm not in ("none", "unbiased") else "-"
                )
                curve = by_arm[arm][seeds[0]]["propensities"]
                error = "-" if curve is None else f"{np.abs(np.array(curve) - true).mean():.3f}"
                lines.append(
                    f"| {world} | {order} | `{arm}` | {len(seeds)} | {np.mean(clicks[arm]):.4f} | "
                    f"{'-' if arm == 'none' else row} | {share} | {error} |"
                )
    lines += [
        "",
        "Generated by `scripts/experiments/position_bias.py --summary`. Differences are paired by seed, with 95 % "
        "t-intervals. The loss won back is the mean difference as a share of that of `unbiased`, where that is "
        "clearly above 0. The curve error is the mean absolute difference from the true examination probabilities.",
    ]
    return "\n".join(lines) + "\n"


def _run(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "hf_rerank.cli", *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--lists-dir", type=Path, help="folder of prepared lists (default: in the output folder)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--summary", action="store_true", help="write summary.md from the existing runs")
    options = parser.parse_args()
    if options.summary:
        text = summarize(options.output_dir)
        (options.output_dir / "summary.md").write_text(text, encoding="utf-8")
        print(text, end="")
        return
    import runs
    import torch

    torch.set_num_threads(1)
    root = options.lists_dir or options.output_dir / "lists"
    every = [
        (world, order, arm, seed)
        for world in options.worlds
        for seed in range(options.seeds)
        for order in INPUTS
        for arm in planned_arms(world, order)
    ]
    paths = [
        options.output_dir / f"{world}-{order.replace(' ', '_')}-{arm}-{seed}.json"
        for world, order, arm, seed in every
    ]
    runs.finish(((path, (root, *run)) for path, run in zip(paths, every, strict=True)), run_one, workers=1)


if __name__ == "__main__":
    main()
