"""What the commands share: a parser that says mistakes as everything here does, and readers of common options."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hf_rerank.errors import InputError, suggestion


class Parser(argparse.ArgumentParser):
    """Says mistakes as everything here does, and suggests what was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        known = re.findall(r"[\w-]+", wrong.group(2)) if wrong else []
        raise InputError(message + (suggestion(wrong.group(1), known) if wrong else "") + f"; see {self.prog} --help")


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """The options that a parser knows, for suggestions."""
    return re.findall(r"--[\w-]+", parser.format_help())


def settings_of(option: str, settings: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE texts as a dictionary: values as JSON where they are, else as text."""
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


def prepared_lists(folder: str) -> Any:
    """The lists of a prepared folder, and of nothing else."""
    from hf_rerank.data.loading import load_lists

    if not (Path(folder) / "schema.json").is_file():
        raise InputError(
            f"{folder} is no folder of prepared lists (it has no schema.json): make one with hf-rerank prepare"
        )
    return load_lists(folder)


def about_initial_ranker(folder: str) -> dict[str, Any]:
    """``{"initial_ranker": ...}``: what sorted the lists of a folder, and how good its order is; else empty."""
    from hf_rerank.data.prepared import read_report

    report = read_report(Path(folder))
    return {name: report[name] for name in ("initial_ranker",) if name in report}


def without_bars_of_a_moment() -> None:
    """transformers draws bars for saving and loading, which take milliseconds here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
