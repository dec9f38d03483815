"""``load_lists``: every kind of source gives the same lists, in the same splits, and wrong ones are named."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import socket
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from hf_rerank.data import prm_public
from hf_rerank.data.loading import IterableListsDict, ListsDict, load_lists
from hf_rerank.data.splits import SPLITS, assign_splits
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema
from hf_rerank.validation import Lists

SCHEMA = ListSchema(items=[Categorical("item"), Dense("price")], label="click", list_id="id", group="user")


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path_factory, monkeypatch):
    def refused(*_: object) -> None:
        raise AssertionError("a loader asked the network")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(socket.socket, "connect", refused)


def own_rows(n: int = 60) -> list[dict]:
    """Lists of 1 to 3 items, with the click at each place in turn."""
    rows = []
    for number in range(n):
        slots = range(1 + number % 3)
        row = {"id": f"list {number}", "user": number // 2, "item": [10 * number + slot for slot in slots]}
        row |= {"price": [slot / 4 for slot in slots], "click": [int(slot == number // 3 % 3) for slot in slots]}
        rows.append(row)
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        texts = [json.dumps(row) for row in rows]
        path.write_text("\n".join(texts) + "\n" if path.suffix == ".jsonl" else f"[{','.join(texts)}]")
    return path


def rows_of(lists) -> dict[str, list[dict]]:
    return {split: list(rows) for split, rows in lists.items()}


def split_by(rows: list[dict], keys) -> dict[str, list[dict]]:
    """As a user's own lists are split: none are held out for rankers."""
    of_row = assign_splits(keys, ranker_train=False)
    return {split: [row for row, of in zip(rows, of_row, strict=True) if of == split] for split in SPLITS[1:]}


# ---------------------------------------------------------------------------------------------------------- PRM Public


def raw_text(users: range) -> str:
    lines = []
    for user in users:
        labels = [float(slot == user % 3) for slot in range(3)]
        fields = [
            [1, None, 3],
            [[user + i, 1, 2, 3, 4] for i in range(3)],
            [[0.5] * 7] * 3,
            [[user / 8] * 12] * 3,
            labels,
        ]
        lines.append("|".join([str(user), *map(json.dumps, fields)]) + "\n")
    return "".join(lines)


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "set1.train.txt.part1").write_text(raw_text(range(200)))
    (folder / "set1.train.txt.part2").write_text(raw_text(range(200, 260)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"max_list_length": 2}, {"protocol": "public"}])
def test_streaming_the_text_equals_the_prepared_lists(raw, tmp_path, monkeypatch, options):
    lists = load_lists("prm_public", data_dir=raw, **options)
    monkeypatch.setattr(prm_public, "find_ranges", functools.partial(prm_public.find_ranges, range_bytes=20_000))
    stream = load_lists("prm_public", data_dir=raw, streaming=True, **options)
    assert isinstance(lists, ListsDict)
    assert isinstance(stream, IterableListsDict)
    assert stream.schema == lists.schema == prm_public.prm_public_schema(options.get("max_list_length", 30))
    assert rows_of(stream) == rows_of(lists)
    assert list(lists) == list(stream) == list(SPLITS)
    assert stream["train"].features == lists["train"].features
    assert stream["train"].num_shards > 4
    if options.get("protocol") == "public":  # every line holds a null
        assert sum(map(len, lists.values())) == 0
    else:
        assert [row["user_id"] for row in stream["test"]] == [
            user for user in range(260) if assign_splits([user]) == "test"
        ]


@pytest.mark.slow
def test_prm_public_is_prepared_once(raw, monkeypatch, caplog):
    first = load_lists("prm_public", data_dir=raw)
    assert "Preparing" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(prm_public, "prepare_prm_public", None)
        assert rows_of(load_lists("prm_public", data_dir=raw)) == rows_of(first)
        cached = next(
            folder for folder in (datasets.config.HF_DATASETS_CACHE / "hf_rerank").iterdir() if folder.is_dir()
        )
        assert rows_of(load_lists("prm_public", data_dir=cached)) == rows_of(first) == rows_of(load_lists(str(cached)))
        with pytest.raises(InputError, match="is already prepared"):
            load_lists("prm_public", data_dir=cached, max_list_length=5)
    (raw / "set1.train.txt.part2").write_text(raw_text(range(200, 230)))
    assert sum(map(len, load_lists("prm_public", data_dir=raw).values())) == 230


