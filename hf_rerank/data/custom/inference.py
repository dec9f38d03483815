"""A first schema of somebody's files, written with comments: what was seen of each column, and why it was guessed.

Every guess is from names, types and values of the first rows. It is a draft to correct: what is doubtful says CHECK.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from hf_rerank.data.csv_text import read_text
from hf_rerank.data.frames import plain_frame
from hf_rerank.data.long_form import INTEGER
from hf_rerank.data.own_lists import KINDS, list_files
from hf_rerank.data.prepared import SCHEMA_FILE, is_prepared
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import Categorical, Dense, Feature, ListSchema, Vector, kind_of

SAMPLE_ROWS = 100_000
NAMES = {
    "label": r"(is_?)?(click(s|ed)?|clk|label|target|relevance|purchase(d)?|conversion|y)",
    "list_id": r"(list|request|req|impression|imp|session|query|search|srch|page_?view)(_?(id|no|number))?|qid",
    "position": r"(initial_?)?(position|pos|rank|place|slot)(_?in_?list)?",
    "group": r"(user|visitor|customer|member|uid)(_?id)?",
}
# What nobody knows yet when a list is ranked, or only from the order in which it was shown: no features.
OUTCOME_LIKE = re.compile(
    rf"{NAMES['label']}|(is_?)?(bought|buy|ordered|liked|converted|non_?clk)|(add(ed)?_?to_?)?cart|(dwell|watch)_?time",
    re.I,
)
POSITION_LIKE = re.compile(NAMES["position"], re.I)
PROPENSITY_LIKE = re.compile(r"propensit(y|ies)|examination|attraction|ips(_?weight)?", re.I)
ID_LIKE = re.compile(
    r"(^|_)(id|ids|code|type|cate|category|brand|shop|seller|city|country|gender|level|flag)$|[a-z]Id$"
)
SKEWED = re.compile(r"price|cost|amount|revenue|count|^num_|_num$|sales|views|minutes|seconds|age_of", re.I)
NUMBER_LIKE = re.compile(
    r"price|cost|amount|revenue|count|^num_|_num$|sales|views|score|ctr|cvr|rate|ratio|age$|stars", re.I
)
TIME_LIKE = re.compile(r"(^|_)(time|timestamp|time_?stamp|date|datetime|ts|day|hour)$", re.I)
# An integer column of unknown name with at most so many values is taken for a category.
FEW_VALUES = 50
LONG_TEXT = 60
MANY_VALUES = 100_000
# The largest value is so many times the median: the logarithm says more.
LONG_TAIL = 20
CHECK = "CHECK: "


@dataclass
class InferredSchema:
    """A draft.

    Attributes:
        schema: The guess.
        comments: Feature -> what was seen of its column, and why it was guessed.
        field_comments: The same of other fields of the schema; columns may have their names.
        left_out: Column -> why it is no feature.
        header: What was read.
    """

    schema: ListSchema
    comments: dict[str, str]
    field_comments: dict[str, str]
    left_out: dict[str, str]
    header: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The schema as JSON with lines of comment (``//``), which ``ListSchema.load`` reads."""
        lines = [*(_comment(line) for line in self.header), "{"]
        entries: list[str] = []
        for part in ("items", "user", "history"):
            rows = []
            for feature in getattr(self.schema, part):
                rows.append(f"    {_comment(self.comments[feature.name])}\n    {_described(feature)}")
            entries.append(f'  "{part}": [' + ("\n" + ",\n".join(rows) + "\n  ]" if rows else "]"))
        for name in (
            "label",
            "position",
            "weight",
            "propensity",
            "list_id",
            "group",
            "max_list_length",
            "max_history_length",
        ):
            comment = f"  {_comment(self.field_comments[name])}\n" if name in self.field_comments else ""
            entries.append(f'{comment}  "{name}": {json.dumps(getattr(self.schema, name))}')
        lines += [",\n".join(entries), "}"]
        if self.left_out:
            lines.append("// Columns that are no features:")
            lines += [_comment(f"- {name}: {why}") for name, why in self.left_out.items()]
        return "\n".join(lines) + "\n"


