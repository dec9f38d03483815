"""Runs in one or two processes: evaluates and predicts 7 lists, as a dataset, from a cache and as a stream.

Arguments: folder with ``model`` and ``lists``; output folder; lists per batch on each process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import datasets
import torch

from hf_rerank import Reranker, RerankTrainer, RerankTrainingArguments

TIMES = ("runtime", "per_second", "time")


def main(source: Path, output: Path, batch_size: int) -> None:
    torch.set_num_threads(1)
    lists = datasets.load_from_disk(str(source / "lists"))
    given = Reranker.from_pretrained(source / "model")
    found = {}
    for name, form in (
        ("dataset", lists),
        ("cached", lists),
        ("stream", lists.to_iterable_dataset(num_shards=2)),
    ):
        trainer = RerankTrainer(
            model=given.model,
            args=RerankTrainingArguments(
                str(output / "run"),
                use_cpu=True,
                ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
                per_device_eval_batch_size=batch_size,
                encoded_cache=str(source / "cache") if name == "cached" else None,
                swaps="one",
                disable_tqdm=True,
            ),
            eval_dataset=form,
            processing_class=given.processor,
        )
        predicted = trainer.predict(form)
        metrics = trainer.evaluate()
        found[name] = {
            "metrics": {key: value for key, value in metrics.items() if not any(time in key for time in TIMES)},
            "scores": [
                [round(float(score), 5) for score, label in zip(*row, strict=True) if label >= 0]
                for row in zip(predicted.predictions[0], predicted.label_ids[0], strict=True)
            ],
        }
    output.mkdir(parents=True, exist_ok=True)
    (output / f"rank{trainer.args.process_index}.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        # As in two_process_worker: gloo's threads may abort a process that cleans up at its end.
        torch.distributed.barrier()
        sys.stderr.flush()
        os._exit(0)
