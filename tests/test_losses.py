"""Losses: values against written-out ``math`` arithmetic, then properties that every loss must have.

The values of losses of pairs, orders and ranks are in ``test_ranking_losses``; the properties here apply to all.
"""

import doctest
import importlib
import math
from functools import partial

import pytest
import torch

from hf_rerank.errors import InputError
from hf_rerank.losses import (
    LOSSES_WITHOUT_PROBABILITIES,
    SHIFT_INVARIANT_LOSSES,
    TASK_LOSSES,
    approx_ndcg_loss,
    attention_rank_loss,
    binary_log_loss,
    distillation_loss,
    lambda_loss,
    list_mle_loss,
    listnet_loss,
    neural_ndcg_loss,
    pairwise_hinge_loss,
    pairwise_logistic_loss,
    probabilities,
    softmax_loss,
)

LOSSES = {
    "binary_log": binary_log_loss,
    "softmax": softmax_loss,
    "softmax_unnormalised": partial(softmax_loss, normalize=False),
    "attention_rank": attention_rank_loss,
    "listnet": listnet_loss,
    "lambda": lambda_loss,
    "lambda_linear": partial(lambda_loss, gain="linear"),
    "pairwise_logistic": pairwise_logistic_loss,
    "pairwise_logistic_sum": partial(pairwise_logistic_loss, sigma=2.0, normalize=False),
    "pairwise_hinge": pairwise_hinge_loss,
    "pairwise_hinge_sum": partial(pairwise_hinge_loss, margin=0.3, normalize=False),
    "list_mle": list_mle_loss,
    "approx_ndcg": approx_ndcg_loss,
    "approx_ndcg_linear": partial(approx_ndcg_loss, temperature=1.0, gain="linear"),
    "neural_ndcg": neural_ndcg_loss,
    "neural_ndcg_linear": partial(neural_ndcg_loss, temperature=5.0, sinkhorn_steps=3, gain="linear"),
    "distillation": distillation_loss,  # labels as the teacher's scores
    "distillation_warm": partial(distillation_loss, temperature=3.0),
}
LISTWISE = {name: loss for name, loss in LOSSES.items() if name != "binary_log"}
OF_LABELS = {name: loss for name, loss in LOSSES.items() if not name.startswith("distillation")}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
every_loss_of_labels = pytest.mark.parametrize("loss", OF_LABELS.values(), ids=OF_LABELS.keys())
every_listwise = pytest.mark.parametrize("loss", LISTWISE.values(), ids=LISTWISE.keys())

# Three real items and a weight for each, for which the values below are computed.
S, Y, W = (1.0, 0.5, -2.0), (0.0, 1.0, 1.0), (0.5, 2.0, 3.0)
GRADED = (1.0, 0.0, 2.0)


def log_p(i, scores=S):
    return scores[i] - math.log(sum(math.exp(s) for s in scores))


def log_sigmoid(s):
    return -math.log(1.0 + math.exp(-s))


def swap_weight(gain_i, gain_j, rank_i, rank_j):
    return abs(gain_i - gain_j) * abs(1 / math.log2(1 + rank_i) - 1 / math.log2(1 + rank_j))


def pair_loss(s_i, s_j):
    return math.log2(1 + math.exp(-(s_i - s_j)))


