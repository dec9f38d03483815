"""PRM and SetRank give the same scores as a public PyTorch implementation with the same weights.

The scores are those of github.com/THUwangcy/ReChorus (commit e58d752), classes ``PRMGeneral`` and ``SetRankGeneral``,
run outside this project: each file holds weights drawn at random, three lists of different length, and the scores of
the real items in evaluation mode. The user and item vectors that these classes read from a base ranker are item
vectors here.

PRM: no difference. SetRank, with and without inducing points: one intended difference.

- Items enter this library's encoder through a ReLU layer, as in the code of SetRank's authors; in ReChorus it is
  linear. In the cases ``..._projection_above_0``, the layer's outputs are all positive, and the scores are those of
  the unmodified code. For ``..._with_relu_after_projection``, only a ReLU was added to the ReChorus model.

Two further differences do not affect scores in evaluation mode: ReChorus has dropout inside the feed-forward layer
and on attention weights, this library on the encoder's input; at padding, ReChorus returns meaningless scores, this
library the lowest finite number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_rerank.models.auto import reranker_classes

CASES = [
    ("prm", "as_it_is"),
    ("setrank", "msab_projection_above_0"),
    ("setrank", "imsab_projection_above_0"),
    ("setrank", "msab_with_relu_after_projection"),
]
# Part of a parameter name in the files -> the name in this library.
NAMES = {
    "item_table": "item_embedding.item_tables.0.weight",
    "position_table": "positions.weight",
    "score.": "scorer.",
    "attention.in.": "query_key_value.",
    "attention.out.": "attention_output.",
    "norm_1.": "attention_norm.",
    "norm_2.": "output_norm.",
    "network.in.": "intermediate.",
    "network.out.": "output.",
}


def read_case(name: str, case: str) -> dict[str, Any]:
    path = Path(__file__).parent / "public" / f"rechorus_{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))[case]


def model_with_weights(name: str, config: dict[str, Any], weights: dict[str, Any]) -> Any:
    config_class, model_class = reranker_classes(name)
    model = model_class(config_class(**config)).eval()
    ours = {}
    for key, values in weights.items():
        for theirs, renamed in NAMES.items():
            key = key.replace(theirs, renamed)
        ours[key] = torch.tensor(values)
    model.load_state_dict(ours)  # strict: exactly the model's parameters
    return model


@pytest.mark.parametrize(("name", "case"), CASES)
def test_scores_equal_those_of_rechorus(name: str, case: str) -> None:
    saved = read_case(name, case)
    model = model_with_weights(name, saved["config"], saved["weights"])
    inputs = {key: torch.tensor(values) for key, values in saved["inputs"].items()}
    with torch.no_grad():
        scores = model(**inputs).logits
    mask = inputs["mask"]
    assert mask.sum(-1).tolist() == [5, 3, 1]
    expected = torch.tensor([score for row in saved["scores"] for score in row if score is not None])
    assert expected.std() > 0.1
    torch.testing.assert_close(scores[mask], expected, rtol=0.0, atol=1e-5)


def test_setrank_relu_affects_the_scores() -> None:
    """In the case with an added ReLU, the ReLU matters: it clips values of real items."""
    saved = read_case("setrank", "msab_with_relu_after_projection")
    model = model_with_weights("setrank", saved["config"], saved["weights"])
    inputs = {key: torch.tensor(values) for key, values in saved["inputs"].items()}
    projected: list[torch.Tensor] = []
    model.projection.register_forward_hook(lambda _module, _inputs, output: projected.append(output))
    with torch.no_grad():
        model(**inputs)
    assert projected[0][inputs["mask"]].min() < -0.5
