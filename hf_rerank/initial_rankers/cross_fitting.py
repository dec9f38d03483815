"""Initial order and scores by cross-fitting: no list is sorted by a ranker that has seen its clicks, none is held out.

Training lists are split into folds by user. The lists of a fold are sorted by a ranker trained on the other folds, all
other lists (validation, test, and new ones) by a ranker trained on all training lists.
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
    """A ranker trained on all training lists, and one per fold trained on the other folds.

    Attributes:
        whole: The ranker trained on all training lists.
        folds: One ranker per fold; ranker k has not seen fold k.
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
            schema: Schema of the lists; its group, or else its list_id, determines which lists stay together.
            folds: Number of folds, at least 2.
            seed: Seed of the split into folds.

        Raises:
            InputError: There are fewer users than folds; or as ``fit``.
        """
        users = users_of(lists, schema)
        if len(set(users)) < folds:
            raise InputError(
                f"--cross-fit {folds} needs at least {folds} users with lists in train, but there are "
                f"{len(set(users))}: use fewer folds, or more lists"
            )
        fold_of_list = assign_parts(users, folds, seed)
        of_folds = [fit(lists.select(np.flatnonzero(fold_of_list != fold))) for fold in range(folds)]
        return cls(fit(lists), of_folds, fold_of_list)

    @property
    def settings(self) -> dict[str, Any]:
        """How the rankers were trained."""
        return {**self.whole.settings, "folds": len(self.folds)}

    @property
    def processor(self) -> Any:
        """The processor of the ranker for new lists."""
        return self.whole.processor

    def scores(self, table: pa.Table) -> np.ndarray:
        """Scores items that no ranker was trained on, float64 [N]."""
        return np.asarray(self.whole.scores(table))

    def score_training_lists(self, table: pa.Table, first: int, lengths: np.ndarray) -> np.ndarray:
        """Scores the items of training lists, each by the ranker that has not seen its list; float64 [N].

        Args:
            table: Consecutive training lists.
            first: Number of the first list in ``table``.
            lengths: int64 [B], number of items per list.
        """
        fold_of_list = self.fold_of_list[first : first + table.num_rows]
        fold_of_item = np.repeat(fold_of_list, lengths)
        scores = np.empty(len(fold_of_item))
        for fold in np.unique(fold_of_list):
            of_fold = table.filter(pa.array(fold_of_list == fold))
            scores[fold_of_item == fold] = self.folds[int(fold)].scores(of_fold)
        return scores

    def save_pretrained(self, folder: str | Path) -> None:
        """Saves the ranker for new lists."""
        self.whole.save_pretrained(folder)
