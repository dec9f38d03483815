"""New outputs, each made by one process at a time; a folder appears complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_rerank.errors import InputError
from hf_rerank.storage.atomic import write_atomically
from hf_rerank.storage.disk_errors import name_failures
from hf_rerank.storage.locks import hold_lock


def ensure_name(output: str | Path) -> Path:
    """The path, made absolute if it has no name (``.``), since locks and temporaries are named after it."""
    output = Path(output)
    return output if output.name else output.resolve()


@contextmanager
def lock_output(output: str | Path, step: str = "") -> Iterator[None]:
    """Keeps other processes from writing a file or folder during the block, by a lock file beside it.

    Args:
        output: The file or folder.
        step: A name that distinguishes this lock from an enclosing lock of the same output.

    Raises:
        InputError: Another process is writing it.
        CannotWrite: The lock file cannot be created.
    """
    output = ensure_name(output)

    def describe_writer(process: str) -> str:
        return f"{process} is writing {output}: wait for it, or choose another output"

    with hold_lock(output.with_name(f".{output.name}{step}.lock"), describe_writer):
        yield


def refuse_nonempty(output: str | Path) -> None:
    """
    Raises:
        InputError: ``output`` exists, and is not an empty folder.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not an empty folder: choose another output folder, or remove it")


@contextmanager
def create_folder(output: str | Path) -> Iterator[Path]:
    """Yields an empty folder to write in, which is renamed to ``output`` at the end of the block.

    Raises:
        InputError: ``output`` exists and is not an empty folder, or another process is writing it.
        CannotWrite: The disk refuses a write, in the block too; the message names the path and the free space.
    """
    output = ensure_name(output)
    with lock_output(output):
        refuse_nonempty(output)
        with write_atomically(output) as folder, name_failures(output):
            folder.mkdir()
            yield folder
