"""``hf-rerank compare``: one small comparison, read, resumed, added to and refused."""

import argparse
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank.cli import main
from hf_rerank.commands.compare import train_command
from hf_rerank.comparison.arms import WITH, WITHOUT, Plan, find_models
from hf_rerank.comparison.recommendation import Recommendation
from hf_rerank.comparison.training import ArmRunner
from hf_rerank.schema import Categorical, Dense, ListSchema

pytest.importorskip("lightgbm")

OWN = """
from hf_rerank import DNNConfig, DNNForReranking

class PlainDNN(DNNForReranking):
    config_class = DNNConfig
"""
TRAINING = ("--num-train-epochs", "1", "--per-device-train-batch-size", "64", "--set", "embedding_dim=4")
SIZES = ("--set", "dnn.hidden_sizes=[8]", "--set", "dlcm.hidden_size=8", "--set", "dlcm.input_size=0")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Lists of five items, whose click probability depends on their kind."""
    folder = tmp_path_factory.mktemp("lists")
    schema = ListSchema(
        items=[Categorical("kind"), Dense("price")],
        position="place",
        list_id="request",
        group="user",
        max_list_length=5,
    )
    draw = np.random.default_rng(0)
    for split, count in (("train", 200), ("validation", 60), ("test", 60)):
        kind = draw.integers(0, 4, (count, 5))
        columns = {
            "kind": kind,
            "price": draw.normal(size=(count, 5)),
            "place": np.stack([draw.permutation(5) for _ in range(count)]),
            "click": (draw.random((count, 5)) < 0.05 + 0.25 * kind).astype(int),
        }
        table = pa.table(
            {name: values.tolist() for name, values in columns.items()}
            | {"request": [f"{split}{row}" for row in range(count)], "user": [row // 2 for row in range(count)]}
        )
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    schema.save(folder / "schema.json")
    return folder


@pytest.fixture(scope="module")
def arguments(prepared, tmp_path_factory):
    """A finished comparison of the DNN, the DLCM, LambdaMART and an external system, which knows the labels."""
    root = tmp_path_factory.mktemp("compare")
    test = pq.read_table(prepared / "test-00000-of-00001.parquet").to_pylist()
    rows = [json.dumps({"list_id": row["request"], "scores": row["click"]}) for row in test]
    (root / "oracle.jsonl").write_text("\n".join(rows))
    given = ["compare", "--data", str(prepared), "--output-dir", str(root / "out"), "--models", "dlcm", "--seeds", "1"]
    given += ["--scores", f"oracle={root / 'oracle.jsonl'}", *TRAINING, *SIZES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_rerank.initial_rankers.tree_learner.LEAVES", (4,))
        patch.setattr("hf_rerank.initial_rankers.tree_learner.TREES", (20,))
        assert main(given) == 0
    return given


def folder_of(arguments):
    from pathlib import Path

    return Path(arguments[arguments.index("--output-dir") + 1])


@pytest.mark.slow
def test_comparison_writes_a_report_a_figure_and_its_runs(arguments):
    folder = folder_of(arguments)
    report = json.loads((folder / "report.json").read_text())
    kinds = ("without order", "with order", "with principles")
    expected = ["logged order", "oracle", "lambdamart without order", "lambdamart with order"]
    expected += [f"{model} {kind}" for model in ("dnn", "dlcm") for kind in kinds]
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == expected
    assert report["measure"] == "ndcg@10"
    assert rows["oracle"]["mean"] == pytest.approx(rows["oracle"]["others"]["ndcg@10"])
    assert rows["oracle"]["mean"] == max(row["mean"] for row in rows.values())
    # Nothing beats the labels themselves, and nothing is clear after one seed.
    assert report["recommendation"]["use"] in ("logged order", "oracle")
    assert any("One seed" in reason for reason in report["recommendation"]["reasons"])
    trained = [row for name, row in rows.items() if name not in ("logged order", "oracle")]
    assert all(row["milliseconds"] > 0 and row["seconds"] > 0 for row in trained)
    # A network that does not read the order obeys both principles; the DLCM without order has one of its own.
    assert rows["dnn without order"]["others"]["p1_obedience@5"] == 1.0
    assert "p1_obedience@5" not in rows["dlcm without order"]["others"]
    text = (folder / "report.md").read_text()
    assert text.startswith("# Is a re-ranker worth it on these lists?")
    assert "| dlcm with principles |" in text
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "work").exists()
    run = json.loads((folder / "runs" / "dlcm-without-order-seed0.json").read_text())
    assert run["random_order"] is True
    assert len(run["per_list"]) == 60


@pytest.mark.slow
def test_killed_comparison_repeats_only_unfinished_runs(arguments, monkeypatch, capsys):
    made = []
    run = ArmRunner.run

    def counting(self, arm, seed, *rest):
        made.append((arm.name, seed))
        return run(self, arm, seed, *rest)

    monkeypatch.setattr(ArmRunner, "run", counting)
    path = folder_of(arguments) / "runs" / "dnn-with-order-seed0.json"
    before = json.loads(path.read_text())
    path.unlink()
    assert main(arguments) == 0
    assert made == [("dnn with order", 0)]
    again = json.loads(path.read_text())
    assert again["test"] == before["test"]
    printed = capsys.readouterr().out
    assert "7 of 8 runs are already finished" in printed
    assert "[8/8] dnn with order, seed 0: NDCG@10" in printed
    assert "Recommendation: " in printed


def test_another_configuration_in_the_same_folder_is_refused(arguments, capsys, tmp_path):
    assert main([*arguments, "--num_train_epochs", "2"]) == 2
    assert "contains a comparison with other training options" in capsys.readouterr().err
    (tmp_path / "thesis.txt").write_text("not mine")
    other = [*arguments, "--output-dir", str(tmp_path)]
    assert main(other) == 2
    assert "contains thesis.txt and no comparison" in capsys.readouterr().err


def test_runs_with_another_default_preset_are_not_mixed(arguments, capsys, tmp_path):
    folder = shutil.copytree(folder_of(arguments), tmp_path / "earlier")
    configuration = json.loads((folder / "compare.json").read_text())
    (folder / "compare.json").write_text(json.dumps({**configuration, "principles": "scaled"}))
    assert main([*arguments, "--output-dir", str(folder)]) == 2
    assert "contains a comparison with other principles" in capsys.readouterr().err


@pytest.mark.slow
def test_custom_model_class_can_be_compared(prepared, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_rerankers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ["compare", "--data", str(prepared), "--output-dir", "out", "--models", "own_rerankers:PlainDNN"]
    given += ["--seeds", "1", "--without-lambdamart", *TRAINING, "--set", "hidden_sizes=[8]"]
    assert main(given) == 0
    assert "PlainDNN with principles" in capsys.readouterr().out
    digest = json.loads((tmp_path / "out" / "own_models.json").read_text())
    (tmp_path / "out" / "own_models.json").write_text(json.dumps(dict.fromkeys(digest, "of another text")))
    assert main(given) == 2
    assert "the module of PlainDNN has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--models", "prn"], "did you mean 'prm'"),
        (["--seed", "3"], "--seed is decided by compare itself"),
        (["--num_train_epoch", "3"], "did you mean '--num-train-epochs'"),
        (["--scores", "ours"], "expected --scores NAME=FILE"),
        (["--scores", "ours=absent.jsonl"], "absent.jsonl is not a file"),
        (["--principled", "none"], "choose a preset"),
        (["--truncate-lists", "true"], "a comparison evaluates whole lists: leave it out"),
        (["--seeds", "0"], "expected at least 1"),
    ],
)
def test_wrong_options_are_refused_before_any_training(prepared, tmp_path, capsys, extra, message):
    given = ["compare", "--data", str(prepared), "--output-dir", str(tmp_path / "out"), *extra]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_printed_command_trains_the_recommended_arm():
    plan = Plan(find_models(["prm"]), config={"initial_score": "feature", "prm.hidden_size": 8})
    expected = {
        WITHOUT: "--set initial_score=none --set hidden_size=8 --set position_input=none",
        WITH: "--set initial_score=feature --set hidden_size=8",
    }
    for kind, options in expected.items():
        found = train_command(argparse.Namespace(data="LISTS"), Recommendation(f"prm {kind}", "prm", kind, ()), plan)
        start = "hf-rerank train --model prm --data LISTS --output-dir RUN"
        assert found == f"{start} {options} --principled none"


@pytest.mark.slow
def test_evaluate_writes_a_trec_run_that_compare_reads(prepared, tmp_path, capsys):
    from hf_rerank.data.loading import load_lists
    from hf_rerank.evaluation.score_files import NamedLists, read_scores
    from hf_rerank.inference.reranker import Reranker

    train = ["train", "--model", "dnn", "--data", str(prepared), "--output-dir", str(tmp_path / "run")]
    schema = json.loads((prepared / "schema.json").read_text())
    lists = tmp_path / "lists"
    lists.mkdir()
    # The items of a list need unique ids: the price serves as one.
    ListSchema.from_dict({**schema, "id": "price"}).save(lists / "schema.json")
    for split in ("train", "validation", "test"):
        name = f"{split}-00000-of-00001.parquet"
        (lists / name).write_bytes((prepared / name).read_bytes())
    train[train.index("--data") + 1] = str(lists)
    assert main([*train, *TRAINING, "--set", "hidden_sizes=[8]", "--principled", "none"]) == 0
    path = tmp_path / "dnn.trec"
    given = ["evaluate", "--model", str(tmp_path / "run"), "--data", str(lists), "--max-steps", "0"]
    assert main([*given, "--trec-run", str(path)]) == 0
    assert f"TREC run in {path}" in capsys.readouterr().out
    splits = load_lists(lists)
    scores, unused = read_scores(path, NamedLists.from_dataset(splits["test"], splits.schema))
    expected = Reranker.from_pretrained(tmp_path / "run").predict(splits["test"].to_list())
    assert unused == 0
    np.testing.assert_allclose(scores, np.concatenate(expected), rtol=1e-6)
