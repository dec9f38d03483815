"""Damaged raw text: every line is kept, dropped or rejected, and rejected lines are exactly those that were damaged.

Damage is planted at known lines among good ones; good lines have no null, so that a filled-in one would be seen.
"""

from __future__ import annotations

import collections
import gzip
import hashlib
import json
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hf_rerank import cli
from hf_rerank.data.prepared import read_prepared
from hf_rerank.data.prm_public import find_files, iter_batches, prepare_prm_public, truth_file
from hf_rerank.data.prm_public.line_format import FIELDS, KINDS, MAX_LINE_BYTES
from hf_rerank.data.prm_public.text import TextRange, cut_text
from hf_rerank.data.report import MAX_NAMED_LINES, PrepareReport, RejectedLines
from hf_rerank.errors import InputError


def raw_line(user_id: int, **fields: object) -> str:
    """A line of two items; ``fields`` replaces user, item, basic, optional, labels by other values or text."""
    values = {
        "user": [2, 1, 3],
        "item": [[100 + user_id, 10, 2, 3, 1], [user_id, 11, 2, 3, 1]],
        "basic": [[user_id / 8, 1.5, 0, 0, 0, 0, -1e-3]] * 2,
        "optional": [[0.25] * 12] * 2,
        "labels": [1.0, 0.0],
    } | fields
    return "|".join([str(user_id), *(text if isinstance(text, str) else json.dumps(text) for text in values.values())])


# Kind -> the lines of that kind, and the field that is named.
DAMAGED = {
    "wrong number of fields": [(raw_line(1).rpartition("|")[0], None), (raw_line(1) + "|", None), ("hello", None)],
    "wrong number of values": [(raw_line(1, user=[1, 2]), 2), (raw_line(1, item=[[1, 2, 3, 4, 5], [1, 2]]), 3)],
    "ragged": [(raw_line(1, labels=[1.0]), 6), (raw_line(1, basic=[[0] * 7] * 3), 4)],
    "no items": [(raw_line(1, item=[], basic=[], optional=[], labels=[]), 3)],
    "not JSON": [(raw_line(1, user="[1, 2, 3"), 2), (raw_line(1, labels="[1.0,, 0.0]"), 6)],
    "not an array": [(raw_line(1, user="5"), 2), (raw_line(1, optional="[1, 2]"), 5)],
    "not a number": [
        ("x" + raw_line(1), 1),
        (raw_line(1, user='[1, "2", 3]'), 2),
        (raw_line(1, user='[1, "null", 3]'), 2),
        (raw_line(1, user='[1, "n", 3]'), 2),
        (raw_line(1, basic=[[True] * 7] * 2), 4),
    ],
    "not a whole number": [(raw_line(1, user=[1, 2.5, 3]), 2), (raw_line(1, item=[[2**70, 1, 1, 1, 1]] * 2), 3)],
    "not finite": [
        (raw_line(1, basic=[[float("nan")] * 7] * 2), 4),
        (raw_line(1, optional=[[float("-inf")] * 12] * 2), 5),
        (raw_line(1, basic=[[1e39] * 7] * 2), 4),
        (raw_line(1, basic=[[1, 2, 3, 4, 5, 6, "?"]] * 2).replace('"?"', "1e999"), 4),
    ],
    "null": [
        (raw_line(1, labels=[None, 1]), 6),
        (raw_line(1, item=[[1] * 5, None]), 3),
        (raw_line(1, user="null"), 2),
    ],
    "label": [(raw_line(1, labels=[0, 2]), 6), (raw_line(1, labels=[-1, 1]), 6), (raw_line(1, labels=[0.5, 1]), 6)],
    "not UTF-8": [(raw_line(1).replace("101", "1\udcff1"), None)],
    "not ASCII": [(raw_line(1).replace("101", "1\u00e91"), None), ("\ufeff" + raw_line(1), None)],
    "NUL byte": [(raw_line(1).replace("101", "1\0001"), 3)],
    "line too long": [(raw_line(1) + " " * MAX_LINE_BYTES, None), ("9" * (MAX_LINE_BYTES + 2), None)],
    "empty line": [("", None), ("  ", None), ("\r", None)],
}
CUT_OFF = raw_line(1)[:60]