E0, E1, E2 = math.exp(0.0), math.exp(1.0), math.exp(2.0)
IDEAL_BINARY = 1 / math.log2(2) + 1 / math.log2(3)
IDEAL_GRADED = 3 / math.log2(2) + 1 / math.log2(3)  # gains 2^2 - 1 and 2^1 - 1
# S ranks its items 1, 2, 3.
BY_HAND = [
    (
        "binary_log",
        Y,
        None,
        -(log_sigmoid(-1.0) + log_sigmoid(0.5) + log_sigmoid(-2.0)) / 3,
    ),
    (
        "binary_log",
        Y,
        W,
        -(0.5 * log_sigmoid(-1.0) + 2.0 * log_sigmoid(0.5) + 3.0 * log_sigmoid(-2.0)) / 3,
    ),
    ("softmax", Y, None, -(log_p(1) + log_p(2)) / 2),
    ("softmax", Y, W, -(2.0 * log_p(1) + 3.0 * log_p(2)) / 2),
    ("softmax", GRADED, None, -(1 / 3 * log_p(0) + 2 / 3 * log_p(2))),
    ("softmax_unnormalised", Y, None, -(log_p(1) + log_p(2))),
    ("softmax_unnormalised", GRADED, W, -(0.5 * 1 * log_p(0) + 3.0 * 2 * log_p(2))),
    ("attention_rank", GRADED, None, -(E1 * log_p(0) + E2 * log_p(2)) / (E1 + E2)),
    ("attention_rank", GRADED, W, -(0.5 * E1 * log_p(0) + 3.0 * E2 * log_p(2)) / (E1 + E2)),
    ("listnet", GRADED, None, -(E1 * log_p(0) + E0 * log_p(1) + E2 * log_p(2)) / (E0 + E1 + E2)),
    ("listnet", GRADED, W, -(0.5 * E1 * log_p(0) + 2.0 * E0 * log_p(1) + 3.0 * E2 * log_p(2)) / (E0 + E1 + E2)),
    ("listnet", (0.0, 0.0, 0.0), None, -(log_p(0) + log_p(1) + log_p(2)) / 3),
    (
        "lambda",
        Y,
        None,
        (swap_weight(1, 0, 2, 1) * pair_loss(0.5, 1.0) + swap_weight(1, 0, 3, 1) * pair_loss(-2.0, 1.0))
        / IDEAL_BINARY,
    ),
    (
        "lambda",
        GRADED,
        W,
        (
            3.0 * swap_weight(3, 1, 3, 1) * pair_loss(-2.0, 1.0)
            + 3.0 * swap_weight(3, 0, 3, 2) * pair_loss(-2.0, 0.5)
            + 0.5 * swap_weight(1, 0, 1, 2) * pair_loss(1.0, 0.5)
        )
        / IDEAL_GRADED,
    ),
]


@pytest.mark.parametrize(("name", "labels", "weights", "expected"), BY_HAND)
def test_values_match_written_out_arithmetic(name, labels, weights, expected):
    as_tensor = partial(torch.tensor, dtype=torch.float64)
    value = LOSSES[name](as_tensor(S), as_tensor(labels), weights=None if weights is None else as_tensor(weights))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_lambda_loss_with_sigma_and_ties_has_no_gradient_through_ranks():
    # Equal scores: ranks follow the slots, so the clicked item in slot 2 has rank 3.
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = lambda_loss(scores, torch.tensor([0, 0, 1]), sigma=3.0)
    first, second = swap_weight(1, 0, 3, 1), swap_weight(1, 0, 3, 2)
    assert value.item() == pytest.approx((first + second) * math.log2(2), rel=1e-12)
    value.backward()  # d/ds_i log2(1 + exp(-3 (s_i - s_j))) = -3 / 2 / ln 2 where s_i = s_j
    slope = 1.5 / math.log(2)
    assert scores.grad.tolist() == pytest.approx([slope * first, slope * second, -slope * (first + second)], rel=1e-12)


def test_a_single_item_gives_zero_listwise_loss():
    score, click = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[1.0]])
    assert binary_log_loss(score, click).item() == pytest.approx(-log_sigmoid(0.5))
    for loss in LISTWISE.values():
        assert loss(score, click).item() == 0.0


