"""Obedience: scorers with known results, a written-out case, and a second implementation in plain Python."""

import itertools
import math
import random

import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.principled import obedience, perturb, positions_from_scores

KEYS = ["obedience", "item_obedience", "kendall_tau"]
CUT_KEYS = ["obedience@{}", "set_obedience@{}"]


def random_ragged_positions(seed: int, lists: int, length: int) -> tuple[Tensor, Tensor]:
    """Random positions of lists of 0 to ``length`` items, in any slots of the row."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.arange(lists) % (length + 1)
    mask = torch.rand(lists, length, generator=generator).argsort(-1) < count[:, None]
    return positions_from_scores(torch.randn(lists, length, generator=generator), mask), mask


def test_a_scorer_that_ignores_the_order_has_full_obedience() -> None:
    positions, mask = random_ragged_positions(1, 40, 6)
    quality = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)).masked_fill(~mask, math.nan)
    for swaps in ("all", "one"):
        measured = obedience(lambda order: quality, positions, mask, k=(1, 3, 99), swaps=swaps)
        for principle in ("p1", "p2"):
            for key in (*KEYS, *(name.format(cut) for name in CUT_KEYS for cut in (1, 3, 99))):
                assert measured[f"{principle}_{key}"] == 1.0, key
        assert (measured["fixed_point_rate"], measured["cycle_rate"]) == (1.0, 0.0)
        # Its fixed point is its own order, which rarely happens to be the given one.
        own = positions_from_scores(quality, mask)
        counted = mask.sum(-1) >= 2
        given_is_own = ((own == positions) | ~mask).all(-1)[counted].double()
        assert 0 < given_is_own.mean() < 1
        assert measured["fixed_point_steps"] == pytest.approx(1 - given_is_own.mean().item())
        assert measured["obedience_lists"] == counted.sum()
        spread = [quality[row][mask[row]].double().std(correction=0).item() for row in range(40) if counted[row]]
        assert measured["score_spread"] == pytest.approx(sum(spread) / len(spread), rel=1e-6)


def test_a_scorer_that_reverses_the_given_order() -> None:
    measured = obedience(lambda order: order.float(), torch.tensor([[2, 0, 3, 1], [0, 1, 2, 3]]), k=2)
    expected = {
        "obedience": 0.0,
        "item_obedience": 0.0,
        "kendall_tau": -1.0,
        "obedience@2": 0.0,
        "set_obedience@2": 0.0,
    }
    assert {key: measured[f"p1_{key}"] for key in expected} == expected
    assert (measured["fixed_point_rate"], measured["cycle_rate"]) == (0.0, 1.0)
    assert math.isnan(measured["fixed_point_steps"])
    # A swap of adjacent items is kept: two of four items stay, 5 of 6 pairs agree: tau (5 - 1) / 6. The swap in the
    # middle changes which items are on top; the other two leave the set unchanged.
    assert measured["p2_obedience"] == 0.0
    assert measured["p2_item_obedience"] == pytest.approx(0.5)
    assert measured["p2_kendall_tau"] == pytest.approx(4 / 6)
    assert measured["p2_set_obedience@2"] == pytest.approx(2 / 3)
    assert measured["p2_obedience@2"] == pytest.approx(1 / 3)  # only the swap in the lower half keeps the top 2
    assert measured["score_spread"] == pytest.approx(math.sqrt(5 / 4))  # of 0, 1, 2, 3


def test_position_biased_scorer_matches_written_out_arithmetic() -> None:
    """Scores ``q - P / 2`` with q = 0, .3, .9, given 0, 1, 2; the second list has two items and never changes.

    P  = 0 1 2: scores 0, -.2, -.1, so P' = 0 2 1; given P': 0, -.7, .4, so 1 2 0; given that: -.5, -.7, .9, the same.
    P^ = 1 0 2: scores -.5, .3, -.1, so 2 0 1. P^ = 0 2 1: is P', so 1 2 0.
    """
    quality = torch.tensor([[0.0, 0.3, 0.9], [5.0, 0.0, math.nan]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    positions = torch.tensor([[0, 1, 2], [0, 1, 2]])
    shown = []

    def score(order: Tensor) -> Tensor:
        shown.append(order[0].tolist())
        return quality - order / 2

    measured = obedience(score, positions, mask, k=[1, 2], reduction="none")
    first = {name: values[0].item() for name, values in measured.items()}
    assert first == pytest.approx(
        {
            # P' = 0 2 1 against 1 2 0: the second item stays, one of three pairs is reversed.
            "p1_obedience": 0.0,
            "p1_item_obedience": 1 / 3,
            "p1_kendall_tau": 1 / 3,
            "p1_obedience@1": 0.0,
            "p1_set_obedience@1": 0.0,
            "p1_obedience@2": 0.0,
            "p1_set_obedience@2": 1.0,
            # 0 2 1 against 2 0 1 and against 1 2 0: one item stays in each; three pairs and one pair are reversed.
            "p2_obedience": 0.0,
            "p2_item_obedience": 1 / 3,
            "p2_kendall_tau": (-1 + 1 / 3) / 2,
            "p2_obedience@1": 0.0,
            "p2_set_obedience@1": 0.0,
            "p2_obedience@2": 0.0,
            "p2_set_obedience@2": 1 / 2,
            "p2_sampled_share": 0.0,
            "fixed_point_rate": 1.0,
            "fixed_point_steps": 2.0,
            "cycle_rate": 0.0,
            "score_spread": math.sqrt((0.1**2 + 0.1**2) / 3),  # of 0, -.2, -.1
            "collapsed_share": 0.0,
        }
    )
    assert [0, 1, 2] in shown
    assert [1, 0, 2] in shown
    second = {name: values[1].item() for name, values in measured.items()}
    assert second.pop("score_spread") == pytest.approx(5.5 / 2)  # of 5 and -.5
    assert [second.pop(name) for name in ("fixed_point_steps", "cycle_rate", "collapsed_share")] == [0.0] * 3
    assert second.pop("p2_sampled_share") == 0.0
    assert set(second.values()) == {1.0}
    means = obedience(score, positions, mask, k=[1, 2])
    assert means.pop("obedience_lists") == 2
    assert means == pytest.approx({name: values.mean().item() for name, values in measured.items()})
    assert all(values.dtype == torch.float32 and values.shape == (2,) for values in measured.values())


@pytest.mark.parametrize(("max_steps", "rate"), [(1, 0.5), (2, 1.0)])
def test_max_steps_limits_the_search_for_fixed_points(max_steps: int, rate: float) -> None:
    """The two lists above reach their fixed points after two and after zero steps."""
    quality = torch.tensor([[0.0, 0.3, 0.9], [9.0, 5.0, 0.0]])
    measured = obedience(lambda order: quality - order / 2, torch.arange(3).repeat(2, 1), max_steps=max_steps)
    assert measured["fixed_point_rate"] == rate
    assert measured["fixed_point_steps"] == (0.0 if max_steps == 1 else 1.0)


def count_calls(score, positions: Tensor, mask: Tensor | None = None, **options) -> tuple[int, dict]:
    calls = []

    def counting(order: Tensor) -> Tensor:
        calls.append(order)
        return score(order)

    measured = obedience(counting, positions, mask, **options)
    return len(calls), measured


@pytest.mark.parametrize(
    ("scorer", "further"),
    [
        (lambda order: torch.tensor([[1.0, 3.0, 2.0, 0.0]]).expand(2, 4), 0),  # fixed point: the same for any order
        (lambda order: -order.float(), 0),  # fixed point: keeps the given order
        (lambda order: order.float(), 0),  # cycle: back at the given order after two steps
        (lambda order: -((order + 1) % 4).float(), 2),  # each item moves on by one, cyclically: back after four
        # The second list is at a fixed point at once, the first returns only after four steps.
        (lambda order: -torch.stack([(order[0] + 1) % 4, order[1]]).float(), 2),
    ],
)
@pytest.mark.parametrize("swaps", ["all", "one"])
def test_fixed_points_use_no_unnecessary_scorer_calls(scorer, further: int, swaps: str) -> None:
    """P, P' and the swaps (three adjacent pairs of four items, or one) are always scored; a third list is padding."""
    positions = torch.tensor([[2, 0, 3, 1], [0, 1, 2, 3]])
    calls, measured = count_calls(scorer, positions, swaps=swaps, max_steps=50)
    assert calls == 2 + (3 if swaps == "all" else 1) + further
    assert measured["fixed_point_rate"] + measured["cycle_rate"] == 1.0
    padded = torch.cat([positions, torch.arange(4)[None]])
    mask = torch.tensor([[True] * 4, [True] * 4, [False] * 4])
    ragged_calls, _ = count_calls(
        lambda order: torch.cat([scorer(order[:2]), torch.randn(1, 4)]), padded, mask, swaps=swaps, max_steps=50
    )
    assert ragged_calls == calls