def infer_schema(
    source: str | Path,
    *,
    label: str | None = None,
    list_id: str | None = None,
    position: str | None = None,
    group: str | None = None,
    rows: int = SAMPLE_ROWS,
) -> InferredSchema:
    """Guesses the schema of a file or a folder from its first rows.

    Args:
        source: ``.csv`` (a row an item), ``.jsonl``, ``.json`` or ``.parquet`` (a row a list), or a folder of them.
        label, list_id, position, group: Columns that the caller knows; of the others the name decides.
        rows: How many are read.

    Raises:
        InputError: No such files, a named column that is not there, no column that may be the label or, of the long
            form, the list id.
    """
    path = Path(source)
    if is_prepared(path):
        raise InputError(f"{path} is prepared already, and {SCHEMA_FILE} in it is its schema")
    files = list_files(path)
    if rows < 1:
        raise InputError(f"rows is {rows}: expected at least 1")
    kind = KINDS[files[0].suffix]
    frame, whole = _first_rows(files, kind, rows)
    known = {"label": label, "list_id": list_id, "position": position, "group": group}
    for option, column in known.items():
        if column is not None and column not in frame.columns:
            raise InputError(
                f"{path} has no column {column!r} for the {option}; its columns: {', '.join(frame.columns)}"
                f"{suggestion(column, frame.columns)}"
            )
    guess = _Guess(frame, known, whole)
    inferred = guess.long() if kind == "csv" else guess.wide()
    read = f"all {len(frame):,} rows" if whole else f"the first {len(frame):,} rows only"
    inferred.header = [
        f"A guess from {read} of {path.name}. Correct it, then:",
        f"hf-rerank prepare own --input {path.name} --schema THIS --output-dir LISTS",
        "Lines that begin with // are comments. Look at those that say CHECK first.",
        "categorical: a value out of many (ids, text). dense: a number. vector: a vector an item.",
    ]
    return inferred


def _first_rows(files: list[Path], kind: str, rows: int) -> tuple[pl.DataFrame, bool]:
    """Rows of the first files, and whether they are all."""
    frames: list[pl.DataFrame] = []
    left = rows + 1
    for file in files:
        frame = _read_rows(file, kind, left)
        frames.append(frame)
        left -= len(frame)
        if left <= 0:
            break
    try:
        joined = pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{files[0].parent} holds files with different columns: {str(error).splitlines()[0]}"
        ) from None
    return joined.head(rows), len(joined) <= rows


def _read_rows(file: Path, kind: str, rows: int) -> pl.DataFrame:
    if kind == "csv":
        text = pl.DataFrame(read_text(file, rows))
        return text.select(_typed(column) for column in text)
    if kind == "parquet":
        with pq.ParquetFile(file) as parquet:
            batches = list(_until(parquet.iter_batches(min(rows, 4_096)), rows))
        try:
            return plain_frame(pl.concat([pl.DataFrame(batch) for batch in batches]).head(rows))
        except pl.exceptions.PolarsError as error:
            raise InputError(f"cannot read lists from {file}: {str(error).splitlines()[0]}") from None
    try:
        with file.open(encoding="utf-8-sig") as lines:
            first = next(filter(str.strip, lines), "")
            if first.lstrip().startswith("["):
                found = json.loads(first + lines.read())[:rows]
            else:
                texts = filter(str.strip, itertools.chain([first], lines))
                found = [json.loads(text) for text in itertools.islice(texts, rows)]
        return plain_frame(pl.DataFrame(found, infer_schema_length=None))
    except (ValueError, TypeError, KeyError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"cannot read lists from {file}: {str(error).splitlines()[0]}; expected one JSON object a list"
        ) from None


def _until(batches: Iterator[Any], rows: int) -> Iterator[Any]:
    for batch in batches:
        yield batch
        rows -= batch.num_rows
        if rows <= 0:
            return


