"""The description in a folder of prepared lists: ``schema.json``, ``report.json`` and the card, ``README.md``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS
from hf_rerank.schema import ListSchema
from hf_rerank.storage import format_json, name_failures, read_json

SCHEMA_FILE = "schema.json"
REPORT_FILE = "report.json"
CARD_FILE = "README.md"
HOW_SECTION, CAVEATS_SECTION, LICENCE_SECTION = "How it was made", "Before you compare results", "Licence"
# Who may redistribute lists: ``license_name`` in the header of the card, ``licence`` in the report.
SIMULATED, NO_REDISTRIBUTION, OWN = "simulated", "no-redistribution", "own"

_NO_REDISTRIBUTION_TEXT, _SIMULATED_TEXT = "may not be redistributed", "Simulated lists: no line of the original"


@dataclass(frozen=True)
class Licence:
    """The licence of prepared lists.

    Attributes:
        name: ``SIMULATED``, ``NO_REDISTRIBUTION`` or ``OWN``; None if unknown.
        text: The text of the section in the card.
    """

    name: str | None
    text: str


def write_description(
    folder: Path, schema: ListSchema, report: PrepareReport, card: str, **more: dict[str, Any]
) -> None:
    """Writes ``schema.json``, ``report.json`` (the counts and ``more``) and the card; the same lists give the same
    bytes."""
    with name_failures(folder):
        schema.save(folder / SCHEMA_FILE)
    counts = {name: value for name, value in report.to_dict().items() if name not in ("seconds", "stages")}
    described = counts | more
    licence = _find_licence_name(card)
    if licence is not None:
        described["licence"] = licence
    with name_failures(folder):
        (folder / REPORT_FILE).write_text(format_json(described), encoding="utf-8")
        (folder / CARD_FILE).write_text(card, encoding="utf-8")


def make_dataset_card(
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
        report: The counts.
        schema: The schema of the lists.
        how: How the lists were made from raw data, one sentence per point.
        caveats: What readers of results must know, one sentence per point.
        licence: The licence.
    """
    # datasets refuses to load a split without rows, so the header leaves those out.
    files = [
        line
        for split in SPLITS
        if report.lists[split]
        for line in (f"      - split: {split}", f'        path: "{split}-*.parquet"')
    ]
    # A JSON string is valid YAML, unlike an unquoted title such as "2024: spring".
    header = ["---", f"pretty_name: {json.dumps(title, ensure_ascii=False)}", "license: other"]
    if licence.name is not None:
        header.append(f"license_name: {licence.name}")
    header += ["tags:", "  - re-ranking", "  - recommender-systems"]
    if files:
        header += ["configs:", "  - config_name: default", "    data_files:", *files]
    table = [
        "| split | lists | items | items per list | clicks | clicks per list | click-through rate |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for split in SPLITS:
        lists, items, clicks = report.lists[split], report.items[split], report.clicks[split]
        table.append(
            f"| {split} | {lists:,} | {items:,} | {_format_share(items, lists)} | {clicks:,} "
            f"| {_format_share(clicks, lists)} | {_format_share(100 * clicks, items)} % |"
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
    lines = [*header, "---", "", f"# {title}", "", "One row is one list. `schema.json` describes the columns."]
    lines += ["", "```python", "from hf_rerank import load_lists", "", 'lists = load_lists("path/to/this/folder")']
    lines += ['lists["train"], lists.schema', "```", "", "## Statistics", "", *table, "", *_format_points(counts)]
    lines += [
        "",
        f"## {HOW_SECTION}",
        "",
        *_format_points(how),
        "",
        f"## {CAVEATS_SECTION}",
        "",
        *_format_points(caveats),
    ]
    return "\n".join([*lines, "", f"## {LICENCE_SECTION}", "", licence.text, ""])


@dataclass(frozen=True)
class Card:
    """The texts of a card; the fields are arguments of ``make_dataset_card``."""

    title: str
    how: list[str]
    caveats: list[str]
    licence: Licence


def read_card(folder: Path) -> Card:
    """Reads the texts of the card of a folder of prepared lists; empty for missing sections, or without a card."""
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

    def find_points(name: str) -> list[str]:
        return [line.removeprefix("- ") for line in sections.get(name, []) if line.startswith("- ")]

    licence = Licence(_find_licence_name(text), "\n".join(sections.get(LICENCE_SECTION, [])).strip())
    return Card(title, find_points(HOW_SECTION), find_points(CAVEATS_SECTION), licence)


def find_licence(folder: Path) -> str | None:
    """Whether a folder of prepared lists may be redistributed: the stricter of its card and its report.

    Returns:
        ``SIMULATED``, ``NO_REDISTRIBUTION`` or ``OWN``; None if neither contains a licence.
    """
    card = read_card(folder).licence
    said = (read_report(folder).get("licence"), card.name)
    if NO_REDISTRIBUTION in said or _NO_REDISTRIBUTION_TEXT in card.text:
        return NO_REDISTRIBUTION
    return next((name for name in said if name in (SIMULATED, OWN)), OWN if card.text else None)


def _find_licence_name(card: str) -> str | None:
    """The name of the licence in the header of a card, or, in older cards, from its text."""
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
        InputError: It is not a JSON object.
    """
    path = folder / REPORT_FILE
    return read_json(path) if path.is_file() else {}


def _format_points(sentences: Sequence[str]) -> list[str]:
    return [f"- {sentence}" for sentence in sentences]


def _format_share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"
