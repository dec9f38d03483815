"""Preparing that is killed, stopped, out of disk or begun twice: the next run ends with the same bytes, or refuses."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tqdm import tqdm

from hf_rerank import cli
from hf_rerank.data import prm_public, unfinished
from hf_rerank.data.loading import load_lists
from hf_rerank.data.prepared import read_prepared
from hf_rerank.data.prm_public import DamagedText, prepare_prm_public
from hf_rerank.data.unfinished import Unfinished, partial_folder, unfinished_folder
from hf_rerank.errors import InputError

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")
BROKEN = "7|[1, 2, 3]|broken\n"


def raw_lines(users: range) -> list[str]:
    """One line a user, of two items; 150 bytes."""
    return [
        f"{user}|[1, 2, 3]|[[{user}, 1, 2, 3, 4], [5, 1, 2, 3, 4]]|{[[user / 8] * 7] * 2}|{[[0.5] * 12] * 2}|[1, 0]\n"
        for user in users
    ]


@pytest.fixture
def raw(tmp_path) -> Path:
    """70 lines in two files."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "set1.train.txt.part1").write_text("".join(raw_lines(range(43))))
    (folder / "set1.train.txt.part2").write_text("".join(raw_lines(range(43, 70))))
    return folder


def prepare(raw: Path, output: Path, **options: object) -> object:
    """Seven groups of ten lines, in batches of about three lines."""
    return prepare_prm_public(raw, output, **{"progress": False, "shard_lines": 10, "batch_bytes": 1_500, **options})


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "raw")


def damage(raw: Path, line: int, part: int = 2) -> None:
    """Puts a damaged line in the place of one of a part, which counts from 1."""
    path = raw / f"set1.train.txt.part{part}"
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = BROKEN
    path.write_text("".join(lines))


# ------------------------------------------------------------------------------------------------------------- shards


def test_shards_are_cut_at_the_same_lines_whatever_the_batches(raw, tmp_path):
    prepare(raw, tmp_path / "one", threads=1)
    prepare(raw, tmp_path / "two", batch_bytes=2**20, threads=3)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    lines = {}
    for split, paths in read_prepared(tmp_path / "one").files.items():
        for path in paths:
            lines[split, path] = {int(user) // 10 for user in pq.read_table(path).column("user_id").to_pylist()}
    # Users are numbered like lines: a shard holds lists of one ten only.
    assert {len(tens) for tens in lines.values()} <= {0, 1}
    assert set().union(*lines.values()) == set(range(7))


def test_a_shard_file_fills_row_groups_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "GROUP_LISTS", 4)
    table = pa.table({"n": pa.array(range(23))})
    with unfinished_folder(tmp_path / "lists", {}) as folder:
        group = folder.group(table.schema)
        for start, stop in ((0, 3), (3, 3), (3, 14), (14, 23)):
            group.write("test", table.slice(start, stop - start))
        folder.save(group, {}, whole=True)
        folder.finish(table.schema, lambda _: None)
    path = tmp_path / "lists" / "test-00000-of-00001.parquet"
    footer = pq.read_metadata(path)
    sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    assert sizes == [4, 4, 4, 4, 4, 3]
    assert pq.read_table(path).column("n").to_pylist() == list(range(23))
    assert pq.read_metadata(tmp_path / "lists" / "train-00000-of-00001.parquet").num_rows == 0
    assert left(tmp_path) == ["lists"]


# -------------------------------------------------------------------------------------------------------------- kills

# A process that imports once and forks a child for each run. A child dies by SIGKILL at its nth operation on the disk.
SWEEP = """
import hashlib, itertools, json, os, pathlib, resource, signal, sys
import pyarrow.parquet as pq
from hf_rerank.data import prm_public, unfinished, prm_public_text, prepared
from hf_rerank.errors import InputError
raw, output = sys.argv[1], pathlib.Path(sys.argv[2])

def child(kill_at=0, file_size=0):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        done = itertools.count(1)
        def dying(operation):
            def wrapped(*args, **kwargs):
                result = operation(*args, **kwargs)
                if next(done) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return wrapped
        of_paths = ('rename', 'replace', 'unlink', 'mkdir', 'write_text')
        operations = {os: ('fsync',), pq.ParquetWriter: ('write_table', 'close'), pathlib.Path: of_paths}
        for owner, names in operations.items():
            for name in names:
                setattr(owner, name, dying(getattr(owner, name)))
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        prm_public.prepare_prm_public(raw, output, progress=False, shard_lines=25, batch_bytes=5000, on_error='skip')
        os._exit(0)
    except InputError as error:
        sys.stderr.write(str(error) + chr(10))
        sys.stderr.flush()
        os._exit(3)
    except BaseException as error:
        sys.stderr.write(repr(error) + chr(10))
        sys.stderr.flush()
        os._exit(4)

def digests():
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.iterdir())}

def clear():
    for path in sorted(output.parent.rglob('*'), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
"""

