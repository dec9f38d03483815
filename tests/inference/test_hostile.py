"""Hostile input, case by case: each gives a one-line error that says what is wrong; ``test_fuzzing.py`` draws more."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fuzzing.judging import is_one_line
from fuzzing.onnx_folders import ROWS as PLAIN_ROWS
from fuzzing.onnx_folders import expected_orders, make_graph, write_folder
from fuzzing.values import make_special, nested
from safetensors.torch import load_file, save_file

from hf_rerank import (
    Categorical,
    Dense,
    InputError,
    ListProcessor,
    ListSchema,
    PRMConfig,
    PRMForReranking,
    Reranker,
    cli,
)
from hf_rerank.errors import LONGEST_MESSAGE
from hf_rerank.storage import MANIFEST, parse_json_object, sha256_of_json, write_manifest

SCHEMA = ListSchema(items=[Categorical("item_id", min_count=1), Dense("price")], list_id="list_id", max_list_length=3)
ROWS = [{"list_id": 1, "item_id": ["a", "b", "c"], "price": [0.5, -1.0, 2.0]}]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(pa.Table.from_pylist(ROWS * 2), schema=SCHEMA)


@pytest.fixture(scope="module")
def reranker(processor: ListProcessor) -> Reranker:
    sizes = {"hidden_size": 2, "num_hidden_layers": 1, "intermediate_size": 2, "embedding_dim": 2}
    return Reranker(processor, PRMForReranking(PRMConfig.for_schema(processor.schema, **sizes)))


@pytest.fixture
def folder(reranker: Reranker, tmp_path: Path) -> Path:
    reranker.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    write_folder(tmp_path / "exported")
    return tmp_path / "exported"


def rejection_message(run: Callable[[], Any]) -> str:
    """The one-line error of the library's error class that ``run`` raises."""
    with pytest.raises(InputError) as caught:
        run()
    assert is_one_line(str(caught.value))
    return str(caught.value)


def loading_rejection(folder: Path) -> str:
    return rejection_message(lambda: Reranker.from_pretrained(folder))


def rewrite_manifest(folder: Path) -> None:
    """Writes a manifest that agrees with the changes, as an attacker would."""
    (folder / MANIFEST).unlink(missing_ok=True)
    write_manifest(folder)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    rewrite_manifest(path.parent)


# ------------------------------------------------------------------------------------------------------------ messages


def test_error_messages_are_one_line_whatever_they_quote() -> None:
    assert str(InputError("a\n  b\r\nc\u2028d")) == "a b c d"
    assert str(InputError("no \ud800, \x1b[31m, \0")) == "no \\ud800, \\x1b[31m, \\x00"
    assert str(InputError("a  b\tc")) == "a  b\tc"
    long = str(InputError("begin " + "x" * 10**6 + " end"))
    assert long.startswith("begin")
    assert long.endswith("end")
    assert len(long) < LONGEST_MESSAGE


# ---------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({1: [1], "item_id": ["a"]}, "the lists have no column 'price'; their columns: list_id, 1, item_id"),
        ({"item_id": ["\ud800"], "price": [1.0]}, "column 'item_id' of list 0 .*surrogates not allowed"),
        ({"item_id": ["a", b"\xff"], "price": [1.0, 1.0]}, "column 'item_id' of list 0 .*UTF8"),
        ({"item_id": [nested(100_000)], "price": [1.0]}, "lists within lists"),
        ({"item_id": ["a"], "price": [10**5000]}, "column 'price' of list 0 .*too large"),
        ({"item_id": ["a"], "price": ["1\n2"]}, "column 'price' holds string"),
        ({"items": [{"item_id": "a", "price": 1}, {"item_id": "a", 10**5000: 1}]}, "lacks 'price'"),
    ],
    ids=["key", "surrogate", "bytes", "nested", "digits", "two lines", "key of an item"],
)
def test_hostile_rows_are_rejected(reranker: Reranker, row: dict[Any, Any], message: str) -> None:
    assert re.search(message, rejection_message(lambda: reranker.rerank([{"list_id": 5, **row}])))


def test_unread_columns_may_contain_anything(reranker: Reranker) -> None:
    more = {1: object(), "\ud800": "\ud800", None: nested(100_000)}
    assert reranker.rerank([{**ROWS[0], **more}]) == reranker.rerank(ROWS)


# ---------------------------------------------------------------------------------------------------------- rank files

