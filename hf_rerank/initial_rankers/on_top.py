"""A re-ranker on top of boosted trees: LambdaMART whose scores a re-ranker starts from.

A tree model that has learned from a list scores it better than it will score new lists, and a re-ranker that is
trained on such scores trusts them too much. So the training lists are cross-fitted: they fall into folds by group, and
each gets the scores of trees that were learned from the other folds. All other lists are scored by trees that were
learned from all training lists; these go into the processor, and are saved with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.click_through import ClickThroughCounts
from hf_rerank.initial_rankers.lambdamart import (
    BATCH,
    HIGHEST_LABEL,
    LONGEST_LIST,
    MAX_CATEGORIES,
    require_lightgbm,
)
from hf_rerank.initial_rankers.lightgbm_trees import ensemble_of
from hf_rerank.initial_rankers.ranker_train import PARTS, users_of, users_to_parts
from hf_rerank.losses import binary_log_loss, softmax_loss
from hf_rerank.metrics.ranking import ndcg
from hf_rerank.processing import ListProcessor, RaggedLists
from hf_rerank.processing.ragged import concatenate
from hf_rerank.processing.trees import TreeRanker, rows_of, tables_in, tree_inputs
from hf_rerank.schema import NO_ORDER, Dense, Vector
from hf_rerank.training.starting_point import calibration
from hf_rerank.validation import Lists, tables_of

SCORE_COLUMN = "lambdamart_score"
FOLDS = 5
# Leaves per tree and numbers of trees that are tried; which is best is decided on the validation lists. Stopping at
# the best of all numbers would take a chance peak of few validation lists for the best, which may be a single tree.
LEAVES = (7, 15, 31)
TREES = (50, 100, 300)


@dataclass(frozen=True)
class OnTop:
    """What ``fit_on_top`` made.

    Attributes:
        processor: That of the re-ranker, with the trees.
        train: The training lists with a column of cross-fitted scores, ``SCORE_COLUMN``.
        settings: What the trees were made of, plain JSON values.
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
    """Learns LambdaMART from training lists, for a re-ranker that starts from its scores.

    All lists are held encoded in memory, 4 bytes per feature of an item, twice while LightGBM reads them.

    Args:
        processor: Fitted on ``train``; its schema names no ``initial_score``.
        train: A ``datasets`` Dataset of training lists.
        validation: Lists that choose the number of trees and of leaves by NDCG@10.
        with_position: Whether the trees also read at which position an item is given. Their scores are then those of
            the given order in every pass of principled learning. None: what is better on the training lists, each
            scored by trees that have not learned from it, with a number per position beside the trees' scores.
        folds: Of the cross-fitting, at least 2.
        seed: Of the folds.
        threads: Of LightGBM. The trees do not depend on it.

    Raises:
        InputError: LightGBM is missing; the lists have scores of an earlier ranker already; no list has a click;
            labels are no whole numbers from 0 to 30; or a list has more than 10,000 items.
    """
    lightgbm = require_lightgbm()
    schema = processor.schema
    if schema.initial_score is not None or SCORE_COLUMN in train.column_names:
        raise InputError(
            f"the lists have scores of an earlier ranker (column {schema.initial_score or SCORE_COLUMN!r}): start "
            "from these with --set initial_score=start, or leave them out of the schema"
        )
    if not 2 <= folds <= PARTS:
        raise InputError(f"folds is {folds}: expected 2 to {PARTS}")
    if not hasattr(train, "add_column"):
        raise InputError("the training lists are a stream: cross-fitting reads them several times; load them whole")
    held_out = _encoded(processor, validation)
    kinds = [False, True] if with_position is None else [with_position]
    if schema.position == NO_ORDER:
        kinds = [False]
    fitted = [
        _CrossFitted(_Learner(lightgbm, processor, train, kind, seed, threads), held_out, folds) for kind in kinds
    ]
    # Of equals the first: scores that do not depend on the given order keep the meaning of the principles.
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
    """Trees of all training lists, cross-fitted scores of these, and what a start from them is worth.

    Attributes:
        trees, chosen: As of ``_Learner.choose``.
        scores: float32 [N], of the items of the training lists.
        lengths: int64 [B], items of these.
        value: NDCG@10 on the training lists of their cross-fitted scores with a number per position, where training
            starts. There are more of them than validation lists, and no tree has learned from the list it scores.
    """

    def __init__(self, learner: _Learner, held_out: RaggedLists, folds: int) -> None:
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
        tensors = {name: torch.from_numpy(array) for name, array in _scored(learner.ragged, self.scores).items()}
        scale, offset, of_position = calibration(tensors, loss, positions=positions)
        start = scale * self.scores + offset
        if positions:
            start = start + np.array(of_position)[learner.ragged.rows["position_ids"]]
        self.value = _mean_ndcg(start, learner.ragged)


