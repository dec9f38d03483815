"""Tiny models and lists for the model tests, with every kind of feature that a schema can contain."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradient_worker
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from two_processes import run_on_two

pytest.register_assert_rewrite("hf_rerank.testing")

from hf_rerank.models.auto import RERANKERS  # noqa: E402
from hf_rerank.testing.candidate import random_lists  # noqa: E402

# Options that make a model tiny: one entry per model, unless its defaults are small enough.
TINY: dict[str, dict[str, Any]] = {
    "dnn": {"hidden_sizes": [8]},
    "dlcm": {"hidden_size": 6, "input_size": 26},
    "midnn": {"hidden_sizes": [8]},
    "prm": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "hidden_dropout_prob": 0.0,
    },
    "setrank": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    "pear": {
        "feature_hidden_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "hidden_dropout_prob": 0.0,
    },
    "raise": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_mixtures": 2,
        "hidden_dropout_prob": 0.0,
    },
}
LISTS = {
    "item_vocab_sizes": [20, 20],
    "num_item_dense": 2,
    "item_vector_dim": 3,
    "user_vocab_sizes": [20],
    "num_user_dense": 1,
    "history_vocab_sizes": [20, 20],
    "history_shared_tables": [0, -1],
    "num_history_dense": 1,
    "max_list_length": 8,
    "max_history_length": 4,
    "embedding_dim": 4,
}


def tiny_config(name: str, **options: Any) -> Any:
    """No dropped ids; tables on the scale of the other features, so that an unread feature is noticed."""
    plain = {"unknown_rate": 0, "initializer_range": 0.5}
    return RERANKERS[name][0](**{**LISTS, **plain, **TINY.get(name, {}), **options})


def tiny_model(name: str, *, seed: int = 0, **options: Any) -> Any:
    """A model with random weights drawn from the seed, in evaluation mode."""
    torch.manual_seed(seed)
    return RERANKERS[name][1](tiny_config(name, **options)).eval()


def tiny_lists(lengths: tuple[int, ...] = (6, 4, 2, 5), *, width: int = 6, seed: int = 1) -> dict[str, Tensor]:
    """Random lists of these lengths in ``width`` slots, with every feature of ``LISTS``."""
    return random_lists(tiny_config("dnn"), lengths, width=width, seed=seed)


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """``tiny.config``, ``tiny.model``, ``tiny.lists``: the functions above."""
    return SimpleNamespace(config=tiny_config, model=tiny_model, lists=tiny_lists)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the gradients of all registered models, each on one batch shared by two processes."""
    folder = tmp_path_factory.mktemp("two_processes") / "models"
    folder.mkdir()
    save_file({**tiny_lists(), "list_keys": torch.arange(10, 14)}, folder / "lists.safetensors")
    for known in RERANKERS:
        tiny_model(known).save_pretrained(folder / known)
    run_on_two(gradient_worker.main, folder, folder=folder.parent, timeout=120)
    return folder
