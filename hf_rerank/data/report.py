"""Counts of prepared data: lists kept, dropped and cut, lines rejected, values missing."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.splits import SPLITS
from hf_rerank.errors import InputError

# Rejected lines that one message names by number; the others are counted.
MAX_NAMED_LINES = 20


@dataclass(frozen=True)
class RejectedLine:
    """A line of a raw file that cannot be read.

    Attributes:
        file: The file, with its folder.
        line: Its number, from 1.
        column: The column or field that is wrong; None if the whole line is.
        kind: The kind of damage, in a few words; the report counts by it.
        reason: What was expected and what was found.
        text: The content of the column, or of the line; shortened.
    """

    file: str
    line: int
    column: str | None
    kind: str
    reason: str
    text: str = ""

    def __str__(self) -> str:
        column = "" if self.column is None else f", {self.column}"
        return f"{self.file}, line {self.line}{column}: {self.reason}" + (f": {self.text}" if self.text else "")

    def to_json(self) -> str:
        """One line of JSON, which names the file without its folder."""
        return json.dumps({**dataclasses.asdict(self), "file": self.file.rpartition("/")[2].rpartition("\\")[2]})


class RejectedLines(InputError):
    """Lines of a raw file cannot be read; the message names the first, and counts the others by kind.

    Attributes:
        lines: The rejected lines of the unit in which reading stopped.
    """

    def __init__(self, lines: Sequence[RejectedLine], advice: str = "") -> None:
        self.lines = list(lines)
        message = str(self.lines[0])
        if len(self.lines) > 1:
            numbers: dict[str, list[str]] = {}
            for rejected in self.lines[:MAX_NAMED_LINES]:
                numbers.setdefault(rejected.kind, []).append(str(rejected.line))
            named = [
                f"{kind} {count}" + (f" (line {', '.join(numbers[kind])})" if kind in numbers else "")
                for kind, count in Counter(rejected.kind for rejected in self.lines).items()
            ]
            more = len(self.lines) - MAX_NAMED_LINES
            message += f"; damaged lines near here: {len(self.lines)}, by kind: {', '.join(named)}"
            message += f"; {more} more lines are not named" if more > 0 else ""
        super().__init__(message + advice)


@dataclass
class PrepareReport:
    """Counts of prepared data: every line read is a list kept, a list dropped, or a line rejected.

    Attributes:
        read: Lines (Ad: sessions; custom data: lists) read.
        lists: Split -> number of lists kept.
        items: Split -> number of their items.
        clicks: Split -> number of their labels above 0.
        without_click: Kept lists without a click.
        dropped: Reason -> lists dropped by the rules of a protocol.
        rejected: Kind of damage -> lines rejected.
        cut_lists: Kept lists that were longer than the maximum, and cut.
        lost_clicks: Cut lists that had clicks, but have none after the cut.
        nulls: Column -> missing values in kept lists (columns without any are left out).
        counts: Other counts, by name.
        warnings: Valid data that is most likely a mistake, one sentence each.
        seconds: Duration.
        stages: Stage of preparing -> its rows and seconds.
    """

    read: int = 0
    lists: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    items: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    clicks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    without_click: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    cut_lists: int = 0
    lost_clicks: int = 0
    nulls: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    def count(self, name: str, number: int) -> None:
        """Adds to ``counts``."""
        self.counts[name] = self.counts.get(name, 0) + number

    def drop(self, reason: str, lists: int) -> None:
        """Counts dropped lists; a reason with count 0 is kept, which shows that it was checked."""
        self.dropped[reason] = self.dropped.get(reason, 0) + lists

    def reject(self, kind: str) -> None:
        """Counts a rejected line."""
        self.rejected[kind] = self.rejected.get(kind, 0) + 1

    def cut(self, longer: int, lost_clicks: int) -> None:
        """Counts lists that were cut, and those of them that lost all their clicks."""
        self.cut_lists += longer
        self.lost_clicks += lost_clicks

    def add_stage(self, stage: str, rows: int, seconds: float) -> None:
        """Adds rows and seconds to a stage."""
        found = self.stages.setdefault(stage, {"rows": 0, "seconds": 0.0})
        found["rows"] += rows
        found["seconds"] = round(found["seconds"] + seconds, 3)

    def add(self, other: PrepareReport) -> None:
        """Adds the counts of another report."""
        for stage, counts in other.stages.items():
            self.add_stage(stage, int(counts["rows"]), counts["seconds"])
        for entry in dataclasses.fields(self):
            mine, more = getattr(self, entry.name), getattr(other, entry.name)
            if entry.name == "stages":
                continue
            if isinstance(mine, dict):
                for name, count in more.items():
                    mine[name] = mine.get(name, 0) + count
            else:
                setattr(self, entry.name, mine + more)

    def keep(self, split: str, table: pa.Table, label: str) -> None:
        """Counts kept lists.

        Args:
            split: Their split.
            table: The lists.
            label: The column of labels.
        """
        labels = table.column(label).combine_chunks()
        clicked = pc.greater(labels.flatten(), 0)
        lists_with_click = pc.count_distinct(labels.value_parent_indices().filter(clicked)).as_py()
        self.lists[split] += table.num_rows
        self.items[split] += len(clicked)
        self.clicks[split] += clicked.true_count
        self.without_click += table.num_rows - lists_with_click
        for name in table.column_names:
            column = table.column(name)
            nulls = (pc.list_flatten(column) if pa.types.is_list(column.type) else column).null_count
            if nulls:
                self.nulls[name] = self.nulls.get(name, 0) + nulls

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``rejected`` and ``nulls`` are sorted by name, and empty optional parts are left out."""
        plain = dataclasses.asdict(self)
        for name in ("rejected", "nulls"):
            plain[name] = dict(sorted(plain[name].items()))
        return {name: value for name, value in plain.items() if name not in ("counts", "stages", "warnings") or value}
