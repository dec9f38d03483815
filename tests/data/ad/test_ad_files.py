"""Ad: wrong raw files, the truth of simulated lists, and interrupted preparing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm
from ad_by_hand import START, random_raw, write_raw
from folders import digests

from hf_rerank.data.ad import find_ad_files, prepare_ad
from hf_rerank.data.ad.lists import ListMaker
from hf_rerank.data.prepared import buckets, read_prepared, refuse_unfinished
from hf_rerank.errors import InputError
from hf_rerank.storage import CannotWrite

BEHAVIOURS = [(1, 0, "pv", 5, 6), (1, 1, "fav", 5, "NULL")]
SHOWN = [(1, 0, 11, 1), (1, 1, 11, 0), (1, 2, 11, 0)]
SMALL = {"block_bytes": 1_000, "bucket_bytes": 2_000, "run_bytes": 2_000, "shard_bytes": 2_000, "progress": False}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "raw", SHOWN, behaviours=BEHAVIOURS)


def refusal_message(raw: Path, **options: object) -> str:
    """The one-line message with which preparing fails; it leaves no files."""
    with pytest.raises(InputError) as refused:
        prepare_ad(raw, raw.parent / "lists", **{"progress": False, **options})
    assert not list(raw.parent.glob("*lists*"))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def replace_line(path: Path, number: int, line: bytes) -> None:
    """Replaces a line, counted from 1."""
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines))


# -------------------------------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize("name", ["raw_sample.csv", "ad_feature.csv", "user_profile.csv"])
def test_a_missing_file_is_named(raw: Path, name: str) -> None:
    (raw / name).unlink()
    message = refusal_message(raw)
    assert message.startswith(f"no {name} in {raw} (it holds ")
    assert "Tianchi" in message
    with pytest.raises(InputError, match="there is no such folder"):
        find_ad_files(raw / "nowhere")


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        (
            "raw_sample.csv",
            b"user,time_stamp,adgroup,pid,nonclk,clk",
            "column 3 of {} is 'adgroup', expected 'adgr",
        ),
        ("raw_sample.csv", b"user,time_stamp,adgroup_id,pid,nonclk", "{} lacks the column 'clk' (column 6): expected"),
        ("ad_feature.csv", b"1,2,3,4,5,6", "column 1 of {} is '1', expected 'adgroup_id': expected the header"),
        ("user_profile.csv", b"user", "column 1 of {} is 'user', expected 'userid'"),
        ("behavior_log.csv", b"user,time_stamp,btag,cate,brand,x", "{} has 6 columns, and 'x' is one too many"),
    ],
)
def test_wrong_header_error_names_the_column(raw: Path, name: str, header: bytes, message: str) -> None:
    replace_line(raw / name, 1, header)
    assert message.format(raw / name) in refusal_message(raw)


@pytest.mark.parametrize(
    ("name", "line", "text", "message"),
    [
        (
            "raw_sample.csv",
            3,
            b"1,1494000001,x,p,1,0",
            "line 3, adgroup_id: got 'x', expected an integer from 0 to",
        ),
        ("raw_sample.csv", 2, b"-1,1494000001,11,p,1,0", "line 2, user: got '-1', expected an integer"),
        ("raw_sample.csv", 4, b"1,1494000001,11,,1,0", "line 4, pid: got '', expected non-empty UTF-8 text"),
        (
            "raw_sample.csv",
            4,
            b"1,1494000001,11,p,1,1",
            "line 4, clk: nonclk is 1 and clk is 1, expected 0 and",
        ),
        ("raw_sample.csv", 4, b"1,1494000001,11,p,0,0", "line 4, clk: nonclk is 0 and clk is 0, expected"),
        ("raw_sample.csv", 4, b"1,1494000001,11,p,255,2", "line 4, clk: nonclk is 255 and clk is 2, expected"),
        ("raw_sample.csv", 4, b"1,1494000001,11,p,1.0,0", "line 4, nonclk: got '1.0', expected 0 or 1"),
        ("raw_sample.csv", 3, b"1,1494000001,11,p,1", "line 3: has 5 fields, expected 6 (user,time_stamp,"),
        ("raw_sample.csv", 2, b"1,1494000001", "line 2: has 2 fields, expected 6"),
        ("raw_sample.csv", 3, b"1,1494000001,11,p,1,0,0", "line 3: has 7 fields, expected 6"),
        ("raw_sample.csv", 3, b"", "line 3: has no fields, expected 6"),
        (
            "raw_sample.csv",
            3,
            b"1,1494000001,11,p\xff,1,0",
            "line 3, pid: got 'p\\\\xff', expected non-empty UTF-8 text",
        ),
        (
            "raw_sample.csv",
            3,
            b"1,1494000001000,11,p,1,0",
            "got '1494000001000', expected Unix seconds from 1000000000",
        ),
        ("raw_sample.csv", 3, b"1,1494000001000,11,p,1,0", "(are these milliseconds? divide them by 1000)"),
        ("raw_sample.csv", 3, b"1,20170506,11,p,1,0", "line 3, time_stamp: got '20170506', expected Unix seconds"),
        ("raw_sample.csv", 3, b"1,2017-05-06,11,p,1,0", "line 3, time_stamp: got '2017-05-06', expected Unix seconds"),
        ("behavior_log.csv", 3, b"1,17291,pv,5,6", "line 3, time_stamp: got '17291', expected Unix seconds"),
        (
            "behavior_log.csv",
            3,
            b"1,1494000001,click,5,6",
            "line 3, btag: got 'click', expected one of pv, cart, ",
        ),
        ("behavior_log.csv", 3, b"1,1494000001,pv,NULL,6", "line 3, cate: got 'NULL', expected an integer"),
        ("behavior_log.csv", 3, b"1,1494000001,pv,5", "line 3: has 4 fields, expected 5 (user,time_stamp,btag,cate,"),
        ("ad_feature.csv", 2, b"11,1,2,3,4,cheap", "line 2, price: got 'cheap', expected a finite number (float32)"),
        ("ad_feature.csv", 2, b"11,1,2,3,4,-1", "line 2, price: got -1.0, expected a finite number"),
        ("ad_feature.csv", 2, b"11,1,2,3,4,inf", "line 2, price: got inf, expected a finite number"),
        ("ad_feature.csv", 2, b"11,1,2,3,null,1", "line 2, brand: got 'null', expected an integer from 0 to"),
        ("ad_feature.csv", 2, b"11,1,2,3,4,1e39", "line 2, price: got 1e+39, expected a finite number (float32)"),
        ("ad_feature.csv", 2, b'11,1,2,3,4,"1"', "line 2, price: got '\"1\"', expected a finite number"),
        ("user_profile.csv", 2, b"1,1,1,1,1,,NULL,1,", "line 2, shopping_level: got 'NULL', expected an integer"),
        ("user_profile.csv", 2, b"1,1,1,1,1,,9999999999,1,", "line 2, shopping_level: got '9999999999', expected"),
    ],
)
def test_error_names_file_and_line_of_malformed_input(
    raw: Path, name: str, line: int, text: bytes, message: str
) -> None:
    replace_line(raw / name, line, text)
    found = refusal_message(raw)
    assert found.startswith(f"{raw / name}, line {line}")
    assert message in found
    assert "; fix the line and rerun, or leave such lines out with --on-error skip" in found


@pytest.mark.slow
def test_line_numbers_count_across_blocks(raw: Path) -> None:
    raw = write_raw(raw, [(1, at, 11, 0) for at in range(500)])
    for wrong in (b"1,x,11,p,1,0", b"1,7,11,p,1,0", b"1,1494000001,11,p,1,1", b"1"):
        replace_line(raw / "raw_sample.csv", 333, wrong)
        for size in (40, 1_000, 2**20):
            assert "raw_sample.csv, line 333" in refusal_message(raw, block_bytes=size)


@pytest.mark.parametrize(("name", "key"), [("ad_feature.csv", "adgroup_id"), ("user_profile.csv", "userid")])
def test_duplicate_key_error_names_both_lines(raw: Path, name: str, key: str) -> None:
    with (raw / name).open("a") as file:
        row = (raw / name).read_text().splitlines()[1]
        file.write(f"7,{row.partition(',')[2]}\n{row}\n")
    value = row.partition(",")[0]
    assert f"{raw / name}, line 4: {key} {value} is already in line 2; expected one line each" in refusal_message(raw)


@pytest.mark.parametrize("name", ["raw_sample.csv", "ad_feature.csv", "user_profile.csv", "behavior_log.csv"])
def test_empty_or_truncated_file_is_refused(raw: Path, name: str) -> None:
    text = (raw / name).read_bytes()
    (raw / name).write_bytes(text[:-1])
    assert f"{raw / name} ends in the middle of a line, as if it was cut off: fetch it again" in refusal_message(raw)
    (raw / name).write_bytes(text[: text.index(b"\n") + 1])
    assert f"{raw / name} has a header and no rows: fetch it again" in refusal_message(raw)
    (raw / name).write_bytes(b"")
    assert f"{raw / name} is empty: expected the header" in refusal_message(raw)


def test_line_longer_than_a_block_is_refused(raw: Path) -> None:
    replace_line(raw / "raw_sample.csv", 3, b"1" * 5_000)
    assert f"line 3 of {raw / 'raw_sample.csv'} is longer than 1,000 bytes" in refusal_message(raw, block_bytes=1_000)


def test_crlf_and_byte_order_mark_do_not_change_lists(raw: Path) -> None:
    prepare_ad(raw, raw.parent / "lists", progress=False)
    for path in raw.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    prepare_ad(raw, raw.parent / "same", progress=False)
    for path in (raw.parent / "lists").glob("*.parquet"):
        assert pq.read_table(path).equals(pq.read_table(raw.parent / "same" / path.name))


def test_file_changed_while_being_read_is_refused(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_and_change(*args: object) -> object:
        with (raw / "behavior_log.csv").open("a") as file:
            file.write("1,1494000000,pv,1,1\n")
        return read(*args)

    read = buckets.read_bucket
    monkeypatch.setattr("hf_rerank.data.ad.source.read_bucket", read_and_change)
    with pytest.raises(InputError, match=r"behavior_log.csv changed while it was read: run again when"):
        prepare_ad(raw, raw.parent / "lists", progress=False)
    assert not list(raw.parent.glob("*lists*"))


@pytest.mark.slow
def test_on_error_skip_leaves_out_damaged_lines_and_records_them(tmp_path: Path) -> None:
    """The lists are those of files without these lines, whatever blocks the lines fall into."""
    raw = random_raw(tmp_path / "raw", 3)
    shutil.copytree(raw, tmp_path / "clean")
    damaged = {
        "raw_sample.csv": {2: b"1,2", 9: b"x,1494000000,1,p,1,0", 15: b"1,1494000000,1,p,1,1", 16: b""},
        "behavior_log.csv": {4: b"1,0,pv,5,6", 5: b"1,1494000000,look,5,6", 30: b"1,1494000000000,pv,5,6"},
        "ad_feature.csv": {3: b"999,1,1,1,1,-5.0"},
        "user_profile.csv": {2: b"9,9,9"},
    }
    for name, lines in damaged.items():
        whole = (raw / name).read_bytes().split(b"\n")
        for number, line in lines.items():
            whole.insert(number - 1, line)
        (raw / name).write_bytes(b"\n".join(whole))
    message = refusal_message(raw, **{**SMALL, "on_error": "raise"})
    assert "ad_feature.csv, line 3, price: got -5.0, expected" in message

    report = prepare_ad(raw, tmp_path / "skipped", **SMALL, on_error="skip")
    expected = prepare_ad(tmp_path / "clean", tmp_path / "whole", **SMALL)
    for path in sorted((tmp_path / "whole").glob("*.parquet")):
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "skipped" / path.name))
    assert (report.read, report.lists, report.dropped) == (expected.read, expected.lists, expected.dropped)
    assert expected.rejected == {}
    assert report.rejected == {
        "raw_sample.csv, fields": 2,
        "raw_sample.csv, user": 1,
        "raw_sample.csv, clk": 1,
        "behavior_log.csv, time_stamp": 2,
        "behavior_log.csv, btag": 1,
        "ad_feature.csv, price": 1,
        "user_profile.csv, fields": 1,
    }
    rejects = [json.loads(line) for line in (tmp_path / "skipped" / "rejects.jsonl").read_text().splitlines()]
    found = {name: {row["line"] for row in rejects if row["file"] == name} for name in damaged}
    assert found == {name: set(lines) for name, lines in damaged.items()}
    assert len(rejects) == 9


@pytest.mark.slow
def test_resumed_run_counts_rejected_lines_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_raw(tmp_path / "raw", 3)
    with (raw / "ad_feature.csv").open("ab") as file:
        file.write(b"1,2\n")
    options = {**SMALL, "on_error": "skip"}
    with monkeypatch.context() as patch:
        patch.setattr(ListMaker, "make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_ad(raw, tmp_path / "lists", **options)
    report = prepare_ad(raw, tmp_path / "lists", **options)
    assert report.rejected == {"ad_feature.csv, fields": 1}
    assert len((tmp_path / "lists" / "rejects.jsonl").read_text().splitlines()) == 1


def test_unknown_on_error_is_refused(raw: Path) -> None:
    assert (
        refusal_message(raw, on_error="skp") == "unknown on_error 'skp': expected raise or skip; did you mean 'skip'?"
    )


# -------------------------------------------------------------------------------------------------------------- truth


def write_truth(raw: Path, rows: list[dict], *, examination: bool = True, attraction: bool = True) -> Path:
    columns = {"list_id": pa.string(), "attraction": pa.list_(pa.float32()), "initial_position": pa.list_(pa.int64())}
    if not attraction:
        del columns["attraction"]
    schema = pa.schema(columns, metadata={"examination": json.dumps([1.0, 0.5, 0.25])} if examination else None)
    path = raw / "raw_sample.csv.truth.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


TRUTH = [
    {"list_id": f"2-{START + 9}", "attraction": [0.5, 0.25], "initial_position": [1, 0]},
    {"list_id": f"1-{START + 2}", "attraction": [0.125, 0.75, 1.0], "initial_position": [2, 0, 1]},
    {"list_id": f"1-{START + 500}", "attraction": [0.0], "initial_position": [0]},
]


@pytest.fixture
def simulated(tmp_path: Path) -> Path:
    """Three lists; the last one has no click."""
    shown = [*SHOWN, (2, 8, 11, 0), (1, 500, 11, 0), (2, 9, 12, 1)]
    return write_raw(tmp_path / "raw", shown)


@pytest.mark.slow
def test_truth_is_joined_to_simulated_lists(simulated: Path) -> None:
    write_truth(simulated, TRUTH)
    for number, sizes in enumerate(({}, {"bucket_bytes": 20, "run_bytes": 20})):
        output = simulated.parent / f"lists{number}"
        prepare_ad(simulated, output, progress=False, **sizes)
        rows = [row for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        found = {row["list_id"]: (row["position"], row["attraction"], row["click"]) for row in rows}
        assert found == {
            f"1-{START + 2}": ([2, 0, 1], [0.125, 0.75, 1.0], [1, 0, 0]),
            f"2-{START + 9}": ([1, 0], [0.5, 0.25], [0, 1]),
        }
        schema = read_prepared(output).schema
        assert (schema.position, schema.attraction) == ("position", "attraction")
        assert schema.examination == (1.0, 0.5, 0.25)
        assert "no line of the original dataset" in (output / "README.md").read_text()


def test_simulated_lists_are_cut_by_initial_position(simulated: Path) -> None:
    """Of the earliest 30 only: of 33 items, the one with initial position p is shown at second 32 - p."""
    write_raw(simulated, [(1, at, 100 + at, int(at == 2)) for at in range(33)])
    truth = {"attraction": [at / 64 for at in range(33)], "initial_position": list(range(32, -1, -1))}
    write_truth(simulated, [{"list_id": f"1-{START + 32}", **truth}])
    for length, first in ((30, 0), (3, 27)):
        output = simulated.parent / f"lists{length}"
        report = prepare_ad(simulated, output, progress=False, max_list_length=length)
        (row,) = pq.read_table(next(output.glob("test-*"))).to_pylist()
        assert row["adgroup_id"] == [100 + at for at in range(first, 30)]
        assert row["position"] == list(range(29 - first, -1, -1))
        assert row["attraction"] == [at / 64 for at in range(first, 30)]
        assert (report.cut_lists, report.lost_clicks) == (1, int(length == 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(0), f"no row for list '2-{START + 9}', which raw_sample.csv contains"),
        (
            lambda rows: rows.append(rows[0] | {"list_id": "9-1494000000"}),
            "raw_sample.csv has no list '9-1494000000",
        ),
        (lambda rows: rows.append(rows[1]), f"has list '1-{START + 2}' twice"),
        (
            lambda rows: rows[1].update(attraction=[0.5]),
            "has 3 impressions in raw_sample.csv, and 1 in the column att",
        ),
        (lambda rows: rows[1].update(initial_position=None), "and 0 in the column initial_position"),
        (
            lambda rows: rows[1].update(initial_position=[0, 0, 1]),
            "initial_position is [0, 0, 1], expected each of 0..",
        ),
        (lambda rows: rows[1].update(initial_position=[1, 2, 3]), "expected each of 0..2 once"),
        (lambda rows: rows[1].update(attraction=[0.5, None, 1.0]), "attraction is [0.5, nan, 1.0], expected prob"),
        (lambda rows: rows[1].update(attraction=[0.5, 0.0, 1.5]), "attraction is [0.5, 0.0, 1.5], expected prob"),
        (lambda rows: rows[1].update(initial_position=[1, None, 0]), "expected each of 0..2 once"),
        (lambda rows: rows[2].update(list_id="part1:3"), "row 3 of "),
        (
            lambda rows: rows[2].update(list_id="part1:3"),
            "list_id is 'part1:3', expected the user and the time of the",
        ),
    ],
)
def test_truth_that_does_not_match_the_lists_is_refused(simulated: Path, change: object, message: str) -> None:
    rows = [dict(row) for row in TRUTH]
    change(rows)
    write_truth(simulated, rows)
    found = refusal_message(simulated)
    assert message in found
    assert found.endswith("simulate them again")


def test_truth_may_have_positions_without_attraction(simulated: Path) -> None:
    write_truth(simulated, TRUTH, examination=False, attraction=False)
    prepare_ad(simulated, simulated.parent / "lists", progress=False)
    schema = read_prepared(simulated.parent / "lists").schema
    assert (schema.position, schema.attraction, schema.examination) == ("position", None, None)


# -------------------------------------------------------------------------------------------------------- interrupted


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def prepare_and_die(raw: Path, output: Path) -> None:
    """Kills itself by SIGKILL when the ninth bucket is turned into lists."""
    make, calls = ListMaker.make, []

    def make_or_die(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(*arguments)

    ListMaker.make = make_or_die  # type: ignore[method-assign]
    prepare_ad(raw, output, progress=False, shard_bytes=1, bucket_bytes=500)


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Killed while lists are made: the next run does not read the logs again, and ends with the same bytes."""
    raw, options = random_raw(tmp_path / "raw", 12), {"shard_bytes": 1, "bucket_bytes": 500, "progress": False}
    whole = prepare_ad(raw, tmp_path / "whole", **options)
    output, partial = tmp_path / "lists", tmp_path / "lists.partial"
    process = warm.start(prepare_and_die, raw, output, log=tmp_path / "log")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list((partial / "groups").iterdir())) > 0
    assert not output.exists()
    with pytest.raises(InputError, match="is not finished"):
        refuse_unfinished(output)
    with pytest.raises(InputError, match=r"lists.partial was started with protocol 'ours', but now it is 'public'"):
        prepare_ad(raw, output, **options, protocol="public")
    again = prepare_ad(raw, output, **options)
    assert digests(output) == digests(tmp_path / "whole")
    assert not partial.exists()
    ours, theirs = again.to_dict(), whole.to_dict()
    for name in ("read and cut raw_sample.csv", "read and cut behavior_log.csv", "read and write lists"):
        assert ours["stages"][name]["rows"] == theirs["stages"][name]["rows"]
    for name in ("seconds", "stages"):
        del ours[name], theirs[name]
    assert ours == theirs


