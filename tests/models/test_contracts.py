"""What holds for every re-ranker: one suite over the table of models.

A new model needs a row in the table, and a line in ``TINY`` of conftest.py where its defaults are large. That its ONNX
graph gives the same ranking is checked in tests/test_onnx_export.py, over the same table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from hf_rerank.errors import InputError
from hf_rerank.losses import TASK_LOSSES
from hf_rerank.models.auto import RERANKERS, AutoReranker
from hf_rerank.principled import PRESETS, Perturbed, PrincipledObjective, Soft, hard_order, soft_order
from hf_rerank.principled.orders import keyed_perturb, step_keys

ATOL = 1e-6
FEATURES = ("item_categorical", "item_dense", "item_vectors", "position_ids", "mask", "labels")

pytestmark = pytest.mark.parametrize("name", RERANKERS)


# Written out from the table of presets in the documentation: weights of the pairs (1, 2), (1, 3) and (2, 3).
BY_HAND: dict[str, dict[str, Any]] = {
    "scaled": {"weights": (2, 0.5, 0), "squashed": True, "output": False, "over": "moves", "every": False},
    "paper": {"weights": (1, 1, 0), "squashed": True, "output": False, "over": "one", "every": False},
    "reference": {"weights": (1, 1, 1), "squashed": False, "output": True, "over": "items", "every": True},
    "augmentation": {"weights": (0, 0, 0), "every": True},
}


def with_soft_order(name: str, soft: Soft) -> PrincipledObjective:
    """The preset with this soft order in place of the model's own."""

    def changed(order: Any) -> Any:
        if isinstance(order, Perturbed):
            return replace(order, of=changed(order.of))
        return soft if order == "own" else order

    passes = tuple(replace(entry, order=changed(entry.order)) for entry in PRESETS[name].passes)
    return replace(PRESETS[name], passes=passes)


SOFT = {
    "softsort": with_soft_order("scaled", Soft()),
    "neuralsort": with_soft_order("scaled", Soft("neuralsort", temperature=0.5)),
    "sinkhorn": with_soft_order("reference", Soft(sinkhorn=3)),
    "straight_through": with_soft_order("scaled", Soft("neuralsort", straight_through=True)),
    "everything": with_soft_order("reference", Soft("neuralsort", sinkhorn=2, straight_through=True)),
}
# Where the task loss has a term that is not of the items: off for arithmetic of the items' terms alone.
ITEMS_ALONE: dict[str, dict[str, Any]] = {"pear": {"list_loss_weight": 0}}


def principled(objective: str | PrincipledObjective = "scaled", lists: int = 4) -> Callable[..., Any]:
    """A preset, or another objective, at one step."""
    objective = PRESETS[objective] if isinstance(objective, str) else objective
    return objective.at(step=3, list_keys=torch.arange(10, 10 + lists))


def spied(objective: Callable[..., Any], calls: list[tuple[torch.Tensor, torch.Tensor | None]]):
    """The objective, noting the orders of each encoder call and the rows that they are of."""

    def noting(score, *rest):
        def scored(orders, lists=None, **options):
            calls.append((orders, lists))
            return score(orders, lists, **options)

        return objective(scored, *rest)

    return noting


