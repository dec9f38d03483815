"""The committed model cards: what the script writes from the committed summary, and true to it."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "model_cards"
sys.path.insert(0, str(ROOT / "scripts"))

from model_cards import write_cards  # noqa: E402

RESULTS = {"prm_public_simulated": "six_rerankers", "ad_simulated": "six_rerankers_ad"}
SUMMARIES = {
    dataset: json.loads((ROOT / "scripts/experiments/results" / folder / "summary.json").read_text())
    for dataset, folder in RESULTS.items()
}
CARDS = [(dataset, model) for dataset, summary in SUMMARIES.items() for model in summary["changes"]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_script_writes_what_is_committed(tmp_path: Path) -> None:
    write_cards(tmp_path)
    made, committed = contents(tmp_path), contents(COMMITTED)
    assert made.keys() == committed.keys()
    for name, content in made.items():
        assert content == committed[name], f"{name}: run python scripts/model_cards.py --output-dir model_cards"
    # Of each data set seven models, each with card and results, and a figure; and the index.
    assert len(made) == 2 * (7 * 2 + 1) + 1
    assert sum(len(content) for content in committed.values()) < 600_000


def test_the_index_leads_to_every_card() -> None:
    index = (COMMITTED / "README.md").read_text()
    assert set(re.findall(r"\]\((.*?)\)", index)) == {f"{dataset}-{model}/README.md" for dataset, model in CARDS}
    rows = {path: row for row in index.splitlines() for path in re.findall(r"\]\((.*?)\)", row)}
    for dataset, model in CARDS:
        found = [cell.strip() for cell in rows[f"{dataset}-{model}/README.md"].strip("|").split("|")]
        without, principled = (SUMMARIES[dataset]["rows"][f"{model} {preset}"] for preset in ("none", "scaled"))
        for place, row, measure in ((1, without, "ndcg@10"), (4, principled, "expected_clicks")):
            assert float(found[place]) == pytest.approx(row[measure]["mean"], abs=5e-5)
        assert float(found[9]) == pytest.approx(principled["p2_item_obedience"]["mean"], abs=5e-5)


@pytest.mark.parametrize(("dataset", "model"), CARDS)
def test_a_card_is_true_to_the_summary(dataset: str, model: str) -> None:
    summary, folder = SUMMARIES[dataset], COMMITTED / f"{dataset}-{model}"
    card = ModelCard.load(folder / "README.md")
    measured = {(entry.metric_args["principled"], entry.metric_type): entry for entry in card.data.eval_results}
    for preset in ("none", "scaled"):
        row = summary["rows"][f"{model} {preset}"]
        for name in ("auc", "gauc", "ndcg@10", "map@10", "precision@5", "expected_clicks", "expected_clicks_share"):
            entry = measured[preset, name]
            assert entry.metric_value == row[name]["mean"]
            assert (entry.metric_args["seeds"], entry.metric_args["std"]) == (5, row[name]["std"])
            assert f"{row[name]['mean']:.4f} ± {row[name]['std']:.4f}" in card.text
    change = summary["changes"][model]["differences"]["p2_item_obedience"]
    assert f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]" in card.text
    assert f"{summary['parameters'][model]:,} parameters" in card.text
    assert f"Learning rate {summary['learning_rates'][model]['chosen']:g}," in card.text
    assert "simulated" in card.text
    (figure,) = re.findall(r"!\[.*\]\((.*)\)", card.text)
    assert (folder / figure).is_file()
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    compile(code, "card", "exec")
    assert not re.search(r"(^|[\s\"'`(])/\w|hf_[A-Za-z0-9]{16,}", html.unescape(card.text))


@pytest.mark.parametrize(("dataset", "model"), CARDS)
def test_results_are_those_of_the_model(dataset: str, model: str) -> None:
    summary = SUMMARIES[dataset]
    results = json.loads((COMMITTED / f"{dataset}-{model}" / "results.json").read_text())
    assert results["rows"] == {name: summary["rows"][name] for name in (f"{model} none", f"{model} scaled")}
    assert results["changes"] == {model: summary["changes"][model]}
    assert results["orders"] == summary["orders"]
