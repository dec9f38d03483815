"""A new folder of prepared lists from one that is there: the same lists, with other columns or in another order."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

import hf_rerank
from hf_rerank.data.prepared import SCHEMA_FILE, PreparedFolder, is_prepared, read_prepared, read_report
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS
from hf_rerank.data.unfinished import GROUP_LISTS, REJECTS_FILE, Unfinished, sha256_of, unfinished_folder
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema

OPTIONS_FILE = "prepared_with.json"


@dataclass(frozen=True)
class Rewriting:
    """How lists are changed.

    Attributes:
        schema: Of the new folder.
        columns: Of the new folder.
        change: ``(split, first, lists, report) -> lists``, which may count in the report what it cuts; ``first`` is
            the number of the first of these lists in its split.
        describe: ``(folder, schema, report)`` writes schema, report and card, and what else belongs into the folder.
    """

    schema: ListSchema
    columns: pa.Schema
    change: Callable[[str, int, pa.Table, PrepareReport], pa.Table]
    describe: Callable[[Path, ListSchema, PrepareReport], None]


def rewrite_prepared(
    source_dir: str | Path,
    output_dir: str | Path,
    options: dict[str, Any],
    begin: Callable[[PreparedFolder], Rewriting],
    *,
    progress: bool,
) -> PrepareReport:
    """Makes ``output_dir``, batch by batch; it appears when it is whole.

    A call that was stopped by a kill goes on from the last whole shard, if it is made again with the same options;
    ``begin`` is then called again, and must say the same.

    Args:
        source_dir: A folder of prepared lists.
        output_dir: Folder to make; must be new or empty.
        options: Whatever the new lists depend on, but the source; plain JSON values.
        begin: Says how lists are changed. It is called when all that can be refused has been refused.
        progress: A bar of the lists, if it takes longer than a second.

    Returns:
        The counts of the new folder. Lines read, dropped and rejected, and what else was counted of the raw data, are
        those of the source.

    Raises:
        InputError: The source is no whole folder of prepared lists, has a split of another name than those of
            ``hf_rerank.data.splits``, or changed since a call that is gone on with; or see ``unfinished_folder``.
    """
    started = time.monotonic()
    source = Path(source_dir)
    prepared = read_prepared(source)
    others = [split for split in prepared.files if split not in SPLITS]
    if others:
        raise InputError(f"{source} has a split {others[0]!r}: expected only {', '.join(SPLITS)}")
    shards = [(split, path) for split, paths in prepared.files.items() for path in paths]
    options = {
        **options,
        "source": {path.name: sha256_of(path) for path in (source / SCHEMA_FILE, *(path for _, path in shards))},
        # Other versions may write other bytes.
        "versions": {"hf_rerank": hf_rerank.__version__, "pyarrow": pa.__version__},
    }
    with unfinished_folder(output_dir, options) as unfinished:
        if unfinished.done:
            assert unfinished.progress is not None
            return PrepareReport(**unfinished.progress["report"])
        rewriting = begin(prepared)
        report = _rewrite(
            shards, unfinished, rewriting, _counts_before(source), sum(prepared.lists.values()), progress
        )

        def describe(folder: Path) -> None:
            if (source / REJECTS_FILE).is_file():
                shutil.copyfile(source / REJECTS_FILE, folder / REJECTS_FILE)
            rewriting.describe(folder, rewriting.schema, report)

        unfinished.finish(rewriting.columns, describe)
    report.seconds = time.monotonic() - started
    return report


def in_two_steps(
    prepare: Callable[[Path], PrepareReport],
    options: Mapping[str, Any],
    change: Callable[[Path, Path], PrepareReport],
    output_dir: str | Path,
    suffix: str,
) -> PrepareReport:
    """Prepares raw data into ``OUTPUT.suffix``, and makes ``OUTPUT`` of that. Stopped, the same call goes on.

    Args:
        prepare: ``(folder) -> report`` makes a folder of prepared lists from raw data.
        options: Whatever ``prepare`` depends on, as plain JSON values; those of a call that is gone on with must be
            the same.
        change: ``(source, output) -> report``, of ``rewrite_prepared``.
        output_dir: Folder to make; must be new or empty.
        suffix: Of the folder in between, which is removed at the end.

    Raises:
        InputError: As ``prepare`` and ``change``; or the folder in between is left from another call.
    """
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not an empty folder: choose another output folder, or remove it")
    between = output.with_name(f"{output.name}.{suffix}")
    described = json.dumps(dict(options), indent=2, sort_keys=True) + "\n"
    note = between / OPTIONS_FILE
    if not is_prepared(between):
        prepare(between)
        note.write_text(described, encoding="utf-8")
    elif not note.is_file() or note.read_text(encoding="utf-8") != described:
        raise InputError(f"{between} is left from a call with other options or raw files: remove it, and run again")
    report = change(between, output)
    shutil.rmtree(between)
    return report


def _rewrite(
    shards: list[tuple[str, Path]],
    unfinished: Unfinished,
    rewriting: Rewriting,
    report: PrepareReport,
    lists: int,
    progress: bool,
) -> PrepareReport:
    """One shard of the source after another becomes a shard."""
    written, seen = 0, dict.fromkeys(SPLITS, 0)
    if unfinished.progress is not None:
        written, report = unfinished.progress["shards"], PrepareReport(**unfinished.progress["report"])
    with tqdm(total=lists, unit="list", desc="Writing lists", delay=1, disable=not progress) as bar:
        for number, (split, path) in enumerate(shards):
            with pq.ParquetFile(path) as parquet:
                if number < written:
                    bar.update(parquet.metadata.num_rows)
                    seen[split] += parquet.metadata.num_rows
                    continue
                group = unfinished.group(rewriting.columns)
                finished = False
                try:
                    for batch in parquet.iter_batches(GROUP_LISTS):
                        lists_read = pa.Table.from_batches([batch]).replace_schema_metadata()
                        table = rewriting.change(split, seen[split], lists_read, report)
                        seen[split] += batch.num_rows
                        if table.num_rows:
                            report.keep(split, table, rewriting.schema.label)
                            group.write(split, table)
                        bar.update(batch.num_rows)
                    progress_made = {"shards": number + 1, "report": dataclasses.asdict(report)}
                    unfinished.save(group, progress_made, whole=True)
                    finished = True
                finally:
                    if not finished:
                        group.abandon()
    return report


def _counts_before(source: Path) -> PrepareReport:
    """What the source says of the raw data; the lists are counted anew."""
    before = read_report(source)
    names = ("read", "dropped", "rejected", "cut_lists", "lost_clicks", "counts")
    return PrepareReport(**{name: before[name] for name in names if name in before})
