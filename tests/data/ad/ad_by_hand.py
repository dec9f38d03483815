"""Ad lists made by plain Python from the rule, not from the library: slow but obvious. Also writes raw files."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

PROFILE = [
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
]
ADS = ["cate_id", "campaign_id", "customer", "brand", "price"]
START = 1_494_000_000


def write_raw(
    folder: Path,
    impressions: list[tuple],
    *,
    ads: list[tuple] = ((11, 1, 2, 3, 4, "5.5"),),
    profiles: list[tuple] = ((1, 1, 2, 1, 3, 1, 3, 0, 2),),
    behaviours: list[tuple] | None = None,
) -> Path:
    """Raw files. Impressions: user, seconds after START, ad, click. Behaviours: user, seconds, btag, cate, brand."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(user, START + at, ad, "430548_1007", 1 - click, click) for user, at, ad, click in impressions]
    write_csv(folder / "raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk", rows)
    write_csv(folder / "ad_feature.csv", "adgroup_id,cate_id,campaign_id,customer,brand,price", ads)
    write_csv(folder / "user_profile.csv", ",".join(["userid", *PROFILE]) + " ", profiles)
    if behaviours is not None:
        rows = [(user, START + at, *rest) for user, at, *rest in behaviours]
        write_csv(folder / "behavior_log.csv", "user,time_stamp,btag,cate,brand", rows)
    return folder


def write_csv(path: Path, header: str, rows: Any) -> None:
    path.write_text("".join(f"{line}\n" for line in [header, *(",".join(map(str, row)) for row in rows)]))


def random_raw(folder: Path, seed: int, *, history: bool = True) -> Path:
    """A few users: with one or two impressions, crowds of more than 30, gaps of exactly 300 and 301 seconds, equal
    times, users and ads that are unknown, rows in any order."""
    rng = random.Random(seed)
    impressions, behaviours = [], []
    for user in range(1, rng.randint(8, 16)):
        user *= 2
        clicks = rng.choice([0, 0.05, 0.05, 0.3])
        at, gaps = 0, rng.choice([[0, 0, 1, 7], [0, 0, 1, 50, 150, 299, 300, 301, 10_000]])
        for _ in range(rng.choice([1, 2, 3, 8, 40, 40, 90])):
            impressions.append((user, at, rng.randint(1, 25), int(rng.random() < clicks)))
            at += rng.choice(gaps)
        for _ in range(rng.choice([0, 1, 5, 30])):
            at = rng.choice([*(row[1] for row in impressions if row[0] == user), rng.randint(-5_000_000, 20_000)])
            brand = rng.choice(["NULL", "", rng.randint(1, 4)])
            behaviours.append((user, at, rng.choice(["pv", "cart", "fav", "buy"]), rng.randint(1, 5), brand))
    behaviours.append((999_999, 0, "pv", 1, 1))  # a user without impressions
    rng.shuffle(impressions)
    rng.shuffle(behaviours)
    ads = [(ad, ad % 5, ad % 7, ad % 3, rng.choice(["NULL", "", ad % 4]), f"{ad}.25") for ad in range(1, 21)]
    rng.shuffle(ads)
    profiles = [
        (user, *(rng.randint(0, 3) for _ in range(4)), rng.choice(["", "NULL", 1]), 3, 0, "") for user in (2, 6)
    ]
    return write_raw(folder, impressions, ads=ads, profiles=profiles, behaviours=behaviours if history else None)


# ------------------------------------------------------------------------------------------------------------ the rule


def windows_of(rows: list[dict]) -> list[list[dict]]:
    """The windows of one user's impressions, given in the order of the file; newest window first, its items oldest
    first."""
    oldest_first = sorted(rows, key=lambda row: row["time_stamp"])
    windows: list[list[dict]] = []
    for row in reversed(oldest_first):
        if windows and windows[-1][0]["time_stamp"] - row["time_stamp"] <= 300:
            windows[-1].append(row)
        else:
            windows.append([row])
    return [window[::-1] for window in windows]


def chosen_windows(rows: list[dict], protocol: str) -> list[list[dict]]:
    """The windows of one user that become lists."""
    windows = windows_of(rows)
    with_click = [window for window in windows if any(row["clk"] for row in window)]
    if protocol == "ours":
        return [window for window in with_click if len(window) >= 2]
    return with_click[:1] if len(rows) >= 3 else []


def expected_lists(
    raw: Path, *, protocol: str = "ours", max_list_length: int = 10, history_length: int = 50
) -> dict[str, dict]:
    """List id -> the row that preparing should give, except for its split."""
    ads = {row["adgroup_id"]: row for row in read_csv(raw / "ad_feature.csv")}
    profiles = {row["userid"]: row for row in read_csv(raw / "user_profile.csv")}
    behaviours = read_csv(raw / "behavior_log.csv") if (raw / "behavior_log.csv").exists() else None
    of_user: dict[int, list[dict]] = {}
    for row in read_csv(raw / "raw_sample.csv"):
        of_user.setdefault(row["user"], []).append(row)
    lists = {}
    for user, rows in of_user.items():
        for window in chosen_windows(rows, protocol):
            items = window[:30][:max_list_length]
            found = {"user": user, **{name: profiles.get(user, {}).get(name) for name in PROFILE}}
            for name in ("adgroup_id", "time_stamp", "pid"):
                found[name] = [row[name] for row in items]
            found["click"] = [row["clk"] for row in items]
            found["click_cut"] = [row["clk"] for row in window[len(items) :]]
            for name in ADS:
                found[name] = [ads.get(row["adgroup_id"], {}).get(name) for row in items]
            if behaviours is not None:
                first = window[0]["time_stamp"]
                before = [row for row in behaviours if row["user"] == user and row["time_stamp"] <= first]
                before = sorted(before, key=lambda row: -row["time_stamp"])[:history_length]
                for name in ("btag", "cate", "brand"):
                    found[f"history_{name}"] = [row[name] for row in before]
                minutes = [min((first - row["time_stamp"]) // 60, 30_000) for row in before]
                found["history_minutes_ago"] = minutes
            lists[f"{user}-{window[-1]['time_stamp']}"] = found
    return lists


def read_csv(path: Path) -> list[dict]:
    """Rows as dictionaries: numbers, or None where a value is missing."""
    with path.open() as file:
        rows = [{name.strip(): value for name, value in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        for name, value in row.items():
            if name not in ("pid", "btag"):
                row[name] = None if value in ("", "NULL") else float(value) if name == "price" else int(value)
    return rows
