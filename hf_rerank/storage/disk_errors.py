"""The one error for every failure to write to the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hf_rerank.errors import InputError, TrainingStopped


class CannotWrite(OSError):
    """The disk is full or not writable. The message names the path, the free space and the cause."""


@contextmanager
def name_failures(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns any error of a failed write (torch and safetensors have their own) into ``CannotWrite``.

    Args:
        path: The file or folder being written.
        needed: Approximate size in bytes, for the message. None: unknown.
    """
    try:
        yield
    except (InputError, TrainingStopped, CannotWrite):
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        need = "" if needed is None else f"about {_format_megabytes(needed)} are needed, "
        failure = CannotWrite(
            f"{path} could not be written: {need}{_format_megabytes(shutil.disk_usage(there).free)} are free there "
            f"({' '.join(str(error).split()) or type(error).__name__}); free space, or choose a folder that you may "
            "write to. No file is left half-written"
        )
        failure.errno = getattr(error, "errno", None)
        raise failure from error


@contextmanager
def open_files(path: Path) -> Iterator[ExitStack]:
    """Yields a stack of open files that are written for ``path``, and closes them at the end of the block.

    A failure to close them becomes ``CannotWrite`` too, unless the block has failed already: then that error is
    raised.
    """
    opened, failed = ExitStack(), True
    try:
        yield opened
        failed = False
    finally:
        if failed:
            with suppress(Exception):
                opened.close()
    with name_failures(path):
        opened.close()


def _format_megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
