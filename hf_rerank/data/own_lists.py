"""Own lists as datasets: from files or objects of ``datasets``, and their splits."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_rerank.data.named import NAMED_SOURCES
from hf_rerank.data.prepared import SCHEMA_FILE, read_footer
from hf_rerank.data.splits import SPLITS, split_of
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import ListSchema

QUIET_BYTES = 64 * 2**20


def datasets_of_files(kind: str, files: Sequence[Path], split: str, streaming: bool) -> Any:
    """One dataset over Parquet or JSON files, by the readers of ``datasets`` that never ask the network."""
    dataset = datasets.IterableDataset if streaming else datasets.Dataset
    read = dataset.from_parquet if kind == "parquet" else dataset.from_json
    try:
        with _quiet(sum(path.stat().st_size for path in files) < QUIET_BYTES):
            lists = read([str(path) for path in files], split=datasets.NamedSplit(split))
            if streaming and kind == "json":
                next(iter(lists), None)  # so that a file that is no JSON is named here, not in the middle of training
            return lists
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        names = ", ".join(str(path) for path in files[:3]) + (", ..." if len(files) > 3 else "")
        where = next(filter(None, map(_damage_of_json, files)), None) if kind == "json" else None
        raise InputError(where or f"cannot read lists from {names}: {reason}") from error


def _damage_of_json(path: Path) -> str | None:
    """Names the first line that is no JSON object, None where all are."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file if path.suffix == ".jsonl" else [file.read()], start=1):
            try:
                json.loads(line or "null")
            except ValueError as error:
                at = error.lineno if isinstance(error, json.JSONDecodeError) and path.suffix == ".json" else number
                return f"cannot read lists from {path}, line {at}: {error}; expected one JSON object a list"
    return None


@contextlib.contextmanager
def _quiet(quick: bool) -> Iterator[None]:
    """No progress bars of ``datasets`` for what takes less than about a second."""
    if not quick or datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        datasets.utils.enable_progress_bars()


def read_files(path: Path, streaming: bool, *, has_schema: bool) -> Any:
    """A dataset from own files, or a dictionary of them where the files are named after splits."""
    kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in kinds and not file.name.startswith("."))
        if not files:
            raise InputError(
                f"{path} holds no lists: expected .parquet, .jsonl or .json files, or a folder of prepared lists with "
                f"{SCHEMA_FILE}"
            )
    elif path.is_file():
        if path.suffix not in kinds:
            raise InputError(f"{path} is no list file: expected .parquet, .jsonl or .json")
        files = [path]
    else:
        raise InputError(
            f"unknown source {str(path)!r}: expected {', '.join(map(repr, NAMED_SOURCES))}, a file or folder that "
            f"exists, or a datasets object{suggestion(str(path), NAMED_SOURCES)}"
        )
    found = sorted({kinds[file.suffix] for file in files})
    if len(found) > 1:
        raise InputError(f"{path} holds both Parquet and JSON files: keep one kind")
    if found == ["parquet"]:
        lists = {file: read_footer(file).num_rows for file in files}
    else:
        lists = {file: file.stat().st_size for file in files}
    for file, size in lists.items():
        if not size:
            raise InputError(f"{file} holds no lists: remove it, or write it again")
    if not has_schema:
        return None  # the caller says what is missing, before anything is read

    of_split = {file: file.name.split(".")[0].split("-")[0] for file in files}
    if not any(split in SPLITS for split in of_split.values()):
        return datasets_of_files(found[0], files, "train", streaming)
    for file, split in of_split.items():
        if split not in SPLITS:
            raise InputError(
                f"{file} is named after no split, but other files of the folder are: name all of them after splits "
                f"({', '.join(SPLITS)}), or none"
            )
    return {
        split: datasets_of_files(found[0], [file for file in files if of_split[file] == split], split, streaming)
        for split in SPLITS
        if split in of_split.values()
    }


def given(source: Any, streaming: bool) -> Any:
    """A datasets object as it is, or made iterable."""
    if isinstance(source, (datasets.IterableDataset, datasets.IterableDatasetDict)) and not streaming:
        raise InputError(f"the source is an {type(source).__name__}: use streaming=True")
    if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return {split: given(dataset, streaming) for split, dataset in source.items()}
    if isinstance(source, datasets.Dataset):
        if streaming and not len(source):
            raise InputError("a dataset without lists cannot be streamed: leave it out, or use streaming=False")
        return source.to_iterable_dataset() if streaming else source
    if isinstance(source, datasets.IterableDataset):
        return source
    raise InputError(
        f"the source is a {type(source).__name__}: expected {', '.join(map(repr, NAMED_SOURCES))}, a path, or a "
        "Dataset or DatasetDict of the datasets library"
    )


def split_lists(lists: Any, schema: ListSchema) -> dict[str, Any]:
    """Splits one dataset by its column ``split``, or by the md5 of group, list id or row number."""
    streaming = isinstance(lists, datasets.IterableDataset)
    offered = lists.column_names or list(next(iter(lists), {}))
    if "split" in offered:
        column: str | None = "split"
    else:
        column = schema.group or schema.list_id
        if column is not None and column not in offered:
            raise InputError(
                f"the lists have no column {column!r} to split by; their columns: {', '.join(offered)}"
                f"{suggestion(column, offered)}"
            )
    if streaming:
        if column is None and lists.num_shards > 1:
            # Shards are read in any order, and by themselves: the number of a row in the stream is not known there.
            raise InputError(
                f"a stream of {lists.num_shards} shards cannot be split by the numbers of its rows: name a column "
                "that identifies the lists as list_id (or group) in the schema, or give the splits as a dictionary"
            )
        return {
            split: lists.filter(
                functools.partial(_in_split, split, column),
                with_indices=True,
                input_columns=column if column is not None else [],
                batched=True,
            )
            for split in SPLITS
        }
    if column is None:
        of_list = split_of(range(len(lists)))
    else:
        of_list = _splits_of_values(
            column, lists.select_columns([column]).with_format("arrow")[:][column].to_pylist(), 0
        )
    found = set(of_list)
    order = [*SPLITS, *sorted(found - set(SPLITS))] if column == "split" else SPLITS
    with _quiet(True):
        return {
            split: lists.select(np.flatnonzero(of_list == split))
            for split in order
            if column != "split" or split in found
        }


def _in_split(split: str, column: str | None, *values_and_indices: Sequence[Any]) -> list[bool]:
    """Which lists of a batch belong to a split; of a stream only the standard splits are known."""
    *values, indices = values_and_indices
    of_list = split_of(indices) if column is None else _splits_of_values(str(column), list(values[0]), indices[0])
    unknown = sorted(set(of_list) - set(SPLITS))
    if unknown:
        raise InputError(
            f"column 'split' holds {unknown[0]!r}: a stream can be split into {', '.join(SPLITS)} only; load it with "
            "streaming=False, or give a dictionary of datasets"
        )
    return (of_list == split).tolist()


def _splits_of_values(column: str, values: list[Any], first: int) -> np.ndarray:
    for number, value in enumerate(values, start=first):
        if not isinstance(value, str if column == "split" else (str, int)):
            expected = "the name of a split" if column == "split" else "an integer or text to split by"
            raise InputError(f"column {column!r} of list {number} holds {value!r}: expected {expected}")
    return np.array(values, dtype=object) if column == "split" else split_of(values)
