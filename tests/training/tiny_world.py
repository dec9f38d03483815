"""Tiny simulated ragged lists: items differ in attraction, positions in examination; the initial order is random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import torch

from hf_rerank import Categorical, Dense, ListProcessor, ListSchema
from hf_rerank.models.auto import RERANKERS
from hf_rerank.principled import PRESETS, PrincipledObjective
from hf_rerank.principled.objective import Pass, Perturbed
from hf_rerank.processing.collator import RerankCollator

ITEMS = 20
LONGEST = 8
SCHEMA = ListSchema(
    items=[Categorical("item_id"), Dense("price", scale="log")],
    user=[Categorical("gender")],
    position="position",
    list_id="list_id",
    attraction="attraction",
    examination=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
    max_list_length=LONGEST,
)
_ENCODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
# Options that make each model tiny.
TINY: dict[str, dict[str, Any]] = {
    "dnn": {"hidden_sizes": [8]},
    "dlcm": {"hidden_size": 6},
    "midnn": {"hidden_sizes": [8]},
    "prm": _ENCODER,
    "setrank": _ENCODER,
    "pear": {**_ENCODER, "feature_hidden_size": 8},
    "raise": {**_ENCODER, "num_mixtures": 2},
}


def tiny_model(name: str, schema: ListSchema, seed: int = 0, **options: Any) -> Any:
    """A model of this name with few weights."""
    config_class, model_class = RERANKERS[name]
    torch.manual_seed(seed)
    return model_class(config_class.for_schema(schema, **{"embedding_dim": 4, **TINY[name], **options}))


def tiny_lists(count: int, seed: int) -> datasets.Dataset:
    """Lists of 3 to 8 items."""
    random = np.random.default_rng(seed)
    assert SCHEMA.examination is not None
    rows = []
    for number in range(count):
        length = int(random.integers(3, LONGEST + 1))
        items = random.choice(ITEMS, length, replace=False)
        positions = random.permutation(length)
        attraction = 0.05 + 0.9 * items / (ITEMS - 1)
        examined = np.array(SCHEMA.examination)[positions]
        rows.append(
            {
                "list_id": f"list-{seed}-{number}",
                "item_id": items.tolist(),
                "price": random.lognormal(size=length).tolist(),
                "gender": int(random.integers(2)),
                "position": positions.tolist(),
                "attraction": attraction.tolist(),
                "click": (random.random(length) < attraction * examined).astype(int).tolist(),
            }
        )
    return datasets.Dataset.from_list(rows)


def collator_of(processor: ListProcessor, **options: Any) -> RerankCollator:
    """A collator like the trainer's."""
    return RerankCollator(processor, all_tensors=True, **options)


def perturbed_by(kind: str, strength: float = 1) -> PrincipledObjective:
    """The preset ``scaled`` with another perturbation."""
    scaled = PRESETS["scaled"]
    third = Pass("third", Perturbed(kind, strength=strength))
    return replace(scaled, passes=(*scaled.passes[:2], third))
