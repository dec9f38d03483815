"""Runs in one or two processes: trains on a stream, resumes midway in a second run, and records what it read.

Arguments as for ``two_process_worker``. An epoch has 20 lists, a step 8 lists over all processes; checkpoints at each
step, an evaluation of 13 lists at the end of each epoch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from two_process_worker import NotingTrainer

from hf_rerank import InputError, Reranker, RerankTrainingArguments


def main(source: Path, output: Path, batch_size: int) -> None:
    torch.set_num_threads(1)

    def run(folder: Path, checkpoint: Path | None = None, workers: int = 0, shuffled: bool = False) -> NotingTrainer:
        given = Reranker.from_pretrained(source / "model")
        splits = {name: datasets.load_from_disk(str(source / name)) for name in ("train", "validation")}
        train = splits["train"].to_iterable_dataset(num_shards=3)
        trainer = NotingTrainer(
            model=given.model,
            args=RerankTrainingArguments(
                str(folder),
                use_cpu=True,
                ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
                optim="sgd",
                learning_rate=0.1,
                max_grad_norm=0,
                per_device_train_batch_size=batch_size,
                per_device_eval_batch_size=3,
                dataloader_num_workers=workers,
                max_steps=7,
                stream_window=6,
                save_strategy="steps",
                save_steps=1,
                save_total_limit=None,
                load_best_model_at_end=False,
                disable_tqdm=True,
            ),
            train_dataset=train.shuffle() if shuffled else train,
            eval_dataset=splits["validation"].to_iterable_dataset(num_shards=2),
            processing_class=given.processor,
        )
        trainer.ids, trainer.perturbed = [], {}
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return trainer

    whole = run(output / "run")
    again = run(output / "again", output / "run" / "checkpoint-4", workers=2)
    refused = ""
    try:
        run(output / "refused", shuffled=True)
    except InputError as error:
        refused = str(error)
    evaluations = [entry for entry in whole.state.log_history if "eval_lists" in entry]

    def checksum(trainer: Any) -> float:
        return sum(float(value.double().sum()) for value in trainer.model.state_dict().values())

    report = {
        "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "refused": refused,
        "ids": whole.ids,
        "again": again.ids,
        "checksums": [checksum(whole), checksum(again)],
        "evaluated": [[entry["step"], entry["eval_lists"], entry["eval_items"]] for entry in evaluations],
        "ndcg": [entry["eval_ndcg@5"] for entry in evaluations],
        "obedience": [entry["eval_p1_obedience"] for entry in evaluations],
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / f"rank{whole.args.process_index}.json").write_text(json.dumps(report))
    if torch.distributed.is_initialized():
        # As in two_process_worker: gloo's threads may abort a process that cleans up at its end.
        torch.distributed.barrier()
        sys.stderr.flush()
        os._exit(0)
