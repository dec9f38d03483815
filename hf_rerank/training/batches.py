"""Raw lists as the trainer reads them: whole batches of arrays, encoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_rerank.errors import InputError
from hf_rerank.validation import Lists
from hf_rerank.processing import LABEL_PADDING, FlatLists, ListProcessor

# What stands at padding, where it is not 0.
_PADDING = {"labels": LABEL_PADDING}
# Axis 1 of these is the list or the history; all else has no axis to pad.
_LIST_AXIS = (
    "item_",
    "history_",
    "mask",
    "position_ids",
    "labels",
    "weights",
    "propensities",
    "attraction",
    "list_id",
)


class ListEncoder:
    """Encodes arrow tables of labelled lists, with ids (else their numbers) as bytes beside the model's input.

    Args:
        processor: Encodes the lists.
        highest_label: Labels above are refused (1 under log-losses).
        truncate: Cut lists that are too long to their first places, instead of refusing them.
    """

    def __init__(self, processor: ListProcessor, highest_label: float, truncate: bool) -> None:
        self.processor, self.highest_label, self.truncate = processor, highest_label, truncate

    def __call__(self, table: pa.Table, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """The arrays of a batch, from the lists of a table, whose numbers are given."""
        flat, ids = self.flat(table, numbers)
        return {**flat.padded(), "list_id": ids_as_bytes(ids)}

    def flat(self, table: pa.Table, numbers: Sequence[int]) -> tuple[FlatLists, list[str]]:
        """The lists before padding, and their ids."""
        schema = self.processor.schema
        lists = Lists.from_arrow(table, schema, with_labels=True, first=numbers[0])
        if schema.list_id not in table.column_names:
            lists.ids = [str(number) for number in numbers]
        assert lists.labels is not None
        if lists.labels.max(initial=0.0) > self.highest_label:
            index = int(np.argmax(lists.labels))
            row = int(np.searchsorted(np.cumsum(lists.lengths), index, side="right"))
            raise InputError(
                f"label {lists.labels[index]:g} in list {lists.ids[row]}: a log-loss takes labels from 0 to "
                f"{self.highest_label:g} (column {schema.label!r}); use a listwise task_loss for grades, or turn them "
                "into clicks"
            )
        return self.processor.encode_flat(lists, truncate=self.truncate)[0], lists.ids


class EncodedLists(Dataset):
    """A ``datasets`` Dataset of raw lists that gives whole batches of tensors.

    Args:
        lists: The dataset.
        processor: Encodes its lists.
        highest_label: Labels above are refused (1 under log-losses).
        truncate: Cut lists that are too long to their first places, instead of refusing them.
    """

    def __init__(
        self, lists: Any, processor: ListProcessor, *, highest_label: float = np.inf, truncate: bool = False
    ) -> None:
        self.lists = lists.with_format("arrow")
        self._encode = ListEncoder(processor, highest_label, truncate)

    def __len__(self) -> int:
        return len(self.lists)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The lists of these numbers as one batch."""
        try:
            return tensors(self._encode(self.lists[list(indices)], indices))
        except InputError:
            # A message counts from the batch's first list: the lists one by one give the number in the dataset.
            for index in indices:
                self._encode(self.lists[[index]], [index])
            raise

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One list, as a batch of one."""
        return self.__getitems__([index])


class EncodedTable:
    """Encoded lists from which batches are taken.

    Args:
        flat: The lists, before padding; integers may be int32, and are int64 in batches.
        ids: The UTF-8 of their ids, one after another, uint8.
        id_lengths: How many bytes each id has [B].
    """

    def __init__(self, flat: FlatLists, ids: np.ndarray, id_lengths: np.ndarray) -> None:
        self._flat, self._id_bytes = flat, ids
        self._items, self._ids = _Runs(flat.lengths), _Runs(id_lengths)
        self._history = None if flat.history_lengths is None else _Runs(flat.history_lengths)

    def __len__(self) -> int:
        return len(self._items.lengths)

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The lists of these numbers as one batch."""
        chosen = np.asarray(numbers, dtype=np.int64)
        items, history, flat = self._items, self._history, self._flat
        arrays = FlatLists(
            items.lengths[chosen],
            None if history is None else history.lengths[chosen],
            {name: _as_int64(items.take(rows, chosen)) for name, rows in flat.items.items()},
            {name: _as_int64(rows[chosen]) for name, rows in flat.user.items()},
            {}
            if history is None
            else {name: _as_int64(history.take(rows, chosen)) for name, rows in flat.history.items()},
        ).padded()
        arrays["list_id"] = padded_ids(self._ids.take(self._id_bytes, chosen), self._ids.lengths[chosen])
        return tensors(arrays)


