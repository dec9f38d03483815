"""Fine-tunes a saved re-ranker on your own lists, and evaluates it before and after.

python scripts/fine_tune.py --model RUN --lists my_lists.csv --output-dir TUNED
"""

from __future__ import annotations

import argparse

from transformers import set_seed
from transformers.utils import logging

from hf_rerank import Reranker, RerankTrainer, RerankTrainingArguments, adapt, freeze, load_lists
from hf_rerank.evaluation import evaluate
from hf_rerank.evaluation.tables import results_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or repository of the model")
    parser.add_argument("--lists", required=True, help="CSV, one row per item, with the columns of the model's lists")
    parser.add_argument("--output-dir", required=True, help="folder for the new model")
    parser.add_argument("--freeze", nargs="*", default=[], help="tables, encoder, output, or names of modules")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="lower than for a new model (default: 3e-4)")
    options = parser.parse_args()
    logging.disable_progress_bar()
    set_seed(0)

    # The model, and lists read with its schema.
    reranker = Reranker.from_pretrained(options.model)
    lists = load_lists(options.lists, schema=reranker.processor.schema)
    few = lists["train"]

    # New items and categories get rows in the embedding tables. No score changes yet.
    tuned, report = adapt(reranker, few)
    print(report)
    before = evaluate(tuned.model, tuned.processor, lists["test"])

    if options.freeze:
        print(f"frozen: {', '.join(freeze(tuned.model, *options.freeze))}")
    trainer = RerankTrainer(
        model=tuned.model,
        args=RerankTrainingArguments(
            options.output_dir,
            num_train_epochs=options.epochs,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=32,
            disable_tqdm=True,
        ),
        train_dataset=few,
        eval_dataset=lists["validation"],  # the epoch that ranks these best is kept
        processing_class=tuned.processor,
    )
    trainer.train()
    trainer.save_model(options.output_dir)

    after = evaluate(trainer.model, tuned.processor, lists["test"])
    print(
        f"\nOn the test split:\n{results_table({'before': before, 'after': after})}\n\nmodel in {options.output_dir}"
    )


if __name__ == "__main__":
    main()
