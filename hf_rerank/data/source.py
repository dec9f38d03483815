"""The protocol of sources of lists: PRM Public, Ad, custom data, prepared folders being rewritten.

A source divides its input into units (``units``) and reads one unit into lists (``read``). The writer,
``hf_rerank.data.prepared.write_lists``, does everything else: resuming, sharding, counting, recording rejected lines.
A complete source with one unit::

    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

    from hf_rerank import ListSchema
    from hf_rerank.data.prepared import Licence, make_dataset_card, write_description, write_lists
    from hf_rerank.data.report import PrepareReport
    from hf_rerank.data.source import Rejects, Unit
    from hf_rerank.storage import InputFiles, digest_content


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
            card = make_dataset_card("One file", report, self.schema, how=[], caveats=[], licence=Licence(None, ""))
            write_description(folder, self.schema, report, card)

    schema = ListSchema.load("schema.json")
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
    """A part of a source that is read separately; subclasses add what is needed to find it.

    Attributes:
        name: Name for messages, such as ``set1.train.txt.part1, lines 1 to 1200``; unique within the source.
        digest: Digest of the content of the unit. An interrupted call resumes only if the digests are the same.
        size: Amount of work in ``ListSource.size_unit``, for the progress bar.
    """

    name: str
    digest: str
    size: int


@dataclass
class Rejects:
    """The part of a unit that did not become lists, and why.

    Attributes:
        report: Counts ``read``, ``dropped``, ``cut_lists``, ``lost_clicks``, ``counts``. The lists kept, and the
            rejected lines, are counted by the writer.
        lines: The rejected lines, in the order of the input.
    """

    report: PrepareReport = field(default_factory=PrepareReport)
    lines: list[RejectedLine] = field(default_factory=list)


class ListSource(Protocol):
    """A source of lists; the documentation of the package ``hf_rerank.data`` explains how to write one.

    Attributes:
        schema: The schema of the lists.
        columns: The columns of the tables that ``read`` returns, in order.
        options: Everything that the lists depend on apart from the content of the units: JSON values. An interrupted
            call resumes only with the same options.
        size: The sum of ``Unit.size`` over all units, for the progress bar.
        size_unit: Unit of ``size``, such as ``"B"`` or ``"list"``.
        inputs: The input files, recorded before any of them is read; it is an error if one changes before the writer
            has finished.
    """

    schema: ListSchema
    columns: pa.Schema
    options: dict[str, Any]
    size_unit: str
    inputs: InputFiles

    @property
    def size(self) -> int: ...

    def units(self, parts: Path) -> Iterable[Unit]:
        """The units, in the order of the lists; the same for the same input. They may contain their data.

        Args:
            parts: The folder that ``partition`` filled; without ``partition`` it does not exist.
        """
        ...

    def facts(self) -> Any:
        """Data that ``read`` needs for all units: lookup tables, a trained ranker. Called once, before ``read``."""
        ...

    def read(self, unit: Any, facts: Any) -> tuple[dict[str, pa.Table], Rejects]:
        """The lists of a unit, by split. Must depend only on its arguments; called in several threads."""
        ...

    def describe(self, folder: Path, facts: Any, report: PrepareReport) -> None:
        """Writes schema, report and card (``write_description``), and other files, into the finished folder.

        Args:
            folder: Contains the shards under their final names.
            facts: The result of ``facts``.
            report: The counts of all units.
        """
        ...


@runtime_checkable
class PartitionedSource(Protocol):
    """The additional method of a ``ListSource`` if the rows of one list are scattered over its input.

    ``hf_rerank.data.prepared.buckets`` divides rows by a key into buckets on the disk, which ``read`` then reads one
    by one. This is done once; if it is interrupted, it starts again.
    """

    def partition(
        self, parts: Path, bar: Callable[..., Any], on_reject: Callable[[RejectedLine], object]
    ) -> PrepareReport:
        """Reads the input once and fills the folder ``parts``, which exists, with files that ``read`` reads.

        Args:
            parts: The folder.
            bar: Makes a progress bar, as ``tqdm`` does.
            on_reject: Called with each line that cannot be read; raises if rejected lines are errors.

        Returns:
            The counts.
        """
        ...


def split_table(table: pa.Table, of_list: np.ndarray) -> dict[str, pa.Table]:
    """Divides a table by the split of each list, without a copy if the lists of a split are contiguous.

    Args:
        table: N lists.
        of_list: The split of each list, array of N strings.

    Returns:
        Split -> its lists; splits without lists are left out.
    """
    tables = {}
    for split in SPLITS:
        rows = np.flatnonzero(of_list == split)
        if len(rows):
            together = rows[-1] - rows[0] + 1 == len(rows)
            tables[split] = table.slice(int(rows[0]), len(rows)) if together else table.take(pa.array(rows))
    return tables
