"""Ad: raw files -> lists. Expected lists are written out here, or made by ``ad_by_hand``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ad_by_hand import START, expected_lists, random_raw, read_csv, windows_of, write_raw

from hf_rerank.data.ad import ad_columns, ad_schema, prepare_ad
from hf_rerank.data.ad.partition import _make_lookup
from hf_rerank.data.ad.tables import RAW_SAMPLE, read_blocks
from hf_rerank.data.prepared import read_prepared
from hf_rerank.data.prepared.buckets import BucketWriter, assign_buckets, read_bucket
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS, assign_splits
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema
from hf_rerank.validation import Lists

# Several blocks, buckets and runs even of a few lines.
SMALL = {"block_bytes": 1_000, "bucket_bytes": 4_000, "run_bytes": 2_000, "progress": False}


def prepared(raw: Path, output: Path, **options: object) -> tuple[dict[str, dict], PrepareReport]:
    """List id -> row of what preparing gives; every list is in the shards of its split."""
    report = prepare_ad(raw, output, **{"progress": False, **options})
    lists: dict[str, dict] = {}
    for split in SPLITS:
        rows = [row for path in sorted(output.glob(f"{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]
        assert report.lists[split] == len(rows)
        for row in rows:
            assert row["split"] == split == assign_splits([row["user"]])[0]
            assert row["list_id"] not in lists
            lists[row["list_id"]] = row
    return lists, report


def without_split(lists: dict[str, dict]) -> dict[str, dict]:
    return {key: {k: v for k, v in row.items() if k not in ("split", "list_id")} for key, row in lists.items()}


# ----------------------------------------------------------------------------------------------- lists written out


def test_lists_and_report_of_a_small_log(tmp_path: Path) -> None:
    """User 1: two windows, with 300 and 301 seconds; user 3 has no click; user 5 has one impression with a click."""
    raw = write_raw(
        tmp_path / "raw",
        [
            (1, 301, 12, 0),
            (1, 0, 11, 0),  # 301 seconds before the impression at 301, 300 before that at 300
            (3, 5, 11, 0),
            (1, 300, 13, 1),
            (1, -100, 11, 1),
            (3, 6, 12, 0),
            (5, 9, 11, 1),
            (1, 1, 99, 0),  # an unknown ad
            (3, 7, 12, 0),
        ],
        ads=[(13, 7, 8, 9, "NULL", "1000000"), (11, 1, 2, 3, 4, "5.5"), (12, 5, 6, 7, "", "0.25")],
        profiles=[(1, 10, 20, 1, 3, "", 3, 0, "NULL")],
        behaviours=[
            (1, -100, "pv", 50, 60),  # at the first impression of the older window: counts
            (1, -99, "cart", 51, "NULL"),  # after it: not
            (1, -161, "buy", 52, 62),
            (1, 2, "fav", 53, 63),  # later than the first impression of the newer window, which is at 1
            (7, 0, "pv", 1, 1),
            (1, -2_000_000, "fav", 54, 64),
        ],
    )
    lists, report = prepared(raw, tmp_path / "lists")
    assert lists == {
        f"1-{START + 301}": {
            "list_id": f"1-{START + 301}",
            "user": 1,
            "cms_segid": 10,
            "cms_group_id": 20,
            "final_gender_code": 1,
            "age_level": 3,
            "pvalue_level": None,
            "shopping_level": 3,
            "occupation": 0,
            "new_user_class_level": None,
            "adgroup_id": [99, 13, 12],
            "cate_id": [None, 7, 5],
            "campaign_id": [None, 8, 6],
            "customer": [None, 9, 7],
            "brand": [None, None, None],
            "price": [None, 1_000_000.0, 0.25],
            "time_stamp": [START + 1, START + 300, START + 301],
            "pid": ["430548_1007"] * 3,
            "click": [0, 1, 0],
            "click_cut": [],
            "history_btag": ["cart", "pv", "buy", "fav"],
            "history_cate": [51, 50, 52, 54],
            "history_brand": [None, 60, 62, 64],
            "history_minutes_ago": [1, 1, 2, 30_000],  # 100 s, 101 s, 162 s, 33,333 minutes
            "split": "test",  # of user 1, see test_splits_match_precomputed_md5_values of PRM Public
        },
        f"1-{START}": {
            "list_id": f"1-{START}",
            "user": 1,
            "cms_segid": 10,
            "cms_group_id": 20,
            "final_gender_code": 1,
            "age_level": 3,
            "pvalue_level": None,
            "shopping_level": 3,
            "occupation": 0,
            "new_user_class_level": None,
            "adgroup_id": [11, 11],
            "cate_id": [1, 1],
            "campaign_id": [2, 2],
            "customer": [3, 3],
            "brand": [4, 4],
            "price": [5.5, 5.5],
            "time_stamp": [START - 100, START],
            "pid": ["430548_1007"] * 2,
            "click": [1, 0],
            "click_cut": [],
            "history_btag": ["pv", "buy", "fav"],
            "history_cate": [50, 52, 54],
            "history_brand": [60, 62, 64],
            "history_minutes_ago": [0, 1, 30_000],  # 0 s, 61 s, 33,331 minutes
            "split": "test",
        },
    }
    assert report.read == 4
    assert report.dropped == {"fewer than 2 items": 1, "without a click": 1}
    assert report.items == {"ranker_train": 0, "train": 0, "validation": 0, "test": 5}
    assert report.clicks["test"] == 2
    assert report.nulls == {
        "pvalue_level": 2,
        "new_user_class_level": 2,
        **dict.fromkeys(("cate_id", "campaign_id", "customer", "price"), 1),
        "brand": 3,
        "history_brand": 1,
    }
    assert report.counts == {
        "behaviours": 6,
        "behaviours of users without a list": 1,
        "behaviours later than the user's newest list": 1,
        "impressions": 9,
        "users": 3,
        "users without a list": 2,
        "items of unknown ads": 1,
        "lists without a profile": 0,
        "lists without a behaviour before": 0,
    }
    rows = {name: stage["rows"] for name, stage in report.stages.items()}
    assert rows == {
        "ads and profiles": 4,
        "read and cut raw_sample.csv": 9,
        "find who has lists": 1,
        "read and cut behavior_log.csv": 6,
        "read and write lists": 2,
    }
    card = (tmp_path / "lists" / "README.md").read_text()
    assert "users without a list 2" in card
    assert "not be redistributed" in card
    assert not (tmp_path / "lists.partial").exists()


def test_public_protocol_on_a_small_log(tmp_path: Path) -> None:
    """User 1: the most recent window has no click; user 2 has two impressions; user 3 no click; user 4 a window of one
    item."""
    raw = write_raw(
        tmp_path / "raw",
        [
            *((1, 0, 11, 1), (1, 1_000, 11, 1), (1, 1_000, 12, 0), (1, 2_000, 11, 0)),
            *((2, 0, 11, 1), (2, 1, 11, 0)),
            *((3, 0, 11, 0), (3, 1, 11, 0), (3, 2, 11, 0)),
            *((4, 0, 11, 0), (4, 1, 11, 0), (4, 1_000, 11, 1)),
        ],
    )
    lists, report = prepared(raw, tmp_path / "lists", protocol="public")
    assert {key: (row["adgroup_id"], row["click"]) for key, row in lists.items()} == {
        f"1-{START + 1_000}": ([11, 12], [1, 0]),  # equal times: the order of the file
        f"4-{START + 1_000}": ([11], [1]),
    }
    assert report.read == 7
    assert report.dropped == {
        "of users with fewer than 3 impressions": 1,
        "of users without a click": 1,
        "not the user's most recent with a click": 3,
    }
    assert report.counts["users with fewer than 3 impressions"] == 1
    assert report.counts["users without a click"] == 1
    assert report.counts["users"] == 4
    # Without behavior_log.csv lists have no history, and the card says so.
    assert not any(name.startswith("history") for name in lists[f"4-{START + 1_000}"])
    assert "`behavior_log.csv` was missing" in (tmp_path / "lists" / "README.md").read_text()


def test_long_windows_keep_their_earliest_impressions(tmp_path: Path) -> None:
    """32 impressions of one second each: the last two are gone, whatever max_list_length is; clicks at 5 and 31."""
    shown = [(1, at, 100 + at, int(at in (5, 31))) for at in range(32)]
    raw = write_raw(tmp_path / "raw", [*shown, (2, 0, 1, 0), (2, 1, 2, 0), (2, 2, 3, 0), (2, 3, 4, 1)])
    for length, kept, lost in ((30, 30, 0), (4, 4, 1), (3, 3, 2)):
        lists, report = prepared(raw, tmp_path / f"lists{length}", max_list_length=length)
        assert lists[f"1-{START + 31}"]["adgroup_id"] == [100 + at for at in range(kept)]
        assert report.lost_clicks == lost
        assert report.cut_lists == (1 if length >= 4 else 2)
        assert report.without_click == lost


# ------------------------------------------------------------------------------------------ against plain Python


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["ours", "public"])
@pytest.mark.parametrize("seed", range(10))
def test_random_logs_give_the_lists_of_plain_python(tmp_path: Path, seed: int, protocol: str) -> None:
    raw = random_raw(tmp_path / "raw", seed)
    options = {"protocol": protocol, "max_list_length": (10, 30, 3)[seed % 3], "history_length": (50, 4)[seed % 2]}
    lists, report = prepared(raw, tmp_path / "lists", **options, **(SMALL if seed % 4 else {}))
    assert without_split(lists) == expected_lists(raw, **options)
    of_user: dict[int, list[dict]] = {}
    for row in read_csv(raw / "raw_sample.csv"):
        of_user.setdefault(row["user"], []).append(row)
    assert report.read == sum(len(windows_of(rows)) for rows in of_user.values())
    assert report.read == sum(report.lists.values()) + sum(report.dropped.values())
    assert report.counts["users"] == len(of_user)
    assert report.counts["impressions"] == sum(map(len, of_user.values()))
    assert report.counts["behaviours"] == len(read_csv(raw / "behavior_log.csv"))


def test_random_logs_cover_all_special_cases(tmp_path: Path) -> None:
    """Otherwise the test above would prove little: long windows, lost clicks, equal times, missing values."""
    seen: Counter[str] = Counter()
    for seed in range(10):
        raw = random_raw(tmp_path / f"{seed}", seed)
        of_user: dict[int, list[dict]] = {}
        for row in read_csv(raw / "raw_sample.csv"):
            of_user.setdefault(row["user"], []).append(row)
        for rows in of_user.values():
            seen["few impressions"] += len(rows) < 3
            seen["no click"] += not any(row["clk"] for row in rows)
            for window in windows_of(rows):
                times = [row["time_stamp"] for row in window]
                seen["more than 30"] += len(window) > 30
                seen["spans 300"] += times[-1] - times[0] == 300
                seen["equal times"] += len(set(times)) < len(times)
                seen["only clicks after the 10th"] += any(row["clk"] for row in window) and not any(
                    row["clk"] for row in window[:10]
                )
        for row in expected_lists(raw).values():
            seen["no profile"] += row["cms_segid"] is None
            seen["unknown ad"] += None in row["cate_id"]
            seen["empty history"] += not row["history_cate"]
            seen["more than 4 before"] += len(row["history_cate"]) > 4
            seen["capped minutes"] += 30_000 in row["history_minutes_ago"]
            seen["at the first impression"] += 0 in row["history_minutes_ago"]
    assert min(seen.values()) >= 3, seen
    assert len(seen) == 12


@pytest.mark.slow
def test_block_bucket_and_run_sizes_do_not_change_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_raw(tmp_path / "raw", 3)
    whole, _ = prepared(raw, tmp_path / "whole")
    monkeypatch.setattr("hf_rerank.data.ad.partition.TABLE_IDS", 3)
    for number, sizes in enumerate([SMALL, {"bucket_bytes": 500}, {"run_bytes": 1, "block_bytes": 400}]):
        assert prepared(raw, tmp_path / f"{number}", **sizes)[0] == whole


@pytest.mark.parametrize("protocol", ["ours", "public"])
def test_log_without_lists_gives_empty_splits(tmp_path: Path, protocol: str) -> None:
    raw = write_raw(tmp_path / "raw", [(1, 0, 11, 0), (1, 1, 11, 0), (2, 0, 11, 0)], behaviours=[(1, 0, "pv", 1, 1)])
    for number, sizes in enumerate(({}, {"bucket_bytes": 100})):
        lists, report = prepared(raw, tmp_path / f"lists{number}", protocol=protocol, **sizes)
        assert not lists
        assert (report.read, sum(report.dropped.values())) == (2, 2)
        assert report.counts["behaviours of users without a list"] == 1
        assert read_prepared(tmp_path / f"lists{number}").lists == dict.fromkeys(SPLITS, 0)


@pytest.mark.parametrize("table_ids", [2**26, 0])
def test_lookup_gives_the_time_of_a_user_and_0_for_unknown_users(
    table_ids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_rerank.data.ad.partition.TABLE_IDS", table_ids)
    users, times = np.array([2, 5, 6], dtype=np.uint32), np.array([20, 50, 60], dtype=np.uint32)
    wanted = np.array([6, 0, 7, 5, 2, 3, 2**32 - 1, 2], dtype=np.uint32)
    assert _make_lookup(users, times)(wanted).tolist() == [60, 0, 0, 50, 20, 0, 0, 20]
    assert _make_lookup(users[:0], times[:0])(wanted).tolist() == [0] * 8


def test_buckets_keep_the_order_of_rows(tmp_path: Path) -> None:
    raw = write_raw(tmp_path, [(user, at, at, 0) for at in range(300) for user in (2, 4, 6, 2**32 - 1)])
    writer = BucketWriter(tmp_path, "rows", buckets=3, key="user", run_bytes=2_000)
    for rows in read_blocks(raw / "raw_sample.csv", RAW_SAMPLE, block_bytes=512, on_reject=print):
        writer.add(rows)
    runs = writer.close()
    assert len(runs) > 3
    buckets = [read_bucket(runs, number) for number in range(3)]
    assert sum(map(len, buckets)) == 1_200
    for number, bucket in enumerate(buckets):
        assert (assign_buckets(bucket["user"].to_numpy(), 3) == number).all()
        for user in bucket["user"].unique():
            assert bucket.filter(bucket["user"] == user)["adgroup_id"].to_list() == list(range(300))


def test_strided_ids_are_spread_over_all_buckets() -> None:
    for stride in (1, 2, 64, 1_000, 4_096):
        sizes = np.bincount(
            assign_buckets(np.arange(1, 50_001, dtype=np.uint32) * np.uint32(stride), 64), minlength=64
        )
        assert sizes.min() > 400
        assert sizes.max() < 1_200


# ------------------------------------------------------------------------------------------------ schema and folder


def test_prepared_folder_has_the_columns_and_schema_of_ad(tmp_path: Path) -> None:
    prepare_ad(random_raw(tmp_path / "raw", 5), tmp_path / "lists", progress=False, history_length=7)
    folder = read_prepared(tmp_path / "lists")
    assert folder.columns.equals(ad_columns(history=True))
    assert folder.schema == ad_schema(10, 7, history=True) == ListSchema.load(tmp_path / "lists" / "schema.json")
    assert (folder.schema.max_list_length, folder.schema.max_history_length, folder.schema.group) == (10, 7, "user")
    table = pq.read_table(folder.files["train"][0])
    Lists.from_arrow(table, folder.schema, with_labels=True)
    features = {feature.name for part in ("items", "user", "history") for feature in getattr(folder.schema, part)}
    assert features.isdisjoint({"user", "time_stamp", "pid", "click"})
    assert len(features) == 5 + 1 + 8 + 4


def test_history_length_0_ignores_the_behavior_log(tmp_path: Path) -> None:
    raw = random_raw(tmp_path / "raw", 5)
    (raw / "behavior_log.csv").write_text("not looked at")
    lists, report = prepared(raw, tmp_path / "lists", history_length=0)
    assert lists
    assert "behaviours" not in report.counts
    assert read_prepared(tmp_path / "lists").schema.history == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "publik"}, "unknown protocol 'publik': expected ours or public; did you mean 'public'"),
        ({"max_list_length": 31}, "max_list_length is 31 .* expected 1 to 30 items"),
        ({"history_length": -1}, "history_length -1: expected .* at least 0 behaviours"),
        ({"bucket_bytes": 0}, "bucket_bytes .*: expected at least 1"),
    ],
)
def test_invalid_options_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare_ad(random_raw(tmp_path / "raw", 1), tmp_path / "lists", **options)
    assert not list(tmp_path.glob("*lists*"))
