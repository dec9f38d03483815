"""Positions, orders and perturbations: against sorting in plain Python, written-out cases, and counts."""

import math
import random
from collections import Counter
from itertools import combinations, permutations, product

import pytest
import torch
from scipy.stats import chisquare, norm

from hf_rerank.errors import InputError
from hf_rerank.principled.orders import (
    PERTURBATIONS,
    draw_by_key,
    order_from_positions,
    perturb,
    perturb_by_key,
    positions_from_scores,
    step_keys,
    swap_adjacent,
)

WORD = 2**64
STRENGTHS = [
    ("adjacent_swap", 1),
    ("adjacent_swap", 3),
    ("random_swap", 1),
    ("random_swap", 4),
    ("window_shuffle", 1),
    ("window_shuffle", 3),
    ("reverse_window", 1),
    ("reverse_window", 3),
    ("score_noise", 0.5),
    ("score_noise", 3),
]
every_kind = pytest.mark.parametrize(("kind", "strength"), STRENGTHS)


def sorted_positions(scores: list[float], mask: list[bool]) -> list[int]:
    """Real slots by descending score, ties in slot order; then padding slots."""
    real = sorted((slot for slot in range(len(scores)) if mask[slot]), key=lambda slot: -scores[slot])
    order = real + [slot for slot in range(len(scores)) if not mask[slot]]
    return [order.index(slot) for slot in range(len(scores))]


