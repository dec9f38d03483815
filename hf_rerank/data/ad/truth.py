"""The ground truth of simulated Ad lists: the file ``raw_sample.csv.truth.parquet``, one row per shown list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hf_rerank.data.ad.sessions import Sessions, time_key
from hf_rerank.errors import InputError

_ROWS = 100_000
_AGAIN = "raw_sample.csv and its ground truth belong to different simulations, or one was changed: simulate them again"


def read_truth(path: Path, attraction: bool) -> Iterator[pl.DataFrame]:
    """Reads the rows of the file in batches: user, newest (time of the newest impression), initial_position, and
    attraction where it has one.

    Raises:
        InputError: A ``list_id`` that is not USER-TIME.
    """
    columns = ["list_id", "initial_position", *(["attraction"] if attraction else [])]
    first = 0
    with pq.ParquetFile(path) as parquet:
        for batch in parquet.iter_batches(_ROWS, columns=columns):
            frame = pl.from_arrow(pa.Table.from_batches([batch]))
            assert isinstance(frame, pl.DataFrame)
            part = pl.col("list_id").str.extract_groups(r"^(\d+)-(\d+)$").struct
            rows = frame.with_columns(
                user=part[0].cast(pl.UInt32, strict=False), newest=part[1].cast(pl.UInt32, strict=False)
            )
            wrong = (rows["user"].is_null() | rows["newest"].is_null()).arg_true()
            if len(wrong):
                raise InputError(
                    f"row {first + wrong[0] + 1} of {path}: list_id is {rows['list_id'][wrong[0]]!r}, expected the "
                    f"user and the time of the newest impression, such as '17-1494000000': {_AGAIN}"
                )
            first += len(rows)
            yield rows.select("user", "newest", *columns[1:])


def join_truth(
    sessions: Sessions, users: np.ndarray, times: np.ndarray, truth: pl.DataFrame, path: Path
) -> dict[str, np.ndarray]:
    """Joins the ground truth: initial positions and attractions of all impressions of some users.

    Args:
        sessions: All sessions of the users.
        users: [N], the user of each impression, sorted; with ``times`` as in ``find_sessions``.
        times: [N], Unix seconds.
        truth: The ground truth of the same users.
        path: Its file, for error messages.

    Returns:
        ``position``, int64 [N], and ``attraction``, float32 [N], if the ground truth has it.

    Raises:
        InputError: A session without ground truth, ground truth without a session or of another length, or positions
            that are not a permutation.
    """
    last = sessions.ends - 1
    wanted = time_key(users[last], times[last])
    keys = time_key(truth["user"].to_numpy(), truth["newest"].to_numpy())
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        raise InputError(f"{path} has list {_format_list_id(keys[twice[0]])!r} twice: {_AGAIN}")
    lacking, odd = np.setdiff1d(wanted, keys), np.setdiff1d(keys, wanted)
    if len(lacking):
        raise InputError(
            f"{path} has no row for list {_format_list_id(lacking[0])!r}, which raw_sample.csv contains: {_AGAIN}"
        )
    if len(odd):
        raise InputError(
            f"raw_sample.csv has no list {_format_list_id(odd[0])!r}, for which {path} has a row: {_AGAIN}"
        )
    rows, lengths = truth[order], sessions.ends - sessions.starts
    for name in truth.columns[2:]:
        found = rows[name].list.len().fill_null(0).to_numpy().astype(np.int64)
        wrong = np.flatnonzero(found != lengths)
        if len(wrong):
            raise InputError(
                f"list {_format_list_id(wanted[wrong[0]])!r} has {lengths[wrong[0]]} impressions in raw_sample.csv, "
                f"and {found[wrong[0]]} in the column {name} of {path}: {_AGAIN}"
            )
    # Sessions hold all rows, in their order, so the concatenated values of the lists are those of the rows.
    positions = rows["initial_position"].explode().fill_null(-1).to_numpy().astype(np.int64)
    of_session = np.repeat(np.arange(len(sessions)), lengths)
    ranked = positions[np.lexsort((positions, of_session))]
    wrong = of_session[ranked != np.arange(len(ranked)) - sessions.starts[of_session]]
    if len(wrong):
        start, end = sessions.starts[wrong[0]], sessions.ends[wrong[0]]
        raise InputError(
            f"list {_format_list_id(wanted[wrong[0]])!r} of {path}: initial_position is "
            f"{positions[start:end].tolist()}, expected each of 0..{end - start - 1} once: {_AGAIN}"
        )
    values = {"position": positions}
    if "attraction" in rows.columns:
        values["attraction"] = rows["attraction"].explode().to_numpy().astype(np.float32)
        odd = of_session[~((values["attraction"] >= 0) & (values["attraction"] <= 1))]  # nulls are NaN
        if len(odd):
            start, end = sessions.starts[odd[0]], sessions.ends[odd[0]]
            raise InputError(
                f"list {_format_list_id(wanted[odd[0]])!r} of {path}: attraction is "
                f"{values['attraction'][start:end].tolist()}, expected probabilities from 0 to 1: {_AGAIN}"
            )
    return values


def _format_list_id(key: np.uint64) -> str:
    return f"{int(key) >> 32}-{int(key) & 0xFFFFFFFF}"
