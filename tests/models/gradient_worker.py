"""One of several processes that share a batch: writes its final gradients.

Each folder in the given one contains a saved model; next to them is the batch, ``lists.safetensors``. Each process
takes its share of the lists, trains in float64 and writes ``PRESET-RANK.safetensors`` next to the model for each
preset: the gradients, the number of processes and the loss of its share.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from hf_rerank import AutoReranker, PreTrainedReranker
from hf_rerank.principled import PRESETS


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, processes = dist.get_rank(), dist.get_world_size()
    lists = {name: part.chunk(processes)[rank] for name, part in load_file(folder / "lists.safetensors").items()}
    keys = lists.pop("list_keys")
    for saved in sorted(path for path in folder.iterdir() if path.is_dir()):
        model = AutoReranker.from_pretrained(saved).double().train()
        for preset, objective in PRESETS.items():
            loss = parallel_step(model, lists, objective.at(step=3, list_keys=keys))
            gradients = {name: weight.grad for name, weight in model.named_parameters()}
            gradients |= {"loss": loss, "processes": torch.tensor(processes)}
            save_file(gradients, saved / f"{preset}-{rank}.safetensors")
            model.zero_grad()
    dist.barrier()
    dist.destroy_process_group()


def parallel_step(
    model: PreTrainedReranker, lists: dict[str, torch.Tensor], objective: Callable[..., Any]
) -> torch.Tensor:
    """Forward and backward, all passes in one call."""
    # The wrapper must outlive the backward pass but be deleted before its process group: otherwise the exit hangs.
    parallel = DistributedDataParallel(model)
    loss = parallel(**lists, objective=objective).loss
    loss.backward()
    return loss.detach()
