"""How each kind of input is read: a table of formats, types and defects, one row per case.

``prepare own`` reads each; the outcome is the lists written out below, lists with the values that the case names,
counts in the report, or a refusal with a one-line message that contains what the case names.
"""

from __future__ import annotations

import decimal
import gzip
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from hf_rerank.data.custom.checking import ANONYMOUS
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.custom.prepare import prepare_own
from hf_rerank.data.loading import load_lists
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema

SCHEMA = ListSchema(items=[Categorical("item"), Dense("price")], list_id="q", group="user", max_list_length=9)
NO_ID = SCHEMA.replace(list_id=None)
LISTS: list[dict[str, Any]] = [
    {"q": 1, "user": "a", "item": [10, 11], "price": [1.5, 2.5], "click": [0.0, 1.0]},
    {"q": 2, "user": "b", "item": [12, 10, 13], "price": [3.0, None, 0.5], "click": [1.0, 0.0, 0.0]},
]
EMPTY = {"q": 3, "user": "c", "item": [], "price": [], "click": []}
CSV = "q,user,item,price,click\n1,a,10,1.5,0\n1,a,11,2.5,1\n2,b,12,3.0,1\n2,b,10,,0\n2,b,13,0.5,0\n"
WIDE = "q,user,item,price,click\n1,a,10|11,1.5|2.5,0|1\n2,b,12|10|13,3.0|NA|0.5,1|0|0\n"
MILLION = 10**18


