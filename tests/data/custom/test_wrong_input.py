"""Every kind of wrong input, one per row of ``CASES``: where it occurs, and what its one-line message must say.

An error is an ``InputError``, a warning a ``UserWarning`` (of ``prepare own``: a line of its report). The fragments
name the column, the first wrong list or line, and the remedy.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank import Reranker, RerankTrainer, RerankTrainingArguments
from hf_rerank.data.custom.prepare import prepare_own
from hf_rerank.data.loading import load_lists
from hf_rerank.errors import InputError
from hf_rerank.models.dnn import DNNConfig, DNNForReranking
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector

SCHEMA = ListSchema(
    items=[Categorical("item_id"), Dense("price"), Vector("text", dim=2)],
    user=[Categorical("gender")],
    history=[Categorical("seen", shares="item_id")],
    label="click",
    position="place",
    list_id="request",
    group="user",
    max_list_length=4,
)
NO_POSITION = SCHEMA.replace(position=None)


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A list of three items, clicked at each of them in turn; ``...`` leaves a column out."""
    columns = {
        "request": f"r{number}",
        "user": number // 2,
        "item_id": [3 * number, 3 * number + 1, 3 * number + 2],
        "price": [1.5, None, 2.5],
        "text": [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]],
        "gender": "f" if number % 2 else None,
        "seen": [1, 2][: number % 3],
        "click": [int(slot == number % 3) for slot in range(3)],
        "place": [2, 0, 1],
        "day": number,
        **changes,
    }
    return {name: value for name, value in columns.items() if value is not ...}


def rows(wrong: int = 3, n: int = 12, **changes: Any) -> list[dict[str, Any]]:
    """Correct lists, except for one."""
    return [row(number, **(changes if number == wrong else {})) for number in range(n)]


def every(n: int = 12, **changes: Any) -> list[dict[str, Any]]:
    return [row(number, **changes) for number in range(n)]


def load(lists: list[dict[str, Any]], schema: ListSchema = SCHEMA, **options: Any) -> Any:
    return load_lists({"train": datasets.Dataset.from_list(lists)}, schema=schema, **options)


def lines(lists: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lists))
    return path


def prepare(folder: Path, lists: list[dict[str, Any]], schema: ListSchema = SCHEMA, **options: Any) -> Any:
    return prepare_own(lines(lists, folder / "lists.jsonl"), folder / "out", schema=schema, progress=False, **options)


LONG_SCHEMA = ListSchema(
    items=[Categorical("item_id"), Dense("price")],
    user=[Categorical("gender")],
    label="click",
    position="place",
    list_id="request",
    group="user",
)
CSV = """request,user,item_id,price,gender,click,place,day
a,1,10,1.5,f,1,0,2024-05-01
a,1,11,,f,0,1,2024-05-01
b,2,10,2.5,,1,1,2024-05-02
b,2,12,3.5,,0,0,2024-05-02
"""


def csv(
    folder: Path, old: str = "", new: str = "", schema: ListSchema = LONG_SCHEMA, text: str = CSV, **options: Any
) -> Any:
    """Loads the CSV with one change."""
    assert old in text
    (folder / "train.csv").write_text(text.replace(old, new, 1))
    return load_lists(folder / "train.csv", schema=schema, **options)


def written(folder: Path, name: str, content: bytes, schema: ListSchema = SCHEMA) -> Any:
    (folder / name).write_bytes(content)
    return load_lists(folder / name, schema=schema)


def parts(lists: list[dict[str, Any]]) -> tuple[DNNForReranking, ListProcessor]:
    processor = ListProcessor.from_lists(datasets.Dataset.from_list(lists), schema=SCHEMA)
    return DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[4])), processor


