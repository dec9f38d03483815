"""The report of a comparison: a summary in the terminal, Markdown, JSON and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_rerank.comparison.arms import LOGGED
from hf_rerank.comparison.findings import COLUMNS, IN_WORDS, Findings, Row
from hf_rerank.comparison.recommendation import effect_of
from hf_rerank.evaluation.comparing import Interval, plot_comparisons
from hf_rerank.evaluation.tables import text_table
from hf_rerank.storage import write_file, write_json

MARKDOWN, JSON, FIGURE = "report.md", "report.json", "report.png"
_NOTES = (
    "Checkpoints were selected on the validation lists by NDCG@10, and every arm was evaluated once per seed on the "
    "test lists. P1@5 and P2@5: share of lists whose top 5 does not change when the model reads its own ranking (P1) "
    "or after one adjacent swap in the given order (P2). 95 % intervals: over groups of lists (bootstrap) and over "
    "seeds (Student's t). p-values are corrected by Holm's method, in two sets: the differences of the best arm on "
    "validation from simpler alternatives and those within a model; and those of the other arms of its model from the "
    "same alternatives. A difference is clear if both are below 5 %, likely if only the one over groups is but all "
    "seeds agree in sign, otherwise open."
)


def summary_rows(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Formats the summary as headings and rows."""
    others = {name: heading for name, heading in COLUMNS.items() if name != findings.measure}
    base = next((row.mean for row in findings.rows if row.name == LOGGED), None)
    headings = ["", IN_WORDS[findings.measure], "sd", "vs logged", *others.values(), "training s", "ms/list", "seeds"]
    return headings, [_format_row(row, others, base) for row in findings.rows]


def _format_row(row: Row, others: Mapping[str, str], base: float | None) -> list[str]:
    gain = "-" if row.name == LOGGED or not base else f"{row.mean / base - 1:+.1%}"
    return [
        row.name,
        f"{row.mean:.4f}",
        _format_number(row.spread, 4),
        gain,
        *(_format_number(row.others.get(name), 4) for name in others),
        _format_number(row.seconds, 1),
        _format_number(row.milliseconds, 2),
        str(row.seeds),
    ]


def comparison_rows(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Formats the comparisons as headings and rows, in percent of the second arm's mean."""
    headings = ["difference", "over groups", "p", "over seeds", "p", ""]
    rows = []
    for entry in findings.comparisons:
        groups, seeds = entry.over_groups or entry.over_seeds, entry.over_seeds
        certainty = effect_of(entry).certainty
        rows.append(
            [
                f"{entry.name} - {entry.base}",
                _format_percent(groups, entry.base_mean),
                f"{entry.corrected_p_groups:.3f}",
                _format_percent(seeds, entry.base_mean),
                f"{entry.corrected_p:.3f}",
                certainty,
            ]
        )
    return headings, rows


def _format_percent(interval: Interval, base: float) -> str:
    mean, low, high = (round(100 * value / base, 1) + 0.0 for value in (interval.mean, interval.low, interval.high))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] %"


def text_report(findings: Findings) -> str:
    """Formats the summary, the comparisons and the recommendation as plain text."""
    found = findings.recommendation
    reasons = "\n".join(f"- {reason}" for reason in found.reasons)
    return (
        f"{text_table(*summary_rows(findings))}\n\n{text_table(*comparison_rows(findings))}\n\n"
        f"Recommendation: {found.use}\n{reasons}"
    )


def write_report(folder: Path, findings: Findings, about: Mapping[str, Any]) -> list[Path]:
    """Writes Markdown, JSON and, if matplotlib is installed, a figure.

    Args:
        folder: Folder to write to.
        findings: Results of the comparison.
        about: Lists, seeds and options of the comparison, as JSON values; included in the JSON and the Markdown.

    Returns:
        Paths of the files.
    """
    found = findings.recommendation
    written = [folder / MARKDOWN, folder / JSON]
    if find_spec("matplotlib") is not None:
        plot_comparisons(findings.comparisons, folder / FIGURE)
        written.append(folder / FIGURE)
    write_json(
        folder / JSON,
        {
            **about,
            "measure": findings.measure,
            "rows": [asdict(row) for row in findings.rows],
            "comparisons": [asdict(entry) for entry in findings.comparisons],
            "recommendation": asdict(found),
        },
    )
    parts = [
        "# Is a re-ranker worth it on these lists?",
        f"**Recommendation: {found.use}**",
        "\n".join(f"- {reason}" for reason in found.reasons),
        "## Arms",
        _format_markdown(*summary_rows(findings)),
        f"## Differences in {IN_WORDS[findings.measure]}",
        _format_markdown(*comparison_rows(findings)),
        *([f"![differences]({FIGURE})"] if len(written) == 3 else []),
        _NOTES,
        "## What was compared",
        "\n".join(f"- {name}: {value}" for name, value in about.items()),
    ]
    write_file(folder / MARKDOWN, "\n\n".join(parts) + "\n")
    return written


def _format_markdown(headings: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows))


def _format_number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
