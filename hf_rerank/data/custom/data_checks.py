"""Warnings for valid lists that are most likely a mistake: repeats, leaks, splits that share users or lists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from hf_rerank.schema import Categorical, Dense, ListSchema
from hf_rerank.validation import Lists

# Names of categories, which may repeat within a list, and of item ids, which should not.
CATEGORY_NAME = re.compile(
    r"(?i:cat|brand|shop|seller|store|vendor|merchant|genre|type|city|country|colou?r|size|campaign|customer|user)"
)
ID_NAME = re.compile(
    r"(?i:(^|[_\W])(id|ids|sku|asin|isbn|ean|uuid|guid)$|^(item|product|doc|document)s?$)|[a-z]I[dD]$"
)
# A column of another name holds item ids if it has this many distinct values, at least half as many as items.
MANY_ITEMS = 100
LEAK_AUC = 0.9
# A feature with a larger AUC within lists leaks the labels; with fewer lists than these it may be chance.
TELLING_AUC, TELLING_LISTS = 0.98, 30
# So does a feature with values that occur almost only on clicked items: precision, clicks, share of all clicks.
TELLING_PRECISION, TELLING_CLICKS, TELLING_SHARE = 0.98, 30, 0.1
LEARNED_FROM = ("ranker_train", "train")


def find_leak(lists: Lists) -> str | None:
    """A warning if the order of the slots leaks the labels, else None."""
    from hf_rerank.metrics import slot_order_auc

    mask = np.arange(lists.lengths.max()) < lists.lengths[:, None]
    labels = np.zeros(mask.shape, dtype=bool)
    labels[mask] = _find_clicked(lists)
    auc = slot_order_auc(labels, mask=mask)
    if not auc > LEAK_AUC:  # nan: all labels are alike
        return None
    return (
        f"the order of the slots alone has an AUC of {auc:.3f} on a sample of train, and the schema names no position "
        "column: the rows seem to list clicked items first, so that every tie, and the initial order itself, leaks "
        "the labels; give the real initial order as a position column, or shuffle the slots"
    )


def find_leaking_columns(lists: Lists) -> list[str]:
    """Warnings about item features that leak the labels, such as a second outcome: one sentence each."""
    clicked, label = _find_clicked(lists), lists.schema.label
    found = []
    for feature in (*lists.schema.features("items", Dense), *lists.schema.features("items", Categorical)):
        evidence = _find_evidence(feature, lists.items[feature.name], clicked, lists)
        if evidence is not None:
            found.append(
                f"column {feature.name!r} alone separates items with {label!r} from the others ({evidence}): it "
                "seems to be written after the outcome, and is not known when lists are ranked; leave it out of the "
                "schema"
            )
    return found


def _find_clicked(lists: Lists) -> np.ndarray:
    """bool [N]: the label is above 0; if all are, such as a teacher's scores, the label is above their median."""
    assert lists.labels is not None
    lowest = 0.0 if not len(lists.labels) or lists.labels.min() <= 0 else float(np.median(lists.labels))
    return lists.labels > lowest


def _find_evidence(feature: Dense | Categorical, column: pa.Array, clicked: np.ndarray, lists: Lists) -> str | None:
    """The evidence that a column leaks the labels: its order within lists, or values of clicked items alone."""
    from hf_rerank.metrics import grouped_auc

    if pa.types.is_null(column.type) or not clicked.any() or clicked.all():
        return None
    fold = np.repeat(np.arange(len(lists)) % 2, lists.lengths)
    values = _to_numbers(column) if isinstance(feature, Dense) else _estimate_click_rates(column, clicked, fold)
    mask = np.arange(lists.lengths.max()) < lists.lengths[:, None]
    scores, labels = np.zeros(mask.shape), np.zeros(mask.shape, dtype=bool)
    scores[mask], labels[mask] = values, clicked
    aucs = np.asarray(grouped_auc(scores, labels, mask=mask, reduction="none"))
    aucs = aucs[~np.isnan(aucs)]
    if len(aucs) >= TELLING_LISTS and (auc := max(aucs.mean(), 1 - aucs.mean())) > TELLING_AUC:
        return f"AUC within lists {auc:.3f} in {len(aucs):,} lists of train"
    for what, chosen in _list_groups(feature, column, values, clicked):
        clicks = int((clicked & chosen).sum())
        enough = clicks >= max(TELLING_CLICKS, TELLING_SHARE * clicked.sum())
        if enough and clicks >= TELLING_PRECISION * chosen.sum() and clicked.mean() < 0.5:
            return f"of {int(chosen.sum()):,} items that {what}, {clicks:,} are clicked, in lists of train"
    return None