@pytest.mark.slow
def test_prepared_folder_can_be_loaded_with_another_schema(raw, tmp_path):
    prm_public.prepare_prm_public(raw, tmp_path / "lists", progress=False)
    narrow = ListSchema(items=[Categorical("item_id")], group="user_id", list_id="list_id")
    assert load_lists(tmp_path / "lists", schema=narrow).schema == narrow
    assert load_lists(tmp_path / "lists").schema == prm_public.prm_public_schema()
    with pytest.raises(InputError, match=r"split 'ranker_train': the lists have no column 'item_5'.*did you mean"):
        load_lists(tmp_path / "lists", schema=narrow.replace(items=[Categorical("item_5")]))


@pytest.mark.slow
def test_simulated_prm_is_simulated_prepared_and_cached(monkeypatch, caplog):
    from hf_rerank.data import simulation

    lists = load_lists("simulated_prm", n_lists=200, seed=3)
    assert "Simulating 200 lists" in caplog.text
    assert sum(map(len, lists.values())) == 200
    assert (lists.schema.position, lists.schema.attraction) == ("position", "attraction")
    assert len(lists.schema.examination) == 30
    train = Lists.from_arrow(lists["train"].with_format("arrow")[:], lists.schema, with_labels=True)
    assert train.columns["attraction"].max() <= 1
    assert train.labels.reshape(-1, 30).sum(axis=1).min() >= 1
    cache = datasets.config.HF_DATASETS_CACHE / "hf_rerank"
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [""]  # the raw text is gone
    monkeypatch.setattr(simulation, "simulate_prm", None)  # it must not run a second time
    assert rows_of(load_lists("simulated_prm", n_lists=200, seed=3, streaming=True)) == rows_of(lists)


@pytest.mark.slow
def test_a_simulation_that_fails_leaves_no_folder(monkeypatch):
    def failing(*_: object, **__: object) -> None:
        raise InputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(prm_public, "prepare_prm_public", failing)
        with pytest.raises(InputError, match="the disk is full"):
            load_lists("simulated_prm", n_lists=20)
    assert not [path for path in (datasets.config.HF_DATASETS_CACHE / "hf_rerank").iterdir() if path.is_dir()]
    assert sum(map(len, load_lists("simulated_prm", n_lists=20).values())) == 20


# ----------------------------------------------------------------------------------------------------------- own lists


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "folder", "dataset"])
def test_own_lists_are_split_by_their_group(tmp_path, kind, streaming):
    rows = own_rows()
    if kind == "dataset":
        source = datasets.Dataset.from_list(rows)
    elif kind == "folder":
        write_rows(tmp_path / "a.parquet", rows[:25])
        write_rows(tmp_path / "b.parquet", rows[25:])
        source = tmp_path
    else:
        source = write_rows(tmp_path / f"lists.{kind}", rows)
    schema_file = tmp_path / "schema"
    SCHEMA.save(schema_file)
    for schema in (SCHEMA, schema_file, str(schema_file)):
        lists = load_lists(source, schema=schema, streaming=streaming)
        assert isinstance(lists, IterableListsDict if streaming else ListsDict)
        assert lists.schema == SCHEMA
    expected = split_by(rows, [row["user"] for row in rows])
    assert all(expected.values())
    assert rows_of(lists) == expected
    assert rows_of(load_lists(lists, schema=SCHEMA, streaming=streaming)) == expected  # its own splits are kept


@pytest.mark.parametrize("streaming", [False, True])
def test_without_a_group_lists_are_split_by_list_id_or_row_number(streaming):
    rows = own_rows()
    data = datasets.Dataset.from_list(rows)
    by_id = load_lists(data, schema=SCHEMA.replace(group=None), streaming=streaming)
    assert rows_of(by_id) == split_by(rows, [row["id"] for row in rows])
    by_number = load_lists(data, schema=SCHEMA.replace(group=None, list_id=None), streaming=streaming)
    assert rows_of(by_number) == split_by(rows, range(len(rows)))