def test_max_steps_limits_the_number_of_calls() -> None:
    """Cycle of four items, P(4) = P(0): besides P, P' and one swap, P(2) and P(3) are scored to detect it."""
    for max_steps, calls in ((0, 3), (1, 3), (2, 4), (3, 5), (4, 5)):
        found, measured = count_calls(
            lambda order: -((order + 1) % 4).float(), torch.arange(4)[None], swaps="one", max_steps=max_steps
        )
        assert found == calls
        # P(max_steps + 1) is the last order considered.
        assert measured.get("cycle_rate") == (None if max_steps == 0 else float(max_steps >= 3))


def test_without_steps_no_fixed_points_are_measured() -> None:
    measured = obedience(lambda order: -order.float(), torch.arange(3)[None], max_steps=0)
    assert [name for name in measured if "fixed" in name or "cycle" in name] == []
    assert measured["p1_obedience"] == 1.0


def make_positional_scorer(seed: int, lists: int, length: int, strength: float):
    """Scores with a quality per item plus an effect per item and position."""
    generator = torch.Generator().manual_seed(seed)
    quality = torch.randn(lists, length, generator=generator)
    placed = strength * torch.randn(lists, length, length, generator=generator)
    return lambda order: quality + placed.gather(-1, order.unsqueeze(-1)).squeeze(-1)


