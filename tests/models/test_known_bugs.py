"""Bugs of public implementations of the re-rankers, model by model, that this library must not have.

Each docstring describes the bug; each name states the correct behaviour.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import item_vectors, layer_norm, linear, randomize_weights, rows_of, sigmoid, weights_of, with_histories

FEATURES = ("item_categorical", "item_dense", "item_vectors")


def same_list_for_two_users(lists):
    """The first list twice, for two users."""
    return {column: values[:1].repeat(2, *[1] * (values.dim() - 1)) for column, values in lists.items()}


class TestDLCM:
    def test_the_list_is_read_from_its_last_position(self, tiny):
        """Direction dropped: read from the top, the state has just read the worst item.

        Here the item in the last position is read first: its output is the GRU's for this item alone.
        """
        model, lists = tiny.model("dlcm"), tiny.lists((6, 4, 1))
        items = torch.randn(3, 6, 26, generator=torch.Generator().manual_seed(4))
        outputs, _ = model.run_gru(items, lists["mask"], lists["position_ids"])
        for row, length in enumerate((6, 4, 1)):
            lowest = int((lists["position_ids"][row] == length - 1).nonzero())
            alone, _ = model.gru(items[row : row + 1, lowest : lowest + 1])
            torch.testing.assert_close(outputs[row, lowest], alone[0, 0], atol=1e-6, rtol=0)

    def test_the_given_order_is_read_instead_of_slot_order(self, tiny):
        """Storage order is read whatever the given order: every order gives the same scores."""
        model, lists = tiny.model("dlcm"), tiny.lists((6, 6))
        other = {**lists, "position_ids": lists["position_ids"].flip(1)}
        assert (model(**other).logits - model(**lists).logits).abs().min() > 0

    @pytest.mark.parametrize("sign", [1, -1])
    def test_padding_does_not_outrank_items_after_subtracting_the_minimum(self, tiny, sign):
        """Padding scored 0 before the minimum is subtracted: it outranks every list whose scores are below 0.

        With one of the two signs of the last layer, the scores of a one-item list are below 0.
        """
        model, lists = tiny.model("dlcm", task_loss="own"), tiny.lists((1, 1, 2, 4))
        with torch.no_grad():
            model.scorer.weight.mul_(sign)
        logits, mask = model(**lists).logits, lists["mask"]
        for scores, real in zip(logits, mask, strict=True):
            assert scores[real].min() == 0, "the lowest item, not padding, has score 0"
            assert scores[~real].max() < 0
        order, _ = model.rank(**lists)
        assert all(mask[row, order[row, : mask[row].sum()]].all() for row in range(4))

    def test_lowest_item_gets_a_gradient_under_log_loss(self, tiny):
        """Minimum subtracted under the log loss: the lowest item stays at one half and moves the others instead.

        Each raw score's gradient is (sigmoid - y) / items / lists, including the lowest one's.
        """
        model, lists = tiny.model("dlcm"), tiny.lists((6, 4))
        raw = []
        against = model.score_against_state

        def kept(*args):
            raw.append(against(*args))
            raw[0].retain_grad()
            return raw[0]

        model.score_against_state = kept
        model(**lists).loss.backward()
        mask = lists["mask"]
        expected = (sigmoid(raw[0].detach().numpy()) - lists["labels"].numpy()) / mask.sum(1, keepdim=True).numpy() / 2
        np.testing.assert_allclose(raw[0].grad[mask].numpy(), expected[mask.numpy()], atol=1e-6)


class TestMiDNN:
    def test_padding_is_excluded_from_minimum_and_maximum(self, tiny):
        """Minimum and maximum include padding: its values change the relative features of every real item."""
        lists = tiny.lists((6, 4, 2, 5))
        for column in ("item_dense", "item_vectors"):
            lists[column] = lists[column] + 10 * lists["mask"][..., None]  # 0 at padding would be the smallest
        for position_input in ("embedding", "none"):
            model = tiny.model("midnn", position_input=position_input)
            together = model(**lists).logits
            for row, mask in enumerate(lists["mask"]):
                alone = {column: values[row : row + 1] for column, values in lists.items()}
                for column in (*FEATURES, "position_ids", "labels", "mask"):
                    alone[column] = alone[column][:, mask]
                torch.testing.assert_close(model(**alone).logits[0], together[row, mask], atol=1e-6, rtol=0)

    @pytest.mark.parametrize("column", FEATURES)
    def test_embeddings_and_numbers_are_both_compared(self, tiny, column):
        """Minimum and maximum of embeddings only, or of numbers only: other items' remaining values have no effect."""
        model, lists = tiny.model("midnn"), tiny.lists((3,))
        randomize_weights(model)
        other = {**lists, column: lists[column].clone()}
        other[column][0, 0] = tiny.lists((3,), seed=5)[column][0, 0]
        assert (model(**other).logits - model(**lists).logits)[0, 1:3].abs().max() > 1e-4

    def test_constant_columns_give_finite_values(self, tiny):
        """0 / 0: a feature with equal values for all items, as in any list of one item."""
        model, lists = tiny.model("midnn", position_input="none").train(), tiny.lists((6, 1))
        for column in FEATURES:
            lists[column][:] = lists[column][:, :1]
        output = model(**lists)
        output.loss.backward()
        assert output.logits.isfinite().all()
        assert all(weight.grad.isfinite().all() for weight in model.parameters())


