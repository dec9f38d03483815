"""Initial order and scores by cross-fitting: no list is sorted by a ranker that has seen its clicks, none is held out.

Training lists fall into folds by their user. Those of a fold are sorted by a ranker that was trained on the other
folds, all other lists (validation, test, and new ones) by a ranker that was trained on all training lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.ranker_train import assign_parts, users_of


@dataclass(frozen=True)
class CrossFittedRanker:
    """A ranker trained on all training lists, and one per fold that was trained on the other folds.

    Attributes:
        whole: Trained on all training lists.
        folds: Fold k was not seen by ranker k.
        fold_of_list: int64 [N], the fold of each training list.
    """

    whole: Any
    folds: list[Any]
    fold_of_list: np.ndarray

    @classmethod
    def fit(cls, fit: Any, lists: Any, schema: Any, *, folds: int, seed: int) -> CrossFittedRanker:
        """Trains ``folds + 1`` rankers.

        Args:
            fit: ``(lists) -> ranker``.
            lists: A ``datasets`` Dataset of the training lists.
            schema: Of the lists; its group, or else its list_id, says which lists stay together.
            folds: How many, at least 2.
            seed: Of the folds.

        Raises:
            InputError: There are fewer users than folds; or as ``fit``.
        """
        users = users_of(lists, schema)
        if len(set(users)) < folds:
            raise InputError(
                f"--cross-fit {folds} needs at least {folds} users with lists in train, there are {len(set(users))}: "
                "use fewer folds, or more lists"
            )
        fold_of_list = assign_parts(users, folds, seed)
        of_folds = [fit(lists.select(np.flatnonzero(fold_of_list != fold))) for fold in range(folds)]
        return cls(fit(lists), of_folds, fold_of_list)

    @property
    def settings(self) -> dict[str, Any]:
        """What the rankers were made of."""
        return {**self.whole.settings, "folds": len(self.folds)}

    @property
    def processor(self) -> Any:
        """Of the ranker that new lists are sorted by."""
        return self.whole.processor

    def scores(self, table: pa.Table) -> np.ndarray:
        """Scores items that no ranker was trained on, float64 [N]."""
        return np.asarray(self.whole.scores(table))

    def score_training_lists(self, table: pa.Table, first: int, lengths: np.ndarray) -> np.ndarray:
        """Scores the items of training lists, each by the ranker that has not seen its list; float64 [N].

        Args:
            table: Successive training lists.
            first: The number of the first of them.
            lengths: int64 [B], their items.
        """
        fold_of_list = self.fold_of_list[first : first + table.num_rows]
        fold_of_item = np.repeat(fold_of_list, lengths)
        scores = np.empty(len(fold_of_item))
        for fold in np.unique(fold_of_list):
            of_fold = table.filter(pa.array(fold_of_list == fold))
            scores[fold_of_item == fold] = self.folds[int(fold)].scores(of_fold)
        return scores

    def save_pretrained(self, folder: str | Path) -> None:
        """Saves the ranker that new lists are sorted by."""
        self.whole.save_pretrained(folder)
