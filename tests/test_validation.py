"""Lists: errors name column, list and remedy; valid input arrives unchanged from any container."""

import math
import time

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector
from hf_rerank.validation import Lists, tables_of

SCHEMA = ListSchema(
    items=[Categorical("item_id"), Dense("price"), Dense("stars", missing="error"), Vector("text", dim=2)],
    user=[Categorical("gender"), Dense("age")],
    history=[Categorical("seen", shares="item_id"), Dense("minutes")],
    label="click",
    position="place",
    initial_score="earlier",
    weight="weight",
    propensity="looked",
    list_id="list_id",
    attraction="truth",
)


def make_row(name: str, **changes: object) -> dict[str, object]:
    """A list of two items with a history of three; a value of ``...`` leaves out the column."""
    columns = {
        "list_id": name,
        "item_id": [11, 12],
        "price": [1.5, 2.5],
        "stars": [3, 4],
        "text": [[0.1, 0.2], [0.3, 0.4]],
        "gender": "f",
        "age": 30.0,
        "seen": [11, 13, 14],
        "minutes": [1.0, 2.0, 3.0],
        "click": [0, 1],
        "place": [1, 0],
        "earlier": [-2.5, 7],
        "weight": [1.0, 0.5],
        "looked": [0.25, 1],
        "truth": [0.1, 0.9],
        **changes,
    }
    return {column: value for column, value in columns.items() if value is not ...}


