"""A re-ranker under test: random models and lists for its config, and helpers that the checks share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_rerank.errors import InputError
from hf_rerank.models.config import RerankerConfig
from hf_rerank.schema import MODEL_TENSORS, TENSORS

ATOL = 1e-6
WIDTH, HISTORY, LONGEST = 6, 3, 8
# Tensors of the lists made here whose second axis is the slots of a list.
_ROLES = ("feature", "position", "mask", "label")
OF_SLOTS = tuple(
    name
    for name in MODEL_TENSORS
    if TENSORS[name].axes[:2] == ("B", "L") and TENSORS[name].role in _ROLES and name != "initial_scores"
)
# Options that make checks exact and mistakes visible: no dropped ids, embeddings as large as the other features.
_PLAIN: dict[str, Any] = {
    "unknown_rate": 0,
    "initializer_range": 0.5,
    "initial_score": "none",
    "initial_score_positions": [],
    "task_loss": "binary_log_loss",
    "hidden_dropout_prob": 0.0,
    "max_list_length": LONGEST,
    "max_history_length": 4,
}


@dataclass(frozen=True)
class Candidate:
    """A model class with the config that it is checked with.

    Attributes:
        model_class: A subclass of ``PreTrainedReranker``.
        config: Config with its sizes; the options in ``_PLAIN`` replace its own.
        items_alone: Options that leave only the items' terms in the task loss.
    """

    model_class: type[Any]
    config: RerankerConfig
    items_alone: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config_class(self) -> type[RerankerConfig]:
        """The class of the config."""
        return type(self.config)

    def model(self, *, seed: int = 0, **options: Any) -> Any:
        """A model with random weights from this seed, in evaluation mode."""
        names = [entry.name for entry in fields(self.config_class)]
        inherited = {entry.name for entry in fields(PreTrainedConfig)}
        own = {name: getattr(self.config, name) for name in names if name not in inherited}
        plain = {name: value for name, value in _PLAIN.items() if name in own}
        torch.manual_seed(seed)
        return self.model_class(self.config_class(**{**own, **plain, **options})).eval()

    def lists(
        self, lengths: tuple[int, ...] = (6, 4, 2, 5), *, width: int = WIDTH, seed: int = 1
    ) -> dict[str, Tensor]:
        """Lists of these lengths in ``width`` slots."""
        return random_lists(self.config, lengths, width=width, seed=seed)

    @property
    def reads_order(self) -> bool:
        """Whether the model, as configured, reads the given order."""
        return self.config.position_input != "none"


def random_lists(
    config: RerankerConfig, lengths: tuple[int, ...], *, width: int = WIDTH, seed: int = 1
) -> dict[str, Tensor]:
    """Lists in a random initial order, with every feature that the config names, as a processor encodes them."""
    draw = torch.Generator().manual_seed(seed)
    lists = len(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    history_mask = torch.arange(HISTORY) < torch.randint(0, HISTORY + 1, (lists, 1), generator=draw)
    positions = torch.arange(width).repeat(lists, 1)
    for row, length in enumerate(lengths):
        positions[row, :length] = torch.randperm(length, generator=draw)
    clicks = torch.randint(0, 2, mask.shape, generator=draw).float()

    def ids(sizes: list[int], *shape: int) -> Tensor:
        return torch.randint(2, min(sizes, default=3), (*shape, len(sizes)), generator=draw)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    found = {
        "item_categorical": ids(config.item_vocab_sizes, lists, width) * mask[..., None],
        "item_dense": numbers(lists, width, config.num_item_dense) * mask[..., None],
        "item_vectors": numbers(lists, width, config.item_vector_dim) * mask[..., None],
        "user_categorical": ids(config.user_vocab_sizes, lists),
        "user_dense": numbers(lists, config.num_user_dense),
        "history_categorical": ids(config.history_vocab_sizes, lists, HISTORY) * history_mask[..., None],
        "history_dense": numbers(lists, HISTORY, config.num_history_dense) * history_mask[..., None],
    }
    found = {name: tensor for name, tensor in found.items() if tensor.shape[-1] or name == "item_categorical"}
    if "history_categorical" in found or "history_dense" in found:
        found["history_mask"] = history_mask
    return {**found, "mask": mask, "position_ids": positions, "labels": clicks.masked_fill(~mask, -100.0)}


def rows_of(lists: dict[str, Tensor], rows: Tensor, orders: Tensor) -> dict[str, Tensor]:
    """These rows of the lists, in these given orders."""
    return {column: values[rows] for column, values in lists.items()} | {"position_ids": orders}


def score_in_one_forward(model: Any, lists: dict[str, Tensor], *given: tuple[Tensor, ...]) -> list[Tensor]:
    """The logits of each ``score(orders)`` or ``score(orders, lists)``, all inside one forward."""
    found: list[Tensor] = []

    def objective(score: Any, position_ids: Tensor, labels: Tensor, mask: Tensor, task_loss: Any) -> dict[str, Tensor]:
        output = score(position_ids)
        found.extend(score(*one).logits for one in given)
        return {"loss": output.logits[mask].sum()}

    model(**lists, objective=objective)
    return found


def reverse_order(positions: Tensor, mask: Tensor) -> Tensor:
    """Reverses the real items: position p becomes n - 1 - p; padding stays."""
    return torch.where(mask, mask.sum(-1, keepdim=True) - 1 - positions, positions)


def gradients(model: Any) -> dict[str, Tensor]:
    """Copies of the gradients of all weights that have one; those of the model are cleared."""
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = ATOL) -> None:
    """Asserts that the same weights have gradients, and that these are equal."""
    assert found.keys() == expected.keys(), "other weights have gradients"
    for weight, gradient in expected.items():
        try:
            torch.testing.assert_close(found[weight], gradient, atol=atol, rtol=0)
        except AssertionError as error:
            raise AssertionError(f"{weight}: {error}") from None


def assert_near(found: float, expected: float, *, atol: float = ATOL, rtol: float = 0.0, about: str = "") -> None:
    """Asserts that two numbers are equal within the tolerance."""
    assert abs(found - expected) <= atol + rtol * abs(expected), f"{about or 'value'}: {found} instead of {expected}"


@contextmanager
def expect_refusal(pattern: str) -> Iterator[None]:
    """Asserts that the block raises an ``InputError`` whose message matches the pattern."""
    message = None
    try:
        yield
    except InputError as error:
        message = str(error)
    assert message is not None, f"no InputError that matches {pattern!r}"
    assert re.search(pattern, message), f"the message {message!r} does not match {pattern!r}"


def tolerances() -> dict[str, Any]:
    """Tolerances of ``torch.testing.assert_close``."""
    return {"atol": ATOL, "rtol": ATOL}
