"""RAISE against its equations, written out in plain loops over one list; and what its mixture weights depend on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from by_hand import (
    Weights,
    attention,
    finish_block,
    history_vectors,
    item_vectors,
    linear,
    randomize_weights,
    rows_of,
    softmax,
    user_vector,
    weights_of_part,
    with_histories,
)

from hf_rerank.errors import InputError
from hf_rerank.models.layers import EncoderBlock
from hf_rerank.models.raise_ import RAISEConfig
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import Categorical, Dense, ListBatch, ListSchema

NO_HISTORY = {"history_vocab_sizes": [], "history_shared_tables": [], "num_history_dense": 0}
NO_USER = {"user_vocab_sizes": [], "num_user_dense": 0}


def pooled(vectors: list[np.ndarray], affinities: list[float], width: int) -> np.ndarray:
    if not vectors:
        return np.zeros(width)
    return sum(weight * vector for weight, vector in zip(softmax(affinities), vectors, strict=True))


def mixture_weights(w: Weights, config: RAISEConfig, row, items: list[np.ndarray]) -> np.ndarray:
    """Mixture weights of one list, [blocks, 3, T], from its items [L][hidden_size] without positions."""
    known = []
    if config.history_vocab_sizes:
        vectors = history_vectors(w, row, "intention.history_embedding.")
        known += [linear(w, "intention.of_history", x) for x in vectors]
    if config.user_vocab_sizes:
        known.append(linear(w, "intention.of_user", user_vector(w, row)))
    affinity = [[np.tanh(u @ w["intention.affinity.weight"] @ x) for x in items] for u in known]
    of_known = [np.mean(to_items) for to_items in affinity]
    of_items = [np.mean([affinity[j][i] for j in range(len(known))]) if known else 0.0 for i in range(len(items))]
    intention = np.concatenate(
        [pooled(known, of_known, config.hidden_size), pooled(items, of_items, config.hidden_size)]
    )
    logits = linear(w, "gate.2", np.maximum(linear(w, "gate.0", intention), 0))
    logits = logits.reshape(config.num_hidden_layers, 3, config.num_mixtures)
    return np.array([[softmax(one) for one in block] for block in logits])


def raise_scores(w: Weights, config: RAISEConfig, row) -> tuple[list[float], list[np.ndarray], np.ndarray]:
    """Scores of one list's real items, each block's attention weights [heads, L, L], and the mixture weights."""
    vectors, width = item_vectors(w, row), config.hidden_size
    pi = mixture_weights(w, config, row, [linear(w, "projection", x) for x in vectors])
    if config.position_input == "embedding":
        vectors = [x + w["positions.weight"][place] for x, place in zip(vectors, row["position_ids"], strict=True)]
    items = [linear(w, "projection", x) for x in vectors]
    attentions = []
    for b in range(config.num_hidden_layers):
        block = weights_of_part(w, f"blocks.{b}.")
        projected = []
        for part in range(3):  # query, key, value
            rows, matrix, bias = slice(part * width, (part + 1) * width), 0.0, 0.0
            for t in range(config.num_mixtures):
                matrix = matrix + pi[b, part, t] * block[f"mixtures.{t}.weight"][rows]
                bias = bias + pi[b, part, t] * block[f"mixtures.{t}.bias"][rows]
            projected.append([matrix @ x + bias for x in items])
        joined, weights = attention(*projected, config.num_attention_heads)
        items = finish_block(block, items, joined)
        attentions.append(weights)
    return [linear(w, "scorer", x).item() for x in items], attentions, pi


def without_user(lists):
    return {column: values for column, values in lists.items() if "user" not in column}


SHAPES = [
    {},
    {"num_attention_heads": 1, "num_hidden_layers": 1},
    {"num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 5},
    {"position_input": "none"},
]


@pytest.mark.parametrize("known", ["both", "user", "history"])
@pytest.mark.parametrize("num_mixtures", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: ",".join(shape))
def test_scores_and_weights_follow_the_equations(tiny, shape, num_mixtures, known):
    options = {"both": {}, "user": NO_HISTORY, "history": NO_USER}[known]
    model = tiny.model("raise", output_attentions=True, num_mixtures=num_mixtures, **shape, **options)
    lists = with_histories(tiny.lists((6, 4, 1, 5)), (3, 0, 1, 2))
    if known == "history":
        lists = without_user(lists)
    weights = randomize_weights(model)
    output = model(**lists)
    for number, mask, row in rows_of(lists):
        expected, attentions, _ = raise_scores(weights, model.config, row)
        logits = output.logits[number].detach().numpy()
        np.testing.assert_allclose(logits[mask], expected, atol=1e-5)
        assert (logits[~mask] == np.finfo(np.float32).min).all()
        for found, by_hand in zip(output.attentions, attentions, strict=True):
            real = found[number].detach().numpy()[:, mask]
            np.testing.assert_allclose(real[:, :, mask], by_hand, atol=1e-5)
            assert not real[:, :, ~mask].any(), "padding is not attended to"


def model_mixture_weights(model, lists) -> torch.Tensor:
    """The model's mixture weights, [B, blocks, 3, T]."""
    return model.embed(ListBatch(**lists))["mixture"]


