"""``rank`` reads what ``prepare own`` reads, whatever the format, and gives the same ranking; ids keep their types."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank import Reranker, cli
from hf_rerank.models.dnn import DNNConfig, DNNForReranking
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import Categorical, Dense, ListSchema

BIG = 2**63 + 7
SCHEMA = ListSchema(
    items=[Categorical("item", min_count=1), Dense("price"), Categorical("flag", min_count=1)],
    user=[Categorical("country", min_count=1)],
    list_id="q",
    max_list_length=5,
)
TRAIN = [
    {
        "q": 10**18 + number,
        "item": [BIG, 1, 2 + number],
        "price": [1.0, None, 3.0],
        "flag": [True, False, True],
        "country": "NA" if number % 2 else "DE",
        "click": [1, 0, 0],
    }
    for number in range(6)
]
NEW = [{name: value for name, value in row.items() if name != "click"} for row in TRAIN[:3]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "run"
    processor = ListProcessor.from_lists(table(TRAIN), schema=SCHEMA)
    Reranker(processor, DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[4]))).save_pretrained(
        folder
    )
    return folder


def table(rows: list[dict[str, Any]] = NEW) -> pa.Table:
    """The lists as an Arrow table: ids from 2**63 on need an explicit type."""
    kinds = {"item": pa.list_(pa.uint64())}
    return pa.table({name: pa.array([row[name] for row in rows], kinds.get(name)) for name in rows[0]})


def long() -> pl.DataFrame:
    frame = pl.DataFrame(pl.from_arrow(table()))
    return frame.explode(["item", "price", "flag"])


def write(kind: str, folder: Path) -> Path:
    path = folder / f"lists.{kind}"
    csv = long().write_csv()
    lines = "".join(json.dumps(row) + "\n" for row in NEW)
    contents = {
        "jsonl": lines.encode(),
        "ndjson": b"\xef\xbb\xbf" + lines.replace("\n", "\n\n").encode(),
        "json": json.dumps(NEW).encode(),
        "jsonl.gz": gzip.compress(lines.encode()),
        "csv": csv.encode(),
        "csv.zst": pa.compress(csv.encode(), codec="zstd", asbytes=True),
        "tsv": b"\xef\xbb\xbf" + long().write_csv(separator="\t").replace("\n", "\r\n").encode(),
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "parquet":
        pq.write_table(table(), path)
    elif kind == "long.parquet":
        long().write_parquet(path)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), table().schema) as writer:
            writer.write_table(table())
    else:
        datasets.Dataset(table()).save_to_disk(path)
    return path


KINDS = ("jsonl", "ndjson", "json", "jsonl.gz", "csv", "csv.zst", "tsv", "parquet", "long.parquet", "arrow", "saved")


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_ranking(kind: str, model: Path, tmp_path: Path) -> None:
    expected = Reranker.from_pretrained(model).rerank(NEW)
    output = tmp_path / "ranked.jsonl"
    arguments = ["rank", "--model", model, "--input", write(kind, tmp_path), "--output", output]
    assert cli.main([str(argument) for argument in arguments]) == 0
    ranked = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["list_id"] for row in ranked] == [10**18, 10**18 + 1, 10**18 + 2]
    for row, result in zip(ranked, expected, strict=True):
        assert row["order"] == result["order"]
        assert row["ids"] == result["ids"]
        assert BIG in row["ids"]
        assert row["scores"] == pytest.approx(result["scores"], abs=1e-6)


def with_item_dicts(row: dict[str, Any]) -> dict[str, Any]:
    """A list with one dict per item, and a column that no feature reads."""
    names = ("item", "price", "flag")
    slots = range(len(row["item"]))
    return {
        "q": row["q"],
        "user_id": 3,
        "items": [{n: row[n][slot] for n in names} for slot in slots],
        "country": "DE",
    }


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_lists_with_one_dict_per_item_are_ranked_as_the_reranker_does(
    kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [with_item_dicts(row) for row in NEW]
    lines = [*rows[:1], {**rows[0], "q": 5, "items": []}, *rows[1:]]
    path, output = tmp_path / f"new.{kind}", tmp_path / "ranked.jsonl"
    path.write_text(json.dumps(lines) if kind == "json" else "".join(json.dumps(row) + "\n" for row in lines))
    arguments = [str(argument) for argument in ("rank", "--model", model, "--output", output, "--input", path)]
    assert cli.main(arguments) == 0
    assert "1 lists without items left out" in capsys.readouterr().out
    ranked = [json.loads(line) for line in output.read_text().splitlines()]
    expected = Reranker.from_pretrained(model).rerank([{**row, "country": "DE"} for row in NEW])
    assert [(row["list_id"], row["order"], row["ids"]) for row in ranked] == [
        (row["list_id"], row["order"], row["ids"]) for row in expected
    ]
    (tmp_path / "wide.jsonl").write_text(json.dumps(NEW[0]) + "\n")
    assert cli.main([*arguments, str(tmp_path / "wide.jsonl")]) == 2
    assert "wide.jsonl has not: give all files the same form" in capsys.readouterr().err
    del rows[1]["items"][2]["price"]
    path.write_text(json.dumps(rows))
    assert cli.main(arguments) == 2
    assert "item 2 of list 1 lacks 'price', which item 0 of list 1 has" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "csv.zst", "tsv", "parquet", "arrow"])
def test_results_are_written_in_every_format(kind: str, model: Path, tmp_path: Path) -> None:
    output = tmp_path / f"ranked.{kind}"
    arguments = ["rank", "--model", model, "--input", write("jsonl", tmp_path), "--output", output, "--top-k", "2"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    expected = Reranker.from_pretrained(model).rerank(NEW, top_k=2)
    with pa.input_stream(str(output), compression="detect") as file:
        data = file.read()
    if kind.startswith("jsonl"):
        rows = [json.loads(line) for line in data.splitlines()]
    elif kind in ("parquet", "arrow"):
        rows = (pq.read_table if kind == "parquet" else lambda p: pa.ipc.open_file(str(p)).read_all())(
            output
        ).to_pylist()
    else:
        frame = pl.read_csv(data, separator="\t" if kind == "tsv" else ",", infer_schema=False)
        assert frame.columns == ["list_id", "rank", "order", "scores", "ids"]
        assert frame["rank"].to_list() == ["0", "1"] * 3
        assert frame["ids"].to_list() == [str(item) for result in expected for item in result["ids"]]
        return
    assert [row["ids"] for row in rows] == [result["ids"] for result in expected]


def test_lists_without_items_are_left_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = {**NEW[0], "item": [], "price": [], "flag": [], "q": 5}
    (tmp_path / "a.jsonl").write_text(json.dumps(empty) + "\n" + json.dumps(NEW[1]) + "\n")
    arguments = ["rank", "--model", model, "--input", tmp_path / "a.jsonl", "--output", tmp_path / "o.jsonl"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert "1 lists without items left out" in capsys.readouterr().out
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "output", "said"),
    [
        ({**NEW[0], "item": ["a", "b", "c"]}, "o.jsonl", "column 'item' holds 'a': expected an integer, as"),
        ({**NEW[0], "country": 7}, "a.jsonl", "overlaps the input"),
        ({**NEW[0], "price": ["x", "y", "z"]}, "o.csv", "column 'price' holds 'x': expected a number"),
    ],
)
def test_lists_that_cannot_be_ranked_are_refused(
    row: dict[str, Any], output: str, said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ["rank", "--model", model, "--input", tmp_path / "a.jsonl", "--output", tmp_path / output]
    assert cli.main([str(argument) for argument in arguments]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
