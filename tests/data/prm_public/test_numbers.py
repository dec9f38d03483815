"""The fast reader of clean lines: the values of json and float to the bit, or a refusal."""

from __future__ import annotations

import itertools
import json
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hf_rerank.data.prm_public import iter_batches, numbers
from hf_rerank.data.prm_public.fields import Fields
from hf_rerank.data.prm_public.numbers import NotClean, make_line, read_numbers
from hf_rerank.data.report import RejectedLines

WIDTHS, ITEMS = (3, 5, 7, 12), 2
NUMBERS = 1 + 3 + ITEMS * (5 + 7 + 12) + ITEMS


def line_of(texts: list[str]) -> str:
    """A line that holds ``NUMBERS`` given texts."""
    texts = list(texts)

    def array(width: int) -> str:
        return "[" + ", ".join(texts.pop(0) for _ in range(width)) + "]"

    fields = [texts.pop(0), array(3)]
    fields += ["[" + ", ".join(array(width) for _ in range(ITEMS)) + "]" for width in WIDTHS[1:]]
    return "|".join([*fields, array(ITEMS)]) + "\n"


def read(*lines: str) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum([len(line) for line in lines])
    return read_numbers("".join(lines).encode(), ends, make_line(WIDTHS, ITEMS))


def draw_number(rng: random.Random) -> str:
    """A decimal as text: as in the data, of any size, of many digits, or close to halfway between two float32."""
    below = np.float32(rng.gauss(0, 1))
    half = (Decimal(float(below)) + Decimal(float(np.nextafter(below, np.float32(9))))) / 2
    texts = [
        repr(round(rng.gauss(0, 3), 6)),
        repr(rng.gauss(0, 1) * 10 ** rng.randint(-44, 37)).replace("e+", "e"),
        str(rng.randint(-(10**18), 10**18)),
        f"{rng.randint(0, 10**7)}.{rng.randint(0, 10 ** rng.randint(1, 30))}",
        rng.choice(["null", "-0.0", "0", "1e5", "1E-5", "-2.5e-06", "1e-05", "0e0", "0.1e01"]),
        f"{half:f}1",
        f"{half:f}",
        repr(float(half)),
    ]
    return rng.choice(texts).replace("e+", "e")


@pytest.mark.slow
def test_values_equal_those_of_json_to_the_bit(monkeypatch):
    rng = random.Random(0)
    monkeypatch.setattr(numbers, "CACHED_BYTES", 10_000)  # many pieces
    rows = [["7", *(draw_number(rng) for _ in range(NUMBERS - 1))] for _ in range(1_000)]
    values, missing = read(*map(line_of, rows))
    expected = [[json.loads(text) for text in row] for row in rows]
    assert missing.tolist() == [[number is None for number in row] for row in expected]
    assert missing.any()
    floats = np.array([[0.0 if number is None else float(number) for number in row] for row in expected])
    assert (values.view(np.int64) == floats.view(np.int64)).all()  # the sign of a zero, too


REFUSED = (
    *("01", "-01", "00", "-00.1", "0x1F", "1.", "-.5", ".5", "+1", "1e", "e5", "1e+5", "1e5.", "1.e5", "0.e1", "1_0"),
    *("inf", "-inf", "nan", "-nan", "NaN", "Infinity", "1e999", "-0", "true", "false", '"1"', '"null"', "1f", "", "-"),
    *("nul", "nulll", "null1", "1null", "n", "-null", "nabc", "null null", "NULL", "--1", "1-2", "1.2.3", "1e5e5"),
    *("1 2", "1,2", "1, 2", "[1", "1]", "[1]", "1|2", "\t1", "1\r", "1\n", "1\0", "\0", "1 ", " 1"),
)


@pytest.mark.parametrize("place", [1, 4, 20, NUMBERS - 1])
def test_text_that_is_not_a_json_number_is_refused(place):
    good = ["7"] + ["1"] * (NUMBERS - 1)
    assert read(line_of(good))[0].tolist() == [[7.0] + [1.0] * (NUMBERS - 1)]
    for text in REFUSED:
        wrong = [*good[:place], text, *good[place + 1 :]]
        with pytest.raises(NotClean):
            read(line_of(good), line_of(wrong), line_of(good))


@pytest.mark.slow
def test_any_changed_character_is_read_as_json_reads_it_or_refused():
    """One character is replaced or inserted: for an accepted line, json reads the same numbers."""
    rng = random.Random(1)
    decimals = line_of(["7", "null", *(repr(round(rng.gauss(0, 3), 6)) for _ in range(NUMBERS - 2))])
    ones = line_of(["7"] + ["1"] * (NUMBERS - 1))  # of which a wrong number would not be noticed by its neighbour
    accepted = refused = 0
    for line, letters, step in ((decimals, "017.-+eEn ,[]|\n", 3), (ones, "1, ", 1)):
        for place, letter in itertools.product(range(2, len(line) - 1, step), letters):  # after the user id
            for changed in (line[:place] + letter + line[place:], line[:place] + letter + line[place + 1 :]):
                try:
                    values, missing = read(changed)
                except NotClean:
                    refused += 1
                    continue
                accepted += 1
                _, user, *of_items, labels = map(json.loads, changed.split("|"))
                numbers = [7, *user, *(number for field in of_items for item in field for number in item), *labels]
                assert [len(item) for field in of_items for item in field] == [5, 5, 7, 7, 12, 12], changed
                assert [number is None for number in numbers] == missing[0].tolist()
                assert [float(number or 0) for number in numbers] == values[0].tolist()
    assert accepted > 500
    assert refused > 2_000


