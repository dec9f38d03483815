"""LambdaMART through LightGBM: boosted trees that learn from pairs of items of one list (Burges 2010)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.boosting import OPTIONS, count_clicks, encode, make_dataset, require_lightgbm
from hf_rerank.initial_rankers.qualities import find_quality
from hf_rerank.initial_rankers.ranker_train import choose_ranker_lists, select_features
from hf_rerank.processing import ListProcessor
from hf_rerank.processing.processor import CONFIG_FILE, VOCABULARIES_FILE
from hf_rerank.processing.trees import make_tree_inputs
from hf_rerank.schema import ListSchema
from hf_rerank.storage import read_arrays, save_files, write_arrays
from hf_rerank.storage.hub_download import fetch_verified_folder
from hf_rerank.validation import Lists

RANKER_FILE = "ranker.json"
TREES_FILE = "lambdamart.txt"
RATES_FILE = "click_through.safetensors"
FORMAT_VERSION = 1
STOP_AFTER = 30


class LambdaMARTRanker:
    """Boosted trees over the features of each item and the user. Made by ``fit`` or ``from_pretrained``.

    Dense features are read as scaled by the processor; categorical features with up to 64 values as categories; those
    with more values as smoothed click-through rates, learned out of fold (``click_through``).

    Attributes:
        settings: How it was trained, as JSON values.
    """

    def __init__(
        self, trees: str, processor: ListProcessor, rates: dict[str, np.ndarray], settings: dict[str, Any]
    ) -> None:
        self.trees, self.processor, self.rates, self.settings = trees, processor, rates, settings
        # Scores come from the trees in saved form, so that they are the same after loading.
        self._booster = require_lightgbm().Booster(model_str=trees)

    @classmethod
    def fit(
        cls,
        lists: Any,
        schema: ListSchema,
        *,
        quality: str = "strong",
        seed: int = 0,
        at_most: int | None = None,
        threads: int = 1,
    ) -> LambdaMARTRanker:
        """Trains on ``ranker_train`` lists.

        The encoded training lists are kept in memory, and a second copy while LightGBM reads them.

        Args:
            lists: A ``datasets`` Dataset of the split ``ranker_train``.
            schema: Schema of the lists; position, attraction and history are not read.
            quality: See ``qualities``.
            seed: Seed of the parts of lists, and of the lists and features sampled for each tree.
            at_most: Maximum number of lists to use, spread evenly over the split. None: all that the quality allows.
            threads: Number of LightGBM threads. The trees do not depend on it.

        Raises:
            InputError: LightGBM is missing, no list has a click, labels are not whole numbers from 0 to 30, or a list
                has more than 10,000 items.
        """
        lightgbm = require_lightgbm()
        means = find_quality(quality)
        chosen = choose_ranker_lists(lists, schema, use=means.lists(len(lists), at_most), seed=seed)
        processor = ListProcessor.from_lists(chosen.train, schema=chosen.schema)
        schema = processor.schema
        train = encode(processor, chosen.train, "ranker_train")
        held_out = encode(processor, chosen.held_out, "ranker_train")
        counted = count_clicks(train, schema, chosen.train_parts)
        rates = {name: counts.compute_rates() for name, counts in counted.items()}
        out_of_fold = {name: counts.compute_out_of_fold() for name, counts in counted.items()}
        train_set = make_dataset(lightgbm, train, schema, out_of_fold, chosen.train_parts)
        held_out_set = make_dataset(lightgbm, held_out, schema, rates, reference=train_set)
        options = {
            **OPTIONS,
            "metric": "ndcg",
            "eval_at": [10],
            "learning_rate": 0.05 if means.trees > 100 else 0.1,
            "num_leaves": means.leaves,
            "min_data_in_leaf": 50,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "feature_fraction": 0.8,
            "seed": seed,
            "num_threads": threads,
        }
        # Early stopping is unreliable with few held-out lists: if at most this many trees are allowed, all are kept.
        stop = [lightgbm.early_stopping(STOP_AFTER, verbose=False)] if means.trees > STOP_AFTER else []
        booster = lightgbm.train(options, train_set, means.trees, valid_sets=[held_out_set], callbacks=stop)
        trees = booster.best_iteration if stop else booster.num_trees()
        settings = {
            "ranker": "lambdamart",
            "quality": quality,
            "seed": seed,
            **chosen.counts(),
            "trees": trees,
            "leaves": means.leaves,
            "click_through_rates_of": list(rates),
            "lightgbm": lightgbm.__version__,
        }
        return cls(booster.model_to_string(num_iteration=trees), processor, rates, settings)

    def scores(self, table: pa.Table) -> np.ndarray:
        """Scores the items of all lists of a table, float64 [N], one list after another."""
        lists = Lists.from_arrow(select_features(table, self.processor.schema), self.processor.schema)
        flat, _ = self.processor.encode(lists)
        return np.asarray(
            self._booster.predict(make_tree_inputs(flat, self.processor.schema, self.rates), num_threads=1)
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes trees (text), click-through rates, processor, settings and a manifest, completely or not at all."""
        with save_files(folder) as staging:
            self.processor.save_pretrained(staging)
            write_arrays(staging / RATES_FILE, self.rates)
            (staging / TREES_FILE).write_text(self.trees, encoding="utf-8")
            plain = {"format_version": FORMAT_VERSION, **self.settings}
            (staging / RANKER_FILE).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LambdaMARTRanker:
        """Loads a ranker that ``save_pretrained`` wrote.

        Raises:
            InputError: LightGBM is missing; or a file is missing, damaged or not part of the saved ranker.
        """
        names = (RANKER_FILE, TREES_FILE, RATES_FILE, CONFIG_FILE, VOCABULARIES_FILE)
        path = fetch_verified_folder(folder, names)
        settings = read_settings(path, "lambdamart")
        trees = (path / TREES_FILE).read_text(encoding="utf-8")
        return cls(trees, ListProcessor.from_pretrained(path), read_arrays(path / RATES_FILE), settings)


def read_settings(folder: Path, ranker: str) -> dict[str, Any]:
    """Reads the settings of a saved ranker, without their version.

    Raises:
        InputError: The settings belong to another ranker, or have a newer format.
    """
    path = folder / RANKER_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        version, found = settings.pop("format_version"), settings["ranker"]
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} does not describe a ranker: {error!r}; save it again") from None
    if version != FORMAT_VERSION or found != ranker:
        raise InputError(
            f"{path} describes {found!r}, format {version}: expected {ranker!r}, format {FORMAT_VERSION}; load it as "
            f"{found!r}, or install a newer hf-rerank"
        )
    return settings
