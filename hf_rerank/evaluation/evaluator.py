"""Evaluation of scores for lists: ranking metrics, obedience to both principles, and reference orders.

The trainer, the command line and the experiments all use ``EvaluationSums``, so their numbers are comparable.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_rerank.errors import InputError
from hf_rerank.metrics.accumulate import RankingMetrics
from hf_rerank.metrics.propensity import PropensityMetrics
from hf_rerank.principled.obedience import MAX_STEPS, obedience
from hf_rerank.processing import EncodingReport, ListProcessor
from hf_rerank.processing.collator import hash_list_ids
from hf_rerank.processing.vocabularies import splitmix64
from hf_rerank.schema import MODEL_TENSORS, TENSORS
from hf_rerank.validation import Lists, tables_of

Batch = dict[str, Tensor]
# Optional tensors that ``EvaluationSums.add`` takes by name.
SUMMED_TENSORS = [name for name, spec in TENSORS.items() if spec.role in ("ground_truth", "propensity", "cut_label")]


class EvaluationSums:
    """Metrics over lists that arrive in batches, in bounded memory.

    Args:
        ks: Cut-offs of the ranking metrics.
        no_click: Lists without a click count as 0 (``zero``), or are left out (``skip``).
        gain: Gain of NDCG, ``exponential`` or ``linear``.
        click_above: A click is a label above this number. None: 0, and fractional labels are not clicks, see
            ``RankingMetrics``.
        examination: [positions], the probability that each position is examined, on simulated lists; gives expected
            clicks.
    """

    def __init__(
        self,
        ks: Sequence[int],
        *,
        no_click: str = "zero",
        gain: str = "exponential",
        click_above: float | None = None,
        examination: Sequence[float] | None = None,
    ) -> None:
        self.metrics = RankingMetrics(
            ks=ks, no_click=no_click, gain=gain, click_above=click_above, examination=examination
        )
        self.with_truth = examination is not None
        self.propensity = PropensityMetrics(ks, examination=examination)
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(
        self,
        scores: Tensor,
        labels: Tensor,
        mask: Tensor,
        position_ids: Tensor,
        *,
        attraction: Tensor | None = None,
        measures: dict[str, Tensor] | None = None,
        propensities: Tensor | None = None,
        cut_labels: Tensor | None = None,
    ) -> None:
        """Adds B lists.

        Args:
            scores: [B, L]; must be comparable across lists for the pooled AUC to be meaningful.
            labels: [B, L].
            mask: bool [B, L], True at real items.
            position_ids: int64 [B, L], the initial order.
            attraction: [B, L], true attraction on simulated lists.
            measures: Name -> [B], from ``obedience(..., reduction="none")``; NaN is left out of the mean.
            propensities: [B, L], if the schema names them; adds the estimates of ``hf_rerank.metrics.propensity``.
            cut_labels: [B, C], labels of the items cut from the lists, below 0 at padding; see ``RankingMetrics``.
        """
        truth = (
            {"attraction": attraction, "positions": position_ids} if self.with_truth and attraction is not None else {}
        )
        self.metrics.update(scores, labels, mask=mask, cut_labels=cut_labels, **truth)
        if propensities is not None:
            clicks = (labels > (self.metrics.click_above or 0.0)).float()
            self.propensity.update(scores, clicks, propensities, mask=mask)
        for name, values in (measures or {}).items():
            there = ~values.isnan()
            self._sums[name] = self._sums.get(name, 0.0) + float(values[there].double().sum())
            self._counts[name] = self._counts.get(name, 0) + int(there.sum())

    def compute(self) -> dict[str, float]:
        """Computes every metric by name; ``obedience_lists`` is the number of lists of the obedience measures."""
        results = dict(self.metrics.compute())
        if self.propensity.lists:
            known = self.metrics.fraction is None
            results |= {name: value if known else math.nan for name, value in self.propensity.compute().items()}
        for name, total in self._sums.items():
            results[name] = total / self._counts[name] if self._counts[name] else float("nan")
        if "p1_obedience" in self._counts:
            results["obedience_lists"] = self._counts["p1_obedience"]
        return results


def make_comparable(logits: Tensor, task_loss: str, mask: Tensor) -> Tensor:
    """Turns logits into scores with the same ranking that are comparable across lists, like probabilities.

    Returns the logits under ``binary_log_loss`` (sigmoid is increasing), otherwise the log-softmax over the list.
    Neither saturates, unlike the probabilities in float32.
    """
    if task_loss == "binary_log_loss":
        return logits.float()
    return F.log_softmax(logits.float().masked_fill(~mask, torch.finfo(torch.float32).min), dim=-1)


def encode_batches(
    lists: Any, processor: ListProcessor, *, batch_size: int = 512, report: EncodingReport | None = None
) -> Iterator[Batch]:
    """Encodes labelled lists into batches of tensors, ids included, in order.

    Args:
        lists: A dataset or arrow table of lists.
        processor: Encodes them.
        batch_size: Lists per batch.
        report: Receives the counts of unknown and missing values.
    """
    number = 0
    for table in tables_of(lists, batch_size):
        batch = Lists.from_arrow(table, processor.schema, with_labels=True, first=number)
        number += len(batch)
        ragged, found = processor.encode(batch)
        if report is not None:
            report.add(found)
        arrays = ragged.with_ids(batch.ids).pad()
        yield {name: torch.from_numpy(array) for name, array in arrays.items()}


def evaluate(
    model: Any,
    processor: ListProcessor,
    lists: Any,
    *,
    ks: Sequence[int] = (5, 10),
    no_click: str = "zero",
    gain: str = "exponential",
    click_above: float | None = None,
    obedience_k: int = 5,
    swaps: Literal["all", "one"] = "all",
    max_steps: int = MAX_STEPS,
    batch_size: int = 512,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Evaluates a re-ranker of this library on labelled lists, in evaluation mode and float32.

    Args:
        model: The re-ranker.
        processor: Its processor.
        lists: A dataset or arrow table of lists with labels.
        ks: Cut-offs of the ranking metrics.
        no_click: Lists without a click count as 0 (``zero``), or are left out (``skip``).
        gain: Gain of NDCG: ``exponential``, ``2^y - 1``, or ``linear``, ``y``.
        click_above: A click is a label above this number. None: 0; fractional labels make all metrics but NDCG NaN.
        obedience_k: Cut-off of the obedience at the top.
        swaps: ``all`` adjacent swaps (a sample of 64 in lists above 65 items), or ``one`` per list.
        max_steps: How often the model is fed its own output before a list counts as not converged; 0: not measured.
        batch_size: Lists per batch.
        progress: Called with the number of lists after each batch.

    Returns:
        Metrics and measures by name, ``unknown_share`` of each categorical feature, ``drift`` (one sentence per column
        with more unknown or missing values than in training, see ``ListProcessor.describe_drift``; each is also a
        warning), and ``settings``.
    """
    examination = processor.schema.examination
    sums = EvaluationSums(ks, no_click=no_click, gain=gain, click_above=click_above, examination=examination)
    report = EncodingReport()
    training = model.training
    model.eval()
    try:
        for batch in encode_batches(lists, processor, batch_size=batch_size, report=report):
            add_batch(model, batch, sums, obedience_k=obedience_k, swaps=swaps, max_steps=max_steps)
            if progress is not None:
                progress(batch["mask"].shape[0])
    finally:
        model.train(training)
    if not report.lists:
        raise InputError("there are no lists to evaluate: expected at least one")
    drift = processor.describe_drift(report)
    for sentence in drift:
        warnings.warn(sentence, UserWarning, stacklevel=2)
    about = {"unknown_share": report.unknown_share(), "drift": drift, "settings": sums.metrics.settings()}
    return {**sums.compute(), **about}


