"""The commands as a user types them: from lists to rankings, and every mistake as one line and exit code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mistakes import mistake

from hf_rerank import cli

TRAIN = ["--num_train_epochs", "2", "--per_device_train_batch_size", "32", "--disable_tqdm", "true"]
TINY = ["--set", "hidden_size=8", "--set", "intermediate_size=8", "--set", "hidden_dropout_prob=0.0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files, prepared lists and a trained model of 400 simulated lists."""
    folder = tmp_path_factory.mktemp("commands")
    for arguments in (
        ["simulate", "prm_public", "--output-dir", folder / "raw", "--lists", "400", "--seed", "3"],
        ["prepare", "prm_public", "--raw-dir", folder / "raw", "--output-dir", folder / "lists"],
        ["train", "--model", "prm", "--data", folder / "lists", "--output-dir", folder / "run", *TRAIN, *TINY],
    ):
        assert cli.main([str(argument) for argument in arguments]) == 0
    return folder


class TestFromListsToRanking:
    @pytest.mark.slow
    def test_training_writes_a_model_and_its_results(self, folder: Path) -> None:
        names = {path.name for path in (folder / "run").iterdir() if path.is_file()}
        expected = {"config.json", "model.safetensors", "preprocessor_config.json", "vocabularies.safetensors"}
        assert names == expected | {"manifest.json", "results.json", "training_args.json"}
        results = json.loads((folder / "run" / "results.json").read_text())
        assert results["objective"]["principled"] == "augmented"
        assert results["model"]["hidden_size"] == 8
        assert 0 < results["evaluations"]["validation"]["validation_ndcg@10"] < 1

    @pytest.mark.slow
    def test_evaluate_prints_the_rows_and_writes_json(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = folder / "test.json"
        arguments = [
            "evaluate",
            "--model",
            str(folder / "run"),
            "--data",
            str(folder / "lists"),
            "--json",
            str(output),
        ]
        assert cli.main(arguments) == 0
        printed = capsys.readouterr().out
        assert all(row in printed for row in ("random", "initial", "true_attraction", "model", "NDCG@10", "P1@5"))
        rows = json.loads(output.read_text())["rows"]
        assert rows["true_attraction"]["expected_clicks_share"] == pytest.approx(1)
        assert rows["initial"]["expected_clicks_share"] == pytest.approx(0)
        assert rows["model"]["expected_clicks"] <= rows["true_attraction"]["expected_clicks"]
        assert rows["model"]["lists"] == rows["random"]["lists"]

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_rank_from_and_to_files(self, folder: Path, suffix: str) -> None:
        lists = pq.read_table(next((folder / "lists").glob("test-*.parquet"))).to_pylist()
        source, target = folder / f"lists.{suffix}", folder / f"ranked.{suffix}"
        if suffix == "jsonl":
            source.write_text("".join(json.dumps(row) + "\n" for row in lists))
        else:
            import pyarrow as pa

            pq.write_table(pa.Table.from_pylist(lists), source)
        arguments = ["rank", "--model", str(folder / "run"), "--input", str(source), "--output", str(target)]
        assert cli.main([*arguments, "--top-k", "7"]) == 0
        if suffix == "jsonl":
            ranked = [json.loads(line) for line in target.read_text().splitlines()]
        else:
            ranked = pq.read_table(target).to_pylist()
        assert [row["list_id"] for row in ranked] == [row["list_id"] for row in lists]
        for row, result in zip(lists, ranked, strict=True):
            assert len(result["order"]) == 7
            assert result["ids"] == [row["item_id"][slot] for slot in result["order"]]
            assert result["scores"] == sorted(result["scores"], reverse=True)
        assert not list(folder.glob("*.partial"))

    @pytest.mark.slow
    def test_training_again_gives_the_same_model(self, folder: Path) -> None:
        arguments = ["train", "--model", "prm", "--data", str(folder / "lists"), "--output-dir", str(folder / "again")]
        assert cli.main([*arguments, *TRAIN, *TINY]) == 0
        first, second = ((folder / run / "model.safetensors").read_bytes() for run in ("run", "again"))
        assert first == second


MEASURED = {
    "p1_obedience": 0.25,
    "p2_obedience": 0.5,
    "p1_obedience@5": 0.125,
    "p2_obedience@5": 0.75,
    "p1_set_obedience@5": 0.375,
    "p2_set_obedience@5": 0.875,
    "p1_item_obedience": 0.625,
    "p2_item_obedience": 0.9375,
    "p1_kendall_tau": -0.5,
    "p2_kendall_tau": 1.0,
    "fixed_point_rate": 0.75,
    "fixed_point_steps": 2.5,
    "cycle_rate": 0.1875,
    "score_spread": 0.8,
    "collapsed_share": 0.0625,
    "obedience_lists": 12345,
}


class TestObedienceInEvaluate:
    def test_the_table_lines_up_both_principles(self) -> None:
        from hf_rerank.evaluation.tables import obedience_table

        assert obedience_table(MEASURED).splitlines() == [
            "obedience                                   P1, own order  P2, one swap",
            "-----------------------------------------------------------------------",
            "whole list, share of lists                         0.2500        0.5000",
            "first 5 as an order, share of lists                0.1250        0.7500",
            "first 5 as a set, share of lists                   0.3750        0.8750",
            "items that keep their rank, share of items         0.6250        0.9375",
            "Kendall tau                                       -0.5000        1.0000",
            "",
            "fixed points and scores",
            "--------------------------------------------------------------",
            "rankings that settle when fed back, share of lists      0.7500",
            "steps until they settle, mean                           2.5000",
            "rankings that return to an earlier one, share of lists  0.1875",
            "score spread, standard deviation of a list's logits     0.8000",
            "equal scores, share of lists                            0.0625",
            "lists measured                                          12,345",
        ]

    def test_unmeasured_rows_are_left_out_and_missing_values_are_dashes(self) -> None:
        from hf_rerank.evaluation.tables import obedience_table

        never_settles = obedience_table({**MEASURED, "fixed_point_steps": float("nan")})
        assert re.search(r"^steps until they settle, mean +-$", never_settles, re.M)
        left = {name: value for name, value in MEASURED.items() if not name.startswith(("fixed", "cycle"))}
        table = obedience_table(left)
        assert "settle" not in table
        assert "return" not in table
        assert "fixed" not in table
        assert "equal scores, share of lists" in table

    @pytest.mark.slow
    def test_evaluate_prints_every_obedience_measure(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = folder / "obedience.json"
        arguments = ["evaluate", "--model", str(folder / "run"), "--data", str(folder / "lists")]
        capsys.readouterr()
        assert cli.main([*arguments, "--json", str(output)]) == 0
        printed = capsys.readouterr().out
        results = json.loads(output.read_text())
        assert results["obedience"] == {"obedience_k": 5, "swaps": "all", "max_steps": 10}
        row = results["rows"]["model"]
        for label, name in (
            ("whole list, share of lists", "obedience"),
            ("first 5 as an order, share of lists", "obedience@5"),
            ("first 5 as a set, share of lists", "set_obedience@5"),
            ("items that keep their rank, share of items", "item_obedience"),
            ("Kendall tau", "kendall_tau"),
        ):
            values = rf"{row['p1_' + name]:.4f} +{row['p2_' + name]:.4f}"
            assert re.search(rf"^{label} +{values}$", printed, re.M), label
        assert re.search(rf"^score spread, .* {row['score_spread']:.4f}$", printed, re.M)
        assert re.search(rf"^lists measured +{row['lists']}$", printed, re.M)

    def test_options_of_evaluate_reach_the_measurement(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from hf_rerank import evaluation

        given, real = {}, evaluation.evaluate

        def spy(*arguments: object, **options: object) -> dict[str, object]:
            given.update(options)
            return real(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(evaluation, "evaluate", spy)
        output = folder / "options.json"
        arguments = ["evaluate", "--model", str(folder / "run"), "--data", str(folder / "lists")]
        options = ["--obedience-k", "3", "--swaps", "one", "--max-steps", "0", "--json", str(output)]
        options += ["--gain", "linear", "--click-above", "0.5"]
        capsys.readouterr()
        assert cli.main([*arguments, *options]) == 0
        expected = {"obedience_k": 3, "swaps": "one", "max_steps": 0}
        assert {name: given[name] for name in expected} == expected
        assert (given["gain"], given["click_above"]) == ("linear", 0.5)
        printed = capsys.readouterr().out
        assert "first 3 as a set" in printed
        assert "first 5" not in printed
        assert "settle" not in printed
        results = json.loads(output.read_text())
        assert results["obedience"] == expected
        assert results["rows"]["model"]["settings"]["ndcg_gain"] == "linear"
        # One swap per list either keeps the whole ranking or does not: the result is a whole number of lists.
        kept = results["rows"]["model"]["p2_obedience"] * results["rows"]["model"]["obedience_lists"]
        assert kept == pytest.approx(round(kept))


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    """A copy of the trained model, to write into."""
    copied = tmp_path / "model"
    copied.mkdir()
    for path in (folder / "run").iterdir():
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes())
    return copied


class TestAddToResults:
    @pytest.mark.slow
    def test_numbers_of_model_and_initial_order_are_added_with_settings(
        self, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["evaluate", "--model", str(model), "--data", str(folder / "lists"), "--add-to-results"]
        options = ["--ks", "3", "--no-click", "skip", "--swaps", "one", "--max-steps", "2", "--json"]
        before = json.loads((model / "results.json").read_text())
        assert cli.main([*arguments, *options, str(folder / "both.json")]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"test: added to {model / 'results.json'}"
        rows = json.loads((folder / "both.json").read_text())["rows"]
        results = json.loads((model / "results.json").read_text())
        numbers = int | float | None  # null: a mean over no lists
        expected = {f"test_{name}": value for name, value in rows["model"].items() if isinstance(value, numbers)}
        assert results["evaluations"] == {**before["evaluations"], "test": expected}
        assert {"test_ndcg@3", "test_p1_item_obedience", "test_lists"} <= expected.keys()
        assert results["orders"] == {**before["orders"], "test": {"initial": rows["initial"]}}
        used = results["evaluation_settings"]["test"]
        assert {name: used[name] for name in ("ks", "no_click", "obedience_k", "swaps", "max_steps")} == {
            "ks": [3],
            "no_click": "skip",
            "obedience_k": 5,
            "swaps": "one",
            "max_steps": 2,
        }
        assert results["evaluation_data"]["test"]["lists"] == rows["model"]["lists"]
        same = {name for name in before if results[name] == before[name]}
        assert set(before) - same == {"evaluations", "orders"}
        assert cli.main(["rank", "--model", str(model), *self.ranking(folder)]) == 0

    @staticmethod
    def ranking(folder: Path) -> list[str]:
        source = next((folder / "lists").glob("test-*.parquet"))
        return ["--input", str(source), "--output", str(folder / "loads.jsonl")]

    @pytest.mark.slow
    def test_same_evaluation_is_kept_and_another_replaces_it(
        self, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["evaluate", "--model", str(model), "--data", str(folder / "lists"), "--add-to-results"]
        said, written = [], []
        for options in ([], [], ["--no-click", "skip"], []):
            assert cli.main([*arguments, *options]) == 0
            said.append(capsys.readouterr().out.splitlines()[-1].removesuffix(f"{model / 'results.json'}"))
            written.append({path.name: path.read_bytes() for path in model.iterdir()})
        path = model / "results.json"
        assert said == [
            "test: added to ",
            f"test: already in {path}, with the same numbers",
            f"test: replaced in {path}, which had other numbers",
            f"test: replaced in {path}, which had other numbers",
        ]
        assert written[0] == written[1] == written[3] != written[2]

    @pytest.mark.slow
    def test_training_records_the_initial_order_of_the_validation_lists(self, folder: Path, model: Path) -> None:
        """The evaluate command, with the settings of the trainer, gives the same numbers."""
        before = json.loads((model / "results.json").read_text())
        arguments = ["evaluate", "--model", str(model), "--data", str(folder / "lists"), "--add-to-results"]
        assert cli.main([*arguments, "--split", "validation"]) == 0
        after = json.loads((model / "results.json").read_text())
        assert before["orders"]["validation"] == after["orders"]["validation"]
        assert before["data"]["validation"] == after["evaluation_data"]["validation"]
        assert 0 < before["orders"]["validation"]["initial"]["ndcg@10"] < 1
        for name, value in after["evaluations"]["validation"].items():
            assert value == pytest.approx(before["evaluations"]["validation"][name], abs=1e-5), name


class TestPlots:
    @pytest.mark.slow
    def test_training_is_drawn_at_every_evaluation(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two epochs: an evaluation after each, the end, and the evaluation that the command ends with."""
        from hf_rerank.training import callbacks

        evaluations, real = [], callbacks.plot_training

        def spy(log: list[dict[str, object]], path: Path) -> None:
            evaluations.append(sum("eval_p1_obedience" in entry for entry in log))
            real(log, path)

        monkeypatch.setattr(callbacks, "plot_training", spy)
        run = tmp_path / "run"
        arguments = ["train", "--model", "dnn", "--data", str(folder / "lists"), "--output-dir", str(run), *TRAIN]
        capsys.readouterr()
        assert cli.main([*arguments, "--plots", "--set", "hidden_sizes=[8]"]) == 0
        assert evaluations == [1, 2, 2, 2]
        picture = run / "plots" / "training.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert capsys.readouterr().out.endswith(f"model in {run}\nfigure in {picture}\n")
        assert [path.name for path in picture.parent.iterdir()] == ["training.png"]

    @pytest.mark.slow
    def test_training_that_logs_nothing_has_no_figure(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["train", "--model", "dnn", "--data", str(folder / "lists"), "--output-dir", str(tmp_path / "run")]
        silent = (
            "--max_steps 1 --logging_strategy no --eval_strategy no --save_strategy no --load_best_model_at_end no"
        )
        capsys.readouterr()
        assert cli.main([*arguments, *TRAIN, *silent.split(), "--plots", "--set", "hidden_sizes=[8]"]) == 0
        assert capsys.readouterr().out.endswith("no figure: the training logged nothing to draw\n")
        assert not (tmp_path / "run" / "plots").exists()

    @pytest.mark.slow
    def test_evaluate_draws_the_model_and_its_training(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from hf_rerank.evaluation import plots

        drawn = {}

        def spy(name: str) -> None:
            real = getattr(plots, name)

            def draw(content: object, path: Path) -> None:
                drawn[name] = content
                real(content, path)

            monkeypatch.setattr(plots, name, draw)

        spy("plot_training")
        spy("plot_obedience")
        pictures, output = tmp_path / "new" / "pictures", tmp_path / "test.json"
        arguments = ["evaluate", "--model", str(folder / "run"), "--data", str(folder / "lists")]
        capsys.readouterr()
        assert cli.main([*arguments, "--plots", str(pictures), "--json", str(output)]) == 0
        paths = [pictures / "obedience.png", pictures / "training.png"]
        assert capsys.readouterr().out.splitlines()[-2:] == [f"figure in {path}" for path in paths]
        assert sorted(pictures.iterdir()) == paths
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
        results = json.loads((folder / "run" / "results.json").read_text())
        assert drawn["plot_training"] == results["training"]["log"]
        row = json.loads(output.read_text())["rows"]["model"]
        assert drawn["plot_obedience"]["p1_item_obedience"] == row["p1_item_obedience"]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("results", "words"),
        [
            (None, "{0} has no training log"),
            ("{}", "{0} has no training log"),
            ('{"training": {"seconds": 3}}', "{0} has no training log"),
            ('{"training": {"log": [{"step": 3}]}}', "there is nothing to draw in the log"),
        ],
    )
    def test_model_without_a_training_log_gets_only_the_obedience_figure(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], results: str | None, words: str
    ) -> None:
        model, pictures = tmp_path / "model", tmp_path / "pictures"
        model.mkdir()
        for path in (folder / "run").iterdir():
            if path.is_file() and path.name != "results.json":
                (model / path.name).write_bytes(path.read_bytes())
        if results is not None:
            (model / "results.json").write_text(results)
        capsys.readouterr()
        arguments = ["evaluate", "--model", str(model), "--data", str(folder / "lists"), "--plots", str(pictures)]
        assert cli.main(arguments) == 0
        picture, line = capsys.readouterr().out.splitlines()[-2:]
        assert picture == f"figure in {pictures / 'obedience.png'}"
        assert line.startswith(f"no {pictures / 'training.png'}: {words.format(model)}")
        assert [path.name for path in pictures.iterdir()] == ["obedience.png"]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if training or measuring begins."""

    def begun(*arguments: object, **options: object) -> None:
        raise AssertionError("the work began")

    for name in ("training.RerankTrainer.train", "evaluation.evaluate", "evaluation.evaluate_orders"):
        monkeypatch.setattr(f"hf_rerank.{name}", begun)


@pytest.mark.usefixtures("no_work")
class TestMistakesFoundBeforeAnyWork:
    @pytest.mark.parametrize(
        "arguments",
        [
            "train --model prm --data {0}/lists --output-dir {1}/run --plots",
            "evaluate --model {0}/run --data {0}/lists --plots {1}/pictures",
        ],
    )
    def test_missing_matplotlib(
        self,
        folder: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        arguments: str,
    ) -> None:
        for name in ("matplotlib", "matplotlib.figure"):
            monkeypatch.setitem(sys.modules, name, None)
        line = mistake(arguments.format(folder, tmp_path).split(), capsys)
        assert line == "hf-rerank: figures need matplotlib: pip install hf-rerank[plots]"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ("--obedience-k 0", "--obedience-k is 0: expected at least 1"),
            ("--max-steps -1", "--max-steps is -1: expected at least 0"),
            ("--swaps al", "did you mean 'all'"),
            ("--plots {0}/lists/schema.json", "schema.json is a file: expected a folder"),
            ("--plots {1}/pictures --model {1}", r"{1}/results.json is not valid JSON: .*; fix or remove it"),
            ("--add-to-results --model {1}", r"{1}/results.json is not valid JSON: .*; fix or remove it"),
            (
                "--add-to-results --model {1}/someone/prm",
                r"no folder .*/someone/prm whose results.json could be",
            ),
            ("--add-to-results --model {0}/raw", r"/raw has no results.json to add to: expected a folder that the tr"),
        ],
    )
    def test_wrong_options_of_evaluate(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, words: str
    ) -> None:
        (tmp_path / "results.json").write_text("{")
        arguments = f"evaluate --model {folder}/run --data {folder}/lists {options.format(folder, tmp_path)}"
        line = mistake(arguments.split(), capsys)
        assert re.search(words.format(folder, tmp_path), line), line


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ("trian", "invalid choice: 'trian'.*did you mean 'train'"),
            ("simulate prm_publik --output-dir {0}/x --lists 3", "did you mean 'prm_public'"),
            ("simulate prm_public --output-dir {0}/x --list 3", "--lists"),
            ("simulate prm_public --output-dir {0}/x --lists none", "invalid int value: 'none'"),
            ("simulate prm_public --output-dir {0}/x --lists 0", "0"),
            (
                "simulate prm_public --output-dir {0}/x --lists 3 --world initial_nose=3",
                "did you mean 'initial_noise'",
            ),
            ("simulate prm_public --output-dir {0}/x --lists 3 --world null_rate=2", "null_rate"),
            ("simulate prm_public --output-dir {0}/raw --lists 3", "set1.train.txt.part1"),
            ("prepare prm_public --raw-dir {0}/nothing --output-dir {0}/y", "nothing"),
            ("prepare prm_public --raw-dir {0}/raw --output-dir {0}/lists", "lists"),
            ("prepare prm_public --raw-dir {0}/raw --output-dir {0}/y --protocoll ours", "did you mean '--protocol'"),
            ("train --model prn --data {0}/lists --output-dir {0}/r", "did you mean 'prm'"),
            ("train --model prm --data {0}/list --output-dir {0}/r", "{0}/list is not a folder"),
            (
                "train --model prm --data {0}/lists --output-dir {0}/r --num_train_epoch 2",
                "did you mean '--num-train-ep",
            ),
            ("train --model prm --data {0}/lists --output-dir {0}/r --learning_rate fast", "fast"),
            ("train --model prm --data {0}/lists --output-dir {0}/r --principled scald", "did you mean 'scaled'"),
            (
                "train --model prm --data {0}/lists --output-dir {0}/r --set hidden_sise=8",
                "did you mean 'hidden_size'",
            ),
            ("train --model prm --data {0}/lists --output-dir {0}/r --set hidden_size=wide", "hidden_size.*wide"),
            ("train --model prm --data {0}/lists --output-dir {0}/r --set hidden_size", "KEY=VALUE"),
            ("train --model prm --data {0}/lists --output-dir {0}/r --preset papr", "did you mean 'paper'"),
            ("evaluate --model {0}/nowhere --data {0}/lists", "nowhere"),
            (
                "evaluate --model {0}/raw --data {0}/lists",
                "raw has no config.json .*: expected a folder that save_pret",
            ),
            ("evaluate --model {0}/run --data {0}/lists --split tset", "did you mean 'test'"),
            ("evaluate --model {0}/run --data {0}/raw", "raw is not a folder of prepared lists"),
            ("rank --model {0}/run --input {0}/lists.xlsx --output {0}/o.jsonl", "lists.xlsx"),
            ("rank --model {0}/run --input {0}/raw --output {0}/o.xlsx", r"expected a file that ends in \.csv"),
            ("rank --model {0}/run --input {0}/absent.jsonl --output {0}/o.jsonl", "absent.jsonl"),
        ],
    )
    def test_mistake_gives_one_line_and_exit_code_2(
        self,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        arguments: str,
        words: str,
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        line = mistake(arguments.format(folder).split(), capsys)
        assert re.search(words.replace("{0}", str(folder)), line), line

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "holds no list"),
            ('{"item_id": [1]\n', "line 1: .*expected one JSON object per list"),
            ('{"item_id": [1, 2]}\n', "lacks|no column"),
            ("[1, 2]\n", "expected one JSON object per list"),
        ],
    )
    def test_malformed_lists_are_refused_and_leave_no_output(
        self, folder: Path, capsys: pytest.CaptureFixture[str], content: str, words: str, tmp_path: Path
    ) -> None:
        source, target = tmp_path / "bad.jsonl", tmp_path / "ranked.jsonl"
        source.write_text(content)
        line = mistake(
            ["rank", "--model", str(folder / "run"), "--input", str(source), "--output", str(target)], capsys
        )
        assert re.search(words, line), line
        assert list(tmp_path.iterdir()) == [source], "nothing half-written"

    @pytest.mark.slow
    def test_full_disk_while_ranking_leaves_no_output(
        self, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        target = tmp_path / "ranked.jsonl"
        (tmp_path / "full").symlink_to("/dev/full")
        monkeypatch.setattr("hf_rerank.storage.atomic.temporary_path", lambda path: tmp_path / "full")
        source = tmp_path / "lists.jsonl"
        row = pq.read_table(next((folder / "lists").glob("test-*.parquet"))).slice(0, 1).to_pylist()[0]
        source.write_text((json.dumps(row) + "\n") * 600)
        line = mistake(
            ["rank", "--model", str(folder / "run"), "--input", str(source), "--output", str(target)], capsys
        )
        assert "No space left" in line
        assert not target.exists()


def test_help_imports_nothing_slow() -> None:
    """The list of modules is the real check; the time limit is generous."""
    code = "import sys; from hf_rerank import cli; cli.main([]); print(*sorted(sys.modules), file=sys.stderr)"
    started = time.monotonic()
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 10
    assert "simulate" in process.stdout
    assert not {"torch", "transformers", "datasets", "polars", "pyarrow"} & set(process.stderr.split())


def test_matplotlib_is_imported_only_for_drawing() -> None:
    imports = "import sys; from hf_rerank import cli; from hf_rerank.evaluation import plots"
    code = f"{imports}; cli.main([]); print(*sys.modules, file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hf_rerank.evaluation.plots" in process.stderr.split()
    assert not {"matplotlib", "numpy", "torch"} & set(process.stderr.split())
