"""Lists encoded once, and read as whole batches from memory-mapped files, so that training never waits for data.

The cache is a folder with one folder below it for each combination of lists, processor and options. Such a folder has
its name only when it is whole; it is found by a digest of all that its bytes depend on, so changed lists, another
vocabulary or another option are encoded anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from hf_rerank.errors import InputError
from hf_rerank.lists import tables_of
from hf_rerank.processing import FlatLists, ListProcessor
from hf_rerank.storage import naming_failures, sync, verify, write_manifest
from hf_rerank.training.batches import EncodedTable, ListEncoder
from hf_rerank.training.results import data_identity

logger = logging.getLogger(__name__)

# Raised when the same lists are encoded otherwise, so that no cache of an older version is read.
CACHE_VERSION = 1
ENCODING_BATCH = 2_048
UNFINISHED = ".unfinished"
REMEDY = "remove that folder: it is made again"


class CachedLists(Dataset):
    """The batches of ``EncodedLists``, equal to the bit, from a cache on disk.

    Args:
        folder: The cache; made if it is not there.
        lists: A ``datasets`` Dataset.
        processor: Encodes its lists.
        highest_label: Labels above are refused (1 under log-losses).
        truncate: Cut lists that are too long to their first places, instead of refusing them.

    Raises:
        InputError: A list is wrong, or the files of the cache are damaged.
        OSError: The cache could not be written; nothing half-written is left.
    """

    def __init__(
        self,
        folder: str | Path,
        lists: Any,
        processor: ListProcessor,
        *,
        highest_label: float = np.inf,
        truncate: bool = False,
    ) -> None:
        made_from = {
            "version": CACHE_VERSION,
            "lists": data_identity(lists, processor.schema),
            "schema": processor.schema.to_dict(),
            "highest_label": str(highest_label),
            "truncate": truncate,
        }
        self.folder = _folder_of(Path(folder), made_from, lists, ListEncoder(processor, highest_label, truncate))
        self._open(made_from)

    def __len__(self) -> int:
        return len(self._table)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The lists of these numbers as one batch."""
        return self._table.batch(indices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One list, as a batch of one."""
        return self.__getitems__([index])

    def __getstate__(self) -> dict[str, Any]:
        """For data-loader workers that are spawned: they map the files themselves."""
        return {"folder": self.folder, "made_from": self._made_from}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._open(state["made_from"], reads=lambda name: False)  # the parent has verified them

    def _open(self, made_from: dict[str, Any], reads: Callable[[str], bool] = lambda name: True) -> None:
        manifest = verify(self.folder, reads, REMEDY)
        if manifest is None or manifest.get("made_from") != made_from:
            raise InputError(f"{self.folder} does not hold what its name says: it was renamed or changed; {REMEDY}")
        self._made_from = made_from
        parts: dict[str, dict[str, np.ndarray]] = {"items": {}, "user": {}, "history": {}}
        for file, (dtype, shape) in manifest["arrays"].items():
            part, name = file.split(".")
            parts.setdefault(part, {})[name] = _mapped(self.folder / f"{file}.raw", dtype, shape)
        lengths = parts["lengths"]
        flat = FlatLists(lengths["items"], lengths.get("history"), parts["items"], parts["user"], parts["history"])
        self._table = EncodedTable(flat, parts["ids"]["bytes"], lengths["ids"])


def _mapped(path: Path, dtype: str, shape: list[int]) -> np.ndarray:
    if not np.prod(shape):  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=tuple(shape)))


def _kept(rows: np.ndarray) -> np.ndarray:
    """Integers in half the bytes, no table having 2**31 rows; ``EncodedTable`` gives them back in full."""
    return rows.astype(np.int32) if rows.dtype == np.int64 else rows


# ------------------------------------------------------------------------------------------------------------- writing


def _folder_of(cache: Path, made_from: dict[str, Any], lists: Any, encode: ListEncoder) -> Path:
    """The folder that holds lists encoded; made once, while others that want it wait."""
    from filelock import FileLock

    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    folder = cache / f"lists-{digest[:16]}"
    if folder.is_dir():  # whole; another user's may be read where one may not write
        return folder
    if cache.exists() and not cache.is_dir():
        raise InputError(f"encoded_cache {cache} is a file: expected a folder, which is made if it is not there")
    with contextlib.ExitStack() as held:
        with naming_failures(cache):
            cache.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(cache / f"{folder.name}.lock"))
        if not folder.is_dir():
            logger.warning("Encoding %s lists into %s, once.", f"{len(lists):,}", folder)
            unfinished = folder.with_name(folder.name + UNFINISHED)
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
            try:
                _write(unfinished, folder, made_from, lists, encode)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(unfinished: Path, folder: Path, made_from: dict[str, Any], lists: Any, encode: ListEncoder) -> None:
    from tqdm import tqdm

    files: dict[str, _ArrayFile] = {}
    number, needed = 0, None
    with contextlib.ExitStack() as opened, tqdm(total=len(lists), unit="list", delay=1, disable=None) as bar:
        for table in tables_of(lists, ENCODING_BATCH):
            flat, ids = encode.flat(table, range(number, number + table.num_rows))
            number += table.num_rows
            arrays = _arrays(flat, ids)
            if needed is None:
                needed = len(lists) * sum(array.nbytes for array in arrays.values()) // table.num_rows
            with naming_failures(folder, needed):
                unfinished.mkdir(exist_ok=True)
                for name, array in arrays.items():
                    if name not in files:
                        files[name] = opened.enter_context(_ArrayFile(unfinished / f"{name}.raw"))
                    files[name].write(array)
            bar.update(table.num_rows)
    with naming_failures(folder, needed):
        arrays_written = {name: [file.dtype, file.shape] for name, file in files.items()}
        write_manifest(unfinished, made_from=made_from, arrays=arrays_written)
        os.rename(unfinished, folder)
        sync(folder.parent)


def _arrays(flat: FlatLists, ids: list[str]) -> dict[str, np.ndarray]:
    """What is written of a batch, by the names of the files."""
    encoded = [text.encode() for text in ids]
    arrays = {
        "lengths.items": flat.lengths,
        "lengths.ids": np.array([len(text) for text in encoded], dtype=np.int64),
        "ids.bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
    }
    if flat.history_lengths is not None:
        arrays["lengths.history"] = flat.history_lengths
    for part, columns in (("items", flat.items), ("user", flat.user), ("history", flat.history)):
        arrays |= {f"{part}.{name}": rows for name, rows in columns.items()}
    return {name: _kept(array) for name, array in arrays.items()}


class _ArrayFile:
    """An array on disk that grows by rows."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb", buffering=0)
        self.dtype, self.shape = "", [0]

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, rows: np.ndarray) -> None:
        self.dtype, self.shape = rows.dtype.str, [self.shape[0] + len(rows), *rows.shape[1:]]
        # Not numpy's tofile, which says nothing if the disk is full.
        left = memoryview(rows.tobytes())
        while left:
            left = left[self.file.write(left) :]
