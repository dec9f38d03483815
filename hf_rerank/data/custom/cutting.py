"""Cuts lists that are too long, and keeps the labels of the items that were cut."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from hf_rerank.data.report import PrepareReport
from hf_rerank.data.truncating import choose_first_items, make_sequences
from hf_rerank.schema import ListSchema
from hf_rerank.validation import Lists

CUT_ITEMS, CUT_CLICKS = "items that were cut", "clicks of items that were cut"
CUT_LABELS = pa.list_(pa.float64())


def cut_lists(table: pa.Table, schema: ListSchema, report: PrepareReport) -> pa.Table:
    """Cuts lists to ``schema.max_list_length`` items, the first in the initial order.

    Args:
        table: Lists with labels. Item columns that the schema does not name are cut too.
        schema: Describes the columns; it names a ``cut_label``.
        report: Counts the cut lists, items and clicks.

    Returns:
        The lists with the column ``schema.cut_label``: one list of labels per list, empty where nothing was cut.
    """
    lists = Lists.from_arrow(table, schema, with_labels=True)
    lengths, clicked = lists.lengths, lists.columns["labels"] > 0
    kept = choose_first_items(lengths, lists.positions, clicked, schema.max_list_length, report)
    if kept is None:
        kept = np.ones(len(clicked), dtype=bool)
    of_list = np.repeat(np.arange(len(lists)), lengths)
    new_lengths = np.bincount(of_list[kept], minlength=len(lists))
    others = {schema.cut_label, *(feature.name for feature in schema.history)}
    for number, field in enumerate(table.schema):
        if kept.all() or not pa.types.is_list(field.type) or field.name in others:
            continue
        column = table.column(number).combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        if np.array_equal(np.asarray(column.value_lengths().fill_null(-1)), lengths):
            offsets = pa.array(np.concatenate([[0], np.cumsum(new_lengths)]).astype(np.int32))
            cut = pa.ListArray.from_arrays(offsets, column.flatten().filter(pa.array(kept))).cast(field.type)
            table = table.set_column(number, field, cut)
    report.count(CUT_ITEMS, int((~kept).sum()))
    report.count(CUT_CLICKS, int((clicked & ~kept).sum()))
    field = pa.field(schema.cut_label, CUT_LABELS)
    labels = make_sequences(*lists.collect_cut_labels(kept), CUT_LABELS)
    if field.name in table.column_names:
        return table.set_column(table.column_names.index(field.name), field, labels)
    return table.append_column(field, labels)
