"""Trains the DNN and PRM with and without principled learning, and compares them in one table.

python scripts/demo_training.py --data LISTS --output-dir RESULTS

Each model is trained once on ``train``, its best epoch is selected on ``validation`` by NDCG@10 and evaluated once on
``test``. RESULTS gets the models and ``results.json`` with every measure. One run per row shows the size of the
effects, not their significance: see scripts/experiments for that.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from hf_rerank import ListProcessor, RerankTrainer, RerankTrainingArguments, load_lists
from hf_rerank.evaluation import evaluate, evaluate_orders
from hf_rerank.evaluation.tables import text_table
from hf_rerank.models import reranker_classes
from hf_rerank.storage import write_json

PRM = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64}
# Row -> (model, preset of principled learning, config, passes per step, for estimating the remaining time).
ROWS: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "DNN, one item at a time": ("dnn", "none", {"hidden_sizes": [200, 80]}, 0.8),
    "PRM": ("prm", "none", PRM, 1.0),
    "PRM + principles": ("prm", "augmented", PRM, 2.2),
    "PRM without order": ("prm", "none", {**PRM, "position_input": "none"}, 1.0),
}
EPOCHS = 8
COLUMNS = {
    "NDCG@10": "ndcg@10",
    "expected clicks": "expected_clicks",
    "achievable gain": "expected_clicks_share",
    "P1@5": "p1_obedience@5",
    "P2@5": "p2_obedience@5",
}
EXPLANATION = """\
NDCG@10          quality of the first 10 by the clicks of the test lists; 1 is best
expected clicks  clicks per list that the order would get, known because the lists are simulated
achievable gain  fraction of the way from the initial order (0) to the oracle, the best order there is (1)
P1@5             share of lists whose first 5 stay the same when the model is fed its own output
P2@5             share of lists whose first 5 stay the same when two adjacent items of the input are swapped"""


class Progress(TrainerCallback):
    """One progress bar over all trainings, with the remaining time."""

    def __init__(self, bar: Any, passes: float) -> None:
        self.bar, self.passes, self.shown = bar, passes, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        share = self.passes * EPOCHS * state.global_step / state.max_steps
        self.bar.update(min(share - self.shown, self.bar.total - self.bar.n))  # rounding would exceed the total
        self.shown = share

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any) -> None:
        self.bar.set_postfix_str(f"NDCG@10 {metrics['eval_ndcg@10']:.4f}")


def main() -> None:
    options = _options()
    logging.disable_progress_bar()
    lists = load_lists(options.data)
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    total = EPOCHS * sum(passes for *_, passes in ROWS.values())
    rows: dict[str, Any] = {}
    with tqdm(total=total, bar_format="{desc:24s} {percentage:3.0f}% {bar} {remaining} left{postfix}") as bar:
        for name, (model, preset, config, passes) in ROWS.items():
            bar.set_description_str(name)
            folder = options.output_dir / name.lower().split(",")[0].replace(" + ", "-").replace(" ", "-")
            trainer, seconds = _train(folder, lists, processor, model, preset, config, Progress(bar, passes))
            measured = evaluate(trainer.model, processor, lists["test"], swaps="one")
            rows[name] = {**measured, "training_seconds": seconds}
            trainer.save_model(str(folder))
    orders = evaluate_orders(processor, lists["test"])
    rows = {"initial order": orders["initial"], **rows, "oracle": orders["true_attraction"]}
    write_json(options.output_dir / "results.json", rows)
    print()
    print(text_table(["", *COLUMNS, "seconds"], [[name, *_cells(row)] for name, row in rows.items()]))
    print(f"\n{EXPLANATION}\n\n{summarize(rows)}")


def _train(
    folder: Path, lists: Any, processor: Any, model: str, preset: str, config: dict[str, Any], progress: Progress
) -> tuple[Any, float]:
    set_seed(0)
    config_class, model_class = reranker_classes(model)
    trainer = RerankTrainer(
        model=model_class(config_class.for_schema(processor.schema, hidden_dropout_prob=0.0, **config)),
        args=RerankTrainingArguments(
            str(folder),
            principled=preset,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=128,
            learning_rate=2e-3,
            disable_tqdm=True,
            save_total_limit=1,
            save_only_model=True,
        ),
        train_dataset=lists["train"],
        eval_dataset=lists["validation"],
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)
    started = time.perf_counter()
    trainer.train()
    return trainer, time.perf_counter() - started


def _cells(row: dict[str, Any]) -> list[str]:
    values = [f"{row[name]:.4f}" if name in row else "" for name in COLUMNS.values()]
    return [*values, f"{row['training_seconds']:.0f}" if "training_seconds" in row else ""]


def summarize(rows: dict[str, Any]) -> str:
    """Describes in one sentence each the gain of the re-ranker, the effect of the principles, and that of no order."""
    initial, prm, principled, without = (
        rows[name] for name in ("initial order", "PRM", "PRM + principles", "PRM without order")
    )

    def change(one: dict[str, Any], other: dict[str, Any]) -> str:
        return f"{100 * (one['expected_clicks'] / other['expected_clicks'] - 1):+.2f} %"

    return (
        f"Re-ranking: PRM changes expected clicks by {change(prm, initial)} against the initial order, "
        f"{prm['expected_clicks_share']:.0%} of the achievable gain.\n"
        f"Principles: they change PRM's expected clicks by {change(principled, prm)}; fed its own output, the first 5 "
        f"stay the same in {principled['p1_obedience@5']:.0%} of lists instead of {prm['p1_obedience@5']:.0%}.\n"
        f"Control: a PRM that is not given the order satisfies both principles by construction; expected clicks "
        f"{change(without, prm)} against PRM."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of prepared lists")
    parser.add_argument("--output-dir", required=True, type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
