"""Encoded lists of different lengths, stored without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hf_rerank.schema import AFTER_THE_ITEMS, TENSORS

# Axis -> the tensor that is True at its real entries. The bytes of an id end with a zero instead.
_MASKS = {spec.axes[1]: name for name, spec in TENSORS.items() if spec.role == "mask"}


@dataclass(frozen=True)
class RaggedLists:
    """Encoded lists before padding.

    Attributes:
        lengths: Axis -> int64 [B], the number of rows of each list: ``L`` items, ``H`` history items (where the
            schema has a history), ``C`` items that were cut (if their labels are known), ``W`` bytes of the id.
        rows: Name of a tensor -> its rows, concatenated over the lists: [N, ...] for a tensor with such an axis,
            [B, ...] for a tensor with one row per list. Integers may be narrower than the tensor.
    """

    lengths: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.lengths["L"])

    def pad(self) -> dict[str, np.ndarray]:
        """Pads the lists: arrays by name, masks included, with the dtypes and padding values of ``TENSORS``."""
        real = {axis: _make_mask(lengths) for axis, lengths in self.lengths.items()}
        arrays = {_MASKS[axis]: mask for axis, mask in real.items() if axis in _MASKS}
        for name, rows in self.rows.items():
            spec = TENSORS[name]
            arrays[name] = _pad(rows, real.get(spec.axes[1]), spec.fill, spec.dtype)
        return arrays

    def take(self, lists: Sequence[int] | np.ndarray) -> RaggedLists:
        """The lists with these numbers, in this order."""
        chosen = np.asarray(lists, dtype=np.int64)
        rows = {}
        for name, values in self.rows.items():
            axis = TENSORS[name].axes[1]
            rows[name] = values[chosen] if axis not in self.lengths else self._runs[axis].take(values, chosen)
        return RaggedLists({axis: lengths[chosen] for axis, lengths in self.lengths.items()}, rows)

    def with_ids(self, ids: Sequence[str]) -> RaggedLists:
        """The same lists with the tensor ``list_id``, the UTF-8 bytes of these ids.

        As bytes, because processes exchange tensors only.
        """
        encoded = [text.encode() for text in ids]
        lengths = np.array([len(text) for text in encoded], dtype=np.int64)
        joined = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()  # torch requires a writable array
        return RaggedLists({**self.lengths, "W": lengths}, {**self.rows, "list_id": joined})

    def make_empty(self, count: int) -> RaggedLists:
        """``count`` lists without items, with the user features of the first list; used to fill up a batch."""
        rows = {name: values[:0] for name, values in self.rows.items()}
        rows |= {
            name: np.repeat(values[:1], count, axis=0)
            for name, values in self.rows.items()
            if TENSORS[name].axes[1] not in self.lengths
        }
        return RaggedLists({axis: np.zeros(count, dtype=np.int64) for axis in self.lengths}, rows)

    @cached_property
    def _runs(self) -> dict[str, _Runs]:
        return {axis: _Runs(lengths) for axis, lengths in self.lengths.items()}


def concatenate(parts: Sequence[RaggedLists]) -> RaggedLists:
    """Concatenates parts that have the same tensors."""
    first = parts[0]
    return RaggedLists(
        {axis: np.concatenate([part.lengths[axis] for part in parts]) for axis in first.lengths},
        {name: np.concatenate([part.rows[name] for part in parts]) for name in first.rows},
    )


class _Runs:
    """Where the rows of each list begin."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths.astype(np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        # Where all lists are equally long, whole lists are copied, which is faster than row by row.
        self.same = int(lengths[0]) if len(lengths) and (lengths == lengths[0]).all() else 0

    def take(self, rows: np.ndarray, lists: np.ndarray) -> np.ndarray:
        if self.same:
            by_list = rows.reshape(len(self.lengths), self.same, *rows.shape[1:])
            return by_list[lists].reshape(len(lists) * self.same, *rows.shape[1:])
        lengths = self.lengths[lists]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return rows[np.repeat(self.starts[lists], lengths) + within]


def _make_mask(lengths: np.ndarray) -> np.ndarray:
    return np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]


def _pad(rows: np.ndarray, mask: np.ndarray | None, fill: float | str, dtype: str) -> np.ndarray:
    if mask is None or len(rows) == mask.size:  # nothing to pad
        whole = rows if mask is None else rows.reshape(*mask.shape, *rows.shape[1:])
        array = np.ascontiguousarray(whole, dtype=dtype)
        return array if array.flags.writeable else array.copy()  # Arrow's memory is read-only
    padded = np.full((*mask.shape, *rows.shape[1:]), 0 if fill == AFTER_THE_ITEMS else fill, dtype=dtype)
    padded[mask] = rows
    return np.where(mask, padded, np.arange(mask.shape[1])) if fill == AFTER_THE_ITEMS else padded
