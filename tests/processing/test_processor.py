"""The processor: tensors written out by hand, statistics against numpy, files that are equal to the bit or refused."""

import hashlib
import json
import math
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import load_file, save_file

from hf_rerank.errors import InputError
from hf_rerank.processing import EncodingReport, ListProcessor
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector
from hf_rerank.validation import Lists

SCHEMA = ListSchema(
    items=[
        Categorical("item_id"),
        Categorical("brand", hash_size=6),
        Dense("price", scale="log", missing="indicator"),
        Dense("score"),
        Dense("raw", scale="none"),
        Vector("text", dim=2),
    ],
    user=[Categorical("gender", size=10, min_count=1), Dense("age")],
    history=[Categorical("seen", shares="item_id"), Dense("minutes", scale="none")],
    label="click",
    position="place",
    weight="weight",
    list_id="list_id",
    max_list_length=4,
    max_history_length=3,
)
ROWS = [
    {
        "list_id": "a",
        "item_id": [50, 70, 11],
        "brand": ["x", "y", None],
        "price": [math.e - 1, None, 0.0],  # after the log 1, -, 0
        "score": [1.0, 3.0, 2.0],
        "raw": [4.0, None, 8.0],
        "text": [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]],
        "gender": "m",
        "age": 20,
        "seen": [70, 90],
        "minutes": [1.0, 5.0],
        "click": [1, 0, 0],
        "place": [2, 0, 1],
        "weight": [1.0, 0.5, 2.0],
    },
    {
        "list_id": "b",
        "item_id": [90],
        "brand": ["x"],
        "price": [math.e**2 - 1],  # after the log 2
        "score": [6.0],
        "raw": [0.0],
        "text": [[3.5, 4.0]],
        "gender": "f",
        "age": 40,
        "seen": [],
        "minutes": [],
        "click": [1],
        "place": [0],
        "weight": [3.0],
    },
    {
        "list_id": "c",
        "item_id": [50],
        "brand": [None],
        "price": [None],
        "score": [None],
        "raw": [None],
        "text": [[4.5, 5.0]],
        "gender": None,
        "age": None,
        "seen": [None, 50, 70, 90],
        "minutes": [None, 7.0, 8.0, 9.0],
        "click": [0],
        "place": [0],
        "weight": [1.0],
    },
]
TRAINING = pa.Table.from_pylist(ROWS)


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(TRAINING, schema=SCHEMA)


def brand(text: str) -> int:
    return 2 + int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 4


def test_fitting_learns_vocabularies_scales_and_sizes(processor: ListProcessor) -> None:
    # Items and history together: 50 three times, 70 three, 90 three, 11 once (too rare). Gender: each once is enough.
    assert processor.vocabularies["item_id"].values.tolist() == [50, 70, 90]
    assert processor.vocabularies["gender"].values == ["f", "m"]
    assert {name: value for name, value in processor.fit_report.items() if name != "training"} == {  # test_drift.py
        "lists": 3,
        "vocabularies": {
            "item_id": {"values": 3, "rare": 1, "left_out": 0},
            "gender": {"values": 2, "rare": 0, "left_out": 0},
        },
    }
    scales = {name: (scale.mean, scale.std) for name, scale in processor.scales.items()}
    assert scales == {
        "price": pytest.approx((1.0, math.sqrt(2 / 3))),  # of 1, 0, 2
        "score": pytest.approx((3.0, math.sqrt(3.5))),  # of 1, 3, 2, 6
        "raw": pytest.approx((4.0, math.sqrt(32 / 3))),  # of 4, 8, 0
        "age": pytest.approx((30.0, 10.0)),
        "minutes": pytest.approx((6.0, math.sqrt(8.0))),  # of 1, 5, 7, 8, 9
    }
    sizes = {feature.name: feature.size for feature in processor.schema.features("items", Categorical)}
    assert sizes == {"item_id": 5, "brand": None}
    assert processor.schema.user[0].size == 10  # as asked for, although 4 would suffice
    assert processor.schema.history[0] == Categorical("seen", size=5, shares="item_id")
    assert SCHEMA.fitted is None
    assert processor.schema.fitted is not None


