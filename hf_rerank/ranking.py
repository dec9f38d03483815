"""What all that rank raw lists share: the same checks, the same batches, one format of results. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.lists import Lists
from hf_rerank.processing import EncodingReport, ListProcessor

DEFAULT_BATCH = 256
# What an encoded batch holds beside the features that a model ranks by.
_NO_FEATURES = ("labels", "weights", "propensities", "attraction")


@dataclass
class EncodedRows:
    """Raw lists and what a processor made of them.

    Attributes:
        rows: The dictionaries.
        lists: The same, checked.
        features: Tensors by name, as ``ListProcessor`` describes them, without labels and weights.
        report: What encoding met.
    """

    rows: Sequence[Mapping[str, Any]]
    lists: Lists
    features: dict[str, np.ndarray]
    report: EncodingReport

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[str, Any]], processor: ListProcessor, *, truncate: bool = False, first: int = 0
    ) -> EncodedRows:
        """Checks and encodes one batch.

        Args:
            rows: Dictionaries of columns, one a list.
            processor: Encodes them.
            truncate: Keep only the first ``max_list_length`` places of a longer list, instead of refusing it.
            first: Number of the first list, for messages.

        Raises:
            InputError: A list is wrong or too long.
        """
        lists = Lists.from_rows(rows, processor.schema, first=first)
        arrays, report = processor.encode(lists, truncate=truncate)
        features = {name: array for name, array in arrays.items() if name not in _NO_FEATURES}
        return cls(rows, lists, features, report)

    def results(self, order: np.ndarray, scores: np.ndarray, top_k: int | None = None) -> list[dict[str, Any]]:
        """The results that ``Reranker.rerank`` describes.

        Args:
            order: int64 [B, L], the slots of each list from best to worst, padding last.
            scores: float32 [B, L], by slot.
            top_k: How many items to return. None: all.

        Raises:
            InputError: An item gets a score that is not finite.
        """
        lists, schema = self.lists, self.lists.schema
        broken = ~np.isfinite(np.where(self.features["mask"], scores, 0.0)).all(-1)
        if broken.any():
            raise InputError(
                f"list {lists.ids[int(np.argmax(broken))]} gets scores that are not finite: a number in it is far "
                "outside those of training, or the model's weights are broken"
            )
        name, longest = schema.items[0].name, schema.max_list_length
        ends = np.cumsum(lists.lengths)
        results = []
        for number, (row, length) in enumerate(zip(self.rows, lists.lengths, strict=True)):
            best = order[number, : min(length, longest)]
            of_best = scores[number, best]
            if length > longest:
                # Of a list that was cut, the tensors hold the slots whose initial place came first.
                kept = np.flatnonzero(lists.positions[ends[number] - length : ends[number]] < longest)
                best = kept[best]
            result: dict[str, Any] = {"order": best[:top_k].tolist(), "scores": of_best[:top_k].tolist()}
            if schema.list_id is not None and schema.list_id in row:
                result[schema.list_id] = row[schema.list_id]
            result[name] = [row[name][slot] for slot in result["order"]]
            results.append(result)
        return results


def encoded_rows(
    lists: Sequence[Mapping[str, Any]], processor: ListProcessor, *, truncate: bool, batch_size: int
) -> Iterator[EncodedRows]:
    """Lists in batches, checked and encoded, with their numbers in messages.

    Raises:
        InputError: ``lists`` is no sequence, a list is wrong or too long, or ``batch_size`` is below 1.
    """
    check_at_least_one("batch_size", batch_size)
    if isinstance(lists, Mapping):
        raise InputError("expected a sequence of lists, got one dictionary: write rerank([list])")
    if not isinstance(lists, Sequence):
        raise InputError(f"expected a sequence of lists, got {type(lists).__name__}: write rerank(list(...))")
    for start in range(0, len(lists), batch_size):
        yield EncodedRows.of(lists[start : start + batch_size], processor, truncate=truncate, first=start)


def check_at_least_one(name: str, value: int | None) -> None:
    """Raises an InputError for a number below 1; None means no limit."""
    if value is not None and value < 1:
        raise InputError(f"{name} is {value}: expected at least 1")
