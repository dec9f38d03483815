"""One error for everything that can go wrong when the disk is written to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hf_rerank.errors import InputError, TrainingStopped


class CannotWrite(OSError):
    """The disk is full, or refuses to be written. The message names the path, the free space and the cause."""


@contextmanager
def name_failures(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns whatever a failed write raises (torch and safetensors have errors of their own) into ``CannotWrite``.

    Args:
        path: What is being written.
        needed: About how many bytes.
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
    """Gives a stack of open files that are written for ``path``, and closes them.

    What fails at that is named, too; after another failure, which is the one to tell, it is passed over.
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