HERE = "list 11 (id second)"
OF_ITEMS = ("item_id", "price", "stars", "text", "click", "place", "earlier", "weight", "looked", "truth")
EMPTY: dict[str, list] = {name: [] for name in OF_ITEMS}
# Changes to the second of three lists, and parts of the message: column, place, remedy.
WRONG_LISTS = {
    "missing in one list": ({"price": ..., "prices": [1, 2]}, [HERE, "'price'", "did you mean 'prices'"]),
    "ragged": ({"price": [1.0]}, [HERE, "'price' has 1", "'item_id' has 2", "equally long"]),
    "ragged label": ({"click": [0, 1, 0]}, [HERE, "'click' has 3", "'item_id' has 2", "equally long"]),
    "ragged weight": ({"weight": [1.0]}, [HERE, "'weight' has 1", "'item_id' has 2", "equally long"]),
    "ragged position": ({"place": [0]}, [HERE, "'place' has 1", "'item_id' has 2", "equally long"]),
    "ragged history": ({"minutes": [1.0]}, [HERE, "'minutes' has 1", "'seen' has 3", "equally long"]),
    "empty": (EMPTY, [HERE, "empty", "leave it out"]),
    "text among numbers": ({"price": ["1.5", "2"]}, [HERE, "'price'", "one type"]),
    "text among integers": ({"item_id": [11, "twelve"]}, [HERE, "'item_id'", "one type"]),
    "one value for a sequence": ({"price": 1.5}, [HERE, "'price'", "one type"]),
    "null sequence": ({"price": None}, [HERE, "'price'", "null", "expected a sequence"]),
    "null history": ({"seen": None}, [HERE, "'seen'", "null", "expected a sequence"]),
    "integer beyond 64 bits": ({"item_id": [11, 2**70]}, [HERE, "'item_id'", "too large"]),
    "nan": ({"price": [1.0, math.nan]}, [f"{HERE}, item 1", "'price' holds nan", "finite", "null (None)"]),
    "infinity": ({"price": [-math.inf, 1.0]}, [f"{HERE}, item 0", "'price' holds -inf", "finite", "null (None)"]),
    "beyond float32": ({"price": [1.0, 1e39]}, [f"{HERE}, item 1", "'price' holds 1e+39", "float32"]),
    "nan of a user": ({"age": math.nan}, [HERE, "'age' holds nan", "null (None)"]),
    "nan in the history": ({"minutes": [1.0, 2.0, math.nan]}, [f"{HERE}, item 2", "'minutes' holds nan", "null"]),
    "null that is not allowed": (
        {"stars": [3, None]},
        [f"{HERE}, item 1", "'stars'", "missing='mean' or 'indicator'"],
    ),
    "vector of wrong length": (
        {"text": [[1.0, 2.0], [1.0, 2.0, 3.0]]},
        [f"{HERE}, item 1", "'text' has 3", "expected 2"],
    ),
    "no vector": ({"text": [[1.0, 2.0], None]}, [f"{HERE}, item 1", "'text'", "expected 2"]),
    "null in a vector": ({"text": [[1.0, 2.0], [1.0, None]]}, [f"{HERE}, item 1", "'text'", "null"]),
    "nan in a vector": ({"text": [[1.0, 2.0], [3.0, math.nan]]}, [f"{HERE}, item 1", "'text' holds nan", "finite"]),
    "negative label": ({"click": [0, -1]}, [f"{HERE}, item 1", "label", "'click' holds -1", "at least 0"]),
    "null label": ({"click": [None, 1]}, [f"{HERE}, item 0", "label", "'click' is null", "expected a number"]),
    "nan label": ({"click": [0.0, math.nan]}, [f"{HERE}, item 1", "'click' holds nan", "finite"]),
    "negative weight": ({"weight": [-0.5, 1.0]}, [f"{HERE}, item 0", "weight", "'weight' holds -0.5", "at least 0"]),
    "null weight": ({"weight": [1.0, None]}, [f"{HERE}, item 1", "'weight' is null", "expected a number"]),
    "ragged earlier score": ({"earlier": [1.0]}, [HERE, "'earlier' has 1", "'item_id' has 2", "equally long"]),
    "null earlier score": (
        {"earlier": [1.0, None]},
        [f"{HERE}, item 1", "initial score column 'earlier' is null", "expected a number"],
    ),
    "nan earlier score": ({"earlier": [math.nan, 1.0]}, [f"{HERE}, item 0", "'earlier' holds nan", "finite"]),
    "earlier score beyond float32": ({"earlier": [1.0, -1e39]}, [f"{HERE}, item 1", "'earlier' holds -1e+39"]),
    "zero propensity": (
        {"looked": [0.5, 0.0]},
        [f"{HERE}, item 1", "propensity column 'looked' holds 0", "above 0 and at most 1"],
    ),
    "inverse propensities": ({"looked": [4.0, 1.0]}, [f"{HERE}, item 0", "'looked' holds 4", "give 1 / x"]),
    "negative attraction": (
        {"truth": [0.5, -0.1]},
        [f"{HERE}, item 1", "attraction", "'truth' holds -0.1", "at least 0"],
    ),
    "duplicate position": (
        {"place": [0, 0]},
        [HERE, "'place'", "0..1 (0, 0)", "each of 0 to length - 1 once"],
    ),
    "position out of range": (
        {"place": [0, 7]},
        [HERE, "'place'", "0..1 (0, 7)", "each of 0 to length - 1 once"],
    ),
    "negative position": (
        {"place": [0, -1]},
        [HERE, "'place'", "0..1 (0, -1)", "each of 0 to length - 1 once"],
    ),
    "null position": ({"place": [0, None]}, [f"{HERE}, item 1", "'place' is null", "expected an integer"]),
}
# Changes to a whole column.
WRONG_COLUMNS = {
    "no column": ({"price": ..., "prcie": [1, 2]}, ["no column 'price'", "item_id", "did you mean 'prcie'"]),
    "no label": ({"click": ..., "clicks": [0, 1]}, ["no column 'click'", "did you mean 'clicks'"]),
    "no weight": ({"weight": ...}, ["no column 'weight'"]),
    "no position": ({"place": ...}, ["no column 'place'"]),
    "no earlier score": ({"earlier": ..., "earlier_score": [1, 2]}, ["no column 'earlier'", "mean 'earlier_score'"]),
    "no propensity": ({"looked": ...}, ["no column 'looked'"]),
    "text for earlier scores": ({"earlier": ["high", "low"]}, ["'earlier' holds string", "expected numbers"]),
    "text for numbers": ({"price": ["a", "b"]}, ["'price' holds string", "expected numbers", "convert it"]),
    "text for labels": ({"click": ["no", "yes"]}, ["'click' holds string", "expected numbers", "convert it"]),
    "text in vectors": ({"text": [["a", "b"], ["c", "d"]]}, ["'text' holds string", "expected numbers"]),
    "numbers for ids": ({"item_id": [1.5, 2.0]}, ["'item_id' holds double", "integers or text", "declare it Dense"]),
    "numbers for positions": ({"place": [0.0, 1.0]}, ["'place' holds double", "expected integers", "convert it"]),
    "one value per list": ({"price": 1.5}, ["'price' holds one double per list", "expected a sequence"]),
    "one number for a vector": ({"text": [1.0, 2.0]}, ["'text' holds one double per item", "expected 2 numbers"]),
    "a sequence for the user": ({"age": [1.0, 2.0]}, ["'age' holds list", "expected numbers"]),
    "all null, not allowed": ({"stars": [None, None]}, ["list 10 (id first), item 0", "'stars'", "fill it"]),
}


