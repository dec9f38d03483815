"""Partitions rows by a key into buckets on the disk that fit in memory, for files larger than memory that are read
once.

Whenever enough rows are in memory, they are written as one file, a run: an Arrow file with one record batch per
bucket. A bucket is read from all runs in order, so that its rows keep their order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from hf_rerank.storage import name_failures

RUN_BYTES = 64 * 2**20
MAX_BUCKETS = 4_096


def assign_buckets(keys: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each key, an integer: the high bits of a product (Knuth), as ids may all be even or evenly spaced.

    Args:
        keys: Unsigned integers [N].
        buckets: Number of buckets.

    Returns:
        uint16 [N]."""
    scattered = keys.astype(np.uint64) * 2_654_435_761 & 0xFFFFFFFF
    return (scattered * buckets >> 32).astype(np.uint16)


class BucketWriter:
    """Writes rows into runs ``NAME-00000.arrow``, ``NAME-00001.arrow``, ...

    Args:
        folder: Folder of the runs.
        name: Prefix of their names.
        buckets: Number of buckets.
        key: Column of unsigned integers; rows of one key are in one bucket.
        run_bytes: Bytes in memory after which a run is written.
    """

    def __init__(self, folder: Path, name: str, buckets: int, key: str, run_bytes: int = RUN_BYTES) -> None:
        self.folder, self.name, self.buckets, self.key, self.run_bytes = folder, name, buckets, key, run_bytes
        self.waiting: list[pl.DataFrame] = []
        self.waiting_bytes = 0
        self.paths: list[Path] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Adds rows."""
        self.waiting.append(rows)
        self.waiting_bytes += int(rows.estimated_size())
        if self.waiting_bytes >= self.run_bytes:
            self._write_run()

    def close(self) -> list[Path]:
        """Writes the remaining rows; returns the runs."""
        if self.waiting:
            self._write_run()
        return self.paths

    def _write_run(self) -> None:
        rows = pl.concat(self.waiting)
        self.waiting, self.waiting_bytes = [], 0
        buckets = assign_buckets(rows[self.key].to_numpy(), self.buckets)
        rows = rows[np.argsort(buckets, kind="stable")]
        ends = np.cumsum(np.bincount(buckets, minlength=self.buckets))
        # Ordinary text columns: slices of newer string types would hold the text of the whole run.
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
        columns = [column.chunk(0) for column in table.columns]
        path = self.folder / f"{self.name}-{len(self.paths):05d}.arrow"
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with (
            name_failures(path, table.nbytes),
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, table.schema, options=options) as writer,
        ):
            for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
                slices = [column.slice(start, end - start) for column in columns]
                writer.write_batch(pa.RecordBatch.from_arrays(slices, schema=table.schema))
        self.paths.append(path)


def read_bucket(runs: list[Path], bucket: int) -> pl.DataFrame:
    """The rows of one bucket, in the order in which they were added."""
    batches = []
    for path in runs:
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            batches.append(reader.get_batch(bucket))
    frame = pl.from_arrow(pa.Table.from_batches(batches))
    assert isinstance(frame, pl.DataFrame)
    return frame