def _to_numbers(column: pa.Array) -> np.ndarray:
    return column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)


def _estimate_click_rates(column: pa.Array, clicked: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """For each item, the share of clicks of its value among the lists of the other fold.

    Values that the other fold lacks, such as ids of orders, count as one: they take the share of clicks among the
    values of the other fold that this one lacks.
    """
    encoded = column.dictionary_encode()
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False).astype(np.int64)
    size = len(encoded.dictionary) + 1
    items = [np.bincount(codes[fold == side], minlength=size) for side in (0, 1)]
    clicks = [np.bincount(codes[fold == side], weights=clicked[fold == side], minlength=size) for side in (0, 1)]
    rates = np.zeros(len(codes))
    for side in (0, 1):
        here, there = items[side] > 0, items[1 - side] > 0
        alone = there & ~here
        of_others = clicks[1 - side][alone].sum() / max(items[1 - side][alone].sum(), 1)
        by_value = np.where(there, clicks[1 - side] / np.maximum(items[1 - side], 1), of_others)
        rates[fold == side] = by_value[codes[fold == side]]
    return rates


def _list_groups(
    feature: Dense | Categorical, column: pa.Array, values: np.ndarray, clicked: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Groups of items that may all be clicked: a description, and which items they are, bool [N]."""
    if isinstance(feature, Categorical):
        yield "have some of its values", values >= TELLING_PRECISION
        return
    missing = column.is_null().to_numpy(zero_copy_only=False)
    yield "have a value in it", ~missing
    yield "lack a value in it", missing
    there = values[~missing]
    if not len(there):
        return
    distinct, counts = np.unique(there, return_counts=True)
    yield f"have another value than {distinct[counts.argmax()]:g}", ~missing & (values != distinct[counts.argmax()])


class DataChecks:
    """Collects counts over batches; ``list_messages`` turns them into warnings.

    Attributes:
        lists: Number of lists.
        one_item: Number of lists with one item.
    """

    def __init__(self, schema: ListSchema) -> None:
        self.schema = schema
        self.lists = 0
        self.one_item = 0
        self._repeating = 0
        self._first_repeat: tuple[str, Any] | None = None
        self._lowest_label, self._highest_label = np.inf, -np.inf
        self._leaks: list[str] = []
        self._ids: list[np.ndarray] = []
        self._users: list[np.ndarray] = []
        self._contents: list[np.ndarray] = []
        first = next(iter(schema.features("items", Categorical)), None)
        named_category = first is not None and CATEGORY_NAME.search(first.name)
        self._id_column = None if first is None or named_category else first.name

    def add(self, lists: Lists, users: Any = None, *, learned_from: bool = True) -> None:
        """Adds a batch.

        Args:
            lists: The batch.
            users: The users of the lists, null for anonymous lists.
            learned_from: Whether models may learn from the lists; the first such batch is checked for leaks.
        """
        if not len(lists):
            return
        if learned_from and not self.lists:
            self._leaks = find_leaking_columns(lists)
            if self.schema.position_column is None and (message := find_leak(lists)) is not None:
                self._leaks.append(message)
        self.lists += len(lists)
        self.one_item += int((lists.lengths == 1).sum())
        if lists.labels is not None:
            self._lowest_label = min(self._lowest_label, float(lists.labels.min()))
            self._highest_label = max(self._highest_label, float(lists.labels.max()))
        if self._id_column is not None:
            self._add_repeats(lists, lists.items[self._id_column])
        if users is not None:
            names = pl.Series(users).cast(pl.String)
            self._users.append(np.where(names.is_null(), 0, names.hash(0).fill_null(0)).astype(np.uint64))
        if self.schema.list_id is not None:
            self._ids.append(pl.Series(lists.ids).hash(0).to_numpy())
        else:
            self._contents.append(_hash_content(lists))

    def has_repeated_ids(self) -> bool:
        """Whether two lists seem to have the same id: the hashes of two ids are equal."""
        return bool(self._ids) and len(np.unique(np.concatenate(self._ids))) < self.lists

    def list_messages(self, splits: np.ndarray | None = None, *, given: bool = False) -> list[str]:
        """One sentence per likely mistake, with column, first list and count.

        Args:
            splits: The split of each list, if known.
            given: Whether the splits are the user's own.
        """
        found = [*self._check_lists(), *self._leaks]
        if splits is None:
            return found
        if given and self._users:
            found += self._find_shared_users(splits)
        if given and self._contents:
            found += self._find_shared_lists(splits)
        return found

    def _check_lists(self) -> list[str]:
        found = []
        if self._first_repeat is not None:
            list_id, value = self._first_repeat
            found.append(
                f"column {self._id_column!r} names items, and repeats some within "
                f"{self._format_share(self._repeating)} lists (first in list {list_id}: {value!r}): "
                "each item should be in a list only once; remove the "
                "repeats, or put another column first in the schema if this one is not an id"
            )
        if 2 * self.one_item >= self.lists > 0:
            found.append(
                f"{self._format_share(self.one_item)} lists have one item: there is nothing to re-rank in them; leave "
                "them out, or check whether list_id names each item instead of each list"
            )
        if self.lists > 0 and self._lowest_label == self._highest_label:
            found.append(
                f"label column {self.schema.label!r} is {self._highest_label:g} everywhere in {self.lists:,} lists: "
                "there is nothing to learn; is it the right column?"
            )
        elif self.lists > 0 and self._lowest_label > 0:
            found.append(
                f"label column {self.schema.label!r} is above 0 everywhere ({self._lowest_label:g} to "
                f"{self._highest_label:g}), so every item counts as clicked in all metrics except NDCG: say which "
                "labels are clicks with click_above (evaluate --click-above)"
            )
        return found

    def _find_shared_users(self, splits: np.ndarray) -> list[str]:
        users = np.concatenate(self._users)
        learned = np.isin(splits, LEARNED_FROM) & (users != 0)
        found = []
        for split in ("validation", "test"):
            of_split = np.unique(users[(splits == split) & (users != 0)])
            both = int(np.isin(of_split, users[learned]).sum())
            if both:
                found.append(
                    f"{both:,} of {len(of_split):,} users (column {self.schema.group!r}) of {split} are also in train "
                    "or ranker_train: models learn about them, so results look better than for new users; leave the "
                    "splits out to split lists by user"
                )
        return found

    def _find_shared_lists(self, splits: np.ndarray) -> list[str]:
        contents = np.concatenate(self._contents)
        learned = contents[np.isin(splits, LEARNED_FROM)]
        found = []
        for split in ("validation", "test"):
            both = np.isin(contents[splits == split], learned)
            if both.any():
                first = int(np.flatnonzero(splits == split)[int(np.argmax(both))])
                found.append(
                    f"{int(both.sum()):,} of {len(both):,} lists of {split} are also in train or ranker_train, with "
                    f"the same features and labels (first list {first}): a model has seen their answers; remove them "
                    "from one of the splits"
                )
        return found

    def _add_repeats(self, lists: Lists, column: pa.Array) -> None:
        encoded = column.dictionary_encode()
        distinct = len(encoded.dictionary)
        if not ID_NAME.search(str(self._id_column)) and not MANY_ITEMS <= distinct >= len(column) / 2:
            return
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        owners = np.repeat(np.arange(len(lists)), lists.lengths)
        pairs = (owners * (distinct + 1) + codes)[codes >= 0]
        found, counts = np.unique(pairs, return_counts=True)
        repeated = found[counts > 1]
        rows = np.unique(repeated // (distinct + 1))
        self._repeating += len(rows)
        if len(rows) and self._first_repeat is None:
            value = encoded.dictionary[int(repeated[0] % (distinct + 1))].as_py()
            self._first_repeat = (lists.ids[int(rows[0])], value)

    def _format_share(self, count: int) -> str:
        return f"{count:,} of {self.lists:,}"


def _hash_content(lists: Lists) -> np.ndarray:
    """uint64 [B], a hash of features and labels of each list; equal lists have equal hashes."""
    within = np.arange(int(lists.lengths.sum())) - np.repeat(np.cumsum(lists.lengths) - lists.lengths, lists.lengths)
    of_item = (within + 1).astype(np.uint64)
    columns = [pl.Series(column) for column in lists.items.values() if isinstance(column, pa.Array)]
    for column in [*columns, *([] if lists.labels is None else [pl.Series(lists.labels)])]:
        values = column.cast(pl.Int64) if column.dtype == pl.Null else column
        of_item = (of_item * np.uint64(0x9E3779B97F4A7C15)) ^ values.hash(1).fill_null(0).to_numpy()
    starts = np.cumsum(lists.lengths) - lists.lengths
    content = np.add.reduceat(of_item, starts)
    for value in lists.user.values():
        series = pl.Series(value)
        hashes = (series.cast(pl.Int64) if series.dtype == pl.Null else series).hash(2).fill_null(0).to_numpy()
        content = (content * np.uint64(0x9E3779B97F4A7C15)) ^ hashes
    return content
