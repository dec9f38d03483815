"""Own lists as datasets: from files, frames or objects of ``datasets``, and their splits."""

from __future__ import annotations

import codecs
import contextlib
import functools
import glob
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json as arrow_json

from hf_rerank.data.frames import dataset_of_frame, dataset_of_polars, is_frame, joined_columns
from hf_rerank.data.long_form import lists_of_csv
from hf_rerank.data.named import NAMED_SOURCES
from hf_rerank.data.prepared import SCHEMA_FILE, read_footer
from hf_rerank.data.splits import SPLITS, split_of
from hf_rerank.data.time_split import split_by_time, times_of
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import ListSchema
from hf_rerank.validation import tables_of

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
KIND_NAMES = {"parquet": "Parquet", "json": "JSON", "csv": "CSV"}
TIMES_BATCH = 10_000
# Lists of a JSON Lines file by which its types are known.
TYPES_OF_LISTS = 20

QUIET_BYTES = 64 * 2**20


def datasets_of_files(kind: str, files: Sequence[Path], split: str, streaming: bool) -> Any:
    """One dataset over Parquet or JSON files, by the readers of ``datasets`` that never ask the network."""
    dataset = datasets.IterableDataset if streaming else datasets.Dataset
    read = dataset.from_parquet if kind == "parquet" else dataset.from_json
    features = _joined_features(files) if kind == "parquet" else {}
    if kind == "json":
        _refuse_text_among_numbers([path for path in files if path.suffix == ".jsonl"])
    try:
        with _quiet(sum(path.stat().st_size for path in files) < QUIET_BYTES):
            # A name such as lists[1].parquet is a pattern to datasets, and would match the file lists1.parquet.
            exact = [glob.escape(str(path)) for path in files]
            lists = read(exact, split=datasets.NamedSplit(split), **features)
            if streaming and kind == "json":
                next(iter(lists), None)  # so that a file that is no JSON is named here, not in the middle of training
            return lists
    except (datasets.exceptions.DatasetGenerationError, FileNotFoundError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        names = ", ".join(str(path) for path in files[:3]) + (", ..." if len(files) > 3 else "")
        where = next(filter(None, map(_damage_of_json, files)), None) if kind == "json" else None
        raise InputError(where or f"cannot read lists from {names}: {reason}") from error


def _joined_features(files: Sequence[Path]) -> dict[str, datasets.Features]:
    """Of Parquet files whose columns differ, types that hold all.

    By itself ``datasets`` takes the types of the first file, in which the text 007 of another becomes the number 7,
    and fills a column that another lacks with nulls.
    """
    schemas = {str(path): read_footer(path).schema.to_arrow_schema().remove_metadata() for path in files}
    first, *others = schemas.values()
    if all(schema.equals(first) for schema in others):
        return {}
    return {"features": datasets.Features.from_arrow_schema(joined_columns(schemas))}


def _refuse_text_among_numbers(files: Sequence[Path]) -> None:
    """By the first lists of each file: ``datasets`` takes the types of the first file here, too."""
    joined, first = pa.schema([]), None
    for path in files if len(files) > 1 else ():
        with path.open("rb") as file:
            head = b"".join(itertools.islice(file, TYPES_OF_LISTS)).removeprefix(codecs.BOM_UTF8)
        try:
            found = arrow_json.read_json(pa.BufferReader(head)).schema
        except pa.ArrowInvalid:  # whoever reads all of it says what is wrong
            continue
        try:
            joined = pa.unify_schemas([joined, found], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{first} and {path} differ in the types of a column: {reason}; write one type") from None
        first = first or path


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


def list_files(path: Path) -> list[Path]:
    """The files of one kind at ``path``, a file or a folder.

    Raises:
        InputError: There are none, several kinds, or one that is empty.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in KINDS and not file.name.startswith("."))
        if not files:
            raise InputError(
                f"{path} holds no lists: expected .parquet, .jsonl, .json or .csv files, or a folder of prepared "
                f"lists with {SCHEMA_FILE}"
            )
    elif path.is_file():
        if path.suffix not in KINDS:
            raise InputError(f"{path} is no list file: expected .parquet, .jsonl, .json or .csv")
        files = [path]
    else:
        raise InputError(
            f"unknown source {str(path)!r}: expected {', '.join(map(repr, NAMED_SOURCES))}, a file or folder that "
            f"exists, a frame or a datasets object{suggestion(str(path), NAMED_SOURCES)}"
        )
    found = [kind for kind in KIND_NAMES if kind in {KINDS[file.suffix] for file in files}]
    if len(found) > 1:
        names = [KIND_NAMES[kind] for kind in found]
        both = "both " if len(names) == 2 else ""
        raise InputError(f"{path} holds {both}{' and '.join(names)} files: keep one kind")
    if found == ["parquet"]:
        lists = {file: read_footer(file).num_rows for file in files}
    else:
        lists = {file: file.stat().st_size for file in files}
    for file, size in lists.items():
        if not size:
            raise InputError(f"{file} holds no lists: remove it, or write it again")
    return files


def read_files(path: Path, streaming: bool, schema: ListSchema | None) -> Any:
    """A dataset from own files, or a dictionary of them where the files are named after splits."""
    files = list_files(path)
    if schema is None:
        return None  # the caller says what is missing, before anything is read
    kind = KINDS[files[0].suffix]
    if kind == "csv" and streaming:
        raise InputError(
            f"{path} is CSV, which is read as a whole, since items of a list may stand anywhere in it: use "
            "streaming=False, or turn it into Parquet once with `hf-rerank prepare own` and stream that"
        )
    of_split = {file: file.name.split(".")[0].split("-")[0] for file in files}
    if not any(split in SPLITS for split in of_split.values()):
        of_split = dict.fromkeys(files, "train")
        return _read(kind, files, of_split, streaming, schema)["train"]
    for file, split in of_split.items():
        if split not in SPLITS:
            raise InputError(
                f"{file} is named after no split, but other files of the folder are: name all of them after splits "
                f"({', '.join(SPLITS)}), or none"
            )
    return _read(kind, files, of_split, streaming, schema)


def _read(
    kind: str, files: Sequence[Path], of_split: Mapping[Path, str], streaming: bool, schema: ListSchema
) -> dict[str, Any]:
    splits = {
        split: [file for file in files if of_split[file] == split] for split in SPLITS if split in of_split.values()
    }
    if kind == "csv":
        lists = lists_of_csv(files, schema)
        return {
            split: dataset_of_polars(pl.concat([lists[file] for file in chosen]), split)
            for split, chosen in splits.items()
        }
    return {split: datasets_of_files(kind, chosen, split, streaming) for split, chosen in splits.items()}


def given(source: Any, streaming: bool, schema: ListSchema | None, split: str = "train") -> Any:
    """A datasets object as it is, or made iterable; frames as datasets; a dictionary of either as given splits."""
    if isinstance(source, (datasets.IterableDataset, datasets.IterableDatasetDict)) and not streaming:
        raise InputError(f"the source is an {type(source).__name__}: use streaming=True")
    if isinstance(source, Mapping):
        if not isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            for split in source:
                if split not in SPLITS:
                    raise InputError(
                        f"{split!r} is the name of no split: expected {', '.join(SPLITS)}"
                        f"{suggestion(str(split), SPLITS)}"
                    )
        return {split: given(dataset, streaming, schema, split) for split, dataset in source.items()}
    if is_frame(source):
        if streaming:
            raise InputError(
                f"the source is a {type(source).__name__}, which is in memory already: use streaming=False"
            )
        return None if schema is None else dataset_of_frame(source, schema, split)
    if isinstance(source, datasets.Dataset):
        if streaming and not len(source):
            raise InputError("a dataset without lists cannot be streamed: leave it out, or use streaming=False")
        return source.to_iterable_dataset() if streaming else source
    if isinstance(source, datasets.IterableDataset):
        return source
    raise InputError(
        f"the source is a {type(source).__name__}: expected {', '.join(map(repr, NAMED_SOURCES))}, a path, a pandas "
        "or Polars frame, a Dataset or DatasetDict of the datasets library, or a dictionary of frames or datasets"
    )


def cut_by_time(lists: Any, column: str) -> dict[str, Any]:
    """Splits one dataset by time, see ``time_split``.

    Raises:
        InputError: A stream, lists that bring their splits, or no times in the column.
    """
    if isinstance(lists, (dict, datasets.IterableDataset)):
        stream = isinstance(lists, datasets.IterableDataset) or any(
            isinstance(split, datasets.IterableDataset) for split in lists.values()
        )
        raise InputError(
            "a stream cannot be split by time, which must be known of all lists first: use streaming=False, or "
            f"`hf-rerank prepare own --split-by time:{column}` once and stream what it writes"
            if stream
            else "the lists bring their splits (files or a dictionary named after them): leave out split_by, or give "
            "them as one"
        )
    if "split" in lists.column_names:
        raise InputError("the lists bring their splits, in column 'split': leave out split_by, or the column")
    wanted = lists.select_columns([column]) if column in lists.column_names else lists
    of_list = split_by_time(times_of(tables_of(wanted, TIMES_BATCH), column))
    with _quiet(True):
        return {split: lists.select(np.flatnonzero(of_list == split)) for split in SPLITS}


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
    kinds = lists.features.arrow_schema if column in (lists.features or {}) else None
    if kinds is not None and isinstance(kinds.field(column).type, pa.BaseExtensionType):
        raise InputError(  # datasets holds it so, and reads the text 007 as the number 7
            f"column {column!r} holds values of several types: expected integers alone or texts alone to split by"
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
        values = lists.select_columns([column]).with_format("arrow")[:][column].to_pylist()
        of_list = _splits_of_values(column, values, 0)
    found = set(of_list)
    for split in sorted(found - set(SPLITS)) if column == "split" else ():
        if suggestion(split, SPLITS):
            raise InputError(
                f"column 'split' holds {split!r}, the name of no split ({', '.join(SPLITS)})"
                f"{suggestion(split, SPLITS)}"
            )
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