def scored(model, lists: dict[str, torch.Tensor], *given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The logits of each ``score(orders)`` or ``score(orders, lists)``, all inside one forward."""
    found = []

    def objective(score, position_ids, labels, mask, task_loss):
        output = score(position_ids)
        found.extend(score(*one).logits for one in given)
        return {"loss": output.logits[mask].sum()}

    model(**lists, objective=objective)
    return found


def rows_of(lists: dict[str, torch.Tensor], rows: torch.Tensor, orders: torch.Tensor) -> dict[str, torch.Tensor]:
    return {column: values[rows] for column, values in lists.items()} | {"position_ids": orders}


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(found, expected, atol=ATOL):
    assert found.keys() == expected.keys()
    for weight, gradient in expected.items():
        torch.testing.assert_close(
            found[weight], gradient, atol=atol, rtol=0, msg=lambda text, w=weight: f"{w}: {text}"
        )


def position_inputs(name: str) -> tuple[str, ...]:
    return next(get_args(entry.type) for entry in fields(RERANKERS[name][0]) if entry.name == "position_input")


def ranking(scores: np.ndarray) -> np.ndarray:
    """The place of each slot, best first, ties in slot order."""
    order = sorted(range(len(scores)), key=lambda slot: (-scores[slot], slot))
    return np.argsort(order)


def log_loss(logits, labels, mask) -> torch.Tensor:
    """Mean over each list's items, then over the lists that have any."""
    per_list = []
    for row in mask.any(1).nonzero()[:, 0]:
        chance, clicked = 1 / (1 + (-logits[row][mask[row]]).exp()), labels[row][mask[row]]
        per_list.append(-(clicked * chance.log() + (1 - clicked) * (1 - chance).log()).mean())
    return sum(per_list) / len(per_list)


def by_hand(passes, shown, labels, mask, drawn, preset: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The objective from the logits of three separate passes, list by list, under binary log-loss.

    Args:
        passes: Logits of all lists in the given order, then those of the lists ``drawn`` in the orders 2 and 3.
        shown: The three orders of the lists drawn.
        labels: Of all lists.
        mask: Of all lists.
        drawn: Rows.
        preset: A row of ``BY_HAND``.
    """
    terms = {"task_loss": log_loss(passes[0], labels, mask)}
    loss = terms["task_loss"]
    if preset["every"]:
        terms["further_task_loss"] = sum(log_loss(logits, labels[drawn], mask[drawn]) for logits in passes[1:])
        loss = loss + terms["further_task_loss"]
    compared = [passes[0][drawn], *passes[1:]]
    names = ("convergence_loss", "adversarial_loss", "cross_loss")
    for name, (a, b), weight in zip(names, ((0, 1), (0, 2), (1, 2)), preset["weights"], strict=True):
        if not weight:
            continue
        values = []
        for row, real in enumerate(mask[drawn]):
            if not real.any():
                continue
            one, other = compared[a][row][real], compared[b][row][real]
            if preset["output"]:
                places, other_places = (torch.tensor(ranking(scores.detach().numpy())) for scores in (one, other))
            else:
                places, other_places = shown[a][row][real], shown[b][row][real]
            moved = (places - other_places).abs()
            if preset["squashed"]:
                one, other = 1 / (1 + (-one).exp()), 1 / (1 + (-other).exp())
            over = {"one": 1, "items": len(one), "moves": max(moved.sum(), 1)}[preset["over"]]
            values.append((moved * (one - other) ** 2).sum() / over)
        terms[name] = sum(values) / len(values)
        loss = loss + weight * terms[name]
    return {**terms, "loss": loss}


class TestSaving:
    def test_load_equals_save_to_the_bit(self, name, tiny, tmp_path):
        model, lists = tiny.model(name), tiny.lists()
        model.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
        for loader in (RERANKERS[name][1], AutoModel, AutoReranker):
            loaded = loader.from_pretrained(tmp_path)
            assert type(loaded) is RERANKERS[name][1]
            assert not loaded.training
            assert loaded.state_dict().keys() == model.state_dict().keys()
            for weight, value in model.state_dict().items():
                assert torch.equal(loaded.state_dict()[weight], value), weight
            assert torch.equal(loaded(**lists).logits, model(**lists).logits)
        assert type(AutoConfig.from_pretrained(tmp_path)) is RERANKERS[name][0]

    @pytest.mark.parametrize(("change", "message"), [("missing", "missing"), ("renamed", "missing"), ("cut", "shape")])
    def test_weights_that_are_not_all_there(self, name, tiny, tmp_path, change, message):
        model = tiny.model(name)
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        first = min(weights)
        value = weights.pop(first)
        if change != "missing":
            weights[first + "x" if change == "renamed" else first] = value[..., :-1].contiguous()
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        for loader in (RERANKERS[name][1], AutoModel, AutoReranker):
            with pytest.raises(InputError, match=f"{message}.*{first}"):
                loader.from_pretrained(tmp_path)

    def test_same_seed_same_weights(self, name, tiny):
        first, again, other = (tiny.model(name, seed=seed).state_dict() for seed in (7, 7, 8))
        assert all(torch.equal(first[weight], again[weight]) for weight in first)
        drawn = [weight for weight, value in first.items() if value.unique().numel() > 1]
        assert len(drawn) >= len(first) / 3
        assert not any(torch.equal(first[weight], other[weight]) for weight in drawn)


class TestInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda lists: {**lists, "item_categorical": lists["item_categorical"][..., :1]}, "1 features.*2"),
            (lambda lists: {**lists, "item_dense": lists["item_dense"][..., :1]}, "numbers wide"),
            (lambda lists: {**lists, "item_vectors": None}, "vector"),
            (lambda lists: {**lists, "user_categorical": None}, "user"),
        ],
    )
    def test_of_another_processor(self, name, tiny, change, message):
        with pytest.raises(InputError, match=message):
            tiny.model(name)(**change(tiny.lists()))

    def test_longer_than_the_positions(self, name, tiny):
        with pytest.raises(InputError, match=r"9 slots.*max_list_length=8"):
            tiny.model(name)(**tiny.lists((9, 2), width=9))


class TestTraining:
    def test_every_parameter_gets_a_gradient_and_moves(self, name, tiny):
        for objective in (None, *map(principled, PRESETS)):
            model = tiny.model(name).train()
            before = {weight: value.clone() for weight, value in model.named_parameters()}
            model(**tiny.lists(), objective=objective).loss.backward()
            grads = {weight: value.grad for weight, value in model.named_parameters()}
            assert [weight for weight, grad in grads.items() if grad is None or not grad.any()] == []
            torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0).step()
            still = [weight for weight, value in model.named_parameters() if torch.equal(value, before[weight])]
            assert still == []
            tables = [module for module in model.modules() if getattr(module, "padding_idx", None) == 0]
            assert tables
            assert not any(table.weight[0].any() for table in tables), "the row of padding stays 0"

    def test_ids_are_dropped_in_training_only(self, name, tiny):
        model, lists = tiny.model(name, unknown_rate=0.9), tiny.lists()
        assert torch.equal(model(**lists).logits, model(**lists).logits)
        torch.manual_seed(0)
        model.train()(**lists).loss.backward()
        table = model.get_parameter("item_embedding.item_tables.0.weight")
        assert table.grad[1].any(), "the row of the unknown value is trained"

    def test_accumulated_equals_whole(self, name, tiny):
        """In two parts and in four, with every preset, in float64; with the default in float32 too."""
        lists = tiny.lists((6, 4, 2, 5, 6, 1, 3, 4))
        keys = torch.arange(10, 18)
        for dtype, atol, presets in ((torch.float64, 1e-12, PRESETS), (torch.float32, ATOL, ["scaled"])):
            model = tiny.model(name).to(dtype).train()
            for preset, parts in itertools.product(presets, (2, 4)):
                model(**lists, objective=principled(preset, 8)).loss.backward()
                expected = gradients(model)
                for part in range(parts):
                    share = {column: values.chunk(parts)[part] for column, values in lists.items()}
                    objective = PRESETS[preset].at(step=3, list_keys=keys.chunk(parts)[part])
                    (model(**share, objective=objective).loss / parts).backward()
                assert_same_gradients(gradients(model), expected, atol)

    @pytest.mark.parametrize("task_loss", [*TASK_LOSSES, "own"])
    def test_edge_lists_are_finite(self, name, tiny, task_loss):
        """One item, only padding, no clicks, all clicks, together and alone, with every preset and soft order."""
        lists = tiny.lists((1, 0, 6, 6))
        lists["labels"][2, :6], lists["labels"][3, :6] = 0.0, 1.0
        model = tiny.model(name, task_loss=task_loss).train()
        in_logits = {}
        for kind, objective in {"scaled": PRESETS["scaled"], **SOFT}.items():
            terms = tuple(replace(term, space="logit") for term in objective.terms)
            in_logits[kind] = replace(objective, terms=terms)
        for objective in (*in_logits.values(), *PRESETS.values()):
            self.check_edge_lists(model, lists, objective.for_task_loss(model.config.task_loss_name))

    def check_edge_lists(self, model, lists, objective):
        for rows in (slice(0, 4), *(slice(row, row + 1) for row in range(4))):
            share = {column: values[rows] for column, values in lists.items()}
            output = model(**share, objective=objective.at(step=0))
            output.loss.backward()
            assert output.logits.isfinite().all()
            assert output.loss.isfinite()
            assert all(value.isfinite() for value in output.losses.values())
            assert all(gradient.isfinite().all() for gradient in gradients(model).values())
            if not share["mask"].any():
                assert output.loss == 0
            for scores, mask in zip(output.logits, share["mask"], strict=True):
                assert not mask.any() or mask.all() or scores[~mask].max() < scores[mask].min()

    @pytest.mark.parametrize("fraction", [1.0, 0.5])
    @pytest.mark.parametrize("preset", BY_HAND)
    def test_two_encoder_calls_equal_three_passes(self, name, tiny, preset, fraction):
        """Of six lists all, or three, are shown the orders 2 and 3: each is scored by a forward of its own."""
        model, lists = tiny.model(name, **ITEMS_ALONE.get(name, {})), tiny.lists((6, 4, 1, 5, 0, 3))
        mask, given = lists["mask"], lists["position_ids"]
        calls: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        objective = principled(replace(PRESETS[preset], fraction=fraction), 6)
        output = model(**lists, objective=spied(objective, calls))
        (first, first_rows), (second, second_rows) = calls
        later = 6 if fraction == 1 else 3
        if fraction == 1:
            assert first_rows is None
            drawn = torch.arange(6)
        else:
            drawn = second_rows[:3]
            assert len(set(drawn.tolist())) == 3
            assert mask[drawn].any()
        if preset == "reference":
            assert [len(first), len(second)] == [6, 2 * later], "both later orders ride together"
            own, disturbed = second.chunk(2)
            before = own
            if fraction < 1:
                assert first_rows is None
                assert second_rows.tolist() == drawn.tolist() * 2
        else:
            assert [len(first), len(second)] == [6 + later, later], "the given and the disturbed order ride together"
            own, disturbed = second, first[6:]
            before = given[drawn]
            if fraction < 1:
                assert first_rows.tolist() == [*range(6), *drawn.tolist()]
                assert second_rows.tolist() == drawn.tolist()
        assert torch.equal(first[:6], given)
        keys = step_keys(torch.arange(10, 16), seed=0, step=3)[drawn]
        assert torch.equal(disturbed, keyed_perturb(before, mask[drawn], keys)), "each list by its own key"

        passes = [model(**lists).logits]
        passes += [model(**rows_of(lists, drawn, order)).logits for order in (own, disturbed)]
        torch.testing.assert_close(output.logits, passes[0], atol=ATOL, rtol=0)
        for row, number in enumerate(drawn):
            real = mask[number].numpy()
            assert (own[row].numpy()[real] == ranking(passes[0][number].detach().numpy()[real])).all()
            moved = (before[row] - disturbed[row]).abs()
            assert moved.tolist().count(1) == moved.sum() == (2 if real.sum() > 1 else 0)
        shown = (given[drawn], own, disturbed)
        expected = by_hand(passes, shown, lists["labels"], mask, drawn, BY_HAND[preset])
        assert expected.keys() == {"loss", *output.losses}
        for term, value in {**output.losses, "loss": output.loss}.items():
            assert value.item() == pytest.approx(expected[term].item(), abs=ATOL), term
        output.loss.backward()
        found = gradients(model)
        expected["loss"].backward()
        assert_same_gradients(found, gradients(model), atol=1e-5)

    def test_presets_embed_once_and_score_at_most_twice(self, name, tiny, monkeypatch):
        model, lists, calls = tiny.model(name).train(), tiny.lists(), []
        for step in ("embed", "score"):
            real = getattr(model, step)
            monkeypatch.setattr(model, step, lambda *args, real=real, step=step: calls.append(step) or real(*args))
        for preset in PRESETS:
            calls.clear()
            model(**lists, objective=principled(preset))
            assert calls == ["embed", *["score"] * (1 if preset == "none" else 2)], preset

    def test_labels_at_padding_never_matter(self, name, tiny):
        model, lists = tiny.model(name), tiny.lists()
        reference = model(**lists, weights=lists["mask"].float(), objective=principled())
        reference.loss.backward()
        expected = gradients(model)
        for filler in (0.0, 1.0, torch.nan, torch.inf):
            padding = ~lists["mask"]
            labels = lists["labels"].masked_fill(padding, filler)
            weights = lists["mask"].float().masked_fill(padding, filler)
            output = model(**{**lists, "labels": labels}, weights=weights, objective=principled())
            output.loss.backward()
            assert torch.equal(output.loss, reference.loss)
            assert_same_gradients(gradients(model), expected)

    def test_weights_multiply_the_items_terms(self, name, tiny):
        """The default loss: the mean over a list's items of weight times log-loss, then over lists."""
        model, lists = tiny.model(name, **ITEMS_ALONE.get(name, {})), tiny.lists()
        weights = torch.rand(lists["mask"].shape, generator=torch.Generator().manual_seed(5)) * 3
        output = model(**lists, weights=weights)
        logits, labels, factors = (
            part.detach().double().numpy() for part in (output.logits, lists["labels"], weights)
        )
        per_list = []
        for row, real in enumerate(lists["mask"].numpy()):
            chance, clicked = 1 / (1 + np.exp(-logits[row, real])), labels[row, real]
            log_loss = -(clicked * np.log(chance) + (1 - clicked) * np.log(1 - chance))
            per_list.append(np.mean(factors[row, real] * log_loss))
        assert output.loss.item() == pytest.approx(np.mean(per_list), abs=ATOL)
        losses = model(**lists, weights=weights, objective=principled()).losses
        assert losses["task_loss"].item() == pytest.approx(np.mean(per_list), abs=ATOL)
        assert output.loss.item() != pytest.approx(model(**lists).loss.item(), abs=1e-3)


class TestLists:
    def test_padded_equals_unpadded(self, name, tiny):
        """The same lists in 8 slots instead of 6, with garbage in all features at padding."""
        model, narrow = tiny.model(name), tiny.lists()
        mask = torch.nn.functional.pad(narrow["mask"], (0, 2))
        wide = {}
        for column, filler in tiny.lists((8, 8, 8, 8), width=8, seed=9).items():
            if column in FEATURES:
                garbage = filler * 1000 if filler.is_floating_point() else filler
                garbage[:, :6][narrow["mask"]] = narrow[column][narrow["mask"]]
                wide[column] = garbage
        wide["position_ids"][~mask] = torch.arange(8).repeat(4, 1)[~mask]
        wide["mask"] = mask
        for column in ("user_categorical", "user_dense"):
            wide[column] = narrow[column]
        for column in ("history_categorical", "history_dense", "history_mask"):
            extra = torch.full_like(narrow[column][:, :1], 0 if column == "history_mask" else 3)
            wide[column] = torch.cat([narrow[column], extra], dim=1)
        for objective in (None, principled()):
            expected, found = model(**narrow, objective=objective), model(**wide, objective=objective)
            torch.testing.assert_close(found.logits[:, :6][narrow["mask"]], expected.logits[narrow["mask"]], **close())
            torch.testing.assert_close(found.loss, expected.loss, **close())
            found.loss.backward()
            wide_gradients = gradients(model)
            expected.loss.backward()
            assert_same_gradients(wide_gradients, gradients(model))

    def test_batch_of_one_equals_batch_of_many(self, name, tiny):
        model, lists = tiny.model(name), tiny.lists()
        together = model(**lists).logits
        for row in range(4):
            alone = model(**{column: values[row : row + 1] for column, values in lists.items()}).logits
            torch.testing.assert_close(alone[0], together[row], **close())

    def test_slots_carry_no_meaning(self, name, tiny):
        """Items moved to other slots together with P, padding in between: the scores move alike."""
        model, lists = tiny.model(name), tiny.lists()
        draw = torch.Generator().manual_seed(3)
        slots = torch.stack([torch.randperm(6, generator=draw) for _ in range(4)])
        rows = torch.arange(4)[:, None]
        moved = {column: values[rows, slots] if column in FEATURES else values for column, values in lists.items()}
        for objective in (None, principled()):
            expected, found = model(**lists, objective=objective), model(**moved, objective=objective)
            torch.testing.assert_close(found.logits, expected.logits[rows, slots], **close())
            torch.testing.assert_close(found.loss, expected.loss, **close())

    def test_position_input(self, name, tiny):
        """``none`` does not look at P; every other choice does."""
        lists = tiny.lists((6, 6, 6, 6))
        other = {**lists, "position_ids": lists["position_ids"].flip(1)}
        assert not torch.equal(lists["position_ids"], other["position_ids"])
        for choice in position_inputs(name):
            model = tiny.model(name, position_input=choice)
            same = torch.equal(model(**lists).logits, model(**other).logits)
            assert same == (choice == "none"), choice

    def test_slots_are_the_order_where_none_is_given(self, name, tiny):
        model, lists = tiny.model(name), tiny.lists((6, 6))
        shown = {**lists, "position_ids": torch.arange(6).repeat(2, 1)}
        expected = model(**shown).logits
        del shown["position_ids"], shown["mask"]
        assert torch.equal(model(**shown).logits, expected)

    def test_rank(self, name, tiny):
        """Of a model in evaluation mode; in training mode ids and states would be dropped, so it is refused."""
        model, lists = tiny.model(name, unknown_rate=0.9), tiny.lists((6, 4, 1, 5, 0))
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
        with pytest.raises(InputError, match=r"is in training mode: call model\.eval\(\) before ranking"):
            model.rank(**lists)
        assert model.training

    def test_states_and_attention_weights(self, name, tiny):
        model, lists = tiny.model(name), tiny.lists((6, 4, 1, 5, 0))
        expected = model(**lists)
        assert expected.hidden_states is None
        assert expected.attentions is None
        model.set_attn_implementation("eager")
        model.config.output_attentions = model.config.output_hidden_states = True
        found = model(**lists)
        torch.testing.assert_close(found.logits, expected.logits, **close())
        for state in found.hidden_states or ():
            assert state.shape[0] == 5
        some = lists["mask"].any(1)
        for weights in found.attentions or ():
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)), **close())
            if name == "pear":  # looks at history, items and its token: see its own test
                continue
            on_padding = weights.sum((1, 2)).masked_fill(lists["mask"], 0.0)
            assert not on_padding[some].any()