def test_positions_from_scores_match_written_out_values() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [2.0, 2.0, 2.0], [-math.inf, 0.0, -math.inf]])
    assert positions_from_scores(scores).tolist() == [[2, 0, 1], [0, 1, 2], [1, 0, 2]]
    mask = torch.tensor([[True, False, True], [False, True, True], [False, False, False]])
    assert positions_from_scores(scores, mask).tolist() == [[1, 2, 0], [2, 0, 1], [0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_positions_equal_a_stable_sort(dtype: torch.dtype) -> None:
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


def test_swap_adjacent_matches_written_out_values() -> None:
    positions = torch.tensor([[2, 0, 1, 3], [0, 1, 2, 3], [1, 0, 2, 3]])
    place = torch.tensor([0, 2, 1])
    assert swap_adjacent(positions, place).tolist() == [[2, 1, 0, 3], [0, 1, 3, 2], [2, 0, 1, 3]]
    # With three, four and two real items, the third list has no item at position 2.
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    assert swap_adjacent(positions, place, mask).tolist() == [[2, 1, 0, 3], [0, 1, 3, 2], [1, 0, 2, 3]]
    assert swap_adjacent(positions, torch.tensor(1), mask).tolist() == [[1, 0, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3]]


@pytest.mark.parametrize("place", [-1, -2, 2, 3, 4, 99])
def test_swap_adjacent_beyond_the_list_changes_nothing(place: int) -> None:
    """Four slots, three items: only positions 0 and 1 start a pair."""
    positions, mask = torch.tensor([[3, 2, 0, 1], [1, 0, 2, 3]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]).bool()
    for given in (torch.tensor(place), torch.tensor([place, place])):
        assert swap_adjacent(positions, given, mask).tolist() == positions.tolist()
    moved = swap_adjacent(positions, torch.tensor([place, 1]), mask)
    assert moved.tolist() == [[3, 2, 0, 1], [2, 0, 1, 3]]


def random_ragged_positions(seed: int, lists: int = 90, length: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Random positions of lists of 0 to ``length`` items, in any slots of the row."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(lists, length, generator=generator)
    count = torch.arange(lists) % (length + 1)
    mask = torch.rand(lists, length, generator=generator).argsort(-1) < count[:, None]
    return positions_from_scores(scores, mask), mask


def random_keys(seed: int, lists: int) -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (lists,), generator=torch.Generator().manual_seed(seed))


def test_every_kind_of_perturbation_is_tested() -> None:
    assert {kind for kind, _ in STRENGTHS} == set(PERTURBATIONS)


@every_kind
@pytest.mark.parametrize("source", ["generator", "keys"])
def test_only_real_items_move(kind: str, strength: float, source: str) -> None:
    positions, mask = random_ragged_positions(5)
    given = positions.clone()
    moved = torch.zeros(len(positions), dtype=torch.bool)
    for seed in range(10):
        if source == "generator":
            draws = torch.Generator().manual_seed(seed)
            after = perturb(positions, mask, kind=kind, strength=strength, generator=draws)
        else:
            after = perturb_by_key(positions, mask, random_keys(seed, 90), kind=kind, strength=strength)
        assert after.dtype == torch.int64
        for was, now, real in zip(positions.tolist(), after.tolist(), mask.tolist(), strict=True):
            assert sorted(now) == list(range(8))
            assert [now[slot] for slot in range(8) if not real[slot]] == [
                was[slot] for slot in range(8) if not real[slot]
            ]
        moved |= (after != positions).any(-1)
    assert torch.equal(positions, given), "the input is not modified"
    assert not moved[mask.sum(-1) < 2].any()
    # For some kinds half of all draws leave a list unchanged; ten draws hardly ever do.
    assert moved[mask.sum(-1) > 2].double().mean() > 0.9


def test_without_a_mask_all_items_are_real() -> None:
    positions, _ = random_ragged_positions(6)
    everything = torch.ones_like(positions, dtype=torch.bool)
    for kind, strength in STRENGTHS:
        options = {"kind": kind, "strength": strength}
        one, other = (
            perturb(positions, mask, generator=torch.Generator().manual_seed(1), **options)
            for mask in (None, everything)
        )
        assert torch.equal(one, other)
        keys = random_keys(7, 90)
        assert torch.equal(
            perturb_by_key(positions, None, keys, **options), perturb_by_key(positions, everything, keys, **options)
        )


def count_changes(before: torch.Tensor, after: torch.Tensor, items: int) -> Counter:
    """Count of each change: the new positions of the items that were at positions 0, 1, ..."""
    found: Counter = Counter()
    for was, now in zip(before.tolist(), after.tolist(), strict=True):
        places = dict(zip(was, now, strict=True))
        found[tuple(places[place] for place in range(items))] += 1
    return found


def expected_outcomes(kind: str, items: int, strength: int) -> Counter:
    """Every outcome of the definition, with the number of ways to reach it."""
    found: Counter = Counter()
    if kind in ("adjacent_swap", "random_swap"):
        pairs = [(p, q) for p, q in combinations(range(items), 2) if kind == "random_swap" or q == p + 1]
        for swaps in product(pairs, repeat=strength):
            places = list(range(items))
            for pair in swaps:
                places = [sum(pair) - place if place in pair else place for place in places]
            found[tuple(places)] += 1
        return found
    width = min(items, strength + 1)
    for start in range(items - width + 1):
        window = range(start, start + width)
        for order in permutations(window) if kind == "window_shuffle" else [window[::-1]]:
            found[(*range(start), *order, *range(start + width, items))] += 1
    return found


def assert_distribution(found: Counter, expected: Counter) -> None:
    """No impossible outcomes, and a chi-square test that correct draws fail once in a thousand seeds."""
    assert found.keys() <= expected.keys()
    if len(expected) == 1:
        return
    outcomes = sorted(expected)
    shares = [expected[outcome] / expected.total() * found.total() for outcome in outcomes]
    assert chisquare([found[outcome] for outcome in outcomes], shares).pvalue > 0.001


@pytest.mark.parametrize(
    ("kind", "items", "strength", "outcomes"),
    [
        ("adjacent_swap", 7, 1, 6),
        ("adjacent_swap", 4, 2, 6),  # identity, two 3-cycles for each of two positions, both pairs
        ("adjacent_swap", 2, 3, 1),
        ("random_swap", 6, 1, 15),
        ("random_swap", 4, 2, 12),  # two swaps: the even permutations
        ("random_swap", 2, 1, 1),
        ("window_shuffle", 6, 2, 18),  # 4 windows x 6 orders; 4 of them the identity, 3 inner swaps twice each
        ("window_shuffle", 4, 1, 4),
        ("window_shuffle", 4, 3, 24),
        ("window_shuffle", 3, 9, 6),
        ("reverse_window", 6, 2, 4),
        ("reverse_window", 3, 9, 1),
    ],
)
@pytest.mark.parametrize("source", ["generator", "keys"])
def test_perturbations_follow_their_distribution(
    kind: str, items: int, strength: int, outcomes: int, source: str
) -> None:
    """Over 6000 lists; the items are in slots 1, 3, ... of a longer row."""
    expected = expected_outcomes(kind, items, strength)
    assert len(expected) == outcomes
    length = 2 * items + 1
    mask = (torch.arange(length) % 2 == 1).repeat(6000, 1)
    generator = torch.Generator().manual_seed(len(kind) + items + strength)
    before = positions_from_scores(torch.randn(6000, length, generator=generator), mask)
    if source == "generator":
        after = perturb(before, mask, kind=kind, strength=strength, generator=generator)
    else:
        after = perturb_by_key(before, mask, torch.arange(6000), kind=kind, strength=strength)
    assert_distribution(count_changes(before, after, items), expected)


def test_reverse_window_matches_written_out_values() -> None:
    """Four items in slots 1, 2, 4, 5 at positions 2, 0, 3, 1; windows of three start at position 0 or 1."""
    positions = torch.tensor([[4, 2, 0, 5, 3, 1]]).repeat(50, 1)
    mask = torch.tensor([[0, 1, 1, 0, 1, 1]]).bool().repeat(50, 1)
    after = perturb_by_key(positions, mask, torch.arange(50), kind="reverse_window", strength=2)
    # From position 0: 0 and 2 are swapped; from position 1: 1 and 3.
    assert set(map(tuple, after.tolist())) == {(4, 0, 2, 5, 3, 1), (4, 2, 0, 5, 1, 3)}


def test_reversing_two_items_is_an_adjacent_swap() -> None:
    positions, mask = random_ragged_positions(8)
    keys = random_keys(9, 90)
    turned = perturb_by_key(positions, mask, keys, kind="reverse_window", strength=1)
    assert torch.equal(turned, perturb_by_key(positions, mask, keys, kind="adjacent_swap", strength=1))


@pytest.mark.parametrize("kind", ["adjacent_swap", "random_swap"])
def test_several_swaps_equal_successive_single_swaps(kind: str) -> None:
    """Three swaps at once equal three single swaps with the generator's successive numbers."""
    positions = torch.tensor([[3, 1, 4, 0, 2]])
    for seed in range(20):
        at_once = perturb(positions, kind=kind, strength=3, generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        one_by_one = positions
        for _ in range(3):
            one_by_one = perturb(one_by_one, kind=kind, generator=generator)
        assert torch.equal(at_once, one_by_one)


@every_kind
def test_the_generator_determines_the_perturbation(kind: str, strength: float) -> None:
    positions, mask = random_ragged_positions(10)

    def perturbed(seed: int) -> torch.Tensor:
        return perturb(positions, mask, kind=kind, strength=strength, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(perturbed(1), perturbed(1))
    assert not torch.equal(perturbed(1), perturbed(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "adjacent_swp"}, f"'adjacent_swp': expected one of {', '.join(PERTURBATIONS)}; did you mean"),
        ({"kind": "score_nois"}, "did you mean 'score_noise'"),
        *(
            ({"kind": kind, "strength": strength}, f"{kind} is {strength}: expected a whole number from 1 to 1000")
            for kind in ("adjacent_swap", "random_swap", "window_shuffle", "reverse_window")
            for strength in (0, -1, 0.5, 1.5, math.inf, math.nan)
        ),
        *(
            ({"kind": "score_noise", "strength": strength}, f"score_noise is {strength}: expected a number above 0")
            for strength in (0, -1, math.inf, math.nan)
        ),
    ],
)
def test_wrong_perturbations_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        perturb(torch.arange(3)[None], **options)


def expected_draws(key: int, count: int, *, seed: int = 0, step: int = 0) -> list[int]:
    """The draws of (seed, step, key) with Python integers: splitmix64's counter and finaliser, upper 32 bits."""
    state = key + seed * 0x632BE59BD9B4E019 + step * 0x2545F4914F6CDD1D
    draws = []
    for number in range(count):
        z = (state + number * 0x9E3779B97F4A7C15) % WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        z ^= z >> 31
        draws.append(z >> 32)
    return draws


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (42, 7), (-3, 10**9), (2**70, 12)])
def test_keyed_draws_equal_splitmix64(seed: int, step: int) -> None:
    draw = random.Random(11)
    keys = [0, -1, -(2**63), 2**63 - 1, *(draw.randrange(-(2**63), 2**63) for _ in range(100))]
    given = step_keys(torch.tensor(keys), seed=seed, step=step)
    assert given.dtype == torch.int64
    found = draw_by_key(given, 9)
    assert found.dtype == torch.int64
    assert found.tolist() == [expected_draws(key, 9, seed=seed, step=step) for key in keys]
    assert draw_by_key(given, 0).shape == (104, 0)


