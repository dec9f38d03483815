"""SetRank against its equations, written out in plain loops over one list; and its permutation equivariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import Weights, attention, finish_block, item_vectors, linear, randomize_weights, rows_of, weights_of_part

from hf_rerank.models.setrank import SetRankConfig, SetRankForReranking

FEATURES = ("item_categorical", "item_dense", "item_vectors")
both_kinds = pytest.mark.parametrize("num_inducing_points", [0, 3], ids=["MSAB", "IMSAB"])


def mab(block: Weights, queries, items, heads: int) -> tuple[list[np.ndarray], np.ndarray]:
    """``LN(B + FFN(B))``, ``B = LN(Q + Multihead(Q, K, K))``: the new queries and their attention weights."""
    width = len(queries[0])

    def projected(part: int, x: np.ndarray) -> np.ndarray:
        rows = slice(part * width, (part + 1) * width)
        return block["query_key_value.weight"][rows] @ x + block["query_key_value.bias"][rows]

    q, k, v = [projected(0, x) for x in queries], [projected(1, x) for x in items], [projected(2, x) for x in items]
    joined, weights = attention(q, k, v, heads)
    return finish_block(block, queries, joined), weights


def setrank_scores(w: Weights, config: SetRankConfig, row) -> tuple[list[float], list[np.ndarray]]:
    """Scores of one list without padding, and each block's attention weights [heads, L, L]."""
    items = [np.maximum(linear(w, "projection", x), 0) for x in item_vectors(w, row)]
    if config.position_input == "ordinal":
        items = [x + w["positions.weight"][place] for x, place in zip(items, row["position_ids"], strict=True)]
    attentions = []
    for b in range(config.num_hidden_layers):
        block = weights_of_part(w, f"blocks.{b}.")
        if config.num_inducing_points:
            points, gathered = mab(
                weights_of_part(block, "of_points."), list(block["points"]), items, config.num_attention_heads
            )
            items, spread = mab(weights_of_part(block, "of_items."), items, points, config.num_attention_heads)
            weights = np.stack([spread[h] @ gathered[h] for h in range(config.num_attention_heads)])
        else:
            items, weights = mab(block, items, items, config.num_attention_heads)
        attentions.append(weights)
    return [linear(w, "scorer", x).item() for x in items], attentions


SHAPES = [
    {},
    {"num_attention_heads": 1, "num_hidden_layers": 2},
    {"num_attention_heads": 4, "position_input": "none", "intermediate_size": 5},
    {"num_inducing_points": 3},
    {"num_inducing_points": 1, "num_attention_heads": 4},
    {"num_inducing_points": 9, "num_attention_heads": 1, "num_hidden_layers": 2},
    {"num_inducing_points": 2, "position_input": "none"},
]


