"""Histories from earlier lists, against a loop over dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hf_rerank import InputError, cli, load_lists
from hf_rerank.data.prepared.earlier_clicks import add_earlier_clicks, collect_clicks
from hf_rerank.data.prm_public import prepare_prm_public


def reference_histories(rows: list[dict[str, Any]], columns: list[str], longest: int) -> list[dict[str, list[Any]]]:
    """The obvious way: the clicks of each user, extended after each of the user's lists is read."""
    clicks: dict[Any, list[dict[str, Any]]] = {}
    clicked_lists: dict[Any, int] = {}
    found = []
    for row in rows:
        newest_first = clicks.setdefault(row["user"], [])[::-1][:longest] if row["user"] is not None else []
        number = clicked_lists.get(row["user"], 0)
        history = {f"history_{name}": [click[name] for click in newest_first] for name in columns}
        found.append({**history, "history_lists_ago": [number - click["number"] for click in newest_first]})
        for slot, label in enumerate(row["click"]):
            if label > 0 and row["user"] is not None:
                clicks[row["user"]].append({"number": number, **{name: row[name][slot] for name in columns}})
        clicked_lists[row["user"]] = number + any(label > 0 for label in row["click"])
    return found


def test_histories_of_a_small_example() -> None:
    rows = [
        {"user": "a", "item": [5, 6, 7], "click": [1, 0, 1]},
        {"user": "b", "item": [8], "click": [1]},
        {"user": "a", "item": [9, 5], "click": [0, 2]},
        {"user": "a", "item": [1], "click": [0]},
    ]
    table = pa.Table.from_pylist(rows)
    found = collect_clicks([table], ["item"], label="click", group="user").find_histories(table, 0, 2)
    assert found["history_item"].to_pylist() == [[], [], [7, 5], [5, 7]]
    # For user a, clicks of the first list are one list ago in the second, two in the third; b's list does not count.
    assert found["history_lists_ago"].to_pylist() == [[], [], [1, 1], [1, 2]]


def test_clicks_of_unknown_users_are_in_no_history() -> None:
    rows = [
        {"user": "a", "item": [5], "click": [1]},
        {"user": None, "item": [6], "click": [1]},
        {"user": "a", "item": [7], "click": [0]},
        {"user": None, "item": [8], "click": [0]},
    ]
    for table in (pa.Table.from_pylist(rows), pa.Table.from_pylist(rows[:3])):  # an even and an odd number of lists
        found = collect_clicks([table], ["item"], label="click", group="user").find_histories(table, 0, 2)
        assert found["history_item"].to_pylist() == [[], [], [5], []][: table.num_rows]


def test_lists_of_other_users_do_not_change_a_history() -> None:
    """However many of them lie between the lists of the user, as in a large split."""
    own = [{"user": "a", "item": [number], "click": [1]} for number in range(4)]
    others = [{"user": f"other {number}", "item": [9], "click": [1]} for number in range(10)]
    small = pa.Table.from_pylist(own)
    large = pa.Table.from_pylist([*own[:2], *others[:7], own[2], *others[7:], own[3]])
    last_of = [
        {name: column.to_pylist()[-1] for name, column in clicks.find_histories(table, 0, 9).items()}
        for table in (small, large)
        for clicks in [collect_clicks([table], ["item"], label="click", group="user")]
    ]
    assert last_of == [{"history_item": [2, 1, 0], "history_lists_ago": [1, 2, 3]}] * 2


@pytest.mark.parametrize("seed", range(20))
def test_histories_over_batches_match_the_reference(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(int(random.integers(1, 60))):
        length = int(random.integers(1, 5))
        rows.append(
            {
                "user": [None, int(random.integers(6)) if seed % 2 else f"user {random.integers(6)}"][
                    int(random.random() > 0.1)
                ],
                "item": random.integers(0, 9, length).tolist(),
                "brand": [None if value == 0 else f"b{value}" for value in random.integers(0, 4, length)],
                "click": random.integers(0, 2, length).tolist(),
            }
        )
    types = pa.schema(
        [
            ("user", pa.int64() if seed % 2 else pa.string()),
            ("item", pa.list_(pa.int64())),
            ("brand", pa.list_(pa.string())),
            ("click", pa.list_(pa.int8())),
        ]
    )
    table = pa.Table.from_pylist(rows, types)
    size = int(random.integers(1, 20))
    batches = [table.slice(start, size) for start in range(0, len(rows), size)]
    clicks = collect_clicks(batches, ["item", "brand"], label="click", group="user")
    found: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        columns = clicks.find_histories(batch, number * size, 4)
        found += pa.table(columns).to_pylist()
    assert found == reference_histories(rows, ["item", "brand"], 4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    simulate = ["simulate", "prm_public", "--output-dir", folder / "raw", "--lists", 300, "--seed", 2]
    prepare = ["prepare", "prm_public", "--raw-dir", folder / "raw", "--output-dir"]
    for words in (simulate, [*prepare, folder / "lists"], [*prepare, folder / "history", "--history-length", 5]):
        assert cli.main([str(word) for word in words]) == 0
    return folder


COLUMNS = ["item_id", "item_1", "item_2", "item_3", "item_4"]


@pytest.mark.slow
def test_histories_of_prepared_lists_match_the_reference(prepared: Path) -> None:
    plain, found = load_lists(prepared / "lists"), load_lists(prepared / "history")
    assert sorted(path.name for path in prepared.iterdir()) == ["history", "lists", "raw"]
    for split in plain:
        rows = [{**row, "user": row["user_id"]} for row in plain[split].to_list()]
        expected = reference_histories(rows, COLUMNS, 5)
        names = list(expected[0])
        assert found[split].select_columns(names).to_list() == expected
        assert found[split].remove_columns(names).to_list() == plain[split].to_list()
    assert max(map(len, found["train"]["history_item_id"][:])) == 5
    assert {feature.name for feature in found.schema.history} == set(names)
    assert found.schema.history[0].shares == "item_id"


def test_card_warns_that_clicks_may_lie_in_the_future(prepared: Path) -> None:
    card = (prepared / "history" / "README.md").read_text()
    assert "nothing here is a user's history" not in card
    assert "an earlier click may lie in the future of its list" in card


@pytest.mark.slow
def test_number_of_shards_does_not_change_histories(prepared: Path, tmp_path: Path) -> None:
    """The number of a list is its place in the split, whatever shards it is read from."""
    prepare_prm_public(prepared / "raw", tmp_path / "small", shard_bytes=50_000, piece_bytes=50_000, progress=False)
    add_earlier_clicks(tmp_path / "small", tmp_path / "history", history_length=5)
    assert len(list((tmp_path / "small").glob("train-*.parquet"))) > 2
    whole, parts = load_lists(prepared / "history"), load_lists(tmp_path / "history")
    for split in whole:
        assert parts[split].to_list() == whole[split].to_list()


def test_existing_history_or_history_length_0_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already has a history"):
        add_earlier_clicks(prepared / "history", tmp_path / "again")
    with pytest.raises(InputError, match="history_length is 0"):
        add_earlier_clicks(prepared / "lists", tmp_path / "none", history_length=0)
    assert list(tmp_path.iterdir()) == []
