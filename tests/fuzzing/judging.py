"""A damaged input must give a correct result or a one-line error of the library's error class, nothing else."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_rerank import InputError

CORRECT, REJECTED = "correct", "rejected"
SAME, REFUSE, ANY = "same", "refuse", "any"


def judge(run: Callable[[], Any], check: Callable[[Any], str | None], expected: str = ANY) -> str:
    """Runs one attempt.

    Args:
        run: Returns the result.
        check: Returns what is wrong with the result, or None.
        expected: ``same``: the damage changes nothing that is read, so it must not be rejected; ``refuse``: it must be
            rejected; ``any``: either a result that ``check`` accepts, or a rejection.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = run()
    except InputError as error:
        if not is_one_line(str(error)):
            return f"the message is not one line of text: {str(error)[:200]!r}"
        return f"refused: {error}" if expected == SAME else REJECTED
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {place.filename.rpartition('/')[2]}:{place.lineno}: {str(error)[:150]!r}"
    wrong = check(result)
    if wrong is not None:
        return wrong
    return "accepted" if expected == REFUSE else CORRECT


def is_one_line(text: str) -> bool:
    """Whether a message is one line of at most 2,100 characters that UTF-8 can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text) and len(text.splitlines()) == 1 and len(text) <= 2100


def wrong_ranking(result: Mapping[str, Any], length: int | None = None) -> str | None:
    """What is wrong with one ranked list: expected are its slots, once each, and finite, descending scores."""
    order, scores = result["order"], result["scores"]
    count = len(order) if length is None else length
    if sorted(order) != list(range(count)) or len(scores) != count or len(result["ids"]) != count:
        return f"the order {order} is not an order of {count} items"
    if not all(math.isfinite(score) for score in scores):
        return f"the scores {scores} are not finite"
    return None if list(scores) == sorted(scores, reverse=True) else f"the scores {scores} do not descend"


def wrong_rankings(results: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> str | None:
    """What is wrong with the first wrong list of several."""
    if len(results) != len(lengths):
        return f"{len(results)} results for {len(lengths)} lists"
    found = (wrong_ranking(result, length) for result, length in zip(results, lengths, strict=True))
    return next((wrong for wrong in found if wrong is not None), None)