def test_keyed_draws_equal_published_splitmix64_values() -> None:
    """With the seed 1234567, the first output of splitmix64 is the finaliser of the seed plus one increment."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = draw_by_key(torch.tensor([1234567]), 5)[0, 1:].tolist()
    assert found == [number >> 32 for number in published]


def test_keyed_swap_follows_the_documented_draw() -> None:
    draw = random.Random(12)
    keys = [draw.randrange(-(2**63), 2**63) for _ in range(200)]
    positions = torch.arange(9).repeat(200, 1)
    for seed, step in ((0, 0), (42, 7), (-3, 10**9), (2**70, 12)):
        after = perturb_by_key(positions, None, step_keys(torch.tensor(keys), seed=seed, step=step))
        assert upper_swapped_positions(positions, after) == [
            8 * expected_draws(key, 1, seed=seed, step=step)[0] // 2**32 for key in keys
        ]


@pytest.mark.parametrize("strength", [0.3, 1, 4.5])
def test_score_noise_matches_scipy_quantiles(strength: float) -> None:
    """Slot i's noise is the normal quantile of the upper 23 bits of draw i; half a step keeps it finite."""
    positions, mask = random_ragged_positions(13)
    keys = random_keys(14, 90)
    after = perturb_by_key(positions, mask, keys, kind="score_noise", strength=strength)
    for row, key in enumerate(keys.tolist()):
        noise = strength * norm.ppf([((draw >> 9) + 0.5) / 2**23 for draw in expected_draws(key, 8)])
        noisy = [-(place + error) for place, error in zip(positions[row].tolist(), noise, strict=True)]
        assert after[row].tolist() == sorted_positions(noisy, mask[row].tolist())