def _typed(text: pl.Series) -> pl.Series:
    """A column of CSV text as integers, numbers or JSON lists where all of it is that."""
    there = text.drop_nulls()
    if not len(there):
        return text
    if there.str.contains(INTEGER).all():
        return text.cast(pl.Int64)
    numbers = text.str.strip_chars().cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count():
        return numbers
    if there.str.contains(r"^\s*\[.*\]\s*$").all():
        try:
            values = [None if cell is None else json.loads(cell) for cell in text.to_list()]
            return plain_frame(pl.DataFrame({text.name: values}))[text.name]
        except (ValueError, TypeError, pl.exceptions.PolarsError):
            return text  # lists of several types, or no JSON after all
    return text


class _Guess:
    """The guess of one frame, a step at a time."""

    def __init__(self, frame: pl.DataFrame, known: dict[str, str | None], whole: bool) -> None:
        self.frame, self.known, self.whole = frame, known, whole
        self.comments: dict[str, str] = {}
        self.field_comments: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.roles: dict[str, str] = {}

    def long(self) -> InferredSchema:
        """Of a row an item."""
        frame = self.frame
        list_id = self._role("list_id", [name for name in frame.columns if not _nested(frame[name])])
        if list_id is None:
            raise InputError(
                "no column looks like the id of the list (such as list_id, request_id, session_id, qid): name it with "
                f"--list-id; the columns: {', '.join(frame.columns)}"
            )
        if not self.whole and frame[list_id].n_unique() > 1:
            frame = self.frame = frame.filter(pl.col(list_id).ne_missing(frame[list_id][-1]))  # its end was not read
        in_lists = frame.group_by(list_id, maintain_order=True)
        several = in_lists.len()["len"].max() or 1
        others = [name for name in frame.columns if name != list_id]
        constant = {name for name in others if (in_lists.agg(pl.col(name).n_unique())[name] == 1).all()}
        if several == 1:
            constant = set()
        of_items = [name for name in others if name not in constant]
        self._choose(of_items, [name for name in others if name in constant], nested=False)
        lengths = in_lists.len()["len"]
        items = [name for name in of_items if name not in self.roles.values()]
        # A JSON list a row that is the same in the whole list is history; one that differs is a vector.
        history = [name for name in others if name in constant and _nested(frame[name])]
        user = [
            name for name in others if name in constant and name not in self.roles.values() and name not in history
        ]
        once = in_lists.agg(pl.col([*user, *history]).first()) if user or history else frame
        if self.roles.get("position"):
            self._check_positions(in_lists.agg(pl.col(self.roles["position"]))[self.roles["position"]])
        return self._inferred(
            {name: frame[name] for name in items},
            {name: once[name] for name in user},
            {name: once[name] for name in history},
            int(_number(lengths.max())),
        )

    def wide(self) -> InferredSchema:
        """Of a row a list."""
        frame = self.frame
        sequences = [name for name in frame.columns if _nested(frame[name])]
        if not sequences:
            raise InputError(
                f"no column holds sequences ({', '.join(frame.columns)}): expected a row a list, with one sequence a "
                "column of the items; a table with a row an item is read from CSV"
            )
        values = [name for name in frame.columns if name not in sequences]
        self._role("list_id", values)
        self._choose(sequences, values, nested=True)
        label = self.roles["label"]
        if label not in sequences:
            raise InputError(
                f"column {label!r}, named as the label, holds one value a list: expected a sequence, a number an "
                f"item; the columns that do: {', '.join(sequences)}"
            )
        lengths = frame[label].list.len()
        of_items = [name for name in sequences if (frame[name].list.len() == lengths).all()]
        history = [name for name in sequences if name not in of_items]
        if self.roles.get("position"):
            self._check_positions(frame[self.roles["position"]])
        taken = set(self.roles.values())
        return self._inferred(
            {name: frame[name].explode() for name in of_items if name not in taken},
            {name: frame[name] for name in values if name not in taken},
            {name: frame[name] for name in history if name not in taken},
            int(_number(lengths.max())),
        )

    # ------------------------------------------------------------------------------------------------------- the roles

    def _role(self, role: str, columns: list[str]) -> str | None:
        """The column of a role: the caller's, or the first whose name fits."""
        if self.known[role] is not None:
            self.roles[role] = str(self.known[role])
            self.field_comments[role] = "named by you"
            return self.roles[role]
        fits = [name for name in columns if re.fullmatch(NAMES[role], name, re.I) and name not in self.roles.values()]
        if not fits:
            return None
        self.roles[role] = fits[0]
        more = f"; {CHECK}it might also be {', '.join(fits[1:])}" if len(fits) > 1 else ""
        self.field_comments[role] = f"guessed by its name{more}"
        return fits[0]

    def _choose(self, of_items: list[str], of_lists: list[str], *, nested: bool) -> None:
        """Label and position among the columns of the items, group among those of the list."""
        flat = {name: self.frame[name].explode() if nested else self.frame[name] for name in of_items}
        numbers = [name for name, column in flat.items() if column.dtype.is_numeric() or column.dtype == pl.Boolean]
        zero_one = [name for name in numbers if set(flat[name].drop_nulls().cast(pl.Float64).unique()) == {0.0, 1.0}]
        label = self._role("label", [*zero_one, *(name for name in numbers if name not in zero_one)])
        if label is None and len(zero_one) == 1:
            label = self.roles["label"] = zero_one[0]
            self.field_comments["label"] = f"{CHECK}the only column of the items that holds 0 and 1"
        if label is None:
            raise InputError(
                "no column looks like the label (such as click or label, a number an item): name it with --label; the "
                f"columns of the items: {', '.join(of_items) or 'none'}"
            )
        if label in flat:
            labels = flat[label].drop_nulls()
            values = "0 and 1" if label in zero_one else f"{_shown(labels.min())} to {_shown(labels.max())}"
            grades = "" if label in zero_one else f"; {CHECK}log-losses take 0 to 1, listwise losses take grades"
            self.field_comments["label"] += f"; holds {values}, mean {_shown(labels.cast(pl.Float64).mean())}{grades}"
        integers = [name for name in numbers if flat[name].dtype.is_integer() and name != label]
        if self._role("position", integers) is None:
            self.field_comments["position"] = "none found: the order of the rows is the initial order"
        if self._role("group", of_lists) is None:
            self.field_comments["group"] = f"{CHECK}none found: lists are split by their id, not by their user"
        self.field_comments.setdefault("list_id", "none found: lists are named by their numbers")

    def _check_positions(self, positions: pl.Series) -> None:
        name = self.roles["position"]
        of_list = [sorted(values) for values in positions.to_list() if values is not None and None not in values]
        for start in (0, 1):
            if of_list and all(values == list(range(start, start + len(values))) for values in of_list):
                if start:
                    self.field_comments["position"] += (
                        f"; {CHECK}{name} starts at 1: subtract 1 in the data, 0 is the top"
                    )
                else:
                    self.field_comments["position"] += "; 0 to length - 1 in every list that was read"
                return
        if self.known["position"] is None:
            del self.roles["position"]
            self.field_comments["position"] = (
                f"{CHECK}{name} is named like one, but is no 0 to length - 1 in every list: the order of the rows is "
                "the initial order"
            )
            self.left_out[name] = "looks like a position, see there"
        else:
            self.field_comments["position"] += f"; {CHECK}it is no 0 to length - 1 in every list"

    # ---------------------------------------------------------------------------------------------------- the features

    def _inferred(
        self,
        items: dict[str, pl.Series],
        user: dict[str, pl.Series],
        history: dict[str, pl.Series],
        longest: int,
    ) -> InferredSchema:
        left_out = set(self.left_out)
        item_features = [f for name, column in items.items() if name not in left_out and (f := self._feature(column))]
        user_features = [
            f
            for name, column in user.items()
            if name != "split" and (f := self._feature(column)) and not isinstance(f, Vector)
        ]
        if "split" in user:
            self.left_out["split"] = "the split of each list, kept as it is"
        tables = {f.name: items[f.name] for f in item_features if isinstance(f, Categorical)}
        history_features = [f for column in history.values() if (f := self._history(column, tables))]
        if not item_features:
            raise InputError(
                f"no column of the items can be a feature ({', '.join(items) or 'there is none but the label'}): a "
                "re-ranker needs at least one"
            )
        in_all = "" if self.whole else f"; {CHECK}in the rows that were read"
        self.field_comments["max_list_length"] = f"the longest list{in_all}"
        newest = max([int(_number(column.list.len().max())) for column in history.values()], default=0)
        if newest:
            self.field_comments["max_history_length"] = f"the newest that are read; the longest history has {newest}"
        schema = ListSchema(
            items=item_features,
            user=user_features,
            history=history_features,
            label=self.roles["label"],
            position=self.roles.get("position"),
            list_id=self.roles.get("list_id"),
            group=self.roles.get("group"),
            max_list_length=longest,
        )
        return InferredSchema(schema, self.comments, self.field_comments, self.left_out)

    def _feature(self, column: pl.Series) -> Feature | None:
        """The feature of the values of one column, none where it is none; says why."""
        name = column.name
        seen = _seen(column)
        there = column.drop_nulls()
        if not len(there):
            self.left_out[name] = f"{CHECK}all of it is missing"
            return None
        if _nested(column):
            dims = there.list.len().unique().to_list()
            if len(dims) == 1 and dims[0] and there.explode().dtype.is_numeric():
                return self._kept(Vector(name, dim=dims[0]), f"{seen}; {dims[0]} numbers an item")
            self.left_out[name] = f"{CHECK}{seen}; sequences of several lengths"
            return None
        if OUTCOME_LIKE.fullmatch(name):
            self.left_out[name] = f"{CHECK}{seen}; named like an outcome, which would tell the labels"
            return None
        if column.dtype.is_numeric() and (POSITION_LIKE.fullmatch(name) or PROPENSITY_LIKE.fullmatch(name)):
            role = "position" if POSITION_LIKE.fullmatch(name) else "propensity"
            self.left_out[name] = f'{CHECK}{seen}; named like a {role}: if it is one, name it as "{role}" above'
            return None
        if column.dtype.is_temporal() or TIME_LIKE.search(name):
            self.left_out[name] = f"{seen}; a time; --split-by time:{name} splits by it"
            return None
        if column.dtype == pl.String:
            lengths = there.str.len_chars()
            if _number(lengths.mean()) > LONG_TEXT:
                self.left_out[name] = f"{CHECK}{seen}; long text: embed it, and give the vectors"
                return None
            return self._categorical(name, seen, "text", there)
        if column.dtype == pl.Boolean:
            return self._categorical(name, seen, "true or false", there)
        if column.dtype.is_integer() and not NUMBER_LIKE.search(name):
            if _number(there.min()) < 0:
                return self._dense(
                    column, f"{seen}; {CHECK}an integer below 0 is no id; if it means missing, write null"
                )
            if ID_LIKE.search(name):
                return self._categorical(name, seen, "named like an id or a category", there)
            distinct = there.n_unique()
            if distinct <= FEW_VALUES:
                return self._categorical(name, seen, f"{CHECK}integers, few of them", there)
            return self._dense(column, f"{seen}; {CHECK}integers, many of them: if they are ids, make it categorical")
        if column.dtype.is_numeric():
            whole_ids = ID_LIKE.search(name) and (there.cast(pl.Float64) % 1 == 0).all()
            return self._dense(
                column, f"{seen}; {CHECK}named like an id, but no integers: write them as such" if whole_ids else seen
            )
        self.left_out[name] = f"{CHECK}{seen}; of a type that is no feature"
        return None

    def _categorical(self, name: str, seen: str, why: str, there: pl.Series) -> Categorical:
        many = f"; many values: hash_size {2**18} bounds the table" if there.n_unique() > MANY_VALUES else ""
        return self._kept(Categorical(name), f"{seen}; {why}{many}")

    def _dense(self, column: pl.Series, seen: str) -> Dense:
        numbers = column.drop_nulls().cast(pl.Float64)
        numbers = numbers.filter(numbers.is_finite())
        missing: Any = "indicator" if column.null_count() else "mean"
        scale: Any = "standard"
        if len(numbers) and _number(numbers.min()) >= 0:
            middle = _number(numbers.median())
            if SKEWED.search(column.name):
                scale, seen = "log", f"{seen}; log, being named like a price or a count"
            elif middle > 0 and _number(numbers.max()) > LONG_TAIL * middle:
                scale, seen = "log", f"{seen}; log, the largest being over {LONG_TAIL} times the median"
        return self._kept(Dense(column.name, scale=scale, missing=missing), seen)

    def _history(self, column: pl.Series, tables: dict[str, pl.Series]) -> Categorical | Dense | None:
        flat = column.explode().drop_nulls()
        if not len(flat):
            self.left_out[column.name] = f"{CHECK}a history that is empty in all rows read"
            return None
        shared = self._shared_table(flat, tables)
        if shared is not None:
            why = f"{CHECK}history, most of its values are also in {shared}, whose table it shares"
            return self._kept(Categorical(column.name, shares=shared), f"{_seen(flat)}; {why}")
        feature = self._feature(flat.alias(column.name))
        if isinstance(feature, Categorical):
            self.comments[column.name] += f"; {CHECK}history, no item column holds its values"
        return feature if isinstance(feature, Categorical | Dense) else None

    def _shared_table(self, flat: pl.Series, tables: dict[str, pl.Series]) -> str | None:
        """The item column whose values a history holds: the one of its name, else the most alike."""
        if not (flat.dtype.is_integer() or flat.dtype == pl.String) or NUMBER_LIKE.search(flat.name):
            return None
        mine = set(flat)
        alike = {}
        for name, values in tables.items():
            if values.dtype == flat.dtype:
                theirs = set(values.drop_nulls())
                if 2 * len(mine & theirs) > len(mine):
                    same_name = name.removesuffix("_id").lower() in flat.name.lower()
                    alike[name] = (same_name, len(mine & theirs) / len(mine | theirs))
        return max(alike, key=lambda name: alike[name], default=None)

    def _kept(self, feature: Any, comment: str) -> Any:
        self.comments[feature.name] = comment
        return feature


