"""The table of tensors: a schema tells which of them its lists have, and no other list of their names is kept."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from all_features import SCHEMA, made_rows

import hf_rerank
from hf_rerank import Categorical, ListProcessor, ListSchema, PreTrainedReranker, RerankCollator
from hf_rerank.models import RERANKERS
from hf_rerank.schema import (
    COLUMN_TENSORS,
    FEATURE_TENSORS,
    TENSORS,
    ListBatch,
)

ROWS = made_rows(40, outcome=True)


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA)


def test_the_columns_of_items_reach_their_tensors(processor: ListProcessor) -> None:
    """``initial_score`` among them, of which no line outside the table and ``forward`` says a word."""
    batch = RerankCollator(processor, all_tensors=True)(ROWS)
    real = batch["mask"]
    assert real.sum(1).tolist() == [len(row["item_id"]) for row in ROWS]
    assert set(COLUMN_TENSORS) == {"position", "initial_score", "label", "weight", "propensity", "attraction"}
    for part, name in COLUMN_TENSORS.items():
        values = [value for row in ROWS for value in row[getattr(SCHEMA, part)]]
        np.testing.assert_array_equal(batch[name][real].numpy(), np.array(values, dtype=TENSORS[name].dtype))


PARTS = {
    "whole": SCHEMA,
    "no user": SCHEMA.replace(user=()),
    "no numbers of the user": SCHEMA.replace(user=SCHEMA.user[:1]),
    "no ids of the user": SCHEMA.replace(user=SCHEMA.user[1:]),
    "no history": SCHEMA.replace(history=()),
    "no numbers in the history": SCHEMA.replace(history=SCHEMA.history[:2]),
    "no ids in the history": SCHEMA.replace(history=SCHEMA.history[2:]),
    "no vectors": SCHEMA.replace(items=SCHEMA.items[:-1]),
    "no numbers of items": SCHEMA.replace(items=(*SCHEMA.items[:2], SCHEMA.items[-1])),
    "only numbers": SCHEMA.replace(items=SCHEMA.items[2:3], user=(), history=()),
    "no earlier score": SCHEMA.replace(initial_score=None),
    "no position": SCHEMA.replace(position=None),
}


@pytest.mark.parametrize("schema", PARTS.values(), ids=PARTS.keys())
def test_a_schema_tells_the_tensors_of_its_lists(schema: ListSchema) -> None:
    """As the ONNX export relies on; with an outcome, labels, weights and propensities come on top."""
    processor = ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=schema)
    names = processor.schema.feature_tensors()
    assert set(processor(ROWS, return_tensors="np")) == {*names, "labels", "weights", "propensities"}
    assert names == [name for name in FEATURE_TENSORS if name in names]
    sizes = processor.schema.axis_sizes()
    for name, array in processor(made_rows(5), return_tensors="np").items():
        assert array.shape[2:] == tuple(sizes[axis] for axis in TENSORS[name].axes[2:])


def test_a_model_gets_every_feature_in_its_batch(processor: ListProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that a user writes reads ``batch.initial_scores``, and nothing else has to change."""
    config, model = RERANKERS["dnn"]
    made = model(config.for_schema(processor.schema, hidden_sizes=[4])).eval()
    seen: list[ListBatch] = []
    embed = type(made).embed

    def look(self: PreTrainedReranker, batch: ListBatch) -> dict[str, torch.Tensor]:
        seen.append(batch)
        return embed(self, batch)

    monkeypatch.setattr(type(made), "embed", look)
    tensors = processor(ROWS)
    made(**tensors)
    (batch,) = seen
    assert list(batch) == list(FEATURE_TENSORS)
    for name in FEATURE_TENSORS:
        assert torch.equal(batch[name], tensors[name]), name


@pytest.mark.slow
def test_no_other_list_of_tensor_names() -> None:
    """A literal of three names of the table anywhere else would be a second table, to be changed with the first."""
    root = Path(hf_rerank.__file__).parent
    looked_at = 0
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            entries = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            texts = {entry.value for entry in entries if isinstance(entry, ast.Constant)}
            looked_at += bool(texts)
            if path.parent.name in ("metrics", "testing"):  # arguments of metrics; lists made by hand
                continue
            assert len(texts & set(TENSORS)) < 3, f"{path}, line {node.lineno}"
    assert looked_at > 500


def test_a_schema_without_categories() -> None:
    """``item_categorical`` is required, and has then no column."""
    schema = PARTS["only numbers"]
    processor = ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=schema)
    assert processor(ROWS[:2])["item_categorical"].shape[2] == 0
    assert ListSchema(items=[Categorical("item_id")]).feature_tensors() == ["item_categorical", "mask", "position_ids"]
