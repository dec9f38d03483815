"""Positions, orders and perturbations: against sorting in plain Python, small cases by hand, and counting."""

import math
import random

import pytest
import torch

from hf_rerank.errors import InputError
from hf_rerank.principled.orders import (
    keyed_adjacent_swap,
    order_from_positions,
    perturb,
    positions_from_scores,
    swap_neighbours,
)

WORD = 2**64
# 99.9th percentile of chi-square with 5 degrees of freedom (six pairs of neighbours).
CHI_SQUARE_5 = 20.515


def sorted_positions(scores: list[float], mask: list[bool]) -> list[int]:
    """Real slots by falling score, Python's sort being stable; then padding slots."""
    real = sorted((slot for slot in range(len(scores)) if mask[slot]), key=lambda slot: -scores[slot])
    order = real + [slot for slot in range(len(scores)) if not mask[slot]]
    return [order.index(slot) for slot in range(len(scores))]


def test_positions_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [2.0, 2.0, 2.0], [-math.inf, 0.0, -math.inf]])
    assert positions_from_scores(scores).tolist() == [[2, 0, 1], [0, 1, 2], [1, 0, 2]]
    mask = torch.tensor([[True, False, True], [False, True, True], [False, False, False]])
    assert positions_from_scores(scores, mask).tolist() == [[1, 2, 0], [2, 0, 1], [0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_positions_are_those_of_a_sort(dtype: torch.dtype) -> None:
    draw = random.Random(1)
    values = [-2, -1, 0, 1, 2, 3] + ([] if dtype == torch.int64 else [-math.inf, math.inf, -0.0, 0.5])
    garbage = [99] if dtype == torch.int64 else [math.nan, math.inf, -math.inf, torch.finfo(dtype).min]
    for length in (1, 2, 3, 8, 33):
        masks = [[draw.random() < 0.7 for _ in range(length)] for _ in range(20)]
        scores = [[draw.choice(values if real else garbage) for real in mask] for mask in masks]
        positions = positions_from_scores(torch.tensor(scores, dtype=dtype), torch.tensor(masks))
        assert positions.dtype == torch.int64
        assert positions.tolist() == [sorted_positions(*one) for one in zip(scores, masks, strict=True)]


def test_positions_of_any_leading_shape() -> None:
    scores = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2))
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(3)) < 0.6
    flat = positions_from_scores(scores.reshape(6, 5), mask.reshape(6, 5))
    assert torch.equal(positions_from_scores(scores, mask), flat.reshape(2, 3, 5))
    assert positions_from_scores(scores[0, 0], mask[0, 0]).tolist() == flat[0].tolist()
    assert positions_from_scores(torch.zeros(2, 0)).shape == (2, 0)


def test_order_is_the_inverse() -> None:
    assert order_from_positions(torch.tensor([2, 0, 1])).tolist() == [1, 2, 0]
    scores = torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(4))
    positions = positions_from_scores(scores)
    order = order_from_positions(positions)
    assert torch.equal(order, scores.argsort(-1, descending=True))
    assert torch.equal(positions.gather(-1, order), torch.arange(9).expand(4, 3, 9))
    assert torch.equal(order_from_positions(order), positions)


def test_swap_neighbours_by_hand() -> None:
    positions = torch.tensor([[2, 0, 1, 3], [0, 1, 2, 3], [1, 0, 2, 3]])
    place = torch.tensor([0, 2, 1])
    assert swap_neighbours(positions, place).tolist() == [[2, 1, 0, 3], [0, 1, 3, 2], [2, 0, 1, 3]]
    # With three, four and two real items, there is nothing at place 2 of the third list.
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    assert swap_neighbours(positions, place, mask).tolist() == [[2, 1, 0, 3], [0, 1, 3, 2], [1, 0, 2, 3]]
    assert swap_neighbours(positions, torch.tensor(1), mask).tolist() == [[1, 0, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3]]
    assert swap_neighbours(positions, torch.tensor(3)).tolist() == positions.tolist()


