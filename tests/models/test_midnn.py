"""MiDNN against its equations, item by item, and its global features against written-out arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import Weights, item_vectors, linear, randomize_weights, rows_of

from hf_rerank.models.midnn import MiDNNConfig, compute_global_features

ITEM = 2 * 4 + 2 + 3  # two tables of width 4, two numbers, a vector of three
NUMBERS = 2 + 3


def midnn_scores(w: Weights, config: MiDNNConfig, row) -> list[float]:
    """Scores of one list without padding: ``MLP([x ; user ; (x - min) / (max - min)])``."""
    vectors = item_vectors(w, row)
    items, users = [x[:ITEM] for x in vectors], [x[ITEM:] for x in vectors]
    numbers = [x[ITEM - NUMBERS :] for x in items]
    if config.position_input == "embedding":
        items = [x + w["positions.weight"][place] for x, place in zip(items, row["position_ids"], strict=True)]
    compared = items if config.global_features == "all" else numbers
    scores = []
    for i, (item, user) in enumerate(zip(items, users, strict=True)):
        standing = np.zeros(len(compared[i]))
        for feature in range(len(standing)):
            values = [other[feature] for other in compared]
            if max(values) > min(values):
                standing[feature] = (compared[i][feature] - min(values)) / (max(values) - min(values))
        x = np.concatenate([item, user, standing])
        for layer in range(len(config.hidden_sizes)):
            x = np.maximum(linear(w, f"network.layers.{layer}", x), 0)
        scores.append(linear(w, "scorer", x).item())
    return scores


@pytest.mark.parametrize("position_input", ["embedding", "none"])
@pytest.mark.parametrize("which", ["all", "dense"])
@pytest.mark.parametrize("hidden_sizes", [[8], [7, 5, 3]], ids=str)
def test_scores_follow_the_equations(tiny, hidden_sizes, which, position_input):
    model = tiny.model("midnn", hidden_sizes=hidden_sizes, global_features=which, position_input=position_input)
    lists = tiny.lists((6, 4, 1, 5))
    lists["item_dense"][1, :, 0] = lists["item_dense"][1, 0, 0]  # a column that is the same for all items
    weights = randomize_weights(model)
    logits = model(**lists).logits.detach().numpy()
    for number, mask, row in rows_of(lists):
        np.testing.assert_allclose(logits[number][mask], midnn_scores(weights, model.config, row), atol=1e-5)
        assert (logits[number][~mask] == np.finfo(np.float32).min).all()


def test_global_features_match_written_out_arithmetic():
    """Three items and one padding slot; four features, the third constant, the fourth negative."""
    items = torch.tensor([[1.0, 40.0, 7.0, -3.0], [3.0, 10.0, 7.0, -1.0], [2.0, 20.0, 7.0, -2.5], [9.0, -9.0, 9, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    found = compute_global_features(items[None], mask)[0, :3]
    # (1 - 1) / (3 - 1), (40 - 10) / (40 - 10), constant, (-3 + 3) / (-1 + 3); and so on
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.5, 1 / 3, 0.0, 0.25]])
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def test_global_features_of_a_single_item_are_zero():
    items = torch.tensor([[[5.0, -2.0], [8.0, 1.0]], [[5.0, -2.0], [8.0, 1.0]]])
    found = compute_global_features(items, torch.tensor([[True, False], [False, False]]))
    assert not found[0, 0].any()
    assert found.isfinite().all(), "also for a list of padding only"


def test_global_features_are_invariant_to_scale_and_shift():
    """A price in cents, or with an offset, has the same relative value as the price in euros."""
    draw = torch.Generator().manual_seed(3)
    items = torch.randn(2, 5, 4, generator=draw, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    factors, shifts = torch.tensor([100.0, 0.01, 3.0, 1.0]), torch.tensor([0.0, 5.0, -7.0, 1e3])
    found = compute_global_features(items * factors + shifts, mask)
    torch.testing.assert_close(found[mask], compute_global_features(items, mask)[mask], atol=1e-9, rtol=0)
    assert found[mask].min() == 0
    assert found[mask].max() == 1


def test_other_items_matter_only_through_minimum_and_maximum(tiny):
    """A value within the range of the others may change; at the end of the range it changes all relative values."""
    model, lists = tiny.model("midnn", global_features="dense", position_input="none"), tiny.lists((6,))
    column = lists["item_dense"][0, :, 0]
    column[:] = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    expected = model(**lists).logits[0]
    column[2] = 3.5
    inside = model(**lists).logits[0]
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(inside[others], expected[others])
    assert inside[2] != expected[2]
    column[2] = 50.0
    assert (model(**lists).logits[0] - inside).abs()[others].max() > 1e-3


@pytest.mark.parametrize(("which", "others_move"), [("all", True), ("dense", False)])
def test_embeddings_have_global_features_only_if_configured(tiny, which, others_move):
    model, lists = tiny.model("midnn", global_features=which), tiny.lists((6,))
    randomize_weights(model)
    expected = model(**lists).logits[0]
    lists["item_categorical"][0, 2] = torch.tensor([2, 3])
    found = model(**lists).logits[0]
    assert found[2] != expected[2]
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(found[others], expected[others]) != others_move


def test_own_loss_is_the_binary_log_loss(tiny):
    lists = tiny.lists()
    own, binary = (tiny.model("midnn", task_loss=loss)(**lists).loss for loss in ("own", "binary_log_loss"))
    assert torch.equal(own, binary)


def test_parameter_count_matches_written_out_arithmetic(tiny):
    """Item: 2 tables x 4 + 2 dense + 3 vector; user: 1 table x 4 + 1 dense; global: 13 of the item, or 5."""
    tables, positions = 3 * 20 * 4, 8 * 13
    network = (13 + 5 + 13) * 8 + 8 + 8 + 1
    assert tiny.model("midnn").num_parameters() == tables + positions + network == 609
    assert tiny.model("midnn", position_input="none").num_parameters() == tables + network
    assert tiny.model("midnn", global_features="dense").num_parameters() == 609 - 8 * 8


def test_presets_have_the_published_sizes():
    """512-256-128, without positions; the benchmark keeps 0.8 of each layer."""
    assert MiDNNConfig().hidden_sizes == [512, 256, 128]
    assert {preset["position_input"] for preset in MiDNNConfig.presets.values()} == {"none"}
    assert {MiDNNConfig.presets[name]["hidden_dropout_prob"] for name in ("librerank-ad", "librerank-prm")} == {0.2}
