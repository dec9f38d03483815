"""Plain-text tables of results, as the command line and the experiments print them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# Heading -> name of the measure, in the order of a results table.
RESULT_COLUMNS = {
    "AUC": "auc",
    "GAUC": "gauc",
    "NDCG@10": "ndcg@10",
    "MAP@10": "map@10",
    "P@5": "precision@5",
    "exp. clicks": "expected_clicks",
    "share of best": "expected_clicks_share",
    "P1": "p1_obedience",
    "P1@5": "p1_obedience@5",
    "P2": "p2_obedience",
    "P2@5": "p2_obedience@5",
    "spread": "score_spread",
}


def results_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of metrics under the headings of ``RESULT_COLUMNS``; columns that no row has are left out."""
    columns = {heading: name for heading, name in RESULT_COLUMNS.items() if any(name in row for row in rows.values())}
    body = [[label, *(_number(row.get(name)) for name in columns.values())] for label, row in rows.items()]
    return text_table(["", *columns], body)


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under headings: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (headings, *rows)
    ]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
