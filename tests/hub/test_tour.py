"""The quickstart as it is printed, and the push below it, against a local Hub; only with less data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hub_server import Hub

ROOT = Path(__file__).parents[2]
# Fewer lists and one epoch; everything else is the README's.
SMALLER = {
    "n_lists=2000": "n_lists=400",
    'Arguments("runs/prm")': 'Arguments("runs/prm", num_train_epochs=1)',
}
SHOWN = """
import json
ranked = Reranker.from_pretrained("runs/prm").rerank([lists["test"][0]], top_k=10)
print(json.dumps([ranked[0]["order"], ranked[0]["scores"], len(lists["test"][0]["item_id"])]))
"""


@pytest.mark.slow
def test_quickstart_runs_as_printed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tour = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S)[:2])
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    push = 'trainer.push_to_hub("someone/prm")'
    assert f"`{push}`" in text
    tour += push + "\n"
    for printed, smaller in SMALLER.items():
        assert tour.count(printed) == 1
        tour = tour.replace(printed, smaller)
    monkeypatch.chdir(tmp_path)
    exec(tour + SHOWN, {"__name__": "tour"})
    (commit,) = hub.repositories["someone/prm"]
    assert {"config.json", "model.safetensors", "README.md"} <= commit["files"].keys()
    order, scores, length = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(set(order)) == len(order) == min(10, length)
    assert scores == sorted(scores, reverse=True)
