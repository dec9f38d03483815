"""Reads one file of any format as tables, block by block, with the location of each row for messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from hf_rerank.data.custom.cells import parse_cells
from hf_rerank.data.custom.columns import Where, numbers_of
from hf_rerank.data.custom.csv_text import find_line, read_csv
from hf_rerank.data.custom.files import ListFile
from hf_rerank.data.custom.json_lines import read_json
from hf_rerank.data.custom.letor import read_letor
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema

BATCH_ROWS = 4_096
# Formats whose values are all text, so that types depend on what the text looks like.
TEXT_KINDS = ("csv",)


@dataclass(frozen=True)
class Block:
    """Rows of a file.

    Attributes:
        table: The rows; cells that hold lists are parsed.
        where: ``row -> location``, for messages.
    """

    table: pa.Table
    where: Where


def read_blocks(file: ListFile, schema: ListSchema | None, options: ReadOptions) -> Iterator[Block]:
    """Yields the blocks of a file; none for an empty file.

    Raises:
        InputError: The file is damaged, or not in the format of its suffix.
    """
    if file.kind == "csv":
        first = 0
        for table in read_csv(file, options):
            # Bound now: blocks are read one after another.
            def where(row: int, first: int = first) -> str:
                return f"{file.path}, line {find_line(file, first + row, options)}"

            yield Block(parse_cells(table, schema, options, where), where)
            first += table.num_rows
    elif file.kind == "json":
        numbers = frozenset() if schema is None else numbers_of(schema)
        for table, where_of_line in read_json(file, numbers):
            yield Block(table, where_of_line)
    elif file.kind == "letor":
        for table, first_line in read_letor(file):
            yield Block(table, _make_where(f"{file.path}, line", first_line))
    else:
        first = _count_rows_before(file)
        for batch in _read_batches(file):
            yield Block(pa.Table.from_batches([batch]), _make_where(f"{file.path}, row", first))
            first += batch.num_rows


def _make_where(what: str, first: int) -> Where:
    return lambda row: f"{what} {first + row}"


def _count_rows_before(file: ListFile) -> int:
    if not file.start:
        return 0
    footer = pq.read_metadata(file.path)
    return sum(footer.row_group(number).num_rows for number in range(file.start))


def _read_batches(file: ListFile) -> Iterator[pa.RecordBatch]:
    name = "Parquet" if file.kind == "parquet" else "Arrow"
    try:
        with file.open() as source:
            if file.compression is not None:  # both formats are read from the end
                source = pa.BufferReader(source.read())
            if not source.size():
                return
            if file.kind == "parquet":
                with pq.ParquetFile(source) as parquet:
                    stop = parquet.num_row_groups if file.stop is None else file.stop
                    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=range(file.start, stop)):
                        yield _check_batch(batch)
                return
            try:
                reader = pa.ipc.open_file(source)
                batches: Iterator[pa.RecordBatch] = (reader.get_batch(i) for i in range(reader.num_record_batches))
            except pa.ArrowInvalid:
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                _check_batch(batch)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file.path} is not a complete {name} file: {reason}; make or copy it again") from None


def _check_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Checks that a batch is valid, and returns it: with offsets beyond the values, Arrow would crash the process.

    Raises:
        pa.ArrowInvalid: Offsets, lengths or strings are wrong.
        UnicodeDecodeError: The name of a column is not UTF-8.
    """
    batch.validate(full=True)
    batch.schema.names  # noqa: B018
    return batch
