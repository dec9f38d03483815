"""Failures of the Hub as one line: what failed, where, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hf_rerank.errors import InputError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def report_hub_errors(
    what: str, *, token: str | None = None, kept: Callable[[BaseException], str] | None = None
) -> Iterator[None]:
    """Turns any error of the Hub's client into an ``InputError`` of one line, which contains no token.

    Args:
        what: Description of the failure, such as ``"someone/prm could not be created"``.
        token: The token given by the caller, if any.
        kept: ``error -> text`` that says what is unchanged after the error; appended to the line.
    """
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except InputError:
        raise
    # An upload in threads ends with RuntimeError, a response from another server with ValueError or KeyError.
    except (HTTPError, OSError, RuntimeError, ValueError, KeyError) as error:
        line = f"{what}: {explain_error(error, token)}"
        if kept is not None:
            line = f"{line}. {kept(error)}"
        raise InputError(hide_tokens(line, token)) from None


def explain_error(error: BaseException, token: str | None = None) -> str:
    """Cause and remedy of an error of the Hub's client."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    # A threaded upload, or a cache look-up after the Hub failed to send a file, wraps the error that caused it.
    if isinstance(error, RuntimeError | LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so no request is sent to the Hub; unset it to use the network"
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token; {LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        said = f" (the Hub says: {_to_one_line(error.server_message)})" if error.server_message else ""
        return _explain_status(error, token) + said
    text = _to_one_line(str(error)) or type(error).__name__
    if _is_network_error(error):
        return f"the connection failed ({text}); check the network, and run it again"
    return f"{text} ({type(error).__name__}); check the arguments, and run it again"


def hide_tokens(text: str, token: str | None = None) -> str:
    """The text with every token (the one in use, and anything that looks like one) replaced by ``***``."""
    from huggingface_hub import get_token

    for secret in (token, get_token()):
        if secret:
            text = text.replace(secret, "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{16,}", "***", text)


def is_unknown_outcome(error: BaseException) -> bool:
    """Whether a request that changes something may have been carried out, although it ended with this error."""
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code >= 500 if isinstance(error, HfHubHTTPError) else _is_network_error(error)


def _explain_status(error: object, token: str | None) -> str:
    from huggingface_hub import get_token

    response = error.response  # type: ignore[attr-defined]
    status = response.status_code
    if status == 401:
        if not (token or get_token()):
            return f"there is no token, and the Hub asks for one (401); {LOG_IN}"
        return f"the Hub does not accept the token (401): it is wrong, or no longer valid; {LOG_IN}"
    if status == 429:
        return f"too many requests (429); {_describe_wait(response.headers)}, then run it again"
    known = {
        402: "the Hub asks for payment (402); check the owner's plan and storage",
        403: "the token may not do that there (403); use one that may, or a name in your own namespace",
        404: "there is no such repository or revision that the token may see (404); check the name, or the token",
        409: "something else with that name exists (409); choose another name",
        412: "somebody else committed there meanwhile (412); check that commit, and run it again",
        413: "a file is too large for the Hub (413); save smaller shards",
    }
    if status in known:
        return known[status]
    if status >= 500:
        return f"the Hub has an internal error ({status}); run it again later"
    return f"the Hub refuses the request ({status})"


def _describe_wait(headers: object) -> str:
    """How long to wait, from the headers of the response."""
    given = headers.get("Retry-After", "") or re.search(r"t\s*=\s*(\d+)", headers.get("ratelimit", ""))  # type: ignore[attr-defined]
    seconds = given if isinstance(given, str) or given is None else given[1]
    return f"wait {seconds} seconds" if seconds and seconds.isdigit() else "wait some minutes"


def _is_network_error(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    return isinstance(error, HTTPError | ConnectionError | TimeoutError) and not isinstance(error, HfHubHTTPError)


def _to_one_line(text: str | None) -> str:
    return " ".join((text or "").split())