def test_sharded_stream_cannot_be_split_by_row_number():
    """A shard that is read by itself would number its rows from 0, and lists would change splits."""
    stream = datasets.Dataset.from_list(own_rows()).to_iterable_dataset(num_shards=2)
    schema = SCHEMA.replace(group=None, list_id=None)
    with pytest.raises(InputError, match=r"stream of 2 shards cannot be split by the numbers of its rows.*list_id"):
        load_lists(stream, schema=schema, streaming=True)
    assert load_lists(stream, schema=SCHEMA, streaming=True)["train"].num_shards == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_given_by_a_column_or_file_names_are_kept(tmp_path, streaming):
    rows = own_rows(9)
    marked = [{**row, "split": "test" if number == 4 else "train"} for number, row in enumerate(rows)]
    lists = rows_of(load_lists(datasets.Dataset.from_list(marked), schema=SCHEMA, streaming=streaming))
    assert {split: found for split, found in lists.items() if found} == {
        "train": marked[:4] + marked[5:],
        "test": [marked[4]],
    }
    write_rows(tmp_path / "train-0.jsonl", rows[:3])
    write_rows(tmp_path / "train-1.jsonl", rows[3:6])
    write_rows(tmp_path / "test.jsonl", rows[6:])
    lists = load_lists(tmp_path, schema=SCHEMA, streaming=streaming)
    assert rows_of(lists) == {"train": rows[:6], "test": rows[6:]}
    write_rows(tmp_path / "more.jsonl", rows)
    with pytest.raises(InputError, match=r"more\.jsonl is not named after a split, but other files"):
        load_lists(tmp_path, schema=SCHEMA, streaming=streaming)


def test_custom_split_names_are_kept_but_refused_for_streams():
    rows = [{**row, "split": f"fold_{number % 2}"} for number, row in enumerate(own_rows(6))]
    assert list(load_lists(datasets.Dataset.from_list(rows), schema=SCHEMA)) == ["fold_0", "fold_1"]
    with pytest.raises(InputError, match=r"column 'split' holds 'fold_0': a stream can be split into"):
        load_lists(datasets.Dataset.from_list(rows), schema=SCHEMA, streaming=True)


def test_changed_files_are_read_again(tmp_path):
    path = write_rows(tmp_path / "train.parquet", own_rows(6))
    assert len(load_lists(path, schema=SCHEMA)["train"]) == 6
    write_rows(path, own_rows(9))
    assert len(load_lists(path, schema=SCHEMA)["train"]) == 9


@pytest.mark.parametrize("streaming", [False, True])
def test_users_of_mixed_types_are_refused(tmp_path, streaming):
    """7 and "007" in one column may be the same user, but their lists would go to two splits."""
    rows = [{**row, "user": 7 if number % 2 else "007"} for number, row in enumerate(own_rows())]
    path = write_rows(tmp_path / "lists.jsonl", rows)
    with pytest.raises(InputError, match="column 'user' holds values of several types"):
        load_lists(path, schema=SCHEMA, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["user", "item"])
