"""PRM against its equations, written out in plain loops over one list, and written-out arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import Weights, encoder_block, item_vectors, linear, randomize_weights, rows_of, weights_of_part

from hf_rerank.models.prm import PRMConfig, PRMForReranking


def prm_scores(w: Weights, config: PRMConfig, row) -> tuple[list[float], list[np.ndarray]]:
    """Scores of one list without padding, from the paper's equations, and each block's attention [heads, L, L]."""
    items = item_vectors(w, row)
    if config.position_input == "embedding":
        items = [x + w["positions.weight"][place] for x, place in zip(items, row["position_ids"], strict=True)]
    items = [linear(w, "projection", x) for x in items]
    attentions = []
    for b in range(config.num_hidden_layers):
        items, weights = encoder_block(weights_of_part(w, f"blocks.{b}."), items, config.num_attention_heads)
        attentions.append(weights)
    return [linear(w, "scorer", x).item() for x in items], attentions


SHAPES = [
    {"num_attention_heads": 1, "num_hidden_layers": 2},
    {"num_attention_heads": 2},
    {"num_attention_heads": 3, "head_dim": 5, "num_hidden_layers": 2, "intermediate_size": 6},
    {"num_attention_heads": 2, "position_input": "none"},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_follow_the_equations(tiny, shape):
    model, lists = tiny.model("prm", **shape), tiny.lists((6, 4, 1, 5))
    weights = randomize_weights(model)
    logits = model(**lists).logits.detach().numpy()
    for number, mask, row in rows_of(lists):
        expected, _ = prm_scores(weights, model.config, row)
        np.testing.assert_allclose(logits[number][mask], expected, atol=1e-5)
        assert (logits[number][~mask] == np.finfo(np.float32).min).all()


def test_attention_weights_follow_the_equations(tiny):
    """Attention weights and hidden states are returned if the config requests them."""
    model = tiny.model("prm", num_hidden_layers=2, output_attentions=True, output_hidden_states=True)
    lists = tiny.lists((6, 4, 1, 5))
    weights = randomize_weights(model)
    output = model(**lists)
    assert [attention.shape for attention in output.attentions] == [(4, 2, 6, 6)] * 2
    assert [state.shape for state in output.hidden_states] == [(4, 6, 8)] * 3
    for number, mask, row in rows_of(lists):
        _, expected = prm_scores(weights, model.config, row)
        for block, attention in enumerate(output.attentions):
            real = attention[number].detach().numpy()[:, mask][:, :, mask]
            np.testing.assert_allclose(real, expected[block], atol=1e-5)


def test_scores_follow_from_the_last_hidden_states(tiny):
    model, lists = tiny.model("prm", output_hidden_states=True), tiny.lists()
    output = model(**lists)
    scores = model.scorer(output.hidden_states[-1]).squeeze(-1)
    assert torch.equal(scores[lists["mask"]], output.logits[lists["mask"]])
    assert output.attentions is None


def test_output_attentions_requires_eager_attention(tiny, tmp_path):
    model = tiny.model("prm", output_attentions=True)
    model.save_pretrained(tmp_path)
    loaded = PRMForReranking.from_pretrained(tmp_path)
    assert loaded(**tiny.lists()).attentions is not None
    loaded.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="eager"):
        tiny.model("prm").config.output_attentions = True


def test_own_loss_matches_written_out_arithmetic(tiny):
    """-sum_i y_i log softmax(s)_i over the list, labels not normalized; mean over lists with an item."""
    lists = tiny.lists((6, 4, 1, 5, 0))
    lists["labels"][0, :6] = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.0, 0.0])  # three clicked items, one of them bought
    lists["labels"][1, :4] = 0.0
    model = tiny.model("prm", task_loss="own")
    output = model(**lists)
    per_list = []
    for number, mask, row in rows_of(lists):
        if mask.any():
            scores = output.logits[number].detach().double().numpy()[mask]
            log_softmax = scores - np.log(np.sum(np.exp(scores)))
            per_list.append(-np.sum(row["labels"] * log_softmax))
    assert len(per_list) == 4
    assert per_list[1] == 0
    assert output.loss.item() == pytest.approx(np.mean(per_list), abs=1e-6)
    assert model.config.task_loss_name == "softmax_loss"


def test_without_positions_scores_are_permutation_equivariant(tiny):
    """``position_input="none"``: permuting the items, with P unchanged, permutes their scores."""
    model, lists = tiny.model("prm", position_input="none"), tiny.lists((6, 6, 6, 6))
    slots = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = {column: lists[column][:, slots] for column in ("item_categorical", "item_dense", "item_vectors")}
    expected = model(**lists).logits[:, slots]
    torch.testing.assert_close(model(**{**lists, **moved}).logits, expected, atol=1e-6, rtol=0)


def test_an_item_changes_the_scores_of_all_others(tiny):
    model, lists = tiny.model("prm"), tiny.lists((6,))
    other = {**lists, "item_dense": lists["item_dense"].clone()}
    other["item_dense"][0, 0] += 1
    changed = (model(**lists).logits - model(**other).logits).abs()[0]
    assert (changed > 1e-4).all()


def test_parameter_count_matches_written_out_arithmetic(tiny):
    """Item: 2 tables x 4 + 2 dense + 3 vector; user: 1 table x 4 + 1 dense: 18 numbers."""
    tables = 3 * 20 * 4
    positions = 8 * 18
    projection = 18 * 8 + 8
    block = (8 * 24 + 24) + (8 * 8 + 8) + 2 * 8 + (8 * 8 + 8) + (8 * 8 + 8) + 2 * 8
    scorer = 8 + 1
    assert tiny.model("prm").num_parameters() == tables + positions + projection + block + scorer == 1009
    without = tiny.model("prm", position_input="none", num_hidden_layers=3).num_parameters()
    assert without == tables + projection + 3 * block + scorer
    wide = tiny.model("prm", head_dim=5).num_parameters()  # 2 heads of 5 instead of 4
    assert wide - 1009 == 3 * 2 * (8 + 1) + 2 * 8


def test_preset_has_the_paper_sizes_and_defaults_are_those_of_the_authors():
    """Four blocks of three heads, width 64; and, as default, two blocks of one head, inner width 128."""
    paper, default = PRMConfig.presets["paper"], PRMConfig()
    assert (paper["num_hidden_layers"], paper["num_attention_heads"], default.hidden_size, paper["task_loss"]) == (
        4,
        3,
        64,
        "own",
    )
    assert (
        default.num_hidden_layers,
        default.num_attention_heads,
        default.intermediate_size,
        default.hidden_dropout_prob,
    ) == (2, 1, 128, 0.1)
    assert default.task_loss == "binary_log_loss"