@pytest.mark.parametrize(("changes", "fragments"), WRONG_LISTS.values(), ids=WRONG_LISTS.keys())
def test_wrong_lists_are_reported_with_column_list_and_remedy(changes: dict, fragments: list[str]) -> None:
    rows = [make_row("first"), make_row("second", **changes), make_row("third", **changes)]
    with pytest.raises(InputError) as error:
        Lists.from_rows(rows, SCHEMA, with_labels=True, first=10)
    assert [part for part in fragments if part not in str(error.value)] == [], str(error.value)
    assert "\n" not in str(error.value)
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return  # mixed types make no table
    if set(rows[0]) != set(rows[1]):
        return
    with pytest.raises(InputError) as from_table:
        Lists.from_arrow(table, SCHEMA, with_labels=True, first=10)
    assert str(from_table.value) == str(error.value)


@pytest.mark.parametrize(("changes", "fragments"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS.keys())
def test_wrong_columns_are_reported_with_remedy(changes: dict, fragments: list[str]) -> None:
    rows = [make_row("first", **changes), make_row("second", **changes)]
    for read in (
        lambda: Lists.from_rows(rows, SCHEMA, with_labels=True, first=10),
        lambda: Lists.from_arrow(pa.Table.from_pylist(rows), SCHEMA, with_labels=True, first=10),
    ):
        with pytest.raises(InputError) as error:
            read()
        assert [part for part in fragments if part not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        ({"item_id": [1]}, "expected a sequence of lists, one dict per list, got dict"),
        (iter([make_row("first")]), "expected a sequence of lists, one dict per list, got list_iterator"),
        ([make_row("first"), [1, 2]], "list 1 is a list: expected a dictionary of columns"),
        ("text", "list 0 is a str: expected a dictionary of columns"),
        ([{}], "the lists have no column 'item_id'"),
    ],
)
def test_values_that_are_not_lists_are_rejected(rows: object, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        Lists.from_rows(rows, SCHEMA)  # type: ignore[arg-type]


def test_duplicate_columns_are_rejected() -> None:
    table = pa.Table.from_arrays([pa.array([[1]]), pa.array([[2]])], names=["item_id", "item_id"])
    with pytest.raises(InputError, match="2 columns 'item_id'"):
        Lists.from_arrow(table, ListSchema(items=[Categorical("item_id")]))


def test_ids_that_are_not_utf8_are_rejected() -> None:
    """A JSON reader that does not check may let them through: here one id, the byte 255."""
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )
    table = pa.table({"item_id": [[1]], "list_id": broken})
    with pytest.raises(InputError, match="column 'list_id' holds bytes that are not UTF-8"):
        Lists.from_arrow(table, ListSchema(items=[Categorical("item_id")], list_id="list_id"))


def test_a_wrong_list_far_down_is_found_fast() -> None:
    """Converting every prefix again would take minutes here; the bound is generous."""
    rows = [{"item_id": [1, 2]}] * 30_000 + [{"item_id": ["x", "y"]}] * 2
    started = time.perf_counter()
    with pytest.raises(InputError, match="list 30000 "):
        Lists.from_rows(rows, ListSchema(items=[Categorical("item_id")]))
    assert time.perf_counter() - started < 10


