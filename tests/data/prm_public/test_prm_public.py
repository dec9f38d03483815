"""PRM Public: raw text -> lists. Expected values are written out, or read by json without the fast reader."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank.data.prm_public import (
    TextRange,
    find_files,
    find_ranges,
    iter_batches,
    prm_public_columns,
    prm_public_schema,
    truth_file,
)
from hf_rerank.data.prm_public.line_format import (
    BASIC_COLUMNS,
    CATEGORICAL_COLUMNS,
    MAX_LINE_BYTES,
    OPTIONAL_COLUMNS,
    USER_COLUMNS,
)
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS, assign_splits
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema
from hf_rerank.validation import Lists

REAL_LINE = Path(__file__).parents[3] / ".." / "shared" / "data" / "prm_public_row.txt"
ITEM_COLUMNS = (*CATEGORICAL_COLUMNS, *BASIC_COLUMNS, *OPTIONAL_COLUMNS)


def raw_line(user_id: int = 7, clicks: tuple[int, ...] = (1, 0), **fields: object) -> str:
    """A line of len(clicks) items; ``fields`` replaces user, item, basic, optional, labels by other values or text."""
    n = range(len(clicks))
    values = {
        "user": [2, 1, 3],
        "item": [[100 + i, 10 + i, 2, 3, 1] for i in n],
        "basic": [[i + k / 8 for k in range(7)] for i in n],
        "optional": [[-i - k / 8 for k in range(12)] for i in n],
        "labels": [float(click) for click in clicks],
    }
    texts = [
        text if isinstance(text := fields.get(key, value), str) else json.dumps(text) for key, value in values.items()
    ]
    return "|".join([str(user_id), *texts])


def write(folder: Path, *lines: str, part: int = 1, end: str = "\n") -> Path:
    path = folder / f"set1.train.txt.part{part}"
    path.write_bytes("".join(line + end for line in lines).encode("utf-8", "surrogateescape"))
    return path


def read(*sources: object, **options: object) -> list[dict]:
    return [row for table in iter_batches(list(sources), **options) for row in table.to_pylist()]


def count_lists(path: Path) -> int:
    return len(read(path))


def parsed(line: str) -> dict:
    """The columns of a line, by json alone."""
    user, *rest = line.split("|")
    of_user, items, basic, optional, labels = map(json.loads, rest)
    row = {"user_id": int(user), **dict(zip(USER_COLUMNS, of_user, strict=True)), "click": labels}
    for names, values in ((CATEGORICAL_COLUMNS, items), (BASIC_COLUMNS, basic), (OPTIONAL_COLUMNS, optional)):
        for k, name in enumerate(names):
            row[name] = [item[k] for item in values]
            assert all(len(item) == len(names) for item in values)
    return row


def same(row: dict, expected: dict) -> bool:
    """Equal; dense columns to float32."""
    for name, value in expected.items():
        if name in BASIC_COLUMNS + OPTIONAL_COLUMNS:
            value = [None if number is None else float(np.float32(number)) for number in value]
        if row[name] != value:
            return False
    return True


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.skipif(not REAL_LINE.is_file(), reason="needs ../shared/data/prm_public_row.txt, the authors' example")
def test_real_example_line_is_read():
    (row,) = read(REAL_LINE)
    assert (row["user_id"], [row[name] for name in USER_COLUMNS]) == (362730, [2, 1, 3])
    assert row["item_id"][:3] == [5446604, 5744528, 2537150]
    assert [row[f"item_{k}"][29] for k in range(1, 5)] == [3, 1, 4, 1]
    assert row["basic_0"][0] == np.float32(1.718472)
    assert row["optional_0"][0] == np.float32(-0.11826)
    assert [slot for slot, click in enumerate(row["click"]) if click] == [2, 3, 6, 16]
    assert row["split"] == "test"  # printf 362730 | md5sum -> 470796ee, modulo 10,000 is 9726
    assert same(row, parsed(REAL_LINE.read_text().strip()))


def test_splits_match_precomputed_md5_values():
    # printf ID | md5sum | cut -c1-8, then modulo 10,000: 7 -> 8f14e45f -> 1071; 42 -> a1d0c6e8 -> 4184;
    # 2 -> c81e728d -> 8605; 1 -> c4ca4238 -> 9560; 0 -> cfcd2084 -> 6916
    ids, expected = [7, 42, 2, 1, 0, 7], ["ranker_train", "train", "validation", "test", "train", "ranker_train"]
    assert assign_splits(ids).tolist() == expected
    assert assign_splits(map(str, ids)).tolist() == expected
    shares = {split: float(np.mean(assign_splits(range(20_000)) == split)) for split in SPLITS}
    expected_shares = {"ranker_train": 0.40, "train": 0.45, "validation": 0.05, "test": 0.10}
    assert shares == pytest.approx(expected_shares, abs=0.015)  # more than four standard errors


@pytest.mark.slow
def test_rows_equal_json_over_many_batches(tmp_path):
    rng = random.Random(0)

    def number() -> float | None:
        return None if rng.random() < 0.05 else rng.choice([0, -1, round(rng.gauss(0, 3), 6), 1e-7, -2.5e3])

    lines = []
    for user in range(300):
        n = rng.choice([1, 2, 30])
        lines.append(
            raw_line(
                user,
                tuple(rng.choice([0, 1]) for _ in range(n)),
                user=[rng.choice([None, 1, 2]) for _ in range(3)],
                item=[[rng.choice([None, rng.randrange(2**40)]) for _ in range(5)] for _ in range(n)],
                basic=[[number() for _ in range(7)] for _ in range(n)],
                optional=[[number() for _ in range(12)] for _ in range(n)],
            )
        )
    path = write(tmp_path, *lines)
    rows = read(path, piece_bytes=20_000)
    assert [row["list_id"] for row in rows] == [f"part1:{number}" for number in range(1, 301)]
    assert all(same(row, parsed(line)) for row, line in zip(rows, lines, strict=True))
    assert [row["split"] for row in rows] == assign_splits(range(300)).tolist()
    assert next(iter_batches([path])).schema == prm_public_columns()

    # Ranges of lines, read separately, give the same lists under the same ids; so do single splits.
    ranges = find_ranges([path], range_bytes=50_000)
    assert len(ranges) > 5
    assert (ranges[0].start, ranges[-1].end) == (0, path.stat().st_size)
    assert read(*ranges) == rows
    assert read(ranges[3]) == rows[ranges[3].first_line - 1 : ranges[4].first_line - 1] != []
    assert read(path, splits=("test",)) == [row for row in rows if row["split"] == "test"] != []


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + raw_line() + "\n",
        raw_line() + "\r\n",
        raw_line(),  # no line end, but complete
        raw_line().replace("|", " | ") + "\n",
        raw_line(item="[[100.0, 10, 2, 3, 1], [101, 11, 2.0, 3e0, 1]]") + "\n",  # whole ids written as floats
    ],
    ids=["BOM", "CRLF", "no line end", "blanks", "ids as floats"],
)
def test_harmless_differences_of_format_are_accepted(tmp_path, text):
    path = tmp_path / "set1.train.txt.part1"
    path.write_bytes(text.encode())
    (row,) = read(path)
    assert same(row, parsed(raw_line()))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_reading_in_a_forked_process_is_refused_instead_of_hanging(tmp_path):
    path = write(tmp_path, raw_line())
    assert len(read(path)) == 1
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(count_lists, [path]).get(timeout=60) == 1
    with multiprocessing.get_context("fork").Pool(1) as pool:
        forked = pool.apply_async(count_lists, [path])
        with pytest.raises(InputError, match="multiprocessing_context='spawn'"):
            forked.get(timeout=60)


# ------------------------------------------------------------------------------------------------------------- damage

DAMAGE = {
    "field missing": (raw_line().rpartition("|")[0], "expected 6 fields between |, got 5"),
    "extra field": (raw_line() + "|1", "expected 6 fields between |, got 7"),
    "empty line": ("", "the line is empty"),
    "user id text": (raw_line().replace("7|", "u7|", 1), "field 1 (user id): expected a whole number"),
    "user id null": (raw_line().replace("7|", "null|", 1), "field 1 (user id): expected a whole number"),
    "user id fraction": (raw_line().replace("7|", "7.5|", 1), "field 1 (user id)"),
    "user id huge": (raw_line(10**19), "field 1 (user id)"),
    "user short": (raw_line(user=[1, 2]), "field 2 (user categorical): expected 3 values, got 2: [1, 2]"),
    "user null": (raw_line(user="null"), "field 2 (user categorical): expected a JSON array, got null"),
    "user lone number": (raw_line(user="5"), "field 2 (user categorical): expected a JSON array, got a number"),
    "user empty": (raw_line(user=""), "field 2 (user categorical): expected a JSON array, but this is not valid JSON"),
    "user text": (raw_line(user='[1, "2", 3]'), "field 2 (user categorical): value 2 is text"),
    "user true": (raw_line(user="[1, true, 3]"), "field 2 (user categorical): value 2 is true or false"),
    "json": (
        raw_line(item="[[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]"),
        "field 3 (item categorical): expected a JSON array, but",
    ),
    "two arrays": (raw_line(item="[[1, 2, 3, 4, 5]],[[1, 2, 3, 4, 5]]"), "field 3 (item categorical)"),
    "item width": (raw_line(item=[[1, 2, 3, 4, 5], [1, 2, 3, 4]]), "field 3 (item categorical): item 2 has 4 values"),
    "item null": (raw_line(item="[[1, 2, 3, 4, 5], null]"), "field 3 (item categorical): item 2 is null"),
    "item flat": (raw_line(item="[[1, 2, 3, 4, 5], 6]"), "field 3 (item categorical): item 2 is a number"),
    "id fraction": (raw_line(item=[[1.5, 2, 3, 4, 5]] * 2), "field 3 (item categorical): item 1, value 1 is 1.5"),
    "id huge": (
        raw_line(item=[[2**70, 2, 3, 4, 5]] * 2),
        "field 3 (item categorical): item 1, value 1 is 1180591620717",
    ),
    "ragged": (
        raw_line(basic=[[0] * 7] * 3),
        "field 4 (item dense, basic): the list is ragged: 3 items here, 2 in field 3",
    ),
    "NaN": (
        raw_line(basic=f"[{'[NaN, 1, 2, 3, 4, 5, 6], ' * 2}]".replace(", ]", "]")),
        "field 4 (item dense, basic): holds NaN",
    ),
    "Infinity": (raw_line(optional=[[float("-inf")] * 12] * 2), "field 5 (item dense, optional): holds -Infinity"),
    "1e400": (
        raw_line(basic=[[0] * 7] * 2).replace("[[0, ", "[[1e400, "),
        "field 4 (item dense, basic): item 1, value 1",
    ),
    "1e39": (raw_line(basic=[[1e39] * 7] * 2), "field 4 (item dense, basic): item 1, value 1 is 1e+39: too large"),
    "dense text": (raw_line(optional=[["a"] * 12] * 2), "field 5 (item dense, optional): item 1, value 1 is text"),
    "label 2": (raw_line(labels=[0, 2]), "field 6 (labels): the label of item 2 is 2: expected 0 or 1"),
    "label half": (raw_line(labels=[0.5, 1]), "field 6 (labels): the label of item 1 is 0.5"),
    "label null": (raw_line(labels=[0, None]), "field 6 (labels): the label of item 2 is null"),
    "label true": (raw_line(labels=[False, True]), "field 6 (labels): the label of item 1 is false"),
    "labels short": (raw_line(labels=[1]), "field 6 (labels): the list is ragged: 1 items here, 2 in field 3"),
    "no items": (raw_line(clicks=()), "field 3 (item categorical): the list is empty"),
    "not UTF-8": (raw_line().replace("2", "\udcff", 1), "byte 4 is not an ASCII character (b'\\xff"),
    "NUL": (raw_line().replace("2", "\0", 1), "field 2 (user categorical): holds a NUL byte"),
    "line too long": (raw_line() + " " * MAX_LINE_BYTES, "the line has more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("piece_bytes", [64, 2**23], ids=["one line per batch", "one batch"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_error_names_the_damaged_line_and_the_reason(tmp_path, damage, piece_bytes):
    bad, message = DAMAGE[damage]
    path = write(tmp_path, raw_line(), raw_line(), bad, raw_line(), raw_line(user=[0, 0]))
    with pytest.raises(InputError) as raised:
        read(path, piece_bytes=piece_bytes)
    assert str(raised.value).startswith(f"{path}, line 3")
    assert message in str(raised.value)
    assert len(str(raised.value)) < len(str(path)) + 300


@pytest.mark.slow
def test_every_truncation_is_refused(tmp_path):
    text = raw_line() + "\n" + raw_line()
    path = tmp_path / "set1.train.txt.part1"
    for length in range(len(raw_line()) + 2, len(text), 3):
        path.write_text(text[:length])
        with pytest.raises(InputError, match=r"part1, line 2.* the file ends inside this line"):
            read(path)
    path.write_text("")
    with pytest.raises(InputError, match="part1 is empty"):
        read(path)


@pytest.mark.slow
def test_one_changed_byte_is_read_as_json_reads_it_or_refused(tmp_path):
    """Where the fast reader accepts a line, json gives the same values; where it refuses, it says why."""
    rng = random.Random(1)
    line = raw_line(12, user=[None, 1, 3])
    accepted, refused = 0, []
    for place in range(len(line)):
        changed = line[:place] + rng.choice('0123456789[]|,.-+eE "nulxt') + line[place + rng.choice([0, 1]) :]
        path = write(tmp_path, raw_line(), changed, raw_line())
        try:
            rows = read(path)
        except InputError as error:
            refused.append(str(error))
            continue
        accepted += 1
        assert len(rows) == 3
        assert same(rows[1], parsed(changed)), changed
        assert set(rows[1]["click"]) <= {0, 1}
    assert all(message.startswith(f"{path}, line 2") for message in refused)
    assert accepted > 20
    assert len(refused) > 100


# ---------------------------------------------------------------------------------------------------------- protocols


def test_public_protocol_counts_every_line(tmp_path):
    lines = [raw_line(user, user=[1, None, 1] if user % 10 == 0 else [1, 1, 1]) for user in range(1_000)]
    path = write(tmp_path, *lines)
    report = PrepareReport()
    kept = read(path, protocol="public", report=report, piece_bytes=50_000)
    assert report.read == 1_000 == len(kept) + sum(report.dropped.values())
    assert report.dropped["holds a null"] == 100
    assert 50 < len(kept) < 130  # 90 expected, standard deviation 9
    assert all(int(row["list_id"].split(":")[1]) % 10 != 1 for row in kept)  # line 1 is user 0
    ids = {row["list_id"] for row in kept}
    assert ids == {row["list_id"] for row in read(path, protocol="public")}  # batches do not matter
    assert ids != {row["list_id"] for row in read(path, protocol="public", seed=1)}
    assert ids < {row["list_id"] for row in read(path, protocol="public", share=0.5)}
    assert len(read(path, protocol="public", share=1.0)) == 900
    with pytest.raises(InputError, match=r"unknown protocol 'publik'.*did you mean 'public'"):
        read(path, protocol="publik")


def test_longer_lists_are_cut_and_counted(tmp_path):
    path = write(tmp_path, raw_line(1, (0, 1, 0)), raw_line(2, (0, 0, 1)), raw_line(3, (1, 0)), raw_line(4, (0, 0, 0)))
    report = PrepareReport()
    rows = read(path, max_list_length=2, report=report)
    assert [row["click"] for row in rows] == [[0, 1], [0, 0], [1, 0], [0, 0]]
    assert [row["item_id"] for row in rows] == [[100, 101]] * 4
    assert [row["click_cut"] for row in rows] == [[0], [1], [], [0]]
    assert (report.cut_lists, report.lost_clicks) == (3, 1)


# -------------------------------------------------------------------------------------------------------------- truth


def write_truth(raw: Path, rows: list[dict], metadata: dict | None = None) -> None:
    table = pa.Table.from_pylist(rows)
    meta = {b"examination": b"[1.0, 0.5, 0.25]", b"mode": b"set"} if metadata is None else metadata
    pq.write_table(table.replace_schema_metadata(meta), truth_file(raw), row_group_size=2)


def truth_row(line: int, position: list[int], **fields: object) -> dict:
    attraction = [(line + slot) / 16 for slot in range(len(position))]
    return {"list_id": f"part1:{line}", "attraction": attraction, "initial_position": position, **fields}


def test_truth_is_joined_and_lists_are_cut_by_initial_position(tmp_path):
    path = write(tmp_path, *(raw_line(user, (1, 0, 1)) for user in range(5)))
    positions = [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0], [0, 2, 1]]
    write_truth(path, [truth_row(line, position) for line, position in enumerate(positions, start=1)])
    rows = read(path, piece_bytes=1)
    assert [row["position"] for row in rows] == positions
    assert rows[3]["attraction"] == [4 / 16, 5 / 16, 6 / 16]
    assert read(path) == rows == read(*find_ranges([path], 700))

    report = PrepareReport()
    cut = read(path, max_list_length=2, report=report)
    assert [row["item_id"] for row in cut] == [[100, 101], [101, 102], [100, 102], [101, 102], [100, 102]]
    assert [row["position"] for row in cut] == [[0, 1], [0, 1], [1, 0], [1, 0], [0, 1]]
    assert cut[1]["attraction"] == [3 / 16, 4 / 16]
    assert [row["click_cut"] for row in cut] == [[1], [1], [0], [1], [0]]
    assert (report.cut_lists, report.lost_clicks) == (5, 0)
    schema = prm_public_schema(3, position=True, examination=[1.0, 0.5, 0.25], attraction=True)
    lists = Lists.from_arrow(pa.Table.from_pylist(rows), schema, with_labels=True)
    assert lists.positions.tolist() == [0, 1, 2, 2, 0, 1, 1, 2, 0, 2, 1, 0, 0, 2, 1]
    assert "attraction" in lists.columns


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([truth_row(1, [0, 1])], "has 1 rows, but the raw file has at least 2 lines"),
        ([truth_row(line, [0, 1]) for line in (1, 2, 3)], "has 3 rows, but the raw file only 2 lines: it was cut off"),
        ([truth_row(2, [0, 1]), truth_row(1, [0, 1])], "row 1 of .* is list 'part1:2', expected 'part1:1'"),
        (
            [truth_row(1, [0, 1]), truth_row(2, [0, 1, 2])],
            "list part1:2 has 3 values of initial_position, but 2 items",
        ),
        ([truth_row(1, [0, 1], attraction=[0.5]), truth_row(2, [0, 1])], "list part1:1 has 1 values of attraction"),
        (
            [truth_row(1, [0, 1]), truth_row(2, [1, 2])],
            "initial_position of list part1:2 is not a permutation of 0..1",
        ),
        ([truth_row(1, [0, 1], attraction=[0.5, None]), truth_row(2, [0, 1])], "attraction holds nulls"),
        ([{"list_id": "part1:1"}], "has no column 'initial_position'"),
    ],
)
def test_wrong_truth_is_refused(tmp_path, rows, message):
    path = write(tmp_path, raw_line(1), raw_line(2))
    write_truth(path, rows)
    with pytest.raises(InputError, match=message):
        read(path)


def test_truth_must_exist_for_all_files_or_none(tmp_path):
    first, second = write(tmp_path, raw_line()), write(tmp_path, raw_line(), part=2)
    assert [row["list_id"] for row in read(first, second)] == ["part1:1", "part2:1"]
    write_truth(first, [truth_row(1, [1, 0])])
    with pytest.raises(InputError, match="differ"):
        read(first, second)
    truth_file(first).write_bytes(truth_file(first).read_bytes()[:-9])
    with pytest.raises(InputError, match="is not a complete Parquet file"):
        read(first)


# ---------------------------------------------------------------------------------------------------- files and schema


def test_find_files(tmp_path):
    with pytest.raises(InputError, match=r"hf4Academic/PRM.*hf-rerank simulate prm_public") as raised:
        find_files(tmp_path / "nowhere")
    assert "there is no such folder" in str(raised.value)
    paths = [write(tmp_path, raw_line(), part=part) for part in (1, 2, 10)]
    truth_file(paths[0]).touch()
    (tmp_path / "set1.train.txt.part3.unfinished").touch()
    assert find_files(tmp_path) == paths
    assert find_ranges(paths[:1]) == [TextRange(str(paths[0]), 0, paths[0].stat().st_size, 1)]


def test_schema_survives_json():
    schema = prm_public_schema(10, position=True, examination=[1.0, 0.5], attraction=True)
    assert ListSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    assert [feature.name for feature in schema.items] == list(ITEM_COLUMNS)
    assert (schema.position, schema.attraction, schema.group) == ("position", "attraction", "user_id")
    assert prm_public_schema().position is None
