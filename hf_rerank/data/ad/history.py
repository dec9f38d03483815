"""The history of a list: the user's newest behaviours that are not later than its first impression."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from hf_rerank.data.ad.sessions import expand_ranges, time_key
from hf_rerank.data.ad.tables import BTAGS

HISTORY_COLUMNS = {
    "history_btag": pa.string(),
    "history_cate": pa.int64(),
    "history_brand": pa.int64(),
    "history_minutes_ago": pa.int64(),
}
MAX_MINUTES = 30_000
# Times are below 2^32; subtracted from this, they sort newest first.
_LATEST = np.uint32(2**32 - 1)


def find_histories(
    behaviours: pl.DataFrame, users: np.ndarray, times: np.ndarray, length: int
) -> tuple[dict[str, pa.Array], np.ndarray]:
    """Finds the history of each list, newest first; behaviours of the same second keep the order of the file.

    Args:
        behaviours: user, time_stamp, btag (number in ``BTAGS``), cate, brand, in the order of the file.
        users: The user of each list.
        times: Unix seconds of the first impression of each list.
        length: Maximum number of behaviours per list.

    Returns:
        The columns ``HISTORY_COLUMNS``, concatenated over the lists, and the number of behaviours of each list.
        Minutes are rounded down, and at most 30,000.
    """
    user, time = behaviours["user"].to_numpy(), behaviours["time_stamp"].to_numpy()
    keyed = behaviours.with_columns(pl.Series("key", time_key(user, _LATEST - time))).sort("key", maintain_order=True)
    keys = keyed["key"].to_numpy()
    starts = np.searchsorted(keys, time_key(users, _LATEST - times))
    ends = np.minimum(starts + length, np.searchsorted(keys, time_key(users, _LATEST), side="right"))
    rows, number = expand_ranges(starts, ends)
    found = keyed[rows]
    minutes = (times[number].astype(np.int64) - found["time_stamp"].to_numpy().astype(np.int64)) // 60
    columns = {
        "history_btag": pa.array(BTAGS).take(found["btag"].to_arrow()),
        "history_cate": found["cate"].cast(pl.Int64).to_arrow(),
        "history_brand": found["brand"].cast(pl.Int64).to_arrow(),
        "history_minutes_ago": pa.array(np.minimum(minutes, MAX_MINUTES)),
    }
    return columns, ends - starts
