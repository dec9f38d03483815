"""Folders of prepared lists in the cache of ``datasets``, each made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets

from hf_rerank.storage import CannotWrite, hold_lock, sha256_of_json

# The datasets that have a name.
NAMED_SOURCES = ("simulated_prm", "prm_public", "ad")
# Raised when prepared lists come out differently, so that no cache of an older version is read.
CACHE_VERSION = 2


def cache_folder(name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made once: whoever comes meanwhile waits; what fails leaves nothing.

    Raises:
        CannotWrite: The disk is full, or refuses to be written; says how to choose another.
    """
    digest = sha256_of_json({"version": CACHE_VERSION, **key})
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "hf_rerank"
    folder = cache / f"{name}-{digest[:16]}"
    try:
        with hold_lock(cache / f"{folder.name}.lock", str, wait=-1):
            if not folder.is_dir():
                make(folder)
    except CannotWrite as error:
        raise CannotWrite(f"{error}. It is the cache of datasets: HF_DATASETS_CACHE names another folder") from error
    return folder
