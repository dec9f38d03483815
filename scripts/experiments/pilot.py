"""The pilot of the default: what the principles gain or cost in each world, for candidates of the default.

    python scripts/experiments/pilot.py --output-dir RESULTS --seeds 3 [--models prm] [--worlds trained] ...

One run is one (world, length, model, arm, seed): trained on ``train``, its best epoch chosen on ``validation`` by
NDCG@10, measured once on ``test``. Runs of one seed share data, initial weights and batch order, so differences are
paired. A run whose file is there is not repeated. ``--summary`` prints the table of what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

# Chosen on the validation lists of the base PRM.
SIZES: dict[str, dict[str, Any]] = {
    "prm": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64},
    "setrank": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "dlcm": {"hidden_size": 32, "input_size": 64},
}
EPOCHS, BATCH, LEARNING_RATE = 10, 128, 2e-3
# Arm -> (preset, its numbers, dropout, options of the config, callback).
ARMS: dict[str, tuple[str, dict[str, Any], float, dict[str, Any], str | None]] = {
    "none": ("none", {}, 0.0, {}, None),
    "scaled": ("scaled", {}, 0.0, {}, None),
    "paper": ("paper", {}, 0.0, {}, None),
    "no_order": ("none", {}, 0.0, {"position_input": "none"}, None),
    "scaled_tenth": ("scaled", {"convergence_weight": 2.0, "adversarial_weight": 0.5}, 0.0, {}, None),
    "paper_tenth": ("paper", {"convergence_weight": 0.1, "adversarial_weight": 0.1}, 0.0, {}, None),
    "paper_constraint": ("paper", {}, 0.0, {}, "constraint"),
    "scaled_constraint": ("scaled", {}, 0.0, {}, "constraint"),
    "paper_late": ("paper", {}, 0.0, {}, "late"),
    "none_dropout": ("none", {}, 0.1, {}, None),
    "scaled_dropout": ("scaled", {}, 0.1, {}, None),
    "paper_dropout": ("paper", {}, 0.1, {}, None),
    "r_drop": ("r_drop", {}, 0.1, {}, None),
    "augmentation": ("augmentation", {}, 0.0, {}, None),
    "p1": ("scaled", {"adversarial_weight": 0.0}, 0.0, {}, None),
    "p2": ("scaled", {"convergence_weight": 0.0}, 0.0, {}, None),
}
MEASURES = ("expected_clicks", "ndcg@10", "auc", "gauc", "p1_obedience@5", "p1_item_obedience", "p2_item_obedience")


def run_one(root: Path, world: str, length: int, model: str, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains and measures; plain JSON values."""
    from transformers import PrinterCallback, TrainerCallback, set_seed
    from transformers.utils import logging
    from worlds import make_world

    from hf_rerank import ListProcessor, RerankTrainer, RerankTrainingArguments
    from hf_rerank.evaluation import evaluate
    from hf_rerank.models import reranker_classes

    class Late(TrainerCallback):
        """No consistency in the first half of the training, then a straight rise to the full weights."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            share = max(0.0, 2 * state.global_step / state.max_steps - 1)
            for factor in trainer.term_factors.values():
                factor.fill_(share)

    class Constraint(TrainerCallback):
        """The weights double while the task loss on validation is no worse than the best so far, else they halve."""

        best = float("inf")
        factor = 0.1

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.set(self.factor)

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any) -> None:
            loss = metrics["eval_loss"]
            self.set(min(4.0, self.factor * 2) if loss <= self.best * 1.002 else self.factor / 4)
            self.best = min(self.best, loss)

        def set(self, factor: float) -> None:
            self.factor = factor
            for term in trainer.term_factors.values():
                term.fill_(factor)

    preset, numbers, dropout, changes, callback = ARMS[arm]
    lists = make_world(root, world, length)
    logging.disable_progress_bar()
    set_seed(seed)
    processor = ListProcessor.from_lists(lists.splits["train"], schema=lists.schema)
    config_class, model_class = reranker_classes(model)
    if model == "dlcm":
        changes = {}
    options = {**SIZES[model], "hidden_dropout_prob": dropout, **changes}
    built = model_class(config_class.for_schema(processor.schema, **options))
    run = folder / "runs" / f"{world}-{length}-{model}-{arm}-{seed}"
    arguments = RerankTrainingArguments(
        str(run),
        seed=seed,
        disable_tqdm=True,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        principled=preset,
        principled_kwargs=numbers,
        save_total_limit=1,
        save_only_model=True,
    )
    trainer = RerankTrainer(
        built, arguments, lists.splits["train"], lists.splits["validation"], processing_class=processor
    )
    trainer.remove_callback(PrinterCallback)
    if callback is not None:
        trainer.add_callback({"late": Late, "constraint": Constraint}[callback]())
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    measures = {split: evaluate(trainer.model, processor, lists.splits[split]) for split in ("validation", "test")}
    shutil.rmtree(run, ignore_errors=True)
    history = [
        {name: entry[name] for name in entry if name in ("epoch", "loss", "task_loss", "eval_loss", "eval_ndcg@10")}
        for entry in trainer.state.log_history
    ]
    return {
        "world": world,
        "length": length,
        "model": model,
        "arm": arm,
        "seed": seed,
        "cpu_seconds": seconds,
        "history": history,
        "factors": {name: float(value) for name, value in trainer.term_factors.items()},
        **{split: {k: v for k, v in found.items() if isinstance(v, int | float)} for split, found in measures.items()},
    }


def summarize(folder: Path) -> None:
    """Means, and paired differences to ``none`` with 95 % t-intervals, of the runs that are there."""
    from hf_rerank.evaluation.comparing import t_interval

    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    table: dict[tuple[Any, ...], dict[str, dict[int, dict[str, float]]]] = {}
    for run in runs:
        key = (run["world"], run["length"], run["model"])
        table.setdefault(key, {}).setdefault(run["arm"], {})[run["seed"]] = run["test"]
    for key, arms in table.items():
        print(*key)
        for arm, seeds in arms.items():
            base = arms.get("none", {})
            both = sorted(set(seeds) & set(base))
            cells = [f"{sum(s[m] for s in seeds.values()) / len(seeds):.4f}" for m in MEASURES]
            line = f"  {arm:18s} n={len(seeds)} " + " ".join(cells)
            if arm != "none" and len(both) > 1:
                measure = "expected_clicks"
                differences = [seeds[seed][measure] - base[seed][measure] for seed in both]
                mean = sum(base[seed][measure] for seed in both) / len(both)
                gain = t_interval([100 * difference / mean for difference in differences])
                line += f"  clicks {gain.mean:+.2f} % [{gain.low:+.2f}, {gain.high:+.2f}]"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--lists-dir", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["prm"])
    parser.add_argument("--worlds", nargs="+", default=["trained", "informed", "display"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[30])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    if options.summary:
        summarize(options.output_dir)
        return
    import torch

    torch.set_num_threads(1)
    root = options.lists_dir or options.output_dir / "lists"
    options.output_dir.mkdir(parents=True, exist_ok=True)
    product = itertools.product(options.lengths, options.models, range(options.seeds), options.arms, options.worlds)
    for length, model, seed, arm, world in product:
        path = options.output_dir / f"{world}-{length}-{model}-{arm}-{seed}.json"
        if not path.is_file():
            result = run_one(root, world, length, model, arm, seed, options.output_dir)
            path.write_text(json.dumps(result) + "\n")
            print(path.stem, f"{result['cpu_seconds']:.0f} s", f"{result['test']['expected_clicks']:.4f}", flush=True)


if __name__ == "__main__":
    main()
