"""The guides of this project, and their code blocks, links and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in (ROOT / "hf_rerank").rglob("__init__.py"))
# The generated cards in model_cards/ are not guides; their index is.
GUIDES = [
    ROOT / "README.md",
    *(package / "README.md" for package in PACKAGES),
    *sorted((ROOT / "scripts").rglob("README.md")),
    ROOT / "model_cards" / "README.md",
    *sorted((ROOT / ".github").glob("*.md")),
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(package: str) -> str:
    """The README.md of a package, such as ``models`` or ``data/custom``; ``""``: of the whole library."""
    return (ROOT / "hf_rerank" / package / "README.md").read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """(language, code) of each fenced block in one of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    return [(language, code) for language, code in found if language in languages]


def block(text: str, beginning: str) -> str:
    """The Python block that starts with ``beginning``."""
    (found,) = [code for _, code in blocks(text, "python") if code.startswith(beginning)]
    return found


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(text: str) -> Iterator[str]:
    """The targets of links and images within this project."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
        if not re.match(r"[a-z]+:", target):
            yield target


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of each row of the table whose first line starts with ``heading``."""
    lines = text[text.index(heading) :].splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:end]]


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))