@torch.no_grad()
def measure_obedience(
    forward: Callable[..., Any],
    inputs: Batch,
    *,
    obedience_k: int,
    swaps: Literal["all", "one"] = "all",
    max_steps: int = MAX_STEPS,
    list_keys: Tensor | None = None,
) -> Any:
    """Runs a re-ranker over one embedding; ``losses`` of its output contains the measures of obedience [B].

    Args:
        forward: The model, or its ``forward``, in evaluation mode and float32.
        inputs: Inputs of ``forward``, with labels.
        obedience_k: Cut-off of the obedience at the top.
        swaps: ``all`` adjacent swaps of a list (a sample of 64 in lists above 65 items), or ``one``.
        max_steps: How often the model is fed its own output before a list counts as not converged; 0: not measured.
        list_keys: int64 [B], seeds that make a list's random swaps the same in any batch. None: the row in the batch.
    """

    def objective(
        score: Callable[..., Any], position_ids: Tensor, labels: Tensor, mask: Tensor, task_loss: Callable[..., Tensor]
    ) -> dict[str, Tensor]:
        given = score(position_ids)
        measures = obedience(
            lambda orders: (given if orders is position_ids else score(orders)).logits.float(),
            position_ids,
            mask,
            k=obedience_k,
            swaps=swaps,
            max_steps=max_steps,
            list_keys=list_keys,
            reduction="none",
        )
        return {"loss": task_loss(given), **measures}

    return forward(**inputs, objective=objective)


