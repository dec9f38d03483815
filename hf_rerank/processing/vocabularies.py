"""Maps the values of a categorical column to rows of its embedding table.

In every table, row 0 is padding and row 1 the unknown value. A ``TableVocabulary`` is learned; a ``HashVocabulary`` is
not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.errors import InputError

PADDING, UNKNOWN, FIRST_VALUE = 0, 1, 2
# A direct table from value to row is used if it is at most this many times as long as the vocabulary.
_DIRECT_TABLE_FACTOR = 8


class TableVocabulary:
    """Learned values: value ``i`` has row ``i + 2``; all others, and nulls, have row 1.

    Args:
        values: Distinct integers (int64 array) or strings (list), in row order.
    """

    def __init__(self, values: np.ndarray | list[str]) -> None:
        self.values = values
        self.is_text = isinstance(values, list)
        if isinstance(values, list):
            self._row_of_text = {value: row for row, value in enumerate(values, start=FIRST_VALUE)}
            return
        rows = np.arange(FIRST_VALUE, FIRST_VALUE + len(values), dtype=np.int64)
        highest = int(values.max()) if len(values) else -1
        self._direct: np.ndarray | None = None
        if len(values) and int(values.min()) >= 0 and highest < _DIRECT_TABLE_FACTOR * len(values) + 1024:
            # The last entry is used for all values beyond the table.
            self._direct = np.full(highest + 2, UNKNOWN, dtype=np.int32)
            self._direct[values] = rows
        else:
            order = np.argsort(values, kind="stable")
            self._sorted, self._sorted_rows = values[order], rows[order]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table that the values need."""
        return len(self.values) + FIRST_VALUE

    def look_up(self, column: pa.Array, name: str) -> np.ndarray:
        """int64 rows [N] of an arrow column of integers or text."""
        if pa.types.is_null(column.type) or not len(self):
            return np.full(len(column), UNKNOWN, dtype=np.int64)
        holds_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if holds_text != self.is_text:
            raise InputError(
                f"column {name!r} holds {'text' if holds_text else 'integers'}, but the processor was fitted on "
                f"{'text' if self.is_text else 'integers'}: give the same type as in training"
            )
        if holds_text:
            return _look_up_texts(column, lambda text: self._row_of_text.get(text, UNKNOWN))
        values, missing = _to_integers(column)
        if self._direct is not None:
            # Read as unsigned, a negative value also lies beyond the table.
            indices = np.minimum(values.view(np.uint64), np.uint64(len(self._direct) - 1))
            rows = self._direct[indices].astype(np.int64)
        else:
            index = np.searchsorted(self._sorted, values).clip(max=len(self) - 1)
            rows = np.where(self._sorted[index] == values, self._sorted_rows[index], UNKNOWN)
        if missing is not None:
            rows[missing] = UNKNOWN
        return rows

    def extend(self, values: np.ndarray | list[str]) -> TableVocabulary:
        """A vocabulary with rows for new values after the existing ones."""
        if not len(self):
            return TableVocabulary(values)
        if isinstance(self.values, list):
            return TableVocabulary([*self.values, *values])
        return TableVocabulary(np.concatenate([self.values, values]))