def rank_slots(scores: list[float], real: list[int]) -> dict[int, int]:
    """Real slot -> rank."""
    return {slot: place for place, slot in enumerate(sorted(real, key=lambda slot: -scores[slot]))}


def expected_agreement(a: dict[int, int], b: dict[int, int], cuts: tuple[int, ...]) -> list[float]:
    slots = list(a)
    signs = [math.copysign(1, (a[i] - a[j]) * (b[i] - b[j])) for i, j in itertools.combinations(slots, 2)]
    values = [float(a == b), sum(a[slot] == b[slot] for slot in slots) / len(slots), sum(signs) / len(signs)]
    for cut in cuts:
        top_a, top_b = ({places[slot]: slot for slot in slots if places[slot] < cut} for places in (a, b))
        values += [float(top_a == top_b), float(set(top_a.values()) == set(top_b.values()))]
    return values


@pytest.mark.parametrize("strength", [0.05, 0.3, 3.0])
def test_measures_equal_a_plain_python_implementation(strength: float) -> None:
    lists, length, cuts = 35, 6, (1, 2, 4)
    positions, mask = random_ragged_positions(3, lists, length)
    score = make_positional_scorer(4, lists, length, strength)
    measured = obedience(score, positions, mask, k=cuts, reduction="none", max_steps=7)
    names = [*KEYS, *(name.format(cut) for cut in cuts for name in CUT_KEYS)]
    for row in range(lists):
        real = [slot for slot in range(length) if mask[row, slot]]
        if len(real) < 2:
            assert all(values[row].isnan() for values in measured.values())
            continue

        def rank(places: dict[int, int], row: int = row, real: list[int] = real) -> dict[int, int]:
            order = positions.clone()
            for slot, place in places.items():
                order[row, slot] = place
            return rank_slots(score(order)[row].tolist(), real)

        given = {slot: int(positions[row, slot]) for slot in real}
        own = rank(given)
        expected = expected_agreement(own, rank(own), cuts)
        assert [measured[f"p1_{name}"][row].item() for name in names] == pytest.approx(expected, abs=1e-6)
        swaps = []
        for place in range(len(real) - 1):
            turned = {place: place + 1, place + 1: place}
            swaps.append(expected_agreement(own, rank({slot: turned.get(p, p) for slot, p in given.items()}), cuts))
        expected = [sum(column) / len(swaps) for column in zip(*swaps, strict=True)]
        assert [measured[f"p2_{name}"][row].item() for name in names] == pytest.approx(expected, abs=1e-6)

        orders = [given]
        while len(orders) < 9:
            orders.append(rank(orders[-1]))
        steps = next((t for t in range(8) if orders[t + 1] == orders[t]), None)
        assert measured["fixed_point_rate"][row] == float(steps is not None)
        if steps is None:
            assert measured["fixed_point_steps"][row].isnan()
            cycle = any(orders[t] in orders[: t - 1] for t in range(2, 9))
            assert measured["cycle_rate"][row] == float(cycle)
        else:
            assert measured["fixed_point_steps"][row] == steps
            assert measured["cycle_rate"][row] == 0.0


@pytest.mark.parametrize("strength", [0.1, 0.5, 2.0])
def test_p1_obedience_is_a_fixed_point_after_at_most_one_step(strength: float) -> None:
    positions, mask = random_ragged_positions(5, 200, 5)
    score = make_positional_scorer(6, 200, 5, strength)
    measured = obedience(score, positions, mask, reduction="none")
    counted = mask.sum(-1) >= 2
    settled = (measured["fixed_point_steps"] <= 1).float()[counted]  # NaN (no fixed point) is not <= 1
    assert torch.equal(settled, measured["p1_obedience"][counted])
    assert 0 < settled.mean() < 1


