"""The columns of a user's lists: their roles in the schema, and their values in ordinary Arrow types."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa

from hf_rerank.schema import Categorical, ListSchema

# Index of a row in a table -> its location in the input, for messages.
Where = Callable[[int], str]

NUMBER, POSITION, ID, OTHER = "number", "position", "id", "other"


def roles_of(schema: ListSchema) -> dict[str, str]:
    """Column -> ``number``, ``position`` or ``id``; columns that the schema does not name are left out."""
    roles: dict[str, str] = {}
    for feature in (*schema.items, *schema.user, *schema.history):
        roles[feature.name] = ID if isinstance(feature, Categorical) else NUMBER
    numbers = (schema.label, schema.weight, schema.propensity, schema.attraction, schema.initial_score)
    roles |= {name: NUMBER for name in (*numbers, schema.cut_label) if name is not None}
    if schema.position_column is not None:
        roles[schema.position_column] = POSITION
    for name in (schema.list_id, schema.group, schema.id):
        if name is not None:
            roles.setdefault(name, ID)
    return roles


def numbers_of(schema: ListSchema) -> frozenset[str]:
    """The columns of numbers."""
    return frozenset(name for name, role in roles_of(schema).items() if role == NUMBER)


def item_columns_of(schema: ListSchema) -> set[str]:
    """The columns with one value per item, or per item of the history."""
    names = {feature.name for feature in (*schema.items, *schema.history)}
    of_items = (
        schema.label,
        schema.position_column,
        schema.weight,
        schema.propensity,
        schema.attraction,
        schema.initial_score,
        schema.id,
        schema.cut_label,
    )
    return names | {name for name in of_items if name is not None}


def shorten(cell: Any) -> str:
    """A value as it is shown in messages: quoted, at most 40 characters."""
    text = str(cell)
    return repr(text if len(text) <= 40 else text[:37] + "...")


def is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def find_inner_type(kind: Any) -> Any:
    """The type of the values in a Polars type of lists, however deep; any other type unchanged."""
    return find_inner_type(kind.inner) if isinstance(kind, pl.List | pl.Array) else kind


def simplify_values(flat: Any) -> Any:
    """The same values in ordinary types, without dictionaries, views, decimals, UUIDs and bytes of text."""
    kind = flat.type
    if isinstance(kind, pa.BaseExtensionType):
        storage = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
        if isinstance(storage, pa.ChunkedArray):
            storage = pa.concat_arrays(storage.chunks) if storage.num_chunks else pa.array([], kind)
        if kind.extension_name == "arrow.uuid":
            return _format_uuids(storage.storage)
        return simplify_values(storage.storage)
    if pa.types.is_dictionary(kind):
        return simplify_values(flat.cast(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return flat.cast(pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        try:
            return flat.cast(pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            return flat
    if pa.types.is_decimal(kind):
        return flat.cast(pa.int64() if kind.scale == 0 and kind.precision <= 18 else pa.float64())
    if pa.types.is_float16(kind):
        return flat.cast(pa.float32())
    return flat


def _format_uuids(storage: pa.Array) -> pa.Array:
    return pa.array([None if v is None else str(uuid.UUID(bytes=v)) for v in storage.to_pylist()], pa.string())
