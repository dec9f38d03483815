"""Processes that start fast: forked from one that has imported everything and computed nothing.

torch refuses gradients in a fork of a process that has computed some, so tests cannot fork their own process.
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
# Modules imported only after the fork would be imported again by each process. Only installed modules work: the
# server of Python 3.11 silently skips modules that are found only through pytest's path.
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
    """Runs a module-level function in a separate process; its output goes to ``log``.

    An integer returned by the function is the exit code.
    """
    process = CONTEXT.Process(target=_run, args=(function, args, str(log), environment))
    process.start()
    return process


def run(function: Callable[..., Any], *args: Any, log: Path, timeout: float = 300, **environment: str) -> None:
    """Like ``start``, but waits for the end and fails unless the exit code is 0."""
    process = start(function, *args, log=log, **environment)
    process.join(timeout)
    assert process.exitcode == 0, f"exit code {process.exitcode}: {log.read_text()[-3000:]}"


def _run(function: Callable[..., Any], args: tuple[Any, ...], log: str, environment: dict[str, str]) -> None:
    gc.freeze()  # exempts imported modules: each training starts with a full garbage collection
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for data-loader workers, as in an ordinary process
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # Not closed when replaced: another file would get their descriptor.
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.exit(function(*args))
