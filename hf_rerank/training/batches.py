"""Raw lists as the trainer reads them: whole batches of arrays, encoded when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from hf_rerank.errors import InputError
from hf_rerank.lists import Lists
from hf_rerank.processing import LABEL_PADDING, FlatLists, ListProcessor

STREAM_BATCH = 512
# What stands at padding, where it is not 0.
_PADDING = {"labels": LABEL_PADDING}
# Axis 1 of these is the list or the history; all else has no axis to pad.
_LIST_AXIS = ("item_", "history_", "mask", "position_ids", "labels", "weights", "attraction", "list_id")


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
                f"{self.highest_label:g}; use a listwise task_loss for grades, or turn them into clicks"
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


class EncodedStream(IterableDataset):
    """A ``datasets`` IterableDataset of raw lists that gives lists one by one, encoded many at a time.

    Workers of a data loader share the dataset's shards; with fewer shards than workers, some have nothing to do.
    """

    def __init__(
        self, lists: Any, processor: ListProcessor, *, highest_label: float = np.inf, truncate: bool = False
    ) -> None:
        self.lists = lists.with_format("arrow")
        self._encode = ListEncoder(processor, highest_label, truncate)
        # Shared, so that workers that live on see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Shuffles differently in each epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        lists, worker = self.lists, get_worker_info()
        if worker is not None and worker.num_workers > 1:
            shards = min(worker.num_workers, lists.num_shards)
            if worker.id >= shards:
                return
            lists = lists.shard(num_shards=shards, index=worker.id)
        lists.set_epoch(int(self._epoch))
        number = 0
        for table in lists.iter(batch_size=STREAM_BATCH):
            batch = tensors(self._encode(table, range(number, number + table.num_rows)))
            number += table.num_rows
            for row in range(table.num_rows):
                yield {name: values[row : row + 1] for name, values in batch.items()}


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
