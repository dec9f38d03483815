"""Guesses the schema of one table: the role of each column, and the kind of each feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from hf_rerank.data.custom.inference_rules import (
    CATEGORICAL,
    DENSE,
    ITEM_ID,
    LABEL_NAMES,
    LIST_WORDS,
    LONG_TAIL,
    NUMBER_WORDS,
    OF_OUTCOMES,
    OF_POSITIONS,
    POSITION_WORDS,
    RANKER_WORDS,
    SKEWED_WORDS,
    USER_WORDS,
    VECTOR,
    Column,
    find_rule,
    format_value,
    split_words,
)
from hf_rerank.data.custom.inferred_schema import CHECK, InferredSchema
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, Feature, ListSchema, Vector

MANY_VALUES = 100_000
# Sequences of such names are histories, even if each happens to be as long as its list.
HISTORY_WORDS = {"history", "hist", "histories"}
ID_WORDS = {"id", "ids", "no", "number", "key", "hash", "idx"}


class Guess:
    """Guesses the schema of one frame, step by step.

    Args:
        frame: The rows.
        known: ``label``, ``list_id``, ``position``, ``group`` -> the column that the caller named, or None.
        whole: Whether the frame holds all rows of the files.
    """

    def __init__(self, frame: pl.DataFrame, known: dict[str, str | None], whole: bool) -> None:
        self.frame, self.known, self.whole = frame, known, whole
        self.comments: dict[str, str] = {}
        self.field_comments: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.roles: dict[str, str] = {}
        self.labels: np.ndarray | None = None

    def is_wide(self) -> bool:
        """Whether one row is one list: its labels, or most of its columns of numbers, are sequences."""
        nested = [name for name in self.frame.columns if _is_nested(self.frame[name])]
        label = self.known["label"]
        if label is not None:
            return label in nested or (bool(nested) and not self._find_list_ids(self.frame.columns))
        flat = [name for name in self.frame.columns if name not in nested and self.frame[name].dtype.is_numeric()]
        named = next((name for names in LABEL_NAMES for name in [*nested, *flat] if _is_named(name, names)), None)
        return named in nested if named is not None else bool(nested)

    def guess_long(self) -> InferredSchema:
        """The schema, if one row is one item."""
        frame = self.frame
        plain = [name for name in frame.columns if not _is_nested(frame[name])]
        list_id = self._choose_list_id(plain, unique=False)
        if list_id is None:
            raise InputError(
                "no column looks like the id of the list (such as list_id, request_id, session_id, qid), and no "
                f"column holds sequences: name it with --list-id; the columns: {', '.join(frame.columns)}"
            )
        if not self.whole and frame[list_id].n_unique() > 1:
            frame = self.frame = frame.filter(pl.col(list_id).ne_missing(frame[list_id][-1]))  # its end was not read
        owners = frame.select(pl.col(list_id).rle_id()).to_series().to_numpy().astype(np.int64)
        if len(frame[list_id].unique()) != owners.max(initial=-1) + 1:  # the rows of a list are not contiguous
            owners = frame.select(pl.col(list_id).rank("dense")).to_series().fill_null(0).to_numpy().astype(np.int64)
        in_lists = frame.group_by(list_id, maintain_order=True)
        several = in_lists.len()["len"].max() or 1
        others = [name for name in frame.columns if name != list_id]
        constant = {name for name in others if (in_lists.agg(pl.col(name).n_unique())[name] == 1).all()}
        if several == 1:
            constant = set()
        of_items = [name for name in others if name not in constant]
        self._choose({name: frame[name] for name in of_items}, [name for name in others if name in constant], owners)
        items = [name for name in of_items if name not in self.roles.values()]
        # A JSON list per row that is the same in the whole list is history; one that differs is a vector.
        taken = set(self.roles.values())
        user = [n for n in others if n in constant and n not in taken and not _is_nested(frame[n])]
        history = [n for n in others if n in constant and n not in taken and _is_nested(frame[n])]
        once = in_lists.agg(pl.col([*user, *history]).first()) if user or history else frame
        if self.roles.get("position"):
            self._check_positions(in_lists.agg(pl.col(self.roles["position"]))[self.roles["position"]])
        return self._make_schema(
            {name: frame[name] for name in items},
            {name: once[name] for name in user},
            {name: once[name] for name in history},
            owners,
            int(_to_number(in_lists.len()["len"].max())),
        )

    def guess_wide(self) -> InferredSchema:
        """The schema, if one row is one list."""
        frame = self.frame
        sequences = [name for name in frame.columns if _is_nested(frame[name])]
        values = [name for name in frame.columns if name not in sequences]
        self._choose_list_id(values, unique=True)
        first = self.known["label"] or next(
            (name for names in LABEL_NAMES for name in sequences if _is_named(name, names)), sequences[0]
        )
        if first not in sequences:
            raise InputError(
                f"column {first!r}, named as the label, holds one value per list: expected a sequence, a number per "
                f"item; the columns of sequences: {', '.join(sequences)}"
            )
        lengths = frame[first].list.len().fill_null(0)
        of_items = [
            name
            for name in sequences
            if (frame[name].list.len().fill_null(0) == lengths).all() and not set(split_words(name)) & HISTORY_WORDS
        ]
        history = [name for name in sequences if name not in of_items]
        full = frame.filter(lengths > 0)
        owners = np.repeat(np.arange(len(full)), full[first].list.len().to_numpy())
        flat = {name: full[name].explode() for name in of_items}
        self._choose(flat, values, owners)
        if self.roles.get("position"):
            self._check_positions(full[self.roles["position"]])
        taken = set(self.roles.values())
        return self._make_schema(
            {name: flat[name] for name in of_items if name not in taken},
            {name: frame[name] for name in values if name not in taken},
            {name: frame[name] for name in history if name not in taken},
            owners,
            int(_to_number(lengths.max())),
        )

    # ------------------------------------------------------------------------------------------------------- the roles

    def _use_named_column(self, role: str) -> bool:
        if self.known[role] is None:
            return False
        self.roles[role] = str(self.known[role])
        self.field_comments[role] = "named by you"
        return True

    def _take(self, role: str, fits: list[str], why: str = "guessed by its name") -> None:
        self.roles[role] = fits[0]
        more = f"; {CHECK}it might also be {', '.join(fits[1:])}" if len(fits) > 1 else ""
        self.field_comments[role] = f"{why}{more}"

    def _choose_list_id(self, columns: list[str], *, unique: bool) -> str | None:
        """The column named like a list id that has the most distinct values; in the wide form it must be unique."""
        if self._use_named_column("list_id"):
            return self.roles["list_id"]
        fits = self._find_list_ids(columns)
        counts = {name: self.frame[name].n_unique() for name in fits}
        if unique:
            repeated = [name for name in fits if counts[name] < len(self.frame)]
            fits = [name for name in fits if name not in repeated]
            if not fits and repeated:
                self.field_comments["list_id"] = (
                    f"{CHECK}{repeated[0]} is named like one, but holds values twice: lists are named by their numbers"
                )
        else:  # one row per item: an id per row is not that of a list
            fits = [name for name in fits if counts[name] < len(self.frame)] or fits
        if not fits:
            return None
        fits.sort(key=lambda name: (-counts[name], not set(split_words(name)) & ID_WORDS, columns.index(name)))
        self._take("list_id", fits)
        return fits[0]

    def _find_list_ids(self, columns: Sequence[str]) -> list[str]:
        """The columns named like an id of lists."""
        return [
            name
            for name in columns
            if not _is_nested(self.frame[name])
            and (words := set(split_words(name))) & LIST_WORDS
            and words <= LIST_WORDS | ID_WORDS
            and (words & (ID_WORDS | {"qid"}) or not self.frame[name].dtype.is_float())
        ]

    def _choose(self, items: dict[str, pl.Series], of_lists: list[str], owners: np.ndarray) -> None:
        """Chooses label, position and initial score among item columns, and group among list columns."""
        numbers = [name for name, c in items.items() if c.dtype.is_numeric() or c.dtype == pl.Boolean]
        zero_one = [n for n in numbers if set(items[n].drop_nulls().cast(pl.Float64).unique()) == {0.0, 1.0}]
        if not self._use_named_column("label"):
            in_order = [*zero_one, *(name for name in numbers if name not in zero_one)]
            fits = list(dict.fromkeys(n for names in LABEL_NAMES for n in in_order if _is_named(n, names)))
            if fits:
                self._take("label", fits)
            elif len(zero_one) == 1:
                self._take("label", zero_one, f"{CHECK}the only column of the items that holds 0 and 1")
            else:
                raise InputError(
                    "no column looks like the label (such as click or label, a number per item): name it with "
                    f"--label; the columns of the items: {', '.join(items) or 'none'}"
                )
        label = self.roles["label"]
        if label in items:
            labels = items[label].cast(pl.Float64)
            self.labels = labels.fill_null(0).to_numpy()
            there = labels.drop_nulls()
            values = "0 and 1" if label in zero_one else f"{format_value(there.min())} to {format_value(there.max())}"
            graded = (
                ""
                if _to_number(there.max()) <= 1
                else f"; {CHECK}above 1: train with --task-loss lambda_loss, or another "
                "loss of lists; log-losses take 0 to 1"
            )
            self.field_comments["label"] += f"; holds {values}, mean {format_value(there.mean())}{graded}"
        self._choose_position(items, owners)
        scores = [
            n for n in numbers if n != label and "score" in (words := set(split_words(n))) and words & RANKER_WORDS
        ]
        if scores:
            self._take("initial_score", scores, f"{CHECK}named like the score of an earlier ranker")
        if not self._use_named_column("group"):
            fits = [
                n for n in of_lists if (words := set(split_words(n))) & USER_WORDS and words <= USER_WORDS | ID_WORDS
            ]
            sessions = [n for n in of_lists if "session" in split_words(n) and n != self.roles.get("list_id")]
            if fits:
                self._take("group", fits)
            elif sessions:
                self._take("group", sessions, f"{CHECK}no user was found, so lists of one session stay in one split")
            else:
                self.field_comments["group"] = f"{CHECK}none found: lists are split by their id, not by their user"
        self.field_comments.setdefault("list_id", "none found: lists are named by their numbers")

    def _choose_position(self, items: dict[str, pl.Series], owners: np.ndarray) -> None:
        if self._use_named_column("position"):
            return
        integers = [n for n, c in items.items() if c.dtype.is_integer() and n not in self.roles.values()]
        named = [name for name in integers if set(split_words(name)) & POSITION_WORDS]
        named.sort(key=lambda name: not set(split_words(name)) <= OF_POSITIONS)
        of_lists = {name: _find_start(items[name], owners) for name in integers}
        good = [name for name in named if of_lists[name] is not None]
        unnamed = [name for name in integers if name not in named and of_lists[name] is not None]
        exact = [name for name in named if set(split_words(name)) <= OF_POSITIONS]
        if good or exact:
            self._take("position", list(dict.fromkeys([*good, *exact])))
            for name in [name for name in good if name != self.roles["position"]]:
                self.left_out[name] = f"{CHECK}another order of the items; one of them is the initial order"
        elif unnamed and owners.max(initial=0) > 0 and len(owners) > 2 * (owners.max() + 1):
            self._take("position", unnamed, f"{CHECK}it holds {of_lists[unnamed[0]]} to the length of every list")
        else:
            self.field_comments["position"] = (
                f"{CHECK}none found: the order of the rows is taken for the initial order; if it means nothing, "
                'write "none"'
            )

    def _check_positions(self, positions: pl.Series) -> None:
        name = self.roles["position"]
        of_list = [values for values in positions.to_list() if values is not None and None not in values]
        for start in (0, 1):
            if of_list and all(sorted(values) == list(range(start, start + len(values))) for values in of_list):
                found = "1 to length" if start else "0 to length - 1"
                self.field_comments["position"] += f"; {found} in every list that was read"
                return
        if self.known["position"] is None:
            del self.roles["position"]
            self.field_comments["position"] = (
                f"{CHECK}{name} is named like one, but is not 0 to length - 1, or 1 to length, in every list: the "
                "order of the rows is the initial order; sort the rows by it, or number the positions of each list "
                "from 0"
            )
            self.left_out[name] = f"{CHECK}looks like a position, see there"
        else:
            self.field_comments["position"] += f"; {CHECK}it is not 0 to length - 1 in every list"

    # ---------------------------------------------------------------------------------------------------- the features

    def _make_schema(
        self,
        items: dict[str, pl.Series],
        user: dict[str, pl.Series],
        history: dict[str, pl.Series],
        owners: np.ndarray,
        longest: int,
    ) -> InferredSchema:
        once = np.arange(max((len(column) for column in user.values()), default=0))
        item_features = [
            f
            for name, c in items.items()
            if name not in self.left_out and (f := self._guess_feature(Column(name, "items", c, owners, self.labels)))
        ]
        user_features = [
            f
            for name, c in user.items()
            if name != "split" and (f := self._guess_feature(Column(name, "user", c, once)))
        ]
        if "split" in user:
            self.left_out["split"] = "the split of each list, kept as it is"
        tables = {f.name: items[f.name] for f in item_features if isinstance(f, Categorical)}
        history_features = [f for column in history.values() if (f := self._guess_history(column, tables))]
        if not item_features:
            raise InputError(
                f"no column of the items can be a feature ({', '.join(items) or 'there is none but the label'}): a "
                "re-ranker needs at least one"
            )
        in_all = "" if self.whole else f"; {CHECK}in the rows that were read"
        self.field_comments["max_list_length"] = f"the longest list{in_all}"
        newest = max([int(_to_number(column.list.len().max())) for column in history.values()], default=0)
        if newest:
            self.field_comments["max_history_length"] = f"the newest that are read; the longest history has {newest}"
        schema = ListSchema(
            items=item_features,
            user=[feature for feature in user_features if not isinstance(feature, Vector)],
            history=history_features,
            label=self.roles["label"],
            position=self.roles.get("position"),
            initial_score=self.roles.get("initial_score"),
            id=self.roles.get("id"),
            list_id=self.roles.get("list_id"),
            group=self.roles.get("group"),
            max_list_length=longest,
        )
        return InferredSchema(schema, self.comments, self.field_comments, self.left_out)

    def _guess_feature(self, column: Column) -> Feature | None:
        """The feature of one column, or None if it is not a feature; records why."""
        rule = find_rule(column)
        said = "; ".join(part for part in (column.describe(), rule.explain(column)) if part)
        if not rule.certain:
            said = f"{column.describe()}; {CHECK}{rule.explain(column)}"
        if rule.kind == CATEGORICAL:
            many = f"; many values: hash_size {2**18} bounds the table" if column.distinct > MANY_VALUES else ""
            return self._keep(Categorical(column.name), said + many)
        if rule.kind == DENSE:
            return self._guess_dense(column, said)
        if rule.kind == VECTOR:
            if column.part == "items":
                return self._keep(Vector(column.name, dim=int(column.present.list.len()[0])), said)
            self.left_out[column.name] = (
                f"{CHECK}{column.describe()}; a vector of the list: only items have vectors; write one column per "
                "number"
            )
            return None
        if (
            rule.kind == ITEM_ID
            and "id" not in self.roles
            and set(split_words(column.name)) & (ID_WORDS | {"docid", "sku"})
        ):
            self.roles["id"] = column.name
            self.field_comments["id"] = said
            return None
        self.left_out[column.name] = said if rule.certain else f"{CHECK}{column.describe()}; {rule.explain(column)}"
        return None

    def _guess_dense(self, column: Column, said: str) -> Dense:
        numbers = column.present.cast(pl.Float64)
        numbers = numbers.filter(numbers.is_finite())
        missing: Any = "indicator" if column.values.null_count() else "mean"
        scale: Any = "standard"
        if len(numbers) and _to_number(numbers.min()) >= 0:
            middle = _to_number(numbers.median())
            if column.words & SKEWED_WORDS and _to_number(numbers.max()) > 1:
                scale, said = "log", f"{said}; log, being named like a price or a count"
            elif middle > 0 and _to_number(numbers.max()) > LONG_TAIL * middle:
                scale, said = "log", f"{said}; log, the largest being over {LONG_TAIL} times the median"
        return self._keep(Dense(column.name, scale=scale, missing=missing), said)

    def _guess_history(self, column: pl.Series, tables: dict[str, pl.Series]) -> Categorical | Dense | None:
        flat = column.explode().drop_nulls()
        if not len(flat):
            self.left_out[column.name] = f"{CHECK}a history that is empty in all rows read"
            return None
        seen = Column(column.name, "history", flat.alias(column.name), np.zeros(len(flat), dtype=np.int64))
        shared = self._find_shared_table(seen, tables)
        if shared is not None:
            why = f"{CHECK}history, most of its values are also in {shared}, whose table it shares"
            return self._keep(Categorical(column.name, shares=shared), f"{seen.describe()}; {why}")
        feature = self._guess_feature(seen)
        if isinstance(feature, Categorical):
            self.comments[column.name] += f"; {CHECK}history, no item column holds its values"
        return feature if isinstance(feature, Categorical | Dense) else None

    def _find_shared_table(self, column: Column, tables: dict[str, pl.Series]) -> str | None:
        """The item column whose values a history contains: one with a similar name, otherwise that with the most
        values in common."""
        if not (column.is_integer or column.is_text) or column.words & NUMBER_WORDS:
            return None
        mine = set(column.values)
        alike = {}
        for name, values in tables.items():
            if values.dtype == column.values.dtype:
                theirs = set(values.drop_nulls())
                if 2 * len(mine & theirs) > len(mine):
                    same_name = name.removesuffix("_id").lower() in column.name.lower()
                    alike[name] = (same_name, len(mine & theirs) / len(mine | theirs))
        return max(alike, key=lambda name: alike[name], default=None)

    def _keep(self, feature: Any, comment: str) -> Any:
        self.comments[feature.name] = comment
        return feature


def _is_named(name: str, names: set[str]) -> bool:
    """Whether a column has one of the names, also as in is_click, click_bool or num_clicks."""
    words = set(split_words(name))
    return bool(words & names) and words - names <= {"is", "bool", "flag", "num", "has", "was"} & OF_OUTCOMES


def _find_start(values: pl.Series, owners: np.ndarray) -> int | None:
    """0 or 1 if the values of each list are consecutive integers from that number, each once; else None."""
    if values.null_count() or not len(values):
        return None
    frame = pl.DataFrame({"value": values.cast(pl.Int64, strict=False), "list": owners})
    of_list = frame.group_by("list").agg(
        pl.col("value").min().alias("low"), pl.col("value").max().alias("high"), pl.len(), pl.col("value").n_unique()
    )
    for start in (0, 1):
        if (
            (of_list["low"] == start)
            & (of_list["high"] == of_list["len"] + start - 1)
            & (of_list["value"] == of_list["len"])
        ).all():
            return start
    return None


def _to_number(value: Any) -> float:
    """A minimum, maximum or mean as a float; 0 for None."""
    return float(value or 0)


def _is_nested(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List | pl.Array)
