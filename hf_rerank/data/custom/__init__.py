"""A user's own lists, in every format they come in: see README.md in this folder."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Public name -> its module, which is imported when the name is used: some modules take a second to import.
_MODULES = {
    "InferredSchema": "inferred_schema",
    "ReadOptions": "options",
    "find_list_files": "files",
    "infer_schema": "inference",
    "prepare_own": "prepare",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
