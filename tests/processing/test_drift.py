"""Later lists against those of training: shares of unknown and missing values, and columns that were constant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_rerank import Categorical, Dense, DNNConfig, DNNForReranking, InputError, ListProcessor, ListSchema, Reranker
from hf_rerank.evaluation import evaluate

SCHEMA = ListSchema(
    items=[Categorical("item_id"), Categorical("brand", hash_size=9), Dense("price"), Dense("stars")],
    history=[Categorical("seen", shares="item_id")],
)


def lists_of(items: list[int], *, price: float | None = 1.0, stars: float | None = 3.0) -> Dataset:
    """100 lists of two items; the second item has the price in every tenth, 4 in the others."""
    return Dataset.from_list(
        [
            {
                "item_id": items,
                "brand": ["a", None],
                "price": [2.0, price if number % 10 == 0 else 4.0],
                "stars": [stars, stars],
                "seen": items,
                "click": [1, 0],
            }
            for number in range(100)
        ]
    )


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    with pytest.warns(UserWarning, match="constant in the training lists.*: 'stars'; all later values"):
        return ListProcessor.from_lists(lists_of([1, 2], price=None), schema=SCHEMA)


def test_fit_report_counts_unknown_and_missing_values(processor: ListProcessor, tmp_path: Path) -> None:
    """200 values each: brand is missing in 100, price in 10."""
    assert processor.fit_report["training"] == {
        "values": dict.fromkeys(("item_id", "brand", "price", "stars", "seen"), 200),
        "unknown": {"item_id": 0, "brand": 100, "seen": 0},
        "missing": {"brand": 100, "price": 10},
    }
    assert processor.fit_report["constant"] == ["stars"]
    processor.save_pretrained(tmp_path)
    loaded = ListProcessor.from_pretrained(tmp_path)
    assert loaded.fit_report == processor.fit_report
    assert loaded.scales == processor.scales


def test_values_too_rare_for_a_row_are_unknown_in_training_too() -> None:
    """Of 6 values, 5 and 6 occur once: they have no row, so a third of the values is unknown."""
    rows = [{"item_id": [1, 1, 5], "click": [1, 0, 0]}, {"item_id": [2, 2, 6], "click": [1, 0, 0]}]
    processor = ListProcessor.from_lists(Dataset.from_list(rows), schema=ListSchema(items=[Categorical("item_id")]))
    assert processor.fit_report["training"] == {"values": {"item_id": 6}, "unknown": {"item_id": 2}, "missing": {}}


def model_of(processor: ListProcessor) -> DNNForReranking:
    torch.manual_seed(0)
    return DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[8], embedding_dim=4))


CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({"items": [1, 2], "price": None}, []),  # 5 % of the prices are missing, as in training
    (
        {"items": [1, 7], "price": None},
        [
            "column 'item_id': 50.0% of its values are unknown; in training 0.0%",
            "column 'seen': 50.0% of its values are unknown; in training 0.0%",
        ],
    ),
    ({"items": [1, 2], "stars": None}, ["column 'stars': 100.0% of its values are missing; in training 0.0%"]),
    (
        {"items": [1, 2], "stars": 4.0},
        ["column 'stars' was constant in training and no longer is (200 values): the model reads 0 for all of them"],
    ),
]


@pytest.mark.parametrize(("options", "sentences"), CASES)
def test_rank_and_evaluate_report_drift(
    processor: ListProcessor, options: dict[str, Any], sentences: list[str]
) -> None:
    lists, reranker = lists_of(**options), Reranker(processor, model_of(processor))
    _, report = reranker.rerank(list(lists), with_report=True)
    assert report.drift == sentences
    _, of_one = reranker.rerank(list(lists)[:1], with_report=True)
    assert not [sentence for sentence in of_one.drift if "%" in sentence], "too few values to estimate a share"
    if sentences:
        with pytest.warns(UserWarning, match="column") as warned:
            found = evaluate(reranker.model, processor, lists, swaps="one", max_steps=0)
        assert [str(warning.message) for warning in warned] == sentences
        assert found["drift"] == sentences
    else:
        assert evaluate(reranker.model, processor, lists, swaps="one", max_steps=0)["drift"] == []


def test_three_times_the_training_share_is_reported() -> None:
    """10 of 200 prices are missing in training, 5 %: 14 % of later ones are not reported, 15 % are."""
    processor = ListProcessor.from_lists(lists_of([1, 2], price=None), schema=SCHEMA)
    lists = lists_of([1, 2])
    for missing, named in ((28, False), (30, True)):
        rows = [{**row, "price": [None if number < missing else 2.0, 4.0]} for number, row in enumerate(lists)]
        _, report = Reranker(processor, model_of(processor)).rerank(rows, with_report=True)
        assert report.missing["price"] == missing
        assert bool(report.drift) == named


def test_the_reports_of_batches_add_up(processor: ListProcessor) -> None:
    reranker, lists = Reranker(processor, model_of(processor)), list(lists_of([1, 7]))
    _, total = reranker.rerank(lists[:25], with_report=True)
    for start in (25, 50, 75):
        total.add(reranker.rerank(lists[start : start + 25], with_report=True)[1])
    _, whole = reranker.rerank(lists, with_report=True)
    assert processor.describe_drift(total) == whole.drift != []


@pytest.mark.parametrize("scale", ["standard", "log", "quantile", "none"])
def test_column_constant_in_training_does_not_change_scores(scale: str) -> None:
    """Later values differ, and scores do not: the weights that read the column were trained on one value alone."""
    schema = ListSchema(items=[Dense("price"), Dense("stars", scale=scale)])
    train = Dataset.from_list([{"price": [1.0, 2.0, 3.0], "stars": [4.0] * 3, "click": [0, 0, 1]}] * 4)
    processor = ListProcessor.from_lists(train, schema=schema)
    assert processor.fit_report["constant"] == ["stars"]
    reranker = Reranker(processor, model_of(processor))
    row = {"price": [1.0, 2.0, 3.0]}
    usual, other = (reranker.predict([{**row, "stars": stars}])[0] for stars in ([4.0] * 3, [4.0, -50.0, 1e6]))
    np.testing.assert_array_equal(usual, other)


@pytest.mark.parametrize("missing", [None, 4.0])
def test_missing_indicator_constant_in_training_is_always_0(missing: float | None) -> None:
    """In training nothing is missing, or everything is."""
    schema = ListSchema(items=[Dense("price"), Dense("stars", missing="indicator")])
    rows = [{"price": [1.0, 2.0], "stars": [missing, missing], "click": [0, 1]}] * 2
    processor = ListProcessor.from_lists(Dataset.from_list(rows), schema=schema)
    tensors = processor([{"price": [1.0, 2.0], "stars": [None, 4.0]}], return_tensors="np")
    assert tensors["item_dense"][0, :, 2].tolist() == [0.0, 0.0]


def test_items_and_history_must_not_share_a_key() -> None:
    """Column names must be unique: of two with the same name, one would hide the other."""
    schema = ListSchema(items=[Categorical("item_id")], history=[Categorical("seen")])
    rows = [{"items": [{"item_id": 1}], "history": [{"seen": 2, "item_id": 3}]}]
    with pytest.raises(InputError, match="list 0 has the key 'item_id' in items and in history"):
        ListProcessor.from_lists(
            Dataset.from_list([{"item_id": [1, 1], "seen": [2], "click": [0, 1]}]), schema=schema
        )(rows)
