"""``schema infer`` on layouts of public data sets: right at the first guess, or marked CHECK.

The files are synthetic: their columns, types and separators are those of the documentation of each data set.
Per layout: the roles; the features and their kinds; the columns that must not be features; and those whose guess
may be wrong, which must be marked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank.data.custom.inference import infer_schema
from hf_rerank.data.custom.inferred_schema import CHECK
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.custom.prepare import prepare_own
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector

DRAW = np.random.default_rng(0)


def csv(path: Path, columns: dict[str, list[Any]], *, separator: str = ",", header: bool = True) -> Path:
    lines = [separator.join(columns)] if header else []
    lines += [separator.join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def repeated(values: list[Any], length: int) -> list[Any]:
    return [value for value in values for _ in range(length)]


def clicks(lists: int, length: int, share: float = 1.0) -> np.ndarray:
    made = np.zeros((lists, length), dtype=int)
    made[np.arange(lists), DRAW.integers(length, size=lists)] = DRAW.random(lists) < share
    return made.ravel()


def items_of(lists: int, length: int, catalogue: int) -> np.ndarray:
    """Ids that are unique within a list and recur in others."""
    return np.concatenate([DRAW.choice(catalogue, length, replace=False) for _ in range(lists)])


def hotel_searches(folder: Path) -> Path:
    """A competition of hotel searches: train.csv with one row per hotel, positions with gaps, NULL for missing."""
    n, length = 300, 8
    clicked = clicks(n, length)
    booked = clicked * (DRAW.random(n * length) < 0.6)
    gaps = np.concatenate([np.sort(DRAW.choice(np.arange(1, 40), length, replace=False)) for _ in range(n)])
    return csv(
        folder / "train.csv",
        {
            "srch_id": repeated(list(range(1, n + 1)), length),
            "date_time": repeated([f"2013-04-{1 + k % 28:02d} 08:32:{k % 60:02d}" for k in range(n)], length),
            "site_id": repeated((DRAW.integers(1, 35, n)).tolist(), length),
            "visitor_location_country_id": repeated(DRAW.integers(1, 220, n).tolist(), length),
            "visitor_hist_starrating": repeated([None if k % 20 else 3.5 for k in range(n)], length),
            "prop_country_id": repeated(DRAW.integers(1, 220, n).tolist(), length),
            "prop_id": (items_of(n, length, 900) + 1).tolist(),
            "prop_starrating": DRAW.integers(0, 6, n * length).tolist(),
            "prop_review_score": (DRAW.integers(0, 11, n * length) / 2).tolist(),
            "prop_brand_bool": DRAW.integers(0, 2, n * length).tolist(),
            "prop_location_score1": DRAW.random(n * length).round(2).tolist(),
            "prop_location_score2": ["NULL" if v < 0.2 else round(float(v), 4) for v in DRAW.random(n * length)],
            "position": gaps.tolist(),
            "price_usd": (50 + 400 * DRAW.random(n * length)).round(2).tolist(),
            "promotion_flag": DRAW.integers(0, 2, n * length).tolist(),
            "srch_destination_id": repeated(DRAW.integers(1, 20_000, n).tolist(), length),
            "srch_length_of_stay": repeated(DRAW.integers(1, 9, n).tolist(), length),
            "random_bool": repeated(DRAW.integers(0, 2, n).tolist(), length),
            "comp1_rate": [
                "NULL" if v else int(v2)
                for v, v2 in zip(DRAW.random(n * length) < 0.9, DRAW.integers(-1, 2, n * length), strict=True)
            ],
            "click_bool": clicked.tolist(),
            "gross_bookings_usd": [
                round(float(p), 2) if b else "NULL"
                for b, p in zip(booked, 100 + 300 * DRAW.random(n * length), strict=True)
            ],
            "booking_bool": booked.tolist(),
        },
    )


def hotel_sessions(folder: Path) -> Path:
    """Sessions of a hotel search, Parquet, one row per list: num_clicks and is_trans per item are outcomes."""
    n, length = 200, 6
    clicked = clicks(n, length).reshape(n, length)
    table = pa.table(
        {
            "session_id": [f"s{k:04d}" for k in range(n)],
            "user_id": DRAW.integers(10**18, 9 * 10**18, n).tolist(),
            "hour": DRAW.integers(0, 24, n).tolist(),
            "day": DRAW.integers(0, 7, n).tolist(),
            "page": DRAW.integers(1, 4, n).tolist(),
            "country": DRAW.choice(["DE", "NA", "FR"], n).tolist(),
            "hotel": items_of(n, length, 400).reshape(n, length).tolist(),
            "strategy": DRAW.integers(0, 3, (n, length)).tolist(),
            "discount_code": DRAW.integers(0, 200, (n, length)).tolist(),
            "package": DRAW.integers(0, 5, (n, length)).tolist(),
            "price": (40 + 100 * DRAW.random((n, length))).tolist(),
            "num_clicks": (clicked * DRAW.integers(1, 4, (n, length))).tolist(),
            "is_trans": (clicked * DRAW.integers(0, 2, (n, length))).tolist(),
            "click": clicked.tolist(),
        }
    )
    pq.write_table(table, folder / "sessions.parquet")
    return folder / "sessions.parquet"


def news_impressions(folder: Path) -> Path:
    """behaviors.tsv of a news data set: no header, impressions such as N1-1 N2-0, times as 11/15/2019 9:55:12 AM."""
    n, news = 150, [f"N{k}" for k in range(300)]
    rows = []
    for k in range(n):
        shown = DRAW.choice(news, 3 + k % 4, replace=False)
        labels = clicks(1, len(shown))
        read = " ".join(DRAW.choice(news, k % 4, replace=False))
        impressions = " ".join(f"{item}-{label}" for item, label in zip(shown, labels, strict=True))
        rows.append(
            f"{k + 1}\tU{k // 2}\t11/{13 + k % 10}/2019 {1 + k % 12}:05:58 {'AM' if k % 2 else 'PM'}\t"
            f"{read}\t{impressions}"
        )
    (folder / "behaviors.tsv").write_text("\n".join(rows) + "\n")
    return folder / "behaviors.tsv"


def criteo_display(folder: Path) -> Path:
    """A display advertising log: label, 13 integers, 26 hexadecimal categories; no lists in it."""
    n = 300
    columns: dict[str, list[Any]] = {"label": clicks(n, 1, 0.3).tolist()}
    columns |= {f"I{k}": DRAW.integers(0, 500, n).tolist() for k in range(1, 4)}
    columns |= {f"C{k}": [f"{v:08x}" for v in DRAW.integers(0, 2**31, n)] for k in range(1, 4)}
    return csv(folder / "criteo.csv", columns)


def criteo_attribution(folder: Path) -> Path:
    """Impressions of users, with conversions and clicks; -1 where there is none."""
    n = 1_200
    clicked = (DRAW.random(n) < 0.3).astype(int)
    converted = clicked * (DRAW.random(n) < 0.5)
    return csv(
        folder / "attribution.tsv",
        {
            "timestamp": DRAW.integers(0, 2_671_199, n).tolist(),
            "uid": repeated(DRAW.integers(1, 10**9, n // 4).tolist(), 4),
            "campaign": DRAW.integers(10**6, 10**6 + 300, n).tolist(),
            "conversion": converted.tolist(),
            "conversion_timestamp": np.where(converted, DRAW.integers(0, 10**6, n), -1).tolist(),
            "conversion_id": np.where(converted, DRAW.integers(0, 10**6, n), -1).tolist(),
            "attribution": (converted * DRAW.integers(0, 2, n)).tolist(),
            "click": clicked.tolist(),
            "click_pos": np.where(clicked, DRAW.integers(0, 5, n), -1).tolist(),
            "click_nb": np.where(clicked, DRAW.integers(1, 6, n), -1).tolist(),
            "cost": DRAW.random(n).round(6).tolist(),
            "cpo": np.where(converted, DRAW.random(n).round(4), 0).tolist(),
            "cat1": DRAW.integers(10**6, 3 * 10**7, n).tolist(),
        },
        separator="\t",
    )


def otto(folder: Path) -> Path:
    """Sessions as JSON Lines, with events as objects."""
    rows = [
        {"session": k, "events": [{"aid": int(a), "ts": 1_659_304_800_025 + k, "type": "clicks"} for a in (1, 2, 3)]}
        for k in range(40)
    ]
    (folder / "otto.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "otto.jsonl"


def yelp(folder: Path) -> Path:
    """Reviews as JSON Lines, one per row."""
    rows = [
        {
            "review_id": f"{k:022d}",
            "user_id": f"u{k // 3}",
            "business_id": f"b{int(DRAW.integers(40))}",
            "stars": float(DRAW.integers(1, 6)),
            "useful": int(DRAW.integers(0, 9)),
            "text": "a review that goes on for a while and says what was eaten, and by whom, and when; " * 2,
            "date": f"2017-01-{1 + k % 28:02d} 20:57:30",
        }
        for k in range(300)
    ]
    (folder / "review.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "review.jsonl"


def letor(folder: Path) -> Path:
    lines = []
    for query in range(40):
        for doc in range(5):
            values = " ".join(f"{k}:{v:.6f}" for k, v in enumerate(DRAW.random(6), start=1))
            lines.append(
                f"{DRAW.integers(3)} qid:{10 + query} {values} #docid = GX{query:03d}-{doc} inc = 1 prob = 0.2"
            )
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    return folder / "train.txt"


def mslr(folder: Path) -> Path:
    lines = [
        f"{DRAW.integers(5)} qid:{1 + row // 8} " + " ".join(f"{k}:{DRAW.integers(9)}" for k in range(1, 137))
        for row in range(160)
    ]
    (folder / "train.txt").write_text("\n".join(lines) + " \n")
    return folder / "train.txt"


def kuairand(folder: Path) -> Path:
    """The log of a short-video app, with many kinds of feedback."""
    n, length = 120, 10
    clicked = (DRAW.random(n * length) < 0.4).astype(int)
    return csv(
        folder / "log_standard.csv",
        {
            "user_id": repeated(list(range(n)), length),
            "video_id": items_of(n, length, 700).tolist(),
            "date": (20220408 + DRAW.integers(0, 20, n * length)).tolist(),
            "hourmin": (100 * DRAW.integers(0, 24, n * length)).tolist(),
            "time_ms": (1_649_400_000_000 + DRAW.integers(0, 10**9, n * length)).tolist(),
            "is_click": clicked.tolist(),
            "is_like": (clicked * (DRAW.random(n * length) < 0.1)).tolist(),
            "is_follow": (clicked * (DRAW.random(n * length) < 0.1)).tolist(),
            "is_hate": (clicked * (DRAW.random(n * length) < 0.1)).tolist(),
            "long_view": (clicked * (DRAW.random(n * length) < 0.5)).tolist(),
            "play_time_ms": (clicked * DRAW.integers(1, 90_000, n * length)).tolist(),
            "duration_ms": DRAW.integers(5_000, 200_000, n * length).tolist(),
            "profile_stay_time": (clicked * DRAW.integers(0, 2, n * length) * 900).tolist(),
            "comment_stay_time": (clicked * DRAW.integers(0, 2, n * length) * 800).tolist(),
            "is_rand": DRAW.integers(0, 2, n * length).tolist(),
            "tab": DRAW.integers(0, 6, n * length).tolist(),
        },
    )


def clara2(folder: Path) -> Path:
    """Lists of a web search log, as ``clara2.py`` writes them: two initial orders, grades that are held back."""
    n, length = 200, 6
    draws = {
        name: DRAW.random((n, length)).astype(np.float32).tolist()
        for name in ("raw_ctr", "debiased_ctr", "log_clicks")
    }
    table = pa.table(
        {
            "list_id": [f"p{k}" for k in range(n)],
            "query": DRAW.integers(0, 60, n).tolist(),
            "session": DRAW.integers(0, 10**6, n).tolist(),
            "time": DRAW.integers(0, 10**6, n).tolist(),
            "hour": DRAW.integers(0, 24, n).tolist(),
            "history_pages": pa.array(DRAW.random(n).astype(np.float32)),
            **draws,
            "doc": items_of(n, length, 500).reshape(n, length).tolist(),
            "click": clicks(n, length).reshape(n, length).tolist(),
            "grade": DRAW.integers(0, 6, (n, length)).tolist(),
            "position_display": [DRAW.permutation(length).tolist() for _ in range(n)],
            "position_lambdamart": [DRAW.permutation(length).tolist() for _ in range(n)],
        }
    )
    pq.write_table(table, folder / "train.parquet")
    return folder / "train.parquet"


@dataclass
class Layout:
    """What must be guessed.

    Attributes:
        make: Writes the files.
        roles: Field of the schema -> column.
        kinds: Feature -> its kind.
        out: Columns that must not be features.
        check: Columns and fields whose guess must be marked.
        options: Options of ``infer_schema`` and of the readers.
        error: The message, where no guess is possible without the user.
    """

    make: Callable[[Path], Path]
    roles: dict[str, str | None] = field(default_factory=dict)
    kinds: dict[str, Any] = field(default_factory=dict)
    out: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


NEWS = ReadOptions(
    column_names=("impression_id", "user_id", "time", "history", "impressions"),
    list_separator=" ",
    label_separator="-",
)
LAYOUTS = {
    "hotel searches": Layout(
        hotel_searches,
        {"label": "click_bool", "list_id": "srch_id", "position": None, "group": None},
        {
            "site_id": Categorical,
            "visitor_location_country_id": Categorical,
            "visitor_hist_starrating": Dense,
            "prop_id": Categorical,
            "prop_starrating": Categorical,
            "prop_review_score": Dense,
            "prop_brand_bool": Categorical,
            "prop_location_score2": Dense,
            "price_usd": Dense,
            "srch_destination_id": Categorical,
            "comp1_rate": Dense,
        },
        ("date_time", "position", "gross_bookings_usd", "booking_bool"),
        ("position", "gross_bookings_usd", "booking_bool", "group", "prop_starrating"),
    ),
    "hotel sessions": Layout(
        hotel_sessions,
        {"label": "click", "list_id": "session_id", "group": "user_id"},
        {
            "hour": Categorical,
            "day": Categorical,
            "page": Categorical,
            "country": Categorical,
            "hotel": Categorical,
            "strategy": Categorical,
            "discount_code": Categorical,
            "package": Categorical,
            "price": Dense,
        },
        ("num_clicks", "is_trans"),
        ("num_clicks", "is_trans", "position", "hotel"),
    ),
    "news impressions": Layout(
        news_impressions,
        {"label": "click", "list_id": "impression_id", "group": "user_id"},
        {"impressions": Categorical, "history": Categorical},
        ("time",),
        ("position", "history"),
        {"options": NEWS},
    ),
    "Criteo display": Layout(criteo_display, error=r"no column looks like the id of the list.*--list-id"),
    "Criteo attribution": Layout(
        criteo_attribution,
        {"label": "click", "list_id": "uid"},
        {"campaign": Categorical, "cost": Dense, "cat1": Categorical},
        ("conversion", "conversion_timestamp", "conversion_id", "attribution", "click_pos", "click_nb", "cpo"),
        ("conversion", "conversion_id", "click_pos", "click_nb", "cpo"),
        {"list_id": "uid"},
    ),
    "OTTO": Layout(otto, error=r"column 'events' holds objects.*one value per item"),
    "Yelp": Layout(yelp, error=r"no column looks like the id of the list.*--list-id"),
    "Yelp by user": Layout(
        yelp,
        {"label": "stars", "list_id": "user_id"},
        {"business_id": Categorical, "useful": Categorical},
        ("review_id", "text", "date"),
        ("text", "label", "useful", "position"),
        {"list_id": "user_id"},
    ),
    "LETOR": Layout(
        letor,
        {"label": "label", "list_id": "qid", "id": "docid"},
        {f"feature_{k}": Dense for k in range(1, 7)},
        ("docid",),
        ("label", "position", "group"),
    ),
    "MSLR": Layout(
        mslr,
        {"label": "label", "list_id": "qid"},
        {f"feature_{k}": Dense for k in range(1, 137)},
        (),
        ("label", "position", "group"),
    ),
    "KuaiRand": Layout(
        kuairand,
        {"label": "is_click", "list_id": "user_id"},
        {"video_id": Categorical, "duration_ms": Dense, "tab": Categorical, "hourmin": Categorical},
        (
            *("date", "time_ms", "is_like", "is_follow", "is_hate", "long_view", "play_time_ms", "profile_stay_time"),
            "comment_stay_time",
        ),
        ("is_like", "is_follow", "is_hate", "long_view", "play_time_ms", "hourmin", "position"),
        {"list_id": "user_id"},
    ),
    "CLARA 2": Layout(
        clara2,
        {"label": "click", "list_id": "list_id", "position": "position_display"},
        {"doc": Categorical, "raw_ctr": Dense, "log_clicks": Dense, "hour": Categorical, "history_pages": Dense},
        ("grade", "position_lambdamart"),
        ("position", "grade", "doc"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_public_layouts(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    source = layout.make(tmp_path)
    if layout.error is not None:
        with pytest.raises(InputError, match=layout.error):
            infer_schema(source, **layout.options)
        return
    inferred = infer_schema(source, **layout.options)
    schema = inferred.schema
    assert {role: getattr(schema, role) for role in layout.roles} == layout.roles
    features = {f.name: f for part in (schema.items, schema.user, schema.history) for f in part}
    wrong = {
        n: type(features.get(n)).__name__ for n, kind in layout.kinds.items() if not isinstance(features.get(n), kind)
    }
    assert wrong == {}
    assert [column for column in layout.out if column in features] == []
    said = {**inferred.left_out, **inferred.comments, **inferred.field_comments}
    assert [column for column in layout.check if CHECK not in said[column]] == []
    # The draft, uncorrected, can be read back and prepares lists.
    (tmp_path / "draft").write_text(inferred.to_text())
    assert ListSchema.load(tmp_path / "draft") == schema
    report = prepare_own(
        source, tmp_path / "lists", schema=schema, options=layout.options.get("options"), progress=False
    )
    assert report.read == sum(report.lists.values()) > 0
    assert not any(isinstance(f, Vector) for f in features.values())
