"""A prepared folder as a source: its lists and counts are kept, and it may neither change nor be the output."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import kill_points
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import digests

from hf_rerank import Categorical, InputError, ListSchema
from hf_rerank.data.prepared import (
    Licence,
    PreparedSource,
    make_dataset_card,
    partial_folder,
    prepare_in_two_steps,
    read_prepared,
    rewriting,
    write_description,
)
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS

SCHEMA = ListSchema(items=[Categorical("item_id")], label="click")
COLUMNS = pa.schema([("item_id", pa.list_(pa.int64())), ("click", pa.list_(pa.int8()))])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of train, one of test, with 10 lists each; the other splits are empty."""
    path = tmp_path / "lists"
    path.mkdir()
    report = PrepareReport(read=40, dropped={"too short": 7}, rejected={"ragged": 3}, counts={"users": 5})
    for split, shards in {"ranker_train": [0], "train": [10, 10], "validation": [0], "test": [10]}.items():
        for number, lists in enumerate(shards):
            rows = [{"item_id": [100 * number + n, n], "click": [n % 2, 0]} for n in range(lists)]
            table = pa.Table.from_pylist(rows, COLUMNS)
            pq.write_table(table, path / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")
            report.keep(split, table, "click")
    (path / "rejects.jsonl").write_text('{"line": 3}\n' * 3)
    card = make_dataset_card("Mine", report, SCHEMA, how=["by hand"], caveats=[], licence=Licence("own", "Mine."))
    write_description(path, SCHEMA, report, card)
    return path


class Doubled(PreparedSource):
    """Doubles the items of every list."""

    def __init__(self, folder: Path, before_change: Any = None) -> None:
        super().__init__(folder, {"doubled": True})
        self.before_change = before_change

    def change(self, split: str, first: int, lists: pa.Table, facts: None, report: PrepareReport) -> pa.Table:
        if self.before_change is not None:
            self.before_change(split, first)
        rows = [{**row, "item_id": [2 * item for item in row["item_id"]]} for row in lists.to_pylist()]
        return pa.Table.from_pylist(rows, COLUMNS)

    def describe(self, folder: Path, facts: None, report: PrepareReport) -> None:
        super().describe(folder, facts, report)
        card = make_dataset_card("Doubled", report, self.schema, how=[], caveats=[], licence=Licence("own", "Mine."))
        write_description(folder, self.schema, report, card)


def items_of(folder: Path, split: str) -> list[list[int]]:
    paths = read_prepared(folder).files[split]
    return pa.concat_tables(pq.read_table(path) for path in paths).column("item_id").to_pylist()


def test_lists_counts_and_rejects_are_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "GROUP_LISTS", 4)
    seen = []
    report = Doubled(folder, lambda split, first: seen.append((split, first))).write(tmp_path / "new", progress=False)
    for split in SPLITS:
        assert items_of(tmp_path / "new", split) == [[2 * a, 2 * b] for a, b in items_of(folder, split)]
    assert seen == [("train", first) for first in (0, 4, 8, 10, 14, 18)] + [("test", first) for first in (0, 4, 8)]
    assert (report.read, report.dropped, report.rejected) == (40, {"too short": 7}, {"ragged": 3})
    assert (report.lists["train"], report.clicks["test"], report.counts) == (20, 5, {"users": 5})
    assert (tmp_path / "new" / "rejects.jsonl").read_text() == (folder / "rejects.jsonl").read_text()


