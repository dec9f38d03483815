"""Results of ranking: fixed keys whatever the columns are called, ids from any column, scores in input order."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from all_features import ROWS, SCHEMA, made_rows

from hf_rerank import (
    Categorical,
    Dense,
    DNNConfig,
    DNNForReranking,
    InputError,
    ListProcessor,
    ListSchema,
    PRMConfig,
    PRMForReranking,
    Reranker,
)
from hf_rerank.inference.export import export_onnx
from hf_rerank.inference.ranking import EncodedBatch
from hf_rerank.inference.ranking import probabilities as as_probabilities
from hf_rerank.losses import TASK_LOSSES, probabilities
from hf_rerank.metrics.inputs import rank_slots

LISTS = ROWS[:12]


def make_reranker(processor: ListProcessor, **options: Any) -> Reranker:
    torch.manual_seed(0)
    config = PRMConfig.for_schema(
        processor.schema, **{"hidden_size": 8, "num_hidden_layers": 1, "initializer_range": 1.0, **options}
    )
    return Reranker(processor, PRMForReranking(config))


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA)


@pytest.fixture(scope="module")
def reranker(processor: ListProcessor) -> Reranker:
    return make_reranker(processor)


@pytest.fixture(scope="module")
def graph(reranker: Reranker, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = tmp_path_factory.mktemp("graph") / "exported"
    export_onnx(reranker, folder)
    return Reranker.from_pretrained(folder)


BACKENDS = ("reranker", "graph")


# ---------------------------------------------------------------------------------------------------------- fixed keys


COLLIDING = ListSchema(
    items=[Categorical("scores", min_count=1), Dense("ids", scale="none"), Dense("predictions", scale="none")],
    user=[Categorical("list_id", min_count=1)],
    list_id="order",
    id="scores",
)
COLLIDING_ROWS = [
    {"order": "a", "scores": [11, 12, 13], "ids": [0.5, 1.5, -1.0], "predictions": [1.0, 2.0, 3.0], "list_id": 7},
    {"order": "b", "scores": [13], "ids": [0.0], "predictions": [0.0], "list_id": 8},
]


def test_columns_may_have_the_same_names_as_result_keys(tmp_path: Path) -> None:
    """With the columns renamed, the re-ranker is the same, and so are its results."""
    plain = {"order": "query", "scores": "item", "ids": "price", "predictions": "stars", "list_id": "city"}
    renamed = [{plain[name]: value for name, value in row.items()} for row in COLLIDING_ROWS]
    schema = ListSchema(
        items=[Categorical("item", min_count=1), Dense("price", scale="none"), Dense("stars", scale="none")],
        user=[Categorical("city", min_count=1)],
        list_id="query",
        id="item",
    )
    results = []
    for number, (rows, columns) in enumerate(((COLLIDING_ROWS, COLLIDING), (renamed, schema))):
        fitted = ListProcessor.from_lists(pa.Table.from_pylist(rows), schema=columns)
        make_reranker(fitted).save_pretrained(tmp_path / str(number))
        loaded = Reranker.from_pretrained(tmp_path / str(number))
        results.append((loaded.rerank(rows), [scores.tolist() for scores in loaded.predict(rows)]))
    assert results[0] == results[1]
    for row, result in zip(COLLIDING_ROWS, results[0][0], strict=True):
        assert list(result) == ["list_id", "order", "scores", "ids"]
        assert result["list_id"] == row["order"]
        assert sorted(result["order"]) == list(range(len(row["scores"])))
        assert result["ids"] == [row["scores"][slot] for slot in result["order"]]
        assert result["scores"] == sorted(result["scores"], reverse=True)


def test_list_id_is_returned_unchanged(processor: ListProcessor, reranker: Reranker) -> None:
    rows = [{**row, "list_id": 100 + number} for number, row in enumerate(LISTS)]
    assert [result["list_id"] for result in reranker.rerank(rows)] == list(range(100, 112))
    unnamed = [{name: value for name, value in row.items() if name != "list_id"} for row in LISTS]
    assert [result["list_id"] for result in reranker.rerank(unnamed, batch_size=5)] == list(range(12))


# ---------------------------------------------------------------------------------------------------------------- ids


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_come_from_a_column_that_is_not_a_feature(backend: str, request: pytest.FixtureRequest) -> None:
    ranker: Reranker = request.getfixturevalue(backend)
    assert "sku" not in {feature.name for feature in ranker.processor.schema.items}
    for row, result in zip(LISTS, ranker.rerank(LISTS, top_k=3), strict=True):
        assert result["ids"] == [row["sku"][slot] for slot in result["order"]]
        assert len(result["ids"]) == min(3, len(row["sku"]))


def test_id_column_is_saved_and_does_not_change_scores(reranker: Reranker, tmp_path: Path) -> None:
    reranker.save_pretrained(tmp_path)
    loaded = Reranker.from_pretrained(tmp_path)
    assert loaded.processor.schema.id == "sku"
    assert loaded.processor.schema.initial_score == "earlier"
    others = [{**row, "sku": list(range(len(row["sku"])))} for row in LISTS]
    for expected, found in zip(loaded.rerank(LISTS), loaded.rerank(others), strict=True):
        assert found["ids"] == found["order"] == expected["order"]
        assert found["scores"] == expected["scores"]


def test_ids_may_be_arrays_and_of_any_type(reranker: Reranker) -> None:
    for ids in (np.arange(30), [None] * 30, [{"url": str(number)} for number in range(30)], tuple(range(30))):
        rows = [{**row, "sku": ids[: len(row["sku"])]} for row in LISTS]
        for row, result in zip(rows, reranker.rerank(rows), strict=True):
            values = row["sku"].tolist() if isinstance(row["sku"], np.ndarray) else row["sku"]
            assert result["ids"] == [values[slot] for slot in result["order"]]
            assert all(type(value) is not np.int64 for value in result["ids"])


def without_ids(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**{name: value for name, value in row.items() if name != "sku"}, **more}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda row: without_ids(row), r"^list list-1 has no column 'sku', whose values ranking returns \(id of"),
        (lambda row: without_ids(row, skus=[1]), r"has no column 'sku', .*did you mean 'skus'\?$"),
        (
            lambda row: {**row, "sku": row["sku"][1:]},
            r"^column 'sku' of list list-1 does not contain \d+ values, one per",
        ),
        (lambda row: {**row, "sku": "x" * len(row["sku"])}, r"'sku' of list list-1 does not contain \d+ values"),
        (lambda row: {**row, "sku": 7}, r"'sku' of list list-1 does not contain \d+ values"),
        (lambda row: {**row, "sku": None}, r"'sku' of list list-1 does not contain \d+ values"),
    ],
)
def test_missing_or_wrong_ids_give_a_one_line_error(
    wrong: Callable[[dict[str, Any]], dict[str, Any]], message: str, backend: str, request: pytest.FixtureRequest
) -> None:
    ranker: Reranker = request.getfixturevalue(backend)
    rows = [ROWS[0], wrong(ROWS[1])]
    with pytest.raises(InputError, match=message) as caught:
        ranker.rerank(rows)
    assert "\n" not in str(caught.value)
    assert len(ranker.predict(rows)) == 2  # which returns no ids


# ------------------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_predict_returns_scores_in_input_order(backend: str, batch_size: int, request: pytest.FixtureRequest) -> None:
    ranker: Reranker = request.getfixturevalue(backend)
    found = ranker.predict(LISTS, batch_size=batch_size)
    assert len(found) == len(LISTS)
    for row, scores, result in zip(LISTS, found, ranker.rerank(LISTS), strict=True):
        assert scores.dtype == np.float32
        assert scores.shape == (len(row["item_id"]),)
        np.testing.assert_allclose(scores[result["order"]], result["scores"], atol=1e-5)
    assert ranker.predict([]) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batch_size_does_not_change_results(backend: str, batch_size: int, request: pytest.FixtureRequest) -> None:
    ranker: Reranker = request.getfixturevalue(backend)
    for expected, found in zip(ranker.rerank(LISTS), ranker.rerank(LISTS, batch_size=batch_size), strict=True):
        assert (found["list_id"], found["order"], found["ids"]) == (
            expected["list_id"],
            expected["order"],
            expected["ids"],
        )
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_predict_gives_nan_to_truncated_items(backend: str, request: pytest.FixtureRequest) -> None:
    """Truncated items get NaN, the others the scores of the list without them."""
    ranker: Reranker = request.getfixturevalue(backend)
    row = next(row for row in ROWS if len(row["item_id"]) == 30)
    long = {name: value * 2 if isinstance(value, list) and len(value) == 30 else value for name, value in row.items()}
    draw = np.random.default_rng(0)
    long["place"] = draw.permutation(60).tolist()
    with pytest.raises(InputError, match=r"has 60 items.*max_list_length=30"):
        ranker.predict([long])
    kept = [slot for slot, place in enumerate(long["place"]) if place < 30]
    cut = {
        name: [value[slot] for slot in kept] if isinstance(value, list) and len(value) == 60 else value
        for name, value in long.items()
    }
    for wanted in (False, True):
        alone, beside = ranker.predict([cut, ROWS[0]], probabilities=wanted)
        found, other = ranker.predict([long, ROWS[0]], truncate=True, probabilities=wanted)
        assert np.isnan(found).tolist() == [slot not in kept for slot in range(60)]
        np.testing.assert_allclose(found[kept], alone, atol=1e-6)
        np.testing.assert_allclose(other, beside, atol=1e-6)


def expected_probabilities(scores: list[float], task_loss: str) -> list[float]:
    """In plain Python: the sigmoid of each score, or the softmax over the list."""
    if task_loss == "binary_log_loss":
        return [1 / (1 + math.exp(-score)) for score in scores]
    total = math.fsum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


@pytest.mark.parametrize("task_loss", [*TASK_LOSSES, "own"])
def test_probabilities_match_sigmoid_or_softmax(task_loss: str, processor: ListProcessor) -> None:
    ranker = make_reranker(processor, task_loss=task_loss)
    name = ranker.model.config.task_loss_name
    scores, found = ranker.predict(LISTS), ranker.predict(LISTS, probabilities=True, batch_size=5)
    for of_list, given in zip(scores, found, strict=True):
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, expected_probabilities(of_list.tolist(), name), rtol=1e-5)
        np.testing.assert_allclose(given, probabilities(torch.from_numpy(of_list), name).numpy(), rtol=1e-5)
        if name != "binary_log_loss":
            assert given.sum() == pytest.approx(1, abs=1e-6)


def test_graph_and_model_give_the_same_probabilities(reranker: Reranker, graph: Reranker) -> None:
    for one, other in zip(
        reranker.predict(LISTS, probabilities=True), graph.predict(LISTS, probabilities=True), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("task_loss", TASK_LOSSES)
def test_probabilities_of_extreme_scores(task_loss: str) -> None:
    """Equal to the tensor function; no overflow, 0 at padding, and a list of one item."""
    scores = np.array([[3e4, -3e4, 0.0], [88.0, 89.0, 1e30], [5.0, math.nan, math.inf]], dtype=np.float32)
    mask = np.array([[True, True, True], [True, True, False], [True, False, False]])
    with np.errstate(all="raise", under="ignore"):
        found = as_probabilities(np.where(mask, scores, 0.0), mask, task_loss)
    expected = probabilities(torch.from_numpy(scores), task_loss, mask=torch.from_numpy(mask))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-30)
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((LISTS,), {"probabilities": "yes"}, "probabilities is 'yes': expected True or False"),
        ((LISTS,), {"truncate": 1}, "truncate is 1: expected True or False"),
        ((LISTS,), {"batch_size": 0}, "batch_size is 0: expected at least 1"),
        ((LISTS[0],), {}, "expected a sequence of lists, one dict each, got one dict"),
        (
            ([{**LISTS[0], "age": 1e38}],),
            {},
            "list list-0 contains a number far outside the range of the training data",
        ),
        (([LISTS[0], {**LISTS[1], "price": [1.0]}],), {}, "list 1 .id list-1. is ragged"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_predict_arguments_are_rejected(
    backend: str, arguments: Any, options: dict[str, Any], message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(InputError, match=message):
        request.getfixturevalue(backend).predict(*arguments, **options)


def test_weights_that_are_not_finite_raise_an_error(processor: ListProcessor) -> None:
    broken = make_reranker(processor)
    with torch.no_grad():
        broken.model.scorer.weight.fill_(math.nan)
    for rank in (broken.rerank, broken.predict):
        with pytest.raises(InputError, match="list list-0 gets scores that are not finite"):
            rank(LISTS)


# ------------------------------------------------------------------------------------------------------ forms of lists


@pytest.mark.parametrize("backend", BACKENDS)
def test_lists_given_as_dicts_of_items(backend: str, request: pytest.FixtureRequest) -> None:
    """As in a server's JSON, in both directions."""
    ranker: Reranker = request.getfixturevalue(backend)
    of_items = ("item_id", "shop", "price", "stars", "text", "place", "earlier", "sku")
    of_history = ("seen", "page", "hours")

    def entries(row: dict[str, Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
        return [{name: row[name][slot] for name in names} for slot in range(len(row[names[0]]))]

    lists = [
        {
            "list_id": row["list_id"],
            "gender": row["gender"],
            "age": row["age"],
            "items": entries(row, of_items),
            "history": entries(row, of_history),
        }
        for row in LISTS
    ]
    lists = json.loads(json.dumps(lists))
    found = json.loads(json.dumps(ranker.rerank(lists, batch_size=5)))
    assert found == ranker.rerank(LISTS, batch_size=5)
    assert [scores.tolist() for scores in ranker.predict(lists)] == [
        scores.tolist() for scores in ranker.predict(LISTS)
    ]
    del lists[7]["items"][2]["price"]
    with pytest.raises(InputError, match="item 2 of list 7 lacks 'price', which item 0 of list 7 has"):
        ranker.rerank(lists, batch_size=3)  # the index of the list, not its place in the batch


def test_ties_keep_slot_order_and_padding_is_last() -> None:
    scores = np.array([[0.5, 2.0, 0.5, 9.0], [1.0, 1.0, 3.0, 1.0]], dtype=np.float32)
    mask = np.array([[True, True, True, False], [True, True, True, True]])
    assert rank_slots(scores, mask).tolist() == [[1, 0, 2, 3], [2, 0, 1, 3]]


def test_identical_items_keep_their_order() -> None:
    rows = [{"price": [1.0] * 4, "list_id": "a"}, {"price": [2.0, 2.0], "list_id": "b"}]
    schema = ListSchema(items=[Dense("price", scale="none")])
    fitted = ListProcessor.from_lists(pa.Table.from_pylist(rows), schema=schema)
    config = DNNConfig.for_schema(fitted.schema, hidden_sizes=[4], position_input="none")
    results = Reranker(fitted, DNNForReranking(config)).rerank(rows)
    assert [result["order"] for result in results] == [[0, 1, 2, 3], [0, 1]]
    assert [result["ids"] for result in results] == [[1.0] * 4, [2.0, 2.0]]  # of the first feature, without an id


def test_encoded_batch_contains_only_the_feature_tensors(processor: ListProcessor) -> None:
    batch = EncodedBatch.encode(made_rows(3, outcome=True), processor)
    assert list(batch.features) == processor.schema.feature_tensors()
    assert batch.lists.labels is not None