def test_kendall_tau_equals_scipy() -> None:
    generator = torch.Generator().manual_seed(7)
    positions, mask = random_ragged_positions(8, 60, 9)
    before, after = torch.randn(2, 60, 9, generator=generator)
    answers = iter([before, after, before])
    measured = obedience(lambda order: next(answers), positions, mask, swaps="one", max_steps=0, reduction="none")
    for row in range(60):
        real = mask[row]
        if real.sum() < 2:
            assert measured["p1_kendall_tau"][row].isnan()
        else:
            expected = kendalltau(before[row][real].numpy(), after[row][real].numpy()).statistic
            assert measured["p1_kendall_tau"][row].item() == pytest.approx(expected, abs=1e-6)


def test_one_swap_is_seeded_and_among_all_swaps() -> None:
    positions, mask = random_ragged_positions(9, 50, 5)
    score = make_positional_scorer(10, 50, 5, 1.0)
    shown: list[Tensor] = []

    def recorded(order: Tensor) -> Tensor:
        shown.append(order)
        return score(order)

    first = obedience(recorded, positions, mask, swaps="one", seed=1, max_steps=0)
    assert len(shown) == 3
    swapped = shown[2]
    assert ((swapped != positions).sum(-1) == 2 * (mask.sum(-1) >= 2)).all()
    assert torch.equal(swapped[~mask], positions[~mask])
    own, after = (positions_from_scores(score(order), mask) for order in (positions, swapped))
    counted = mask.sum(-1) >= 2
    same = ((own == after) | ~mask).all(-1)[counted].double().mean().item()
    assert first["p2_obedience"] == pytest.approx(same)
    obedience(recorded, positions, mask, swaps="one", seed=1, max_steps=0)
    assert torch.equal(shown[5], swapped)
    obedience(recorded, positions, mask, swaps="one", seed=2, max_steps=0)
    assert not torch.equal(shown[8], swapped)


def test_collapsed_share_counts_lists_with_nearly_equal_scores() -> None:
    """Standard deviations of 0, .0009, .0011 and 1, and a list of one item, which is left out."""
    scores = torch.tensor([[5.0, 5.0], [0.0009, -0.0009], [0.0011, -0.0011], [-1.0, 1.0], [0.0, 9.0]])
    mask = torch.tensor([[True, True]] * 4 + [[True, False]])
    positions = torch.arange(2).repeat(5, 1)
    each = obedience(lambda order: scores, positions, mask, reduction="none")["collapsed_share"]
    assert each[:4].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert each[4].isnan()
    assert obedience(lambda order: scores, positions, mask)["collapsed_share"] == 0.5


def test_one_swap_is_determined_by_the_list_key() -> None:
    """With keys, a list's swap is the same in any batch; without them, the row is the key."""
    positions, mask = random_ragged_positions(15, 40, 6)
    shown: list[Tensor] = []

    def swapped(rows: Tensor, **options) -> Tensor:
        shown.clear()

        def score(order: Tensor) -> Tensor:
            shown.append(order)
            return torch.zeros(order.shape)

        obedience(score, positions[rows], mask[rows], swaps="one", max_steps=0, **options)
        return shown[2]

    keys = torch.randint(-(2**62), 2**62, (40,), generator=torch.Generator().manual_seed(16))
    everything, some = torch.arange(40), torch.tensor([30, 6, 25, 13])
    whole = swapped(everything, list_keys=keys)
    assert torch.equal(swapped(some, list_keys=keys[some]), whole[some])
    assert not torch.equal(swapped(everything, list_keys=keys + 1), whole)
    assert torch.equal(swapped(everything), swapped(everything, list_keys=everything))


