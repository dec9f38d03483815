"""The ground truth of simulated PRM Public lists: the files ``<raw file>.truth.parquet``, one row per line."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_rerank.data.prepared import read_footer
from hf_rerank.errors import InputError

# The user's earlier clicks, newest first, in the ground truth of simulated lists.
HISTORY_COLUMNS = {
    "history_item_id": pa.int64(),
    "history_item_1": pa.int64(),
    "history_item_3": pa.int64(),
    "history_basic_2": pa.float32(),
    "history_price_gap": pa.float32(),
    "history_minutes_ago": pa.int64(),
}


@dataclass(frozen=True)
class TruthHeader:
    """The contents of the files ``<raw file>.truth.parquet``. ``position=False``: there are none."""

    position: bool = False
    attraction: bool = False
    examination: tuple[float, ...] | None = None
    history: bool = False


def truth_file(raw_file: str | Path) -> Path:
    """The path of the ground truth of a raw file; the suffix ``.gz`` of the raw file is dropped."""
    return Path(f"{str(raw_file).removesuffix('.gz')}.truth.parquet")


def read_truth_header(files: Iterable[str | Path]) -> TruthHeader:
    """Reads the contents of the ground truth of all raw files.

    Raises:
        InputError: They differ, or a column is missing.
    """
    headers = {Path(path): _read_header(truth_file(path)) for path in files}
    first_path, first = next(iter(headers.items()))
    for path, header in headers.items():
        if header != first:
            raise InputError(
                f"{truth_file(path)} and {truth_file(first_path)} differ (one is missing, or their columns or "
                "examination differ): prepare raw files of one simulation together"
            )
    return first


def _read_header(path: Path) -> TruthHeader:
    if not path.is_file():
        return TruthHeader()
    read_footer(path)
    columns = pq.read_schema(path)
    history = any(name in columns.names for name in HISTORY_COLUMNS)
    for name in ("list_id", "initial_position", *(HISTORY_COLUMNS if history else ())):
        if name not in columns.names:
            raise InputError(f"{path} has no column {name!r} (it has {', '.join(columns.names)}): simulate it again")
    examination = (columns.metadata or {}).get(b"examination")
    curve = tuple(json.loads(examination)) if examination else None
    return TruthHeader(True, "attraction" in columns.names, curve, history)


class Truth:
    """The ground truth of one raw file; its rows are the lines, in order."""

    def __init__(self, raw_file: str) -> None:
        self.path = truth_file(raw_file)
        self.parquet = pq.ParquetFile(self.path)
        groups = [self.parquet.metadata.row_group(number).num_rows for number in range(self.parquet.num_row_groups)]
        self.ends = np.cumsum(groups)
        self.rows = int(self.ends[-1]) if groups else 0
        # Pieces end inside row groups: the last group is cached, so that each is read once.
        self._group = functools.lru_cache(maxsize=2)(self.parquet.read_row_group)

    def read_lines(self, first_line: int, list_ids: list[str]) -> pa.Table:
        """The rows of consecutive lines."""
        start, stop = first_line - 1, first_line - 1 + len(list_ids)
        if stop > self.rows:
            raise InputError(
                f"{self.path} has {self.rows:,} rows, but the raw file has at least {stop:,} lines: they belong to "
                "different simulations, or one was cut off"
            )
        groups = range(int(np.searchsorted(self.ends, start, "right")), int(np.searchsorted(self.ends, stop)) + 1)
        before = int(self.ends[groups[0]]) - self.parquet.metadata.row_group(groups[0]).num_rows
        table = pa.concat_tables([self._group(number) for number in groups]).slice(start - before, len(list_ids))
        found = table.column("list_id").to_pylist()
        if found != list_ids:
            row = next(row for row, (have, want) in enumerate(zip(found, list_ids, strict=True)) if have != want)
            raise InputError(
                f"row {first_line + row} of {self.path} is list {found[row]!r}, expected {list_ids[row]!r}: one row "
                "per line, in the order of the lines"
            )
        return table

    def check_end(self, lines: int) -> None:
        """Checks that there are as many rows as lines."""
        if lines != self.rows:
            raise InputError(
                f"{self.path} has {self.rows:,} rows, but the raw file only {lines:,} lines: it was cut off"
            )
