"""``hf-rerank prepare``: turns raw files into a folder of prepared lists."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import Parser
from hf_rerank.commands.reading import add_reader_options, reader_options
from hf_rerank.errors import InputError


def add(commands: Any) -> None:
    """Adds the command and its options."""
    prepare = commands.add_parser("prepare", help="turn raw files into prepared lists (Parquet)")
    formats = prepare.add_subparsers(dest="format", metavar="FORMAT", required=True, parser_class=Parser)

    prm_public = formats.add_parser("prm_public", help="set1.train.txt.part1 and part2, compressed or not")
    prm_public.add_argument("--raw-dir", required=True, type=Path, metavar="RAW", help="folder with the raw files")
    _add_output_options(prm_public)
    prm_public.add_argument(
        "--protocol",
        choices=("ours", "public"),
        default="ours",
        help="ours: every line; public: drop lines with a null, and keep a tenth of the rest (default: ours)",
    )
    _add_damage_option(prm_public)
    prm_public.add_argument(
        "--history-length",
        type=int,
        default=0,
        metavar="N",
        help="add the user's N newest clicks in earlier lines as a history; the file may not be in chronological "
        "order (default: 0, no history)",
    )
    _add_ranker_options(prm_public)
    prm_public.set_defaults(run=_prepare_prm_public, parser=prm_public)

    own = formats.add_parser("own", help="your own lists: CSV, JSON Lines, Parquet, Arrow, LETOR, compressed or not")
    own.add_argument(
        "--input", required=True, nargs="+", metavar="FILE", help="files, folders, patterns in quotes, or fsspec URLs"
    )
    own.add_argument(
        "--schema", required=True, type=Path, metavar="JSON", help="role of each column; see hf-rerank schema infer"
    )
    _add_output_options(own)
    own.add_argument(
        "--split-by",
        default="group",
        metavar="RULE",
        help="group: by the schema's group (the user); time:COLUMN: the oldest lists first; files named after splits, "
        "and a column named split, keep their splits (default: group)",
    )
    own.add_argument(
        "--ranker-train",
        action="store_true",
        help="hold out 40 %% of the users as ranker_train, for training an initial ranker (default: no; "
        "initial-rank --cross-fit does not need it)",
    )
    own.add_argument(
        "--max-list-length", type=int, metavar="N", help="longest list (default: max_list_length of the schema)"
    )
    own.add_argument(
        "--cut",
        action="store_true",
        help="cut longer lists instead of refusing them; the labels of the items that are cut are kept",
    )
    add_reader_options(own)
    own.set_defaults(run=_prepare_own, parser=own)

    ad = formats.add_parser("ad", help="raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv")
    ad.add_argument("--raw-dir", required=True, type=Path, metavar="RAW", help="folder with the raw files")
    _add_output_options(ad)
    ad.add_argument(
        "--protocol",
        choices=("ours", "public"),
        default="ours",
        help="ours: every five-minute session of a user with two items and a click; public: the most recent with a "
        "click, for users with three impressions (default: ours)",
    )
    ad.add_argument(
        "--max-list-length", type=int, default=10, metavar="N", help="longer lists are cut, at most 30 (default: 10)"
    )
    ad.add_argument(
        "--history-length",
        type=int,
        default=50,
        metavar="N",
        help="keep the N newest behaviours per list; 0: behavior_log.csv is not read (default: 50)",
    )
    _add_damage_option(ad)
    _add_ranker_options(ad)
    ad.set_defaults(run=_prepare_ad, parser=ad)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", required=True, type=Path, metavar="LISTS", help="folder for prepared lists")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_damage_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="damaged lines: raise stops at the first one and names it; skip moves them to LISTS/rejects.jsonl "
        "(default: raise)",
    )


def _add_ranker_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--initial-ranker",
        choices=("lambdamart", "dnn", "none"),
        default="none",
        help="sort lists by a ranker trained on ranker_train, before they are cut (default: none)",
    )
    parser.add_argument(
        "--quality",
        choices=("poor", "moderate", "strong"),
        help="how many lists, and how large a model, the ranker may use (default: strong)",
    )


def _prepare_prm_public(options: argparse.Namespace) -> None:
    from hf_rerank.data.prepared import prepare_in_two_steps
    from hf_rerank.data.prepared.earlier_clicks import add_earlier_clicks
    from hf_rerank.data.prm_public import MAX_LIST_LENGTH, find_files, prepare_prm_public, truth_file

    how = {"protocol": options.protocol, "on_error": options.on_error}
    files = find_files(options.raw_dir)
    sides = [side for path in files if (side := truth_file(path)).is_file()]
    about = {"format": "prm_public", **_identify_files(options.raw_dir, [*files, *sides]), **how}
    if options.history_length < 0:
        raise InputError(f"--history-length is {options.history_length}: expected at least 0")

    def prepare(folder: Path, max_list_length: int) -> Any:
        def whole(folder: Path) -> Any:
            return prepare_prm_public(options.raw_dir, folder, max_list_length=max_list_length, **how)

        if not options.history_length:
            return whole(folder)
        add = functools.partial(add_earlier_clicks, history_length=options.history_length)
        return prepare_in_two_steps(
            whole, {**about, "max_list_length": max_list_length}, add, folder, "without_history"
        )

    about = {**about, "history_length": options.history_length}
    _run(lambda: _prepare_sorted(prepare, about, options, MAX_LIST_LENGTH), options, "lines")


def _identify_files(raw_dir: Path, files: list[Path]) -> dict[str, Any]:
    """Identifies raw files by size and modification time, so that a later call can tell if they are the same."""
    from hf_rerank.storage import InputFiles

    return {"raw_dir": str(raw_dir.resolve()), "raw files (sizes, times, inodes)": InputFiles(files).read_states()}


def _prepare_sorted(
    prepare: Callable[[Path, int], Any], about: dict[str, Any], options: argparse.Namespace, max_list_length: int
) -> Any:
    """Prepares into the output folder, sorted by a trained ranker if one is given.

    Args:
        prepare: ``(folder, max_list_length) -> report``.
        about: Everything that the result of ``prepare`` depends on.
        options: Options of the command.
        max_list_length: Longer lists are cut to this length.
    """
    if options.initial_ranker == "none":
        if options.quality is not None:
            raise InputError("--quality belongs to --initial-ranker lambdamart or dnn: name one, or leave it out")
        return prepare(options.output_dir, max_list_length)
    from hf_rerank.initial_rankers.order import prepare_in_order

    return prepare_in_order(
        prepare,
        about,
        options.output_dir,
        ranker=options.initial_ranker,
        quality=options.quality or "strong",
        max_list_length=max_list_length,
    )


def _prepare_own(options: argparse.Namespace) -> None:
    from hf_rerank.data.custom.prepare import prepare_own

    def prepare() -> Any:
        return prepare_own(
            options.input if len(options.input) > 1 else options.input[0],
            options.output_dir,
            schema=options.schema,
            split_by=options.split_by,
            ranker_train=options.ranker_train,
            max_list_length=options.max_list_length,
            cut=options.cut,
            options=reader_options(options),
        )

    report = _run(prepare, options, "lists")
    if not options.json:
        for message in report.warnings:
            print(f"warning: {message}")


def _prepare_ad(options: argparse.Namespace) -> None:
    from hf_rerank.data.ad import MAX_SESSION_ITEMS, find_ad_files, prepare_ad

    how = {
        "protocol": options.protocol,
        "history_length": options.history_length,
        "on_error": options.on_error,
    }
    if options.max_list_length > MAX_SESSION_ITEMS:
        raise InputError(
            f"--max-list-length is {options.max_list_length}: expected at most {MAX_SESSION_ITEMS}, the longest "
            "session"
        )

    def prepare(folder: Path, max_list_length: int) -> Any:
        return prepare_ad(options.raw_dir, folder, max_list_length=min(max_list_length, MAX_SESSION_ITEMS), **how)

    about = {"format": "ad", **_identify_files(options.raw_dir, find_ad_files(options.raw_dir).list_existing()), **how}
    again = "starts over, or resumes from the last complete group of shards if the logs were read"
    _run(lambda: _prepare_sorted(prepare, about, options, options.max_list_length), options, "sessions", again)
    if not options.json and options.history_length and find_ad_files(options.raw_dir).behavior_log is None:
        print(f"no behavior_log.csv in {options.raw_dir}: the lists have no history")


def _run(
    prepare: Callable[[], Any],
    options: argparse.Namespace,
    read: str,
    again: str = "resumes from the last complete group of shards",
) -> Any:
    """Prepares, and prints the report.

    Args:
        prepare: Returns the report.
        options: Options of the command.
        read: Unit of the raw data, such as ``"lines"``.
        again: What the same command does after an interruption.
    """
    try:
        report = prepare()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped by Ctrl-C; the same command {again}") from None
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
        return report
    counts = ", ".join(f"{name} {lists:,}" for name, lists in report.lists.items())
    print(f"{report.read:,} {read} read; lists kept: {counts}")
    for reason, lists in report.dropped.items():
        print(f"{lists:,} lists dropped: {reason}")
    for kind, lines in sorted(report.rejected.items()):
        print(f"{lines:,} {read} rejected: {kind}")
    if report.rejected:
        print(f"rejected {read} in {options.output_dir / 'rejects.jsonl'}")
    if report.cut_lists:
        print(
            f"{report.cut_lists:,} lists cut to the maximum length, "
            f"{report.lost_clicks:,} of them lost all their clicks"
        )
    for name, number in report.counts.items():
        print(f"{number:,} {name}")
    if report.nulls:
        print(f"{sum(report.nulls.values()):,} missing values kept, in {len(report.nulls)} columns")
    print(f"prepared lists in {options.output_dir}")
    return report
