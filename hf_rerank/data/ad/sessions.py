"""Sessions, which become lists: the ads that a user was shown within five minutes.

A user's impressions are sorted by time, newest first. A session holds the impressions at most 300 seconds older than
its newest one; the next session begins with the newest impression that is in no session yet. Inside a session, items
are ordered by time, oldest first; equal times keep the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SESSION_SECONDS = 300
MAX_SESSION_ITEMS = 30
PROTOCOLS = ("ours", "public")
FEW_IMPRESSIONS = 3  # public: users with fewer are dropped
FEW_ITEMS = 2  # ours: sessions with fewer are dropped


def time_key(users: np.ndarray, times: np.ndarray | np.uint32) -> np.ndarray:
    """User and time (both below 2^32) as one number, which sorts by user, then by time."""
    return (users.astype(np.uint64) << np.uint64(32)) | times.astype(np.uint64)


@dataclass(frozen=True)
class Sessions:
    """Sessions over rows of impressions that are sorted by user, then by time.

    Attributes:
        starts: int64 [sessions], the first row of each session.
        ends: int64 [sessions], the row after its last row.
        clicks: int64 [sessions], its number of clicks.
    """

    starts: np.ndarray
    ends: np.ndarray
    clicks: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, chosen: np.ndarray) -> Sessions:
        return Sessions(self.starts[chosen], self.ends[chosen], self.clicks[chosen])


def find_sessions(users: np.ndarray, times: np.ndarray, clicks: np.ndarray) -> Sessions:
    """Finds all sessions, in the order of their rows.

    Args:
        users: [N], the user of each impression; sorted.
        times: [N], Unix seconds; sorted within a user.
        clicks: [N], 1 for a click, else 0.
    """
    keys = time_key(users, times)
    _, oldest, impressions = np.unique(users, return_index=True, return_counts=True)
    newest = oldest + impressions - 1
    starts, ends = [newest[:0]], [newest[:0]]
    # All users at once, one session per round: those with impressions left continue with the newest of these.
    while len(newest):
        begins = np.searchsorted(keys, keys[newest] - np.uint64(SESSION_SECONDS))
        starts.append(begins)
        ends.append(newest + 1)
        left = begins > oldest
        newest, oldest = begins[left] - 1, oldest[left]
    order = np.argsort(np.concatenate(starts))
    first, after = np.concatenate(starts)[order], np.concatenate(ends)[order]
    clicks_before = np.concatenate([[0], np.cumsum(clicks, dtype=np.int64)])
    return Sessions(first, after, clicks_before[after] - clicks_before[first])


def choose_sessions(
    sessions: Sessions,
    users: np.ndarray,
    protocol: str,
    on_drop: Callable[[str, int], object],
    on_drop_user: Callable[[str, int], object],
) -> Sessions:
    """Chooses the sessions that become lists.

    Args:
        sessions: All sessions of the users.
        users: [N], the user of each impression.
        protocol: ``ours``: at least two items and a click. ``public``: the most recent session with a click, of users
            with at least three impressions.
        on_drop: Called with each reason and the number of sessions that it drops.
        on_drop_user: Called with each reason and the number of users that it leaves without a list.
    """
    of_user = users[sessions.starts] if len(sessions) else users[:0]
    _, number, counts = np.unique(of_user, return_inverse=True, return_counts=True)
    clicked = sessions.clicks > 0
    if protocol == "ours":
        few = sessions.ends - sessions.starts < FEW_ITEMS
        kept = ~few & clicked
        on_drop("fewer than 2 items", int(few.sum()))
        on_drop("without a click", int((~few & ~clicked).sum()))
        on_drop_user("users without a list", len(counts) - len(np.unique(number[kept])))
        return sessions[kept]
    items = np.bincount(number, weights=sessions.ends - sessions.starts, minlength=len(counts))
    few = items < FEW_IMPRESSIONS
    without = ~few & (np.bincount(number, weights=clicked, minlength=len(counts)) == 0)
    # Sessions of a user are ordered by time: the last one with a click overwrites the earlier ones.
    latest = np.full(len(counts), -1)
    latest[number[clicked]] = np.flatnonzero(clicked)
    kept = np.zeros(len(sessions), dtype=bool)
    kept[latest[~few & ~without]] = True
    on_drop("of users with fewer than 3 impressions", int(few[number].sum()))
    on_drop("of users without a click", int(without[number].sum()))
    on_drop("not the user's most recent with a click", int((~kept & ~few[number] & ~without[number]).sum()))
    on_drop_user("users with fewer than 3 impressions", int(few.sum()))
    on_drop_user("users without a click", int(without.sum()))
    return sessions[kept]


def expand_ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers ``start .. end - 1`` of all ranges, concatenated, and the index of the range of each."""
    lengths = ends - starts
    of_range = np.repeat(np.arange(len(starts)), lengths)
    within = np.arange(len(of_range)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts[of_range] + within, of_range
