"""A folder of prepared lists: complete or absent, reproducible to the byte, and readable by plain ``datasets``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank.data.prepared import read_prepared
from hf_rerank.data.prm_public import prepare_prm_public
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS, assign_splits
from hf_rerank.errors import InputError
from hf_rerank.validation import Lists


def raw_lines(users: range, clicks: tuple[int, ...] = (0, 1, 0)) -> str:
    """One line per user. The first basic feature of every tenth user is null."""
    n = len(clicks)
    lines = []
    for user in users:
        basic = [[None if user % 10 == 0 else user / 8, 1, 2, 3, 4, 5, 6]] * n
        fields = [
            [1, 2, 3],
            [[user + i, 1, 2, 3, 4] for i in range(n)],
            basic,
            [[0.5] * 12] * n,
            list(map(float, clicks)),
        ]
        lines.append("|".join([str(user), *map(json.dumps, fields)]) + "\n")
    return "".join(lines)


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "set1.train.txt.part1").write_text(raw_lines(range(300)))
    (folder / "set1.train.txt.part2").write_text(raw_lines(range(300, 400), (1, 0, 0, 1)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_report_and_shards(raw, tmp_path):
    report = prepare_prm_public(raw, tmp_path / "lists", progress=False, shard_bytes=30_000, piece_bytes=10_000)
    of_user = assign_splits(range(400)).tolist()
    expected = {split: of_user.count(split) for split in SPLITS}
    assert report.lists == expected
    assert report.read == 400 == sum(expected.values())
    # users 0..299 have 3 items and 1 click each, 300..399 have 4 items and 2 clicks; every tenth has 3 or 4 nulls
    assert sum(report.items.values()) == 300 * 3 + 100 * 4
    assert report.clicks["test"] == sum(1 + (user >= 300) for user in range(400) if of_user[user] == "test")
    assert (report.nulls, report.without_click, report.dropped) == ({"basic_0": 30 * 3 + 10 * 4}, 0, {})
    assert report.seconds > 0

    prepared = read_prepared(tmp_path / "lists")
    assert prepared.lists == expected
    assert list(prepared.files) == list(SPLITS)
    shards = len(prepared.files["train"])
    assert shards > 3
    assert [path.name for path in prepared.files["train"]] == [
        f"train-{number:05d}-of-{shards:05d}.parquet" for number in range(shards)
    ]
    table = pa.concat_tables(pq.read_table(path) for path in prepared.files["train"])
    assert table.column("user_id").to_pylist() == [user for user in range(400) if of_user[user] == "train"]
    assert len(Lists.from_arrow(table, prepared.schema, with_labels=True)) == expected["train"]
    saved = json.loads((tmp_path / "lists" / "report.json").read_text())
    assert saved.pop("licence") == "no-redistribution"
    assert saved == {name: value for name, value in report.to_dict().items() if name not in ("seconds", "stages")}


def test_cut_lists_and_lost_clicks_are_reported(raw, tmp_path):
    (raw / "set1.train.txt.part2").write_text(raw_lines(range(300, 303), (0, 0, 1, 1)) + raw_lines(range(9, 10), (0,)))
    report = prepare_prm_public(raw, tmp_path / "lists", progress=False, max_list_length=2)
    assert (report.cut_lists, report.lost_clicks, report.without_click) == (303, 3, 4)
    card = (tmp_path / "lists" / "README.md").read_text()
    assert "Cut to 2 items: 303 lists, of which 3 lost all their clicks." in card


@pytest.mark.slow
def test_plain_datasets_reads_the_folder(raw, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    report = prepare_prm_public(raw, tmp_path / "lists", progress=False, shard_bytes=30_000, piece_bytes=10_000)
    loaded = datasets.load_dataset(str(tmp_path / "lists"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(dataset) for split, dataset in loaded.items()} == report.lists
    row = loaded["train"][0]
    user = row["user_id"]
    assert row["item_id"] == [user, user + 1, user + 2]
    assert row["click"] == [0, 1, 0]
    card = datasets.load_dataset_builder(str(tmp_path / "lists"), cache_dir=str(tmp_path / "cache"))
    assert set(card.config.data_files) == set(SPLITS)


def test_card_states_protocol_seed_and_licence(raw, tmp_path):
    prepare_prm_public(raw, tmp_path / "lists", progress=False, protocol="public", seed=3)
    card = (tmp_path / "lists" / "README.md").read_text()
    for said in (
        "conditional on a click",
        "Protocol `public`",
        "holds a null 40",
        "may not be redistributed",
        "seed 3",
    ):
        assert said in card


@pytest.mark.slow
def test_empty_splits_still_load(raw, tmp_path):
    from hf_rerank.data.loading import load_lists

    (raw / "set1.train.txt.part1").write_text(raw_lines(range(42, 43)))  # 42: train, and nothing else
    (raw / "set1.train.txt.part2").unlink()
    prepare_prm_public(raw, tmp_path / "lists", progress=False)
    for streaming in (False, True):
        lists = load_lists(tmp_path / "lists", streaming=streaming)
        assert {split: [row["user_id"] for row in rows] for split, rows in lists.items()} == {
            "ranker_train": [],
            "train": [42],
            "validation": [],
            "test": [],
        }
        assert lists["test"].features == lists["train"].features


# ----------------------------------------------------------------------------------------------------- reproducibility


@pytest.mark.slow
def test_same_input_gives_the_same_bytes(raw, tmp_path):
    prepare_prm_public(raw, tmp_path / "one", progress=False)
    prepare_prm_public(raw, tmp_path / "two", progress=False, piece_bytes=5_000)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert list(one) == list(two)
    assert all(one[name] == two[name] for name in one)


# ----------------------------------------------------------------------------------------------------- damaged folders


@pytest.mark.slow
def test_every_truncation_of_a_shard_or_the_schema_is_refused(raw, tmp_path):
    folder = tmp_path / "lists"
    (raw / "set1.train.txt.part1").write_text(raw_lines(range(20)))
    (raw / "set1.train.txt.part2").unlink()
    prepare_prm_public(raw, folder, progress=False)
    for name in ("train-00000-of-00001.parquet", "schema.json"):
        whole = (folder / name).read_bytes()
        end = len(whole.rstrip())
        for length in [*range(0, end, 131), *range(end - 12, end)]:
            (folder / name).write_bytes(whole[:length])
            with pytest.raises(InputError, match=name):
                read_prepared(folder)
        (folder / name).write_bytes(whole)
    assert sum(read_prepared(folder).lists.values()) == 20


@pytest.mark.slow
def test_missing_and_foreign_shards_are_named(raw, tmp_path):
    folder = tmp_path / "lists"
    prepare_prm_public(raw, folder, progress=False, shard_bytes=30_000, piece_bytes=10_000)
    shards = read_prepared(folder).files["train"]
    count = len(shards)
    assert count > 2

    kept = shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(InputError, match=rf"lacks the shard train-00001-of-0000{count}\.parquet"):
        read_prepared(folder)
    pq.write_table(pa.table({"item_id": [[1]]}), shards[1])
    with pytest.raises(InputError, match="has other columns than"):
        read_prepared(folder)
    shards[1].write_bytes(kept)
    shutil.copy(shards[0], folder / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match="two sets of shards of train"):
        read_prepared(folder)
    (folder / "train-00000-of-00001.parquet").rename(folder / "more.parquet")
    with pytest.raises(InputError, match=r"more\.parquet is not the name of a shard"):
        read_prepared(folder)
    for shard in folder.glob("*.parquet"):
        shard.unlink()
    with pytest.raises(InputError, match=r"has a schema\.json but no shards"):
        read_prepared(folder)


def test_report_counts_lists_and_adds_reports():
    report = PrepareReport()
    table = pa.table({"user_0": [1, None, 2], "item_id": [[1, None], [None], [3]], "click": [[1, 0], [0], [2]]})
    report.keep("train", table, "click")
    report.drop("too short", 0)
    report.drop("no user", 2)
    for kind in ("ragged", "null", "ragged"):
        report.reject(kind)
    assert (report.lists["train"], report.items["train"], report.clicks["train"]) == (3, 4, 2)
    assert (report.without_click, report.nulls) == (1, {"user_0": 1, "item_id": 2})
    assert report.dropped == {"too short": 0, "no user": 2}
    assert report.rejected == {"ragged": 2, "null": 1}
    total = PrepareReport(read=5, nulls={"basic_0": 1})
    total.add(report)
    total.add(report)
    assert (total.read, total.lists["train"], total.nulls) == (5, 6, {"basic_0": 1, "user_0": 2, "item_id": 4})
    assert list(total.to_dict()["nulls"]) == ["basic_0", "item_id", "user_0"]