@pytest.mark.parametrize("when", ["while it is read", "after it was opened"])
@pytest.mark.parametrize("name", ["train-00001-of-00002.parquet", "schema.json"])
def test_source_folder_that_changes_is_refused(folder: Path, tmp_path: Path, when: str, name: str) -> None:
    """A mixture of old and new lists is never written."""

    def change(*_: object) -> None:
        times = (folder / name).stat()
        (folder / name).write_bytes((folder / name).read_bytes())  # as by another program, with the same size and time
        os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))

    source = Doubled(folder, change if when == "while it is read" else None)
    if when == "after it was opened":
        change()
    with pytest.raises(InputError, match=rf"{name} changed while it was read: run again when it is complete"):
        source.write(tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_resuming_from_a_changed_source_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    def stop(split: str, first: int) -> None:
        if split == "test":
            raise KeyboardInterrupt

    source = Doubled(folder, stop)
    with pytest.raises(KeyboardInterrupt):
        source.write(tmp_path / "new", progress=False)
    Doubled(folder).write(tmp_path / "new", progress=False)
    (folder / "schema.json").write_text(json.dumps(SCHEMA.replace(max_list_length=7).to_dict()))
    partial = partial_folder(tmp_path / "other")
    partial.mkdir()
    (partial / "begun.json").write_text(json.dumps({"doubled": True, "source": source.options["source"]}))
    with pytest.raises(InputError, match=r"was started with source .*schema\.json.*, but now it is"):
        Doubled(folder).write(tmp_path / "other", progress=False)


@pytest.mark.parametrize("where", [".", "inside"])
def test_output_that_overlaps_the_source_is_refused(folder: Path, where: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="overlaps the input"):
        Doubled(folder).write(folder / where, progress=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_unfinished_folder_or_unknown_split_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "begun.json").write_text("{}")
    with pytest.raises(InputError, match="is not finished"):
        Doubled(folder)
    (folder / "begun.json").unlink()
    for path in folder.glob("test-*"):
        path.rename(folder / path.name.replace("test", "fold"))
    with pytest.raises(InputError, match="has a split 'fold': expected only"):
        Doubled(folder)


def test_two_step_preparing_resumes_and_refuses_other_options(folder: Path, tmp_path: Path) -> None:
    made = []

    def prepare(between: Path) -> PrepareReport:
        made.append(between)
        return Doubled(folder).write(between, progress=False)

    def change(source: Path, output: Path) -> PrepareReport:
        if len(made) == 1 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise KeyboardInterrupt
        return Doubled(source).write(output, progress=False)

    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare_in_two_steps(prepare, {"a": 1}, change, output, "half")
    assert (tmp_path / "out.half").is_dir()
    with pytest.raises(
        InputError, match=r"out\.half is left from a call with other a: use the same, or remove .*out\.half"
    ):
        prepare_in_two_steps(prepare, {"a": 2}, change, output, "half")
    prepare_in_two_steps(prepare, {"a": 1}, change, output, "half")
    assert made == [tmp_path / "out.half" / "lists"]
    assert items_of(output, "test") == [[4 * a, 4 * b] for a, b in items_of(folder, "test")]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out."))]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="fork and signals of POSIX")
def test_two_step_preparing_killed_at_any_point_resumes_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """At a sample of the disk operations, and at each one around the end of either step."""
    work = tmp_path / "work"

    def run_both_steps() -> None:
        prepare_in_two_steps(
            lambda half: Doubled(folder).write(half, progress=False),
            {"a": 1},
            lambda half, output: Doubled(half).write(output, progress=False),
            work / "out",
            "half",
        )

    lists, output, states = work / "out.half" / "lists", work / "out", tmp_path / "states"

    def count() -> None:
        with states.open("w") as file:
            there = lambda: file.write(f"{lists.exists():d}{output.exists():d}\n")  # noqa: E731
            kill_points.at_operation(work, 0, lambda: None, there)
            run_both_steps()

    def die(number: int) -> None:
        kill_points.die_at(work, number)
        run_both_steps()

    assert kill_points.forked(count).end()[0] == 0
    expected, there = digests(work), states.read_text().split()
    changes = [number for number in range(1, len(there)) if there[number] != there[number - 1]]
    near = {number + offset for number in changes for offset in range(-2, 5)}
    for number in sorted({*near, *range(3, len(there), 17), *range(len(there) - 12, len(there) + 1)}):
        shutil.rmtree(work)
        code, printed = kill_points.forked(lambda number=number: die(number)).end()
        assert code == kill_points.KILLED, printed
        if output.exists():  # only the cleaning up was left
            with contextlib.suppress(InputError):
                run_both_steps()
        else:
            run_both_steps()
        assert digests(work) == expected, number
    assert len(changes) == 3, "intermediate lists appear, the output appears, intermediate lists go"