KILL_SWEEP = (
    SWEEP
    + """
kills, results, at = 0, set(), int(sys.argv[3])
while True:
    status = child(kill_at=at)
    if os.WIFEXITED(status):
        print(json.dumps({"kills": kills, "folders": [dict(folder) for folder in results], "last": at,
                          "exit": os.WEXITSTATUS(status)}))
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    kills += 1
    if kills % 3 == 0 and os.WIFSIGNALED(child(kill_at=at // 2 + 7)):  # killed twice
        kills += 1
    finished = output.exists()  # killed while it cleaned up: nothing is left to do
    assert os.WEXITSTATUS(child()) in ((0, 3) if finished else (0,))
    results.add(tuple(digests().items()))
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    clear()
    at += int(sys.argv[4])
"""
)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@posix
@pytest.mark.parametrize(("first", "step"), [(1, 11), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_killed_at_any_operation_on_the_disk_the_next_run_gives_the_same_bytes(raw, tmp_path, first, step):
    # Rejected lines in each of three groups: killed within the second, more is in the file of rejects than was saved.
    for part, line in ((1, 10), (2, 5), (2, 20)):
        damage(raw, line, part)
    prepare(raw, tmp_path / "unbroken", on_error="skip", shard_lines=25)
    assert len((tmp_path / "unbroken" / "rejects.jsonl").read_text().splitlines()) == 3
    (tmp_path / "work").mkdir()
    sweep = run(KILL_SWEEP, raw, tmp_path / "work" / "lists", first, step)
    assert sweep.returncode == 0, sweep.stderr
    found = json.loads(sweep.stdout)
    assert found["exit"] == 0  # the last one was to die later than the work took
    assert found["last"] > 60  # operations on the disk: three groups of four shards, each closed, synced and renamed
    assert found["kills"] > (found["last"] - first) / step  # every fault fired
    assert found["folders"] == [digests(tmp_path / "unbroken")]


RANDOM = """
import sys
from hf_rerank.data.prm_public import prepare_prm_public
prepare_prm_public(sys.argv[1], sys.argv[2], progress=False, shard_lines=40, batch_bytes=9_000)
"""


@posix
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_stopped_at_random_moments_the_next_run_gives_the_same_bytes(raw, tmp_path, stop):
    (raw / "set1.train.txt.part2").write_text("".join(raw_lines(range(43, 2_000))))
    output, rng = tmp_path / "lists", random.Random(int(stop))
    prepare_prm_public(raw, tmp_path / "unbroken", progress=False, shard_lines=40)
    stopped = 0
    while stopped < 2:
        process = subprocess.Popen([sys.executable, "-c", RANDOM, raw, output], stderr=subprocess.DEVNULL)
        state = partial_folder(output) / "state.json"
        begun = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == begun):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(stop)
        if process.wait() == 0:
            break
        stopped += 1
        assert process.returncode == -stop  # Python, too, ends by the signal after Ctrl-C
        assert not output.exists()
    assert stopped  # the fault fired
    done = json.loads((partial_folder(output) / "state.json").read_text())["progress"]["report"]["read"]
    assert done in range(40, 2_000, 40)
    prepare_prm_public(raw, output, progress=False, shard_lines=40)
    assert digests(output) == digests(tmp_path / "unbroken")
    assert left(tmp_path) == ["lists", "unbroken"]


@posix
def test_a_full_disk_is_named_and_the_next_run_goes_on(raw, tmp_path):
    prepare(raw, tmp_path / "unbroken", shard_lines=25)
    # A limit on the size of files stands for a full disk; with each the disk is full at another place.
    script = """
results = []
for size in map(int, sys.argv[3:]):
    status = child(file_size=size)
    held = output.exists()
    assert not status or child() == 0
    results.append([size, os.WEXITSTATUS(status), held, digests()])
    clear()
print(json.dumps(results))
"""
    (tmp_path / "work").mkdir()
    shards = sorted(path.stat().st_size for path in (tmp_path / "unbroken").glob("*.parquet"))
    sizes = [1, 700, shards[0] - 1, shards[-1] - 1, 10 * shards[-1]]
    sweep = run(SWEEP + script, raw, tmp_path / "work" / "lists", *sizes)
    assert sweep.returncode == 0, sweep.stderr
    results = json.loads(sweep.stdout)
    assert [status for _, status, _, _ in results] == [3, 3, 3, 3, 0]  # the fault fired, in all but the last
    for size, status, held, found in results:
        assert held == (status == 0), size
        assert found == digests(tmp_path / "unbroken"), size
    messages = sweep.stderr.splitlines()
    assert len(messages) == 4
    for message in messages:
        assert message.startswith(f"cannot write {tmp_path / 'work' / 'lists.partial'}/"), message
        assert "File too large" in message
        assert "free space there and run again" in message


def test_a_full_disk_says_how_much_is_to_come(raw, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(InputError, match=r"cannot write .*00000.*No space left on device.*about 0\.0 GB are still"):
        prepare(raw, tmp_path / "lists")
    assert left(tmp_path) == []


# ------------------------------------------------------------------------------------------------------ damaged lines


@pytest.mark.parametrize("line", [1, 3, 8, 20, 27])
@pytest.mark.parametrize("how", ["mended", "skip"])
def test_a_damaged_line_stops_it_and_a_rerun_goes_on_from_there(raw, tmp_path, monkeypatch, line, how):
    whole = (raw / "set1.train.txt.part2").read_text()
    damage(raw, line)
    with pytest.raises(DamagedText, match=rf"part2, line {line}: expected 6 fields.*kept in .*lists\.partial"):
        prepare(raw, tmp_path / "lists")
    assert left(tmp_path) == ["lists.partial"]
    state = json.loads((tmp_path / "lists.partial" / "state.json").read_text())
    assert state["progress"]["report"]["read"] == 43 + line - 1

    on_error = "skip" if how == "skip" else "raise"
    if how == "mended":
        (raw / "set1.train.txt.part2").write_text(whole)
    read = []
    decoded = prepare_prm_public.__globals__["_decoded"]
    monkeypatch.setitem(
        prepare_prm_public.__globals__,
        "_decoded",
        lambda batch, rules: read.append(batch.batch.lines) or decoded(batch, rules),
    )
    report = prepare(raw, tmp_path / "lists", on_error=on_error)
    assert sum(read) == 27 - line + 1  # only what was not read before
    assert report.read == 70 == sum(report.lists.values()) + sum(report.rejected.values())
    prepare(raw, tmp_path / "unbroken", on_error=on_error)
    assert digests(tmp_path / "lists") == digests(tmp_path / "unbroken")
    assert ("rejects.jsonl" in digests(tmp_path / "lists")) == (how == "skip")


def test_several_stops_within_one_group(raw, tmp_path):
    whole = (raw / "set1.train.txt.part2").read_text()
    for line in (9, 10, 12, 13, 15):
        (raw / "set1.train.txt.part2").write_text(whole)
        damage(raw, line)
        with pytest.raises(DamagedText, match=f"part2, line {line}:"):
            prepare(raw, tmp_path / "lists")
        opened = [path.name for path in partial_folder(tmp_path / "lists").glob("open-*")]
        assert len(opened) <= 4
    (raw / "set1.train.txt.part2").write_text(whole)
    prepare(raw, tmp_path / "lists")
    prepare(raw, tmp_path / "unbroken")
    assert digests(tmp_path / "lists") == digests(tmp_path / "unbroken")


def test_damage_before_any_list_leaves_nothing(raw, tmp_path):
    (raw / "set1.train.txt.part1").write_text(BROKEN)
    with pytest.raises(DamagedText, match="part1, line 1: expected 6 fields"):
        prepare(raw, tmp_path / "lists")
    assert left(tmp_path) == []


# --------------------------------------------------------------------------------------------------- what is refused


def change(path: Path, place: int, byte: bytes) -> None:
    """Another byte, under the same size and time."""
    times = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:place] + byte + content[place + 1 :])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


