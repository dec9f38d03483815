"""The header of a safetensors file, with checks that its reader does not make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.storage.json_files import parse_json_object, refuse_special_file

# About 100,000 tensors.
LARGEST_HEADER = 2**24
REMEDY = "save or download it again"


def number_formats(path: Path) -> dict[str, str]:
    """The tensors of a safetensors file, and the number format of each as the file names it (``F32``, ``I64``, ...).

    Raises:
        InputError: A tensor is named twice (the reader of safetensors silently takes the last one), or the header is
            damaged or larger than ``LARGEST_HEADER``.
    """
    refuse_special_file(path, REMEDY)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= min(LARGEST_HEADER, path.stat().st_size - 8):
            raise InputError(
                f"the header of {path} is damaged: it is said to have {size:,} bytes, the file has "
                f"{path.stat().st_size:,}; expected at most {LARGEST_HEADER:,}, inside the file; {REMEDY}"
            )
        header = file.read(size)
    where = f"the header of {path}"
    found: dict[str, str] = {}
    for name, entry in parse_json_object(header.decode("utf-8", "replace"), where, REMEDY).items():
        if name == "__metadata__":
            continue
        kind: Any = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(kind, str):
            raise InputError(f"{where} gives no number format of {name!r}: it is damaged; {REMEDY}")
        found[name] = kind
    return found
