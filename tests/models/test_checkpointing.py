"""Activation checkpointing: blocks run again in the backward pass, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tiny_world import SCHEMA, collator_of, tiny_lists, tiny_model

from hf_rerank import ListProcessor
from hf_rerank.models.layers import attend
from hf_rerank.principled import PRESETS


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prm", {}),
        ("setrank", {}),
        ("setrank", {"num_inducing_points": 3}),
        ("pear", {}),
        ("raise", {}),
    ],
)
def test_checkpointing_runs_blocks_twice_and_gives_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    lists = tiny_lists(12, 3)
    processor = ListProcessor.from_lists(lists, schema=SCHEMA)
    batch = collator_of(processor)(lists.to_list())
    batch = {key: value for key, value in batch.items() if key not in ("attraction", "list_id")}
    calls: list[int] = []

    def counted(*arguments: Any, **others: Any) -> Any:
        calls.append(1)
        return attend(*arguments, **others)

    monkeypatch.setattr("hf_rerank.models.layers.attend", counted)
    found = []
    for checkpointing in (False, True):
        model = tiny_model(name, processor.schema, **options).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        calls.clear()
        torch.manual_seed(5)
        loss = model(**batch, objective=PRESETS["scaled"].for_task_loss("binary_log_loss")).loss
        forward = len(calls)
        loss.backward()
        gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        found.append((loss, gradients, forward, len(calls)))
    (plain, plain_gradients, once, still_once), (loss, gradients, forward, twice) = found
    assert once == still_once == forward > 0
    assert twice == 2 * once
    assert torch.equal(plain, loss)
    assert gradients.keys() == plain_gradients.keys()
    for key, value in gradients.items():
        torch.testing.assert_close(value, plain_gradients[key], rtol=1e-6, atol=1e-8, msg=key)
