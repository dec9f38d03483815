"""Every writer, when killed, on a full disk, run twice at once or with a changing source: whole output or an error.

All runs of one writer are forks of one process that has imported everything.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import warm
import writing_commands
from folders import digests
from writing_commands import WRITERS
from writing_faults import Runs, faults, judge

from hf_rerank.storage import temporary_path

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="fork and signals of POSIX")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    warm.run(writing_commands.make_inputs, folder, log=folder.with_name("log_of_inputs"))
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_writers_survive_kills_full_disks_and_concurrent_runs(inputs: Path, tmp_path: Path, name: str) -> None:
    report = tmp_path / "report.json"
    warm.run(faults, name, inputs, tmp_path / "runs", report, log=tmp_path / "log")
    found = json.loads(report.read_text())
    assert found["operations"] >= len(found["kills"]) >= 2
    assert {name: wrong for name, wrong in judge(found, tmp_path / "runs" / "work") if wrong} == {}


def replace_content(path: Path) -> None:
    """Replaces a file by other content of the same size and modification time."""
    before, content = path.stat(), path.read_bytes()
    other = temporary_path(path)
    other.write_bytes(content.replace(b"1", b"2"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert path.read_bytes() != content
    assert path.stat().st_size == before.st_size


def write_from_changing_source(name: str, inputs: Path, folder: Path) -> None:
    """Runs a writer whose source changes while it is read."""
    folder.mkdir()
    writer = WRITERS[name]
    module, attributes = writer.reading.split(":")
    *owners, function = attributes.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, fired = getattr(owner, function), []

    def reading(*arguments: Any, **options: Any) -> Any:
        if not fired:
            fired.append(True)
            replace_content(inputs / writer.source)
        return original(*arguments, **options)

    setattr(owner, function, reading)
    runs = Runs(writer, inputs, folder)
    runs.reset()
    before = [path for path in runs.work.rglob("*") if path.is_file()]
    code = writer.run(inputs, runs.work, 0)
    assert fired
    assert code == 2
    assert [path for path in runs.work.rglob("*") if path.is_file()] == before


@pytest.mark.parametrize("name", [name for name, writer in WRITERS.items() if writer.source])
def test_a_source_that_changes_while_it_is_read_is_an_error(inputs: Path, tmp_path: Path, name: str) -> None:
    """The new content has the same size and modification time; nothing is written."""
    mine = tmp_path / "inputs"
    shutil.copytree(inputs, mine)
    log = tmp_path / "log"
    warm.run(write_from_changing_source, name, mine, tmp_path / "runs", log=log)
    errors = [line for line in log.read_text().splitlines() if line.startswith("hf-rerank: ")]
    assert errors == [
        f"hf-rerank: {mine / WRITERS[name].source} changed while it was read: run again when it is complete"
    ]


def test_writing_into_an_input_folder_is_rejected(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is one line, and the input is unchanged."""
    mine = tmp_path / "inputs"
    shutil.copytree(inputs, mine)
    before = digests(mine)
    own, lists, model = mine / "own.jsonl", mine / "lists", mine / "model0"
    evaluate = ["evaluate", "--model", model, "--data", lists, "--json"]
    rank = ["rank", "--model", model, "--output"]
    prepare_own = ["prepare", "own", "--schema", mine / "schema.json", "--output-dir"]
    for arguments, refused in (
        (["simulate", "prm_public", "--lists", 3, "--output-dir", mine / "raw"], "already exists"),
        (["simulate", "ad", "--lists", 3, "--output-dir", mine / "ad"], "exists and is not an empty folder"),
        (["schema", "infer", own, "--output", own], "exists: remove it"),
        ([*prepare_own, own, "--input", own], "overlaps the input"),
        ([*prepare_own, mine / "more" / "lists", "--input", mine / "more"], "overlaps the input"),
        (["prepare", "prm_public", "--raw-dir", mine / "raw", "--output-dir", mine / "raw"], "overlaps the input"),
        (["prepare", "ad", "--raw-dir", mine / "ad", "--output-dir", mine / "ad"], "overlaps the input"),
        (["initial-rank", "--data", lists, "--output-dir", lists], "overlaps the input"),
        (["vectors", "--data", lists, "--output-dir", lists / "vectors"], "overlaps the input"),
        ([*evaluate, model / "results.json"], "overlaps the input"),
        ([*evaluate, model / "manifest.json"], "overlaps the input"),
        ([*evaluate, lists / "report.json"], "overlaps the input"),
        ([*rank, own, "--input", own], "overlaps the input"),
        ([*rank, mine / "more" / "ranked.jsonl", "--input", mine / "more"], "overlaps the input"),
        (["export", "--model", model, "--output-dir", model], "exists and is not an empty folder"),
    ):
        assert writing_commands.command(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("hf-rerank: ")
        assert refused in line, line
        assert digests(mine) == before, arguments
