"""The behaviours of simulated users of Ad: page views, carts, favourites and purchases.

The docstring of :mod:`hf_rerank.data.simulation.ad_world` describes how they are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_rerank.data.simulation.ad_lists import (
    FIRST_IMPRESSION,
    STRETCH_SECONDS,
    STRETCHES,
    AdBlock,
    Ads,
    compute_brand_liking,
)
from hf_rerank.data.simulation.ad_world import AdWorld
from hf_rerank.data.simulation.click_process import make_generator

BTAGS, BTAG_SHARES = ("pv", "cart", "fav", "buy"), (0.95, 0.02, 0.015, 0.015)
LAST_SECOND = FIRST_IMPRESSION + STRETCHES * STRETCH_SECONDS - 1
FIRST_SECOND = LAST_SECOND + 1 - 22 * 86_400
ADS_PER_CHOICE = 8  # ads of a category from which one is chosen for its brand


@dataclass(frozen=True)
class Behaviours:
    """The behaviours of the users of a block, in random order, one entry per behaviour."""

    user: np.ndarray  # index into the users of the block
    item: np.ndarray  # index into the ads: one that has the category and the brand
    time_stamp: np.ndarray  # Unix seconds
    btag: np.ndarray  # index into BTAGS


def draw_behaviours(world: AdWorld, ads: Ads, block: AdBlock, seed: int, behaviours: int, n_users: int) -> Behaviours:
    """Draw the behaviours of the users of a block, in proportion to its number of users.

    Args:
        world: The parameters of the world.
        ads: All ads.
        block: The users, and the lists shown to them.
        seed: Seed of the simulation.
        behaviours: Number of behaviours of all users.
        n_users: Number of users in all blocks.
    """
    rng, here = make_generator(seed, 3, block.number), len(block.users.id)
    stop = block.first_user + here
    n = behaviours * stop // n_users - behaviours * block.first_user // n_users
    # The activity of a user is exponential, which makes the number of behaviours geometric.
    up_to = np.cumsum(rng.standard_exponential(here))
    user = np.searchsorted(up_to, rng.random(n) * up_to[-1], side="right")
    item = _draw_liked_ads(world, ads, block, rng, user)
    time_stamp = rng.integers(FIRST_SECOND, LAST_SECOND + 1, n)
    btag = rng.choice(len(BTAGS), n, p=BTAG_SHARES)

    rows, slots = np.nonzero(block.click)
    if len(rows):
        caused = np.flatnonzero(rng.random(n) < world.click_caused_rate)
        click = rng.integers(0, len(rows), len(caused))
        row, slot = rows[click], slots[click]
        user[caused], item[caused], btag[caused] = block.user[row], block.item[row, slot], 0
        time_stamp[caused] = block.time[row, slot] + rng.integers(1, 61, len(caused))
    return Behaviours(user, item, time_stamp, btag)


def _draw_liked_ads(
    world: AdWorld, ads: Ads, block: AdBlock, rng: np.random.Generator, user: np.ndarray
) -> np.ndarray:
    """Draw an ad for each entry of ``user``, of a category and a brand that the user likes."""
    users = block.users
    weight = np.exp(world.liking_strength * users.liking.astype(np.float64))
    # Each user is an interval of length 1 on a line, divided into its categories: a point is a user and a category.
    up_to = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
    line = (np.arange(len(users.id))[:, None] + up_to).ravel()
    chosen_category = np.searchsorted(line, user + rng.random(len(user)), side="right")
    chosen_category = np.clip(chosen_category - user * world.categories_per_user, 0, world.categories_per_user - 1)
    category = users.visited[user, chosen_category]

    items = np.empty(len(user), np.int64)
    for first in range(0, len(user), 65_536):
        part = slice(first, first + 65_536)
        size = ((world.n_ads - 1 - category[part]) // world.n_categories + 1)[:, None]
        seen = category[part, None] + world.n_categories * rng.integers(0, size, (len(size), ADS_PER_CHOICE))
        liking = world.liking_strength * compute_brand_liking(ads, users, user[part], seen)
        chosen = np.argmax(liking + rng.gumbel(size=seen.shape), axis=1)
        items[part] = seen[np.arange(len(seen)), chosen]
    return items