def test_lists_with_fewer_than_two_items_are_left_out() -> None:
    """They are left out of every mean, whatever else is in the batch."""
    positions = torch.arange(4).repeat(4, 1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    score = make_positional_scorer(11, 4, 4, 1.0)
    all_four = obedience(score, positions, mask, k=1)
    assert all_four["obedience_lists"] == 2
    rows = torch.tensor([0, 3])
    full = torch.arange(4).repeat(4, 1)

    def two(order: Tensor) -> Tensor:
        return score(full.index_copy(0, rows, order))[rows]

    assert obedience(two, positions[rows], mask[rows], k=1) == pytest.approx(all_four, nan_ok=True)
    nothing = obedience(score, positions, torch.zeros_like(mask), k=1)
    assert nothing.pop("obedience_lists") == 0
    assert all(math.isnan(value) for value in nothing.values())


@pytest.mark.slow
def test_without_a_mask_all_items_are_real_and_no_gradient_flows() -> None:
    positions = perturb(torch.arange(5).repeat(8, 1), strength=9, generator=torch.Generator().manual_seed(12))
    weight = torch.tensor(1.0, requires_grad=True)
    base = make_positional_scorer(13, 8, 5, 1.0)
    measured = obedience(lambda order: weight * base(order), positions, reduction="none")
    assert not any(values.requires_grad for values in measured.values())
    masked = obedience(base, positions, torch.ones(8, 5, dtype=torch.bool), reduction="none")
    for name, values in measured.items():
        torch.testing.assert_close(values, masked[name], equal_nan=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swaps": "some"}, "swaps 'some': expected 'all' or 'one'"),
        ({"reduction": "sum"}, "reduction 'sum': expected 'mean' or 'none'"),
        ({"k": 0}, "k is 0: expected at least 1"),
        ({"k": [3, 0]}, r"k is \[3, 0\]: expected at least 1"),
    ],
)
def test_wrong_options_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        obedience(lambda order: order.float(), torch.arange(3)[None], **options)


def test_nan_scores_and_wrong_shapes_are_rejected() -> None:
    """A NaN scorer would never change its ranking, and so appear fully obedient."""
    positions, mask = torch.arange(3).repeat(2, 1), torch.tensor([[True] * 3, [True, True, False]])
    with pytest.raises(InputError, match="NaN for a real item"):
        obedience(lambda order: torch.full((2, 3), math.nan), positions, mask)
    answers = iter([torch.zeros(2, 3), torch.tensor([[0.0, math.nan, 0.0], [0.0] * 3])])
    with pytest.raises(InputError, match="NaN for a real item"):
        obedience(lambda order: next(answers), positions, mask)
    with pytest.raises(InputError, match=r"score gave \[2\]: expected the shape of positions, \[2, 3\]"):
        obedience(lambda order: torch.zeros(2), positions, mask)


def test_random_orders_keep_one_item_on_average() -> None:
    """Between two independent random rankings of n items, one item keeps its rank on average."""
    draw = random.Random(14)
    answers = iter([torch.tensor([[draw.random() for _ in range(10)] for _ in range(4000)]) for _ in range(3)])
    positions = torch.arange(10).repeat(4000, 1)
    measured = obedience(lambda order: next(answers), positions, swaps="one", max_steps=0)
    assert measured["p1_item_obedience"] == pytest.approx(0.1, abs=0.006)
    assert measured["p1_kendall_tau"] == pytest.approx(0.0, abs=0.02)


def swaps_shown_to_scorer(lengths: list[int], keys: list[int]) -> tuple[list[list[int]], dict[str, Tensor]]:
    """For each list, the positions at which adjacent items were swapped, in order of the calls."""
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    positions = torch.arange(longest).expand(mask.shape)
    shown: list[list[int]] = [[] for _ in lengths]

    def score(order: Tensor) -> Tensor:
        for row, places in enumerate(order):
            moved = (places != positions[row]).nonzero().squeeze(-1).tolist()
            if moved:
                assert moved == [moved[0], moved[0] + 1]
                shown[row].append(moved[0])
        return -positions.float()  # keeps the original order, whatever is given

    measured = obedience(score, positions, mask, max_steps=0, list_keys=torch.tensor(keys), reduction="none")
    return shown, measured


def test_swaps_of_long_lists_are_sampled() -> None:
    """65 items have 64 adjacent pairs, all swapped; for 66 and 200 items, 64 pairs are drawn without replacement."""
    shown, measured = swaps_shown_to_scorer([65, 66, 200, 3], [5, 6, 7, 8])
    assert shown[0] == list(range(64))
    assert shown[3] == [0, 1]
    for places, pairs in ((shown[1], 65), (shown[2], 199)):
        assert len(set(places)) == len(places) == 64
        assert set(places) < set(range(pairs))
    assert max(shown[2]) > 150, "drawn from the whole list"
    assert measured["p2_sampled_share"].tolist() == [0, 1, 1, 0]
    assert measured["p2_obedience"].tolist() == [1, 1, 1, 1]
    # The same swaps in another batch of another width; different swaps for another key.
    assert swaps_shown_to_scorer([66], [6])[0] == [shown[1]]
    assert swaps_shown_to_scorer([66], [7])[0] != [shown[1]]
