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
SUMMARY = json.loads((ROOT / "scripts/experiments/results/six_rerankers/summary.json").read_text())
MODELS = list(SUMMARY["changes"])
sys.path.insert(0, str(ROOT / "scripts"))

from model_cards import write_cards  # noqa: E402


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_script_writes_what_is_committed(tmp_path: Path) -> None:
    write_cards(tmp_path)
    made, committed = contents(tmp_path), contents(COMMITTED)
    assert made.keys() == committed.keys()
    for name, content in made.items():
        assert content == committed[name], f"{name}: run python scripts/model_cards.py --output-dir model_cards"
    assert len(made) == 2 * len(MODELS) + 1 == 15
    assert sum(len(content) for content in committed.values()) < 300_000


@pytest.mark.parametrize("model", MODELS)
def test_a_card_is_true_to_the_summary(model: str) -> None:
    folder = COMMITTED / f"prm_public_simulated-{model}"
    card = ModelCard.load(folder / "README.md")
    measured = {(entry.metric_args["principled"], entry.metric_type): entry for entry in card.data.eval_results}
    for preset in ("none", "scaled"):
        row = SUMMARY["rows"][f"{model} {preset}"]
        for name in ("auc", "gauc", "ndcg@10", "map@10", "precision@5", "expected_clicks", "expected_clicks_share"):
            entry = measured[preset, name]
            assert entry.metric_value == row[name]["mean"]
            assert (entry.metric_args["seeds"], entry.metric_args["std"]) == (5, row[name]["std"])
            assert f"{row[name]['mean']:.4f} ± {row[name]['std']:.4f}" in card.text
    change = SUMMARY["changes"][model]["differences"]["p2_item_obedience"]
    assert f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]" in card.text
    assert f"{SUMMARY['parameters'][model]:,} parameters" in card.text
    assert f"Learning rate {SUMMARY['learning_rates'][model]['chosen']:g}," in card.text
    assert "simulated" in card.text
    (figure,) = re.findall(r"!\[.*\]\((.*)\)", card.text)
    assert (folder / figure).is_file()
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    compile(code, "card", "exec")
    assert not re.search(r"(^|[\s\"'`(])/\w|hf_[A-Za-z0-9]{16,}", html.unescape(card.text))


@pytest.mark.parametrize("model", MODELS)
def test_results_are_those_of_the_model(model: str) -> None:
    results = json.loads((COMMITTED / f"prm_public_simulated-{model}" / "results.json").read_text())
    assert results["rows"] == {name: SUMMARY["rows"][name] for name in (f"{model} none", f"{model} scaled")}
    assert results["changes"] == {model: SUMMARY["changes"][model]}
    assert results["orders"] == SUMMARY["orders"]
