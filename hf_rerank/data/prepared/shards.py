"""Writes Parquet shards: lists in row groups of equal size."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Lists per row group, which a reader holds in memory.
GROUP_LISTS = 4_096


class ShardWriter:
    """Writes one Parquet file; lists are held in memory until they fill a row group.

    Args:
        path: The file.
        columns: The columns of the lists.
    """

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self.columns = columns
        self._pending: list[pa.Table] = []
        self._parquet = pq.ParquetWriter(
            path, columns, compression="zstd", compression_level=1, use_dictionary=_choose_dictionary_columns(columns)
        )

    def write(self, lists: pa.Table) -> None:
        """Adds lists."""
        self._pending.append(lists)
        if sum(waiting.num_rows for waiting in self._pending) >= GROUP_LISTS:
            waiting = pa.concat_tables(self._pending)
            full = waiting.num_rows - waiting.num_rows % GROUP_LISTS
            for start in range(0, full, GROUP_LISTS):
                self._parquet.write_table(waiting.slice(start, GROUP_LISTS).combine_chunks())
            self._pending = [waiting.slice(full)]

    def close(self) -> None:
        """Writes the last lists and finishes the file."""
        waiting = pa.concat_tables([self.columns.empty_table(), *self._pending])
        if waiting.num_rows:
            self._parquet.write_table(waiting.combine_chunks())
        self._parquet.close()

    def abandon(self) -> None:
        """Closes the file without finishing it."""
        with contextlib.suppress(OSError):  # the error in progress is the one to report
            self._parquet.close()


def _choose_dictionary_columns(columns: pa.Schema) -> list[str]:
    """Parquet paths of the columns to dictionary-encode: all but floats, which rarely repeat and would take twice the
    time and space."""
    paths = []
    for column in columns:
        is_list = pa.types.is_list(column.type)
        if not pa.types.is_floating(column.type.value_type if is_list else column.type):
            paths.append(f"{column.name}.list.element" if is_list else column.name)
    return paths
