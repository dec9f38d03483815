"""Splits by time: the oldest lists first; lists with equal times are in the same split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl
import pyarrow as pa

from hf_rerank.data.splits import BUCKETS, SPLITS, UPPER_BOUNDS
from hf_rerank.data.times import EXPECTED, parse_times
from hf_rerank.errors import InputError, suggestion

PREFIX = "time:"


def parse_split_by(split_by: str) -> str | None:
    """The column of ``split_by="time:COLUMN"``; None for ``"group"``.

    Raises:
        InputError: ``split_by`` is neither.
    """
    if split_by == "group":
        return None
    if not isinstance(split_by, str) or not split_by.startswith(PREFIX) or split_by == PREFIX:
        raise InputError(
            f"split_by is {split_by!r}: expected 'group', or 'time:COLUMN' with the column that holds the time"
        )
    return split_by.removeprefix(PREFIX)


def split_by_time(times: np.ndarray, *, ranker_train: bool = True) -> np.ndarray:
    """The split of each list, by the shares of ``splits.UPPER_BOUNDS``, oldest first.

    Of n lists the first ``n * 4,000 // 10,000`` go to ``ranker_train``, and so on. Lists with equal times are all in
    the earlier split; if that would leave a split empty, the splits before it end at earlier times. A split is empty
    only if there are fewer different times than splits (see ``describe_empty_splits``).

    Args:
        times: The time of each list, N numbers.
        ranker_train: False: the lists of ``ranker_train`` go to ``train``. Default True.

    Returns:
        Array of N strings.
    """
    splits = SPLITS if ranker_train else SPLITS[1:]
    different, time_of_list = np.unique(times, return_inverse=True)
    lists_until = np.cumsum(np.bincount(time_of_list, minlength=len(different)))
    uppers = [len(times) * UPPER_BOUNDS[split] // BUCKETS for split in splits]
    # The number of different times until the end of each split.
    ends = [int(np.searchsorted(lists_until, upper)) + 1 if upper else 0 for upper in uppers]
    if len(different) >= len(splits):
        for number in range(len(splits) - 2, -1, -1):
            ends[number] = min(ends[number], ends[number + 1] - 1)
        for number in range(len(splits) - 1):
            ends[number] = max(ends[number], ends[number - 1] + 1 if number else 1)
    return np.array(splits, dtype=object)[np.searchsorted(ends, time_of_list, side="right")]


def describe_empty_splits(of_list: np.ndarray, times: np.ndarray, column: str) -> list[str]:
    """Describes train, validation and test splits without lists in one sentence; no sentence if there are none.

    Args:
        of_list: The split of each list, as ``split_by_time`` returns it.
        times: The time of each list.
        column: The column of times, for the message.
    """
    empty = [split for split in SPLITS[1:] if not (of_list == split).any()]
    if not empty or not len(times):
        return []
    different, last = len(np.unique(times)), int((times == times.max()).sum())
    number = "1 time" if different == 1 else f"{different} different times"
    return [
        f"no list is in {' or '.join(empty)}: column {column!r} has only {number} ({last:,} of {len(times):,} lists "
        "have the last), and lists with equal times stay together; split by a column of finer times, or by group, or "
        "give more lists"
    ]


def read_times(tables: Iterable[pa.Table], column: str) -> np.ndarray:
    """Reads one number per list: its time, or the latest time of its items; int64, or float64 for columns of floats.

    Times are in nanoseconds since 1970, numbers are unchanged.

    Args:
        tables: Batches of lists.
        column: Column of numbers, dates, datetimes or their text (see ``times``), one per list or one per item.

    Raises:
        InputError: The column is missing, lacks a value, or holds something that is not a time.
    """
    parts = []
    first = 0
    zoned: set[bool] = set()
    for table in tables:
        if column not in table.column_names:
            raise InputError(
                f"the lists have no column {column!r} to split by time; their columns: "
                f"{', '.join(table.column_names)}{suggestion(column, table.column_names)}"
            )
        series = pl.Series(column, table.column(column))
        lengths = series.list.len().fill_null(0).to_numpy() if isinstance(series.dtype, pl.List) else None
        if lengths is not None:
            _refuse_missing(lengths == 0, column, first)
        flat = series if lengths is None else series.explode()
        text = isinstance(flat.dtype, pl.String)
        if text:
            flat, with_zone = _parse(flat)
            zoned.add(with_zone)
        if not (flat.dtype.is_numeric() or flat.dtype.is_temporal()) or isinstance(flat.dtype, pl.Time | pl.Duration):
            raise InputError(
                f"column {column!r} holds {flat.dtype}: expected times (numbers, dates or datetimes), one per list "
                "or one per item"
            )
        if flat.dtype.is_temporal():
            zoned.add(isinstance(flat.dtype, pl.Datetime) and flat.dtype.time_zone is not None)
            flat = flat.cast(pl.Datetime("ns")).to_physical()
        if len(zoned) > 1:
            raise InputError(
                f"column {column!r} holds times with a time zone and times without one, the first at list {first} "
                "or later: expected all in one form"
            )
        if flat.dtype.is_float():
            flat = flat.fill_nan(None)
        if lengths is not None:
            flat = (
                pl.DataFrame({"row": np.repeat(np.arange(len(series)), lengths), column: flat})
                .group_by("row", maintain_order=True)
                .agg(
                    # A list that lacks one of its items' times has no latest time.
                    pl.when(pl.col(column).null_count() == 0).then(pl.col(column).max())
                )
            )[column]
        _refuse_missing(flat.is_null().to_numpy(), column, first)
        parts.append(flat.to_numpy())
        first += table.num_rows
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _refuse_missing(missing: np.ndarray, column: str, first: int) -> None:
    if missing.any():
        raise InputError(
            f"column {column!r} is missing in list {first + int(np.argmax(missing))}: expected a time to split "
            "by; fill it, or leave the list out"
        )


def _parse(text: pl.Series) -> tuple[pl.Series, bool]:
    """Nanoseconds since 1970, and whether the text has time zones."""
    parsed = parse_times(text)
    if parsed.nanoseconds is None:
        why = f" ({parsed.why})" if parsed.why else ""
        raise InputError(f"column {text.name!r} holds {parsed.example!r}{why}: expected {EXPECTED}")
    return parsed.nanoseconds, parsed.zoned