class HashVocabulary:
    """Rows 2 to ``hash_size - 1`` by hash: splitmix64 of integers, blake2b (64 bits) of UTF-8 text; nulls: 1."""

    def __init__(self, hash_size: int) -> None:
        self.hash_size = hash_size

    @property
    def num_rows(self) -> int:
        return self.hash_size

    def look_up(self, column: pa.Array, name: str) -> np.ndarray:
        """int64 rows [N] of an arrow column of integers or text."""
        if pa.types.is_null(column.type):
            return np.full(len(column), UNKNOWN, dtype=np.int64)
        buckets = self.hash_size - FIRST_VALUE
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return _look_up_texts(column, lambda text: FIRST_VALUE + blake2b_64(text) % buckets)
        values, missing = _to_integers(column)
        rows = FIRST_VALUE + (splitmix64(values) % np.uint64(buckets)).astype(np.int64)
        if missing is not None:
            rows[missing] = UNKNOWN
        return rows


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The splitmix64 generator's first output from each value as its state (Steele, Lea, Flood 2014), uint64."""
    with np.errstate(over="ignore"):
        mixed = values.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def blake2b_64(text: str) -> int:
    """blake2b with a digest of 8 bytes over the UTF-8 text, as a big-endian integer."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class ValueCounts:
    """Counts the values of one column over many batches, to make its vocabulary."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._texts: dict[str, int] = {}
        self.is_text: bool | None = None

    def add(self, column: pa.Array, name: str) -> None:
        """Counts a batch; nulls are not counted."""
        column = column.drop_null()
        if pa.types.is_null(column.type) or not len(column):
            return
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if self.is_text not in (None, is_text):
            raise InputError(f"column {name!r} holds integers in some lists and text in others: expected one type")
        self.is_text = is_text
        if is_text:
            for entry in pc.value_counts(column).to_pylist():
                self._texts[entry["values"]] = self._texts.get(entry["values"], 0) + entry["counts"]
            return
        self._parts.append(np.unique(_to_integers(column)[0], return_counts=True))
        if len(self._parts) >= 64:
            self._parts = [self._merge()]

    def add_counts(self, other: ValueCounts, name: str) -> None:
        """Adds the counts of the column ``name``."""
        if other.is_text is None:
            return
        if self.is_text not in (None, other.is_text):
            raise InputError(
                f"column {name!r} holds {_name_kind(other.is_text)}, but other columns of its table hold "
                f"{_name_kind(not other.is_text)}: expected one type"
            )
        self.is_text = other.is_text
        for text, count in other._texts.items():
            self._texts[text] = self._texts.get(text, 0) + count
        self._parts = [*self._parts, *other._parts]

    def count_known(self, vocabulary: TableVocabulary, name: str) -> int:
        """The number of counted values that have a row in the vocabulary."""
        if self.is_text is None:
            return 0
        values: Any = list(self._texts) if self.is_text else self._merge()[0]
        counts = np.array(list(self._texts.values())) if self.is_text else self._merge()[1]
        column = pa.array(values, pa.string() if self.is_text else pa.int64())
        return int(counts[vocabulary.look_up(column, name) != UNKNOWN].sum())

    def find_new_values(
        self, known: TableVocabulary, name: str, *, min_count: int
    ) -> tuple[np.ndarray | list[str], int]:
        """The values that a vocabulary lacks, sorted, and the number of further ones that are too rare."""
        if self.is_text is None:
            return known.values[:0], 0
        values: Any = sorted(self._texts) if self.is_text else self._merge()[0]
        column = pa.array(values, pa.string() if self.is_text else pa.int64())
        lacking = known.look_up(column, name) == UNKNOWN
        counts = np.array([self._texts[text] for text in values]) if self.is_text else self._merge()[1]
        new = np.flatnonzero(lacking & (counts >= min_count))
        return [values[index] for index in new] if self.is_text else values[new], int(lacking.sum()) - len(new)

    def make_vocabulary(self, *, min_count: int, size: int | None) -> tuple[TableVocabulary, int, int]:
        """The vocabulary, the number of values that were too rare, and the number of others beyond ``size`` rows.

        Rows are in the order of the sorted values; ``size`` keeps the most frequent values, ties broken by value.
        """
        if self.is_text:
            names = sorted(self._texts)
            counts = np.array([self._texts[name] for name in names], dtype=np.int64)
        else:
            integers, counts = self._merge()
        keep = np.flatnonzero(counts >= min_count)
        rare = len(counts) - len(keep)
        left_out = 0
        if size is not None and len(keep) > size - FIRST_VALUE:
            left_out = len(keep) - (size - FIRST_VALUE)
            most_frequent = np.argsort(-counts[keep], kind="stable")[: size - FIRST_VALUE]
            keep = np.sort(keep[most_frequent])
        if self.is_text:
            return TableVocabulary([names[index] for index in keep]), rare, left_out
        return TableVocabulary(integers[keep]), rare, left_out

    def _merge(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._parts:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        values, owner = np.unique(np.concatenate([part[0] for part in self._parts]), return_inverse=True)
        counts = np.bincount(owner, weights=np.concatenate([part[1] for part in self._parts]), minlength=len(values))
        return values, counts.astype(np.int64)


def _name_kind(is_text: bool) -> str:
    return "text" if is_text else "integers"


def _to_integers(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """int64 values (0 at nulls), and a bool array that is True at nulls, or None if there are no nulls."""
    if not column.null_count:
        return column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False), None
    missing = column.is_null().to_numpy(zero_copy_only=False)
    return column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), missing


def _look_up_texts(column: pa.Array, row_of: Callable[[str], int]) -> np.ndarray:
    """Looks each distinct text up once."""
    encoded = column.dictionary_encode()
    rows = np.array([row_of(text) for text in encoded.dictionary.to_pylist()] + [UNKNOWN], dtype=np.int64)
    codes = encoded.indices.fill_null(len(rows) - 1).to_numpy(zero_copy_only=False)
    return rows[codes]
