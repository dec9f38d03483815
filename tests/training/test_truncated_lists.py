"""Lists longer than the model's limit: they are truncated, and metrics count clicks on truncated items."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hf_rerank import Dense, DNNConfig, DNNForReranking, InputError, ListProcessor, ListSchema
from hf_rerank.data.custom.prepare import prepare_own
from hf_rerank.data.loading import load_lists
from hf_rerank.evaluation import evaluate, evaluate_orders
from hf_rerank.training import RerankTrainer, RerankTrainingArguments

# 12 items, clicks on the 1st and the 12th; 10 items, a click on the 2nd; 12 items, a click on the 11th alone.
CLICKS = [[1] + [0] * 10 + [1], [0, 1] + [0] * 8, [0] * 10 + [1, 0]]
LISTS = [{"price": [float(slot) for slot in range(len(click))], "click": click} for click in CLICKS]
SCHEMA = ListSchema(items=[Dense("price")], max_list_length=10)
# The model below scores items by -price, so that they keep their order.
IDEAL_OF_TWO = 1 + 1 / math.log2(3)
NDCG = (1 / IDEAL_OF_TWO + 1 / math.log2(3) + 0.0) / 3
# MAP@10: 1 of 2 clicks found, at rank 1; the one click at rank 2; none.
MAP = (1 / 2 + 1 / 2 + 0) / 3


class CheapestFirst(DNNForReranking):
    """Keeps the order of ``LISTS``."""

    def score(self, context: Any, position_ids: torch.Tensor) -> Any:
        output = super().score(context, position_ids)
        output.logits = torch.where(context["mask"], -self.prices + 0.0 * output.logits, output.logits)
        return output

    def embed(self, batch: Any) -> Any:
        self.prices = batch.item_dense[..., 0]
        return super().embed(batch)


def check_metrics(found: dict[str, float], prefix: str = "") -> None:
    assert found[f"{prefix}ndcg@10"] == pytest.approx(NDCG)
    assert found[f"{prefix}map@10"] == pytest.approx(MAP)
    assert found[f"{prefix}recall@10"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    counts = ("truncated_lists", "clicks_cut", "lists_without_click", "items")
    assert [found[prefix + name] for name in counts] == [2, 2, 0, 30]


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(Dataset.from_list(LISTS), schema=SCHEMA)


def model_of(processor: ListProcessor) -> CheapestFirst:
    torch.manual_seed(0)
    return CheapestFirst(DNNConfig.for_schema(processor.schema, hidden_sizes=[4]))


@pytest.mark.parametrize("streamed", [False, True], ids=["dataset", "stream"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_trainer_counts_clicks_on_truncated_items(
    processor: ListProcessor, tmp_path: Path, batch: int, streamed: bool
) -> None:
    lists = Dataset.from_list(LISTS)
    arguments = RerankTrainingArguments(
        str(tmp_path), truncate_lists=True, per_device_eval_batch_size=batch, use_cpu=True, disable_tqdm=True
    )
    trainer = RerankTrainer(
        model_of(processor),
        arguments,
        eval_dataset=lists.to_iterable_dataset() if streamed else lists,
        processing_class=processor,
    )
    check_metrics(trainer.evaluate(), "eval_")


def test_prepared_lists_keep_the_labels_of_truncated_items(processor: ListProcessor, tmp_path: Path) -> None:
    rows = [{**row, "split": "test"} for row in LISTS]
    Dataset.from_list(rows).to_parquet(tmp_path / "lists.parquet")
    prepare_own(tmp_path / "lists.parquet", tmp_path / "lists", schema=SCHEMA, cut=True, progress=False)
    lists = load_lists(tmp_path / "lists")
    assert lists.schema.cut_label == "click_cut"
    assert lists["test"]["click_cut"][:] == [[0, 1], [], [1, 0]]
    reader = ListProcessor(lists.schema, processor.vocabularies, processor.scales)
    check_metrics(evaluate(model_of(processor), reader, lists["test"], ks=(10,), swaps="one", max_steps=0))
    check_metrics(evaluate_orders(reader, lists["test"], ks=(10,))["initial"])


def test_the_cut_label_column_must_be_separate_and_valid() -> None:
    for other in ("price", "click"):
        with pytest.raises(InputError, match=f"the column '{other}'|takes the column '{other}'"):
            ListSchema(items=[Dense("price")], cut_label=other)
    schema = ListSchema(items=[Dense("price")], cut_label="gone")
    assert ListSchema.from_dict(schema.to_dict()) == schema
    assert "cut_label" not in SCHEMA.to_dict()
    lists = Dataset.from_list([{"price": [1.0, 2.0], "click": [0, 1], "gone": [-1.0]}] * 2)
    processor = ListProcessor.from_lists(lists.remove_columns("gone"), schema=schema)
    with pytest.raises(InputError, match="column 'gone' holds a null or a number below 0"):
        evaluate_orders(processor, lists)
