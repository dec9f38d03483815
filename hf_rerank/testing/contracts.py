"""The contracts of every re-ranker, as one function for the tests of models: ``check_reranker``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any

from hf_rerank.errors import InputError, suggestion
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.models.config import RerankerConfig
from hf_rerank.testing import lists, numbers, saving, soft_orders, training
from hf_rerank.testing.candidate import Candidate

Contract = Callable[[Candidate], None]


def _find_contracts(module: ModuleType) -> dict[str, Contract]:
    """The checks that a module defines: functions that take one ``Candidate``."""
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
        and inspect.signature(function).return_annotation == "None"
    }


# Name -> check of a Candidate, which raises an AssertionError.
CONTRACTS: dict[str, Contract] = {
    name: contract
    for module in (saving, training, lists, soft_orders, numbers)
    for name, contract in _find_contracts(module).items()
}
# These compile, and take several seconds each.
SLOW_CONTRACTS = ("compiled_equals_eager_with_other_objectives", "generated_code_equals_eager")


def check_reranker(
    model_class: type[PreTrainedReranker],
    config: RerankerConfig,
    *,
    items_alone: Mapping[str, Any] | None = None,
    skip: Collection[str] = (),
    slow: bool = False,
) -> None:
    """Checks that a re-ranker meets every contract that the library's own models meet.

    Among them: a saved model loads bit for bit; every parameter is trained; padding, the other lists of the batch and
    the order of slots do not change scores; ``position_input="none"`` makes scores independent of the given order;
    soft orders and their gradients; accumulated batches equal whole ones; all losses are finite on lists with one item
    or none; bf16; compilation.

    Models are built with dropout, dropped ids and earlier scores off, for lists of at most 8 items; the other options
    are those of ``config``. Use small sizes, and every kind of feature that the model reads, so that a feature that
    the model forgets is noticed. It takes about half a minute on one core.

    Args:
        model_class: The class to check.
        config: An instance of its config class, with its sizes.
        items_alone: Options of the config that leave only the items' terms in the task loss, for a model whose loss
            has others. None: it has no others.
        skip: Names in ``CONTRACTS`` that do not apply.
        slow: Whether to run ``SLOW_CONTRACTS`` too.

    Raises:
        AssertionError: A contract is broken; the message names it.
        InputError: The class or a name is wrong.

    Example:

    >>> def test_my_reranker():
    ...     check_reranker(MyReranker, MyConfig(item_vocab_sizes=[20, 20], num_item_dense=2, embedding_dim=4))
    """
    if not __debug__:
        raise InputError("python -O removes the assertions of these checks: run the tests without it")
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedReranker)):
        raise InputError(f"model_class is {model_class!r}: expected a subclass of PreTrainedReranker")
    if not isinstance(config, RerankerConfig):
        raise InputError(f"config is a {type(config).__name__}: expected an instance of the model's config class")
    for name in skip:
        if name not in CONTRACTS:
            raise InputError(f"there is no contract {name!r} to skip{suggestion(name, CONTRACTS)}")
    candidate = Candidate(model_class, config, items_alone or {})
    for name, contract in CONTRACTS.items():
        if name in skip or (name in SLOW_CONTRACTS and not slow):
            continue
        try:
            contract(candidate)
        except AssertionError as error:
            meaning = inspect.getdoc(contract) or ""
            raise AssertionError(
                f"{model_class.__name__} breaks the contract {name!r} ({meaning.splitlines()[0]}): {error}"
            ) from error
