"""Fine-tuning: weights that ``adapt`` keeps, extends and re-initializes, for every model; and ``freeze``."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_world import TINY

from hf_rerank import Reranker, RerankTrainer, RerankTrainingArguments, adapt, cli, freeze, load_lists
from hf_rerank.errors import InputError
from hf_rerank.models.auto import RERANKERS
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import Categorical, Dense, ListSchema

SCHEMA = ListSchema(
    items=[Categorical("item_id", min_count=1), Categorical("brand", min_count=1), Dense("price"), Dense("stars")],
    user=[Categorical("gender", min_count=1)],
    history=[Categorical("seen", shares="item_id"), Categorical("action", min_count=1)],
    max_list_length=3,
)
# Weights of each model that read the item's vector, from the formula in its paper and not from shapes.
READS_ITEMS = {
    "dnn": {"positions.weight", "network.layers.0.weight"},
    "dlcm": {"widening.0.weight", "widening.2.weight", "widening.2.bias", "gru.weight_ih_l0"},
    "midnn": {"positions.weight", "network.layers.0.weight"},
    "prm": {"positions.weight", "projection.weight"},
    "setrank": {"projection.weight"},
    "pear": {"item_network.0.weight"},
    "raise": {"positions.weight", "projection.weight"},
}
ITEM_TABLES = {"item_embedding.item_tables.0.weight", "item_embedding.item_tables.1.weight"}


def make_row(items: list[int], brands: list[str], **columns: Any) -> dict[str, Any]:
    dense = {"price": [float(item) for item in items], "stars": [item / 10 for item in items]}
    return {
        "item_id": items,
        "brand": brands,
        "gender": "m",
        "seen": [20],
        "action": ["pv"],
        "click": [1] + [0] * (len(items) - 1),
        **dense,
        **columns,
    }


FIRST = [make_row([30, 10], ["b", "d"]), make_row([10, 20, 30], ["d", "b", "d"])]
# Items 40 and 50 and brand e are new.
LATER = [make_row([40, 10], ["e", "d"]), make_row([10, 50, 40], ["d", "b", "b"])]
LONG = [make_row([10, 50, 30, 40], ["d", "b", "e", "b"])]


def make_reranker(name: str, schema: ListSchema = SCHEMA, lists: list[Any] = FIRST) -> Reranker:
    processor = ListProcessor.from_lists(Dataset.from_list(lists), schema=schema)
    config_class, model_class = RERANKERS[name]
    torch.manual_seed(0)
    return Reranker(
        processor, model_class(config_class.for_schema(processor.schema, initializer_range=0.5, **TINY[name]))
    )


@pytest.fixture(params=list(RERANKERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reranker(name: str) -> Reranker:
    return make_reranker(name)


def scores(reranker: Reranker, lists: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return reranker.model(**reranker.processor(lists)).logits


class TestSameColumns:
    def test_new_values_and_longer_lists_change_no_score(self, reranker: Reranker) -> None:
        expected = scores(reranker, FIRST)
        old = {key: value.clone() for key, value in reranker.model.state_dict().items()}
        tuned, report = adapt(reranker, Dataset.from_list(LATER), SCHEMA.replace(max_list_length=5))
        # A longer position table is a larger matrix product, whose sums may round differently.
        torch.testing.assert_close(scores(tuned, FIRST), expected, rtol=1e-5, atol=1e-6)
        assert report.differences == []
        assert report.dropped == []
        # Both new items once each; action and gender contain nothing new.
        assert {column: found["added"] for column, found in report.vocabularies.items()} == {
            "item_id": 2,
            "brand": 1,
            "gender": 0,
            "action": 0,
        }
        positions = {key for key in old if key == "positions.weight"}
        assert set(report.names("extended")) == ITEM_TABLES | positions
        assert set(report.names("kept")) == set(old) - ITEM_TABLES - positions
        new = tuned.model.state_dict()
        for key in old:
            assert torch.equal(new[key][: len(old[key])] if old[key].dim() else new[key], old[key])
        # Items 10, 20, 30 have rows 2 to 4; the two rows after them are initialized with the unknown value's, row 1.
        assert torch.equal(
            new["item_embedding.item_tables.0.weight"][5:], old["item_embedding.item_tables.0.weight"][[1, 1]]
        )
        for key in positions:
            assert torch.equal(new[key][3:], old[key][[2, 2]])
        assert torch.isfinite(scores(tuned, LATER + LONG)).all()

    def test_adapt_does_not_change_its_input(self, reranker: Reranker) -> None:
        schema, expected = reranker.processor.schema, scores(reranker, FIRST)
        tuned, _ = adapt(reranker, Dataset.from_list(LATER))
        with torch.no_grad():
            for value in tuned.model.parameters():
                value.add_(1.0)
        assert reranker.processor.schema == schema
        assert torch.equal(scores(reranker, FIRST), expected)
        assert tuned.processor.schema.extends == (schema.fingerprint,)

    @pytest.mark.parametrize("first_brands", ["all missing", "all too rare"])
    def test_unused_table_rows_are_treated_as_new(self, name: str, first_brands: str) -> None:
        """``size`` reserves rows of random numbers, and a column without values has one: scores must not use them."""
        rare = first_brands == "all too rare"
        brand, lists = Categorical("brand", min_count=4 if rare else 1), FIRST
        if not rare:
            lists = [{**row, "brand": [None] * len(row["brand"])} for row in FIRST]
        schema = SCHEMA.replace(items=[Categorical("item_id", min_count=1, size=20), brand, *SCHEMA.items[2:]])
        reranker = make_reranker(name, schema, lists)
        expected = scores(reranker, LATER)  # items 40 and 50 and all brands are unknown here
        tuned, report = adapt(reranker, Dataset.from_list(LATER * 4))
        assert report.vocabularies["item_id"]["added"] == 2
        assert torch.equal(scores(tuned, LATER), expected)
        assert set(report.names("extended")) == ITEM_TABLES
        old, new = (
            model.state_dict()["item_embedding.item_tables.0.weight"] for model in (reranker.model, tuned.model)
        )
        assert torch.equal(new, torch.cat([old[:5], old[[1] * 15]]))

    @pytest.mark.slow
    def test_adapting_twice_with_saving_in_between(self, reranker: Reranker, tmp_path: Path) -> None:
        expected = scores(reranker, FIRST)
        once, _ = adapt(reranker, Dataset.from_list(LATER[:1]), SCHEMA.replace(max_list_length=4))
        once.save_pretrained(tmp_path)
        twice, report = adapt(
            Reranker.from_pretrained(tmp_path), Dataset.from_list(LATER + LONG), SCHEMA.replace(max_list_length=6)
        )
        # Item 40 and brand e were added first, 50 second.
        assert {column: found["added"] for column, found in report.vocabularies.items()} == {
            "item_id": 1,
            "brand": 0,
            "gender": 0,
            "action": 0,
        }
        assert twice.model.config.max_list_length == 6
        assert twice.processor.schema.extends == (
            reranker.processor.schema.fingerprint,
            once.processor.schema.fingerprint,
        )
        torch.testing.assert_close(scores(twice, FIRST), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.slow
    def test_saved_adapted_reranker_gives_the_same_scores(self, reranker: Reranker, tmp_path: Path) -> None:
        tuned, _ = adapt(reranker, Dataset.from_list(LATER), SCHEMA.replace(max_list_length=5))
        tuned.save_pretrained(tmp_path)
        rows = LATER + LONG
        assert torch.equal(scores(Reranker.from_pretrained(tmp_path), rows), scores(tuned, rows))

    def test_new_positions_add_as_much_to_the_starting_score_as_the_last_one(self, tmp_path: Path) -> None:
        """Two new positions: 0.25, the number of the third. A shorter length keeps all numbers."""
        schema = SCHEMA.replace(initial_score="score")
        first, long = ([{**row, "score": [0.0] * len(row["item_id"])} for row in rows] for rows in (FIRST, LONG))
        processor = ListProcessor.from_lists(Dataset.from_list(first), schema=schema)
        config_class, model_class = RERANKERS["prm"]
        config = config_class.for_schema(
            processor.schema, initial_score="start", initial_score_positions=[1.0, 0.5, 0.25], **TINY["prm"]
        )
        reranker = Reranker(processor, model_class(config))
        for length, numbers in ((5, [1.0, 0.5, 0.25, 0.25, 0.25]), (2, [1.0, 0.5, 0.25])):
            tuned, _ = adapt(reranker, Dataset.from_list(first[:1]), schema.replace(max_list_length=length))
            assert tuned.model.config.initial_score_positions == numbers
            tuned.save_pretrained(tmp_path / str(length))
        # All initial scores are 0, and an untrained model adds nothing to the starting score.
        loaded = Reranker.from_pretrained(tmp_path / "5")
        assert scores(loaded, long).tolist() == [[1.0, 0.5, 0.25, 0.25]]

    def test_column_order_and_a_shorter_length_change_nothing(self) -> None:
        reranker = make_reranker("prm")
        other = SCHEMA.replace(items=SCHEMA.items[::-1], max_list_length=2)
        tuned, report = adapt(reranker, Dataset.from_list([make_row([10, 30], ["b", "d"])]), other)
        assert set(report.parameters.values()) == {"kept"}
        assert tuned.processor.schema.max_list_length == 3
        assert tuned.processor.schema.fingerprint == reranker.processor.schema.fingerprint
        assert torch.equal(scores(tuned, FIRST), scores(reranker, FIRST))


class TestChangedColumns:
    # ``weight`` replaces ``stars``: the same width, but a different meaning of the weights.
    swapped = SCHEMA.replace(items=[*SCHEMA.items[:3], Dense("weight")])
    lists = Dataset.from_list([{**row, "weight": [1.0, 2.0, 4.0][: len(row["item_id"])]} for row in LATER])

    def test_changed_columns_are_rejected_with_all_differences(self) -> None:
        other = self.swapped.replace(
            items=[*self.swapped.items[:1], Categorical("brand", hash_size=8), *self.swapped.items[2:]], user=[]
        )
        with pytest.raises(InputError) as refused:
            adapt(make_reranker("dnn"), self.lists, other)
        for message in (
            "item column 'stars' (dense(scale='standard', missing='mean')) is missing",
            "item column 'weight' (dense(scale='standard', missing='mean')) is new",
            "item column 'brand' is categorical(hash_size=8), was categorical",
            "user column 'gender' (categorical) is missing",
            "reinitialize=True",
        ):
            assert message in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_only_weights_that_read_changed_columns_are_reinitialized(self, name: str, reranker: Reranker) -> None:
        old = {key: value.clone() for key, value in reranker.model.state_dict().items()}
        tuned, report = adapt(reranker, self.lists, self.swapped, reinitialize=True)
        expected = READS_ITEMS[name]
        assert set(report.names("re-initialized")) == expected
        assert set(report.names("extended")) == ITEM_TABLES
        assert set(report.names("kept")) == set(old) - expected - ITEM_TABLES
        new = tuned.model.state_dict()
        for key in report.names("kept"):
            assert torch.equal(new[key], old[key]), key
        for key in expected - {"widening.2.bias"}:  # new biases are zeros, so that they may be equal
            assert not torch.equal(new[key], old[key]), key
        for key in ITEM_TABLES:
            assert torch.equal(new[key][: len(old[key])], old[key])
        assert torch.isfinite(scores(tuned, self.lists.to_list())).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("changed", ["items", "user", "history"])
    def test_column_order_of_unchanged_parts_does_not_matter(self, name: str, changed: str) -> None:
        """Kept weights read the columns in their original order."""
        schema = SCHEMA.replace(
            user=[*SCHEMA.user, Dense("age"), Dense("income")], history=[*SCHEMA.history, Dense("minutes")]
        )
        columns = {"age": 3.0, "income": 7.0, "minutes": [2.0], "shop": [1.0, 4.0, 2.0], "city": 1.0, "paid": [5.0]}
        first, later = (
            [{**row, **columns, "shop": columns["shop"][: len(row["item_id"])]} for row in rows]  # type: ignore[index]
            for rows in (FIRST, LATER)
        )
        reranker = make_reranker(name, schema, first)
        new = {
            changed: [*getattr(schema, changed), Dense({"items": "shop", "user": "city", "history": "paid"}[changed])]
        }
        turned = {part: getattr(schema, part)[::-1] for part in ("items", "user", "history") if part != changed}
        found = []
        for other in (new, {**turned, **new}):
            torch.manual_seed(1)
            tuned, report = adapt(reranker, Dataset.from_list(later), schema.replace(**other), reinitialize=True)
            assert len(report.differences) == 1
            found.append(scores(tuned, first))
        assert torch.equal(*found)
        if changed == "history" and name not in ("pear", "raise"):  # the only models that read it
            assert torch.equal(found[1], scores(reranker, first))

    def test_unknown_rates_of_changed_columns_are_emptied(self, tmp_path: Path) -> None:
        """The old rates belong to the old columns, whose number may differ; those of unchanged columns are kept."""
        reranker = make_reranker("prm")
        reranker.model.config.item_unknown_rates = [0.5, 0.25]
        reranker.model.config.user_unknown_rates = [0.125]
        other = SCHEMA.replace(items=[SCHEMA.items[0], *SCHEMA.items[2:]])
        tuned, _ = adapt(reranker, Dataset.from_list(LATER), other, reinitialize=True)
        assert tuned.model.config.item_unknown_rates == []
        assert tuned.model.config.user_unknown_rates == [0.125]
        tuned.save_pretrained(tmp_path)
        other = SCHEMA.replace(user=[*SCHEMA.user, Dense("age")])
        aged = Dataset.from_list([{**row, "age": age} for row, age in zip(LATER, (3.0, 4.0), strict=True)])
        tuned, _ = adapt(reranker, aged, other, reinitialize=True)
        assert tuned.model.config.item_unknown_rates == [0.5, 0.25]
        assert tuned.model.config.user_unknown_rates == []

    def test_history_weights_are_reinitialized_if_their_shared_table_changes(self) -> None:
        """The table of item_id is replaced, so weights that read the history through it are re-initialized."""
        other = SCHEMA.replace(items=[Categorical("item_id", hash_size=9), *SCHEMA.items[1:]])
        tuned, report = adapt(make_reranker("pear"), Dataset.from_list(LATER), other, reinitialize=True)
        assert [text.split(" is ")[0] for text in report.differences] == [
            "item column 'item_id'",
            "history column 'seen'",
        ]
        assert {"item_network.0.weight", "history_network.0.weight"} <= set(report.names("re-initialized"))
        assert torch.isfinite(scores(tuned, LATER)).all()

    def test_new_columns_in_every_part_keep_the_old_tables(self, reranker: Reranker) -> None:
        """A new categorical column comes first: old tables move, and keep their rows."""
        other = SCHEMA.replace(
            items=[Categorical("shop", min_count=1), *SCHEMA.items],
            user=[Dense("age"), *SCHEMA.user],
            history=[Dense("minutes"), *SCHEMA.history],
        )
        lists = Dataset.from_list(
            [{**row, "shop": [7, 8, 7][: len(row["item_id"])], "age": 3.0, "minutes": [1.0]} for row in LATER]
        )
        old = {key: value.clone() for key, value in reranker.model.state_dict().items()}
        tuned, report = adapt(reranker, lists, other, reinitialize=True)
        assert len(report.differences) == 3
        new = tuned.model.state_dict()
        assert report.parameters["item_embedding.item_tables.0.weight"] == "re-initialized"
        for number in (0, 1):
            before = old[f"item_embedding.item_tables.{number}.weight"]
            assert torch.equal(new[f"item_embedding.item_tables.{number + 1}.weight"][: len(before)], before)
        assert torch.isfinite(scores(tuned, lists.to_list())).all()
        # Scales: of the first lists for kept columns (price: 30, 10, 10, 20, 30), of the later ones for new columns.
        assert tuned.processor.scales["price"].mean == pytest.approx(20.0)
        assert tuned.processor.scales["age"].mean == pytest.approx(3.0)

    def test_tables_of_removed_columns_are_dropped(self) -> None:
        """Without item_id, the brand's table comes first; without a history, RAISE loses the weights that read it."""
        reranker = make_reranker("raise")
        brand = reranker.model.state_dict()["item_embedding.item_tables.1.weight"].clone()
        other = SCHEMA.replace(items=SCHEMA.items[1:], history=[])
        tuned, report = adapt(reranker, Dataset.from_list(LATER), other, reinitialize=True)
        assert report.dropped[0] == "item_embedding.item_tables.0.weight"
        assert {name for name in report.dropped if "history" in name} == {
            "intention.history_embedding.tables.0.weight",
            "intention.of_history.weight",
            "intention.of_history.bias",
        }
        assert torch.equal(tuned.model.state_dict()["item_embedding.item_tables.0.weight"][: len(brand)], brand)
        assert torch.isfinite(scores(tuned, LATER)).all()

    def test_saved_adapted_reranker_gives_the_same_scores(self, reranker: Reranker, tmp_path: Path) -> None:
        tuned, _ = adapt(reranker, self.lists, self.swapped, reinitialize=True)
        tuned.save_pretrained(tmp_path)
        rows = self.lists.to_list()
        assert torch.equal(scores(Reranker.from_pretrained(tmp_path), rows), scores(tuned, rows))

    def test_schemas_without_common_item_columns_are_rejected(self) -> None:
        other = ListSchema(items=[Dense("weight")])
        with pytest.raises(InputError, match="share no item column"):
            adapt(make_reranker("dnn"), self.lists, other, reinitialize=True)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda reranker, lists: adapt("runs/prm", lists), "expected a Reranker, got str: Reranker"),
        (lambda reranker, lists: adapt(reranker.model, lists), "expected a Reranker, got PRMForReranking"),
        (lambda reranker, lists: adapt(reranker, lists, SCHEMA.to_dict()), "schema is a dict: expected a ListSchema"),
        (lambda reranker, lists: freeze(reranker, "tables"), r"re-ranker such as reranker\.model, got Reranker"),
        (
            lambda reranker, lists: freeze(reranker.model, ["tables"]),
            r"expected names to freeze .*got \(\['tables'\],\)",
        ),
        (lambda reranker, lists: freeze(reranker.model), r"expected names to freeze as separate.*got \(\)"),
        (
            lambda reranker, lists: reranker.model.resize_embeddings(reranker.processor),
            r"expected a schema.*ListProcessor",
        ),
        (
            lambda reranker, lists: reranker.processor.extend(lists, batch_size=0),
            "batch_size is 0: expected at least 1",
        ),
    ],
)
def test_wrong_argument_types_are_rejected(step: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        step(make_reranker("prm"), Dataset.from_list(LATER))


class TestFreeze:
    def test_groups_contain_every_parameter_once(self, reranker: Reranker) -> None:
        found = [
            freeze(made_again, group) for group in ("tables", "encoder", "output") for made_again in [_copy(reranker)]
        ]
        everything = sorted(key for key, _ in reranker.model.named_parameters())
        assert sorted(name for names in found for name in names) == everything
        assert all(found)
        assert set(found[0]) > ITEM_TABLES
        last = dict(reranker.model.named_parameters())
        assert {last[key].shape[0] for key in found[2]} == {1}

    def test_freeze_accepts_modules_parameters_and_patterns(self) -> None:
        model = make_reranker("prm").model
        assert freeze(model, "scorer") == ["scorer.weight", "scorer.bias"]
        assert freeze(model, "positions.weight") == ["positions.weight", "scorer.weight", "scorer.bias"]
        frozen = freeze(model, "blocks.0.*_norm.bias")
        assert set(frozen) - {"positions.weight", "scorer.weight", "scorer.bias"} == {
            "blocks.0.attention_norm.bias",
            "blocks.0.output_norm.bias",
        }

    def test_a_name_without_a_match_is_rejected_and_freezes_nothing(self) -> None:
        model = make_reranker("prm").model
        with pytest.raises(InputError, match=r"nothing to freeze is called 'encodr'.*encoder"):
            freeze(model, "tables", "encodr")
        with pytest.raises(InputError, match="nothing is left to train"):
            freeze(model, "tables", "encoder", "output")
        assert all(value.requires_grad for value in model.parameters())

    def test_training_updates_exactly_the_parameters_that_are_not_frozen(self, tmp_path: Path) -> None:
        tuned, _ = adapt(make_reranker("prm"), Dataset.from_list(LATER), SCHEMA.replace(max_list_length=5))
        frozen = set(freeze(tuned.model, "tables", "blocks.0"))
        before = {key: value.clone() for key, value in tuned.model.state_dict().items()}
        trainer = RerankTrainer(
            model=tuned.model,
            args=RerankTrainingArguments(
                str(tmp_path),
                num_train_epochs=3,
                learning_rate=0.01,
                weight_decay=0.1,
                use_cpu=True,
                disable_tqdm=True,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                report_to=[],
            ),
            train_dataset=Dataset.from_list(LATER),
            processing_class=tuned.processor,
        )
        trainer.train()
        same = {key for key, value in tuned.model.state_dict().items() if torch.equal(value, before[key])}
        # The scores' common bias has no gradient under a softmax, but does under the log loss: it changes too.
        assert same == frozen


def _copy(reranker: Reranker) -> Any:
    import copy

    return copy.deepcopy(reranker.model)


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def make_csv(number_of_lists: int, first_item: int, first_list: int, liked: float) -> str:
    """Lists of four items with four prices; the item with the price ``liked`` is clicked."""
    random = np.random.default_rng(first_item)
    lines = ["request,user,item_id,price,click,rank"]
    for number in range(first_list, first_list + number_of_lists):
        for rank, price in enumerate(random.permutation([1.5, 2.5, 4.0, 8.0])):
            item = first_item + random.integers(10) * 4 + rank
            lines.append(f"{number},{number // 2},{item},{price},{int(price == liked)},{rank}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained to rank the cheapest item first, and lists of other items where the dearest is clicked."""
    folder = tmp_path_factory.mktemp("fine_tuning")
    schema = ListSchema(
        items=[Categorical("item_id"), Dense("price")],
        label="click",
        position="rank",
        list_id="request",
        group="user",
        max_list_length=4,
    )
    for name, first_item, liked in (("first", 0, 1.5), ("second", 1000, 8.0)):
        (folder / f"{name}.csv").write_text(make_csv(300, first_item, 0, liked))
        schema.save(folder / "schema.json")
        options = ["--schema", folder / "schema.json", "--output-dir", folder / name]
        assert run("prepare", "own", "--input", folder / f"{name}.csv", *options) == 0
    options = ["--model", "dnn", "--set", "hidden_sizes=[8]", *TRAIN]
    assert run("train", "--data", folder / "first", "--output-dir", folder / "run", *options) == 0
    return folder


TRAIN = [
    *("--num_train_epochs", "4", "--per_device_train_batch_size", "16", "--learning_rate", "0.02"),
    *("--disable_tqdm", "true", "--use_cpu", "true"),
]


def share_of_clicks_ranked_first(model: Path, lists: Path) -> float:
    """Share of the test lists whose clicked item is ranked first."""
    test = load_lists(lists)["test"]
    ranked = Reranker.from_pretrained(model).rerank(list(test))
    return float(np.mean([row["click"][result["order"][0]] for row, result in zip(test, ranked, strict=True)]))


class TestCommand:
    @pytest.mark.slow
    def test_train_command_fine_tunes_a_saved_model(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert share_of_clicks_ranked_first(folder / "run", folder / "first") > 0.9
        assert share_of_clicks_ranked_first(folder / "run", folder / "second") < 0.1
        arguments = ["--from", folder / "run", "--data", folder / "second", "--output-dir", folder / "tuned"]
        assert run("train", *arguments, "--freeze", "positions", *TRAIN) == 0
        printed = capsys.readouterr().out
        # Items 1000 to 1039, each in about 13 of 135 lists of four items.
        assert "item_id: 40 new values, 0 too rare" in printed
        assert "extended: item_embedding.item_tables.0.weight\n" in printed
        assert "frozen: positions.weight\n" in printed
        assert "before" in printed
        assert "fine-tuned" in printed
        assert share_of_clicks_ranked_first(folder / "tuned", folder / "second") > 0.9
        first, tuned = (Reranker.from_pretrained(folder / name).model for name in ("run", "tuned"))
        assert torch.equal(first.positions.weight, tuned.positions.weight)

    @pytest.mark.slow
    def test_changed_columns_require_reinitialize(
        self, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        text = (folder / "second.csv").read_text().replace("price", "cost")
        (tmp_path / "other.csv").write_text(text)
        (tmp_path / "schema.json").write_text((folder / "schema.json").read_text().replace("price", "cost"))
        options = ["--schema", tmp_path / "schema.json", "--output-dir", tmp_path / "other"]
        assert run("prepare", "own", "--input", tmp_path / "other.csv", *options) == 0
        arguments = ["--from", folder / "run", "--data", tmp_path / "other", "--output-dir", tmp_path / "tuned"]
        assert run("train", *arguments, *TRAIN) == 2
        message = capsys.readouterr().err
        assert (
            "item column 'price' (dense(scale='standard', missing='mean')) is missing; item column 'cost'" in message
        )
        assert "--reinitialize" in message
        assert run("train", *arguments, "--reinitialize", *TRAIN) == 0
        assert "re-initialized: positions.weight, network.layers.0.weight\n" in capsys.readouterr().out
        assert share_of_clicks_ranked_first(tmp_path / "tuned", tmp_path / "other") > 0.9

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("", "--model NAME for a new model, or --from MODEL"),
            ("--model dnn --from {0}/run", "--model NAME for a new model, or --from MODEL"),
            ("--from {0}/run --set hidden_size=8", "--set goes with --model only"),
            ("--from {0}/run --preset paper", "--preset goes with --model only"),
            ("--model dnn --freeze tables", "--freeze goes with --from only"),
            ("--model dnn --reinitialize", "--reinitialize goes with --from only"),
            ("--from {0}/run --freeze tabels", "did you mean 'tables'"),
            ("--from {0}/nowhere", "nowhere"),
        ],
    )
    def test_wrong_commands_are_rejected(
        self, folder: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["--data", folder / "second", "--output-dir", folder / "never"]
        assert run("train", *arguments.format(folder).split(), *options) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-rerank: ")]
        assert len(errors) == 1
        assert message in errors[0]
        assert not (folder / "never").exists()

    def test_output_into_the_folder_of_the_model_is_rejected(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Also under another name of the folder; nothing in it changes."""
        saved = shutil.copytree(folder / "run", tmp_path / "run")
        monkeypatch.chdir(tmp_path)
        before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
        assert run("train", "--from", saved, "--data", folder / "second", "--output-dir", "run/../run") == 2
        assert "is the folder of the --from model, which would be overwritten" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_fine_tune_script(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``scripts/fine_tune.py``, unchanged: from the CSV to a model that ranks the dearest item first."""
    script = str(Path(__file__).parents[2] / "scripts" / "fine_tune.py")
    options = ["--model", str(folder / "run"), "--lists", str(folder / "second.csv")]
    options += ["--output-dir", str(tmp_path / "tuned"), "--epochs", "5", "--learning-rate", "0.02"]
    monkeypatch.setattr(sys, "argv", [script, *options])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    assert "item_id: 40 new values" in printed
    assert "before" in printed
    assert "after" in printed
    assert share_of_clicks_ranked_first(tmp_path / "tuned", folder / "second") > 0.9
