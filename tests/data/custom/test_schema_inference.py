"""Schemas guessed from files: the guesses, the comments, and that a written schema is read back unchanged."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank.data.custom.inference import infer_schema
from hf_rerank.data.custom.inferred_schema import CHECK
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector

LISTS, LENGTH = 120, 3


def lists() -> list[dict[str, Any]]:
    """One column of each kind."""
    made = []
    for number in range(LISTS):
        slots = range(LENGTH)
        made.append(
            {
                "request_id": f"r{number}",
                "user_id": number // 2,
                "gender": "f" if number % 3 else None,
                "age": 20.0 + number % 50,
                "item_id": [3 * number + slot for slot in slots],
                "brand": ["acme", "zeta", "omega"],
                "price": [None if number == 5 else 10.0 * (slot + 1) for slot in slots],
                "quality": [slot - 1.5 for slot in slots],
                "tail": [10_000.0 if number == 7 else 1.0 + slot for slot in slots],
                "color": [(number + slot) % 5 for slot in slots],
                "stock": [LENGTH * number + slot for slot in slots],
                "delta": [slot - 1 for slot in slots],
                "embedding": [[0.5, slot / 2] for slot in slots],
                "description": [f"a very long text that says what item {slot} is, " * 3 for slot in slots],
                "empty": [None] * LENGTH,
                "timestamp": [1_700_000_000 + number] * LENGTH,
                "seen_items": [3 * number + slot for slot in slots][: number % 3],
                "minutes_ago": [1.5, 2.5][: number % 3],
                "click": [int(slot == number % 3) for slot in slots],
                "rank": [2, 0, 1],
            }
        )
    return made


EXPECTED = ListSchema(
    items=[
        Categorical("item_id"),
        Categorical("brand"),
        Dense("price", scale="log", missing="indicator"),
        Dense("quality"),
        Dense("tail", scale="log"),
        Categorical("color"),
        Dense("stock"),
        Dense("delta"),
        Vector("embedding", dim=2),
    ],
    user=[Categorical("gender"), Dense("age")],
    history=[Categorical("seen_items", shares="item_id"), Dense("minutes_ago", scale="log")],
    label="click",
    position="rank",
    list_id="request_id",
    group="user_id",
    max_list_length=LENGTH,
)


def write(folder: Path, kind: str) -> Path:
    rows = lists()
    path = folder / f"lists.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        history = ("seen_items", "minutes_ago")
        long = [
            {
                name: json.dumps(value)
                if name in history
                else (
                    (json.dumps(value[slot]) if name == "embedding" else value[slot])
                    if isinstance(value, list)
                    else value
                )
                for name, value in row.items()
            }
            for row in rows
            for slot in range(LENGTH)
        ]
        pl.DataFrame(long, infer_schema_length=None).write_csv(path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        half = folder if kind == "jsonl" else folder / "parts"
        half.mkdir(exist_ok=True)
        parts = [("lists", rows)] if kind == "jsonl" else [("test", rows[:50]), ("train", rows[50:])]
        for name, part in parts:
            (half / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        path = path if kind == "jsonl" else half
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet", "folder"])
def test_every_file_format_gives_the_same_guess(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    inferred = infer_schema(path)
    in_long_form = kind == "csv"
    # In the long form, a time shared by all items cannot be told from a feature of the list; neither is kept.
    assert inferred.schema == EXPECTED
    assert set(inferred.left_out) == {"description", "empty", "timestamp"}
    file = tmp_path / "schema.commented"
    file.write_text(inferred.to_text())
    assert ListSchema.load(file) == EXPECTED
    rows = LISTS * LENGTH if in_long_form else LISTS
    assert f"from all {rows} rows" in inferred.header[0]


def test_comments_describe_columns_and_reasons(tmp_path: Path) -> None:
    """Values counted by hand: 360 prices, 3 of them missing; 119 * 3 labels of which a third are clicks."""
    inferred = infer_schema(write(tmp_path, "jsonl"))
    comments, of_fields = inferred.comments, inferred.field_comments
    assert comments["item_id"] == "int64, 360 distinct, 0 to 359; named like an id or a category"
    assert comments["brand"].startswith('string, 3 distinct, such as "acme", "zeta", "omega"; text')
    assert comments["price"].startswith("float64, 3 distinct, 10 to 30, 0.8% missing; log, being named")
    assert "over 20 times the median" in comments["tail"]
    assert comments["color"].endswith("named like an id or a category")
    assert f"{CHECK}integers, many of them" in comments["stock"]
    assert "below 0 is not an id" in comments["delta"]
    assert "2 numbers per item" in comments["embedding"]
    assert "33.3% missing" in comments["gender"]
    assert "item_id, whose table it shares" in comments["seen_items"]
    assert of_fields["label"] == "guessed by its name; holds 0 and 1, mean 0.3333"
    assert "0 to length - 1 in every list" in of_fields["position"]
    assert of_fields["max_list_length"] == "the longest list"


def test_rows_option_limits_the_rows_that_are_read(tmp_path: Path) -> None:
    for kind, rows in (("csv", 10), ("jsonl", 10), ("parquet", 10)):
        inferred = infer_schema(write(tmp_path, kind), rows=rows)
        assert "from the first " in inferred.header[0]
        assert CHECK in inferred.field_comments["max_list_length"]
        # In the CSV the tenth row begins a list whose end was not read: three complete lists are left.
        distinct = 9 if kind == "csv" else 30
        assert f"{distinct} distinct" in inferred.comments["item_id"]
        assert inferred.schema.position == "rank"


def test_parquet_dictionary_columns_are_text(tmp_path: Path) -> None:
    shops = pa.ListArray.from_arrays(pa.array([0, 2, 4]), pa.array(["a", "b", "b", "a"]).dictionary_encode())
    pq.write_table(pa.table({"shop": shops, "click": [[0, 1], [1, 0]]}), tmp_path / "lists.parquet")
    assert infer_schema(tmp_path / "lists.parquet").schema.items == (Categorical("shop"),)


def test_roles_given_by_the_caller_are_used(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    inferred = infer_schema(path, label="color", group="gender", list_id="age")
    schema = inferred.schema
    assert (schema.label, schema.group, schema.list_id) == ("color", "gender", "age")
    assert "named like an outcome" in inferred.left_out["click"]


def csv(tmp_path: Path, text: str) -> Path:
    (tmp_path / "lists.csv").write_text(text)
    return tmp_path / "lists.csv"


def test_rank_columns_from_1_or_with_gaps(tmp_path: Path) -> None:
    from_one = infer_schema(csv(tmp_path, "qid,item_id,rank,click\n1,5,1,0\n1,6,2,1\n2,5,1,1\n2,7,2,0\n"))
    assert from_one.schema.position == "rank"
    assert "1 to length in every list that was read" in from_one.field_comments["position"]
    assert CHECK not in from_one.field_comments["position"]
    none = infer_schema(csv(tmp_path, "qid,item_id,rank,click\n1,5,4,0\n1,6,9,1\n2,5,1,1\n2,7,2,0\n"))
    assert none.schema.position is None
    assert "not 0 to length - 1" in none.field_comments["position"]
    assert [feature.name for feature in none.schema.items] == ["item_id"]


def test_other_outcomes_positions_and_propensities_are_not_features(tmp_path: Path) -> None:
    """A second outcome, a second position and a propensity; and a column named like a field of the schema."""
    (tmp_path / "lists.csv").write_text(
        "list_id,user_id,item_id,click,purchase,dwell_time,rank,position,propensity,weight\n"
        "1,7,3,0,0,0,0,1,0.9,2.5\n1,7,4,1,1,5.5,1,0,0.5,1.5\n2,8,3,1,0,7,0,0,0.9,2.5\n2,8,5,0,0,0,1,1,0.5,3.5\n"
    )
    inferred = infer_schema(tmp_path / "lists.csv")
    assert inferred.schema == ListSchema(
        items=[Categorical("item_id"), Dense("weight")],
        label="click",
        position="rank",
        list_id="list_id",
        group="user_id",
        max_list_length=2,
    )
    assert inferred.field_comments["label"].startswith(f"guessed by its name; {CHECK}it might also be purchase")
    assert inferred.field_comments["position"].startswith(f"guessed by its name; {CHECK}it might also be position")
    for name, why in (
        ("purchase", "named like an outcome"),
        ("dwell_time", "named like an outcome"),
        ("position", "another order of the items"),
        ("propensity", 'named like a propensity: if it is one, name it as "propensity"'),
    ):
        assert inferred.left_out[name].startswith(CHECK)
        assert why in inferred.left_out[name]
    # A comment above a field describes the field, not the feature of the same name.
    above = {line.strip(): before for before, line in itertools.pairwise(inferred.to_text().splitlines())}
    assert not above['"weight": null,'].lstrip().startswith("//")


def test_only_column_of_0_and_1_is_guessed_as_the_label(tmp_path: Path) -> None:
    """With two such columns the label cannot be guessed."""
    inferred = infer_schema(csv(tmp_path, "qid,item_id,chosen\n1,5,0\n1,6,1\n2,5,1\n2,7,0\n"))
    assert inferred.schema.label == "chosen"
    assert inferred.field_comments["label"].startswith(f"{CHECK}the only column")
    with pytest.raises(InputError, match=r"no column looks like the label.*--label; .*item_id, a, b"):
        infer_schema(csv(tmp_path, "qid,item_id,a,b\n1,5,0,1\n1,6,1,0\n2,5,1,0\n2,7,0,1\n"))


def test_odd_column_names_do_not_break_comments(tmp_path: Path) -> None:
    """A line break in a name, and // in a value: still comments, and still JSON."""
    path = tmp_path / "lists.jsonl"
    row = {
        "item": [1, 2],
        "ti\nme": [1.0, 2.0],
        "url": ["// http://a", "b"],
        "click": [0, 1],
        "all\nnull": [None, None],
    }
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "click": [1, 0]}) + "\n")
    inferred = infer_schema(path)
    (tmp_path / "schema").write_text(inferred.to_text())
    assert ListSchema.load(tmp_path / "schema") == inferred.schema
    assert {feature.name for feature in inferred.schema.items} == {"item", "ti\nme", "url"}


