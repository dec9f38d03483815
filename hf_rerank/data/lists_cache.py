"""Folders of prepared lists in the cache of ``datasets``, each created once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets

from hf_rerank.storage import CannotWrite, hold_lock, sha256_of_json

# The built-in datasets.
NAMED_SOURCES = ("simulated_prm", "prm_public", "ad")
# Increased when the contents of prepared lists change, so that no cache of an older version is read.
CACHE_VERSION = 2


def cache_folder(name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """A folder of the cache, created by ``make`` if it does not exist; concurrent processes wait, and a failure leaves
    nothing.

    Args:
        name: Prefix of the folder's name.
        key: JSON values that the content depends on.
        make: ``folder -> None``: creates the folder.

    Raises:
        CannotWrite: The disk is full or not writable; the message says how to choose another folder.
    """
    digest = sha256_of_json({"version": CACHE_VERSION, **key})
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "hf_rerank"
    folder = cache / f"{name}-{digest[:16]}"
    try:
        with hold_lock(cache / f"{folder.name}.lock", str, wait=-1):
            if not folder.is_dir():
                make(folder)
    except CannotWrite as error:
        raise CannotWrite(f"{error}. To move the cache of datasets, set HF_DATASETS_CACHE") from error
    return folder
