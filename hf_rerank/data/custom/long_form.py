"""Converts the long form, one row per item, to lists: the rows of one list id become one row. All in memory."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from hf_rerank.data.custom.columns import Where
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import ListSchema, Vector
from hf_rerank.validation import columns_of


def group_items(frame: pl.DataFrame, schema: ListSchema, where: Where, *, labels: bool = True) -> pl.DataFrame:
    """Groups items into one row per list, in the order in which the lists first appear; rows need not be contiguous.

    Item columns, and columns that the schema does not name, become sequences, sorted by the position column if the
    schema has one, otherwise in row order. Columns of the list must have one value per list.

    Args:
        frame: One row per item.
        schema: Describes the columns.
        where: Locates a row, for messages.
        labels: Require the columns that new lists lack, such as labels.

    Raises:
        InputError: No list id, or a column of the list that differs within a list.
    """
    refuse_missing_columns(frame.columns, schema, where(0) if len(frame) else "the frame", labels=labels)
    list_id = str(schema.list_id)
    if frame[list_id].null_count():
        row = int(frame[list_id].is_null().arg_max() or 0)
        raise InputError(
            f"{where(row)}: column {list_id!r} is null: expected the id of the list that the item belongs to"
        )
    one_per_list = {feature.name for feature in (*schema.user, *schema.history)}
    one_per_list |= {name for name in (schema.group, "split") if name is not None and name in frame.columns}
    one_per_list.discard(list_id)
    in_lists = frame.group_by(list_id, maintain_order=True)
    for name in [name for name in frame.columns if name in one_per_list]:
        differs = in_lists.agg(pl.col(name).n_unique()).filter(pl.col(name) > 1)
        if len(differs):
            wrong = differs[list_id][0]
            rows = (frame[list_id] == wrong).arg_true()
            values = frame[name].gather(rows).to_list()
            row, other = next((row, value) for row, value in zip(rows, values, strict=True) if value != values[0])
            raise InputError(
                f"{where(row)}: column {name!r} differs within list {wrong} ({values[0]!r}, {other!r}): expected one "
                "value per list; make it constant, or name it among the items of the schema"
            )
    position = schema.position_column if schema.position_column in frame.columns else None
    aggregates = [
        pl.col(name).first()
        if name in one_per_list
        else (pl.col(name) if position is None else pl.col(name).sort_by(position, maintain_order=True))
        for name in frame.columns
        if name != list_id
    ]
    return in_lists.agg(aggregates).select(frame.columns)


def refuse_missing_columns(offered: list[str], schema: ListSchema, where: str, *, labels: bool = True) -> None:
    """
    Args:
        offered: The existing columns.
        schema: Names the required columns.
        where: The location, for messages.
        labels: Also require the columns that new lists lack.

    Raises:
        InputError: Columns of the schema are missing, or it has no list id.
    """
    if schema.list_id is None:
        raise InputError(
            f"{where}: a table with one row per item needs list_id in the schema, the column that says which items "
            "belong together"
        )
    of_new_lists = {feature.name for feature in (*schema.items, *schema.user, *schema.history)} | {schema.list_id}
    for name in [*columns_of(schema), schema.group] if labels else of_new_lists:
        if name is not None and name not in (schema.attraction, schema.cut_label, *offered):
            raise InputError(
                f"{where}: the lists have no column {name!r}; their columns: {', '.join(offered)}"
                f"{suggestion(name, offered)}"
            )


def is_long(depths: Mapping[str, int], schema: ListSchema) -> bool:
    """Whether a table has one row per item: its labels, or without labels its first feature, are single values.

    Args:
        depths: Column -> how deep its values are nested in lists.
        schema: Describes the columns.
    """
    vectors = {feature.name for feature in schema.features("items", Vector)}
    known = [schema.label, *(feature.name for feature in schema.items)]
    name = next((name for name in known if name in depths), None)
    return name is not None and depths[name] == (1 if name in vectors else 0)
