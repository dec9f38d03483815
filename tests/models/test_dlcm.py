"""DLCM against its equations, including the GRU's, written out in plain loops; and the GRU's reading direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import Weights, item_vectors, linear, randomize_weights, rows_of, sigmoid
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hf_rerank.models.dlcm import DLCMConfig


def elu(x):
    return np.where(x > 0, x, np.exp(x) - 1)


def widen(w: Weights, x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, elu(linear(w, "widening.2", elu(linear(w, "widening.0", x))))])


def gru(w: Weights, layer: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of one layer; as in torch, the reset gate r acts after the state's matrix, not before."""
    into, of_state = w[f"gru.weight_ih_l{layer}"], w[f"gru.weight_hh_l{layer}"]
    into_bias, of_state_bias = w[f"gru.bias_ih_l{layer}"], w[f"gru.bias_hh_l{layer}"]
    state = np.zeros(of_state.shape[1])
    outputs = []
    for x in inputs:
        x_r, x_z, x_n = np.split(into @ x + into_bias, 3)
        h_r, h_z, h_n = np.split(of_state @ state + of_state_bias, 3)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        state = (1 - z) * np.tanh(x_n + r * h_n) + z * state
        outputs.append(state)
    return outputs


def score(w: Weights, config: DLCMConfig, output: np.ndarray, state: np.ndarray) -> float:
    """One item's output against the list's state."""
    of_state = linear(w, "of_state", state)
    if config.scoring == "multiply":
        return linear(w, "scorer", output * np.tanh(of_state)).item()
    size, total = config.hidden_size, 0.0
    for h in range(config.num_scoring_heads):
        head = slice(h * size, (h + 1) * size)
        if config.scoring == "multi":
            found = output @ np.tanh(of_state[head])
        else:
            found = w["of_both.weight"][h] @ np.tanh(w["of_item.weight"][head] @ output + of_state[head])
        total += w["scorer.weight"][0, h] * found
    return total / config.num_scoring_heads


def dlcm_scores(w: Weights, config: DLCMConfig, row) -> list[float]:
    """Scores of one list without padding, by slot."""
    items = item_vectors(w, row)
    if config.input_size > len(items[0]):
        items = [widen(w, x) for x in items]
    if config.position_input == "sequence+embedding":
        items = [x + w["positions.weight"][place] for x, place in zip(items, row["position_ids"], strict=True)]
    slots = sorted(range(len(items)), key=lambda slot: -row["position_ids"][slot])  # the last position first
    outputs = [items[slot] for slot in slots]
    for layer in range(config.num_hidden_layers):
        outputs = gru(w, layer, outputs)
    scores = dict(zip(slots, (score(w, config, output, outputs[-1]) for output in outputs), strict=True))
    lowest = 0.0 if config.task_loss == "binary_log_loss" else min(scores.values())
    return [scores[slot] - lowest for slot in range(len(items))]


SHAPES = [
    {},
    {"num_hidden_layers": 2},
    {"input_size": 0},
    {"input_size": 18},  # as wide as the item's vector: nothing is appended
    {"input_size": 19, "hidden_size": 5},
    {"position_input": "sequence+embedding"},
    {"position_input": "sequence+embedding", "input_size": 0, "num_hidden_layers": 2},
    {"scoring": "multi"},
    {"scoring": "multi", "num_scoring_heads": 1, "num_hidden_layers": 2},
    {"scoring": "add"},
    {"scoring": "add", "num_scoring_heads": 2, "position_input": "sequence+embedding"},
]


