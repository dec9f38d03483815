"""What all that rank raw lists share: the same checks, the same batches, one format of results. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.validation import Lists
from hf_rerank.processing import EncodingReport, ListProcessor

DEFAULT_BATCH = 256
# What an encoded batch holds beside the features that a model ranks by.
_NO_FEATURES = ("labels", "weights", "propensities", "attraction")
_NUMBERS = ("item_dense", "item_vectors", "user_dense", "history_dense")
# What float32 cannot square: a layer norm of it is NaN in torch, and an ordinary number in ONNX Runtime.
FAR_OUTSIDE = float(np.sqrt(np.finfo(np.float32).max))


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
            InputError: An item gets a score that is not finite, or holds a number that no score can be relied on for.
        """
        lists, schema = self.lists, self.lists.schema
        for name in _NUMBERS:
            if name in self.features and (far := np.abs(self.features[name]) > FAR_OUTSIDE).any():
                of_list = int(np.argmax(far.reshape(len(far), -1).any(-1)))
                raise InputError(
                    f"list {lists.ids[of_list]} holds a number far outside those of training, above {FAR_OUTSIDE:.1e} "
                    "once it is scaled: no score of it could be relied on; mend the number, or write null (None)"
                )
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
            # An array gives plain values, as the rest of the result, which a server writes as JSON.
            items = row[name].tolist() if hasattr(row[name], "tolist") else row[name]
            result[name] = [items[slot] for slot in result["order"]]
            results.append(result)
        return results


def encoded_rows(
    lists: Sequence[Mapping[str, Any]], processor: ListProcessor, *, truncate: bool, batch_size: int
) -> Iterator[EncodedRows]:
    """Lists in batches, checked and encoded, with their numbers in messages.

    Raises:
        InputError: ``lists`` is no sequence, a list is wrong or too long, or an option is wrong.
    """
    check_at_least_one("batch_size", batch_size)
    check_yes_or_no("truncate", truncate)
    if isinstance(lists, Mapping):
        raise InputError("expected a sequence of lists, got one dictionary: write rerank([list])")
    if not isinstance(lists, Sequence):
        raise InputError(f"expected a sequence of lists, got {type(lists).__name__}: write rerank(list(...))")
    for start in range(0, len(lists), batch_size):
        yield EncodedRows.of(lists[start : start + batch_size], processor, truncate=truncate, first=start)


def check_at_least_one(name: str, value: Any, *, or_none: bool = False) -> None:
    """Raises an InputError for what is no whole number, at least 1; and no None, where that means no limit."""
    if value is None and or_none:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}: expected at least 1, a whole number{', or None' if or_none else ''}")
    if int(value) < 1:
        raise InputError(f"{name} is {value}: expected at least 1")


def check_yes_or_no(name: str, value: Any) -> None:
    """Raises an InputError for what is neither True nor False: the text "no" would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {value!r}: expected True or False")
