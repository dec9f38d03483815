"""pandas and Polars frames and Arrow tables as datasets of lists, with one row per list or one row per item."""

from __future__ import annotations

from typing import Any

import datasets
import polars as pl
import pyarrow as pa

from hf_rerank.data.custom.columns import find_inner_type
from hf_rerank.data.custom.converting import Converter
from hf_rerank.data.custom.kinds import Kinds
from hf_rerank.data.custom.long_form import group_items, is_long
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema


def is_frame(source: Any) -> bool:
    """Whether ``source`` is a frame or an Arrow table; lazy frames included."""
    if isinstance(source, pl.DataFrame | pl.LazyFrame | pa.Table | pa.RecordBatch):
        return True
    import pandas

    return isinstance(source, pandas.DataFrame)


def load_frame(frame: Any, schema: ListSchema, split: str) -> datasets.Dataset:
    """The lists of a frame or an Arrow table, in memory.

    If labels are sequences, one row is one list; otherwise one row is one item, see ``long_form.group_items``.
    In a pandas frame NaN is a missing value, as everywhere in pandas; its index is not read.

    Raises:
        InputError: A lazy frame, one without rows, a column of several types, or a long one that makes no lists.
    """
    if isinstance(frame, pl.LazyFrame):
        raise InputError("the source is a LazyFrame: pass frame.collect(), as lists are held in memory anyway")
    if isinstance(frame, pa.Table | pa.RecordBatch):
        table = frame if isinstance(frame, pa.Table) else pa.Table.from_batches([frame])
    else:
        eager = frame if isinstance(frame, pl.DataFrame) else _convert_pandas(frame)
        table = simplify_frame(eager).to_arrow(compat_level=pl.CompatLevel.oldest())
    if not table.num_rows:
        raise InputError(f"the frame of split {split!r} holds no lists: leave it out")

    def where(row: int) -> str:
        return f"row {row} of the frame"

    options = ReadOptions()
    kinds = Kinds(schema, options, from_text=False)
    kinds.add(table, "the frame")
    converted = Converter(schema, kinds, options).convert(table, where)
    if is_long({name: kind.depth for name, kind in kinds.found.items()}, schema):
        converted = to_plain_table(group_items(pl.DataFrame(pl.from_arrow(converted)), schema, where))
    return make_dataset(converted, split)


def to_plain_table(frame: pl.DataFrame) -> pa.Table:
    """A Polars frame as an Arrow table of ordinary types."""
    return simplify_columns(frame.to_arrow(compat_level=pl.CompatLevel.oldest()))


def make_dataset(table: pa.Table, split: str) -> datasets.Dataset:
    """One row per list, as a dataset."""
    return datasets.Dataset(table, split=datasets.NamedSplit(split))


def simplify_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """Converts the types that only Polars has: categories become text, decimals numbers.

    Raises:
        InputError: A column of Python objects, or of integers of 128 bits.
    """
    for name, kind in frame.schema.items():
        if find_inner_type(kind) == pl.Object:
            raise InputError(f"column {name!r} holds values of several types: expected one type in the whole column")
        if str(find_inner_type(kind)) in ("Int128", "UInt128"):  # by name: not every Polars has both
            raise InputError(f"column {name!r} holds {kind}: expected integers of 64 bits at most, or text")
    return frame.cast({name: _simplify_type(kind) for name, kind in frame.schema.items()})


def simplify_columns(table: pa.Table) -> pa.Table:
    """Converts list and string columns to their ordinary Arrow types, without metadata."""
    return table.cast(pa.schema([(entry.name, _simplify_arrow_type(entry.type)) for entry in table.schema]))


def _convert_pandas(frame: Any) -> pl.DataFrame:
    for name in frame.columns:
        if not isinstance(name, str):
            raise InputError(f"the pandas frame has a column named {name!r}: expected a string; rename it")
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


def _simplify_type(kind: Any) -> Any:
    if isinstance(kind, pl.List):
        return pl.List(_simplify_type(kind.inner))
    if isinstance(kind, pl.Array):
        return pl.List(_simplify_type(kind.inner))
    if isinstance(kind, pl.Categorical | pl.Enum):
        return pl.String
    return pl.Float64 if isinstance(kind, pl.Decimal) else kind


def _simplify_arrow_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_simplify_arrow_type(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return _simplify_arrow_type(kind.value_type) if pa.types.is_dictionary(kind) else kind
