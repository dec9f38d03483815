"""The simulator of Ad: its files, its truth, its click rule, and what its behaviours show."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank.cli import main
from hf_rerank.data.simulation import AdWorld, ad_lists, click_process, simulate_ad
from hf_rerank.data.simulation import ad as ad_files
from hf_rerank.errors import InputError

HEADERS = {
    "raw_sample.csv": b"user,time_stamp,adgroup_id,pid,nonclk,clk\n",
    "ad_feature.csv": b"adgroup_id,cate_id,campaign_id,customer,brand,price\n",
    "user_profile.csv": b"userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
    b"occupation,new_user_class_level \n",
    "behavior_log.csv": b"user,time_stamp,btag,cate,brand\n",
}
ROWS = {
    "raw_sample.csv": r"\d+,\d{10},\d+,(430548|430539)_1007,(1,0|0,1)",
    "ad_feature.csv": r"\d+,\d+,\d+,\d+,(\d+|NULL),\d+\.\d{1,2}",
    "user_profile.csv": r"\d+,\d+,\d+,[12],[0-6],[123]?,[123],[01],[1-4]?",
    "behavior_log.csv": r"\d+,\d{10},(pv|cart|fav|buy),\d+,(\d+|NULL)",
}
TRUTH = "raw_sample.csv.truth.parquet"

attraction_of = click_process.compute_attraction


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """3,000 lists of the default world."""
    return simulate_ad(tmp_path_factory.mktemp("ad") / "raw", 3000).parent


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / name, newline="", encoding="ascii") as file:
        return list(csv.DictReader(file))


def read_truth(folder: Path) -> pa.Table:
    return pq.ParquetFile(folder / TRUTH).read()


def windows(impressions: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """The 5-minute windows of a log, by ``user-newest second``: newest first, each in order of time, then of file."""
    of_user = defaultdict(list)
    for impression in impressions:
        of_user[impression["user"]].append(impression)
    found = {}
    for user, left in of_user.items():
        while left:
            newest = max(int(impression["time_stamp"]) for impression in left)
            inside = [impression for impression in left if newest - int(impression["time_stamp"]) <= 300]
            left = [impression for impression in left if newest - int(impression["time_stamp"]) > 300]
            found[f"{user}-{newest}"] = sorted(inside, key=lambda impression: int(impression["time_stamp"]))
    return found


class TestFiles:
    def test_headers_and_rows(self, small):
        assert {path.name for path in small.iterdir()} == {*HEADERS, TRUTH}
        for name, header in HEADERS.items():
            data = (small / name).read_bytes()
            assert data.startswith(header)
            lines = data[len(header) :].decode("ascii").split("\n")
            assert lines.pop() == ""
            for line in lines:
                assert re.fullmatch(ROWS[name], line), (name, line)

    def test_ids_are_unique_and_consistent(self, small):
        ads = [row["adgroup_id"] for row in rows(small, "ad_feature.csv")]
        users = [row["userid"] for row in rows(small, "user_profile.csv")]
        assert len(set(ads)) == len(ads) == 2000
        assert max(map(int, ads)) <= 846_811
        assert len(set(users)) == len(users)
        assert max(map(int, users)) <= 1_141_729
        log = rows(small, "raw_sample.csv")
        assert {row["adgroup_id"] for row in log} <= set(ads)
        assert len({row["user"] for row in log}) == 1000  # 3,000 lists, 3 a user

    def test_shares_of_missing_values(self, small):
        ads, profiles = rows(small, "ad_feature.csv"), rows(small, "user_profile.csv")
        behaviours = rows(small, "behavior_log.csv")
        # shares of .2, .3, .3 and .05, with 4 standard deviations
        assert_share(row["brand"] == "NULL" for row in ads)(0.2)
        assert_share(row["pvalue_level"] == "" for row in profiles)(0.3)
        assert_share(row["new_user_class_level "] == "" for row in profiles)(0.3)
        known = {row["userid"] for row in profiles}
        assert_share(user not in known for user in {row["user"] for row in rows(small, "raw_sample.csv")})(0.05)
        assert any(row["brand"] == "NULL" for row in behaviours)
        assert_share(row["btag"] == "pv" for row in behaviours)(0.95 + 0.02 * 0.05)  # caused by clicks: all pv

    def test_prices_span_orders_of_magnitude(self, small):
        prices = np.array([float(row["price"]) for row in rows(small, "ad_feature.csv")])
        # logarithms with mean 5 and variance .64 + .81; 60 categories share their part
        assert np.log(prices).std() == pytest.approx(1.45**0.5, rel=0.15)
        assert prices.max() / prices.min() > 1000

    def test_each_campaign_belongs_to_one_customer(self, small):
        customers = defaultdict(set)
        for row in rows(small, "ad_feature.csv"):
            customers[row["campaign_id"]].add(row["customer"])
        assert {len(found) for found in customers.values()} == {1}

    def test_gender_and_age_follow_from_the_group(self, small):
        for row in rows(small, "user_profile.csv"):
            group, gender, age = (int(row[name]) for name in ("cms_group_id", "final_gender_code", "age_level"))
            assert 0 <= group <= 12
            assert age == (group if group <= 6 else group - 6)
            assert group == 0 or gender == (2 if group <= 6 else 1)

    def test_rows_of_a_user_are_scattered(self, small):
        for name in ("raw_sample.csv", "behavior_log.csv"):
            log = rows(small, name)
            assert sum(one["user"] == two["user"] for one, two in itertools.pairwise(log)) < 0.02 * len(log)
            places = defaultdict(list)
            for row in log:
                places[row["user"]].append(int(row["time_stamp"]))
            long = [times for times in places.values() if len(set(times)) > 5]
            assert_share(times[0] < times[-1] for times in long if times[0] != times[-1])(0.5)

    def test_the_number_of_behaviours(self, tmp_path, small):
        assert len(rows(small, "behavior_log.csv")) == 30 * 1000
        simulate_ad(tmp_path / "some", 50, behaviours=77)
        assert len(rows(tmp_path / "some", "behavior_log.csv")) == 77
        simulate_ad(tmp_path / "none", 50, behaviours=0)
        assert {path.name for path in (tmp_path / "none").iterdir()} == {*HEADERS, TRUTH} - {"behavior_log.csv"}


def assert_share(found):
    flags = np.array(list(found))

    def equals(share: float) -> None:
        assert abs(flags.mean() - share) < 4 * math.sqrt(share * (1 - share) / len(flags)), flags.mean()

    return equals


class TestTruth:
    def test_lists_are_the_windows_of_the_log(self, small):
        found = windows(rows(small, "raw_sample.csv"))
        truth = read_truth(small).to_pydict()
        assert len(truth["list_id"]) == 3000
        lengths = {name: len(values) for name, values in zip(truth["list_id"], truth["attraction"], strict=True)}
        assert lengths == {name: len(impressions) for name, impressions in found.items()}
        steps = [
            int(later["time_stamp"]) - int(earlier["time_stamp"])
            for impressions in found.values()
            for earlier, later in itertools.pairwise(impressions)
        ]
        assert_share(step == 0 for step in steps)(0.5)
        for positions in truth["initial_position"]:
            assert sorted(positions) == list(range(len(positions)))

    def test_files_hold_the_drawn_lists_and_profiles(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ad_lists, "USERS_PER_BLOCK", 30)
        world = AdWorld(longest_list=40, pool_size=80)
        folder = simulate_ad(tmp_path / "raw", 300, world=world, seed=5).parent
        found = windows(rows(folder, "raw_sample.csv"))
        assert max(map(len, found.values())) > 30  # the rule cuts these
        ads = ad_lists.draw_ads(world, 5)
        shown = iter(read_truth(folder).to_pylist())
        profiles = {int(row.pop("userid")): row for row in rows(folder, "user_profile.csv")}
        for block in ad_lists.draw_blocks(world, ads, 5, 300):
            for item, click, attraction, length in zip(
                block.item, block.click, block.attraction, block.lengths, strict=True
            ):
                truth = next(shown)
                impressions = found.pop(truth["list_id"])
                assert [int(row["adgroup_id"]) for row in impressions] == ads.id[item[:length]].tolist()
                assert len(set(item[:length].tolist())) == length
                assert [row["clk"] == "1" for row in impressions] == click[:length].tolist()
                assert truth["attraction"] == attraction[:length].tolist()
            for user in np.flatnonzero(block.users.has_profile):
                profile = profiles.pop(block.users.id[user])
                for name, values in block.users.profile.items():
                    text = profile["new_user_class_level " if name == "new_user_class_level" else name]
                    assert text == ("" if values[user] == -1 else str(values[user]))
        assert not found
        assert not profiles

    def test_truth_columns_and_metadata(self, small):
        schema = read_truth(small).schema
        assert schema.names == ["list_id", "attraction", "initial_position"]
        assert schema.field("attraction").type.value_type == pa.float32()
        assert schema.field("initial_position").type.value_type == pa.int64()
        curve = json.loads(schema.metadata[b"examination"])
        # .3 look at the first only, .2 at all, the other half go down the list, 6 places on average
        assert len(curve) == 14
        assert curve[0] == pytest.approx(1)
        assert curve[13] == pytest.approx(0.2 + 0.5 * math.exp(-13 / 6))

    def test_clicks_follow_the_rule(self, small):
        examination = json.loads(read_truth(small).schema.metadata[b"examination"])
        found, truth = windows(rows(small, "raw_sample.csv")), read_truth(small).to_pydict()
        clicks, chance, variance = Counter(), Counter(), Counter()
        for name, attraction in zip(truth["list_id"], truth["attraction"], strict=True):
            for place, (impression, value) in enumerate(zip(found[name], attraction, strict=True)):
                p = examination[place] * value
                # by place, and by attraction: the order of a list and the truth belong together
                for key in (("place", place), ("attraction", int(10 * value))):
                    clicks[key] += int(impression["clk"])
                    chance[key] += p
                    variance[key] += p * (1 - p)
        assert sum(clicks.values()) > 2000
        for key in chance:
            assert abs(clicks[key] - chance[key]) < 4.5 * math.sqrt(variance[key]) + 0.5, key

    def test_the_initial_order_is_better_than_the_display_order(self, small):
        truth = read_truth(small)
        examination = np.array(json.loads(truth.schema.metadata[b"examination"]))
        shown = initial = best = 0.0
        for row in truth.to_pylist():
            attraction, position = np.array(row["attraction"]), np.array(row["initial_position"])
            shown += (examination[: len(attraction)] * attraction).sum()
            initial += (examination[position] * attraction).sum()
            best += (examination[: len(attraction)] * -np.sort(-attraction)).sum()
        assert 0.3 < (initial - shown) / (best - shown) < 0.7

    def test_log_contains_what_the_protocols_drop(self, small):
        found = windows(rows(small, "raw_sample.csv"))
        of_user, clicks_of_user = Counter(), Counter()
        for name, impressions in found.items():
            user = name.split("-")[0]
            of_user[user] += len(impressions)
            clicks_of_user[user] += sum(int(row["clk"]) for row in impressions)
        assert sum(of_user[user] < 3 for user in of_user) >= 100  # a tenth of 1,000 users
        assert sum(clicks_of_user[user] == 0 for user in of_user) > 100
        assert sum(len(impressions) == 1 for impressions in found.values()) > 100
        kept = sum(
            len(impressions) >= 2 and any(row["clk"] == "1" for row in impressions) for impressions in found.values()
        )
        assert 0.4 * 3000 < kept < 0.6 * 3000


class TestRepeatability:
    def test_same_arguments_give_the_same_bytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ad_lists, "USERS_PER_BLOCK", 20)  # several blocks
        monkeypatch.setattr(ad_lists, "LISTS_AT_ONCE", 16)
        for name, seed in (("a", 7), ("b", 7), ("c", 8)):
            simulate_ad(tmp_path / name, 200, seed=seed)
        for name in (*HEADERS, TRUTH):
            first, second, third = ((tmp_path / folder / name).read_bytes() for folder in "abc")
            assert first == second
            assert first != third
        found = windows(rows(tmp_path / "a", "raw_sample.csv"))
        assert set(found) == set(read_truth(tmp_path / "a")["list_id"].to_pylist())
        assert len(found) == 200
        assert len({name.split("-")[0] for name in found}) == 67  # 200 / 3, rounded up
        assert len(rows(tmp_path / "a", "behavior_log.csv")) == 30 * 67

    def test_stopped_simulation_leaves_no_files(self, tmp_path, monkeypatch):
        def stop(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(ad_files, "draw_behaviours", stop)
        with pytest.raises(KeyboardInterrupt):
            simulate_ad(tmp_path, 50)
        assert list(tmp_path.iterdir()) == []


def lists_of(rng: np.random.Generator, n: int, items: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    of_item = {name: rng.normal(size=(n, items)) for name in ("quality", "match", "style", "price")}
    of_item["category"] = rng.integers(1, 4, (n, items))
    of_item["mask"] = np.arange(items) < rng.integers(1, items + 1, n)[:, None]
    return of_item, {name: rng.normal(size=n) for name in ("price_taste", "propensity")}


class TestAttraction:
    def test_attraction_equals_that_of_plain_python(self):
        world = AdWorld(
            bias=-1.0,
            quality_weight=0.7,
            match_weight=0.9,
            context_strength=0.5,
            theme_weight=2.0,
            price_weight=1.1,
            crowding_weight=0.6,
            price_spread=2.0,
        )
        of_item, of_user = lists_of(np.random.default_rng(0), 20, 7)
        of_item["mask"][0, 1:] = False  # a list of one item
        found = attraction_of(world, **of_item, **of_user)
        for row in range(20):
            length = int(of_item["mask"][row].sum())
            quality, match, style, price, category = (
                of_item[name][row, :length].tolist() for name in ("quality", "match", "style", "price", "category")
            )
            for i in range(length):
                others = [style[j] for j in range(length) if j != i]
                mean_style = sum(others) / len(others) if others else 0.0
                gap = (price[i] - sum(price) / length) / 2.0
                context = 2.0 * style[i] * mean_style - 1.1 * abs(gap - of_user["price_taste"][row])
                context -= 0.6 * math.log(category.count(category[i]))
                logit = -1 + of_user["propensity"][row] + 0.7 * quality[i] + 0.9 * match[i] + 0.5 * context
                assert found[row, i] == pytest.approx(1 / (1 + math.exp(-logit)))
            assert (found[row, length:] == 0).all()

    def test_attraction_depends_on_the_set_and_not_on_the_order(self):
        of_item, of_user = lists_of(np.random.default_rng(1), 30, 8)
        found = attraction_of(AdWorld(), **of_item, **of_user)
        # Slots are moved together with the mask: padding may stand anywhere.
        order = np.random.default_rng(2).permuted(np.tile(np.arange(8), (30, 1)), axis=1)
        moved = {name: np.take_along_axis(values, order, axis=1) for name, values in of_item.items()}
        np.testing.assert_allclose(
            attraction_of(AdWorld(), **moved, **of_user), np.take_along_axis(found, order, axis=1)
        )

    def test_another_ad_changes_other_attractions_unless_context_strength_is_0(self):
        of_item, of_user = lists_of(np.random.default_rng(3), 30, 8)
        of_item["mask"][:] = True
        other = {**of_item, "style": of_item["style"] + np.eye(8)[7]}
        changed = attraction_of(AdWorld(), **of_item, **of_user) - attraction_of(AdWorld(), **other, **of_user)
        assert (np.abs(changed[:, :7]) > 1e-9).all()
        alone = AdWorld(context_strength=0)
        np.testing.assert_array_equal(
            attraction_of(alone, **of_item, **of_user), attraction_of(alone, **other, **of_user)
        )


class TestWorld:
    def test_quality_has_parts_of_campaign_customer_and_ad(self):
        """Two ads of a campaign share two of three parts, two of a customer at least one; all have variance 1."""
        ads = ad_lists.draw_ads(AdWorld(n_ads=40_000, n_campaigns=10_000, n_customers=4_000), 0)
        assert ads.quality.var() == pytest.approx(1, abs=0.06)
        assert ads.style.var() == pytest.approx(1, abs=0.25)  # only 150 brands have a part in it
        assert shared(ads.quality, ads.campaign_id) == pytest.approx(2 / 3, abs=0.06)
        same_customer_only = shared(ads.quality, ads.customer_id)
        assert 1 / 3 - 0.06 < same_customer_only < 2 / 3

    def test_profile_levels_reflect_the_price_taste(self):
        rng, ids = np.random.default_rng(0), np.arange(20_000)
        users = ad_lists.draw_users(AdWorld(missing_level_rate=0), rng, ids)
        fine, coarse = users.profile["pvalue_level"], users.profile["shopping_level"]
        for level in (fine, coarse):
            assert np.bincount(level)[1:] / 20_000 == pytest.approx(1 / 3, abs=0.015)
        # noise .5 leaves a correlation of 1 / sqrt(1.25) = .89, noise 1 of .71; thirds keep .89 of it
        assert np.corrcoef(fine, users.price_taste)[0, 1] == pytest.approx(0.894 * 0.891, abs=0.02)
        assert np.corrcoef(coarse, users.price_taste)[0, 1] == pytest.approx(0.707 * 0.891, abs=0.02)

    def test_context_matters_beyond_each_ad_alone(self):
        """Sorting by the worth of each ad alone goes only part of the way from a random order to the best one."""
        world = AdWorld(shortest_list=14, single_rate=0, short_user_rate=0, personal_taste=1.0)
        ads = ad_lists.draw_ads(world, 0)
        block = next(ad_lists.draw_blocks(world, ads, 0, 2000))
        users, user, item = block.users, block.user, block.item

        category = ads.category[item]
        liking = np.full((len(users.id), world.n_categories), np.nan)
        np.put_along_axis(liking, users.visited, users.liking, axis=1)
        personal = (liking[user[:, None], category] + ad_lists.compute_brand_liking(ads, users, user, item)) / 2**0.5
        assert np.isfinite(personal).all()  # lists are of visited categories
        match = 0.6 * ads.affinity[users.segment[user][:, None], category] + 0.8 * personal
        attraction = block.attraction.astype(float)
        # The whole formula except for the propensity of a list, which shifts all its ads alike.
        known = attraction_of(
            world,
            quality=ads.quality[item],
            match=match,
            style=ads.style[item],
            price=np.log(ads.price[item]),
            category=category,
            price_taste=users.price_taste[user],
            propensity=np.zeros(len(user)),
            mask=block.mask,
        )
        offset = np.log(attraction / (1 - attraction)) - np.log(known / (1 - known))
        np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1], offset.shape), atol=1e-3)
        assert offset[:, 0].std() == pytest.approx(world.propensity_sd, rel=0.1)

        def expected_clicks(score):
            order = np.argsort(-score, axis=1)
            return (world.examination * np.take_along_axis(attraction, order, axis=1)).sum(axis=1).mean()

        chance = expected_clicks(np.random.default_rng(3).random(attraction.shape))
        alone = expected_clicks(world.quality_weight * ads.quality[item] + world.match_weight * match)
        assert 0.3 < (alone - chance) / (expected_clicks(attraction) - chance) < 0.75


def shared(values: np.ndarray, group: np.ndarray) -> float:
    """Mean product of two different entries of a group, over all pairs."""
    _, group = np.unique(group, return_inverse=True)
    sums, squares, count = np.bincount(group, values), np.bincount(group, values**2), np.bincount(group)
    return (sums**2 - squares).sum() / (count * (count - 1)).sum()


class TestBehaviours:
    @pytest.mark.slow
    @pytest.mark.parametrize("personal_taste", [0.0, 0.8])
    def test_behaviours_reflect_what_a_user_likes(self, tmp_path, personal_taste):
        """Ads of a category, or brand, that a user often looks at are more attractive, by as much as taste counts."""
        world = AdWorld(personal_taste=personal_taste, click_caused_rate=0, behaviours_per_user=60.0)
        folder = simulate_ad(tmp_path / "raw", 3000, world=world).parent
        ads = {row["adgroup_id"]: row for row in rows(folder, "ad_feature.csv")}
        seen: dict[str, Counter] = {"cate_id": Counter(), "brand": Counter()}
        for row in rows(folder, "behavior_log.csv"):
            seen["cate_id"][row["user"], row["cate"]] += 1
            seen["brand"][row["user"], row["brand"]] += 1
        logit, counts = [], defaultdict(list)
        found, truth = windows(rows(folder, "raw_sample.csv")), read_truth(folder).to_pydict()
        for name, attraction in zip(truth["list_id"], truth["attraction"], strict=True):
            for impression, value in zip(found[name], attraction, strict=True):
                ad = ads[impression["adgroup_id"]]
                if ad["brand"] != "NULL":
                    logit.append(math.log(value / (1 - value)))
                    for column, counter in seen.items():
                        counts[column].append(math.log1p(counter[impression["user"], ad[column]]))
        for column in seen:
            correlation = np.corrcoef(logit, counts[column])[0, 1]
            # of 20,000 impressions, which are not independent within a user
            assert correlation > 0.05 if personal_taste else abs(correlation) < 0.03, (column, correlation)

    @pytest.mark.slow
    def test_behaviours_lie_before_inside_and_after_the_lists(self, small):
        times = [int(row["time_stamp"]) for row in rows(small, "raw_sample.csv")]
        first, last = min(times), max(times)
        found = [int(row["time_stamp"]) for row in rows(small, "behavior_log.csv")]
        assert 22 * 86_400 - 3600 < max(found) - min(found) <= 22 * 86_400
        assert last - first <= 8 * 86_400
        assert sum(time < first for time in found) > 0.5 * len(found)
        lists = defaultdict(list)
        for name, impressions in windows(rows(small, "raw_sample.csv")).items():
            lists[name.split("-")[0]].append((int(impressions[0]["time_stamp"]), int(name.split("-")[1])))
        inside = after = 0
        for row in rows(small, "behavior_log.csv"):
            time = int(row["time_stamp"])
            inside += any(begin < time <= end for begin, end in lists[row["user"]])
            after += time > max(end for _, end in lists[row["user"]])
        assert inside > 50
        assert after > 3000

    def test_behaviours_caused_by_a_click_follow_within_a_minute(self, tmp_path):
        folder = simulate_ad(tmp_path / "raw", 200, world=AdWorld(click_caused_rate=1.0)).parent
        ads = {row["adgroup_id"]: (row["cate_id"], row["brand"]) for row in rows(folder, "ad_feature.csv")}
        clicks = defaultdict(list)
        for row in rows(folder, "raw_sample.csv"):
            if row["clk"] == "1":
                category, brand = ads[row["adgroup_id"]]
                clicks[row["user"], category, brand].append(int(row["time_stamp"]))
        for row in rows(folder, "behavior_log.csv"):
            before = clicks[row["user"], row["cate"], row["brand"]]
            assert row["btag"] == "pv"
            assert any(1 <= int(row["time_stamp"]) - time <= 60 for time in before)


class TestCommandLine:
    def test_command_writes_the_same_files_as_the_function(self, tmp_path, capsys):
        options = ["--lists", "40", "--seed", "3", "--world", "n_ads=3000", "--behaviours", "9"]
        assert main(["simulate", "ad", "--output-dir", str(tmp_path / "a"), *options]) == 0
        assert capsys.readouterr().out.startswith("40 lists, with and without a click, in ")
        simulate_ad(tmp_path / "b", 40, seed=3, world=AdWorld(n_ads=3000), behaviours=9)
        for name in (*HEADERS, TRUTH):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_unknown_world_parameter_is_refused(self, tmp_path, capsys):
        assert main(["simulate", "ad", "--output-dir", str(tmp_path), "--lists", "9", "--world", "n_adds=9"]) == 2
        assert "did you mean 'n_ads'" in capsys.readouterr().err


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"lists": 0}, "lists must be an integer of at least 1, got 0"),
            ({"lists": 2.5}, "lists must be an integer of at least 1, got 2.5"),
            ({"lists": 5, "seed": -1}, "seed must be an integer of at least 0, got -1"),
            ({"lists": 5, "behaviours": -1}, "behaviours must be an integer of at least 0, got -1"),
            (
                {"lists": 1_200_000, "world": AdWorld(lists_per_user=1.0)},
                "1,200,000 lists need 1,200,000 users, but there are only 1,141,729 ids: raise AdWorld.lists_per_user",
            ),
        ],
    )
    def test_invalid_arguments_are_refused(self, tmp_path, arguments, message):
        with pytest.raises(InputError, match=re.escape(message)):
            simulate_ad(tmp_path, **arguments)
        assert list(tmp_path.iterdir()) == []

    def test_non_empty_folder_is_refused(self, tmp_path):
        (tmp_path / "mine.txt").write_text("kept")
        with pytest.raises(InputError, match="is not an empty folder: choose another output folder"):
            simulate_ad(tmp_path, 5)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
        with pytest.raises(InputError, match="is not an empty folder"):
            simulate_ad(tmp_path / "mine.txt", 5)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"n_ads": 2000.0}, "n_ads must be an integer, got 2000.0"),
            ({"n_ads": 900_000}, "n_ads must lie in [1, 846811], got 900000"),
            ({"bias": "low"}, "bias must be a number, got 'low'"),
            ({"bias": math.nan}, "bias must be finite, got nan"),
            ({"categories_per_user": 61}, "categories_per_user must lie in [1, 60], got 61"),
            ({"categories_per_list": 21}, "categories_per_list must lie in [1, 12], got 21"),
            ({"shortest_list": 1}, "shortest_list must lie in [2, 100], got 1"),
            ({"longest_list": 101}, "longest_list must lie in [2, 100], got 101"),
            ({"n_categories": 200}, "pool_size 48 takes 12 ads of each of 4 categories"),
            ({"pool_size": 13}, "fewer than longest_list 14: raise pool_size"),
            ({"lists_per_user": 0.5}, "lists_per_user must lie in [1, 200], got 0.5"),
            ({"single_rate": 1.5}, "single_rate must lie in [0, 1], got 1.5"),
            ({"short_user_rate": 0.6}, "short_user_rate must lie in [0, 0.5], got 0.6"),
            ({"looks_at_first_only": 0.8, "looks_at_all": 0.3}, "must not exceed 1"),
            ({"patience": 0.0}, "patience must be above 0, got 0.0"),
            ({"liking_strength": -1.0}, "liking_strength must be at least 0, got -1.0"),
        ],
    )
    def test_invalid_world_parameters_are_refused(self, parameters, message):
        with pytest.raises(InputError, match=re.escape(message)):
            AdWorld(**parameters)
