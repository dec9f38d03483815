"""Kind ``model folders``: saved models whose weights, configs, trees or manifest were changed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from all_features import SCHEMA, made_rows
from safetensors.torch import load_file, save_file

from fuzzing.judging import ANY, REFUSE, SAME, judge, wrong_rankings
from fuzzing.values import SPECIAL_FILES, damaged_bytes, damaged_json, make_special
from hf_rerank import ListProcessor, PRMConfig, PRMForReranking, Reranker
from hf_rerank.processing.trees import TreeEnsemble, TreeRanker
from hf_rerank.storage import MANIFEST, sha256_of_json, write_manifest

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
ROWS = [{name: value for name, value in row.items() if name != "earlier"} for row in made_rows(3, seed=2)]
SIZES = (0, -1, 1, 3, 10**5, 10**6, 10**9, 10**12, 2**31, 2**62, 2**63, 2**64, 10**30)


def one_split() -> TreeRanker:
    """One tree with one node: the price selects 1 or -1."""
    of_int = {
        name: np.array(value, dtype=np.int32) for name, value in {"roots": [0], "feature": [0], "left": [-1]}.items()
    }
    ensemble = TreeEnsemble(
        **of_int,
        right=np.array([-2], dtype=np.int32),
        category_set=np.array([-1], dtype=np.int32),
        threshold=np.zeros(1),
        default_left=np.zeros(1, dtype=np.uint8),
        missing=np.zeros(1, dtype=np.uint8),
        categories=np.zeros((0, 0), dtype=np.uint8),
        leaves=np.array([1.0, -1.0]),
    )
    return TreeRanker(ensemble, {"shop": np.linspace(0, 1, 7, dtype=np.float32)}, reads_position=True)


class ModelFolders:
    def __init__(self, folder: Path) -> None:
        self.whole, self.sharded, self.folder = folder / "whole", folder / "sharded", folder / "damaged"
        learned = pa.Table.from_pylist(made_rows(20))
        fitted = ListProcessor.from_lists(learned, schema=SCHEMA)
        processor = ListProcessor(fitted.schema, fitted.vocabularies, fitted.scales, fitted.fit_report, one_split())
        torch.manual_seed(0)
        sizes = {"hidden_size": 4, "num_hidden_layers": 2, "intermediate_size": 4, "embedding_dim": 2}
        config = PRMConfig.for_schema(processor.schema, initial_score="feature", initializer_range=0.5, **sizes)
        Reranker(processor, PRMForReranking(config)).save_pretrained(self.whole)
        self.expected = Reranker.from_pretrained(self.whole).rerank(ROWS)
        shutil.copytree(self.whole, self.sharded)
        weights = load_file(self.whole / WEIGHTS)
        names = sorted(weights)
        parts = {SHARDS[0]: names[::2], SHARDS[1]: names[1::2]}
        for shard, of_shard in parts.items():
            save_file({name: weights[name] for name in of_shard}, self.sharded / shard, metadata={"format": "pt"})
        where = {name: shard for shard, of_shard in parts.items() for name in of_shard}
        (self.sharded / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
        (self.sharded / WEIGHTS).unlink()
        self._seal(self.sharded)
        assert Reranker.from_pretrained(self.sharded).rerank(ROWS) == self.expected

    def try_one(self, draw: random.Random) -> tuple[str, str]:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(draw.choice((self.whole, self.whole, self.sharded)), self.folder)
        ways: tuple[Callable[[random.Random], tuple[str, str]], ...] = (
            *(self._bytes, self._hidden_bytes, self._json, self._size, self._manifest, self._special, self._harmless),
            *(self._tensors, self._header, self._scale, self._index),
        )
        what, expected = draw.choice(ways)(draw)

        def check(results: Any) -> str | None:
            if expected == SAME and results != self.expected:
                return "other results"
            return wrong_rankings(results, [len(row["item_id"]) for row in ROWS])

        return what, judge(lambda: Reranker.from_pretrained(self.folder).rerank(ROWS), check, expected)

    @staticmethod
    def _seal(folder: Path) -> None:
        """Writes a manifest that agrees with the damage, as an attacker would."""
        (folder / MANIFEST).unlink(missing_ok=True)
        write_manifest(folder)

    def _unseal(self, draw: random.Random) -> None:
        """Writes such a manifest, or leaves none."""
        self._seal(self.folder)
        if draw.random() < 0.5:
            (self.folder / MANIFEST).unlink()

    def _draw_file(self, draw: random.Random, suffix: str = "") -> Path:
        return draw.choice(sorted(path for path in self.folder.iterdir() if path.name.endswith(suffix)))

    def _bytes(self, draw: random.Random) -> tuple[str, str]:
        path = self._draw_file(draw)
        content = path.read_bytes()
        how, changed = damaged_bytes(content, draw)
        path.write_bytes(changed)
        if path.name == MANIFEST:  # in which a blank may become a line break
            return f"{how} {path.name}", ANY
        return f"{how} {path.name}", SAME if changed == content else REFUSE

    def _hidden_bytes(self, draw: random.Random) -> tuple[str, str]:
        path = self._draw_file(draw)
        how, changed = damaged_bytes(path.read_bytes(), draw)
        path.write_bytes(changed)
        self._unseal(draw)
        return f"{how} {path.name}, sealed", ANY

    def _harmless(self, draw: random.Random) -> tuple[str, str]:
        how = draw.choice(("no manifest", "README.md", "a link to the folder"))
        if how == "no manifest":
            (self.folder / MANIFEST).unlink()
        elif how == "README.md":
            (self.folder / "README.md").write_bytes(draw.randbytes(50))
        else:
            real = self.folder.with_name("real")
            shutil.rmtree(real, ignore_errors=True)
            self.folder.rename(real)
            self.folder.mkdir()
            for path in real.iterdir():  # as the Hub's cache does
                (self.folder / path.name).symlink_to(path)
        return how, SAME

    def _json(self, draw: random.Random) -> tuple[str, str]:
        path = self.folder / draw.choice(("config.json", "preprocessor_config.json"))
        how, changed = damaged_json(json.loads(path.read_text()), draw)
        path.write_text(json.dumps(changed))
        self._unseal(draw)
        return f"{how} of {path.name}", ANY

    def _size(self, draw: random.Random) -> tuple[str, str]:
        """Changes a size in the config, of the model or of a table."""
        path = self.folder / "config.json"
        config = json.loads(path.read_text())
        names = [name for name, value in config.items() if type(value) is int or (isinstance(value, list) and value)]
        name, size = draw.choice(names), draw.choice(SIZES)
        if type(config[name]) is int:
            config[name] = size
        elif draw.random() < 0.5:
            config[name][draw.randrange(len(config[name]))] = size
        else:
            config[name] *= min(10**5, abs(size))
        path.write_text(json.dumps(config))
        self._unseal(draw)
        return f"{name} with {size}", ANY

    def _manifest(self, draw: random.Random) -> tuple[str, str]:
        """Changes the structure of the manifest; its own digest still matches."""
        path = self.folder / MANIFEST
        content = json.loads(path.read_text())
        del content["sha256"]
        how, changed = damaged_json(content, draw)
        path.write_text(json.dumps({**changed, "sha256": sha256_of_json(changed)}))
        return f"{how} of {path.name}", ANY

    def _special(self, draw: random.Random) -> tuple[str, str]:
        path, what = self._draw_file(draw), draw.choice(SPECIAL_FILES)
        make_special(path, what)
        if path.name != MANIFEST and draw.random() < 0.5:
            (self.folder / MANIFEST).unlink()
        return f"{path.name} is {what}", REFUSE

    def _tensors(self, draw: random.Random) -> tuple[str, str]:
        """Changes the number format, shape, name or values of the weights."""
        path = self._draw_file(draw, ".safetensors")
        tensors = load_file(path)
        name = draw.choice(sorted(tensors))
        how = draw.choice(("int32", "int64", "uint8", "bool", "float64", "bfloat16", "float8_e4m3fn", "gone", "more"))
        how = draw.choice((how, "longer", "flat", "none", "nan", "infinite", "huge", "renamed"))
        value = tensors.pop(name)
        new: dict[str, Any] = {
            "gone": {},
            "more": {name: value, "more": value.clone()},
            "longer": {name: torch.cat([value, value])},
            "flat": {name: value.reshape(-1, 1)},
            "none": {name: value[:0]},
            "nan": {name: torch.full_like(value, float("nan")) if value.is_floating_point() else value},
            "infinite": {name: torch.full_like(value, float("inf")) if value.is_floating_point() else value},
            "huge": {name: torch.full_like(value, 1e38) if value.is_floating_point() else value},
            "renamed": {name + "s": value},
        }.get(how) or ({name: value.to(getattr(torch, how))} if hasattr(torch, how) else {})
        save_file({**tensors, **new}, path, metadata={"format": "pt"})
        self._unseal(draw)
        integers = how in ("int32", "int64", "uint8", "bool") and path.name.startswith("model")
        return f"{name} in {path.name}: {how}", REFUSE if integers or how in ("gone", "renamed") else ANY

    def _header(self, draw: random.Random) -> tuple[str, str]:
        """Changes the JSON or the stated length of a safetensors header."""
        path = self._draw_file(draw, ".safetensors")
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        how, header = damaged_json(json.loads(content[8 : 8 + size]), draw)
        text = json.dumps(header).encode()
        text = draw.choice(
            (text, text, b"[" * 10**5 + b"]" * 10**5, b'{"a":' * 300 + b"1" + b"}" * 300, b"", b" " * 10**6)
        )
        length = draw.choice((len(text), len(text), len(text), 0, 2**40, 2**63, 2**64 - 1))
        path.write_bytes(length.to_bytes(8, "little") + text + content[8 + size :])
        self._unseal(draw)
        return f"{how} of the header of {path.name}", ANY

    def _scale(self, draw: random.Random) -> tuple[str, str]:
        """Changes a scale of the processor, with matching digests."""
        path = self.folder / "preprocessor_config.json"
        plain = json.loads(path.read_text())
        name = draw.choice(sorted(plain["scales"]))
        key, value = (
            draw.choice(("mean", "std")),
            draw.choice((0, 0.0, -0.0, -1.0, 1e-320, 1e-40, 1e308, True, None, "1")),
        )
        processor = ListProcessor.from_pretrained(self.whole)
        object.__setattr__(processor.scales[name], key, value)
        ListProcessor(
            processor.schema, processor.vocabularies, processor.scales, trees=processor.trees
        ).save_pretrained(self.folder)
        config = json.loads((self.folder / "config.json").read_text())
        config["schema_fingerprint"] = None
        (self.folder / "config.json").write_text(json.dumps(config))
        self._unseal(draw)
        wrong = value is None or value is True or value == "1" or (key == "std" and value < 0)  # type: ignore[operator]
        return f"{key} of {name} is {value!r}", REFUSE if wrong else ANY

    def _index(self, draw: random.Random) -> tuple[str, str]:
        path = self.folder / INDEX
        if not path.exists():
            shutil.rmtree(self.folder)
            shutil.copytree(self.sharded, self.folder)
        how, changed = damaged_json(json.loads(path.read_text()), draw)
        path.write_text(json.dumps(changed))
        self._unseal(draw)
        return f"{how} of {path.name}", ANY