def ragged(seed: int, lists: int = 64, length: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Random positions of lists of one to ``length`` items, in slots anywhere in the row."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(lists, length, generator=generator)
    count = 1 + torch.arange(lists) % length
    mask = torch.rand(lists, length, generator=generator).argsort(-1) < count[:, None]
    return positions_from_scores(scores, mask), mask


def assert_one_swap(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> None:
    """Exactly two real items at neighbouring places changed places; a list of one is as before."""
    for was, now, real in zip(before.tolist(), after.tolist(), mask.tolist(), strict=True):
        changed = [slot for slot in range(len(was)) if was[slot] != now[slot]]
        if sum(real) < 2:
            assert changed == []
            continue
        first, second = changed
        assert real[first]
        assert real[second]
        assert (now[first], now[second]) == (was[second], was[first])
        assert abs(was[first] - was[second]) == 1


def test_perturb_swaps_one_pair_of_items() -> None:
    positions, mask = ragged(5)
    given = positions.clone()
    for seed in range(20):
        assert_one_swap(positions, perturb(positions, mask, generator=torch.Generator().manual_seed(seed)), mask)
    assert torch.equal(positions, given)
    assert_one_swap(positions, perturb(positions), torch.ones_like(mask))


def upper_places(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """For each list the upper of the two places that were exchanged."""
    return [
        min(p for p, q in zip(*pair, strict=True) if p != q)
        for pair in zip(before.tolist(), after.tolist(), strict=True)
    ]


def chi_square(places: list[int], pairs: int) -> float:
    expected = len(places) / pairs
    return sum((places.count(place) - expected) ** 2 / expected for place in range(pairs))


def test_perturb_is_uniform_over_pairs() -> None:
    positions = torch.arange(7).repeat(6000, 1)
    after = perturb(positions, generator=torch.Generator().manual_seed(6))
    assert chi_square(upper_places(positions, after), 6) < CHI_SQUARE_5
    # Padding does not count: seven items of ten.
    positions, mask = torch.arange(10).repeat(6000, 1), torch.arange(10).repeat(6000, 1) < 7
    after = perturb(positions, mask, generator=torch.Generator().manual_seed(7))
    assert chi_square(upper_places(positions, after), 6) < CHI_SQUARE_5


def test_perturb_repeats_and_adds_up() -> None:
    positions, mask = ragged(8)

    def perturbed(seed: int, strength: int) -> torch.Tensor:
        return perturb(positions, mask, strength=strength, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(perturbed(1, 3), perturbed(1, 3))
    assert not torch.equal(perturbed(1, 3), perturbed(2, 3))
    generator = torch.Generator().manual_seed(1)
    one_by_one = positions
    for _ in range(3):
        one_by_one = perturb(one_by_one, mask, generator=generator)
    assert torch.equal(perturbed(1, 3), one_by_one)
    strong = perturbed(3, 200)
    assert torch.equal(strong.sort(-1).values, torch.arange(8).expand(64, 8))
    assert torch.equal(strong[~mask], positions[~mask])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "adjacent_swp"}, "'adjacent_swp': expected one of adjacent_swap; did you mean 'adjacent_swap'"),
        ({"strength": 0}, "strength 0: expected at least 1"),
    ],
)
def test_perturb_refuses(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        perturb(torch.arange(3)[None], **options)


def keyed_place(pairs: int, seed: int, step: int, key: int) -> int:
    """The pair that (seed, step, key) draws, in Python's integers: the finaliser of splitmix64, then 53 bits."""
    z = (key + seed * 0x632BE59BD9B4E019 + step * 0x2545F4914F6CDD1D) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    z ^= z >> 31
    return int((z >> 11) / 2**53 * pairs)


def test_keyed_swap_is_the_documented_draw() -> None:
    draw = random.Random(9)
    keys = [draw.randrange(-(2**63), 2**63) for _ in range(200)]
    positions = torch.arange(9).repeat(200, 1)
    for seed, step in ((0, 0), (42, 7), (-3, 10**9), (2**70, 12)):
        after = keyed_adjacent_swap(positions, None, torch.tensor(keys), seed=seed, step=step)
        assert upper_places(positions, after) == [keyed_place(8, seed, step, key) for key in keys]


def test_keyed_swap_depends_on_nothing_else() -> None:
    positions, mask = ragged(10)
    keys = torch.randint(-(2**62), 2**62, (64,), generator=torch.Generator().manual_seed(11))
    whole = keyed_adjacent_swap(positions, mask, keys, seed=1, step=2)
    assert_one_swap(positions, whole, mask)
    chosen = torch.randperm(64, generator=torch.Generator().manual_seed(12))[:20]
    torch.rand(5)  # the global generator has no part in it
    part = keyed_adjacent_swap(positions[chosen], mask[chosen], keys[chosen], seed=1, step=2)
    assert torch.equal(part, whole[chosen])
    padded = torch.cat([positions, torch.arange(8, 11).expand(64, 3)], -1)
    padded_mask = torch.cat([mask, torch.zeros(64, 3, dtype=torch.bool)], -1)
    assert torch.equal(keyed_adjacent_swap(padded, padded_mask, keys, seed=1, step=2)[:, :8], whole)
    for seed, step in ((1, 3), (2, 2)):
        assert not torch.equal(keyed_adjacent_swap(positions, mask, keys, seed=seed, step=step), whole)


@pytest.mark.parametrize("varied", ["key", "step", "seed"])
def test_keyed_swap_is_uniform_over_pairs(varied: str) -> None:
    """Over neighbouring keys of one step, over the steps of one list, and over seeds."""
    one = torch.arange(7)[None]
    if varied == "key":
        positions = one.repeat(6000, 1)
        places = upper_places(positions, keyed_adjacent_swap(positions, None, torch.arange(6000), seed=0, step=0))
    else:
        options = [{"seed": 0, "step": 0, varied: number} for number in range(3000)]
        key = torch.tensor([17])
        places = [upper_places(one, keyed_adjacent_swap(one, None, key, **chosen))[0] for chosen in options]
    assert chi_square(places, 6) < CHI_SQUARE_5
    # Successive draws make no pattern: each of 36 pairs about equally often (35 degrees of freedom, 99.9 %).
    successive = [6 * a + b for a, b in zip(places[::2], places[1::2], strict=True)]
    assert chi_square(successive, 36) < 66.62
