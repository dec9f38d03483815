"""JSON files: written whole, and read with errors that name the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.storage.atomic import write_file


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    """Writes a JSON file that appears whole or not at all; numbers that are not finite become null.

    Raises:
        CannotWrite: The disk refuses; names path and space.
    """
    write_file(path, json_text(values))


def json_text(values: dict[str, Any]) -> str:
    """The text that ``write_json`` writes."""
    return json.dumps(json_values(values), indent=2, allow_nan=False) + "\n"


def json_values(value: Any) -> Any:
    """A value as it is read back from JSON: lists for tuples, null for what is not finite, text for other types."""
    if isinstance(value, dict):
        return {str(name): json_values(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def read_json(path: str | Path, remedy: str = "fix or remove it") -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        remedy: What to do if it is no such file, at the end of messages.

    Raises:
        InputError: It is no JSON object, or names a key twice.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}; {remedy}") from None
    return parse_json_object(text, str(path), remedy)


def parse_json_object(text: str, where: str, remedy: str = "fix or remove it") -> dict[str, Any]:
    """The object in a JSON text.

    Args:
        text: One JSON value.
        where: Where the text comes from, at the beginning of messages.
        remedy: What to do, at the end of messages.

    Raises:
        InputError: It is no JSON object, or names a key twice.
    """

    def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise InputError(f"{where} names {name!r} twice in one object; {remedy}")
            found[name] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=each_key_once)
    except InputError:  # which is a ValueError, too
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}; {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} holds a {type(value).__name__}: expected a JSON object; {remedy}")
    return value
