"""Options of ``RerankTrainingArguments`` on a command line, as those that were given."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from hf_rerank.commands.parsing import option_names
from hf_rerank.errors import InputError, suggestion


def parse_given_options(options: argparse.Namespace, *, decided: tuple[str, ...]) -> dict[str, Any]:
    """The training options among the arguments that the command itself does not know.

    Args:
        options: With ``others``, these arguments, ``command`` and ``parser``.
        decided: Training options that the command decides itself, and that are refused.

    Raises:
        InputError: An option or a value is unknown.
    """
    from transformers import HfArgumentParser

    from hf_rerank.training.arguments import RerankTrainingArguments

    class OptionParser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(message)

    parser = OptionParser(RerankTrainingArguments, allow_abbrev=False)  # type: ignore[arg-type]
    values, others = parser.parse_known_args(options.others)
    if others:
        known = [*option_names(parser), *option_names(options.parser)]
        raise InputError(f"unknown argument {others[0]!r} of {options.command}{suggestion(others[0], known)}")
    given = {argument.split("=", 1)[0] for argument in options.others if argument.startswith("--")}
    # What a flag sets is a field of the arguments, whichever of its spellings was given.
    fields = [action.dest for action in parser._actions if given & set(action.option_strings)]
    for name in fields:
        if name in decided:
            raise InputError(f"--{name} is decided by {options.command} itself: leave it out")
    found = {name: getattr(values, name) for name in fields}
    RerankTrainingArguments("unused", **found)  # what is wrong is said before any work
    return found
