"""What ``hf-rerank compare`` finds on several logs, as one table.

    python scripts/experiments/compare_table.py

The ``report.json`` of each log is kept in ``results/compare/``. The table goes to ``results/compare/summary.md``, and
into the page that shows it with ``questions.py --paste``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "compare"
LOGS = {
    "trained": "simulated, trained on clicks",
    "informed": "simulated, sees the true quality",
    "display": "simulated, display order",
    "clara2_trees": "CLARA 2, trees that do not see the display order",
    "clara2_display": "CLARA 2, display order",
}
ARMS = {
    "LambdaMART": "lambdamart with order",
    "DNN": "dnn with order",
    "PRM": "prm with order",
    "PRM + principles": "prm with principles",
    "PRM without order": "prm without order",
}
# The report compares the arm that is best on validation with simpler systems.
PAIRS = {
    "best PRM against LambdaMART": (("prm with order", "prm with principles"), "lambdamart with order"),
    "principles against PRM": (("prm with principles",), "prm with order"),
}


def make_table(reports: dict[str, dict[str, Any]]) -> str:
    """A row per log: gains over the logged order in percent, and two differences with intervals over groups."""
    heads = ["initial order", "measure", "logged order", *ARMS, *PAIRS, "recommended"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, report in reports.items():
        means = {row["name"]: row["mean"] for row in report["rows"]}
        logged = means["logged order"]
        cells = [LOGS[name], {"expected_clicks": "clicks", "ndcg@10": "NDCG@10"}[report["measure"]], f"{logged:.4f}"]
        cells += [f"{100 * (means[arm] / logged - 1):+.1f} %" for arm in ARMS.values()]
        cells += [_difference(report["comparisons"], *pair) for pair in PAIRS.values()]
        cells.append(report["recommendation"]["use"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _difference(comparisons: list[dict[str, Any]], names: tuple[str, ...], base: str) -> str:
    """In percent of the base, with the bootstrap interval; empty if the report compares none of them with it."""
    for found in comparisons:
        if found["name"] in names and found["base"] == base:
            mean, low, high = (100 * found["over_groups"][key] / found["base_mean"] for key in ("mean", "low", "high"))
            return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] %"
    return ""


def main() -> None:
    reports = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in LOGS}
    text = make_table(reports)
    (RESULTS / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