class TestSoftOrders:
    def test_matrix_of_an_order_equals_the_order(self, name, tiny):
        """Scores and gradients, for two orders at once; ``hard_order`` is 0 and 1."""
        lists = tiny.lists((6, 4, 1, 5, 0))
        given, mask = lists["position_ids"], lists["mask"]
        orders = torch.cat([given, ranked_backwards(given, mask)])
        factors = torch.rand(10, 6, generator=torch.Generator().manual_seed(6))
        real = mask.repeat(2, 1)
        for choice in position_inputs(name):
            model = tiny.model(name, position_input=choice)
            by_place, by_matrix = scored(model, lists, (orders,), (hard_order(orders),))
            torch.testing.assert_close(by_matrix, by_place, **close())
            alone = [model(**{**lists, "position_ids": order}).logits for order in orders.chunk(2)]
            torch.testing.assert_close(by_matrix, torch.cat(alone), **close())
            (by_place * factors)[real].sum().backward(retain_graph=True)
            expected = gradients(model)
            (by_matrix * factors)[real].sum().backward()
            assert_same_gradients(gradients(model), expected, atol=1e-5)

    def test_gradient_of_the_order_is_that_of_finite_differences(self, name, tiny):
        """In float64; ``none`` does not look at the order, and has no gradient."""
        lists = tiny.lists((4, 3), width=4)
        mask = lists["mask"]
        scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        order = soft_order(scores, mask).requires_grad_()
        for choice in position_inputs(name):
            model = tiny.model(name, position_input=choice).double()

            def logits(order, model=model):
                return scored(model, lists, (order,))[0][mask]

            if choice == "none":
                torch.testing.assert_close(logits(order), model(**lists).logits[mask], **close())
                (gradient,) = torch.autograd.grad(logits(order).sum(), order, allow_unused=True)
                assert gradient is None or not gradient.any()
                continue
            assert torch.autograd.gradcheck(logits, (order,), fast_mode=True)
            (gradient,) = torch.autograd.grad(logits(order).square().sum(), order)
            assert (gradient[mask].abs().sum(-1) > 0).all(), "each item's places count"

    @pytest.mark.parametrize("kind", SOFT)
    def test_gradient_of_training_is_that_of_finite_differences(self, name, tiny, kind):
        """Along a random direction of all weights, in float64; straight-through has no loss that it is exact for."""
        model = tiny.model(name).double()
        lists = {**tiny.lists((6, 4, 1, 5)), "labels": tiny.lists((6, 4, 1, 5))["labels"].double()}
        objective = principled(SOFT[kind])
        loss = model(**lists, objective=objective).loss
        assert loss.dtype == torch.float64
        loss.backward()
        if kind in ("straight_through", "everything"):
            assert all(gradient.isfinite().all() for gradient in gradients(model).values())
            return
        draw = torch.Generator().manual_seed(8)
        found, ways = 0.0, {}
        for weight, gradient in gradients(model).items():
            ways[weight] = torch.randn(gradient.shape, generator=draw, dtype=torch.float64)
            found += (ways[weight] * gradient).sum().item()
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for weight, way in ways.items():
                    model.get_parameter(weight).add_(way, alpha=step)
                ends.append(model(**lists, objective=objective).loss.item())
        assert found == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-6)

    def test_straight_through_changes_the_gradient_alone(self, name, tiny):
        """It shows the hard order, so every loss is the same; the gradient flows through the ranking too."""
        model, lists = tiny.model(name), tiny.lists()
        hard = model(**lists, objective=principled())
        hard.loss.backward()
        without = gradients(model)
        through = model(**lists, objective=principled(with_soft_order("scaled", Soft(straight_through=True))))
        through.loss.backward()
        assert through.losses.keys() == hard.losses.keys()
        for term, value in {**hard.losses, "loss": hard.loss}.items():
            torch.testing.assert_close({**through.losses, "loss": through.loss}[term], value, **close())
        differences = [(gradient - without[weight]).abs().max() for weight, gradient in gradients(model).items()]
        assert max(differences) > 1e-4

    def test_rows_of_the_batch_equal_those_lists_alone(self, name, tiny):
        """Any rows, in any order, one of them twice; places and soft orders."""
        model, lists = tiny.model(name), tiny.lists((6, 4, 1, 5, 0))
        rows = torch.tensor([3, 0, 4, 3, 1])
        draw = torch.Generator().manual_seed(9)
        mask = lists["mask"][rows]
        scores = torch.randn(5, 6, generator=draw)
        order, soft = ranked_backwards(lists["position_ids"][rows], mask), soft_order(scores, mask)
        by_place, by_matrix, one = scored(model, lists, (order, rows), (soft, rows), (soft[1:2], rows[1:2]))
        assert by_place.shape == by_matrix.shape == (5, 6)
        torch.testing.assert_close(by_place, model(**rows_of(lists, rows, order)).logits, **close())
        alone = scored(model, rows_of(lists, rows, order), (soft,))[0]
        torch.testing.assert_close(by_matrix, alone, **close())
        torch.testing.assert_close(one, alone[1:2], **close())

    def test_task_loss_of_rows_equals_that_of_those_lists(self, name, tiny):
        model, lists = tiny.model(name), tiny.lists((6, 4, 1, 5, 0))
        rows = torch.tensor([3, 0, 4, 1])
        weights = torch.rand(5, 6, generator=torch.Generator().manual_seed(10)) + 0.5
        order = lists["position_ids"][rows]
        for factors in (None, weights):
            found = []

            def objective(score, position_ids, labels, mask, task_loss, found=found):
                found.append(task_loss(score(position_ids)))
                found.append(task_loss(score(order, rows), rows))
                return {"loss": found[0]}

            model(**lists, weights=factors, objective=objective)
            alone = model(**rows_of(lists, rows, order), weights=None if factors is None else factors[rows]).loss
            torch.testing.assert_close(found[0], model(**lists, weights=factors).loss, **close())
            torch.testing.assert_close(found[1], alone, **close())


