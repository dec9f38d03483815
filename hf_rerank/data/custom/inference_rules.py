"""A table of rules that guess the kind of a column: by type first, then by the whole words of its name."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from hf_rerank.data.times import parse_times

# An integer column of unknown name with at most this many distinct values is taken as a category.
FEW_VALUES = 50
LONG_TEXT = 60
# If the largest value is this many times the median, the log scale is used.
LONG_TAIL = 20
# Integers are taken as ids if each value occurs this often, and at most this share of lists holds one twice.
REPEATED, WITH_DUPLICATES = 1.5, 0.02
# A column is taken as an outcome because of its values only with at least this many clicked items.
OUTCOMES = 20
EPOCHS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
FIRST_EPOCH, LAST_EPOCH = 631_152_000, 2_208_988_800  # the years 1990 to 2039, in seconds

ID_WORDS = {"id", "ids", "code", "no", "number", "key", "hash", "uuid", "guid", "sku", "asin", "isbn", "ean"}
CATEGORY_WORDS = {
    *{"type", "cate", "category", "categories", "cat", "class", "brand", "shop", "seller", "store", "city", "country"},
    *{"region", "gender", "sex", "level", "flag", "bool", "segment", "group", "campaign", "device", "os", "browser"},
    *{"language", "lang", "tag", "tags", "genre", "color", "colour", "size", "channel", "tab", "weekday", "month"},
    *{"is", "has", "occupation", "zip"},
}
NUMBER_WORDS = {
    *{"price", "cost", "amount", "revenue", "usd", "eur", "count", "counts", "cnt", "num", "nb", "sales", "views"},
    *{"score", "ctr", "cvr", "rate", "ratio", "share", "percent", "pct", "age", "stars", "rating", "ratings", "diff"},
    *{"distance", "duration", "length", "minutes", "seconds", "hours", "days", "ms", "avg", "mean", "min", "max"},
    *{"sum", "total", "log", "likes", "reviews", "impressions", "weight", "height", "width", "minute", "second"},
    *{"quantity", "qty", "probability", "prob", "popularity"},
}
SKEWED_WORDS = {
    *{"price", "cost", "amount", "revenue", "usd", "eur", "count", "counts", "cnt", "num", "nb", "sales", "views"},
    *{"minutes", "seconds", "impressions", "reviews"},
}
TIME_WORDS = {"time", "timestamp", "ts", "date", "datetime", "day", "at", "when", "created", "updated"}
LABEL_NAMES = (
    {"click", "clicks", "clicked", "clk"},
    {"label", "labels", "target", "relevance", "rel", "y", "grade"},
    {
        "purchase",
        "purchased",
        "purchases",
        "bought",
        "conversion",
        "converted",
        "booking",
        "booked",
        "order",
        "ordered",
    },
    {"stars", "rating"},
)
OUTCOME_WORDS = {
    *{"click", "clicks", "clicked", "clk", "nonclk", "label", "target", "relevance", "grade", "purchase", "purchased"},
    *{"purchases", "bought", "buy", "buys", "booking", "bookings", "booked", "conversion", "conversions", "converted"},
    *{"cart", "carts", "ordered", "trans", "transaction", "transactions", "liked", "like", "follow", "followed"},
    *{"comment", "forward", "hate", "dislike", "dwell", "watch", "watched", "play", "stay", "attribution", "gmv"},
    *{"order", "orders", "reward", "feedback"},
}
# Words that mark an outcome as one of the past, which is known when a list is ranked.
PAST_WORDS = {
    *{
        "hist",
        "history",
        "historical",
        "past",
        "previous",
        "prev",
        "prior",
        "before",
        "avg",
        "mean",
        "average",
        "rate",
    },
    *{"ratio", "ctr", "cvr", "7d", "14d", "30d", "daily", "weekly", "monthly", "recent", "since", "ago", "elsewhere"},
    *{"smoothed", "debiased", "last", "total", "lifetime"},
}
# Words that may accompany an outcome: is_click, click_bool, num_clicks, gross_bookings_usd.
OF_OUTCOMES = {"is", "has", "bool", "flag", "num", "n", "nb", "count", "usd", "gross", "time", "ms", "s", "add", "to"}
OF_OUTCOMES |= {"id", "timestamp", "long", "view", "amount", "value", "seconds", "pos", "was", "effective", "profile"}
POSITION_WORDS = {"position", "positions", "pos", "rank", "place", "slot"}
OF_POSITIONS = POSITION_WORDS | {"initial", "display", "displayed", "in", "list", "item", "shown", "original"}
PROPENSITY_WORDS = {"propensity", "propensities", "examination", "attraction", "ips"}
RANKER_WORDS = {"initial", "ranker", "ranking", "retrieval", "base", "first", "stage", "model"}
USER_WORDS = {"user", "visitor", "customer", "member", "uid", "client", "userid", "viewer", "account"}
LIST_WORDS = {
    *{"list", "request", "req", "impression", "imp", "search", "srch", "query", "page", "pageview", "view", "slate"},
    *{"session", "qid", "serp", "sess"},
}


def split_words(name: str) -> list[str]:
    """The words of a name: ``visitorHist_starRating2`` has visitor, hist, star, rating."""
    parted = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+|(?<=[A-Za-z])(?=[0-9]+$)", parted) if word]


@dataclass(frozen=True)
class Column:
    """One column of a table, with the properties that the rules test.

    Attributes:
        name: Name of the column.
        part: ``items``, ``user`` or ``history``.
        values: One per item, list or history item.
        owners: int64 [N], the index of the list of each value.
        labels: The labels of the items; None for other parts, or if the label is not known yet.
    """

    name: str
    part: str
    values: pl.Series
    owners: np.ndarray
    labels: np.ndarray | None = None

    @functools.cached_property
    def words(self) -> set[str]:
        return set(split_words(self.name))

    @functools.cached_property
    def present(self) -> pl.Series:
        return self.values.drop_nulls()

    @functools.cached_property
    def distinct(self) -> int:
        return 0 if self.is_nested else self.present.n_unique()

    @property
    def is_nested(self) -> bool:
        return isinstance(self.values.dtype, pl.List | pl.Array)

    @property
    def is_text(self) -> bool:
        return self.values.dtype == pl.String

    @property
    def is_integer(self) -> bool:
        return self.values.dtype.is_integer()

    @property
    def is_number(self) -> bool:
        return self.values.dtype.is_numeric()

    @property
    def lowest(self) -> float:
        return float(self.present.min() or 0)  # type: ignore[arg-type]

    @property
    def highest(self) -> float:
        return float(self.present.max() or 0)  # type: ignore[arg-type]

    @property
    def mean_length(self) -> float:
        """Mean length of strings, in characters."""
        return float(self.present.str.len_chars().mean() or 0)  # type: ignore[arg-type]

    @functools.cached_property
    def is_whole(self) -> bool:
        """Whether all numbers are integers, such as the floats that pandas makes of ids with missing ones."""
        return self.is_number and bool((self.present.cast(pl.Float64) % 1 == 0).all())

    @functools.cached_property
    def repeats_across_lists(self) -> bool:
        """Whether values occur again in other lists, but rarely twice in one, as is typical of ids and not of
        amounts."""
        there = ~self.values.is_null().to_numpy()
        frame = pl.DataFrame({"value": self.values.filter(pl.Series(there)), "list": self.owners[there]})
        pairs = frame.n_unique()
        lists = frame["list"].n_unique()
        with_duplicates = frame.group_by("list").agg(pl.col("value").is_duplicated().any())["value"].sum()
        return pairs >= REPEATED * self.distinct and with_duplicates <= WITH_DUPLICATES * lists

    @functools.cached_property
    def time_kind(self) -> str | None:
        """The form in which the values are times (a type, text, or a unit since 1970), or None if they are not."""
        if self.values.dtype.is_temporal():
            return "times"
        if self.is_text:
            return "times as text" if len(self.present) and parse_times(self.present).nanoseconds is not None else None
        if not self.is_integer or not self.words & (TIME_WORDS | {"ms", "us", "ns"}) or not len(self.present):
            return None
        for unit, factor in EPOCHS.items():
            if FIRST_EPOCH * factor <= self.lowest and self.highest <= LAST_EPOCH * factor:
                return f"{unit} since 1970"
        dates = self.present.cast(pl.String).str.to_date("%Y%m%d", strict=False)
        return "dates such as 20240531" if dates.null_count() == 0 and self.lowest >= 19_000_101 else None

    @functools.cached_property
    def unclear_time(self) -> str | None:
        """Why text that looks like a time cannot be parsed as one, or None."""
        if not self.is_text or not len(self.present) or self.time_kind:
            return None
        parsed = parse_times(self.present)
        looks = self.present.str.contains(r"^\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}").all()
        return f"{parsed.example!r}: {parsed.why}" if looks else None

    @functools.cached_property
    def is_named_outcome(self) -> bool:
        """Whether its name refers to something that happens after the list is shown, rather than before."""
        outcome = self.words & OUTCOME_WORDS
        if not outcome or self.words & PAST_WORDS:
            return False
        return self.words - outcome <= OF_OUTCOMES and not (
            {"order", "orders", "transaction"} & outcome and "id" in self.words
        )

    @functools.cached_property
    def tells_the_label(self) -> str | None:
        """How the values reveal the labels, like a second outcome, or None if they do not."""
        if self.labels is None or not (self.is_number or self.values.dtype == pl.Boolean):
            return None
        clicked = self.labels > 0
        if clicked.all() or clicked.sum() < OUTCOMES:
            return None
        values = self.values.cast(pl.Float64)
        unclicked = values.filter(pl.Series(~clicked))
        usual = unclicked.drop_nulls().mode()
        differs = (
            values.is_not_null() if not len(usual) else (values != usual[0]).fill_null(unclicked.null_count() == 0)
        )
        marked = differs.to_numpy()
        if unclicked.null_count() == len(unclicked):
            marked, what = values.is_not_null().to_numpy(), "missing"
        else:
            what = f"{usual[0]:g}"
        if marked.sum() >= OUTCOMES and not marked[~clicked].any():
            return f"it is {what} wherever the label is 0"
        nonzero = (values.fill_null(0) != 0).to_numpy()
        if nonzero[clicked].all() and 0 < nonzero[~clicked].mean() < 0.1:
            return "it is not 0 wherever the label is above 0, and nearly always 0 elsewhere"
        return None

    def describe(self) -> str:
        """Type, distinct values, range or examples, share missing."""
        parts = [str(self.values.dtype).lower()]
        if not self.is_nested and len(self.present):
            parts.append(f"{self.distinct:,} distinct")
            if self.is_number:
                parts.append(f"{format_value(self.present.min())} to {format_value(self.present.max())}")
            else:
                examples = self.present.unique(maintain_order=True)[:3]
                parts.append("such as " + ", ".join(format_value(value) for value in examples))
        if self.values.null_count():
            parts.append(f"{self.values.null_count() / len(self.values):.1%} missing")
        return ", ".join(parts)


def format_value(value: Any) -> str:
    """A value as it is shown in comments."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value) if not isinstance(value, str) else json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 30 else text[:27] + "..."


