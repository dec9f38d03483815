"""Run by torchrun: trains for two steps on this process's share of each batch, and records what it read.

Arguments: folder with ``model``, ``train`` and ``validation``; output folder; lists per step on each process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from tiny_world import perturbed_by

from hf_rerank import Reranker, RerankTrainer, RerankTrainingArguments
from hf_rerank.principled.orders import PERTURBATIONS, perturb_by_key, step_keys
from hf_rerank.processing.collator import decode_list_ids, hash_list_ids


class NotingTrainer(RerankTrainer):
    """Records the list ids of every step, and the orders that each kind of perturbation would give."""

    ids: list[list[str]]
    perturbed: dict[str, list[int]]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ids, step = decode_list_ids(inputs["list_id"]), self.state.global_step
        self.ids.append(ids)
        keys = step_keys(hash_list_ids(inputs["list_id"]), seed=self.principled_objective.seed, step=step)
        for kind in PERTURBATIONS:
            orders = perturb_by_key(inputs["position_ids"], inputs["mask"], keys, kind=kind, strength=2)
            for name, order, mask in zip(ids, orders, inputs["mask"], strict=True):
                self.perturbed[f"{kind}, step {step}, {name}"] = order[mask].tolist()
        return super().training_step(model, inputs, *args, **kwargs)


def main(source: Path, output: Path, batch_size: int) -> None:
    torch.set_num_threads(1)
    given = Reranker.from_pretrained(source / "model")
    trainer = NotingTrainer(
        model=given.model,
        args=RerankTrainingArguments(
            str(output / "run"),
            use_cpu=True,
            ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0,  # clipping would hide a wrongly scaled gradient
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=3,
            train_sampling_strategy="sequential",
            max_steps=2,
            logging_strategy="steps",
            logging_steps=2,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            disable_tqdm=True,
        ),
        train_dataset=datasets.load_from_disk(str(source / "train")),
        eval_dataset=datasets.load_from_disk(str(source / "validation")),
        processing_class=given.processor,
        objective=perturbed_by("score_noise", 1.5),
    )
    trainer.ids, trainer.perturbed = [], {}
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(str(output / "model"))
    times = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
    report = {
        "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "ids": trainer.ids,
        "perturbed": trainer.perturbed,
        "checksum": sum(float(value.double().sum()) for value in trainer.model.state_dict().values()),
        "metrics": {name: value for name, value in metrics.items() if name not in times},
        "log": next(entry for entry in trainer.state.log_history if "loss" in entry),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / f"rank{trainer.args.process_index}.json").write_text(json.dumps(report))
    if torch.distributed.is_initialized():
        # All output is written. gloo's threads occasionally abort a process that cleans up at its end, so skip that.
        torch.distributed.barrier()
        sys.stderr.flush()
        os._exit(0)
    trainer.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
