"""The draws of the simulator of PRM Public: items, users, the lists that are shown, and their observed features.

The docstring of :mod:`hf_rerank.data.simulation.prm_public_world` has the formulas. All arrays of lists are
[lists, items] in display order; ``rng`` is the only source of randomness.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from hf_rerank.data.simulation.click_process import (
    compute_attraction,
    compute_price_gap,
    draw_cascade_clicks,
    draw_clicks,
    draw_user_browsing_clicks,
    make_generator,
    order_click_probabilities,
)
from hf_rerank.data.simulation.prm_public_history import draw_history
from hf_rerank.data.simulation.prm_public_world import PRMWorld
from hf_rerank.errors import InputError

N_CATEGORIES = 7  # item_3 holds 1..7, below 8 as in PRM Public
LEAVES_PER_CATEGORY = 36  # item_1 holds 1..252, below 256
N_SEGMENTS = 7  # user_0
LISTS_PER_BLOCK = 4096  # lists that are in memory at once
USER_IDS_PER_PART = 100_000_000  # user ids of part p start at (p - 1) times this, so no two parts share a user


@dataclass(frozen=True)
class _Items:
    """The items of the world, one entry per item."""

    id: np.ndarray
    categorical: np.ndarray  # [items, 4]: item_1..item_4
    category: np.ndarray
    price: np.ndarray
    quality: np.ndarray
    style: np.ndarray
    log_popularity: np.ndarray
    segment_match: np.ndarray  # [segments, items]


@dataclass(frozen=True)
class _Users:
    """The users of one part, one entry per user."""

    id: np.ndarray
    categorical: np.ndarray  # [users, 3]
    propensity: np.ndarray
    price_taste: np.ndarray
    liking: np.ndarray | None  # [users, categories], of a world with a history


@dataclass(frozen=True)
class ShownLists:
    """Some lists as they are in the file."""

    user_id: np.ndarray  # [lists]
    user_categorical: np.ndarray  # [lists, 3], -1 where null
    item_categorical: np.ndarray  # [lists, items, 5]
    basic: np.ndarray  # [lists, items, 7], NaN where null
    optional: np.ndarray  # [lists, items, 12], NaN where null
    click: np.ndarray
    attraction: np.ndarray  # the base attraction in mode "order"
    category: np.ndarray
    initial_position: np.ndarray
    history_lengths: np.ndarray | None = None  # [lists], of a world with a history
    history: dict[str, np.ndarray] = field(default_factory=dict)  # column -> [clicks]

    def __len__(self) -> int:
        return len(self.user_id)


def _draw_items(world: PRMWorld, rng: np.random.Generator) -> _Items:
    n = world.n_items
    leaf = 1 + rng.integers(0, N_CATEGORIES * LEAVES_PER_CATEGORY, n)
    category = 1 + leaf % N_CATEGORIES
    affinity = rng.normal(size=(N_SEGMENTS + 1, N_CATEGORIES + 1))
    return _Items(
        id=1 + rng.choice(max(7_246_323, n), n, replace=False),
        categorical=np.stack([leaf, rng.integers(1, 4, n), category, rng.integers(1, 4, n)], axis=1),
        category=category,
        price=rng.uniform(-2.2, 2.2, n),
        quality=rng.normal(size=n),
        style=rng.normal(size=n),
        log_popularity=rng.normal(size=n),
        segment_match=affinity[:, category],
    )


def _draw_users(world: PRMWorld, rng: np.random.Generator, n_users: int, part: int) -> _Users:
    propensity = rng.normal(size=n_users)
    level = np.clip(np.rint(4 + 1.5 * (propensity + rng.normal(size=n_users)) / 2**0.5), 1, 7).astype(np.int64)
    categorical = np.stack([rng.integers(1, N_SEGMENTS + 1, n_users), rng.integers(1, 4, n_users), level], axis=1)
    price_taste, liking = categorical[:, 1] - 2.0, None
    if world.history_length:
        price_taste += world.personal_taste * rng.normal(size=n_users)
        liking = rng.standard_normal((n_users, N_CATEGORIES + 1), dtype=np.float32)
    ids = (part - 1) * USER_IDS_PER_PART + 1 + np.arange(n_users)
    return _Users(ids, categorical, propensity, price_taste, liking)


def draw_blocks(world: PRMWorld, seed: int, part: int, n_lists: int) -> Iterator[ShownLists]:
    items = _draw_items(world, make_generator(seed, 0))
    n_users = int(np.ceil(n_lists / world.lists_per_user))
    if n_users > USER_IDS_PER_PART:
        raise InputError(f"a part has at most {USER_IDS_PER_PART} users, got {n_users}; raise lists_per_user")
    users = _draw_users(world, make_generator(seed, 1, part), n_users, part)
    for block, start in enumerate(range(0, n_lists, LISTS_PER_BLOCK)):
        n = min(LISTS_PER_BLOCK, n_lists - start)
        rng = make_generator(seed, 2, part, block)
        shown = _draw_clicked(world, items, users, rng, n)
        lists = _observe(world, items, users, rng, shown)
        if world.history_length:
            lists = _add_history(world, items, users, rng, shown, lists)
        yield lists


def _draw_clicked(
    world: PRMWorld, items: _Items, users: _Users, rng: np.random.Generator, n: int
) -> dict[str, np.ndarray]:
    """Draw lists until ``n`` of them have a click."""
    kept: list[dict[str, np.ndarray]] = []
    missing, drawn = n, 0
    while missing > 0:
        shown = _show(world, items, users, rng, min(2 * missing + 16, LISTS_PER_BLOCK))
        rows = np.flatnonzero(shown["click"].any(axis=1))[:missing]
        kept.append({name: values[rows] for name, values in shown.items()})
        missing -= len(rows)
        drawn += len(shown["click"])
        if drawn >= 100_000 and n - missing < drawn / 1000:
            raise InputError(
                f"only {n - missing} of {drawn} simulated lists got a click, and lists without a click are redrawn; "
                f"raise PRMWorld.bias (now {world.bias})"
            )
    return {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}


def _show(world: PRMWorld, items: _Items, users: _Users, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Draw ``n`` lists in display order and their clicks, without selection."""
    lists = _draw_lists(world, items, users, rng, rng.integers(0, len(users.id), n))
    shown = _compute_shown_attraction(world, items, lists)
    if world.click_model == "cascade":
        return {**lists, "click": draw_cascade_clicks(rng, shown)}
    draw = draw_clicks if world.click_model == "position" else draw_user_browsing_clicks
    return {**lists, "click": draw(rng, world.examination, shown)}