def test_mixture_weights_follow_the_equations_and_differ(tiny):
    """They sum to 1, and differ between blocks, between query, key and value, and between lists."""
    model, lists = tiny.model("raise", num_mixtures=4), with_histories(tiny.lists((6, 4, 1, 5)), (3, 0, 1, 2))
    weights = randomize_weights(model)
    found = model_mixture_weights(model, lists).detach()
    assert found.shape == (4, 2, 3, 4)
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 2, 3), atol=1e-6, rtol=0)
    assert (found > 0).all()
    for number, _, row in rows_of(lists):
        np.testing.assert_allclose(found[number].numpy(), raise_scores(weights, model.config, row)[2], atol=1e-6)
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (found[:, :, one] - found[:, :, other]).abs().max() > 1e-3
        assert (found[one] - found[other]).abs().max() > 1e-3


@pytest.mark.parametrize("num_mixtures", [1, 4])
def test_history_acts_only_through_the_mixtures(tiny, num_mixtures):
    """Users with the same features and the same list, but different histories: only T > 1 distinguishes them."""
    model = tiny.model("raise", num_mixtures=num_mixtures)
    randomize_weights(model)
    lists = {column: values[:1].repeat(2, *[1] * (values.dim() - 1)) for column, values in tiny.lists((6,)).items()}
    lists["history_mask"] = torch.ones(2, 3, dtype=torch.bool)
    lists["history_categorical"] = torch.tensor([[[2, 3], [4, 5], [6, 7]], [[8, 9], [10, 11], [12, 13]]])
    one, other = model_mixture_weights(model, lists)
    differ = (one - other).abs().max()
    scores = model(**lists).logits
    if num_mixtures == 1:
        assert differ == 0
        torch.testing.assert_close(scores[0], scores[1], atol=1e-6, rtol=0)
    else:
        assert differ > 1e-2
        assert (scores[0] - scores[1]).abs().max() > 1e-2


def test_a_single_mixture_is_a_plain_encoder(tiny):
    """T = 1 equals PRM's stack of ``EncoderBlock`` with the same weights."""
    model, lists = tiny.model("raise", num_mixtures=1, output_attentions=True), tiny.lists((6, 4, 1, 5, 0))
    randomize_weights(model)
    plain = tiny.model("prm", num_hidden_layers=2, output_attentions=True)
    assert all(type(block) is EncoderBlock for block in plain.blocks)
    renamed = {name.replace("mixtures.0", "query_key_value"): value for name, value in model.state_dict().items()}
    loading = plain.load_state_dict(renamed, strict=False)
    assert loading.missing_keys == []
    assert {name.split(".")[0] for name in loading.unexpected_keys} == {"intention", "gate"}
    found, expected = model.double()(**lists), plain.double()(**lists)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-12, rtol=0)
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("known", ["both", "user", "history"])
def test_empty_histories_and_lists_give_finite_scores(tiny, known):
    """Also for a list of padding only; garbage at history padding changes nothing."""
    options = {"both": {}, "user": NO_HISTORY, "history": NO_USER}[known]
    model, lists = tiny.model("raise", **options), tiny.lists((6, 4, 0))
    randomize_weights(model)
    if known == "history":
        lists = without_user(lists)
    lists["history_mask"] = torch.zeros_like(lists["history_mask"])
    expected = model(**lists)
    assert expected.logits.isfinite().all()
    assert model_mixture_weights(model, lists).isfinite().all()
    garbage = {**lists, "history_dense": torch.full_like(lists["history_dense"], 1e3)}
    garbage["history_categorical"] = torch.full_like(lists["history_categorical"], 7)
    torch.testing.assert_close(model(**garbage).logits, expected.logits, atol=1e-6, rtol=0)


