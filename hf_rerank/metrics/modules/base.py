"""Code that the ``evaluate`` modules share: their inputs, and the padding of ragged lists.

A module imports this file and not the class in it: ``evaluate`` takes the first metric class that a module contains.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from hf_rerank.errors import InputError

INPUTS = """
Args:
    predictions: one list of scores for each ranked list; lists may differ in length. Higher is better, ties keep
        the order of the list.
    references: the labels of the same items, >= 0; a click is a label > 0.
"""


class ListMetric(evaluate.Metric):
    """A metric of ranked lists. A subclass defines a docstring and ``_compute``, with every option spelled out."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )


def pad(
    predictions: Sequence[Sequence[float]], references: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pads ragged lists: ``scores, labels, mask``, each ``[lists, longest list]``."""
    lengths = np.array([len(scores) for scores in predictions], dtype=np.int64)
    label_lengths = np.array([len(labels) for labels in references], dtype=np.int64)
    different = np.flatnonzero(lengths != label_lengths)
    if different.size:
        first = different[0]
        raise InputError(
            f"list {first} has {lengths[first]} predictions and {label_lengths[first]} references: "
            "give each score one label"
        )
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    scores, labels = np.zeros(mask.shape), np.zeros(mask.shape)
    if mask.any():
        scores[mask], labels[mask] = np.concatenate(predictions), np.concatenate(references)
    return scores, labels, mask


def key(name: str, k: int | None) -> str:
    """``"ndcg@10"``, or ``"ndcg"`` for the whole list: the names of ``RankingMetrics``."""
    return name if k is None else f"{name}@{k}"
