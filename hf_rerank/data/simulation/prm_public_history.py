"""The history of simulated lists: the user's earlier clicks, one for each of some earlier lists.

This module does not depend on the world: the caller draws the earlier lists. The number of clicks in the history of a
list has the geometric distribution on 0, 1, 2, ...: some users have none, some many. Each is a click in an earlier
list: one of its items, drawn with probability proportional to ``examination * attraction``. Items of the list itself
are left out, so that an earlier click is never on an item to be ranked. The times between clicks are exponential, with
the mean ``MINUTES_BETWEEN``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MINUTES_BETWEEN = 1440.0
# Earlier lists that are in memory at once.
LISTS_AT_ONCE = 4096

# The users of some earlier lists -> their items (indices), chances of a click and price gaps, all [lists, items].
ShowLists = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class History:
    """The histories of some lists: the clicks of all, one after another, newest first within a list."""

    lengths: np.ndarray  # [lists]
    item: np.ndarray  # [clicks], indices into the items of the world
    price_gap: np.ndarray  # [clicks], in the list where the item was clicked
    minutes_ago: np.ndarray  # [clicks], whole minutes, at least 1


def draw_history(
    rng: np.random.Generator, mean_length: float, user: np.ndarray, item: np.ndarray, show: ShowLists
) -> History:
    """Draw a history for each list.

    Args:
        rng: Source of randomness.
        mean_length: Mean number of clicks, above 0.
        user: [lists], the user of each list.
        item: [lists, items], the items of the lists, as indices.
        show: Draws an earlier list for each of some users.
    """
    lengths = rng.geometric(1 / (1 + mean_length), len(user)) - 1
    of_list = np.repeat(np.arange(len(user)), lengths)
    clicked, gaps, there = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, bool)]
    for start in range(0, len(of_list), LISTS_AT_ONCE):
        lists = of_list[start : start + LISTS_AT_ONCE]
        shown, chance, price_gap = show(user[lists])
        chance = np.where((shown[:, :, None] == item[lists][:, None, :]).any(axis=2), 0.0, chance)
        up_to = np.cumsum(chance, axis=1)
        click = np.argmax(up_to > rng.random((len(lists), 1)) * up_to[:, -1:], axis=1)
        clicked.append(shown[np.arange(len(lists)), click])
        gaps.append(price_gap[np.arange(len(lists)), click])
        there.append(up_to[:, -1] > 0)
    # In a tiny world all items of an earlier list can also be in the list itself: it then yields no click.
    kept = np.concatenate(there)
    lengths = np.bincount(of_list[kept], minlength=len(user))
    minutes = np.cumsum(rng.exponential(MINUTES_BETWEEN, int(lengths.sum())))
    before = np.concatenate([[0.0], minutes])[np.cumsum(lengths) - lengths]
    ago = np.maximum(1, np.ceil(minutes - np.repeat(before, lengths))).astype(np.int64)
    return History(lengths, np.concatenate(clicked)[kept], np.concatenate(gaps)[kept], ago)
