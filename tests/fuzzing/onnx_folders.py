"""Kind ``ONNX folders``: exported models whose graph, weights or configs were changed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from onnx import TensorProto, helper

from fuzzing.judging import ANY, REFUSE, SAME, judge, wrong_rankings
from fuzzing.values import SPECIAL_FILES, damaged_bytes, damaged_json, make_special
from hf_rerank import Categorical, Dense, ListProcessor, ListSchema, Reranker
from hf_rerank.storage import MANIFEST, write_manifest

SCHEMA = ListSchema(
    items=[Categorical("item_id", min_count=1), Dense("price"), Categorical("name", min_count=1)],
    list_id="list_id",
    max_list_length=6,
)
ROWS = [
    {"list_id": 1, "item_id": [10, 30, 20], "price": [0.5, -1.0, 2.0], "name": ["a", "b", "ü"]},
    {"list_id": 2, "item_id": [30, 10], "price": [1.0, 0.25], "name": ["ü", "a"]},
    {"list_id": 3, "item_id": [20, 99, 10, 40], "price": [4.0, 3.0, 1.5, -2.0], "name": ["b", "c", "a", "a"]},
]
WEIGHT = np.array([[1.5]], dtype=np.float32)
DATA = "model.onnx.data"


def make_graph(
    *,
    output: str = "logits",
    kind: int = TensorProto.FLOAT,
    keep: bool = False,
    location: str = DATA,
    read: str = "item_dense",
) -> Any:
    """A graph that scores an item by its dense feature, ``logits = item_dense @ WEIGHT``.

    Args:
        output: Name of the output.
        kind: Number format of the output.
        keep: Whether the output has one axis too many.
        location: File of the weight.
        read: Name of the input.
    """
    axes = ["lists", "items", 1]
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[1, 1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", "4")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    nodes = [
        helper.make_node("MatMul", [read, "weight"], ["product"]),
        helper.make_node("Identity" if keep else "Squeeze", ["product"] if keep else ["product", "last"], ["sum"]),
        helper.make_node("Cast", ["sum"], [output], to=kind),
    ]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [2])
    graph = helper.make_graph(
        nodes,
        "scores",
        [helper.make_tensor_value_info(read, TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info(output, kind, axes if keep else axes[:2])],
        initializer=[weight, last],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_folder(folder: Path) -> None:
    """Writes the folder that ``hf-rerank export`` would write for that graph."""
    folder.mkdir()
    table = pa.Table.from_pylist([{**row, "click": [0] * len(row["price"])} for row in ROWS])
    processor = ListProcessor.from_lists(table, schema=SCHEMA)
    processor.save_pretrained(folder)
    (folder / "model.onnx").write_bytes(make_graph().SerializeToString())
    (folder / DATA).write_bytes(WEIGHT.tobytes())
    config = {
        "model_type": "rerank_dnn",
        "schema_fingerprint": processor.schema.fingerprint,
        "task_loss": "binary_log_loss",
        "position_input": "none",
        "max_list_length": SCHEMA.max_list_length,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder)


def expected_orders(rows: list[dict[str, Any]]) -> list[list[int]]:
    """Highest price first, since the weight and the scale are positive."""
    return [np.argsort(-np.array(row["price"]), kind="stable").tolist() for row in rows]


class OnnxFolders:
    def __init__(self, folder: Path) -> None:
        self.whole, self.folder = folder / "whole", folder / "damaged"
        write_folder(self.whole)
        self.expected = Reranker.from_pretrained(self.whole).rerank(ROWS)
        assert [result["order"] for result in self.expected] == expected_orders(ROWS)

    def try_one(self, draw: random.Random) -> tuple[str, str]:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.whole, self.folder)
        ways = (self._bytes, self._hidden_bytes, self._json, self._special, self._graph, self._weights)
        what, expected = draw.choice(ways)(draw)

        def check(results: Any) -> str | None:
            if expected == SAME and results != self.expected:
                return f"other results: {results}"
            return wrong_rankings(results, [len(row["price"]) for row in ROWS])

        return what, judge(lambda: Reranker.from_pretrained(self.folder).rerank(ROWS), check, expected)

    def _seal(self) -> None:
        """Writes a manifest that agrees with the damage, as an attacker would."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        write_manifest(self.folder)

    def _draw_file(self, draw: random.Random) -> Path:
        return draw.choice(sorted(self.folder.iterdir()))

    def _bytes(self, draw: random.Random) -> tuple[str, str]:
        path = self._draw_file(draw)
        content = path.read_bytes()
        how, changed = damaged_bytes(content, draw)
        path.write_bytes(changed)
        if path.name == MANIFEST:
            return f"{how} {path.name}", ANY
        return f"{how} {path.name}", SAME if changed == content else REFUSE

    def _hidden_bytes(self, draw: random.Random) -> tuple[str, str]:
        path = self.folder / draw.choice(("model.onnx", "model.onnx", DATA, "vocabularies.safetensors"))
        how, changed = damaged_bytes(path.read_bytes(), draw)
        path.write_bytes(changed)
        self._seal()
        return f"{how} {path.name}, sealed", ANY

    def _json(self, draw: random.Random) -> tuple[str, str]:
        path = self.folder / draw.choice(("config.json", "preprocessor_config.json"))
        how, changed = damaged_json(json.loads(path.read_text()), draw)
        path.write_text(json.dumps(changed))
        self._seal()
        return f"{how} of {path.name}", ANY

    def _special(self, draw: random.Random) -> tuple[str, str]:
        path, what = self._draw_file(draw), draw.choice(SPECIAL_FILES)
        make_special(path, what)
        return f"{path.name} is {what}", REFUSE

    def _graph(self, draw: random.Random) -> tuple[str, str]:
        changes: dict[str, Any] = draw.choice(
            (
                {"output": "scores"},
                {"kind": TensorProto.DOUBLE},
                {"kind": TensorProto.INT64},
                {"kind": TensorProto.BOOL},
                {"keep": True},
                {"read": "item_vectors"},
                {"read": "user_dense"},
                {"read": "nothing"},
                {"read": "\n"},
                {},
            )
        )
        (self.folder / "model.onnx").write_bytes(make_graph(**changes).SerializeToString())
        self._seal()
        return f"graph with {changes}", REFUSE if changes else SAME

    def _weights(self, draw: random.Random) -> tuple[str, str]:
        """Makes the graph name another file as its weights."""
        outside = self.folder.parent / "outside.data"
        outside.write_bytes(WEIGHT.tobytes())
        places = (
            "config.json",
            "./config.json",
            "model.onnx",
            "../outside.data",
            str(outside),
            "nothing",
            "",
            "/dev/zero",
        )
        place = draw.choice((*places, f"{DATA}/../config.json", "vocabularies.safetensors", MANIFEST))
        model = make_graph(location=place)
        if draw.random() < 0.5:  # as a constant among the nodes
            model.graph.node.insert(0, helper.make_node("Constant", [], ["weight"], value=model.graph.initializer[0]))
            del model.graph.initializer[0]
        (self.folder / "model.onnx").write_bytes(model.SerializeToString())
        self._seal()
        return f"weights in {place}", REFUSE
