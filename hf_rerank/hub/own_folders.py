"""Removes folders of this machine from what is pushed: they often contain a user's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

# What a path from the root of a disk, from a home folder, or out of the working folder begins with.
_ROOT = r"(?:file://)?(?:~[^\s/\\]*|\.\.|[A-Za-z]:)?[/\\]"
_WHOLE = re.compile(_ROOT)
# The folders of a path inside a longer text; what follows them is its last component. "https://a/b" is none.
_FOLDERS = re.compile(rf"(?<![\w.~:/\\-]){_ROOT}(?:[^\s/\\]+[/\\])*(?=[^\s/\\])")
# Parts of the results that hold names of columns, which may look like anything.
_NAMES = ("schema", "text_columns")


def remove_own_folders(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copies ``results.json`` or ``training_args.json`` with every path reduced to its last component.

    That is every text that begins at the root of a disk, in a home folder (``~``) or with ``..``: in the results of a
    training these are ``output_dir``, ``encoded_cache``, ``resume_from_checkpoint``, configuration files such as
    ``deepspeed``, and ``_name_or_path`` of a model that was fine-tuned. The key stays, and the last component, which
    tells runs and checkpoints apart; the folders above it, in which the user's name is found, go, also those of a
    path without blanks inside a longer text. A path from the working folder (``runs/prm``) stays: it reveals
    nothing of the machine.

    Args:
        values: What the file holds. The schema, and names of columns, stay as they are.
    """
    return {key: value if key in _NAMES else _clean(value) for key, value in values.items()}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    if not isinstance(value, str):
        return value
    # A whole text that is a path may have blanks in its folders; its last component is what both systems say.
    return PureWindowsPath(value).name if _WHOLE.match(value) else _FOLDERS.sub("", value)