GOOD = b"".join(json.dumps(row).encode() + b"\n" for row in PLAIN_ROWS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", GOOD.decode().encode("utf-16"), "line 1: it is not UTF-8"),
        ("x.json", json.dumps(PLAIN_ROWS, ensure_ascii=False).encode("utf-16-le"), "it is not UTF-8"),
        ("x.csv", "item_id,price,name,list_id\n1,1,ü,1\n".encode("latin-1"), "not UTF-8"),
        ("x.jsonl", gzip.compress(GOOD), "line 1: it is not UTF-8"),
        ("x.jsonl.gz", GOOD, "is not a complete gzip file"),
        (
            "x.jsonl",
            GOOD + b'{"price": ' + b"[" * 300 + b"]" * 300 + b"}",
            "line 4: it is nested more than 50 levels deep",
        ),
        ("x.jsonl", GOOD * 40 + b'{"price": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "line 121: .*recursion"),
        ("x.jsonl", GOOD + b'{"list_id": ' + b"9" * 5000 + b"}", "line 4: .*4300 digits"),
        ("x.jsonl", GOOD + b'{"list_id": ' + b"9" * 4000 + b"}", "column 'list_id' holds .*more than 64 bits"),
        ("x.jsonl", GOOD + b'{"name": ["\\ud800"]}', "line 4: it holds a lone surrogate"),
    ],
)
def test_hostile_input_files_are_rejected(
    exported: Path, tmp_path: Path, name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    output = tmp_path / "ranked.jsonl"
    command = ["rank", "--model", str(exported), "--input", str(tmp_path / name), "--output", str(output)]
    assert cli.main(command) == 2
    printed = capsys.readouterr().err
    assert is_one_line(printed.removesuffix("\n"))
    assert re.search(message, printed)
    assert not output.exists()


def test_a_damaged_arrow_file_does_not_crash_the_process(exported: Path, tmp_path: Path) -> None:
    """An offset of the first list column points far beyond its values, which would make Arrow itself abort."""
    table = pa.Table.from_pylist(PLAIN_ROWS)
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    content = (tmp_path / "x.arrow").read_bytes()
    # Lists of 3, 2 and 4 items.
    offsets, beyond = (np.array([0, 3, 5, last], dtype=np.int32).tobytes() for last in (9, 10**6))
    assert offsets in content
    (tmp_path / "x.arrow").write_bytes(content.replace(offsets, beyond, 1))
    command = ["rank", "--model", str(exported), "--input", str(tmp_path / "x.arrow")]
    assert cli.main([*command, "--output", str(tmp_path / "ranked.jsonl")]) == 2


# -------------------------------------------------------------------------------------------------- JSON and manifests


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":' * 300 + "1" + "}" * 300, "nested more than 50 levels"),
        ('{"a":' * 10**5 + "1" + "}" * 10**5, "recursion"),
        ('{"a": ' + "9" * 30 + "}", "at most 64 bits"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
        ('{"a": NaN}', "finite"),
        ('{"a": [1e999]}', "finite"),
        ('{"a": "\\ud800"}', "lone surrogate"),
        ('{"\\ud800": 1}', "lone surrogate"),
    ],
)
def test_hostile_json_is_rejected(text: str, message: str, folder: Path) -> None:
    assert message in rejection_message(lambda: parse_json_object(text, "it"))
    for name in ("config.json", "preprocessor_config.json"):
        before = (folder / name).read_bytes()
        (folder / name).write_text(text)
        rewrite_manifest(folder)
        assert message in loading_rejection(folder)
        if name == "config.json":
            assert message in rejection_message(lambda: PRMForReranking.from_pretrained(folder))
        (folder / name).write_bytes(before)
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text.encode() + weights)
    rewrite_manifest(folder)
    assert message in loading_rejection(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("files"),
        lambda content: content.pop("format_version"),
        lambda content: content.update(files=None),
        lambda content: content.update(files=[]),
        lambda content: content["files"].update({"config.json": None}),
        lambda content: content["files"].update({"config.json": []}),
        lambda content: content["files"]["config.json"].pop("bytes"),
        lambda content: content["files"]["config.json"].update(sha256=None),
        lambda content: content["files"]["config.json"].update(replaced_by=[]),
        lambda content: content["files"].update({"../x": content["files"]["config.json"]}),
        lambda content: content["files"].update({"/x": content["files"]["config.json"]}),
    ],
)
def test_a_malformed_manifest_is_rejected(folder: Path, damage: Callable[[Any], Any]) -> None:
    """Its own digest matches."""
    content = json.loads((folder / MANIFEST).read_text())
    del content["sha256"]
    damage(content)
    (folder / MANIFEST).write_text(json.dumps({**content, "sha256": sha256_of_json(content)}))
    assert MANIFEST in loading_rejection(folder)


@pytest.mark.parametrize("name", [MANIFEST, "config.json", WEIGHTS, "preprocessor_config.json"])
@pytest.mark.parametrize(
    "what", ["a folder", "a pipe", "a link to /dev/zero", "a link to nothing", "a link to itself"]
)
def test_special_files_are_rejected(folder: Path, name: str, what: str) -> None:
    make_special(folder / name, what)
    assert name in loading_rejection(folder)


