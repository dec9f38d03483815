"""``forward`` and batches follow the table of tensors; a new kind of column needs nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from hf_rerank import Categorical, Dense, InputError, ListProcessor, ListSchema, Reranker, Vector
from hf_rerank.inference.export import export_onnx
from hf_rerank.models.auto import RERANKERS, register_reranker
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput, mask_logits
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import ItemEmbedding
from hf_rerank.processing.collator import RerankCollator
from hf_rerank.schema import AFTER_THE_ITEMS, FEATURE_TENSORS, MODEL_TENSORS, TENSORS, ListBatch
from hf_rerank.training.encoded_cache import CachedLists
from hf_rerank.training.encoded_lists import EncodedLists, collate

# Name -> axes, dtype, padding value.
TABLE = {
    "item_categorical": ("B L Fc", "int64", 0),
    "item_dense": ("B L Fd", "float32", 0),
    "item_vectors": ("B L Fv", "float32", 0),
    "user_categorical": ("B Uc", "int64", 0),
    "user_dense": ("B Ud", "float32", 0),
    "history_categorical": ("B H Hc", "int64", 0),
    "history_dense": ("B H Hd", "float32", 0),
    "history_mask": ("B H", "bool", False),
    "mask": ("B L", "bool", False),
    "position_ids": ("B L", "int64", AFTER_THE_ITEMS),
    "initial_scores": ("B L", "float32", 0),
    "labels": ("B L", "float32", -100),
    "weights": ("B L", "float32", 0),
    "propensities": ("B L", "float32", 1),
    "attraction": ("B L", "float32", 0),
    "cut_labels": ("B C", "float32", -100),
    "list_id": ("B W", "uint8", 0),
}
SCHEMA = ListSchema(
    items=[Categorical("item", min_count=1), Dense("price", missing="indicator"), Vector("text", dim=3)],
    user=[Categorical("gender", min_count=1), Dense("age")],
    history=[Categorical("seen", shares="item"), Dense("ago")],
    position="place",
    initial_score="ranker_score",
    weight="weight",
    propensity="propensity",
    attraction="attraction",
    list_id="name",
    max_list_length=6,
    max_history_length=4,
)
LENGTHS, HISTORIES, NAMES = (3, 1, 4), (2, 0, 3), ("a", "long name", "ü")


def make_rows() -> list[dict[str, Any]]:
    """Lists of 3, 1 and 4 items; no number equals a padding value."""
    draw = np.random.default_rng(0)
    return [
        {
            "item": draw.integers(1, 9, length).tolist(),
            "price": [None, *draw.normal(size=length - 1).tolist()],
            "text": draw.normal(size=(length, 3)).tolist(),
            "gender": number % 2,
            "age": 30.0 + number,
            "seen": draw.integers(1, 9, history).tolist(),
            "ago": draw.random(history).tolist(),
            "place": draw.permutation(length).tolist(),
            "ranker_score": (draw.normal(size=length) * 5 - 2).tolist(),
            "weight": (0.5 + draw.random(length)).tolist(),
            "propensity": (0.1 + 0.5 * draw.random(length)).tolist(),
            "attraction": (0.1 + draw.random(length)).tolist(),
            "click": draw.integers(0, 2, length).tolist(),
            "name": NAMES[number],
        }
        for number, (length, history) in enumerate(zip(LENGTHS, HISTORIES, strict=True))
    ]


ROWS = make_rows()
TO_RANK = [{name: values for name, values in row.items() if name != "click"} for row in ROWS]


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA)


# ----------------------------------------------------------------------------------------------------------- the table


def test_forward_takes_the_tensors_in_the_order_of_the_table() -> None:
    parameters = inspect.signature(PreTrainedReranker.forward).parameters
    assert list(parameters) == ["self", *MODEL_TENSORS, "objective"]
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    assert required == ["self", "item_categorical"]
    assert all(parameter.default is None for name, parameter in parameters.items() if name not in required)
    for _, model in RERANKERS.values():
        assert model.forward is PreTrainedReranker.forward


def test_the_table_has_the_expected_axes_dtypes_and_padding() -> None:
    assert {name: (" ".join(spec.axes), spec.dtype, spec.fill) for name, spec in TENSORS.items()} == TABLE
    assert [name for name, spec in TENSORS.items() if spec.required] == ["item_categorical", "mask", "position_ids"]
    assert list(FEATURE_TENSORS) == list(TABLE)[:11]
    assert list(MODEL_TENSORS) == [*FEATURE_TENSORS, "labels", "weights", "propensities"]


def test_batches_match_the_table(processor: ListProcessor) -> None:
    """Every tensor: number and sizes of axes, dtype, and padding value."""
    batch = RerankCollator(processor, all_tensors=True)(ROWS)
    assert batch.keys() == TABLE.keys() - {"cut_labels"}  # this schema names no such column
    sizes = {"B": 3, "L": 4, "H": 3, "W": 9, "Fc": 1, "Fd": 2, "Fv": 3, "Uc": 1, "Ud": 1, "Hc": 1, "Hd": 1}
    assert processor.schema.axis_sizes().items() <= sizes.items()
    counts = {"L": LENGTHS, "H": HISTORIES, "W": [len(name.encode()) for name in NAMES]}
    for name, tensor in batch.items():
        axes, dtype, fill = TABLE[name]
        assert list(tensor.shape) == [sizes[axis] for axis in axes.split()], name
        assert tensor.dtype == getattr(torch, dtype), name
        for row, count in enumerate(counts.get(axes.split()[1], ())):
            padding = tensor[row, count:]
            if fill == AFTER_THE_ITEMS:
                assert padding.tolist() == list(range(count, 4))
            else:
                assert (padding == fill).all(), name
            if name not in ("item_dense", "labels"):  # which contain real zeros
                assert (tensor[row, :count] != padding.new_tensor(-1 if fill == AFTER_THE_ITEMS else fill)).all(), name
    without = RerankCollator(processor)(ROWS)
    assert list(without) == list(MODEL_TENSORS)
    assert all(torch.equal(without[name], batch[name]) for name in without)


def test_a_batch_is_a_mapping_of_its_present_tensors() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    batch = ListBatch(item_categorical=torch.zeros(2, 3, 1, dtype=torch.int64), mask=mask)
    assert dict(batch).keys() == {"item_categorical", "mask"}
    assert len(batch) == 2
    assert batch["mask"] is batch.mask is mask
    assert batch.initial_scores is None
    for name in ("initial_scores", "keys", "nothing"):
        with pytest.raises(KeyError):
            batch[name]
        assert name not in batch


# ----------------------------------------------------------------------- a column that only some models read


@strict
class ScoreReaderConfig(RerankerConfig):
    model_type: ClassVar[str] = "rerank_score_reader"


class ScoreReader(PreTrainedReranker):
    """A linear model of the item's features and the initial ranker's score: all the code that such a model needs."""

    config: ScoreReaderConfig

    def __init__(self, config: ScoreReaderConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        self.scorer = nn.Linear(self.item_embedding.width + 1, 1)
        self.post_init()

    def embed(self, batch: ListBatch) -> dict[str, Tensor]:
        if batch.initial_scores is None:
            raise InputError("the lists have no initial_scores, which this model reads")
        items = torch.cat([self.item_embedding(batch), batch.initial_scores.unsqueeze(-1)], dim=-1)
        return {"items": items, "mask": batch.mask}

    def score(self, context: dict[str, Tensor], position_ids: Tensor) -> RerankerOutput:
        return RerankerOutput(logits=mask_logits(self.scorer(context["items"]).squeeze(-1), context["mask"]))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register_reranker("score_reader", ScoreReaderConfig, ScoreReader)
    yield
    del RERANKERS["score_reader"]


@pytest.fixture
def reader(processor: ListProcessor) -> ScoreReader:
    torch.manual_seed(0)
    options = {"initializer_range": 0.5, "position_input": "none", "unknown_rate": 0}
    return ScoreReader(ScoreReaderConfig.for_schema(processor.schema, **options))


def test_initial_scores_reach_the_model_from_every_kind_of_input(processor: ListProcessor, tmp_path: Any) -> None:
    """Dictionaries, Arrow, a dataset, a cache on disk, a saved processor: the same numbers, 0 at padding."""
    expected = torch.zeros(3, 4)
    for row, found in zip(expected, ROWS, strict=True):
        row[: len(found["ranker_score"])] = torch.tensor(found["ranker_score"])
    assert "initial_scores" in processor.schema.feature_tensors()
    assert "initial_scores" not in processor.schema.replace(initial_score=None).feature_tensors()
    dataset, collator = datasets.Dataset.from_list(ROWS), RerankCollator(processor)
    cached = CachedLists(tmp_path / "cache", dataset, collator)
    processor.save_pretrained(tmp_path / "processor")
    again = ListProcessor.from_pretrained(tmp_path / "processor")
    for batch in (
        processor(ROWS),
        processor(TO_RANK),
        again(ROWS),
        collator(ROWS),
        collator(pa.Table.from_pylist(ROWS)),
        collate(EncodedLists(dataset, collator).__getitems__([0, 1, 2])),
        collate(cached.__getitems__([0, 1, 2])),
    ):
        assert torch.equal(batch["initial_scores"], expected)
    encoded = cached.__getitems__([2, 0])
    assert torch.equal(collate(encoded)["initial_scores"], expected[[2, 0]])


def test_a_model_that_reads_initial_scores_trains_and_ranks_by_them(reader, processor, tmp_path) -> None:
    batch = processor(ROWS)
    reader.train()(**batch).loss.backward()
    assert reader.scorer.weight.grad[0, -1] != 0
    narrow = ScoreReader(reader.config).to(torch.bfloat16)
    narrow.load_state_dict(reader.state_dict())
    assert narrow(**batch).logits.dtype == torch.bfloat16, "features are float32, whatever the dtype of the weights"

    with torch.no_grad():
        reader.scorer.weight.zero_()
        reader.scorer.weight[0, -1] = 2.0
        reader.scorer.bias.zero_()
    Reranker(processor, reader).save_pretrained(tmp_path)
    reranker = Reranker.from_pretrained(tmp_path)
    assert type(reranker.model) is ScoreReader
    for row, result in zip(ROWS, reranker.rerank(TO_RANK), strict=True):
        assert result["scores"] == pytest.approx(sorted((2 * score for score in row["ranker_score"]), reverse=True))


@pytest.mark.slow
def test_exported_graph_has_initial_scores_as_an_input_if_it_reads_them(reader, processor, tmp_path) -> None:
    reranker = Reranker(processor, reader)
    export_onnx(reranker, tmp_path / "graph")
    exported = Reranker.from_pretrained(tmp_path / "graph")
    assert "initial_scores" in exported.scorer.inputs
    for one, other in zip(exported.rerank(TO_RANK), reranker.rerank(TO_RANK), strict=True):
        assert one["order"] == other["order"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
    lacking = [{name: values for name, values in row.items() if name != "ranker_score"} for row in TO_RANK]
    with pytest.raises(
        InputError, match=r"no initial_scores, an input of the exported graph: .*schema names as initial_score"
    ):
        exported.rerank(lacking)
    with pytest.raises(InputError, match="no initial_scores, which this model reads"):
        reranker.rerank(lacking)
    far = [{**TO_RANK[0], "ranker_score": [1.0, 1e30, 2.0]}]
    for ranked_by in (exported, reranker):
        with pytest.raises(InputError, match="list a contains a number far outside the range of the training data"):
            ranked_by.rerank(far)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "the lists have no column 'ranker_score'"),
        (
            [1.0, None, 2.0],
            r"initial score column 'ranker_score' is null in list 0 \(id a\), item 1: expected a number",
        ),
        ([1.0, 2.0], "ragged: column 'ranker_score' has 2 values"),
        ([1.0, float("inf"), 2.0], "'ranker_score' holds inf .*expected finite numbers"),
        (["1", "2", "3"], "'ranker_score' holds string: expected numbers"),
        (1.0, "'ranker_score' holds one double per list: expected a sequence"),
    ],
    ids=["missing", "null", "ragged", "infinite", "text", "one"],
)
def test_missing_or_wrong_initial_scores_are_rejected(processor, wrong: Any, message: str) -> None:
    row = {name: values for name, values in ROWS[0].items() if name != "ranker_score"}
    lists = [row if wrong is None else {**row, "ranker_score": wrong}]
    with pytest.raises(InputError, match=message):
        RerankCollator(processor)(lists)
    if wrong is not None:  # a present column is checked, whether required or not
        with pytest.raises(InputError, match=message):
            processor(lists)


def test_the_column_is_ignored_if_the_schema_does_not_name_it(processor) -> None:
    plain = ListProcessor.from_lists(pa.Table.from_pylist(ROWS), schema=SCHEMA.replace(initial_score=None))
    assert "initial_scores" not in plain(ROWS)
    assert "initial_scores" not in plain([{**ROWS[0], "ranker_score": "anything"}])


@pytest.mark.parametrize("name", [name for name in RERANKERS if name != "score_reader"])
def test_models_that_do_not_read_initial_scores_ignore_them(name: str, processor: ListProcessor) -> None:
    torch.manual_seed(0)
    model = RERANKERS[name][1](RERANKERS[name][0].for_schema(processor.schema, propensity_floor=1.0)).eval()
    batch = processor(ROWS)
    without = {key: tensor for key, tensor in batch.items() if key != "initial_scores"}
    other = {**batch, "initial_scores": batch["initial_scores"] + torch.randn(3, 4)}
    expected = model(**without).logits
    assert torch.equal(model(**batch).logits, expected)
    assert torch.equal(model(**other).logits, expected)
