"""Reads and changes folders of prepared lists in tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def table_of(folder: Path, split: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(f"{split}-*.parquet"))])


def changed(folder: Path, new: Path, change: Callable[[str, pa.Table], pa.Table]) -> Path:
    """A copy of a prepared folder with changed lists."""
    shutil.copytree(folder, new)
    for path in new.glob("*.parquet"):
        pq.write_table(change(path.name.partition("-")[0], pq.read_table(path)), path)
    return new


def with_column(table: pa.Table, name: str, change: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    number, field = table.column_names.index(name), table.schema.field(name)
    rows = [change(np.array(row)).tolist() for row in table.column(name).to_pylist()]
    return table.set_column(number, field, pa.array(rows, type=field.type))