def test_json_lines_files_with_different_types_are_refused(tmp_path, name, streaming):
    rows = own_rows()
    texts = [{**row, name: "007" if name == "user" else ["007"] * len(row["item"])} for row in rows[30:]]
    write_rows(tmp_path / "a.jsonl", rows[:30])
    write_rows(tmp_path / "b.jsonl", texts)
    with pytest.raises(InputError, match=r"a\.jsonl and .*b\.jsonl differ in the types of a column.*" + name):
        load_lists(tmp_path, schema=SCHEMA, streaming=streaming)
    write_rows(tmp_path / "b.jsonl", rows[30:])
    assert len(load_lists(tmp_path, schema=SCHEMA)) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_with_different_number_types_are_merged(tmp_path, streaming):
    """Number types are widened, whichever file comes first; text is not converted, nor is a missing column filled."""
    rows = own_rows()
    kinds = [
        ("id", pa.string()),
        ("user", pa.int64()),
        ("item", pa.list_(pa.int64())),
        ("click", pa.list_(pa.int64())),
    ]
    wide, narrow = (
        pa.schema([*kinds, ("price", pa.list_(pa.float64()))]),
        pa.schema(
            [
                ("price", pa.list_(pa.int8())),
                ("item", pa.large_list(pa.int16())),
                *kinds[:2],
                ("click", pa.list_(pa.int8())),
            ]
        ),
    )
    whole = [{**row, "price": [int(price) for price in row["price"]]} for row in rows[:30]]
    pa.parquet.write_table(pa.Table.from_pylist(whole, narrow), tmp_path / "a.parquet")
    pa.parquet.write_table(pa.Table.from_pylist(rows[30:], wide), tmp_path / "b.parquet")
    found = rows_of(load_lists(tmp_path, schema=SCHEMA, streaming=streaming))
    by_id = {row["id"]: row for part in found.values() for row in part}
    assert by_id == {row["id"]: row for row in [*whole, *rows[30:]]}

    for name, column in (("user", [f"00{row['user']}" for row in rows]), ("price", None)):
        changed = [{**row, name: column[number] if column else ...} for number, row in enumerate(rows)]
        changed = [{key: value for key, value in row.items() if value is not ...} for row in changed]
        write_rows(tmp_path / "b.parquet", changed)
        write_rows(tmp_path / "a.parquet", rows)
        with pytest.raises(
            InputError, match=r"a\.parquet.*" + name if column else r"b\.parquet has no column 'price'"
        ):
            load_lists(tmp_path, schema=SCHEMA, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["lists[1]", "lists*", "lists?"])
def test_file_names_are_not_treated_as_patterns(tmp_path, name, streaming):
    """Next to each file is one that its name would match as a pattern."""
    rows = own_rows()
    for kind in (".parquet", ".jsonl"):
        write_rows(tmp_path / f"lists1{kind}", [{**row, "item": [0] * len(row["item"])} for row in rows])
        path = write_rows(tmp_path / f"{name}{kind}", rows)
        found = rows_of(load_lists(path, schema=SCHEMA, streaming=streaming))
        assert sorted(row["id"] for part in found.values() for row in part) == sorted(row["id"] for row in rows)
        assert all(row in rows for part in found.values() for row in part)


def test_dataset_methods_keep_the_schema():
    lists = load_lists(datasets.Dataset.from_list(own_rows()), schema=SCHEMA)
    again = [
        lists.map(lambda row: row),
        lists.filter(lambda row: True),
        lists.shuffle(seed=1),
        lists.with_format("numpy"),
    ]
    again += [copy.copy(lists), copy.deepcopy(lists), pickle.loads(pickle.dumps(lists))]
    for other in again:
        assert isinstance(other, ListsDict)
        assert other.schema == SCHEMA
        assert len(other["train"]) == len(lists["train"])
    stream = load_lists(datasets.Dataset.from_list(own_rows()), schema=SCHEMA, streaming=True)
    for other in (stream.map(lambda row: row), stream.shuffle(seed=1), stream.with_format("numpy")):
        assert isinstance(other, IterableListsDict)
        assert other.schema == SCHEMA


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("simulated-prm", {}, r"unknown source 'simulated-prm'.*did you mean 'simulated_prm'"),
        ("nowhere/lists.parquet", {"schema": SCHEMA}, "unknown source 'nowhere/lists.parquet'"),
        ("prm_public", {}, r"'prm_public' needs data_dir=.*hf4Academic/PRM.*simulated_prm"),
        ("prm_public", {"data_dir": "nowhere"}, "no PRM Public text in nowhere"),
        ("prm_public", {"data_dir": ".", "schema": SCHEMA}, "has its own schema"),
        ("prm_public", {"data_dir": ".", "n_lists": 5}, "n_lists= does not belong to 'prm_public'"),
        ("simulated_prm", {"data_dir": "."}, "data_dir= does not belong to 'simulated_prm'"),
        (".", {"data_dir": "."}, r"data_dir= does not belong to '\.': give either source or data_dir"),
        (datasets.Dataset.from_list(own_rows()), {}, r"own lists need schema=ListSchema"),
        (datasets.Dataset.from_list(own_rows()), {"schema": {}}, "schema is a dict: expected a ListSchema"),
        (datasets.Dataset.from_list(own_rows()), {"schema": "no.json"}, r"no schema at no\.json"),
        (
            datasets.Dataset.from_list(own_rows()),
            {"schema": SCHEMA, "max_list_length": 3},
            "max_list_length= does not",
        ),
        (
            datasets.Dataset.from_list(own_rows()),
            {"schema": SCHEMA, "protocol": "public"},
            "protocol= does not belong",
        ),
        (datasets.Dataset.from_list(own_rows()).to_iterable_dataset(), {"schema": SCHEMA}, "use streaming=True"),
        (own_rows(), {"schema": SCHEMA}, "the source is a list: expected 'simulated_prm'"),
        (
            datasets.Dataset.from_list(own_rows()),
            {"schema": SCHEMA.replace(label="clicks")},
            r"split 'train': the lists have no column 'clicks'.*did you mean 'click'",
        ),
        (
            datasets.Dataset.from_list(own_rows()),
            {"schema": SCHEMA.replace(group="usr")},
            r"no column 'usr' to split by.*did you mean 'user'",
        ),
        (
            datasets.Dataset.from_list([{**row, "user": 1.5} for row in own_rows(3)]),
            {"schema": SCHEMA},
            "column 'user' of list 0 holds 1.5: expected one integer or string per list to split by",
        ),
    ],
)
def test_wrong_sources_and_options_are_refused(source, options, message):
    with pytest.raises(InputError, match=message):
        load_lists(source, **options)