def test_schema_comments_must_be_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    name = "// no comment"
    text = f'// one\n{{\n  // "items": [],\n\t//two\n  "items": [{{"kind": "dense", "name": "{name}"}}]\n}}\n// three'
    path.write_text(text)
    assert ListSchema.load(path) == ListSchema(items=[Dense(name)])
    path.write_text(text.replace('"}]', '"}],'))
    with pytest.raises(InputError, match=r"not valid JSON: .* line [56]"):
        ListSchema.load(path)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "a,item_id,click\n1,2,0\n1,3,1\n",
            {},
            r"no column looks like the id of the list.*--list-id; .*a, item_id, click",
        ),
        (
            "qid,item_id,click\n1,2,0\n1,3,1\n",
            {"label": "clck"},
            r"no column 'clck' for the label.*did you mean 'click'",
        ),
        ("qid,click\n1,0\n1,1\n", {}, "no column of the items can be a feature"),
        ("qid,item_id,click\n1,2,0\n", {"rows": 0}, "rows is 0: expected at least 1"),
    ],
)
def test_files_without_guessable_roles_are_refused(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        infer_schema(csv(tmp_path, text), **options)


@pytest.mark.parametrize("name", ["lists.jsonl", "lists.json"])
@pytest.mark.parametrize("form", ["lines", "blank lines", "byte-order mark", "array", "array over lines"])
def test_every_json_layout_that_can_be_loaded_gives_a_guess(tmp_path: Path, name: str, form: str) -> None:
    rows = [{"user_id": number, "item_id": [1, 2], "click": [0, 1]} for number in range(3)]
    lines = [json.dumps(row) for row in rows]
    text = {
        "lines": "\n".join(lines),
        "blank lines": "\n\n" + "\n \n".join(lines) + "\n\n",
        "byte-order mark": "\ufeff" + "\r\n".join(lines) + "\r\n",
        "array": json.dumps(rows),
        "array over lines": "\n" + json.dumps(rows, indent=1) + "\n",
    }[form]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    inferred = infer_schema(tmp_path / name)
    assert inferred.schema == ListSchema(items=[Categorical("item_id")], group="user_id", max_list_length=2)
    assert "from all 3 rows" in inferred.header[0]
    assert "the first 2 rows only" in infer_schema(tmp_path / name, rows=2).header[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"item": 1, "click": 1}\n', "no column holds sequences"),
        ('{"item": [1, 2], "click": 1}\n', "column 'click', named as the label, holds one value per list"),
        ('{"item": [1, 2], "cl\n', "cannot read lists from .*one JSON object per list"),
    ],
)
def test_files_without_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "lists.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        infer_schema(tmp_path / "lists.jsonl", label="click")


