"""The model card: read back by the Hub's own reader, its snippet run, its numbers and columns those of the run."""

from __future__ import annotations

import copy
import html
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import ModelCard
from samples import TOKEN

from hf_rerank import (
    Categorical,
    Dense,
    ListProcessor,
    ListSchema,
    PRMConfig,
    PRMForReranking,
    RerankTrainer,
    RerankTrainingArguments,
    Vector,
)
from hf_rerank.hub.card import markdown_text, model_card
from hf_rerank.principled import Pass, Perturbed, PrincipledObjective, Soft, Term
from hf_rerank.storage.hub_upload import make_plain_card

# Column -> (part, kind, size): 20 and 50 rows as asked for, 3 texts and 2 integers with padding and the unknown value.
COLUMNS = {
    "item_id": ("items", "categorical", "20"),
    "ta|gs": ("items", "categorical", "50, hashed"),
    "*price* `$`": ("items", "dense", "2"),
    "{{ title }}": ("items", "vector", "3"),
    'say "hi" <b>\\\'': ("user", "categorical", "5"),
    "_age_": ("user", "dense", "1"),
    "history_[x](y)": ("history", "categorical", "as item_id"),
}
ITEM, TAGS, PRICE, TEXT, SAY, AGE, HISTORY = COLUMNS
SCHEMA = ListSchema(
    items=[
        Categorical(ITEM, size=20),
        Categorical(TAGS, hash_size=50),
        Dense(PRICE, missing="indicator"),
        Vector(TEXT, dim=3),
    ],
    user=[Categorical(SAY), Dense(AGE)],
    history=[Categorical(HISTORY, shares=ITEM)],
    max_list_length=4,
)
ROWS = [
    {
        ITEM: [f"i{number % 3}", "i1"],
        TAGS: [number, 7],
        PRICE: [0.5, float(number)],
        TEXT: [[0.1, 0.2, 0.3], [0.0, 0.0, 1.0]],
        SAY: number % 3,
        AGE: float(number),
        HISTORY: ["i2"],
        "click": [number % 2, 1 - number % 2],
    }
    for number in range(12)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained model."""
    folder = tmp_path_factory.mktemp("card") / "run"
    lists = datasets.Dataset.from_list(ROWS)
    processor = ListProcessor.from_lists(lists, schema=SCHEMA)
    trainer = RerankTrainer(
        model=PRMForReranking(
            PRMConfig.for_schema(processor.schema, hidden_size=8, num_hidden_layers=1, intermediate_size=8)
        ),
        args=RerankTrainingArguments(
            str(folder), num_train_epochs=1, use_cpu=True, disable_tqdm=True, hub_token=TOKEN, seed=5
        ),
        train_dataset=lists,
        eval_dataset=lists,
        processing_class=processor,
    )
    trainer.train()
    for prefix in ("validation", "test"):
        trainer.evaluate(lists, metric_key_prefix=prefix)
    trainer.save_model()
    return folder


@pytest.fixture
def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def table(text: str, first: str) -> list[list[str]]:
    """The cells of the rows of the table whose head begins with ``first``, as a reader sees them."""
    rows = re.search(rf"^\| {first} .*\n\| ---.*\n((?:\|.*\n)*)", text, re.M)
    assert rows is not None
    return [[html.unescape(cell.strip()) for cell in line.split("|")[1:-1]] for line in rows[1].splitlines()]


def snippet(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    return code


def test_hub_reader_reads_the_measured_values_back(results: dict[str, Any], tmp_path: Path) -> None:
    """The Hub's reader refuses a model-index that is not valid; what it reads is what the run measured."""
    (tmp_path / "README.md").write_text(model_card("someone/prm", results))
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.tags) == ("hf_rerank", ["re-ranking", "recommender-system"])
    assert data.model_name == "someone/prm"
    assert {entry.dataset_split for entry in data.eval_results} == {"validation", "test"}
    for entry in data.eval_results:
        metrics = results["evaluations"][entry.dataset_split]
        assert entry.metric_value == metrics[f"{entry.dataset_split}_{entry.metric_type}"]
        assert entry.task_type == "re-ranking"
    (ndcg,) = [e for e in data.eval_results if (e.metric_type, e.dataset_split) == ("ndcg@5", "test")]
    assert ndcg.metric_args == {"k": 5, "no_click": "zero", "ndcg_gain": "exponential", "ties": "slot order"}


