"""Shards of prepared lists as datasets."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from hf_rerank.errors import InputError


def load_parquet(files: Sequence[Path], split: str, *, streaming: bool) -> Any:
    """Loads Parquet files with the same columns as one dataset, without network access.

    Raises:
        InputError: A file is missing or damaged.
    """
    dataset = datasets.IterableDataset if streaming else datasets.Dataset
    # A name such as lists[1].parquet is a pattern to datasets, and would match the file lists1.parquet.
    exact = [glob.escape(str(path)) for path in files]
    bars = not datasets.utils.are_progress_bars_disabled()
    try:
        datasets.utils.disable_progress_bars()
        return dataset.from_parquet(exact, split=datasets.NamedSplit(split))
    except (datasets.exceptions.DatasetGenerationError, FileNotFoundError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        names = ", ".join(str(path) for path in files[:3]) + (", ..." if len(files) > 3 else "")
        raise InputError(f"cannot read lists from {names}: {reason}") from error
    finally:
        if bars:
            datasets.utils.enable_progress_bars()
