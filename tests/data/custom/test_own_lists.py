"""A user's own lists: the same in every form, split by time exactly, prepared completely or not at all."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import digests
from huggingface_hub import DatasetCard

from hf_rerank.data.custom.csv_text import find_line, read_csv
from hf_rerank.data.custom.custom_source import CustomSource
from hf_rerank.data.custom.files import ListFile
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.custom.prepare import prepare_own
from hf_rerank.data.loading import load_lists
from hf_rerank.data.splits import SPLITS
from hf_rerank.data.time_split import describe_empty_splits, read_times, split_by_time
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector
from hf_rerank.validation import Lists

SCHEMA = ListSchema(
    items=[Categorical("item_id"), Categorical("shop"), Dense("price"), Vector("text", dim=2)],
    user=[Categorical("gender"), Dense("age")],
    history=[Categorical("seen", shares="item_id"), Categorical("words"), Dense("minutes")],
    label="click",
    position="place",
    list_id="request",
    group="user",
)


def lists(n: int = 40) -> list[dict[str, Any]]:
    """Lists of 2 to 4 items, slots in the order of their places."""
    made = []
    for number in range(n):
        slots = range(2 + number % 3)
        made.append(
            {
                "request": f"r{number}",
                "user": number // 2,
                "item_id": [10 * number + slot for slot in slots],
                "shop": [("007", "7", None)[(number + slot) % 3] for slot in slots],
                "price": [None if slot == 1 else slot / 4 for slot in slots],
                "text": [[slot / 8, number / 2] for slot in slots],
                "gender": "f" if number % 2 else None,
                "age": float(number),
                "seen": list(range(number % 4)),
                "words": ["a", "b", "c"][: number % 4],
                "minutes": [0.5, 1.5, 2.5][: number % 4],
                "click": [int(slot == number % 2) for slot in slots],
                "place": list(slots),
                "day": [number // 4] * len(slots),
            }
        )
    return made


def items(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with one row per item: lists interleaved, and the items of each in reverse order."""
    history = ("seen", "words", "minutes")
    long = []
    for row in rows:
        for slot in reversed(range(len(row["item_id"]))):
            long.append(
                {
                    name: value[slot] if isinstance(value, list) and name not in history else value
                    for name, value in row.items()
                }
            )
    return long[::2] + long[1::2]


def as_csv(long: list[dict[str, Any]], path: Path) -> Path:
    text = [{name: json.dumps(v) if isinstance(v, list) else v for name, v in row.items()} for row in long]
    pl.DataFrame(text, infer_schema_length=None).write_csv(path)
    return path


def by_id(loaded: Any) -> dict[str, dict[str, Any]]:
    return {row["request"]: {**row, "split": split} for split, rows in loaded.items() for row in rows}


# --------------------------------------------------------------------------------------------------------- every form


@pytest.mark.slow
@pytest.mark.parametrize("form", ["polars long", "polars wide", "pandas long", "pandas wide", "csv", "csv folder"])
def test_every_form_gives_the_same_lists(tmp_path: Path, form: str) -> None:
    rows = lists()
    expected = by_id(load_lists(datasets.Dataset.from_list(rows), schema=SCHEMA))
    assert {row["split"] for row in expected.values()} == {"train", "validation", "test"}
    if form.startswith("csv"):
        if form == "csv":
            source: Any = as_csv(items(rows), tmp_path / "lists.csv")
        else:
            as_csv(items(rows[:15]), tmp_path / "part-0.csv")
            as_csv(items(rows[15:]), tmp_path / "part-1.csv")
            source = tmp_path
    else:
        source = pl.DataFrame(items(rows) if form.endswith("long") else rows, infer_schema_length=None)
        if form.startswith("pandas"):
            source = pandas.DataFrame(items(rows) if form.endswith("long") else rows)
    loaded = load_lists(source, schema=SCHEMA)
    found = by_id(loaded)
    assert found == expected
    assert set(loaded["train"].column_names) == set(rows[0])
    checked = Lists.from_arrow(loaded["train"].with_format("arrow")[:], SCHEMA, with_labels=True)
    assert pa.types.is_integer(checked.items["item_id"].type)
    assert pa.types.is_string(checked.items["shop"].type)  # 007 is not 7


