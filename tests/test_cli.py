"""The commands as a user types them: the whole way once, and every mistake as one line and exit code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hf_rerank import cli

TRAIN = ["--num_train_epochs", "2", "--per_device_train_batch_size", "32", "--disable_tqdm", "true"]
TINY = ["--set", "d_model=8", "--set", "inner_width=8", "--set", "dropout=0.0"]


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


def mistake(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    capsys.readouterr()
    assert cli.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-rerank: ")]
    assert len(lines) == 1
    return lines[0]


class TestTheWholeWay:
    def test_training_left_a_model_and_its_results(self, folder: Path) -> None:
        names = {path.name for path in (folder / "run").iterdir() if path.is_file()}
        expected = {"config.json", "model.safetensors", "preprocessor_config.json", "vocabularies.safetensors"}
        assert names == expected | {"manifest.json", "results.json", "training_args.json"}
        results = json.loads((folder / "run" / "results.json").read_text())
        assert results["objective"]["preset"] == "scaled"
        assert results["model"]["d_model"] == 8
        assert 0 < results["evaluations"]["validation"]["validation_ndcg@10"] < 1

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
            assert result["item_id"] == [row["item_id"][slot] for slot in result["order"]]
            assert result["scores"] == sorted(result["scores"], reverse=True)
        assert not list(folder.glob("*.partial"))

    def test_training_again_gives_the_same_model(self, folder: Path) -> None:
        arguments = ["train", "--model", "prm", "--data", str(folder / "lists"), "--output-dir", str(folder / "again")]
        assert cli.main([*arguments, *TRAIN, *TINY]) == 0
        first, second = ((folder / run / "model.safetensors").read_bytes() for run in ("run", "again"))
        assert first == second


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
            ("train --model prm --data {0}/list --output-dir {0}/r", "{0}/list is no folder"),
            (
                "train --model prm --data {0}/lists --output-dir {0}/r --num_train_epoch 2",
                "did you mean '--num_train_ep",
            ),
            ("train --model prm --data {0}/lists --output-dir {0}/r --learning_rate fast", "fast"),
            ("train --model prm --data {0}/lists --output-dir {0}/r --principled scald", "did you mean 'scaled'"),
            ("train --model prm --data {0}/lists --output-dir {0}/r --set d_modle=8", "did you mean 'd_model'"),
            ("train --model prm --data {0}/lists --output-dir {0}/r --set d_model=wide", "d_model.*wide"),
            ("train --model prm --data {0}/lists --output-dir {0}/r --set d_model", "KEY=VALUE"),
            ("train --model prm --data {0}/lists --output-dir {0}/r --preset papr", "did you mean 'paper'"),
            ("evaluate --model {0}/nowhere --data {0}/lists", "nowhere"),
            ("evaluate --model {0}/raw --data {0}/lists", "preprocessor_config.json"),
            ("evaluate --model {0}/run --data {0}/lists --split tset", "did you mean 'test'"),
            ("evaluate --model {0}/run --data {0}/raw", "raw is no folder of prepared lists"),
            ("rank --model {0}/run --input {0}/lists.csv --output {0}/o.jsonl", r"\.jsonl or \.parquet"),
            ("rank --model {0}/run --input {0}/absent.jsonl --output {0}/o.jsonl", "absent.jsonl"),
        ],
    )
    def test_one_line_and_exit_code_2(
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
            ('{"item_id": [1]\n', "line 1 is no JSON"),
            ('{"item_id": [1, 2]}\n', "lacks|no column"),
            ("[1, 2]\n", "expected a dictionary"),
        ],
    )
    def test_ranking_bad_lists(
        self, folder: Path, capsys: pytest.CaptureFixture[str], content: str, words: str, tmp_path: Path
    ) -> None:
        source, target = tmp_path / "bad.jsonl", tmp_path / "ranked.jsonl"
        source.write_text(content)
        line = mistake(
            ["rank", "--model", str(folder / "run"), "--input", str(source), "--output", str(target)], capsys
        )
        assert re.search(words, line), line
        assert list(tmp_path.iterdir()) == [source], "nothing half-written"

    def test_a_full_disk(self, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        target = tmp_path / "ranked.jsonl"
        (tmp_path / "ranked.jsonl.partial").symlink_to("/dev/full")
        source = tmp_path / "lists.jsonl"
        row = pq.read_table(next((folder / "lists").glob("test-*.parquet"))).slice(0, 1).to_pylist()[0]
        source.write_text((json.dumps(row) + "\n") * 600)
        line = mistake(
            ["rank", "--model", str(folder / "run"), "--input", str(source), "--output", str(target)], capsys
        )
        assert "No space left" in line
        assert not target.exists()


def test_help_answers_at_once() -> None:
    """Nothing slow is imported for it; the time is a generous bound, the list of modules the real check."""
    code = "import sys; from hf_rerank import cli; cli.main([]); print(*sorted(sys.modules), file=sys.stderr)"
    started = time.monotonic()
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 10
    assert "simulate" in process.stdout
    assert not {"torch", "transformers", "datasets", "polars", "pyarrow"} & set(process.stderr.split())
