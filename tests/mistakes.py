"""Commands that fail with a one-line error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hf_rerank import cli


def mistake(arguments: str | Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a wrong command and returns its one-line error; warnings may precede it."""
    capsys.readouterr()
    assert cli.main(arguments.split() if isinstance(arguments, str) else list(arguments)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-rerank: ")]
    return line
