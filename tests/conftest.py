"""Fixtures for several folders: scripts run in this process, no matplotlib, files for the guides' code blocks."""

from __future__ import annotations

import gc
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest


def pytest_collection_finish() -> None:
    leave_out_of_garbage_collection()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is not None and item.path != nextitem.path:
        leave_out_of_garbage_collection()


def leave_out_of_garbage_collection() -> None:
    """Exempts all present objects, such as imported modules: each training starts with a full collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``run_script(path, *arguments)``: runs ``main()`` of a script in this process and returns its output."""
    import run_scripts

    return partial(run_scripts.run_script, monkeypatch=monkeypatch, capsys=capsys)


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope="session")
def guide_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw text, prepared lists, a trained model and a user's own files; do not change it."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hf_rerank import (
        ListProcessor,
        PRMConfig,
        PRMForReranking,
        Reranker,
        RerankTrainer,
        RerankTrainingArguments,
        load_lists,
    )
    from hf_rerank.data import prepare_prm_public, simulate_prm
    from hf_rerank.inference import export_onnx

    folder = tmp_path_factory.mktemp("guides")
    simulate_prm(folder / "raw", 120, seed=0)
    prepare_prm_public(folder / "raw", folder / "lists")
    shutil.copytree(folder / "lists", folder / "my_lists")
    committed = Path("model_cards") / "prm_public_simulated-prm"
    shutil.copytree(Path(__file__).parents[1] / committed, folder / committed)
    lists = load_lists(folder / "lists")
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    model = PRMForReranking(PRMConfig.for_schema(processor.schema, hidden_size=8, intermediate_size=8))
    run = folder / "runs" / "prm"
    arguments = RerankTrainingArguments(
        str(run), max_steps=2, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, disable_tqdm=True
    )
    trainer = RerankTrainer(model, arguments, lists["train"], lists["validation"], processor)
    trainer.train()
    trainer.save_model(str(run))
    export_onnx(Reranker.from_pretrained(run), folder / "exported")
    shutil.copytree(run, folder / "runs" / "on_top")
    requests = [{**row} for row in lists["test"].select(range(3))]
    for row in requests:
        del row[lists.schema.label]
    (folder / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requests))

    draw = random.Random(0)
    items = [
        {
            "request": f"r{number}",
            "user_id": f"u{number % 40}",
            "rank": rank,
            "item_id": draw.randrange(60),
            "category": draw.choice("abc"),
            "price": draw.randrange(1, 900) / 10,
            "click": int(rank == number % 4),
        }
        for number in range(160)
        for rank in range(5)
    ]
    pd.DataFrame(items).to_csv(folder / "lists.csv", index=False)
    pd.DataFrame(items[:20]).drop(columns="click").to_csv(folder / "new.csv", index=False)
    row = {
        "item_id": [1, 2],
        "shop": ["a", "b"],
        "brand": ["x", "y"],
        "price": [9.5, None],
        "text": [[0.0] * 384, [1.0] * 384],
        "gender": "f",
        "rank": [1, 0],
        "score": [-0.5, 2.5],
    }
    rows = [
        {**row, "click": [number % 2, 1 - number % 2], "request": f"r{number}", "user_id": number, "day": number}
        for number in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "my_lists.parquet")
    return folder
