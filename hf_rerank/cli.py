"""The command line: ``hf-rerank simulate``, ``schema``, ``prepare``, ``train`` and the other commands.

A user's mistake is reported as one line on standard error, with exit code 2.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_rerank.errors import InputError, TrainingStopped, suggestion

# These take every option of RerankTrainingArguments too, and check it themselves.
TRAINING = ("compare", "train", "tune")
_CANNOT_BE_MADE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM in training.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _run(arguments)
        return 0
    except KeyboardInterrupt as stopped:
        # Training itself reports where it stopped, by which signal, and how to resume.
        message = _one_line(stopped) if stopped.args else "stopped by Ctrl-C; finished files are complete"
        print(f"hf-rerank: {message}", file=sys.stderr)
        return 128 + getattr(stopped, "signal", signal.SIGINT)
    except (InputError, TrainingStopped) as error:
        print(f"hf-rerank: {_one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"hf-rerank: {_one_line(error)}{_about_home(error)}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> None:
    # Imported here, so that Ctrl-C during the import also ends with one line.
    from hf_rerank.commands.parsing import option_names

    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
        return
    if others and options.command not in TRAINING:
        known = option_names(options.parser)
        raise InputError(f"unknown argument {others[0]!r} of {options.command}{suggestion(others[0], known)}")
    if getattr(options, "output_dir", None) is not None:
        _refuse_current_folder(options.output_dir)
    options.others = others
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    from hf_rerank.commands import (
        compare,
        evaluate,
        export,
        initial_rank,
        prepare,
        propensities,
        push,
        rank,
        schema,
        simulate,
        train,
        tune,
        vectors,
    )
    from hf_rerank.commands.parsing import Parser

    parser = Parser(prog="hf-rerank", description="Re-rankers for recommender systems.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in (
        *(
            simulate,
            schema,
            prepare,
            initial_rank,
            vectors,
            propensities,
            compare,
            train,
            tune,
            evaluate,
            rank,
            export,
        ),
        push,
    ):
        command.add(commands)
    return parser


def _refuse_current_folder(folder: str | Path) -> None:
    """Refuses the current folder and its parents: an output folder is renamed into place when it is complete."""
    current, wanted = Path.cwd(), Path(folder).expanduser().resolve()
    if wanted == current or wanted in current.parents or wanted == Path(wanted.anchor):
        where = "the root folder" if wanted == Path(wanted.anchor) else "the current folder or one of its parents"
        raise InputError(f"--output-dir {folder} is {where}: expected a separate folder, such as runs/first")


def _about_home(error: OSError) -> str:
    """Says what to do if the Hugging Face cache cannot be written, as in containers without a home folder."""
    if error.filename is None or error.errno not in _CANNOT_BE_MADE:
        return ""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    home, path = home.expanduser().absolute(), Path(os.fsdecode(error.filename)).absolute()
    if path != home and home not in path.parents and path not in home.parents:
        return ""
    return f"; the cache of Hugging Face libraries goes to {home}: set HF_HOME to a folder that you may write to"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
