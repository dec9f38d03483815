"""Batches of raw lists, and the results of ranking them: the same checks and one format for every scorer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from hf_rerank.errors import InputError, show, suggestion
from hf_rerank.metrics.inputs import rank_slots
from hf_rerank.processing.encoding_report import EncodingReport
from hf_rerank.processing.processor import ListProcessor
from hf_rerank.processing.rows import convert_to_columns
from hf_rerank.schema import FEATURE_TENSORS, TENSORS
from hf_rerank.validation import Lists

DEFAULT_BATCH = 256
# Above this, float32 squares overflow: a layer norm gives NaN in torch, but a finite number in ONNX Runtime.
FAR_OUTSIDE = float(np.sqrt(np.finfo(np.float32).max))
_NUMBERS = [name for name in FEATURE_TENSORS if TENSORS[name].dtype == "float32"]


@dataclass
class EncodedBatch:
    """Raw lists and their encoding by a processor.

    Attributes:
        rows: One dict of columns per list.
        lists: The same lists, checked.
        features: The padded input tensors of the model, by name.
        report: Counts of unknown and missing values.
        first: Number of the first list.
    """

    rows: Sequence[Mapping[str, Any]]
    lists: Lists
    features: dict[str, np.ndarray]
    report: EncodingReport
    first: int

    @classmethod
    def encode(
        cls, rows: Sequence[Mapping[str, Any]], processor: ListProcessor, *, truncate: bool = False, first: int = 0
    ) -> EncodedBatch:
        """Checks and encodes one batch.

        Args:
            rows: One dict per list.
            processor: Encodes them.
            truncate: Keep only the first ``max_list_length`` positions of a longer list, instead of refusing it.
            first: Number of the first list, for messages.

        Raises:
            InputError: A list is wrong or too long.
        """
        rows = convert_to_columns(rows, processor.schema, first)
        lists = Lists.from_rows(rows, processor.schema, first=first)
        ragged, report = processor.encode(lists, truncate=truncate)
        arrays = ragged.pad()
        features = {name: arrays[name] for name in FEATURE_TENSORS if name in arrays}
        return cls(rows, lists, features, report, first)

    def check_scores(self, scores: np.ndarray) -> None:
        """Refuses scores [B, L] of real items that are not finite or not reliable.

        Raises:
            InputError: A score is not finite or not reliable; the message names the list.
        """
        for name in _NUMBERS:
            if name in self.features and (far := np.abs(self.features[name]) > FAR_OUTSIDE).any():
                number = int(np.argmax(far.reshape(len(far), -1).any(-1)))
                raise InputError(
                    f"list {self.lists.ids[number]} contains a number far outside the range of the training data "
                    f"(above {FAR_OUTSIDE:.1e} after scaling), so that its scores would not be reliable: correct the "
                    "number, or write null (None)"
                )
        broken = ~np.isfinite(np.where(self.features["mask"], scores, 0.0)).all(-1)
        if broken.any():
            raise InputError(
                f"list {self.lists.ids[int(np.argmax(broken))]} gets scores that are not finite: a number in it is "
                "far outside the range of the training data, or the model's weights are damaged"
            )

    def results(self, scores: np.ndarray, top_k: int | None = None) -> list[dict[str, Any]]:
        """Builds the results that ``Reranker.rerank`` returns.

        Args:
            scores: float32 [B, L], by slot.
            top_k: How many items to return. None: all.

        Raises:
            InputError: An item gets a score that is not finite.
        """
        self.check_scores(scores)
        lists, schema = self.lists, self.lists.schema
        order = rank_slots(scores, self.features["mask"])
        results = []
        for number, (row, length) in enumerate(zip(self.rows, lists.lengths, strict=True)):
            slots = order[number, : min(length, schema.max_list_length)][:top_k]
            best = (slots if length <= schema.max_list_length else self.slots_in_row(number)[slots]).tolist()
            ids = self._read_ids(row, number)
            results.append(
                {
                    "list_id": self.list_id(number),
                    "order": best,
                    "scores": scores[number, slots].tolist(),
                    "ids": [ids[slot] for slot in best],
                }
            )
        return results

    def slots_in_row(self, number: int) -> np.ndarray:
        """Returns the slots of the row, from 0, that are in the tensors: all slots, or those left after truncation."""
        length, longest = int(self.lists.lengths[number]), self.lists.schema.max_list_length
        if length <= longest:
            return np.arange(length)
        end = int(self.lists.lengths[: number + 1].sum())
        return np.flatnonzero(self.lists.positions[end - length : end] < longest)

    def list_id(self, number: int) -> Any:
        """Returns the value in the schema's ``list_id`` column, or the number of the list if there is none."""
        name = self.lists.schema.list_id
        return self.rows[number][name] if name is not None and name in self.rows[number] else self.first + number

    def _read_ids(self, row: Mapping[str, Any], number: int) -> Any:
        name = self.lists.schema.id_column
        if name not in row:
            raise InputError(
                f"list {self.lists.ids[number]} has no column {name!r}, whose values ranking returns (id of the "
                f"schema){suggestion(name, row)}"
            )
        values: Any = row[name]
        # Arrays are converted to plain values, so that a server can write the whole result as JSON.
        ids = values.tolist() if hasattr(values, "tolist") else values
        length = int(self.lists.lengths[number])
        if isinstance(ids, str) or not isinstance(ids, Sequence) or len(ids) != length:
            raise InputError(
                f"column {name!r} of list {self.lists.ids[number]} does not contain {length} values, one per item, "
                "which ranking returns (id of the schema)"
            )
        return ids


