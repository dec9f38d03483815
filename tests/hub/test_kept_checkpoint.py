"""A kept checkpoint: every later version must load it with the same scores, and refuse formats newer than itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import KEPT

from hf_rerank import InputError, Reranker
from hf_rerank.storage import MANIFEST, make_manifest


def test_kept_checkpoint_gives_its_recorded_scores() -> None:
    expected = json.loads(KEPT.with_name(f"{KEPT.name}_expected.json").read_text())
    ranked = Reranker.from_pretrained(KEPT).rerank(expected["lists"])
    assert [result["order"] for result in ranked] == expected["orders"]
    # Not to the bit: processors and versions of torch round differently.
    for result, scores in zip(ranked, expected["scores"], strict=True):
        np.testing.assert_allclose(result["scores"], scores, rtol=1e-5, atol=1e-6)


def test_kept_checkpoint_is_small_and_has_the_files_of_a_new_one(tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in KEPT.rglob("*")) < 100_000
    Reranker.from_pretrained(KEPT).save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in KEPT.iterdir()}


def change(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits a JSON file of a folder as a later version might write it, and updates the manifest."""
    content = json.loads((folder / name).read_text())
    edit(content)
    if name == MANIFEST:
        del content["sha256"]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        (folder / name).write_text(json.dumps({**content, "sha256": digest}))
        return
    (folder / name).write_text(json.dumps(content))
    files = {path.name: path for path in folder.iterdir() if path.name != MANIFEST}
    (folder / MANIFEST).write_text(make_manifest(files, {}))


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        (
            "preprocessor_config.json",
            lambda content: content.update(format_version=2),
            "has format_version 2, but this library reads 1: install a newer hf-rerank",
        ),
        (
            "preprocessor_config.json",
            lambda content: content.update(shcema={}),
            "has an unknown key 'shcema'; did you mean 'schema'?",
        ),
        (
            "preprocessor_config.json",
            lambda content: content["schema"].update(of_tomorrow=1),
            "of_tomorrow",
        ),
        (
            MANIFEST,
            lambda content: content.update(format_version=2),
            "has format_version 2, but this library reads 1: install a newer hf-rerank",
        ),
        ("config.json", lambda content: content.update(of_tomorrow=1), "PRMConfig has no option 'of_tomorrow'"),
        (
            "config.json",
            lambda content: content.update(model_type="rerank_tomorrow"),
            "holds a model of type 'rerank_tomorrow': expected one of rerank_dnn",
        ),
    ],
)
def test_newer_formats_are_refused_in_one_line(
    run_folder: Path, name: str, edit: Callable[[dict[str, Any]], object], said: str
) -> None:
    Reranker.from_pretrained(run_folder)
    change(run_folder, name, edit)
    with pytest.raises(InputError) as caught:
        Reranker.from_pretrained(run_folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
