"""From a CSV of logged lists to a re-ranker on the Hub, step by step; read it from top to bottom.

    python scripts/from_csv_to_hub.py --lists lists.csv --output-dir my_reranker [--repo-id someone/my-reranker]

The CSV has one row per item. Its columns here: ``request`` (id of the list), ``user``, ``rank`` (the position given by
an earlier ranker, 0 at the top), ``item_id``, ``category``, ``price``, ``click``. If yours differ, change the schema
below, or let ``hf-rerank schema infer lists.csv`` write one.
"""

from __future__ import annotations

import argparse

from transformers import set_seed

from hf_rerank import (
    Categorical,
    Dense,
    ListProcessor,
    ListSchema,
    PRMConfig,
    PRMForReranking,
    Reranker,
    RerankTrainer,
    RerankTrainingArguments,
    load_lists,
)
from hf_rerank.evaluation import evaluate_orders
from hf_rerank.evaluation.tables import results_table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--lists", required=True, help="CSV, one row per item")
parser.add_argument("--output-dir", required=True, help="folder for the model")
parser.add_argument("--repo-id", help="repository to push to, created as private if missing")
parser.add_argument("--epochs", type=float, default=10)
options = parser.parse_args()

# 1. Describe the columns. Categories are looked up in tables, numbers are scaled; prices span orders of magnitude.
schema = ListSchema(
    items=[Categorical("item_id"), Categorical("category"), Dense("price", scale="log", missing="indicator")],
    label="click",
    position="rank",
    list_id="request",
    group="user",
    max_list_length=30,
)

# 2. Load the lists, split by user: no user of the test lists is seen in training.
lists = load_lists(options.lists, schema=schema)
print({split: len(rows) for split, rows in lists.items()})

# 3. Learn vocabularies and scales from the training lists only.
processor = ListProcessor.from_lists(lists["train"], schema=schema)

# 4. Train a re-ranker. By default it is trained to keep its own ranking when that is fed back, and to be
# insensitive to swapping adjacent items.
set_seed(0)
model = PRMForReranking(PRMConfig.for_schema(processor.schema))
trainer = RerankTrainer(
    model=model,
    args=RerankTrainingArguments(
        options.output_dir,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=64,
        disable_tqdm=True,
    ),
    train_dataset=lists["train"],
    eval_dataset=lists["validation"],  # the epoch that ranks these best is kept
    processing_class=processor,
)
trainer.train()

# 5. Evaluate once on the unseen test lists, next to the order of your earlier ranker.
measured = trainer.evaluate(lists["test"], metric_key_prefix="test")
rows = evaluate_orders(processor, lists["test"])
rows["re-ranker"] = {name.removeprefix("test_"): value for name, value in measured.items()}
print(results_table(rows))

# 6. Save the model, and push it with its card and results. Nothing is uploaded before this step.
trainer.save_model(options.output_dir)
if options.repo_id:
    trainer.push_to_hub(options.repo_id, private=True)

# 7. Serve it: raw lists in, ranked items out.
reranker = Reranker.from_pretrained(options.repo_id or options.output_dir)
request = {"item_id": [3, 1, 2], "category": ["a", "b", "a"], "price": [9.5, None, 20.0]}
print(reranker.rerank([request], top_k=2))
