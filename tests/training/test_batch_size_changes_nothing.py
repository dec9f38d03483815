"""A metric is a property of model and lists: no batch size, and no way of reading the lists, changes it."""

from __future__ import annotations

import math

import pytest
import torch

from hf_rerank.evaluation import evaluate

# What measures the clock, or is named by the call.
OTHERS = ("runtime", "per_second", "epoch", "time")


def metrics_of(make_trainer, model, lists, batch: int) -> dict[str, float]:
    trainer = make_trainer(model, eval_dataset=lists, per_device_eval_batch_size=batch)
    metrics = trainer.evaluate()
    return {name: value for name, value in metrics.items() if not any(other in name for other in OTHERS)}


@pytest.mark.parametrize("streamed", [False, True], ids=["dataset", "stream"])
def test_every_metric_of_the_trainer(make_trainer, make_model, make_lists, streamed: bool) -> None:
    lists = make_lists(50, 7)
    given = lists.to_iterable_dataset() if streamed else lists
    whole = metrics_of(make_trainer, make_model(), lists, 50)
    for batch in (1, 7, 32):
        found = metrics_of(make_trainer, make_model(), given, batch)
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            assert found[name] == pytest.approx(value, abs=1e-6, nan_ok=True), (name, batch)


def test_the_loss_of_a_short_last_batch_weighs_by_its_lists(make_trainer, make_model, make_lists) -> None:
    """The mean over 7 lists, not over the means of 3, 3 and 1 of them."""
    lists, model = make_lists(7, 11), make_model()
    trainer = make_trainer(model, eval_dataset=lists.to_iterable_dataset(), per_device_eval_batch_size=3)
    losses = []
    model.eval()
    for row in lists:
        with torch.no_grad():
            losses.append(float(model(**trainer.processor([row], with_labels=True)).loss))
    of_batches = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert not math.isclose(sum(losses) / 7, sum(of_batches) / 3, abs_tol=1e-4), "else this tests nothing"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / 7, abs=1e-6)


def test_every_measure_of_evaluate_with_all_and_with_one_swap(make_model, make_lists, processor) -> None:
    lists, model = make_lists(60, 5), make_model()
    for swaps in ("all", "one"):
        whole = evaluate(model, processor, lists, swaps=swaps, batch_size=60)
        for batch in (1, 13, 59):
            found = evaluate(model, processor, lists, swaps=swaps, batch_size=batch)
            for name, value in whole.items():
                if isinstance(value, float):
                    assert found[name] == pytest.approx(value, abs=1e-6, nan_ok=True), (name, swaps, batch)
