"""Removes local folders from pushed files: they often contain a user's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

# The beginning of a path from the root of a disk, from a home folder, or out of the working folder.
_ROOT = r"(?:file://)?(?:~[^\s/\\]*|\.\.|[A-Za-z]:)?[/\\]"
_WHOLE = re.compile(_ROOT)
# The folders of a path inside a longer text, without its last component. "https://a/b" is not a path.
_FOLDERS = re.compile(rf"(?<![\w.~:/\\-]){_ROOT}(?:[^\s/\\]+[/\\])*(?=[^\s/\\])")
# Parts of the results with names of columns, which may look like paths.
_NAMES = ("schema", "text_columns")


def remove_own_folders(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copies ``results.json`` or ``training_args.json`` with every path reduced to its last component.

    A path is every string that begins at the root of a disk, in a home folder (``~``) or with ``..``: in the results
    of a training these are ``output_dir``, ``encoded_cache``, ``resume_from_checkpoint``, configuration files such as
    ``deepspeed``, and ``_name_or_path`` of a fine-tuned model. The key and the last component, which identifies the
    run or checkpoint, are kept; the folders above it, which may contain the user's name, are removed, also from a path
    without spaces inside a longer text. A path relative to the working folder (``runs/prm``) is kept: it reveals
    nothing about the machine.

    Args:
        values: Contents of the file. The schema and names of columns are left unchanged.
    """
    return {key: value if key in _NAMES else _clean(value) for key, value in values.items()}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    if not isinstance(value, str):
        return value
    # If the whole text is a path, its folders may contain spaces. PureWindowsPath splits at both / and \.
    return PureWindowsPath(value).name if _WHOLE.match(value) else _FOLDERS.sub("", value)