@pytest.mark.parametrize("strength", [0.5, 2])
def test_score_noise_is_measured_in_positions(strength: float) -> None:
    """Adjacent items are swapped if the difference of their noise, with variance 2 strength^2, is above 1."""
    after = perturb(
        torch.arange(2).repeat(6000, 1),
        kind="score_noise",
        strength=strength,
        generator=torch.Generator().manual_seed(15),
    )
    swapped = (after[:, 0] == 1).sum().item()
    share = norm.sf(1 / (strength * math.sqrt(2)))
    assert chisquare([swapped, 6000 - swapped], [6000 * share, 6000 * (1 - share)]).pvalue > 0.001


def test_smallest_draw_is_finite() -> None:
    """The first draw of key 0 is 0, whose quantile would be minus infinity."""
    assert draw_by_key(torch.tensor([0]), 1).item() == 0
    after = perturb_by_key(torch.tensor([[2, 0, 1]]), None, torch.tensor([0]), kind="score_noise", strength=1e-3)
    # 2**-24 is 5.3 standard deviations below the mean: nothing moves by half a position.
    assert after.tolist() == [[2, 0, 1]]


@every_kind
def test_keyed_perturbation_depends_only_on_key_step_and_seed(kind: str, strength: float) -> None:
    positions, mask = random_ragged_positions(16)
    keys = random_keys(17, 90)

    def perturbed(rows: torch.Tensor, *, seed: int = 1, step: int = 2, shift: int = 0) -> torch.Tensor:
        given = step_keys(keys[rows] + shift, seed=seed, step=step)
        return perturb_by_key(positions[rows], mask[rows], given, kind=kind, strength=strength)

    everything = torch.arange(90)
    whole = perturbed(everything)
    chosen = torch.randperm(90, generator=torch.Generator().manual_seed(18))[:20]
    torch.rand(5)  # the global generator must not matter
    assert torch.equal(perturbed(chosen), whole[chosen])
    assert torch.equal(perturbed(everything[40:41]), whole[40:41])
    for other in ({"step": 3}, {"seed": 2}, {"shift": 1}):
        assert not torch.equal(perturbed(everything, **other), whole), other