REFUSED = {
    "a digit of the first line": (
        lambda raw, _: change(raw / "set1.train.txt.part1", 0, b"9"),
        {},
        "part1 has changed",
    ),
    "a digit shortly before": (
        lambda raw, _: change(raw / "set1.train.txt.part2", 300, b"9"),
        {},
        "part2 has changed",
    ),
    "cut off": (lambda raw, _: os.truncate(raw / "set1.train.txt.part2", 700), {}, "part2 has changed"),
    "a finished file grew": (lambda raw, _: append(raw / "set1.train.txt.part1", BROKEN), {}, "part1 has changed"),
    "another file": (lambda raw, _: (raw / "set1.train.txt.part3").touch(), {}, "was begun with files"),
    "other lists": (lambda *_: None, {"max_list_length": 1}, "was begun with max_list_length 30, now it is 1"),
    "other protocol": (lambda *_: None, {"protocol": "public"}, "was begun with protocol 'ours'"),
    "other shards": (lambda *_: None, {"shard_lines": 20}, "was begun with shard_lines 10"),
    "a shard cut off": (
        lambda _, partial: os.truncate(next((partial / "lists").glob("train-00000*")), 900),
        {},
        "train-00000.parquet is missing or not as it was written",
    ),
    "a bit of a shard": (
        lambda _, partial: change(next((partial / "lists").glob("train-00001*")), 50, b"\xa5"),
        {},
        "train-00001.parquet is missing or not as it was written",
    ),
    "a shard removed": (
        lambda _, partial: next((partial / "lists").glob("train-00001*")).unlink(),
        {},
        "train-00001.parquet is missing",
    ),
    "an open shard changed": (lambda _, partial: append(next(partial.glob("open-*")), "x"), {}, "open-.* is missing"),
    "the state cut off": (lambda _, partial: os.truncate(partial / "state.json", 99), {}, "state.json is damaged"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_changed_since_is_refused_by_name(raw, tmp_path, what):
    fault, options, message = REFUSED[what]
    damage(raw, 12)  # line 55: five groups are finished, and the sixth is open
    with pytest.raises(DamagedText):
        prepare(raw, tmp_path / "lists")
    partial = partial_folder(tmp_path / "lists")
    fault(raw, partial)
    with pytest.raises(InputError, match=rf"{message}.*remove {partial} to begin anew"):
        prepare(raw, tmp_path / "lists", **{"on_error": "skip", **options})
    shutil.rmtree(partial)  # the remedy
    if what not in ("another file", "cut off"):
        prepare(raw, tmp_path / "lists", **{"on_error": "skip", **options})
        assert (tmp_path / "lists").is_dir()


def test_begun_with_skip_it_does_not_go_on_with_raise(raw, tmp_path, monkeypatch):
    damage(raw, 1)
    save, saved = Unfinished.save, []

    def interrupted(*args: object, **kwargs: object) -> None:
        save(*args, **kwargs)
        saved.append(1)
        if len(saved) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(raw, tmp_path / "lists", on_error="skip")
    assert len(saved) == 5
    with pytest.raises(InputError, match=r"begun with on_error='skip', and has rejected lines"):
        prepare(raw, tmp_path / "lists")
    report = prepare(raw, tmp_path / "lists", on_error="skip")
    assert (report.read, report.rejected) == (70, {"wrong number of fields": 1})


def test_what_follows_the_place_reached_may_change(raw, tmp_path):
    damage(raw, 12)
    with pytest.raises(DamagedText):
        prepare(raw, tmp_path / "lists")
    path = raw / "set1.train.txt.part2"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:11] + raw_lines(range(200, 230))))
    assert prepare(raw, tmp_path / "lists").read == 43 + 11 + 30
    prepare(raw, tmp_path / "unbroken")
    assert digests(tmp_path / "lists") == digests(tmp_path / "unbroken")