class _Runs:
    """Runs of rows, one a list: how many rows each has and where it starts."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths.astype(np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        # Where all lists are equally long, whole lists are copied, which is faster than row by row.
        self.same = int(lengths[0]) if (lengths == lengths[0]).all() else 0

    def take(self, rows: np.ndarray, lists: np.ndarray) -> np.ndarray:
        """The rows of some lists, one list after another."""
        if self.same:
            of_list = rows.reshape(len(self.lengths), self.same, *rows.shape[1:])
            return of_list[lists].reshape(-1, *rows.shape[1:])
        lengths = self.lengths[lists]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return rows[np.repeat(self.starts[lists], lengths) + within]


def _as_int64(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.int64) if rows.dtype == np.int32 else rows


def collate(batch: dict[str, Tensor] | list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A whole batch as it comes; batches of one joined, padded to the longest."""
    if isinstance(batch, dict):
        return batch
    joined = {}
    for name in batch[0]:
        parts = [part[name] for part in batch]
        if name.startswith(_LIST_AXIS):
            longest = max(part.shape[1] for part in parts)
            parts = [_widened(part, longest, _PADDING.get(name, 0), name) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def ids_as_bytes(ids: Sequence[str]) -> np.ndarray:
    """Texts as uint8 [B, W]: their UTF-8, zeros after the end. Tensors travel between processes where texts do not."""
    encoded = [text.encode() for text in ids]
    lengths = np.array([len(text) for text in encoded], dtype=np.int64)
    return padded_ids(np.frombuffer(b"".join(encoded), dtype=np.uint8), lengths)


def padded_ids(joined: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """As ``ids_as_bytes``, of the bytes of all texts one after another and how many each has."""
    padded = np.zeros((len(lengths), max(1, lengths.max(initial=0))), dtype=np.uint8)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = joined
    return padded


def ids_from_bytes(coded: Tensor) -> list[str]:
    """The texts that ``ids_as_bytes`` coded."""
    return [bytes(row).rstrip(b"\0").decode() for row in coded.cpu().tolist()]


def list_keys(coded: Tensor) -> Tensor:
    """int64 [B], a hash of each id: the same list has the same key in any batch, padded or not."""
    powers = torch.tensor(_odd_powers(coded.shape[1]), device=coded.device)
    return (coded.long() * powers).sum(-1)


def _odd_powers(count: int) -> list[int]:
    powers, power = [], 1
    for _ in range(count):
        power = (power * 0x100000001B3) % (1 << 64)
        powers.append(power - (1 << 64) if power >> 63 else power)
    return powers


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The arrays of a batch, not copied."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _widened(part: Tensor, longest: int, filler: float, name: str) -> Tensor:
    missing = longest - part.shape[1]
    if not missing:
        return part
    if name == "position_ids":
        more = torch.arange(part.shape[1], longest).expand(part.shape[0], missing)
    else:
        more = torch.full((part.shape[0], missing, *part.shape[2:]), filler, dtype=part.dtype)
    return torch.cat([part, more.to(part.dtype)], dim=1)