def encode_batches(
    lists: Sequence[Mapping[str, Any]], processor: ListProcessor, *, truncate: bool, batch_size: int
) -> Iterator[EncodedBatch]:
    """Checks and encodes lists in batches.

    Raises:
        InputError: ``lists`` is not a sequence, a list is wrong or too long, or an option is wrong.
    """
    check_at_least_one("batch_size", batch_size)
    check_is_bool("truncate", truncate)
    if isinstance(lists, Mapping):
        raise InputError("expected a sequence of lists, one dict each, got one dict: put it in brackets, [{...}]")
    if not isinstance(lists, Sequence):
        raise InputError(f"expected a sequence of lists, one dict each, got {type(lists).__name__}: give list(...)")
    for start in range(0, len(lists), batch_size):
        yield EncodedBatch.encode(lists[start : start + batch_size], processor, truncate=truncate, first=start)


def probabilities(scores: np.ndarray, mask: np.ndarray, task_loss: str) -> np.ndarray:
    """Computes the probabilities of a model trained with ``task_loss``: sigmoid per score, or softmax over the list.

    Args:
        scores: float32 [B, L].
        mask: bool [B, L].
        task_loss: A name in ``hf_rerank.losses.TASK_LOSSES``.

    Returns:
        float32 [B, L], 0 at padding.
    """
    real = np.where(mask, scores, -np.inf).astype(np.float64)
    if task_loss == "binary_log_loss":
        return np.where(mask, 1.0 / (1.0 + np.exp(-np.clip(real, -700.0, 700.0))), 0.0).astype(np.float32)
    powers = np.exp(real - real.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def check_at_least_one(name: str, value: Any, *, or_none: bool = False) -> None:
    """Raises an InputError unless the value is a whole number of at least 1, or None where that means no limit."""
    if value is None and or_none:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(
            f"{name} is {show(value)}: expected at least 1, a whole number{', or None' if or_none else ''}"
        )
    if int(value) < 1:
        raise InputError(f"{name} is {show(value)}: expected at least 1")


def check_is_bool(name: str, value: Any) -> None:
    """Raises an InputError unless the value is True or False: the string "no" would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {show(value)}: expected True or False")
