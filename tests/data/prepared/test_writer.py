"""The writer of prepared folders: the same bytes whatever interrupts it, or a clear one-line error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import digests

from hf_rerank import Categorical, InputError, ListSchema
from hf_rerank.data.prepared import (
    Licence,
    make_dataset_card,
    partial_folder,
    read_prepared,
    read_report,
    refuse_unfinished,
    shards,
    write_description,
    write_lists,
)
from hf_rerank.data.report import PrepareReport, RejectedLine, RejectedLines
from hf_rerank.data.source import Rejects, Unit
from hf_rerank.data.splits import SPLITS
from hf_rerank.storage import CannotWrite, InputFiles, digest_content, temporary_path

posix = pytest.mark.skipif(os.name != "posix", reason="fork and signals of POSIX")
COLUMNS = pa.schema([("n", pa.int64()), ("item_id", pa.list_(pa.int64())), ("click", pa.list_(pa.int8()))])


@dataclass
class Numbers:
    """Units are files of numbers, one a line: a number n becomes a list of n % 3 + 1 items, in split n % 4. A line
    that is not a number is rejected, 13 is dropped."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    schema: ListSchema = field(default_factory=lambda: ListSchema(items=[Categorical("item_id")], label="click"))
    columns: pa.Schema = COLUMNS
    size: int = 80
    size_unit: str = "line"
    before_reading: Any = None

    @property
    def inputs(self) -> InputFiles:
        return InputFiles(sorted(self.folder.iterdir()))

    def units(self, parts: Path) -> list[Unit]:
        return [Unit(path.name, digest_content(path), path.read_text().count("\n")) for path in self.inputs.paths]

    def facts(self) -> int:
        return 100

    def read(self, unit: Unit, facts: int) -> tuple[dict[str, pa.Table], Rejects]:
        if self.before_reading is not None:
            self.before_reading(unit)
        path, rejects, rows = self.folder / unit.name, Rejects(), {split: [] for split in SPLITS}
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            rejects.report.read += 1
            if not line.isdigit():
                rejects.lines.append(RejectedLine(str(path), number, "n", "not a number", "expected digits", line))
            elif line == "13":
                rejects.report.drop("unlucky", 1)
            else:
                n = int(line)
                items = [facts + n + item for item in range(n % 3 + 1)]
                rows[SPLITS[n % 4]].append({"n": n, "item_id": items, "click": [1] + [0] * (n % 3)})
        return {split: pa.Table.from_pylist(found, COLUMNS) for split, found in rows.items()}, rejects

    def describe(self, folder: Path, facts: int, report: PrepareReport) -> None:
        assert facts == 100
        card = make_dataset_card("Numbers", report, self.schema, how=[], caveats=[], licence=Licence(None, ""))
        write_description(folder, self.schema, report, card)


@pytest.fixture
def source(tmp_path: Path) -> Numbers:
    """Eight files of ten lines, of which three in all are not numbers."""
    (tmp_path / "in").mkdir()
    for number in range(8):
        lines = [str(n) for n in range(10 * number, 10 * number + 10)]
        if number in (1, 4, 5):
            lines[number] = "x"
        (tmp_path / "in" / f"{number}.txt").write_text("".join(f"{line}\n" for line in lines))
    return Numbers(tmp_path / "in")


def write(source: Numbers, output: Path, **options: Any) -> PrepareReport:
    """A group of shards for every three files."""
    return write_lists(source, output, **{"progress": False, "on_error": "skip", "shard_bytes": 700, **options})


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "in")


