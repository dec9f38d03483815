"""A user's own lists as datasets: from files, frames or objects of ``datasets``, and their splits."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa

from hf_rerank.data.custom.files import Source, find_list_files
from hf_rerank.data.custom.frames import is_frame, load_frame
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.custom.own_files import EMPTY_FILES, Counts, OwnFiles
from hf_rerank.data.custom.own_stream import OwnStream
from hf_rerank.data.lists_cache import NAMED_SOURCES, cache_folder
from hf_rerank.data.splits import SPLITS, assign_splits
from hf_rerank.data.time_split import describe_empty_splits, read_times, split_by_time
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import ListSchema
from hf_rerank.storage import name_failures, open_files, read_json, write_atomically, write_json
from hf_rerank.validation import tables_of

TIMES_BATCH = 10_000
TABLES_FILE, COUNTS_FILE = "lists-{split}.arrow", "counts.json"


def read_files(
    source: Source, schema: ListSchema, options: ReadOptions | None = None, *, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset | dict[str, Any]:
    """A dataset from a user's files, or a dictionary of datasets if the files are named after splits.

    The files are read once into the cache of ``datasets``, which is memory-mapped; streams read them again each time,
    and take their types from the first rows.

    Raises:
        InputError: As in ``find_list_files`` and ``OwnFiles``; or a stream of a table with one row per item.
    """
    files = find_list_files(source)
    own = OwnFiles(files, schema, options)
    splits = [split for split in SPLITS if any(file.split == split for file in files)]
    if streaming:
        return _make_streams(own, splits)
    key = {
        "files": [[file.path, *map(str, file.fingerprint())] for file in files],
        "schema": schema.to_dict(),
        "options": own.options.to_dict(),
    }
    folder = cache_folder("own", key, functools.partial(_write_tables, own, splits or ["train"]))
    for what, number in read_json(folder / COUNTS_FILE).items():
        warnings.warn(f"{files[0].path}: {what}: {number:,}", stacklevel=3)
    read = {
        split: datasets.Dataset.from_file(
            str(folder / TABLES_FILE.format(split=split)), split=datasets.NamedSplit(split)
        )
        for split in splits or ["train"]
    }
    return read if splits else read["train"]


def _write_tables(own: OwnFiles, splits: Sequence[str], folder: Path) -> None:
    """Writes one Arrow file per split, and the counts of omissions and conversions; the folder appears when
    complete."""
    with own.inputs.require_unchanged():
        own.scan()
    counts: Counts = {EMPTY_FILES: own.empty_files} if own.empty_files else {}
    with write_atomically(folder) as partial, own.inputs.require_unchanged():
        with open_files(folder) as opened:
            with name_failures(folder):
                partial.mkdir()
                writers = {
                    split: opened.enter_context(
                        pa.ipc.new_stream(str(partial / TABLES_FILE.format(split=split)), own.columns)
                    )
                    for split in splits
                }
            for split, table in read_tables(own, counts):
                with name_failures(folder, table.nbytes):
                    writers[split or "train"].write_table(table)
        write_json(partial / COUNTS_FILE, dict(counts))


def read_tables(own: OwnFiles, counts: Counts) -> Iterator[tuple[str | None, pa.Table]]:
    """Yields tables of lists with the split given by the name of their file; ``counts`` as for
    ``OwnFiles.read_lists``."""
    if not own.long:
        for part in own.parts:
            for table in own.read_lists(part, counts):
                yield part.split, table
        return
    items = [table for part in own.parts for table in own.read_items(part, counts)]
    lists, parts = own.make_lists(pl.DataFrame(pl.from_arrow(pa.concat_tables(items))))
    splits = np.array([part.split for part in own.parts], dtype=object)[parts]
    for split in dict.fromkeys(splits):
        yield split, lists.filter(pa.array(splits == split))


def _make_streams(own: OwnFiles, splits: Sequence[str]) -> Any:
    own.scan_first_blocks()
    if own.long:
        raise InputError(
            f"{own.files[0].path} has one row per item, so it is read as a whole, since items of a list may be "
            "anywhere in it: use streaming=False, or turn it into Parquet once with `hf-rerank prepare own` and "
            "stream that"
        )
    streams = {}
    for split in splits or ["train"]:
        parts = [part for part in own.parts if not splits or part.split == split]
        streams[split] = OwnStream(own=own, parts=parts, split=split).as_streaming_dataset(split=split)
    return streams if splits else streams["train"]


@contextlib.contextmanager
def _hide_progress_bars() -> Iterator[None]:
    """Hides the progress bars of ``datasets`` for operations of less than about a second."""
    if datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        datasets.utils.enable_progress_bars()


def is_paths(source: Any) -> bool:
    """Whether a source is a path, a pattern, a URL or a list of these."""
    if isinstance(source, str | Path):
        return True
    return isinstance(source, list | tuple) and len(source) > 0 and all(isinstance(p, str | Path) for p in source)


def to_datasets(source: Any, streaming: bool, schema: ListSchema | None, split: str = "train") -> Any:
    """Converts a source in memory to datasets: frames, datasets objects, or a dictionary of either as its splits."""
    if isinstance(source, (datasets.IterableDataset, datasets.IterableDatasetDict)) and not streaming:
        raise InputError(f"the source is an {type(source).__name__}: use streaming=True")
    if isinstance(source, Mapping):
        if not isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            for split in source:
                if split not in SPLITS:
                    raise InputError(
                        f"{split!r} is not the name of a split: expected {', '.join(SPLITS)}"
                        f"{suggestion(str(split), SPLITS)}"
                    )
        return {split: to_datasets(dataset, streaming, schema, split) for split, dataset in source.items()}
    if is_frame(source):
        if streaming:
            raise InputError(
                f"the source is a {type(source).__name__}, which is already in memory: use streaming=False"
            )
        return None if schema is None else load_frame(source, schema, split)
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


def split_lists_by_time(lists: Any, column: str, *, ranker_train: bool) -> dict[str, Any]:
    """Splits one dataset by time, see ``time_split``; with ``ranker_train`` the oldest 40 % are that split.

    Raises:
        InputError: A stream, lists that already have splits, or no times in the column.
    """
    if isinstance(lists, (dict, datasets.IterableDataset)):
        stream = isinstance(lists, datasets.IterableDataset) or any(
            isinstance(split, datasets.IterableDataset) for split in lists.values()
        )
        raise InputError(
            "a stream cannot be split by time, since all times must be read first: use streaming=False, or "
            f"`hf-rerank prepare own --split-by time:{column}` once and stream its output"
            if stream
            else "the lists already have splits (files or a dictionary named after them): leave out split_by, or "
            "remove the splits"
        )
    if "split" in lists.column_names:
        raise InputError("the lists already have splits, in column 'split': leave out split_by, or the column")
    wanted = lists.select_columns([column]) if column in lists.column_names else lists
    times = read_times(tables_of(wanted, TIMES_BATCH), column)
    of_list = split_by_time(times, ranker_train=ranker_train)
    for message in describe_empty_splits(of_list, times, column):
        warnings.warn(message, stacklevel=3)
    with _hide_progress_bars():
        return {
            split: lists.select(np.flatnonzero(of_list == split))
            for split in SPLITS
            if ranker_train or split != "ranker_train"
        }


def split_lists(lists: Any, schema: ListSchema, *, ranker_train: bool = False) -> dict[str, Any]:
    """Splits one dataset by its column ``split``, or by the MD5 of group, list id or row number.

    A list without a group (an anonymous user) is its own group, named by its list id or row number.

    Args:
        lists: A Dataset or IterableDataset.
        schema: Describes the columns.
        ranker_train: Also hold out 40 % of the groups as ``ranker_train``.

    Raises:
        InputError: A missing column, or values that are not ids or names of splits.
    """
    streaming = isinstance(lists, datasets.IterableDataset)
    offered = lists.column_names or list(next(iter(lists), {}))
    by = ["split"] if "split" in offered else choose_split_columns(schema, offered)
    kinds = lists.features.arrow_schema if by and set(by) <= set(lists.features or {}) else None
    odd = next((name for name in by if kinds and isinstance(kinds.field(name).type, pa.BaseExtensionType)), None)
    if odd is not None:
        raise InputError(  # datasets stores such a column like this, and reads the text 007 as the number 7
            f"column {odd!r} holds values of several types: expected only integers or only strings to split by"
        )
    names = [split for split in SPLITS if ranker_train or split != "ranker_train"]
    if streaming:
        if not by and lists.num_shards > 1:
            # Shards are read in any order, and separately: the row number in the stream is unknown there.
            raise InputError(
                f"a stream of {lists.num_shards} shards cannot be split by the numbers of its rows: name a column "
                "that identifies the lists as list_id (or group) in the schema, or give the splits as a dictionary"
            )
        return {
            split: lists.filter(
                functools.partial(_is_in_split, split, by, ranker_train),
                with_indices=True,
                input_columns=by,
                batched=True,
            )
            for split in (SPLITS if by == ["split"] else names)
        }
    table: Any = lists.select_columns(by).with_format("arrow")[:] if by else len(lists)
    anonymous = table.column(schema.group).null_count if schema.group in by else 0
    if anonymous:
        warnings.warn(f"{anonymous:,} lists without a user, each a group of its own", stacklevel=3)
    of_list = assign_splits_by_columns(table, by, ranker_train)
    found = set(of_list)
    for split in sorted(found - set(SPLITS)):
        if suggestion(split, SPLITS):
            raise InputError(
                f"column 'split' holds {split!r}, which is not the name of a split ({', '.join(SPLITS)})"
                f"{suggestion(split, SPLITS)}"
            )
    order = [*SPLITS, *sorted(found - set(SPLITS))] if by == ["split"] else names
    with _hide_progress_bars():
        return {
            split: lists.select(np.flatnonzero(of_list == split))
            for split in order
            if by != ["split"] or split in found
        }


def choose_split_columns(schema: ListSchema, offered: Sequence[str]) -> list[str]:
    """The columns to split by: the group, and the list id, which replaces a missing group.

    Raises:
        InputError: The first of them is missing.
    """
    named = [name for name in (schema.group, schema.list_id) if name is not None]
    for name in named[:1]:
        if name not in offered:
            raise InputError(
                f"the lists have no column {name!r} to split by; their columns: {', '.join(offered)}"
                f"{suggestion(name, offered)}"
            )
    return [name for name in named if name in offered]


def assign_splits_by_columns(
    table: pa.Table | int, by: Sequence[str], ranker_train: bool, first: int = 0
) -> np.ndarray:
    """The split of each list, as an array of strings.

    Args:
        table: Table with the columns ``by``; if there are none, the number of lists.
        by: ``["split"]``, or the result of ``choose_split_columns``.
        ranker_train: See ``split_lists``.
        first: Number of the first list.

    Raises:
        InputError: A value is not an id, or not the name of a split.
    """
    if isinstance(table, int):
        return assign_splits(range(first, first + table), ranker_train=ranker_train)
    columns = [table.column(name).to_pylist() for name in by]
    for name, values in zip(by, columns, strict=True):
        wanted = str if name == "split" else (str, int)
        for number, value in enumerate(values, start=first):
            if not isinstance(value, wanted) and not (value is None and name != "split"):
                expected = "the name of a split" if name == "split" else "one integer or string per list to split by"
                raise InputError(f"column {name!r} of list {number} holds {value!r}: expected {expected}")
    if list(by) == ["split"]:
        return np.array(columns[0], dtype=object)
    keys = list(columns[0])
    for row, value in enumerate(keys):
        if value is None:
            others = (other[row] for other in columns[1:] if other[row] is not None)
            keys[row] = f"anonymous list {next(others, first + row)}"
    return assign_splits(keys, ranker_train=ranker_train)


def _is_in_split(split: str, by: Sequence[str], ranker_train: bool, *values_and_indices: Sequence[Any]) -> list[bool]:
    """Which lists of a batch of a stream belong to a split; streams have only the standard splits."""
    *values, indices = values_and_indices
    table = pa.table({name: list(column) for name, column in zip(by, values, strict=True)}) if by else len(indices)
    of_list = assign_splits_by_columns(table, by, ranker_train, indices[0] if indices else 0)
    unknown = sorted(set(of_list) - set(SPLITS))
    if unknown:
        raise InputError(
            f"column 'split' holds {unknown[0]!r}: a stream can be split into {', '.join(SPLITS)} only; load it with "
            "streaming=False, or give a dictionary of datasets"
        )
    return (of_list == split).tolist()