def test_dict_of_long_frames_gives_the_splits_of_named_files(tmp_path: Path) -> None:
    rows = lists(6)
    frames = {"train": pl.DataFrame(items(rows[:4])), "test": pandas.DataFrame(items(rows[4:]))}
    loaded = load_lists(frames, schema=SCHEMA)
    assert {split: [row["request"] for row in part] for split, part in loaded.items()} == {
        "train": [row["request"] for row in rows[:4]],
        "test": ["r4", "r5"],
    }
    as_csv(items(rows[:4]), tmp_path / "train.csv")
    as_csv(items(rows[4:]), tmp_path / "test.csv")
    assert by_id(load_lists(tmp_path, schema=SCHEMA)) == by_id(loaded)


def test_weights_and_propensities_of_csv_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("q,doc,click,w,p\n1,5,0,1,0.5\n1,6,1,2,1\n")
    schema = ListSchema(items=[Categorical("doc")], list_id="q", weight="w", propensity="p")
    (row,) = load_lists(tmp_path / "train.csv", schema=schema)["train"]
    assert row == {"q": 1, "doc": [5, 6], "click": [0.0, 1.0], "w": [1.0, 2.0], "p": [0.5, 1.0]}


def test_without_positions_items_keep_the_order_of_rows() -> None:
    frame = pl.DataFrame({"q": [5, 3, 5, 3], "doc": [1, 2, 3, 4], "click": [0, 0, 1, 1]})
    schema = ListSchema(items=[Categorical("doc")], list_id="q")
    (train,) = load_lists({"train": frame}, schema=schema).values()
    assert list(train) == [{"q": 5, "doc": [1, 3], "click": [0, 1]}, {"q": 3, "doc": [2, 4], "click": [0, 1]}]


def test_frame_categoricals_become_text_and_decimals_numbers() -> None:
    frame = pl.DataFrame({"q": [1, 1], "shop": ["a", "b"], "price": [1.25, 0.5], "click": [0, 1]}).with_columns(
        pl.col("shop").cast(pl.Categorical), pl.col("price").cast(pl.Decimal(10, 2))
    )
    schema = ListSchema(items=[Categorical("shop"), Dense("price")], list_id="q")
    for source in (frame, frame.cast({"price": pl.Float64}).to_pandas(), frame.group_by("q").agg(pl.all())):
        (row,) = load_lists({"train": source}, schema=schema)["train"]
        assert (row["shop"], row["price"]) == (["a", "b"], [1.25, 0.5])


def test_csv_cells_may_be_quoted_multiline_or_empty(tmp_path: Path) -> None:
    """Byte-order mark, CRLF, quotes, line breaks in cells, an empty cell and a quoted empty one."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\r\ny, ""z"""\r\n\r\n,""\r\n')
    file, options = ListFile(str(path), "csv"), ReadOptions()
    (table,) = read_csv(file, options)
    assert table.to_pydict() == {"a": ["1", None], "b": ['x\r\ny, "z"', ""]}
    assert [find_line(file, row, options) for row in (0, 1)] == [3, 5]


def test_integers_beyond_64_bits_in_csv_vectors_are_numbers(tmp_path: Path) -> None:
    """Ten to the 20th does not fit into 64 bits but is a number all the same; a vector must not lose it."""
    schema = ListSchema(items=[Categorical("item"), Vector("text", dim=2)], list_id="q")
    (tmp_path / "train.csv").write_text(f'q,item,text,click\n1,7,"[1, 1{"0" * 20}]",0\n1,8,"[0.5, 2]",1\n')
    (row,) = load_lists(tmp_path / "train.csv", schema=schema)["train"]
    assert row["text"] == [[1.0, 1e20], [0.5, 2.0]]


# ------------------------------------------------------------------------------------------------------ splits by time


def test_shares_of_a_split_by_time() -> None:
    """Of 20 lists 8 (40 %), 9 (to 85 %), 1 (to 90 %), 2; whatever their order."""
    times = np.random.default_rng(0).permutation(20)
    expected = {"ranker_train": range(8), "train": range(8, 17), "validation": [17], "test": [18, 19]}
    found = split_by_time(times)
    assert {split: sorted(times[found == split]) for split in SPLITS} == {
        split: list(of_split) for split, of_split in expected.items()
    }


def test_equal_times_are_in_the_earlier_split() -> None:
    """The cuts of ten lists are after the 4th, 8th and 9th; the first falls between equal times."""
    assert split_by_time(np.array([1, 1, 1, 2, 2, 2, 3, 4, 5, 6])).tolist() == (
        ["ranker_train"] * 6 + ["train"] * 2 + ["validation", "test"]
    )
    assert split_by_time(np.array([7, 7, 7])).tolist() == ["ranker_train"] * 3
    assert split_by_time(np.array([3.5])).tolist() == ["test"]  # 85 % and 90 % of one list round to none
    assert split_by_time(np.zeros(0)).tolist() == []