def text(name: str, content: str | bytes) -> Callable[[Path], Any]:
    """A file, compressed as its name says."""

    def make(folder: Path) -> Path:
        data = content if isinstance(content, bytes) else content.encode()
        path = folder / name
        if name.endswith(".gz"):
            data = gzip.compress(data)
        elif name.endswith(".zst"):
            data = pa.compress(data, codec="zstd", asbytes=True)
        path.write_bytes(data)
        return path

    return make


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def several(*makes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A folder of several files."""

    def make(folder: Path) -> Path:
        for one in makes:
            one(folder)
        return folder

    return make


def long_rows() -> list[dict[str, Any]]:
    return [
        {name: value[slot] if isinstance(value, list) else value for name, value in row.items()}
        for row in LISTS
        for slot in range(len(row["item"]))
    ]


def table(**changes: pa.Array) -> pa.Table:
    found = pa.Table.from_pylist(LISTS)
    for name, column in changes.items():
        found = found.set_column(found.column_names.index(name), name, column)
    return found


def parquet(**changes: pa.Array) -> Callable[[Path], Any]:
    def make(folder: Path) -> Path:
        pq.write_table(table(**changes), folder / "lists.parquet")
        return folder / "lists.parquet"

    return make


def nested(values: pa.Array) -> pa.Array:
    """The five items of both lists."""
    return pa.ListArray.from_arrays(pa.array([0, 2, 5], pa.int32()), values)


def arrow(kind: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Path:
        path = folder / ("lists.feather" if kind == "feather" else "lists.arrow")
        if kind == "feather":
            pyarrow.feather.write_feather(table(), path, compression="lz4")
        else:
            new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
            with new(str(path), table().schema) as writer:
                writer.write_table(table())
        return path

    return make


def saved(folder: Path) -> Path:
    datasets.Dataset.from_list(LISTS).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_splits(folder: Path) -> Path:
    datasets.DatasetDict(
        train=datasets.Dataset.from_list(LISTS[:1]), test=datasets.Dataset.from_list(LISTS[1:])
    ).save_to_disk(folder / "saved")
    return folder / "saved"


def two_parts(folder: Path) -> None:
    (folder / "logs" / "may").mkdir(parents=True)
    for number, row in enumerate(LISTS):
        (folder / "logs" / "may" / f"part-{number}.jsonl").write_text(lines(row))


def glob_of_parts(folder: Path) -> str:
    two_parts(folder)
    return str(folder / "logs" / "*" / "part-*.jsonl")


def list_of_paths(folder: Path) -> list[Path]:
    two_parts(folder)
    return [folder / "logs" / "may" / f"part-{number}.jsonl" for number in (0, 1)]


def folder_of_folders(folder: Path) -> Path:
    two_parts(folder)
    (folder / "logs" / "_SUCCESS").write_text("")
    (folder / "logs" / ".part-0.jsonl.crc").write_text("x")
    return folder / "logs"


def url(folder: Path) -> str:
    import fsspec

    with fsspec.open(f"memory://{folder.name}/lists.jsonl.gz", "wb") as file:
        file.write(gzip.compress(lines(*LISTS).encode()))
    return f"memory://{folder.name}/lists.jsonl.gz"


def dates_in_a_late_block(folder: Path) -> Path:
    """Five megabytes of ids: in the last block all of them look like dates, in earlier blocks only some."""
    rows = [
        {
            "q": k,
            "user": "a",
            "item": ["2024-01-01", f"i{k}" if k < 30_000 else "2024-01-02"],
            "price": [1.0, 2.0],
            "click": [0, 1],
        }
        for k in range(60_000)
    ]
    (folder / "lists.jsonl").write_text(lines(*rows))
    return folder / "lists.jsonl"


def changed(**values: Any) -> list[dict[str, Any]]:
    """The lists with other values in some columns: one entry per list."""
    return [{**row, **{name: column[number] for name, column in values.items()}} for number, row in enumerate(LISTS)]


def with_items(*ids: Any) -> list[dict[str, Any]]:
    """The lists with other ids of the five items."""
    return changed(item=[list(ids[:2]), list(ids[2:])])


def csv_items(*ids: Any) -> Callable[[Path], Any]:
    rows = [line.split(",") for line in CSV.splitlines()]
    for row, value in zip(rows[1:], ids, strict=True):
        row[2] = str(value)
    return text("lists.csv", "\n".join(map(",".join, rows)) + "\n")


@dataclass
class Case:
    """One input.

    Attributes:
        make: Writes it into a folder, and returns what ``prepare own`` is given.
        lists: The expected lists. None: ``LISTS``.
        error: The message, if the input is refused.
        counts: Expected values of fields of the report, or of its ``counts``.
        options: Options of ``prepare_own``.
    """

    make: Callable[[Path], Any]
    lists: list[dict[str, Any]] | None = None
    error: str | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def options(**values: Any) -> dict[str, Any]:
    return {"options": ReadOptions(**values)}


NULL_ITEM = with_items(10, None, 12, 10, 13)
BIG = 2**63 + 7
UUIDS = [uuid.UUID(int=k) for k in range(5)]
TEXTS = ["007", "11", "12", "007", "13"]
CASES = {
    # ------------------------------------------------------------------------------------------------------- formats
    "CSV": Case(text("lists.csv", CSV)),
    "TSV": Case(text("lists.tsv", CSV.replace(",", "\t"))),
    "CSV, gz": Case(text("lists.csv.gz", CSV)),
    "CSV, zst": Case(text("lists.csv.zst", CSV)),
    "CSV, semicolons": Case(text("lists.csv", CSV.replace(",", ";")), options=options(separator=";")),
    "CSV, no header": Case(
        text("lists.csv", CSV.partition("\n")[2]),
        options=options(column_names=("q", "user", "item", "price", "click")),
    ),
    "CSV, cells a|b|c": Case(text("lists.csv", WIDE), options=options(list_separator="|")),
    "CSV, cells N1-1 N2-0": Case(
        text("lists.csv", "q,user,item\n1,a,N10-0 N11-1\n2,b,N12-1 N10-0 N13-0\n"),
        [
            {"q": 1, "user": "a", "item": ["N10", "N11"], "click": [0.0, 1.0]},
            {"q": 2, "user": "b", "item": ["N12", "N10", "N13"], "click": [1.0, 0.0, 0.0]},
        ],
        options={
            "schema": SCHEMA.replace(items=[Categorical("item")]),
            **options(list_separator=" ", label_separator="-"),
        },
    ),
    "CSV, cells of JSON": Case(
        text(
            "lists.csv",
            'q,user,item,price,click\n1,a,"[10,11]","[1.5,2.5]","[0,1]"\n'
            '2,b,"[12,10,13]","[3.0,null,0.5]","[1,0,0]"\n',
        )
    ),
    "CSV, rows of a list not adjacent": Case(
        text("lists.csv", "\n".join(CSV.splitlines()[k] for k in (0, 1, 3, 4, 2, 5)) + "\n")
    ),
    "JSON Lines": Case(text("lists.jsonl", lines(*LISTS))),
    "JSON Lines, .ndjson": Case(text("lists.ndjson", lines(*LISTS))),
    "JSON Lines, gz": Case(text("lists.jsonl.gz", lines(*LISTS))),
    "JSON Lines, zst": Case(text("lists.jsonl.zst", lines(*LISTS))),
    "JSON Lines, one row per item": Case(text("lists.jsonl", lines(*long_rows()))),
    "JSON array": Case(text("lists.json", json.dumps(LISTS, indent=1))),
    "Parquet": Case(parquet()),
    "Parquet, one row per item": Case(
        lambda folder: pq.write_table(pa.Table.from_pylist(long_rows()), folder / "a.parquet") or folder / "a.parquet"
    ),
    "Arrow file": Case(arrow("file")),
    "Arrow stream": Case(arrow("stream")),
    "Feather": Case(arrow("feather")),
    "LETOR": Case(
        text("lists.txt", "0 qid:1 1:10 2:1.5\n1 qid:1 1:11 2:2.5 # docid = D1\n1 qid:2 2:3.0\n"),
        [
            {
                "qid": "1",
                "label": [0.0, 1.0],
                "feature_1": [10.0, 11.0],
                "feature_2": [1.5, 2.5],
                "docid": [None, "D1"],
            },
            {"qid": "2", "label": [1.0], "feature_1": [0.0], "feature_2": [3.0], "docid": [None]},
        ],
        options={"schema": ListSchema(items=[Dense("feature_1"), Dense("feature_2")], label="label", list_id="qid")},
    ),
    "save_to_disk": Case(saved),
    "save_to_disk, splits": Case(
        saved_splits, counts={"lists": {"ranker_train": 0, "train": 1, "validation": 0, "test": 1}}
    ),
    "pattern": Case(glob_of_parts),
    "list of paths": Case(list_of_paths),
    "folders in folders": Case(folder_of_folders),
    "fsspec URL": Case(url),
    # ------------------------------------------------------------------------------------------- untidy but readable
    "byte order mark, CSV": Case(text("lists.csv", b"\xef\xbb\xbf" + CSV.encode())),
    "byte order mark, JSON Lines": Case(text("lists.jsonl", b"\xef\xbb\xbf" + lines(*LISTS).encode())),
    "blank lines, CSV": Case(text("lists.csv", CSV.replace("\n", "\n\n"))),
    "blank lines, JSON Lines": Case(text("lists.jsonl", "\n" + lines(*LISTS).replace("\n", "\n \n"))),
    "Windows line ends": Case(text("lists.csv", CSV.replace("\n", "\r\n"))),
    "empty part file": Case(
        several(text("part-0.jsonl", lines(*LISTS)), text("part-1.jsonl", "")), counts={"empty files": 1}
    ),
    "part file with only a header": Case(
        several(text("part-0.csv", CSV), text("part-1.csv", CSV.partition("\n")[0])), counts={"empty files": 1}
    ),
    "empty list among others": Case(
        text("lists.jsonl", lines(*LISTS, EMPTY)), counts={"dropped": {"without items": 1}}
    ),
    "unknown users": Case(
        text("lists.jsonl", lines({**LISTS[0], "user": None}, {**LISTS[1], "user": None})),
        changed(user=[None, None]),
        counts={ANONYMOUS: 2},
    ),
    "unknown users as NULL": Case(
        text("lists.csv", CSV.replace(",a,", ",NULL,").replace(",b,", ",NULL,")),
        changed(user=[None, None]),
        counts={ANONYMOUS: 2},
    ),
    # --------------------------------------------------------------------------------------------------------- missing
    "NULL among ids": Case(csv_items(10, "NULL", 12, 10, 13), NULL_ITEM, counts={"nulls": {"item": 1, "price": 1}}),
    "\\N among ids": Case(csv_items(10, "\\N", 12, 10, 13), NULL_ITEM),
    "NA among ids": Case(csv_items(10, "NA", 12, 10, 13), NULL_ITEM),
    "NA among text": Case(csv_items("NA", "DE", "FR", "NA", "US"), with_items("NA", "DE", "FR", "NA", "US")),
    "NULL among text": Case(csv_items("NULL", "DE", "FR", "DE", "US"), with_items(None, "DE", "FR", "DE", "US")),
    "quoted NULL": Case(csv_items('"NULL"', "DE", "FR", "DE", "US"), with_items("NULL", "DE", "FR", "DE", "US")),
    "NULL among numbers": Case(text("lists.csv", CSV.replace("10,,0", "10,NULL,0"))),
    "null string given by the user": Case(
        text("lists.csv", CSV.replace("10,,0", "10,-,0")), options=options(null_strings=("-",))
    ),
    # ----------------------------------------------------------------------------------------------------------- types
    "booleans, CSV": Case(
        text("lists.csv", "q,user,item,price,click\n1,a,true,True,false\n1,a,false,FALSE,true\n"),
        [{"q": 1, "user": "a", "item": [1, 0], "price": [1.0, 0.0], "click": [0.0, 1.0]}],
    ),
    "booleans, JSON Lines": Case(
        text(
            "lists.jsonl",
            lines({"q": 1, "user": "a", "item": [True, False], "price": [True, 0.5], "click": [False, True]}),
        ),
        [{"q": 1, "user": "a", "item": [1, 0], "price": [1.0, 0.5], "click": [0.0, 1.0]}],
    ),
    "only booleans, JSON Lines": Case(
        text(
            "lists.jsonl",
            lines({"q": 1, "user": "a", "item": [True, False], "price": [True, False], "click": [False, True]}),
        ),
        [{"q": 1, "user": "a", "item": [1, 0], "price": [1.0, 0.0], "click": [0.0, 1.0]}],
    ),
    "booleans, Parquet": Case(
        parquet(
            item=nested(pa.array([True, False, True, None, False])),
            click=nested(pa.array([False, True, True, False, False])),
        ),
        with_items(1, 0, 1, None, 0),
    ),
    "ids of 19 digits, CSV": Case(
        csv_items(*(MILLION + k for k in range(5))), with_items(*(MILLION + k for k in range(5)))
    ),
    "list ids of 19 digits, CSV": Case(
        text("lists.csv", CSV.replace("\n1,", f"\n{MILLION + 1},").replace("\n2,", f"\n{MILLION + 2},")),
        changed(q=[MILLION + 1, MILLION + 2]),
    ),
    "ids from 2**63, CSV": Case(csv_items(BIG, 1, 2, BIG, 4), with_items(BIG, 1, 2, BIG, 4)),
    "ids from 2**63, JSON Lines": Case(
        text("lists.jsonl", lines(*with_items(BIG, 1, 2, BIG, 4))), with_items(BIG, 1, 2, BIG, 4)
    ),
    "ids from 2**63, Parquet": Case(
        parquet(item=nested(pa.array([BIG, 1, 2, BIG, 4], pa.uint64()))), with_items(BIG, 1, 2, BIG, 4)
    ),
    "ids of 25 digits, CSV": Case(
        csv_items(*(10**24 + k for k in range(5))), with_items(*(str(10**24 + k) for k in range(5)))
    ),
    "ids such as 12.0, CSV": Case(
        csv_items("10.0", "", "12.0", "10.0", "13.0"),
        NULL_ITEM,
        counts={"ids such as 12.0 read as 12 in column item": 4},
    ),
    "ids such as 12.0, Parquet": Case(parquet(item=nested(pa.array([10.0, None, 12.0, 10.0, 13.0]))), NULL_ITEM),
    "fractional ids": Case(
        parquet(item=nested(pa.array([10.0, 1.5, 12.0, 10.0, 13.0]))), error=r"'item' holds .*1\.5.*: expected ids"
    ),
    "007 among ids": Case(csv_items(*TEXTS), with_items(*TEXTS)),
    "007 in one file of two": Case(
        several(
            text("part-0.csv", "".join(CSV.splitlines(True)[:3])),
            text("part-1.csv", "".join([CSV.splitlines(True)[0], *CSV.splitlines(True)[3:]]).replace(",12,", ",007,")),
        ),
        with_items("10", "11", "007", "10", "13"),
    ),
    "ids that look like dates": Case(
        text("lists.jsonl", lines(*with_items("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-01", "2024-01-05"))),
        with_items("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-01", "2024-01-05"),
    ),
    "UUIDs, Parquet": Case(
        parquet(item=nested(pa.array([k.bytes for k in UUIDS], pa.uuid()))), with_items(*map(str, UUIDS))
    ),
    "decimals, Parquet": Case(
        parquet(
            price=nested(pa.array([decimal.Decimal(v) if v else None for v in ("1.50", "2.50", "3.00", None, "0.50")]))
        )
    ),
    "string views, Arrow": Case(
        parquet(user=pa.array(["a", "b"], pa.string_view()), item=nested(pa.array(TEXTS, pa.string_view()))),
        with_items(*TEXTS),
    ),
    "dictionaries, Parquet": Case(parquet(item=nested(pa.array(TEXTS).dictionary_encode())), with_items(*TEXTS)),
    "bytes of text, Parquet": Case(parquet(item=nested(pa.array([t.encode() for t in TEXTS]))), with_items(*TEXTS)),
    "numbers as text, JSON Lines": Case(
        text("lists.jsonl", lines(*changed(price=[["1.5", "2.5"], ["3.0", None, "0.5"]])))
    ),
    # --------------------------------------------------------------------------------------------------------- defects
    "duplicate key": Case(
        text("lists.jsonl", lines(LISTS[0]).replace("}", ', "q": 5}')), error="the key 'q' occurs twice"
    ),
    "truncated gz": Case(
        lambda folder: (
            (folder / "a.csv.gz").write_bytes(gzip.compress(CSV.encode() * 99)[:-20]) and folder / "a.csv.gz"
        ),
        error="a.csv.gz is not a complete gzip file",
    ),
    "text among numbers, CSV": Case(
        text("lists.csv", CSV.replace("3.0", "cheap")), error="lists.csv, line 4: column 'price' holds 'cheap'"
    ),
    "text among ids, JSON Lines": Case(
        text("lists.jsonl", lines(*with_items(1, 2, "a", 4, 5))),
        error="lists.jsonl, line 2: column 'item' holds values of several",
    ),
    "text in one file, numbers in the other, JSON Lines": Case(
        several(text("a.jsonl", lines(LISTS[0])), text("b.jsonl", lines({**LISTS[1], "item": ["a", "b", "c"]}))),
        error=r"a\.jsonl and .*b\.jsonl differ in the types of a column: 'item'",
    ),
    "a column missing from one file": Case(
        several(text("a.csv", CSV), text("b.csv", CSV.replace("price", "cost"))), error="has no column 'price', which"
    ),
    "two formats": Case(
        several(text("a.csv", CSV), text("b.jsonl", lines(*LISTS))), error="holds both JSON and CSV files"
    ),
    "some cells without labels": Case(
        text("lists.csv", "q,user,item\n1,a,N10-0 N11\n"),
        error="lists.csv, line 2: column 'item' holds items with labels and items without",
        options={
            "schema": SCHEMA.replace(items=[Categorical("item")]),
            **options(list_separator=" ", label_separator="-"),
        },
    ),
    "a URL whose package is missing": Case(lambda _: "s3://bucket/lists.parquet", error="cannot read s3://.*install"),
    "lists that are too long": Case(
        text("lists.csv", CSV),
        error="has 3 items, but the schema allows max_list_length=2.*--cut",
        options={"max_list_length": 2},
    ),
    "lists that are cut": Case(
        text("lists.csv", CSV.replace("2,b,13,0.5,0", "2,b,13,0.5,1")),
        [
            {**LISTS[0], "click_cut": []},
            {**LISTS[1], "item": [12, 10], "price": [3.0, None], "click": [1.0, 0.0], "click_cut": [1.0]},
        ],
        counts={"cut_lists": 1, "lost_clicks": 0, "items that were cut": 1, "clicks of items that were cut": 1},
        options={"max_list_length": 2, "cut": True},
    ),
    # ---------------------------------------------------------------------------------------------------------- splits
    "files named after splits": Case(
        several(text("train_lists.jsonl", lines(LISTS[0])), text("test_lists.jsonl", lines(LISTS[1]))),
        counts={"lists": {"ranker_train": 0, "train": 1, "validation": 0, "test": 1}},
    ),
    "folders named after splits": Case(
        lambda folder: (
            [
                (folder / name).mkdir() or (folder / name / "0.jsonl").write_text(lines(row))
                for name, row in zip(("training", "dev"), LISTS, strict=True)
            ]
            and folder
        ),
        counts={"lists": {"ranker_train": 0, "train": 1, "validation": 1, "test": 0}},
    ),
    "files named almost after splits": Case(
        several(text("trainset.jsonl", lines(LISTS[0])), text("testset.jsonl", lines(LISTS[1]))),
        error="testset.jsonl is named almost like a split; did you mean 'test'",
    ),
    "a file named after two splits": Case(
        text("train_test.jsonl", lines(*LISTS)), error="named after the splits test and train: expected one"
    ),
    "lists in two of the user's splits": Case(
        several(text("train.jsonl", lines(*LISTS)), text("test.jsonl", lines(LISTS[1]))),
        [*LISTS, LISTS[1]],
        counts={"warnings": "1 of 1 lists of test are also in train"},
        options={"schema": NO_ID.replace(group=None)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_inputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    case = CASES[name]
    (tmp_path / "in").mkdir()
    source = case.make(tmp_path / "in")
    how = {"schema": SCHEMA, **case.options}
    if case.error is not None:
        with pytest.raises(InputError, match=case.error) as error:
            prepare_own(source, tmp_path / "out", progress=False, **how)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
        return
    report = prepare_own(source, tmp_path / "out", progress=False, **how)
    prepared = [row for part in load_lists(tmp_path / "out").values() for row in part]
    expected = LISTS if case.lists is None else case.lists
    key = how["schema"].list_id or "q"
    assert sorted(prepared, key=lambda row: str(row[key])) == sorted(expected, key=lambda row: str(row[key]))
    said = {**report.to_dict(), **report.counts}
    for what, value in case.counts.items():
        if what == "warnings":
            assert any(value in message for message in said["warnings"]), said
        else:
            assert said[what] == value, (what, said[what])


@pytest.mark.slow
def test_dates_in_a_late_block_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types inferred block by block would turn some into 2024-01-01 00:00:00."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = dates_in_a_late_block(tmp_path)
    assert source.stat().st_size > 4 * 2**20
    for streaming in (False, True):
        lists = load_lists(
            {"train": load_lists(source, schema=SCHEMA.replace(group=None), streaming=streaming)["train"]},
            schema=SCHEMA,
            streaming=streaming,
        )["train"]
        ids = {item for row in lists for item in row["item"] if not item.startswith("i")}
        assert ids == {"2024-01-01", "2024-01-02"}


def test_frames_and_tables_give_the_same_lists_as_files() -> None:
    for frame in (pl.DataFrame(LISTS), table(), pl.DataFrame(long_rows()), pl.DataFrame(LISTS).to_pandas()):
        found = load_lists({"train": frame}, schema=SCHEMA)["train"]
        assert [row["item"] for row in found] == [[10, 11], [12, 10, 13]]


@pytest.mark.parametrize("kind", [pa.binary(), pa.duration("s")])
def test_ids_that_json_cannot_hold_are_refused(kind: pa.DataType, tmp_path: Path) -> None:
    values = [b"\xff"] * 5 if kind == pa.binary() else [1] * 5
    pq.write_table(table(item=nested(pa.array(values, kind))), tmp_path / "lists.parquet")
    with pytest.raises(
        InputError, match=r"lists\.parquet.*'item' holds .*: expected ids, which are integers or UTF-8"
    ):
        prepare_own(tmp_path / "lists.parquet", tmp_path / "out", schema=SCHEMA, progress=False)


def test_date_ids_become_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dates = pa.array([0, 1, 2, 0, 4], pa.int32()).cast(pa.date32())
    pq.write_table(table(item=nested(dates)), tmp_path / "lists.parquet")
    prepare_own(tmp_path / "lists.parquet", tmp_path / "out", schema=SCHEMA, progress=False)
    found = [item for part in load_lists(tmp_path / "out").values() for row in part for item in row["item"]]
    assert sorted(found) == ["1970-01-01", "1970-01-01", "1970-01-02", "1970-01-03", "1970-01-05"]


@pytest.mark.parametrize("streaming", [False, True])
def test_loading_warns_about_empty_lists_that_it_leaves_out(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "train.jsonl").write_text(lines(*LISTS, EMPTY))
    for _ in range(2):  # from the file, and from the cache
        with pytest.warns(UserWarning, match=r"train\.jsonl: empty lists: 1"):
            assert len(list(load_lists(tmp_path / "train.jsonl", schema=SCHEMA, streaming=streaming)["train"])) == 2


def test_preparing_warns_if_no_list_is_in_train(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(lines(*LISTS))
    report = prepare_own(tmp_path / "test.jsonl", tmp_path / "out", schema=SCHEMA, progress=False)
    (message,) = [message for message in report.warnings if "no list is in train (all are in test)" in message]
    assert "name files, or values of column 'split', 'train'" in message


def test_position_none_suits_only_models_that_read_no_order() -> None:
    """Models that can do without an order get none; a model that reads an order is refused."""
    from hf_rerank.models.dlcm import DLCMConfig
    from hf_rerank.models.prm import PRMConfig
    from hf_rerank.processing import ListProcessor

    processor = ListProcessor.from_lists(table(), schema=SCHEMA.replace(position="none"))
    assert PRMConfig.for_schema(processor.schema).position_input == "none"
    with pytest.raises(InputError, match=r"DLCM reads items in an order.*choose another model"):
        DLCMConfig.for_schema(processor.schema)
    with pytest.raises(InputError, match="position_input is 'embedding'"):
        PRMConfig.for_schema(processor.schema, position_input="embedding")


def test_each_list_of_an_unknown_user_is_split_by_itself() -> None:
    """Forty lists of unknown users are not lists of one user, which would all go to one split."""
    made = [{**LISTS[0], "q": number, "user": None} for number in range(40)]
    with pytest.warns(UserWarning, match="40 lists without a user, each a group of its own"):
        lists = load_lists(
            datasets.Dataset.from_list(made, datasets.Features.from_arrow_schema(table().schema)), schema=SCHEMA
        )
    assert [split for split, part in lists.items() if len(part)] == ["train", "validation", "test"]
