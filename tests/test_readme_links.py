"""Links between the guides, their length, and the parts that every package must have."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from readme_pages import GUIDES, PACKAGES, ROOT, anchors, links, name_of


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_link_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in links(text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{target}: there is no such file"
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{target}: there is no such heading"


def test_every_guide_is_reachable_from_the_top_page() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        targets = ((page.parent / target.split("#")[0]).resolve() for target in links(page.read_text("utf-8")))
        todo += [target for target in targets if target in GUIDES and target not in reached]
    assert set(GUIDES) - reached == set()


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_paths_named_in_guides_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:scripts|tests|hf_rerank|model_cards)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:data|training|evaluation|models|principled)/[\w./-]+)`", text):
        assert (ROOT / "hf_rerank" / path).exists(), path
    for path in re.findall(r"`(results/[\w./-]+)`", text):
        assert (page.parent / path).exists(), path


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_library_names_in_guides_exist(page: Path) -> None:
    for name in set(re.findall(r"\bhf_rerank(?:\.\w+)+", page.read_text(encoding="utf-8"))):
        module, *parts = name.split(".")
        found = importlib.import_module(module)
        for part in parts:
            module = f"{module}.{part}"
            is_module = hasattr(found, "__path__") and importlib.util.find_spec(module) is not None
            found = importlib.import_module(module) if is_module else getattr(found, part)


def test_the_top_page_has_at_most_250_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_every_package_has_a_guide_naming_its_files_and_valid_exports(package: Path) -> None:
    text = (package / "README.md").read_text(encoding="utf-8")
    title, blank, first = text.splitlines()[:3]
    assert title.startswith(f"# {package.name}: ")
    assert not blank
    assert first
    there = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    named = set(re.findall(r"(?<![\w/])[\w]+(?:\.py\b|/)", text))
    assert there - named == set()
    module = importlib.import_module(".".join(package.relative_to(ROOT).parts))
    assert module.__all__
    for name in module.__all__:
        assert hasattr(module, name) or importlib.util.find_spec(f"{module.__name__}.{name}"), name


@pytest.mark.slow
def test_the_architecture_figure_matches_the_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "scripts" / "figures"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "architecture", raising=False)
    architecture = importlib.import_module("architecture")
    committed = (folder / "architecture.svg").read_text(encoding="utf-8")
    edges = architecture.imports()
    assert architecture.figure(edges) == committed, "out of date: run python scripts/figures/architecture.py"
    assert architecture.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
    # Known without the script: training imports inference, and nothing imports the command line.
    assert "inference" in edges["training"]
    assert architecture.rows_of(edges)["commands"] == 0
