"""Outcomes of a writer that is killed, runs on a full disk, or runs twice at once."""

from __future__ import annotations

import json
import operator
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kill_points
from folders import digests
from kill_points import KILLED, forked
from writing_commands import WRITERS, Writer


class Runs:
    """Runs of one writer, in forks of this process."""

    def __init__(self, writer: Writer, inputs: Path, folder: Path) -> None:
        self.writer, self.inputs, self.folder = writer, inputs, folder
        self.work = folder / "work"

    def reset(self) -> None:
        """Restores the files that exist before the first run."""
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
        """Like ``start``, but waits for the end; returns the exit code and the error lines."""
        return split_errors(self.start(variant, fault, **limit).end())

    def current_digests(self) -> dict[str, str]:
        return digests(self.work)


def faults(name: str, inputs: Path, folder: Path, report: Path, kills: int | None = None) -> None:
    """Runs every fault of one writer and reports the outcomes as JSON.

    Args:
        name: A key of ``WRITERS``.
        inputs: Folder of ``make_inputs``.
        folder: New folder to work in.
        report: Output file.
        kills: Number of disk operations at which it is killed. None: the writer's own number.
    """
    folder.mkdir()
    writer, draw = WRITERS[name], random.Random(name)
    runs = Runs(writer, inputs, folder)
    if name == "export":
        trace_once(inputs)
    expected = []
    for variant in (1, 0):
        runs.reset()
        counted = folder / f"operations of variant {variant}"
        assert runs.run(variant, lambda counted=counted: kill_points.count_operations(runs.work, counted)) == (0, [])
        expected.insert(0, runs.current_digests())
    operations = counted.stat().st_size
    largest = max(path.stat().st_size for path in runs.work.rglob("*") if path.is_file())
    found: dict[str, Any] = {"operations": operations, "kills": [], "full disks": []}
    for number in sorted(
        {*draw.sample(range(1, operations + 1), min(operations, (kills or writer.kills) - 1)), operations}
    ):
        runs.reset()
        code, _ = runs.run(fault=lambda number=number: kill_points.die_at(runs.work, number))
        again = runs.run()
        found["kills"].append([number, code == KILLED, *again, differing_names(expected[0], runs.current_digests())])
    for size in (1, largest // 2):
        runs.reset()
        code, lines = runs.run(file_size=size)
        again, _ = runs.run()
        found["full disks"].append([size, code, lines, again, differing_names(expected[0], runs.current_digests())])
    runs.reset()
    both = [split_errors(run.end()) for run in [runs.start(variant) for variant in (0, 1)]]
    outcome = runs.current_digests()
    whole = outcome in expected
    if writer.apart:
        values = [{of[name] for of in expected} for name in expected[0]]
        whole = outcome.keys() == expected[0].keys() and all(map(operator.contains, values, outcome.values()))
    found["together"] = [both, whole]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["seconds"] = used.ru_utime + used.ru_stime
    report.write_text(json.dumps(found))


def split_errors(end: tuple[int, str]) -> tuple[int, list[str]]:
    """The exit code and the error lines."""
    code, printed = end
    return code, [line for line in printed.splitlines() if "hf-rerank: " in line or "Traceback" in line]


def differing_names(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))


def trace_once(inputs: Path) -> None:
    """Tracing takes seconds and writes nothing, so all runs use graphs traced here."""
    from hf_rerank import Reranker
    from hf_rerank.inference import export

    graphs = {}
    for variant in (0, 1):
        reranker = Reranker.from_pretrained(inputs / f"model{variant}")
        model = reranker.model.eval()
        graphs[float(model.scorer.weight.sum())] = export._trace(model, reranker.processor.schema)
    export._trace = lambda model, schema: graphs[float(model.scorer.weight.sum())]


def judge(found: dict[str, Any], work: Path) -> Iterator[tuple[str, str]]:
    """Each fault with a description of what is wrong with its outcome; "": nothing.

    Correct outcomes: after a kill, the same command gives the same bytes, or refuses because all files exist; a full
    disk gives one line that names the path, and the same command afterwards gives the same bytes; of two concurrent
    runs, one succeeds, and the other succeeds or is rejected with one line.

    Args:
        found: The report of ``faults``.
        work: The folder ``work`` of the run.
    """
    for number, fired, code, lines, changed in found["kills"]:
        finished = code == 2 and "exists" in lines[0]
        right = fired and (code == 0 or finished) and not changed
        yield f"kill at {number}", "" if right else f"{fired=} {code=} {lines=} {changed=}"
    for size, code, lines, again, changed in found["full disks"]:
        named = len(lines) == 1 and all(
            text in lines[0] for text in (str(work), "could not be written: ", "free space")
        )
        right = code == 2 and named and again == 0 and not changed
        yield f"files of at most {size} bytes", "" if right else f"{code=} {lines=} {again=} {changed=}"
    both, whole = found["together"]
    codes = sorted(code for code, _ in both)
    clear = all(
        len(lines) == (code == 2) and all("is writing" in line or "exists" in line for line in lines)
        for code, lines in both
    )
    right = whole and codes in ([0, 0], [0, 2]) and clear
    yield "two at once", "" if right else f"{both=} {whole=}"
