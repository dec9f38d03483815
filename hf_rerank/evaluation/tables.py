"""Plain-text tables of results, as the command line and the experiments print them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Heading -> name of the measure, in the order of a results table.
RESULT_COLUMNS = {
    "AUC": "auc",
    "GAUC": "gauc",
    "NDCG@10": "ndcg@10",
    "MAP@10": "map@10",
    "P@5": "precision@5",
    "exp. clicks": "expected_clicks",
    "share of best": "expected_clicks_share",
    "ips clicks@5": "ips_clicks@5",
    "snips clicks@5": "snips_clicks@5",
    "P1": "p1_obedience",
    "P1@5": "p1_obedience@5",
    "P2": "p2_obedience",
    "P2@5": "p2_obedience@5",
    "spread": "score_spread",
}


def results_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Formats rows of metrics under the headings of ``RESULT_COLUMNS``; columns that no row has are left out."""
    columns = {heading: name for heading, name in RESULT_COLUMNS.items() if any(name in row for row in rows.values())}
    body = [[label, *(_format_number(row.get(name)) for name in columns.values())] for label, row in rows.items()]
    return text_table(["", *columns], body)


def obedience_table(measures: Mapping[str, Any]) -> str:
    """Formats obedience to P1 and P2 side by side, then fixed points, score spread and the number of lists.

    Args:
        measures: The result of ``hf_rerank.evaluation.evaluate``; fixed points are left out if not measured.
    """
    rows = {"whole list, share of lists": "obedience"}
    cuts = sorted(int(name.removeprefix("p1_obedience@")) for name in measures if name.startswith("p1_obedience@"))
    for cut in cuts:
        rows[f"first {cut} as an order, share of lists"] = f"obedience@{cut}"
        rows[f"first {cut} as a set, share of lists"] = f"set_obedience@{cut}"
    rows |= {"items that keep their rank, share of items": "item_obedience", "Kendall tau": "kendall_tau"}
    principles = text_table(
        ["obedience", "P1, own order", "P2, one swap"],
        [
            [label, *(_format_number(measures.get(f"{principle}_{name}")) for principle in ("p1", "p2"))]
            for label, name in rows.items()
        ],
    )
    others = {
        "fixed_point_rate": "rankings that settle when fed back, share of lists",
        "fixed_point_steps": "steps until they settle, mean",
        "cycle_rate": "rankings that return to an earlier one, share of lists",
        "score_spread": "score spread, standard deviation of a list's logits",
        "collapsed_share": "equal scores, share of lists",
    }
    values = [[label, _format_number(measures[name])] for name, label in others.items() if name in measures]
    if measures.get("p2_sampled_share"):
        values.append(["P2 on a sample of the swaps, share of lists", _format_number(measures["p2_sampled_share"])])
    values.append(["lists measured", f"{measures.get('obedience_lists', 0):,}"])
    heading = "fixed points and scores" if "fixed_point_rate" in measures else "scores"
    return f"{principles}\n\n{text_table([heading, ''], values)}"


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats columns under headings: the first left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (headings, *rows)
    ]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def _format_number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