@pytest.mark.parametrize("task_loss", ["binary_log_loss", "own"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_and_weights_follow_the_equations(tiny, shape, task_loss):
    model = tiny.model("setrank", output_attentions=True, task_loss=task_loss, **shape)
    lists = tiny.lists((6, 4, 1, 5))
    weights = randomize_weights(model)
    output = model(**lists)
    for number, mask, row in rows_of(lists):
        expected, attentions = setrank_scores(weights, model.config, row)
        logits = output.logits[number].detach().numpy()
        np.testing.assert_allclose(logits[mask], expected, atol=1e-5)
        assert (logits[~mask] == np.finfo(np.float32).min).all()
        assert len(output.attentions) == len(attentions)
        for found, by_hand in zip(output.attentions, attentions, strict=True):
            real = found[number].detach().numpy()[:, mask]
            np.testing.assert_allclose(real[:, :, mask], by_hand, atol=1e-5)
            assert not real[:, :, ~mask].any(), "padding is not attended to"
            np.testing.assert_allclose(real.sum(-1), 1, atol=1e-6)


@both_kinds
def test_scores_of_permuted_items_are_the_permuted_scores(tiny, num_inducing_points):
    """``position_input="none"``: the items are permuted, P is unchanged."""
    model = tiny.model(
        "setrank", position_input="none", num_inducing_points=num_inducing_points, num_hidden_layers=3
    ).double()
    randomize_weights(model)
    lists = tiny.lists((6, 6, 6, 6))
    expected = model(**lists).logits
    for slots in ([3, 0, 5, 1, 4, 2], [5, 4, 3, 2, 1, 0], [1, 0, 2, 3, 4, 5]):
        moved = {column: lists[column][:, slots] for column in FEATURES}
        torch.testing.assert_close(model(**{**lists, **moved}).logits, expected[:, slots], atol=1e-12, rtol=0)
    with_places = tiny.model("setrank", num_inducing_points=num_inducing_points)
    moved = {column: lists[column][:, [1, 0, 2, 3, 4, 5]] for column in FEATURES}
    change = with_places(**{**lists, **moved}).logits - with_places(**lists).logits[:, [1, 0, 2, 3, 4, 5]]
    assert change.abs().max() > 1e-3, "the ordinal embedding breaks equivariance"


@pytest.mark.parametrize("num_inducing_points", [1, 3, 20])
def test_inducing_points_serve_lists_of_any_length(tiny, num_inducing_points):
    """Lists shorter than, as long as and longer than the number of points; alone and batched with longer lists."""
    model = tiny.model("setrank", num_inducing_points=num_inducing_points, num_hidden_layers=2).double()
    lists = tiny.lists((1, 2, 3, 8, 0), width=8)
    logits = model(**lists).logits
    assert logits.isfinite().all()
    for number, length in enumerate((1, 2, 3, 8)):
        alone = {column: values[number : number + 1] for column, values in lists.items()}
        for column in (*FEATURES, "position_ids", "labels", "mask"):
            alone[column] = alone[column][:, :length]
        torch.testing.assert_close(model(**alone).logits[0], logits[number, :length], atol=1e-12, rtol=0)


@both_kinds
def test_padding_does_not_change_scores(tiny, num_inducing_points):
    """Neither items nor inducing points attend to padding."""
    model, lists = (
        tiny.model("setrank", num_inducing_points=num_inducing_points, num_hidden_layers=2),
        tiny.lists((6, 4, 1, 5)),
    )
    mask, garbage = lists["mask"], tiny.lists((6, 6, 6, 6), seed=9)
    filled = dict(lists)
    for column in FEATURES:
        factor = 1000 if garbage[column].is_floating_point() else 1
        filled[column] = torch.where(mask[..., None], lists[column], garbage[column] * factor)
    torch.testing.assert_close(model(**filled).logits[mask], model(**lists).logits[mask], atol=1e-6, rtol=0)


def test_inducing_points_are_initialized_saved_and_trained(tiny, tmp_path):
    model = tiny.model("setrank", num_inducing_points=3, num_hidden_layers=2)
    points = [block.points for block in model.blocks]
    bound = (6 / (3 + 8)) ** 0.5
    assert all(0.5 * bound < drawn.abs().max() <= bound for drawn in points)
    assert not torch.equal(*points)
    again = tiny.model("setrank", num_inducing_points=3, num_hidden_layers=2)
    assert all(torch.equal(block.points, drawn) for block, drawn in zip(again.blocks, points, strict=True))
    model.save_pretrained(tmp_path)
    loaded = SetRankForReranking.from_pretrained(tmp_path)
    lists = tiny.lists()
    assert torch.equal(loaded(**lists).logits, model(**lists).logits)
    model.train()(**lists).loss.backward()
    assert [name for name, weight in model.named_parameters() if not weight.grad.any()] == []


def test_own_loss_matches_written_out_arithmetic(tiny):
    """-sum_i a_i log softmax(s)_i, a_i = exp(y_i) / sum over clicked items of exp(y); mean over lists with an item."""
    lists = tiny.lists((6, 4, 1, 5, 0))
    lists["labels"][0, :6] = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.0, 0.0])
    lists["labels"][1, :4] = 0.0
    model = tiny.model("setrank", task_loss="own")
    output = model(**lists)
    assert model.config.task_loss_name == "attention_rank_loss"
    per_list = []
    for number, mask, row in rows_of(lists):
        if mask.any():
            scores = output.logits[number].detach().double().numpy()[mask]
            log_softmax = scores - np.log(np.sum(np.exp(scores)))
            deserved = np.where(row["labels"] > 0, np.exp(row["labels"]), 0.0)
            per_list.append(-np.sum(deserved / max(deserved.sum(), 1e-30) * log_softmax))
    assert len(per_list) == 4
    assert output.loss.item() == pytest.approx(np.mean(per_list), abs=1e-6)


def test_scores_follow_from_the_last_hidden_states(tiny):
    model, lists = tiny.model("setrank", output_hidden_states=True, num_hidden_layers=2), tiny.lists()
    output = model(**lists)
    assert [state.shape for state in output.hidden_states] == [(4, 6, 8)] * 3
    scores = model.scorer(output.hidden_states[-1]).squeeze(-1)
    assert torch.equal(scores[lists["mask"]], output.logits[lists["mask"]])


def test_parameter_count_matches_written_out_arithmetic(tiny):
    """Item: 2 tables x 4 + 2 dense + 3 vector; user: 1 table x 4 + 1 dense: 18 numbers."""
    around = 3 * 20 * 4 + (18 * 8 + 8) + (8 + 1)
    block = (8 * 24 + 24) + (8 * 8 + 8) + 2 * 8 + (8 * 8 + 8) + (8 * 8 + 8) + 2 * 8
    assert tiny.model("setrank", position_input="none").num_parameters() == around + block
    assert tiny.model("setrank").num_parameters() == around + block + 8 * 8
    induced = tiny.model("setrank", num_inducing_points=3, num_hidden_layers=2).num_parameters()
    assert induced == around + 8 * 8 + 2 * (2 * block + 3 * 8)


def test_presets_have_the_published_sizes():
    """The authors' code: 6 blocks of 8 heads, width 256, inner width 4 x 256, 20 points; LibRerank: one block."""
    paper, ad, prm = (SetRankConfig.presets[name] for name in ("paper", "librerank-ad", "librerank-prm"))
    sizes = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "num_inducing_points")
    assert tuple(paper[size] for size in sizes) == (6, 8, 256, 1024, 20)
    assert SetRankConfig().hidden_dropout_prob == 0
    assert tuple(ad[size] for size in sizes[:4]) == (1, 8, 256, 64)
    assert (ad["hidden_dropout_prob"], ad["position_input"], SetRankConfig().num_inducing_points) == (0.2, "none", 0)
    assert ad == prm
    assert {preset["task_loss"] for preset in (paper, ad)} == {"own"}
