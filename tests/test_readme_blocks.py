"""The code blocks of the guides run, page by page, in order. For the Hub's, see tests/hub/test_hub_guide.py."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import pytest
from guide_blocks import copy_of, run_page
from readme_pages import GUIDES, ROOT, blocks, name_of, text_of

# This page needs a Hub.
ELSEWHERE = {ROOT / "hf_rerank" / "hub" / "README.md"}
PAGES = [page for page in GUIDES if page not in ELSEWHERE and blocks(page.read_text("utf-8"), "python", "bash")]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_blocks_of_each_page_run(
    page: Path,
    guide_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(copy_of(guide_files, tmp_path / "here"))
    run_page(page.read_text(encoding="utf-8"), capsys, monkeypatch)


@pytest.mark.slow
def test_metrics_named_in_the_training_guide_are_logged(
    guide_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The metrics named in its comment, for each evaluation set and for the custom metric."""
    monkeypatch.chdir(copy_of(guide_files, tmp_path / "here"))
    text = text_of("training")
    own_loss = text.index("## A loss, metrics")
    scope = run_page(text[: text.index("## With a plain Trainer")], capsys, monkeypatch)
    logged = {name for entry in scope["trainer"].state.log_history for name in entry}
    named = set(re.findall(r"eval_\w+(?:@10)?", text[own_loss:].split("# logs")[1].split("\n")[0]))
    assert named == {"eval_recent_ndcg@10", "eval_old_ndcg@10", "eval_recent_top_clicked"}
    assert named <= logged
