"""A folder of prepared lists: Parquet shards a split, ``schema.json``, ``report.json``, ``README.md`` (the card), and
``rejects.jsonl`` where damaged lines were skipped.

The folder appears under its name only when it is whole; see ``hf_rerank.data.unfinished``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_rerank.data.splits import SPLITS
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema

SCHEMA_FILE = "schema.json"
REPORT_FILE = "report.json"
CARD_FILE = "README.md"
HOW_SECTION, CAVEATS_SECTION, LICENCE_SECTION = "How it was made", "Before you compare results", "Licence"
# Who may redistribute lists: ``license_name`` in the header of the card, ``licence`` in the report.
SIMULATED, NO_REDISTRIBUTION, OWN = "simulated", "no-redistribution", "own"

_NO_REDISTRIBUTION_TEXT, _SIMULATED_TEXT = "may not be redistributed", "Simulated lists: no line of the original"

_SHARD = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")


@dataclass
class PrepareReport:
    """What became of the raw data. Every line read is a list kept, a list dropped, or a line rejected.

    Attributes:
        read: Lines (or windows) read.
        lists: Split -> lists kept.
        items: Split -> items in them.
        clicks: Split -> labels above 0 in them.
        without_click: Kept lists without a click.
        dropped: Reason -> lists dropped, by the rules of a protocol.
        rejected: Kind of damage -> lines rejected.
        cut_lists: Kept lists that were longer than the maximum, and cut.
        lost_clicks: Of those, lists that had clicks, and none after the cut.
        nulls: Column -> missing values in kept lists (of the columns that have any).
        counts: What else was counted, by name; empty for PRM Public.
        seconds: How long it took.
        stages: Stage of preparing -> its rows and seconds; empty for PRM Public.
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
    seconds: float = 0.0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    def count(self, name: str, number: int) -> None:
        """Adds to ``counts``."""
        self.counts[name] = self.counts.get(name, 0) + number

    def drop(self, reason: str, lists: int) -> None:
        """Counts dropped lists; a reason that dropped none is kept, which shows that it was looked for."""
        self.dropped[reason] = self.dropped.get(reason, 0) + lists

    def reject(self, kind: str) -> None:
        """Counts a damaged line."""
        self.rejected[kind] = self.rejected.get(kind, 0) + 1

    def add(self, other: PrepareReport) -> None:
        """Adds the counts of lines that follow."""
        for counts in dataclasses.fields(self):
            mine, more = getattr(self, counts.name), getattr(other, counts.name)
            if isinstance(mine, dict):
                for name, count in more.items():
                    mine[name] = mine.get(name, 0) + count
            else:
                setattr(self, counts.name, mine + more)

    def keep(self, split: str, table: pa.Table, label: str) -> None:
        """Counts the lists of ``table``."""
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
        """Plain JSON values; what was met in the order of the lines is sorted by name."""
        plain = dataclasses.asdict(self)
        for name in ("rejected", "nulls"):
            plain[name] = dict(sorted(plain[name].items()))
        return {name: value for name, value in plain.items() if name not in ("counts", "stages") or value}


@dataclass(frozen=True)
class Licence:
    """Who may do what with prepared lists.

    Attributes:
        name: ``SIMULATED``, ``NO_REDISTRIBUTION`` or ``OWN``; None where nothing says it.
        text: In words.
    """

    name: str | None
    text: str