ROWS = [
    make_row("a"),
    make_row(
        "b",
        item_id=[5, None, 7],
        price=[None, 2.0, 4.0],
        stars=[1, 2, 3],
        text=[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        gender=None,
        age=None,
        seen=[],
        minutes=[],
        click=[1, 0, 0],
        place=[2, 0, 1],
        earlier=[0.0, 0.5, -1.0],
        weight=[1.0, 2.0, 3.0],
        looked=[1.0, 0.5, 0.125],
        truth=[0.5, 0.5, 0.25],
    ),
    make_row("c", seen=[None], minutes=[None]),
    make_row("d", gender="m", place=[0, 1]),
]


def assert_equal(lists: Lists, rows: list[dict]) -> None:
    """Checks that ``lists`` contain exactly ``rows``, flattened here row by row."""

    def flat(name: str) -> list:
        return [value for one in rows for value in one[name]]

    assert len(lists) == len(rows)
    assert lists.lengths.tolist() == [len(one["item_id"]) for one in rows]
    assert lists.history_lengths.tolist() == [len(one["seen"]) for one in rows]
    for name in ("item_id", "price", "stars"):
        assert lists.items[name].to_pylist() == flat(name)
    np.testing.assert_array_equal(lists.items["text"], np.array(flat("text"), dtype=np.float32))
    for name in ("gender", "age"):
        assert lists.user[name].to_pylist() == [one[name] for one in rows]
    for name in ("seen", "minutes"):
        assert lists.history[name].to_pylist() == flat(name)
    assert lists.positions.tolist() == flat("place")
    assert lists.labels is lists.columns["labels"]
    columns = {
        "position_ids": "place",
        "initial_scores": "earlier",
        "labels": "click",
        "weights": "weight",
        "propensities": "looked",
        "attraction": "truth",
    }
    assert set(lists.columns) == set(columns)
    for tensor, name in columns.items():
        assert lists.columns[tensor].dtype == (np.int64 if tensor == "position_ids" else np.float32)
        np.testing.assert_array_equal(lists.columns[tensor], np.array(flat(name), dtype=np.float32))
    assert lists.ids == [one["list_id"] for one in rows]


def _large(table: pa.Table) -> pa.Table:
    """The same columns as large lists and large strings."""

    def large(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_list(kind):
            return pa.large_list(large(kind.value_type))
        return pa.large_string() if pa.types.is_string(kind) else kind

    return table.cast(pa.schema([(entry.name, large(entry.type)) for entry in table.schema]))


TABLE = pa.Table.from_pylist(ROWS)
CONTAINERS = {
    "rows": lambda: Lists.from_rows(ROWS, SCHEMA, with_labels=True),
    "rows of arrays": lambda: Lists.from_rows(
        [{**one, "weight": np.array(one["weight"]), "text": np.array(one["text"])} for one in ROWS], SCHEMA
    ),
    "table": lambda: Lists.from_arrow(TABLE, SCHEMA, with_labels=True),
    "chunks": lambda: Lists.from_arrow(
        pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 2), TABLE.slice(3)]), SCHEMA
    ),
    "slice": lambda: Lists.from_arrow(pa.concat_tables([TABLE, TABLE]).combine_chunks().slice(4, 4), SCHEMA),
    "record batch": lambda: Lists.from_arrow(TABLE.combine_chunks().to_batches()[0], SCHEMA),
    "large lists": lambda: Lists.from_arrow(_large(TABLE), SCHEMA),
    "other columns too": lambda: Lists.from_arrow(TABLE.append_column("other", pa.array([1, 2, 3, 4])), SCHEMA),
    "dataset": lambda: Lists.from_arrow(next(iter(tables_of(Dataset(TABLE), 10))), SCHEMA),
}


