"""Freezing: parameters that training leaves unchanged."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from hf_rerank.errors import InputError, suggestion
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.models.embeddings import FeatureTables

GROUPS = ("tables", "encoder", "output")


def freeze(model: PreTrainedReranker, *what: str) -> list[str]:
    """Freezes parameters: their ``requires_grad`` becomes False.

    This is not saved with the model. With frozen tables, new values keep the copy of the unknown value's row that
    ``adapt`` gave them.

    Args:
        model: The model, before its trainer is created.
        what: ``"tables"`` (embedding tables of features), ``"output"`` (the layers with one output), ``"encoder"``
            (all others: position tables and a position tower too); or a module (``"blocks.0"``), a parameter, a
            pattern (``"*.bias"``).

    Returns:
        The names of all parameters that are now frozen.

    Raises:
        InputError: A name matches nothing, no name is given, or nothing is left to train; the model is then unchanged.
    """
    if not isinstance(model, PreTrainedReranker):
        raise InputError(f"expected a re-ranker such as reranker.model, got {type(model).__name__}")
    if not what or not all(isinstance(name, str) for name in what):
        raise InputError(f"expected names to freeze as separate arguments, such as 'tables', 'output'; got {what!r}")
    groups = _groups(model)
    chosen: set[str] = set()
    for name in what:
        found = groups.get(name) or {
            parameter
            for parameter, _ in model.named_parameters()
            if fnmatchcase(parameter, name) or parameter.startswith(f"{name}.")
        }
        if not found:
            known = sorted({*GROUPS, *(module for module, _ in model.named_modules() if module)})
            raise InputError(
                f"nothing to freeze is called {name!r}{suggestion(name, known)}: expected {', '.join(GROUPS)}, or a "
                f"module, parameter or pattern such as {next(iter(sorted(groups['encoder'])), '*.bias')!r}"
            )
        chosen |= found
    left = [name for name, value in model.named_parameters() if value.requires_grad and name not in chosen]
    if not left:
        raise InputError(f"{', '.join(what)}: with these frozen nothing is left to train; freeze less")
    for name, value in model.named_parameters():
        if name in chosen:
            value.requires_grad_(False)
    return [name for name, value in model.named_parameters() if not value.requires_grad]


def _groups(model: PreTrainedReranker) -> dict[str, set[str]]:
    """Collects the parameters of each of ``GROUPS``; every parameter is in one."""
    groups: dict[str, set[str]] = {name: set() for name in GROUPS}
    for prefix, module in model.named_modules():
        if isinstance(module, FeatureTables):
            groups["tables"] |= {f"{prefix}.{name}" for name, _ in module.named_parameters()}
        elif isinstance(module, nn.Linear) and module.out_features == 1:
            groups["output"] |= {f"{prefix}.{name}" for name, _ in module.named_parameters()}
    groups["encoder"] = {name for name, _ in model.named_parameters()} - groups["tables"] - groups["output"]
    return groups