def plant(folder: Path, good: int = 300, seed: int = 0) -> tuple[dict[int, tuple[str, str | None]], list[int]]:
    """Writes two files of good and damaged lines; the second ends inside a line.

    Returns:
        The damaged lines of the second file with kind and field, and the users of the good lines of both files.
    """
    rng = random.Random(seed)
    lines: list[tuple[str, str | None, int | None]] = [(raw_line(user), None, None) for user in range(good)]
    lines += [(line, kind, field) for kind, found in DAMAGED.items() for line, field in found]
    rng.shuffle(lines)
    lines.insert(0, (raw_line(good), None, None))  # a byte-order mark on the first line is harmless
    lines.append((CUT_OFF, "cut-off last line", None))
    text = "\n".join(line for line, _, _ in lines)
    folder.mkdir(exist_ok=True)
    (folder / "set1.train.txt.part1").write_text("\r\n".join(map(raw_line, range(1000, 1020))) + "\r\n")
    (folder / "set1.train.txt.part2").write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8", "surrogateescape"))
    damaged = {
        number: (kind, None if field is None else f"field {field} ({FIELDS[field - 1]})")
        for number, (_, kind, field) in enumerate(lines, start=1)
        if kind is not None
    }
    return damaged, sorted([*range(good + 1), *range(1000, 1020)])


def lists_of(folder: Path) -> list[dict]:
    return [
        row
        for paths in read_prepared(folder).files.values()
        for path in paths
        for row in pq.read_table(path).to_pylist()
    ]


def parquet_digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


def test_every_kind_of_damage_is_planted():
    assert {*DAMAGED, "cut-off last line", "cut-off gzip"} == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_rejected_lines_are_exactly_the_damaged_ones(tmp_path, seed):
    damaged, users = plant(tmp_path / "raw", seed=seed)
    counts = collections.Counter(kind for kind, _ in damaged.values())
    written = []
    for piece_bytes, threads in ((5_000, 1), (2**23, 3)):
        output = tmp_path / f"lists-{threads}"
        options = {"shard_bytes": 20_000, "piece_bytes": piece_bytes, "threads": threads, "progress": False}
        report = prepare_prm_public(tmp_path / "raw", output, on_error="skip", **options)
        rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
        assert {reject["line"]: (reject["kind"], reject["column"]) for reject in rejects} == damaged
        assert {reject["file"] for reject in rejects} == {"set1.train.txt.part2"}
        assert all(reject["reason"] and len(reject["text"]) < 100 for reject in rejects)
        assert [reject["line"] for reject in rejects] == sorted(damaged)
        assert report.rejected == counts
        assert report.read == 20 + 301 + len(damaged) == sum(report.lists.values()) + sum(report.rejected.values())
        assert json.loads((output / "report.json").read_text())["rejected"] == counts
        assert f"line too long {counts['line too long']}" in (output / "README.md").read_text()

        lists = lists_of(output)
        assert sorted(row["user_id"] for row in lists) == users
        for row in lists:  # nothing is filled in, nothing comes from another line
            user = row["user_id"]
            assert row["item_id"] == [100 + user, user]
            assert row["basic_0"] == [user / 8] * 2
            assert (row["click"], row["user_0"], row["optional_11"]) == ([1, 0], 2, [0.25, 0.25])
        assert report.nulls == {}
        described = [(output / name).read_bytes() for name in ("rejects.jsonl", "report.json", "README.md")]
        written.append((sorted(lists, key=lambda row: row["list_id"]), described))
    assert written[0] == written[1]  # whatever the size of the pieces


