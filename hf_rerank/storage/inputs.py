"""Input files: digests of their content, and checks that they do not change while they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from hf_rerank.errors import InputError

_CHUNK = 1 << 20


def digest_content(path: str | Path) -> str:
    """A digest over the content of a file, ten times as fast as SHA-256; it detects changes, not tampering."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class InputFiles:
    """Files that must not change while they are read.

    Args:
        paths: The files. Their size, inode and times are recorded now, before anything is read: they differ for a
            file that is written or replaced afterwards, even if its modification time is set back (except on Windows,
            which has no change time).
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self.paths = [Path(path) for path in paths]
        self._noted = {path: _read_state(path) for path in self.paths}

    def refuse_changes(self) -> None:
        """
        Raises:
            InputError: One of the files has changed since it was recorded, or is gone.
        """
        for path, noted in self._noted.items():
            if _read_state(path) != noted:
                raise InputError(f"{path} changed while it was read: run again when it is complete")

    @contextmanager
    def require_unchanged(self) -> Iterator[None]:
        """Checks at the end of the block that the files have not changed, even if the block fails.

        If both happen, the change is reported, as it may have caused the failure.

        Raises:
            InputError: As ``refuse_changes``.
        """
        try:
            yield
        finally:
            self.refuse_changes()

    def read_states(self) -> dict[str, list[int]]:
        """Name of each file -> size, times and inode, by which a later call recognizes it without reading it."""
        return {path.name: list(state or ()) for path, state in self._noted.items()}

    def digest_contents(self) -> dict[str, str]:
        """Name of each file -> digest of its content; reads every file."""
        return {path.name: digest_content(path) for path in self.paths}


def refuse_output_over_input(output: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuses an output that is an input, is inside an input folder (such as that of a model), or contains an input.

    Raises:
        InputError: They overlap.
    """
    there = Path(output).resolve()
    for path in inputs:
        source = Path(path).resolve()
        if there == source or source in there.parents or there in source.parents:
            raise InputError(f"the output {output} overlaps the input {path}: choose another output")


def _read_state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:  # no such file, or a circular link: the reader reports it
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
