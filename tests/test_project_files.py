"""Files for contributors agree with pyproject.toml, with scripts/test and with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import hf_rerank

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_workflow_runs_the_same_commands_as_scripts_test_on_two_dependency_sets() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    lines = [line.strip() for line in (ROOT / "scripts/test").read_text(encoding="utf-8").splitlines()]
    commands = [line.replace(' "$@"', "") for line in lines if line.startswith(("ruff", "mypy", "pytest"))]
    assert len(commands) == 4
    assert set(commands) <= set(steps)
    runs = workflow["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert {run["dependencies"] for run in runs} == {"lowest-direct", "highest"}
    pythons = [run["python"] for run in runs]
    assert len(set(pythons)) == 2
    (oldest,) = SpecifierSet(PROJECT["project"]["requires-python"])
    assert (oldest.operator, oldest.version) == (">=", min(pythons, key=lambda text: int(text.split(".")[1])))


def test_quick_skips_types_and_slow_tests_and_passes_arguments_on(tmp_path: Path) -> None:
    """The tools are replaced by commands that print how they are called."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/environment").write_text(f'PATH="{tmp_path}:$PATH"\n')
    shutil.copy(ROOT / "scripts/test", tmp_path / "scripts/test")
    for tool in ("ruff", "mypy", "pytest"):
        path = tmp_path / tool
        path.write_text(f'#!/bin/sh\nprintf "%s|" {tool} "$@"\n')
        path.chmod(0o755)

    def calls(*arguments: str) -> list[str]:
        ran = subprocess.run([tmp_path / "scripts/test", *arguments], capture_output=True, text=True, check=True)
        return re.split(r"(?=ruff\||mypy\||pytest\|)", ran.stdout)[1:]

    style = ["ruff|check|.|", "ruff|format|--check|.|"]
    whole = "pytest|--numprocesses|2|--dist|worksteal|"
    assert calls("tests/models", "-k", "a b") == [*style, "mypy|", f"{whole}tests/models|-k|a b|"]
    assert calls("--quick", "-k", "a b") == [*style, f"{whole}-m|not slow|-k|a b|"]


def test_every_package_has_quick_tests() -> None:
    """In the folder of the same name; ``testing`` is tested by the tests of models."""
    elsewhere = {"testing": "models", "metrics/modules": "metrics"}
    packages = [path.parent.relative_to(ROOT / "hf_rerank") for path in (ROOT / "hf_rerank").rglob("__init__.py")]
    assert len(packages) > 15
    for package in packages:
        folder = ROOT / "tests" / elsewhere.get(package.as_posix(), package)
        assert any(has_quick_tests(path) for path in folder.glob("test_*.py")), package


def has_quick_tests(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    tests = re.findall(r"(?:^@.*\n(?:^[ )].*\n)*)*^def test_", text, re.M)
    return not re.search(r"^pytestmark = .*slow", text, re.M) and any("mark.slow" not in test for test in tests)


def test_every_dependency_has_a_lower_bound_and_no_upper_one() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    for text in [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]:
        if not text.startswith("hf-rerank["):
            assert [bound.operator for bound in Requirement(text).specifier] == [">="], text


def test_hooks_run_the_tools_installed_in_the_environment() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    assert [hook["entry"] for hook in hooks["repos"][0]["hooks"]] == ["ruff check", "ruff format --check", "mypy"]


def test_versions_and_urls_agree() -> None:
    version = PROJECT["project"]["version"]
    assert version == hf_rerank.__version__
    changes = (ROOT / ".github/CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", changes, re.M)
    assert headings[0] == "Unreleased"
    assert version in headings
    citation = (ROOT / "README.md").read_text(encoding="utf-8").split("```bibtex")[1].split("```")[0]
    assert f"version = {{{version}}}" in citation
    assert PROJECT["project"]["urls"]["Homepage"] in citation
