"""The pointwise DNN against its equation, item by item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import linear, randomize_weights


def dnn_score(w, hidden_layers: int, item: dict[str, np.ndarray], position: int | None) -> float:
    """MLP of one item's features and its user's, with ReLU after each hidden layer."""
    parts = [w[f"item_embedding.item_tables.{f}.weight"][id_] for f, id_ in enumerate(item["item_categorical"])]
    parts += [item["item_dense"], item["item_vectors"]]
    parts += [w[f"item_embedding.user_tables.{f}.weight"][id_] for f, id_ in enumerate(item["user_categorical"])]
    x = np.concatenate([*parts, item["user_dense"]])
    if position is not None:
        x = x + w["positions.weight"][position]
    for layer in range(hidden_layers):
        x = np.maximum(linear(w, f"network.layers.{layer}", x), 0)
    return linear(w, "scorer", x).item()


@pytest.mark.parametrize("position_input", ["embedding", "none"])
@pytest.mark.parametrize("hidden_sizes", [[8], [7, 5, 3]], ids=str)
def test_scores_follow_the_equation(tiny, hidden_sizes, position_input):
    model = tiny.model("dnn", hidden_sizes=hidden_sizes, position_input=position_input)
    lists = tiny.lists((6, 4, 1, 5))
    weights = randomize_weights(model)
    logits = model(**lists).logits.detach().numpy()
    numbers = {column: values.numpy() for column, values in lists.items()}
    for row, slot in np.argwhere(numbers["mask"]):
        item = {column: numbers[column][row, slot] for column in ("item_categorical", "item_dense", "item_vectors")}
        item |= {column: numbers[column][row] for column in ("user_categorical", "user_dense")}
        position = numbers["position_ids"][row, slot] if position_input == "embedding" else None
        expected = dnn_score(weights, len(hidden_sizes), item, position)
        assert logits[row, slot] == pytest.approx(expected, abs=1e-5)
    assert (logits[~numbers["mask"]] == np.finfo(np.float32).min).all()


def test_other_items_do_not_change_a_score(tiny):
    """Pointwise: neither features, position nor presence of other items change a score."""
    model, lists = tiny.model("dnn"), tiny.lists((6, 6))
    others = tiny.lists((6, 6), seed=99)
    expected = model(**lists).logits[:, 2]
    for column in ("item_categorical", "item_dense", "item_vectors", "position_ids"):
        changed = others[column].clone()
        changed[:, 2] = lists[column][:, 2]
        logits = model(**{**lists, column: changed}).logits
        assert torch.equal(logits[:, 2], expected)
        assert not torch.equal(logits[:, 3], model(**lists).logits[:, 3]), column
    alone = {**lists, "mask": torch.arange(6).repeat(2, 1) == 2}
    assert torch.equal(model(**alone).logits[:, 2], expected)


def test_padding_has_the_positions_after_the_items(tiny):
    """Scores and vectors without ``position_ids``: items count from 0 in slot order, then the slots of padding."""
    model, lists = tiny.model("dnn"), tiny.lists((6, 6))
    given = {name: values for name, values in lists.items() if name not in ("labels", "position_ids")}
    given["mask"] = torch.tensor([[0, 0, 0, 0, 1, 1], [1, 0, 1, 1, 1, 0]]).bool()
    positions = torch.tensor([[2, 3, 4, 5, 0, 1], [0, 4, 1, 2, 3, 5]])
    assert torch.equal(model(**given).logits, model(**given, position_ids=positions).logits)
    assert torch.equal(model.encode_items(**given), model.encode_items(**given, position_ids=positions))


def test_own_loss_is_the_binary_log_loss(tiny):
    lists = tiny.lists()
    own, binary = (tiny.model("dnn", task_loss=loss)(**lists).loss for loss in ("own", "binary_log_loss"))
    assert torch.equal(own, binary)


def test_attentions_and_hidden_states_are_none(tiny):
    output = tiny.model("dnn", output_attentions=True, output_hidden_states=True)(**tiny.lists())
    assert output.attentions is None
    assert output.hidden_states is None


def test_parameter_count_matches_written_out_arithmetic(tiny):
    """Item: 2 tables x 4 + 2 dense + 3 vector; user: 1 table x 4 + 1 dense: 18 numbers."""
    tables, positions, network = 3 * 20 * 4, 8 * 18, (18 * 7 + 7) + (7 * 5 + 5) + (5 + 1)
    assert tiny.model("dnn", hidden_sizes=[7, 5]).num_parameters() == tables + positions + network == 563
    assert tiny.model("dnn", hidden_sizes=[7, 5], position_input="none").num_parameters() == tables + network
