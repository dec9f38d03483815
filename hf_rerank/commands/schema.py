"""``hf-rerank schema infer``: writes a first schema for the user's own files, with comments, to be corrected."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import Parser
from hf_rerank.commands.reading import add_reader_options, reader_options
from hf_rerank.errors import InputError


def add(commands: Any) -> None:
    """Adds the command and its options."""
    schema = commands.add_parser("schema", help="describe the columns of your own lists")
    actions = schema.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    infer = actions.add_parser("infer", help="guess a schema from files and write it with comments, to be corrected")
    infer.add_argument("input", nargs="+", metavar="FILE", help="files, folders, patterns in quotes, or fsspec URLs")
    infer.add_argument("--output", type=Path, metavar="JSON", help="where to write it (default: standard output)")
    for role, what in (
        ("label", "labels, a number per item"),
        ("list-id", "id of the list; needed if one row is one item"),
        ("position", "position in the initial order, 0 at the top"),
        ("group", "user, to split by"),
    ):
        infer.add_argument(f"--{role}", metavar="COLUMN", help=f"{what} (default: guessed by name)")
    infer.add_argument("--rows", type=int, metavar="N", help="read at most N rows (default: 100,000)")
    add_reader_options(infer)
    infer.set_defaults(run=run, parser=infer)


def run(options: argparse.Namespace) -> None:
    """Guesses, and writes or prints."""
    from hf_rerank.data.custom.inference import SAMPLE_ROWS, infer_schema
    from hf_rerank.storage import write_file

    if options.output is not None:
        if options.output.exists():
            raise InputError(
                f"{options.output} exists: remove it, or choose another file; a schema that you corrected is kept"
            )
        if any(options.output.parent.resolve() == Path(source).resolve() for source in options.input):
            raise InputError(f"{options.output} would be read as a file of lists: write it to another folder")
    inferred = infer_schema(
        options.input if len(options.input) > 1 else options.input[0],
        label=options.label,
        list_id=options.list_id,
        position=options.position,
        group=options.group,
        rows=SAMPLE_ROWS if options.rows is None else options.rows,
        options=reader_options(options),
    )
    text = inferred.to_text()
    if options.output is None:
        print(text, end="")
        return
    write_file(options.output, text)
    schema = inferred.schema
    print(
        f"{len(schema.items)} features of items, {len(schema.user)} of the user, {len(schema.history)} of the "
        f"history, in {options.output}"
    )
    to_review = inferred.list_uncertain()
    print(f"{len(to_review)} guesses to review" + (":" if to_review else ""))
    for line in to_review:
        print(f"  {line}")
