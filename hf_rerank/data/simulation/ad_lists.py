"""The draws of the simulator of Ad: ads, users, the lists that are shown, and their clicks.

The docstring of :mod:`hf_rerank.data.simulation.ad_world` has the formulas. Users, ads and categories are indices from
0 here; ``id`` arrays hold the ids in the files. Lists of unequal length are padded at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hf_rerank.data.simulation.ad_world import (
    LARGEST_AD,
    LARGEST_BRAND,
    LARGEST_CAMPAIGN,
    LARGEST_CATEGORY,
    LARGEST_CUSTOMER,
    LARGEST_USER,
    SESSION_SECONDS,
    AdWorld,
)
from hf_rerank.data.simulation.click_process import compute_attraction, draw_clicks, make_generator

N_SEGMENTS = 13  # cms_group_id holds 0..12
BRAND_DIMENSIONS = 4
NO_BRAND = -1
MISSING_LEVEL = -1
USERS_PER_BLOCK = 32_768  # users that are in memory at once, with their lists
LISTS_AT_ONCE = 4096  # lists whose pools are in memory at once
# The impressions cover 8 days, from 6 May 2017 (China time). Each list begins in its own stretch of 900 s and ends at
# most 599 s later (see _draw_list_starts), so that lists of a user lie more than 300 s apart.
FIRST_IMPRESSION, STRETCHES, STRETCH_SECONDS = 1_494_000_000, 768, 900
LONGEST_STEP = 20  # seconds from one impression of a list to the next


@dataclass(frozen=True)
class Ads:
    """The ads of the world, one entry per ad. Ad ``j`` is of category ``j % n_categories``."""

    id: np.ndarray
    category: np.ndarray
    category_id: np.ndarray
    campaign_id: np.ndarray
    customer_id: np.ndarray
    brand: np.ndarray  # NO_BRAND: none
    brand_id: np.ndarray  # NO_BRAND: none
    price: np.ndarray
    quality: np.ndarray
    style: np.ndarray
    log_popularity: np.ndarray
    affinity: np.ndarray  # [segments, categories]
    brand_character: np.ndarray  # [brands + 1, BRAND_DIMENSIONS]; the last, of no brand, is 0


@dataclass(frozen=True)
class AdUsers:
    """The users of one block, one entry per user."""

    id: np.ndarray
    profile: dict[str, np.ndarray]  # column -> [users], MISSING_LEVEL where missing
    has_profile: np.ndarray
    segment: np.ndarray
    propensity: np.ndarray
    price_taste: np.ndarray
    visited: np.ndarray  # [users, categories_per_user], categories
    liking: np.ndarray  # [users, categories_per_user], of the visited categories
    brand_taste: np.ndarray  # [users, BRAND_DIMENSIONS]


@dataclass(frozen=True)
class AdBlock:
    """The users of a block, and the lists shown to them, sorted by user, then by time."""

    number: int
    first_user: int  # users of earlier blocks
    users: AdUsers
    user: np.ndarray  # [lists], index into the users of the block
    lengths: np.ndarray  # [lists]
    mask: np.ndarray  # [lists, items], True where there is an ad
    item: np.ndarray  # [lists, items], index into the ads, in display order
    time: np.ndarray  # [lists, items], Unix seconds, not decreasing along a list
    click: np.ndarray
    attraction: np.ndarray
    initial_position: np.ndarray
    pid: np.ndarray  # [lists], 0 or 1: where the list was shown
    file_order: np.ndarray  # [impressions], the order in the file of the impressions in mask, row by row

    def __len__(self) -> int:
        return len(self.lengths)


def count_users(world: AdWorld, n_lists: int) -> int:
    return math.ceil(n_lists / world.lists_per_user)


def draw_ads(world: AdWorld, seed: int) -> Ads:
    rng, n = make_generator(seed, 0), world.n_ads

    def draw_ids(largest: int, count: int) -> np.ndarray:
        return 1 + rng.choice(largest, count, replace=False)

    category = np.arange(n) % world.n_categories
    campaign = rng.integers(0, world.n_campaigns, n)
    customer = rng.integers(0, world.n_customers, world.n_campaigns)[campaign]
    brand = rng.integers(0, world.n_brands, world.n_customers)[customer]
    brand = np.where(rng.random(n) < 0.7, brand, rng.integers(0, world.n_brands, n))
    brand[rng.random(n) < world.brandless_rate] = NO_BRAND
    of_brand = np.where(brand == NO_BRAND, rng.normal(size=n), rng.normal(size=world.n_brands)[brand])
    quality = rng.normal(size=world.n_campaigns)[campaign] + rng.normal(size=world.n_customers)[customer]
    style = 0.5**0.5 * of_brand + 0.3**0.5 * rng.normal(size=world.n_customers)[customer]
    log_price = 5 + 0.8 * rng.normal(size=world.n_categories)[category] + 0.9 * rng.normal(size=n)
    character = rng.normal(size=(world.n_brands + 1, BRAND_DIMENSIONS))
    character[NO_BRAND] = 0
    return Ads(
        id=draw_ids(LARGEST_AD, n),
        category=category,
        category_id=draw_ids(LARGEST_CATEGORY, world.n_categories)[category],
        campaign_id=draw_ids(LARGEST_CAMPAIGN, world.n_campaigns)[campaign],
        customer_id=draw_ids(LARGEST_CUSTOMER, world.n_customers)[customer],
        brand=brand,
        brand_id=np.where(brand == NO_BRAND, NO_BRAND, draw_ids(LARGEST_BRAND, world.n_brands)[brand]),
        price=np.maximum(np.round(np.exp(log_price), 2), 0.01),
        quality=(quality + rng.normal(size=n)) / 3**0.5,
        style=style + 0.2**0.5 * rng.normal(size=n),
        log_popularity=rng.normal(size=n),
        affinity=rng.normal(size=(N_SEGMENTS, world.n_categories)),
        brand_character=character,
    )


def draw_users(world: AdWorld, rng: np.random.Generator, ids: np.ndarray) -> AdUsers:
    n = len(ids)
    segment = rng.integers(0, N_SEGMENTS, n)
    propensity, price_taste = rng.normal(size=n), rng.normal(size=n)

    def draw_level(value: np.ndarray, noise: float, bounds: list[float]) -> np.ndarray:
        """1, 2, ...: the quantile bin of a standard normal value that is observed with noise."""
        seen = (value + noise * rng.normal(size=n)) / (1 + noise**2) ** 0.5
        return 1 + np.searchsorted(bounds, seen)

    def erase(values: np.ndarray) -> np.ndarray:
        return np.where(rng.random(n) < world.missing_level_rate, MISSING_LEVEL, values)

    thirds, quarters = [-0.4307, 0.4307], [-0.6745, 0.0, 0.6745]
    gender = np.where(segment == 0, rng.integers(1, 3, n), np.where(segment <= 6, 2, 1))
    profile = {
        "cms_segid": rng.integers(0, 97, n),
        "cms_group_id": segment,
        "final_gender_code": gender,
        "age_level": np.where(segment == 0, 0, (segment - 1) % 6 + 1),
        "pvalue_level": erase(draw_level(price_taste, 0.5, thirds)),
        "shopping_level": draw_level(price_taste, 1.0, thirds),
        "occupation": rng.integers(0, 2, n),
        "new_user_class_level": erase(draw_level(propensity, 1.0, quarters)),
    }
    return AdUsers(
        id=ids,
        profile=profile,
        has_profile=rng.random(n) >= world.no_profile_rate,
        segment=segment,
        propensity=propensity,
        price_taste=price_taste,
        visited=_draw_distinct(rng, n, world.n_categories, world.categories_per_user),
        liking=rng.standard_normal((n, world.categories_per_user), dtype=np.float32),
        brand_taste=rng.standard_normal((n, BRAND_DIMENSIONS), dtype=np.float32),
    )


def compute_brand_liking(ads: Ads, users: AdUsers, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """How much some users like the brands of some ads, [lists, items]; ``user`` is [lists]."""
    return np.einsum("nd,nld->nl", users.brand_taste[user], ads.brand_character[ads.brand[item]]) / 2


def draw_blocks(world: AdWorld, ads: Ads, seed: int, n_lists: int) -> Iterator[AdBlock]:
    """Draws users in blocks, each user with at least one list, ``n_lists`` in all."""
    n_users = count_users(world, n_lists)
    ids = 1 + make_generator(seed, 1).choice(LARGEST_USER, n_users, replace=False)
    for number, start in enumerate(range(0, n_users, USERS_PER_BLOCK)):
        rng, stop = make_generator(seed, 2, number), min(start + USERS_PER_BLOCK, n_users)
        users = draw_users(world, rng, ids[start:stop])
        here = n_lists * stop // n_users - n_lists * start // n_users
        user, lengths = _draw_list_lengths(world, rng, stop - start, here)
        shown = [
            _show(world, ads, users, rng, user[first : first + LISTS_AT_ONCE], lengths[first : first + LISTS_AT_ONCE])
            for first in range(0, here, LISTS_AT_ONCE)
        ]
        columns = {name: np.concatenate([part[name] for part in shown]) for name in shown[0]}
        time = _draw_list_starts(rng, user)[:, None] + columns.pop("seconds")
        pid, file_order = rng.integers(0, 2, here), _draw_file_order(rng, columns["mask"], time)
        yield AdBlock(number, start, users, user, lengths, time=time, pid=pid, file_order=file_order, **columns)


def _draw_list_lengths(
    world: AdWorld, rng: np.random.Generator, n_users: int, n_lists: int
) -> tuple[np.ndarray, np.ndarray]:
    """The user of each list, sorted, and its length: [lists] each."""
    users = rng.permutation(n_users)
    short = np.zeros(n_users, bool)
    short[users[: int(world.short_user_rate * n_users)]] = True
    # Each user has one list; the others go to users who may have several.
    more = rng.choice(np.flatnonzero(~short), n_lists - n_users)
    user = np.repeat(np.arange(n_users), 1 + np.bincount(more, minlength=n_users))
    lengths = rng.integers(world.shortest_list, world.longest_list + 1, n_lists)
    lengths[rng.random(n_lists) < world.single_rate] = 1
    return user, np.where(short[user], rng.integers(1, 3, n_lists), lengths)


def _draw_list_starts(rng: np.random.Generator, user: np.ndarray) -> np.ndarray:
    """The start of each list, [lists], ascending for each user: in the first 300 s of its own stretch."""
    of_user = np.bincount(user)
    before = np.arange(len(user)) - np.repeat(np.cumsum(of_user) - of_user, of_user)
    # Sorted draws from fewer stretches, plus the number of lists before, are distinct.
    free = rng.integers(0, STRETCHES + 1 - of_user[user])
    stretch = free[np.lexsort((free, user))] + before
    return FIRST_IMPRESSION + STRETCH_SECONDS * stretch + rng.integers(0, 300, len(user))


def _draw_file_order(rng: np.random.Generator, mask: np.ndarray, time: np.ndarray) -> np.ndarray:
    """A random order of all impressions, in which those of one list and second keep their order."""
    row, slot = np.nonzero(mask)
    same = (np.diff(row) == 0) & (np.diff(time[row, slot]) == 0)
    second = np.concatenate([[0], np.cumsum(~same)])
    # Sorting by second and draw keeps the positions of each second's draws, which are now ascending.
    return np.argsort(np.sort(second + rng.random(len(row))) - second)


def _show(
    world: AdWorld, ads: Ads, users: AdUsers, rng: np.random.Generator, user: np.ndarray, lengths: np.ndarray
) -> dict[str, np.ndarray]:
    """Draw a list for each entry of ``user``, show it, and draw its clicks: [lists, longest_list] each."""
    n, longest = len(user), world.longest_list
    item = _retrieve(world, ads, users, rng, user)
    mask = np.arange(longest) < lengths[:, None]

    own = world.personal_taste
    category = ads.category[item]
    kind = users.visited[user][:, :, None] == category[:, None, :]  # which of the visited categories it is
    liking = np.take_along_axis(users.liking[user], kind.argmax(axis=1), axis=1)
    personal = (liking + compute_brand_liking(ads, users, user, item)) / 2**0.5
    match = 0.6 * ads.affinity[users.segment[user][:, None], category] + 0.8 * (
        own * personal + (1 - own**2) ** 0.5 * rng.normal(size=item.shape)
    )
    worth = ads.quality[item] + match

    def rank_slots(noise: float) -> np.ndarray:
        """The order of the slots by a ranker with noise, padding last."""
        return np.argsort(np.where(mask, -(worth + noise * rng.normal(size=worth.shape)), np.inf), axis=1)

    display = rank_slots(world.display_noise)
    item, match, worth = (np.take_along_axis(values, display, axis=1) for values in (item, match, worth))
    propensity = world.propensity_sd / 2**0.5 * (users.propensity[user] + rng.normal(size=n))
    attractions = compute_attraction(
        world,
        quality=ads.quality[item],
        match=match,
        style=ads.style[item],
        price=np.log(ads.price[item]),
        category=ads.category[item],
        price_taste=users.price_taste[user],
        propensity=propensity,
        mask=mask,
    )
    steps = rng.integers(1, min(LONGEST_STEP, SESSION_SECONDS // (longest - 1)) + 1, item.shape)
    steps[rng.random(item.shape) < 0.5] = 0
    steps[:, 0] = 0
    return {
        "mask": mask,
        "item": item.astype(np.int32),
        "seconds": np.cumsum(steps, axis=1),
        "click": draw_clicks(rng, world.examination, attractions),
        "attraction": attractions.astype(np.float32),
        "initial_position": np.argsort(rank_slots(world.initial_noise), axis=1),
    }


def _retrieve(world: AdWorld, ads: Ads, users: AdUsers, rng: np.random.Generator, user: np.ndarray) -> np.ndarray:
    """Draw ``longest_list`` ads for each list, [lists, items], without a repetition inside a list.

    The pool of a list consists of consecutive ads, from a random start, of each of its categories; from the pool, the
    list gets popular ads of its theme and of the categories that it favours (weighted draws without replacement, by
    exponential clocks).
    """
    n = len(user)
    slots = _draw_distinct(rng, n, world.categories_per_user, world.categories_per_list)
    category = np.take_along_axis(users.visited[user], slots, axis=1)[:, :, None]
    size = (world.n_ads - 1 - category) // world.n_categories + 1
    rank = (rng.integers(0, size) + np.arange(world.pool_per_category)) % size
    pool = category + world.n_categories * rank
    theme = world.theme_sd * rng.normal(size=(n, 1, 1))
    favour = np.log(rng.gamma(1.0, size=category.shape) + 1e-3)
    clock = np.log(rng.standard_exponential(pool.shape)) - (
        ads.log_popularity[pool] + ads.style[pool] * theme + favour
    )
    taken = np.argsort(clock.reshape(n, -1), axis=1)[:, : world.longest_list]
    return np.take_along_axis(pool.reshape(n, -1), taken, axis=1)


def _draw_distinct(rng: np.random.Generator, n: int, among: int, count: int) -> np.ndarray:
    """``count`` distinct numbers below ``among`` for each of ``n``, [n, count]."""
    # start + step * k runs through distinct numbers when step and among have no common divisor.
    steps = np.flatnonzero(np.gcd(np.arange(among), among) == 1) if among > 1 else np.ones(1, np.int64)
    start, step = rng.integers(0, among, (n, 1)), rng.choice(steps, (n, 1))
    return (start + step * np.arange(count)) % among