def random_lists(lists=4, width=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(lists, width, generator=generator, dtype=dtype)
    labels = (torch.rand(lists, width, generator=generator) < 0.4).to(dtype)
    labels[:, 0] = 1.0  # every list has a click, so that no loss is 0 by convention
    weights = torch.rand(lists, width, generator=generator, dtype=dtype) + 0.5
    mask = torch.arange(width) < torch.randint(2, width, (lists, 1), generator=generator)
    return scores, labels, weights, mask


def test_attention_rank_equals_normalized_softmax_for_binary_labels():
    scores, labels, weights, mask = random_lists()
    options = {"mask": mask, "weights": weights, "reduction": "none"}
    torch.testing.assert_close(attention_rank_loss(scores, labels, **options), softmax_loss(scores, labels, **options))


@every_listwise
def test_listwise_losses_are_invariant_to_shifting_a_list(loss):
    scores, labels, weights, mask = random_lists()
    shift = torch.tensor([[-80.0], [0.0], [3.0], [500.0]], dtype=torch.float64)
    torch.testing.assert_close(
        loss(scores + shift, labels, mask=mask, weights=weights), loss(scores, labels, mask=mask, weights=weights)
    )


@every_loss
@pytest.mark.parametrize("garbage", [0.0, math.nan, math.inf, -math.inf, torch.finfo(torch.float32).min, 1e4])
def test_masked_equals_removed_and_gets_no_gradient(loss, garbage):
    scores, labels, weights, mask = random_lists(dtype=torch.float32)
    real = scores.clone()
    scores = torch.where(mask, scores, garbage).requires_grad_()
    labels = torch.where(mask, labels, -100.0)
    weights = torch.where(mask, weights, garbage)
    values = loss(scores, labels, mask=mask, weights=weights, reduction="none")
    values.sum().backward()
    for row in range(len(scores)):
        kept = mask[row]
        alone = real[row, kept].requires_grad_()
        value = loss(alone, labels[row, kept], weights=weights[row, kept])
        value.backward()
        torch.testing.assert_close(values[row], value)
        torch.testing.assert_close(scores.grad[row, kept], alone.grad)
        assert (scores.grad[row, ~kept] == 0).all()


@every_loss
def test_lists_without_items_do_not_change_the_mean(loss):
    scores, labels, _, _ = random_lists(lists=2)
    mask = torch.tensor([[True] * 7, [False] * 7])
    scores[1] = math.nan
    assert loss(scores, labels, mask=mask) == loss(scores[:1], labels[:1])
    assert loss(scores, labels, mask=mask, reduction="none")[1] == 0.0

    scores.requires_grad_()
    empty = loss(scores, labels, mask=torch.zeros_like(mask))
    empty.backward()
    assert empty.item() == 0.0
    assert (scores.grad == 0).all()
    for shape in ((0, 5), (3, 0)):
        assert loss(torch.zeros(shape), torch.zeros(shape)).item() == 0.0


@pytest.mark.parametrize("name", sorted(OF_LABELS.keys() - {"binary_log", "listnet"}))
def test_a_list_without_a_click_gives_zero(name):
    scores = torch.randn(3, 5, requires_grad=True)
    value = LOSSES[name](scores, torch.zeros(3, 5))
    value.backward()
    assert value.item() == 0.0
    assert (scores.grad == 0).all()


@every_loss
@pytest.mark.parametrize("labels", ["none", "one", "all"])
def test_extreme_logits_are_finite(loss, labels):
    scores = torch.where(torch.arange(200) % 3 == 0, 1e4, -1e4).expand(2, 200).clone().requires_grad_()
    target = torch.full((2, 200), 1.0 if labels == "all" else 0.0)
    target[:, 1] = 0.0 if labels == "none" else 1.0
    value = loss(scores, target)
    value.backward()
    assert value.isfinite()
    assert scores.grad.isfinite().all()


@every_loss
def test_half_precision_is_computed_in_float32(loss):
    scores, labels, weights, mask = random_lists(lists=8, width=200, dtype=torch.float32)
    rounded = scores.bfloat16()
    value = loss(rounded, labels, mask=mask, weights=weights)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(rounded.float(), labels, mask=mask, weights=weights))
    torch.testing.assert_close(value, loss(scores, labels, mask=mask, weights=weights), rtol=1e-2, atol=1e-3)


@every_loss
def test_autocast_changes_nothing(loss):
    scores, labels, weights, mask = random_lists(width=30, dtype=torch.float32)
    expected = loss(scores, labels, mask=mask, weights=weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(scores, labels, mask=mask, weights=weights)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)


@every_loss
def test_gradient_matches_finite_differences(loss):
    scores, labels, weights, mask = random_lists()
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, labels, mask=mask, weights=weights), scores)


@every_loss
def test_reductions_and_leading_axes(loss):
    scores, labels, weights, mask = random_lists(lists=6)
    options = {"mask": mask, "weights": weights}
    values = loss(scores, labels, **options, reduction="none")
    assert values.shape == (6,)
    torch.testing.assert_close(loss(scores, labels, **options, reduction="sum"), values.sum())
    torch.testing.assert_close(loss(scores, labels, **options), values.mean())
    torch.testing.assert_close(loss(scores, labels, mask=mask, weights=2 * weights), 2 * values.mean())
    folded = {name: value.view(2, 3, 7) for name, value in options.items()}
    torch.testing.assert_close(
        loss(scores.view(2, 3, 7), labels.view(2, 3, 7), **folded, reduction="none"), values.view(2, 3)
    )


@every_loss
def test_slot_order_does_not_matter(loss):
    scores, labels, weights, mask = random_lists()
    shuffled = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        loss(scores[:, shuffled], labels[:, shuffled], mask=mask[:, shuffled], weights=weights[:, shuffled]),
        loss(scores, labels, mask=mask, weights=weights),
    )


@every_loss
def test_integer_and_bool_labels_are_accepted(loss):
    scores, labels, _, mask = random_lists()
    for same in (labels.long(), labels.bool()):
        torch.testing.assert_close(loss(scores, same, mask=mask), loss(scores, labels, mask=mask))


ONES = torch.ones(2, 3)
MINUS_ONE_AT_1_2 = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -100.0]])


