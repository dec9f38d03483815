"""What the README files show runs, and what they name is there. (The tour runs in tests/hub/test_tour.py.)"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("processing", "models", "principled", "training", "inference", "evaluation", "hub", "metrics")
# Blocks of the README that have a test of their own, or that need a Hub.
ELSEWHERE = {
    "from hf_rerank import ListProcessor, PRMConfig": "tests/hub/test_tour.py",
    "from hf_rerank import Categorical, Dense": "test_own_lists",
    "import torch\nfrom huggingface_hub.dataclasses import strict": "test_a_re_ranker_of_ones_own",
    "trainer.push_to_hub(": "tests/hub/test_push.py",
}


def text_of(package: str) -> str:
    return (ROOT / "hf_rerank" / package / "README.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


def block(first_line: str) -> str:
    """The Python block of the README that starts with this line."""
    found = [code for code in blocks(README) if code.startswith(first_line)]
    assert len(found) == 1
    return found[0]


# ---------------------------------------------------------------------------------------------------------- the blocks


@pytest.mark.parametrize("package", PACKAGES)
def test_the_example_of_a_package(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs in an empty folder, and prints what the comments behind ``print`` say."""
    monkeypatch.chdir(tmp_path)
    _forget_re_rankers(monkeypatch)
    code = "\n".join(blocks(text_of(package)))
    capsys.readouterr()
    exec(compile(code, "README.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    # The Trainer prints its log too, as dicts.
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{'")]
    assert printed == re.findall(r"^print\(.*\)  # (.*)$", code, re.M)


def _forget_re_rankers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that an example registers are known in this test only."""
    from hf_rerank.models import auto

    monkeypatch.setattr(auto, "RERANKERS", dict(auto.RERANKERS))
    monkeypatch.setattr(auto, "_make_known", lambda config, model: None)  # the Auto classes forget nothing


@pytest.mark.slow
def test_the_recipe_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and its test, as the reader copies them: the model keeps every contract."""
    from hf_rerank.comparison.arms import find_models
    from hf_rerank.models import auto

    monkeypatch.setattr(auto, "RERANKERS", dict(auto.RERANKERS))  # the Auto classes, which are checked, keep it
    (tmp_path / "my_reranker.py").write_text("\n".join(blocks(text_of("models"))[1:]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_reranker")
    module.test_gated()
    assert find_models(["my_reranker:GatedForReranking"])[1].can_ignore_order


def test_the_blocks_of_the_readme_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with what the reader has by then: lists, raw files, a model, its folder, an exported graph."""
    monkeypatch.chdir(tmp_path)
    known = _after_the_tour()
    scope: dict[str, Any] = {}
    for code in blocks(README):
        if any(code.startswith(first) for first in ELSEWHERE):
            continue
        scope |= known
        exec(code, scope)
        if "rerank([request], top_k=10)" in code and "clicks" in scope:
            assert list(scope["ranked"]) == ["list_id", "order", "scores", "ids"]
            assert [len(part) for part in scope["scores"]] == [len(part) for part in scope["clicks"]] == [3]
            assert all(0 < click < 1 for click in scope["clicks"][0])
        if "eval_recent_ndcg@10" in code:
            logged = {name for entry in scope["trainer"].state.log_history for name in entry}
            named = re.findall(r"eval_\w+(?:@10)?", code.split("# logs")[1])
            assert len(named) == 3
            assert set(named) <= logged
        if "plain.evaluate()" in code:
            assert scope["plain"].state.log_history[-1].keys() >= {"eval_loss", "eval_ndcg@10"}
    assert scope["freeze"]
    assert float(scope["trainer"].term_factors["convergence"]) == 0.5


def _after_the_tour() -> dict[str, Any]:
    import datasets
    import pandas as pd
    import torch

    import hf_rerank
    from hf_rerank import Categorical, Dense, ListSchema, PRMConfig, PRMForReranking, Reranker
    from hf_rerank.data.simulation.prm_public import simulate_prm
    from hf_rerank.inference.export import export_onnx

    rows = [
        {"item_id": [1, 2, 3], "category": ["a", "b", "a"], "price": [9.5, 1.0, float(number)], "click": clicks}
        for number in range(8)
        for clicks in ([0, 1, 0], [0, 0, 1])
    ]
    lists = datasets.DatasetDict(
        {split: datasets.Dataset.from_list(rows) for split in ("train", "validation", "test")}
    )
    schema = ListSchema(
        items=[Categorical("item_id"), Categorical("category"), Dense("price")], list_id="request", max_list_length=5
    )
    for split in lists:
        lists[split] = lists[split].add_column("request", list(range(len(rows))))
    lists.schema = schema  # type: ignore[attr-defined]
    processor = hf_rerank.ListProcessor.from_lists(lists["train"], schema=schema)
    torch.manual_seed(0)
    model = PRMForReranking(PRMConfig.for_schema(processor.schema, hidden_size=8, intermediate_size=8))
    reranker = Reranker(processor, model)
    reranker.save_pretrained("runs/prm")
    export_onnx(reranker, "exported")
    request = {"item_id": [3, 1, 2], "category": ["a", "a", "new"], "price": [2.0, None, 1.0]}
    frame = pd.DataFrame({"request": [7, 7, 8], "item_id": [1, 2, 1], "category": ["a", "b", "a"], "price": [1.0] * 3})
    simulate_prm(Path("raw"), 20, seed=0)
    names = ("Reranker", "RerankTrainer", "RerankTrainingArguments", "load_lists")
    return {
        **{name: getattr(hf_rerank, name) for name in names},
        "lists": lists,
        "processor": processor,
        "model": model,
        "reranker": reranker,
        "request": request,
        "frame": frame,
    }


def test_the_hand_written_scorer() -> None:
    """0.2, 0.9, 0.5 less 0.3 per position: 0.2, 0.6, -0.1, so slots 1, 0, 2. Given that: -0.1, 0.9, -0.1, the same."""
    code = block("import torch\nfrom hf_rerank.principled")
    scope: dict[str, Any] = {}
    exec(code.rsplit("\n", 2)[0], scope)
    assert eval(code.strip().rsplit("\n", 1)[1], scope) == 1.0


def test_own_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    row = {
        "item_id": [1, 2],
        "shop": ["a", "b"],
        "brand": ["x", "y"],
        "price": [9.5, None],
        "text": [[0.0] * 384, [1.0] * 384],
        "gender": "f",
        "click": [0, 1],
        "rank": [1, 0],
        "score": [-0.5, 2.5],
    }
    rows = [
        {**row, "click": [number % 2, 1 - number % 2], "request": f"r{number}", "user_id": number, "day": number}
        for number in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), "my_lists.parquet")
    scope: dict[str, Any] = {}
    exec(block("from hf_rerank import Categorical"), scope)
    assert sum(len(split) for split in scope["lists"].values()) == 40
    assert scope["lists"].schema.id_column == "item_id"


def test_a_re_ranker_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 40 lines; trained with the principles, saved, loaded and ranked with, as every other."""
    import datasets
    import torch

    from hf_rerank import (
        Categorical,
        Dense,
        ListProcessor,
        ListSchema,
        Reranker,
        RerankTrainer,
        RerankTrainingArguments,
    )
    from hf_rerank.models import auto

    code = block("import torch\nfrom huggingface_hub.dataclasses import strict")
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    _forget_re_rankers(monkeypatch)
    (tmp_path / "mean_reranker.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("mean_reranker")
    config, model = auto.reranker_classes("mean")
    row = {"item_id": [1, 2, 3], "price": [1.0, 2.0, 3.0], "click": [0, 1, 0]}
    lists = datasets.Dataset.from_list([row] * 8)
    schema = ListSchema(items=[Categorical("item_id"), Dense("price")], label="click", max_list_length=3)
    processor = ListProcessor.from_lists(lists, schema=schema)
    arguments = RerankTrainingArguments(
        str(tmp_path / "run"), max_steps=3, eval_strategy="no", save_strategy="no", load_best_model_at_end=False
    )
    torch.manual_seed(0)
    trainer = RerankTrainer(model(config.for_schema(processor.schema)), arguments, lists, processing_class=processor)
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.train()
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    trainer.save_model(str(tmp_path / "mean"))
    reranker = Reranker.from_pretrained(tmp_path / "mean")
    assert type(reranker.model) is module.MeanForReranking
    with torch.no_grad():
        expected = trainer.model.eval()(**processor([row])).logits[0].tolist()
    (ranked,) = reranker.rerank([row])
    assert ranked["scores"] == [expected[slot] for slot in ranked["order"]]
    assert sorted(ranked["order"]) == [0, 1, 2]


# ---------------------------------------------------------------------------------------------------------- the tables


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the rows of the table whose first line starts with ``heading``."""
    lines = text[text.index(heading) :].splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:end]]


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_options_named_there_exist() -> None:
    from hf_rerank import RerankTrainingArguments
    from hf_rerank.models import RERANKERS

    arguments = {field.name for field in dataclasses.fields(RerankTrainingArguments)}
    fields = {name: {field.name for field in dataclasses.fields(config)} for name, (config, _) in RERANKERS.items()}
    for cells in rows_of(README, "| option of `RerankTrainingArguments` |"):
        assert names_in(cells[0]) <= arguments, cells
    for cells in rows_of(README, "| option of the config |"):
        assert names_in(cells[0]) <= set().union(*fields.values()), cells
    for cells in rows_of(text_of("models"), "| model | option |"):
        for model in names_in(cells[0]):
            assert names_in(cells[1]) <= fields[model], cells
    for name, default in (("hidden_size", 64), ("num_hidden_layers", 2), ("intermediate_size", 128)):
        assert RERANKERS["pear"][0].__dataclass_fields__[name].default == default


def test_presets_are_those_of_the_code() -> None:
    """The table of presets, cell by cell."""
    from hf_rerank.principled import PRESETS

    rows = rows_of(README, "| preset | passes after")
    assert [next(iter(names_in(cells[0]))) for cells in rows] == list(PRESETS)
    for name, passes, terms, task_loss in rows:
        objective = PRESETS[re.findall(r"`(\w+)`", name)[0]]
        later = objective.passes[1:]
        assert len([part for part in passes.split(";") if part]) == len(later), name
        for described, entry in zip(passes.split(";"), later, strict=False):
            order = getattr(entry.order, "of", entry.order)
            assert order in described, name
            assert (entry.order != order) == ("perturbed" in described), name
            assert (entry.dropout == "fresh") == ("fresh" in described), name
        found = re.findall(r"(\w+) (\d+)(?=[,;])", terms)
        assert [(term, int(weight)) for term, weight in found] == [(t.name, t.weight) for t in objective.terms], name
        if objective.terms:
            space, positions, reduction = (part.strip(" `") for part in terms.split(";")[1].split(","))
            positions = None if positions == "all items" else positions
            assert {(t.space, t.positions, t.reduction) for t in objective.terms} == {(space, positions, reduction)}
        every = len(objective.task_loss_on) > 1
        assert every == task_loss.startswith("every pass"), name
        assert (objective.task_loss == "own") == task_loss.endswith("own loss"), name


def test_every_field_of_an_objective_is_described() -> None:
    from hf_rerank.principled import Pass, Perturbed, PrincipledObjective, Soft, Term

    rows = rows_of(text_of("principled"), "| field | choices |")
    for kind in (Pass, Perturbed, Soft, Term, PrincipledObjective):
        named = set().union(*(names_in(cells[0]) for cells in rows if cells[0].startswith(f"`{kind.__name__}`")))
        assert named - {kind.__name__} == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_described(package: str) -> None:
    folder = ROOT / "hf_rerank" / package
    named = {
        name
        for cells in rows_of(text_of(package), "| file | what it does |")
        for name in re.findall(r"`([\w./]+)`", cells[0])
    }
    there = {path.name for path in folder.iterdir() if path.suffix in (".py", ".md")} - {"__init__.py", "README.md"}
    there |= {f"{path.name}/" for path in folder.iterdir() if (path / "__init__.py").is_file()}
    assert named == there
    assert 30 <= len(text_of(package).splitlines()) <= 130


@pytest.mark.parametrize("file", ["README.md", *(f"hf_rerank/{package}/README.md" for package in PACKAGES)])
def test_files_named_there_exist(file: str) -> None:
    text, folder = (ROOT / file).read_text(encoding="utf-8"), (ROOT / file).parent
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ ([\w -]+)$", text, re.M)}
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert path[1:] in headings if path.startswith("#") else (folder / path).is_file(), path
    for path in re.findall(r"`((?:scripts|tests|hf_rerank|model_cards)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:data|training|evaluation|models)/[\w./]+)`", text):
        assert (ROOT / "hf_rerank" / path).exists(), path


def test_names_of_the_library_exist() -> None:
    """Dotted names, in the text and in its code, of the README and of the packages."""
    for text in (README, *map(text_of, PACKAGES)):
        for name in set(re.findall(r"\bhf_rerank(?:\.\w+)+", text)):
            module, *parts = name.split(".")
            found: Any = importlib.import_module(module)
            for part in parts:
                module = f"{module}.{part}"
                is_module = hasattr(found, "__path__") and importlib.util.find_spec(module) is not None
                found = importlib.import_module(module) if is_module else getattr(found, part)


# --------------------------------------------------------------------------------------------------------- the results


def test_results_are_those_that_were_measured() -> None:
    """The tables are the experiments' own files, not typed."""
    for experiment in ("principles", "six_rerankers", "initial_rankers", "vectors", "history_prm", "history_ad"):
        results = ROOT / "scripts" / "experiments" / "results" / experiment / "summary.md"
        for table in results.read_text(encoding="utf-8").strip().split("\n\n"):
            assert table in README


def test_the_table_of_fine_tuning_is_that_which_was_measured() -> None:
    summary = json.loads((ROOT / "scripts/experiments/results/fine_tuning/summary.json").read_text(encoding="utf-8"))
    for other, label in (("from nothing, {} lists", "from nothing"), ("not tuned", "the model as it was")):
        cells = []
        for few in (300, 1000, 2500):
            found = summary["differences"][f"fine-tuned, {few} lists - {other.format(few)}"]["over_seeds"]
            change = found["expected_clicks"]
            cells.append(f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]")
        assert f"| fine-tuned, less {label} | {' | '.join(cells)} |" in README
