"""What a run leaves behind as plain JSON: enough to repeat it, and to know what it was."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_rerank.lists import tables_of
from hf_rerank.schema import ListSchema

PACKAGES = ("hf-rerank", "torch", "transformers", "datasets", "accelerate", "numpy", "pyarrow")


def environment() -> dict[str, Any]:
    """Versions and machine."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": device,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def data_identity(lists: Any, schema: ListSchema) -> dict[str, Any]:
    """How many lists, and a SHA-256 over their ids (else their numbers) and labels; of a stream nothing."""
    if not hasattr(lists, "__len__"):
        return {"lists": None, "sha256": None}
    digest = hashlib.sha256()
    columns = [name for name in (schema.list_id, schema.label) if name in lists.column_names]
    for table in tables_of(lists.select_columns(columns), 10_000) if columns else ():
        for column in columns:
            digest.update(json.dumps(table.column(column).to_pylist()).encode())
    return {"lists": len(lists), "sha256": digest.hexdigest()}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON under another name and renames it, so that a reader never sees half a file; NaN becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_plain(values), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