def test_no_split_is_empty_if_there_are_enough_different_times() -> None:
    """Seven days of 570 lists: 85 % of 3,990 (3,391) is in the 6th, which ends at 3,420; 90 % (3,591) in the last."""
    days = np.repeat(np.arange(7), 570)
    found = split_by_time(days, ranker_train=False)
    assert {split: sorted(set(days[found == split])) for split in SPLITS[1:]} == {
        "train": [0, 1, 2, 3, 4],
        "validation": [5],
        "test": [6],
    }
    assert describe_empty_splits(found, days, "day") == []
    assert split_by_time(np.arange(3), ranker_train=False).tolist() == ["train", "validation", "test"]
    assert split_by_time(np.array([1, 2, 3, 4, 4, 4, 4, 4])).tolist() == (
        ["ranker_train", "train", "validation"] + ["test"] * 5
    )
    (message,) = describe_empty_splits(split_by_time(days[:600], ranker_train=False), days[:600], "day")
    assert message.startswith(
        "no list is in validation: column 'day' has only 2 different times (30 of 600 lists have the last)"
    )


DAYS = [datetime.date(2024, 5, day) for day in (1, 3, 2)]


@pytest.mark.parametrize(
    "column",
    [
        [1, 3, 2],
        [1.5, 3.5, 2.5],
        DAYS,
        [datetime.datetime(2024, 5, day.day, 12, 30) for day in DAYS],
        ["2024-05-01", "2024-05-03", "2024-05-02"],
        ["2024-05-01T10:00:00", "2024-05-01T11:00:00", "2024-05-01T10:30:00"],
        [[0, 1], [3, 0], [2]],
        [["2024-05-01", "2024-04-30"], ["2024-05-03"], ["2024-05-02", "2024-01-01"]],
    ],
)
def test_times_of_every_type_are_ordered(column: list[Any]) -> None:
    """Of times of items, the latest counts: the order is first, third, second."""
    times = read_times([pa.table({"t": column[:2]}), pa.table({"t": column[2:]})], "t")
    assert np.argsort(times).tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["05/01/2024", "12/02/2024", "06/07/2024"], "'05/01/2024'"),  # the 5th of January, or the 1st of May?
        (["01-02-2024", "03-04-2024", "05-06-2024"], "'01-02-2024'"),
        (["5/1/24", "6/1/24", "7/1/24"], "'5/1/24'"),
        (["2024-05-01", "2024-05-03", "06/07/2024"], "'06/07/2024'"),
        (["2024-05-01T10:00:00", "2024-05-02T10:00:00", "2024-05-01T10:00:00+09:00"], "with a time zone"),
        ([[1, 2], [3], []], "missing in list 2"),
        ([[1, 2], [], [3]], "missing in list 1"),
        ([[1, 2], None, [3]], "missing in list 1"),
        ([["2024-05-01"], [], ["2024-05-02"]], "missing in list 1"),
        ([[1, None], [2], [3]], "missing in list 0"),
        ([[1.5, float("nan")], [2.5], [3.5]], "missing in list 0"),
        ([1.5, 2.5, float("nan")], "missing in list 2"),
    ],
)
def test_ambiguous_or_missing_times_are_refused(column: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_times([pa.table({"t": column[:2]}), pa.table({"t": column[2:]})], "t")


def test_times_with_a_zone_are_compared_as_instants() -> None:
    """18:30 two hours ahead of UTC is 16:30 there, half an hour before 17:00."""
    texts = ["2024-05-31T18:30:00+02:00", "2024-05-31T17:00:00Z"]
    first, second = read_times([pa.table({"t": texts[:1]}), pa.table({"t": texts[1:]})], "t")
    assert second - first == 30 * 60 * 1_000_000_000


@pytest.mark.slow
def test_lists_split_by_time(tmp_path: Path) -> None:
    rows = lists(40)  # day 0 to 9, four lists each: cuts after 34 and 36, both in day 8, so train ends a day earlier
    days = {"train": range(8), "validation": [8], "test": [9]}
    for source in (datasets.Dataset.from_list(rows), pl.DataFrame(rows), as_csv(items(rows), tmp_path / "lists.csv")):
        loaded = load_lists(source, schema=SCHEMA, split_by="time:day")
        found = {split: sorted({row["day"][0] for row in part}) for split, part in loaded.items()}
        assert found == {split: list(of_split) for split, of_split in days.items()}
        assert sum(map(len, loaded.values())) == 40
    prepare_own(tmp_path / "lists.csv", tmp_path / "by_user", schema=SCHEMA, progress=False)
    prepare_own(tmp_path / "lists.csv", tmp_path / "by_day", schema=SCHEMA, split_by="time:day", progress=False)
    again = load_lists(tmp_path / "by_user", split_by="time:day")
    assert by_id(again) == by_id(loaded) == by_id(load_lists(tmp_path / "by_day"))
    assert by_id(again) != by_id(load_lists(tmp_path / "by_user"))
    with pytest.raises(InputError, match="already have splits"):
        load_lists({"train": pl.DataFrame(rows)}, schema=SCHEMA, split_by="time:day")
    with pytest.raises(InputError, match="a stream cannot be split by time"):
        load_lists(tmp_path / "by_user", streaming=True, split_by="time:day")


# ----------------------------------------------------------------------------------------------------------- preparing


def as_lines(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "large lists"])
def test_prepared_lists_equal_lists_loaded_from_memory(tmp_path: Path, kind: str) -> None:
    rows = lists()
    if kind == "csv":
        source = as_csv(items(rows), tmp_path / "lists.csv")
    elif kind == "jsonl":
        source = as_lines(rows, tmp_path / "lists.jsonl")
    else:
        source = tmp_path / "lists.parquet"
        frame = pl.DataFrame(rows, infer_schema_length=None)
        frame.write_parquet(source) if kind == "large lists" else pq.write_table(pa.Table.from_pylist(rows), source)
    report = prepare_own(source, tmp_path / "out", schema=SCHEMA, progress=False)
    expected = by_id(load_lists(datasets.Dataset.from_list(rows), schema=SCHEMA))
    prepared = load_lists(tmp_path / "out")
    assert by_id(prepared) == expected
    assert prepared.schema == SCHEMA
    assert report.read == 40
    assert report.lists == {split: sum(row["split"] == split for row in expected.values()) for split in SPLITS}
    assert sum(report.items.values()) == sum(len(row["item_id"]) for row in rows)
    assert report.nulls["price"] == 40
    assert by_id(load_lists(tmp_path / "out", streaming=True)) == expected
    assert "MD5 of `user`" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("as_column", [True, False])
