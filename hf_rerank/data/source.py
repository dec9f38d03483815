"""The protocol of everything that lists come from: PRM Public, Ad, custom data, prepared folders being rewritten.

A source says what it is made of (``units``) and reads one unit into lists (``read``). Everything else, which is
resuming, sharding, counting, the record of rejected lines, the card, is done by the one writer,
``hf_rerank.data.prepared.write_lists``. A source with one unit, in full::

    class OneFile:
        options, size, size_unit = {}, 1, "file"

        def __init__(self, path: Path, schema: ListSchema) -> None:
            self.path, self.schema, self.inputs = path, schema, InputFiles([path])
            self.columns = pq.read_schema(path)

        def units(self, parts: Path) -> list[Unit]:
            return [Unit(self.path.name, digest_content(self.path), size=1)]

        def facts(self) -> None:
            return None

        def read(self, unit: Unit, facts: None) -> tuple[dict[str, pa.Table], Rejects]:
            table = pq.read_table(self.path)
            return {"train": table}, Rejects(PrepareReport(read=table.num_rows))

        def describe(self, folder: Path, facts: None, report: PrepareReport) -> None:
            card = dataset_card("One file", report, self.schema, how=[], caveats=[], licence=Licence(None, ""))
            write_description(folder, self.schema, report, card)

    write_lists(OneFile(Path("lists.parquet"), schema), "lists")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from hf_rerank.data.report import PrepareReport, RejectedLine
from hf_rerank.data.splits import SPLITS
from hf_rerank.schema import ListSchema
from hf_rerank.storage import InputFiles


@dataclass(frozen=True)
class Unit:
    """A part of a source that is read on its own; sources add what they need to find it.

    Attributes:
        name: For messages, such as ``set1.train.txt.part1, lines 1 to 1200``; unique within the source.
        digest: Of the content that it is read from. A stopped call resumes only if what was read has the same digest.
        size: Share of the work, for the progress bar, in ``ListSource.size_unit``.
    """

    name: str
    digest: str
    size: int


@dataclass
class Rejects:
    """What of a unit did not become lists, and why.

    Attributes:
        report: Counts ``read``, ``dropped``, ``cut_lists``, ``lost_clicks``, ``counts``. The lists kept, and the
            rejected lines, are counted by the writer.
        lines: The rejected lines, in the order of the input.
    """

    report: PrepareReport = field(default_factory=PrepareReport)
    lines: list[RejectedLine] = field(default_factory=list)


class ListSource(Protocol):
    """Where lists come from; an example is in the description of the module.

    Attributes:
        schema: Of the lists.
        columns: Of the tables that ``read`` returns, in order.
        options: Whatever the lists depend on beside the content of the units: JSON values. A stopped call resumes only
            with the same options.
        size: The sum of ``Unit.size`` over all units, for the progress bar.
        size_unit: Its unit, such as ``"B"`` or ``"list"``.
        inputs: The files that are read, noted before anything of them is; if one of them changes before the writer is
            done, that is an error.
    """

    schema: ListSchema
    columns: pa.Schema
    options: dict[str, Any]
    size_unit: str
    inputs: InputFiles

    @property
    def size(self) -> int: ...

    def units(self, parts: Path) -> Iterable[Unit]:
        """The units, in the order of the lists: the same for the same input. They may carry what they are read from.

        Args:
            parts: Folder that ``partition`` filled; of a source without it there is no such folder.
        """
        ...

    def facts(self) -> Any:
        """What ``read`` needs, and no unit knows: lookup tables, a trained ranker. Called once, before ``read``."""
        ...

    def read(self, unit: Any, facts: Any) -> tuple[dict[str, pa.Table], Rejects]:
        """The lists of a unit, by split. It depends on nothing but its arguments, and is called in several threads."""
        ...

    def describe(self, folder: Path, facts: Any, report: PrepareReport) -> None:
        """Writes schema, report, card (``write_description``) and what else belongs into the finished folder.

        Args:
            folder: With the shards under their final names.
            facts: As of ``facts``.
            report: Of all units.
        """
        ...


@runtime_checkable
class PartitionedSource(Protocol):
    """What a ``ListSource`` has in addition if the rows of one list are scattered over its input.

    ``hf_rerank.data.prepared.buckets`` cuts rows by a key into files, of which ``read`` then reads one bucket at a
    time. It is done once: a call that is interrupted meanwhile starts again.
    """

    def partition(
        self, parts: Path, bar: Callable[..., Any], on_reject: Callable[[RejectedLine], object]
    ) -> PrepareReport:
        """Reads the input once and fills the folder ``parts``, which exists, with files that ``read`` reads.

        Args:
            parts: The folder.
            bar: Makes a progress bar, as ``tqdm`` does.
            on_reject: Called with each line that cannot be read; it raises if rejected lines are errors.

        Returns:
            What was counted.
        """
        ...


def split_table(table: pa.Table, of_list: np.ndarray) -> dict[str, pa.Table]:
    """Cuts a table by the split of each list; without a copy where the lists of each split are together.

    Args:
        table: N lists.
        of_list: N names of splits.
    """
    tables = {}
    for split in SPLITS:
        rows = np.flatnonzero(of_list == split)
        if len(rows):
            together = rows[-1] - rows[0] + 1 == len(rows)
            tables[split] = table.slice(int(rows[0]), len(rows)) if together else table.take(pa.array(rows))
    return tables
