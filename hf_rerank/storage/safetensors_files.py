"""Safetensors files, with checks that the safetensors reader lacks and one-line errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rerank.errors import InputError
from hf_rerank.storage.atomic import share_with_readers
from hf_rerank.storage.json_files import parse_json_object, refuse_special_file

if TYPE_CHECKING:
    import numpy as np

# About 100,000 tensors.
LARGEST_HEADER = 2**24
# The formats that numpy also has.
NUMPY_FORMATS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64")
REMEDY = "save or download it again"


def read_number_formats(path: Path) -> dict[str, str]:
    """Tensor -> number format, as a safetensors file names it (``F32``, ``I64``, ...).

    Raises:
        InputError: A tensor is named twice (the reader of safetensors silently takes the last one), or the header is
            damaged or larger than ``LARGEST_HEADER``.
    """
    refuse_special_file(path, REMEDY)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= min(LARGEST_HEADER, path.stat().st_size - 8):
            raise InputError(
                f"the header of {path} is damaged: it claims to have {size:,} bytes, but the file has "
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
            raise InputError(f"{where} gives no number format for {name!r}: it is damaged; {REMEDY}")
        found[name] = kind
    return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, by name.

    Raises:
        InputError: As ``read_number_formats``; the file is damaged, or holds numbers that numpy has no format for.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for name, kind in read_number_formats(path).items():
        if kind not in NUMPY_FORMATS:
            raise InputError(f"{path} holds {name!r} as {kind}: expected one of {', '.join(NUMPY_FORMATS)}; {REMEDY}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}; {REMEDY}") from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as a safetensors file, which the users that may read other new files may read, too."""
    from safetensors.numpy import save_file

    save_file(dict(arrays), path)
    share_with_readers(path)
