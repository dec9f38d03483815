"""Trainers on the tiny lists of ``tiny_world``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import kill_worker
import pytest
import torch
from tiny_world import SCHEMA, tiny_lists, tiny_model

from hf_rerank import ListProcessor, PRMForReranking, RerankTrainer, RerankTrainingArguments


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Makes sums deterministic, so that runs can be compared bit for bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_lists() -> Callable[..., datasets.Dataset]:
    return tiny_lists


@pytest.fixture(scope="session")
def lists(make_lists: Callable[..., datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """240 lists to train on, 50 to evaluate on."""
    return {"train": make_lists(240, 1), "validation": make_lists(50, 2)}


@pytest.fixture(scope="session")
def processor(lists: dict[str, datasets.Dataset]) -> ListProcessor:
    return ListProcessor.from_lists(lists["train"], schema=SCHEMA)


@pytest.fixture(scope="session")
def make_model(processor: ListProcessor) -> Callable[..., PRMForReranking]:
    def make(seed: int = 0, **options: Any) -> PRMForReranking:
        return tiny_model("prm", processor.schema, seed, **{"num_attention_heads": 1, **options})

    return make


@pytest.fixture
def make_trainer(
    tmp_path: Path,
    lists: dict[str, datasets.Dataset],
    processor: ListProcessor,
    make_model: Callable[..., PRMForReranking],
) -> Callable[..., RerankTrainer]:
    """A trainer on the tiny lists. Options are training arguments, except those that only the trainer takes."""

    def make(
        model: PRMForReranking | None = None,
        folder: str = "run",
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **options: Any,
    ) -> RerankTrainer:
        defaults = {
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 32,
            "num_train_epochs": 1,
            "learning_rate": 0.02,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        trainer_class = options.pop("trainer_class", RerankTrainer)
        of_the_trainer = ("objective", "compute_loss_func", "compute_metrics", "callbacks", "optimizers")
        others = {name: options.pop(name) for name in of_the_trainer if name in options}
        return trainer_class(
            model=make_model() if model is None else model,
            args=RerankTrainingArguments(str(tmp_path / folder), **{**defaults, **options}),
            train_dataset=lists["train"] if train_dataset is None else train_dataset,
            eval_dataset=lists["validation"] if eval_dataset is None else eval_dataset,
            processing_class=processor,
            **others,
        )

    return make


@pytest.fixture(scope="session")
def weights() -> Callable[[Any], dict[str, torch.Tensor]]:
    """A copy of the weights of a model."""
    return lambda model: {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted ``kill_worker`` training with checkpoints of all 10 steps; its outcome next to it."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    kill_worker.train(folder, kill_worker.EVERY_STEP, folder.with_name("outcome.json"))
    return folder
