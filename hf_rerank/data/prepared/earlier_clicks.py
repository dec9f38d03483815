"""Adds histories made of the lists themselves: the user's clicks in earlier lists, newest first.

"Earlier" refers to the order of the lists. If a file may not be in chronological order, as in PRM Public, an "earlier"
click may lie in the future of the list: such a history is never a default, and must be stated with results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_rerank.data.prepared.card import make_dataset_card, read_card, write_description
from hf_rerank.data.prepared.rewriting import PreparedSource
from hf_rerank.data.report import PrepareReport
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense

LISTS_AGO = "lists_ago"
HISTORY_LENGTH = 50
# Beginning of a sentence in the card of lists without a history.
_NO_HISTORY = "The file is not known to be in order of time"


class EarlierClicks:
    """Collects the clicks of lists, in the order of the lists.

    Memory: 16 bytes per click, and its values.

    Args:
        columns: Item columns whose values are stored for each click.
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
        """Adds the clicks of the next lists."""
        labels = table.column(self.label).combine_chunks()
        clicked = pc.greater(labels.flatten(), 0)
        of_list = labels.value_parent_indices().filter(clicked)
        for name in self.columns:
            self._values[name].append(table.column(name).combine_chunks().flatten().filter(clicked))
        self._users.append(table.column(self.group).combine_chunks().take(of_list))
        self._lists.append(of_list.to_numpy(zero_copy_only=False).astype(np.int64) + self._number)
        self._number += table.num_rows

    def sort(self) -> SortedClicks:
        """The clicks sorted by user and list, after all lists were added."""
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
        # Clicks of anonymous users (null) sort before all others, and are in no history.
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        keys = codes * self.stride + lists
        # Stable: the clicks of one list keep the order of its slots.
        self.order = np.argsort(keys, kind="stable")
        self.keys, self.values = keys[self.order], values
        # Numbers the lists with a click, user by user.
        self.clicked_list = np.cumsum(np.diff(self.keys, prepend=0) != 0)

    def find_histories(self, table: pa.Table, first: int, longest: int) -> dict[str, pa.Array]:
        """Columns ``history_<column>`` and ``history_lists_ago`` for some lists.

        Args:
            table: Consecutive lists, as they were added.
            first: Index of the first of them.
            longest: Maximum number of clicks per list, the newest; within one list, clicks at later slots count as
                newer.

        Returns:
            Arrays of sequences, newest first. ``history_lists_ago``: 1 for the user's latest list with a click, 2 for
            the one before it, and so on. Lists of other users are not counted, as their number depends on the size of
            the split.
        """
        users = pc.index_in(table.column(self.group).combine_chunks(), value_set=self.known)
        codes = users.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        numbers = first + np.arange(table.num_rows, dtype=np.int64)
        start = np.searchsorted(self.keys, codes * self.stride)
        end = np.searchsorted(self.keys, codes * self.stride + numbers)
        lengths = np.where(codes < 0, 0, np.minimum(end - start, longest))
        # The history of a list ends before ``end``, the newest click last.
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(end, lengths) - 1 - within
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        taken = pa.array(self.order[rows])
        found = {
            f"history_{name}": pa.ListArray.from_arrays(offsets, values.take(taken))
            for name, values in self.values.items()
        }
        ago = 1 + self.clicked_list[np.repeat(end - 1, lengths)] - self.clicked_list[rows]
        return {**found, f"history_{LISTS_AGO}": pa.ListArray.from_arrays(offsets, pa.array(ago))}


def collect_clicks(tables: Iterable[pa.Table], columns: Sequence[str], *, label: str, group: str) -> SortedClicks:
    """Collects the clicks of all lists, and sorts them."""
    clicks = EarlierClicks(columns, label=label, group=group)
    for table in tables:
        clicks.add(table)
    return clicks.sort()


