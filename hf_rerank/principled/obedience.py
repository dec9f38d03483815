"""Obedience of a re-ranker to both principles, measured on rankings, for any function from positions to scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.list_tensors import upcast
from hf_rerank.principled.orders import (
    draw_by_key,
    order_from_positions,
    perturb_by_key,
    positions_from_scores,
    step_keys,
    swap_adjacent,
)

# Standard deviation of a list's scores below which they count as equal.
COLLAPSED_SPREAD = 1e-3
# Largest number of adjacent swaps tried per list; in longer lists this many are drawn.
MAX_SWAPS = 64
# Number of times a model is fed its own output before a list counts as not converged.
MAX_STEPS = 10


@torch.no_grad()
def obedience(
    score: Callable[[Tensor], Tensor],
    positions: Tensor,
    mask: Tensor | None = None,
    *,
    k: int | Sequence[int] | None = None,
    swaps: Literal["all", "one"] = "all",
    max_steps: int = MAX_STEPS,
    seed: int = 0,
    list_keys: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> dict[str, Any]:
    """Measures obedience to convergence consistency (P1) and adversarial consistency (P2), and fixed points.

    P1: fed its own ranking, a re-ranker gives the same ranking. P2: it is insensitive to swapping adjacent items
    (arXiv 2504.04188). ``P'`` is the ranking by ``score(P)``. Lists with fewer than two real items are left out.

    Args:
        score: Positions int64 [B, L] -> scores [B, L], in evaluation mode and float32 (bf16 creates ties, which
            inflate obedience).
        positions: int64 [B, L], the given order P.
        mask: bool [B, L], True at real items. None: all are real.
        k: Also measure the top k (one number or several; all items of a shorter list).
        swaps: ``all``: the mean over the n - 1 swaps of adjacent items of each list, or, in lists of more than 65
            items, over 64 of them, drawn without replacement; ``one``: a single seeded swap.
        max_steps: Number of times the model is fed its own output before a list counts as not converged; 0: fixed
            points are not measured.
        seed: Seed of the swaps that are drawn.
        list_keys: int64 [B], keys that make a list's draws the same in any batch. None: the row in the batch.
        reduction: ``mean``: means over lists; ``none``: float32 tensors [B], NaN if a list is left out (and, for
            ``fixed_point_steps``, if it does not converge).

    Returns:
        For ``p1`` (P against P') and ``p2`` (P against P with two adjacent items swapped): ``p?_obedience``, the share
        of lists whose whole ranking stays the same; ``p?_item_obedience``, per list the share of items that keep their
        position; ``p?_kendall_tau``; with k, ``p?_obedience@k`` (the top k as an order) and ``p?_set_obedience@k``
        (as a set). ``p2_sampled_share``: share of lists for which only a sample of the swaps was tried.
        ``fixed_point_rate``: share of lists that converge, P(t+1) = P(t) with P(0) = P and P(t+1) the ranking by
        score(P(t)); ``fixed_point_steps``: the smallest such t, over lists that converge; ``cycle_rate``: share of
        lists that return to an order before their last. ``score_spread``: standard deviation of a list's scores (equal
        scores obey both principles and are useless); ``collapsed_share``: share of lists where it is below 0.001. With
        ``mean`` also ``obedience_lists``, the number of lists measured. The share of lists with ``fixed_point_steps``
        at most 1 equals ``p1_obedience``.

    Raises:
        InputError: An unknown option, or scores that are NaN or differ in shape from the positions.
    """
    if swaps not in ("all", "one"):
        raise InputError(f"swaps {swaps!r}: expected 'all' or 'one'")
    if reduction not in ("mean", "none"):
        raise InputError(f"reduction {reduction!r}: expected 'mean' or 'none'")
    cuts = () if k is None else (k,) if isinstance(k, int) else tuple(k)
    if any(cut < 1 for cut in cuts):
        raise InputError(f"k is {k}: expected at least 1")
    if mask is None:
        mask = torch.ones_like(positions, dtype=torch.bool)
    counted = mask.sum(-1) >= 2

    def check_and_score(order: Tensor) -> Tensor:
        scores = score(order)
        if scores.shape != positions.shape:
            raise InputError(
                f"score gave {list(scores.shape)}: expected the shape of positions, {list(positions.shape)}"
            )
        # NaN compares with nothing: such a ranking would never change, and would obey both principles.
        if scores[mask].isnan().any():
            raise InputError("score gave NaN for a real item: NaN cannot be ranked, check the model's weights")
        return scores

    scores = check_and_score(positions)
    own = positions_from_scores(scores, mask)
    again = positions_from_scores(check_and_score(own), mask)
    measured = _measure_agreement("p1", own, again, mask, cuts)
    measured.update(_measure_swap_agreement(check_and_score, positions, own, mask, cuts, swaps, seed, list_keys))
    if max_steps > 0:
        given = positions_from_scores(-positions, mask)
        measured.update(_find_fixed_points(check_and_score, [given, own, again], mask, max_steps))
    measured["score_spread"] = compute_spread(scores, mask)
    measured["collapsed_share"] = (measured["score_spread"] < COLLAPSED_SPREAD).float()

    per_list = {name: torch.where(counted, value, torch.nan) for name, value in measured.items()}
    if reduction == "none":
        return per_list
    # NaN marks a list without a value: one left out or, for the steps, one that never converged.
    means: dict[str, Any] = {name: float(value.cpu().double().nanmean()) for name, value in per_list.items()}
    means["obedience_lists"] = int(counted.sum())
    return means


def _measure_agreement(
    name: str, before: Tensor, after: Tensor, mask: Tensor, cuts: Sequence[int]
) -> dict[str, Tensor]:
    """Measures, [B] each, of the agreement of two rankings of the same lists."""
    same = (before == after) | ~mask
    count = mask.sum(-1).clamp(min=1)
    measures = {
        f"{name}_obedience": same.all(-1).float(),
        f"{name}_item_obedience": (same & mask).sum(-1) / count,
        f"{name}_kendall_tau": _compute_kendall_tau(before, after, mask),
    }
    for cut in cuts:
        top_before, top_after = (before < cut) & mask, (after < cut) & mask
        measures[f"{name}_obedience@{cut}"] = (same | ~(top_before | top_after)).all(-1).float()
        measures[f"{name}_set_obedience@{cut}"] = (top_before == top_after).all(-1).float()
    return measures


def _measure_swap_agreement(
    score: Callable[[Tensor], Tensor],
    positions: Tensor,
    own: Tensor,
    mask: Tensor,
    cuts: Sequence[int],
    swaps: str,
    seed: int,
    keys: Tensor | None,
) -> dict[str, Tensor]:
    keys = torch.arange(positions.shape[0], device=positions.device) if keys is None else keys
    keys = step_keys(keys, seed=seed, step=0)
    pairs = (mask.sum(-1) - 1).clamp(min=0)
    if swaps == "one":
        agreement = _measure_agreement(
            "p2", own, positions_from_scores(score(perturb_by_key(positions, mask, keys)), mask), mask, cuts
        )
        return {**agreement, "p2_sampled_share": (pairs > 1).float()}
    firsts, tried = _choose_swaps(pairs, keys, positions.shape[-1])
    sums: dict[str, Tensor] = {}
    for number in range(firsts.shape[-1]):
        swapped = swap_adjacent(positions, firsts[:, number], mask)
        agreement = _measure_agreement("p2", own, positions_from_scores(score(swapped), mask), mask, cuts)
        for name, value in agreement.items():
            sums[name] = sums.get(name, 0.0) + torch.where(number < tried, value, 0.0)
    if not sums:
        sums = {
            name: torch.zeros(len(pairs), device=mask.device)
            for name in _measure_agreement("p2", own, own, mask, cuts)
        }
    means = {name: value / tried.clamp(min=1) for name, value in sums.items()}
    return {**means, "p2_sampled_share": (tried < pairs).float()}


def _choose_swaps(pairs: Tensor, keys: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Chooses the positions p at which the items at p and p + 1 are swapped: all of a list, or ``MAX_SWAPS`` drawn.

    Args:
        pairs: int64 [B], number of adjacent pairs of each list.
        keys: int64 [B], keys of the draws.
        length: Number of slots of a list.

    Returns:
        int64 [B, largest number of swaps of a list], and the number of them that count for each list [B].
    """
    most = int(pairs.max()) if pairs.numel() else 0
    position = torch.arange(length, device=pairs.device)
    if most <= MAX_SWAPS:
        return position[:most].expand(len(pairs), most), pairs
    # A long list takes the positions with the smallest draws. Short lists keep the order of their pairs.
    draws = torch.where((pairs > MAX_SWAPS).unsqueeze(-1), draw_by_key(keys, length), 0)
    draws = torch.where(position < pairs.unsqueeze(-1), draws, 1 << 33)
    return draws.argsort(dim=-1, stable=True)[:, :MAX_SWAPS], pairs.clamp(max=MAX_SWAPS)


