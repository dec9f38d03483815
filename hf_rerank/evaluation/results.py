"""The record of a run as JSON: enough to identify and to repeat it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.schema import ListSchema
from hf_rerank.validation import columns_of, tables_of

PACKAGES = ("hf-rerank", "torch", "transformers", "datasets", "accelerate", "numpy", "pyarrow")
_DIGEST_BATCH, _DIGEST_HEAD = 10_000, 1_000


def describe_environment() -> dict[str, Any]:
    """Describes the machine and the versions of packages."""
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


def describe_training(model: Any, processor: Any, args: Any, *, train: Any, validation: Any) -> dict[str, Any]:
    """Describes a training before it begins, as plain JSON values.

    Args:
        model: The re-ranker.
        processor: Its ``ListProcessor``.
        args: The training arguments.
        train: The raw training lists, or None.
        validation: The raw evaluation lists, or a dict of them by name, or None.
    """
    schema = processor.schema
    named = {f"eval_{name}": lists for name, lists in validation.items()} if isinstance(validation, dict) else None
    splits = {"train": train, **({"validation": validation} if named is None else named)}
    return {
        "model": model.config.to_dict(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_arguments": args.to_dict(),
        "task_loss": model.config.task_loss_name,
        "schema": schema.to_dict(),
        "processor": processor.fit_report,
        "text_columns": [name for name, table in processor.vocabularies.items() if getattr(table, "is_text", False)],
        "data": {name: data_identity(lists, schema) for name, lists in splits.items() if lists is not None},
        "environment": describe_environment(),
    }


def data_identity(lists: Any, schema: ListSchema) -> dict[str, Any]:
    """Identifies lists by their number and a SHA-256 over the columns that the schema names, in order.

    A stream, whose length is unknown, is identified by the number of shards and a SHA-256 of its first lists.
    """
    if not hasattr(lists, "__len__"):
        first = next(iter(tables_of(lists, _DIGEST_HEAD)), None)
        digest = None if first is None else table_sha256([first], schema)
        return {"lists": None, "shards": lists.num_shards, "first_lists_sha256": digest}
    wanted = lists.select_columns([name for name in columns_of(schema) if name in lists.column_names])
    return {"lists": len(lists), "sha256": table_sha256(tables_of(wanted, _DIGEST_BATCH), schema)}


def table_sha256(tables: Iterable[pa.Table], schema: ListSchema) -> str:
    """Computes a SHA-256 over the columns that the schema names, in the order of the lists."""
    digest = hashlib.sha256()
    for table in tables:
        for name in columns_of(schema):
            if name in table.column_names:
                digest.update(name.encode())
                _add(digest, table.column(name).combine_chunks())
    return digest.hexdigest()


def _add(digest: Any, column: pa.Array) -> None:
    """Adds type, length, nulls and values of a column; independent of how arrow chunks or pads them in memory."""
    kind = column.type
    digest.update(f"{kind} {len(column)} {column.null_count}".encode())
    if column.null_count:
        digest.update(column.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        digest.update(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False))
        _add(digest, column.flatten())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        digest.update(np.ascontiguousarray(column.fill_null(0).to_numpy(zero_copy_only=False)))
    elif (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and len(column):
        digest.update(pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False))
        text = column.fill_null("").cast(pa.large_string())
        _, offsets, letters = text.buffers()
        starts = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
        digest.update(memoryview(letters or b"")[starts[0] : starts[-1]])
    else:
        digest.update(json.dumps(column.to_pylist(), default=str).encode())
