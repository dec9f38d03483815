"""Cross-fitting: no training list is sorted by a ranker that has seen it; scores, positions and folds agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from hf_rerank import cli
from hf_rerank.data.custom.prepare import prepare_own
from hf_rerank.data.loading import load_lists
from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.cross_fitting import CrossFittedRanker
from hf_rerank.initial_rankers.lambdamart import LambdaMARTRanker
from hf_rerank.initial_rankers.order import add_initial_order
from hf_rerank.schema import Categorical, Dense, ListSchema

SCHEMA = ListSchema(items=[Categorical("item"), Dense("price")], list_id="id", group="user", max_list_length=4)


class Memory:
    """Scores 1 for items of lists that it was trained on, 0 for others."""

    settings: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, lists: Any) -> None:
        self.seen = set(lists["id"][:])

    def scores(self, table: pa.Table) -> np.ndarray:
        lengths = [len(items) for items in table.column("item").to_pylist()]
        return np.repeat([float(name in self.seen) for name in table.column("id").to_pylist()], lengths)


def rows(n: int) -> list[dict[str, Any]]:
    """Lists of 2 to 4 items; two lists per user, every seventh list without a user. The cheapest item is clicked."""
    draw, made = np.random.default_rng(0), []
    for number in range(n):
        prices = draw.permutation(4)[: 2 + number % 3].astype(float).tolist()
        made.append(
            {
                "id": f"l{number}",
                "user": None if number % 7 == 6 else number // 2,
                "item": draw.integers(50, size=len(prices)).tolist(),
                "price": prices,
                "click": [float(price == min(prices)) for price in prices],
            }
        )
    return made


def test_training_lists_are_scored_by_a_ranker_that_has_not_seen_them() -> None:
    lists = datasets.Dataset.from_list(rows(40))
    ranker = CrossFittedRanker.fit(Memory, lists, SCHEMA, folds=4, seed=0)
    table = lists.with_format("arrow")[:]
    lengths = np.array([len(items) for items in table.column("item").to_pylist()])
    assert ranker.score_training_lists(table, 0, lengths).tolist() == [0.0] * int(lengths.sum())
    assert ranker.scores(table).tolist() == [1.0] * int(lengths.sum())
    part = ranker.score_training_lists(table.slice(11, 9), 11, lengths[11:20])
    assert part.tolist() == [0.0] * int(lengths[11:20].sum())
    users = table.column("user").to_pylist()
    for user in set(users) - {None}:
        assert len({fold for fold, of in zip(ranker.fold_of_list, users, strict=True) if of == user}) == 1
    assert set(ranker.fold_of_list) == {0, 1, 2, 3}
    assert len({fold for fold, of in zip(ranker.fold_of_list, users, strict=True) if of is None}) > 1  # not one group
    with pytest.raises(InputError, match="--cross-fit 50 needs at least 50 users"):
        CrossFittedRanker.fit(Memory, lists, SCHEMA, folds=50, seed=0)


@pytest.mark.slow
def test_cross_fitting_custom_lists_without_a_ranker_train_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(600)))
    prepare_own(tmp_path / "lists.jsonl", tmp_path / "lists", schema=SCHEMA, progress=False)
    with pytest.raises(InputError, match="--cross-fit 5, which needs none"):
        add_initial_order(tmp_path / "lists", tmp_path / "no", progress=False)
    arguments = (
        f"initial-rank --data {tmp_path}/lists --output-dir {tmp_path}/sorted --cross-fit 3 --max-list-length 3"
    )
    assert cli.main(arguments.split()) == 0
    assert "lists of train, " in capsys.readouterr().out
    lists = load_lists(tmp_path / "sorted")
    assert (lists.schema.position, lists.schema.initial_score) == ("position", "initial_score")
    ranker = LambdaMARTRanker.from_pretrained(tmp_path / "sorted" / "initial_ranker")
    for split, of_split in lists.items():
        if not len(of_split):
            continue
        table = of_split.with_format("arrow")[:]
        for row in of_split:
            assert sorted(row["position"]) == list(range(len(row["item"])))
            assert len(row["item"]) <= 3
            in_order = [score for _, score in sorted(zip(row["position"], row["initial_score"], strict=True))]
            assert in_order == sorted(in_order, reverse=True)
        scores = np.concatenate([row["initial_score"] for row in of_split])
        assert np.array_equal(scores, ranker.scores(table)) == (split != "train")
    report = json.loads((tmp_path / "sorted" / "report.json").read_text())["initial_ranker"]
    assert report["folds"] == 3
    assert report["metrics"]["train"]["ndcg@10"] > 0.9  # the cheapest item is clicked, also out of fold
    assert "3 folds by user" in (tmp_path / "sorted" / "README.md").read_text()
    with pytest.raises(InputError, match="expected at least 2 folds"):
        add_initial_order(tmp_path / "lists", tmp_path / "no", cross_fit=1, progress=False)