def _find_fixed_points(
    score: Callable[[Tensor], Tensor], orders: list[Tensor], mask: Tensor, max_steps: int
) -> dict[str, Tensor]:
    """Iterates P(t+1) = ranking by score(P(t)) for t up to ``max_steps``; ``orders`` are P(0), P(1) and P(2)."""
    steps = torch.full(mask.shape[:1], torch.nan, device=mask.device)
    cycles = torch.zeros(mask.shape[:1], dtype=torch.bool, device=mask.device)
    for step in range(max_steps + 1):
        # A list that has returned to an earlier order will repeat: there is no need to follow it.
        if not (steps.isnan() & ~cycles & mask.any(-1)).any():
            break
        if len(orders) < step + 2:
            orders.append(positions_from_scores(score(orders[-1]), mask))
        following = orders[step + 1]
        settled = (following == orders[step]).all(-1)
        steps = torch.where(settled & steps.isnan(), float(step), steps)
        for earlier in orders[:step]:
            cycles |= (following == earlier).all(-1) & steps.isnan()
    return {
        "fixed_point_rate": (~steps.isnan()).float(),
        "fixed_point_steps": steps,
        "cycle_rate": cycles.float(),
    }


def _compute_kendall_tau(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    """Kendall's tau [B] of two rankings without ties: concordant minus discordant pairs, over all pairs."""
    tau = torch.ones(mask.shape[:1], device=mask.device)
    # Most lists of an obedient model keep their ranking: pairs are counted only in the others.
    changed = ((before != after) & mask).any(-1).nonzero().squeeze(-1)
    # Padding comes last in both, in slot order: no pair with it is discordant.
    after_by_before = after[changed].gather(-1, order_from_positions(before[changed]))
    discordant = (after_by_before.unsqueeze(-1) > after_by_before.unsqueeze(-2)).triu(1).sum((-1, -2))
    count = mask[changed].sum(-1)
    pairs = (count * (count - 1)).clamp(min=1) / 2
    return tau.index_copy(0, changed, 1 - 2 * discordant / pairs)


def compute_spread(scores: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation (over n) of the real items' scores, [B]."""
    count = mask.sum(-1).clamp(min=1)
    values = torch.where(mask, upcast(scores), 0.0)
    mean = values.sum(-1) / count
    squares = torch.where(mask, (values - mean.unsqueeze(-1)).square(), 0.0)
    return (squares.sum(-1) / count).sqrt()
