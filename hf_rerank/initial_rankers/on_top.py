"""A re-ranker on top of boosted trees: LambdaMART whose scores a re-ranker starts from.

Trees score the lists that they were trained on better than new lists, and a re-ranker trained on such scores relies on
them too much. So the training lists are cross-fitted: they are split into folds by group, and each list is scored by
trees trained on the other folds. All other lists are scored by trees trained on all training lists; these become part
of the processor and are saved with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.boosting import encode, require_lightgbm
from hf_rerank.initial_rankers.ranker_train import PARTS
from hf_rerank.initial_rankers.tree_learner import TreeLearner, mean_ndcg, pad_with_scores
from hf_rerank.losses import binary_log_loss, softmax_loss
from hf_rerank.processing import ListProcessor, RaggedLists
from hf_rerank.schema import NO_ORDER
from hf_rerank.training.starting_point import fit_calibration

SCORE_COLUMN = "lambdamart_score"
FOLDS = 5


@dataclass(frozen=True)
class OnTop:
    """The result of ``fit_on_top``.

    Attributes:
        processor: Processor of the re-ranker, with the trees.
        train: The training lists with a column of cross-fitted scores, ``SCORE_COLUMN``.
        settings: How the trees were trained, as JSON values.
    """

    processor: ListProcessor
    train: Any
    settings: dict[str, Any]


def fit_on_top(
    processor: ListProcessor,
    train: Any,
    validation: Any,
    *,
    with_position: bool | None = None,
    folds: int = FOLDS,
    seed: int = 0,
    threads: int = 1,
) -> OnTop:
    """Trains LambdaMART on training lists, for a re-ranker that starts from its scores.

    The encoded lists are kept in memory, 4 bytes per feature of an item, twice while LightGBM reads them.

    Args:
        processor: Processor fitted on ``train``; its schema names no ``initial_score``.
        train: A ``datasets`` Dataset of training lists.
        validation: Lists on which the numbers of trees and leaves are selected by NDCG@10.
        with_position: Whether the trees also read the given position of an item. Their scores are then those of the
            given order in every pass of principled learning. None: whichever is better on the cross-fitted training
            lists, with one learned number per position added to the trees' scores.
        folds: Number of folds of the cross-fitting, at least 2.
        seed: Seed of the split into folds.
        threads: Number of LightGBM threads. The trees do not depend on it.

    Raises:
        InputError: LightGBM is missing; the lists already have scores of an earlier ranker; no list has a click;
            labels are not whole numbers from 0 to 30; or a list has more than 10,000 items.
    """
    lightgbm = require_lightgbm()
    schema = processor.schema
    if schema.initial_score is not None or SCORE_COLUMN in train.column_names:
        raise InputError(
            f"the lists have scores of an earlier ranker (column {schema.initial_score or SCORE_COLUMN!r}): start "
            "from these with --set initial_score=start, or remove the column from the schema"
        )
    if not 2 <= folds <= PARTS:
        raise InputError(f"folds is {folds}: expected 2 to {PARTS}")
    if not hasattr(train, "add_column"):
        raise InputError("the training lists are a stream: cross-fitting reads them several times; load them whole")
    held_out = encode(processor, validation)
    kinds = [False, True] if with_position is None else [with_position]
    if schema.position == NO_ORDER:
        kinds = [False]
    fitted = [
        _CrossFitted(TreeLearner(processor, train, with_position=kind, seed=seed, threads=threads), held_out, folds)
        for kind in kinds
    ]
    # Ties go to the first: scores that do not depend on the given order keep the meaning of the principles.
    best = max(fitted, key=lambda each: each.value)
    schema = schema.replace(initial_score=SCORE_COLUMN)
    with_score = ListProcessor(schema, processor.vocabularies, processor.scales, processor.fit_report, best.trees)
    offsets = pa.array(np.concatenate([[0], np.cumsum(best.lengths)]), type=pa.int32())
    column = pa.ListArray.from_arrays(offsets, pa.array(best.scores))
    settings = {
        "ranker": "lambdamart",
        "folds": folds,
        "seed": seed,
        "lists_learned_from": len(train),
        **best.chosen,
        "with_position": best.trees.reads_position,
        "start_ndcg@10": best.value,
        "click_through_rates_of": list(best.trees.rates),
        "lightgbm": lightgbm.__version__,
    }
    return OnTop(with_score, train.add_column(SCORE_COLUMN, column), settings)


class _CrossFitted:
    """Trees trained on all training lists, cross-fitted scores of these lists, and the NDCG of these scores.

    Attributes:
        trees, chosen: As returned by ``TreeLearner.choose``.
        scores: float32 [N], cross-fitted scores of the items of the training lists.
        lengths: int64 [B], number of items per training list.
        value: NDCG@10 on the training lists of the cross-fitted scores plus a number per position, the starting point
            of training. There are more training than validation lists, and no tree was trained on the list it scores.
    """

    def __init__(self, learner: TreeLearner, held_out: RaggedLists, folds: int) -> None:
        schema, self.lengths = learner.schema, learner.lengths
        self.trees, self.chosen = learner.choose(held_out)
        fold = learner.parts % folds
        of_item = np.repeat(fold, self.lengths)
        self.scores = np.zeros(len(of_item), dtype=np.float32)
        for number in range(folds):
            ranker = learner.fit(fold != number, self.chosen["leaves"], self.chosen["trees"])
            held = learner.ragged.take(np.flatnonzero(fold == number))
            self.scores[of_item == number] = ranker.scores(held, schema)
        positions = 0 if schema.position == NO_ORDER else schema.max_list_length
        loss = binary_log_loss if learner.labels.max() <= 1 else softmax_loss
        tensors = {
            name: torch.from_numpy(array) for name, array in pad_with_scores(learner.ragged, self.scores).items()
        }
        scale, offset, of_position = fit_calibration(tensors, loss, positions=positions)
        start = scale * self.scores + offset
        if positions:
            start = start + np.array(of_position)[learner.ragged.rows["position_ids"]]
        self.value = mean_ndcg(start, learner.ragged)
