"""JSON files: written atomically, and read with errors that name the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError, show
from hf_rerank.storage.atomic import write_file

# Limits far above any file of this library: bytes of a file, levels of objects and lists, size of an integer.
LARGEST_FILE = 2**26
DEEPEST = 50
LARGEST_INTEGER = 2**64


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    """Writes a JSON file that appears complete or not at all; numbers that are not finite become null.

    Raises:
        CannotWrite: The disk refuses the write; the message names the path and the free space.
    """
    write_file(path, format_json(values))


def format_json(values: dict[str, Any]) -> str:
    """The text that ``write_json`` writes."""
    return json.dumps(to_json_values(values), indent=2, allow_nan=False) + "\n"


def to_json_values(value: Any) -> Any:
    """A value as it would be read back from JSON: tuples become lists, non-finite numbers null, other types text."""
    if isinstance(value, dict):
        return {str(name): to_json_values(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def read_json(path: str | Path, remedy: str = "fix or remove it") -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        remedy: Advice to the user; the end of messages.

    Raises:
        InputError: It is not a regular file (reading a pipe or a device might never end), it is larger than
            ``LARGEST_FILE``, or ``parse_json_object`` refuses it.
        OSError: It does not exist, or cannot be read.
    """
    path = Path(path)
    refuse_special_file(path, remedy)
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(
            f"{path} has {path.stat().st_size:,} bytes: expected a JSON file of at most {LARGEST_FILE:,}; {remedy}"
        )
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}; {remedy}") from None
    return parse_json_object(text, str(path), remedy)


def refuse_special_file(path: Path, remedy: str) -> None:
    """
    Raises:
        InputError: The path is a folder, a pipe, a device, or a link that leads nowhere; a path that does not
            exist is accepted, and fails when it is opened.
    """
    if not path.is_file() and (path.exists() or path.is_symlink()):
        what = "a folder" if path.is_dir() else "a pipe or a device" if path.exists() else "a link that leads nowhere"
        raise InputError(f"{path} is {what}: expected a regular file; {remedy}")


def parse_json_object(text: str, where: str, remedy: str = "fix or remove it") -> dict[str, Any]:
    """The object in a JSON text.

    Args:
        text: One JSON value.
        where: Where the text comes from; the beginning of messages.
        remedy: Advice to the user; the end of messages.

    Raises:
        InputError: It is not a JSON object, names a key twice, is nested deeper than ``DEEPEST``, or has a value that
            other programs may be unable to read: NaN, infinity, an integer of more than 64 bits, a lone surrogate.
    """

    def refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise InputError(f"{where} names {name!r} twice in one object; {remedy}")
            found[name] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=refuse_duplicate_keys)
    except InputError:  # which is also a ValueError
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}; {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} holds a {type(value).__name__}: expected a JSON object; {remedy}")
    _refuse_extremes(value, where, remedy)
    return value


def _refuse_extremes(value: Any, where: str, remedy: str) -> None:
    """Refuses values that other programs may not read. Level by level, as recursion would fail at deep nesting."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for entry in level:
            if isinstance(entry, dict):
                inner += entry
                inner += entry.values()
            elif isinstance(entry, list):
                inner += entry
            elif isinstance(entry, str):
                if not entry.isascii() and any("\ud800" <= letter <= "\udfff" for letter in entry):
                    raise InputError(f"{where} holds {show(entry)}: a lone surrogate is not text; {remedy}")
            elif isinstance(entry, float) and not math.isfinite(entry):
                raise InputError(f"{where} holds {entry}: expected finite numbers; {remedy}")
            elif isinstance(entry, int) and not -LARGEST_INTEGER < entry < LARGEST_INTEGER:
                raise InputError(f"{where} holds the integer {show(entry)}: expected at most 64 bits; {remedy}")
        if not inner:
            return
        level = inner
    raise InputError(f"{where} is nested more than {DEEPEST} levels deep: it is not a file of this library; {remedy}")
