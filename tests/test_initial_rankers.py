"""Initial rankers: the data they learn from and must not read, the order they give, and truncation."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import digests
from prepared_folders import changed, table_of, with_column

from hf_rerank import Categorical, Dense, InputError, ListProcessor, ListSchema, cli, load_lists, metrics
from hf_rerank.data.prm_public import prepare_prm_public
from hf_rerank.data.simulation import simulate_prm
from hf_rerank.errors import TrainingStopped
from hf_rerank.initial_rankers import boosting, click_model
from hf_rerank.initial_rankers.boosting import count_clicks, encode
from hf_rerank.initial_rankers.click_model import ClickModel
from hf_rerank.initial_rankers.click_through import ClickThroughCounts
from hf_rerank.initial_rankers.lambdamart import LambdaMARTRanker
from hf_rerank.initial_rankers.order import add_initial_order, positions_by_score
from hf_rerank.initial_rankers.qualities import QUALITIES
from hf_rerank.initial_rankers.ranker_train import HELD_OUT, choose_ranker_lists

RANKERS = {"lambdamart": LambdaMARTRanker, "dnn": ClickModel}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rankers") / "raw"
    simulate_prm(folder, 400, seed=3, progress=False)
    return folder


@pytest.fixture(scope="module")
def lists(raw: Path) -> Path:
    """400 simulated lists of 30 items, prepared."""
    folder = raw.with_name("lists")
    prepare_prm_public(raw, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def sorted_folders(lists: Path) -> dict[str, Path]:
    """The lists in the order of a poor ranker of each kind, truncated to 12 items."""
    folders = {}
    for ranker in RANKERS:
        folders[ranker] = lists.with_name(f"by_{ranker}")
        options: dict[str, Any] = {"quality": "poor", "max_list_length": 12, "progress": False}
        add_initial_order(lists, folders[ranker], ranker=ranker, **options)
    return folders


class TestClickThroughRates:
    def test_rates_match_written_out_arithmetic(self) -> None:
        """Parts 1 and 2 each show value 2 twice; part 1 clicks it twice, part 2 never; part 2 shows value 3 once and
        clicks it. All: 5 shown, 3 clicked, mean 0.6. Value 2: (2 + 20 * 0.6) / (4 + 20) = 14 / 24; value 3:
        (1 + 12) / 21; a value never shown: the mean."""
        counts = ClickThroughCounts(5)
        counts.add(np.array([2, 2]), np.array([True, True]), np.array([1, 1]))
        counts.add(np.array([2, 2, 3]), np.array([False, False, True]), np.array([2, 2, 2]))
        assert counts.compute_rates() == pytest.approx(np.array([0.6, 0.6, 14 / 24, 13 / 21, 0.6]), rel=1e-6)
        # For lists of part 1, only part 2 counts: 3 shown, 1 clicked, mean 1/3; value 2: (0 + 20 / 3) / (2 + 20).
        outside = counts.compute_out_of_fold()
        assert outside[1] == pytest.approx(np.array([1 / 3, 1 / 3, 20 / 66, (1 + 20 / 3) / 21, 1 / 3]), rel=1e-6)
        # For lists of part 2, only part 1 counts: both shown values were clicked.
        assert outside[2] == pytest.approx(np.ones(5))
        # Part 3 has no counts: its rates are those of all parts.
        assert outside[3] == pytest.approx(counts.compute_rates())

    def test_the_rates_of_a_list_exclude_its_own_clicks(self) -> None:
        """Each id has one user, whose lists form one part: out of fold, its clicks never affect its rows."""
        ids = [[user, user] for user in range(200)]
        clicks = [[1, 0] if user % 2 else [0, 0] for user in range(200)]
        table = pa.table({"item": ids, "price": [[0.0, 1.0]] * 200, "click": clicks, "user": list(range(200))})
        schema = ListSchema(items=[Categorical("item"), Dense("price")], group="user")
        chosen = choose_ranker_lists(datasets.Dataset(table), schema, use=200, seed=0)
        processor = ListProcessor.from_lists(chosen.train, schema=chosen.schema)
        encoded = encode(processor, chosen.train, "ranker_train")
        outside = count_clicks(encoded, processor.schema, chosen.train_parts)["item"].compute_out_of_fold()
        rows = processor.vocabularies["item"].look_up(pa.array(chosen.train["user"][:]), "item")
        own = outside[chosen.train_parts, rows]
        clicked = np.array([user % 2 for user in chosen.train["user"][:]], dtype=bool)
        for part in range(1, 10):
            of_part = chosen.train_parts == part
            assert len(np.unique(own[of_part])) == 1  # the mean of the other parts, clicked or not
            assert clicked[of_part].any()
            assert not clicked[of_part].all()

    @pytest.mark.slow
    def test_trees_are_trained_on_out_of_fold_rates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ids as above: the rates passed to LightGBM do not depend on the user's own clicks."""
        lightgbm = pytest.importorskip("lightgbm")
        users = 700
        ids = [[user, user] for user in range(users)]
        clicks = [[1, 0] if user % 2 else [0, 0] for user in range(users)]
        table = pa.table({"item": ids, "price": [[0.0, 1.0]] * users, "click": clicks, "user": list(range(users))})
        schema = ListSchema(items=[Categorical("item"), Dense("price")], group="user")
        given = []

        def take(values: np.ndarray, labels: np.ndarray, **_: Any) -> None:
            given.append((values, labels))
            raise InterruptedError

        monkeypatch.setattr(lightgbm, "Dataset", take)
        with pytest.raises(InterruptedError):
            LambdaMARTRanker.fit(datasets.Dataset(table), schema, quality="strong")
        values, labels = given[0]
        parts = choose_ranker_lists(datasets.Dataset(table), schema, use=users, seed=0).train_parts
        rates = values[:, -1].reshape(-1, 2)
        assert labels.reshape(-1, 2).sum() > 200
        for part in range(1, 10):
            assert len(np.unique(rates[parts == part])) == 1


