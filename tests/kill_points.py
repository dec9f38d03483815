"""Faults of a writing process, each in a fork of this one: a kill at a disk operation, or a full disk."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

# Events of sys.audit, whose first argument is the path.
CALLS = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir")
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Run:
    """A process started by ``forked``."""

    pid: int
    output: int

    def end(self) -> tuple[int, str]:
        """Waits and returns the exit code, or minus the signal that ended the process, and its output."""
        with os.fdopen(self.output, errors="replace") as output:
            printed = output.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), printed


def forked(work: Callable[[], int | None], file_size: int | None = None) -> Run:
    """Starts ``work`` in a forked process.

    Args:
        work: Its return value is the exit code.
        file_size: Largest file size in bytes; writes beyond it fail as on a full disk.
    """
    output, end = os.pipe()  # a pipe is not subject to the limit
    pid = os.fork()
    if pid:
        os.close(end)
        return Run(pid, output)
    code = 1
    try:
        os.dup2(end, 1)
        os.dup2(end, 2)
        # Not closed when replaced: another file would get their descriptor.
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        if file_size is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def at_operation(folder: Path, number: int, act: Callable[[], None], on_operation: Callable[[], None]) -> None:
    """Calls ``act`` in this process before its nth disk operation below ``folder``, and ``on_operation`` at each.

    An operation opens, renames, links, creates or removes a file or folder below ``folder``, flushes bytes to disk,
    or appends to a Parquet file.
    """
    seen = 0
    inside = f"{folder}{os.sep}"

    def count() -> None:
        nonlocal seen
        seen += 1
        on_operation()
        if seen == number:
            act()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CALLS and isinstance(arguments[0], str | os.PathLike):
            path = os.fspath(arguments[0])
            # A bare file name is one below a folder that is being removed.
            removed = event in ("os.remove", "os.rmdir") and os.sep not in str(path)
            if str(path).startswith(inside) or removed:
                count()

    def counting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            count()
            return operation(*arguments, **options)

        return counted

    os.fsync = counting(os.fsync)
    for name in ("write_table", "close"):
        setattr(pq.ParquetWriter, name, counting(getattr(pq.ParquetWriter, name)))
    sys.addaudithook(hook)


def die_at(folder: Path, number: int) -> None:
    """Ends this process by SIGKILL before its nth disk operation below ``folder``."""
    at_operation(folder, number, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: None)


def count_operations(folder: Path, counted: Path) -> None:
    """Adds a byte to ``counted`` for each disk operation of this process below ``folder``."""
    descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    at_operation(folder, 0, lambda: None, lambda: os.write(descriptor, b".") and None)
