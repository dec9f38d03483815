"""Runs a script of this project in this process, where its imports are already loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pyarrow as pa
import pytest
import torch


def load_script(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imports a script as a module; scripts in its folder can import each other."""
    monkeypatch.syspath_prepend(str(path.parent))
    module = importlib.import_module(path.stem)
    assert module.__file__ is not None
    assert Path(module.__file__) == path
    return module


def run_script(
    path: Path, *arguments: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The output of ``main()`` with these command-line arguments."""
    module = load_script(path, monkeypatch)
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    capsys.readouterr()
    with unchanged_settings():
        module.main()
    return capsys.readouterr().out


@contextmanager
def unchanged_settings() -> Iterator[None]:
    """Restores the numbers of threads and the progress bars, which scripts change."""
    threads, of_arrow, of_files = torch.get_num_threads(), pa.cpu_count(), pa.io_thread_count()
    bars = datasets.are_progress_bars_disabled()
    yield
    torch.set_num_threads(threads)
    pa.set_cpu_count(of_arrow)
    pa.set_io_thread_count(of_files)
    (datasets.disable_progress_bars if bars else datasets.enable_progress_bars)()
