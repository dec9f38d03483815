"""Hostile and damaged inputs, drawn at random, and a judgement of how the library handles each.

A kind of input is a class: ``Kind(folder)`` prepares undamaged material in an empty folder, ``try_one(draw)`` damages
it in one way and returns ``(kind of damage, outcome)``. The outcome is ``correct``, ``rejected``, or a text that
describes a failure, which must never happen. ``scripts/fuzz.py`` runs many, ``tests/test_fuzzing.py`` a few.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

# Name of the kind -> module and class. Add a kind as a row here.
KINDS = {
    "rows": ("fuzzing.rows", "Rows"),
    "rank files": ("fuzzing.rank_files", "RankFiles"),
    "model folders": ("fuzzing.model_folders", "ModelFolders"),
    "ONNX folders": ("fuzzing.onnx_folders", "OnnxFolders"),
}


def make_kind(name: str, folder: Path) -> Any:
    """Creates the kind of that name, with its material in an empty folder."""
    module, kind = KINDS[name]
    return getattr(importlib.import_module(module), kind)(folder)
