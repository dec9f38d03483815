"""Files and folders that appear whole or not at all, JSON files, locks."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hf_rerank.errors import InputError
from hf_rerank.storage import (
    CannotWrite,
    format_json,
    hold_lock,
    name_failures,
    read_json,
    remove_leftovers,
    save_files,
    sha256_of_file,
    sha256_of_json,
    temporary_path,
    verify,
    write_arrays,
    write_atomically,
    write_file,
    write_json,
)

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def everything(name: str) -> bool:
    return True


def test_temporary_names_are_unique_and_next_to_the_target(tmp_path: Path) -> None:
    names = [temporary_path(tmp_path / "lists.parquet") for _ in range(100)]
    assert len(set(names)) == 100
    assert {path.parent for path in names} == {tmp_path}
    assert all(path.name.startswith(".lists.parquet.") and path.suffix == ".tmp" for path in names)
    assert f"-{os.getpid()}-" in names[0].name


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with write_atomically(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    assert path.read_text() == "old"
    with pytest.raises(TypeError), write_atomically(path) as temporary:
        temporary.write_text("half", 3)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_folder_replaces_only_an_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for content in ("first", "second"):
        try:
            with write_atomically(folder) as temporary:
                temporary.mkdir()
                (temporary / "file").write_text(content)
        except CannotWrite:
            assert content == "second"
    assert (folder / "file").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_bytes_are_synced_before_the_rename_and_names_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    write_file(tmp_path / "file", "text")
    assert calls == (["fsync", "replace", "fsync"] if os.name == "posix" else ["fsync", "replace"])


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_safetensors_files_have_the_mode_of_a_new_file(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a.safetensors"
    before = os.umask(umask)
    try:
        for _ in range(2):  # new, and replaced
            write_arrays(path, {"a": np.ones(2)})
            assert path.stat().st_mode & 0o777 == 0o666 & ~umask
            path.chmod(0o600)
    finally:
        os.umask(before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


@posix
def test_only_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from hf_rerank.storage import temporary_path\n"
        "for name in ('a', 'b'): temporary_path(sys.argv[1] + '/' + name).write_text('half')\n"
        "print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    (tmp_path / "a").write_text("whole")
    ours = temporary_path(tmp_path / "a")
    ours.write_text("being written")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4  # the process is running
    process.kill()
    process.wait()
    other_machine = tmp_path / f".a.00000000-{process.pid}-00000000.tmp"
    other_machine.write_text("of a machine that shares the disk")
    remove_leftovers(tmp_path, "a")
    assert sum(path.name.startswith(".b.") for path in tmp_path.iterdir()) == 1
    remove_leftovers(tmp_path)
    assert {*tmp_path.iterdir()} == {tmp_path / "a", ours, other_machine}
    write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_full_disk_error_names_path_and_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_file(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(CannotWrite, match=r"file could not be written: .* MB are free there .*No space left"):
            write_file(tmp_path / "file", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    # A failure that already has such a message is passed on unchanged.
    with pytest.raises(CannotWrite, match=r"^inner$"), name_failures(tmp_path):
        raise CannotWrite("inner")


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert sha256_of_json({"b": 1, "a": [2]}) == hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "values.json"
    write_json(path, {"a": (1, 2.5, float("nan")), 3: tmp_path, "b": {"c": None, "d": True}})
    assert path.read_text() == format_json(read_json(path))
    assert read_json(path) == {"a": [1, 2.5, None], "3": str(tmp_path), "b": {"c": None, "d": True}}
    for text, message in (
        ('{"a": 1, "b": {"c": 1, "c": 2}}', r"values\.json names 'c' twice in one object; fix or remove it"),
        ("{", r"values\.json is not valid JSON: .*line 1 column 2"),
        ("[" * 100_000, r"values\.json is not valid JSON"),
        ("[1]", r"values\.json holds a list: expected a JSON object"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"values\.json is not UTF-8 text"):
        read_json(path)
    assert json.loads(format_json({"x": 1})) == {"x": 1}


# --------------------------------------------------------------------------------------------------------- two writers

FORK = multiprocessing.get_context("fork") if os.name == "posix" else None


def in_processes(function: object, count: int) -> list[int]:
    """Exit codes of ``count`` forked processes that call ``function(number)`` at once."""
    assert FORK is not None
    processes = [FORK.Process(target=function, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


@pytest.mark.slow
@posix
def test_writers_of_one_file_never_mix_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(number: int) -> None:
        for _ in range(20):
            write_file(path, str(number) * 100_000)
            assert len(set(path.read_text())) == 1

    assert in_processes(write, 4) == [0] * 4
    assert len(path.read_text()) == 100_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@posix
def test_simultaneous_saves_into_one_folder_leave_the_files_of_one(tmp_path: Path) -> None:
    """Also if one of them fails: the folder is never lost."""

    def save(number: int) -> None:
        for _ in range(10):
            try:
                with save_files(tmp_path / "model") as staging:
                    for name in ("a.json", "b.safetensors"):
                        (staging / name).write_text(str(number))
                    if number == 3:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass

    for _ in range(3):
        assert in_processes(save, 4) == [0] * 4
        assert verify(tmp_path / "model", everything, "") is not None
        assert len({(tmp_path / "model" / name).read_text() for name in ("a.json", "b.safetensors")}) == 1
        assert {path.name for path in (tmp_path / "model").iterdir()} == {"a.json", "b.safetensors", "manifest.json"}


def test_a_save_that_fails_leaves_no_new_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), save_files(tmp_path / "model") as staging:
        raise KeyError(staging)
    assert not list(tmp_path.iterdir())


@posix
def test_lock_excludes_other_processes_and_ends_with_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    script = (
        "import sys, time; from hf_rerank.storage import hold_lock\n"
        "with hold_lock(sys.argv[1], str): print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with (
        pytest.raises(InputError, match=f"^process {process.pid} is writing$"),
        hold_lock(path, lambda who: f"{who} is writing"),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with hold_lock(path, str):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


@pytest.mark.slow
@posix
def test_lock_has_one_holder_at_a_time_although_its_file_is_removed(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count(number: int) -> None:
        for _ in range(25):
            with hold_lock(tmp_path / "x.lock", str, wait=60):
                before = int(counter.read_text())
                time.sleep(0.0005)
                counter.write_text(str(before + 1))

    assert in_processes(count, 4) == [0] * 4
    assert counter.read_text() == "100"
