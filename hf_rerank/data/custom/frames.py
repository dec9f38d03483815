"""pandas and Polars frames and Arrow tables as datasets of lists, with one row per list or one row per item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import polars as pl
import pyarrow as pa

from hf_rerank.data.custom.converting import Converter
from hf_rerank.data.custom.kinds import Kinds
from hf_rerank.data.custom.long_form import grouped, is_long
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema


def is_frame(source: Any) -> bool:
    """Whether ``source`` is a frame or an Arrow table; lazy frames included."""
    if isinstance(source, pl.DataFrame | pl.LazyFrame | pa.Table | pa.RecordBatch):
        return True
    import pandas

    return isinstance(source, pandas.DataFrame)


def dataset_of_frame(frame: Any, schema: ListSchema, split: str) -> datasets.Dataset:
    """The lists of a frame or an Arrow table, in memory.

    Labels that are sequences: one row is one list. Plain labels: one row is one item, see ``long_form.grouped``. In a
    pandas frame NaN is a missing value, as everywhere in pandas; its index is not read.

    Raises:
        InputError: A lazy frame, one without rows, a column of several types, or a long one that makes no lists.
    """
    if isinstance(frame, pl.LazyFrame):
        raise InputError("the source is a LazyFrame: give load_lists frame.collect(), it holds lists in memory anyway")
    if isinstance(frame, pa.Table | pa.RecordBatch):
        table = frame if isinstance(frame, pa.Table) else pa.Table.from_batches([frame])
    else:
        eager = frame if isinstance(frame, pl.DataFrame) else _of_pandas(frame)
        table = plain_frame(eager).to_arrow(compat_level=pl.CompatLevel.oldest())
    if not table.num_rows:
        raise InputError(f"the frame of split {split!r} holds no lists: leave it out")

    def where(row: int) -> str:
        return f"row {row} of the frame"

    options = ReadOptions()
    kinds = Kinds(schema, options, from_text=False)
    kinds.add(table, "the frame")
    converted = Converter(schema, kinds, options).convert(table, where)
    if is_long({name: kind.depth for name, kind in kinds.found.items()}, schema):
        converted = plain_table(grouped(pl.DataFrame(pl.from_arrow(converted)), schema, where))
    return dataset_of_table(converted, split)


def plain_table(frame: pl.DataFrame) -> pa.Table:
    """A Polars frame as an Arrow table of ordinary types."""
    return plain_columns(frame.to_arrow(compat_level=pl.CompatLevel.oldest()))


def dataset_of_table(table: pa.Table, split: str) -> datasets.Dataset:
    """One row per list, as a dataset."""
    return datasets.Dataset(table, split=datasets.NamedSplit(split))


def plain_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """The same values without the types that only Polars has: categories become text, decimals numbers.

    Raises:
        InputError: A column of Python objects, or of integers of 128 bits.
    """
    for name, kind in frame.schema.items():
        if _innermost(kind) == pl.Object:
            raise InputError(f"column {name!r} holds values of several types: expected one type in the whole column")
        if str(_innermost(kind)) in ("Int128", "UInt128"):  # by name: not every Polars has both
            raise InputError(f"column {name!r} holds {kind}: expected integers of 64 bits at most, or text")
    return frame.cast({name: _plain(kind) for name, kind in frame.schema.items()})


def plain_columns(table: pa.Table) -> pa.Table:
    """The same values in list and string columns of the ordinary kinds, without metadata."""
    return table.cast(pa.schema([(entry.name, _ordinary(entry.type)) for entry in table.schema]))


def joined_columns(schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """The columns that hold the lists of several places, in ordinary kinds; types of numbers are widened.

    Args:
        schemas: Where, for messages (``split 'train'``, a file) -> its columns.

    Raises:
        InputError: A column is not in all of them, or holds text here and numbers there.
    """
    plain = {where: plain_columns(schema.empty_table()).schema for where, schema in schemas.items()}
    first, *others = plain
    joined = plain[first]
    for where in others:
        odd = sorted(set(plain[where].names) ^ set(plain[first].names))
        if odd:
            lacking, other = (where, first) if odd[0] in plain[first].names else (first, where)
            raise InputError(f"{lacking} has no column {odd[0]!r}, which {other} has: give all the same columns")
        try:
            joined = pa.unify_schemas([joined, plain[where]], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{first} and {where} differ in the types of a column: {reason}; write one type"
            ) from None
    return joined


def _of_pandas(frame: Any) -> pl.DataFrame:
    for name in frame.columns:
        if not isinstance(name, str):
            raise InputError(f"the pandas frame has a column named {name!r}: expected texts; rename it")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"the pandas frame has several columns {twice[0]!r}: expected one; rename one")
    columns = {}
    for name in frame.columns:
        try:
            columns[name] = pl.from_pandas(frame[name])
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError) as error:
            raise InputError(
                f"column {name!r} of the pandas frame holds values of several types: {str(error).splitlines()[0]}; "
                "expected one type in the whole column"
            ) from None
    return pl.DataFrame(columns)


def _plain(kind: Any) -> Any:
    if isinstance(kind, pl.List):
        return pl.List(_plain(kind.inner))
    if isinstance(kind, pl.Array):
        return pl.List(_plain(kind.inner))
    if isinstance(kind, pl.Categorical | pl.Enum):
        return pl.String
    return pl.Float64 if isinstance(kind, pl.Decimal) else kind


def _innermost(kind: Any) -> Any:
    return _innermost(kind.inner) if isinstance(kind, pl.List | pl.Array) else kind


def _ordinary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_ordinary(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return _ordinary(kind.value_type) if pa.types.is_dictionary(kind) else kind