def test_tensors_equal_those_worked_out_by_hand(processor: ListProcessor) -> None:
    expected = {
        "item_categorical": [
            [[2, brand("x")], [3, brand("y")], [1, 1]],
            [[4, brand("x")], [0, 0], [0, 0]],
            [[2, 1], [0, 0], [0, 0]],
        ],
        "item_dense": [  # price, price missing, score, raw
            [
                [0.0, 0.0, -2 / math.sqrt(3.5), 4.0],
                [0.0, 1.0, 0.0, 4.0],
                [-1 / math.sqrt(2 / 3), 0.0, -1 / math.sqrt(3.5), 8.0],
            ],
            [[1 / math.sqrt(2 / 3), 0.0, 3 / math.sqrt(3.5), 0.0], [0, 0, 0, 0], [0, 0, 0, 0]],
            [[0.0, 1.0, 0.0, 4.0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
        "item_vectors": [
            [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]],
            [[3.5, 4.0], [0, 0], [0, 0]],
            [[4.5, 5.0], [0, 0], [0, 0]],
        ],
        "user_categorical": [[3], [2], [1]],
        "user_dense": [[-1.0], [1.0], [0.0]],
        "history_categorical": [[[3], [4], [0]], [[0], [0], [0]], [[1], [2], [3]]],  # the fourth is too old
        "history_dense": [[[1.0], [5.0], [0.0]], [[0.0], [0.0], [0.0]], [[6.0], [7.0], [8.0]]],
        "history_mask": [[True, True, False], [False, False, False], [True, True, True]],
        "mask": [[True, True, True], [True, False, False], [True, False, False]],
        "position_ids": [[2, 0, 1], [0, 1, 2], [0, 1, 2]],
        "labels": [[1, 0, 0], [1, -100, -100], [0, -100, -100]],
        "weights": [[1.0, 0.5, 2.0], [3.0, 0.0, 0.0], [1.0, 0.0, 0.0]],
    }
    encoded = processor(ROWS, with_labels=True)
    assert set(encoded) == set(expected)
    for name, values in expected.items():
        integers = name == "position_ids" or name.endswith("_categorical")
        dtype = torch.bool if name.endswith("mask") else torch.int64 if integers else torch.float32
        assert encoded[name].dtype == dtype, name
        torch.testing.assert_close(encoded[name], torch.tensor(values, dtype=dtype), rtol=1e-6, atol=1e-6, msg=name)
    arrays = processor(TRAINING, return_tensors="np")
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    np.testing.assert_array_equal(arrays["item_dense"], encoded["item_dense"].numpy())


def test_tensors_are_only_those_of_the_schema() -> None:
    schema = ListSchema(items=[Dense("price")], attraction="truth")
    fitted = ListProcessor.from_lists(pa.table({"price": [[1.0, 3.0]]}), schema=schema)
    encoded = fitted([{"price": [3.0, 1.0]}, {"price": [2.0]}], return_tensors="np")
    assert {name: array.shape for name, array in encoded.items()} == {
        "item_categorical": (2, 2, 0),
        "item_dense": (2, 2, 1),
        "mask": (2, 2),
        "position_ids": (2, 2),
    }
    assert encoded["item_dense"].tolist() == [[[1.0], [-1.0]], [[0.0], [0.0]]]
    with_truth = [{"price": [3.0], "truth": [0.25]}]
    assert "attraction" not in fitted(with_truth)  # a model receives everything that a call returns
    assert fitted.encode(Lists.from_rows(with_truth, schema))[0].pad()["attraction"].tolist() == [[0.25]]
    with pytest.raises(InputError, match="no column 'click'"):
        fitted([{"price": [3.0]}], with_labels=True)


def test_encoding_does_not_depend_on_the_batch(processor: ListProcessor) -> None:
    whole = processor(ROWS)
    for number, one in enumerate(ROWS):
        alone = processor([one])
        items, seen = len(one["item_id"]), min(len(one["seen"]), 3)
        for name, values in alone.items():
            length = None if name.startswith("user") else seen if name.startswith("history") else items
            torch.testing.assert_close(values[0, :length], whole[name][number, :length], rtol=0, atol=0)


def test_statistics_do_not_depend_on_the_batch_size() -> None:
    draw = np.random.default_rng(5)
    lengths = draw.integers(1, 6, 57)
    price = [draw.normal(1e4, 3.0, length).tolist() for length in lengths]
    stock = [[None if draw.random() < 0.3 else float(value) for value in draw.lognormal(2, 2, n)] for n in lengths]
    ids = [draw.integers(0, 40, length).tolist() for length in lengths]
    table = pa.table({"id": ids, "price": price, "stock": stock, "same": [[7.1] * length for length in lengths]})
    schema = ListSchema(items=[Categorical("id"), Dense("price"), Dense("stock", scale="log"), Dense("same")])
    prices = np.concatenate(price)
    stocks = np.log1p([value for values in stock for value in values if value is not None])
    values, counts = np.unique(np.concatenate(ids), return_counts=True)
    fingerprints = set()
    for batch_size in (1, 2, 13, 1000):
        fitted = ListProcessor.from_lists(Dataset(table), schema=schema, batch_size=batch_size)
        for name, numbers in (("price", prices), ("stock", stocks)):
            assert fitted.scales[name].mean == pytest.approx(numbers.mean(), rel=1e-8)
            assert fitted.scales[name].std == pytest.approx(numbers.std(), rel=1e-8)
        fingerprints.add(fitted.schema.fingerprint)
        assert fitted.scales["same"].std == 0.0  # a constant column becomes 0, not noise
        assert fitted.vocabularies["id"].values.tolist() == values[counts >= 2].tolist()
        encoded = fitted(table, return_tensors="np")
        assert abs(encoded["item_dense"][..., 2]).max() < 1e-6
    assert len(fingerprints) == 1


def test_columns_without_learned_values_are_encoded() -> None:
    schema = ListSchema(items=[Categorical("rare"), Categorical("absent"), Dense("price", missing="indicator")])
    table = pa.table({"rare": [["a", "b"]], "absent": [[None, None]], "price": [[None, None]]})
    fitted = ListProcessor.from_lists(table, schema=schema)
    assert [feature.size for feature in fitted.schema.features("items", Categorical)] == [3, 3]
    assert fitted.fit_report["vocabularies"]["rare"] == {"values": 0, "rare": 2, "left_out": 0}
    encoded = fitted([{"rare": ["a"], "absent": ["z"], "price": [5.0]}])
    assert encoded["item_categorical"].tolist() == [[[1, 1]]]
    assert encoded["item_dense"].tolist() == [[[0.0, 0.0]]]  # no weight was trained on any value


def test_shared_table_has_the_size_of_its_owner() -> None:
    schema = ListSchema(items=[Categorical("id", size=50)], history=[Categorical("seen", shares="id")])
    fitted = ListProcessor.from_lists(pa.table({"id": [[1, 1]], "seen": [[2, 2]]}), schema=schema)
    assert (fitted.schema.items[0].size, fitted.schema.history[0].size) == (50, 50)


LONG = [
    {"id": [10, 11, 12, 13], "place": [3, 0, 2, 1], "click": [1, 0, 0, 1], "list_id": "long"},
    {"id": [14], "place": [0], "click": [1], "list_id": "short"},
]


def test_truncated_lists_keep_the_first_positions() -> None:
    schema = ListSchema(items=[Categorical("id", min_count=1)], position="place", list_id="list_id", max_list_length=2)
    fitted = ListProcessor.from_lists(pa.Table.from_pylist(LONG), schema=schema)
    ragged, report = fitted.encode(Lists.from_rows(LONG, fitted.schema), truncate=True)
    encoded = ragged.pad()
    assert encoded["item_categorical"].tolist() == [[[3], [5]], [[6], [0]]]  # 11 and 13, in the order of their slots
    assert encoded["position_ids"].tolist() == [[0, 1], [0, 1]]
    assert encoded["labels"].tolist() == [[0, 1], [1, -100]]
    assert (report.lists, report.cut_lists, report.cut_items) == (2, 1, 2)
    with pytest.raises(InputError, match=r"list long has 4 items.*max_list_length=2.*truncate=True"):
        fitted(LONG)
    assert fitted(LONG, truncate=True)["mask"].tolist() == [[True, True], [True, False]]


def test_truncated_histories_keep_the_newest_items(processor: ListProcessor) -> None:
    """Newest first: of 70, 90, 50, 11, 90 and 50, 70, 90, 70 the first three stay, of a shorter one all."""
    histories = [[70, 90, 50, 11, 90], [90, 70], [50, 70, 90, 70]]
    rows = [{**ROWS[1], "seen": seen, "minutes": [float(i) for i in range(len(seen))]} for seen in histories]
    ragged, report = processor.encode(Lists.from_rows(rows, processor.schema))
    arrays = ragged.pad()
    # Rows of the table: 50 -> 2, 70 -> 3, 90 -> 4
    assert arrays["history_categorical"][..., 0].tolist() == [[3, 4, 2], [4, 3, 0], [2, 3, 4]]
    assert arrays["history_dense"][..., 0].tolist() == [[0, 1, 2], [0, 1, 0], [0, 1, 2]]
    assert (report.cut_histories, report.cut_history_items, report.cut_lists) == (2, 2 + 1, 0)


def test_batch_of_empty_histories_has_one_padding_entry(processor: ListProcessor) -> None:
    """So that models never receive an axis of length 0."""
    rows = [{**ROWS[1], "seen": [], "minutes": []}] * 2
    for encoded in (processor(rows), processor(pa.Table.from_pylist(rows))):
        assert encoded["history_mask"].tolist() == [[False], [False]]
        assert encoded["history_categorical"].tolist() == [[[0]], [[0]]]
        assert encoded["history_dense"].tolist() == [[[0.0]], [[0.0]]]


def test_reports_count_values_and_add_up(processor: ListProcessor) -> None:
    columns = ("item_id", "brand", "price", "score", "raw", "text", "gender", "age", "seen", "minutes")
    _, whole = processor.encode(Lists.from_rows(ROWS, processor.schema))
    assert whole == EncodingReport(
        lists=3,
        cut_histories=1,  # of list c, whose fourth item is too old
        cut_history_items=1,
        values=dict(zip(columns, (5, 5, 5, 5, 5, 5, 3, 3, 6, 6), strict=True)),
        unknown={"item_id": 1, "brand": 2, "gender": 1, "seen": 1},
        missing={"brand": 2, "price": 2, "score": 1, "raw": 2, "gender": 1, "age": 1, "seen": 1, "minutes": 1},
    )
    assert whole.unknown_share() == pytest.approx({"item_id": 0.2, "brand": 0.4, "gender": 1 / 3, "seen": 1 / 6})
    added = EncodingReport()
    for one in ROWS:
        added.add(processor.encode(Lists.from_rows([one], processor.schema))[1])
    assert added == whole
    added.add(EncodingReport(lists=1, cut_lists=1, cut_items=5, values={"new": 2}, unknown={"new": 1}))
    assert (added.lists, added.cut_lists, added.cut_items) == (4, 1, 5)
    added.add(EncodingReport(cut_histories=2, cut_history_items=7))
    assert (added.cut_histories, added.cut_history_items) == (1 + 2, 1 + 7)
    assert (added.values["new"], added.unknown["new"]) == (2, 1)
    assert json.loads(json.dumps(whole.to_dict()))["lists"] == 3
    assert EncodingReport(values={"x": 0}, unknown={"x": 0}).unknown_share() == {"x": 0.0}


def test_other_types_or_columns_than_in_training_are_refused(processor: ListProcessor) -> None:
    with pytest.raises(InputError, match="'item_id' holds text, but the processor was fitted on integers"):
        processor([{**ROWS[1], "item_id": ["90"]}])
    with pytest.raises(InputError, match=r"no column 'brand'; .*did you mean 'brands'"):
        processor([{"brands" if name == "brand" else name: value for name, value in ROWS[1].items()}])


@pytest.mark.parametrize("lists", [TRAINING.slice(0, 0), Dataset(TRAINING.slice(0, 0))])
def test_fitting_without_lists_is_refused(lists: object) -> None:
    with pytest.raises(InputError, match="no lists to learn from"):
        ListProcessor.from_lists(lists, schema=SCHEMA)


@pytest.fixture
def saved(processor: ListProcessor, tmp_path: Path) -> Path:
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def assert_same(loaded: ListProcessor, processor: ListProcessor) -> None:
    assert isinstance(loaded, ListProcessor)
    assert loaded.schema == processor.schema
    assert loaded.schema.fingerprint == processor.schema.fingerprint
    assert loaded.fit_report == processor.fit_report
    assert loaded.scales == processor.scales
    before, after = processor(ROWS, with_labels=True), loaded(ROWS, with_labels=True)
    assert set(before) == set(after)
    for name in before:
        assert before[name].numpy().tobytes() == after[name].numpy().tobytes()


def test_loaded_processor_equals_the_saved_one(processor: ListProcessor, saved: Path, tmp_path: Path) -> None:
    loaded = ListProcessor.from_pretrained(saved)
    assert_same(loaded, processor)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("preprocessor_config.json", "vocabularies.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_auto_feature_extractor_loads_the_processor(processor: ListProcessor, saved: Path) -> None:
    from transformers import AutoFeatureExtractor

    import hf_rerank.models  # noqa: F401

    assert_same(AutoFeatureExtractor.from_pretrained(saved), processor)


def test_files_are_json_and_safetensors(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["preprocessor_config.json", "vocabularies.safetensors"]
    config = json.loads((saved / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert (config["feature_extractor_type"], config["format_version"]) == ("ListProcessor", 1)
    content = (saved / "vocabularies.safetensors").read_bytes()
    (header_length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + header_length])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert len(content) == 8 + header_length + end
    assert set(header) - {"__metadata__"} == {"integers/item_id", "text/gender", "text_lengths/gender"}


def test_processor_without_vocabularies_is_saved_and_loaded(tmp_path: Path) -> None:
    schema = ListSchema(items=[Categorical("id", hash_size=10)])
    ListProcessor.from_lists(pa.table({"id": [[1]]}), schema=schema).save_pretrained(tmp_path)
    assert ListProcessor.from_pretrained(tmp_path).schema.items[0].hash_size == 10


def test_unusual_text_values_survive_saving(tmp_path: Path) -> None:
    texts = ["", "a\x00b", "商品", "naïve", "nai\u0308ve", "🛒", " "]
    schema = ListSchema(items=[Categorical("t", min_count=1), Categorical("rare")])
    table = pa.table({"t": [texts], "rare": [[str(number) for number in range(7)]]})
    ListProcessor.from_lists(table, schema=schema).save_pretrained(tmp_path)
    loaded = ListProcessor.from_pretrained(tmp_path)
    expected = [[2 + sorted(texts).index(text), 1] for text in texts]
    assert loaded(table)["item_categorical"].tolist() == [expected]


def test_wrong_folders_and_unknown_arguments_are_refused(processor: ListProcessor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: expected a folder"):
        processor.save_pretrained(tmp_path / "file")
    with pytest.raises(InputError, match="unknown argument 'revison'"):
        ListProcessor.from_pretrained(tmp_path, revison="main")
    with pytest.raises(InputError, match="neither a folder here nor a repository"):
        ListProcessor.from_pretrained(tmp_path / "nowhere" / "at" / "all")


CONFIG, TABLES = "preprocessor_config.json", "vocabularies.safetensors"


def config_with(**changes: object):
    def damage(folder: Path) -> None:
        config = {**json.loads((folder / CONFIG).read_text()), **changes}
        (folder / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))

    return damage


def tables_with(**changes: object):
    def damage(folder: Path) -> None:
        arrays = {**load_file(folder / TABLES), **{name.replace("__", "/"): value for name, value in changes.items()}}
        save_file({name: value for name, value in arrays.items() if value is not ...}, folder / TABLES)

    return damage


def cut(name: str, keep: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def edited(name: str, old: bytes, new: bytes):
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        assert content.count(old) >= 1
        (folder / name).write_bytes(content.replace(old, new))

    return damage


DAMAGE = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), r"has no preprocessor_config\.json \(it holds vocab"),
    "no vocabularies": (lambda folder: (folder / TABLES).unlink(), r"has no vocabularies\.safetensors"),
    "cut config": (cut(CONFIG, 200), r"preprocessor_config\.json is not valid JSON.*save or download"),
    "empty config": (cut(CONFIG, 0), r"preprocessor_config\.json is not valid JSON.*save or download"),
    "vocabularies without the last byte": (cut(TABLES, -1), r"vocabularies\.safetensors is damaged.*save or download"),
    "cut vocabularies": (
        cut(TABLES, 150),
        r"header of .*vocabularies\.safetensors is damaged: it claims to have .*save or download",
    ),
    "empty vocabularies": (
        cut(TABLES, 0),
        r"header of .*vocabularies\.safetensors is damaged: it claims to have .*save or download",
    ),
    "config is a list": (lambda folder: (folder / CONFIG).write_text("[]"), "holds a list: expected a JSON object"),
    "newer format": (config_with(format_version=2), r"format_version 2, but this library reads 1: install a newer"),
    "no format": (config_with(format_version=...), "format_version None"),
    "unknown key": (config_with(scale={}), "unknown key 'scale'; did you mean 'scales'"),
    "no schema": (config_with(schema=...), "lacks 'schema'"),
    "no scales": (config_with(scales=...), "lacks 'scales'"),
    "an unreadable scale": (
        config_with(scales={"price": {"mean": 1.0}}),
        "scale .* for 'price': expected mean and std",
    ),
    "missing scale": (config_with(scales={}), "no scale for 'price' of the kind that its schema requires"),
    "another scale": (edited(CONFIG, b'"mean": 30.0', b'"mean": 31.0'), "not those that the schema was saved with"),
    "another vocabulary": (tables_with(integers__item_id=np.array([50, 70, 91])), "not those that the schema"),
    "missing vocabulary": (tables_with(integers__item_id=...), "no vocabulary for 'item_id'"),
    "half a vocabulary": (tables_with(text_lengths__gender=...), "no vocabulary for 'gender'"),
    "vocabulary of floats": (tables_with(integers__item_id=np.array([50.0, 70.0])), r"float64 \[2\].*expected int64"),
    "vocabulary of two axes": (
        tables_with(integers__item_id=np.array([[50], [70]])),
        r"int64 \[2, 1\].*expected int64",
    ),
    "text that is not UTF-8": (
        tables_with(text__gender=np.array([255, 254], dtype=np.uint8)),
        "damaged vocabulary of 'gender'",
    ),
    "other text": (tables_with(text__gender=np.frombuffer(b"fx", dtype=np.uint8)), "not those that the schema"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_files_are_refused(saved: Path, damage, message: str) -> None:
    damage(saved)
    with pytest.raises(InputError, match=message):
        ListProcessor.from_pretrained(saved)


@pytest.mark.slow
def test_flipped_bits_of_the_vocabularies_are_detected(processor: ListProcessor, saved: Path) -> None:
    """A flipped bit is refused, or has no effect (in a blank at the end of the header)."""
    content = (saved / TABLES).read_bytes()
    flips = range(0, 8 * len(content), 5)  # every place in a byte, most bytes twice
    refused = 0
    for bit in flips:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (saved / TABLES).write_bytes(flipped)
        try:
            loaded = ListProcessor.from_pretrained(saved)
        except InputError:
            refused += 1
        else:
            assert loaded.vocabularies["item_id"].values.tolist() == [50, 70, 90]
            assert loaded.vocabularies["gender"].values == ["f", "m"]
    assert refused > 0.9 * len(flips)


@pytest.mark.parametrize("name", [CONFIG, TABLES])
def test_truncated_files_are_refused(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes().rstrip(b"\n") if name == CONFIG else (saved / name).read_bytes()
    for length in range(0, len(content), 13):
        (saved / name).write_bytes(content[:length])
        with pytest.raises(InputError):
            ListProcessor.from_pretrained(saved)


def test_mixed_files_of_two_processors_are_refused(saved: Path, tmp_path: Path) -> None:
    more = pa.Table.from_pylist([*ROWS, {**ROWS[0], "item_id": [11, 11, 12]}])
    ListProcessor.from_lists(more, schema=SCHEMA).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / TABLES, saved / TABLES)
    with pytest.raises(InputError, match="comes from another model"):
        ListProcessor.from_pretrained(saved)
