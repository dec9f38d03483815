"""The example in the README of evaluation is the output of the committed comparison."""

import json
import textwrap
from pathlib import Path

from hf_rerank.comparison.findings import Findings, Row
from hf_rerank.comparison.recommendation import Recommendation
from hf_rerank.comparison.report import text_report
from hf_rerank.evaluation.comparing import Comparison, Interval

ROOT = Path(__file__).parents[2]


def test_the_readme_example_matches_the_committed_report() -> None:
    saved = json.loads((ROOT / "scripts/experiments/results/compare/report.json").read_text(encoding="utf-8"))
    intervals = ("over_seeds", "over_groups")
    comparisons = [
        Comparison(**{**entry, **{name: Interval(**entry[name]) for name in intervals}})
        for entry in saved["comparisons"]
    ]
    found = saved["recommendation"]
    recommendation = Recommendation(**{**found, "reasons": tuple(found["reasons"])})
    findings = Findings(saved["measure"], [Row(**row) for row in saved["rows"]], comparisons, recommendation)
    printed = "\n".join(
        wrapped
        for line in text_report(findings).splitlines()
        for wrapped in (textwrap.wrap(line, 130, subsequent_indent="  ") if line.startswith("- ") else [line])
    )
    text = (ROOT / "hf_rerank/evaluation/README.md").read_text(encoding="utf-8")
    assert f"```\n{printed}\n```" in text
