"""Damaged or hostile model folders: rejected with one line that names the file; none of their code is run."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_rerank import (
    AutoReranker,
    Categorical,
    Dense,
    InputError,
    ListProcessor,
    ListSchema,
    PRMConfig,
    PRMForReranking,
    Reranker,
)
from hf_rerank.storage import MANIFEST

SCHEMA = ListSchema(items=[Categorical("item_id"), Dense("price")], max_list_length=3)
ROWS = [{"item_id": [10, 30, 20], "price": [0.5, -1.0, 2.0]}, {"item_id": [30, 10], "price": [1.0, 0.0]}]


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    table = pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]})
    processor = ListProcessor.from_lists(table, schema=SCHEMA)
    torch.manual_seed(0)
    sizes = {"hidden_size": 2, "num_hidden_layers": 1, "intermediate_size": 2, "embedding_dim": 2}
    return Reranker(processor, PRMForReranking(PRMConfig.for_schema(processor.schema, **sizes)))


@pytest.fixture
def folder(reranker: Reranker, tmp_path: Path) -> Path:
    """A saved model whose weights take less than 4 KB."""
    path = tmp_path / "model"
    reranker.save_pretrained(path)
    assert (path / "model.safetensors").stat().st_size < 4096
    return path


def rejection_message(folder: Path) -> str:
    """The one-line error with which loading is rejected."""
    with pytest.raises(InputError) as caught:
        Reranker.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.slow
def test_files_with_flipped_bits_or_cut_short_are_never_loaded(folder: Path) -> None:
    """A sample of bits and lengths of each file; ``scripts/survival.py`` tests all of them."""
    draw = random.Random(0)
    fired: dict[str, int] = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        changes = [content[:length] for length in {0, 1, 7, 8, len(content) // 2, len(content) - 1}]
        for bit in draw.sample(range(8 * len(content)), 25):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            changes.append(bytes(flipped))
        for change in changes:
            path.write_bytes(change)
            if path.name == MANIFEST and _same_json(change, content):
                continue
            fired[path.name] = fired.get(path.name, 0) + 1
            message = rejection_message(folder)
            # The model type is checked before the digests.
            assert path.name in message or (path.name == "config.json" and "holds a model of type" in message)
        path.write_bytes(content)
    assert set(fired) == {path.name for path in folder.iterdir()}
    assert sum(fired.values()) > 140
    Reranker.from_pretrained(folder)


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize("load", [AutoReranker, AutoModel, PRMForReranking, ListProcessor, Reranker])
def test_every_loader_verifies_file_digests(folder: Path, load: Any) -> None:
    name = "vocabularies.safetensors" if load is ListProcessor else "model.safetensors"
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    load.from_pretrained(folder)
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(InputError, match=f"{name} is damaged or changed"):
        load.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", MANIFEST])
def test_a_file_from_another_model_is_rejected(folder: Path, reranker: Reranker, tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    other = tmp_path / "other"
    schema = SCHEMA.replace(max_list_length=4)
    processor = ListProcessor(schema, reranker.processor.vocabularies, reranker.processor.scales)
    config = PRMConfig.for_schema(
        processor.schema, hidden_size=2, num_hidden_layers=1, intermediate_size=2, embedding_dim=2
    )
    Reranker(processor, PRMForReranking(config)).save_pretrained(other)
    assert (other / name).read_bytes() != (folder / name).read_bytes()
    shutil.copyfile(other / name, folder / name)
    message = rejection_message(folder)
    assert (name in message) or name == MANIFEST


def test_a_model_without_a_manifest_loads(folder: Path, reranker: Reranker) -> None:
    (folder / MANIFEST).unlink()
    loaded = Reranker.from_pretrained(folder)
    assert loaded.rerank(ROWS) == reranker.rerank(ROWS)


# ------------------------------------------------------------------------------------------------------------- shards


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The weights in two shards and their index, without a manifest."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / MANIFEST).unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / shard, metadata={"format": "pt"})
    where = {name: shard for shard, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def test_sharded_weights_load(sharded: Path, reranker: Reranker) -> None:
    assert Reranker.from_pretrained(sharded).rerank(ROWS) == reranker.rerank(ROWS)


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "{outside}", "deep/../../outside.safetensors", "..\\\\x", ""]
)
def test_a_shard_index_with_paths_outside_the_folder_is_rejected(sharded: Path, place: str) -> None:
    outside = sharded.parent / "outside.safetensors"
    shutil.copyfile(sharded / "model-00001-of-00002.safetensors", outside)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    first = "model-00001-of-00002.safetensors"
    index["weight_map"] = {
        name: place.format(outside=outside) if shard == first else shard for name, shard in index["weight_map"].items()
    }
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "expected .safetensors files in the same folder" in rejection_message(sharded)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{"])
def test_a_malformed_shard_index_is_rejected(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in rejection_message(sharded)


def test_a_missing_shard_is_rejected(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in rejection_message(sharded)


def test_a_tensor_listed_twice_is_rejected(folder: Path) -> None:
    """The reader takes the second entry; the header is built manually, since no writer produces it."""
    (folder / MANIFEST).unlink()
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")
    text = json.dumps(header)[:-1] + f', "{name}": {json.dumps(header[name])}' + "}"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + content[8 + size :])
    assert load_file(path).keys() == header.keys() - {"__metadata__"}, "safetensors reads this file"
    assert f"names '{name}' twice" in rejection_message(folder)


# ------------------------------------------------------------------------------------------------------------ hostile


class Canary:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


PICKLES = (
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "adapter_model.bin"),
    *("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "model.pt"),
    *("tf_model.h5", "flax_model.msgpack", "vocabularies.npz", "vocabularies.npy", "preprocessor_config.pkl"),
)


def _with_pickles(folder: Path, canary: Path, how: Callable[[Any, Path], None]) -> None:
    for name in PICKLES:
        how(Canary(canary), folder / name)


def _plain_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def _torch_pickle(value: Any, path: Path) -> None:
    torch.save(value, path)


@pytest.mark.parametrize("how", [_plain_pickle, _torch_pickle])
@pytest.mark.parametrize("gone", [None, "model.safetensors", "vocabularies.safetensors"])
@pytest.mark.parametrize("manifest", [True, False])
def test_pickle_files_are_never_read(
    folder: Path, tmp_path: Path, how: Callable[[Any, Path], None], gone: str | None, manifest: bool
) -> None:
    """Whether or not the expected files are present."""
    canary = tmp_path / "canary"
    _with_pickles(folder, canary, how)
    if gone is not None:
        (folder / gone).unlink()
    if not manifest:
        (folder / MANIFEST).unlink()
    opened: list[str] = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    if gone is None:
        Reranker.from_pretrained(folder)
    else:
        assert gone in rejection_message(folder)
    assert not canary.exists()
    read = {Path(path).name for path in opened if path.startswith(str(folder))}
    assert "preprocessor_config.json" in read or gone is not None
    assert read.isdisjoint(PICKLES)
    # The canary does work when unpickled.
    if how is _plain_pickle:
        pickle.loads((folder / "pytorch_model.bin").read_bytes())
        assert canary.exists()


@pytest.mark.parametrize("options", [{"use_safetensors": False}, {"gguf_file": "model.gguf"}])
def test_options_that_request_other_formats_are_rejected(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="safetensors files only"):
        Reranker.from_pretrained(folder, **options)


STEERING: tuple[dict[str, Any], ...] = (
    {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "someone/other--evil.Config"}},
    {"trust_remote_code": True},
    {"attn_implementation": "someone/kernel"},
    {"_attn_implementation": "someone/kernel"},
    {"_attn_implementation_internal": "someone/kernel"},
    {"_attn_implementation_autoset": "someone/kernel"},
    {"experts_implementation": "someone/kernel"},
    {"_experts_implementation": "someone/kernel"},
    {"transformers_weights": "../outside.safetensors"},
    {"base_model_name_or_path": "someone/other"},
    {"quantization_config": {"quant_method": "someone/other"}},
    {"peft_config": {"base_model_name_or_path": "someone/other"}},
    {"custom_pipelines": {"x": {"impl": "evil.Pipeline"}}},
    {"torch_dtype": "os.system"},
    {"dtype": "os.system"},
    {"model_type": "bert"},
    {"model_type": "../rerank_prm"},
    {"_name_or_path": "someone/other"},
    {"_commit_hash": "someone/other"},
)


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("keys", STEERING, ids=lambda keys: "-".join(keys))
def test_config_keys_cannot_run_code_or_load_from_elsewhere(
    folder: Path, keys: dict[str, Any], manifest: bool, monkeypatch: pytest.MonkeyPatch, reranker: Reranker
) -> None:
    """No key runs code or requests another repository; with a manifest, the changed config is rejected."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    if not manifest:
        (folder / MANIFEST).unlink()

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the network was accessed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    try:
        loaded = Reranker.from_pretrained(folder)
    except InputError as error:
        message = str(error)
    else:
        # These keys have no effect.
        assert not manifest
        assert set(keys) <= {"_name_or_path", "_commit_hash", "_attn_implementation_autoset", "torch_dtype"}
        assert loaded.rerank(ROWS) == reranker.rerank(ROWS)
        return
    assert "\n" not in message
    assert "config.json" in message or next(iter(keys)).strip("_") in message or "rerank_prm" in message


def test_an_adapter_that_names_another_base_model_is_rejected(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/other", "peft_type": "LORA"}')
    assert "adapter_config.json is not one of the files that were saved" in rejection_message(folder)
    (folder / MANIFEST).unlink()
    assert "adapter_config.json names another model" in rejection_message(folder)
