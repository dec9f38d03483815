"""The layers of the modules for lists: imports go only downward, lazy ones included, and have no cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import hf_rerank

ROOT = Path(hf_rerank.__file__).parent
# Lower layers first: a module imports only from its own layer and from those above it in this list.
LAYERS = (
    "errors",
    "version",
    "storage",
    "schema",
    "fast_rows",
    "validation",
    "metrics",  # the only part of the core: pure functions over arrays
    "data.lists_cache",
    "data.splits",
    "data.times",
    "data.time_split",
    "data.report",
    "data.source",
    "data.truncating",
    "data.parquet_datasets",
    "data.prepared",
    "data.prm_public",
    "data.ad",
    "data.simulation",
    "data.position_bias",
    "data.custom",
    "data.push_lists",
    "data.hub_lists",
    "data.builtin_datasets",
    "data.loading",
)
CHECKED = ("storage", "data")
NEVER = ("torch", "transformers", "accelerate", "safetensors.torch")


def modules() -> dict[str, ast.Module]:
    """Each module below ``hf_rerank``, by its dotted name, and its syntax tree."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports_of(name: str) -> Iterator[str]:
    """Modules that a module imports anywhere, except for type checkers only; names without ``hf_rerank.``."""
    tree = MODULES[name]
    for_checkers = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in for_checkers:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for entry in node.names:
                inner = f"{node.module}.{entry.name}".removeprefix("hf_rerank.")
                yield inner if inner in MODULES else node.module.removeprefix("hf_rerank.")
        elif isinstance(node, ast.Import):
            yield from (entry.name.removeprefix("hf_rerank.") for entry in node.names)


def layer_of(name: str) -> int | None:
    return next((number for number, layer in enumerate(LAYERS) if f"{name}.".startswith(f"{layer}.")), None)


def checked() -> Iterator[str]:
    return (name for name in MODULES if name.split(".")[0] in CHECKED and name != "data")


def test_every_module_has_a_layer() -> None:
    assert [name for name in checked() if layer_of(name) is None] == []
    assert len(list(checked())) > 50


def test_imports_go_downward() -> None:
    wrong, seen = [], 0
    for name in checked():
        for target in imports_of(name):
            if target == "hf_rerank" or target not in MODULES:
                continue
            seen += 1
            layer, own = layer_of(target), layer_of(name)
            if layer is None or own is None or layer > own:
                wrong.append(f"{name} imports {target}")
    assert wrong == []
    assert seen > 200


def test_list_modules_import_neither_torch_nor_transformers() -> None:
    wrong = [
        f"{name} imports {target}"
        for name in checked()
        for target in imports_of(name)
        if f"{target}.".startswith(tuple(f"{package}." for package in NEVER))
    ]
    assert wrong == []


def test_imports_have_no_cycles() -> None:
    """Over all modules for lists and initial rankers; the root, which only exports, is exempt."""
    names = {name for name in MODULES if name.split(".")[0] in (*CHECKED, "initial_rankers", "personalised_vectors")}
    graph = {name: {target for target in imports_of(name) if target in names and target != name} for name in names}
    while free := [name for name, targets in graph.items() if not targets]:
        for name in free:
            del graph[name]
        for targets in graph.values():
            targets.difference_update(free)
    assert graph == {}