def test_users_shared_between_splits_are_warned_about(tmp_path: Path, as_column: bool) -> None:
    """Users 0 and 1 train, 2 and 3 validate, 1, 4 and 5 test; user 1 is in two splits, as are unknown users."""
    users = {"train": [0, 1, 1, None], "validation": [2, 3], "test": [1, 4, 5, None]}
    schema = ListSchema(items=[Categorical("item")], group="user")
    pairs = [(split, user) for split in users for user in users[split]]
    rows = [
        {"item": [number, 99], "click": [0, 1], "user": user, "split": split}
        for number, (split, user) in enumerate(pairs)
    ]
    (tmp_path / "raw").mkdir()
    for split in users:
        name = "part" if as_column else split
        chosen = [row for row in rows if as_column or row["split"] == split]
        kept = [{k: v for k, v in row.items() if as_column or k != "split"} for row in chosen]
        as_lines(kept, tmp_path / "raw" / f"{name}.jsonl")
    report = prepare_own(tmp_path / "raw", tmp_path / "out", schema=schema, progress=False)
    (message,) = report.warnings
    assert message.startswith("1 of 3 users (column 'user') of test are also in train or ranker_train")
    assert message in (tmp_path / "out" / "README.md").read_text()


def test_users_that_are_sequences_are_refused(tmp_path: Path) -> None:
    path = as_lines([{"item": [1, 2], "click": [0, 1], "user": [7, 7]}], tmp_path / "train.jsonl")
    with pytest.raises(InputError, match=r"'user' holds .* expected one user per list"):
        prepare_own(path, tmp_path / "out", schema=ListSchema(items=[Categorical("item")], group="user"))


