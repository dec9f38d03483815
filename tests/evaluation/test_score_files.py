"""Scores of other systems: three formats, rejections with file, line and list; TREC runs written and read."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval
from datasets import Dataset

from hf_rerank import Categorical, ListSchema
from hf_rerank.errors import InputError
from hf_rerank.evaluation.score_files import NamedLists, read_scores, write_trec_run

NAMED = NamedLists(["q1", "q2"], [["a", "b", "c"], ["b", "a"]])
LINES = ['{"list_id": "q2", "scores": [3, 4.5]}', '{"list_id": "q1", "scores": [0.5, -1, 2]}']
TREC = "q1 Q0 c 1 2 x\nq1 Q0 a 2 0.5 x\nq1 Q0 b 3 -1 x\nq2 Q0 a 1 4.5 x\n\nq2 Q0 b 2 3 x\n"
FLAT = [0.5, -1, 2, 3, 4.5]


def write_text_file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_three_formats_give_the_same_scores_in_row_order(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in LINES]), tmp_path / "scores.parquet")
    paths = [
        write_text_file(tmp_path, "scores.jsonl", "\n".join(LINES)),
        tmp_path / "scores.parquet",
        write_text_file(tmp_path, "run.trec", TREC),
    ]
    for path in paths:
        scores, unused = read_scores(path, NAMED)
        assert scores.tolist() == FLAT
        assert unused == 0


def test_lists_of_other_splits_are_counted(tmp_path: Path) -> None:
    more = [*LINES, '{"list_id": "q9", "scores": [1]}']
    assert read_scores(write_text_file(tmp_path, "scores.jsonl", "\n".join(more)), NAMED)[1] == 1
    assert read_scores(write_text_file(tmp_path, "run", TREC + "q9 Q0 a 1 1 x\n"), NAMED)[1] == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.jsonl", LINES[0], "no scores for list q1"),
        ("s.jsonl", "\n".join([*LINES, LINES[0]]), "line 3: list q2 is already in line 1"),
        ("s.jsonl", LINES[0] + '\n{"list_id": "q1", "scores": [1, 2]}', "line 2: list q1 has 3 items and 2 scores"),
        ("s.jsonl", '{"list_id": "q1", "scores": [1, NaN, 2]}', "line 1 holds nan: expected finite numbers"),
        ("s.jsonl", '{"list_id": "q1", "scores": "high"}', "line 1: scores of list q1 are high"),
        ("s.jsonl", '{"list": "q1"}', "expected list_id and scores"),
        ("s.jsonl", "{", "line 1 is not valid JSON"),
        ("s.parquet", "no parquet", "is not a readable Parquet file"),
        ("run", "q1 Q0 a 1 0.5\n", "line 1: 5 columns: expected the 6"),
        ("run", "q1 Q0 a 1 high x\n", "line 1, column 5: 'high': expected a finite score"),
        ("run", TREC + "q1 Q0 a 4 1 x\n", "line 7: item a appears twice in list q1"),
        ("run", TREC.replace("q1 Q0 b 3 -1 x\n", ""), "no score for item b in list q1"),
        ("run", TREC + "q1 Q0 z 4 1 x\n", "a score for item z in list q1, which does not contain"),
    ],
)
def test_wrong_score_files_are_rejected_with_line_and_list(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_scores(write_text_file(tmp_path, name, text), NAMED)


def test_duplicate_ids_missing_files_and_ids_with_spaces_are_rejected(tmp_path: Path) -> None:
    path = write_text_file(tmp_path, "scores.jsonl", "\n".join(LINES))
    with pytest.raises(InputError, match="list q1 appears twice"):
        read_scores(path, NamedLists(["q1", "q1"], [["a"], ["b"]]))
    with pytest.raises(InputError, match="is not a file"):
        read_scores(tmp_path / "absent", NAMED)
    with pytest.raises(InputError, match=r"item a appears twice.*list q1"):
        write_trec_run(tmp_path / "run", NamedLists(["q1"], [["a", "a"]]), [[0, 1]], [[1, 0]], "x")
    with pytest.raises(InputError, match="white space"):
        write_trec_run(tmp_path / "run", NamedLists(["q1"], [["a b"]]), [[0]], [[1.0]], "x")
    assert not (tmp_path / "run").exists()


def test_a_written_trec_run_is_read_back_and_by_trec_eval(tmp_path: Path) -> None:
    scores = [np.array([0.5, -1, 2], np.float32), np.array([3, 4.5], np.float32)]
    write_trec_run(tmp_path / "run", NAMED, [[2, 0, 1], [1, 0]], scores, "prm")
    assert (tmp_path / "run").read_text().splitlines()[:2] == ["q1 Q0 c 1 2.0 prm", "q1 Q0 a 2 0.5 prm"]
    assert read_scores(tmp_path / "run", NAMED)[0].tolist() == FLAT
    with (tmp_path / "run").open() as file:
        run = pytrec_eval.parse_run(file)
    relevant = {"q1": {"a": 1, "b": 0, "c": 0}, "q2": {"a": 1, "b": 0}}
    found = pytrec_eval.RelevanceEvaluator(relevant, {"recip_rank"}).evaluate(run)
    assert {name: values["recip_rank"] for name, values in found.items()} == {"q1": 0.5, "q2": 1.0}


def test_lists_and_items_are_named_by_their_ids_or_else_by_index() -> None:
    lists = Dataset.from_list(
        [{"request": 7, "item": [1, 2], "sku": ["x", "y"]}, {"request": 8, "item": [3], "sku": ["z"]}]
    )
    schema = ListSchema(items=[Categorical("item")], list_id="request", id="sku")
    assert NamedLists.from_dataset(lists, schema) == NamedLists(["7", "8"], [["x", "y"], ["z"]])
    schema = ListSchema(items=[Categorical("item")])
    assert NamedLists.from_dataset(lists, schema) == NamedLists(["0", "1"], [["1", "2"], ["3"]])