def test_wrong_files_are_refused(tmp_path):
    load = functools.partial(load_lists, schema=SCHEMA)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no lists: expected \.csv"):
        load(tmp_path / "empty")
    (tmp_path / "lists.xlsx").write_text("a,b\n")
    with pytest.raises(InputError, match=r"lists\.xlsx is not a file of lists"):
        load(tmp_path / "lists.xlsx")
    path = write_rows(tmp_path / "lists.parquet", own_rows())
    with pytest.raises(InputError, match="own lists need schema"):
        load_lists(path)
    write_rows(tmp_path / "lists.jsonl", own_rows())
    with pytest.raises(InputError, match="holds both Parquet and JSON files"):
        load(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"lists\.parquet is not a complete Parquet file"):
        load(path)
    pa.parquet.write_table(pa.Table.from_pylist(own_rows()).slice(0, 0), path)
    with pytest.raises(InputError, match=r"lists\.parquet holds no lists"):
        load(path)
    whole, cut_off = '{"id": "a", "user": 1, "item": [1]}', '{"id": "b", "us'
    for name, text in (("lists.jsonl", f"{whole}\n{cut_off}"), ("lists.json", f"[{whole},\n{cut_off}")):
        (tmp_path / name).write_text(text)
        for streaming in (False, True):
            with pytest.raises(InputError, match=rf"cannot read lists from .*{name}, line 2: "):
                load(tmp_path / name, streaming=streaming)


