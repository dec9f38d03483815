"""``RerankCollator``: turns lists into a batch of tensors, for any ``Trainer`` or data loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.processing.processor import ListProcessor
from hf_rerank.processing.ragged import RaggedLists
from hf_rerank.processing.rows import convert_to_columns
from hf_rerank.schema import MODEL_TENSORS
from hf_rerank.validation import Lists


class RerankCollator:
    """Encodes lists and pads them to the longest of the batch.

    With it a plain ``transformers.Trainer`` trains and evaluates these models on unencoded lists (set
    ``remove_unused_columns=False``). With the processor of the example of ``ListProcessor``, the two lists ::

        RerankCollator(processor)([
            {"category": ["shoes", "bags"], "price": [9.0, 99.0], "gender": "f", "click": [0, 1]},
            {"category": ["bags"], "price": [99.0], "gender": None, "click": [1]},
        ])

    become the batch ::

        item_categorical  int64   [2, 2, 1]  [[[3], [2]], [[2], [0]]]         0 at padding
        item_dense        float32 [2, 2, 1]  [[[-1.0], [1.0]], [[1.0], [0.0]]]
        user_categorical  int64   [2, 1]     [[2], [1]]                       1: the unknown value, for a null
        mask              bool    [2, 2]     [[True, True], [True, False]]
        position_ids      int64   [2, 2]     [[0, 1], [0, 1]]                 padding follows the items
        labels            float32 [2, 2]     [[0.0, 1.0], [1.0, -100.0]]      -100 at padding

    Args:
        processor: Encodes the lists.
        with_labels: Require the columns of labels, positions, weights and propensities that the schema names. False:
            read those that the lists have. Default True.
        highest_label: Larger labels are refused; use 1 with log-losses. Default: no limit.
        truncate: Cut lists that are longer than ``schema.max_list_length`` to their first positions. False (default):
            they are an error.
        all_tensors: Also return the tensors that ``forward`` does not take: ``list_id``, ``cut_labels``,
            ``attraction``. Default False.

    Raises:
        InputError: A list is wrong; the message names the list and the column.
    """

    def __init__(
        self,
        processor: ListProcessor,
        *,
        with_labels: bool = True,
        highest_label: float = np.inf,
        truncate: bool = False,
        all_tensors: bool = False,
    ) -> None:
        self.processor, self.with_labels = processor, with_labels
        self.highest_label, self.truncate, self.all_tensors = highest_label, truncate, all_tensors

    def __call__(self, lists: Sequence[Mapping[str, Any]] | pa.Table) -> dict[str, Tensor]:
        """Encodes and pads a batch.

        Args:
            lists: One dict per list (of columns, or ``{"items": [{...}, ...], ...}``); or an Arrow table, one row per
                list.

        Returns:
            Tensors by name, with the axes and dtypes of ``hf_rerank.schema.TENSORS``.
        """
        return self.to_tensors(self.encode(lists))

    def encode(
        self, lists: Sequence[Mapping[str, Any]] | pa.Table, first: int = 0, ids: Sequence[str] | None = None
    ) -> RaggedLists:
        """Encodes lists without padding them, and adds their ids.

        Args:
            lists: As for ``__call__``.
            first: Number of the first list, for messages.
            ids: The ids of lists without a ``list_id`` column. None: lists are numbered.
        """
        schema = self.processor.schema
        if isinstance(lists, pa.Table | pa.RecordBatch):
            checked = Lists.from_arrow(lists, schema, with_labels=self.with_labels, first=first)
            has_ids = schema.list_id in lists.schema.names
        else:
            rows = convert_to_columns(lists, schema, first)
            checked = Lists.from_rows(rows, schema, with_labels=self.with_labels, first=first)
            has_ids = bool(rows) and schema.list_id in rows[0]
        if ids is not None and not has_ids:
            checked.ids = list(ids)
        if checked.labels is not None and checked.labels.max(initial=0.0) > self.highest_label:
            self._refuse_label(checked)
        ragged, _ = self.processor.encode(checked, truncate=self.truncate)
        return ragged.with_ids(checked.ids)

    def to_tensors(self, ragged: RaggedLists) -> dict[str, Tensor]:
        """Pads encoded lists; returns the tensors that ``forward`` takes, or all of them with ``all_tensors``."""
        arrays = ragged.pad()
        names = arrays if self.all_tensors else [name for name in MODEL_TENSORS if name in arrays]
        return {name: torch.from_numpy(arrays[name]) for name in names}

    def _refuse_label(self, lists: Lists) -> None:
        assert lists.labels is not None
        index = int(np.argmax(lists.labels))
        row = int(np.searchsorted(np.cumsum(lists.lengths), index, side="right"))
        raise InputError(
            f"label {lists.labels[index]:g} in list {lists.ids[row]}: a log-loss takes labels from 0 to "
            f"{self.highest_label:g} (column {self.processor.schema.label!r}); use a listwise task_loss for grades, "
            "such as softmax_loss, or turn them into clicks"
        )


def decode_list_ids(list_id: Tensor) -> list[str]:
    """The ids in the tensor ``list_id``, uint8 [B, W], as B strings."""
    return [bytes(row).rstrip(b"\0").decode() for row in list_id.cpu().tolist()]


def hash_list_ids(list_id: Tensor) -> Tensor:
    """int64 [B], a hash of each id in ``list_id``, uint8 [B, W]; it does not depend on the batch or its padding."""
    return (list_id.long() * _compute_powers(list_id.shape[1], list_id.device)).sum(-1)


@lru_cache(maxsize=64)
def _compute_powers(count: int, device: torch.device) -> Tensor:
    """int64 [count], powers of the 64-bit FNV prime; kept on the device, so that no step copies data to it."""
    powers, power = [], 1
    for _ in range(count):
        power = (power * 0x100000001B3) % (1 << 64)
        powers.append(power - (1 << 64) if power >> 63 else power)
    return torch.tensor(powers, device=device)
