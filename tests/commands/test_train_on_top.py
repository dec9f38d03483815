"""``hf-rerank train --on-top-of lambdamart``: one command, from prepared lists to a folder that ranks raw ones."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank import Reranker
from hf_rerank.cli import main
from hf_rerank.schema import Categorical, Dense, ListSchema

pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    schema = ListSchema(items=[Categorical("kind"), Dense("price", scale="quantile")], max_list_length=6)
    draw = np.random.default_rng(0)
    for split, count in (("train", 300), ("validation", 80), ("test", 20)):
        price, kind = draw.pareto(1.0, (count, 5)), draw.integers(0, 4, (count, 5))
        chance = 1 / (1 + np.exp(1.5 * (price > 1) - (kind == 2) + 0.5 * np.arange(5)))
        columns = {"kind": kind, "price": price, "click": (draw.random((count, 5)) < chance).astype(int)}
        table = pa.table({name: values.tolist() for name, values in columns.items()})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    schema.save(folder / "schema.json")
    return folder


def train(prepared, run, *options):
    small = ["--num_train_epochs", "1", "--set", "hidden_size=8", "--principled", "none"]
    arguments = ["--model", "prm", "--data", str(prepared), "--output-dir", str(run), "--on-top-of", "lambdamart"]
    return main(["train", *arguments, *small, *options])


@pytest.mark.slow
def test_one_command_trains_trees_and_model_and_saves_both(prepared, tmp_path, capsys):
    assert not train(prepared, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "training lists are scored by 5-fold cross-fitting" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert isinstance(results["on_top_of"]["with_position"], bool)
    assert results["training_arguments"]["learning_rate"] == pytest.approx(3e-4)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["initial_score"] == "start"
    assert config["relative_features"] is True
    assert len(config["initial_score_positions"]) == 6
    assert (tmp_path / "run" / "trees.safetensors").is_file()
    ranked = Reranker.from_pretrained(tmp_path / "run").rerank([{"kind": [0, 2, 1], "price": [9.0, 0.1, 2.0]}])
    assert sorted(ranked[0]["order"]) == [0, 1, 2]


@pytest.mark.slow
def test_command_line_options_override_the_defaults_of_on_top_of(prepared, tmp_path):
    train(
        prepared,
        tmp_path / "run",
        "--learning_rate",
        "0.01",
        "--set",
        "position_input=none",
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["training_arguments"]["learning_rate"] == pytest.approx(0.01)
    assert results["on_top_of"]["with_position"] is False
    run = Reranker.from_pretrained(tmp_path / "run")
    rows = [{"kind": [0, 2, 1], "price": [9.0, 0.1, 2.0]}]
    turned = [{"kind": [1, 2, 0], "price": [2.0, 0.1, 9.0]}]
    # Without order, no part of the model reads it: neither network nor trees.
    np.testing.assert_allclose(run.predict(rows)[0], run.predict(turned)[0][::-1], rtol=0, atol=1e-6)


@pytest.fixture
def scored(prepared, tmp_path):
    """The lists with scores of an earlier ranker: the negative price."""
    folder = tmp_path / "scored"
    shutil.copytree(prepared, folder)
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        scores = [[-price for price in prices] for prices in table["price"].to_pylist()]
        pq.write_table(table.append_column("score", pa.array(scores)), path)
    ListSchema.load(folder / "schema.json").replace(initial_score="score").save(folder / "schema.json")
    return folder


def test_lists_with_scores_are_refused_before_they_are_read(scored, tmp_path, capsys):
    for path in scored.glob("*.parquet"):
        path.write_bytes(b"not read")
    assert train(scored, tmp_path / "run") == 2
    printed = capsys.readouterr().err
    assert "column 'score'), and --on-top-of would start from others" in printed
    assert "replace --on-top-of by --set initial_score=start" in printed


def test_a_score_that_the_model_does_not_read_is_mentioned(scored, tmp_path, capsys):
    arguments = ["train", "--model", "dnn", "--data", str(scored), "--max_steps", "1", "--principled", "none"]
    message = "(initial_score of the schema: column 'score') is not read: --set initial_score=feature reads it"
    for run, options in enumerate(([], ["--set", "initial_score=none"], ["--set", "initial_score=feature"])):
        assert main([*arguments, "--output-dir", str(tmp_path / str(run)), "--set", "hidden_sizes=[4]", *options]) == 0
        assert (message in capsys.readouterr().out) == (not options)


def test_incompatible_options_are_refused(prepared, tmp_path, capsys):
    arguments = ["train", "--model", "prm", "--data", str(prepared), "--output-dir", str(tmp_path)]
    assert main([*arguments, "--trees-read-order", "no"]) == 2
    assert "--trees-read-order goes with --on-top-of only" in capsys.readouterr().err
    order = ["--trees-read-order", "yes", "--set", "position_input=none"]
    assert main([*arguments, "--on-top-of", "lambdamart", *order]) == 2
    assert "use only one of them" in capsys.readouterr().err