def _draw_lists(
    world: PRMWorld, items: _Items, users: _Users, rng: np.random.Generator, user: np.ndarray
) -> dict[str, np.ndarray]:
    """Draw a list for each entry of ``user`` (indices), in display order."""
    n = len(user)
    item = _retrieve(world, items, rng, n)
    segment, own_match = users.categorical[user, 0], rng.normal(size=item.shape)
    if users.liking is not None:
        own = world.personal_taste
        own_match = own * users.liking[user[:, None], items.category[item]] + (1 - own**2) ** 0.5 * own_match
    match = 0.6 * items.segment_match[segment[:, None], item] + 0.8 * own_match
    display = np.argsort(-(items.quality[item] + match + world.display_noise * rng.normal(size=item.shape)), axis=1)
    item, match = np.take_along_axis(item, display, axis=1), np.take_along_axis(match, display, axis=1)

    share_of_each = world.propensity_sd / 2**0.5
    propensity = share_of_each * (users.propensity[user] + rng.normal(size=n))
    attractions = compute_attraction(
        world,
        quality=items.quality[item],
        match=match,
        style=items.style[item],
        price=items.price[item],
        category=items.category[item],
        price_taste=users.price_taste[user],
        propensity=propensity,
    )
    return {"user": user, "item": item, "match": match, "propensity": propensity, "attraction": attractions}


def _compute_shown_attraction(world: PRMWorld, items: _Items, lists: dict[str, np.ndarray]) -> np.ndarray:
    """Attraction of the items of lists in display order, [lists, items]."""
    if world.mode == "set":
        return lists["attraction"]
    return order_click_probabilities(
        lists["attraction"],
        items.category[lists["item"]],
        np.broadcast_to(np.arange(world.list_length), lists["item"].shape),
        examination=np.ones(world.list_length),
        same_category_decay=world.same_category_decay,
    )


