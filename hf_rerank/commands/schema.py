"""``hf-rerank schema infer``: a first schema of own files, with comments, to correct."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import Parser
from hf_rerank.errors import InputError


def add(commands: Any) -> None:
    """The options."""
    schema = commands.add_parser("schema", help="which column of your own lists is what")
    actions = schema.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    infer = actions.add_parser("infer", help="write a schema guessed from a file, with comments, to correct")
    infer.add_argument(
        "input", type=Path, metavar="FILE", help=".csv (a row an item), .jsonl or .parquet (a row a list), or a folder"
    )
    infer.add_argument("--output", type=Path, metavar="JSON", help="where to write it (default: standard output)")
    for role, what in (
        ("label", "labels, a number an item"),
        ("list-id", "names the list; CSV needs one"),
        ("position", "the place in the initial order, 0 at the top"),
        ("group", "the user, to split by"),
    ):
        infer.add_argument(f"--{role}", metavar="COLUMN", help=f"{what} (default: guessed by name)")
    infer.add_argument("--rows", type=int, metavar="N", help="read at most N rows (default: 100,000)")
    infer.set_defaults(run=run, parser=infer)


def run(options: argparse.Namespace) -> None:
    """Guesses, and writes or prints."""
    from hf_rerank.data.custom.inference import CHECK, SAMPLE_ROWS, infer_schema

    if options.output is not None and options.output.exists():
        raise InputError(f"{options.output} exists: remove it, or write another; a schema that you corrected is kept")
    if options.output is not None and options.output.parent.resolve() == options.input.resolve():
        raise InputError(f"{options.output} would stand among the lists and be read as one: write it elsewhere")
    inferred = infer_schema(
        options.input,
        label=options.label,
        list_id=options.list_id,
        position=options.position,
        group=options.group,
        rows=SAMPLE_ROWS if options.rows is None else options.rows,
    )
    text = inferred.text()
    if options.output is None:
        print(text, end="")
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    schema = inferred.schema
    print(
        f"{len(schema.items)} features of items, {len(schema.user)} of the user, {len(schema.history)} of the "
        f"history, in {options.output}; {text.count(CHECK)} guesses to check"
    )
