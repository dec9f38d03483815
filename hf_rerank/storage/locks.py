"""Exclusive locks between processes, by lock files; a lock ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hf_rerank.errors import InputError
from hf_rerank.storage.disk_errors import name_failures


@contextmanager
def hold_lock(path: str | Path, busy: Callable[[str], str], *, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock file ``path`` during the block. The file contains the process id, and is removed at the end.

    Args:
        path: The lock file. Its folder is created.
        busy: ``holder -> message`` if another process holds the lock; ``holder`` is a string such as "process 17".
        wait: Seconds to wait for the other process; negative: as long as it takes.

    Raises:
        InputError: Another process holds the lock; the message is that of ``busy``.
        CannotWrite: The lock file cannot be created.
    """
    path = Path(path)
    while True:
        lock = FileLock(path)
        with name_failures(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                before = path.stat().st_ino
                lock.acquire(timeout=wait)
            except FileNotFoundError:  # the previous holder removed the file or its folder in between
                continue
            except Timeout:
                raise InputError(busy(_read_holder(path))) from None
        # The previous holder removes the file: a lock on a removed file excludes nobody.
        if path.exists() and path.stat().st_ino == before:
            break
        lock.release()
    try:
        with contextlib.suppress(OSError):  # only for messages
            path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        if os.name == "posix":
            path.unlink(missing_ok=True)
        lock.release()
        if os.name != "posix":  # Windows cannot remove an open file
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _read_holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        if number := path.read_text().strip():
            return f"process {number}"
    return "another process"