def add_batch(
    model: Any,
    batch: Batch,
    sums: EvaluationSums,
    *,
    obedience_k: int,
    swaps: Literal["all", "one"] = "all",
    max_steps: int = MAX_STEPS,
) -> None:
    """Scores one encoded batch and adds its metrics and obedience to ``sums``."""
    device = next(model.parameters()).device
    inputs = {name: batch[name].to(device) for name in MODEL_TENSORS if name in batch}
    keys = hash_list_ids(batch["list_id"].to(device))
    output = measure_obedience(
        model, inputs, obedience_k=obedience_k, swaps=swaps, max_steps=max_steps, list_keys=keys
    )
    scores = make_comparable(output.logits, model.config.task_loss_name, inputs["mask"])
    sums.add(
        scores.cpu(),
        batch["labels"],
        batch["mask"],
        batch["position_ids"],
        measures={name: value.cpu() for name, value in output.losses.items()},
        **_select_columns(batch),
    )


def _select_columns(batch: Batch) -> dict[str, Any]:
    """Selects the tensors of a batch that ``EvaluationSums.add`` takes by name; None for missing ones."""
    return {name: batch.get(name) for name in SUMMED_TENSORS}


def evaluate_orders(
    processor: ListProcessor,
    lists: Any,
    *,
    ks: Sequence[int] = (5, 10),
    no_click: str = "zero",
    gain: str = "exponential",
    click_above: float | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Evaluates the reference orders: ``random``, ``initial`` and, with known ground truth, ``true_attraction``.

    Args:
        processor: Encodes the lists.
        lists: A dataset or arrow table of lists with labels.
        ks: Cut-offs.
        no_click: Lists without a click count as 0 (``zero``), or are left out (``skip``).
        gain: Gain of NDCG: ``exponential``, ``2^y - 1``, or ``linear``, ``y``.
        click_above: A click is a label above this number. None: 0; fractional labels make all metrics but NDCG NaN.
        seed: Seed of the random order, a hash of (seed, number of the list, slot), the same on every machine.

    Returns:
        Name of the order -> metrics. These orders do not read ``P``, so obedience does not apply; the AUC of the
        initial order compares positions across lists.
    """
    examination = processor.schema.examination
    rows: dict[str, EvaluationSums] = {}
    number = 0
    for batch in encode_batches(lists, processor):
        size, length = batch["mask"].shape
        keys = np.arange(number, number + size, dtype=np.int64)[:, None] * 4096 + np.arange(length)
        number += size
        hashed = splitmix64(splitmix64(keys).view(np.int64) + np.int64(seed))
        scores = {
            "random": torch.from_numpy((hashed >> np.uint64(11)).astype(np.float64) / 2**53),
            "initial": -batch["position_ids"].double(),
        }
        if "attraction" in batch:
            scores["true_attraction"] = batch["attraction"].double()
        for name, values in scores.items():
            if name not in rows:
                rows[name] = EvaluationSums(
                    ks, no_click=no_click, gain=gain, click_above=click_above, examination=examination
                )
            sums = rows[name]
            sums.add(
                values,
                batch["labels"],
                batch["mask"],
                batch["position_ids"],
                **_select_columns(batch),
            )
    if not number:
        raise InputError("there are no lists to evaluate: expected at least one")
    return {name: sums.compute() for name, sums in rows.items()}