def test_numbers_are_those_of_the_run(results: dict[str, Any]) -> None:
    text = model_card("someone/prm", results)
    shown = {}
    for heading in ("## Results", "## Obedience"):
        for name, *cells in table(text[text.index(heading) :], "measure"):
            shown[name] = cells
    assert {"auc", "gauc", "ndcg@10", "map@5", "p1_obedience@5", "p2_item_obedience", "score_spread"} <= shown.keys()
    for name, cells in shown.items():
        assert cells == [f"{results['evaluations'][p][f'{p}_{name}']:.4f}" for p in ("validation", "test")], name
    assert f"with {results['parameters']:,} parameters" in text
    assert f"{results['training']['seconds']:,.1f} seconds for 1 steps" in text
    assert "One run, seed 5" in text
    assert (
        "Principled preset `augmented`: `convergence`, weight 6, compares the scores on the given order and on the "
        "model's own order (as `probability`, reduction `weighted_mean`); `adversarial`, weight 1.5, compares the "
        "scores on the given order and on the given order after `adjacent_swap` (as `probability`, reduction "
        "`weighted_mean`); the task loss also on the model's own order and the given order after `adjacent_swap`."
    ) in text
    assert "RecSys 2019" in text
    assert "arXiv 2504.04188" in text


def test_settings_that_are_not_the_defaults_are_stated(results: dict[str, Any]) -> None:
    """Every choice of an objective that changes training is in the card."""
    soft = Soft(temperature=0.5, sinkhorn=3, straight_through=True)
    objective = PrincipledObjective(
        passes=(Pass("first"), Pass("second", soft), Pass("third", Perturbed("random_swap", strength=5))),
        terms=(
            Term("convergence", "first", "second", positions=None, stop_gradient="first"),
            Term("adversarial", "first", "third", positions="output"),
        ),
        fraction=0.25,
        warmup=0.5,
    )
    text = model_card("someone/prm", results | {"objective": {"principled": None, **objective.settings()}})
    for stated in (
        "a soft order (`softsort`, temperature 0.5, sinkhorn `3`, straight_through `True`)",
        "the given order after `random_swap`, strength `5`",
        "reduction `mean`, positions `None`, stop_gradient `first`)",
        "reduction `mean`, positions `output`)",
        ", fraction `0.25`, warmup `0.5`.",
    ):
        assert stated in text, stated


def test_columns_are_those_of_the_schema(results: dict[str, Any]) -> None:
    rows = {name: tuple(rest) for name, *rest in table(model_card("someone/prm", results), "column")}
    assert rows == COLUMNS


@pytest.mark.parametrize("name", COLUMNS)
def test_column_names_are_never_read_as_markup(name: str) -> None:
    """Every character special to Markdown or HTML is escaped, and a reader sees the name."""
    shown = markdown_text(name)
    assert re.fullmatch(r"(\w| |&#\d+;)*", shown)
    assert html.unescape(shown) == name
    assert not re.search(r"(^|\W)_|_(\W|$)", shown)


def test_the_snippet_runs(run: Path, results: dict[str, Any]) -> None:
    code = snippet(model_card(str(run), results))
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert set(scope["one_list"]) == set(COLUMNS)
    assert sorted(scope["ranked"]["order"]) == [0, 1, 2]


def test_card_names_the_import_that_auto_classes_need(results: dict[str, Any]) -> None:
    """test_push.py loads models that way."""
    said = "After `import hf_rerank.models` the Auto classes of transformers load it too"
    assert said in model_card("someone/prm", results)


def test_card_has_no_token_and_no_local_path(run: Path, results: dict[str, Any]) -> None:
    results["training_arguments"]["hub_token"] = TOKEN
    text = model_card("someone/prm", results)
    assert TOKEN not in text
    assert str(run) in json.dumps(results)
    assert str(run.parent) not in text
    assert not re.search(r"(^|[\s\"'`(])/\w", text)


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("evaluations", ["## Results", "## Obedience", "model-index"]),
        ("training", ["seconds", "The checkpoint with"]),
        ("environment", ["Device"]),
        ("objective", ["Principled preset"]),
        ("schema", ["| column |", "one_list", "of at most"]),
        ("parameters", ["parameters"]),
        ("task_loss", ["Task loss"]),
        ("data", ["SHA-256"]),
        ("training_arguments", ["Settings of the metrics", "seed", "Lists per batch"]),
        ("model", ["rerank_prm", "RecSys", "is read as"]),
    ],
)
def test_missing_results_are_left_out(results: dict[str, Any], missing: str, gone: list[str]) -> None:
    whole = model_card("someone/prm", results)
    text = model_card("someone/prm", {name: value for name, value in results.items() if name != missing})
    for words in gone:
        assert words in whole, words
        assert words not in text, words
    assert ModelCard(text).data.library_name == "hf_rerank"
    assert "None" not in text