def test_batches_skip_and_report_the_same_lines(tmp_path):
    damaged, users = plant(tmp_path / "raw")
    report, rejects = PrepareReport(), []
    files = find_files(tmp_path / "raw")
    batches = iter_batches(files, on_error="skip", on_reject=rejects.append, report=report, piece_bytes=20_000)
    assert sorted(user for batch in batches for user in batch.column("user_id").to_pylist()) == users
    assert {reject.line: (reject.kind, reject.column) for reject in rejects} == damaged
    assert sum(report.rejected.values()) == len(damaged)


def test_public_protocol_counts_every_line_once(tmp_path):
    folder = tmp_path / "raw"
    plant(folder)
    path = folder / "set1.train.txt.part1"
    lines = path.read_text().splitlines()
    lines[3] = raw_line(5, user=[None, 1, 1])
    lines[8] = raw_line(5, labels=[None, 7])  # a line with a null is dropped, whatever else is wrong with it
    lines[9] = raw_line(5, labels=[7, 7])
    path.write_text("\n".join(lines))
    reports = []
    for piece_bytes in (3_000, 2**23):
        report = PrepareReport()
        options = {"protocol": "public", "share": 1.0, "on_error": "skip", "piece_bytes": piece_bytes}
        kept = [row for table in iter_batches([path], report=report, **options) for row in table.to_pylist()]
        assert (report.read, len(kept)) == (20, 17)
        assert report.dropped == {"holds a null": 2, "not in the drawn 100 %": 0}
        assert report.rejected == {"label": 1}
        everything = PrepareReport()
        options["share"] = 0.5
        half = sum(table.num_rows for table in iter_batches(find_files(folder), report=everything, **options))
        assert everything.read == half + sum(everything.dropped.values()) + sum(everything.rejected.values())
        reports.append((report, everything))
    assert reports[0] == reports[1]


def test_error_names_all_damaged_lines_of_a_batch_after_yielding_earlier_lists(tmp_path):
    path = tmp_path / "set1.train.txt.part1"
    lines = [raw_line(user) for user in range(100)]
    for number in (31, 40, 41, 60):
        lines[number - 1] = raw_line(1, labels=[7, 1])
    lines[50 - 1] = "hello"
    path.write_text("\n".join(lines) + "\n")
    report, users = PrepareReport(), []
    with pytest.raises(RejectedLines) as raised:  # noqa: PT012 - what comes before the error counts, too
        for batch in iter_batches([path], report=report):
            users += batch.column("user_id").to_pylist()
    assert users == list(range(30))
    assert (report.read, report.rejected) == (30, {})
    assert [reject.line for reject in raised.value.lines] == [31, 40, 41, 50, 60]
    message = str(raised.value)
    assert message.startswith(f"{path}, line 31, field 6 (labels): the label of item 1 is 7: expected 0 or 1: [7, 1]")
    assert "5, by kind: label 4 (line 31, 40, 41, 60), wrong number of fields 1 (line 50)" in message
    assert "\n" not in message


def test_many_damaged_lines_are_counted_and_only_the_first_are_named(tmp_path):
    path = tmp_path / "set1.train.txt.part1"
    path.write_text("hello\n" * 500 + "\n" * 70)
    with pytest.raises(RejectedLines) as raised:
        list(iter_batches([path]))
    assert len(raised.value.lines) == 570
    message = str(raised.value)
    numbers = ", ".join(map(str, range(1, MAX_NAMED_LINES + 1)))
    assert f"wrong number of fields 500 (line {numbers}), empty line 70" in message
    assert "550 more lines are not named" in message
    assert len(message) < len(str(path)) + 500


