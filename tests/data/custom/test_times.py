"""Text as times: every form against the standard library; ambiguous text is refused."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import polars as pl
import pytest

from hf_rerank.data.times import parse_times

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return int((datetime(year, month, day, hour, minute, second, tzinfo=UTC) - EPOCH) / timedelta(seconds=1)) * 10**9


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["2024-05-31", None, "2024-06-01"], [nanoseconds(2024, 5, 31), None, nanoseconds(2024, 6, 1)]),
        (["2024/5/3 7:05"], [nanoseconds(2024, 5, 3, 7, 5)]),
        (["2024-05-31T18:30:00.5"], [nanoseconds(2024, 5, 31, 18, 30) + 500_000_000]),
        (["2024-05-31 18:30:00.123456789"], [nanoseconds(2024, 5, 31, 18, 30) + 123_456_789]),
        (["2024-05-31 18:30:00 UTC"], [nanoseconds(2024, 5, 31, 18, 30)]),
        (["2024-05-31T18:30:00Z", "2024-05-31T18:30:00+02:00"], [nanoseconds(2024, 5, 31, h, 30) for h in (18, 16)]),
        (["2024-05-31T18:30:00-0530"], [nanoseconds(2024, 6, 1)]),
        (["31/05/2024", "01/06/2024"], [nanoseconds(2024, 5, 31), nanoseconds(2024, 6, 1)]),
        (["05/31/2024", "06/01/2024"], [nanoseconds(2024, 5, 31), nanoseconds(2024, 6, 1)]),
        (["11/15/2019 9:55:12 AM", "11/15/2019 9:55:12 PM"], [nanoseconds(2019, 11, 15, h, 55, 12) for h in (9, 21)]),
        (["13.11.2019 12:05 am", "13.11.2019 12:05 p.m."], [nanoseconds(2019, 11, 13, h, 5) for h in (0, 12)]),
        (["1969-12-31 23:59:59"], [-(10**9)]),
    ],
)
def test_every_text_form_of_a_time_is_parsed(texts: list[str | None], expected: list[int | None]) -> None:
    found = parse_times(pl.Series("t", texts)).nanoseconds
    assert found is not None
    assert found.to_list() == expected


@pytest.mark.parametrize(
    ("texts", "example", "why"),
    [
        (["05/01/2024", "06/07/2024"], "05/01/2024", "whether the day or the month comes first"),
        (["31/05/2024", "05/31/2024"], "31/05/2024", "whether the day or the month comes first"),
        (["2024-05-31", "soon"], "soon", "it is not a time"),
        (["2024-02-30"], "2024-02-30", "no such time"),
        (["2024-05-31 13:00 PM"], "2024-05-31 13:00 PM", "no such time"),
        (["2024-05-31", "31/05/2024"], "31/05/2024", "others begin with the year"),
        (["2024-05-31T10:00Z", "2024-05-31T10:00"], "2024-05-31T10:00", "some have a time zone"),
        (["3024-05-31"], "3024-05-31", "no such time"),
    ],
)
def test_ambiguous_or_impossible_times_are_refused(texts: list[str], example: str, why: str) -> None:
    parsed = parse_times(pl.Series("t", texts))
    assert parsed.nanoseconds is None
    assert parsed.example == example
    assert why in parsed.why