# ------------------------------------------------------------------------------------------------- weights and configs


@pytest.mark.parametrize(
    "content",
    [
        {"weight_map": {"w": WEIGHTS}},
        {"metadata": {}, "weight_map": {}},
        {"metadata": None, "weight_map": {"w": WEIGHTS}},
    ],
)
def test_a_shard_index_without_metadata_or_shards_is_rejected(folder: Path, content: dict[str, Any]) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    rewrite_manifest(folder)
    assert "model.safetensors.index.json is not a shard index" in loading_rejection(folder)


def test_a_tensor_in_two_shards_is_rejected(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for shard in ("model-1.safetensors", "model-2.safetensors"):
        save_file(weights, folder / shard, metadata={"format": "pt"})
    where = {name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    rewrite_manifest(folder)
    assert "which another shard holds too" in loading_rejection(folder)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_weights_in_an_unsupported_dtype_are_rejected(folder: Path, kind: torch.dtype) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["scorer.weight"] = weights["scorer.weight"].to(kind)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    rewrite_manifest(folder)
    assert "scorer.weight is" in loading_rejection(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"item_vocab_sizes": [10**12]},
        {"item_vocab_sizes": [3] * 10**5},
        {"num_hidden_layers": 10**6},
        {"hidden_size": 10**9},
        {"hidden_size": 2**62},
        {"max_list_length": 10**12},
        {"embedding_dim": 2**63},
        {"item_vector_dim": 2**63 - 1, "num_item_dense": 2**62},
    ],
    ids=lambda changes: str(changes)[:30],
)
def test_a_config_larger_than_its_weight_files_is_rejected(folder: Path, changes: dict[str, Any]) -> None:
    size = (folder / WEIGHTS).stat().st_size
    edit_json(folder / "config.json", **changes)
    assert f"more than {size:,} parameters, and its weight files have {size:,} bytes" in loading_rejection(folder)


@pytest.mark.parametrize("std", [-1.0, 1e-320, True, None, "1"])
def test_a_scale_with_an_invalid_std_is_rejected(folder: Path, std: Any) -> None:
    path = folder / "preprocessor_config.json"
    edit_json(path, scales={"price": {"mean": 0.0, "std": std}})
    assert "a std above 0, by which values are divided" in loading_rejection(folder)


# --------------------------------------------------------------------------------------------------------- ONNX graphs


def write_graph(folder: Path, **changes: Any) -> Path:
    (folder / "model.onnx").write_bytes(make_graph(**changes).SerializeToString())
    rewrite_manifest(folder)
    return folder


def test_weights_in_the_expected_file_load(exported: Path) -> None:
    """The valid case: without it, the rejections below would prove nothing."""
    ranked = Reranker.from_pretrained(write_graph(exported)).rerank(PLAIN_ROWS)
    assert [result["order"] for result in ranked] == expected_orders(PLAIN_ROWS)


@pytest.mark.parametrize(
    "place", ["config.json", "./config.json", "../outside", "{outside}", "model.onnx", "", MANIFEST]
)
def test_weights_in_any_other_file_are_rejected(exported: Path, place: str) -> None:
    outside = exported.parent / "outside"
    shutil.copyfile(exported / "model.onnx.data", outside)
    assert "cannot load" in loading_rejection(write_graph(exported, location=place.format(outside=outside)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "scores"}, "expected logits, a tensor"),
        ({"kind": 11}, r"expected logits, a tensor\(float\)"),  # DOUBLE
        ({"keep": True}, "gives logits .3, 4, 1. for .3, 4. slots: expected one score per slot"),
        ({"read": "prices"}, "reads 'prices', which no lists have"),
        ({"read": "user_dense"}, "the lists have no user_dense"),
    ],
)
def test_graphs_with_the_wrong_inputs_or_outputs_are_rejected(
    exported: Path, changes: dict[str, Any], message: str
) -> None:
    write_graph(exported, **changes)
    assert re.search(message, rejection_message(lambda: Reranker.from_pretrained(exported).rerank(PLAIN_ROWS)))


def test_graphs_cut_short_are_rejected(exported: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = (exported / "model.onnx").read_bytes()
    for length in range(0, len(content), 20):
        (exported / "model.onnx").write_bytes(content[:length])
        rewrite_manifest(exported)
        rejection_message(lambda: Reranker.from_pretrained(exported).rerank(PLAIN_ROWS))
    assert capfd.readouterr().err == ""  # onnxruntime does not print the error as well


@pytest.mark.parametrize(
    "changes", [{"max_list_length": "6"}, {"max_list_length": 0}, {"task_loss": None}, {"position_input": []}]
)
def test_a_wrong_config_of_a_graph_is_rejected(exported: Path, changes: dict[str, Any]) -> None:
    edit_json(exported / "config.json", **changes)
    assert "is not the config of an exported model" in loading_rejection(exported)
