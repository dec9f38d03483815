"""The package: light to import, layered, typed, without pickle; the README's tour runs from its wheel."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import hf_rerank

ROOT = Path(hf_rerank.__file__).parent
HEAVY = ("torch", "transformers", "datasets", "evaluate", "accelerate", "huggingface_hub")


def run(code: str, *arguments: str, cwd: Path | None = None, timeout: int = 120, **environment: str) -> str:
    """Runs code in another Python process and returns its output."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout


# ------------------------------------------------------------------------------------------------------------- imports


WITHOUT_TORCH = "errors validation metrics processing inference inference.onnx_scorer cli"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (("hf_rerank", *(f"hf_rerank.{name}" for name in WITHOUT_TORCH.split())), HEAVY),
        (("hf_rerank.losses", "hf_rerank.principled"), ("transformers", "datasets", "evaluate")),
    ],
    ids=["without torch", "without transformers"],
)
def test_importing_is_light(modules: tuple[str, ...], absent: tuple[str, ...]) -> None:
    """Imports the modules in turn in one process: none loads an absent module, and the first that does is named."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name); print(name, *sys.modules)"
    for line in run(code, *modules).splitlines():
        module, *loaded = line.split()
        assert module in loaded
        assert sorted(set(absent) & set(loaded)) == [], module


def test_every_public_name_can_be_imported() -> None:
    assert hf_rerank.__all__ == sorted(set(hf_rerank.__all__))
    for name in hf_rerank.__all__:
        assert getattr(hf_rerank, name).__name__ == name
    assert set(hf_rerank.__all__) <= set(dir(hf_rerank))
    for name in ("losses", "metrics", "principled"):
        assert getattr(hf_rerank, name).__name__ == f"hf_rerank.{name}"
    with pytest.raises(AttributeError, match="has no attribute 'Rerankr'"):
        _ = hf_rerank.Rerankr


def test_documented_functions_exist_in_their_modules() -> None:
    functions = {
        "hf_rerank.principled": "positions_from_scores order_from_positions perturb consistency_loss obedience "
        "PrincipledObjective",
        "hf_rerank.losses": "binary_log_loss softmax_loss attention_rank_loss listnet_loss lambda_loss",
        "hf_rerank.metrics": "auc grouped_auc ndcg average_precision precision recall reciprocal_rank clicks",
    }
    for module, names in functions.items():
        for name in names.split():
            assert callable(getattr(importlib.import_module(module), name)), f"{module}.{name}"


@cache
def sources() -> tuple[tuple[str, ast.Module], ...]:
    """Each file of the package: its dotted name below ``hf_rerank``, its syntax tree."""
    paths = sorted(ROOT.rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return tuple(zip(names, (ast.parse(path.read_text(encoding="utf-8")) for path in paths), strict=True))


def imported_names(tree: ast.Module) -> Iterator[str]:
    """The dotted names that a file imports, also inside functions and by ``import_module`` of a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            yield from (f"{node.module}.{entry.name}" for entry in node.names)
        elif isinstance(node, ast.Import):
            yield from (entry.name for entry in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(entry.value) for entry in node.args[:1] if isinstance(entry, ast.Constant))