def write_description(
    folder: Path, schema: ListSchema, report: PrepareReport, card: str, **more: dict[str, Any]
) -> None:
    """Writes ``schema.json``, ``report.json`` (with ``more`` beside the counts) and the card; the same lists give the
    same bytes."""
    schema.save(folder / SCHEMA_FILE)
    counts = {name: value for name, value in report.to_dict().items() if name not in ("seconds", "stages")}
    described = counts | more
    licence = _licence_name(card)
    if licence is not None:
        described["licence"] = licence
    (folder / REPORT_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def dataset_card(
    title: str,
    report: PrepareReport,
    schema: ListSchema,
    *,
    how: Sequence[str],
    caveats: Sequence[str],
    licence: Licence,
) -> str:
    """The card of a folder of prepared lists, with the header that ``datasets.load_dataset`` reads.

    Args:
        title: Name of the dataset.
        report: Counts.
        schema: Columns.
        how: How raw data became lists: one sentence a point.
        caveats: What a reader of results must know: one sentence a point.
        licence: Who may do what.
    """
    # datasets refuses to load a split without rows, so the header leaves those out.
    files = [
        line
        for split in SPLITS
        if report.lists[split]
        for line in (f"      - split: {split}", f'        path: "{split}-*.parquet"')
    ]
    # A text in JSON is one in YAML too; as it is, a title such as "2024: spring" is none.
    header = ["---", f"pretty_name: {json.dumps(title, ensure_ascii=False)}", "license: other"]
    if licence.name is not None:
        header.append(f"license_name: {licence.name}")
    header += ["tags:", "  - re-ranking", "  - recommender-systems"]
    if files:
        header += ["configs:", "  - config_name: default", "    data_files:", *files]
    table = [
        "| split | lists | items | items a list | clicks | clicks a list | click-through rate |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for split in SPLITS:
        lists, items, clicks = report.lists[split], report.items[split], report.clicks[split]
        table.append(
            f"| {split} | {lists:,} | {items:,} | {_share(items, lists)} | {clicks:,} | {_share(clicks, lists)} "
            f"| {_share(100 * clicks, items)} % |"
        )
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in report.dropped.items()) or "none"
    rejected = ", ".join(f"{kind} {count:,}" for kind, count in sorted(report.rejected.items())) or "none"
    nulls = ", ".join(f"`{name}` {count:,}" for name, count in sorted(report.nulls.items())) or "none"
    counts = [
        f"Read: {report.read:,} lists.",
        f"Dropped: {dropped}.",
        f"Rejected as damaged: {rejected}.",
        f"Cut to {schema.max_list_length} items: {report.cut_lists:,} lists, of which {report.lost_clicks:,} lost all "
        "their clicks.",
        f"Kept without a click: {report.without_click:,} lists.",
        f"Missing values: {nulls}.",
    ]
    if report.counts:
        counts.append("Counted: " + ", ".join(f"{name} {count:,}" for name, count in report.counts.items()) + ".")
    lines = [*header, "---", "", f"# {title}", "", "One row is one list. `schema.json` says which column is what."]
    lines += ["", "```python", "from hf_rerank import load_lists", "", 'lists = load_lists("path/to/this/folder")']
    lines += ['lists["train"], lists.schema', "```", "", "## Statistics", "", *table, "", *_points(counts)]
    lines += ["", f"## {HOW_SECTION}", "", *_points(how), "", f"## {CAVEATS_SECTION}", "", *_points(caveats)]
    return "\n".join([*lines, "", f"## {LICENCE_SECTION}", "", licence.text, ""])


@dataclass(frozen=True)
class Card:
    """What a card says beside its numbers; as of ``dataset_card``."""

    title: str
    how: list[str]
    caveats: list[str]
    licence: Licence


def read_card(folder: Path) -> Card:
    """The words of the card of a folder of prepared lists; empty where it has no such section, or there is no card."""
    path = folder / CARD_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    sections: dict[str, list[str]] = {}
    title, heading = "Prepared lists", ""
    for line in text.splitlines():
        if line.startswith("# "):
            title = line.removeprefix("# ")
        elif line.startswith("## "):
            heading = line.removeprefix("## ")
        else:
            sections.setdefault(heading, []).append(line)

    def points(name: str) -> list[str]:
        return [line.removeprefix("- ") for line in sections.get(name, []) if line.startswith("- ")]

    licence = Licence(_licence_name(text), "\n".join(sections.get(LICENCE_SECTION, [])).strip())
    return Card(title, points(HOW_SECTION), points(CAVEATS_SECTION), licence)


def licence_of(folder: Path) -> str | None:
    """Whether a folder of prepared lists may be redistributed, by card and report: the stricter of both counts.

    Returns:
        ``SIMULATED``, ``NO_REDISTRIBUTION`` or ``OWN``; None where neither says anything.
    """
    card = read_card(folder).licence
    said = (read_report(folder).get("licence"), card.name)
    if NO_REDISTRIBUTION in said or _NO_REDISTRIBUTION_TEXT in card.text:
        return NO_REDISTRIBUTION
    return next((name for name in said if name in (SIMULATED, OWN)), OWN if card.text else None)


def _licence_name(card: str) -> str | None:
    """From the header of a card; of one that is older than the name, by its words."""
    header = card.partition("\n---\n")[0]
    named = re.search(r"^license_name: (\S+)$", header, re.MULTILINE)
    if named is not None:
        return named[1]
    if _NO_REDISTRIBUTION_TEXT in card:
        return NO_REDISTRIBUTION
    return SIMULATED if _SIMULATED_TEXT in card else None


def read_report(folder: Path) -> dict[str, Any]:
    """The ``report.json`` of a folder of prepared lists; empty without one.

    Raises:
        InputError: It is no JSON object.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}; copy or prepare the lists again") from None
    if not isinstance(report, dict):
        raise InputError(f"{path} holds {type(report).__name__}, expected an object; prepare the lists again")
    return report


def _points(sentences: Sequence[str]) -> list[str]:
    return [f"- {sentence}" for sentence in sentences]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


@dataclass(frozen=True)
class PreparedFolder:
    """What a folder of prepared lists holds.

    Attributes:
        schema: From ``schema.json``.
        files: Split -> its shards.
        lists: Split -> its lists.
        columns: Columns of the shards.
    """

    schema: ListSchema
    files: dict[str, list[Path]]
    lists: dict[str, int]
    columns: pa.Schema


def is_prepared(folder: str | Path) -> bool:
    """Whether ``folder`` calls itself a folder of prepared lists."""
    return (Path(folder) / SCHEMA_FILE).is_file()


def read_prepared(folder: str | Path) -> PreparedFolder:
    """Looks at a folder of prepared lists, reading the footers of its shards only.

    Raises:
        InputError: No ``schema.json``, no shards, a shard that is missing, cut off, or has other columns.
    """
    folder = Path(folder)
    if not is_prepared(folder):
        raise InputError(
            f"{folder} is no folder of prepared lists (it has no {SCHEMA_FILE}): make one with hf-rerank prepare"
        )
    schema = ListSchema.load(folder / SCHEMA_FILE)
    files = {
        split: [folder / name for name in names]
        for split, names in shards_of(str(folder), sorted(path.name for path in folder.glob("*.parquet"))).items()
    }
    first = next(iter(files.values()))[0]
    columns: pa.Schema | None = None
    lists: dict[str, int] = {}
    for split, shards in files.items():
        for shard in shards:
            footer = read_footer(shard)
            lists[split] = lists.get(split, 0) + footer.num_rows
            found = footer.schema.to_arrow_schema().remove_metadata()
            columns = found if columns is None else columns
            if not found.equals(columns):
                raise InputError(f"{shard} has other columns than {first}: the folder mixes two preparations")
    assert columns is not None
    return PreparedFolder(schema, files, lists, columns)


def shards_of(where: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Split -> its shards, in order.

    Args:
        where: The folder or repository, for messages.
        names: Of the Parquet files in it, sorted.

    Raises:
        InputError: There are none, a shard is missing, or a name is that of no shard.
    """
    if not names:
        raise InputError(
            f"{where} has a {SCHEMA_FILE} but no shards: expected files such as train-00000-of-00001.parquet"
        )
    files: dict[str, list[str]] = {}
    for name in names:
        parts = _SHARD.fullmatch(name)
        if parts is None:
            raise InputError(
                f"{where}/{name} has no name of a shard: expected one such as train-00000-of-00001.parquet"
            )
        files.setdefault(parts["split"], []).append(name)
        whole = [f"{parts['split']}-{number:05d}-of-{parts['count']}.parquet" for number in range(int(parts["count"]))]
        missing = [shard for shard in whole if shard not in names]
        if missing or name not in whole:
            wrong = f"lacks the shard {missing[0]}" if missing else f"holds {name}, which belongs to no whole set"
            raise InputError(f"{where} {wrong}: prepare the lists again, or copy all of the folder")
    for split, shards in files.items():
        if len({shard[-len("00001.parquet") :] for shard in shards}) > 1:
            raise InputError(f"{where} holds two sets of shards of {split}: keep one of them")
    order = sorted(files, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    return {split: files[split] for split in order}


def read_footer(path: Path) -> pq.FileMetaData:
    """The metadata of a Parquet file.

    Raises:
        InputError: It is no Parquet file, or was cut off.
    """
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no whole Parquet file: {error}; make or copy it again") from None
