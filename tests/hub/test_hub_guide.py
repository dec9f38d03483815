"""The code blocks of the guide to the Hub, against a local Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from guide_blocks import copy_of, run_page
from hub_server import Hub
from readme_pages import text_of


@pytest.mark.slow
def test_code_blocks_of_the_hub_guide_run(
    hub: Hub, guide_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy_of(guide_files, tmp_path / "here"))
    run_page(text_of("hub"), capsys, monkeypatch)
    assert {"config.json", "model.safetensors", "README.md"} <= hub.files("someone/prm").keys()