def _that_runs(tree: ast.Module) -> ast.Module:
    """The module without its blocks for type checkers."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    return ast.Module(body, tree.type_ignores)


# The layers of the package, the lowest first. A file imports only from its own layer and from lower ones, anywhere in
# the file. ``hf_rerank/__init__.py``, which only exports, is left out.
CORE = (
    ("errors", "version"),
    ("storage",),
    ("schema",),
    ("validation", "fast_rows"),
    ("list_tensors", "losses", "ranking_losses"),
    ("metrics",),
    ("principled",),
    ("processing",),
    ("models",),
    ("evaluation",),
    ("hub",),
    ("inference",),
    ("training",),
    ("testing",),
)
# The lists half may import only the layers named in INTERFACE; the core never imports the lists half.
LISTS = (("data",),)
# Metrics are functions of arrays; the lists half uses two of them to check users' data.
INTERFACE = ("errors", "version", "storage", "schema", "validation", "fast_rows", "metrics")
BOTH = (("initial_rankers",), ("personalised_vectors",), ("comparison",), ("commands",), ("cli",))


def may_import(part: str, other: str) -> bool:
    """Whether a file of the package ``part`` may import one of ``other``; both are names below ``hf_rerank``."""
    if part == other:
        return True
    layers = {name: number for number, names in enumerate((*CORE, *LISTS, *BOTH)) for name in names}
    if (part,) in LISTS:
        return other in INTERFACE
    if (other,) in LISTS:
        return (part,) in BOTH
    return layers[other] <= layers[part]


def find_imported_files() -> dict[str, set[str]]:
    """Each file of the package -> the files of the package that it imports, anywhere in it."""
    trees = {name: tree for name, tree in sources() if name != "__init__"}
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        targets = set()
        for target in imported_names(_that_runs(tree)):
            if target.split(".")[0] != "hf_rerank":
                continue
            inside = target.removeprefix("hf_rerank").removeprefix(".")
            # ``from package.file import name``: the file; ``from package import file``: that file.
            while inside and inside not in trees:
                inside = inside.rpartition(".")[0]
            targets.add(inside or "__init__")
        found[name] = targets - {name}
    return found


@pytest.mark.slow
def test_imports_go_only_downward() -> None:
    files = find_imported_files()
    parts = {name.split(".")[0] for name in files}
    assert parts == {name for names in (*CORE, *LISTS, *BOTH) for name in names}
    wrong, checked = [], 0
    for name, targets in files.items():
        part = name.split(".")[0]
        for target in targets:
            checked += 1
            if target == "__init__" or not may_import(part, target.split(".")[0]):
                wrong.append(f"{name} imports {target}")
    assert wrong == []
    assert checked > 200


@pytest.mark.slow
def test_there_are_no_import_cycles() -> None:
    """Including imports inside functions."""
    left = find_imported_files()
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []  # each of these imports another of these


@pytest.mark.slow
def test_pickle_is_not_used() -> None:
    """Neither a pickle module nor an option that would enable one, anywhere in the package."""
    for name, tree in sources():
        modules = {target.split(".")[0] for target in imported_names(tree)}
        assert modules.isdisjoint({"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}), name
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword):
                value = node.value.value if isinstance(node.value, ast.Constant) else None
                assert (node.arg, value) not in {("weights_only", False), ("allow_pickle", True)}, name
                assert (node.arg, value) != ("trust_remote_code", True), name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert ast.unparse(node.func) != "torch.load", name


@pytest.mark.slow
def test_no_broad_except() -> None:
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                assert caught not in ("", "Exception", "BaseException"), f"{name}, line {node.lineno}"


# ----------------------------------------------------------------------------------------------------------- the wheel

TOUR = """
from hf_rerank import ListProcessor, PRMConfig, PRMForReranking, Reranker, RerankTrainer, RerankTrainingArguments
from hf_rerank import load_lists

lists = load_lists("simulated_prm", n_lists=400)
processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
model = PRMForReranking(PRMConfig.for_schema(processor.schema))
trainer = RerankTrainer(model=model, processing_class=processor, train_dataset=lists["train"],
                        eval_dataset=lists["validation"],
                        args=RerankTrainingArguments("runs/prm", num_train_epochs=1, use_cpu=True,
                                                     per_device_train_batch_size=64, disable_tqdm=True))
trainer.train(); metrics = trainer.evaluate(lists["test"]); trainer.save_model("runs/prm")

reranker = Reranker.from_pretrained("runs/prm")
row = lists["test"][0]
request = {name: value for name, value in row.items() if name != lists.schema.label}
(result,) = reranker.rerank([request], top_k=10)

import json, hf_rerank
first_item = lists.schema.items[0].name
print(json.dumps({
    "from": hf_rerank.__file__,
    "order": result["order"],
    "items": [result["ids"], [row[first_item][slot] for slot in result["order"]]],
    "length": len(row[first_item]),
    "lists": [metrics["eval_lists"], len(lists["test"])],
    "ndcg": metrics["eval_ndcg@10"],
    "steps": trainer.state.global_step,
    "train": len(lists["train"]),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    checkout = ROOT.parent
    if not (checkout / "pyproject.toml").is_file():
        pytest.skip("not run from a checkout: there is no pyproject.toml to build from")
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    shutil.copytree(ROOT, copy / "hf_rerank", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(checkout / name, copy / name)
    command = [
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
        str(copy),
    ]
    ran = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_contents(wheel: Path) -> None:
    assert wheel.name == f"hf_rerank-{hf_rerank.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("dist-info/METADATA"))).decode()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    in_checkout = {f"hf_rerank/{path.relative_to(ROOT).as_posix()}" for path in ROOT.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == in_checkout
    assert {"hf_rerank/py.typed", "hf_rerank/hub/card_template.md"} <= names
    assert any(name.endswith("LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hf_rerank"}
    assert f"Version: {hf_rerank.__version__}" in metadata
    assert "Requires-Dist: transformers" in metadata
    assert "hf-rerank = hf_rerank.cli:main" in entry_points


@pytest.mark.slow
def test_the_readme_tour_runs_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, run outside the checkout, without network."""
    installed = tmp_path / "installed"
    command = ["pip", "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)]
    subprocess.run([sys.executable, "-m", *command], capture_output=True, timeout=180, check=True)
    environment = {
        "PYTHONPATH": str(installed),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    output = run(TOUR, cwd=tmp_path, timeout=300, **environment)
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert Path(found["from"]) == installed / "hf_rerank" / "__init__.py"
    assert len(found["order"]) == len(set(found["order"])) == min(10, found["length"])
    assert found["items"][0] == found["items"][1]
    assert found["lists"][0] == found["lists"][1] > 0
    assert 0 < found["ndcg"] <= 1
    assert found["steps"] == -(-found["train"] // 64)
    saved = {path.name for path in (tmp_path / "runs" / "prm").iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "results.json", "training_args.json"} <= saved