def test_source_that_changes_meanwhile_is_refused(raw, tmp_path, monkeypatch):
    save, grown = Unfinished.save, []

    def growing(*args: object, **kwargs: object) -> None:
        save(*args, **kwargs)
        append(raw / "set1.train.txt.part1", BROKEN)
        grown.append(1)

    monkeypatch.setattr(Unfinished, "save", growing)
    with pytest.raises(InputError, match="part1 changed while it was read"):
        prepare(raw, tmp_path / "lists", threads=1)
    assert grown
    assert not (tmp_path / "lists").exists()


def test_the_second_writer_is_refused_and_a_dead_one_makes_room(raw, tmp_path):
    partial = partial_folder(tmp_path / "lists")
    with unfinished_folder(tmp_path / "lists", {}):
        command = [sys.executable, "-m", "hf_rerank.cli", "prepare", "prm_public", "--raw-dir", raw]
        second = subprocess.run([*command, "--output-dir", tmp_path / "lists"], capture_output=True, text=True)
        assert second.returncode == 2
        assert f"another process (pid {os.getpid()}) is writing {tmp_path / 'lists'}" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        assert (partial / "pid").read_text() == f"{os.getpid()}\n"
    partial.mkdir()
    (partial / "pid").write_text("1\n")
    (tmp_path / ".lists.lock").touch()  # as a killed process leaves them
    prepare(raw, tmp_path / "lists")
    assert left(tmp_path) == ["lists"]


