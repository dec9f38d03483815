"""PEAR against its equations, written out in plain loops over one list and one history; and its list token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import (
    Weights,
    attention,
    encoder_block,
    finish_block,
    history_vectors,
    item_vectors,
    linear,
    randomize_weights,
    rows_of,
    sigmoid,
    user_vector,
    weights_of_part,
    with_histories,
)

from hf_rerank.errors import InputError
from hf_rerank.models.pear import PEARConfig

NO_HISTORY = {"history_vocab_sizes": [], "history_shared_tables": [], "num_history_dense": 0}
NO_USER = {"user_vocab_sizes": [], "num_user_dense": 0}


def two_layers(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return linear(w, f"{name}.2", np.maximum(linear(w, f"{name}.0", x), 0))


def pear_scores(w: Weights, config: PEARConfig, row) -> tuple[list[float], float | None, list[np.ndarray]]:
    """Scores of one list's real items, the token's score, and each unit's weights [heads, L + 1, H + L + 1]."""
    items = [two_layers(w, "item_network", x) for x in item_vectors(w, row)]
    if config.position_input == "embedding":
        items = [x + w["positions.weight"][place] for x, place in zip(items, row["position_ids"], strict=True)]
    if config.list_loss_weight:
        items.append(w["list_token"])
    history = []
    if config.history_vocab_sizes:
        user = user_vector(w, row)
        history = [two_layers(w, "history_network", np.concatenate([x, user])) for x in history_vectors(w, row)]
    attentions = []
    for b in range(config.num_hidden_layers):
        block = weights_of_part(w, f"blocks.{b}.")
        if history:
            history, _ = encoder_block(weights_of_part(w, f"history_blocks.{b}."), history, config.num_attention_heads)
        of_items = [np.split(linear(block, "query_key_value", x), 3) for x in items]
        of_history = [np.split(linear(block, "history_key_value", x), 2) for x in history]
        queries = [query for query, _, _ in of_items]
        keys = [key for key, _ in of_history] + [key for _, key, _ in of_items]
        values = [value for _, value in of_history] + [value for _, _, value in of_items]
        joined, weights = attention(queries, keys, values, config.num_attention_heads)
        items = finish_block(block, items, joined)
        attentions.append(weights)
    token = linear(w, "list_scorer", items.pop()).item() if config.list_loss_weight else None
    return [linear(w, "scorer", x).item() for x in items], token, attentions