def test_only_lines_that_are_not_clean_need_the_json_decoder(tmp_path, monkeypatch):
    """Both readers give the same tables; ids that a float cannot represent are left to the decoder."""
    rng = random.Random(2)
    lines = []
    for user in range(40):
        ids = [str(rng.randrange(1, 2**52)) for _ in range(3 + 5 * ITEMS)]
        dense = [rng.choice(["null", repr(round(rng.gauss(0, 3), 6)), "5e-06", "-0.0"]) for _ in range(19 * ITEMS)]
        lines.append(line_of([str(user), *ids, *dense, "1.0", "0"]))
    path = tmp_path / "set1.train.txt.part1"
    path.write_text("".join(lines))
    decoded, decode = [], Fields._decode

    def counted(self: Fields, texts: object) -> object:
        decoded.append(self)
        return decode(self, texts)

    monkeypatch.setattr(Fields, "_decode", counted)
    (clean,) = iter_batches([path])
    assert not decoded
    with monkeypatch.context() as patch:
        patch.setattr(Fields, "read_clean", lambda self, wanted: None)
        (other,) = iter_batches([path])
    assert decoded
    assert clean.equals(other)
    assert clean.num_rows == 40

    for digits in (str(2**53 + 1), str(2**53), f"-{2**53 + 1}"):
        large = line_of(["7", "1", "2", "3", digits, *["1"] * (NUMBERS - 5)])
        path.write_text("".join([*lines, large]))
        decoded.clear()
        (table,) = iter_batches([path])
        assert decoded
        assert table.column("item_id")[40].as_py() == [int(digits), 1]


def lists_of(tmp_path: Path, *lines: str) -> pa.Table:
    path = tmp_path / "set1.train.txt.part1"
    path.write_text("".join(lines))
    return pa.concat_tables(iter_batches([path]))


@pytest.mark.parametrize("field", [1, 4])
@pytest.mark.parametrize("digits", [2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1])
def test_long_ids_keep_all_digits_next_to_ids_with_a_decimal_point(tmp_path, digits, field):
    """17.0 is an id, too; the long id keeps all its digits."""
    plain = ["7"] + ["1"] * (NUMBERS - 1)
    long, dotted = [*plain[:field], str(digits), *plain[field + 1 :]], [*plain[:field], "17.0", *plain[field + 1 :]]
    ids = lists_of(tmp_path, line_of(long), line_of(dotted)).column("user_0" if field == 1 else "item_id").to_pylist()
    assert ids == ([digits, 17] if field == 1 else [[digits, 1], [17, 1]])


def test_largest_float32_is_read_whatever_the_other_lines_are(tmp_path):
    """3.4028235e38 is the usual text of the largest 32-bit float, slightly above it; halfway to 2**128 is too large.

    64-bit floats are 2**75 apart there.
    """
    plain = ["7"] + ["1"] * (NUMBERS - 1)
    place = 1 + 3 + 5 * ITEMS
    largest = [*plain[:place], "3.4028235e38", *plain[place + 1 :]]
    slow = [*plain[:1], "17.0", *plain[2:-1], "0.0"]
    for company in ([], [line_of(plain)], [line_of(slow).replace(", ", ",")]):
        table = lists_of(tmp_path, line_of(largest), *company)
        assert table.column("basic_0")[0].as_py() == [float(np.finfo(np.float32).max), 1.0]
    too_large = [*plain[:place], str(2**128 - 2**103 - 2**74), *plain[place + 1 :]]
    below = [*plain[:place], str(2**128 - 2**103 - 2**74 - 1), *plain[place + 1 :]]
    rejected = [*plain[:-1], "2"]
    smallest = [*plain[:place], str(-(2**128 - 2**103 - 2**75)), *plain[place + 1 :]]
    table = lists_of(tmp_path, line_of(smallest), line_of(slow).replace(", ", ","))
    assert table.column("basic_0")[0].as_py() == [-float(np.finfo(np.float32).max), 1.0]
    for texts, message in (
        (too_large, "line 2.*too large for a float of 32 bits"),
        (below, "line 3.*expected 0 or 1"),
    ):
        with pytest.raises(RejectedLines, match=message):
            lists_of(tmp_path, line_of(largest), line_of(texts), line_of(rejected))


@pytest.mark.parametrize("label", ["1e-50", "1.00000001", "0.99999999"])
def test_label_close_to_but_not_0_or_1_is_refused(tmp_path, label):
    """In 32 bits it would be 0 or 1."""
    labels = line_of(["7"] + ["1"] * (NUMBERS - 2) + [label])
    other_length = line_of(["7"] + ["1"] * (NUMBERS - 1)).replace(", [1, 1, 1, 1, 1]", "").replace("\n", "")
    for company in ((), ("\r\n" + other_length,)):
        with pytest.raises(
            RejectedLines, match=rf"line 1, field 6 .labels.: the label of item 2 is {label}: expected"
        ):
            lists_of(tmp_path, labels.removesuffix("\n") + (company[0] if company else "\n"))