def test_a_folder_that_is_there_is_not_touched(raw, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").touch()
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        prepare(raw, taken)
    assert left(tmp_path) == ["taken"]
    assert left(taken) == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    prepare(raw, tmp_path / "empty")
    assert sum(read_prepared(tmp_path / "empty").lists.values()) == 70


def test_an_unfinished_folder_is_not_loaded(raw, tmp_path):
    damage(raw, 20)
    with pytest.raises(DamagedText):
        prepare(raw, tmp_path / "lists")
    partial = partial_folder(tmp_path / "lists")
    for path in (partial, partial / "lists", tmp_path / "lists"):
        with pytest.raises(InputError, match=rf"{path} is not finished"):
            load_lists(path)
        with pytest.raises(InputError, match=rf"{path} is not finished"):
            load_lists("prm_public", data_dir=path)


def test_ctrl_c_says_how_to_go_on(raw, tmp_path, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = ["prepare", "prm_public", "--raw-dir", str(raw), "--output-dir", str(tmp_path / "lists")]
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "save", interrupted)
        assert cli.main(command) == 130
    message = "hf-rerank: stopped by Ctrl-C; the same command goes on from the last whole shard\n"
    assert capsys.readouterr().err.endswith(message)
    assert cli.main(command) == 0


@pytest.mark.parametrize("packed", [False, True])
def test_the_bar_counts_bytes_and_shows_the_time_left(raw, tmp_path, monkeypatch, packed):
    if packed:
        for path in list(raw.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    part1, part2 = (path.stat().st_size for path in sorted(raw.iterdir()))
    bars = []

    class Shown(tqdm):
        """A bar that is drawn at every update, without waiting for a second."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            assert kwargs["delay"] == 1
            self.text = io.StringIO()
            super().__init__(*args, **{**kwargs, "delay": 0, "mininterval": 0, "file": self.text})
            bars.append(self)

    monkeypatch.setattr(prm_public, "tqdm", Shown)
    if not packed:
        whole = (raw / "set1.train.txt.part2").read_text()
        damage(raw, 12)
        with pytest.raises(DamagedText):
            prepare(raw, tmp_path / "lists", progress=True)
        read = part1 + sum(len(line) for line in whole.splitlines(keepends=True)[:11])
        assert (bars[-1].desc.rstrip(": "), bars[-1].n) == ("Preparing", read)
        (raw / "set1.train.txt.part2").write_text(whole)
        prepare(raw, tmp_path / "lists", progress=True)
        assert bars[-2].desc.startswith("Checking what was read before")
        assert (bars[-2].n, bars[-2].total) == (read, read)
        assert bars[-1].initial == read
    else:
        prepare(raw, tmp_path / "lists", progress=True)
    assert (bars[-1].unit, bars[-1].total, bars[-1].n) == ("B", part1 + part2, part1 + part2)
    assert re.search(r"Preparing: +\d+%\|.*k/.*k \[\d\d:\d\d<\d\d:\d\d, .*B/s\]", bars[-1].text.getvalue())
    bars.clear()
    prepare(raw, tmp_path / "quiet")
    assert all(bar.disable for bar in bars)