@every_loss_of_labels
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": torch.ones(2, 1)}, r"labels must have the shape of scores, \[2, 3\]; got \[2, 1\]"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask must have the shape of scores"),
        ({"mask": torch.ones(2, 3, dtype=torch.long)}, r"mask must be bool.*int64"),
        ({"weights": torch.ones(2)}, r"weights must have the shape of scores"),
        ({"scores": torch.ones(2, 3, dtype=torch.long)}, r"scores must be floating-point"),
        ({"labels": MINUS_ONE_AT_1_2}, r"labels.*found -100 in list 1, slot 2.*pass mask"),
        ({"labels": torch.where(MINUS_ONE_AT_1_2 < 0, math.nan, 1.0)}, r"labels.*found nan in list 1, slot 2"),
        ({"weights": MINUS_ONE_AT_1_2}, r"weights.*found -100 in list 1, slot 2"),
        ({"reduction": "means"}, r"reduction must be one of.*did you mean 'mean'"),
    ],
)
def test_errors_name_list_and_slot(loss, changed, message):
    with pytest.raises(InputError, match=message):
        loss(**{"scores": ONES, "labels": ONES, **changed})


def test_errors_of_individual_losses():
    graded = torch.tensor([[[0.0, 1.0], [0.0, 2.0]]])
    with pytest.raises(InputError, match=r"labels.*in \[0, 1\].*found 2 in list \(0, 1\), slot 1.*listwise"):
        binary_log_loss(torch.zeros(1, 2, 2), graded)
    with pytest.raises(InputError, match=r"found 2 in slot 1\."):
        binary_log_loss(torch.zeros(2), graded[0, 1])
    for loss, option, value in (
        (lambda_loss, "sigma", 0.0),
        (pairwise_logistic_loss, "sigma", -1.0),
        (pairwise_hinge_loss, "margin", 0.0),
        (approx_ndcg_loss, "temperature", 0.0),
        (neural_ndcg_loss, "temperature", 1e-7),
        (distillation_loss, "temperature", math.nan),
        (distillation_loss, "temperature", math.inf),
        (neural_ndcg_loss, "sinkhorn_steps", -1),
        (neural_ndcg_loss, "sinkhorn_steps", 1.5),
    ):
        with pytest.raises(InputError, match=f"{option} must be .*got {value}"):
            loss(torch.zeros(2), torch.ones(2), **{option: value})
    for loss in (lambda_loss, approx_ndcg_loss, neural_ndcg_loss):
        with pytest.raises(InputError, match=r"gain must be one of.*did you mean 'linear'"):
            loss(torch.zeros(2), torch.ones(2), gain="linaer")
    teacher = torch.tensor([[0.0, -3.0], [math.inf, 0.0]])
    with pytest.raises(InputError, match=r"teacher_scores of real items must be finite; found inf in list 1, slot 0"):
        distillation_loss(torch.zeros(2, 2), teacher)
    with pytest.raises(InputError, match="teacher_scores must have the shape of scores"):
        distillation_loss(torch.zeros(2, 2), teacher[0])
    # Finite as float64, but not in the arithmetic of the loss.
    with pytest.raises(InputError, match="labels of real items must be finite and >= 0; found inf in slot 0"):
        softmax_loss(torch.zeros(2), torch.tensor([1e200, 0.0], dtype=torch.float64))


@pytest.mark.slow
@every_loss
def test_one_graph_under_compile_and_export(loss):
    scores, labels, weights, mask = random_lists()

    def total(scores, labels, mask, weights):
        return loss(scores, labels, mask=mask, weights=weights)

    torch._dynamo.reset()
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (total, compiled):
        leaf = scores.clone().requires_grad_()
        value = function(leaf, labels, mask, weights)
        value.backward()
        gradients.append(leaf.grad)
        torch.testing.assert_close(value, total(scores, labels, mask, weights))
    torch.testing.assert_close(*gradients)

    class Module(torch.nn.Module):
        def forward(self, scores, labels, mask, weights):
            return total(scores, labels, mask, weights)

    exported = torch.export.export(Module(), (scores, labels, mask, weights)).module()
    torch.testing.assert_close(exported(scores, labels, mask, weights), total(scores, labels, mask, weights))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_loss
def test_no_host_synchronisation_on_cuda(loss):
    scores, labels, weights, mask = (value.cuda() for value in random_lists(dtype=torch.float32))
    scores.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss(scores, labels, mask=mask, weights=weights)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = loss(*(x.detach().cpu() for x in (scores, labels)), mask=mask.cpu(), weights=weights.cpu())
    torch.testing.assert_close(value.cpu(), on_cpu)


