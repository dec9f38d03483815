"""Decoded lists of PRM Public as flat columns: joined with ground truth, cut, and converted to a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.prm_public.truth import HISTORY_COLUMNS, Truth
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.truncating import choose_first_items, make_sequences
from hf_rerank.errors import InputError


@dataclass
class Decoded:
    """Lists as flat columns.

    Attributes:
        lengths: int64 [B], the number of items of each list.
        per_list: Column -> B values.
        per_item: Column -> the values of all items, concatenated over the lists.
    """

    lengths: np.ndarray
    per_list: dict[str, Any]
    per_item: dict[str, pa.Array]

    def join_truth(self, rows: pa.Table, truth: Truth | None, list_ids: np.ndarray) -> None:
        """Adds ``position``, ``attraction`` and the history from the file of ground truth."""
        assert truth is not None
        named = {"position": ("initial_position", pa.int64()), "attraction": ("attraction", pa.float32())}
        for name, (source, kind) in named.items():
            if source not in rows.column_names:
                continue
            column = rows.column(source).combine_chunks()
            lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
            if (lengths != self.lengths).any():
                row = int(np.argmax(lengths != self.lengths))
                raise InputError(
                    f"{truth.path}: list {list_ids[row]} has {max(lengths[row], 0)} values of {source}, but "
                    f"{self.lengths[row]} items in the raw file"
                )
            self.per_item[name] = column.flatten().cast(kind)
            if self.per_item[name].null_count:
                raise InputError(f"{truth.path}: the column {source} holds nulls: expected one number per item")
        starts = np.cumsum(self.lengths) - self.lengths
        positions = self.per_item["position"].to_numpy()
        of_list = np.repeat(np.arange(len(self.lengths)), self.lengths)
        in_order = np.lexsort((positions, of_list))
        wrong = positions[in_order] != np.arange(len(positions)) - starts[of_list]
        if wrong.any():
            row = int(of_list[int(np.argmax(wrong))])
            raise InputError(
                f"{truth.path}: initial_position of list {list_ids[row]} is not a permutation of "
                f"0..{self.lengths[row] - 1}"
            )
        history_lengths = None
        for name in HISTORY_COLUMNS:
            if name not in rows.column_names:
                continue
            column = rows.column(name).combine_chunks()
            if column.null_count or column.flatten().null_count:
                raise InputError(
                    f"{truth.path}: the column {name} holds nulls: expected one sequence of numbers per list"
                )
            lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
            history_lengths = lengths if history_lengths is None else history_lengths
            if (lengths != history_lengths).any():
                row = int(np.argmax(lengths != history_lengths))
                raise InputError(
                    f"{truth.path}: the history of list {list_ids[row]} has {lengths[row]} values of {name}, but "
                    f"{history_lengths[row]} of {next(iter(HISTORY_COLUMNS))}"
                )
            self.per_list[name] = column

    def cut(self, max_list_length: int, report: PrepareReport) -> None:
        """Cuts lists to the first positions of the initial order, and keeps the labels of the other items.

        Slots keep their order.
        """
        if "position" in self.per_item:
            positions = self.per_item["position"].to_numpy()
        else:
            starts = np.cumsum(self.lengths) - self.lengths
            positions = np.arange(self.lengths.sum()) - np.repeat(starts, self.lengths)
        clicked = self.per_item["click"].to_numpy() > 0
        kept = choose_first_items(self.lengths, positions, clicked, max_list_length, report)
        if kept is None:
            kept = np.ones(len(clicked), dtype=bool)
        of_list = np.repeat(np.arange(len(self.lengths)), self.lengths)
        cut = np.bincount(of_list[~kept], minlength=len(self.lengths))
        self.per_list["click_cut"] = make_sequences(clicked[~kept].astype(np.int8), cut, pa.list_(pa.int8()))
        self.per_item = {name: column.filter(pa.array(kept)) for name, column in self.per_item.items()}
        self.lengths = np.minimum(self.lengths, max_list_length)

    def to_table(self, columns: pa.Schema) -> pa.Table:
        """The lists as a table with these columns."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.lengths)]), type=pa.int32())
        arrays = []
        for field in columns:
            if field.name in self.per_item:
                arrays.append(pa.ListArray.from_arrays(offsets, self.per_item[field.name], type=field.type))
            else:
                arrays.append(pa.array(self.per_list[field.name], type=field.type))
        return pa.Table.from_arrays(arrays, schema=columns)
