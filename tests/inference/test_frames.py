"""pandas and Polars frames, one row per list or per item, give the same results as dicts, again as a frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from all_features import ROWS, SCHEMA

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
    Vector,
)

LISTS = ROWS[:15]
OF_ITEMS = ("item_id", "shop", "price", "stars", "text", "place", "earlier", "sku")
LIBRARIES: dict[str, Callable[[Any], Any]] = {
    "polars": lambda rows: pl.DataFrame(rows, strict=False),
    "pandas": lambda rows: pd.DataFrame(rows),
}


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    processor = ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA)
    torch.manual_seed(0)
    config = PRMConfig.for_schema(processor.schema, hidden_size=8, num_hidden_layers=1, initializer_range=1.0)
    return Reranker(processor, PRMForReranking(config))


def to_item_rows(lists: list[dict[str, Any]], of_items: tuple[str, ...] = OF_ITEMS) -> list[dict[str, Any]]:
    """One row per item; the columns of the list are repeated in each row."""
    rows = []
    for row in lists:
        names = [name for name in of_items if name in row]
        whole = {name: value for name, value in row.items() if name not in names}
        rows += [{**whole, **{name: row[name][slot] for name in names}} for slot in range(len(row[names[0]]))]
    return rows


def flatten_results(results: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (result["list_id"], slot, score, found)
        for result in results
        for slot, score, found in zip(result["order"], result["scores"], result["ids"], strict=True)
    ]


def frame_rows(frame: Any) -> list[tuple[Any, ...]]:
    assert list(frame.columns) == ["list_id", "order", "scores", "ids"]
    return frame.rows() if isinstance(frame, pl.DataFrame) else list(frame.itertuples(index=False, name=None))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("per_item", [True, False], ids=["row per item", "row per list"])
def test_a_frame_gives_the_same_results_as_dicts(library: str, per_item: bool, reranker: Reranker) -> None:
    frame = LIBRARIES[library](to_item_rows(LISTS) if per_item else LISTS)
    ranked, report = reranker.rerank(frame, top_k=4, batch_size=6, with_report=True)
    assert type(ranked) is type(frame)
    expected, expected_report = reranker.rerank(LISTS, top_k=4, batch_size=6, with_report=True)
    assert frame_rows(ranked) == flatten_results(expected)
    assert report == expected_report
    for found, scores in zip(reranker.predict(frame), reranker.predict(LISTS), strict=True):
        np.testing.assert_array_equal(found, scores)


@pytest.mark.parametrize("library", LIBRARIES)
def test_item_rows_may_be_shuffled_across_lists(library: str, reranker: Reranker) -> None:
    """The initial order comes from the position column, not from the row order."""
    rows = to_item_rows(LISTS)
    shuffled = [rows[place] for place in np.random.default_rng(1).permutation(len(rows))]
    ranked = reranker.rerank(LIBRARIES[library](shuffled))
    expected = {result["list_id"]: (result["ids"], result["scores"]) for result in reranker.rerank(LISTS)}
    assert list(dict.fromkeys(row["list_id"] for row in shuffled)) == list(dict.fromkeys(ranked["list_id"]))
    for name, (ids, scores) in expected.items():
        of_list = [row for row in frame_rows(ranked) if row[0] == name]
        assert [row[3] for row in of_list] == ids
        np.testing.assert_allclose([row[2] for row in of_list], scores, atol=1e-5)
        # The order refers to the items in frame order.
        standing = [row["sku"] for row in shuffled if row["list_id"] == name]
        assert [standing[row[1]] for row in of_list] == ids


@pytest.mark.parametrize("library", LIBRARIES)
def test_without_a_position_column_row_order_is_the_initial_order(library: str, reranker: Reranker) -> None:
    bare = [{name: value for name, value in row.items() if name != "place"} for row in LISTS]
    ranked = reranker.rerank(LIBRARIES[library](to_item_rows(bare)))
    assert frame_rows(ranked) == flatten_results(reranker.rerank(bare))
    assert frame_rows(ranked) != frame_rows(reranker.rerank(LIBRARIES[library](to_item_rows(LISTS))))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("name", "value"), [("gender", 7), ("gender", None), ("age", 0.25), ("age", None), ("seen", [1, 2, 3])]
)
def test_list_level_columns_that_differ_within_a_list_are_rejected(
    library: str, name: str, value: Any, reranker: Reranker
) -> None:
    rows = to_item_rows(LISTS)
    third = [place for place, row in enumerate(rows) if row["list_id"] == LISTS[3]["list_id"]]
    assert len(third) > 1
    rows[third[1]][name] = value
    with pytest.raises(
        InputError, match=f"^column '{name}' of the data frame differs within list list-3: expected one"
    ):
        reranker.rerank(LIBRARIES[library](rows))


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_row_per_item_requires_the_list_id_column(library: str, reranker: Reranker) -> None:
    unnamed = [{name: value for name, value in row.items() if name != "list_id"} for row in to_item_rows(LISTS)]
    frame = LIBRARIES[library](unnamed)
    with pytest.raises(InputError, match=r"one row per item needs the column .* belongs to: 'list_id', the schema's"):
        reranker.rerank(frame)
    schema = reranker.processor.schema.replace(list_id=None)
    without = Reranker(
        ListProcessor(schema, reranker.processor.vocabularies, reranker.processor.scales), reranker.model
    )
    with pytest.raises(InputError, match="belongs to: name it as list_id in the schema"):
        without.rerank(frame)
    # One row per list needs no list id: the row number is the id.
    bare = [{name: value for name, value in row.items() if name != "list_id"} for row in LISTS]
    assert list(dict.fromkeys(without.rerank(LIBRARIES[library](bare))["list_id"])) == list(range(15))


@pytest.mark.parametrize("library", LIBRARIES)
def test_wrong_frames_are_rejected(library: str, reranker: Reranker) -> None:
    make = LIBRARIES[library]
    rows = to_item_rows(LISTS)
    with pytest.raises(InputError, match=r"the data frame has no column 'item_id'; its columns: .*mean 'item_ids'"):
        reranker.rerank(make([{"item_ids": 1, "list_id": "a"}]))
    with pytest.raises(InputError, match="no column 'price'"):
        reranker.rerank(make([{name: value for name, value in row.items() if name != "price"} for row in rows]))
    with pytest.raises(InputError, match="column 'list_id' of list 15 is null"):
        reranker.rerank(make([*rows, {**rows[0], "list_id": None}]))
    with pytest.raises(InputError, match="no column 'sku', whose values ranking returns"):
        reranker.rerank(make([{name: value for name, value in row.items() if name != "sku"} for row in rows]))
    with pytest.raises(InputError, match=r"position column 'place' of list 0 .id list-0. is not a permutation"):
        reranker.rerank(make([{**row, "place": 0} for row in rows]))


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_empty_frame_gives_an_empty_frame(library: str, reranker: Reranker) -> None:
    for rows in (to_item_rows(LISTS), LISTS):
        empty = LIBRARIES[library](rows)[:0]
        ranked = reranker.rerank(empty)
        assert type(ranked) is type(empty)
        assert frame_rows(ranked) == []
        assert reranker.predict(empty) == []


def test_pandas_nan_is_missing_categories_are_text_and_the_index_is_ignored(reranker: Reranker) -> None:
    """NaN is a missing value, categories are read as text, and the index is ignored."""
    frame = pd.DataFrame(to_item_rows(LISTS))
    assert frame["stars"].isna().any()
    frame["shop"] = frame["shop"].astype("category")
    frame.index = np.random.default_rng(0).permutation(len(frame))
    expected = reranker.rerank(LISTS)
    assert frame_rows(reranker.rerank(frame)) == flatten_results(expected)
    assert reranker.rerank(frame, with_report=True)[1].missing["stars"] > 0


def test_polars_categories_are_read_as_text(reranker: Reranker) -> None:
    frame = pl.DataFrame(to_item_rows(LISTS), strict=False)
    shops = sorted(frame["shop"].unique())
    for kind in (pl.Categorical, pl.Enum(shops)):
        ranked = reranker.rerank(frame.with_columns(pl.col("shop").cast(kind)))
        assert frame_rows(ranked) == flatten_results(reranker.rerank(LISTS))


@pytest.mark.parametrize("library", LIBRARIES)
def test_integers_stay_integers(library: str, reranker: Reranker) -> None:
    rows = [{**row, "list_id": number, "sku": list(range(len(row["sku"])))} for number, row in enumerate(LISTS)]
    ranked = reranker.rerank(LIBRARIES[library](to_item_rows(rows)))
    for name in ("list_id", "order", "ids"):
        assert "int64" in str(ranked[name].dtype).lower()
    assert "float" in str(ranked["scores"].dtype).lower()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_vector_feature_is_not_mistaken_for_a_list_of_items(library: str) -> None:
    """The first feature is a sequence in each row, although each row is one item."""
    rows = [
        {"q": "a", "text": [[0.5, 1.0], [1.0, 2.0]], "price": [1.0, 2.0]},
        {"q": "b", "text": [[3.0, 4.0]], "price": [0.5]},
    ]
    schema = ListSchema(items=[Vector("text", dim=2), Dense("price", scale="none")], id="price", list_id="q")
    processor = ListProcessor.from_lists(pa.Table.from_pylist(rows), schema=schema)
    ranker = Reranker(processor, DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[4])))
    expected = flatten_results(ranker.rerank(rows))
    assert frame_rows(ranker.rerank(LIBRARIES[library](to_item_rows(rows, ("text", "price"))))) == expected
    assert frame_rows(ranker.rerank(LIBRARIES[library](rows))) == expected


def test_columns_outside_the_schema_are_ignored(reranker: Reranker) -> None:
    rows = [{**row, "comment": f"{number} words", "when": number} for number, row in enumerate(to_item_rows(LISTS))]
    for make in LIBRARIES.values():
        assert frame_rows(reranker.rerank(make(rows))) == flatten_results(reranker.rerank(LISTS))


def test_frames_for_a_schema_without_user_features(reranker: Reranker) -> None:
    rows = [{"q": 1, "sku": ["b", "a"]}, {"q": 0, "sku": ["a"]}]
    schema = ListSchema(items=[Categorical("sku", min_count=1)], list_id="q")
    processor = ListProcessor.from_lists(pa.Table.from_pylist(rows), schema=schema)
    ranker = Reranker(processor, DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[4])))
    for make in LIBRARIES.values():
        assert frame_rows(ranker.rerank(make(to_item_rows(rows, ("sku",))))) == flatten_results(ranker.rerank(rows))
