"""``hf-rerank vectors``: adds personalised vectors from a click model trained on ``ranker_train``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import disable_short_progress_bars, lists_folder


def add(commands: Any) -> None:
    """Adds the command and its options."""
    vectors = commands.add_parser(
        "vectors", help="add personalised vectors to prepared lists, from a click model trained on ranker_train"
    )
    vectors.add_argument("--data", required=True, metavar="LISTS", help="folder or Hub repository of prepared lists")
    vectors.add_argument(
        "--output-dir", required=True, type=Path, metavar="LISTS2", help="folder for the lists with vectors"
    )
    vectors.add_argument("--dim", type=int, default=32, metavar="D", help="numbers per item (default: 32)")
    vectors.add_argument(
        "--max-train-lists", type=int, metavar="N", help="use at most N lists of ranker_train (default: all)"
    )
    vectors.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the click model (default: 0)")
    vectors.add_argument("--json", action="store_true", help="print the report as JSON")
    vectors.set_defaults(run=run, parser=vectors)


def run(options: argparse.Namespace) -> None:
    """Trains the click model and writes the lists."""
    from hf_rerank.data.prepared import read_report
    from hf_rerank.personalised_vectors import REPORT_KEY, add_personalised_vectors

    disable_short_progress_bars()
    report = add_personalised_vectors(
        lists_folder(options.data),
        options.output_dir,
        dim=options.dim,
        seed=options.seed,
        at_most=options.max_train_lists,
    )
    written = read_report(options.output_dir)
    if options.json:
        print(json.dumps(written, indent=2))
        return
    model = written[REPORT_KEY]
    print(
        f"click model: trained on {model['lists_learned_from']:,} of {model['lists_available']:,} ranker_train lists, "
        f"{model['lists_held_out']:,} held out, log-loss on those {model['held_out_log_loss']:.4f}"
    )
    print(f"{sum(report.lists.values()):,} lists with {model['dim']} numbers per item in {options.output_dir}")
