"""The protocol of sources: the example in its documentation works."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hf_rerank.data.source as source
from hf_rerank import Categorical, ListSchema, load_lists


def test_the_documented_source_writes_its_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source.__doc__ is not None
    example = textwrap.dedent(source.__doc__.split("::\n", 1)[1])
    monkeypatch.chdir(tmp_path)
    ListSchema(items=[Categorical("item")], label="click", max_list_length=2).save("schema.json")
    pq.write_table(pa.table({"item": [[1, 2], [2, 3]], "click": [[0, 1], [1, 0]]}), "lists.parquet")
    exec(compile(example, "example", "exec", dont_inherit=True), {})
    assert load_lists("lists")["train"]["item"][:] == [[1, 2], [2, 3]]
