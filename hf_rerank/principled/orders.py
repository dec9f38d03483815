"""Positions and orders, and the small perturbations of positions for adversarial consistency.

A *position vector* ``P`` gives the position of each slot's item: ``P[i]`` is the position (0 at the top) of the item
in slot ``i``. Its inverse, an *order*, lists the slots from best to worst. Real items have positions 0 to n_real - 1,
padding slots the remaining ones.

Random draws are 32-bit integers and all arithmetic is in int64 and float32, so that everything runs on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_rerank.errors import InputError, suggestion

PERTURBATIONS = ("adjacent_swap", "random_swap", "window_shuffle", "reverse_window", "score_noise")
MAX_STRENGTH = 1000  # swaps are made one after another
BITS = 32  # bits of a random draw
COUNTED_LENGTH = 64  # lists of up to this many slots are ranked by counting


def positions_from_scores(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Positions by decreasing score: 0 for the largest; ties keep slot order; padding comes last, in slot order.

    Computed by counting, for each item, those ranked above it: exact, stable, exportable. Long lists are sorted,
    which is faster than L^2 comparisons.

    Args:
        scores: [..., L], without NaN at real items (NaN has no rank); values at padding are not read.
        mask: bool [..., L], True at real items. None: all are real.

    Returns:
        int64 [..., L], a permutation of 0..L-1.
    """
    length = scores.shape[-1]
    if not torch.compiler.is_compiling() and length > COUNTED_LENGTH:
        return _sort_positions(scores, mask)
    slots = torch.arange(length, device=scores.device)
    earlier = slots[None, :] < slots[:, None]
    mine, other = scores.unsqueeze(-1), scores.unsqueeze(-2)
    before = (other > mine) | ((other == mine) & earlier)
    if mask is not None:
        real, other_real = mask.unsqueeze(-1), mask.unsqueeze(-2)
        before = torch.where(real & other_real, before, ~real & (other_real | earlier))
    return before.sum(-1)