@pytest.mark.parametrize("task_loss", ["binary_log_loss", "own"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_follow_the_equations(tiny, shape, task_loss):
    model, lists = tiny.model("dlcm", task_loss=task_loss, **shape), tiny.lists((6, 4, 1, 5))
    weights = randomize_weights(model)
    logits = model(**lists).logits.detach().numpy()
    for number, mask, row in rows_of(lists):
        expected = dlcm_scores(weights, model.config, row)
        np.testing.assert_allclose(logits[number][mask], expected, atol=1e-5)
        assert (logits[number][~mask] == np.finfo(np.float32).min).all()


@pytest.mark.parametrize(
    "shape",
    [{}, {"num_hidden_layers": 2, "input_size": 0}, {"scoring": "add", "position_input": "sequence+embedding"}],
    ids=str,
)
def test_soft_order_matches_written_out_arithmetic(tiny, shape):
    """A position reads the mean of the items weighted by their shares; an item's output is the mean over positions."""
    model, lists = tiny.model("dlcm", **shape), tiny.lists((6, 4, 1))
    weights, config = randomize_weights(model), model.config
    draw = torch.Generator().manual_seed(4)
    soft = torch.eye(6).repeat(3, 1, 1)
    for row, length in enumerate((6, 4, 1)):
        soft[row, :length, :length] = torch.randn(length, length, generator=draw).softmax(-1)
    logits = model(**{**lists, "position_ids": soft}).logits.detach().numpy()
    for number, mask, row in rows_of({column: values for column, values in lists.items() if column != "position_ids"}):
        items, length = item_vectors(weights, row), int(mask.sum())
        shares = soft[number, :length, :length].double().numpy()
        if config.input_size:
            items = [widen(weights, x) for x in items]
        if config.position_input == "sequence+embedding":
            table = weights["positions.weight"]
            items = [x + sum(shares[i, p] * table[p] for p in range(length)) for i, x in enumerate(items)]
        places = []
        for p in range(length):
            places.append(sum(shares[i, p] * items[i] for i in range(length)) / sum(shares[:, p]))
        outputs = places[::-1]
        for layer in range(config.num_hidden_layers):
            outputs = gru(weights, layer, outputs)
        outputs = outputs[::-1]  # by position again; the state is that of position 0
        expected = []
        for i in range(length):
            output = sum(shares[i, p] * outputs[p] for p in range(length))
            expected.append(score(weights, config, output, outputs[0]))
        np.testing.assert_allclose(logits[number][mask], expected, atol=1e-5)


@pytest.mark.parametrize("num_hidden_layers", [1, 2])
def test_reading_equals_packed_sequences(tiny, num_hidden_layers):
    """Scattering into reading order gives the same as torch's packed sequences."""
    model = tiny.model("dlcm", num_hidden_layers=num_hidden_layers)
    lists = tiny.lists((6, 4, 1, 5, 2))
    items = torch.randn(5, 6, 26, generator=torch.Generator().manual_seed(4))
    outputs, state = model.run_gru(items, lists["mask"], lists["position_ids"])
    lengths = lists["mask"].sum(1)
    slots = [
        sorted(range(int(length)), key=lambda slot, row=row: -int(lists["position_ids"][row, slot]))
        for row, length in enumerate(lengths)
    ]
    shown = torch.zeros(5, 6, 26)
    for row, order in enumerate(slots):
        shown[row, : len(order)] = items[row, order]
    packed = pack_padded_sequence(shown, lengths, batch_first=True, enforce_sorted=False)
    expected, last = model.gru(packed)
    expected, _ = pad_packed_sequence(expected, batch_first=True)
    torch.testing.assert_close(state, last[-1], atol=1e-6, rtol=0)
    for row, order in enumerate(slots):
        torch.testing.assert_close(outputs[row, order], expected[row, : len(order)], atol=1e-6, rtol=0)


def test_the_top_item_is_read_last(tiny):
    """An item's output depends on the items below it and on none above; the state is the output of the top item."""
    model, lists = tiny.model("dlcm"), tiny.lists((6, 4, 1))
    mask, places = lists["mask"], lists["position_ids"]
    items = torch.randn(3, 6, 26, generator=torch.Generator().manual_seed(4))
    outputs, state = model.run_gru(items, mask, places)
    for row, length in enumerate((6, 4, 1)):
        top = int((places[row] == 0).nonzero())
        assert torch.equal(state[row], outputs[row, top])
        for changed in range(length):
            other = items.clone()
            other[row, changed] += 1
            found, _ = model.run_gru(other, mask, places)
            for slot in range(length):
                same = torch.equal(found[row, slot], outputs[row, slot])
                assert same == bool(places[row, slot] > places[row, changed]), (row, changed, slot)


def test_the_state_ignores_padding(tiny):
    model, lists = tiny.model("dlcm", num_hidden_layers=2), tiny.lists((6, 4, 1, 0))
    mask = lists["mask"]
    draw = torch.Generator().manual_seed(4)
    items = torch.randn(4, 6, 26, generator=draw)
    outputs, state = model.run_gru(items, mask, lists["position_ids"])
    filled = torch.where(mask.unsqueeze(-1), items, 1000 * torch.randn(4, 6, 26, generator=draw))
    found, found_state = model.run_gru(filled, mask, lists["position_ids"])
    assert torch.equal(found[mask], outputs[mask])
    assert torch.equal(found_state[:3], state[:3])


def test_the_state_depends_on_the_order(tiny):
    model, lists = tiny.model("dlcm"), tiny.lists((6, 6))
    items = torch.randn(2, 6, 26, generator=torch.Generator().manual_seed(4))
    _, state = model.run_gru(items, lists["mask"], lists["position_ids"])
    for one in range(6):
        for other in range(one):
            swapped = lists["position_ids"].clone()
            swapped[:, [one, other]] = swapped[:, [other, one]]
            assert not torch.isclose(model.run_gru(items, lists["mask"], swapped)[1], state).all()


def test_own_loss_matches_written_out_arithmetic(tiny):
    """-sum_i a_i log softmax(s)_i, a_i = exp(y_i) / sum over clicked items of exp(y); mean over lists with an item."""
    lists = tiny.lists((6, 4, 1, 5, 0))
    lists["labels"][0, :6] = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.0, 0.0])
    lists["labels"][1, :4] = 0.0
    model = tiny.model("dlcm", task_loss="own")
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
    assert per_list[1] == 0
    assert output.loss.item() == pytest.approx(np.mean(per_list), abs=1e-6)


