"""A cache of encoded lists: encoded once, read in batches from memory-mapped files.

The cache is a folder with a subfolder for each combination of lists, processor and options. A subfolder gets its name
only when it is complete; the name contains a digest of everything that its bytes depend on, so changed lists, another
vocabulary or another option are encoded again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from hf_rerank.errors import InputError
from hf_rerank.evaluation.results import data_identity
from hf_rerank.processing.collator import RerankCollator
from hf_rerank.processing.ragged import RaggedLists
from hf_rerank.storage import hold_lock, name_failures, sha256_of_json, verify, write_atomically, write_manifest
from hf_rerank.validation import tables_of

logger = logging.getLogger(__name__)

# Increased when the encoding changes, so that no cache of an older version is read.
CACHE_VERSION = 3
ENCODING_BATCH = 2_048
REMEDY = "remove that folder: it will be rebuilt"


class CachedLists(Dataset):
    """The batches of ``EncodedLists``, bitwise equal, from a cache on disk.

    Args:
        folder: Folder of the cache; created if it does not exist.
        lists: A ``datasets`` Dataset.
        collator: Encodes its lists.

    Raises:
        InputError: A list is invalid, or the files of the cache are damaged.
        OSError: The cache could not be written; nothing half-written is left.
    """

    def __init__(self, folder: str | Path, lists: Any, collator: RerankCollator) -> None:
        schema = collator.processor.schema
        made_from = {
            "version": CACHE_VERSION,
            "lists": data_identity(lists, schema),
            "schema": schema.to_dict(),
            "highest_label": str(collator.highest_label),
            "truncate": collator.truncate,
        }
        self.folder = _find_or_make(Path(folder), made_from, lists, collator)
        self._open(made_from)

    def __len__(self) -> int:
        return len(self._lists)

    def __getitems__(self, indices: Sequence[int]) -> RaggedLists:
        """The lists with these numbers."""
        return self._lists.take(indices)

    def __getitem__(self, index: int) -> RaggedLists:
        return self.__getitems__([index])

    def __getstate__(self) -> dict[str, Any]:
        """State for spawned data-loader workers, which map the files themselves."""
        return {"folder": self.folder, "made_from": self._made_from}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._open(state["made_from"], reads=lambda name: False)  # the parent has verified them

    def _open(self, made_from: dict[str, Any], reads: Callable[[str], bool] = lambda name: True) -> None:
        manifest = verify(self.folder, reads, REMEDY)
        if manifest is None or manifest.get("made_from") != made_from:
            raise InputError(f"{self.folder} does not match its name: it was renamed or changed; {REMEDY}")
        self._made_from = made_from
        parts: dict[str, dict[str, np.ndarray]] = {"lengths": {}, "rows": {}}
        for file, (dtype, shape) in manifest["arrays"].items():
            part, name = file.split(".")
            parts[part][name] = _map_file(self.folder / f"{file}.raw", dtype, shape)
        self._lists = RaggedLists(parts["lengths"], parts["rows"])


def _map_file(path: Path, dtype: str, shape: list[int]) -> np.ndarray:
    if not np.prod(shape):  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=tuple(shape)))


# ------------------------------------------------------------------------------------------------------------- writing


def _find_or_make(cache: Path, made_from: dict[str, Any], lists: Any, collator: RerankCollator) -> Path:
    """Finds the folder of the encoded lists, or creates it while other processes that need it wait."""
    folder = cache / f"lists-{sha256_of_json(made_from)[:16]}"
    if folder.is_dir():  # complete; may be another user's, readable but not writable
        return folder
    if cache.exists() and not cache.is_dir():
        raise InputError(f"encoded_cache {cache} is a file: expected a folder, which is created if it does not exist")
    with hold_lock(cache / f"{folder.name}.lock", str, wait=-1):
        if not folder.is_dir():
            logger.warning("Encoding %s lists into %s, once.", f"{len(lists):,}", folder)
            with write_atomically(folder) as unfinished:
                _write(unfinished, folder, made_from, lists, collator)
    return folder


def _write(unfinished: Path, folder: Path, made_from: dict[str, Any], lists: Any, collator: RerankCollator) -> None:
    from tqdm import tqdm

    files: dict[str, _ArrayFile] = {}
    number, needed = 0, None
    with contextlib.ExitStack() as opened, tqdm(total=len(lists), unit="list", delay=1, disable=None) as bar:
        for table in tables_of(lists, ENCODING_BATCH):
            arrays = _collect_arrays(collator.encode(table, number))
            number += table.num_rows
            if needed is None:
                needed = len(lists) * sum(array.nbytes for array in arrays.values()) // table.num_rows
            with name_failures(folder, needed):
                unfinished.mkdir(exist_ok=True)
                for name, array in arrays.items():
                    if name not in files:
                        files[name] = opened.enter_context(_ArrayFile(unfinished / f"{name}.raw"))
                    files[name].write(array)
            bar.update(table.num_rows)
    with name_failures(folder, needed):
        arrays_written = {name: [file.dtype, file.shape] for name, file in files.items()}
        write_manifest(unfinished, made_from=made_from, arrays=arrays_written)


def _collect_arrays(lists: RaggedLists) -> dict[str, np.ndarray]:
    """Collects the arrays of a batch by file name; integers become int32, which suffices for table rows."""
    named = {f"lengths.{axis}": array for axis, array in lists.lengths.items()}
    named |= {f"rows.{name}": array for name, array in lists.rows.items()}
    return {name: array.astype(np.int32) if array.dtype == np.int64 else array for name, array in named.items()}


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
        # Not numpy's tofile, which ignores a full disk.
        left = memoryview(rows.tobytes())
        while left:
            left = left[self.file.write(left) :]
