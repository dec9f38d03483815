"""``hf-rerank propensities``: estimates position bias from the clicks of prepared lists, and adds it as a column."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import lists_folder


def add(commands: Any) -> None:
    """Adds the command and its options."""
    propensities = commands.add_parser(
        "propensities", help="estimate from clicks how often each position is examined; add that to prepared lists"
    )
    propensities.add_argument(
        "--data", required=True, metavar="LISTS", help="folder or Hub repository of prepared lists"
    )
    propensities.add_argument(
        "--output-dir", required=True, type=Path, metavar="LISTS2", help="folder for the lists with propensities"
    )
    propensities.add_argument(
        "--method",
        choices=("em", "regression-em", "harvest"),
        default="em",
        help="em: click model with one relevance per item id; regression-em: relevance from item features; harvest: "
        "only compare the same item at different positions (default: em)",
    )
    propensities.add_argument(
        "--display-order",
        metavar="COLUMN",
        help="item column with the positions at which items were displayed when clicks were logged, from 0; rows: "
        "items are in display order (default: the schema's position, else rows)",
    )
    propensities.add_argument(
        "--same-from", type=int, metavar="N", help="positions N and above, counted from 0, share one probability"
    )
    propensities.add_argument("--max-lists", type=int, metavar="N", help="use at most N lists (default: all)")
    propensities.add_argument("--json", action="store_true", help="print the curve as JSON")
    propensities.set_defaults(run=run, parser=propensities)


def run(options: argparse.Namespace) -> None:
    """Estimates, writes the lists, and prints the curve."""
    from hf_rerank.data.position_bias import REPORT_KEY, add_propensities
    from hf_rerank.data.prepared import read_report
    from hf_rerank.evaluation.tables import text_table

    report = add_propensities(
        lists_folder(options.data),
        options.output_dir,
        method=options.method,
        display_order=options.display_order,
        same_from=options.same_from,
        at_most=options.max_lists,
    )
    about = read_report(options.output_dir)[REPORT_KEY]
    if options.json:
        print(json.dumps(about, indent=2))
        return
    last = len(about["curve"]) - 1
    rows = [
        [
            f"{row['position']}{' and on' if about['same_from'] == row['position'] == last else ''}",
            f"{row['propensity']:.4f}",
            f"{row['clicks'] / row['impressions']:.4f}",
            *(f"{row[name]:,}" for name in ("impressions", "clicks", "compared")),
        ]
        for row in about["curve"]
    ]
    print(text_table(["position", "propensity", "CTR", "impressions", "clicks", "compared"], rows))
    print(
        f"\nby {about['method']} from {about['lists_learned_from']:,} lists, displayed in the order of "
        f"{about['display_order']}; {about['steps']:,} steps{'' if about['converged'] else ', not converged'}"
    )
    if about["impressions_without_id"]:
        print(f"{about['impressions_without_id']:,} impressions without an id were left out")
    print(f"{sum(report.lists.values()):,} lists in {options.output_dir}")
