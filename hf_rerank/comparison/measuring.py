"""Measures of one run: over all lists, per list (for paired intervals), and the latency per list."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.evaluation.evaluator import EvaluationSums, add_batch, encode_batches
from hf_rerank.metrics import expected_clicks
from hf_rerank.metrics.ranked_lists import RankedLists
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import ListSchema

CLICKS, NDCG = "expected_clicks", "ndcg@10"
CUT = 10
# Number of lists whose ranking is timed, after a few untimed ones.
TIMED, WARM_UP = 50, 3


def primary_measure(schema: ListSchema) -> str:
    """Chooses the primary measure: expected clicks with known ground truth (simulated lists), else NDCG@10."""
    return CLICKS if schema.attraction is not None and schema.examination is not None else NDCG


@dataclass(frozen=True)
class Measured:
    """The result of one evaluation.

    Attributes:
        measures: Measures over all lists.
        per_list: float64 [lists], the primary measure; NaN for a list that does not count.
    """

    measures: dict[str, float]
    per_list: np.ndarray


class PerListSums(EvaluationSums):
    """``EvaluationSums`` that keep the primary measure of each list; ``options`` are theirs, such as ``ks``."""

    def __init__(self, schema: ListSchema, **options: Any) -> None:
        super().__init__(**options, examination=schema.examination)
        self.primary, self.examination = primary_measure(schema), schema.examination
        self.per_list: list[np.ndarray] = []

    def add(self, scores: Tensor, labels: Tensor, mask: Tensor, position_ids: Tensor, **others: Any) -> None:
        """As ``EvaluationSums.add``."""
        super().add(scores, labels, mask, position_ids, **others)
        if self.primary == CLICKS:
            values = expected_clicks(scores, others["attraction"], self.examination, mask=mask, reduction="none")
        else:
            ranked = RankedLists(scores, labels, mask, click_above=self.metrics.click_above or 0.0)
            values = ranked.reduce(ranked.ndcg(CUT, self.metrics.gain), self.metrics.no_click, "none")
        self.per_list.append(np.asarray(values, dtype=np.float64))

    def compute_result(self) -> Measured:
        """Computes the measures of all lists added."""
        if not self.per_list:
            raise InputError("there are no lists to evaluate: expected at least one")
        return Measured(self.compute(), np.concatenate(self.per_list))


def measure_model(model: Any, processor: ListProcessor, lists: Any, **options: Any) -> Measured:
    """Measures a re-ranker in evaluation mode: metrics, obedience to both principles, and the values of each list.

    Args:
        model: The re-ranker.
        processor: Encodes the lists.
        lists: Lists with labels.
        options: As in ``measure_scores``.
    """
    sums = PerListSums(processor.schema, **options)
    model.eval()
    for batch in encode_batches(lists, processor):
        add_batch(model, batch, sums, obedience_k=5, max_steps=0)
    return sums.compute_result()


def measure_scores(scores: np.ndarray, processor: ListProcessor, lists: Any, **options: Any) -> Measured:
    """Measures given scores.

    Args:
        scores: float [N], scores of the items of all lists, one list after another, in row order.
        processor: Encodes the lists.
        lists: Lists with labels.
        options: ``ks``, ``no_click``, ``gain`` and ``click_above`` of ``EvaluationSums``.
    """
    sums, start = PerListSums(processor.schema, **options), 0
    for batch in encode_batches(lists, processor):
        mask = batch["mask"]
        items = int(mask.sum())
        padded = torch.zeros(mask.shape, dtype=torch.float64)
        padded[mask] = torch.from_numpy(np.asarray(scores[start : start + items], dtype=np.float64))
        start += items
        sums.add(padded, batch["labels"], mask, batch["position_ids"], attraction=batch.get("attraction"))
    return sums.compute_result()


def score_logged_order(processor: ListProcessor, lists: Any) -> np.ndarray:
    """Scores items by the logged order: minus their position in it, float64 [N]."""
    parts = [-batch["position_ids"][batch["mask"]].numpy() for batch in encode_batches(lists, processor)]
    return np.concatenate(parts).astype(np.float64)


def measure_latency_ms(rank: Callable[[dict[str, Any]], Any], lists: Any, label: str) -> float:
    """Measures the median time in milliseconds that ``rank`` takes for one raw list, encoding included.

    Args:
        rank: Takes one list, a dict of columns without the label.
        lists: A ``datasets`` Dataset; its first lists are ranked one by one.
        label: The label column.
    """
    seconds = []
    for number in range(min(len(lists), WARM_UP + TIMED)):
        row = {name: value for name, value in lists[number].items() if name != label}
        started = time.perf_counter()
        rank(row)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[WARM_UP:] or seconds)
