"""Contracts of saving, loading and input."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_rerank.models import auto
from hf_rerank.testing.candidate import Candidate, expect_refusal


def loaders(candidate: Candidate) -> list[Any]:
    """The classes that load this model: its own, and the Auto classes if it is registered."""
    name = candidate.config_class.model_type.removeprefix("rerank_")
    registered = auto.RERANKERS.get(name) == (candidate.config_class, candidate.model_class)
    return [candidate.model_class, *([AutoModel, auto.AutoReranker] if registered else [])]


def load_equals_save_to_the_bit(candidate: Candidate) -> None:
    """A model is saved as config and weights; once loaded, it gives bitwise equal scores."""
    model, lists = candidate.model(), candidate.lists()
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        assert {path.name for path in Path(folder).iterdir()} == {"config.json", "model.safetensors"}
        for loader in loaders(candidate):
            loaded = loader.from_pretrained(folder)
            assert type(loaded) is candidate.model_class
            assert type(loaded.config) is candidate.config_class
            assert not loaded.training
            assert loaded.state_dict().keys() == model.state_dict().keys()
            for weight, value in model.state_dict().items():
                assert torch.equal(loaded.state_dict()[weight], value), weight
            assert torch.equal(loaded(**lists).logits, model(**lists).logits)


def weights_that_are_not_all_there(candidate: Candidate) -> None:
    """A weights file in which a weight is missing, renamed or of the wrong shape is refused."""
    for change, message in (("missing", "missing"), ("renamed", "missing"), ("cut", "shape")):
        with TemporaryDirectory() as folder:
            candidate.model().save_pretrained(folder)
            path = Path(folder) / "model.safetensors"
            weights = load_file(path)
            first = min(weights)
            value = weights.pop(first)
            if change != "missing":
                weights[first + "x" if change == "renamed" else first] = value[..., :-1].contiguous()
            save_file(weights, path, metadata={"format": "pt"})
            for loader in loaders(candidate):
                with expect_refusal(f"{message}.*{first}"):
                    loader.from_pretrained(folder)


def same_seed_same_weights(candidate: Candidate) -> None:
    """Weights depend on torch's seed alone."""
    first, again, other = (candidate.model(seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[weight], again[weight]) for weight in first)
    drawn = [weight for weight, value in first.items() if value.unique().numel() > 1]
    assert len(drawn) >= len(first) / 3
    assert not any(torch.equal(first[weight], other[weight]) for weight in drawn)


def input_of_another_processor(candidate: Candidate) -> None:
    """Missing features, or the wrong number of them, are refused."""
    lists, model, config = candidate.lists(), candidate.model(), candidate.config
    tables = len(config.item_vocab_sizes)
    if tables:
        with expect_refusal(f"{tables - 1} features.*{tables}"):
            model(**{**lists, "item_categorical": lists["item_categorical"][..., : tables - 1]})
    if "item_dense" in lists:
        with expect_refusal("numbers wide"):
            model(**{**lists, "item_dense": lists["item_dense"][..., :-1]})
    for name, message in (("item_vectors", "vector"), ("user_categorical", "user"), ("user_dense", "user")):
        if name in lists:
            with expect_refusal(message):
                model(**{**lists, name: None})


def longer_than_the_positions(candidate: Candidate) -> None:
    """A list with more slots than the model has positions is refused."""
    if candidate.reads_order:
        with expect_refusal(r"9 slots.*max_list_length=8"):
            candidate.model()(**candidate.lists((9, 2), width=9))