CATEGORICAL, DENSE, VECTOR, LEFT_OUT, TIME, ITEM_ID = "categorical", "dense", "vector", "left out", "time", "item id"


@dataclass(frozen=True)
class Rule:
    """The first rule whose ``when`` is true decides.

    Attributes:
        when: Whether the rule matches a column.
        kind: The kind of the column if it does.
        why: The reason in the comment; may depend on the column.
        certain: False: the comment is marked CHECK.
    """

    when: Callable[[Column], Any]
    kind: str
    why: str | Callable[[Column], str]
    certain: bool = True

    def explain(self, column: Column) -> str:
        return self.why if isinstance(self.why, str) else self.why(column)


def _find_dims(column: Column) -> list[int]:
    return list(column.present.list.len().unique())


RULES = (
    # ---------------------------------------------------------------------- what must not be a feature, whatever it is
    Rule(lambda c: not len(c.present), LEFT_OUT, "all of it is missing", certain=False),
    Rule(lambda c: c.tells_the_label, LEFT_OUT, lambda c: f"an outcome: {c.tells_the_label}", certain=False),
    Rule(lambda c: c.is_named_outcome, LEFT_OUT, "named like an outcome, which would leak the labels", certain=False),
    Rule(
        lambda c: c.is_number and c.words & PROPENSITY_WORDS,
        LEFT_OUT,
        'named like a propensity: if it is one, name it as "propensity" above',
        certain=False,
    ),
    Rule(
        lambda c: c.is_number and c.words & POSITION_WORDS and c.words <= OF_POSITIONS,
        LEFT_OUT,
        'named like a position: if it is one, name it as "position" above',
        certain=False,
    ),
    # -------------------------------------------------------------------------------------------------------- by types
    Rule(
        lambda c: (
            c.is_nested and len(_find_dims(c)) == 1 and _find_dims(c)[0] and c.present.explode().dtype.is_numeric()
        ),
        VECTOR,
        lambda c: f"{_find_dims(c)[0]} numbers per item",
    ),
    Rule(lambda c: c.is_nested, LEFT_OUT, "sequences of several lengths", certain=False),
    Rule(
        lambda c: c.time_kind,
        TIME,
        lambda c: f"a time ({c.time_kind}); --split-by time:{c.name} splits by it",
    ),
    Rule(
        lambda c: c.unclear_time,
        LEFT_OUT,
        lambda c: f"it looks like times, but not clearly ({c.unclear_time})",
        certain=False,
    ),
    Rule(
        lambda c: c.is_text and c.mean_length > LONG_TEXT,
        LEFT_OUT,
        "long text: embed it, and add the vectors as a column",
        certain=False,
    ),
    Rule(
        lambda c: c.is_text and c.part == "items" and c.distinct == len(c.present) > FEW_VALUES,
        ITEM_ID,
        "text that differs in every row: a model could not learn from it",
        certain=False,
    ),
    Rule(lambda c: c.is_text, CATEGORICAL, "text"),
    Rule(lambda c: c.values.dtype == pl.Boolean, CATEGORICAL, "true or false"),
    Rule(lambda c: not c.is_number, LEFT_OUT, "of a type that is not a feature", certain=False),
    # --------------------------------------------------------------------------------------------------- then by names
    Rule(
        lambda c: c.is_integer and c.lowest < 0 and not c.words & NUMBER_WORDS,
        DENSE,
        "an integer below 0 is not an id; if it means missing, write null",
        certain=False,
    ),
    Rule(
        lambda c: c.words & (PAST_WORDS | OUTCOME_WORDS) and c.words & OUTCOME_WORDS and not c.words & {"id", "ids"},
        DENSE,
        "named like an outcome of the past: make sure that it was counted before the list was shown",
        certain=False,
    ),
    Rule(lambda c: c.is_integer and c.words & ID_WORDS, CATEGORICAL, "named like an id or a category"),
    Rule(
        lambda c: not c.is_integer and c.is_whole and c.words & ID_WORDS,
        CATEGORICAL,
        "ids written as numbers, such as 12.0, which are read as 12",
        certain=False,
    ),
    Rule(lambda c: c.words & NUMBER_WORDS, DENSE, ""),
    Rule(lambda c: c.is_integer and c.words & CATEGORY_WORDS, CATEGORICAL, "named like an id or a category"),
    Rule(lambda c: not c.is_integer, DENSE, ""),
    # ------------------------------------------------------------------------------------- integers of unknown meaning
    Rule(lambda c: c.distinct <= FEW_VALUES, CATEGORICAL, "integers, few of them", certain=False),
    Rule(
        lambda c: c.repeats_across_lists,
        CATEGORICAL,
        "integers that occur again in other lists, as ids do; make it dense if it is an amount",
        certain=False,
    ),
    Rule(lambda c: True, DENSE, "integers, many of them: if they are ids, make it categorical", certain=False),
)


def find_rule(column: Column) -> Rule:
    """The first rule that matches a column."""
    return next(rule for rule in RULES if rule.when(column))
