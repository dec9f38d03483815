"""What the reader of safetensors does not check: a tensor that the header names twice."""

from __future__ import annotations

from pathlib import Path

from hf_rerank.storage.json_files import parse_json_object


def refuse_repeated_names(path: Path) -> None:
    """Refuses a safetensors file in which a tensor is named twice: its reader silently takes the last one.

    Raises:
        InputError: It is so, or the header is damaged.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, path.stat().st_size))
    parse_json_object(header.decode("utf-8", "replace"), f"the header of {path}", "save or download it again")