def test_the_intention_does_not_depend_on_item_or_history_order(tiny):
    """It is computed once for all passes, and treats items and history as sets."""
    model, lists = tiny.model("raise", num_mixtures=4).double(), tiny.lists((6, 6))
    randomize_weights(model)
    lists = {name: values.double() if values.is_floating_point() else values for name, values in lists.items()}
    slots = [3, 0, 5, 1, 4, 2]
    moved = {
        name: values[:, slots] if name.startswith("item") else values.flip(1) if "history" in name else values
        for name, values in lists.items()
    }
    torch.testing.assert_close(
        model_mixture_weights(model, moved), model_mixture_weights(model, lists), atol=1e-12, rtol=0
    )


def fitted_schema(**parts):
    schema = ListSchema(items=[Categorical("item"), Dense("price")], **parts)
    row = {"item": [1, 2], "price": [1.0, 2.0], "gender": 0, "minutes": 3.0, "seen": [1, 2], "ago": [1.0, 2.0]}
    return ListProcessor.from_lists(pa.Table.from_pylist([{**row, "click": [0, 1]}] * 2), schema=schema).schema


def test_a_schema_without_user_and_history_features_is_rejected():
    """The error is raised with the config and says what to do; any one user or history feature is enough."""
    with pytest.raises(InputError, match=r"RAISE.*neither user nor history features: add some, or choose .*PRM"):
        RAISEConfig.for_schema(fitted_schema())
    with pytest.raises(InputError, match=r"RAISE.*neither user nor history"):
        RAISEConfig.preset("paper", fitted_schema())
    for parts in (
        {"user": [Categorical("gender")]},
        {"user": [Dense("minutes")]},
        {"history": [Categorical("seen", shares="item")]},
        {"history": [Dense("ago")]},
    ):
        assert RAISEConfig.for_schema(fitted_schema(**parts)).num_mixtures == 4
    assert RAISEConfig().item_vocab_sizes == []


def test_own_loss_is_the_binary_log_loss(tiny):
    lists = tiny.lists()
    own, binary = (tiny.model("raise", task_loss=loss)(**lists).loss for loss in ("own", "binary_log_loss"))
    assert torch.equal(own, binary)


def test_scores_follow_from_the_last_hidden_states(tiny):
    model, lists = tiny.model("raise", output_hidden_states=True), tiny.lists()
    output = model(**lists)
    assert [state.shape for state in output.hidden_states] == [(4, 6, 8)] * 3
    scores = model.scorer(output.hidden_states[-1]).squeeze(-1)
    assert torch.equal(scores[lists["mask"]], output.logits[lists["mask"]])


def test_parameter_count_matches_written_out_arithmetic(tiny):
    """Item and user: 13 + 5 numbers; history item: 2 tables x 4 + 1 number; T = 2, two blocks."""
    tables, positions, projection, scorer = 3 * 20 * 4, 8 * 18, 18 * 8 + 8, 8 + 1
    rest = (8 * 8 + 8) + 2 * 8 + (8 * 8 + 8) + (8 * 8 + 8) + 2 * 8
    gate = (16 * 8 + 8) + (8 * 2 * 3 * 2 + 2 * 3 * 2)
    intention = (5 * 8 + 8) + 8 * 8
    user = tables + positions + projection + scorer + gate + intention + 2 * (2 * (8 * 24 + 24) + rest)
    assert tiny.model("raise", **NO_HISTORY).num_parameters() == user
    assert tiny.model("raise").num_parameters() == user + 20 * 4 + (9 * 8 + 8)
    third = tiny.model("raise", num_mixtures=3, **NO_HISTORY).num_parameters() - user
    assert third == 2 * (8 * 24 + 24) + (8 + 1) * 2 * 3


def test_presets_have_the_published_sizes():
    """32 wide, T among 1, 2, 4, 8, 10; the benchmark has no RAISE but uses widths of 64 and dropout 0.2."""
    paper, ad, prm = (RAISEConfig.presets[name] for name in ("paper", "librerank-ad", "librerank-prm"))
    assert paper["hidden_size"] == 32
    assert RAISEConfig().num_mixtures in (1, 2, 4, 8, 10)
    assert RAISEConfig().num_hidden_layers in (1, 2, 3, 5, 8, 10)
    assert 0.1 <= RAISEConfig().hidden_dropout_prob <= 0.5
    assert (ad["hidden_size"], ad["intermediate_size"], ad["hidden_dropout_prob"]) == (64, 64, 0.2)
    assert ad == prm
