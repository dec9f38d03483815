"""Raw lists of a map-style dataset as the trainer reads them: encoded batch by batch, padded by ``collate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_rerank.errors import InputError
from hf_rerank.processing.collator import RerankCollator
from hf_rerank.processing.ragged import RaggedLists, concatenate
from hf_rerank.schema import MODEL_TENSORS


class EncodedLists(Dataset):
    """A ``datasets`` Dataset of raw lists that returns whole batches of encoded lists.

    Args:
        lists: The dataset.
        collator: Encodes its lists.
    """

    def __init__(self, lists: Any, collator: RerankCollator) -> None:
        self.lists = lists.with_format("arrow")
        self.collator = collator

    def __len__(self) -> int:
        return len(self.lists)

    def __getitems__(self, indices: Sequence[int]) -> RaggedLists:
        """The lists with these numbers."""
        try:
            return self.collator.encode(self.lists[list(indices)], indices[0], [str(index) for index in indices])
        except InputError:
            # The message counts from the batch's first list: encoding one by one gives the number in the dataset.
            for index in indices:
                self.collator.encode(self.lists[[index]], index)
            raise

    def __getitem__(self, index: int) -> RaggedLists:
        return self.__getitems__([index])


class FilledLists(Dataset):
    """Encoded lists, and after them lists without items, up to a whole batch on every process.

    Samplers of several processes would otherwise repeat lists, which would count twice in the loss of a batch.

    Args:
        lists: ``EncodedLists``, or a dataset with the same methods.
        step: Number of lists in a batch over all processes.
    """

    def __init__(self, lists: Any, step: int) -> None:
        self.lists, self.step = lists, step

    def __len__(self) -> int:
        return -(-len(self.lists) // self.step) * self.step

    def __getitems__(self, indices: Sequence[int]) -> RaggedLists:
        """The lists with these numbers, in ascending order."""
        real = [index for index in indices if index < len(self.lists)]
        found = self.lists.__getitems__(real or [0])
        filling = found.make_empty(len(indices) - len(real))
        return concatenate([found, filling]) if real else filling

    def __getitem__(self, index: int) -> RaggedLists:
        return self.__getitems__([index])


def collate(batch: RaggedLists | list[RaggedLists]) -> dict[str, Tensor]:
    """Collates encoded lists into tensors, padded to the longest list."""
    lists = batch if isinstance(batch, RaggedLists) else concatenate(batch)
    return {name: torch.from_numpy(array) for name, array in lists.pad().items()}


def split_batch(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits a batch into the inputs of a model's ``forward`` and the rest (ids, ground truth)."""
    features = {name: value for name, value in batch.items() if name in MODEL_TENSORS}
    return features, {name: value for name, value in batch.items() if name not in features}
