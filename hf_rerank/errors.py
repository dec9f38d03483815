"""The one exception for a caller's mistake, so that a command line can tell it from a fault of this library."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given to the library is wrong: an option, a file, a column, a list.

    The message says what was expected, what came, where, and what to do. The command line prints it as
    one line and exits with 2; everywhere else it is an ordinary ``ValueError``.
    """


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'price'?"`` where a known name is close to ``name``, else an empty string."""
    close = difflib.get_close_matches(name, [str(candidate) for candidate in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


class TrainingStopped(RuntimeError):
    """Training cannot go on: the message says at which step, why, and what to do."""
