"""The click process of both simulated worlds: the examination curve, the formula of attraction, and drawing clicks.

It reads these parameters of a world: ``bias``, ``quality_weight``, ``match_weight``, ``context_strength``,
``theme_weight``, ``price_weight``, ``crowding_weight``, ``price_spread``, ``looks_at_first_only``, ``looks_at_all``,
``patience``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from hf_rerank.errors import InputError

_Block = TypeVar("_Block")


def check_parameters(world: Any, ranges: dict[str, tuple[float, float]], above_zero: Iterable[str]) -> None:
    """
    Raises:
        InputError: A parameter is outside its range (both ends included), or not above 0, or not finite; or the shares
            of the readers exceed 1.
    """
    name_of_world = type(world).__name__
    for name, (low, high) in {**ranges, "looks_at_first_only": (0, 1), "looks_at_all": (0, 1)}.items():
        value = getattr(world, name)
        if not low <= value <= high:
            said = f"lie in [{low}, {high}]" if np.isfinite(high) else f"be at least {low}"
            raise InputError(f"{name_of_world}.{name} must {said}, got {value}")
    for name in (*above_zero, "price_spread", "patience"):
        if not getattr(world, name) > 0:
            raise InputError(f"{name_of_world}.{name} must be above 0, got {getattr(world, name)}")
    if world.looks_at_first_only + world.looks_at_all > 1:
        raise InputError(
            f"{name_of_world}.looks_at_first_only + looks_at_all are shares of the readers and must not exceed 1, got "
            f"{world.looks_at_first_only} + {world.looks_at_all}"
        )


def examination_curve(world: Any, positions: int) -> np.ndarray:
    """Probability that each position is examined, [positions], for a mixture of readers; 1 at the first position.

    Args:
        world: The parameters.
        positions: Number of positions.
    """
    position = np.arange(positions)
    goes_down = 1 - world.looks_at_first_only - world.looks_at_all
    go_down = goes_down * np.exp(-position / world.patience)
    return world.looks_at_first_only * (position == 0) + go_down + world.looks_at_all


def compute_attraction(
    world: Any,
    *,
    quality: np.ndarray,
    match: np.ndarray,
    style: np.ndarray,
    price: np.ndarray,
    category: np.ndarray,
    price_taste: np.ndarray,
    propensity: np.ndarray,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Probability of a click on each item if it is examined, given the set of items in the list.

    The docstring of :mod:`hf_rerank.data.simulation.prm_public_world` has the formula.

    Args:
        world: The parameters.
        quality, match, style, price: [lists, items]; for Ad, the logarithm of the price.
        category: [lists, items], any integers.
        price_taste, propensity: [lists].
        mask: bool, [lists, items]; False at padding. None: there is none.

    Returns:
        [lists, items], in (0, 1), and 0 at padding. Reordering the items of a list reorders the values likewise.
    """
    mask = np.ones(style.shape, bool) if mask is None else mask
    count = mask.sum(axis=1, keepdims=True)
    style = np.where(mask, style, 0.0)
    theme = style * ((style.sum(axis=1, keepdims=True) - style) / np.maximum(count - 1, 1))
    gap = compute_price_gap(world, price, mask)
    same = (category[:, :, None] == category[:, None, :]) & mask[:, None, :]
    crowding = np.log(np.maximum(same.sum(axis=2), 1))
    context = (
        world.theme_weight * theme
        - world.price_weight * np.abs(gap - price_taste[:, None])
        - world.crowding_weight * crowding
    )
    own = world.quality_weight * quality + world.match_weight * match
    logit = world.bias + propensity[:, None] + own + world.context_strength * context
    return np.where(mask, 0.5 * (1 + np.tanh(0.5 * logit)), 0.0)