class TestDistillation:
    def test_distillation_loss_matches_written_out_arithmetic(self):
        teacher, temperature = (0.0, 3.0, -1.0), 2.0
        p = [math.exp(log_p(i, [s / temperature for s in teacher])) for i in range(3)]
        q = [math.exp(log_p(i, [s / temperature for s in S])) for i in range(3)]
        terms = [a * math.log(a / b) - a + b for a, b in zip(p, q, strict=True)]
        scores, teacher, weights = (torch.tensor(value, dtype=torch.float64) for value in (S, teacher, W))
        value = distillation_loss(scores, teacher, temperature=temperature)
        assert value.item() == pytest.approx(4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        assert value.item() == pytest.approx(4 * sum(terms))
        value = distillation_loss(scores, teacher, temperature=temperature, weights=weights)
        assert value.item() == pytest.approx(4 * (0.5 * terms[0] + 2.0 * terms[1] + 3.0 * terms[2]))

    def test_distillation_loss_equals_torch_kl_divergence(self):
        scores, _, _, mask = random_lists()
        teacher = random_lists(seed=1)[0].requires_grad_()
        values = distillation_loss(scores, teacher, mask=mask, reduction="none")
        for row, kept in enumerate(mask):
            student_log, teacher_log = scores[row, kept].log_softmax(-1), teacher[row, kept].log_softmax(-1)
            expected = torch.nn.functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
            torch.testing.assert_close(values[row], expected.detach())
        assert not values.requires_grad  # the teacher is a constant

    def test_distillation_loss_is_minimal_at_the_teacher_for_any_weights(self):
        teacher, _, weights, mask = random_lists()
        shifted = (teacher + torch.tensor([[-3.0], [0.0], [7.0], [50.0]])).requires_grad_()
        value = distillation_loss(shifted, teacher, mask=mask, weights=weights)
        value.backward()
        assert value.item() == pytest.approx(0.0, abs=1e-12)
        assert shifted.grad.abs().max() < 1e-12
        others = distillation_loss(random_lists(seed=2)[0], teacher, mask=mask, weights=weights, reduction="none")
        assert (others > 1e-3).all()

    def test_a_high_temperature_gives_the_squared_error(self):
        teacher, scores = random_lists(lists=1)[0][0], random_lists(lists=1, seed=3)[0][0]
        off = (scores - teacher) - (scores - teacher).mean()
        value = distillation_loss(scores, teacher, temperature=1e4)
        assert value.item() == pytest.approx((off**2).mean().item() / 2, rel=1e-3)

    def test_integer_and_half_precision_teacher_scores_are_accepted(self):
        scores = torch.tensor([1.0, 0.0, -1.0])
        teacher = torch.tensor([-2, 0, 5])
        for same in (teacher.float(), teacher.bfloat16(), teacher.double()):
            torch.testing.assert_close(distillation_loss(scores, same), distillation_loss(scores, teacher))


def test_loss_constants_match_the_behaviour_of_losses():
    scores, labels, weights, mask = random_lists()
    for name, loss in TASK_LOSSES.items():
        shifted, plain = (loss(s, labels, mask=mask, weights=weights) for s in (scores + 2.0, scores))
        assert torch.isclose(shifted, plain).item() == (name in SHIFT_INVARIANT_LOSSES), name
    assert LOSSES_WITHOUT_PROBABILITIES < SHIFT_INVARIANT_LOSSES < TASK_LOSSES.keys()


@pytest.mark.parametrize("name", TASK_LOSSES)
def test_probabilities_keep_the_order(name):
    scores, _, _, mask = random_lists(dtype=torch.bfloat16)
    values = probabilities(torch.where(mask, scores, math.nan), name, mask=mask)
    assert values.dtype == torch.float32
    assert ((values >= 0) & (values <= 1)).all()
    assert (values[~mask] == 0).all()
    low = torch.where(mask, scores, -math.inf)
    assert (values.argsort(stable=True, descending=True) == low.argsort(stable=True, descending=True))[mask].all()
    if name in SHIFT_INVARIANT_LOSSES:
        torch.testing.assert_close(values.sum(-1), torch.ones(4))


def test_probabilities_of_an_unknown_loss_are_rejected():
    with pytest.raises(InputError, match=r"task_loss is 'softmax'.*did you mean 'softmax_loss'"):
        probabilities(torch.zeros(2), "softmax")


@pytest.mark.parametrize("module", ["losses", "ranking_losses"])
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(importlib.import_module(f"hf_rerank.{module}"))
    assert failed == 0
    assert tried > 10
