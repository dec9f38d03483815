"""Content of the guides: the custom re-ranker, the tables, and the results in them."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from readme_pages import ROOT, block, names_in, rows_of, text_of

EXPERIMENTS = (ROOT / "scripts" / "experiments" / "README.md").read_text(encoding="utf-8")


def test_the_custom_reranker_of_the_guide_trains_and_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 40 lines; trained with the principles, saved, loaded and used for ranking, like any other."""
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

    code = block(text_of("models"), "import torch\nfrom huggingface_hub.dataclasses import strict")
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    monkeypatch.setattr(auto, "RERANKERS", dict(auto.RERANKERS))
    monkeypatch.setattr(auto, "_register", lambda config, model: None)  # cannot be undone in the Auto classes
    (tmp_path / "my_reranker.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_reranker")
    config, model = auto.reranker_classes("gated")
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
    trainer.save_model(str(tmp_path / "gated"))
    reranker = Reranker.from_pretrained(tmp_path / "gated")
    assert type(reranker.model) is module.GatedForReranking
    with torch.no_grad():
        expected = trainer.model.eval()(**processor([row])).logits[0].tolist()
    (ranked,) = reranker.rerank([row])
    assert ranked["scores"] == [expected[slot] for slot in ranked["order"]]
    assert sorted(ranked["order"]) == [0, 1, 2]


@pytest.mark.slow
def test_the_guide_for_a_new_model_keeps_every_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the file and its test as a reader copies them."""
    from hf_rerank.comparison.arms import find_models
    from hf_rerank.models import auto

    monkeypatch.setattr(auto, "RERANKERS", dict(auto.RERANKERS))  # its registration with the Auto classes stays
    text = text_of("models")
    starts = (
        "import torch\nfrom huggingface_hub.dataclasses import strict",
        "from hf_rerank.testing import check_reranker",
    )
    (tmp_path / "gated_reranker.py").write_text("\n".join(block(text, start) for start in starts))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("gated_reranker")
    module.test_gated()
    assert find_models(["gated_reranker:GatedForReranking"])[1].can_ignore_order


# ---------------------------------------------------------------------------------------------------------- the tables


def test_options_named_in_guides_exist() -> None:
    from hf_rerank import RerankTrainingArguments
    from hf_rerank.models import RERANKERS

    arguments = {field.name for field in dataclasses.fields(RerankTrainingArguments)}
    fields = {name: {field.name for field in dataclasses.fields(config)} for name, (config, _) in RERANKERS.items()}
    for cells in rows_of(text_of("training"), "| option of `RerankTrainingArguments` |"):
        assert names_in(cells[0]) <= arguments, cells
    for cells in rows_of(text_of("models"), "| option of the config |"):
        assert names_in(cells[0]) <= set().union(*fields.values()), cells
    for cells in rows_of(text_of("models"), "| model | option |"):
        for model in names_in(cells[0]):
            assert names_in(cells[1]) <= fields[model], cells
    for name, default in (("hidden_size", 64), ("num_hidden_layers", 2), ("intermediate_size", 128)):
        assert RERANKERS["pear"][0].__dataclass_fields__[name].default == default


def test_preset_table_matches_the_code() -> None:
    """The table of presets, cell by cell."""
    from hf_rerank.principled import PRESETS

    rows = rows_of(text_of("principled"), "| preset | passes after")
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
        found = re.findall(r"(\w+) ([\d.]+)(?=[,;])", terms)
        assert [(term, float(weight)) for term, weight in found] == [(t.name, t.weight) for t in objective.terms], name
        if objective.terms:
            space, positions, reduction = (part.strip(" `") for part in terms.split(";")[1].split(","))
            positions = None if positions == "all items" else positions
            assert {(t.space, t.positions, t.reduction) for t in objective.terms} == {(space, positions, reduction)}
        every = len(objective.task_loss_on) > 1
        assert every == task_loss.startswith("every pass"), name
        assert (objective.task_loss == "own") == task_loss.endswith("own loss"), name


def test_every_field_of_an_objective_is_documented() -> None:
    from hf_rerank.principled import Pass, Perturbed, PrincipledObjective, Soft, Term

    rows = rows_of(text_of("principled"), "| field | choices |")
    for kind in (Pass, Perturbed, Soft, Term, PrincipledObjective):
        named = set().union(*(names_in(cells[0]) for cells in rows if cells[0].startswith(f"`{kind.__name__}`")))
        assert named - {kind.__name__} == {field.name for field in dataclasses.fields(kind)}


# --------------------------------------------------------------------------------------------------------- the results


def test_result_tables_match_the_committed_files() -> None:
    """The tables are copied from the experiments' files, not typed."""
    for experiment in ("initial_rankers", "vectors", "history_prm", "history_ad"):
        results = ROOT / "scripts" / "experiments" / "results" / experiment / "summary.md"
        for table in results.read_text(encoding="utf-8").strip().split("\n\n"):
            assert table in EXPERIMENTS