def test_written_lists_report_and_rejects(source: Numbers, tmp_path: Path) -> None:
    report = write(source, tmp_path / "lists")
    prepared = read_prepared(tmp_path / "lists")
    kept = [n for n in range(80) if n not in (11, 13, 44, 55)]
    for place, split in enumerate(SPLITS):
        assert len(prepared.files[split]) > 1
        rows = pa.concat_tables(pq.read_table(path) for path in prepared.files[split]).to_pylist()
        expected = [n for n in kept if n % 4 == place]
        assert [row["n"] for row in rows] == expected
        assert [row["item_id"] for row in rows] == [[100 + n + k for k in range(n % 3 + 1)] for n in expected]
        assert report.lists[split] == report.clicks[split] == len(expected)
        assert report.items[split] == sum(n % 3 + 1 for n in expected)
    assert (report.read, report.dropped, report.rejected) == (80, {"unlucky": 1}, {"not a number": 3})
    assert report.read == sum(report.lists.values()) + 1 + 3
    rejects = [json.loads(line) for line in (tmp_path / "lists" / "rejects.jsonl").read_text().splitlines()]
    where = {"column": "n", "kind": "not a number", "reason": "expected digits", "text": "x"}
    assert rejects == [{"file": f"{k}.txt", "line": k + 1, **where} for k in (1, 4, 5)]
    assert read_report(tmp_path / "lists")["rejected"] == {"not a number": 3}
    assert entries(tmp_path) == ["lists"]


def test_threads_do_not_change_the_bytes(source: Numbers, tmp_path: Path) -> None:
    for threads in (1, 2, 4):
        write(source, tmp_path / str(threads), threads=threads)
    assert digests(tmp_path / "1") == digests(tmp_path / "2") == digests(tmp_path / "4")


def test_row_groups_are_filled_across_units(source: Numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "GROUP_LISTS", 4)
    write(source, tmp_path / "lists", shard_bytes=2**20)
    for split, place in (("train", 1), ("test", 3)):
        footer = pq.read_metadata(tmp_path / "lists" / f"{split}-00000-of-00001.parquet")
        lists = sum(n % 4 == place for n in range(80) if n not in (11, 13, 44, 55))
        full, rest = divmod(lists, 4)
        sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        assert sizes == [4] * full + [rest] * (rest > 0)


