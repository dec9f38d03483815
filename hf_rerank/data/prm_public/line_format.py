"""The format of a line of PRM Public's text, and the line-by-line check that finds the damage of a line.

One line is one list: six fields between ``|``, all but the first are JSON arrays; see ``FIELDS``.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

FIELDS = ("user id", "user categorical", "item categorical", "item dense, basic", "item dense, optional", "labels")
USER_COLUMNS = ("user_0", "user_1", "user_2")
CATEGORICAL_COLUMNS = ("item_id", "item_1", "item_2", "item_3", "item_4")
BASIC_COLUMNS = tuple(f"basic_{number}" for number in range(7))
OPTIONAL_COLUMNS = tuple(f"optional_{number}" for number in range(12))
# Field -> the columns that its inner arrays become.
ITEM_FIELDS = {2: CATEGORICAL_COLUMNS, 3: BASIC_COLUMNS, 4: OPTIONAL_COLUMNS}
# A line of 30 items has about 7,000 bytes; without a limit a file without line ends would be read whole.
MAX_LINE_BYTES = 2**20
MAX_EXACT_FLOAT = 2**53
# From here on a number is rounded to 2**128 - 2**103 in 64 bits, and to infinity in 32.
_FLOAT32_OVERFLOW = 2**128 - 2**103 - 2**74
# The kinds of damage of a line, by which a report counts.
KINDS = (
    "wrong number of fields",
    "wrong number of values",
    "ragged",
    "no items",
    "not JSON",
    "not an array",
    "not a number",
    "not a whole number",
    "not finite",
    "null",
    "label",
    "cut-off last line",
    "cut-off gzip",
    "not UTF-8",
    "not ASCII",
    "NUL byte",
    "line too long",
    "empty line",
)
# White space that JSON allows around a value.
BLANKS = " \t\r\n"

# Field (from 0), kind, reason (expected and received), the text.
_Damage = tuple[int | None, str, str, str]


def find_damage_of_line(line: bytes) -> tuple[str, str, str] | None:
    """Kind, reason and text if a line cannot be divided into fields; None if it can."""
    if len(line) > MAX_LINE_BYTES:
        head = shorten(line[:30].decode("ascii", "backslashreplace")) + " ..."
        return (
            "line too long",
            f"the line has more than {MAX_LINE_BYTES:,} bytes: expected one list of about 7,000",
            head,
        )
    if not line.isascii():
        index = next(index for index, byte in enumerate(line) if byte > 127)
        bad = line[index : index + 8]
        try:
            line.decode("utf-8")
            kind = "not ASCII"
        except UnicodeDecodeError:
            kind = "not UTF-8"
        return kind, f"byte {index + 1} is not an ASCII character ({bad!r}): expected numbers only, in UTF-8", ""
    text = line.decode("ascii").strip(BLANKS)
    if not text:
        return "empty line", "the line is empty: expected one list", ""
    fields = text.count("|") + 1
    if fields != len(FIELDS):
        return "wrong number of fields", f"expected {len(FIELDS)} fields between |, got {fields}", shorten(text)
    return None


def find_damage(line: bytes) -> _Damage | None:
    """The damage of a line; None if there is none."""
    found = find_damage_of_line(line)
    if found is not None:
        return None, *found
    lengths: dict[int, int] = {}
    for field, text in enumerate(line.decode("ascii").split("|")):
        damage = _find_damage_of_field(field, text.strip(BLANKS), lengths)
        if damage is not None:
            return field, *damage, shorten(text)
    return None


def parse_line(line: bytes) -> list[Any]:
    """Parses a line that is not damaged: ids as integers, dense values as floats."""
    values = [json.loads(text) for text in line.decode("ascii").split("|")]
    values[1] = [_to_integer(value) for value in values[1]]
    values[2] = [[_to_integer(value) for value in item] for item in values[2]]
    for k in (3, 4):
        values[k] = [[None if value is None else float(value) for value in item] for item in values[k]]
    return values


def _to_integer(value: float | None) -> int | None:
    return None if value is None else int(value)


def _find_damage_of_field(field: int, text: str, lengths: dict[int, int]) -> tuple[str, str] | None:
    """Kind and reason of the damage; records the length of the list in ``lengths``."""
    if "\0" in text:
        return "NUL byte", "holds a NUL byte: expected numbers only"
    if field == 0:
        if re.fullmatch(r"-?[0-9]{1,18}", text):
            return None
        kind = "null" if text == "null" else "not a number"
        return kind, "expected a whole number of at most 18 digits"
    not_finite: list[str] = []
    try:
        value = json.loads(text, parse_constant=not_finite.append)
    except (ValueError, RecursionError):
        return "not JSON", "expected a JSON array, but this is not valid JSON"
    if not_finite:
        return "not finite", f"holds {not_finite[0]}: expected finite numbers; a missing value is written as null"
    if not isinstance(value, list):
        return "null" if value is None else "not an array", f"expected a JSON array, got {_name_kind(value)}"
    if field == 1:
        if len(value) != len(USER_COLUMNS):
            return "wrong number of values", f"expected {len(USER_COLUMNS)} values, got {len(value)}"
        return _find_damage_of_numbers(value, "value", whole=True)
    if field in ITEM_FIELDS:
        for number, item in enumerate(value, start=1):
            if not isinstance(item, list):
                kind = "null" if item is None else "not an array"
                expected = f"expected an array of {len(ITEM_FIELDS[field])} numbers"
                return kind, f"item {number} is {_name_kind(item)}: {expected}"
            if len(item) != len(ITEM_FIELDS[field]):
                expected = f"expected {len(ITEM_FIELDS[field])}"
                return "wrong number of values", f"item {number} has {len(item)} values: {expected}"
            damage = _find_damage_of_numbers(item, f"item {number}, value", whole=field == 2)
            if damage is not None:
                return damage
    else:
        for number, label in enumerate(value, start=1):
            if isinstance(label, bool) or not isinstance(label, (int, float)) or label not in (0, 1):
                kind = "null" if label is None else "label"
                return kind, f"the label of item {number} is {shorten(json.dumps(label))}: expected 0 or 1"
    lengths[field] = len(value)
    if not value:
        return "no items", "the list is empty: expected at least one item"
    other = min(lengths)
    if lengths[other] != len(value):
        there = f"{lengths[other]} in field {other + 1} ({FIELDS[other]})"
        return "ragged", f"the list is ragged: {len(value)} items here, {there}"
    return None


def _find_damage_of_numbers(values: list[Any], name: str, *, whole: bool) -> tuple[str, str] | None:
    for number, value in enumerate(values, start=1):
        where = f"{name} {number}"
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return "not a number", f"{where} is {_name_kind(value)}: expected a number or null"
        if isinstance(value, float) and not math.isfinite(value):
            return "not finite", f"{where} is too large: expected a finite number"
        if whole and isinstance(value, float) and not (value.is_integer() and abs(value) <= MAX_EXACT_FLOAT):
            return "not a whole number", f"{where} is {value}: expected a whole number"
        if whole and not -(2**63) <= value < 2**63:
            return "not a whole number", f"{where} is {shorten(str(value))}: expected a whole number of 64 bits"
        if not whole and abs(value) >= _FLOAT32_OVERFLOW:
            return "not finite", f"{where} is {shorten(str(value))}: too large for a float of 32 bits"
    return None


def _name_kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", str: "text", dict: "an object", list: "an array"}
    return names.get(type(value), "a number")


def shorten(text: str, length: int = 60) -> str:
    """A text shortened to its two ends, on one line."""
    text = text.strip()
    text = text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"
    return text if text.isprintable() else text.encode("unicode_escape").decode()
