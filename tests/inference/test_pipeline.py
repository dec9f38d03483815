"""The transformers pipeline: the same results as ``Reranker``, bit for bit, from any container of lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from transformers import BertConfig, BertModel

import hf_rerank.inference.pipeline
from hf_rerank import (
    Categorical,
    Dense,
    InputError,
    ListProcessor,
    ListSchema,
    PRMConfig,
    PRMForReranking,
    Reranker,
    RerankingPipeline,
)

SCHEMA = ListSchema(
    items=[Categorical("item_id", min_count=1), Dense("price")],
    user=[Categorical("gender", min_count=1)],
    position="place",
    list_id="list_id",
    max_list_length=6,
)


def make_row(number: int, length: int) -> dict[str, Any]:
    draw = np.random.default_rng(number)
    return {
        "list_id": f"list-{number}",
        "item_id": draw.integers(50, size=length).tolist(),
        "price": draw.normal(size=length).tolist(),
        "gender": int(draw.integers(2)),
        "place": draw.permutation(length).tolist(),
    }


BERT = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
ROWS = [make_row(number, 1 + number % 6) for number in range(20)]
LONG = make_row(99, 9)


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    processor = ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA)
    torch.manual_seed(0)
    config = PRMConfig.for_schema(
        processor.schema, hidden_size=8, num_hidden_layers=1, intermediate_size=8, initializer_range=1.0
    )
    return Reranker(processor, PRMForReranking(config))


@pytest.fixture(scope="module")
def folder(reranker: Reranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline") / "run"
    reranker.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reranking_pipeline(folder: Path) -> RerankingPipeline:
    return transformers.pipeline("re-ranking", model=str(folder), device="cpu")


class Rows(torch.utils.data.Dataset):  # a torch dataset
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return ROWS[number]


CONTAINERS: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "generator": lambda: (row for row in ROWS),
    "dataset": lambda: datasets.Dataset.from_list(ROWS),
    "stream": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
}


def test_transformers_builds_the_pipeline(reranking_pipeline: RerankingPipeline) -> None:
    assert type(reranking_pipeline) is RerankingPipeline
    assert reranking_pipeline.task == "re-ranking"
    assert not reranking_pipeline.model.training
    assert isinstance(reranking_pipeline.feature_extractor, ListProcessor)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
@pytest.mark.parametrize("container", CONTAINERS)
def test_results_equal_the_reranker_bit_for_bit(
    container: str, batch_size: int, reranking_pipeline: RerankingPipeline, reranker: Reranker
) -> None:
    """20 lists of 1 to 6 items, padded to the longest of a batch."""
    found = reranking_pipeline(CONTAINERS[container](), batch_size=batch_size)
    assert isinstance(found, list) == (container in ("list", "tuple"))
    assert list(found) == reranker.rerank(ROWS, batch_size=batch_size)


def test_torch_dataset_as_input(reranking_pipeline: RerankingPipeline, reranker: Reranker) -> None:
    assert list(reranking_pipeline(Rows())) == reranker.rerank(ROWS)


def test_one_dictionary_gives_one_result(reranking_pipeline: RerankingPipeline, reranker: Reranker) -> None:
    assert reranking_pipeline(ROWS[5]) == reranker.rerank([ROWS[5]])[0]
    assert reranking_pipeline([]) == []


def test_columns_named_role_and_content_are_not_read_as_a_chat() -> None:
    """transformers takes dictionaries with ``role`` and ``content`` for chat messages."""
    rows = [{"role": [1, 2, 3], "content": [0.5, 0.1, 0.2]}, {"role": [2], "content": [0.3]}]
    schema = ListSchema(items=[Categorical("role", min_count=1), Dense("content")])
    processor = ListProcessor.from_lists(pa.Table.from_pylist(rows), schema=schema)
    model = PRMForReranking(PRMConfig.for_schema(processor.schema, hidden_size=8, num_hidden_layers=1))
    assert RerankingPipeline(model, processor, device="cpu")(rows) == Reranker(processor, model).rerank(rows)


def test_lists_given_as_dicts_of_items(reranking_pipeline: RerankingPipeline, reranker: Reranker) -> None:
    of_items = ("item_id", "price", "place")
    lists = [
        {
            "list_id": row["list_id"],
            "gender": row["gender"],
            "items": [{name: row[name][slot] for name in of_items} for slot in range(len(row["item_id"]))],
        }
        for row in ROWS
    ]
    assert reranking_pipeline(lists) == reranker.rerank(ROWS)
    assert reranking_pipeline(lists[3]) == reranker.rerank([ROWS[3]])[0]


def test_generators_are_read_one_batch_at_a_time(reranking_pipeline: RerankingPipeline) -> None:
    read: list[int] = []

    def lists() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(ROWS):
            read.append(number)
            yield row

    results = reranking_pipeline(lists(), batch_size=4)
    assert read == []
    next(results)
    assert read == [0, 1, 2, 3]


def test_options_at_the_call_override_those_at_construction(folder: Path, reranker: Reranker) -> None:
    rows = [*ROWS, LONG]
    choosing = transformers.pipeline(
        "re-ranking", model=str(folder), device="cpu", top_k=2, truncate=True, batch_size=5
    )
    assert choosing(rows) == reranker.rerank(rows, top_k=2, truncate=True, batch_size=5)
    assert choosing(rows, top_k=None, batch_size=7) == reranker.rerank(rows, truncate=True, batch_size=7)
    with pytest.raises(InputError, match="list list-99 has 9 items"):
        choosing(rows, truncate=False)
    assert choosing(rows) == reranker.rerank(rows, top_k=2, truncate=True, batch_size=5)


@pytest.mark.parametrize(
    ("inputs", "choices", "message"),
    [
        ("runs/prm", {}, "expected a dictionary of columns, or several, got str"),
        (7, {}, "expected a dictionary of columns, or several, got int"),
        ([*ROWS[:5], ROWS[1:3]], {"batch_size": 2}, "list 5 is a list: expected a dictionary"),
        ([*ROWS[:5], {"item_id": [1]}], {"batch_size": 5}, "no column 'price'"),
        (ROWS, {"top_k": 0}, "top_k is 0: expected at least 1"),
        (ROWS, {"batch_size": 0}, "batch_size is 0: expected at least 1"),
        (ROWS, {"batch_size": None}, "batch_size is None: expected at least 1"),
        (ROWS, {"batch_size": 2.5}, "batch_size is 2.5: expected at least 1, a whole number"),
        (ROWS, {"truncate": "no"}, "truncate is 'no': expected True or False"),
        (ROWS, {"topk": 3}, "has no option 'topk'; did you mean 'top_k'"),
        (ROWS, {"num_workers": 2}, "has no option 'num_workers'"),
    ],
)
def test_wrong_inputs_and_options_are_rejected(
    inputs: Any, choices: dict[str, Any], message: str, reranking_pipeline: RerankingPipeline
) -> None:
    with pytest.raises(InputError, match=message):
        reranking_pipeline(inputs, **choices)


def test_wrong_construction_arguments_are_rejected(folder: Path, reranker: Reranker) -> None:
    for choices, message in (
        ({"topk": 3}, "has no option 'topk'; did you mean 'top_k'"),
        ({"top_k": 0}, "top_k is 0"),
        ({"num_workers": 2}, "there is no num_workers"),
        ({"device": "cuda:99"}, "device is 'cuda:99': expected one that is available"),
        ({"device": 99}, "device is 99: expected one that is available"),
    ):
        with pytest.raises(InputError, match=message):
            transformers.pipeline("re-ranking", model=str(folder), **{"device": "cpu", **choices})
    with pytest.raises(InputError, match="there is no processor"):
        RerankingPipeline(reranker.model)
    other = ListProcessor.from_lists(pa.Table.from_pylist(ROWS[:3]), schema=SCHEMA)
    with pytest.raises(InputError, match="do not belong together"):
        RerankingPipeline(reranker.model, other, device="cpu")
    with pytest.raises(InputError, match="expected a re-ranker of this library"):
        RerankingPipeline(BertModel(BERT), reranker.processor, device="cpu")
    with pytest.raises(InputError, match="expected one argument"):
        RerankingPipeline(reranker.model, reranker.processor, device="cpu")(ROWS, 3)


def test_model_loading_options_are_accepted(folder: Path, reranker: Reranker) -> None:
    """transformers passes them to the processor as well."""
    for options in ({"device_map": "cpu"}, {"device": "cpu", "model_kwargs": {"attn_implementation": "eager"}}):
        found = transformers.pipeline("re-ranking", model=str(folder), **options)(ROWS)
        assert [result["order"] for result in found] == [result["order"] for result in reranker.rerank(ROWS)]


def test_lists_read_before_the_source_fails_are_ranked(
    reranking_pipeline: RerankingPipeline, reranker: Reranker
) -> None:
    def lists() -> Iterator[dict[str, Any]]:
        yield from ROWS[:4]
        raise OSError("the source broke")

    results = reranking_pipeline(lists(), batch_size=2)
    assert [next(results) for _ in range(4)] == reranker.rerank(ROWS[:4], batch_size=2)
    with pytest.raises(OSError, match="the source broke"):
        next(results)


def test_saved_pipeline_loads_with_the_same_results(reranking_pipeline: RerankingPipeline, tmp_path: Path) -> None:
    """A model and its processor, with a manifest; no code and no reference to code."""
    reranking_pipeline.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "config.json",
        "manifest.json",
        "model.safetensors",
        "preprocessor_config.json",
        "vocabularies.safetensors",
    }
    assert "custom_pipelines" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = transformers.pipeline("re-ranking", model=tmp_path / "saved", device="cpu")
    assert again(ROWS) == reranking_pipeline(ROWS) == Reranker.from_pretrained(tmp_path / "saved").rerank(ROWS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_gpu_is_used_if_available(folder: Path, reranker: Reranker) -> None:
    on_gpu = transformers.pipeline("re-ranking", model=str(folder))
    assert on_gpu.device.type == "cuda"
    for found, expected in zip(on_gpu(ROWS), reranker.rerank(ROWS), strict=True):
        assert found["order"] == expected["order"]
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-4)


def test_importing_the_module_registers_the_pipeline() -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    assert PIPELINE_REGISTRY.check_task(hf_rerank.inference.pipeline.TASK)[1]["impl"] is RerankingPipeline
