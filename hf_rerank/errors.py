"""``InputError``, raised for every mistake of the caller, which tells it apart from a bug of this library."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

LONGEST_MESSAGE = 2000
LONGEST_VALUE = 200
_LINE_BREAKS = re.compile("[ \\t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\\s*")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")


class InputError(ValueError):
    """Something given to the library is wrong: an option, a file, a column, a list.

    The message says what was expected, what was received, where, and what to do. The command line prints it as
    one line and exits with 2; everywhere else it is an ordinary ``ValueError``.

    Messages quote names and values from untrusted files, so each is reduced to one line of at most
    ``LONGEST_MESSAGE`` characters that is safe in every terminal and log: line breaks become spaces, control
    characters and lone surrogates are escaped, and the middle of a longer message is left out.
    """

    def __init__(self, message: str = "") -> None:
        line = _LINE_BREAKS.sub(" ", message.strip())
        line = _CONTROLS.sub(lambda found: repr(found[0])[1:-1], line)
        line = line.encode("utf-8", "backslashreplace").decode("utf-8")
        if len(line) > LONGEST_MESSAGE:
            line = f"{line[: LONGEST_MESSAGE - 600]} [...] {line[-500:]}"
        super().__init__(line)


def show(value: Any) -> str:
    """Returns the ``repr`` of any value for messages: at most about ``LONGEST_VALUE`` characters; never raises."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists nested as deeply
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 20]} [...] {text[-15:]}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'price'?"`` where a known name is close to ``name``, else an empty string."""
    if not isinstance(name, str):  # a key of a caller's dictionary
        return ""
    close = difflib.get_close_matches(name, [other for other in known if isinstance(other, str)], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


class TrainingStopped(RuntimeError):
    """Training cannot continue: the message says at which step, why, and what to do."""
