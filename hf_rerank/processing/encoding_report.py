"""Counts of unknown and missing values in training lists and in encoded lists, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from hf_rerank.processing.vocabularies import HashVocabulary, TableVocabulary, ValueCounts
from hf_rerank.schema import Categorical, Feature, ListSchema
from hf_rerank.validation import Lists

# Drift is reported if the share of unknown or missing values is at least this multiple of that in training, at least
# this large, and among at least this many values.
DRIFT_FACTOR, DRIFT_SHARE, DRIFT_VALUES = 3, 0.01, 100


@dataclass
class EncodingReport:
    """Counts of encoded values; reports of batches can be added.

    Attributes:
        lists: Lists encoded.
        cut_lists: Lists longer than ``max_list_length`` that were cut.
        cut_items: Items that this removed.
        cut_histories: Histories longer than ``max_history_length``, of which the newest items were kept.
        cut_history_items: History items that this removed.
        values: Feature -> values encoded.
        unknown: Categorical feature -> values without their own row (nulls included).
        missing: Feature -> nulls.
        varied: Dense feature that was constant in training -> values that differ from that constant; they are encoded
            as 0.
        drift: One sentence per column with more unknown or missing values than in training; set by
            ``Reranker.rerank``, see ``ListProcessor.describe_drift``.
    """

    lists: int = 0
    cut_lists: int = 0
    cut_items: int = 0
    cut_histories: int = 0
    cut_history_items: int = 0
    values: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    varied: dict[str, int] = field(default_factory=dict)
    drift: list[str] = field(default_factory=list)

    def add(self, other: EncodingReport) -> None:
        """Adds the counts of another report to this one; ``describe_drift`` stays."""
        self.lists += other.lists
        self.cut_lists += other.cut_lists
        self.cut_items += other.cut_items
        self.cut_histories += other.cut_histories
        self.cut_history_items += other.cut_history_items
        for counts, more in (
            (self.values, other.values),
            (self.unknown, other.unknown),
            (self.missing, other.missing),
            (self.varied, other.varied),
        ):
            for name, count in more.items():
                counts[name] = counts.get(name, 0) + count

    def unknown_share(self) -> dict[str, float]:
        """Categorical feature -> share of its values that are unknown."""
        return {name: count / max(self.values[name], 1) for name, count in self.unknown.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class TrainingCounts:
    """Counts of the values of training lists: the source of vocabularies, and of the baseline shares for drift.

    Args:
        schema: Describes the columns.
    """

    def __init__(self, schema: ListSchema) -> None:
        self.schema = schema
        self.lists = 0
        self._values: dict[str, int] = {}
        self._missing: dict[str, int] = {}
        self._counts: dict[str, ValueCounts] = {}

    def add(self, lists: Lists) -> None:
        """Counts a batch."""
        self.lists += len(lists)
        for part in ("items", "user", "history"):
            for feature in getattr(self.schema, part):
                column = getattr(lists, part)[feature.name]
                if not isinstance(column, pa.Array):  # a vector
                    continue
                self._values[feature.name] = self._values.get(feature.name, 0) + len(column)
                self._missing[feature.name] = self._missing.get(feature.name, 0) + column.null_count
                if isinstance(feature, Categorical) and feature.hash_size is None:
                    self._counts.setdefault(feature.name, ValueCounts()).add(column, feature.name)

    def merge_table(self, table: str) -> ValueCounts:
        """Counts of the values of an embedding table: of the column of this name, and of those that share its
        table."""
        total = ValueCounts()
        for feature in _list_categorical(self.schema):
            if table in (feature.name, feature.shares):
                total.add_counts(self._counts.get(feature.name, ValueCounts()), feature.name)
        return total

    def missing_share(self, feature: Feature) -> float:
        """The share of a column's values that is missing."""
        return self._missing.get(feature.name, 0) / max(self._values.get(feature.name, 0), 1)

    def report(self, vocabularies: Mapping[str, TableVocabulary | HashVocabulary]) -> dict[str, dict[str, int]]:
        """``values``, ``unknown`` and ``missing`` by feature, as in ``EncodingReport``, as plain JSON values."""
        unknown = {}
        for feature in _list_categorical(self.schema):
            vocabulary = vocabularies[feature.shares or feature.name]
            if isinstance(vocabulary, HashVocabulary):
                unknown[feature.name] = self._missing.get(feature.name, 0)
            else:
                known = self._counts.get(feature.name, ValueCounts()).count_known(vocabulary, feature.name)
                unknown[feature.name] = self._values.get(feature.name, 0) - known
        missing = {name: count for name, count in self._missing.items() if count}
        return {"values": dict(self._values), "unknown": unknown, "missing": missing}


def describe_drift(found: EncodingReport, training: Mapping[str, Mapping[str, int]]) -> list[str]:
    """One sentence per column with more unknown or missing values than in training, or that was constant there.

    "More" means at least three times the share in training and at least 1 %, among at least 100 values.

    Args:
        found: The counts of later lists.
        training: ``TrainingCounts.report``; empty if unknown.
    """
    sentences = []
    for what, counts in (("unknown", found.unknown), ("missing", found.missing)):
        for name, count in counts.items():
            values, then = found.values[name], training.get("values", {}).get(name, 0)
            if not then or values < DRIFT_VALUES:
                continue
            # A null of a categorical column is unknown too, and is named once.
            if what == "missing" and name in found.unknown:
                continue
            count_then = training[what].get(name, 0)
            if count >= DRIFT_SHARE * values and count * then >= DRIFT_FACTOR * count_then * values:
                sentences.append(
                    f"column {name!r}: {count / values:.1%} of its values are {what}; in training "
                    f"{count_then / then:.1%}"
                )
    sentences += [
        f"column {name!r} was constant in training and no longer is ({count:,} values): the model reads 0 for all of "
        "them"
        for name, count in found.varied.items()
    ]
    return sentences


def _list_categorical(schema: ListSchema) -> list[Categorical]:
    features = (*schema.items, *schema.user, *schema.history)
    return [feature for feature in features if isinstance(feature, Categorical)]
