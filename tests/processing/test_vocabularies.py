"""Vocabularies: hashes against published values, learned tables against counting in plain Python."""

import collections
import hashlib
import random

import numpy as np
import pyarrow as pa
import pytest

from hf_rerank.errors import InputError
from hf_rerank.processing.vocabularies import (
    FIRST_VALUE,
    PADDING,
    UNKNOWN,
    HashVocabulary,
    TableVocabulary,
    ValueCounts,
    blake2b_64,
    splitmix64,
)

WORD = 2**64
GAMMA = 0x9E3779B97F4A7C15


def signed(number: int) -> int:
    return (number + WORD // 2) % WORD - WORD // 2


def splitmix64_of_one(state: int) -> int:
    """The published algorithm in Python's integers: advance the state by gamma, then mix it."""
    z = (state + GAMMA) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def counted(*batches: list) -> ValueCounts:
    counts = ValueCounts()
    for batch in batches:
        counts.add(pa.array(batch), "x")
    return counts


def test_padding_and_unknown_come_before_the_values() -> None:
    assert (PADDING, UNKNOWN, FIRST_VALUE) == (0, 1, 2)


def test_splitmix64_gives_the_published_values() -> None:
    assert splitmix64(np.array([0])).tolist() == [0xE220A8397B1DCDAF]
    # The reference generator from seed 1234567. Its k-th output is the first output from the seed plus k - 1 gammas.
    sequence = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = np.array([signed(1234567 + k * GAMMA) for k in range(3)])
    assert splitmix64(states).tolist() == sequence


def test_splitmix64_equals_plain_python_for_any_integer() -> None:
    draw = random.Random(7)
    states = [-1, 1, -(2**63), 2**63 - 1, *(draw.randrange(-(2**63), 2**63) for _ in range(500))]
    hashed = splitmix64(np.array(states))
    assert hashed.dtype == np.uint64
    assert hashed.tolist() == [splitmix64_of_one(state) for state in states]


@pytest.mark.parametrize(
    ("text", "digest"), [("", "e4a6a0577479b2b4"), ("abc", "d8bb14d833d59559"), ("naïve 商品", "c3cb0ed70eb0d9cb")]
)
def test_blake2b_64_equals_b2sum(text: str, digest: str) -> None:
    """Digests as ``b2sum -l 64`` of the GNU core utilities prints them."""
    assert blake2b_64(text) == int(digest, 16)
    assert blake2b_64(text) == int(hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest(), 16)


def test_hash_vocabulary() -> None:
    vocabulary = HashVocabulary(7)  # 5 rows for values
    integers = [3, -3, None, 2**40, 3]
    expected = [1 if value is None else 2 + splitmix64_of_one(value) % 5 for value in integers]
    assert vocabulary.look_up(pa.array(integers), "x").tolist() == expected
    texts = ["abc", "商品", None, "", "abc"]
    digests = {text: hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts if text is not None}
    expected = [1 if text is None else 2 + int.from_bytes(digests[text], "big") % 5 for text in texts]
    assert vocabulary.look_up(pa.array(texts), "x").tolist() == expected
    assert vocabulary.look_up(pa.array(texts, type=pa.large_string()), "x").tolist() == expected
    assert vocabulary.look_up(pa.nulls(2), "x").tolist() == [1, 1]
    assert vocabulary.num_rows == 7
    many = vocabulary.look_up(pa.array(range(1000)), "x")
    assert sorted(set(many.tolist())) == [2, 3, 4, 5, 6]


# Values and columns to look up; the second table is too wide to be indexed directly.
TABLES = {
    "dense integers": (np.array([4, 9, 6]), [9, 4, 5, 6, -1, -9, 10, 2**40, -(2**63), None, 9]),
    "wide integers": (np.array([-(2**62), 2**62, 0, -5]), [0, -5, 5, 2**62, -(2**62), 2**62 + 1, -(2**63), None]),
    "texts": (["b", "ü", "", "商品"], ["商品", "u", "ü", None, "", "b", "u\u0308"]),
}


@pytest.mark.parametrize(("values", "column"), TABLES.values(), ids=TABLES.keys())
def test_table_vocabulary(values, column: list) -> None:
    vocabulary = TableVocabulary(values)
    known = {value: row for row, value in enumerate(list(values), start=2)}
    expected = [known.get(value, 1) for value in column]
    assert vocabulary.look_up(pa.array(column), "x").tolist() == expected
    assert vocabulary.look_up(pa.array([column[0], *column]).slice(1), "x").tolist() == expected
    assert len(vocabulary) == len(values)
    assert vocabulary.num_rows == len(values) + 2
    assert vocabulary.look_up(pa.nulls(3), "x").tolist() == [1, 1, 1]
    assert vocabulary.look_up(pa.array(column).slice(0, 0), "x").tolist() == []


def test_direct_and_sorted_lookup_agree() -> None:
    """One far value turns the direct table into a sorted one; nothing else may change."""
    draw = np.random.default_rng(3)
    values = draw.permutation(5000)[:1000].astype(np.int64)
    column = pa.array(draw.integers(-50, 6000, 20_000))
    direct, sorted_ = TableVocabulary(values), TableVocabulary(np.append(values, 2**50))
    assert direct._direct is not None
    assert sorted_._direct is None
    rows = direct.look_up(column, "x")
    np.testing.assert_array_equal(rows, sorted_.look_up(column, "x"))
    row_of = {value: row for row, value in enumerate(values.tolist(), start=2)}
    assert rows.tolist() == [row_of.get(value, 1) for value in column.to_pylist()]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()])
