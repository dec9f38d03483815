"""Contracts of scoring: padding, batches, slots, the given order, ranking."""

from __future__ import annotations

import torch

from hf_rerank.testing.candidate import (
    OF_SLOTS,
    Candidate,
    assert_same_gradients,
    expect_refusal,
    gradients,
    tolerances,
)
from hf_rerank.testing.objectives import at_one_step


def padded_equals_unpadded(candidate: Candidate) -> None:
    """Padding changes nothing: the same lists in 8 slots instead of 6, with garbage in all features at padding."""
    model, narrow = candidate.model(), candidate.lists()
    mask = torch.nn.functional.pad(narrow["mask"], (0, 2))
    wide = {}
    for column, filler in candidate.lists((8, 8, 8, 8), width=8, seed=9).items():
        if column in OF_SLOTS:
            garbage = filler * 1000 if filler.is_floating_point() else filler
            garbage[:, :6][narrow["mask"]] = narrow[column][narrow["mask"]]
            wide[column] = garbage
    wide["position_ids"][~mask] = torch.arange(8).repeat(4, 1)[~mask]
    wide["mask"] = mask
    for column in ("user_categorical", "user_dense"):
        if column in narrow:
            wide[column] = narrow[column]
    for column in ("history_categorical", "history_dense", "history_mask"):
        if column not in narrow:
            continue
        extra = torch.full_like(narrow[column][:, :1], 0 if column == "history_mask" else 3)
        wide[column] = torch.cat([narrow[column], extra], dim=1)
    for objective in (None, at_one_step()):
        expected, found = model(**narrow, objective=objective), model(**wide, objective=objective)
        torch.testing.assert_close(
            found.logits[:, :6][narrow["mask"]], expected.logits[narrow["mask"]], **tolerances()
        )
        torch.testing.assert_close(found.loss, expected.loss, **tolerances())
        found.loss.backward()
        wide_gradients = gradients(model)
        expected.loss.backward()
        assert_same_gradients(wide_gradients, gradients(model))


def batch_of_one_equals_batch_of_many(candidate: Candidate) -> None:
    """A list's scores do not depend on the other lists of the batch."""
    model, lists = candidate.model(), candidate.lists()
    together = model(**lists).logits
    for row in range(4):
        alone = model(**{column: values[row : row + 1] for column, values in lists.items()}).logits
        torch.testing.assert_close(alone[0], together[row], **tolerances())


def slots_carry_no_meaning(candidate: Candidate) -> None:
    """If items move to other slots together with P, padding in between, the scores move with them."""
    model, lists = candidate.model(), candidate.lists()
    draw = torch.Generator().manual_seed(3)
    slots = torch.stack([torch.randperm(6, generator=draw) for _ in range(4)])
    rows = torch.arange(4)[:, None]
    moved = {column: values[rows, slots] if column in OF_SLOTS else values for column, values in lists.items()}
    for objective in (None, at_one_step()):
        expected, found = model(**lists, objective=objective), model(**moved, objective=objective)
        torch.testing.assert_close(found.logits, expected.logits[rows, slots], **tolerances())
        torch.testing.assert_close(found.loss, expected.loss, **tolerances())


def position_input(candidate: Candidate) -> None:
    """``none`` does not read P; every other choice does."""
    lists = candidate.lists((6, 6, 6, 6))
    other = {**lists, "position_ids": lists["position_ids"].flip(1)}
    assert not torch.equal(lists["position_ids"], other["position_ids"])
    for choice in candidate.config_class.position_inputs():
        model = candidate.model(position_input=choice)
        same = torch.equal(model(**lists).logits, model(**other).logits)
        assert same == (choice == "none"), choice


def slots_are_the_order_where_none_is_given(candidate: Candidate) -> None:
    """Without positions the order is that of the real items' slots; without a mask all slots are real."""
    model, lists = candidate.model(), candidate.lists((6, 6))
    shown = {**lists, "position_ids": torch.arange(6).repeat(2, 1)}
    expected = model(**shown).logits
    del shown["position_ids"], shown["mask"]
    assert torch.equal(model(**shown).logits, expected)
    # Two items and four: padding before them, and between them.
    lists = {**candidate.lists((2, 4)), "position_ids": torch.arange(6).repeat(2, 1)}
    slots, rows = torch.tensor([[2, 3, 4, 5, 0, 1], [4, 0, 1, 5, 2, 3]]), torch.arange(2)[:, None]
    moved = {column: values[rows, slots] if column in OF_SLOTS else values for column, values in lists.items()}
    del moved["position_ids"]
    torch.testing.assert_close(model(**moved).logits, model(**lists).logits[rows, slots], **tolerances())


def rank(candidate: Candidate) -> None:
    """Ranking works in evaluation mode; in training mode, which would drop ids and states, it is refused."""
    model, lists = candidate.model(unknown_rate=0.9), candidate.lists((6, 4, 1, 5, 0))
    order, scores = model.rank(**{column: values for column, values in lists.items() if column != "labels"})
    assert not model.training
    assert not scores.requires_grad
    assert torch.equal(scores, model(**lists).logits)
    assert order.dtype == torch.int64
    for slots, logits, mask in zip(order.tolist(), scores, lists["mask"], strict=True):
        assert sorted(slots) == list(range(6))
        assert mask[slots].tolist() == sorted(mask.tolist(), reverse=True), "padding last"
        ranked = logits[slots][: mask.sum()].tolist()
        assert ranked == sorted(ranked, reverse=True)
    model.train()
    with expect_refusal(r"is in training mode: call model\.eval\(\) before ranking"):
        model.rank(**lists)
    assert model.training


def states_and_attention_weights(candidate: Candidate) -> None:
    """On request, attention weights are distributions over real items, and scores do not change."""
    model, lists = candidate.model(), candidate.lists((6, 4, 1, 5, 0))
    expected = model(**lists)
    assert expected.hidden_states is None
    assert expected.attentions is None
    model.set_attn_implementation("eager")
    model.config.output_attentions = model.config.output_hidden_states = True
    found = model(**lists)
    torch.testing.assert_close(found.logits, expected.logits, **tolerances())
    for state in found.hidden_states or ():
        assert state.shape[0] == 5
    some = lists["mask"].any(1)
    for weights in found.attentions or ():
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)), **tolerances())
        if weights.shape[-1] != lists["mask"].shape[1]:  # attends to more than the items
            continue
        on_padding = weights.sum((1, 2)).masked_fill(lists["mask"], 0.0)
        assert not on_padding[some].any()
