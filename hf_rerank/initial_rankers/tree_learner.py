"""Boosted trees over the encoded features of a re-ranker's lists: LambdaMART, selected on held-out lists."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.boosting import OPTIONS, count_clicks, encode, make_dataset, require_lightgbm
from hf_rerank.initial_rankers.lightgbm_trees import parse_ensemble
from hf_rerank.initial_rankers.ranker_train import PARTS, assign_parts, users_of
from hf_rerank.metrics import ndcg
from hf_rerank.processing import ListProcessor, RaggedLists
from hf_rerank.processing.trees import TreeRanker

# Candidate numbers of leaves and trees; the best are selected on the validation lists. With few validation lists,
# stopping at the best of all numbers of trees could stop at a chance peak, even at a single tree.
LEAVES = (7, 15, 31)
TREES = (50, 100, 300)


class TreeLearner:
    """Trains trees on all training lists or a subset of them.

    The encoded lists are kept in memory, 4 bytes per feature of an item, twice while LightGBM reads them.

    Args:
        processor: Processor fitted on ``train``.
        train: Training lists, with labels.
        with_position: Whether the trees also read the given position of an item.
        seed: Seed of the parts in which click-through rates are counted.
        sampling_seed: Each tree sees nine tenths of the lists and of the features, drawn with this seed. None: all.
        threads: Number of LightGBM threads. The trees do not depend on it.

    Raises:
        InputError: LightGBM is missing; no list has a click; labels are not whole numbers from 0 to 30; or a list has
            more than 10,000 items.

    Attributes:
        ragged: The training lists, encoded.
        lengths: int64 [B], number of items per list.
        labels: float32 [N], labels of the items.
        parts: int64 [B], the part of each list.
    """

    def __init__(
        self,
        processor: ListProcessor,
        train: Any,
        *,
        with_position: bool = False,
        seed: int = 0,
        sampling_seed: int | None = None,
        threads: int = 1,
    ) -> None:
        self.lightgbm, self.processor, self.threads = require_lightgbm(), processor, threads
        self.sampling_seed = sampling_seed
        self.with_position = with_position
        self.schema = processor.schema
        self.ragged = encode(processor, train, "train")
        self.lengths = self.ragged.lengths["L"]
        self.labels = self.ragged.rows["labels"]
        if not self.labels.any():
            raise InputError(f"no training list has a click in {self.schema.label!r}: expected lists with clicks")
        self.parts = assign_parts(users_of(train, self.schema), PARTS, seed)
        self.counts = count_clicks(self.ragged, self.schema, self.parts)

    def choose(self, held_out: RaggedLists, *, gain: str = "exponential") -> tuple[TreeRanker, dict[str, Any]]:
        """Chooses the trees that are best on held-out lists by NDCG@10; returns them and their settings."""
        every = np.ones(len(self.lengths), dtype=bool)
        best: tuple[float, TreeRanker, dict[str, Any]] | None = None
        for leaves in LEAVES:
            booster, rates = self._boost(every, leaves, max(TREES))
            for trees in TREES:
                ranker = self._make_ranker(booster.model_to_string(num_iteration=trees), rates)
                value = mean_ndcg(ranker.scores(held_out, self.schema), held_out, gain)
                if best is None or value > best[0]:
                    best = (value, ranker, {"leaves": leaves, "trees": trees, "validation_ndcg@10": value})
        assert best is not None
        return best[1], best[2]

    def fit(self, lists: np.ndarray, leaves: int, trees: int) -> TreeRanker:
        """Trains trees on the lists where ``lists``, bool [B], is True."""
        booster, rates = self._boost(lists, leaves, trees)
        return self._make_ranker(booster.model_to_string(), rates)

    def _make_ranker(self, model: str, rates: dict[str, np.ndarray]) -> TreeRanker:
        return TreeRanker(parse_ensemble(model), rates, reads_position=self.with_position)

    def _boost(self, lists: np.ndarray, leaves: int, trees: int) -> tuple[Any, dict[str, np.ndarray]]:
        chosen = self.ragged.take(np.flatnonzero(lists))
        parts = np.unique(self.parts[lists])
        # Items of training lists get rates from the other parts; new items get rates from all parts.
        rates = {name: counts.compute_rates(parts) for name, counts in self.counts.items()}
        learned = {name: counts.compute_out_of_fold(parts) for name, counts in self.counts.items()}
        data = make_dataset(
            self.lightgbm, chosen, self.schema, learned, self.parts[lists], with_position=self.with_position
        )
        options = {
            **OPTIONS,
            "learning_rate": 0.05,
            "num_leaves": leaves,
            # Leaves with few items would memorize single clicks.
            "min_data_in_leaf": int(np.clip(chosen.lengths["L"].sum() // 200, 5, 50)),
            "seed": 0,
            "num_threads": self.threads,
        }
        if self.sampling_seed is not None:
            options |= {"bagging_fraction": 0.9, "bagging_freq": 1, "feature_fraction": 0.9}
            options["seed"] = self.sampling_seed
        return self.lightgbm.train(options, data, trees), rates


def pad_with_scores(ragged: RaggedLists, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Pads lists whose items have these ``initial_scores`` [N]."""
    return RaggedLists(ragged.lengths, {**ragged.rows, "initial_scores": scores}).pad()


def mean_ndcg(scores: np.ndarray, ragged: RaggedLists, gain: str = "exponential") -> float:
    """Computes NDCG@10 of lists whose items have these scores [N]; a list without a click counts as 0."""
    padded = pad_with_scores(ragged, scores)
    return float(ndcg(padded["initial_scores"], padded["labels"], mask=padded["mask"], k=10, gain=gain))
