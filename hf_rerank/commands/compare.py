"""``hf-rerank compare``: is a re-ranker worth it on these lists?"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import (
    describe_initial_ranker,
    disable_short_progress_bars,
    lists_folder,
    parse_settings,
)
from hf_rerank.errors import InputError

# Training options that the command sets separately for every arm.
_DECIDED = ("output_dir", "seed", "data_seed", "resume_from_checkpoint", "disable_tqdm", "load_best_model_at_end")


def add(commands: Any) -> None:
    """Adds the command and its options."""
    compare = commands.add_parser(
        "compare",
        help="find out whether a re-ranker is worth it on your lists, and which",
        description="Trains LambdaMART, the DNN and the named models without the given order, with it and with the "
        "principles, over several seeds; compares them on the test lists and recommends one.",
        epilog="Every option of RerankTrainingArguments is an option here too, such as --num-train-epochs 5; "
        "--principled NAME is the preset of the arm with principles. Rerun the same command to resume.",
    )
    compare.add_argument("--data", required=True, metavar="LISTS", help="folder or Hub repository of prepared lists")
    compare.add_argument("--output-dir", required=True, metavar="DIR", help="folder for runs and report")
    compare.add_argument(
        "--models",
        nargs="+",
        default=["prm"],
        metavar="NAME",
        help="dlcm, midnn, pear, prm, raise or setrank, or your own package.module:ClassName (default: prm); the dnn "
        "is always included",
    )
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each arm (default: 3)")
    compare.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="include another system by its scores for the test lists: .jsonl or .parquet with list_id and scores, or "
        "a TREC run; may be repeated",
    )
    compare.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a config option for every model, or for one: prm.hidden_size=32",
    )
    compare.add_argument("--without-lambdamart", action="store_true", help="leave out the boosted trees")
    compare.set_defaults(run=run, parser=compare)


def run(options: argparse.Namespace) -> None:
    """Compares, prints and writes the report."""
    from hf_rerank.commands.training_options import parse_given_options

    training = parse_given_options(options, decided=_DECIDED)
    from hf_rerank.comparison.arms import Plan, find_models
    from hf_rerank.comparison.compare_rerankers import compare_rerankers
    from hf_rerank.comparison.report import text_report
    from hf_rerank.data.loading import load_lists
    from hf_rerank.schema import NO_ORDER

    disable_short_progress_bars()
    models = find_models(options.models)
    folder = lists_folder(options.data)
    lists = load_lists(folder)
    plan = Plan(
        models,
        seeds=options.seeds,
        has_order=lists.schema.position != NO_ORDER,
        trees=not options.without_lambdamart,
        config=parse_settings("--set", options.set),
        training=training,
    )
    findings = compare_rerankers(
        lists,
        lists.schema,
        options.output_dir,
        plan,
        scores=_parse_systems(options.scores),
        # Lists sorted by an initial ranker were displayed in a different order.
        display_order=not describe_initial_ranker(folder),
    )
    print(f"\n{text_report(findings)}")
    command = train_command(options, findings.recommendation, plan)
    if command:
        print(f"\nTo train it:\n  {command}")
    print(f"\nreport in {Path(options.output_dir) / 'report.md'}")


def train_command(options: argparse.Namespace, found: Any, plan: Any) -> str | None:
    """Formats the command that trains the recommended arm; None if ``hf-rerank train`` cannot."""
    from hf_rerank.comparison.arms import TREES, WITHOUT, Arm

    if found.model in (None, TREES) or plan.model(found.model).source is not None:
        return None
    if found.kind == WITHOUT and not plan.model(found.model).can_ignore_order:
        return None
    parts = ["hf-rerank", "train", "--model", found.model, "--data", options.data, "--output-dir", "RUN"]
    arm = Arm(found.model, found.kind)
    for key, value in plan.config_options(arm).items():
        parts += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    for name, value in plan.training_options(arm).items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        option = "--" + name.replace("_", "-")
        parts += [option, *(f"{value:g}" if isinstance(value, float) else str(value) for value in values)]
    return shlex.join(parts)


def _parse_systems(texts: list[str]) -> dict[str, str]:
    systems: dict[str, str] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not (name and sign and path):
            raise InputError(f"--scores {text}: expected --scores NAME=FILE")
        if name in systems:
            raise InputError(f"--scores names {name!r} twice: choose another name")
        systems[name] = path
    return systems
