"""Checks every list before anything is written, and assigns it to a split.

All lists are read once; a few numbers per list are kept in memory: its split, a hash of its id, its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from hf_rerank.data.custom.cutting import cut_lists
from hf_rerank.data.custom.data_checks import DataChecks
from hf_rerank.data.custom.own_datasets import assign_splits_by_columns, choose_split_columns
from hf_rerank.data.custom.own_files import EMPTY_FILES, OwnFiles, PartUnit
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS
from hf_rerank.data.time_split import describe_empty_splits, read_times, split_by_time
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import ListSchema
from hf_rerank.validation import Lists, refuse_repeated_ids

ONE_ITEM = "lists of one item"
ANONYMOUS = "lists without a user, each a group of its own"


@dataclass(frozen=True)
class SplitFacts:
    """The result of checking all lists.

    Attributes:
        split: uint8 [N], index into ``SPLITS`` of the split of each list, in the order of the units.
        first: Name of a unit -> index of its first list.
        warnings: Valid data that is most likely a mistake, one sentence each.
        counts: Counts over all lists, by name.
    """

    split: np.ndarray
    first: dict[str, int]
    warnings: list[str]
    counts: dict[str, int]


class CheckedSource(Protocol):
    """What ``ListChecker`` needs of a source; ``custom_source`` implements it.

    Attributes:
        own: The files, after ``scan``.
        schema: Describes the columns.
        time: Column of times to split by. None: split by group.
        ranker_train, cut, progress: As for ``prepare_own``.
        size_unit: Unit of ``PartUnit.size``, for the progress bar.
    """

    own: OwnFiles
    schema: ListSchema
    time: str | None
    ranker_train: bool
    cut: bool
    progress: bool
    size_unit: str

    def read_tables(self, unit: PartUnit, counts: dict[str, int]) -> Iterator[tuple[str | None, pa.Table]]:
        """The lists of a unit, uncut, each table with the split given by the name of its file, or None."""
        ...


class ListChecker:
    """Checks every list of a source, and assigns it to a split.

    Args:
        source: The lists.

    Raises:
        InputError: The lists come with splits, although they should be split by time.
    """

    def __init__(self, source: CheckedSource) -> None:
        self.source, self.schema = source, source.schema
        self.checks = DataChecks(source.schema)
        self.given = any(file.split for file in source.own.files)
        offered = source.own.columns.names
        if source.time is not None and (self.given or "split" in offered):
            where = "files named after splits" if self.given else "column 'split'"
            raise InputError(f"the lists already have splits ({where}): leave out split_by, or remove the splits")
        self.by = ["split"] if "split" in offered and not self.given else []
        if not self.given and not self.by and source.time is None:
            self.by = choose_split_columns(source.schema, offered)
        self.splits: list[np.ndarray] = []
        self.times: list[pa.Table] = []
        self.anonymous = 0

    def check(self, units: list[PartUnit]) -> SplitFacts:
        """Reads the units once, in order.

        Raises:
            InputError: A list is wrong, or there are none.
        """
        source, first, number = self.source, {}, 0
        total = sum(unit.size for unit in units)
        with tqdm(total=total, unit=source.size_unit, desc="Checking", delay=1, disable=not source.progress) as bar:
            for unit in units:
                first[unit.name] = number
                for split, table in source.read_tables(unit, {}):
                    self._add(split, table, number)
                    number += table.num_rows
                bar.update(unit.size)
        if not number:
            raise InputError(f"{source.own.files[0].path} holds no lists with items: expected at least one")
        empty: list[str] = []
        if source.time is not None:
            times = read_times(self.times, source.time)
            of_list = split_by_time(times, ranker_train=source.ranker_train)
            empty = describe_empty_splits(of_list, times, source.time)
        else:
            of_list = np.concatenate(self.splits)
        self._refuse_repeated_ids(units)
        codes = {split: code for code, split in enumerate(SPLITS)}
        numbers = np.array([codes[split] for split in of_list], dtype=np.uint8)
        given = self.given or self.by == ["split"]
        warnings = self.checks.list_messages(np.array(SPLITS)[numbers], given=given)
        warnings += empty
        if not empty and not (numbers == codes["train"]).any():
            warnings.append(_describe_missing_train(np.unique(of_list).tolist(), given))
        counts = {ANONYMOUS: self.anonymous, ONE_ITEM: self.checks.one_item, EMPTY_FILES: source.own.empty_files}
        return SplitFacts(numbers, first, warnings, counts)

    def _add(self, split: str | None, table: pa.Table, first: int) -> None:
        lists = cut_lists(table, self.schema, PrepareReport()) if self.source.cut else table
        try:
            batch = Lists.from_arrow(lists, self.schema, with_labels=True, first=first)
            _refuse_long_lists(batch, self.schema)
        except InputError as error:
            raise InputError(f"{split}: {error}" if split else str(error)) from None
        group = self.schema.group
        users = table.column(group) if group is not None and group in table.column_names else None
        if users is not None:
            if pa.types.is_list(users.type):
                raise InputError(f"column {group!r} holds {users.type}: expected one user per list, not one per item")
            self.anonymous += users.null_count
        self.checks.add(batch, users, learned_from=split in (None, "train"))
        if self.source.time is not None:
            if self.source.time not in table.column_names:
                read_times([table], self.source.time)
            self.times.append(table.select([self.source.time]))
        elif split is not None:
            self.splits.append(np.full(len(batch), split, dtype=object))
        else:
            rows = table.select(self.by) if self.by else len(batch)
            of_list = assign_splits_by_columns(rows, self.by, self.source.ranker_train, first)
            for unknown in set(of_list) - set(SPLITS):
                raise InputError(
                    f"column 'split' holds {unknown!r}: prepared lists have the splits {', '.join(SPLITS)}"
                    f"{suggestion(unknown, SPLITS)}; rename it"
                )
            self.splits.append(of_list)

    def _refuse_repeated_ids(self, units: list[PartUnit]) -> None:
        if self.schema.list_id is None or not self.checks.has_repeated_ids():
            return
        ids: list[str] = []
        for unit in units:
            for _, table in self.source.read_tables(unit, {}):
                ids += [str(value) for value in table.column(self.schema.list_id).to_pylist()]
        refuse_repeated_ids(ids, self.schema)


def _refuse_long_lists(batch: Lists, schema: ListSchema) -> None:
    too_long = batch.lengths > schema.max_list_length
    if too_long.any():
        row = int(np.argmax(too_long))
        raise InputError(
            f"list {batch.ids[row]} has {batch.lengths[row]} items, but the schema allows max_list_length="
            f"{schema.max_list_length}: raise max_list_length in the schema, or cut such lists with cut=True "
            "(--max-list-length N --cut)"
        )


def _describe_missing_train(found: list[str], given: bool) -> str:
    remedy = (
        "name files, or values of column 'split', 'train'" if given else "give more lists, or leave out ranker_train"
    )
    return f"no list is in train (all are in {', '.join(found)}), so nothing can be trained on them: {remedy}"