def test_narrow_and_unsigned_integers_are_looked_up(kind: pa.DataType) -> None:
    assert TableVocabulary(np.array([3, 7])).look_up(pa.array([7, None, 5, 3], type=kind), "x").tolist() == [
        3,
        1,
        1,
        2,
    ]


def test_empty_vocabulary_maps_everything_to_unknown() -> None:
    for empty in (TableVocabulary([]), TableVocabulary(np.zeros(0, dtype=np.int64))):
        for column in (pa.array([1, None]), pa.array(["a", None]), pa.nulls(2)):
            assert empty.look_up(column, "x").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("values", "column", "message"),
    [
        (np.array([1, 2]), ["1"], "column 'brand' holds text, but the processor was fitted on integers"),
        (["1", "2"], [1], "column 'brand' holds integers, but the processor was fitted on text"),
    ],
)
def test_another_type_than_in_training_is_refused(values, column: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TableVocabulary(values).look_up(pa.array(column), "brand")


def test_counts_add_up_over_batches() -> None:
    draw = random.Random(11)
    for values in ([-4, 0, 3, 9, 2**50, None], ["ü", "a", "商品", "", "z", None]):
        batches = [[draw.choice(values) for _ in range(draw.randrange(1, 30))] for _ in range(150)]
        truth = collections.Counter(value for batch in batches for value in batch if value is not None)
        for min_count in (1, 300):
            vocabulary, rare, left_out = counted(*batches).make_vocabulary(min_count=min_count, size=None)
            kept = sorted(value for value, count in truth.items() if count >= min_count)
            assert list(vocabulary.values) == kept
            assert (rare, left_out) == (len(truth) - len(kept), 0)


def test_min_count_and_size() -> None:
    # 8 and 5 come three times, 2 twice, 9 and 1 once.
    for to_value in (int, str):
        counts = counted(
            [to_value(value) for value in (8, 5, 8, 2, 9)], [to_value(value) for value in (5, 8, 5, 2, 1)]
        )
        for min_count, size, kept, rare, left_out in (
            (1, None, [1, 2, 5, 8, 9], 0, 0),
            (2, None, [2, 5, 8], 2, 0),
            (4, None, [], 5, 0),
            (1, 4, [5, 8], 0, 3),  # the most frequent two
            (1, 3, [5], 0, 4),  # a tie: the smaller value
            (2, 4, [5, 8], 2, 1),
            (1, 6, [1, 2, 5, 8], 0, 1),  # of 1 and 9, the smaller
            (1, 7, [1, 2, 5, 8, 9], 0, 0),
        ):
            vocabulary, *counted_out = counts.make_vocabulary(min_count=min_count, size=size)
            assert list(vocabulary.values) == [to_value(value) for value in kept]
            assert counted_out == [rare, left_out]


def test_column_of_nulls_gives_an_empty_vocabulary() -> None:
    vocabulary, rare, left_out = counted([None, None]).make_vocabulary(min_count=1, size=None)
    assert (len(vocabulary), rare, left_out) == (0, 0, 0)


def test_column_of_two_types_is_refused() -> None:
    counts = counted([1, 2], [None])
    with pytest.raises(InputError, match="column 'brand' holds integers in some lists and text in others"):
        counts.add(pa.array(["a"]), "brand")