def _number(value: Any) -> float:
    """A minimum, maximum or mean; of nothing, 0."""
    return float(value or 0)


def _nested(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List | pl.Array)


def _seen(column: pl.Series) -> str:
    """Type, distinct values, share missing, range or examples."""
    there = column.drop_nulls()
    parts = [str(column.dtype).lower()]
    if not _nested(column) and len(there):
        parts.append(f"{there.n_unique():,} distinct")
        if column.dtype.is_numeric():
            parts.append(f"{_shown(there.min())} to {_shown(there.max())}")
        else:
            parts.append("such as " + ", ".join(_shown(value) for value in there.unique(maintain_order=True)[:3]))
    if column.null_count():
        parts.append(f"{column.null_count() / len(column):.1%} missing")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value) if not isinstance(value, str) else json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 30 else text[:27] + "..."


def _comment(text: str) -> str:
    """On one line, whatever the names of columns hold."""
    return "// " + " ".join(text.split())


def _described(feature: Feature) -> str:
    """The fields of a feature that one may want to change, on one line."""
    left_out = {"shares"} if getattr(feature, "shares", None) is None else {"size", "hash_size", "min_count"}
    fields = {name: value for name, value in dataclasses.asdict(feature).items() if name not in left_out}
    return json.dumps({"kind": kind_of(feature), **fields})