def _add_history(
    world: PRMWorld,
    items: _Items,
    users: _Users,
    rng: np.random.Generator,
    shown: dict[str, np.ndarray],
    lists: ShownLists,
) -> ShownLists:
    """Draw the histories of lists, and their observed features."""

    def show(user: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        earlier = _draw_lists(world, items, users, rng, user)
        chance = world.examination * _compute_shown_attraction(world, items, earlier)
        return (
            earlier["item"],
            chance,
            compute_price_gap(world, items.price[earlier["item"]], np.ones(chance.shape, bool)),
        )

    history = draw_history(rng, world.history_length, shown["user"], shown["item"], show)

    def measure(value: np.ndarray) -> np.ndarray:
        return (value + 0.1 * rng.normal(size=value.shape)) / 1.01**0.5

    columns = {
        "history_item_id": items.id[history.item],
        "history_item_1": items.categorical[history.item, 0],
        "history_item_3": items.categorical[history.item, 2],
        "history_basic_2": measure(items.price[history.item]),
        "history_price_gap": measure(history.price_gap),
        "history_minutes_ago": history.minutes_ago,
    }
    return replace(lists, history_lengths=history.lengths, history=columns)


def _retrieve(world: PRMWorld, items: _Items, rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw the items of ``n`` lists, [lists, items], without a repetition inside a list.

    A pool of items is drawn at random for each list; from the pool, the list gets popular items near its price level,
    of its theme and of the categories that it favours (weighted draws without replacement, by exponential clocks).
    """
    # start + step * k (mod n_items) runs through distinct items when step and n_items have no common divisor.
    steps = np.flatnonzero(np.gcd(np.arange(world.n_items), world.n_items) == 1)
    start, step = rng.integers(0, world.n_items, (n, 1)), rng.choice(steps, (n, 1))
    pool = (start + step * np.arange(world.pool_size)) % world.n_items

    price_level = rng.uniform(-1.5, 1.5, (n, 1))
    theme = world.theme_sd * rng.normal(size=(n, 1))
    favour = np.log(rng.gamma(1.0, size=(n, N_CATEGORIES + 1)) + 1e-3)
    log_weight = (
        items.log_popularity[pool]
        - (items.price[pool] - price_level) ** 2 / (2 * world.price_spread**2)
        + items.style[pool] * theme
        + np.take_along_axis(favour, items.category[pool], axis=1)
    )
    clock = np.log(rng.standard_exponential(pool.shape)) - log_weight
    taken = np.argpartition(clock, world.list_length - 1, axis=1)[:, : world.list_length]
    return np.take_along_axis(pool, taken, axis=1)


def _observe(
    world: PRMWorld, items: _Items, users: _Users, rng: np.random.Generator, shown: dict[str, np.ndarray]
) -> ShownLists:
    """Draw the observed features of shown lists, with noise and nulls, and the initial order."""
    user, item, match = shown["user"], shown["item"], shown["match"]
    quality, style, price = items.quality[item], items.style[item], items.price[item]

    def draw_noise() -> np.ndarray:
        return rng.normal(size=item.shape)

    def measure(value: np.ndarray, error: float) -> np.ndarray:
        return (value + error * draw_noise()) / (1 + error**2) ** 0.5

    fine, coarse = world.feature_noise, 2 * world.feature_noise
    flag = rng.random(item.shape) < 0.05
    propensity_hint = (shown["propensity"] + rng.normal(size=user.shape)) / (1 + world.propensity_sd**2) ** 0.5
    basic = [
        measure(style, 0.1),
        measure(style, 0.1),
        measure(price, 0.1),
        measure(quality, fine),
        measure(match, fine),
        measure(price, 0.1),
        measure((quality + match) / 2**0.5, coarse),
    ]
    optional = [
        measure(style, 0.3),
        measure(style, 0.3),
        measure(price, 0.3),
        (flag - 0.05) / 0.0475**0.5,
        measure(quality, coarse),
        measure(match, coarse),
        items.log_popularity[item],
        np.broadcast_to(propensity_hint[:, None], item.shape),
        draw_noise(),
        (draw_noise() ** 2 - 1) / 2**0.5,
        draw_noise(),
        draw_noise(),
    ]
    initial_score = quality + match + world.initial_noise * draw_noise()
    columns = [np.stack(basic, axis=2), np.stack(optional, axis=2)]
    user_categorical = users.categorical[user]
    _erase(world, rng, user_categorical, *columns)
    return ShownLists(
        user_id=users.id[user],
        user_categorical=user_categorical,
        item_categorical=np.concatenate([items.id[item][..., None], items.categorical[item]], axis=2),
        basic=columns[0],
        optional=columns[1],
        click=shown["click"],
        attraction=shown["attraction"],
        category=items.category[item],
        initial_position=np.argsort(np.argsort(-initial_score, axis=1), axis=1),
    )


def _erase(
    world: PRMWorld, rng: np.random.Generator, user_categorical: np.ndarray, basic: np.ndarray, optional: np.ndarray
) -> None:
    """Erase values, in place, in a share ``null_rate`` of the lists: one column each, of one of the three fields.

    A dense column loses its values for about half of the items, at least one; a user column has one value to lose.
    """
    n, length = basic.shape[:2]
    victims = np.flatnonzero(rng.random(n) < world.null_rate)
    field = rng.integers(0, 3, len(victims))
    of_user = victims[field == 0]
    user_categorical[of_user, rng.integers(0, user_categorical.shape[1], len(of_user))] = -1
    for values, rows in ((basic, victims[field == 1]), (optional, victims[field == 2])):
        lost = rng.random((len(rows), length)) < 0.5
        lost[np.arange(len(rows)), rng.integers(0, length, len(rows))] = True
        column = rng.integers(0, values.shape[2], len(rows))
        which, slot = np.nonzero(lost)
        values[rows[which], slot, column[which]] = np.nan
