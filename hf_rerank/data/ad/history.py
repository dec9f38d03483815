"""What a user did before a list: the newest behaviours that are not later than its first impression."""

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
# Times are below 2^32; counted back from here, the newest come first.
_LATEST = np.uint32(2**32 - 1)


def find_histories(
    behaviours: pl.DataFrame, users: np.ndarray, times: np.ndarray, length: int
) -> tuple[dict[str, pa.Array], np.ndarray]:
    """The history of each list, newest first; behaviours of one second keep the order of the file.

    Args:
        behaviours: user, time_stamp, btag (number in ``BTAGS``), cate, brand, in the order of the file.
        users: Of each list.
        times: Unix seconds of the first impression of each list.
        length: Behaviours per list at most.

    Returns:
        The columns ``HISTORY_COLUMNS``, those of the lists one after the other, and how many each list has. Minutes
        are whole ones, rounded down, 30,000 at most.
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