class TestPRM:
    def test_user_features_change_the_scores(self, tiny):
        """User features unused: a list gets the same scores for every user."""
        model, lists = tiny.model("prm"), same_list_for_two_users(tiny.lists((6,)))
        for column, value in (("user_categorical", 3), ("user_dense", 0.7)):
            other = {**lists, column: lists[column].clone()}
            other[column][1] = other[column][0] + value if column == "user_dense" else value
            one, two = model(**other).logits
            assert (one - two).abs().min() > 1e-4

    def test_binary_log_loss_takes_sigmoids_not_softmax_outputs(self, tiny):
        """Softmax outputs under the *binary* log loss: at most one item of a list can be likely.

        Here all items can be likely, and each item's loss is that of its own sigmoid.
        """
        model, lists = tiny.model("prm", task_loss="binary_log_loss"), tiny.lists((6, 4))
        randomize_weights(model)
        with torch.no_grad():
            model.scorer.bias.fill_(10.0)  # every item is likely
        lists["labels"] = torch.where(lists["mask"], 1.0, -100.0)
        output = model(**lists)
        assert (output.logits[lists["mask"]].sigmoid() > 0.9).all()
        per_list = []
        for number, mask, _ in rows_of(lists):
            per_list.append(-np.log(sigmoid(output.logits[number].detach().double().numpy()[mask])).mean())
        assert output.loss.item() == pytest.approx(np.mean(per_list), abs=1e-6)
        assert output.loss < 0.1 < np.log(4), "softmax outputs of 4 items cost at least log 4"

    def test_the_residual_is_kept(self, tiny):
        """No residual: with attention and network set to 0, nothing of the items would be left.

        Here two norms of the projected item are left.
        """
        model, lists = tiny.model("prm", position_input="none"), tiny.lists((6, 4))
        with torch.no_grad():
            for layer in (model.blocks[0].attention_output, model.blocks[0].output):
                layer.weight.zero_()
                layer.bias.zero_()
        logits, w = model(**lists).logits.detach().numpy(), weights_of(model)
        ones, zeros = np.ones(8), np.zeros(8)
        for number, mask, row in rows_of(lists):
            items = [linear(w, "projection", x) for x in item_vectors(w, row)]
            after = [layer_norm(layer_norm(x, ones, zeros), ones, zeros) for x in items]
            expected = [linear(w, "scorer", x).item() for x in after]
            np.testing.assert_allclose(logits[number][mask], expected, atol=1e-5)
        assert np.ptp(logits[0]) > 1e-2


class TestSetRank:
    def test_scores_are_not_squashed_before_the_attention_loss(self, tiny):
        """Scores in (0, 1) under a softmax: it stays nearly uniform, with a loss near log n and a gradient near 0."""
        model, lists = tiny.model("setrank", task_loss="own", output_hidden_states=True), tiny.lists((6, 4, 5))
        with torch.no_grad():
            model.scorer.weight.mul_(100)
        output = model(**lists)
        raw = model.scorer(output.hidden_states[-1]).squeeze(-1)
        assert torch.equal(raw[lists["mask"]], output.logits[lists["mask"]])
        assert raw[lists["mask"]].abs().max() > 10
        per_list = []
        for number, mask, row in rows_of(lists):
            scores, clicked = raw[number].detach().double().numpy()[mask], row["labels"] > 0
            log_softmax = scores - scores.max() - np.log(np.sum(np.exp(scores - scores.max())))
            per_list.append(-log_softmax[clicked].mean() if clicked.any() else 0.0)
        assert output.loss.item() == pytest.approx(np.mean(per_list), rel=1e-5)
        assert max(per_list) > np.log(6) + 1, "more than squashed scores can cost"

    @pytest.mark.parametrize("num_inducing_points", [0, 3])
    def test_padding_is_not_attended_to(self, tiny, num_inducing_points):
        """No mask: a list gets other scores in a batch with a longer one."""
        model, lists = tiny.model("setrank", num_inducing_points=num_inducing_points), tiny.lists((6, 3))
        short = {column: values[1:] for column, values in lists.items()}
        for column in (*FEATURES, "position_ids", "labels", "mask"):
            short[column] = short[column][:, :3]
        torch.testing.assert_close(model(**short).logits[0], model(**lists).logits[1, :3], atol=1e-6, rtol=0)


