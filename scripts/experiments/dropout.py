"""Should the encoders of PRM, PEAR and RAISE have dropout by default?

    python scripts/experiments/dropout.py --output-dir RUNS --lists-dir LISTS [--root LOGS] --seeds 5
    python scripts/experiments/dropout.py --output-dir RUNS --summary RESULTS

Trains with everything else at the defaults of ``hf-rerank train``, with ``hidden_dropout_prob`` 0 and 0.1, without and
with principled learning, and compares on lists that only choose defaults, never on test lists: the validation lists of
the simulated lists ``trained`` (``worlds.py``), measured by true expected clicks, and lists of the logs of
``tree_logs.py`` kept for comparing candidates, measured by NDCG@10. Without ``--root`` the real log is left out. A run
whose file exists is not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

LISTS = ("prm_public", "simulated", "clara2_lambdamart", "clara2_display")
NAMES = {
    "prm_public": "PRM Public's format, trained order",
    "simulated": "log with heavy tails",
    "clara2_lambdamart": "CLARA 2, LambdaMART order",
    "clara2_display": "CLARA 2, display order",
}
MODELS = ("prm", "pear", "raise")
PRESETS = ("none", "augmented")
DROPOUTS = (0.0, 0.1)


def run(path: Path, kind: str, model: str, preset: str, dropout: float, seed: int, places: Any) -> dict[str, Any]:
    """Trains and measures one model; ``places`` are the folders of simulated lists and of the logs."""
    from runs import per_list, train

    from hf_rerank.processing import ListProcessor

    splits, schema = _load(kind, *places)
    processor = ListProcessor.from_lists(splits["train"], schema=schema)
    folder = path.with_suffix("")
    trainer = train(
        folder,
        splits,
        processor,
        model=model,
        seed=seed,
        config={"hidden_dropout_prob": dropout},
        principled=preset,
        no_click="skip",
        save_total_limit=1,
        save_only_model=True,
        use_cpu=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    compared = splits["compare"]
    values = per_list(trainer.model, processor, compared)
    clicked = np.array([any(labels) for labels in compared[schema.label]])
    entries = [entry for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
    return {
        "lists": kind,
        "model": model,
        "preset": preset,
        "dropout": dropout,
        "seed": seed,
        "measured": {name: float(value[clicked].mean()) for name, value in values.items()},
        "validation": [round(entry["eval_ndcg@10"], 4) for entry in entries],
    }


def _load(kind: str, lists: Path, root: Path) -> tuple[dict[str, Any], Any]:
    """Returns the splits ``train``, ``validation`` and ``compare``, and the schema."""
    from worlds import make_world

    if kind == "prm_public":
        world = make_world(lists, "trained", 30)
        return {**world.splits, "compare": world.splits["validation"]}, world.schema
    import datasets
    from tree_logs import load
    from tree_table import schema_of

    log = load(kind, root)
    return {split: datasets.Dataset(table) for split, table in log.splits.items()}, schema_of(log, "quantile")


def summarize(folder: Path) -> str:
    """Formats the means with dropout 0.1, and the change without dropout: paired by seed, in percent, t-intervals."""
    from hf_rerank.evaluation.comparing import t_interval

    found: dict[tuple[str, str, str, float], dict[int, float]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        key = (result["lists"], result["model"], result["preset"], result["dropout"])
        measured = result["measured"]
        found.setdefault(key, {})[result["seed"]] = measured.get("expected_clicks", measured["ndcg@10"])
    lines = [
        "| lists | model | principles | seeds | dropout 0.1 | no dropout | change, % |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for kind in LISTS:
        for model in MODELS:
            for preset in PRESETS:
                without, with_dropout = (found.get((kind, model, preset, dropout), {}) for dropout in DROPOUTS)
                seeds = sorted(set(without) & set(with_dropout))
                if len(seeds) < 2:
                    continue
                a, b = ([values[seed] for seed in seeds] for values in (without, with_dropout))
                change = t_interval([100 * (x - y) / np.mean(b) for x, y in zip(a, b, strict=True)])
                lines.append(
                    f"| {NAMES[kind]} | {model} | `{preset}` | {len(seeds)} | {np.mean(b):.4f} | {np.mean(a):.4f} | "
                    f"{change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}] |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path, help="folder of the runs, one JSON file each")
    parser.add_argument("--lists-dir", type=Path, help="folder of the simulated lists (default: in the output folder)")
    parser.add_argument("--root", type=Path, help="folder that contains clara2; without it the real log is left out")
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=list(LISTS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--summary", type=Path, metavar="RESULTS", help="write summary.md here, from the existing runs"
    )
    options = parser.parse_args()
    if options.summary:
        options.summary.mkdir(parents=True, exist_ok=True)
        text = summarize(options.output_dir)
        (options.summary / "summary.md").write_text(text, encoding="utf-8")
        print(text, end="")
        return
    from runs import finish

    places = (options.lists_dir or options.output_dir / "lists", options.root)
    every = [
        (kind, model, preset, dropout, seed)
        for model in options.models
        for seed in range(options.seeds)
        for kind in options.lists
        if options.root or not kind.startswith("clara2")
        for preset in PRESETS
        for dropout in DROPOUTS
    ]
    paths = [options.output_dir / f"{'-'.join(map(str, run_))}.json" for run_ in every]
    finish([(path, (*run_, places)) for path, run_ in zip(paths, every, strict=True)], run, workers=1)


if __name__ == "__main__":
    main()