def test_unusual_json_spacing_is_read_next_to_damaged_lines(tmp_path):
    path = tmp_path / "set1.train.txt.part1"
    other = raw_line(3).replace("]]", "]\t]").replace("[[", "[ [")
    with_null = raw_line(4, user=[None, 1, 3]).replace("]]", "] ]")
    large = raw_line(5, item=[[2**53 + 1, 1, 1, 1, 1], [7, 1, 1, 1, 1]])
    as_float = raw_line(6, item=[[8.0, 1, 1, 1, 1], [7, 1, 1, 1, 1]])
    path.write_text("\n".join([raw_line(2), other, "hello", with_null, large, as_float]) + "\n")
    rows = [row for batch in iter_batches([path], on_error="skip") for row in batch.to_pylist()]
    assert [row["user_id"] for row in rows] == [2, 3, 4, 5, 6]
    assert [row["item_id"] for row in rows] == [[102, 2], [103, 3], [104, 4], [2**53 + 1, 7], [8, 7]]
    assert [row["user_0"] for row in rows] == [2, 2, None, 2, 2]
    assert rows[1]["basic_6"] == pytest.approx([-1e-3, -1e-3])


LONG = """
import resource, sys
from hf_rerank.data.prm_public import iter_batches
from hf_rerank.data.report import MAX_NAMED_LINES, PrepareReport, RejectedLines
peaks = []
for path in sys.argv[1:]:
    report = PrepareReport()
    lists = sum(table.num_rows for table in iter_batches([path], on_error="skip", report=report))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    print(lists, report.read, report.rejected.get("line too long", 0), peaks[-1])
try:
    list(iter_batches([path]))
except ValueError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_a_line_of_100_mb_is_skipped_in_bounded_memory(tmp_path):
    short, long = tmp_path / "set1.train.txt.part1", tmp_path / "set1.train.txt.part2"
    lines = "".join(raw_line(user) + "\n" for user in range(20_000))
    short.write_text(lines)
    long.write_text(raw_line(1) + "\n" + "[1, " * (25 * 2**20) + "\n" + lines)
    done = subprocess.run([sys.executable, "-c", LONG, short, long], capture_output=True, text=True, check=True)
    first, second, message, peak = done.stdout.splitlines()
    assert first.split()[:3] == ["20000", "20000", "0"]
    assert second.split()[:3] == ["20001", "20002", "1"]
    assert "part2, line 2: the line has more than 1,048,576 bytes" in message
    # Megabytes: some batches of 8 MiB, never the line.
    assert int(peak) - int(first.split()[3]) < 70


# --------------------------------------------------------------------------------------------------------------- gzip


@pytest.mark.slow
def test_a_gzip_file_gives_the_same_lists(tmp_path):
    damaged, _ = plant(tmp_path / "raw")
    options = {"progress": False, "on_error": "skip", "shard_bytes": 20_000, "piece_bytes": 30_000}
    plain = prepare_prm_public(tmp_path / "raw", tmp_path / "plain", **options)
    raw = tmp_path / "raw" / "set1.train.txt.part2"
    content = raw.read_bytes()
    packed = raw.with_name(f"{raw.name}.gz")
    packed.write_bytes(gzip.compress(content[:9_000]) + gzip.compress(content[9_000:]))  # two members
    with pytest.raises(InputError, match=r"holds both set1\.train\.txt\.part2 and set1\.train\.txt\.part2\.gz"):
        find_files(tmp_path / "raw")
    raw.unlink()
    assert [path.name for path in find_files(tmp_path / "raw")] == ["set1.train.txt.part1", packed.name]
    assert truth_file(packed) == truth_file(raw)
    report = prepare_prm_public(tmp_path / "raw", tmp_path / "packed", **options)
    assert parquet_digests(tmp_path / "packed") == parquet_digests(tmp_path / "plain")
    assert (report.read, report.lists, report.rejected) == (plain.read, plain.lists, plain.rejected)
    assert sum(report.rejected.values()) == len(damaged)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0005, 0.3, 0.5, 0.999])
def test_truncated_gzip_file_is_named_and_its_complete_lines_are_kept(tmp_path, share):
    folder = tmp_path / "raw"
    folder.mkdir()
    text = "".join(raw_line(user) + "\n" for user in range(2_000)).encode()
    packed = gzip.compress(text)
    packed = packed[: max(int(share * len(packed)), 11)]
    (folder / "set1.train.txt.part1.gz").write_bytes(packed)
    (folder / "set1.train.txt.part2").write_text(raw_line(5_000) + "\n")
    # zlib itself says what can be unpacked.
    unpacked = zlib.decompressobj(31).decompress(packed)
    whole = unpacked.count(b"\n")
    tail = unpacked[unpacked.rfind(b"\n") + 1 :].decode()

    with pytest.raises(RejectedLines, match=rf"part1\.gz, line {whole + 1}: the gzip file is damaged .*fetch it"):
        prepare_prm_public(folder, tmp_path / "lists", progress=False, piece_bytes=50_000)
    report = prepare_prm_public(folder, tmp_path / "lists", progress=False, piece_bytes=70_000, on_error="skip")
    assert report.rejected == {"cut-off gzip": 1}
    assert report.read == whole + 2 == sum(report.lists.values()) + 1
    assert sorted(row["user_id"] for row in lists_of(tmp_path / "lists")) == [*range(whole), 5_000]
    (reject,) = map(json.loads, (tmp_path / "lists" / "rejects.jsonl").read_text().splitlines())
    assert (reject["line"], reject["kind"], reject["text"][:28]) == (whole + 1, "cut-off gzip", tail[:28])

    # Once the file is fetched again, reading continues where it stopped.
    again = tmp_path / "again"
    with pytest.raises(RejectedLines):
        prepare_prm_public(folder, again, progress=False)
    (folder / "set1.train.txt.part1.gz").write_bytes(gzip.compress(text))
    report = prepare_prm_public(folder, again, progress=False)
    assert (report.read, report.rejected) == (2_001, {})


def pieces_of(path: Path, piece_bytes: int) -> list[tuple[int, bytes, str]]:
    """Number and text of each line, by pieces, and how it ends: "line", "tail", or "long" for an overlong one."""
    found = []
    for piece in cut_text(TextRange(str(path), 0, None, 1), piece_bytes):
        lines = piece.text.splitlines(keepends=True)
        kinds = ["long" if len(line) > MAX_LINE_BYTES else "line" for line in lines]
        found += [(piece.first_line + k, line, kind) for k, (line, kind) in enumerate(zip(lines, kinds, strict=True))]
        assert (piece.broken is None) == (piece.lines == len(lines))
        if piece.broken is not None:
            found.append((piece.first_line + len(lines), piece.tail, "tail"))
    return found


@pytest.mark.parametrize("level", [0, 9])
def test_gzip_file_truncated_at_any_byte_gives_all_that_can_be_unpacked(tmp_path, level):
    text = b"".join(b"%d|%s\n" % (line, b"x" * (line * 7 % 23)) for line in range(8))
    packed, path = gzip.compress(text, level), tmp_path / "set1.train.txt.part1.gz"
    for length in range(1, len(packed)):
        path.write_bytes(packed[:length])
        unpacked = zlib.decompressobj(31).decompress(packed[:length])
        *whole, tail = unpacked.split(b"\n")
        expected = [(number, line + b"\n", "line") for number, line in enumerate(whole, start=1)]
        expected.append((len(whole) + 1, tail, "tail"))
        for piece_bytes in (1, 10, 64, 10**6):
            assert pieces_of(path, piece_bytes) == expected, (length, piece_bytes)


def test_gzip_file_truncated_inside_or_after_an_overlong_line(tmp_path):
    text = b"1|\n2|\n" + b"y" * (MAX_LINE_BYTES + 500) + b"\n4|\n5|xyz\n"
    packed, path = gzip.compress(text, 0), tmp_path / "set1.train.txt.part1.gz"
    long = long_lines = 0
    for length in (30, MAX_LINE_BYTES // 2, *range(len(packed) - 600, len(packed) - 40, 150), *range(-24, -8, 2)):
        length = length % len(packed)
        path.write_bytes(packed[:length])
        unpacked = zlib.decompressobj(31).decompress(packed[:length])
        *whole, tail = unpacked.split(b"\n")
        kinds = ["long" if len(line) > MAX_LINE_BYTES else "line" for line in whole] + ["tail"]
        # Only the beginning of an overlong line counts: 1 MiB, and four bytes for a byte-order mark and a line end.
        parts = [line[: MAX_LINE_BYTES + 4] + b"\n" for line in whole] + [tail[: MAX_LINE_BYTES + 4]]
        long, long_lines = long + (len(tail) > MAX_LINE_BYTES), long_lines + ("long" in kinds)
        for piece_bytes in (1_000, 200_000, 10**7):
            found = pieces_of(path, piece_bytes)
            cut = [(number, line[: MAX_LINE_BYTES + 4].rstrip(b"\n"), kind) for number, line, kind in found]
            lines = zip(parts, kinds, strict=True)
            expected = [(number, part.rstrip(b"\n"), kind) for number, (part, kind) in enumerate(lines, start=1)]
            assert cut == expected, (length, piece_bytes)
    assert long > 2  # truncated inside the long line, after its first MiB
    assert long_lines > 2  # and after it


@pytest.mark.slow
def test_truncated_gzip_file_rejects_the_same_line_for_any_batch_size(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    text = "".join(raw_line(user) + "\n" for user in range(6)).encode()
    packed = gzip.compress(text, 0)
    for length in (len(packed) - 20, len(packed) - 8 - 200, len(packed) - 8 - 600, len(packed) - 4):
        (folder / "set1.train.txt.part1.gz").write_bytes(packed[:length])
        *whole, tail = zlib.decompressobj(31).decompress(packed[:length]).split(b"\n")
        for number, (piece_bytes, shard_bytes) in enumerate(((1, 2), (700, 2_000), (10**6, 2), (10**6, 10**6))):
            output = tmp_path / f"lists-{length}-{number}"
            options = {"piece_bytes": piece_bytes, "shard_bytes": shard_bytes, "progress": False}
            report = prepare_prm_public(folder, output, on_error="skip", **options)
            assert report.read == len(whole) + 1 == sum(report.lists.values()) + sum(report.rejected.values())
            (reject,) = map(json.loads, (output / "rejects.jsonl").read_text().splitlines())
            assert (reject["line"], reject["kind"]) == (len(whole) + 1, "cut-off gzip")
            assert reject["text"][:28] == tail.decode()[:28]


@pytest.mark.slow
def test_flipped_bit_in_a_gzip_file_is_always_detected(tmp_path):
    text = "".join(raw_line(user) + "\n" for user in range(50)).encode()
    packed, path = gzip.compress(text), tmp_path / "set1.train.txt.part1.gz"
    rng, named = random.Random(0), 0
    for place in rng.sample(range(10, len(packed)), 60):  # the header before holds a time and a name
        changed = bytearray(packed)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"part1\.gz, line \d+"):
            list(iter_batches([path]))
        named += 1
    assert named == 60


# ------------------------------------------------------------------------------------------------------- command line


def test_the_command_skips_and_counts_by_kind(tmp_path, capsys):
    damaged, _ = plant(tmp_path / "raw")
    command = ["prepare", "prm_public", "--raw-dir", str(tmp_path / "raw"), "--output-dir", str(tmp_path / "lists")]
    assert cli.main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"set1.train.txt.part2, line {min(damaged)}" in error
    assert "--on-error skip" in error
    assert cli.main([*command, "--on-error", "skipp"]) == 2
    assert "did you mean 'skip'" in capsys.readouterr().err
    assert cli.main([*command, "--on-error", "skip"]) == 0
    printed = capsys.readouterr().out
    for kind, count in collections.Counter(kind for kind, _ in damaged.values()).items():
        assert f"{count} lines rejected: {kind}\n" in printed
    assert f"rejected lines in {tmp_path / 'lists' / 'rejects.jsonl'}\n" in printed
