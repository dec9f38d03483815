"""Values that no list, config or header should contain, and ways to damage bytes, JSON values and files."""

from __future__ import annotations

import copy
import datetime
import decimal
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def nested(depth: int, kind: Any = list) -> Any:
    """A list (or dict) of one entry, nested to this depth."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def _self_containing_list() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


# Values that JSON can represent; functions, since some are large.
JSON_VALUES: tuple[Callable[[], Any], ...] = (
    *(
        lambda value=value: value
        for value in (None, True, False, 0, -1, 1, 2, 3, 10**6, 10**12, 2**31, 2**63, -(2**63))
    ),
    *(lambda value=value: value for value in (2**64, 10**30, 10**400, 1e308, -1e308, 1e-320, 0.5, float("nan"))),
    *(
        lambda value=value: value
        for value in (float("inf"), "", "x", "\ud800", "a\nb\r\x1b[31m", "\0", "../x", "1", "nan")
    ),
    *(lambda value=value: copy.copy(value) for value in ([], {}, [[]], [None], {"": None}, [1, "a"], [1, 2.5, None])),
    lambda: "long " * 20_000,
    lambda: nested(5),
    lambda: nested(300),
    lambda: nested(300, dict),
    lambda: [3] * 100_000,
)
PYTHON_VALUES: tuple[Callable[[], Any], ...] = (
    *JSON_VALUES,
    *(
        lambda value=value: value
        for value in (10**5000, 1j, b"\xff", object(), (1, 2), {1}, {1: 2}, range(3), int, ...)
    ),
    lambda: nested(100_000),
    lambda: nested(100_000, dict),
    _self_containing_list,
    lambda: iter([1, 2]),
    lambda: memoryview(b"ab"),
    lambda: decimal.Decimal("NaN"),
    lambda: decimal.Decimal(10) ** 40,
    lambda: datetime.date(2024, 1, 1),
    lambda: datetime.datetime.max,
    *(lambda value=value: value for value in (np.float32("nan"), np.int8(-1), np.str_("x"), np.datetime64("NaT"))),
    lambda: np.array(3),
    lambda: np.zeros((2, 0)),
    lambda: np.array([1, "a", None], dtype=object),
    lambda: np.array(["\ud800"]),
    lambda: np.ones((2, 2, 2, 2)),
    lambda: np.array([2**64 - 1], dtype=np.uint64),
)


def damaged_bytes(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Flips bits, or cuts off, removes, duplicates or inserts bytes."""
    place = draw.randrange(len(content)) if content else 0
    how = draw.choice(("flip", "flips", "cut", "leave out", "double", "insert", "zeros"))
    if how == "flip" or how == "flips":
        changed = bytearray(content)
        for at in [place] if how == "flip" else draw.choices(range(len(content)), k=20) if content else []:
            changed[at] ^= 1 << draw.randrange(8)
        return how, bytes(changed)
    end = min(len(content), place + draw.choice((1, 2, 8, 100)))
    return how, {
        "cut": content[:place],
        "leave out": content[:place] + content[end:],
        "double": content[:end] + content[place:],
        "insert": content[:place] + draw.randbytes(draw.choice((1, 8, 200))) + content[place:],
        "zeros": content[:place] + bytes(end - place) + content[end:],
    }[how]


def damaged_json(value: Any, draw: random.Random) -> tuple[str, Any]:
    """A copy of a JSON object in which one entry, at any depth, is replaced, removed, duplicated or added."""
    changed = copy.deepcopy(value)
    inside, path = changed, ""
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        if not keys:
            break
        key = draw.choice(keys)
        path += f"/{key}"
        if not isinstance(inside[key], dict | list) or not inside[key] or draw.random() < 0.3:
            break
        inside = inside[key]
    new = draw.choice(JSON_VALUES)()
    how = draw.choice(("replace", "replace", "leave out", "add"))
    if how == "replace" and keys:
        inside[key] = new
    elif how == "leave out" and keys:
        del inside[key]
    elif isinstance(inside, list):
        inside.append(new)
    else:
        inside[draw.choice(("", "new", "\ud800", "a\nb", "sha256", "auto_map"))] = new
    return f"{how} {path[:60]}", changed


SPECIAL_FILES = ("a folder", "a pipe", "a link to /dev/zero", "a link to nothing", "a link to itself", "empty")


def make_special(path: Path, what: str) -> None:
    """Replaces ``path`` by a special file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "empty":
        path.write_bytes(b"")
    else:
        path.symlink_to({"a link to /dev/zero": "/dev/zero", "a link to nothing": "nothing"}.get(what, path.name))
