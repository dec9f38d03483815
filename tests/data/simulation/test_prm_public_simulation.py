"""The simulator of PRM Public: its text, its truth, its click rule, its fit to the real labels."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank.cli import main
from hf_rerank.data.simulation import (
    PRMWorld,
    draw_cascade_clicks,
    draw_clicks,
    draw_user_browsing_clicks,
    order_click_probabilities,
    prm_public_lists,
    prm_public_text,
    simulate_prm,
)
from hf_rerank.data.simulation import prm_public as prm_public_files
from hf_rerank.data.simulation.click_process import compute_attraction
from hf_rerank.errors import InputError

REAL_DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def json_list(entry: str, length: int) -> str:
    return rf"\[{entry}(?:, {entry}){{{length - 1}}}\]"


# At most six decimals and no needless zeros, as Python's json writes round(x, 6); the real line obeys it too (tested).
DECIMAL = r"(?:null|-?(?:0|[1-9]\d*)\.(?:0|\d{0,5}[1-9]))"
LINE = re.compile(
    r"\d+\|"
    + json_list(r"(?:null|\d)", 3)
    + r"\|"
    + json_list(json_list(r"\d+", 5), 30)
    + r"\|"
    + json_list(json_list(DECIMAL, 7), 30)
    + r"\|"
    + json_list(json_list(DECIMAL, 12), 30)
    + r"\|"
    + json_list(r"[01]\.0", 30)
)


def read_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="ascii")
    assert text.endswith("\n")
    return text[:-1].split("\n")


def read_clicks(path: Path) -> np.ndarray:
    return np.array([json.loads(line.rsplit("|", 1)[1]) for line in read_lines(path)])


def read_truth(path: Path) -> pa.Table:
    return pq.read_table(path.with_name(path.name + ".truth.parquet"))


def column(truth: pa.Table, name: str) -> np.ndarray:
    return np.array(truth[name].to_pylist())


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """3,000 lists of the default world."""
    return simulate_prm(tmp_path_factory.mktemp("small"), 3000, seed=3)


@pytest.fixture(scope="module")
def clicks_of_20000(tmp_path_factory) -> np.ndarray:
    return read_clicks(simulate_prm(tmp_path_factory.mktemp("large"), 20_000))


class TestText:
    @pytest.mark.slow
    def test_each_line_is_written_like_a_real_one(self, small):
        lines = read_lines(small)
        assert len(lines) == 3000
        for line in lines:
            assert LINE.fullmatch(line)
            assert not re.search(r"-0\.0\b", line)

    def test_the_real_line_has_the_same_format(self):
        example = REAL_DATA / "prm_public_row.txt"
        if not example.exists():
            pytest.skip("the real example line (shared/data) is not here")
        assert LINE.fullmatch(example.read_text().rstrip("\n"))

    def test_shapes_and_vocabularies(self, small):
        for line in read_lines(small)[:300]:
            user, user_categorical, items, basic, optional, labels = map(json.loads, line.split("|"))
            assert user > 0
            assert all(
                value is None or 0 <= value < size for value, size in zip(user_categorical, (8, 4, 8), strict=True)
            )
            items = np.array(items)
            assert items.shape == (30, 5)
            assert len(set(items[:, 0])) == 30
            assert (items[:, 0] > 0).all()
            assert (items[:, 1:] >= 0).all()
            assert (items[:, 1:] < [256, 4, 8, 4]).all()
            assert np.array(basic, dtype=float).shape == (30, 7)
            assert np.array(optional, dtype=float).shape == (30, 12)
            assert len(labels) == 30
            assert sum(labels) >= 1

    def test_dense_columns_are_roughly_standardised(self, small):
        rows = [line.split("|")[3:5] for line in read_lines(small)[:500]]
        for field in (0, 1):
            values = np.array([json.loads(row[field]) for row in rows], dtype=float)
            assert (np.abs(np.nanmean(values, axis=(0, 1))) < 0.8).all()
            spread = np.nanstd(values, axis=(0, 1))
            assert (spread > 0.8).all()
            assert (spread < 1.2).all()

    def test_decimals_have_at_most_six_digits_and_no_needless_zeros(self):
        values = np.array([1.0, -0.0, 0.0, -2.0000001, 1e-6, -2.3e-5, 1.23456789, -0.5, np.nan])
        expected = ["1.0", "0.0", "0.0", "-2.0", "0.000001", "-0.000023", "1.234568", "-0.5", "null"]
        assert prm_public_text._format_decimals(values).to_pylist() == expected

    @pytest.mark.slow
    @pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
    def test_share_of_lines_with_a_null(self, tmp_path, rate):
        lines = read_lines(simulate_prm(tmp_path, 2000, world=PRMWorld(null_rate=rate)))
        assert abs(np.mean(["null" in line for line in lines]) - rate) <= 4 * math.sqrt(rate * (1 - rate) / 2000)
        if rate:
            with_null = [{n for n, field in enumerate(line.split("|")) if "null" in field} for line in lines]
            assert set().union(*with_null) == {1, 3, 4}

    def test_users_have_several_lists(self, small):
        users = [line.split("|", 1)[0] for line in read_lines(small)]
        # 3,000 lists over 3,000 / 4 users; the clicks that a list must have favour some of them
        assert 600 < len(set(users)) <= 750


class TestTruth:
    def test_truth_columns_and_metadata(self, small):
        truth = read_truth(small)
        assert truth.column_names == ["list_id", "attraction", "initial_position"]
        assert truth["list_id"].to_pylist() == [f"part1:{line}" for line in range(1, 3001)]
        attraction = column(truth, "attraction")
        assert attraction.shape == (3000, 30)
        assert (attraction > 0).all()
        assert (attraction < 1).all()
        assert (np.sort(column(truth, "initial_position"), axis=1) == np.arange(30)).all()
        metadata = truth.schema.metadata
        assert metadata[b"mode"] == b"set"
        curve = json.loads(metadata[b"examination"])
        # .38 look at the first only, .24 at all, the other .38 go down the list, 8.5 places on average
        assert curve[0] == pytest.approx(1)
        assert curve[1] == pytest.approx(0.24 + 0.38 * math.exp(-1 / 8.5))
        assert curve[29] == pytest.approx(0.24 + 0.38 * math.exp(-29 / 8.5))

    def test_initial_order_differs_from_display_order_and_beats_chance(self, small):
        truth = read_truth(small)
        position, attraction = column(truth, "initial_position"), column(truth, "attraction")
        assert (position == np.arange(30)).mean() < 0.1  # 1 / 30 for unrelated orders
        top, rest = attraction[position < 5].mean(), attraction[position >= 5].mean()
        assert top > 1.2 * rest
        best = np.sort(attraction, axis=1)[:, -5:].mean()
        assert top < 0.8 * best

    def test_clicks_follow_the_rule_given_at_least_one_click(self, small):
        # A list without a click is replaced as a whole, so P(click_i | list is kept) = p_i / (1 - prod(1 - p_j)).
        truth, clicks = read_truth(small), read_clicks(small)
        assert_clicks_match(clicks, json.loads(truth.schema.metadata[b"examination"]) * column(truth, "attraction"))

    @pytest.mark.slow
    def test_clicks_follow_the_rule_of_the_order_mode(self, tmp_path):
        path = simulate_prm(tmp_path, 3000, world=PRMWorld(mode="order"))
        truth, clicks = read_truth(path), read_clicks(path)
        assert truth.column_names == ["list_id", "base_attraction", "category", "initial_position"]
        category = [[item[3] for item in json.loads(line.split("|")[2])] for line in read_lines(path)[:50]]
        np.testing.assert_array_equal(column(truth, "category")[:50], category)
        by_place = order_click_probabilities(
            column(truth, "base_attraction"),
            column(truth, "category"),
            np.broadcast_to(np.arange(30), clicks.shape),  # the slots are in display order
            examination=json.loads(truth.schema.metadata[b"examination"]),
            same_category_decay=json.loads(truth.schema.metadata[b"same_category_decay"]),
        )
        assert_clicks_match(clicks, by_place)


def assert_clicks_match(clicks: np.ndarray, unselected: np.ndarray) -> None:
    expected = unselected / (1 - np.prod(1 - unselected, axis=1, keepdims=True))
    sigma = np.sqrt((expected * (1 - expected)).sum(axis=0))
    assert (np.abs(clicks.sum(axis=0) - expected.sum(axis=0)) < 4 * sigma).all()


class TestRepeatability:
    def test_same_arguments_give_the_same_bytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(prm_public_lists, "LISTS_PER_BLOCK", 40)  # several blocks
        one, same, other = (
            simulate_prm(tmp_path / name, 100, seed=seed) for name, seed in zip("abc", (7, 7, 8), strict=True)
        )
        for suffix in ("", ".truth.parquet"):
            first, second, third = (Path(f"{path}{suffix}").read_bytes() for path in (one, same, other))
            assert first == second
            assert first != third

    @pytest.mark.parametrize(
        ("mode", "text", "truth"),
        [
            (
                "set",
                "8da064b5c0fe0612f45ac28ee6e5f35b7fcf1cb830e8f8c318c5027602fbfc77",
                "bca93c9c3f81662cee7d4c2222622f196f96cadfb305deb3be8039adf9ae8f92",
            ),
            (
                "order",
                "a83cf2d4a49e65856606501c136cd61e0103dab5226f05812b4c1e068dbbee44",
                "8cbd1c494283717b194cb630031bf69db17f4ef5ab3400991bd69c2fa1bb931b",
            ),
        ],
    )
    def test_world_without_history_matches_recorded_digests(self, tmp_path, mode, text, truth):
        """Digests of 20 lists as they were before worlds could have a history: what was measured on them still holds.

        The truth's is of its values and metadata: the bytes of a Parquet file name the version of its writer.
        """
        path = simulate_prm(tmp_path, 20, seed=3, world=PRMWorld(mode=mode))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == text
        table = read_truth(path)
        metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        found = json.dumps([table.to_pydict(), metadata], sort_keys=True)
        assert hashlib.sha256(found.encode()).hexdigest() == truth

    def test_parts_share_the_world_and_nothing_else(self, tmp_path):
        parts = []
        for part in (1, 2):
            path = simulate_prm(tmp_path, 300, part=part)
            assert path.name == f"set1.train.txt.part{part}"
            assert read_truth(path)["list_id"][0].as_py() == f"part{part}:1"
            rows = [line.split("|") for line in read_lines(path)]
            items = {tuple(item) for row in rows for item in json.loads(row[2])}
            parts.append((items, {row[0] for row in rows}, {row[3] for row in rows}))
        (items, users, dense), (other_items, other_users, other_dense) = parts
        assert len(items & other_items) > 0.8 * len(items)  # the same ids with the same categories
        assert not users & other_users
        assert not dense & other_dense


class TestClickRule:
    def test_click_rate_is_examination_times_attraction(self):
        examination, attraction = np.array([1.0, 0.5, 0.25]), np.array([0.2, 0.6, 0.8])
        n = 40_000
        rate = draw_clicks(np.random.default_rng(0), examination, np.tile(attraction, (n, 1))).mean(axis=0)
        expected = np.array([0.2, 0.3, 0.2])
        assert (np.abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / n)).all()

    def test_attraction_of_two_items_follows_the_formula(self):
        world = PRMWorld(
            bias=-1,
            quality_weight=2,
            match_weight=3,
            context_strength=0.5,
            theme_weight=4,
            price_weight=1,
            crowding_weight=2,
            price_spread=2,
        )
        found = compute_attraction(
            world,
            quality=np.array([[0.1, 0.2]]),
            match=np.array([[0.3, -0.1]]),
            style=np.array([[1.0, 0.5]]),  # each is multiplied by the mean of the others
            price=np.array([[4.0, 0.0]]),  # mean 2; gaps (in units of 2) 1 and -1
            category=np.array([[5, 5]]),  # two items of the category
            price_taste=np.array([0.5]),
            propensity=np.array([0.7]),
        )
        context = [4 * 1.0 * 0.5 - 0.5 - 2 * math.log(2), 4 * 0.5 * 1.0 - 1.5 - 2 * math.log(2)]
        logits = [-1 + 0.7 + 0.2 + 0.9 + 0.5 * context[0], -1 + 0.7 + 0.4 - 0.3 + 0.5 * context[1]]
        np.testing.assert_allclose(found, [[1 / (1 + math.exp(-logit)) for logit in logits]])

    def test_attraction_depends_on_the_set_and_not_on_the_order(self):
        rng = np.random.default_rng(1)
        lists = {name: rng.normal(size=(6, 9)) for name in ("quality", "match", "style", "price")}
        lists["category"] = rng.integers(1, 4, (6, 9))
        of_user = {name: rng.normal(size=6) for name in ("price_taste", "propensity")}
        found = compute_attraction(PRMWorld(), **lists, **of_user)
        order = rng.permuted(np.tile(np.arange(9), (6, 1)), axis=1)
        moved = {name: np.take_along_axis(values, order, axis=1) for name, values in lists.items()}
        np.testing.assert_allclose(
            compute_attraction(PRMWorld(), **moved, **of_user), np.take_along_axis(found, order, axis=1)
        )
        # Another last item changes the attraction of all the others ...
        lists["style"][:, 8] += 1
        changed = compute_attraction(PRMWorld(), **lists, **of_user)
        assert (np.abs(changed - found)[:, :8] > 1e-6).all()
        # ... but not where the context has no strength.
        alone = PRMWorld(context_strength=0)
        lists_before = {**lists, "style": lists["style"] - np.eye(9)[8]}
        np.testing.assert_array_equal(
            compute_attraction(alone, **lists, **of_user), compute_attraction(alone, **lists_before, **of_user)
        )

    @pytest.mark.parametrize(
        ("order", "clicks"),
        [
            # examination 1, .5, .25; base .5, .4, .4; items 0 and 1 are rivals; decay .5
            ([0, 1, 2], [1 * 0.5, 0.5 * 0.4 * 0.5, 0.25 * 0.4]),  # item 1 stands below a stronger rival
            ([1, 0, 2], [1 * 0.4, 0.5 * 0.5, 0.25 * 0.4]),  # a weaker rival above does no harm
            ([2, 0, 1], [1 * 0.4, 0.5 * 0.5, 0.25 * 0.4 * 0.5]),
        ],
    )
    def test_order_mode_probabilities_of_three_items(self, order, clicks):
        arguments = {"examination": np.array([1, 0.5, 0.25]), "same_category_decay": 0.5}
        base, category = np.array([0.5, 0.4, 0.4]), np.array([1, 1, 2])
        found = order_click_probabilities(base, category, np.array(order), **arguments)
        np.testing.assert_allclose(found, clicks)

    def test_an_equally_attractive_rival_above_counts(self):
        found = order_click_probabilities(
            np.full(3, 0.8), np.ones(3, int), np.array([2, 0, 1]), examination=np.ones(3), same_category_decay=0.5
        )
        np.testing.assert_allclose(found, [0.8, 0.4, 0.2])

    def test_context_matters_beyond_each_item_alone(self):
        """Sorting by the worth of each item alone goes less than half the way from a random order to the best one."""
        world = PRMWorld()
        items = prm_public_lists._draw_items(world, np.random.default_rng(0))
        users = prm_public_lists._draw_users(world, np.random.default_rng(1), 500, part=1)
        shown = prm_public_lists._show(world, items, users, np.random.default_rng(2), 2000)
        attraction = shown["attraction"]

        def expected_clicks(score):
            order = np.argsort(-score, axis=1)
            return (world.examination * np.take_along_axis(attraction, order, axis=1)).sum(axis=1).mean()

        chance = expected_clicks(np.random.default_rng(3).random(attraction.shape))
        alone = expected_clicks(
            world.quality_weight * items.quality[shown["item"]] + world.match_weight * shown["match"]
        )
        assert 0.2 < (alone - chance) / (expected_clicks(attraction) - chance) < 0.5


@pytest.mark.slow
class TestCalibration:
    """Of 1,000 real lists: 1.885 clicks per list, CTR 6.28 %, clicks at places 1, 2, 3, 30: 196, 114, 82, 40."""

    @pytest.mark.slow
    def test_click_counts_match_published_figures(self, clicks_of_20000):
        assert (clicks_of_20000.sum(axis=1) >= 1).all()
        assert clicks_of_20000.sum(axis=1).mean() == pytest.approx(1.885, abs=0.05)
        assert clicks_of_20000.mean() == pytest.approx(0.0628, abs=0.0017)
        for place, real in ((1, 196), (2, 114), (3, 82), (30, 40)):
            # 3.5 standard deviations of a count in 1,000 lists
            assert abs(1000 * clicks_of_20000[:, place - 1].mean() - real) < 3.5 * math.sqrt(real)

    def test_click_distribution_matches_real_labels(self, clicks_of_20000):
        path = REAL_DATA / "prm_public_labels.txt"
        if not path.exists():
            pytest.skip("the real labels (shared/data) are not here")
        from scipy.stats import chi2_contingency

        real = np.array([json.loads(line) for line in path.read_text().splitlines()])
        by_clicks = [
            [(np.minimum(labels.sum(axis=1), 6) == clicks).sum() for clicks in range(1, 7)]
            for labels in (real, clicks_of_20000)
        ]
        assert chi2_contingency(by_clicks).pvalue > 0.01
        curves = [labels.sum(axis=0) / labels.sum() for labels in (real, clicks_of_20000)]
        assert 0.5 * np.abs(curves[0] - curves[1]).sum() <= 0.07


class TestErrors:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"n_lists": 0}, "n_lists must be an integer of at least 1, got 0"),
            ({"n_lists": 2.5}, "n_lists must be an integer of at least 1, got 2.5"),
            ({"n_lists": 5, "seed": -1}, "seed must be an integer of at least 0, got -1"),
            ({"n_lists": 5, "part": 0}, "part must be an integer of at least 1, got 0"),
            ({"n_lists": 5, "world": PRMWorld(bias=-30.0)}, "raise PRMWorld.bias"),
        ],
    )
    def test_invalid_arguments_are_refused(self, tmp_path, arguments, message):
        with pytest.raises(InputError, match=re.escape(message)):
            simulate_prm(tmp_path, **arguments)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"mode": "sets"}, "'set' or 'order', got 'sets'"),
            ({"list_length": 1}, "list_length must be at least 2, got 1"),
            ({"list_length": 30.0}, "list_length must be an integer, got 30.0"),
            ({"pool_size": 20}, "pool_size must be at least 30, got 20"),
            ({"n_items": 100}, "n_items must be at least 240, got 100"),
            ({"null_rate": 1.5}, r"null_rate must lie in [0, 1], got 1.5"),
            ({"looks_at_first_only": 0.8, "looks_at_all": 0.3}, "must not exceed 1"),
            ({"same_category_decay": 0.0}, "same_category_decay must be above 0"),
            ({"initial_noise": -1.0}, "initial_noise must be at least 0"),
            ({"bias": math.nan}, "bias must be finite"),
            ({"history_length": -1.0}, "history_length must be at least 0, got -1.0"),
            ({"history_length": math.inf}, "history_length must be finite"),
            ({"personal_taste": 1.5}, r"personal_taste must lie in [0, 1], got 1.5"),
        ],
    )
    def test_invalid_world_parameters_are_refused(self, parameters, message):
        with pytest.raises(InputError, match=re.escape(message)):
            PRMWorld(**parameters)

    @pytest.mark.parametrize("suffix", ["", ".truth.parquet"])
    def test_an_existing_file_is_kept(self, tmp_path, suffix):
        existing = tmp_path / f"set1.train.txt.part1{suffix}"
        existing.write_text("mine")
        with pytest.raises(InputError, match=re.escape(f"{existing} already exists; delete it")):
            simulate_prm(tmp_path, 5)
        assert existing.read_text() == "mine"
        assert list(tmp_path.iterdir()) == [existing]

    def test_full_disk_leaves_no_files(self, tmp_path, monkeypatch):
        written = []
        truth_table = prm_public_text.make_truth_table

        def full_disk(*arguments):
            if written:
                raise OSError("No space left on device")
            written.append(list(tmp_path.iterdir()))
            return truth_table(*arguments)

        monkeypatch.setattr(prm_public_lists, "LISTS_PER_BLOCK", 10)
        monkeypatch.setattr(prm_public_files, "make_truth_table", full_disk)
        with pytest.raises(OSError, match="No space left"):
            simulate_prm(tmp_path, 30)
        names = [path.name for path in written[0]]
        assert sum(name.endswith(".tmp") for name in names) == 2  # both files were started, under temporary names
        assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- other click models


def test_cascade_ends_with_the_first_click() -> None:
    """Attraction 0.3 everywhere: the first click falls on place k with probability 0.3 * 0.7^k. The standard error of
    a share of 200,000 is below 0.0011."""
    click = draw_cascade_clicks(np.random.default_rng(0), np.full((200_000, 4), 0.3))
    assert click.sum(axis=1).max() == 1
    np.testing.assert_allclose(click.mean(axis=0), [0.3, 0.21, 0.147, 0.1029], atol=0.005)


def test_user_browsing_continues_below_each_click() -> None:
    """Attraction 1 at first and last place: with the first clicked, the last is two places below it, and is examined
    with 0.5. With attraction 0 before it, it is three places below the top."""
    examination = np.array([1.0, 0.5, 0.2])
    for attraction_of, expected in (((1.0, 0.0, 1.0), (1, 0, 0.5)), ((0.0, 0.0, 1.0), (0, 0, 0.2))):
        shown = np.broadcast_to(np.array(attraction_of), (100_000, 3))
        click = draw_user_browsing_clicks(np.random.default_rng(0), examination, shown)
        np.testing.assert_allclose(click.mean(axis=0), expected, atol=0.01)
    everything = draw_user_browsing_clicks(np.random.default_rng(0), examination, np.ones((100, 3)))
    assert everything.all()  # each click is followed by a look at the next place


def test_worlds_with_cascade_or_user_browsing_clicks(tmp_path: Path) -> None:
    for click_model in ("cascade", "user_browsing"):
        folder = tmp_path / click_model
        command = ["simulate", "prm_public", "--output-dir", str(folder), "--lists", "400"]
        assert main([*command, "--click-model", click_model]) == 0
        path = folder / "set1.train.txt.part1"
        clicks, truth = read_clicks(path), read_truth(path)
        assert (clicks.sum(axis=1).max() == 1) == (click_model == "cascade")
        assert b"examination" not in truth.schema.metadata
        assert json.loads(truth.schema.metadata[b"world"])["click_model"] == click_model
        with pytest.raises(InputError, match=f"click_model='{click_model}' requires mode='set'"):
            PRMWorld(click_model=click_model, mode="order")
        with pytest.raises(InputError, match="and history_length=0, got"):
            PRMWorld(click_model=click_model, history_length=3)
    with pytest.raises(InputError, match="must be one of position, cascade, user_browsing, got 'casade'"):
        PRMWorld(click_model="casade")
