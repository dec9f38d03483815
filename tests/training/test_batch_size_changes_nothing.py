"""Metrics depend on model and lists only, not on batch size, workers, processes or the kind of dataset."""

from __future__ import annotations

import json
import math
from pathlib import Path

import evaluation_worker
import pytest
import torch
import warm
from two_processes import run_on_two

from hf_rerank import Reranker
from hf_rerank.evaluation import evaluate

# Entries that measure time, or depend on the call.
OTHERS = ("runtime", "per_second", "epoch", "time")


def metrics_of(make_trainer, model, lists, batch: int, **options) -> dict[str, float]:
    trainer = make_trainer(model, eval_dataset=lists, per_device_eval_batch_size=batch, **options)
    metrics = trainer.evaluate()
    return {name: value for name, value in metrics.items() if not any(other in name for other in OTHERS)}


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True], ids=["dataset", "stream"])
def test_trainer_metrics_do_not_depend_on_batch_size_or_workers(
    make_trainer, make_model, make_lists, streamed: bool
) -> None:
    lists = make_lists(50, 7)
    given = lists.to_iterable_dataset() if streamed else lists
    whole = metrics_of(make_trainer, make_model(), lists, 50)
    for batch, workers in ((1, 0), (7, 2), (32, 0)):
        found = metrics_of(make_trainer, make_model(), given, batch, dataloader_num_workers=workers)
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            assert found[name] == pytest.approx(value, abs=1e-6, nan_ok=True), (name, batch)


@pytest.mark.slow
def test_a_short_last_batch_is_weighted_by_its_number_of_lists(make_trainer, make_model, make_lists) -> None:
    """The mean over 7 lists, not over the means of 3, 3 and 1 of them."""
    lists, model = make_lists(7, 11), make_model()
    trainer = make_trainer(model, eval_dataset=lists)
    losses = []
    model.eval()
    for row in lists:
        with torch.no_grad():
            losses.append(float(model(**trainer.processor([row], with_labels=True)).loss))
    of_batches = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert not math.isclose(sum(losses) / 7, sum(of_batches) / 3, abs_tol=1e-4), "otherwise this tests nothing"
    for given in (lists, lists.to_iterable_dataset()):
        for loss_only in (False, True):
            best = {"metric_for_best_model": "loss"} if loss_only else {}
            found = metrics_of(make_trainer, model, given, 3, prediction_loss_only=loss_only, **best)
            assert found["eval_loss"] == pytest.approx(sum(losses) / 7, abs=1e-6)
            assert ("eval_p1_obedience" in found) != loss_only


@pytest.mark.slow
def test_metrics_and_predictions_of_two_processes_equal_those_of_one(
    make_model, make_lists, processor, tmp_path: Path
) -> None:
    """7 lists in batches of 3 on two processes: the second has one list in its last batch, or none."""
    Reranker(processor, make_model()).save_pretrained(tmp_path / "model")
    make_lists(7, 11).save_to_disk(tmp_path / "lists")
    warm.run(evaluation_worker.main, tmp_path, tmp_path / "on1", 7, log=tmp_path / "log")
    run_on_two(evaluation_worker.main, tmp_path, tmp_path / "on2", 3, folder=tmp_path)
    whole = json.loads((tmp_path / "on1" / "rank0.json").read_text())["dataset"]
    assert len(whole["scores"]) == 7
    for rank in range(2):
        for form, found in json.loads((tmp_path / "on2" / f"rank{rank}.json").read_text()).items():
            assert len(found["scores"]) == 7, form
            assert found["metrics"].keys() == whole["metrics"].keys()
            for name, value in whole["metrics"].items():
                assert found["metrics"][name] == pytest.approx(value, abs=1e-5, nan_ok=True), (form, name)
            for row, expected in zip(found["scores"], whole["scores"], strict=True):
                assert row == pytest.approx(expected, abs=1e-4), form


@pytest.mark.slow
def test_evaluate_measures_do_not_depend_on_batch_size(make_model, make_lists, processor) -> None:
    lists, model = make_lists(60, 5), make_model()
    for swaps in ("all", "one"):
        whole = evaluate(model, processor, lists, swaps=swaps, batch_size=60)
        for batch in (1, 13, 59):
            found = evaluate(model, processor, lists, swaps=swaps, batch_size=batch)
            for name, value in whole.items():
                if isinstance(value, float):
                    assert found[name] == pytest.approx(value, abs=1e-6, nan_ok=True), (name, swaps, batch)
