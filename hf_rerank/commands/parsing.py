"""Code that the commands share: a parser that raises ``InputError``, and readers of common options."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hf_rerank.errors import InputError, suggestion


class Parser(argparse.ArgumentParser):
    """Raises an ``InputError`` for a mistake, and suggests what was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        known = re.findall(r"[\w-]+", wrong.group(2)) if wrong else []
        raise InputError(message + (suggestion(wrong.group(1), known) if wrong else "") + f"; see {self.prog} --help")


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Lists the options that a parser knows, for suggestions."""
    return re.findall(r"--[\w-]+", parser.format_help())


def parse_settings(option: str, settings: Sequence[str]) -> dict[str, Any]:
    """Parses KEY=VALUE settings into a dict; values that are not JSON are strings."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise InputError(f"{option} {setting}: expected {option} KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def add_revision(parser: argparse.ArgumentParser, model: str = "the model") -> None:
    """Adds the option ``--revision``; ``model`` names its subject in the help."""
    parser.add_argument(
        "--revision", metavar="REV", help=f"revision of {model} on the Hub: branch, tag or commit (default: main)"
    )


def model_options(source: str, revision: str | None) -> dict[str, Any]:
    """Returns the options to load a model with: its revision, if one is given.

    Raises:
        InputError: The model is in a folder, which has no revisions.
    """
    if revision is None:
        return {}
    if Path(source).exists():
        raise InputError(
            f"--revision {revision} applies only to Hub repositories, but there is a local folder {source}, which is "
            "used instead: leave it out"
        )
    return {"revision": revision}


def lists_folder(source: str) -> Path:
    """Finds the folder of prepared lists that ``--data`` names; for a repository, its copy in the Hub's cache.

    Raises:
        InputError: ``source`` is neither, or is not finished; or the repository cannot be read.
    """
    from hf_rerank.data.hub_lists import fetch_lists, is_repository
    from hf_rerank.data.prepared import is_prepared, refuse_unfinished

    refuse_unfinished(source)
    if is_prepared(source):
        return Path(source)
    if is_repository(source):
        return fetch_lists(source, revision=None, token=None)
    raise InputError(
        f"{source} is not a folder of prepared lists (it has no schema.json): make one with hf-rerank prepare"
    )


def describe_initial_ranker(folder: Path) -> dict[str, Any]:
    """Describes the ranker that sorted the lists of a folder: ``{"initial_ranker": ...}``, or empty."""
    from hf_rerank.data.prepared import read_report

    report = read_report(folder)
    return {name: report[name] for name in ("initial_ranker",) if name in report}


def disable_short_progress_bars() -> None:
    """Disables the progress bars of transformers for saving and loading, which take milliseconds here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
