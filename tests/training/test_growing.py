"""Growing vocabularies: processors extended with later lists, and every model with longer tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_world import TINY

from hf_rerank import Reranker, RerankTrainer, RerankTrainingArguments
from hf_rerank.errors import InputError
from hf_rerank.models.auto import RERANKERS
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import Categorical, Dense, ListSchema

SCHEMA = ListSchema(
    items=[
        Categorical("item_id", min_count=1),
        Categorical("brand", min_count=2),
        Categorical("colour", hash_size=5),
        Dense("price"),
    ],
    user=[Categorical("gender", min_count=1)],
    history=[Categorical("seen", shares="item_id"), Categorical("action", min_count=1)],
    max_list_length=4,
    max_history_length=3,
)


def make_row(items: list[int], brands: list[str | None], gender: str, seen: list[int], actions: list[str]) -> Any:
    return {
        "item_id": items,
        "brand": brands,
        "colour": list(range(len(items))),
        "price": [float(item) for item in items],
        "gender": gender,
        "seen": seen,
        "action": actions,
        "click": [1] + [0] * (len(items) - 1),
    }


FIRST = [
    make_row([30, 10], ["b", "d"], "m", [20], ["pv"]),
    make_row([10, 20, 30], ["d", "b", "d"], "f", [10, 30], ["pv", "buy"]),
]
LATER = [
    make_row([40, 5], ["a", "c"], "x", [7], ["cart"]),
    make_row([10, 40, 5], ["c", "e", "d"], "m", [40, 7], ["pv", "cart"]),
]


@pytest.fixture
def processor() -> ListProcessor:
    return ListProcessor.from_lists(Dataset.from_list(FIRST), schema=SCHEMA)


def table_rows_of(processor: ListProcessor, feature: str, values: list[Any]) -> list[int]:
    import pyarrow as pa

    return processor.vocabularies[feature].look_up(pa.array(values), feature).tolist()


class TestExtendedProcessor:
    def test_new_values_get_rows_after_the_old_ones_in_sorted_order(self, processor: ListProcessor) -> None:
        # First lists: item_id 10, 20, 30 have rows 2, 3, 4; brands b and d (twice each) rows 2 and 3.
        assert table_rows_of(processor, "item_id", [10, 20, 30, 5]) == [2, 3, 4, 1]
        report = processor.extend(Dataset.from_list(LATER))
        # item_id: 5 and 40 in lists, 7 in a history that shares the table. c twice; a and e once, which is too rare.
        assert report == {
            "item_id": {"added": 3, "rare": 0},
            "brand": {"added": 1, "rare": 2},
            "gender": {"added": 1, "rare": 0},
            "action": {"added": 1, "rare": 0},
        }
        assert table_rows_of(processor, "item_id", [10, 20, 30, 5, 7, 40, 50]) == [2, 3, 4, 5, 6, 7, 1]
        assert table_rows_of(processor, "brand", ["b", "d", "c", "a", "e"]) == [2, 3, 4, 1, 1]
        assert table_rows_of(processor, "gender", ["f", "m", "x"]) == [2, 3, 4]
        sizes = {feature.name: feature.size for feature in (*processor.schema.items[:2], *processor.schema.history)}
        assert sizes == {"item_id": 8, "brand": 5, "seen": 8, "action": 5}

    def test_extending_with_the_same_lists_again_changes_nothing(self, processor: ListProcessor) -> None:
        processor.extend(Dataset.from_list(LATER))
        schema, fit_report = processor.schema, processor.fit_report
        report = processor.extend(Dataset.from_list(LATER))
        assert {found["added"] for found in report.values()} == {0}
        assert (processor.schema, processor.fit_report) == (schema, fit_report)

    def test_extending_keeps_scales_and_records_former_fingerprints(self, processor: ListProcessor) -> None:
        scales, before = dict(processor.scales), processor.schema.fingerprint
        processor.extend(Dataset.from_list(LATER))
        middle = processor.schema.fingerprint
        processor.extend(Dataset.from_list([make_row([60, 61], ["c", "c"], "m", [], [])]))
        assert processor.scales == scales
        assert processor.schema.extends == (before, middle)
        # item_id, brand, colour, gender, action; each with rows for padding and the unknown value.
        assert processor.schema.rows_before == ((5, 4, 5, 4, 4), (8, 5, 5, 5, 5))
        assert ListSchema.from_dict(processor.schema.to_dict()) == processor.schema
        assert "rows_before" not in SCHEMA.to_dict()
        assert len({before, middle, processor.schema.fingerprint}) == 3

    def test_extended_processor_is_saved_and_loaded(self, processor: ListProcessor, tmp_path: Path) -> None:
        processor.extend(Dataset.from_list(LATER))
        processor.save_pretrained(tmp_path)
        loaded = ListProcessor.from_pretrained(tmp_path)
        assert loaded.schema == processor.schema
        assert table_rows_of(loaded, "item_id", [40, 5, 10]) == [7, 5, 2]
        assert loaded.fit_report == processor.fit_report

    def test_wrong_lists_change_nothing(self, processor: ListProcessor) -> None:
        schema = processor.schema
        with pytest.raises(InputError, match="no lists to learn from"):
            processor.extend(Dataset.from_list(LATER).select([]))
        as_text = [
            {**row, **{name: [str(item) for item in row[name]] for name in ("item_id", "seen")}} for row in LATER
        ]
        with pytest.raises(InputError, match="'item_id' holds text, but the processor was fitted on integers"):
            processor.extend(Dataset.from_list(as_text))
        assert processor.schema == schema
        assert table_rows_of(processor, "item_id", [40]) == [1]


def scores(model: PreTrainedReranker, processor: ListProcessor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**processor(FIRST + LATER)).logits


@pytest.fixture(params=list(RERANKERS))
def model_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(model_name: str, processor: ListProcessor) -> PreTrainedReranker:
    config_class, model_class = RERANKERS[model_name]
    torch.manual_seed(0)
    return model_class(config_class.for_schema(processor.schema, initializer_range=0.5, **TINY[model_name]))


class TestResizedModels:
    def test_longer_tables_keep_their_rows_and_every_score(
        self, model: PreTrainedReranker, processor: ListProcessor
    ) -> None:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        expected = scores(model, processor)
        processor.extend(Dataset.from_list(LATER))
        with pytest.raises(InputError, match="do not belong together"):
            Reranker(processor, model)
        model.resize_embeddings(processor.schema)
        assert torch.equal(scores(model, processor), expected)
        longer = 0
        for name, value in model.state_dict().items():
            rows = len(before[name]) if value.dim() else 0
            assert torch.equal(value[:rows] if rows else value, before[name])
            if value.dim() and len(value) > rows:
                longer += 1
                assert torch.equal(value[rows:], before[name][1].expand(len(value) - rows, -1))
        # item_id, brand, gender; and action in models that read the history
        assert longer == 3 + ("history" in " ".join(before))
        Reranker(processor, model)

    @pytest.mark.parametrize("again", [False, True], ids=["at once", "saved and loaded in between"])
    def test_unused_table_rows_are_treated_as_new(self, model_name: str, again: bool, tmp_path: Path) -> None:
        """``size`` reserves rows of random numbers, a column of missing values has one: scores must not use them."""
        schema = SCHEMA.replace(items=[Categorical("item_id", min_count=1, size=20), *SCHEMA.items[1:]])
        lists = [{**row, "brand": [None] * len(row["brand"])} for row in FIRST]
        processor = ListProcessor.from_lists(Dataset.from_list(lists), schema=schema)
        config_class, model_class = RERANKERS[model_name]
        torch.manual_seed(0)
        model = model_class(config_class.for_schema(processor.schema, initializer_range=0.5, **TINY[model_name]))
        expected = scores(model, processor)
        table = next(value for name, value in model.state_dict().items() if name.endswith("item_tables.0.weight"))
        for later in (LATER[:1] * 2, LATER[1:] * 2):  # grown twice
            processor.extend(Dataset.from_list(later))
            if again:
                processor.save_pretrained(tmp_path)
                processor = ListProcessor.from_pretrained(tmp_path)
        model.resize_embeddings(processor.schema)
        assert torch.equal(scores(model, processor), expected)
        # Items 10, 20, 30 have rows 2 to 4 of the 20; the rows after them were random.
        longer = next(value for name, value in model.state_dict().items() if name.endswith("item_tables.0.weight"))
        assert longer.shape == table.shape
        assert torch.equal(longer[:5], table[:5])
        assert torch.equal(longer[5:], table[[1]].expand(15, -1))
        Reranker(processor, model)

    def test_a_processor_without_rows_before_extends_tables_only(
        self, model: PreTrainedReranker, processor: ListProcessor
    ) -> None:
        """As saved by earlier versions: tables grow as they did then."""
        expected = scores(model, processor)
        processor.extend(Dataset.from_list(LATER[:1] * 2))
        processor.schema = processor.schema.replace(rows_before=())
        processor.extend(Dataset.from_list(LATER[1:] * 2))
        assert [len(rows) for rows in processor.schema.rows_before] == [0, 5]
        model.resize_embeddings(processor.schema)
        assert torch.equal(scores(model, processor), expected)

    def test_new_rows_are_trained_and_saved(
        self, model: PreTrainedReranker, processor: ListProcessor, tmp_path: Path
    ) -> None:
        processor.extend(Dataset.from_list(LATER))
        model.resize_embeddings(processor.schema)
        torch.manual_seed(1)
        batch = processor(FIRST + LATER, with_labels=True)
        optimizer = torch.optim.SGD(model.train().parameters(), lr=1.0)
        model(**batch).loss.backward()
        optimizer.step()
        table = next(value for name, value in model.named_parameters() if name.endswith("item_tables.0.weight"))
        assert table.shape[0] == 8
        assert not torch.equal(table[5], table[1])  # item 5
        assert torch.count_nonzero(table[0]) == 0  # padding
        Reranker(processor, model).save_pretrained(tmp_path)
        loaded = Reranker.from_pretrained(tmp_path)
        assert torch.equal(scores(loaded.model, loaded.processor), scores(model, processor))

    def test_a_schema_extended_from_another_is_rejected(
        self, model: PreTrainedReranker, processor: ListProcessor
    ) -> None:
        other = ListProcessor.from_lists(Dataset.from_list(LATER), schema=SCHEMA)
        other.extend(Dataset.from_list(FIRST))
        sizes = list(model.config.item_vocab_sizes)
        with pytest.raises(InputError, match="did not grow from"):
            model.resize_embeddings(other.schema)
        assert model.config.item_vocab_sizes == sizes

    def test_resizing_without_new_values_changes_nothing(
        self, model: PreTrainedReranker, processor: ListProcessor
    ) -> None:
        tables = [id(value) for value in model.parameters()]
        model.resize_embeddings(processor.schema)
        assert [id(value) for value in model.parameters()] == tables


def test_a_custom_model_without_feature_tables_is_rejected(processor: ListProcessor) -> None:
    class Own(PreTrainedReranker):
        config_class = RERANKERS["dnn"][0]

    model = Own(RERANKERS["dnn"][0].for_schema(processor.schema))
    processor.extend(Dataset.from_list(LATER))
    with pytest.raises(InputError, match="FeatureTables"):
        model.resize_embeddings(processor.schema)


@pytest.mark.slow
def test_fine_tuning_a_saved_model_ranks_new_clicked_items_first(processor: ListProcessor, tmp_path: Path) -> None:
    """The new items are always clicked; they do not rank first before."""
    config_class, model_class = RERANKERS["dnn"]
    torch.manual_seed(0)
    model = model_class(config_class.for_schema(processor.schema, hidden_sizes=[16]))
    Reranker(processor, model).save_pretrained(tmp_path / "first")

    liked = [make_row([40 + number % 3, 10, 30], ["c", "d", "b"], "m", [], []) for number in range(64)]
    reranker = Reranker.from_pretrained(tmp_path / "first")
    reranker.processor.extend(Dataset.from_list(liked))
    reranker.model.resize_embeddings(reranker.processor.schema)
    arguments = RerankTrainingArguments(
        str(tmp_path / "second"),
        num_train_epochs=8,
        per_device_train_batch_size=8,
        learning_rate=0.03,
        principled="scaled",
        use_cpu=True,
        disable_tqdm=True,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        report_to=[],
    )
    trainer = RerankTrainer(
        model=reranker.model,
        args=arguments,
        train_dataset=Dataset.from_list(liked),
        processing_class=reranker.processor,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "second"))
    tuned = Reranker.from_pretrained(tmp_path / "second")
    shown = [make_row([10, 30, 41], ["d", "b", "c"], "m", [], [])]
    assert tuned.rerank(shown)[0]["ids"][0] == 41
    assert np.isfinite(tuned.rerank(shown)[0]["scores"]).all()
