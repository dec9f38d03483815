"""Processes that start warm: forked from one that has imported everything, and has computed nothing.

torch refuses gradients in a fork of a process that has computed some, so tests cannot fork from their own.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import hf_rerank

CONTEXT = multiprocessing.get_context("forkserver")
# Whatever is imported only after the fork is imported again by each process. Installed modules only: the server of
# Python 3.11 passes over those that only pytest's path leads to, without a word.
CONTEXT.set_forkserver_preload(
    [
        "pytest",
        "datasets.io.parquet",
        "lightgbm",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "onnxruntime",
        "onnxscript",
        "scipy.io",
        *sorted(module.name for module in pkgutil.walk_packages(hf_rerank.__path__, "hf_rerank.")),
    ]
)


def start(function: Callable[..., Any], *args: Any, log: Path, **environment: str) -> BaseProcess:
    """Runs a function of a module in a process of its own; what it prints goes to ``log``.

    The process ends with what the function returns, if that is a whole number, as its exit code.
    """
    process = CONTEXT.Process(target=_run, args=(function, args, str(log), environment))
    process.start()
    return process


def run(function: Callable[..., Any], *args: Any, log: Path, timeout: float = 300, **environment: str) -> None:
    """As ``start``; waits, and fails unless it ends well."""
    process = start(function, *args, log=log, **environment)
    process.join(timeout)
    assert process.exitcode == 0, f"exit code {process.exitcode}: {log.read_text()[-3000:]}"


def _run(function: Callable[..., Any], args: tuple[Any, ...], log: str, environment: dict[str, str]) -> None:
    gc.freeze()  # of what is imported: each training begins with a whole garbage collection
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of data-loader workers, as in a process of its own
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # Not closed when they are replaced: another file would get their number.
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.exit(function(*args))
