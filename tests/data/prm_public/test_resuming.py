"""Preparing PRM Public that is killed, stopped by Ctrl-C or by a damaged line, through the command and the library."""

from __future__ import annotations

import gzip
import io
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import warm
from folders import digests
from tqdm import tqdm

from hf_rerank import cli
from hf_rerank.data.loading import load_lists
from hf_rerank.data.prepared import partial_folder, writer
from hf_rerank.data.prm_public import prepare_prm_public, source
from hf_rerank.data.report import RejectedLines
from hf_rerank.errors import InputError

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
BROKEN = "7|[1, 2, 3]|broken\n"


def raw_lines(users: range) -> list[str]:
    """One line per user, of two items; 150 bytes."""
    return [
        f"{user}|[1, 2, 3]|[[{user}, 1, 2, 3, 4], [5, 1, 2, 3, 4]]|{[[user / 8] * 7] * 2}|{[[0.5] * 12] * 2}|[1, 0]\n"
        for user in users
    ]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """70 lines in two files."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "set1.train.txt.part1").write_text("".join(raw_lines(range(43))))
    (folder / "set1.train.txt.part2").write_text("".join(raw_lines(range(43, 70))))
    return folder


def prepare(raw: Path, output: Path, **options: Any) -> Any:
    """Pieces of about three lines, in groups of about six."""
    return prepare_prm_public(
        raw, output, **{"progress": False, "shard_bytes": 2_000, "piece_bytes": 1_500, **options}
    )


def damage(raw: Path, line: int) -> None:
    """Replaces a line of part 2, counted from 1, by a damaged one."""
    path = raw / "set1.train.txt.part2"
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = BROKEN
    path.write_text("".join(lines))


def pack(raw: Path) -> None:
    for path in list(raw.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("line", [1, 20, 27])
@pytest.mark.parametrize("how", ["fixed", "skip"])
def test_damaged_line_stops_preparing_and_a_rerun_resumes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int, how: str, packed: bool
) -> None:
    whole = (raw / "set1.train.txt.part2").read_text()
    damage(raw, line)
    if packed:
        pack(raw)
    with pytest.raises(RejectedLines, match=rf"part2.*, line {line}: expected 6 fields.*kept in .*lists\.partial"):
        prepare(raw, tmp_path / "lists")
    on_error = "skip" if how == "skip" else "raise"
    if how == "fixed":
        for path in raw.glob("*part2*"):
            path.unlink()
        (raw / "set1.train.txt.part2").write_text(whole)
        if packed:
            pack_part = raw / "set1.train.txt.part2"
            pack_part.with_name(f"{pack_part.name}.gz").write_bytes(gzip.compress(whole.encode(), mtime=0))
            pack_part.unlink()
    read: list[int] = []
    read_unit = source.read_unit
    monkeypatch.setattr(
        source,
        "read_unit",
        lambda unit, *args, **more: read.append(unit.piece.lines) or read_unit(unit, *args, **more),
    )
    report = prepare(raw, tmp_path / "lists", on_error=on_error)
    assert sum(read) < 70 - 25  # what was finished before is not decoded again
    assert report.read == 70 == sum(report.lists.values()) + sum(report.rejected.values())
    prepare(raw, tmp_path / "unbroken", on_error=on_error)
    assert digests(tmp_path / "lists") == digests(tmp_path / "unbroken")
    assert ("rejects.jsonl" in digests(tmp_path / "lists")) == (how == "skip")


def prepare_until_stopped(raw: Path, output: Path) -> None:
    """Small groups, so that there is time to be stopped."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare(raw, output, shard_bytes=60_000, piece_bytes=9_000)


@pytest.mark.slow
@posix
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_run_after_a_kill_or_ctrl_c_gives_the_same_bytes(raw: Path, tmp_path: Path, stop: int) -> None:
    """At some moment after the first group; the tests of the writer cover every disk operation."""
    (raw / "set1.train.txt.part2").write_text("".join(raw_lines(range(43, 1_000))))
    output, log = tmp_path / "lists", tmp_path / "log"
    prepare(raw, tmp_path / "unbroken", shard_bytes=60_000, piece_bytes=9_000)
    process = warm.start(prepare_until_stopped, raw, output, log=log)
    while not list((partial_folder(output) / "groups").glob("0*")):
        assert process.is_alive(), log.read_text()
        time.sleep(0.001)
    os.kill(process.pid or 0, stop)
    process.join()
    assert process.exitcode == (-stop if stop == signal.SIGKILL else 1)
    assert stop == signal.SIGKILL or "KeyboardInterrupt" in log.read_text()
    assert not output.exists()
    prepare(raw, output, shard_bytes=60_000, piece_bytes=9_000)
    assert digests(output) == digests(tmp_path / "unbroken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists", "log", "raw", "unbroken"]


@pytest.mark.slow
def test_second_command_for_the_same_output_is_refused(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    facts = source.PRMPublicSource.facts

    def second(self: Any) -> None:
        command = ["prepare", "prm_public", "--raw-dir", str(raw), "--output-dir", str(tmp_path / "lists")]
        ran.append(cli.main(command))
        facts(self)

    monkeypatch.setattr(source.PRMPublicSource, "facts", second)
    prepare(raw, tmp_path / "lists")
    assert ran == [2]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"process {os.getpid()} is writing {tmp_path / 'lists'}: wait for it" in line


def test_an_unfinished_folder_is_not_loaded(raw: Path, tmp_path: Path) -> None:
    damage(raw, 20)
    with pytest.raises(RejectedLines):
        prepare(raw, tmp_path / "lists")
    for path in (partial_folder(tmp_path / "lists"), tmp_path / "lists"):
        with pytest.raises(InputError, match=rf"{path} is not finished"):
            load_lists(path)
        with pytest.raises(InputError, match=rf"{path} is not finished"):
            load_lists("prm_public", data_dir=path)


def test_message_after_ctrl_c_explains_how_to_resume(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = ["prepare", "prm_public", "--raw-dir", str(raw), "--output-dir", str(tmp_path / "lists")]
    with monkeypatch.context() as patch:
        patch.setattr(source.PRMPublicSource, "facts", interrupted)
        assert cli.main(command) == 130
    message = "hf-rerank: stopped by Ctrl-C; the same command resumes from the last complete group of shards\n"
    assert capsys.readouterr().err.endswith(message)
    assert cli.main(command) == 0


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_progress_bar_counts_bytes_and_shows_the_time_left(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    damage(raw, 12)
    if packed:
        pack(raw)
    total = sum(path.stat().st_size for path in raw.iterdir())
    bars: list[Any] = []

    class Shown(tqdm):
        """A bar that is drawn at every update, without waiting for a second."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            assert kwargs["delay"] == 1
            self.text = io.StringIO()
            super().__init__(*args, **{**kwargs, "delay": 0, "mininterval": 0, "file": self.text})
            bars.append(self)

    monkeypatch.setattr(writer, "tqdm", Shown)
    with pytest.raises(RejectedLines):
        prepare(raw, tmp_path / "lists", progress=True)
    prepare(raw, tmp_path / "lists", progress=True, on_error="skip")
    assert bars[-2].desc.startswith("Checking what was read before")
    assert bars[-1].initial == bars[-2].n > 0
    assert (bars[-1].unit, bars[-1].total, bars[-1].n) == ("B", total, total)
    assert packed or re.search(r"Preparing: +\d+%\|.*k/.*k \[\d\d:\d\d<\d\d:\d\d, .*B/s\]", bars[-1].text.getvalue())
    bars.clear()
    prepare(raw, tmp_path / "quiet", on_error="skip")
    assert all(bar.disable for bar in bars)
