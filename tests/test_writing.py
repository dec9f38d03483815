"""All that writes: killed, short of disk, twice at once, with a source that changes: whole outputs, or one clear line.

The faults of one writer are those of one process that has imported everything; each run is a fork of it.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill_points
import pytest
import warm
import writing_commands
from kill_points import KILLED, digests, forked
from writing_commands import WRITERS, Writer

from hf_rerank.storage import temporary_path

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and signals of POSIX")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    warm.run(writing_commands.make_inputs, folder, log=folder.with_name("log_of_inputs"))
    return folder


class Runs:
    """Runs of one writer, in forks of this process."""

    def __init__(self, writer: Writer, inputs: Path, folder: Path) -> None:
        self.writer, self.inputs, self.folder = writer, inputs, folder
        self.work = folder / "work"

    def anew(self) -> None:
        """What is there before the first run."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.writer.before(self.inputs, self.work)

    def start(self, variant: int = 0, fault: Callable[[], None] = lambda: None, **limit: int) -> kill_points.Run:
        """Starts a run; ``fault`` prepares its process."""

        def work() -> int:
            fault()
            return self.writer.run(self.inputs, self.work, variant)

        return forked(work, **limit)

    def run(self, variant: int = 0, fault: Callable[[], None] = lambda: None, **limit: int) -> tuple[int, list[str]]:
        """As ``start``, to its end; the exit code, and what it said of its mistake."""
        return said(self.start(variant, fault, **limit).end())

    def found(self) -> dict[str, str]:
        return digests(self.work)


def faults(name: str, inputs: Path, folder: Path, report: Path) -> None:
    """Every fault of one writer; what became of each."""
    folder.mkdir()
    writer, draw = WRITERS[name], random.Random(name)
    runs = Runs(writer, inputs, folder)
    if name == "export":
        trace_once(inputs)
    expected = []
    for variant in (1, 0):
        runs.anew()
        counted = folder / f"operations of variant {variant}"
        assert runs.run(variant, lambda counted=counted: kill_points.count_operations(runs.work, counted)) == (0, [])
        expected.insert(0, runs.found())
    operations = counted.stat().st_size
    largest = max(path.stat().st_size for path in runs.work.rglob("*") if path.is_file())
    found: dict[str, Any] = {"operations": operations, "kills": [], "full disks": []}
    for number in sorted({*draw.sample(range(1, operations + 1), writer.kills - 1), operations}):
        runs.anew()
        code, _ = runs.run(fault=lambda number=number: kill_points.die_at(runs.work, number))
        again = runs.run()
        found["kills"].append([number, code == KILLED, *again, different(expected[0], runs.found())])
    for size in (1, largest // 2):
        runs.anew()
        code, lines = runs.run(file_size=size)
        again, _ = runs.run()
        found["full disks"].append([size, code, lines, again, different(expected[0], runs.found())])
    runs.anew()
    both = [said(run.end()) for run in [runs.start(variant) for variant in (0, 1)]]
    outcome = runs.found()
    whole = outcome in expected
    if writer.apart:
        values = [{of[name] for of in expected} for name in expected[0]]
        whole = outcome.keys() == expected[0].keys() and all(map(operator.contains, values, outcome.values()))
    found["together"] = [both, whole]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["seconds"] = used.ru_utime + used.ru_stime
    report.write_text(json.dumps(found))


def said(end: tuple[int, str]) -> tuple[int, list[str]]:
    """The exit code, and the lines of a mistake."""
    code, printed = end
    return code, [line for line in printed.splitlines() if "hf-rerank: " in line or "Traceback" in line]


def different(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))


def trace_once(inputs: Path) -> None:
    """Tracing takes seconds, and writes nothing: all runs get graphs that are traced here."""
    from hf_rerank import Reranker
    from hf_rerank.inference import export

    graphs = {}
    for variant in (0, 1):
        reranker = Reranker.from_pretrained(inputs / f"model{variant}")
        model = reranker.model.eval()
        graphs[float(model.scorer.weight.sum())] = export._trace(model, reranker.processor.schema)
    export._trace = lambda model, schema: graphs[float(model.scorer.weight.sum())]


@pytest.mark.parametrize("name", WRITERS)
def test_killed_short_of_disk_and_twice_at_once(inputs: Path, tmp_path: Path, name: str) -> None:
    report = tmp_path / "report.json"
    warm.run(faults, name, inputs, tmp_path / "runs", report, log=tmp_path / "log")
    found, work = json.loads(report.read_text()), str(tmp_path / "runs" / "work")
    assert found["operations"] >= len(found["kills"]) >= 2
    for number, fired, code, lines, changed in found["kills"]:
        assert fired, number
        # What was finished when it was killed is not written again.
        assert code == 0 or (code == 2 and "exists" in lines[0]), (number, lines)
        assert changed == [], (number, lines)
    for size, code, lines, again, changed in found["full disks"]:
        assert code == 2, (size, lines)
        assert len(lines) == 1, lines
        assert work in lines[0]
        assert "could not be written: " in lines[0]
        assert "free space" in lines[0]
        assert again == 0, size
        assert changed == [], size
    both, whole = found["together"]
    assert whole, both
    assert sorted(code for code, _ in both) in ([0, 0], [0, 2])
    for code, lines in both:
        assert len(lines) == (code == 2), lines
        assert all("is writing" in line or "exists" in line for line in lines), lines


def change(path: Path) -> None:
    """Puts other content in the place of a file, of the same size and time of modification."""
    before, content = path.stat(), path.read_bytes()
    other = temporary_path(path)
    other.write_bytes(content.replace(b"1", b"2"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert path.read_bytes() != content
    assert path.stat().st_size == before.st_size


def changing(name: str, inputs: Path, folder: Path) -> None:
    """Runs a writer, whose source changes while it is read."""
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
            change(inputs / writer.source)
        return original(*arguments, **options)

    setattr(owner, function, reading)
    runs = Runs(writer, inputs, folder)
    runs.anew()
    before = [path for path in runs.work.rglob("*") if path.is_file()]
    code = writer.run(inputs, runs.work, 0)
    assert fired
    assert code == 2
    assert [path for path in runs.work.rglob("*") if path.is_file()] == before


@pytest.mark.parametrize("name", [name for name, writer in WRITERS.items() if writer.source])
def test_a_source_that_changes_while_it_is_read(inputs: Path, tmp_path: Path, name: str) -> None:
    """To content of the same size and time of modification; nothing is written."""
    mine = tmp_path / "inputs"
    shutil.copytree(inputs, mine)
    log = tmp_path / "log"
    warm.run(changing, name, mine, tmp_path / "runs", log=log)
    said = [line for line in log.read_text().splitlines() if line.startswith("hf-rerank: ")]
    assert said == [
        f"hf-rerank: {mine / WRITERS[name].source} changed while it was read: run again when it is complete"
    ]


def test_an_output_that_is_an_input(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused in one line, and the input stays as it was."""
    mine = tmp_path / "inputs"
    shutil.copytree(inputs, mine)
    before = digests(mine)
    own, lists, model = mine / "own.jsonl", mine / "lists", mine / "model0"
    evaluate = ["evaluate", "--model", model, "--data", lists, "--json"]
    rank = ["rank", "--model", model, "--output"]
    prepare_own = ["prepare", "own", "--schema", mine / "schema.json", "--output-dir"]
    for arguments, refused in (
        (["simulate", "prm_public", "--lists", 3, "--output-dir", mine / "raw"], "exists already"),
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
