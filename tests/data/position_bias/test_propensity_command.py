"""``hf-rerank propensities``: the column, the report and the card; what is refused; simulated clicks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_folders import table_of

from hf_rerank import Categorical, Dense, ListSchema
from hf_rerank.cli import main
from hf_rerank.data.prepared import Licence, make_dataset_card, read_card, read_prepared, write_description
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.simulation import PRMWorld
from hf_rerank.data.splits import SPLITS

SCHEMA = ListSchema(items=[Categorical("item"), Dense("price")], label="click", position="place", max_list_length=3)
COLUMNS = {"item": pa.int64(), "price": pa.float32(), "click": pa.int8(), "place": pa.int64(), "shown": pa.int64()}


def make_lists(
    path: Path, schema: ListSchema = SCHEMA, *, clicked: tuple[int, int] = (60, 30), **columns: Any
) -> Path:
    """100 lists of the items 1 and 2, displayed in this order in each; ``place`` holds the opposite order.

    Of 100, 60 click the first and 30 the second, in ``train``; ``test`` holds two lists of three.
    """
    path.mkdir()
    report = PrepareReport(read=102)
    rows = [
        {"item": [1 + n % 2, 2 - n % 2], "price": [1.0, 2.0], "place": [1, 0], "shown": [0, 1]}
        | {"click": [int(n % 100 < clicked[0]), int(n % 100 >= 100 - clicked[1])]}
        for n in range(100)
    ]
    longer = {"item": [1, 2, 3], "price": [1, 2, 3], "place": [2, 1, 0], "shown": [0, 1, 7], "click": [0, 0, 1]}
    kinds = pa.schema([(name, pa.list_(kind)) for name, kind in {**COLUMNS, **columns}.items()])
    for split in SPLITS:
        lists = {"train": rows, "test": [longer, longer]}.get(split, [])
        table = pa.Table.from_pylist(
            [{**row, **dict.fromkeys(columns, [0.5] * len(row["item"]))} for row in lists], kinds
        )
        pq.write_table(table, path / f"{split}-00000-of-00001.parquet")
        report.keep(split, table, "click")
    card = make_dataset_card("Mine", report, schema, how=["by hand"], caveats=["few"], licence=Licence("own", "Mine."))
    write_description(path, schema, report, card, initial_ranker={"ranker": "dnn"})
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main(["propensities", *map(str, arguments)])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_propensity_column_follows_the_chosen_display_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Click rates are 0.6 and 0.3 for each item: the propensity of the second place is 0.5, and so is that of the
    third, which shares it; in the column ``place`` the order is reversed."""
    lists = make_lists(tmp_path / "lists")
    expected = {
        "rows": [[1.0, 0.5], [1.0, 0.5, 0.5]],
        "shown": [[1.0, 0.5], [1.0, 0.5, 0.5]],
        None: [[1, 0.5], [1, 1, 0.5]],
    }
    for order, (train, test) in expected.items():
        new = tmp_path / f"new-{order}"
        options = ["--data", lists, "--output-dir", new, "--same-from", 1, "--method", "harvest"]
        code, out, err = run(capsys, *options, *(["--display-order", order] if order else []))
        assert code == 0, err
        curve = json.loads((new / "report.json").read_text())["propensities"]["curve"]
        clicks = [60, 30] if order else [30, 60]
        rates = [1.0, 0.5] if order else [0.5, 1.0]
        assert [row["clicks"] for row in curve] == clicks
        assert [row["impressions"] for row in curve] == [100, 100]
        assert [row["propensity"] for row in curve] == pytest.approx(rates, abs=1e-4)
        assert "1 and on" in out
        assert f"displayed in the order of {order or 'place'}" in out
        found = table_of(new, "train").column("propensity").to_pylist()
        assert found[0] == pytest.approx(train if order else [1.0, 0.5], abs=1e-4)
        assert table_of(new, "test").column("propensity").to_pylist()[0] == pytest.approx(test, abs=1e-4)
        before, after = table_of(lists, "train"), table_of(new, "train")
        assert after.drop_columns(["propensity"]).equals(before)
        assert read_prepared(new).schema == read_prepared(lists).schema.replace(propensity="propensity")
        assert json.loads((new / "report.json").read_text())["initial_ranker"] == {"ranker": "dnn"}
        how = read_card(new).how
        assert [point[:12] for point in how] == ["by hand", "Propensities"]


def test_second_estimate_replaces_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = SCHEMA.replace(propensity="looked")
    lists = make_lists(tmp_path / "lists", schema, looked=pa.float64())
    for number, method in enumerate(("em", "regression-em")):
        new = tmp_path / f"new-{number}"
        options = ["--display-order", "rows", "--same-from", 1, "--method", method, "--json", "--max-lists", 50]
        code, out, err = run(capsys, "--data", lists, "--output-dir", new, *options)
        assert code == 0, err
        about = json.loads(out)
        assert (about["method"], about["lists_learned_from"]) == (method, 50)
        table = table_of(new, "train")
        assert table.column_names == table_of(lists, "train").column_names
        assert table.column("looked").to_pylist()[0][1] == pytest.approx(about["curve"][1]["propensity"])
        assert sum(point.startswith("Propensities:") for point in read_card(new).how) == 1
        lists = new


def test_unsuitable_lists_and_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists, other = make_lists(tmp_path / "lists"), make_lists(tmp_path / "other", propensity=pa.float32())
    dense = make_lists(tmp_path / "dense", SCHEMA.replace(items=[Dense("price")]))
    never = make_lists(tmp_path / "never", clicked=(60, 0))
    cases = [
        ((lists, "--display-order", "shwn"), "have no column 'shwn'; did you mean 'shown'?"),
        ((lists, "--display-order", "price"), "expected the display position of each item, an integer from 0"),
        (
            (lists, "--display-order", "rows"),
            "have position 2, and the lists that propensities are estimated from only",
        ),
        ((lists, "--same-from", "0"), "same_from is 0: expected at least 1"),
        ((other,), "has a column 'propensity' that its schema does not name as the propensity"),
        ((dense,), "has no item ids"),
        ((never, "--display-order", "rows"), "position 1 has 100 impressions and no click at all"),
    ]
    for number, ((data, *options), message) in enumerate(cases):
        code, _, err = run(capsys, "--data", data, "--output-dir", tmp_path / f"new-{number}", *options)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err, err


@pytest.mark.slow
def test_simulated_position_bias_is_recovered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4,000 simulated lists of 30 items: the mean error over the places is below 0.05."""
    raw, lists = tmp_path / "raw", tmp_path / "lists"
    assert main(["simulate", "prm_public", "--output-dir", str(raw), "--lists", "4000"]) == 0
    assert main(["prepare", "prm_public", "--raw-dir", str(raw), "--output-dir", str(lists)]) == 0
    true = PRMWorld().examination
    capsys.readouterr()
    for method in ("em", "harvest"):
        options = ["--output-dir", tmp_path / method, "--display-order", "rows", "--method", method, "--json"]
        code, out, _ = run(capsys, "--data", lists, *options)
        curve = json.loads(out)["curve"]
        assert code == 0
        found = np.array([row["propensity"] for row in curve])
        assert np.abs(found - true).mean() < 0.05, method
