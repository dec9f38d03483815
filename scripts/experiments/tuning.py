"""Is a tuned model better than the defaults? The best trial of ``hf-rerank tune`` against the model's defaults.

    hf-rerank tune --model prm --data LISTS --output-dir STUDY --principled none --num-train-epochs 6 --trials 20
    python scripts/experiments/tuning.py --data LISTS --study STUDY --output-dir RESULTS --epochs 6 --seeds 5

The options were chosen on the validation lists, by one seed per trial. Here both sets of options are trained without
the principles, with the same new seeds, and measured on the test lists once. Each run is kept as one JSON file and is
not repeated. RESULTS gets ``summary.json`` and ``summary.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from runs import finish, mean_and_spread, paired, results, train

ARMS = ("default", "tuned")
MEASURES = ("expected_clicks", "ndcg@10", "auc")
FIRST_SEED = 100  # a trial has the seed 0


def run(path: Path, data: str, model: str, options: dict[str, Any], epochs: int, seed: int) -> dict[str, Any]:
    """Trains and measures one model; ``options`` are of its config or of the training."""
    from hf_rerank import load_lists
    from hf_rerank.evaluation import evaluate
    from hf_rerank.models import reranker_classes
    from hf_rerank.processing import ListProcessor

    lists = load_lists(data)
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    names = {field.name for field in dataclasses.fields(reranker_classes(model)[0])}
    folder = path.with_suffix("")
    trainer = train(
        folder,
        lists,
        processor,
        model=model,
        seed=seed,
        config={name: value for name, value in options.items() if name in names},
        principled="none",
        num_train_epochs=epochs,
        save_only_model=True,
        use_cpu=True,
        **{name: value for name, value in options.items() if name not in names},
    )
    shutil.rmtree(folder, ignore_errors=True)
    measured = evaluate(trainer.model, processor, lists["test"])
    return {"seed": seed, "test": {name: measured[name] for name in MEASURES if name in measured}}


def summarize(options: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns means over seeds, and the paired change from the defaults in percent of their mean."""
    summary: dict[str, Any] = {"options": options, "seeds": len(found["default"]), "arms": {}, "change in percent": {}}
    for measure in found["default"][0]["test"]:
        values = {arm: [result["test"][measure] for result in found[arm]] for arm in ARMS}
        for arm in ARMS:
            summary["arms"].setdefault(arm, {})[measure] = mean_and_spread(values[arm])
        scale = 100 / summary["arms"]["default"][measure]["mean"]
        change = paired(*([scale * value for value in values[arm]] for arm in ("tuned", "default")))
        summary["change in percent"][measure] = change
    return summary


def as_markdown(summary: dict[str, Any]) -> str:
    lines = ["| measure | default | tuned | change, % |", "|---|---|---|---|"]
    for measure, change in summary["change in percent"].items():
        means = [f"{summary['arms'][arm][measure]['mean']:.4f}" for arm in ARMS]
        interval = f"{change['mean']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]"
        lines.append(f"| {measure.replace('_', ' ')} | {' | '.join(means)} | {interval} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of prepared lists")
    parser.add_argument("--study", required=True, type=Path, help="output folder of hf-rerank tune")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    best = options.study / "best"
    if not (best / "results.json").is_file():
        raise SystemExit(f"{options.study} has no best model: expected the output folder of hf-rerank tune")
    chosen = json.loads((best / "results.json").read_text())["tuning"]["options"]
    model = json.loads((best / "config.json").read_text())["model_type"].removeprefix("rerank_")
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    paths = {arm: [options.output_dir / "runs" / f"{arm}-{seed}.json" for seed in seeds] for arm in ARMS}
    wanted = [
        (path, (options.data, model, chosen if arm == "tuned" else {}, options.epochs, seed))
        for arm in ARMS
        for path, seed in zip(paths[arm], seeds, strict=True)
    ]
    finish(wanted, run, workers=1)
    from hf_rerank.storage import write_json

    summary = summarize(chosen, {arm: results(paths[arm]) for arm in ARMS})
    write_json(options.output_dir / "summary.json", summary)
    (options.output_dir / "summary.md").write_text(as_markdown(summary))
    print(as_markdown(summary))


if __name__ == "__main__":
    main()
