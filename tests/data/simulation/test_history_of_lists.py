"""Simulated histories: how they are drawn, how they reflect the user, and that lists and streams hold them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank.cli import main
from hf_rerank.data.loading import load_lists
from hf_rerank.data.prepared import read_prepared
from hf_rerank.data.prm_public import find_ranges, iter_batches, prepare_prm_public, truth_file
from hf_rerank.data.simulation import PRMWorld, simulate_prm
from hf_rerank.data.simulation import prm_public_lists as simulated_lists
from hf_rerank.data.simulation.prm_public_history import draw_history
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense
from hf_rerank.validation import Lists

COLUMNS = [
    "history_item_id",
    "history_item_1",
    "history_item_3",
    "history_basic_2",
    "history_price_gap",
    "history_minutes_ago",
]
WORLD = PRMWorld(history_length=6.0)
N_LISTS = 1200


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Lists with histories of 6 clicks on average."""
    return simulate_prm(tmp_path_factory.mktemp("raw"), N_LISTS, seed=4, world=WORLD)


def truth_of(raw: Path) -> pa.Table:
    return pq.read_table(truth_file(raw))


def read_raw(raw: Path) -> list[list]:
    """The six fields of each line."""
    return [list(map(json.loads, line.split("|"))) for line in raw.read_text().splitlines()]