def train(folder: Path, lists: list[dict[str, Any]], **options: Any) -> None:
    model, processor = parts(every())
    arguments = RerankTrainingArguments(
        str(folder / "run"),
        max_steps=2,
        per_device_train_batch_size=8,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    RerankTrainer(model, arguments, datasets.Dataset.from_list(lists), processing_class=processor).train()


def rank(**changes: Any) -> Any:
    return Reranker(*reversed(parts(every()))).rerank([row(0, click=...), row(1, **{"click": ..., **changes})])


def loaded_schema(folder: Path, text: str) -> Any:
    (folder / "mine.json").write_text(text)
    return load_lists({"train": datasets.Dataset.from_list(every())}, schema=folder / "mine.json")


def two_files(folder: Path) -> Any:
    (folder / "a.csv").write_text(CSV)
    (folder / "b.csv").write_text(CSV.replace("b,2,", "c,2,"))
    return load_lists(folder, schema=LONG_SCHEMA)


def truncated_parquet(folder: Path) -> Any:
    pq.write_table(pa.Table.from_pylist(every()), folder / "lists.parquet")
    return written(folder, "lists.parquet", (folder / "lists.parquet").read_bytes()[:-9])


def broken_line(folder: Path) -> Any:
    path = lines(every(), folder / "lists.jsonl")
    broken = path.read_text().splitlines(keepends=True)
    return written(folder, "lists.jsonl", "".join([*broken[:4], broken[4][:30] + "\n", *broken[5:]]).encode())


def misnamed_file(folder: Path) -> Any:
    lines(every(), folder / "train.jsonl")
    lines(every(), folder / "tset.jsonl")
    return load_lists(folder, schema=SCHEMA)


def frame(**changes: Any) -> pl.DataFrame:
    return pl.DataFrame(every(**changes))


@dataclass
class Case:
    """``make`` runs into the wrong input; the message must contain every part of ``says``."""

    make: Callable[[Path], Any]
    says: list[str]
    warns: bool = False


HERE = "list 3 (id r3)"
EMPTY = {"item_id": [], "price": [], "text": [], "click": [], "place": []}
ONE = {"item_id": [1], "price": [1.0], "text": [[0.0, 0.0]], "click": [1], "place": [0]}
CLICK_FIRST = {"click": [1, 0, 0]}
FIVE = {
    "item_id": [1, 2, 3, 4, 5],
    "price": [1.0] * 5,
    "text": [[0.0, 0.0]] * 5,
    "click": [1, 0, 0, 0, 0],
    "place": [0, 1, 2, 3, 4],
}
OTHER = ListSchema(items=[Categorical("adgroup_id"), Categorical("cate_id")], label="click", list_id="request")
CASES = {
    # --------------------------------------------------------------------------------------------- columns and schemas
    "missing column": Case(
        lambda _: load(every(price=..., prize=[1.0, 2.0, 3.0])), ["no column 'price'", "did you mean 'prize'"]
    ),
    "missing label": Case(lambda _: load(every(click=...)), ["split 'train'", "no column 'click'", "request"]),
    "another data set's schema": Case(
        lambda _: load(every(), OTHER), ["no column 'adgroup_id'", "their columns: request, user, item_id"]
    ),
    "label also a feature": Case(
        lambda _: SCHEMA.replace(items=[Categorical("item_id"), Dense("click")]),
        ["'click' is both a feature and the label"],
    ),
    "unknown key of a schema": Case(
        lambda folder: loaded_schema(folder, '// mine\n{"items": [], "lable": "click"}'),
        ["unknown key 'lable'", "did you mean 'label'"],
    ),
    "schema that is not JSON": Case(
        lambda folder: loaded_schema(folder, '// mine\n// a comment\n{"items": [,]}'),
        ["mine.json is not valid JSON", "line 3"],
    ),
    "struct column": Case(
        lambda _: load(every(item_id=[{"id": 1}, {"id": 2}, {"id": 3}])),
        ["'item_id' holds struct", "expected integers or text", "convert it"],
    ),
    "fractional ids": Case(
        lambda _: load(every(item_id=[1.5, 2.0, 3.0])), ["'item_id' holds double", "integers or text"]
    ),
    "text for numbers": Case(
        lambda _: load(every(price=["1", "2", "?"])), ["'price' holds string", "expected numbers", "convert it"]
    ),
    "one value for a sequence": Case(
        lambda _: load(every(price=1.0)), ["'price' holds one double per list", "expected a sequence", "frame"]
    ),
    # ---------------------------------------------------------------------------------------------------------- values
    "ragged list": Case(
        lambda _: load(rows(price=[1.0])), [f"{HERE} is ragged", "'price' has 1", "'item_id' has 3", "equally long"]
    ),
    "empty list": Case(lambda _: load(rows(**EMPTY)), [f"{HERE} is empty", "leave it out"]),
    "NaN": Case(
        lambda _: load(rows(price=[1.0, math.nan, 2.0])), [f"{HERE}, item 1", "'price' holds nan", "written as null"]
    ),
    "infinity": Case(
        lambda _: load(rows(price=[1.0, 2.0, math.inf])), [f"{HERE}, item 2", "'price' holds inf", "finite"]
    ),
    "negative id": Case(
        lambda _: load(rows(item_id=[9, -1, 10])),
        [f"{HERE}, item 1", "'item_id' holds -1", "at least 0", "written as null"],
    ),
    "negative id of the user": Case(
        lambda _: load(
            [{**one, "gender": -1 if one["request"] == "r3" else 1} for one in every()],
        ),
        [HERE, "'gender' holds -1", "written as null"],
    ),
    "vector of another length": Case(
        lambda _: load(rows(text=[[0.1, 0.2], [0.3], [0.5, 0.6]])), [f"{HERE}, item 1", "'text' has 1", "expected 2"]
    ),
    "negative label": Case(
        lambda _: load(rows(click=[0, 0, -1])), [f"{HERE}, item 2", "label column 'click' holds -1", "at least 0"]
    ),
    "null label": Case(
        lambda _: load(rows(click=[0, None, 1])),
        [f"{HERE}, item 1", "label column 'click' is null", "expected a number"],
    ),
    "repeated positions": Case(
        lambda _: load(rows(place=[0, 0, 1])),
        [HERE, "'place'", "not a permutation of 0..2 (0, 0, 1)", "0 to length - 1 once"],
    ),
    "positions from 1": Case(
        lambda _: load(rows(place=[1, 2, 3])), [HERE, "'place'", "they start at 1, and those of other lists do not"]
    ),
    "null list id": Case(
        lambda _: load(rows(request=None)), ["'request' of list 3 is null", "fill it, or leave list_id out"]
    ),
    "duplicate list id": Case(
        lambda _: load(rows(request="r1")), ["'request' holds the id r1 in list 1 and again in list 3", "unique"]
    ),
    # ------------------------------------------------------------------------------------------ legal but likely wrong
    "an item twice in a list": Case(
        lambda _: load(rows(item_id=[7, 8, 7])),
        ["'item_id'", "repeats some within 1 of 12 lists", "list r3: 7", "remove the repeats"],
        warns=True,
    ),
    "lists of one item": Case(
        lambda _: load([row(number, **{**ONE, "click": [number % 2]}) for number in range(12)]),
        ["12 of 12 lists have one item", "leave them out", "list_id"],
        warns=True,
    ),
    "all labels 0": Case(
        lambda _: load(every(click=[0, 0, 0])), ["label column 'click' is 0 everywhere in 12 lists"], warns=True
    ),
    "all labels 1": Case(
        lambda _: load(every(click=[1, 1, 1])), ["label column 'click' is 1 everywhere", "right column"], warns=True
    ),
    "an item twice, in a column of any name": Case(
        lambda _: load(
            [{**one, "what": [7, 8, 7] if one["request"] == "r9" else one["item_id"]} for one in every(50)],
            ListSchema(items=[Categorical("what")], list_id="request"),
        ),
        ["'what' names items, and repeats some within 1 of 50 lists", "list r9: 7", "if this one is not an id"],
        warns=True,
    ),
    "clicked items first": Case(
        lambda _: load(every(**CLICK_FIRST), NO_POSITION),
        ["order of the slots alone has an AUC of 1.000", "position column", "shuffle"],
        warns=True,
    ),
    "group is a feature": Case(
        lambda _: SCHEMA.replace(user=[Categorical("user")]), ["'user' is the column to split by"], warns=True
    ),
    # ------------------------------------------------------------------------------------------------------------- CSV
    "CSV: text for a number": Case(
        lambda folder: csv(folder, "2.5", "cheap"),
        ["train.csv, line 4", "'price' holds 'cheap'", "expected a number", "empty cell"],
    ),
    "CSV: one row per list": Case(
        lambda folder: csv(folder, "1.5", '"[1.5, 2.5]"'),
        ["train.csv, line 2", "'price' holds '[1.5, 2.5]'", "one row is one item", "must contain lists"],
    ),
    "CSV: a position that is not an integer": Case(
        lambda folder: csv(folder, ",0,1,2024", ",0,1.5,2024"),
        ["train.csv, line 3", "'place' holds '1.5'", "integer from 0"],
    ),
    "CSV: NaN": Case(
        lambda folder: csv(folder, "2.5", "nan"), ["(id b), item 1", "'price' holds nan", "written as null"]
    ),
    "CSV: no list id": Case(
        lambda folder: csv(folder, "b,2,10", ",2,10"), ["train.csv, line 4", "'request' is null", "expected the id"]
    ),
    "CSV: schema without list id": Case(
        lambda folder: csv(folder, schema=LONG_SCHEMA.replace(list_id=None)),
        ["train.csv", "needs list_id in the schema"],
    ),
    "CSV: missing column": Case(
        lambda folder: csv(folder, "price", "prize"),
        ["train.csv, line 1", "no column 'price'", "did you mean 'prize'"],
    ),
    "CSV: a user that changes within a list": Case(
        lambda folder: csv(folder, "b,2,12,3.5,,", "b,2,12,3.5,m,"),
        [
            "train.csv, line 5",
            "'gender' differs within list b (None, 'm')",
            "one value per list",
            "items of the schema",
        ],
    ),
    "CSV: an id of more than 64 bits in a history": Case(
        lambda folder: csv(
            folder,
            text=CSV.replace("2024-05-01", "[1]").replace("2024-05-02", "[18446744073709551616]"),
            schema=LONG_SCHEMA.replace(history=[Categorical("day")]),
        ),
        ["train.csv, line 4", "'day' holds the id 18446744073709551616", "64 bits", "as text"],
    ),
    "CSV: positions from 1": Case(
        lambda folder: csv(folder, text=CSV.replace(",0,1,2024", ",0,2,2024").replace("f,1,0,", "f,1,1,")),
        ["(id a)", "'place'", "they start at 1, and those of other lists do not"],
    ),
    "CSV: another separator": Case(
        lambda folder: csv(folder, text=CSV.replace(",", ";")),
        ["train.csv has one column", "separated by ';'", "separator=';' (--separator)"],
    ),
    "CSV: duplicate column": Case(
        lambda folder: csv(folder, "day", "price"), ["train.csv has 2 columns 'price'", "rename"]
    ),
    "CSV: a column without a name": Case(
        lambda folder: csv(folder, "gender", ""), ["train.csv has no name for column 5", "name it"]
    ),
    "CSV: a line with too many cells": Case(
        lambda folder: csv(folder, "2.5", "2,5"), ["train.csv, line 4 has 9 cells, but the header has 8", "quote"]
    ),
    "CSV: a line cut short": Case(
        lambda folder: csv(folder, ",0,0,2024-05-02\n", ",0"), ["train.csv, line 5 has 6 cells, but the header has 8"]
    ),
    "CSV: an open quote": Case(lambda folder: csv(folder, "2.5", '"2.5'), ["train.csv, line", "quote is unclosed"]),
    "CSV: not UTF-8": Case(
        lambda folder: written(folder, "a.csv", CSV.encode().replace(b",f,", b",\xe9,"), LONG_SCHEMA),
        ["a.csv is not UTF-8", "save it as UTF-8"],
    ),
    "CSV: only a header": Case(
        lambda folder: csv(folder, text=CSV.splitlines()[0]), ["train.csv holds no lists", "write it again"]
    ),
    "CSV: a history that is not a list": Case(
        lambda folder: csv(folder, schema=LONG_SCHEMA.replace(history=[Categorical("day")])),
        ["train.csv, line 2", "'day' holds '2024-05-01'", "JSON list such as [1, 2, 3]"],
    ),
    "CSV: a list in two files": Case(
        two_files, ["list a has rows in", "a.csv and in", "b.csv", "make 'request' unique"]
    ),
    "CSV: as a stream": Case(
        lambda folder: csv(folder, streaming=True),
        ["train.csv has one row per item", "streaming=False", "hf-rerank prepare own"],
    ),
    # ------------------------------------------------------------------------------------------------ files and frames
    "empty file": Case(lambda folder: written(folder, "a.jsonl", b""), ["a.jsonl holds no lists", "write it again"]),
    "empty CSV": Case(lambda folder: written(folder, "a.csv", b""), ["a.csv holds no lists", "write it again"]),
    "truncated Parquet": Case(truncated_parquet, ["lists.parquet is not a complete Parquet file", "copy it again"]),
    "broken JSON line": Case(broken_line, ["lists.jsonl, line 5", "one JSON object per list"]),
    "file of unknown format": Case(
        lambda folder: written(folder, "a.xlsx", b"PK"), ["a.xlsx is not a file of lists", ".csv"]
    ),
    "lazy frame": Case(lambda _: load_lists(frame().lazy(), schema=SCHEMA), ["LazyFrame", "collect()"]),
    "frame as a stream": Case(lambda _: load_lists(frame(), schema=SCHEMA, streaming=True), ["streaming=False"]),
    "empty frame": Case(
        lambda _: load_lists({"train": frame(), "test": frame().clear()}, schema=SCHEMA), ["'test' holds no lists"]
    ),
    "Polars: integers of 128 bits": Case(
        lambda _: load_lists(frame().cast({"user": pl.Int128}), schema=SCHEMA),
        ["column 'user' holds Int128", "64 bits at most, or text"],
    ),
    "pandas: several types in a column": Case(
        lambda _: load_lists(pandas.DataFrame({"request": [1, "b"], "click": [0, 1]}), schema=LONG_SCHEMA),
        ["'request' of the pandas frame holds values of several types", "one type"],
    ),
    # ---------------------------------------------------------------------------------------------------------- splits
    "unknown split": Case(
        lambda _: load_lists({"trian": frame()}, schema=SCHEMA),
        ["'trian' is not the name of a split", "did you mean 'train'"],
    ),
    "unknown split in its column": Case(
        lambda _: load_lists(datasets.Dataset.from_list(every(split="tests")), schema=SCHEMA),
        ["column 'split' holds 'tests'", "did you mean 'test'"],
    ),
    "unknown split of a file": Case(
        misnamed_file, ["tset.jsonl is not named after a split", "name all of them after splits"]
    ),
    "unknown split when preparing": Case(
        lambda folder: prepare(folder, every(split="fold_0")), ["'split' holds 'fold_0'", "ranker_train", "rename it"]
    ),
    "unknown rule to split by": Case(
        lambda _: load_lists(frame(), schema=SCHEMA, split_by="day"), ["split_by is 'day'", "'time:COLUMN'"]
    ),
    "missing time column": Case(
        lambda _: load_lists(frame(), schema=SCHEMA, split_by="time:days"), ["no column 'days'", "did you mean 'day'"]
    ),
    "no time in one list": Case(
        lambda _: load_lists(pl.DataFrame(rows(day=None)), schema=SCHEMA, split_by="time:day"),
        ["'day' is missing in list 3", "fill it"],
    ),
    "text that is not a time": Case(
        lambda _: load_lists(frame(day="soon"), schema=SCHEMA, split_by="time:day"),
        ["'day' holds 'soon'", "2024-05-31"],
    ),
    "fraction to split by": Case(
        lambda _: load_lists(datasets.Dataset.from_list(every(user=1.5)), schema=SCHEMA),
        ["'user' of list 0 holds 1.5", "one integer or string per list to split by"],
    ),
    "a stream split by time": Case(
        lambda folder: load_lists(
            lines(every(), folder / "a.jsonl"), schema=SCHEMA, streaming=True, split_by="time:day"
        ),
        ["a stream cannot be split by time", "hf-rerank prepare own --split-by time:day"],
    ),
    # ----------------------------------------------------------------------------------- preparing looks at every list
    "preparing: one list of many": Case(
        lambda folder: prepare(folder, rows(2_345, 3_000, price=[1.0, 1e300, 2.0])),
        ["list 2345 (id r2345), item 1", "'price' holds 1e+300"],
    ),
    "preparing: an id twice, far apart": Case(
        lambda folder: prepare(folder, rows(2_999, 3_000, request="r5")),
        ["the id r5 in list 5 and again in list 2999"],
    ),
    "preparing: a list that is too long": Case(
        lambda folder: prepare(folder, rows(**FIVE)),
        ["list r3 has 5 items", "max_list_length=4", "--max-list-length N --cut"],
    ),
    "preparing: an item twice in a list": Case(
        lambda folder: prepare(folder, rows(2_500, 3_000, item_id=[7, 8, 7])),
        ["repeats some within 1 of 3,000 lists", "list r2500: 7"],
        warns=True,
    ),
    # ----------------------------------------------------------------------------------------------- training, ranking
    "training: a label of 2 under a log-loss": Case(
        lambda folder: train(folder, rows(click=[2, 0, 0]), task_loss="binary_log_loss"),
        ["label 2 in list r3", "0 to 1 (column 'click')", "listwise task_loss", "clicks"],
    ),
    "training: a list that is too long": Case(
        lambda folder: train(folder, rows(**FIVE)), ["list r3 has 5 items", "max_list_length=4", "truncate"]
    ),
    "training: NaN": Case(
        lambda folder: train(folder, rows(price=[1.0, math.nan, 2.0])), ["(id r3), item 1", "'price' holds nan"]
    ),
    "ranking: text where integers were learned": Case(
        lambda _: Reranker(*reversed(parts(every()))).rerank([row(0, item_id=["a", "b", "c"])]),
        ["'item_id' holds text", "fitted on integers", "same type as in training"],
    ),
    "ranking: missing column": Case(lambda _: rank(price=...), ["list 1 (id r1) lacks the column 'price'"]),
    "ranking: negative id": Case(
        lambda _: rank(item_id=[1, 2, -5]), ["list 1 (id r1), item 2", "'item_id' holds -5", "written as null"]
    ),
    "ranking: a list that is too long": Case(
        lambda _: rank(**{**FIVE, "click": ...}), ["list r1 has 5 items", "truncate=True"]
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_wrong_input(case: Case, tmp_path: Path) -> None:
    if case.warns:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = case.make(tmp_path)
        said = [str(warning.message) for warning in caught if warning.category is UserWarning]
        said += getattr(made, "warnings", [])
        assert len(said) == 1, said
        message = said[0]
    else:
        with pytest.raises(InputError) as error:
            case.make(tmp_path)
        message = str(error.value)
    assert "\n" not in message
    assert [part for part in case.says if part not in message] == [], message
    print(f"\n{message}")


def test_correct_lists_give_no_error_or_warning(tmp_path: Path) -> None:
    """The rows that the cases change, unchanged, wherever lists are read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(every())
        load(every(), NO_POSITION)
        csv(tmp_path, schema=LONG_SCHEMA)
        load_lists(frame(), schema=SCHEMA, split_by="time:day")
        assert prepare(tmp_path, every()).warnings == []
    train(tmp_path, every(), task_loss="binary_log_loss")
    assert len(rank()) == 2


def test_hashed_ids_may_be_negative() -> None:
    """Half of all 64-bit hashes are."""
    hashed = SCHEMA.replace(items=[Categorical("item_id", hash_size=64), Dense("price")], history=[])
    assert len(load(rows(item_id=[9, -1, 10]), hashed)["train"]) == 12
