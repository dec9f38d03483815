"""A tiny world of ragged lists: items differ in attraction, places in examination, and the initial order is random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from hf_rerank import (
    Categorical,
    Dense,
    ListProcessor,
    ListSchema,
    PRMConfig,
    PRMForReranking,
    RerankTrainer,
    RerankTrainingArguments,
)

ITEMS = 20
LONGEST = 8
SCHEMA = ListSchema(
    items=[Categorical("item_id"), Dense("price", scale="log")],
    user=[Categorical("gender")],
    position="position",
    list_id="list_id",
    attraction="attraction",
    examination=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
    max_list_length=LONGEST,
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Sums in one order, so that runs can be equal to the bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_lists() -> Callable[..., datasets.Dataset]:
    def make(count: int, seed: int) -> datasets.Dataset:
        random = np.random.default_rng(seed)
        assert SCHEMA.examination is not None
        rows = []
        for number in range(count):
            length = int(random.integers(3, LONGEST + 1))
            items = random.choice(ITEMS, length, replace=False)
            positions = random.permutation(length)
            attraction = 0.05 + 0.9 * items / (ITEMS - 1)
            examined = np.array(SCHEMA.examination)[positions]
            rows.append(
                {
                    "list_id": f"list-{seed}-{number}",
                    "item_id": items.tolist(),
                    "price": random.lognormal(size=length).tolist(),
                    "gender": int(random.integers(2)),
                    "position": positions.tolist(),
                    "attraction": attraction.tolist(),
                    "click": (random.random(length) < attraction * examined).astype(int).tolist(),
                }
            )
        return datasets.Dataset.from_list(rows)

    return make


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
        torch.manual_seed(seed)
        sizes = {"d_model": 8, "num_blocks": 1, "inner_width": 8, "embedding_dim": 4}
        return PRMForReranking(PRMConfig.for_schema(processor.schema, **{**sizes, **options}))

    return make


@pytest.fixture
def make_trainer(
    tmp_path: Path,
    lists: dict[str, datasets.Dataset],
    processor: ListProcessor,
    make_model: Callable[..., PRMForReranking],
) -> Callable[..., RerankTrainer]:
    """A trainer on the tiny world. Its options are those of the arguments, beside those named here."""

    def make(
        model: PRMForReranking | None = None,
        folder: str = "run",
        train_dataset: Any = None,
        eval_dataset: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
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
        return RerankTrainer(
            model=make_model() if model is None else model,
            args=RerankTrainingArguments(str(tmp_path / folder), **{**defaults, **options}),
            train_dataset=lists["train"] if train_dataset is None else train_dataset,
            eval_dataset=lists["validation"] if eval_dataset is None else eval_dataset,
            processing_class=processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    return make


@pytest.fixture(scope="session")
def weights() -> Callable[[Any], dict[str, torch.Tensor]]:
    """A copy of the weights of a model."""
    return lambda model: {name: value.detach().clone() for name, value in model.state_dict().items()}