def test_fine_tuning_table_matches_the_committed_results() -> None:
    summary = json.loads((ROOT / "scripts/experiments/results/fine_tuning/summary.json").read_text(encoding="utf-8"))
    for other, label in (("from nothing, {} lists", "from nothing"), ("not tuned", "the model as it was")):
        cells = []
        for few in (300, 1000, 2500):
            found = summary["differences"][f"fine-tuned, {few} lists - {other.format(few)}"]["over_seeds"]
            change = found["expected_clicks"]
            cells.append(f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]")
        assert f"| fine-tuned, less {label} | {' | '.join(cells)} |" in EXPERIMENTS


@pytest.mark.parametrize("page", ["README.md", "scripts/experiments/README.md"])
def test_pasted_tables_match_the_committed_files(page: str, tmp_path: Path) -> None:
    """Each table is between a comment that names its file and a closing comment."""
    sys.path.insert(0, str(ROOT / "scripts" / "experiments"))
    from questions import PASTED, paste_tables

    text = (ROOT / page).read_text(encoding="utf-8")
    assert PASTED.search(text)
    copy = tmp_path / "page.md"
    copy.write_text(text, encoding="utf-8")
    paste_tables(copy)
    assert copy.read_text(encoding="utf-8") == text


def test_weights_table_matches_the_committed_results() -> None:
    summary = (ROOT / "scripts/experiments/results/weights/summary.md").read_text(encoding="utf-8")
    for length, preset, clicks, *_ in rows_of(EXPERIMENTS, "| n | preset | expected clicks"):
        assert any(
            row.startswith(f"| {length} | {preset.strip('`')} | 1 |") and clicks in row for row in summary.splitlines()
        ), (length, preset)


def test_latencies_match_the_committed_results() -> None:
    """Milliseconds of one list, default PRM: in the benchmarks and in the guides on serving."""
    summary = json.loads((ROOT / "scripts/benchmarks/results/serving.json").read_text(encoding="utf-8"))
    measured = {row["runtime"]: row for row in summary["rows"] if row["model"] == "prm"}
    table = rows_of((ROOT / "scripts/benchmarks/README.md").read_text(encoding="utf-8"), "| runtime | fastest tenth")
    shown = {name: cells for name, *cells in table}
    for name, runtime in (("ONNX Runtime", "onnxruntime"), ("PyTorch", "torch")):
        exact = [measured[runtime][key] for key in ("p10_ms", "median_ms", "p99_ms")]
        digits = [len(cell.split(".")[1]) for cell in shown[name]]
        assert shown[name] == [f"{value:.{places}f}" for value, places in zip(exact, digits, strict=True)]
    for guide in (ROOT / "README.md", ROOT / "hf_rerank/inference/README.md"):
        text = " ".join(guide.read_text(encoding="utf-8").split())
        medians = f"{shown['ONNX Runtime'][1]} ms with ONNX Runtime and {shown['PyTorch'][1]} ms with PyTorch"
        assert medians in text
