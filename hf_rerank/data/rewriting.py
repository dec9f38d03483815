"""A new folder of prepared lists from one that is there: the same lists, with other columns or in another order."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

import hf_rerank
from hf_rerank.data.prepared import SCHEMA_FILE, PreparedFolder, PrepareReport, read_prepared, read_report
from hf_rerank.data.splits import SPLITS
from hf_rerank.data.unfinished import GROUP_LISTS, REJECTS_FILE, Unfinished, sha256_of, unfinished_folder
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema


@dataclass(frozen=True)
class Rewriting:
    """How lists are changed.

    Attributes:
        schema: Of the new folder.
        columns: Of the new folder.
        change: ``(split, lists, report) -> lists``, which may count in the report what it cuts.
        describe: ``(folder, schema, report)`` writes schema, report and card, and what else belongs into the folder.
    """

    schema: ListSchema
    columns: pa.Schema
    change: Callable[[str, pa.Table, PrepareReport], pa.Table]
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
        The counts of the new folder. Lines read, dropped and rejected are those of the source.

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


def _rewrite(
    shards: list[tuple[str, Path]],
    unfinished: Unfinished,
    rewriting: Rewriting,
    report: PrepareReport,
    lists: int,
    progress: bool,
) -> PrepareReport:
    """One shard of the source after another becomes a shard."""
    written = 0
    if unfinished.progress is not None:
        written, report = unfinished.progress["shards"], PrepareReport(**unfinished.progress["report"])
    with tqdm(total=lists, unit="list", desc="Writing lists", delay=1, disable=not progress) as bar:
        for number, (split, path) in enumerate(shards):
            with pq.ParquetFile(path) as parquet:
                if number < written:
                    bar.update(parquet.metadata.num_rows)
                    continue
                group = unfinished.group(rewriting.columns)
                finished = False
                try:
                    for batch in parquet.iter_batches(GROUP_LISTS):
                        table = rewriting.change(
                            split, pa.Table.from_batches([batch]).replace_schema_metadata(), report
                        )
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
    names = ("read", "dropped", "rejected", "cut_lists", "lost_clicks")
    return PrepareReport(**{name: before[name] for name in names if name in before})
