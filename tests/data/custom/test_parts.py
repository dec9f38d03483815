"""Files read in parts give the same lists, and the same places in messages, as files read as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank.data.custom.files import find_list_files
from hf_rerank.data.custom.own_files import OwnFiles
from hf_rerank.data.custom.prepare import prepare_own
from hf_rerank.data.loading import load_lists
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema

SCHEMA = ListSchema(items=[Categorical("item"), Dense("price")], list_id="q", max_list_length=9)


def rows(n: int) -> list[dict[str, Any]]:
    return [
        {"q": f"l{k}", "item": [k, k + 1, 10_000 + k][: 2 + k % 2], "price": [0.5, None, k][: 2 + k % 2],
         "click": [1, 0, 0][: 2 + k % 2]}
        for k in range(n)
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hf_rerank.data.custom.own_files.PART_BYTES", 2_000)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(kind: str, lists: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / f"lists.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(lists), path, row_group_size=40)
    elif kind == "long.parquet":
        items = [{"q": row["q"], **{n: row[n][k] for n in ("item", "price", "click")}}
                 for row in lists for k in range(len(row["item"]))]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(items), path, row_group_size=101)
    else:
        path.write_text("\n".join(json.dumps(row) for row in lists) + ("\n" if kind == "jsonl" else ""))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "parquet", "long.parquet"])
def test_parts_give_the_same_lists(kind: str, tmp_path: Path) -> None:
    source = write(kind, rows(300), tmp_path)
    own = OwnFiles(find_list_files(source), SCHEMA)
    assert len(own.parts) > 3
    report = prepare_own(source, tmp_path / "out", schema=SCHEMA, progress=False)
    assert report.read == 300
    prepared = {row["q"]: row for part in load_lists(tmp_path / "out").values() for row in part}
    assert prepared == {row["q"]: row for row in rows(300)}
    loaded = {row["q"]: row for part in load_lists(source, schema=SCHEMA).values() for row in part}
    assert loaded == prepared


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("jsonl", "x", "line 251: column 'price' holds 'x': expected a number"),
        ("parquet", "x", "row 250: column 'price' holds 'x': expected a number"),
    ],
)
def test_error_in_a_later_part_names_the_line_or_row_of_the_file(
    kind: str, value: str, said: str, tmp_path: Path
) -> None:
    lists = [{**row, "price": [str(price or 0) for price in row["price"]]} for row in rows(300)]
    lists[250]["price"][1] = value
    with pytest.raises(InputError, match=said):
        prepare_own(write(kind, lists, tmp_path), tmp_path / "out", schema=SCHEMA, progress=False)


def test_broken_json_in_a_later_part_names_the_line_of_the_file(tmp_path: Path) -> None:
    source = write("jsonl", rows(300), tmp_path)
    lines = source.read_text().splitlines(keepends=True)
    lines[270] = lines[270][:20] + "\n"
    source.write_text("".join(lines))
    with pytest.raises(InputError, match=r"lists\.jsonl, line 271: "):
        prepare_own(source, tmp_path / "out", schema=SCHEMA, progress=False)
    assert not (tmp_path / "out").exists()


def test_text_ids_in_a_later_file_make_all_ids_text(tmp_path: Path) -> None:
    """Whatever the first file holds: one column has one type."""
    (tmp_path / "a.csv").write_text("q,item,price,click\n" + "".join(f"{k // 2},{k},1,{k % 2}\n" for k in range(200)))
    (tmp_path / "b.csv").write_text("q,item,price,click\n900,007,1,0\n900,7,1,1\n")
    prepare_own([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out", schema=SCHEMA, progress=False)
    items = {item for part in load_lists(tmp_path / "out").values() for row in part for item in row["item"]}
    assert {"7", "007"} <= items
    assert all(isinstance(item, str) for item in items)