SHAPES = [
    {},
    {"num_attention_heads": 1, "num_hidden_layers": 1},
    {"num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 5, "feature_hidden_size": 7},
    {"position_input": "none"},
    {"list_loss_weight": 0},
    {"list_loss_weight": 0.25, "num_attention_heads": 1},
    NO_HISTORY,
    {**NO_HISTORY, "list_loss_weight": 0, "num_attention_heads": 4},
    NO_USER,
]


@pytest.mark.parametrize("task_loss", ["binary_log_loss", "own"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: ",".join(shape))
def test_scores_and_weights_follow_the_equations(tiny, shape, task_loss):
    model = tiny.model("pear", output_attentions=True, task_loss=task_loss, **shape)
    lists = with_histories(tiny.lists((6, 4, 1, 5, 3)), (3, 0, 1, 2, 0))
    if "user_vocab_sizes" in shape:
        lists = {column: values for column, values in lists.items() if "user" not in column}
    weights = randomize_weights(model)
    output = model(**lists)
    token = model.config.list_loss_weight > 0
    assert (output.list_logits is not None) == token
    seen = 3 if model.config.history_vocab_sizes else 0
    for number, mask, row in rows_of(lists):
        expected, list_score, attentions = pear_scores(weights, model.config, row)
        logits = output.logits[number].detach().numpy()
        np.testing.assert_allclose(logits[mask], expected, atol=1e-5)
        assert (logits[~mask] == np.finfo(np.float32).min).all()
        if token:
            assert output.list_logits[number].item() == pytest.approx(list_score, abs=1e-5)
        rows = np.append(mask, np.ones(int(token), dtype=bool))
        columns = np.append(lists["history_mask"][number].numpy()[:seen], rows)
        assert len(output.attentions) == len(attentions) == model.config.num_hidden_layers
        for found, by_hand in zip(output.attentions, attentions, strict=True):
            assert found.shape == (5, model.config.num_attention_heads, 6 + token, seen + 6 + token)
            real = found[number].detach().numpy()[:, rows]
            np.testing.assert_allclose(real[:, :, columns], by_hand, atol=1e-5)
            np.testing.assert_allclose(real.sum(-1), 1, atol=1e-6)
            assert not real[:, :, ~columns].any(), "padding of the history or the list is not attended to"


@pytest.mark.parametrize("list_loss_weight", [0, 1])
def test_empty_histories_give_self_attention_over_the_list(tiny, list_loss_weight):
    """Empty histories against a model that has no history features and the same remaining weights."""
    model = tiny.model("pear", list_loss_weight=list_loss_weight)
    randomize_weights(model)
    alone = tiny.model("pear", list_loss_weight=list_loss_weight, **NO_HISTORY)
    loading = alone.load_state_dict(model.state_dict(), strict=False)
    assert loading.missing_keys == []
    assert {name.split(".")[0] for name in loading.unexpected_keys} == {
        "blocks",
        "history_blocks",
        "history_embedding",
        "history_network",
    }
    assert all("history" in name for name in loading.unexpected_keys)
    lists = tiny.lists((6, 4, 1, 5, 0))
    lists["history_mask"] = torch.zeros_like(lists["history_mask"])
    with_empty, without = model(**lists), alone(**lists)
    torch.testing.assert_close(with_empty.logits, without.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(with_empty.loss, without.loss, atol=1e-6, rtol=0)
    if list_loss_weight:
        torch.testing.assert_close(with_empty.list_logits, without.list_logits, atol=1e-6, rtol=0)
    lists["history_mask"][:, 0] = True
    assert (model(**lists).logits - without.logits)[lists["mask"]].abs().max() > 1e-3


def test_history_without_a_mask_is_all_real(tiny):
    model, lists = tiny.model("pear"), with_histories(tiny.lists((6, 4, 1, 5, 3)), (3, 0, 1, 2, 0))
    full = {**lists, "history_mask": torch.ones_like(lists["history_mask"])}
    without = {column: values for column, values in lists.items() if column != "history_mask"}
    assert torch.equal(model(**without).logits, model(**full).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lists: {**lists, "history_categorical": lists["history_categorical"][..., :1]},
            "1 features.* 2 history",
        ),
        (lambda lists: {**lists, "history_categorical": None}, "0 features.* 2 history"),
        (lambda lists: {**lists, "history_dense": None}, "history_dense is missing"),
    ],
)
@pytest.mark.parametrize("name", ["pear", "raise"])
def test_histories_of_another_processor_are_rejected(tiny, name, change, message):
    with pytest.raises(InputError, match=f"{message}.*own processor"):
        tiny.model(name)(**change(tiny.lists()))


def test_history_order_does_not_matter(tiny):
    """The history has no positions: reversing it changes nothing."""
    model, lists = tiny.model("pear").double(), tiny.lists((6, 4, 1, 5))
    turned = {name: values.flip(1) if "history" in name else values for name, values in lists.items()}
    assert not torch.equal(turned["history_mask"], lists["history_mask"])
    torch.testing.assert_close(model(**turned).logits, model(**lists).logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize("list_loss_weight", [1, 0.25])
def test_own_loss_matches_written_out_arithmetic(tiny, list_loss_weight):
    """Log loss of the items, and of the token for "any item clicked"; means over lists with an item."""
    lists = tiny.lists((6, 4, 1, 5, 0))
    lists["labels"][0, :6] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    lists["labels"][1, :4] = 0.0
    lists["labels"][1, 4:] = 1.0  # on padding
    lists["labels"][4] = 1.0  # a list of padding only
    model = tiny.model("pear", task_loss="own", list_loss_weight=list_loss_weight)
    randomize_weights(model)
    output = model(**lists)
    of_items, of_lists = [], []
    for number, mask, row in rows_of(lists):
        if mask.any():
            chance, y = sigmoid(output.logits[number].detach().double().numpy()[mask]), row["labels"]
            of_items.append(-np.mean(y * np.log(chance) + (1 - y) * np.log(1 - chance)))
            some = sigmoid(output.list_logits[number].item())
            of_lists.append(-np.log(some if y.any() else 1 - some))
    assert len(of_lists) == 4
    expected = np.mean(of_items) + list_loss_weight * np.mean(of_lists)
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("task_loss", ["softmax_loss", "lambda_loss"])
def test_the_list_token_loss_is_added_to_every_task_loss(tiny, task_loss):
    model, lists = tiny.model("pear", task_loss=task_loss, list_loss_weight=2), tiny.lists((6, 4, 1, 5))
    output = model(**lists)
    of_lists = []
    for score, labels, mask in zip(output.list_logits, lists["labels"], lists["mask"], strict=True):
        some = sigmoid(score.item())
        of_lists.append(-np.log(some if (labels[mask] > 0).any() else 1 - some))
    model.config.list_loss_weight = 1e-9
    items_alone = model(**lists).loss.item()
    assert output.loss.item() == pytest.approx(items_alone + 2 * np.mean(of_lists), abs=1e-5)


def test_a_batch_of_padding_has_zero_loss(tiny):
    lists = tiny.lists((0, 0))
    output = tiny.model("pear")(**lists)
    assert output.loss == 0
    assert output.list_logits.isfinite().all()


def test_scores_follow_from_the_last_hidden_states(tiny):
    model, lists = tiny.model("pear", output_hidden_states=True), tiny.lists()
    output = model(**lists)
    assert [state.shape for state in output.hidden_states] == [(4, 7, 8)] * 3
    scores = model.scorer(output.hidden_states[-1][:, :6]).squeeze(-1)
    torch.testing.assert_close(scores[lists["mask"]], output.logits[lists["mask"]], atol=1e-6, rtol=0)
    token = model.list_scorer(output.hidden_states[-1][:, 6]).squeeze(-1)
    torch.testing.assert_close(token, output.list_logits, atol=1e-6, rtol=0)


def test_parameter_count_matches_written_out_arithmetic(tiny):
    """Item and user: 13 + 5 numbers; history item: 2 tables x 4 + 1 number, and the user's 5."""
    tables, positions, scorer = 3 * 20 * 4, 8 * 8, 8 + 1
    features = (18 * 8 + 8) + (8 * 8 + 8)
    block = (8 * 24 + 24) + (8 * 8 + 8) + 2 * 8 + (8 * 8 + 8) + (8 * 8 + 8) + 2 * 8
    token = 8 + 9
    alone = tables + positions + features + 2 * block + scorer + token
    assert tiny.model("pear", **NO_HISTORY).num_parameters() == alone
    assert tiny.model("pear", list_loss_weight=0, **NO_HISTORY).num_parameters() == alone - token
    history = 20 * 4 + (14 * 8 + 8) + (8 * 8 + 8) + 2 * block + 2 * (8 * 16 + 16)
    assert tiny.model("pear").num_parameters() == alone + history


def test_presets_have_the_published_sizes():
    """500 wide, 1 or 2 heads, dropout 0.1; the benchmark has no PEAR but uses widths of 64 and dropout 0.2."""
    paper, ad, prm = (PEARConfig.presets[name] for name in ("paper", "librerank-ad", "librerank-prm"))
    assert (
        paper["feature_hidden_size"],
        paper["hidden_size"],
        PEARConfig().num_attention_heads,
        PEARConfig().hidden_dropout_prob,
    ) == (
        500,
        500,
        2,
        0.1,
    )
    assert (
        ad["feature_hidden_size"],
        PEARConfig().hidden_size,
        ad["intermediate_size"],
        ad["hidden_dropout_prob"],
    ) == (64, 64, 64, 0.2)
    assert ad == prm
