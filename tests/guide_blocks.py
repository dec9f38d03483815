"""Runs the code blocks of one guide: Python in one scope, ``hf-rerank`` in this process, others only checked."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from readme_pages import ROOT, blocks

from hf_rerank import cli

# Fewer lists and one epoch; everything else runs as printed.
SMALLER = {
    'load_lists("simulated_prm", n_lists=2000)': 'load_lists("simulated_prm", n_lists=120)',
    'load_lists("simulated_prm", n_lists=400)': 'load_lists("simulated_prm", n_lists=120)',
    'Arguments("runs/prm"))': 'Arguments("runs/prm", num_train_epochs=1))',
}
# First words of commands that belong to other programs or would take minutes.
NOT_RUN = ("pip", "hf", "ruff", "mypy", "pytest")


def smaller(code: str) -> str:
    for printed, small in SMALLER.items():
        code = code.replace(printed, small)
    return code


def copy_of(files: Path, folder: Path) -> Path:
    """A copy of the files that the guides expect, which may be changed."""
    shutil.copytree(files, folder)
    return folder


def run_page(text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the blocks in order, in the working directory.

    Each ``print(...)  # expected`` must print the text of its comment.

    Returns:
        The names of the Python blocks.
    """
    from hf_rerank.models import auto

    # A page may register its own re-ranker; the next test must not see it.
    monkeypatch.setattr(auto, "RERANKERS", dict(auto.RERANKERS))
    monkeypatch.setattr(auto, "_register", lambda config, model: None)
    page = ModuleType("page")  # dataclasses look up the module in which they are defined
    monkeypatch.setitem(sys.modules, "page", page)
    for language, code in blocks(text, "python", "bash"):
        if language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                run_command(line)
            continue
        capsys.readouterr()
        exec(smaller(code), page.__dict__)
        printed = iter(capsys.readouterr().out.splitlines())
        for expected in re.findall(r"^print\(.*\)  # (.*)$", code, re.M):
            assert expected in printed, expected  # consumes the lines up to it
    return page.__dict__


def run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words or words[0] in NOT_RUN:
        return
    if words[0] != "hf-rerank":
        check_script(words)
        return
    words = [re.sub(r"^20000$|^22500$|^24000$|^2000$", "120", word) for word in words[1:]]
    options = check_options(words)
    if words[0] == "push" or any(word.startswith("someone/") for word in words):
        return  # tests/hub covers pushing, and loading by id
    if words[0] == "export" or "--on-top-of" in words:
        assert Path(options.output_dir).is_dir()  # made once for all pages; trees: tests/commands/test_train_on_top.py
        return
    if words[0] == "train":
        words += ["--max_steps", "2"] + ([] if "--from" in words else ["--set", "hidden_size=8"])
    output = getattr(options, "output_dir", None)
    if output is not None:
        shutil.rmtree(output, ignore_errors=True)
    assert cli.main(words) == 0, line


def check_options(words: list[str]) -> Any:
    """Checks that the command and all its options exist."""
    from hf_rerank import RerankTrainingArguments

    options, others = cli._parser().parse_known_args(words)
    known = {field.name for field in fields(RerankTrainingArguments)}
    assert {word[2:].replace("-", "_") for word in others if word.startswith("--")} <= known, words
    return options


def check_script(words: list[str]) -> None:
    """``scripts/x`` or ``python scripts/x.py --option value``: checks that the file and its options exist."""
    script = ROOT / (words[1] if words[0] == "python" else words[0])
    assert script.is_file(), words
    source = script.read_text(encoding="utf-8")
    if words[0] == "python":
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source or option in source, (words, option)