class TestDraw:
    """On made-up earlier lists: items 0, 1, 2, 3 with click probabilities .1, .2, .3, .4 and gaps of a tenth."""

    @staticmethod
    def show(user: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        items = np.tile(np.arange(4), (len(user), 1)) + 10 * user[:, None]
        return items, np.tile([0.1, 0.2, 0.3, 0.4], (len(user), 1)), items / 10

    def test_lengths_are_geometric(self):
        n = 20_000
        history = draw_history(np.random.default_rng(0), 4.0, np.zeros(n, int), np.full((n, 2), 99), self.show)
        # P(length = k) = (1 / 5) (4 / 5)^k: mean 4, variance 4 * 5
        assert abs(history.lengths.mean() - 4) < 4 * math.sqrt(20 / n)
        for length, share in ((0, 0.2), (1, 0.16), (2, 0.128)):
            assert abs((history.lengths == length).mean() - share) < 4 * math.sqrt(share * (1 - share) / n)
        assert history.lengths.max() > 20

    def test_clicks_follow_their_probabilities_and_avoid_items_of_the_list(self):
        """Users 0 and 1; the lists of user 1 hold item 13 of the earlier lists, so .1, .2, .3 of .6 are left."""
        n = 4000
        user = np.arange(n) % 2
        item = np.where(user[:, None] == 1, [[13, 50]], [[51, 50]])
        history = draw_history(np.random.default_rng(1), 5.0, user, item, self.show)
        of_user = np.repeat(user, history.lengths)
        assert len(history.item) == len(history.price_gap) == len(history.minutes_ago) == history.lengths.sum()
        np.testing.assert_array_equal(history.price_gap, history.item / 10)
        for number, expected in ((0, [0.1, 0.2, 0.3, 0.4]), (1, [1 / 6, 2 / 6, 3 / 6, 0])):
            found = np.bincount(history.item[of_user == number] - 10 * number, minlength=4)
            clicks = found.sum()
            assert clicks > 8000
            error = 4 * np.sqrt(np.multiply(expected, np.subtract(1, expected)) / clicks)
            assert (np.abs(found / clicks - expected) <= error).all()

    def test_clicks_are_newest_first_and_a_day_apart_on_average(self):
        n = 3000
        history = draw_history(np.random.default_rng(2), 3.0, np.zeros(n, int), np.full((n, 1), 99), self.show)
        starts = np.cumsum(history.lengths) - history.lengths
        newest = history.minutes_ago[starts[history.lengths > 0]]
        assert newest.min() >= 1
        assert abs(newest.mean() - 1440) < 4 * 1440 / math.sqrt(len(newest))
        for start, length in zip(starts, history.lengths, strict=True):
            assert (np.diff(history.minutes_ago[start : start + length]) >= 0).all()

    def test_history_is_empty_if_only_items_of_the_list_are_left(self):
        user = np.arange(200) % 2
        item = np.where(user[:, None] == 1, [[10, 11, 12, 13]], [[50, 51, 52, 53]])
        history = draw_history(np.random.default_rng(3), 2.0, user, item, self.show)
        assert (history.lengths[user == 1] == 0).all()
        assert history.lengths[user == 0].sum() > 50
        assert (history.item < 4).all()

    def test_all_histories_may_be_empty(self):
        history = draw_history(np.random.default_rng(4), 1e-9, np.zeros(5, int), np.full((5, 1), 99), self.show)
        assert (history.lengths.tolist(), history.item.tolist(), history.minutes_ago.tolist()) == ([0] * 5, [], [])


class TestWorld:
    @pytest.mark.slow
    def test_history_holds_items_of_the_world_that_are_not_in_the_list(self, raw):
        truth = truth_of(raw)
        assert truth.column_names == ["list_id", "attraction", "initial_position", *COLUMNS]
        world = json.loads(truth.schema.metadata[b"world"])
        assert (world["history_length"], world["personal_taste"]) == (6.0, WORLD.personal_taste)
        items = simulated_lists._draw_items(WORLD, simulated_lists.make_generator(4, 0))
        known = {int(number): row for row, number in enumerate(items.id)}
        lengths = []
        for line, history in zip(read_raw(raw), truth.select(COLUMNS).to_pylist(), strict=True):
            lengths.append(len(history["history_item_id"]))
            assert {len(history[name]) for name in COLUMNS} == {lengths[-1]}
            rows = [known[number] for number in history["history_item_id"]]
            assert history["history_item_1"] == items.categorical[rows, 0].tolist()
            assert history["history_item_3"] == items.category[rows].tolist()
            # measured with an error of .1, so within .6: six standard deviations
            assert np.abs(np.array(history["history_basic_2"]) - items.price[rows]).max(initial=0) < 0.6
            assert sorted(history["history_minutes_ago"]) == history["history_minutes_ago"]
            assert not {item[0] for item in line[2]} & set(history["history_item_id"])
        # geometric with mean 6: one in seven has none; variance 6 * 7
        assert abs(np.mean(lengths) - 6) < 4 * math.sqrt(42 / N_LISTS)
        assert abs(np.mean(np.array(lengths) == 0) - 1 / 7) < 4 * math.sqrt(6 / 49 / N_LISTS)

    @pytest.mark.slow
    def test_history_reflects_taste_that_user_columns_do_not_show(self, raw):
        """Price gaps reflect the price taste beyond user_1, categories the liking; chance alone stays below .12."""
        users = simulated_lists._draw_users(WORLD, simulated_lists.make_generator(4, 1, 1), N_LISTS // 4, part=1)
        lines, truth = read_raw(raw), truth_of(raw)
        user = np.array([line[0] for line in lines]) - 1
        beyond = users.price_taste[user] - (users.categorical[user, 1] - 2)
        assert beyond.std() == pytest.approx(WORLD.personal_taste, abs=0.15)
        gaps, categories = truth["history_price_gap"].to_pylist(), truth["history_item_3"].to_pylist()
        long = np.array([len(gap) >= 5 for gap in gaps])
        mean_gap = np.array([np.mean(gap) if gap else 0.0 for gap in gaps])
        assert np.corrcoef(mean_gap[long], beyond[long])[0, 1] > 0.3
        share = np.array([np.bincount(kinds, minlength=8) / max(1, len(kinds)) for kinds in categories])
        assert np.corrcoef(share[long, 1:].ravel(), users.liking[user][long, 1:].ravel())[0, 1] > 0.12
        # It says nothing about another user's taste.
        other = np.roll(beyond, 1)
        assert abs(np.corrcoef(mean_gap[long], other[long])[0, 1]) < 0.12

    def test_without_personal_taste_price_taste_equals_the_user_column(self):
        world = PRMWorld(history_length=1.0, personal_taste=0.0)
        users = simulated_lists._draw_users(world, np.random.default_rng(0), 50, part=1)
        np.testing.assert_array_equal(users.price_taste, users.categorical[:, 1] - 2.0)

    def test_histories_are_repeatable_and_do_not_change_the_lists(self, tmp_path, monkeypatch):
        monkeypatch.setattr(simulated_lists, "LISTS_PER_BLOCK", 40)  # several blocks
        one, same, longer, other = (
            simulate_prm(tmp_path / name, 100, seed=seed, world=PRMWorld(history_length=length))
            for name, seed, length in (("a", 7, 2.0), ("b", 7, 2.0), ("c", 7, 5.0), ("d", 8, 2.0))
        )
        assert one.read_bytes() == same.read_bytes() == longer.read_bytes() != other.read_bytes()
        assert truth_file(one).read_bytes() == truth_file(same).read_bytes()
        first, second = truth_of(one), truth_of(longer)
        assert first.select(["attraction"]).equals(second.select(["attraction"]))
        assert first["history_item_id"] != second["history_item_id"]

    def test_the_order_mode_has_histories_too(self, tmp_path):
        truth = truth_of(simulate_prm(tmp_path, 60, world=PRMWorld(mode="order", history_length=3.0)))
        assert truth.column_names == ["list_id", "base_attraction", "category", "initial_position", *COLUMNS]
        assert sum(map(len, truth["history_item_id"].to_pylist())) > 60


class TestPrepared:
    @pytest.mark.slow
    def test_preparing_joins_histories_to_lists(self, raw, tmp_path):
        report = prepare_prm_public(raw.parent, tmp_path / "lists", progress=False, max_list_length=5)
        prepared = read_prepared(tmp_path / "lists")
        table = pa.concat_tables(pq.read_table(path) for files in prepared.files.values() for path in files)
        expected = {row["list_id"]: row for row in truth_of(raw).to_pylist()}
        assert len(table) == N_LISTS
        for row in table.to_pylist():
            assert {name: row[name] for name in COLUMNS} == {name: expected[row["list_id"]][name] for name in COLUMNS}
            assert len(row["item_id"]) == 5  # cut, which leaves the history whole
        assert prepared.schema.history == (
            Categorical("history_item_id", shares="item_id"),
            Categorical("history_item_1", shares="item_1"),
            Categorical("history_item_3", shares="item_3"),
            Dense("history_basic_2"),
            Dense("history_price_gap"),
            Dense("history_minutes_ago", scale="log"),
        )
        lists = Lists.from_arrow(table, prepared.schema, with_labels=True)
        assert lists.history_lengths.sum() == sum(len(row["history_item_id"]) for row in expected.values())
        assert not any(name.startswith("history") for name in report.nulls)
        card = (tmp_path / "lists" / "README.md").read_text()
        assert "The columns `history_*`, newest first, are features" in card
        assert "nothing here is a user's history" not in card

    @pytest.mark.slow
    def test_batches_do_not_change_the_bytes(self, raw, tmp_path):
        prepare_prm_public(raw.parent, tmp_path / "one", progress=False)
        prepare_prm_public(raw.parent, tmp_path / "two", progress=False, piece_bytes=300_000, threads=2)
        names = sorted(path.name for path in (tmp_path / "one").iterdir())
        assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
        for name in names:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{}, {"protocol": "public", "share": 0.4}, {"splits": ("test",)}])
    def test_left_out_lines_do_not_shift_histories(self, raw, options):
        expected = {row["list_id"]: row["history_item_id"] for row in truth_of(raw).to_pylist()}
        ranges = find_ranges([raw], range_bytes=2**21)
        assert len(ranges) > 1
        rows = [row for table in iter_batches(ranges, piece_bytes=200_000, **options) for row in table.to_pylist()]
        assert 50 < len(rows) <= N_LISTS
        assert all(row["history_item_id"] == expected[row["list_id"]] for row in rows)

    @pytest.mark.slow
    def test_streams_contain_histories(self, monkeypatch, tmp_path):
        simulate_prm(tmp_path / "raw", 150, world=WORLD)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
        whole = load_lists("prm_public", data_dir=tmp_path / "raw")
        stream = load_lists("prm_public", data_dir=tmp_path / "raw", streaming=True)
        assert stream.schema == whole.schema
        assert len(stream.schema.history) == len(COLUMNS)
        assert list(stream["test"]) == list(whole["test"])
        assert any(whole["test"]["history_item_id"])

    @pytest.mark.slow
    def test_history_length_on_the_command_line(self, tmp_path):
        raw, lists = str(tmp_path / "raw"), str(tmp_path / "lists")
        world = ["--lists", "60", "--world", "history_length=10"]
        assert main(["simulate", "prm_public", "--output-dir", raw, *world]) == 0
        assert main(["prepare", "prm_public", "--raw-dir", raw, "--output-dir", lists]) == 0
        loaded = load_lists(lists)
        assert sum(len(row["history_item_id"]) for rows in loaded.values() for row in rows) > 200

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop_columns("history_basic_2"), "has no column 'history_basic_2'"),
            (
                lambda t: replaced(t, "history_item_1", lambda rows: [*rows[:2], [*rows[2], 1], *rows[3:]]),
                r"the history of list part1:3 has \d+ values of history_item_1, but \d+ of history_item_id",
            ),
            (
                lambda t: replaced(t, "history_item_id", lambda rows: [None, *rows[1:]]),
                "the column history_item_id holds nulls",
            ),
            (
                lambda t: replaced(t, "history_minutes_ago", lambda rows: [[None] * len(row) for row in rows]),
                "the column history_minutes_ago holds nulls",
            ),
        ],
    )
    def test_wrong_histories_are_refused(self, tmp_path, change, message):
        raw = simulate_prm(tmp_path, 20, world=PRMWorld(history_length=5.0))
        pq.write_table(change(truth_of(raw)), truth_file(raw))
        with pytest.raises(InputError, match=message):
            list(iter_batches([raw]))

    def test_parts_with_and_without_histories_do_not_mix(self, tmp_path):
        first = simulate_prm(tmp_path, 20, world=PRMWorld(history_length=5.0))
        second = simulate_prm(tmp_path, 20, part=2)
        with pytest.raises(InputError, match="differ"):
            list(iter_batches([first, second]))


def replaced(table: pa.Table, name: str, change) -> pa.Table:
    number = table.column_names.index(name)
    values = pa.array(change(table[name].to_pylist()), type=table.schema.field(name).type)
    return table.set_column(number, name, values)
