"""``BatchMetrics``: the trainer's ``compute_metrics``, batch by batch in bounded memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from hf_rerank.evaluation.evaluator import SUMMED_TENSORS, EvaluationSums
from hf_rerank.schema import LABEL_PADDING


class BatchMetrics:
    """Accumulates the metrics of evaluation batches, and also calls the user's ``compute_metrics``.

    Args:
        make_sums: Creates the sums of an evaluation.
        compute_metrics: As in ``transformers.Trainer``: a function of an ``EvalPrediction`` with the scores [N, L] and
            labels [N, L] (-100 at padding) of all lists, which are kept in memory for it; with an argument
            ``compute_result`` it is called batch by batch instead. Its metrics are added to the others.

    """

    def __init__(
        self,
        make_sums: Callable[[], EvaluationSums],
        compute_metrics: Callable[..., dict[str, float]] | None = None,
    ) -> None:
        self._make_sums = make_sums
        self._compute_metrics = compute_metrics
        self._by_batch = (
            compute_metrics is not None and "compute_result" in inspect.signature(compute_metrics).parameters
        )
        self._measures: list[str] = []
        self._columns: list[str] = []
        self.reset()

    def reset(self) -> None:
        """Resets the sums, also after a failed evaluation."""
        self._sums = self._make_sums()
        self._collected: list[tuple[np.ndarray, np.ndarray]] = []

    def pack(
        self, scores: Tensor, measures: dict[str, Tensor], features: dict[str, Tensor], others: dict[str, Tensor]
    ) -> tuple[Any, Any]:
        """Packs predictions and label ids of a batch as tuples of tensors, which upstream gathers and returns.

        Args:
            scores: [B, L], comparable across lists.
            measures: Measures of each list, name -> [B].
            features: Inputs of ``forward``.
            others: Other tensors of the batch.
        """
        self._measures = list(measures)
        tensors = {**features, **others}
        self._columns = [name for name in SUMMED_TENSORS if name in tensors]
        predictions = (scores, torch.stack(list(measures.values()), dim=-1))
        return predictions, tuple(tensors[name] for name in ("labels", "position_ids", *self._columns))

    def __call__(self, batch: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        """Adds a batch; with ``compute_result``, returns the metrics of all batches."""
        predictions: Any = batch.predictions
        label_ids: Any = batch.label_ids
        (scores, measures), (labels, positions, *others) = predictions, label_ids
        # Across processes everything is padded with -100; the mask comes from the labels, never from scores. Lists
        # without items fill up the last batch of a stream.
        real = (labels >= 0).any(-1)
        if not bool(real.all()):
            (scores, measures, labels, positions), others = (
                [array[real] for array in arrays] for arrays in ((scores, measures, labels, positions), others)
            )
        scores, labels = scores.cpu(), labels.cpu()
        self._sums.add(
            scores,
            labels,
            labels >= 0,
            positions.cpu(),
            **{name: array.cpu() for name, array in zip(self._columns, others, strict=True)},
            measures={name: measures[:, column].cpu() for column, name in enumerate(self._measures)},
        )
        added = self._call_user(scores, labels, compute_result)
        if not compute_result:
            return {}
        results = {**self._sums.compute(), **added}
        self.reset()
        return results

    def _call_user(self, scores: Tensor, labels: Tensor, compute_result: bool) -> dict[str, float]:
        if self._compute_metrics is None:
            return {}
        arrays = (scores.numpy(), np.where(labels >= 0, labels, LABEL_PADDING).astype(np.float32))
        if self._by_batch:
            return self._compute_metrics(EvalPrediction(*arrays), compute_result=compute_result) or {}
        self._collected.append(arrays)
        if not compute_result:
            return {}
        width = max(part.shape[1] for part, _ in self._collected)
        joined = [np.concatenate([_widen(part[number], width) for part in self._collected]) for number in range(2)]
        return self._compute_metrics(EvalPrediction(*joined))


def _widen(array: np.ndarray, width: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=LABEL_PADDING)
