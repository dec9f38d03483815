"""A user's own lists on the command line, from a CSV to ranked lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hf_rerank import cli
from hf_rerank.data.loading import load_lists


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 lists of four items, of which the cheapest is clicked; in every fifth list the second cheapest."""
    folder = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    lines = ["request,user,item_id,shop,price,country,click,rank,day"]
    for number in range(300):
        prices = random.permutation([1.5, 2.5, 4.0, 8.0])
        clicked = 1.5 if number % 5 else 2.5
        for rank, price in enumerate(prices):
            item = f"{number},{number // 2},{random.integers(1000) * 4 + rank},shop {rank},{price},fr"
            item += f",{int(price == clicked)}"
            lines.append(f"{item},{rank},{number // 10}")
    (folder / "lists.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_from_csv_to_ranked_lists(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema, lists = folder / "schema.json", folder / "lists"
    assert run("schema", "infer", folder / "lists.csv", "--output", schema) == 0
    printed = capsys.readouterr().out
    assert "3 features of items, 2 of the user, 0 of the history" in printed
    assert "1 guesses to review:\n  day: integers, few of them" in printed
    assert run("schema", "infer", folder / "lists.csv") == 0
    assert capsys.readouterr().out == schema.read_text()
    edited = schema.read_text().replace('"scale": "log"', '"scale": "standard"')
    assert edited != schema.read_text()
    schema.write_text(edited)

    assert run("prepare", "own", "--input", folder / "lists.csv", "--schema", schema, "--output-dir", lists) == 0
    printed = capsys.readouterr().out
    assert "300 lists read; lists kept: ranker_train 0, train" in printed
    assert f"prepared lists in {lists}" in printed
    loaded = load_lists(lists)
    assert loaded.schema.position == "rank"

    train = ["--num_train_epochs", "4", "--per_device_train_batch_size", "16", "--learning_rate", "0.02"]
    options = ["--set", "hidden_sizes=[8]", "--disable_tqdm", "true"]
    assert run("train", "--model", "dnn", "--data", lists, "--output-dir", folder / "run", *train, *options) == 0
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in loaded["test"]))
    output = folder / "ranked.jsonl"
    assert run("rank", "--model", folder / "run", "--input", folder / "test.jsonl", "--output", output) == 0
    ranked = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["list_id"] for row in ranked] == loaded["test"]["request"][:]
    clicked = [row["click"][result["order"][0]] for row, result in zip(loaded["test"], ranked, strict=True)]
    assert np.mean(clicked) > 0.9  # it has learned that the cheapest is clicked


@pytest.mark.slow
def test_split_by_time_with_a_json_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten lists per day, 300 in all: cuts after 255 (which is within a day, so 260) and 270."""
    assert run("schema", "infer", folder / "lists.csv", "--output", folder / "by_day.json") == 0
    capsys.readouterr()
    options = ["--schema", folder / "by_day.json", "--output-dir", folder / "by_day", "--json"]
    assert run("prepare", "own", "--input", folder / "lists.csv", *options, "--split-by", "time:day") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["lists"] == {"ranker_train": 0, "train": 260, "validation": 10, "test": 30}
    assert "warnings" not in report
    options[3] = folder / "held_out"
    assert (
        run("prepare", "own", "--input", folder / "lists.csv", *options, "--split-by", "time:day", "--ranker-train")
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["lists"] == {"ranker_train": 120, "train": 140, "validation": 10, "test": 30}


def test_a_split_by_time_warns_of_empty_splits_and_states_the_shares(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six lists of one day and two of the next: 85 % of eight are six, 90 % are seven."""
    rows = [{"id": number, "item_id": [5, 6], "click": [0, 1], "day": number // 6} for number in range(8)]
    (folder / "days.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "days.json").write_text('{"items": [{"kind": "categorical", "name": "item_id"}], "list_id": "id"}')
    options = ["--schema", folder / "days.json", "--output-dir", folder / "days", "--split-by", "time:day"]
    assert run("prepare", "own", "--input", folder / "days.jsonl", *options) == 0
    printed = capsys.readouterr().out
    assert "warning: no list is in test: column 'day' has only 2 different times (2 of 8" in printed
    assert "75.0 % `train`, 25.0 % `validation`, 0.0 % `test`" in (folder / "days" / "README.md").read_text()


def test_likely_mistakes_in_the_lists_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": number, "item_id": [5, 5], "click": [0, 1]} for number in range(9)] + [
        {"id": 9, "item_id": [1], "click": [1]}
    ]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = '// a comment\n{"items": [{"kind": "categorical", "name": "item_id"}], "list_id": "id"}'
    (folder / "odd.json").write_text(schema)
    options = ["--schema", folder / "odd.json", "--output-dir", folder / "odd"]
    assert run("prepare", "own", "--input", folder / "odd.jsonl", *options) == 0
    printed = capsys.readouterr().out
    assert "1 lists of one item" in printed
    assert "warning: column 'item_id' names items, and repeats some within 9 of 10 lists" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schema", "infer", "none.csv"], "unknown source 'none.csv'"),
        (["schema", "infer", "{folder}/lists.csv", "--output", "{folder}/lists.csv"], "lists.csv exists: remove it"),
        (["schema", "infer", "{folder}", "--output", "{folder}/mine.json"], "would be read as a file of lists"),
        (["schema", "infer", "{folder}/lists.csv", "--lable", "click"], "did you mean '--label'"),
        (["schema", "guess"], "invalid choice: 'guess'"),
        (
            ["prepare", "own", "--input", "{folder}/lists.csv", "--schema", "no.json", "--output-dir", "{folder}/no"],
            "no schema at no.json",
        ),
        (["prepare", "own", "--input", "{folder}/lists.csv", "--output-dir", "{folder}/no"], "--schema"),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_code_2(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(argument.format(folder=folder) for argument in arguments)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("hf-rerank: ")
    assert message in said[0]


def test_news_impressions_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No header, and cells such as N1-1 N2-0: three options describe the format, the same for both commands."""
    lines = [
        f"{k}\tU{k // 2}\t11/15/2019 9:5{k % 6}:12 AM\tN1 N{k % 3}\tN{k % 3}-{k % 2} N7-{1 - k % 2}" for k in range(60)
    ]
    (tmp_path / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    how = ["--column-names", "impression_id,user_id,time,history,impressions", "--list-separator", " "]
    how += ["--label-separator", "-"]
    schema = tmp_path / "schema.json"
    assert run("schema", "infer", tmp_path / "behaviors.tsv", "--output", schema, *how) == 0
    assert "history: history, most of its values are also in impressions" in capsys.readouterr().out
    arguments = ["--input", tmp_path / "behaviors.tsv", "--schema", schema, "--output-dir", tmp_path / "lists"]
    assert run("prepare", "own", *arguments, "--split-by", "time:time", *how) == 0
    lists = load_lists(tmp_path / "lists")
    first = next(row for part in lists.values() for row in part if row["impression_id"] == 1)
    assert (first["impressions"], first["click"], first["history"]) == (["N1", "N7"], [1.0, 0.0], ["N1", "N1"])
    assert sum(map(len, lists.values())) == 60