@pytest.mark.parametrize("read", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_lists_are_equal_from_any_container(read) -> None:
    assert_equal(read(), ROWS)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_fixed_size_vectors_in_a_slice_are_read(start: int) -> None:
    vectors = pa.array([one["text"] for one in ROWS], type=pa.list_(pa.list_(pa.float32(), 2)))
    table = TABLE.set_column(TABLE.schema.get_field_index("text"), "text", vectors)
    assert_equal(Lists.from_arrow(table.slice(start), SCHEMA), ROWS[start:])


@pytest.mark.parametrize("number", range(len(ROWS)))
@pytest.mark.parametrize("large", [False, True])
def test_a_single_list_is_read_like_many(number: int, large: bool) -> None:
    """A single list takes another code path: from a row, and as a slice of a table."""
    assert_equal(Lists.from_rows(ROWS[number : number + 1], SCHEMA), ROWS[number : number + 1])
    table = _large(TABLE) if large else TABLE
    assert_equal(Lists.from_arrow(table.slice(number, 1), SCHEMA), ROWS[number : number + 1])


@pytest.mark.parametrize("changes", [changes for changes, _ in (*WRONG_LISTS.values(), *WRONG_COLUMNS.values())])
def test_a_single_wrong_list_gives_the_same_error_as_among_others(changes: dict) -> None:
    wrong, messages = make_row("second", **changes), []
    for rows in ([wrong], [wrong, wrong]):
        with pytest.raises(InputError) as error:
            Lists.from_rows(rows, SCHEMA, with_labels=True, first=10)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_positions_may_start_at_1_in_all_lists() -> None:
    from_0, from_1 = ([make_row("a", place=[s + 1, s]), make_row("b", place=[s, s + 1])] for s in (0, 1))
    assert Lists.from_rows(from_1, SCHEMA).positions.tolist() == [1, 0, 0, 1]
    assert Lists.from_rows(from_0, SCHEMA).positions.tolist() == [1, 0, 0, 1]
    remedy = r"list 1 \(id b\).*0..1 \(1, 2\): they start at 1, and those of other lists do not: number all lists"
    with pytest.raises(InputError, match=remedy):
        Lists.from_rows([from_0[0], from_1[1]], SCHEMA)
    with pytest.raises(
        InputError, match=r"0..1 \(1, 3\): expected each of 0 to length - 1 once, or in all lists each"
    ):
        Lists.from_rows([make_row("a", place=[1, 3])], SCHEMA)


def test_lists_after_select_shuffle_and_streaming() -> None:
    by_id = {one["list_id"]: one for one in ROWS}
    dataset = Dataset(TABLE)
    for lists, names in (
        (dataset.select([3, 1]), ["d", "b"]),
        (dataset.shuffle(seed=3), dataset.shuffle(seed=3)["list_id"]),
        (dataset.to_iterable_dataset(), ["a", "b", "c", "d"]),
        (TABLE, ["a", "b", "c", "d"]),
    ):
        tables = list(tables_of(lists, 3))
        assert [table.num_rows for table in tables] == ([3, 1] if len(names) == 4 else [2])
        rows = [by_id[name] for name in names]
        for start, table in zip((0, 3), tables, strict=False):
            assert_equal(Lists.from_arrow(table, SCHEMA), rows[start : start + 3])


def test_streamed_rows() -> None:
    streamed = IterableDataset.from_generator(lambda: iter([make_row("a"), make_row("d")]))
    assert_equal(Lists.from_arrow(next(iter(tables_of(streamed, 5))), SCHEMA), [make_row("a"), make_row("d")])


@pytest.mark.parametrize(
    ("lists", "fragment"),
    [
        (DatasetDict(train=Dataset(TABLE)), r"dictionary of train: choose one split"),
        (ROWS, "expected a dataset or an arrow table of lists, got list"),
        ("lists.parquet", "got str"),
    ],
)
def test_sources_that_are_not_datasets_are_rejected(lists: object, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        list(tables_of(lists, 10))


def test_outcome_columns_are_optional_for_ranking() -> None:
    bare = [make_row("a", **dict.fromkeys((*OF_ITEMS[4:], "list_id"), ...))] * 2
    lists = Lists.from_rows(bare, SCHEMA, first=7)
    assert lists.labels is None
    assert set(lists.columns) == {"position_ids"}
    assert lists.positions.tolist() == [0, 1, 0, 1]
    assert lists.ids == ["7", "8"]


def test_zero_lists_are_accepted() -> None:
    for lists in (Lists.from_rows([], SCHEMA, with_labels=True), Lists.from_arrow(TABLE.slice(0, 0), SCHEMA)):
        assert len(lists) == 0
        assert lists.items["text"].shape == (0, 2)


def test_booleans_and_large_integers_are_read_as_numbers() -> None:
    schema = ListSchema(items=[Categorical("new"), Dense("price")])
    lists = Lists.from_rows([{"new": [True, False], "price": [2**53 + 1, 0], "click": [True, False]}], schema)
    assert lists.items["new"].to_pylist() == [1, 0]
    assert lists.labels.tolist() == [1.0, 0.0]
    assert lists.items["price"].to_pylist() == [2**53 + 1, 0]
