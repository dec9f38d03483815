"""A history made of the lists themselves: what the same user clicked in earlier lists, newest first.

"Earlier" is the order in which lists are given. Where a file is not known to be in order of time, as PRM Public's is
not, an "earlier" click may lie in the future of the list: such a history is an option to be named beside results,
never a default.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LISTS_AGO = "lists_ago"


class EarlierClicks:
    """Collects the clicks of lists, in the order of the lists, and gives each list those before it.

    Memory: for each click its values, and 16 bytes.

    Args:
        columns: Item columns of a clicked item to remember.
        label: Item column; a click is a label above 0.
        group: Column of users.
    """

    def __init__(self, columns: Sequence[str], *, label: str, group: str) -> None:
        self.columns, self.label, self.group = list(columns), label, group
        self._values: dict[str, list[pa.Array]] = {name: [] for name in self.columns}
        self._users: list[pa.Array] = []
        self._lists: list[np.ndarray] = []
        self._number = 0

    def add(self, table: pa.Table) -> None:
        """Collects the clicks of lists that follow those before."""
        labels = table.column(self.label).combine_chunks()
        clicked = pc.greater(labels.flatten(), 0)
        of_list = labels.value_parent_indices().filter(clicked)
        for name in self.columns:
            self._values[name].append(table.column(name).combine_chunks().flatten().filter(clicked))
        self._users.append(table.column(self.group).combine_chunks().take(of_list))
        self._lists.append(of_list.to_numpy(zero_copy_only=False).astype(np.int64) + self._number)
        self._number += table.num_rows

    def sorted(self) -> SortedClicks:
        """The clicks by user and list, once all lists were added."""
        users = pa.chunked_array(self._users).combine_chunks() if self._users else pa.array([], pa.int64())
        lists = np.concatenate([*self._lists, np.zeros(0, np.int64)])
        values = {name: pa.chunked_array(parts).combine_chunks() for name, parts in self._values.items() if parts}
        return SortedClicks(users, lists, values, self._number, self.group)


class SortedClicks:
    """Looks up the earlier clicks of lists; made by ``EarlierClicks``."""

    def __init__(
        self, users: pa.Array, lists: np.ndarray, values: dict[str, pa.Array], number_of_lists: int, group: str
    ) -> None:
        encoded = users.dictionary_encode()
        self.known, self.group, self.stride = encoded.dictionary, group, number_of_lists + 1
        keys = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64) * self.stride + lists
        # Stable: the clicks of one list stay in the order of its slots.
        self.order = np.argsort(keys, kind="stable")
        self.keys, self.values = keys[self.order], values

    def histories(self, table: pa.Table, first: int, longest: int) -> dict[str, pa.Array]:
        """Columns ``history_<column>`` and ``history_lists_ago`` for some lists.

        Args:
            table: Lists that follow one another, as they were added.
            first: Number of the first of them, from 0.
            longest: Clicks a list at most, the newest; of one list's clicks, those of its last slots count as newer.

        Returns:
            Arrays of sequences, newest first. ``history_lists_ago``: how many lists of anyone lie between, at least 1.
        """
        users = pc.index_in(table.column(self.group).combine_chunks(), value_set=self.known)
        codes = users.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        numbers = first + np.arange(table.num_rows, dtype=np.int64)
        start = np.searchsorted(self.keys, codes * self.stride)
        end = np.searchsorted(self.keys, codes * self.stride + numbers)
        lengths = np.where(codes < 0, 0, np.minimum(end - start, longest))
        # The history of a list lies before ``end``, the newest last.
        place = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(end, lengths) - 1 - place
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        taken = pa.array(self.order[rows])
        found = {
            f"history_{name}": pa.ListArray.from_arrays(offsets, values.take(taken))
            for name, values in self.values.items()
        }
        ago = np.repeat(numbers, lengths) - self.keys[rows] % self.stride
        return {**found, f"history_{LISTS_AGO}": pa.ListArray.from_arrays(offsets, pa.array(ago))}


def clicks_of(tables: Iterable[pa.Table], columns: Sequence[str], *, label: str, group: str) -> SortedClicks:
    """The clicks of all lists, sorted."""
    clicks = EarlierClicks(columns, label=label, group=group)
    for table in tables:
        clicks.add(table)
    return clicks.sorted()