class TestNumbers:
    def test_bf16_is_close(self, name, tiny):
        lists = tiny.lists((6, 4, 1, 5, 0))
        model, narrow = tiny.model(name).train(), tiny.model(name).train().to(torch.bfloat16)
        expected = model(**lists, objective=principled("scaled", 5))
        spread = expected.logits[lists["mask"]].std()

        with torch.autocast("cpu", torch.bfloat16):
            cast = model(**lists, objective=principled("scaled", 5))
        converted = narrow(**lists, objective=principled("scaled", 5))
        for output, trained in ((cast, model), (converted, narrow)):
            assert output.logits.dtype == torch.bfloat16
            assert output.loss.dtype == torch.float32
            difference = (output.logits.float() - expected.logits)[lists["mask"]].abs()
            assert 0 < difference.max() < 0.05 * max(1.0, spread)
            assert abs(output.losses["task_loss"] - expected.losses["task_loss"]) < 0.02
            assert not (output.logits[:, None, :] >= output.logits[:, :, None])[
                lists["mask"][:, :, None] & ~lists["mask"][:, None, :]
            ].any()
            trained.zero_grad()
            output.loss.backward()
            assert all(gradient.isfinite().all() for gradient in gradients(trained).values())

    @pytest.mark.parametrize("kind", SOFT)
    def test_bf16_soft_orders_are_close(self, name, tiny, kind):
        """The order is computed in float32, whatever the scores are."""
        lists = tiny.lists((6, 4, 1, 5, 0))
        model, narrow = tiny.model(name), tiny.model(name).to(torch.bfloat16)
        expected = model(**lists, objective=principled(SOFT[kind], 5)).losses["task_loss"]
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(**lists, objective=principled(SOFT[kind], 5))
        for output, trained in ((cast, model), (narrow(**lists, objective=principled(SOFT[kind], 5)), narrow)):
            assert output.logits.dtype == torch.bfloat16
            assert output.loss.dtype == torch.float32
            assert abs(output.losses["task_loss"] - expected) < 0.02
            output.loss.backward()
            assert all(gradient.isfinite().all() for gradient in gradients(trained).values())

    def test_bf16_without_tables(self, name, tiny):
        """Dense features alone are float32 in a model that is not."""
        none = {"item_vocab_sizes": [], "user_vocab_sizes": [], "history_vocab_sizes": [], "history_shared_tables": []}
        model = tiny.model(name, **none).to(torch.bfloat16)
        lists = {column: values for column, values in tiny.lists().items() if "categorical" not in column}
        logits = model(torch.zeros(4, 6, 0, dtype=torch.int64), **lists).logits
        assert logits.dtype == torch.bfloat16
        assert logits.isfinite().all()

    @pytest.mark.parametrize(
        "kinds",
        [
            pytest.param(("scaled",), id="scaled"),
            pytest.param(("reference", "r_drop", "soft"), id="others", marks=pytest.mark.slow),
        ],
    )
    def test_compiled_equals_eager(self, name, tiny, kinds):
        """Tracing only; the passes of the objective go through one compiled call too."""
        model, lists = tiny.model(name), tiny.lists()
        known = {**PRESETS, "soft": replace(SOFT["softsort"], fraction=0.5)}
        compiled = torch.compile(model, backend="aot_eager")
        for kind in kinds:
            expected, found = (call(**lists, objective=principled(known[kind])) for call in (model, compiled))
            torch.testing.assert_close(found.logits, expected.logits, **close())
            torch.testing.assert_close(found.loss, expected.loss, **close())

    @pytest.mark.slow
    def test_generated_code_equals_eager(self, name, tiny):
        lists = {column: values for column, values in tiny.lists().items() if column != "labels"}
        model = tiny.model(name)
        with torch.no_grad():
            found = torch.compile(model)(**lists).logits
            torch.testing.assert_close(found, model(**lists).logits, **close())


@pytest.mark.slow
def test_two_processes_equal_one(name, tiny, two_processes):
    """Gradients and losses, with every preset, in float64, of one run of two processes for all models."""
    model = tiny.model(name).double().train()
    for preset in PRESETS:
        loss = model(**tiny.lists(), objective=principled(preset)).loss
        loss.backward()
        expected = gradients(model)
        ranks = [load_file(two_processes / name / f"{preset}-{rank}.safetensors") for rank in range(2)]
        assert [rank.pop("processes").item() for rank in ranks] == [2, 2]
        losses = [rank.pop("loss").item() for rank in ranks]
        assert losses[0] != losses[1], "each process had lists of its own"
        assert sum(losses) / 2 == pytest.approx(loss.item(), abs=1e-12)
        for rank in ranks:
            assert_same_gradients(rank, expected, 1e-12)


def ranked_backwards(positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The real items turned round: place p becomes n - 1 - p; padding stays."""
    return torch.where(mask, mask.sum(-1, keepdim=True) - 1 - positions, positions)


def close() -> dict[str, float]:
    return {"atol": ATOL, "rtol": ATOL}