@pytest.mark.slow
def test_run_stopped_while_reading_logs_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_raw(tmp_path / "raw", 12)
    partial = tmp_path / "lists.partial"
    parts = partial / ".parts.00000000-1-00000000.tmp"
    prepare_ad(raw, tmp_path / "whole", **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("hf_rerank.data.ad.partition.Partition._find_latest_lists", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_ad(raw, tmp_path / "lists", **SMALL)
    assert not partial.exists()
    parts.mkdir(parents=True)  # what a kill at this point would leave
    (parts / "impressions-00000.arrow").write_bytes(b"half a file")
    prepare_ad(raw, tmp_path / "lists", **SMALL)
    assert digests(tmp_path / "lists") == digests(tmp_path / "whole")
    assert not partial.exists()


@pytest.mark.slow
def test_resuming_refuses_changed_inputs_and_damaged_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, output = random_raw(tmp_path / "raw", 12), tmp_path / "lists"
    with monkeypatch.context() as patch:
        patch.setattr("hf_rerank.data.ad.lists.ListMaker.make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_ad(raw, output, **SMALL)
    with (raw / "raw_sample.csv").open("a") as file:
        file.write("1,1494000000,1,p,1,0\n")
    with pytest.raises(InputError, match=r"was started with files .*raw_sample.csv.* now it is .* to start again"):
        prepare_ad(raw, output, **SMALL)
    content = (raw / "raw_sample.csv").read_bytes().replace(b"1,1494000000,1,p,1,0\n", b"")
    (raw / "raw_sample.csv").write_bytes(content[:-2] + (b"1" if content[-2:-1] == b"0" else b"0") + b"\n")
    with pytest.raises(
        InputError, match=r"raw_sample.csv has changed since .*partial was started: remove .* to start"
    ):
        prepare_ad(raw, output, **SMALL)
    (raw / "raw_sample.csv").write_bytes(content)
    shutil.rmtree(tmp_path / "lists.partial")
    with monkeypatch.context() as patch:
        patch.setattr("hf_rerank.data.ad.lists.ListMaker.make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_ad(raw, output, **SMALL)
    run = tmp_path / "lists.partial" / "parts" / "behaviours-00000.arrow"
    run.write_bytes(run.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"behaviours-00000.arrow is missing or not as it was .* to start again"):
        prepare_ad(raw, output, **SMALL)


def test_full_disk_error_names_file_and_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_raw(tmp_path / "raw", 12)

    def full(*args: object, **options: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(buckets.pa, "OSFile", full)
    with pytest.raises(
        CannotWrite,
        match=r"impressions-00000.arrow could not be written: about .* are needed, .* are free .*No space left",
    ):
        prepare_ad(raw, tmp_path / "lists", progress=False)
    assert not list(tmp_path.glob("*lists*"))
