"""Made the checkpoint next to this file, whose scores every later version must give. It must not be made again:

    python tests/hub/kept/make_tiny_prm.py tests/hub/kept/tiny_prm

A new format gets a new folder next to it. Once, before the first release, parameters and fields of the config were
renamed: so they were in the files of the checkpoint, while its weights and expected scores stayed the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import torch

import hf_rerank
from hf_rerank import Categorical, Dense, ListProcessor, ListSchema, PRMConfig, PRMForReranking, Reranker, Vector

SCHEMA = ListSchema(
    items=[
        Categorical("item_id"),
        Categorical("shop", hash_size=16),
        Dense("price", scale="log"),
        Vector("text", dim=2),
    ],
    user=[Categorical("country")],
    list_id="list_id",
    max_list_length=6,
)


def lists() -> list[dict]:
    """Lists of two to six items."""
    rows = []
    for number in range(20):
        slots = range(2 + number % 5)
        rows.append(
            {
                "list_id": f"list {number}",
                "item_id": [(number + 3 * slot) % 11 for slot in slots],
                "shop": [f"shop {(number * slot) % 5}" for slot in slots],
                "price": [1.0 + number + slot / 2 for slot in slots],
                "text": [[0.1 * slot, -0.1 * number] for slot in slots],
                "country": ("NL", "DE", "KE")[number % 3],
                "click": [int(slot == number % 2) for slot in slots],
            }
        )
    return rows


def main(folder: Path) -> None:
    """Writes the checkpoint, and into ``expected.json`` the lists and their scores."""
    processor = ListProcessor.from_lists(datasets.Dataset.from_list(lists()), schema=SCHEMA)
    torch.manual_seed(0)
    config = PRMConfig.for_schema(
        processor.schema, hidden_size=8, num_hidden_layers=1, intermediate_size=8, embedding_dim=4
    )
    reranker = Reranker(processor, PRMForReranking(config))
    with torch.no_grad():
        for weight in reranker.model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    reranker.save_pretrained(folder)
    requests = [{name: value for name, value in row.items() if name != "click"} for row in lists()[:6]]
    scores = [ranked["scores"] for ranked in reranker.rerank(requests)]
    orders = [ranked["order"] for ranked in reranker.rerank(requests)]
    expected = {"hf_rerank": hf_rerank.__version__, "lists": requests, "orders": orders, "scores": scores}
    (folder.parent / f"{folder.name}_expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
