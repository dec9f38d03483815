"""Draws the packages of hf_rerank and which of them import which, from the imports in the code.

    python scripts/figures/architecture.py [--output scripts/figures/architecture.svg]

An arrow points from a package to one that it imports. Arrows that follow from others are left out, and so are
``errors.py`` and ``version.py``, which everything may import. A package is placed as high as its importers allow; its
column is set in ``BOXES``. The same code gives the same bytes.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hf_rerank"
FIGURE = Path(__file__).with_suffix(".svg")


class Box(NamedTuple):
    """One box of the figure.

    Attributes:
        column: Horizontal position of its middle, in boxes from the left.
        parts: The packages and modules in the box; it is named after the first.
        purpose: The line below the name.
        half: ``core``, ``lists`` or ``both``; determines the colour.
    """

    column: float
    parts: tuple[str, ...]
    purpose: str
    half: str = "core"


BOXES = (
    Box(2.25, ("commands", "cli"), "the command line", "both"),
    Box(2.25, ("initial_rankers", "personalised_vectors"), "initial orders, vectors", "both"),
    Box(1.5, ("comparison",), "is it worth it?"),
    Box(1.5, ("training",), "RerankTrainer"),
    Box(1.5, ("inference",), "Reranker: torch, ONNX"),
    Box(1.5, ("hub",), "cards, pushing"),
    Box(2.5, ("testing",), "contracts of a model"),
    Box(0.5, ("models",), "R(X, P), one file each"),
    Box(2.5, ("evaluation",), "evaluate, tables, plots"),
    Box(0, ("principled",), "orders, passes, terms"),
    Box(1.5, ("processing",), "lists to tensors"),
    Box(3, ("metrics",), "functions of arrays"),
    Box(0, ("losses", "ranking_losses", "list_tensors"), "task losses"),
    Box(1, ("schema", "validation", "fast_rows"), "columns, tensors, checks"),
    Box(2, ("storage",), "bytes: files, the Hub"),
    Box(4, ("data",), "load_lists, simulators", "lists"),
)
NOT_DRAWN = {"errors", "version"}
COLOURS = {"core": "#e8eff9", "lists": "#e7f4e8", "both": "#fbf0dd"}
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 168, 46, 12, 34, 16


def imports() -> dict[str, set[str]]:
    """Box -> the boxes that its files import, including imports in functions but not those for type checkers."""
    box_of = {part: box.parts[0] for box in BOXES for part in box.parts}
    found: dict[str, set[str]] = {box.parts[0]: set() for box in BOXES}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if part == "__init__" or part in NOT_DRAWN:
            continue
        if part not in box_of:
            raise SystemExit(f"hf_rerank/{part} has no box: add it to BOXES of {Path(__file__).name}")
        targets = {target for target in _imported(path) if target not in NOT_DRAWN}
        found[box_of[part]] |= {box_of[target] for target in targets} - {box_of[part]}
    return found


def _imported(path: Path) -> Iterator[str]:
    """Yields the top-level parts of hf_rerank that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, *parts = name.split(".")
            if package == "hf_rerank" and parts:
                yield parts[0]


def reduced(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Returns the edges that do not follow from others."""

    def reached(name: str) -> set[str]:
        return edges[name].union(*(reached(other) for other in edges[name]))

    return {
        name: {other for other in others if not any(other in reached(third) for third in others - {other})}
        for name, others in edges.items()
    }


def rows_of(edges: dict[str, set[str]]) -> dict[str, int]:
    """Box -> its row, 0 at the top, directly below the lowest box that imports it."""
    rows: dict[str, int] = {}

    def row(name: str) -> int:
        if name not in rows:
            rows[name] = max((row(other) + 1 for other, imported in edges.items() if name in imported), default=0)
        return rows[name]

    return {name: row(name) for name in edges}


def figure(edges: dict[str, set[str]]) -> str:
    """Returns the figure as SVG.

    Args:
        edges: As returned by ``imports``.
    """
    edges = reduced(edges)
    rows = rows_of(edges)
    boxes = {box.parts[0]: box for box in BOXES}

    def middle(name: str) -> float:
        return MARGIN + WIDTH / 2 + boxes[name].column * (WIDTH + GAP_X)

    def top(name: str) -> float:
        return MARGIN + rows[name] * (HEIGHT + GAP_Y)

    width = 2 * MARGIN + WIDTH + max(box.column for box in BOXES) * (WIDTH + GAP_X)
    height = 2 * MARGIN + HEIGHT + max(rows.values()) * (HEIGHT + GAP_Y)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="Helvetica, Arial, sans-serif" font-size="14" text-anchor="middle">',
        "<title>Packages of hf_rerank and which of them import which</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#556"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
    ]
    for name in boxes:
        for other in sorted(edges[name], key=middle):
            start, bend, end = top(name) + HEIGHT, top(other) - GAP_Y, top(other) - 2
            lines.append(
                f'<path d="M{middle(name):g},{start:g} V{bend:g} L{middle(other):g},{end:g}" fill="none" '
                'stroke="#556" stroke-width="1.2" marker-end="url(#arrow)"/>'
            )
    for name, box in boxes.items():
        is_package = (PACKAGE / name).is_dir()
        x, y = middle(name), top(name)
        lines += [
            f'<rect x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
            f'fill="{COLOURS[box.half]}" stroke="#556"/>',
            f'<text x="{x:g}" y="{y + 20:g}" font-weight="600">{name}{"/" if is_package else ".py"}</text>',
            f'<text x="{x:g}" y="{y + 36:g}" font-size="11.5" fill="#444">{box.purpose}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FIGURE)
    parser.parse_args().output.write_text(figure(imports()), encoding="utf-8")


if __name__ == "__main__":
    main()