class _Learner:
    """Training lists as LightGBM reads them, for any choice of lists."""

    def __init__(
        self, lightgbm: Any, processor: ListProcessor, train: Any, with_position: bool, seed: int, threads: int
    ) -> None:
        self.lightgbm, self.processor, self.threads = lightgbm, processor, threads
        self.with_position = with_position
        self.schema = processor.schema
        self.ragged = _encoded(processor, train)
        self.lengths = self.ragged.lengths["L"]
        self.labels = self.ragged.rows["labels"]
        self._refuse_labels()
        self.parts = users_to_parts(users_of(train, self.schema), PARTS, seed)
        self.counts = {}
        for part, number, feature in tables_in(self.schema):
            rows = feature.hash_size or feature.size
            assert rows is not None  # of a fitted schema
            if rows > MAX_CATEGORIES:
                self.counts[feature.name] = ClickThroughCounts(rows)
                of_item = np.repeat(self.parts, self.lengths)
                self.counts[feature.name].add(rows_of(self.ragged, part, number), self.labels > 0, of_item)

    def choose(self, held_out: RaggedLists) -> tuple[TreeRanker, dict[str, Any]]:
        """The trees of all lists that are best on lists held out, with the numbers that made them so."""
        every = np.ones(len(self.lengths), dtype=bool)
        best: tuple[float, TreeRanker, dict[str, Any]] | None = None
        for leaves in LEAVES:
            booster, rates = self._boost(every, leaves, max(TREES))
            for trees in TREES:
                ranker = self._ranker(booster.model_to_string(num_iteration=trees), rates)
                value = _mean_ndcg(ranker.scores(held_out, self.schema), held_out)
                if best is None or value > best[0]:
                    best = (value, ranker, {"leaves": leaves, "trees": trees, "validation_ndcg@10": value})
        assert best is not None
        return best[1], best[2]

    def fit(self, lists: np.ndarray, leaves: int, trees: int) -> TreeRanker:
        """Trees learned from the lists where ``lists`` bool [B] is True."""
        booster, rates = self._boost(lists, leaves, trees)
        return self._ranker(booster.model_to_string(), rates)

    def _ranker(self, model: str, rates: dict[str, np.ndarray]) -> TreeRanker:
        return TreeRanker(ensemble_of(model), rates, reads_position=self.with_position)

    def _boost(self, lists: np.ndarray, leaves: int, trees: int) -> tuple[Any, dict[str, np.ndarray]]:
        chosen = self.ragged.take(np.flatnonzero(lists))
        parts = np.unique(self.parts[lists])
        # Rates of an item that was learned from are those of the other parts; of a new item, those of all of them.
        rates = {name: counts.rates(parts) for name, counts in self.counts.items()}
        learned = {name: counts.out_of_fold(parts) for name, counts in self.counts.items()}
        of_item = np.repeat(self.parts[lists], chosen.lengths["L"])
        values = tree_inputs(chosen, self.schema, learned, of_item, with_position=self.with_position)
        named = {"categorical_feature": self._categories(), "params": {"verbose": -1}}
        data = self.lightgbm.Dataset(
            values, chosen.rows["labels"], group=chosen.lengths["L"], weight=chosen.rows.get("weights"), **named
        )
        options = {
            "objective": "lambdarank",
            "learning_rate": 0.05,
            "num_leaves": leaves,
            # Small leaves of few items would learn single clicks.
            "min_data_in_leaf": int(np.clip(len(values) // 200, 5, 50)),
            "seed": 0,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.threads,
            "verbose": -1,
        }
        return self.lightgbm.train(options, data, trees), rates

    def _categories(self) -> list[int]:
        """Which columns of ``tree_inputs`` are categories."""
        numbers = sum(feature.width for part in ("items", "user") for feature in self.schema.features(part, Dense))
        numbers += sum(feature.dim for feature in self.schema.features("items", Vector))
        return list(range(numbers, numbers + len(tables_in(self.schema)) - len(self.counts)))

    def _refuse_labels(self) -> None:
        wrong = (self.labels != np.floor(self.labels)) | (self.labels > HIGHEST_LABEL)
        if wrong.any():
            raise InputError(
                f"label {self.labels[wrong][0]:g} in {self.schema.label!r}: lambdamart takes whole numbers from 0 to "
                f"{HIGHEST_LABEL}; turn the labels into clicks or grades"
            )
        if not self.labels.any():
            raise InputError(f"no training list has a click in {self.schema.label!r}: expected lists with clicks")
        if self.lengths.max(initial=0) > LONGEST_LIST:
            raise InputError(
                f"a training list has {self.lengths.max():,} items: lambdamart learns from lists of at most "
                f"{LONGEST_LIST:,}; leave it out"
            )


def _encoded(processor: ListProcessor, lists: Any) -> RaggedLists:
    parts, start = [], 0
    for table in tables_of(lists, BATCH):
        parts.append(processor.encode(Lists.from_arrow(table, processor.schema, with_labels=True, first=start))[0])
        start += table.num_rows
    return concatenate(parts)


def _mean_ndcg(scores: np.ndarray, ragged: RaggedLists) -> float:
    padded = _scored(ragged, scores)
    return float(ndcg(padded["initial_scores"], padded["labels"], mask=padded["mask"], k=10))


def _scored(ragged: RaggedLists, scores: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of lists whose items have these scores."""
    return RaggedLists(ragged.lengths, {**ragged.rows, "initial_scores": scores}).padded()
