"""What the README shows runs as it stands, and what it names is there. (Its tour runs in tests/hub/test_tour.py.)"""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(first_line: str) -> str:
    """The Python block of the README that starts with this line."""
    found = [code for code in re.findall(r"```python\n(.*?)```", README, re.S) if code.startswith(first_line)]
    assert len(found) == 1
    return found[0]


def test_the_hand_written_scorer() -> None:
    """0.2, 0.9, 0.5 less 0.3 a place: 0.2, 0.6, -0.1, so slots 1, 0, 2. Shown that: -0.1, 0.9, -0.1, the same."""
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
        "price": [9.5, None],
        "text": [[0.0] * 384, [1.0] * 384],
        "gender": "f",
        "click": [0, 1],
        "rank": [1, 0],
    }
    rows = [{**row, "request": f"r{number}", "user_id": number, "day": number} for number in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), "my_lists.parquet")
    scope: dict[str, Any] = {}
    exec(block("from hf_rerank import Categorical"), scope)
    assert sum(len(split) for split in scope["lists"].values()) == 40


def test_a_re_ranker_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under 40 lines; trained with the principles, saved, loaded and ranked with, as every other."""
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
    assert len([line for line in code.splitlines() if line.strip()]) < 40
    monkeypatch.setattr(auto, "RERANKERS", dict(auto.RERANKERS))
    monkeypatch.setattr(auto, "_make_known", lambda config, model: None)  # the Auto classes forget nothing
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


def test_options_named_there_exist() -> None:
    from hf_rerank import RerankTrainingArguments
    from hf_rerank.models import RERANKERS

    section = README[README.index("## Options") : README.index("## Principled learning")]
    arguments = {field.name for field in dataclasses.fields(RerankTrainingArguments)}
    configs = {field.name for config, _ in RERANKERS.values() for field in dataclasses.fields(config)}
    first, second = section.split("| model | option |")
    for table, headings, column, known in ((first, 1, 0, arguments), (second, 0, 1, configs)):
        for row in re.findall(r"^\| (.*) \|$", table, re.M)[headings:]:
            assert set(re.findall(r"`(\w+)`", row.split(" | ")[column])) <= known, row


def test_presets_are_those_of_the_code() -> None:
    """The table of presets, cell by cell; and every option of the objective stands in one of the two tables."""
    from hf_rerank.principled.objective import PRESETS, PrincipledObjective

    section = README[README.index("## Principled learning") : README.index("**Measures**")]
    presets, others = section.split("| option | default |")
    rows = re.findall(r"^\| (`.*) \|$", presets, re.M)
    assert len(rows) == 7
    for row in rows:
        options, *cells, _ = row.split(" | ")
        for preset, cell in zip(("scaled", "paper", "reference"), cells, strict=True):
            expected = [PRESETS[preset][name] for name in re.findall(r"`(\w+)`", options)]
            found = [value.strip("` ") for value in cell.split(",")]
            assert found == [f"{value:g}" if isinstance(value, float) else value for value in expected], row
    named = set(
        re.findall(r"`(\w+)`", " ".join(row.split(" | ")[0] for row in re.findall(r"^\| (.*)", section, re.M)))
    )
    fields = {field.name for field in dataclasses.fields(PrincipledObjective)}
    assert fields - {"preset", "task_loss", "seed"} == named
    assert "straight_through" in others


def test_files_named_there_exist() -> None:
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ ([\w -]+)$", README, re.M)}
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert path[1:] in headings if path.startswith("#") else (ROOT / path).is_file(), path
    for path in re.findall(r"`((?:scripts|tests|hf_rerank|model_cards)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path


def test_results_are_those_that_were_measured() -> None:
    """The tables are the experiments' own files, not typed."""
    for experiment in ("principles", "six_rerankers", "initial_rankers", "vectors", "history_prm", "history_ad"):
        results = ROOT / "scripts" / "experiments" / "results" / experiment / "summary.md"
        for table in results.read_text(encoding="utf-8").strip().split("\n\n"):
            assert table in README


def test_the_table_of_fine_tuning_is_that_which_was_measured() -> None:
    import json

    summary = json.loads((ROOT / "scripts/experiments/results/fine_tuning/summary.json").read_text(encoding="utf-8"))
    for other, label in (("from nothing, {} lists", "from nothing"), ("not tuned", "the model as it was")):
        cells = []
        for few in (300, 1000, 2500):
            found = summary["differences"][f"fine-tuned, {few} lists - {other.format(few)}"]["over_seeds"]
            change = found["expected_clicks"]
            cells.append(f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]")
        assert f"| fine-tuned, less {label} | {' | '.join(cells)} |" in README