NAMES = {
    # whole words only: none of these holds count, rate, ratio, age, day, time or pos as a word
    **dict.fromkeys(
        ("country", "account_id", "discount_code", "strategy", "registration_id", "language"), Categorical
    ),
    **dict.fromkeys(("page", "package", "holiday", "sentiment", "composition"), Categorical),
    # and these do
    **dict.fromkeys(("view_count", "conversion_rate", "priceRatio", "age", "avg_price", "numReviews7"), Dense),
    **dict.fromkeys(("hour", "day", "weekday", "is_new", "brandId", "shop-code"), Categorical),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_matched_by_whole_words(name: str, tmp_path: Path) -> None:
    """Integers of 0 to 6 in every column: only the name says what they are."""
    rows = [
        {"q": k, "item_id": [k, k + 1, k + 2], name: [k % 7, (k + 1) % 7, (k + 3) % 7], "click": [1, 0, 0]}
        for k in range(60)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = infer_schema(tmp_path / "a.jsonl", list_id="q").schema
    assert {type(feature) for feature in schema.items if feature.name == name} == {NAMES[name]}


def test_ids_of_19_digits_do_not_merge_lists(tmp_path: Path) -> None:
    """As floats 10**18 + 1 and 10**18 + 2 are one number."""
    rows = "".join(f"{10**18 + k // 2},{10**18 + k % 7},{k % 2}\n" for k in range(40))
    inferred = infer_schema(csv(tmp_path, "request_id,item,click\n" + rows))
    assert inferred.schema.max_list_length == 2
    assert inferred.comments["item"].startswith("int64, 7 distinct, 1000000000000000000 to 1000000000000000006")


def test_schema_file_of_another_program_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"item_categorical": {"doc": 4}}')
    path = csv(tmp_path, "request_id,item_id,click\n1,5,0\n1,6,1\n2,5,1\n2,7,0\n")
    assert infer_schema(tmp_path).schema == infer_schema(path).schema


def test_uncertain_guesses_are_listed_for_review(tmp_path: Path) -> None:
    inferred = infer_schema(csv(tmp_path, "request_id,item_id,tab,click\n1,5,3,0\n1,6,4,1\n2,5,3,1\n2,7,9,0\n"))
    marked = [line for line in inferred.to_text().splitlines() if CHECK in line]
    assert len(inferred.list_uncertain()) == len(marked) == 2
    assert [line.partition(":")[0] for line in inferred.list_uncertain()] == ["position", "group"]


def test_null_strings_are_shown_and_can_be_changed(tmp_path: Path) -> None:
    text = "request_id,item_id,size_cm,click\n1,5,-,0\n1,6,4.5,1\n2,5,3.25,1\n2,7,9.5,0\n"
    as_text = infer_schema(csv(tmp_path, text))
    assert isinstance(as_text.schema.items[1], Categorical)
    assert any(
        line.startswith("Read as missing: empty cells, NULL, \\N; in columns of numbers also")
        for line in as_text.header
    )
    as_number = infer_schema(csv(tmp_path, text), options=ReadOptions(null_strings=("-",)))
    assert as_number.schema.items[1] == Dense("size_cm", missing="indicator")
