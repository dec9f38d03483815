"""``hf-rerank initial-rank``: sorts prepared lists by an initial ranker that has not seen their clicks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import disable_short_progress_bars, lists_folder


def add(commands: Any) -> None:
    """Adds the command and its options."""
    initial_rank = commands.add_parser(
        "initial-rank", help="sort prepared lists by an initial ranker trained on ranker_train"
    )
    initial_rank.add_argument(
        "--data", required=True, metavar="LISTS", help="folder or Hub repository of prepared lists"
    )
    initial_rank.add_argument(
        "--output-dir", required=True, type=Path, metavar="LISTS2", help="folder for the sorted lists"
    )
    initial_rank.add_argument("--ranker", choices=("lambdamart", "dnn"), default="lambdamart")
    initial_rank.add_argument(
        "--quality",
        choices=("poor", "moderate", "strong"),
        default="strong",
        help="how many lists, and how large a model, the ranker may use (default: strong, all)",
    )
    initial_rank.add_argument(
        "--max-list-length", type=int, metavar="N", help="cut lists to their first N items in the new order"
    )
    initial_rank.add_argument(
        "--max-train-lists", type=int, metavar="N", help="use at most N lists of ranker_train (default: all)"
    )
    initial_rank.add_argument(
        "--cross-fit",
        type=int,
        metavar="K",
        help="for lists without ranker_train: split the users of train into K folds, sort each fold by a ranker "
        "trained on the other folds, and store the scores as the schema's initial_score",
    )
    initial_rank.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the ranker (default: 0)")
    initial_rank.add_argument("--json", action="store_true", help="print the report as JSON")
    initial_rank.set_defaults(run=run, parser=initial_rank)


def run(options: argparse.Namespace) -> None:
    """Sorts, and prints the metrics of the new order."""
    from hf_rerank.data.prepared import read_report
    from hf_rerank.evaluation.tables import results_table
    from hf_rerank.initial_rankers.order import REPORT_KEY, add_initial_order

    disable_short_progress_bars()
    report = add_initial_order(
        lists_folder(options.data),
        options.output_dir,
        ranker=options.ranker,
        quality=options.quality,
        max_list_length=options.max_list_length,
        seed=options.seed,
        at_most=options.max_train_lists,
        cross_fit=options.cross_fit,
    )
    written = read_report(options.output_dir)
    if options.json:
        print(json.dumps(written, indent=2))
        return
    ranker = written[REPORT_KEY]
    print(results_table({f"initial order, {split}": row for split, row in ranker["metrics"].items()}))
    print(
        f"\ntrained on {ranker['lists_learned_from']:,} of {ranker['lists_available']:,} lists of "
        f"{'train' if options.cross_fit else 'ranker_train'}, "
        f"{ranker['lists_held_out']:,} held out"
    )
    if ranker["cut_lists"]:
        print(
            f"{ranker['cut_lists']:,} lists cut to {ranker['max_list_length']} items, {ranker['lost_clicks']:,} of "
            "them lost all their clicks"
        )
    print(f"{sum(report.lists.values()):,} lists in {options.output_dir}")
