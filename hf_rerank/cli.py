"""The command line: ``hf-rerank simulate``, ``schema``, ``prepare``, ``train`` and the others of ``COMMANDS``.

A user's mistake ends with one line on standard error and exit code 2.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from hf_rerank.commands import (
    compare,
    evaluate,
    export,
    initial_rank,
    prepare,
    push,
    rank,
    schema,
    simulate,
    train,
    tune,
    vectors,
)
from hf_rerank.commands.parsing import Parser, option_names
from hf_rerank.errors import InputError, TrainingStopped, suggestion

COMMANDS = (simulate, schema, prepare, initial_rank, vectors, compare, train, tune, evaluate, rank, export, push)
# These take every option of RerankTrainingArguments too, and check it themselves.
TRAINING = ("compare", "train", "tune")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM in training.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = _parser()
        options, others = parser.parse_known_args(arguments)
        if options.command is None:
            parser.print_help()
            return 0
        if others and options.command not in TRAINING:
            known = option_names(options.parser)
            raise InputError(f"unknown argument {others[0]!r} of {options.command}{suggestion(others[0], known)}")
        options.others = others
        options.run(options)
        return 0
    except KeyboardInterrupt as stopped:
        # Training says itself where it stopped, by which signal, and how to go on.
        message = _one_line(stopped) if stopped.args else "stopped by Ctrl-C; finished files are whole"
        print(f"hf-rerank: {message}", file=sys.stderr)
        return 128 + getattr(stopped, "signal", signal.SIGINT)
    except (InputError, TrainingStopped, OSError) as error:
        print(f"hf-rerank: {_one_line(error)}", file=sys.stderr)
        return 2


def _parser() -> Parser:
    parser = Parser(prog="hf-rerank", description="Re-rankers for recommender systems.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
