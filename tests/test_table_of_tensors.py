"""The table of tensors: a schema determines which of them its lists have; there is no second list of names."""

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


def test_item_columns_reach_their_tensors(processor: ListProcessor) -> None:
    """Including ``initial_score``, which appears only in the table and in ``forward``."""
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
    "no dense user features": SCHEMA.replace(user=SCHEMA.user[:1]),
    "no categorical user features": SCHEMA.replace(user=SCHEMA.user[1:]),
    "no history": SCHEMA.replace(history=()),
    "no dense history features": SCHEMA.replace(history=SCHEMA.history[:2]),
    "no categorical history features": SCHEMA.replace(history=SCHEMA.history[2:]),
    "no vectors": SCHEMA.replace(items=SCHEMA.items[:-1]),
    "no dense item features": SCHEMA.replace(items=(*SCHEMA.items[:2], SCHEMA.items[-1])),
    "only numbers": SCHEMA.replace(items=SCHEMA.items[2:3], user=(), history=()),
    "no initial score": SCHEMA.replace(initial_score=None),
    "no position": SCHEMA.replace(position=None),
}


@pytest.mark.parametrize("schema", PARTS.values(), ids=PARTS.keys())
def test_the_schema_determines_the_tensors_of_its_lists(schema: ListSchema) -> None:
    """The ONNX export relies on this; lists with an outcome also have labels, weights and propensities."""
    processor = ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=schema)
    names = processor.schema.feature_tensors()
    assert set(processor(ROWS, return_tensors="np")) == {*names, "labels", "weights", "propensities"}
    assert names == [name for name in FEATURE_TENSORS if name in names]
    sizes = processor.schema.axis_sizes()
    for name, array in processor(made_rows(5), return_tensors="np").items():
        assert array.shape[2:] == tuple(sizes[axis] for axis in TENSORS[name].axes[2:])


def test_a_model_receives_every_feature_in_its_batch(
    processor: ListProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A custom model can read ``batch.initial_scores`` without any other change."""
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
def test_tensor_names_are_listed_in_one_place_only() -> None:
    """A literal with three names of the table anywhere else would be a second table to keep in sync."""
    root = Path(hf_rerank.__file__).parent
    looked_at = 0
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            entries = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            texts = {entry.value for entry in entries if isinstance(entry, ast.Constant)}
            looked_at += bool(texts)
            if path.parent.name in ("metrics", "testing"):  # arguments of metrics; handmade lists
                continue
            assert len(texts & set(TENSORS)) < 3, f"{path}, line {node.lineno}"
    assert looked_at > 500


def test_a_schema_without_categorical_features() -> None:
    """``item_categorical`` is required, and has no columns here."""
    schema = PARTS["only numbers"]
    processor = ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=schema)
    assert processor(ROWS[:2])["item_categorical"].shape[2] == 0
    assert ListSchema(items=[Categorical("item_id")]).feature_tensors() == ["item_categorical", "mask", "position_ids"]
