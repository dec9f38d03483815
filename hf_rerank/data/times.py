"""Parses a column of times as text: ISO 8601, day or month first, 12-hour clocks, fractions of seconds, time zones."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

# Year first, or year last; then the time of day, and the zone.
_TIME = (
    r"^(?:(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})|(?P<a>\d{1,2})[-/.](?P<b>\d{1,2})[-/.](?P<last>\d{4}))"
    r"(?:[T ] *(?P<h>\d{1,2}):(?P<min>\d{2})(?::(?P<s>\d{2})(?:[.,](?P<f>\d{1,9}))?)?(?: *(?P<half>[AaPp])\.?[Mm]\.?)?"
    r"(?: *(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2}))?)?$"
)
EXPECTED = "times as numbers, or as text such as 2024-05-31T18:30:00 or 31/05/2024 6:30 PM, all in one form"
FIRST_YEAR, LAST_YEAR = 1678, 2261


@dataclass(frozen=True)
class ParsedTimes:
    """The result of parsing a column of text.

    Attributes:
        nanoseconds: int64 since 1970, null where the text is; None if the text is ambiguous.
        zoned: Whether all have a time zone, and are compared as instants.
        example: A string that is not a time, or is ambiguous; else None.
        why: The reason.
    """

    nanoseconds: pl.Series | None
    zoned: bool = False
    example: str | None = None
    why: str = ""


def parse_times(text: pl.Series) -> ParsedTimes:
    """Parses all strings of a column as times, or gives the reason why this is not possible.

    05/01/2024 may be 5 January or 1 May; this is decided if some other date of the column has a number above 12.
    """
    there = text.drop_nulls()
    if not len(there):
        return ParsedTimes(None, why="it is empty")
    parts = text.str.strip_chars().str.extract_groups(_TIME).struct.unnest()
    parts.columns = ["y", "m", "d", "a", "b", "last", "h", "min", "s", "f", "half", "zone"]
    none = text.is_not_null() & parts["y"].is_null() & parts["last"].is_null()
    if none.any():
        return ParsedTimes(None, example=text[int(none.arg_max() or 0)], why="it is not a time")
    year_last = parts["last"].is_not_null()
    day_first = _find_day_first(parts, year_last)
    if isinstance(day_first, ParsedTimes):
        return ParsedTimes(None, example=text[int(year_last.arg_max() or 0)], why=day_first.why)
    zones = parts["zone"].filter(text.is_not_null())
    if 0 < zones.null_count() < len(zones):
        odd = text[int((parts["zone"].is_null() & text.is_not_null()).arg_max() or 0)]
        return ParsedTimes(None, example=odd, why="some have a time zone and others do not")
    day, month = (pl.col("a"), pl.col("b")) if day_first else (pl.col("b"), pl.col("a"))
    number = {"dtype": pl.Int64, "strict": False}
    hour, half = pl.col("h").cast(**number).fill_null(0), pl.col("half").str.to_lowercase()  # type: ignore[arg-type]
    wrong_hour = half.is_not_null() & ~hour.is_between(1, 12)
    in_day = pl.when(half.is_null()).then(hour).otherwise(hour % 12 + pl.when(half == "p").then(12).otherwise(0))
    zone = pl.col("zone").str.extract_groups(r"([+-])(\d{2}):?(\d{2})")
    minutes = (zone.struct.field("2").cast(pl.Int64) * 60 + zone.struct.field("3").cast(pl.Int64)) * pl.when(
        zone.struct.field("1") == "-"
    ).then(-1).otherwise(1)
    calendar = pl.datetime(
        pl.coalesce("y", "last").cast(pl.Int32),
        pl.coalesce("m", month).cast(pl.Int32),
        pl.coalesce("d", day).cast(pl.Int32),
        pl.when(wrong_hour).then(99).otherwise(in_day).cast(pl.Int32),
        pl.col("min").cast(pl.Int32).fill_null(0),
        pl.col("s").cast(pl.Int32).fill_null(0),
        ambiguous="null",
    )
    try:
        seconds = parts.select(calendar.dt.epoch("s") - 60 * minutes.fill_null(0)).to_series()
        fractions = parts["f"].str.pad_end(9, "0").cast(pl.Int64).fill_null(0)
        years = parts.select(pl.coalesce("y", "last").cast(pl.Int32)).to_series()
    except pl.exceptions.PolarsError:
        seconds = years = pl.Series([None] * len(text), dtype=pl.Int64)
        fractions = years
    outside = text.is_not_null() & (seconds.is_null() | ~years.is_between(FIRST_YEAR, LAST_YEAR))
    if outside.any():
        return ParsedTimes(None, example=text[int(outside.arg_max() or 0)], why="there is no such time")
    return ParsedTimes((seconds * 1_000_000_000 + fractions).alias(text.name), zoned=zones.null_count() == 0)


def _find_day_first(parts: pl.DataFrame, year_last: pl.Series) -> bool | ParsedTimes:
    if not year_last.any():
        return True
    if not (year_last | (parts["y"].is_null() & parts["last"].is_null())).all():
        return ParsedTimes(None, why="others begin with the year")
    first, second = (parts[name].cast(pl.Int64) for name in ("a", "b"))
    day_first, month_first = bool((first > 12).any()), bool((second > 12).any())
    if day_first == month_first:
        return ParsedTimes(None, why="it is unclear whether the day or the month comes first; write the year first")
    return day_first