def _sort_positions(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return order_from_positions((-scores).argsort(dim=-1, stable=True))
    number_type = torch.finfo if scores.is_floating_point() else torch.iinfo
    falling = (-scores).masked_fill(~mask, number_type(scores.dtype).max)
    order = falling.argsort(dim=-1, stable=True)
    # An item may have a score as low as padding has: a second, stable sort puts padding behind it.
    order = order.gather(-1, (~mask).gather(-1, order).int().argsort(dim=-1, stable=True))
    return order_from_positions(order)


def order_from_positions(positions: Tensor) -> Tensor:
    """The order: the slots from the first position to the last; the inverse permutation of the positions.

    Args:
        positions: int64 [..., L], a permutation of 0..L-1.

    Returns:
        int64 [..., L].
    """
    slots = torch.arange(positions.shape[-1], device=positions.device).expand_as(positions)
    return torch.zeros_like(positions).scatter(-1, positions, slots)


def perturb(
    positions: Tensor,
    mask: Tensor | None = None,
    *,
    kind: str = "adjacent_swap",
    strength: float = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Perturbs positions at random; padding, and lists of one item, stay as they are.

    Args:
        positions: int64 [B, L].
        mask: bool [B, L], True at real items. None: all are real.
        kind: One of

            - ``adjacent_swap``: two items at adjacent positions are swapped, uniform over the n_real - 1 pairs;
              ``strength`` such swaps, one after another.
            - ``random_swap``: two items at any two positions are swapped; ``strength`` swaps.
            - ``window_shuffle``: the items at ``strength + 1`` successive positions, uniform over all such windows,
              are put in a random order, uniform over all of them (a shorter list is one window).
            - ``reverse_window``: the items of such a window are reversed; with strength 1 an adjacent swap.
            - ``score_noise``: Gaussian noise with a standard deviation of ``strength`` is added to each position,
              and items are ranked by the sum.
        strength: See ``kind``; a whole number of at least 1, for ``score_noise`` any number above 0.
        generator: Source of the draws. None: torch's own.

    Returns:
        int64 [B, L].

    Raises:
        InputError: An unknown kind, or a strength that the kind does not allow.
    """
    check_perturbation(kind, strength)
    device = positions.device if generator is None else generator.device
    size = (positions.shape[0], _draws_per_list(kind, strength, positions.shape[-1]))
    draws = torch.randint(0, 1 << BITS, size, generator=generator, device=device).to(positions.device)
    return _apply_perturbation(positions, mask, draws, kind, strength)


def perturb_by_key(
    positions: Tensor, mask: Tensor | None, keys: Tensor, *, kind: str = "adjacent_swap", strength: float = 1
) -> Tensor:
    """Perturbs positions by draws that are hashes of each list's key, so that they do not depend on the batch.

    Args:
        positions: int64 [B, L].
        mask: bool [B, L].
        keys: int64 [B], from ``step_keys``: the same list at the same step is perturbed in the same way in a resumed
            run, in any batch and on any process.
        kind: One of ``PERTURBATIONS``; see ``perturb``.
        strength: A whole number of at least 1, for ``score_noise`` any number above 0; see ``perturb``.

    Returns:
        int64 [B, L].
    """
    draws = draw_by_key(keys, _draws_per_list(kind, strength, positions.shape[-1]))
    return _apply_perturbation(positions, mask, draws, kind, strength)


def check_perturbation(kind: str, strength: float) -> None:
    """Raises an InputError for an unknown kind, or a strength that the kind does not allow."""
    if kind not in PERTURBATIONS:
        raise InputError(
            f"perturbation {kind!r}: expected one of {', '.join(PERTURBATIONS)}{suggestion(kind, PERTURBATIONS)}"
        )
    if not (0 < strength < math.inf and (kind == "score_noise" or strength == int(strength) <= MAX_STRENGTH)):
        expected = "a number above 0" if kind == "score_noise" else f"a whole number from 1 to {MAX_STRENGTH}"
        raise InputError(f"perturbation_strength of {kind} is {strength}: expected {expected}")


def step_keys(list_keys: Tensor, *, seed: int, step: int) -> Tensor:
    """Derives a key per list for the random draws of one training step.

    Args:
        list_keys: int64 [B], one per list.
        seed: Seed of the run.
        step: Training step.

    Returns:
        int64 [B].
    """
    return list_keys + _wrap_int64(seed * 0x632BE59BD9B4E019 + step * 0x2545F4914F6CDD1D)


def draw_by_key(keys: Tensor, count: int) -> Tensor:
    """Draws ``count`` integers in [0, 2**32) per key, uniform and reproducible.

    Number i is the upper 32 bits of splitmix64's finaliser of ``key + i * 0x9E3779B97F4A7C15``.

    Args:
        keys: int64 [B].
        count: Number of draws per key.

    Returns:
        int64 [B, count].
    """
    counters = torch.arange(count, device=keys.device) * _wrap_int64(0x9E3779B97F4A7C15)
    mixed = _mix(keys.unsqueeze(-1) + counters)
    return (mixed >> (64 - BITS)) & ((1 << BITS) - 1)


def swap_adjacent(positions: Tensor, first: Tensor, mask: Tensor | None = None) -> Tensor:
    """Swaps the items at positions ``first`` and ``first + 1``; lists where either has no item stay as they are.

    Args:
        positions: int64 [B, L].
        first: int64 [B] or a scalar tensor.
        mask: bool [B, L].
    """
    return _swap(positions, first, first + 1, _count_real_items(positions, mask))


def _draws_per_list(kind: str, strength: float, length: int) -> int:
    if kind in ("adjacent_swap", "random_swap"):
        return int(strength) * (1 if kind == "adjacent_swap" else 2)
    return {"window_shuffle": 1 + length, "reverse_window": 1, "score_noise": length}[kind]


def _apply_perturbation(positions: Tensor, mask: Tensor | None, draws: Tensor, kind: str, strength: float) -> Tensor:
    """Perturbs by the draws [B, draws per list]; slot i of a list uses the same draw however it is padded."""
    count = _count_real_items(positions, mask)
    if kind == "adjacent_swap":
        for change in range(int(strength)):
            place = _draw_below(count - 1, draws[:, change])
            positions = _swap(positions, place, place + 1, count)
        return positions
    if kind == "random_swap":
        for change in range(int(strength)):
            one = _draw_below(count, draws[:, 2 * change])
            # The other is any but this one: 1 to n - 1 positions further, modulo n.
            other = (one + 1 + _draw_below(count - 1, draws[:, 2 * change + 1])) % count.clamp(min=1)
            positions = _swap(positions, one, other, count)
        return positions
    if kind == "score_noise":
        # Odd multiples of 2**-23 between -1 and 1, which float32 holds exactly: the quantile is finite.
        uniform = (2 * (draws >> (BITS - 23)) + 1 - (1 << 23)).float() / (1 << 23)
        return _rank_real_items(positions + torch.erfinv(uniform) * (math.sqrt(2.0) * strength), positions, mask)
    width = count.clamp(max=min(int(strength), positions.shape[-1]) + 1).unsqueeze(-1)
    start = _draw_below(count - width.squeeze(-1) + 1, draws[:, 0]).unsqueeze(-1)
    inside = (positions >= start) & (positions < start + width)
    if kind == "reverse_window":
        return torch.where(inside, 2 * start + width - 1 - positions, positions)
    # In units of 2**-32 positions: anywhere in the window below its last position, so no tie with items around it.
    shuffled = (start << BITS) + draws[:, 1:] * (width - 1)
    return _rank_real_items(torch.where(inside, shuffled, positions << BITS), positions, mask)


def _rank_real_items(wanted: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
    """Ranks the real items by these positions, which may be fractional; padding keeps its positions."""
    ranked = positions_from_scores(-wanted, mask)
    return ranked if mask is None else torch.where(mask, ranked, positions)


def _swap(positions: Tensor, one: Tensor, other: Tensor, count: Tensor) -> Tensor:
    """Swaps the items at positions ``one`` and ``other``, [B] or scalar, if both have an item."""
    there = (torch.minimum(one, other) >= 0) & (torch.maximum(one, other) < count)
    one, other = torch.where(there, one, -1).unsqueeze(-1), torch.where(there, other, -1).unsqueeze(-1)
    return torch.where(positions == one, other, torch.where(positions == other, one, positions))


def _count_real_items(positions: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.full(positions.shape[:-1], positions.shape[-1], device=positions.device)
    return mask.sum(-1)


def _draw_below(count: Tensor, draws: Tensor) -> Tensor:
    """Maps each draw to an integer from 0 to count - 1; 0 where the count is 0."""
    return (draws * count.clamp(min=0)) >> BITS


def _wrap_int64(number: int) -> int:
    """Wraps an integer modulo 2**64 into the range of int64."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix(values: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64; shifts are made logical by masking, products wrap."""
    values = (values ^ ((values >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    values = (values ^ ((values >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return values ^ ((values >> 31) & ((1 << 33) - 1))