def test_files_named_after_splits_keep_their_splits(tmp_path: Path) -> None:
    """Their types are merged: whole prices in one file, fractions in the other."""
    (tmp_path / "raw").mkdir()
    schema = ListSchema(items=[Categorical("item"), Dense("price")])
    as_lines([{"item": [1, 2], "price": [1, 2], "click": [0, 1]}], tmp_path / "raw" / "train.jsonl")
    as_lines([{"item": [3, 4], "price": [0.5, 2.0], "click": [1, 0]}], tmp_path / "raw" / "test.jsonl")
    prepare_own(tmp_path / "raw", tmp_path / "out", schema=schema, progress=False)
    prepared = load_lists(tmp_path / "out")
    assert {split: [row["price"] for row in part] for split, part in prepared.items() if len(part)} == {
        "train": [[1.0, 2.0]],
        "test": [[0.5, 2.0]],
    }
    as_lines([{"item": [3, 4], "cost": [0.5, 2.0], "click": [1, 0]}], tmp_path / "raw" / "test.jsonl")
    with pytest.raises(InputError, match="'price'"):
        prepare_own(tmp_path / "raw", tmp_path / "other", schema=schema, progress=False)
    as_lines([{"item": [3, 4], "price": [1, 2], "more": [0, 0], "click": [1, 0]}], tmp_path / "raw" / "test.jsonl")
    with pytest.raises(InputError, match=r"train\.jsonl has no column 'more', which .*test\.jsonl has"):
        prepare_own(tmp_path / "raw", tmp_path / "other", schema=schema, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_interrupted_preparing_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """After an interruption the output folder does not exist; the next call ends with the same bytes."""
    monkeypatch.setattr("hf_rerank.data.custom.own_files.PART_BYTES", 3_000)
    monkeypatch.setattr("hf_rerank.data.custom.custom_source.LONG_PART_BYTES", 3_000)
    if kind == "csv":
        source = as_csv(items(lists(60)), tmp_path / "lists.csv")
    else:
        source = as_lines(lists(60), tmp_path / "lists.jsonl")
    options: dict[str, Any] = {"schema": SCHEMA, "progress": False, "shard_bytes": 1}
    prepare_own(source, tmp_path / "unbroken", **options)
    whole = digests(tmp_path / "unbroken")
    assert len(whole) > 12
    assert len(by_id(load_lists(tmp_path / "unbroken"))) == 60
    read = CustomSource.read
    for stop in (2, 3):  # the writer reads one unit ahead of the group that it finishes

        def stopping(self: CustomSource, unit: Any, facts: Any, stop: int = stop) -> Any:
            if self.read_units.index(unit) >= stop:
                raise KeyboardInterrupt
            return read(self, unit, facts)

        output = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(CustomSource, "read", stopping)
            with pytest.raises(KeyboardInterrupt):
                prepare_own(source, output, **options)
        assert not output.exists()
        with pytest.raises(InputError, match="is not finished"):
            load_lists(output)
        with pytest.raises(InputError, match="was started with split_by 'group'"):
            prepare_own(source, output, split_by="time:day", **options)
        prepare_own(source, output, **options)
        assert digests(output) == whole
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["2024: spring", "yes", "#1", "[q]", "@home", 'a "b"', "plain"])
def test_card_takes_any_file_name_as_its_name(tmp_path: Path, name: str) -> None:
    """The card's header is YAML, in which some of these names have a meaning."""
    path = as_lines(lists(4), tmp_path / f"{name}.jsonl")
    prepare_own(path, tmp_path / "out", schema=SCHEMA, progress=False)
    assert DatasetCard.load(tmp_path / "out" / "README.md").data.pretty_name == name


def test_file_changed_while_being_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_lines(lists(4), tmp_path / "train.jsonl")
    facts = CustomSource.facts

    def checked(self: CustomSource) -> Any:
        found = facts(self)
        as_lines(lists(5), path)
        return found

    monkeypatch.setattr(CustomSource, "facts", checked)
    with pytest.raises(InputError, match=r"train\.jsonl changed while it was read"):
        prepare_own(path, tmp_path / "out", schema=SCHEMA, progress=False)
    assert not (tmp_path / "out").exists()


def test_refused_preparing_leaves_no_files(tmp_path: Path) -> None:
    rows = lists(30)
    rows[29]["click"] = [-1, 0, 0, 0]
    with pytest.raises(InputError, match="r29"):
        prepare_own(as_lines(rows, tmp_path / "lists.jsonl"), tmp_path / "out", schema=SCHEMA, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["lists.jsonl"]
    prepare_own(as_lines(lists(30), tmp_path / "lists.jsonl"), tmp_path / "out", schema=SCHEMA, progress=False)
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        prepare_own(tmp_path / "lists.jsonl", tmp_path / "out", schema=SCHEMA, progress=False)
    with pytest.raises(InputError, match="is already prepared"):
        prepare_own(tmp_path / "out", tmp_path / "other", schema=SCHEMA, progress=False)
