"""Ad as a user works with it: the command line, ``load_lists``, and a processor that reads the lists."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from ad_by_hand import expected_lists, random_raw, read_csv, write_raw

from hf_rerank import ListProcessor, cli, load_lists
from hf_rerank.data import ad
from hf_rerank.data.simulation import simulate_ad
from hf_rerank.errors import InputError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return random_raw(tmp_path / "raw", 12)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def ids(lists: dict) -> set[str]:
    return {row["list_id"] for split in lists.values() for row in split}


@pytest.mark.slow
def test_prepare_ad_command(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "ad", "--raw-dir", str(raw)]
    options = ["--protocol", "public", "--history-length", "2", "--max-list-length", "4"]
    assert cli.main([*command, "--output-dir", str(tmp_path / "a"), *options]) == 0
    expected = expected_lists(raw, protocol="public", history_length=2, max_list_length=4)
    lists = load_lists(tmp_path / "a")
    assert ids(lists) == expected.keys()
    assert {row["list_id"]: row["history_cate"] for split in lists.values() for row in split} == {
        key: row["history_cate"] for key, row in expected.items()
    }
    printed = capsys.readouterr().out
    assert " sessions read; lists kept: ranker_train" in printed
    assert "lists dropped: of users with fewer than 3 impressions" in printed
    assert " items of unknown ads\n" in printed
    assert "no history" not in printed

    (raw / "behavior_log.csv").unlink()
    assert cli.main([*command, "--output-dir", str(tmp_path / "b")]) == 0
    assert f"no behavior_log.csv in {raw}: the lists have no history" in capsys.readouterr().out
    assert cli.main([*command, "--output-dir", str(tmp_path / "c"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["users"] == len({row["user"] for row in read_csv(raw / "raw_sample.csv")})
    assert set(report["stages"]) == {"ads and profiles", "read and cut raw_sample.csv", "read and write lists"}
    assert cli.main([*command, "--output-dir", str(tmp_path / "c")]) == 2
    assert "hf-rerank: " in capsys.readouterr().err


@pytest.mark.slow
def test_load_lists_prepares_once(
    raw: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = load_lists("ad", data_dir=raw)
    assert "Preparing" in caplog.text
    assert ids(first) == expected_lists(raw).keys()
    assert first.schema == ad.ad_schema(history=True)
    with monkeypatch.context() as patch:
        patch.setattr(ad, "prepare_ad", None)
        stream = load_lists("ad", data_dir=raw, streaming=True)
        assert isinstance(stream["train"], datasets.IterableDataset)
        assert [row["list_id"] for row in stream["train"]] == first["train"]["list_id"]
    public = load_lists("ad", data_dir=raw, protocol="public", max_list_length=3)
    assert ids(public) == expected_lists(raw, protocol="public").keys()
    assert max(len(row["click"]) for split in public.values() for row in split) == 3
    (raw / "behavior_log.csv").unlink()
    assert load_lists("ad", data_dir=raw).schema.history == ()


def test_load_lists_of_a_prepared_folder(raw: Path, tmp_path: Path) -> None:
    ad.prepare_ad(raw, tmp_path / "lists", progress=False)
    assert ids(load_lists("ad", data_dir=tmp_path / "lists")) == expected_lists(raw).keys()
    with pytest.raises(InputError, match="is already prepared"):
        load_lists("ad", data_dir=tmp_path / "lists", protocol="public")
    with pytest.raises(InputError, match=r"'ad' needs data_dir=.*raw_sample.csv.*simulate ad"):
        load_lists("ad")
    with pytest.raises(InputError, match="n_lists= does not belong to 'ad'"):
        load_lists("ad", data_dir=raw, n_lists=3)


def test_processor_handles_missing_values_and_shared_tables(tmp_path: Path) -> None:
    """Missing brands, prices and profiles, text, an empty history, and tables shared by history and items."""
    shown = [(user, at, ad_id, int(at == 1)) for user in (3, 4, 6, 8, 10) for at, ad_id in enumerate((11, 99, 12, 12))]
    behaviours = [(user, -60, "buy", 5, 7) for user in (3, 4, 6, 8)] + [(4, -3_600, "pv", 5, "NULL")]
    ads = [(11, 1, 2, 3, "NULL", "0"), (12, 5, 6, 7, 7, "100")]
    raw = write_raw(tmp_path / "raw", shown, ads=ads, behaviours=behaviours)
    lists = load_lists("ad", data_dir=raw)
    rows = [row for split in lists.values() for row in split]
    every = datasets.Dataset.from_list(rows)
    processor = ListProcessor.from_lists(every, schema=lists.schema)
    tensors = processor(rows)
    names = [feature.name for feature in lists.schema.items]
    (four,) = (number for number, row in enumerate(rows) if row["user"] == 4)
    brands = tensors["item_categorical"][four, :, names.index("brand")]
    assert brands[0] == brands[1] == 1  # missing
    assert brands[2] == brands[3] > 1
    history = tensors["history_categorical"][four]
    assert history[0, 2] == brands[2]  # brand 7 of the newest behaviour, by the table of the items
    assert history[1, 2] == 1
    assert history[0, 1] == tensors["item_categorical"][four, 2, names.index("cate_id")]
    (ten,) = (number for number, row in enumerate(rows) if row["user"] == 10)
    assert not tensors["history_mask"][ten].any()
    assert (tensors["user_categorical"] == 1).all()  # no profile
    assert torch.isfinite(tensors["item_dense"]).all()


@pytest.mark.slow
def test_preparing_simulated_lists_keeps_their_truth(tmp_path: Path) -> None:
    """Each shown list is one window; prepared lists have the positions and attractions of their truth."""
    simulate_ad(tmp_path / "raw", 300, seed=2, behaviours=3_000)
    report = ad.prepare_ad(tmp_path / "raw", tmp_path / "lists", max_list_length=30, progress=False)
    assert report.read == 300
    table = pq.read_table(tmp_path / "raw" / "raw_sample.csv.truth.parquet")
    truth = {row["list_id"]: row for row in table.to_pylist()}
    lists = load_lists(tmp_path / "lists")
    assert ids(lists) == expected_lists(tmp_path / "raw").keys()
    for row in (row for split in lists.values() for row in split):
        assert row["position"] == truth[row["list_id"]]["initial_position"]
        assert row["attraction"] == truth[row["list_id"]]["attraction"]


@pytest.mark.slow
def test_report_counts_are_kept_when_a_ranker_sorts_the_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate_ad(tmp_path / "raw", 300, seed=2, behaviours=300)
    command = ["prepare", "ad", "--raw-dir", str(tmp_path / "raw"), "--output-dir"]
    assert cli.main([*command, str(tmp_path / "plain")]) == 0
    assert cli.main([*command, str(tmp_path / "sorted"), "--initial-ranker", "dnn", "--quality", "poor"]) == 0
    plain, by_ranker = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("plain", "sorted"))
    assert by_ranker["counts"] == plain["counts"]
    assert f"users {plain['counts']['users']:,}" in (tmp_path / "sorted" / "README.md").read_text()