@every_kind
def test_more_padding_does_not_change_keyed_perturbations(kind: str, strength: float) -> None:
    positions, mask = random_ragged_positions(19)
    keys = random_keys(20, 90)
    whole = perturb_by_key(positions, mask, keys, kind=kind, strength=strength)
    padded = torch.cat([positions, torch.arange(8, 11).expand(90, 3)], -1)
    padded_mask = torch.cat([mask, torch.zeros(90, 3, dtype=torch.bool)], -1)
    wider = perturb_by_key(padded, padded_mask, keys, kind=kind, strength=strength)
    assert torch.equal(wider[:, :8], whole)
    assert torch.equal(wider[:, 8:], padded[:, 8:])


def upper_swapped_positions(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """For each list, the upper of the two swapped positions."""
    return [
        min(p for p, q in zip(*pair, strict=True) if p != q)
        for pair in zip(before.tolist(), after.tolist(), strict=True)
    ]


@pytest.mark.parametrize("varied", ["key", "step", "seed"])
def test_keyed_swap_is_uniform_over_pairs(varied: str) -> None:
    """Over successive keys in one step, over the steps of one list, and over seeds."""
    one = torch.arange(7)[None]
    if varied == "key":
        positions = one.repeat(6000, 1)
        places = upper_swapped_positions(positions, perturb_by_key(positions, None, torch.arange(6000)))
    else:
        options = [{"seed": 0, "step": 0, varied: number} for number in range(3000)]
        keys = torch.cat([step_keys(torch.tensor([17]), **chosen) for chosen in options])
        positions = one.repeat(3000, 1)
        places = upper_swapped_positions(positions, perturb_by_key(positions, None, keys))
    assert chisquare([places.count(place) for place in range(6)]).pvalue > 0.001
    # Successive draws are independent: each of 36 pairs is about equally frequent.
    successive = [6 * a + b for a, b in zip(places[::2], places[1::2], strict=True)]
    assert chisquare([successive.count(pair) for pair in range(36)]).pvalue > 0.001


def test_successive_draws_of_one_list_are_independent() -> None:
    """The second draw is uniform whatever the first: 36 cells over 6000 successive keys."""
    first, second = (draw_by_key(torch.arange(6000), 2) * 6 >> 32).unbind(-1)
    cells = (6 * first + second).tolist()
    assert chisquare([cells.count(cell) for cell in range(36)]).pvalue > 0.001


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_padding_keeps_its_positions(kind: str) -> None:
    """Two items and two padding slots with positions 3 and 2: padding may be in any order."""
    positions, mask = (
        torch.tensor([[0, 1, 3, 2]]).expand(64, 4),
        torch.tensor([True, True, False, False]).expand(64, 4),
    )
    after = perturb(positions, mask, kind=kind, generator=torch.Generator().manual_seed(0))
    assert (after[:, 2:] == torch.tensor([3, 2])).all()
    assert {tuple(row) for row in after[:, :2].tolist()} <= {(0, 1), (1, 0)}
    assert (after != positions).any()


def test_an_excessive_strength_is_rejected() -> None:
    for kind in ("adjacent_swap", "random_swap", "window_shuffle", "reverse_window"):
        with pytest.raises(InputError, match="a whole number from 1 to 1000"):
            perturb(torch.arange(4).unsqueeze(0), kind=kind, strength=1e30)
    # A window longer than the list covers the list: positions 0 to 3 are reversed.
    assert perturb(torch.arange(4).unsqueeze(0), kind="reverse_window", strength=1000).tolist() == [[3, 2, 1, 0]]


def test_sorting_long_lists_equals_counting_in_short_ones() -> None:
    """Ties, padding in any slot, items with the lowest finite number, and integers beyond float32 precision."""
    torch.manual_seed(0)
    scores = torch.randint(0, 20, (4, 200)).float()
    scores[:, ::7] = -torch.inf
    mask = torch.rand(4, 200) < 0.7
    integers = scores.clamp(min=0).long() + (1 << 40)
    for values in (scores, scores.double(), integers):
        for real in (None, mask):
            expected = torch.empty_like(integers)
            for row in range(4):
                is_real = [True] * 200 if real is None else real[row].tolist()
                order = sorted(
                    range(200), key=lambda slot: (not is_real[slot], is_real[slot] and -values[row, slot], slot)
                )
                expected[row, order] = torch.arange(200)
            assert torch.equal(positions_from_scores(values, real), expected)
