"""Qualities of initial rankers: how much training data and model capacity each may use.

| quality | lists of ``ranker_train`` | LambdaMART | DNN |
|---|---|---|---|
| ``poor`` | 2 %, at least 100 | 5 trees of 4 leaves | hidden layer of 16, up to 2 epochs at 3e-3 |
| ``moderate`` | 10 %, at least 300 | 30 trees of 8 leaves | layers of 64 and 32, up to 5 epochs at 1e-3 |
| ``strong`` | all | up to 1,000 trees of 31 leaves | layers of 200 and 80, up to 20 epochs at 2e-3 |

A tenth of the lists used (by user) is held out; "up to" means early stopping on the held-out lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_rerank.errors import InputError, suggestion

RANKERS = ("lambdamart", "dnn")


@dataclass(frozen=True)
class Quality:
    """Limits on the training data and the size of a ranker.

    Attributes:
        share: Share of the lists of ``ranker_train``.
        at_least: Minimum number of lists, if there are as many.
        trees: Maximum number of trees of LambdaMART.
        leaves: Leaves per tree of LambdaMART.
        hidden_sizes: Widths of the hidden layers of the DNN.
        epochs: Maximum number of epochs of the DNN.
        learning_rate: Learning rate of the DNN.
    """

    share: float
    at_least: int
    trees: int
    leaves: int
    hidden_sizes: tuple[int, ...]
    epochs: int
    learning_rate: float

    def lists(self, available: int, at_most: int | None) -> int:
        """Returns the number of lists to use."""
        use = min(available, max(math.ceil(self.share * available), self.at_least))
        return use if at_most is None else min(use, at_most)


QUALITIES = {
    "poor": Quality(0.02, 100, 5, 4, (16,), 2, 3e-3),
    "moderate": Quality(0.1, 300, 30, 8, (64, 32), 5, 1e-3),
    "strong": Quality(1.0, 0, 1_000, 31, (200, 80), 20, 2e-3),
}


def find_quality(name: str) -> Quality:
    """Finds the quality of this name.

    Raises:
        InputError: There is no such quality.
    """
    if name not in QUALITIES:
        raise InputError(
            f"unknown quality {name!r}: expected one of {', '.join(QUALITIES)}{suggestion(name, QUALITIES)}"
        )
    return QUALITIES[name]