def test_a_split_without_lists_has_an_empty_shard(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.txt").write_text("1\n5\n")
    write(Numbers(tmp_path / "in"), tmp_path / "lists")
    assert read_prepared(tmp_path / "lists").lists == {"ranker_train": 0, "train": 2, "validation": 0, "test": 0}
    assert not (tmp_path / "lists" / "rejects.jsonl").exists()


# ------------------------------------------------------------------------------------------------------ interruptions


def run_forked(function: Any, kill_at: int = 0, file_size: int = 0) -> tuple[int, str]:
    """Runs a function in a child process, which is killed after its nth disk operation.

    Returns:
        Minus the signal, or the exit code: 0, or 1 if the function raised. And the message of the error.
    """
    read_end, errors = os.pipe()
    pid = os.fork()
    if pid:
        os.close(errors)
        with os.fdopen(read_end) as pipe:
            message = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), message
    done = 0

    def dying(operation: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            result = operation(*args, **kwargs)
            done += 1
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    try:
        for owner, names in (
            (os, ("fsync", "replace", "link", "unlink", "rmdir", "mkdir")),
            (pq.ParquetWriter, ("write_table", "close")),
            (Path, ("write_text", "write_bytes", "touch")),
        ):
            for name in names:
                setattr(owner, name, dying(getattr(owner, name)))
        if file_size:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        function()
        os._exit(0)
    except BaseException as error:
        os.write(errors, str(error).encode())
        os._exit(1)


@pytest.mark.slow
@posix
def test_writer_killed_after_any_disk_operation_resumes_to_the_same_bytes(source: Numbers, tmp_path: Path) -> None:
    two_groups: dict[str, Any] = {"threads": 1, "shard_bytes": 1_300}
    write(source, tmp_path / "unbroken", **two_groups)
    expected, output = digests(tmp_path / "unbroken"), tmp_path / "work" / "lists"
    kills = kill_at = 0
    while True:
        kill_at += 1
        code, _ = run_forked(lambda: write(source, output, **two_groups), kill_at)
        if code != -signal.SIGKILL:
            break
        kills += 1
        if kills % 9 == 0:  # killed twice
            run_forked(lambda: write(source, output, **two_groups), kill_at // 2 + 3)
        finished = output.exists()
        try:
            write(source, output, **two_groups)
        except InputError:  # killed while cleaning up: there is nothing left to do
            assert finished, kill_at
        assert digests(output) == expected, kill_at
        assert entries(output.parent) == ["lists"], kill_at
        for path in output.iterdir():
            path.unlink()
        output.rmdir()
    assert code == 0
    assert kills == kill_at - 1
    assert kills > 60  # two groups of four shards, each written, synced and named


@pytest.mark.slow
@posix
def test_full_disk_error_is_one_clear_line_and_the_next_call_resumes(source: Numbers, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; with each limit the disk is full at another point."""
    write(source, tmp_path / "unbroken")
    output = tmp_path / "work" / "lists"
    sizes = sorted(path.stat().st_size for path in (tmp_path / "unbroken").glob("*.parquet"))
    for size in (1, 90, 700, sizes[0] - 1, sizes[-1] - 1):
        code, message = run_forked(lambda: write(source, output, threads=1), file_size=size)
        assert code == 1, size
        assert "could not be written: " in message
        assert "MB are free there" in message
        assert "File too large" in message
        assert len(message.splitlines()) == 1
        assert not output.exists()
        write(source, output)
        assert digests(output) == digests(tmp_path / "unbroken")
        for path in output.iterdir():
            path.unlink()
        output.rmdir()
        assert not entries(output.parent)


def test_full_disk_before_the_first_group_leaves_no_files(
    source: Numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(CannotWrite, match=r"parquet could not be written: .*No space left on device"):
        write(source, tmp_path / "lists")
    assert entries(tmp_path) == []


# ----------------------------------------------------------------------------------------------------- rejected lines


def test_rejected_line_stops_writing_and_the_next_call_resumes(source: Numbers, tmp_path: Path) -> None:
    (tmp_path / "in" / "1.txt").write_text("".join(f"{n}\n" for n in range(10, 20)))
    bad = tmp_path / "in" / "4.txt"
    with pytest.raises(
        RejectedLines, match=r"4\.txt, line 5, n: expected digits: x; fix the line .*are kept in .*lists\.partial"
    ):
        write(source, tmp_path / "lists", on_error="raise", threads=2)
    assert entries(tmp_path) == ["lists.partial"]
    for path in (bad, tmp_path / "in" / "5.txt"):
        path.write_text(path.read_text().replace("x", "7"))
    read: list[str] = []
    source.before_reading = lambda unit: read.append(unit.name)
    report = write(source, tmp_path / "lists", on_error="raise", threads=1)
    assert "0.txt" not in read
    assert read[-1] == "7.txt"
    assert (report.read, report.rejected) == (80, {})
    write(source, tmp_path / "unbroken", on_error="raise")
    assert digests(tmp_path / "lists") == digests(tmp_path / "unbroken")


def test_several_rejected_lines_are_counted_by_kind() -> None:
    lines = [RejectedLine("a/b.txt", n, None, "short" if n % 2 else "long", "expected six") for n in range(1, 25)]
    message = str(RejectedLines(lines, "; fix it"))
    assert message.startswith(
        "a/b.txt, line 1: expected six; damaged lines near here: 24, by kind: short 12 (line 1, 3,"
    )
    assert message.endswith(", 20); 4 more lines are not named; fix it")


def test_damaged_line_before_the_first_group_leaves_no_files(source: Numbers, tmp_path: Path) -> None:
    with pytest.raises(RejectedLines, match=r"1\.txt, line 2"):
        write(source, tmp_path / "lists", on_error="raise", shard_bytes=2**20)
    assert entries(tmp_path) == []


def interrupt(source: Numbers, output: Path, at: str = "5.txt", **options: Any) -> None:
    """Calls ``write``, and interrupts it when it reads the file ``at``."""

    def stop(unit: Unit) -> None:
        if unit.name == at:
            raise KeyboardInterrupt

    source.before_reading = stop
    with pytest.raises(KeyboardInterrupt):
        write(source, output, threads=1, **options)
    source.before_reading = None


def test_run_started_with_skip_is_not_resumed_with_raise(source: Numbers, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "lists")
    with pytest.raises(InputError, match=r"started with on_error='skip', and has rejected lines"):
        write(source, tmp_path / "lists", on_error="raise")
    assert write(source, tmp_path / "lists").rejected == {"not a number": 3}


# ----------------------------------------------------------------------------------------------------------- refusals


def rewrite_same_size_and_time(path: Path) -> None:
    """Changes the content but neither the size nor the time of modification."""
    times = path.stat()
    path.write_text(path.read_text().replace("2", "6"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(bytes(content))


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "other content, same size and time": (
        lambda folder, _: rewrite_same_size_and_time(folder / "0.txt"),
        {},
        r"0\.txt has changed since .*partial was started",
    ),
    "a file removed": (lambda folder, _: (folder / "0.txt").unlink(), {}, r"0\.txt has changed since"),
    "other option": (lambda *_: None, {"limit": 1}, r"partial was started with limit 2, but now it is 1"),
    "other shard size": (
        lambda *_: None,
        {"shard_bytes": 600},
        r"was started with shard_bytes 700, but now it is 600",
    ),
    "a truncated shard": (
        lambda _, partial: cut(partial / "groups/00000/train.parquet"),
        {},
        r"train\.parquet is missing or not as it was written",
    ),
    "a flipped bit in a shard": (
        lambda _, partial: flip(partial / "groups/00000/test.parquet"),
        {},
        r"00000/test\.parquet is missing or not as it was written",
    ),
    "a shard removed": (
        lambda _, partial: (partial / "groups/00000/train.parquet").unlink(),
        {},
        r"train\.parquet is missing",
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_resuming_refuses_changed_inputs_options_and_shards(source: Numbers, tmp_path: Path, change: str) -> None:
    fault, options, message = REFUSED[change]
    source.options = {"limit": 2}
    interrupt(source, tmp_path / "lists")
    partial = partial_folder(tmp_path / "lists")
    fault(source.folder, partial)
    source.options = {"limit": options.pop("limit", 2)}
    with pytest.raises(InputError, match=rf"{message}.*remove {partial} to start again"):
        write(source, tmp_path / "lists", **options)
    for path in sorted(partial.rglob("*"), reverse=True):  # the remedy
        path.rmdir() if path.is_dir() else path.unlink()
    partial.rmdir()
    write(source, tmp_path / "lists", **options)


def test_resuming_accepts_changes_to_files_not_read_yet(source: Numbers, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "lists")
    (source.folder / "7.txt").write_text("1\n2\n3\n")
    write(source, tmp_path / "lists")
    write(source, tmp_path / "unbroken")
    assert digests(tmp_path / "lists") == digests(tmp_path / "unbroken")


@pytest.mark.parametrize("how", ["appended", "replaced", "same size and time"])
def test_input_that_changes_while_being_read_is_refused(source: Numbers, tmp_path: Path, how: str) -> None:
    def change(unit: Unit) -> None:
        path = source.folder / "2.txt"
        if unit.name != "5.txt":
            return
        if how == "appended":
            with path.open("a") as file:
                file.write("1\n")
        elif how == "replaced":
            temporary_path(path).write_text("1\n")
            os.replace(next(path.parent.glob(".2*")), path)
        else:
            rewrite_same_size_and_time(path)

    source.before_reading = change
    with pytest.raises(InputError, match=r"2\.txt changed while it was read: run again when it is complete"):
        write(source, tmp_path / "lists")
    assert not (tmp_path / "lists").exists()


@posix
def test_second_writer_of_a_folder_is_refused(source: Numbers, tmp_path: Path) -> None:
    def second(unit: Unit) -> None:
        source.before_reading = None
        with pytest.raises(
            InputError, match=rf"^process {os.getpid()} is writing {tmp_path}/lists: wait for it, or choose another"
        ):
            write(source, tmp_path / "lists")

    source.before_reading = second
    write(source, tmp_path / "lists", threads=1)
    assert source.before_reading is None
    assert entries(tmp_path) == ["lists"]


@pytest.mark.slow
@posix
def test_simultaneous_writers_leave_one_complete_folder(source: Numbers, tmp_path: Path) -> None:
    write(source, tmp_path / "unbroken")
    for _ in range(2):
        pids = []
        for _ in range(3):
            pid = os.fork()
            if not pid:
                try:
                    write(source, tmp_path / "lists", threads=1)
                except InputError as error:
                    known = "is writing" in str(error) or "exists and is not an empty folder" in str(error)
                    os._exit(2 if known else 3)
                except BaseException:
                    os._exit(3)
                os._exit(0)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert set(codes) <= {0, 2}
        assert 0 in codes
        assert digests(tmp_path / "lists") == digests(tmp_path / "unbroken")
        assert entries(tmp_path) == ["lists", "unbroken"]
        for path in (tmp_path / "lists").iterdir():
            path.unlink()
        (tmp_path / "lists").rmdir()


def test_lock_file_of_a_dead_process_is_ignored(source: Numbers, tmp_path: Path) -> None:
    (tmp_path / ".lists.lock").write_text("1\n")
    write(source, tmp_path / "lists")
    assert entries(tmp_path) == ["lists"]


@pytest.mark.parametrize("where", ["in/0.txt", "in/0.txt/lists", "."])
def test_output_that_overlaps_an_input_is_refused(source: Numbers, tmp_path: Path, where: str) -> None:
    before = digests(tmp_path / "in")
    with pytest.raises(InputError, match=r"the output .* overlaps the input .*txt: choose another output"):
        write(source, tmp_path / where)
    assert digests(tmp_path / "in") == before


def test_non_empty_output_folder_is_refused_and_left_untouched(source: Numbers, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        write(source, tmp_path / "taken")
    assert entries(tmp_path) == ["taken"]
    assert entries(tmp_path / "taken") == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    write(source, tmp_path / "empty")
    assert sum(read_prepared(tmp_path / "empty").lists.values()) == 76


def test_unfinished_folder_is_refused_by_name(source: Numbers, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "lists")
    for path in (tmp_path / "lists", partial_folder(tmp_path / "lists")):
        with pytest.raises(InputError, match=rf"{path} is not finished.*prepare it again with the same options"):
            refuse_unfinished(path)
    write(source, tmp_path / "lists")
    refuse_unfinished(tmp_path / "lists")


def test_invalid_options_are_refused(source: Numbers, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown on_error 'skp': expected raise or skip; did you mean 'skip'"):
        write(source, tmp_path / "lists", on_error="skp")
    with pytest.raises(InputError, match="shard_bytes is 0: expected at least 1"):
        write(source, tmp_path / "lists", shard_bytes=0)


@pytest.mark.slow
def test_importing_does_not_load_torch_or_transformers() -> None:
    script = "import sys, hf_rerank.data.prepared; print('torch' in sys.modules, 'transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_units_are_not_kept_in_memory(source: Numbers, tmp_path: Path) -> None:
    """A unit may hold the data that it is read from."""
    made, alive = [], []
    units_of = source.units

    def units(parts: Path) -> Any:
        pending = units_of(parts)
        while pending:
            unit = pending.pop(0)
            made.append(weakref.ref(unit))
            yield unit
            del unit
            alive.append(sum(reference() is not None for reference in made))

    source.units = units  # type: ignore[method-assign]
    write(source, tmp_path / "lists", shard_bytes=2**20, threads=1)
    assert len(made) == 8
    assert max(alive) <= 3


def test_current_folder_can_be_the_output(source: Numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(source, Path("."))
    assert sum(read_prepared(tmp_path / "here").lists.values()) == 76