def test_error_in_one_of_many_lists_gives_its_number_in_the_split():
    """Every fourth of 3,000 lists is checked; the message counts the lists of the split, not those checked."""
    rows = own_rows(3_000)
    rows[2_000]["price"] = [float("nan")] * len(rows[2_000]["price"])
    with pytest.raises(InputError, match=r"split 'train': .* in list 2000 \(id list 2000\), item 0"):
        load_lists(datasets.DatasetDict(train=datasets.Dataset.from_list(rows)), schema=SCHEMA)
    rows = own_rows(3_000)
    rows[2_000]["id"] = "list 8"
    with pytest.raises(InputError, match=r"the id list 8 in list 8 and again in list 2000"):
        load_lists(datasets.DatasetDict(train=datasets.Dataset.from_list(rows)), schema=SCHEMA)


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1], [0.25, 0.5, 0.75]])
def test_constant_or_fractional_labels_are_not_reported_as_leaked(label):
    """Without both classes there is no AUC, and the order cannot give anything away."""
    rows, draw = own_rows(), np.random.default_rng(0)
    for row in rows:
        items = {"item": draw.permutation(3).tolist(), "price": draw.random(3).tolist()}
        row |= {**items, "click": draw.permutation(label).tolist()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_lists(datasets.Dataset.from_list(rows), schema=SCHEMA)
    said = " ".join(str(warning.message) for warning in caught)
    assert "order of the slots" not in said
    assert "alone separates" not in said
    assert ("every item counts as clicked in all metrics except NDCG" in said) == (label[0] == 0.25)


def test_lists_with_clicked_items_first_are_warned_about():
    rows, draw = own_rows(), np.random.default_rng(0)
    for row in rows:
        row |= {"item": draw.permutation(3).tolist(), "price": draw.random(3).tolist(), "click": [1, 0, 0]}
    data = datasets.Dataset.from_list(rows)
    for streaming in (False, True):
        with pytest.warns(UserWarning, match=r"order of the slots alone has an AUC of 1\.000"):
            load_lists(data, schema=SCHEMA, streaming=streaming)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_lists(datasets.Dataset.from_list(own_rows()), schema=SCHEMA)  # clicks at every place
        positioned = data.add_column("place", [[0, 1, 2]] * len(rows))
        load_lists(positioned, schema=SCHEMA.replace(position="place"))


@pytest.mark.parametrize(
    ("column", "leaked"),
    [
        ("price", lambda click, _: [2.5 * value for value in click]),
        ("price", lambda click, _: [1.0 - value for value in click]),  # reversed, it leaks as much
        ("price", lambda click, _: [float(value) if value else None for value in click]),
        ("item", lambda click, _: [7 if value else 8 for value in click]),
        # Present for every second click only, such as a price paid; or an id that only clicks have.
        ("price", lambda click, draw: [3.0 if value and draw.random() < 0.5 else None for value in click]),
        ("price", lambda click, draw: [3.0 if value and draw.random() < 0.5 else 0.0 for value in click]),
        ("item", lambda click, draw: [int(draw.integers(10**9)) if value else None for value in click]),
        ("item", lambda click, draw: [int(draw.integers(10**9)) if value > draw.random() else 0 for value in click]),
        ("item", lambda click, draw: [int(draw.integers(30)) + 100 * value for value in click]),
        ("price", lambda click, draw: [value + draw.random() for value in click]),  # click 1: 1 to 2, else 0 to 1
        (None, lambda click, draw: [value + 1.5 * draw.random() for value in click]),  # AUC 1 - (1/3)^2 / 2 = .944
        (None, lambda click, draw: draw.integers(5, size=len(click)).tolist()),
    ],
)
def test_features_that_leak_the_label_are_warned_about(column, leaked, tmp_path):
    """200 lists of five items, of which two are clicked."""
    from hf_rerank.data.custom.prepare import prepare_own

    draw, rows = np.random.default_rng(1), []
    for number in range(200):
        click = draw.permutation([1, 1, 0, 0, 0]).tolist()
        row = {"id": f"list {number}", "user": f"u{number}", "item": draw.permutation(60)[:5].tolist()}
        rows.append({**row, "price": draw.random(5).tolist(), "click": click, column or "price": leaked(click, draw)})
    schema = ListSchema(items=[Categorical("item"), Dense("price")], label="click", list_id="id", group="user")
    data = datasets.Dataset.from_list(rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_lists(data, schema=schema)
    said = [str(warning.message) for warning in caught if "alone separates" in str(warning.message)]
    assert [text.split("'")[1] for text in said] == ([column] if column else [])
    data.to_parquet(tmp_path / "lists.parquet")
    schema.save(tmp_path / "schema.json")
    report = prepare_own(
        tmp_path / "lists.parquet", tmp_path / "lists", schema=tmp_path / "schema.json", progress=False
    )
    assert any("alone separates" in text for text in report.warnings) == (column is not None)
    if column:
        assert "AUC within lists" in said[0] or "clicked, in lists of train" in said[0]
        assert "leave it out of the schema" in said[0]
