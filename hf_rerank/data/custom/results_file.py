"""Writes ranked lists in the format and compression of the file's suffix."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from hf_rerank.data.custom.files import COMPRESSIONS
from hf_rerank.errors import InputError
from hf_rerank.storage import name_failures, open_files, write_atomically

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather")
Write = Callable[[Sequence[Mapping[str, Any]]], None]


def parse_format(path: Path) -> tuple[str, str | None]:
    """The suffix of the format, and the compression or None.

    Raises:
        InputError: The suffix is not supported.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    suffix = (Path(path.stem) if compression else path).suffix.lower()
    if suffix not in FORMATS or (compression and suffix not in (".csv", ".tsv", ".jsonl", ".ndjson")):
        raise InputError(
            f"cannot write results to {path}: expected a file that ends in {', '.join(FORMATS[:-1])} or "
            f"{FORMATS[-1]}; text also as .gz or .zst"
        )
    return suffix, compression


@contextlib.contextmanager
def open_results_file(path: Path) -> Iterator[Write]:
    """Yields the function that appends results; the file appears when all of them are written.

    In CSV one row is one ranked item, best first, with the column ``rank`` from 0; ``order`` is the index of the
    item in its list.
    """
    suffix, compression = parse_format(path)
    with write_atomically(path) as temporary, open_files(path) as opened:
        with name_failures(path):
            append = _make_append(opened, temporary, suffix, compression)

        def write(ranked: Sequence[Mapping[str, Any]]) -> None:
            with name_failures(path):
                append(ranked)

        yield write


def _make_append(opened: contextlib.ExitStack, path: Path, suffix: str, compression: str | None) -> Write:
    """The function that appends results to a file; ``opened`` closes it."""
    if suffix == ".parquet":
        return _append_tables(opened, lambda schema: pq.ParquetWriter(path, schema), _make_list_table)
    if suffix in (".arrow", ".feather"):
        return _append_tables(opened, lambda schema: pa.ipc.new_file(str(path), schema), _make_list_table)
    sink: Any = opened.enter_context(pa.OSFile(str(path), "wb"))
    if compression is not None:
        sink = opened.enter_context(pa.CompressedOutputStream(sink, compression))
    if suffix in (".jsonl", ".ndjson"):
        return lambda ranked: sink.write(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ranked).encode()
        )
    options = arrow_csv.WriteOptions(delimiter="," if suffix == ".csv" else "\t")
    return _append_tables(
        opened, lambda schema: arrow_csv.CSVWriter(sink, schema, write_options=options), _make_item_table
    )


def _append_tables(
    opened: contextlib.ExitStack,
    new: Callable[[pa.Schema], Any],
    table_of: Callable[[Sequence[Mapping[str, Any]]], pa.Table],
) -> Write:
    """The function that appends tables to a writer, which the first table opens."""
    writer: Any = None
    columns: Any = None

    def write(ranked: Sequence[Mapping[str, Any]]) -> None:
        nonlocal writer, columns
        table = table_of(ranked)
        if writer is None:
            writer, columns = opened.enter_context(new(table.schema)), table.schema
        writer.write_table(table.cast(columns))

    return write


def _make_list_table(ranked: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One row per list."""
    return pa.table({name: _to_array([row[name] for row in ranked]) for name in ranked[0]})


def _make_item_table(ranked: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One row per item, ordered by rank; values of the list are repeated."""
    names = list(ranked[0])
    columns: dict[str, list[Any]] = {name: [] for name in names}
    ranks: list[int] = []
    for result in ranked:
        length = len(result["order"])
        ranks += range(length)
        for name in names:
            value = result[name]
            columns[name] += value if isinstance(value, list) else [value] * length
    of_lists = [name for name in names if not isinstance(ranked[0][name], list)]
    table = pa.table({name: _to_array(columns[name]) for name in names})
    table = table.select([*of_lists, *(name for name in names if name not in of_lists)])
    return table.add_column(len(of_lists), "rank", pa.array(ranks, pa.int64()))


def _to_array(values: list[Any]) -> pa.Array:
    """An Arrow array; ids of at least 2**63 need an explicit type."""
    try:
        return pa.array(values)
    except OverflowError:
        return pa.array(values, pa.list_(pa.uint64()) if isinstance(values[0], list) else pa.uint64())
