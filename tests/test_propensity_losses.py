"""Losses corrected for position bias: two items in the losses, the models and the trainer.

Item A has relevance 0.4 and is always examined; B has relevance 0.6 and is examined with probability 0.5. A click is
examination times relevance, so of 4,000 lists about 4,000 * 0.4 = 1,600 click A and 4,000 * 0.5 * 0.6 = 1,200 click B:
A ranks first by clicks. Both clicks are independent: 4,000 * 0.4 * 0.3 = 480 lists click both, 1,120 A only, 720 B
only and 1,680 neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from hf_rerank import Categorical, ListProcessor, ListSchema, RerankTrainer, RerankTrainingArguments
from hf_rerank.errors import InputError
from hf_rerank.losses import (
    LOSSES_WITH_PROPENSITIES,
    TASK_LOSSES,
    binary_log_loss,
    pairwise_hinge_loss,
    pairwise_logistic_loss,
    softmax_loss,
)
from hf_rerank.models.auto import RERANKERS

CLICKS = {(1, 1): 480, (1, 0): 1120, (0, 1): 720, (0, 0): 1680}
LABELS = torch.tensor([pair for pair, count in CLICKS.items() for _ in range(count)], dtype=torch.float64)
PROPENSITIES = torch.tensor([1.0, 0.5], dtype=torch.float64).expand(4000, 2)


def minimizing_scores(loss: Callable[..., Tensor], **options: Any) -> Tensor:
    """The two scores, the same in all lists, that minimize the loss over the 4,000 lists."""
    scores = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    options_of_search = {"max_iter": 100, "tolerance_grad": 1e-12, "tolerance_change": 1e-15}
    optimizer = torch.optim.LBFGS([scores], line_search_fn="strong_wolfe", **options_of_search)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(scores.expand(4000, 2), LABELS, **options)
        value.backward()
        return value

    optimizer.step(step)
    return scores.detach()


def test_corrected_log_loss_recovers_the_relevance() -> None:
    """Without correction the minimum is the click-through rate: 1,600 / 4,000 and 1,200 / 4,000."""
    assert minimizing_scores(binary_log_loss).sigmoid().tolist() == pytest.approx([0.4, 0.3])
    # 1 / p as a weight: B has 2 * 1,200 against 2 * 2,800.
    weighted = minimizing_scores(binary_log_loss, weights=1 / PROPENSITIES)
    assert weighted.sigmoid().tolist() == pytest.approx([0.4, 0.3])
    # Corrected: 1,200 / 0.5 = 2,400 clicks of 4,000, 0.6.
    assert minimizing_scores(binary_log_loss, propensities=PROPENSITIES).sigmoid().tolist() == pytest.approx(
        [0.4, 0.6]
    )


def test_corrected_softmax_loss_recovers_the_relevance() -> None:
    """Clicks 1,600 and 1,200, corrected 1,600 and 2,400: 0.4 and 0.6 of their sum."""
    plain = minimizing_scores(softmax_loss, normalize=False).softmax(-1)
    assert plain.tolist() == pytest.approx([1600 / 2800, 1200 / 2800])
    for normalize in (True, False):
        found = minimizing_scores(softmax_loss, propensities=PROPENSITIES, normalize=normalize)
        assert found.softmax(-1).tolist() == pytest.approx([0.4, 0.6])


def test_corrected_pairwise_losses_recover_the_relevance() -> None:
    """Each click against the other item: log(1 + e^(b - a)) 1,600 times, log(1 + e^(a - b)) 2,400 times. The minimum
    is at a - b = log(1,600 / 2,400). The hinge loss is minimal at its kink on the larger side: b - a = 1."""
    a, b = minimizing_scores(pairwise_logistic_loss, propensities=PROPENSITIES)
    assert float(a - b) == pytest.approx(math.log(1600 / 2400))
    a, b = minimizing_scores(pairwise_logistic_loss)
    assert float(a - b) == pytest.approx(math.log(1120 / 720))  # lists with exactly one click

    def hinge(gap: float) -> float:
        scores = torch.tensor([0.0, gap], dtype=torch.float64).expand(4000, 2)
        return float(pairwise_hinge_loss(scores, LABELS, propensities=PROPENSITIES))

    # (1,600 (1 + 1) + 2,400 * 0) / 4,000 at b - a = 1; (1,600 * 0 + 2,400 (1 + 1)) / 4,000 at b - a = -1.
    assert (hinge(1.0), hinge(-1.0)) == (pytest.approx(0.8), pytest.approx(1.2))


def test_corrected_losses_of_three_items_match_written_out_arithmetic() -> None:
    scores, labels = torch.tensor([[2.0, 1.0, 0.0, 9.0]]), torch.tensor([[0.0, 1.0, 0.0, -100.0]])
    options = {
        "mask": torch.tensor([[True, True, True, False]]),
        "propensities": torch.tensor([[1.0, 0.25, 0.5, 1.0]]),
    }
    log_loss = (math.log1p(math.e**2) + (math.log1p(math.e) - 4) + math.log(2)) / 3  # softplus(s) - y / p s
    assert float(binary_log_loss(scores, labels, **options)) == pytest.approx(log_loss, rel=1e-5)
    softmax = 4 * (math.log(math.e**2 + math.e + 1) - 1)
    assert float(softmax_loss(scores, labels, **options)) == pytest.approx(softmax, rel=1e-5)
    pairs = 4 * (math.log1p(math.e) + math.log1p(math.exp(-1))) / 2
    assert float(pairwise_logistic_loss(scores, labels, **options)) == pytest.approx(pairs, rel=1e-5)
    total = float(pairwise_logistic_loss(scores, labels, **options, normalize=False))
    assert total == pytest.approx(2 * pairs, rel=1e-5)
    assert float(pairwise_hinge_loss(scores, labels, **options)) == pytest.approx(4 * (2 + 0) / 2, rel=1e-5)


def test_propensities_of_1_do_not_change_losses_linear_in_labels() -> None:
    ones = torch.ones_like(LABELS)
    scores = torch.tensor([0.3, -0.2], dtype=torch.float64).expand(4000, 2)
    for loss, options in ((binary_log_loss, {}), (softmax_loss, {"normalize": False})):
        plain, corrected = (loss(scores, LABELS, propensities=p, **options) for p in (None, ones))
        assert float(plain) == float(corrected)


def test_wrong_propensities_are_rejected() -> None:
    scores, labels = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    for name in LOSSES_WITH_PROPENSITIES:
        for wrong in (0.0, 2.0, math.nan):
            with pytest.raises(InputError, match=r"propensities of real items must be above 0 and at most 1; found"):
                TASK_LOSSES[name](scores, labels, propensities=torch.tensor([[1.0, wrong]]))
        with pytest.raises(InputError, match=r"propensities must have the shape of scores, \[1, 2\]; got \[2\]"):
            TASK_LOSSES[name](scores, labels, propensities=torch.ones(2))


# ------------------------------------------------------------------------------------------------- models and trainer

SCHEMA = ListSchema(
    items=[Categorical("item", min_count=1)], position="none", propensity="propensity", max_list_length=2
)


def rows(scale: int = 1) -> datasets.Dataset:
    """The 4,000 lists, or every ``scale``-th of each kind."""
    return datasets.Dataset.from_list(
        [
            {"item": ["A", "B"], "click": list(pair), "propensity": [1.0, 0.5]}
            for pair, count in CLICKS.items()
            for _ in range(count // scale)
        ]
    )


@pytest.fixture(scope="module")
def processor() -> ListProcessor:
    return ListProcessor.from_lists(rows(40), schema=SCHEMA)


def arguments(folder: Any, **options: Any) -> RerankTrainingArguments:
    return RerankTrainingArguments(
        str(folder),
        use_cpu=True,
        disable_tqdm=True,
        **{
            "principled": "none",
            "per_device_train_batch_size": 100,
            "save_strategy": "no",
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            **options,
        },
    )


@pytest.mark.slow
def test_trainer_recovers_the_relevance(processor: ListProcessor, tmp_path: Any) -> None:
    """Each step uses one batch of all lists, so that the result is deterministic."""
    config_class, model_class = RERANKERS["dnn"]
    found = {}
    for floor in (0.1, 1):
        torch.manual_seed(0)
        options = {"hidden_sizes": [8], "unknown_rate": 0, "propensity_floor": floor}
        model = model_class(config_class.for_schema(processor.schema, **options))
        trainer = RerankTrainer(
            model,
            arguments(tmp_path / str(floor), max_steps=60, learning_rate=0.1, weight_decay=0.0),
            rows(40),
            None,
            processor,
        )
        trainer.train()
        model.eval()
        inputs = processor([{"item": ["A", "B"]}])
        found[floor] = model(**inputs).logits.sigmoid()[0].tolist()
    assert found[0.1] == pytest.approx([0.4, 0.6], abs=0.01)
    assert found[1] == pytest.approx([0.4, 0.3], abs=0.01)


def test_propensity_floor_clips_in_every_model() -> None:
    """With a floor of 0.8, propensities of 0.5 become 0.8."""
    lists = [{**row, "who": "me"} for row in rows(400).to_list()]
    schema = SCHEMA.replace(position=None, user=[Categorical("who", min_count=1)])
    processor = ListProcessor.from_lists(datasets.Dataset.from_list(lists), schema=schema)
    batch = processor(lists, with_labels=True)
    assert batch["propensities"].min() == 0.5
    clipped = batch["propensities"].clamp(min=0.8)
    for name, (config_class, model_class) in RERANKERS.items():
        options = {"propensity_floor": 0.8, **({"list_loss_weight": 0} if name == "pear" else {})}
        model = model_class(config_class.for_schema(processor.schema, **options)).eval()
        with torch.no_grad():
            output = model(**batch)
        expected = binary_log_loss(output.logits, batch["labels"], mask=batch["mask"], propensities=clipped)
        assert float(output.loss) == pytest.approx(float(expected)), name


def test_losses_that_cannot_be_corrected_are_rejected(processor: ListProcessor, tmp_path: Any) -> None:
    config_class, model_class = RERANKERS["prm"]
    for name in sorted(set(TASK_LOSSES) - LOSSES_WITH_PROPENSITIES):
        model = model_class(config_class.for_schema(processor.schema))
        with pytest.raises(InputError, match=rf"{name} cannot be corrected by them: .*binary_log_loss, softmax_loss"):
            RerankTrainer(model, arguments(tmp_path, task_loss=name, max_steps=99), rows(400), None, processor)
    assert "lambda_loss" not in LOSSES_WITH_PROPENSITIES
    config_class, model_class = RERANKERS["pear"]
    model = model_class(config_class.for_schema(processor.schema))
    with pytest.raises(InputError, match="list_loss_weight=0"):
        RerankTrainer(model, arguments(tmp_path, max_steps=99), rows(400), None, processor)
    with pytest.raises(InputError, match="propensity_floor is 0: expected a number above 0, at most 1"):
        config_class.for_schema(processor.schema, propensity_floor=0)
