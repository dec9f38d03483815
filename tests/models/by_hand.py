"""A second implementation of the shared parts of the re-rankers: numpy, one list and one item at a time.

Written from the equations, in double precision and without padding; the tests of each model combine these parts
with the weights of the model under test. Features are those of conftest.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

OF_ITEMS = ("item_categorical", "item_dense", "item_vectors", "position_ids", "labels")
IDS = ("item_categorical", "user_categorical", "history_categorical", "position_ids")
Weights = dict[str, np.ndarray]


def randomize_weights(model) -> Weights:
    """Makes all weights distinct and returns them (norms start at 1 and biases at 0, which would hide mistakes)."""
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
    return weights_of(model)


def weights_of(model) -> Weights:
    return {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}


def rows_of(lists) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
    """Each list's index, its mask, and its real items and real history items as numpy arrays."""
    for number, mask in enumerate(lists["mask"].numpy()):
        row = {column: values[number].double().numpy() for column, values in lists.items() if "mask" not in column}
        for column in row:
            if column in OF_ITEMS:
                row[column] = row[column][mask]
            elif column.startswith("history"):
                row[column] = row[column][lists["history_mask"][number].numpy()]
            if column in IDS:
                row[column] = row[column].astype(int)
        yield number, mask, row


def with_histories(lists: dict[str, torch.Tensor], lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The lists with random histories of these lengths, in 3 slots."""
    draw = torch.Generator().manual_seed(6)
    mask = torch.arange(3) < torch.tensor(lengths)[:, None]
    return {
        **lists,
        "history_mask": mask,
        "history_categorical": torch.randint(2, 20, (len(lengths), 3, 2), generator=draw) * mask[..., None],
        "history_dense": torch.randn(len(lengths), 3, 1, generator=draw) * mask[..., None],
    }


def weights_of_part(w: Weights, prefix: str) -> Weights:
    """The weights of one part of the model, keyed by their names within it."""
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)


def softmax(logits) -> np.ndarray:
    return np.exp(logits) / np.sum(np.exp(logits))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(vector, weight, bias):
    return (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5) * weight + bias


def user_vector(w: Weights, row) -> np.ndarray:
    """[tables ; dense] of the list's user; empty without user features."""
    ids = row.get("user_categorical", ())
    parts = [w[f"item_embedding.user_tables.{f}.weight"][id_] for f, id_ in enumerate(ids)]
    return np.concatenate([*parts, row.get("user_dense", [])])


def item_vectors(w: Weights, row) -> list[np.ndarray]:
    """[item tables ; item dense ; item vectors ; user tables ; user dense] of each item."""
    items = []
    for i, ids in enumerate(row["item_categorical"]):
        parts = [w[f"item_embedding.item_tables.{f}.weight"][id_] for f, id_ in enumerate(ids)]
        items.append(np.concatenate([*parts, row["item_dense"][i], row["item_vectors"][i], user_vector(w, row)]))
    return items


def history_vectors(w: Weights, row, prefix: str = "history_embedding.") -> list[np.ndarray]:
    """[tables ; dense] of each history item: the first feature reads the first item table, the second its own."""
    items = []
    for (first, second), dense in zip(row["history_categorical"], row["history_dense"], strict=True):
        of_first = w["item_embedding.item_tables.0.weight"][first]
        items.append(np.concatenate([of_first, w[f"{prefix}tables.0.weight"][second], dense]))
    return items


def attention(queries, keys, values, heads: int) -> tuple[list[np.ndarray], np.ndarray]:
    """For each query, the heads' weighted means, concatenated; and the weights [heads, queries, keys]."""
    queries, keys, values = ([part.reshape(heads, -1) for part in side] for side in (queries, keys, values))
    weights = np.zeros((heads, len(queries), len(keys)))
    joined = []
    for i, query in enumerate(queries):
        for h in range(heads):
            weights[h, i] = softmax([query[h] @ key[h] / np.sqrt(len(key[h])) for key in keys])
        means = [sum(weights[h, i, j] * value[h] for j, value in enumerate(values)) for h in range(heads)]
        joined.append(np.concatenate(means))
    return joined, weights


def finish_block(block: Weights, items, joined) -> list[np.ndarray]:
    """The part of a post-norm block after the heads: projection, residual, norm; network, residual, norm."""
    after = []
    for item, heads in zip(items, joined, strict=True):
        x = item + linear(block, "attention_output", heads)
        x = layer_norm(x, block["attention_norm.weight"], block["attention_norm.bias"])
        x = x + linear(block, "output", np.maximum(linear(block, "intermediate", x), 0))
        after.append(layer_norm(x, block["output_norm.weight"], block["output_norm.bias"]))
    return after


def encoder_block(block: Weights, items, heads: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Self-attention over the items; returns the new items and the attention weights [heads, L, L]."""
    queries, keys, values = zip(*(np.split(linear(block, "query_key_value", x), 3) for x in items), strict=True)
    joined, weights = attention(queries, keys, values, heads)
    return finish_block(block, items, joined), weights
