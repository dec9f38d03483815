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
    the earlier split.

    Args:
        times: The time of each list, N numbers.
        ranker_train: False: the lists of ``ranker_train`` go to ``train``. Default True.

    Returns:
        Array of N strings.
    """
    in_order = np.sort(times)
    uppers = [len(times) * upper // BUCKETS for upper in UPPER_BOUNDS.values()]
    # A list is in the first split whose last time it does not exceed; a split without lists ends before all times.
    of_list = np.full(len(times), len(SPLITS) - 1)
    for number in range(len(SPLITS) - 2, -1, -1):
        if uppers[number]:
            of_list[times <= in_order[uppers[number] - 1]] = number
    names = np.array(SPLITS if ranker_train else ["train", *SPLITS[1:]], dtype=object)
    return names[of_list]


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
