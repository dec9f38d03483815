"""Positions and orders, and the small changes of them that adversarial consistency is about.

A *position vector* ``P`` says where each item stands: ``P[i]`` is the place (0 at the top) of the item in slot
``i``. Its inverse, an *order*, lists slots from best to worst. Real items hold places 0 to n_real - 1, padding
the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rerank.errors import InputError, suggestion

PERTURBATIONS = ("adjacent_swap",)


def positions_from_scores(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Places by falling score: 0 for the largest; ties keep slot order; padding comes last, in slot order.

    Computed by counting, for each item, those that stand before it: exact, stable, exportable, without a sort.

    Args:
        scores: [..., L], NaN at no real item (it has no place); what stands at padding is not looked at.
        mask: bool [..., L], True at real items. None: all are real.

    Returns:
        int64 [..., L], a permutation of 0..L-1.
    """
    length = scores.shape[-1]
    slots = torch.arange(length, device=scores.device)
    earlier = slots[None, :] < slots[:, None]
    mine, other = scores.unsqueeze(-1), scores.unsqueeze(-2)
    before = (other > mine) | ((other == mine) & earlier)
    if mask is not None:
        real, other_real = mask.unsqueeze(-1), mask.unsqueeze(-2)
        before = torch.where(real & other_real, before, ~real & (other_real | earlier))
    return before.sum(-1)


def order_from_positions(positions: Tensor) -> Tensor:
    """The slots from the first place to the last: the inverse permutation.

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
    strength: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The positions after a small random change that touches real items only; a list of one stays as it is.

    Args:
        positions: int64 [B, L].
        mask: bool [B, L], True at real items. None: all are real.
        kind: ``adjacent_swap``: two items at neighbouring places change places, uniform over the n_real - 1 pairs.
        strength: How many such changes, one after another; at least 1.
        generator: Source of the draws. None: torch's own.

    Returns:
        int64 [B, L].

    Raises:
        InputError: An unknown kind, or a strength below 1.
    """
    if kind not in PERTURBATIONS:
        raise InputError(
            f"perturbation {kind!r}: expected one of {', '.join(PERTURBATIONS)}{suggestion(kind, PERTURBATIONS)}"
        )
    if strength < 1:
        raise InputError(f"perturbation strength {strength}: expected at least 1")
    device = positions.device if generator is None else generator.device
    for _ in range(strength):
        draws = torch.rand(positions.shape[0], generator=generator, device=device).to(positions.device)
        positions = swap_neighbours(positions, _pair(draws, positions, mask), mask)
    return positions


def swap_neighbours(positions: Tensor, place: Tensor, mask: Tensor | None = None) -> Tensor:
    """Exchanges the items at ``place`` and ``place + 1``; lists where ``place + 1`` holds no item stay as they are.

    Args:
        positions: int64 [B, L].
        place: int64 [B] or a scalar tensor.
        mask: bool [B, L].
    """
    count = _real_items(positions, mask)
    place = torch.where(place + 1 < count, place, -2).unsqueeze(-1)
    down = (positions == place).to(positions.dtype)
    up = (positions == place + 1).to(positions.dtype)
    return positions + down - up


def keyed_adjacent_swap(positions: Tensor, mask: Tensor | None, keys: Tensor, *, seed: int, step: int) -> Tensor:
    """``adjacent_swap`` drawn from a hash of (seed, step, key of the list).

    The same list at the same step gets the same swap in a resumed run, in any batch and on any process.

    Args:
        positions: int64 [B, L].
        mask: bool [B, L].
        keys: int64 [B], one a list.
    """
    mixed = _mix(keys + _wrapped(seed * 0x632BE59BD9B4E019 + step * 0x2545F4914F6CDD1D))
    draws = ((mixed >> 11) & ((1 << 53) - 1)).to(torch.float64) / (1 << 53)
    return swap_neighbours(positions, _pair(draws, positions, mask), mask)


def _real_items(positions: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.full(positions.shape[:-1], positions.shape[-1], device=positions.device)
    return mask.sum(-1)


def _pair(draws: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
    """The upper place of a pair of neighbours, uniform for draws uniform in [0, 1)."""
    pairs = (_real_items(positions, mask) - 1).clamp(min=0)
    return torch.minimum((draws * pairs).long(), (pairs - 1).clamp(min=0))


def _wrapped(number: int) -> int:
    """The integer modulo 2**64, in the range of int64."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix(values: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64; shifts are made logical by masking, products wrap."""
    values = (values ^ ((values >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    values = (values ^ ((values >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return values ^ ((values >> 31) & ((1 << 33) - 1))