def test_initial_order_is_a_column_next_to_the_evaluation(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    changed["orders"] = {"test": {"initial": {"auc": 0.125, "ndcg@5": 0.25, "gauc": None, "lists": 12}}}
    text = model_card("someone/prm", changed)
    head = "| measure | validation | test | test, initial order |"
    assert "The initial order is that in which" in text
    assert "initial order is that in which" not in model_card("someone/prm", results)
    assert text.count(head) == 1  # the initial order has no obedience
    shown = {name: cells for name, *cells in table(text, "measure")}
    assert (shown["auc"][2], shown["ndcg@5"][2], shown["gauc"][2], shown["ndcg@10"][2]) == ("0.1250", "0.2500", "", "")
    assert "lists" not in shown
    before = ModelCard(model_card("someone/prm", results)).data.eval_results
    after = ModelCard(text).data.eval_results
    assert [(e.metric_type, e.metric_value) for e in after] == [(e.metric_type, e.metric_value) for e in before]


def test_each_evaluation_names_its_own_settings(results: dict[str, Any]) -> None:
    same = model_card("someone/prm", results)
    assert "Settings of the metrics: `no_click` zero, `ndcg_gain` exponential, " in same
    assert "Settings of the obedience: `obedience_k` 5, `swaps` all, `max_steps` 10." in same
    changed = copy.deepcopy(results)
    changed["evaluation_settings"] = {"test": {"no_click": "skip", "ties": "any", "swaps": "one", "max_steps": 0}}
    text = model_card("someone/prm", changed)
    assert "Settings of the metrics, validation: `no_click` zero, `ndcg_gain` exponential, " in text
    assert "Settings of the metrics, test: `no_click` skip, `ties` any. Toolkits differ" in text
    assert "Settings of the obedience, test: `swaps` one, `max_steps` 0." in text
    found = {(e.dataset_split, e.metric_type): e.metric_args for e in ModelCard(text).data.eval_results}
    assert found["test", "ndcg@5"] == {"k": 5, "no_click": "skip", "ties": "any"}
    assert found["validation", "ndcg@5"]["no_click"] == "zero"


def test_lists_of_an_added_evaluation_are_described(results: dict[str, Any]) -> None:
    """Lists that training did not use are named, as are lists that differ from those of training by that name."""
    changed = copy.deepcopy(results)
    changed["evaluation_data"] = {
        "test": {"lists": 1234, "sha256": "0123456789abcdefXYZ"},
        "validation": results["data"]["validation"],
    }
    text = model_card("someone/prm", changed)
    assert "- `test`: 1,234 lists, SHA-256 `0123456789abcdef`..." in text
    assert "other lists" not in text
    changed["evaluation_data"]["validation"] = {"lists": 99, "sha256": "ff"}
    assert "- The numbers of validation are of other lists than the training's: 99 lists." in model_card(
        "x/y", changed
    )


def test_figures_have_alternative_text(results: dict[str, Any]) -> None:
    text = model_card("someone/prm", results, figures=("training.png", "obedience.png"))
    for name, heading, following in (
        ("training.png", "## Loss and principles", "## Results"),
        ("obedience.png", "## Obedience to the principles", "## Cost"),
    ):
        part = text[text.index(heading) : text.index(following)]
        (alternative,) = re.findall(rf"!\[(.*)\]\({name}\)", part)
        assert len(alternative.split()) > 5
    assert ".png" not in model_card("someone/prm", results)


def test_values_that_are_not_numbers_are_left_out(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    changed["evaluations"]["test"]["test_gauc"] = None
    changed["evaluations"]["validation"]["validation_gauc"] = float("nan")
    assert "| gauc |" in model_card("someone/prm", results)
    assert "gauc |" not in model_card("someone/prm", changed)


def test_plain_card_shows_how_to_load_the_model() -> None:
    card = ModelCard(make_plain_card("someone/prm"))
    assert card.data.library_name == "hf_rerank"
    assert 'Reranker.from_pretrained("someone/prm")' in snippet(card.text)


def test_introduction_and_experiment_are_put_in_their_places(results: dict[str, Any]) -> None:
    text = model_card("someone/prm", results, introduction="- One claim.", experiment="## Over seeds\n\nFive.")
    assert "# someone/prm\n\n- One claim.\n\nPRM, " in text
    assert text.index("## Obedience") < text.index("## Over seeds\n\nFive.\n\n## Cost")