def test_own_loss_of_clicks_is_the_softmax_loss(tiny):
    """The two are equal for labels 0 and 1."""
    lists = tiny.lists()
    own, softmax = (tiny.model("dlcm", task_loss=loss)(**lists).loss.item() for loss in ("own", "softmax_loss"))
    assert own == pytest.approx(softmax, abs=1e-6)


def test_parameter_count_matches_written_out_arithmetic(tiny):
    """Item: 2 tables x 4 + 2 dense + 3 vector; user: 1 table x 4 + 1 dense: 18 numbers; 8 are appended."""
    tables = 3 * 20 * 4
    widening = (18 * 13 + 13) + (13 * 8 + 8)
    gru = 3 * 6 * (26 + 6) + 2 * 3 * 6
    assert tiny.model("dlcm").num_parameters() == tables + widening + gru + (6 * 6 + 6) + 6 == 1259
    plain = 3 * 6 * (18 + 6) + 2 * 3 * 6
    assert tiny.model("dlcm", input_size=0).num_parameters() == tables + plain + (6 * 6 + 6) + 6
    multi, add = (tiny.model("dlcm", input_size=0, scoring=scoring).num_parameters() for scoring in ("multi", "add"))
    assert multi == tables + plain + 3 * (6 * 6 + 6) + 3
    assert add == multi + 3 * 6 * 6 + 3 * 6
    embedded = tiny.model("dlcm", input_size=0, position_input="sequence+embedding").num_parameters()
    assert embedded == tables + 8 * 18 + plain + (6 * 6 + 6) + 6


def test_presets_have_the_published_sizes():
    """The authors' code: three averaged heads; the benchmark's: a GRU of 64 over the raw features."""
    paper, ad, prm = (DLCMConfig.presets[name] for name in ("paper", "librerank-ad", "librerank-prm"))
    assert (
        paper["hidden_size"],
        paper["scoring"],
        DLCMConfig().num_scoring_heads,
        DLCMConfig().num_hidden_layers,
    ) == (
        1024,
        "multi",
        3,
        1,
    )
    assert (ad["input_size"], ad["hidden_dropout_prob"], DLCMConfig().hidden_size, DLCMConfig().scoring) == (
        0,
        0.2,
        64,
        "multiply",
    )
    assert ad == prm
    assert {preset["task_loss"] for preset in (paper, ad)} == {"own"}
