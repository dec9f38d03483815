"""Features relative to the list: written-out values, and properties."""

import pyarrow as pa
import pytest
import torch

from hf_rerank.models.auto import RERANKERS
from hf_rerank.models.embeddings import compute_relative_features
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import Categorical, Dense, ListSchema


def test_relative_features_match_written_out_arithmetic():
    # 1, 4, 4, 7 (mean 4): ranks (below - above) / 3; the last slot is padding whose value is not read.
    values = torch.tensor([[[1.0], [4.0], [4.0], [7.0], [1e30]]])
    mask = torch.tensor([[True, True, True, True, False]])
    found = compute_relative_features(values, mask)
    assert found[0, :, 0].tolist() == pytest.approx([-1.0, 0.0, 0.0, 1.0, 0.0])
    assert found[0, :, 1].tolist() == [-3.0, 0.0, 0.0, 3.0, 0.0]
    assert found[0, :, 2].tolist() == [-6.0, -3.0, -3.0, 0.0, 0.0]


def test_constant_values_single_items_and_empty_lists_give_zero():
    shared = compute_relative_features(torch.full((1, 3, 2), 5.0), torch.ones(1, 3, dtype=torch.bool))
    assert shared.tolist() == torch.zeros(1, 3, 6).tolist()
    for mask in ([[True, False]], [[False, False]]):
        found = compute_relative_features(torch.tensor([[[3.0], [float("nan")]]]), torch.tensor(mask))
        assert found.tolist() == torch.zeros(1, 2, 3).tolist()


def lists(width=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < torch.tensor([[6], [3], [1]])
    return {
        "item_categorical": torch.randint(1, 5, (3, width, 1), generator=draw),
        "item_dense": torch.randn(3, width, 2, generator=draw),
        "mask": mask,
        "position_ids": torch.arange(width).repeat(3, 1),
        "initial_scores": torch.randn(3, width, generator=draw),
    }


def model(kind="prm", **options):
    torch.manual_seed(0)
    config, cls = RERANKERS[kind]
    sizes = {"item_vocab_sizes": [5], "user_vocab_sizes": [], "num_item_dense": 2, "max_list_length": 8}
    if kind == "raise":
        sizes |= {"num_user_dense": 1}
    return cls(config(**sizes, **options)).eval()


def features(kind, **options):
    tensors = lists(**options)
    return tensors | ({"user_dense": torch.ones(3, 1)} if kind == "raise" else {})


@pytest.mark.parametrize("kind", list(RERANKERS))
def test_every_model_reads_relative_features_and_ignores_padding(kind):
    changed = model(kind, relative_features=True)
    tensors = features(kind)
    scores = changed(**tensors).logits
    other = {name: value.clone() for name, value in tensors.items()}
    other["item_dense"][~tensors["mask"]] = 1e6
    other["initial_scores"][~tensors["mask"]] = -1e6
    assert torch.equal(changed(**other).logits[tensors["mask"]], scores[tensors["mask"]])
    # One item's number changes the relative features of the others, also in a pointwise model.
    other["item_dense"][0, 0] += 3.0
    assert not torch.equal(changed(**other).logits[0, 1:], scores[0, 1:])


def test_relative_features_do_not_depend_on_the_given_order():
    changed = model(relative_features=True, position_input="none")
    tensors = features("prm")
    turned = {**tensors, "position_ids": tensors["position_ids"].flip(-1)}
    assert torch.equal(changed(**turned).logits, changed(**tensors).logits)


def test_item_width_grows_by_three_relative_features_per_number():
    plain = model(relative_features=False).item_embedding.item_width
    assert model(relative_features=True).item_embedding.item_width == plain + 3 * 2
    with_score = model(relative_features=True, initial_score="feature").item_embedding.item_width
    assert with_score == plain + 1 + 3 * 3


def test_comparing_items_in_chunks_changes_nothing(monkeypatch):
    values, mask = torch.randn(2, 5, 7), torch.arange(5) < torch.tensor([[5], [3]])
    whole = compute_relative_features(values, mask)
    monkeypatch.setattr("hf_rerank.models.embeddings._COMPARISONS", 1)
    assert torch.equal(compute_relative_features(values, mask), whole)


@pytest.mark.parametrize("kind", list(RERANKERS))
def test_presets_do_not_use_relative_features(kind):
    schema = ListSchema(items=[Categorical("item"), Dense("price")], user=[Dense("age")])
    table = pa.table({"item": [[1, 1]], "price": [[1.0, 2.0]], "age": [3.0]})
    processor = ListProcessor.from_lists(table, schema=schema)
    for name in RERANKERS[kind][0].presets:
        config = RERANKERS[kind][0].preset(name, processor.schema)
        assert (config.relative_features, config.unknown_rate, config.initial_score) == (False, 0.01, "none")