def compute_price_gap(world: Any, price: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The difference of each price from the mean of its list, in units of ``price_spread``; [lists, items]."""
    mean = np.where(mask, price, 0.0).sum(axis=1, keepdims=True) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    return (price - mean) / world.price_spread


def draw_clicks(rng: np.random.Generator, examination: np.ndarray, attraction: np.ndarray) -> np.ndarray:
    """Draws clicks of the position-based model: ``click_i ~ Bernoulli(examination[i] * attraction_i)``.

    Args:
        rng: Source of randomness.
        examination: [items], by position.
        attraction: [lists, items], slot i at position i.

    Returns:
        bool, [lists, items].
    """
    return rng.random(attraction.shape) < examination * attraction


def draw_cascade_clicks(rng: np.random.Generator, attraction: np.ndarray) -> np.ndarray:
    """Draws clicks of the cascade model (Craswell et al. 2008): the reader goes down to the first click, and leaves.

    Args:
        rng: Source of randomness.
        attraction: [lists, items], slot i at position i.

    Returns:
        bool, [lists, items]; at most one click per list.
    """
    attracted = rng.random(attraction.shape) < attraction
    return attracted & (np.cumsum(attracted, axis=1) == 1)


def draw_user_browsing_clicks(rng: np.random.Generator, examination: np.ndarray, attraction: np.ndarray) -> np.ndarray:
    """Draws clicks of a user browsing model (Dupret and Piwowarski 2008): readers continue below each click.

    A position is examined with a probability that depends on its distance from the last click above it, or from the
    top if there is none: ``examination[position]`` before the first click, ``examination[position - last - 1]`` after
    it.

    Args:
        rng: Source of randomness.
        examination: [items], by the number of positions since the last click.
        attraction: [lists, items], slot i at position i.

    Returns:
        bool, [lists, items].
    """
    click = np.zeros(attraction.shape, bool)
    since = np.zeros(len(attraction), np.int64)
    for position, chance in enumerate(rng.random(attraction.shape).T):
        click[:, position] = chance < examination[since] * attraction[:, position]
        since = np.where(click[:, position], 0, since + 1)
    return click


def order_click_probabilities(
    base_attraction: np.ndarray,
    category: np.ndarray,
    order: np.ndarray,
    *,
    examination: np.ndarray,
    same_category_decay: float,
) -> np.ndarray:
    """Click probabilities by position, in ``mode="order"``, of lists shown in a given order.

    ``examination[p] * base_attraction[item] * same_category_decay ** r``, where ``item = order[p]`` and ``r`` counts
    the items at positions above ``p`` that have the category of ``item`` and at least its base attraction.

    Args:
        base_attraction, category: [..., items], by slot (columns of the file of ground truth).
        order: [..., items], the slots from the top of the list to its end; a permutation of 0..items-1.
        examination: [items], by position (metadata ``examination`` of the file of ground truth).
        same_category_decay: Metadata ``same_category_decay`` of the file of ground truth.

    Returns:
        [..., items], by **position**.
    """
    base = np.take_along_axis(np.asarray(base_attraction, np.float64), np.asarray(order), axis=-1)
    kind = np.take_along_axis(np.asarray(category), np.asarray(order), axis=-1)
    rival = (kind[..., :, None] == kind[..., None, :]) & (base[..., None, :] >= base[..., :, None])
    rivals_above = np.tril(rival, k=-1).sum(axis=-1)
    return np.asarray(examination) * base * same_category_decay**rivals_above


def make_generator(seed: int, *key: int) -> np.random.Generator:
    """A generator that depends only on the seed and the key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def check_counts(function: str, **counts: tuple[Any, int]) -> None:
    """
    Raises:
        InputError: One of the counts, each given with its minimum, is not an integer or too small.
    """
    for name, (value, low) in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
            raise InputError(f"{function}: {name} must be an integer of at least {low}, got {value!r}")


def show_progress(blocks: Iterator[_Block], n_lists: int, show: bool) -> Iterator[_Block]:
    """Yields the blocks, with a progress bar of their lists if it takes longer than a second."""
    from tqdm import tqdm

    with tqdm(total=n_lists, unit=" lists", desc="Simulating", delay=1, disable=not show) as bar:
        for block in blocks:
            yield block
            bar.update(len(block))  # type: ignore[arg-type]