class TestTrainingLists:
    @pytest.mark.slow
    def test_parts_keep_users_together_and_sampled_lists_are_spread_evenly(self, lists: Path) -> None:
        loaded = load_lists(lists)
        chosen = choose_ranker_lists(loaded["ranker_train"], loaded.schema, use=50, seed=0)
        available = len(loaded["ranker_train"])
        assert chosen.counts()["lists_available"] == available
        assert len(chosen.train) + len(chosen.held_out) == 50
        ids = loaded["ranker_train"]["list_id"][:]
        wanted = {ids[number * available // 50] for number in range(50)}
        assert {*chosen.train["list_id"][:], *chosen.held_out["list_id"][:]} == wanted
        assert not set(chosen.train["user_id"][:]) & set(chosen.held_out["user_id"][:])
        parts: dict[int, set[int]] = {}
        for user, part in zip(chosen.train["user_id"][:], chosen.train_parts, strict=True):
            parts.setdefault(user, set()).add(int(part))
        assert all(len(found) == 1 for found in parts.values())
        assert HELD_OUT not in chosen.train_parts

    @pytest.mark.slow
    @pytest.mark.parametrize("ranker", RANKERS)
    def test_labels_of_other_splits_positions_and_attraction_are_not_read(
        self, lists: Path, sorted_folders: dict[str, Path], tmp_path: Path, ranker: str
    ) -> None:
        def lie(split: str, table: pa.Table) -> pa.Table:
            table = with_column(table, "position", lambda row: row[::-1])
            table = with_column(table, "attraction", lambda row: 1 - row)
            return table if split == "ranker_train" else with_column(table, "click", lambda row: 1 - row)

        lied_to = changed(lists, tmp_path / "lied", lie)
        options: dict[str, Any] = {"quality": "poor", "max_list_length": 12, "progress": False}
        add_initial_order(lied_to, tmp_path / "sorted", ranker=ranker, **options)
        for split in ("train", "validation", "test"):
            honest, other = table_of(sorted_folders[ranker], split), table_of(tmp_path / "sorted", split)
            for name in ("position", "item_id", "basic_0"):
                assert honest.column(name).equals(other.column(name)), (split, name)
            assert not honest.column("click").equals(other.column("click"))
        saved = [digests(folder / "initial_ranker") for folder in (sorted_folders[ranker], tmp_path / "sorted")]
        assert saved[0] == saved[1]

    @pytest.mark.slow
    @pytest.mark.parametrize("ranker", RANKERS)
    def test_labels_of_ranker_train_change_the_order(
        self, lists: Path, sorted_folders: dict[str, Path], tmp_path: Path, ranker: str
    ) -> None:
        def flip(split: str, table: pa.Table) -> pa.Table:
            return with_column(table, "click", lambda row: 1 - row) if split == "ranker_train" else table

        flipped = changed(lists, tmp_path / "flipped", flip)
        options: dict[str, Any] = {"quality": "poor", "max_list_length": 12, "progress": False}
        add_initial_order(flipped, tmp_path / "sorted", ranker=ranker, **options)
        assert not table_of(sorted_folders[ranker], "test").equals(table_of(tmp_path / "sorted", "test"))

    def test_ranker_train_without_clicks_or_lists_is_rejected(self, lists: Path, tmp_path: Path) -> None:
        never = changed(lists, tmp_path / "never", lambda _, table: with_column(table, "click", lambda row: 0 * row))
        with pytest.raises(InputError, match=r"none of the \d+ for training has a click in 'click'"):
            add_initial_order(never, tmp_path / "sorted", ranker="dnn", progress=False)
        none = changed(
            lists, tmp_path / "none", lambda split, table: table.slice(0, 0) if split == "ranker_train" else table
        )
        with pytest.raises(InputError, match="has no ranker_train lists"):
            add_initial_order(none, tmp_path / "sorted", ranker="dnn", progress=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["never", "none"]

    @pytest.mark.slow
    def test_unsupported_label_grades_are_rejected(self, lists: Path, tmp_path: Path) -> None:
        graded = changed(
            lists, tmp_path / "graded", lambda _, table: with_column(table, "click", lambda row: 31 * row)
        )
        with pytest.raises(InputError, match="whole numbers from 0 to 30"):
            add_initial_order(graded, tmp_path / "sorted", ranker="lambdamart", quality="poor", progress=False)
        with pytest.raises(InputError, match="a log-loss takes labels from 0 to 1"):
            add_initial_order(graded, tmp_path / "sorted", ranker="dnn", quality="poor", progress=False)


class TestInitialOrder:
    def test_positions_by_score_keep_slot_order_for_ties(self) -> None:
        """Two lists: 0.1, 0.9, 0.9 (a tie keeps the slots' order) and 2, 3."""
        found = positions_by_score(np.array([0.1, 0.9, 0.9, 2.0, 3.0]), np.array([3, 2]))
        assert found.tolist() == [2, 0, 1, 1, 0]

    @pytest.mark.slow
    @pytest.mark.parametrize("ranker", RANKERS)
    def test_lists_are_sorted_by_the_saved_ranker_and_then_truncated(
        self, lists: Path, sorted_folders: dict[str, Path], ranker: str
    ) -> None:
        saved = RANKERS[ranker].from_pretrained(sorted_folders[ranker] / "initial_ranker")
        cut = lost = 0
        for split in ("train", "validation", "test"):
            before, after = table_of(lists, split), table_of(sorted_folders[ranker], split)
            scores = saved.scores(before).reshape(before.num_rows, 30)
            for row, (old, new) in enumerate(zip(before.to_pylist(), after.to_pylist(), strict=True)):
                best = sorted(range(30), key=lambda slot: (-scores[row, slot], slot))[:12]
                slots = sorted(best)
                assert new["position"] == [best.index(slot) for slot in slots]
                for name in ("item_id", "optional_3", "click", "attraction"):
                    assert new[name] == [old[name][slot] for slot in slots]
                assert (new["list_id"], new["user_1"]) == (old["list_id"], old["user_1"])
                cut += 1
                lost += not any(new["click"])
        for old, new in zip(
            table_of(lists, "ranker_train").to_pylist(),
            table_of(sorted_folders[ranker], "ranker_train").to_pylist(),
            strict=True,
        ):
            slots = [slot for slot in range(30) if old["position"][slot] < 12]
            assert new["position"] == [old["position"][slot] for slot in slots]
            assert new["item_id"] == [old["item_id"][slot] for slot in slots]
            cut += 1
            lost += not any(new["click"])
        report = json.loads((sorted_folders[ranker] / "report.json").read_text())
        assert (report["cut_lists"], report["lost_clicks"]) == (cut, lost) == (400, lost)
        assert lost > 0
        assert report["initial_ranker"]["lost_clicks"] == lost
        assert report["items"]["test"] == 12 * report["lists"]["test"]
        card = (sorted_folders[ranker] / "README.md").read_text()
        assert f"Lists are cut to 12 items in this order: 400 lists, of which {lost:,} lost all their clicks." in card
        assert "ranker_train` is not sorted by the ranker" in card
        assert "in the initial order." not in card
        loaded = load_lists(sorted_folders[ranker])
        assert (loaded.schema.position, loaded.schema.max_list_length) == ("position", 12)

    def test_reported_metrics_are_those_of_the_initial_order(self, sorted_folders: dict[str, Path]) -> None:
        report = json.loads((sorted_folders["dnn"] / "report.json").read_text())["initial_ranker"]
        test = table_of(sorted_folders["dnn"], "test").to_pylist()
        scores, labels = (np.array([row[name] for row in test], dtype=float) for name in ("position", "click"))
        measured = report["metrics"]["test"]
        # Clicks on truncated items count, as if ranked below all others.
        cut = np.array([row["click_cut"] for row in test], dtype=float)
        assert cut.shape == (len(test), 30 - scores.shape[1])
        assert cut.any()
        whole = np.concatenate([-scores, np.full(cut.shape, -100.0)], axis=1), np.concatenate([labels, cut], axis=1)
        assert measured["ndcg@10"] == pytest.approx(metrics.ndcg(*whole, k=10))
        assert (measured["truncated_lists"], measured["clicks_cut"]) == (len(test), cut.sum())
        assert measured["gauc"] == pytest.approx(metrics.grouped_auc(-scores, labels))
        assert measured["lists"] == len(test)
        # Poor: 2 % of these few lists, but at least 100.
        assert report["lists_learned_from"] + report["lists_held_out"] == 100
        assert report["lists_available"] == table_of(sorted_folders["dnn"], "ranker_train").num_rows

    def test_folder_without_positions_and_with_columns_outside_the_schema(self, tmp_path: Path) -> None:
        """``seen`` has one value per item and is truncated with the items; ``past`` has its own lengths and is not."""
        random = np.random.default_rng(0)
        folder = tmp_path / "lists"
        folder.mkdir()
        schema = ListSchema(items=[Dense("price")], list_id="id", max_list_length=4)
        schema.save(folder / "schema.json")
        for split, count in (("ranker_train", 80), ("test", 5)):
            price = random.random((count, 4)).round(3)
            columns = {
                "id": [f"{split}{row}" for row in range(count)],
                "price": price.tolist(),
                "click": (price > 0.7).astype(int).tolist(),
                "seen": [[f"{value}" for value in row] for row in price],
                "past": [[1, 2, 3][: row % 4] for row in range(count)],
            }
            pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
        report = add_initial_order(folder, tmp_path / "sorted", max_list_length=2, quality="poor", progress=False)
        lost = without = 0
        for split in ("ranker_train", "test"):
            before = table_of(folder, split).column("click").to_pylist()
            after = table_of(tmp_path / "sorted", split).column("click").to_pylist()
            lost += sum(any(old) and not any(new) for old, new in zip(before, after, strict=True))
            without += sum(not any(old) for old in before)
        assert (report.cut_lists, report.lost_clicks, report.without_click) == (85, lost, lost + without)
        assert min(lost, without) > 0
        for old, new in zip(
            table_of(folder, "test").to_pylist(), table_of(tmp_path / "sorted", "test").to_pylist(), strict=True
        ):
            assert new["past"] == old["past"]
            assert new["seen"] == [f"{value}" for value in new["price"]]
            assert sorted(new["position"]) == [0, 1]
            assert set(new["price"]) <= set(old["price"])
        # The order of ranker_train is its slot order.
        assert table_of(tmp_path / "sorted", "ranker_train")["position"].to_pylist() == [[0, 1]] * 80
        assert table_of(tmp_path / "sorted", "ranker_train")["price"].to_pylist() == [
            row[:2] for row in table_of(folder, "ranker_train")["price"].to_pylist()
        ]

    @pytest.mark.slow
    def test_better_rankers_give_better_orders(self, tmp_path: Path) -> None:
        simulate_prm(tmp_path / "raw", 6_000, seed=2, progress=False)
        prepare_prm_public(tmp_path / "raw", tmp_path / "lists", progress=False)
        loaded, test = load_lists(tmp_path / "lists"), table_of(tmp_path / "lists", "test")
        labels = np.array(test.column("click").to_pylist())
        for name, ranker in RANKERS.items():
            found = []
            for quality in QUALITIES:
                fitted = ranker.fit(loaded["ranker_train"], loaded.schema, quality=quality)
                found.append(metrics.ndcg(fitted.scores(test).reshape(labels.shape), labels, k=10))
            assert found[0] < found[1] < found[2], (name, found)
            # A random order reaches about 0.186 on these lists.
            assert found[0] > 0.2


class TestSavingAndReproducibility:
    @pytest.mark.slow
    @pytest.mark.parametrize("ranker", RANKERS)
    def test_the_same_call_gives_the_same_bytes_and_another_seed_does_not(
        self, lists: Path, sorted_folders: dict[str, Path], tmp_path: Path, ranker: str
    ) -> None:
        options: dict[str, Any] = {"quality": "poor", "max_list_length": 12, "progress": False}
        add_initial_order(lists, tmp_path / "again", ranker=ranker, **options)
        assert digests(tmp_path / "again") == digests(sorted_folders[ranker])
        add_initial_order(lists, tmp_path / "other", ranker=ranker, seed=1, **options)
        assert not table_of(tmp_path / "other", "test").equals(table_of(sorted_folders[ranker], "test"))

    @pytest.mark.slow
    @pytest.mark.parametrize("ranker", RANKERS)
    def test_a_reloaded_ranker_gives_identical_scores(self, lists: Path, tmp_path: Path, ranker: str) -> None:
        loaded = load_lists(lists)
        fitted = RANKERS[ranker].fit(loaded["ranker_train"], loaded.schema, quality="poor")
        fitted.save_pretrained(tmp_path / "ranker")
        again = RANKERS[ranker].from_pretrained(tmp_path / "ranker")
        test = table_of(lists, "test")
        assert np.array_equal(fitted.scores(test), again.scores(test))
        assert again.settings == fitted.settings
        assert not list((tmp_path / "ranker").glob("*.bin"))
        other = RANKERS["dnn" if ranker == "lambdamart" else "lambdamart"]
        with pytest.raises(InputError, match=r"describes|has no lambdamart\.txt"):
            other.from_pretrained(tmp_path / "ranker")

    @pytest.mark.parametrize("name", ["lambdamart.txt", "click_through.safetensors", "ranker.json"])
    def test_a_changed_byte_is_detected(self, sorted_folders: dict[str, Path], tmp_path: Path, name: str) -> None:
        shutil.copytree(sorted_folders["lambdamart"] / "initial_ranker", tmp_path / "ranker")
        data = bytearray((tmp_path / "ranker" / name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "ranker" / name).write_bytes(bytes(data))
        with pytest.raises(InputError, match=r"damaged or changed"):
            LambdaMARTRanker.from_pretrained(tmp_path / "ranker")

    @pytest.mark.slow
    def test_after_a_failure_the_next_call_gives_the_same_result(
        self, lists: Path, sorted_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise OSError("the disk is full")

        options: dict[str, Any] = {"ranker": "dnn", "quality": "poor", "max_list_length": 12, "progress": False}
        with monkeypatch.context() as broken:
            broken.setattr(ClickModel, "save_pretrained", fail)
            with pytest.raises(OSError, match="the disk is full"):
                add_initial_order(lists, tmp_path / "sorted", **options)
        assert not (tmp_path / "sorted").exists()
        assert (tmp_path / "sorted.partial").is_dir()
        with pytest.raises(InputError, match="was started with quality 'poor', but now it is 'strong'"):
            add_initial_order(lists, tmp_path / "sorted", **{**options, "quality": "strong"})
        add_initial_order(lists, tmp_path / "sorted", **options)
        assert digests(tmp_path / "sorted") == digests(sorted_folders["dnn"])
        assert not (tmp_path / "sorted.partial").exists()
        with pytest.raises(InputError, match="exists and is not an empty folder"):
            add_initial_order(lists, tmp_path / "sorted", **options)

    def test_fitting_leaves_the_global_random_state_unchanged(self, lists: Path) -> None:
        import torch

        loaded = load_lists(lists)
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        ClickModel.fit(loaded["ranker_train"], loaded.schema, quality="poor")
        assert torch.equal(torch.rand(3), expected)

    def test_with_equal_losses_the_dnn_of_the_earliest_epoch_is_kept(
        self, lists: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That is the epoch in its settings."""
        after_epoch = []

        def as_good(model: Any, held_out: Any) -> float:
            after_epoch.append({name: value.clone() for name, value in model.state_dict().items()})
            return 0.5

        monkeypatch.setattr(click_model, "_mean_loss", as_good)
        loaded = load_lists(lists)
        fitted = ClickModel.fit(loaded["ranker_train"], loaded.schema, quality="poor")
        assert len(after_epoch) == 2
        assert fitted.settings["epochs"] == 1
        for name, value in fitted.model.state_dict().items():
            assert value.equal(after_epoch[0][name])

    def test_a_loss_that_is_not_finite_on_held_out_lists_stops_training(
        self, lists: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(click_model, "_mean_loss", lambda *_: float("nan"))
        loaded = load_lists(lists)
        with pytest.raises(TrainingStopped, match="not finite on the held-out lists"):
            ClickModel.fit(loaded["ranker_train"], loaded.schema, quality="poor")

    def test_a_list_too_long_for_lightgbm_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(boosting, "LONGEST_LIST", 3)
        rows = [
            {"id": f"list {row}", "price": [0.1 * slot for slot in range(3 + (row == 41))], "click": [1, 0, 0]}
            for row in range(60)
        ]
        rows[41]["click"].append(0)
        schema = ListSchema(items=[Dense("price")], list_id="id")
        with pytest.raises(InputError, match="list list 41 of ranker_train has 4 items: lambdamart accepts at most"):
            LambdaMARTRanker.fit(datasets.Dataset.from_list(rows), schema)


class TestCommands:
    @pytest.mark.slow
    def test_prepare_sorts_lists_before_truncating_them(
        self, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["prepare", "prm_public", "--raw-dir", str(raw), "--output-dir", str(tmp_path / "lists")]
        assert cli.main([*command, "--initial-ranker", "dnn", "--quality", "poor"]) == 0
        assert "prepared lists in" in capsys.readouterr().out
        report = json.loads((tmp_path / "lists" / "report.json").read_text())
        assert report["initial_ranker"]["quality"] == "poor"
        assert report["read"] == 400
        assert load_lists(tmp_path / "lists").schema.max_list_length == 30
        assert [path.name for path in tmp_path.iterdir()] == ["lists"]

    @pytest.mark.slow
    def test_prepare_reuses_unsorted_lists_only_for_the_same_options(
        self, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = ["prepare", "prm_public", "--raw-dir", str(raw), "--output-dir", str(tmp_path / "lists")]
        command += ["--initial-ranker", "dnn", "--quality", "poor"]

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as stopped:
            stopped.setattr(ClickModel, "fit", stop)
            assert cli.main(command) == 130
        assert [path.name for path in tmp_path.iterdir()] == ["lists.unsorted"]
        assert cli.main([*command, "--on-error", "skip"]) == 2
        assert "lists.unsorted is left from a call with other on_error: use the same" in capsys.readouterr().err
        with monkeypatch.context() as once:
            once.setattr("hf_rerank.data.prm_public.prepare_prm_public", stop)
            assert cli.main(command) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["lists"]

    def test_prepare_does_not_reuse_unsorted_lists_of_other_raw_files(
        self, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The raw file was corrected in between: lists of the old one must not be used."""
        mine = shutil.copytree(raw, tmp_path / "raw")
        command = ["prepare", "prm_public", "--raw-dir", str(mine), "--output-dir", str(tmp_path / "lists")]
        command += ["--initial-ranker", "dnn", "--quality", "poor"]

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as stopped:
            stopped.setattr(ClickModel, "fit", stop)
            assert cli.main(command) == 130
        file = next(mine.glob("*.part1"))
        file.write_bytes(file.read_bytes().replace(b"[", b"[ ", 1))
        assert cli.main(command) == 2
        refused = "lists.unsorted is left from a call with other raw files (sizes, times, inodes): use the same"
        assert refused in capsys.readouterr().err

    @pytest.mark.slow
    def test_initial_rank_command(self, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["initial-rank", "--data", str(lists), "--output-dir", str(tmp_path / "sorted")]
        command += ["--quality", "poor", "--max-list-length", "10", "--max-train-lists", "90"]
        assert cli.main(command) == 0
        printed = capsys.readouterr().out
        assert "initial order, test" in printed
        assert "held out" in printed
        assert "400 lists cut to 10 items" in printed
        report = json.loads((tmp_path / "sorted" / "report.json").read_text())["initial_ranker"]
        assert report["lists_learned_from"] + report["lists_held_out"] == 90

    @pytest.mark.slow
    def test_evaluate_uses_the_position_column_of_the_lists(
        self, sorted_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The model was trained without a position column; the initial order is still that of the lists' column."""
        import torch

        from hf_rerank import DNNConfig, DNNForReranking, Reranker

        loaded = load_lists(sorted_folders["dnn"])
        processor = ListProcessor.from_lists(loaded["train"], schema=loaded.schema.replace(position=None))
        torch.manual_seed(0)
        model = DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[4]))
        Reranker(processor, model).save_pretrained(tmp_path / "run")
        command = [
            "evaluate",
            "--model",
            str(tmp_path / "run"),
            "--data",
            str(sorted_folders["dnn"]),
            "--max-steps",
            "0",
        ]
        assert cli.main([*command, "--json", str(tmp_path / "test.json")]) == 0
        results = json.loads((tmp_path / "test.json").read_text())
        report = json.loads((sorted_folders["dnn"] / "report.json").read_text())["initial_ranker"]
        assert results["rows"]["initial"] == report["metrics"]["test"]
        assert results["initial_ranker"] == report

    @pytest.mark.slow
    def test_training_results_contain_the_initial_ranker(
        self, sorted_folders: dict[str, Path], tmp_path: Path
    ) -> None:
        command = [
            "train",
            "--model",
            "dnn",
            "--data",
            str(sorted_folders["dnn"]),
            "--output-dir",
            str(tmp_path / "run"),
        ]
        command += ["--num_train_epochs", "1", "--disable_tqdm", "true", "--set", "hidden_sizes=[4]"]
        assert cli.main(command) == 0
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        report = json.loads((sorted_folders["dnn"] / "report.json").read_text())["initial_ranker"]
        assert results["initial_ranker"] == report

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["initial-rank", "--data", "LISTS", "--output-dir", "OUT", "--ranker", "lambdamat"], "did you mean"),
            (["initial-rank", "--data", "LISTS", "--output-dir", "OUT", "--max-list-length", "0"], "at least 1"),
            (
                ["initial-rank", "--data", "OUT", "--output-dir", "OUT2", "--ranker", "dnn"],
                "not a folder of prepared lists",
            ),
            (
                ["initial-rank", "--data", "LISTS", "--output-dir", "LISTS", "--ranker", "dnn"],
                "overlaps the input",
            ),
            (
                ["prepare", "prm_public", "--raw-dir", "RAW", "--output-dir", "OUT", "--quality", "poor"],
                "--quality belongs to --initial-ranker",
            ),
            (
                ["prepare", "prm_public", "--raw-dir", "RAW", "--output-dir", "LISTS", "--initial-ranker", "dnn"],
                "is not an empty folder",
            ),
        ],
    )
    def test_wrong_commands_are_rejected(
        self,
        raw: Path,
        lists: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        message: str,
    ) -> None:
        places = {"LISTS": str(lists), "RAW": str(raw), "OUT": str(tmp_path / "out"), "OUT2": str(tmp_path / "out2")}
        assert cli.main([places.get(argument, argument) for argument in arguments]) == 2
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["prepare", "initial-rank"])
    def test_missing_lightgbm_is_reported_with_the_install_command(
        self,
        raw: Path,
        lists: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        command: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, "lightgbm", None)
        arguments = {
            "prepare": ["prepare", "prm_public", "--raw-dir", str(raw), "--initial-ranker", "lambdamart"],
            "initial-rank": ["initial-rank", "--data", str(lists)],
        }[command]
        assert cli.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
        assert 'pip install "hf-rerank[lightgbm]"' in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