class TestPEAR:
    @pytest.mark.parametrize("column", ["history_categorical", "history_dense", "user_categorical", "user_dense"])
    def test_history_and_user_features_change_the_scores(self, tiny, column):
        """History and user features dropped: neither changes a score."""
        model = tiny.model("pear")
        lists = with_histories(tiny.lists((6, 6)), (3, 1))
        other = {**lists, column: lists[column].clone()}
        other[column][:, 0] += 1 if lists[column].is_floating_point() else (lists[column][:, 0] < 10).long() + 1
        assert (model(**other).logits - model(**lists).logits).abs().max(1).values.min() > 1e-4

    def test_list_and_history_masks_are_applied(self, tiny):
        """Mask dropped: padding of the list or of the history is attended to."""
        model, lists = tiny.model("pear"), with_histories(tiny.lists((6, 4)), (3, 1))
        mask, seen = lists["mask"][..., None], lists["history_mask"][..., None]
        expected = model(**lists)
        filled = {**lists, "item_dense": torch.where(mask, lists["item_dense"], 100.0)}
        filled["history_dense"] = torch.where(seen, lists["history_dense"], 100.0)
        found = model(**filled)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.list_logits, expected.list_logits, atol=1e-6, rtol=0)

    def test_items_are_the_queries_and_history_is_not(self, tiny):
        """History as queries and the list as keys: the history then attends to the list.

        Here, in the first unit, each item is a query: another history does not change how an item's attention to the
        list is divided among its items; another item changes only its own division.
        """
        model = tiny.model("pear", num_hidden_layers=1, output_attentions=True)
        lists = with_histories(tiny.lists((6, 6)), (3, 3))
        randomize_weights(model)
        others = torch.tensor([0, 1, 3, 4, 5, 6])  # all items except the one in slot 2, and the token

        def divided(lists, among):
            weights = model(**lists).attentions[0][..., 3:][..., among]
            return weights / weights.sum(-1, keepdim=True)

        other_history = {**lists, "history_dense": lists["history_dense"] + 1}
        torch.testing.assert_close(divided(other_history, range(7)), divided(lists, range(7)), atol=1e-6, rtol=0)
        assert (model(**other_history).attentions[0] - model(**lists).attentions[0]).abs().max() > 1e-3
        other_item = {**lists, "item_dense": lists["item_dense"].clone()}
        other_item["item_dense"][:, 2] += 1
        change = (divided(other_item, others) - divided(lists, others)).abs().amax((0, 1, 3))
        assert change[others].max() < 1e-6
        assert change[2] > 1e-3


class TestRAISE:
    PARTS = ("query", "key", "value")

    def projection_rows(self, model, number: int) -> list[torch.Tensor]:
        """The rows of one projection in each W^t and b^t of the first block."""
        rows = slice(8 * number, 8 * number + 8)
        return [weight[rows] for linear in model.blocks[0].mixtures for weight in (linear.weight, linear.bias)]

    def test_every_mixture_gets_a_gradient(self, tiny):
        """The dynamic part is built but never called: no gradient in W^t, the gate and the intention."""
        model, lists = tiny.model("raise", num_mixtures=3).train(), with_histories(tiny.lists((6, 4)), (3, 1))
        model(**lists).loss.backward()
        for block in model.blocks:
            for linear_t in block.mixtures:
                for rows in (slice(0, 8), slice(8, 16), slice(16, 24)):
                    assert linear_t.weight.grad[rows].abs().max() > 0
        for name, weight in model.named_parameters():
            if name.startswith(("gate", "intention")):
                assert weight.grad.abs().max() > 0, name

    def test_each_list_is_scored_with_its_own_mixture(self, tiny):
        """The same items for users with different histories: the gate's weights differ, and so do the scores."""
        model = tiny.model("raise", num_mixtures=3)
        randomize_weights(model)
        lists = with_histories(same_list_for_two_users(tiny.lists((6,))), (3, 3))
        one, other = model(**lists).logits
        assert (one - other).abs().max() > 1e-3

    @pytest.mark.parametrize("silent", PARTS)
    def test_query_key_and_value_have_separate_matrices(self, tiny, silent):
        """The query's matrix is used for key and value too: setting one of them to 0 affects all, or none.

        Without query or key, attention is uniform but items still receive values from others; without value, they
        receive nothing, but attention is not uniform.
        """
        model, lists = tiny.model("raise", num_hidden_layers=1, output_attentions=True), tiny.lists((6, 4))
        randomize_weights(model)
        with torch.no_grad():
            for weight in self.projection_rows(model, self.PARTS.index(silent)):
                weight.zero_()
        output = model(**lists)
        uniform = (lists["mask"] / lists["mask"].sum(1, keepdim=True))[:, None, None].expand(2, 2, 6, 6)
        assert torch.allclose(output.attentions[0], uniform, atol=1e-6) == (silent != "value")
        other = {**lists, "item_dense": lists["item_dense"].clone()}
        other["item_dense"][:, 0] += 1
        moved = (model(**other).logits - output.logits)[0, 1:].abs().max()
        assert (moved > 1e-4) == (silent != "value")


class TestAll:
    def test_tables_start_small(self, tiny):
        """Tables with a standard deviation of 1 drown the other features: here 0.02, truncated at two deviations."""
        for name in ("dlcm", "midnn", "prm", "setrank", "pear", "raise"):
            model = tiny.model(name, initializer_range=0.02)
            for weight_name, weight in model.named_parameters():
                if "tables" in weight_name or weight_name == "positions.weight":
                    assert 0.005 < weight.std() < 0.025, (name, weight_name)
                    assert weight.abs().max() <= 0.04 + 1e-7