def add_earlier_clicks(
    lists_dir: str | Path, output_dir: str | Path, *, history_length: int = HISTORY_LENGTH, progress: bool = True
) -> PrepareReport:
    """Writes a new folder of prepared lists whose histories are the user's clicks in earlier lists of the folder.

    For each categorical item feature there is a column ``history_<name>`` that shares its table, and
    ``history_lists_ago``, how many of the user's lists with a click ago. "Earlier" refers to the order of the raw
    file, within a split (all lists of a user are in the same split). Memory: about 70 bytes per click of the largest
    split.

    Args:
        lists_dir: A folder of prepared lists, split by a group.
        output_dir: Folder to create; must be new or empty.
        history_length: Maximum number of clicks per list, the newest. Default 50.
        progress: Show a progress bar if it takes longer than a second.

    Returns:
        The counts of the new folder.

    Raises:
        InputError: The lists already have a history, or they have no group or no categorical item feature; or see
            ``write_lists``.
    """
    if history_length < 1:
        raise InputError(f"history_length is {history_length}: expected at least 1")
    return _WithEarlierClicks(lists_dir, history_length).write(output_dir, progress=progress)


class _WithEarlierClicks(PreparedSource):
    """The lists of a folder with the user's clicks in earlier lists of it."""

    def __init__(self, folder: str | Path, history_length: int) -> None:
        super().__init__(folder, {"earlier_clicks": history_length})
        old, self.longest = self.schema, history_length
        self.clicked = [feature.name for feature in old.features("items", Categorical)]
        if old.history:
            raise InputError(f"{self.folder} already has a history ({old.history[0].name!r}): leave it as it is")
        if old.group is None or not self.clicked:
            raise InputError(f"{self.folder} has no group, or no categorical item feature: a history needs both")
        self.group = old.group
        added = {f"history_{name}": self.columns.field(name).type for name in self.clicked}
        added[f"history_{LISTS_AGO}"] = pa.list_(pa.int64())
        self.columns = pa.schema([*self.columns, *added.items()])
        history: list[Categorical | Dense] = [Categorical(f"history_{name}", shares=name) for name in self.clicked]
        history.append(Dense(f"history_{LISTS_AGO}", scale="log"))
        self.schema = old.replace(history=history, max_history_length=history_length)

    def facts(self) -> dict[str, SortedClicks]:
        """An empty cache for the clicks of the current split: one split is in memory at a time."""
        super().facts()
        return {}

    def change(
        self, split: str, first: int, lists: pa.Table, facts: dict[str, SortedClicks], report: PrepareReport
    ) -> pa.Table:
        if split not in facts:
            facts.clear()
            tables = _read_columns(self.prepared.files[split], [*self.clicked, self.schema.label, self.group])
            facts[split] = collect_clicks(tables, self.clicked, label=self.schema.label, group=self.group)
        for name, history in facts[split].find_histories(lists, first, self.longest).items():
            field = self.columns.field(name)
            lists = lists.append_column(field, history.cast(field.type))
        return lists

    def describe(self, folder: Path, facts: dict[str, SortedClicks], report: PrepareReport) -> None:
        super().describe(folder, facts, report)
        card = read_card(self.folder)
        how = [
            *card.how,
            f"`history_*`: the user's clicks in earlier lines, newest first, {self.longest} at most; "
            "`history_lists_ago`: how many of the user's lines with a click ago, 1 being the latest.",
        ]
        caveats = [
            *(point for point in card.caveats if not point.startswith(_NO_HISTORY)),
            "The file is not known to be in order of time: an earlier click may lie in the future of its list. State "
            "this with every result that uses the history.",
        ]
        text = make_dataset_card(card.title, report, self.schema, how=how, caveats=caveats, licence=card.licence)
        write_description(folder, self.schema, report, text)


def _read_columns(files: Iterable[Path], names: list[str]) -> Iterator[pa.Table]:
    for path in files:
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(columns=names):
                yield pa.Table.from_batches([batch])
