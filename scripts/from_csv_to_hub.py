"""From a CSV of logged lists to a re-ranker on the Hub, step by step; read it from top to bottom.

    python scripts/from_csv_to_hub.py --lists lists.csv --output-dir my_reranker [--repo-id someone/my-reranker]

The CSV has one row an item. Its columns here: ``request`` (which list), ``user``, ``rank`` (the place that an earlier
ranker gave, 0 at the top), ``item_id``, ``category``, ``price``, ``click``. Yours are other ones: change the schema
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
parser.add_argument("--lists", required=True, help="CSV, one row an item")
parser.add_argument("--output-dir", required=True, help="folder for the model")
parser.add_argument("--repo-id", help="repository to push to, which is made if it is not there; private")
parser.add_argument("--epochs", type=float, default=10)
options = parser.parse_args()

# 1. Which column is what. Categories are looked up in tables, numbers are scaled; prices span orders of magnitude.
schema = ListSchema(
    items=[Categorical("item_id"), Categorical("category"), Dense("price", scale="log", missing="indicator")],
    label="click",
    position="rank",
    list_id="request",
    group="user",
    max_list_length=30,
)

# 2. Lists, split by user: no user of the test lists was seen in training.
lists = load_lists(options.lists, schema=schema)
print({split: len(rows) for split, rows in lists.items()})

# 3. Vocabularies and scales, learned from the training lists only.
processor = ListProcessor.from_lists(lists["train"], schema=schema)

# 4. A re-ranker. ``principled="scaled"`` makes it keep its own ranking, and be insensitive to swapping adjacent items.
set_seed(0)
model = PRMForReranking(PRMConfig.for_schema(processor.schema))
trainer = RerankTrainer(
    model=model,
    args=RerankTrainingArguments(
        options.output_dir,
        principled="scaled",
        num_train_epochs=options.epochs,
        per_device_train_batch_size=64,
        disable_tqdm=True,
    ),
    train_dataset=lists["train"],
    eval_dataset=lists["validation"],  # the epoch that ranks these best is kept
    processing_class=processor,
)
trainer.train()

# 5. Measured once on lists that nothing has seen, beside the order that your earlier ranker gave.
measured = trainer.evaluate(lists["test"], metric_key_prefix="test")
rows = evaluate_orders(processor, lists["test"])
rows["re-ranker"] = {name.removeprefix("test_"): value for name, value in measured.items()}
print(results_table(rows))

# 6. Saved, and pushed with its card and results. Only then is anything sent.
trainer.save_model(options.output_dir)
if options.repo_id:
    trainer.push_to_hub(options.repo_id, private=True)

# 7. What whoever serves it does: raw lists in, ordered items out.
reranker = Reranker.from_pretrained(options.repo_id or options.output_dir)
request = {"item_id": [3, 1, 2], "category": ["a", "b", "a"], "price": [9.5, None, 20.0]}
print(reranker.rerank([request], top_k=2))
