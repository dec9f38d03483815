"""The numbers of PRM Public's text: json's and float's values to the bit."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hf_rerank.data.prm_public import iter_batches
from hf_rerank.data.prm_public.fields import BASIC_COLUMNS, CATEGORICAL_COLUMNS, OPTIONAL_COLUMNS
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


def a_number(rng: random.Random) -> str:
    """A decimal text: as the data hold them, of any size, of many digits, or next to halfway between two float32."""
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


def lists_of(tmp_path: Path, *lines: str) -> pa.Table:
    path = tmp_path / "set1.train.txt.part1"
    path.write_text("".join(lines))
    return pa.concat_tables(iter_batches([path]))


def test_values_are_those_of_json_to_the_bit(tmp_path):
    rng = random.Random(0)
    rows = [
        ["7", *["1"] * (3 + 5 * ITEMS), *(a_number(rng) for _ in range(19 * ITEMS)), *["1"] * ITEMS]
        for _ in range(1_000)
    ]
    table = lists_of(tmp_path, *map(line_of, rows))
    missing = 0
    for number, row in enumerate(rows):
        dense = [json.loads(text) for text in row[4 + 5 * ITEMS : -ITEMS]]
        for names, start in ((BASIC_COLUMNS, 0), (OPTIONAL_COLUMNS, 7 * ITEMS)):
            for k, name in enumerate(names):
                expected = dense[start + k : start + len(names) * ITEMS : len(names)]
                found = table.column(name)[number].as_py()
                floats = [None if value is None else float(np.float32(float(value))) for value in expected]
                assert [repr(value) for value in found] == [repr(value) for value in floats]  # the sign of a zero, too
                missing += found.count(None)
    assert missing > 100
    assert table.column(CATEGORICAL_COLUMNS[0]).to_pylist() == [[1] * ITEMS] * 1_000


@pytest.mark.parametrize("field", [1, 4])
@pytest.mark.parametrize("digits", [2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1])
def test_long_ids_beside_ids_with_a_point(tmp_path, digits, field):
    """17.0 is an id, too; the one beside it keeps all its digits."""
    plain = ["7"] + ["1"] * (NUMBERS - 1)
    long, dotted = [*plain[:field], str(digits), *plain[field + 1 :]], [*plain[:field], "17.0", *plain[field + 1 :]]
    ids = lists_of(tmp_path, line_of(long), line_of(dotted)).column("user_0" if field == 1 else "item_id").to_pylist()
    assert ids == ([digits, 17] if field == 1 else [[digits, 1], [17, 1]])


def test_the_largest_float_is_one_in_any_company(tmp_path):
    """3.4028235e38 is how the largest float of 32 bits is written, and a bit above it; halfway to 2**128 is too much.

    Floats of 64 bits are 2**75 apart there.
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
def test_a_label_next_to_0_or_1_is_none(tmp_path, label):
    """In 32 bits it would be."""
    labels = line_of(["7"] + ["1"] * (NUMBERS - 2) + [label])
    other_length = line_of(["7"] + ["1"] * (NUMBERS - 1)).replace(", [1, 1, 1, 1, 1]", "").replace("\n", "")
    for company in ((), ("\r\n" + other_length,)):
        with pytest.raises(
            RejectedLines, match=rf"line 1, field 6 .labels.: the label of item 2 is {label}: expected"
        ):
            lists_of(tmp_path, labels.removesuffix("\n") + (company[0] if company else "\n"))
