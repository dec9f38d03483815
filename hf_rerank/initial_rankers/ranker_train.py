"""Training data of rankers: lists of the split ``ranker_train``, without columns that reveal an item's position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.parquet_datasets import load_parquet
from hf_rerank.data.prepared import PreparedFolder
from hf_rerank.errors import InputError
from hf_rerank.processing.vocabularies import blake2b_64
from hf_rerank.schema import ListSchema
from hf_rerank.validation import tables_of

# Lists are split into this many parts by a hash of their user. The first is held out for early stopping; the others
# are folds for values that are learned out of fold.
PARTS = 10
HELD_OUT = 0
# Rankers score items one by one: no list is too long for them.
ANY_LENGTH = 1_000_000
LABEL_BATCH = 10_000


@dataclass(frozen=True)
class RankerLists:
    """Lists for training a ranker.

    Attributes:
        schema: The schema returned by ``ranker_schema``.
        train: A ``datasets`` Dataset of training lists.
        train_parts: int64, the part of each list of ``train``, from 1.
        held_out: A Dataset of lists of other users, for early stopping only.
        available: Number of available lists.
        click_rate: Share of clicked items in ``train``, strictly between 0 and 1.
    """

    schema: ListSchema
    train: Any
    train_parts: np.ndarray
    held_out: Any
    available: int
    click_rate: float

    def counts(self) -> dict[str, int]:
        """Returns the numbers of lists available, used for training and held out."""
        return {
            "lists_available": self.available,
            "lists_learned_from": len(self.train),
            "lists_held_out": len(self.held_out),
        }


def ranker_schema(schema: ListSchema) -> ListSchema:
    """Removes the columns that a ranker must not read (order, ground truth) or does not read (history)."""
    return schema.replace(
        position=None, attraction=None, examination=None, history=(), max_list_length=ANY_LENGTH, fitted=None
    )


def select_features(table: pa.Table, schema: ListSchema) -> pa.Table:
    """Selects the columns that scores depend on: no label, no order, no ground truth."""
    names = {feature.name for feature in (*schema.items, *schema.user)} | {schema.list_id}
    return table.select([name for name in table.column_names if name in names])


def read_ranker_train(prepared: PreparedFolder, folder: str | Path) -> Any:
    """Reads the lists of ``ranker_train`` as a ``datasets`` Dataset.

    Raises:
        InputError: There are no such lists.
    """
    if not prepared.lists.get("ranker_train"):
        held = ", ".join(f"{split} {lists:,}" for split, lists in prepared.lists.items())
        raise InputError(
            f"{folder} has no ranker_train lists (it has {held}): rankers and click models learn from that split "
            "only; prepare the lists with --ranker-train, or sort them with initial-rank --cross-fit 5, which needs "
            "none"
        )
    return load_parquet(prepared.files["ranker_train"], "ranker_train", streaming=False)


def choose_ranker_lists(lists: Any, schema: ListSchema, *, use: int, seed: int) -> RankerLists:
    """Chooses training lists, spread evenly over ``lists``, and holds out those of a tenth of the users.

    Args:
        lists: A ``datasets`` Dataset with labels.
        schema: Schema of the lists.
        use: Number of lists to use.
        seed: Seed of the split into parts.

    Raises:
        InputError: No training list, or no held-out list, has a click.
    """
    available = len(lists)
    # The multiples of available / use, rounded down.
    chosen = lists.select(np.arange(use) * available // use) if use < available else lists
    items, clicks = [], []
    for table in tables_of(chosen.select_columns([schema.label]), LABEL_BATCH):
        labels = table.column(schema.label).combine_chunks()
        of_clicks = labels.value_parent_indices().filter(pc.greater(labels.flatten(), 0)).to_numpy()
        items.append(pc.list_value_length(labels).to_numpy(zero_copy_only=False))
        clicks.append(np.bincount(of_clicks, minlength=table.num_rows))
    of_list = assign_parts(users_of(chosen, schema), PARTS, seed)
    shown, clicked = np.concatenate(items), np.concatenate(clicks)
    held = of_list == HELD_OUT
    for what, wanted in (("for training", ~held), ("held out for early stopping", held)):
        if not clicked[wanted].any():
            raise InputError(
                f"of {use:,} lists used, none of the {int(wanted.sum()):,} {what} has a "
                f"click in {schema.label!r}: expected more lists with clicks"
            )
    train = np.flatnonzero(~held)
    return RankerLists(
        schema=ranker_schema(schema),
        train=chosen.select(train),
        train_parts=of_list[train],
        held_out=chosen.select(np.flatnonzero(held)),
        available=available,
        click_rate=float((clicked[train].sum() + 1) / (shown[train].sum() + 2)),
    )


def assign_parts(users: list[Any], parts: int, seed: int) -> np.ndarray:
    """Assigns each list to a part, int64: users, ordered by a hash, go to the parts in turn."""
    in_order = sorted(set(users), key=lambda user: (blake2b_64(f"{seed}:{user}"), str(user)))
    part_of = {user: number % parts for number, user in enumerate(in_order)}
    return np.array([part_of[user] for user in users], dtype=np.int64)


def users_of(lists: Any, schema: ListSchema) -> list[Any]:
    """Returns the user of each list: its group, or else its id, or else its number."""
    named = [name for name in (schema.group, schema.list_id) if name is not None and name in lists.column_names]
    if not named:
        return list(range(len(lists)))
    users: list[Any] = []
    for table in tables_of(lists.select_columns(named), LABEL_BATCH):
        columns = [table.column(name).to_pylist() for name in named]
        for row, user in enumerate(columns[0]):
            others = (column[row] for column in columns[1:] if column[row] is not None)
            users.append(f"anonymous list {next(others, len(users))}" if user is None else user)
    return users
