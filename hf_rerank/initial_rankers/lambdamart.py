"""LambdaMART through LightGBM: boosted trees that learn from pairs of items of one list (Burges 2010)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.click_through import ClickThroughCounts
from hf_rerank.initial_rankers.qualities import quality_named
from hf_rerank.initial_rankers.ranker_train import RankerLists, features_of, ranker_lists
from hf_rerank.processing import ListProcessor
from hf_rerank.processing.processor import CONFIG_FILE, VOCABULARIES_FILE
from hf_rerank.processing.trees import rows_of, tables_in, tree_inputs
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector
from hf_rerank.storage import read_arrays, replacing
from hf_rerank.storage.hub_download import verified_folder
from hf_rerank.validation import Lists, tables_of

RANKER_FILE = "ranker.json"
TREES_FILE = "lambdamart.txt"
RATES_FILE = "click_through.safetensors"
FORMAT_VERSION = 1
# Tables of at most this many rows are categories to the trees; larger ones enter as click-through rates.
MAX_CATEGORIES = 64
# The highest grade that LightGBM has a gain for.
HIGHEST_LABEL = 30
# Items of the longest list that LightGBM learns from.
LONGEST_LIST = 10_000
STOP_AFTER = 30
BATCH = 10_000


class LambdaMARTRanker:
    """Boosted trees over each item's own features and the user's. Made by ``fit``, or ``from_pretrained``.

    Dense features are read as the processor scales them; categorical features of up to 64 values as categories; those
    of more values as smoothed click-through rates, which were learned out of fold (``click_through``).

    Attributes:
        settings: What it was made of, plain JSON values.
    """

    def __init__(
        self, trees: str, processor: ListProcessor, rates: dict[str, np.ndarray], settings: dict[str, Any]
    ) -> None:
        self.trees, self.processor, self.rates, self.settings = trees, processor, rates, settings
        # Scores of the trees as they are saved, so that they are the same after loading.
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
        """Learns from ``ranker_train`` lists.

        All lists learned from are in memory, 4 bytes a feature of an item, twice while LightGBM reads them.

        Args:
            lists: A ``datasets`` Dataset of the split ``ranker_train``.
            schema: Of the lists; position, attraction and history are not read.
            quality: See ``qualities``.
            seed: Of the parts of lists, and of the draw of lists and features for each tree.
            at_most: Lists looked at, at most; they are spread evenly over the split.
            threads: Of LightGBM. The trees do not depend on it.

        Raises:
            InputError: LightGBM is missing, no list has a click, labels are no whole numbers from 0 to 30, or a list
                has more than 10,000 items.
        """
        lightgbm = require_lightgbm()
        means = quality_named(quality)
        chosen = ranker_lists(lists, schema, use=means.lists(len(lists), at_most), seed=seed)
        processor = ListProcessor.from_lists(chosen.train, schema=chosen.schema)
        counted = _count_clicks(chosen, processor)
        rates = {name: counts.rates() for name, counts in counted.items()}
        names, categories = _feature_names(processor, rates)
        options = {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [10],
            "learning_rate": 0.05 if means.trees > 100 else 0.1,
            "num_leaves": means.leaves,
            "min_data_in_leaf": 50,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "feature_fraction": 0.8,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": threads,
            "verbose": -1,
        }
        train = _matrix(
            chosen.train,
            processor,
            {name: counts.out_of_fold() for name, counts in counted.items()},
            chosen.train_parts,
        )
        held_out = _matrix(chosen.held_out, processor, rates)
        named = {"feature_name": names, "categorical_feature": categories}
        train_set = lightgbm.Dataset(train.values, train.labels, group=train.lengths, weight=train.weights, **named)
        held_out_set = train_set.create_valid(
            held_out.values, held_out.labels, group=held_out.lengths, weight=held_out.weights
        )
        # A few held-out lists cannot tell when a few trees are enough: with fewer trees than that, all are kept.
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
        """float64 [N], the scores of the items of all lists of a table, one list after another."""
        lists = Lists.from_arrow(features_of(table, self.processor.schema), self.processor.schema)
        flat, _ = self.processor.encode(lists)
        return np.asarray(self._booster.predict(tree_inputs(flat, self.processor.schema, self.rates), num_threads=1))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes trees (text), click-through rates, processor and settings, with a manifest: all of it or nothing."""
        with replacing(folder) as staging:
            self.processor.save_pretrained(staging)
            save_file(self.rates, staging / RATES_FILE)
            (staging / TREES_FILE).write_text(self.trees, encoding="utf-8")
            plain = {"format_version": FORMAT_VERSION, **self.settings}
            (staging / RANKER_FILE).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LambdaMARTRanker:
        """Loads a ranker that ``save_pretrained`` wrote.

        Raises:
            InputError: LightGBM is missing; or a file is missing, damaged or not one that was saved.
        """
        names = (RANKER_FILE, TREES_FILE, RATES_FILE, CONFIG_FILE, VOCABULARIES_FILE)
        path = verified_folder(folder, names)
        settings = read_settings(path, "lambdamart")
        trees = (path / TREES_FILE).read_text(encoding="utf-8")
        return cls(trees, ListProcessor.from_pretrained(path), read_arrays(path / RATES_FILE), settings)


def require_lightgbm() -> Any:
    """
    Raises:
        InputError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError:
        raise InputError(
            'the ranker lambdamart needs LightGBM: pip install "hf-rerank[lightgbm]", or choose the ranker dnn'
        ) from None
    return lightgbm


def read_settings(folder: Path, ranker: str) -> dict[str, Any]:
    """The settings of a saved ranker, without their version.

    Raises:
        InputError: They are of another ranker, or of a newer format.
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
            "what it is, or install a newer hf-rerank"
        )
    return settings


def _rows_of_table(feature: Categorical) -> int:
    rows = feature.hash_size or feature.size
    assert rows is not None  # of a fitted schema
    return rows


def _feature_names(processor: ListProcessor, rates: dict[str, np.ndarray]) -> tuple[list[str], list[int]]:
    """Names of the matrix's columns (LightGBM refuses some characters in names), and which of them are categories."""
    schema = processor.schema
    numbers = sum(feature.width for part in ("items", "user") for feature in schema.features(part, Dense))
    numbers += sum(feature.dim for feature in schema.features("items", Vector))
    categories = list(range(numbers, numbers + len(tables_in(schema)) - len(rates)))
    names = [f"number_{index}" for index in range(numbers)] + [f"category_{index}" for index in categories]
    return [*names, *(f"rate_{index}" for index in range(len(rates)))], categories


def _count_clicks(chosen: RankerLists, processor: ListProcessor) -> dict[str, ClickThroughCounts]:
    """Counts of the features of high cardinality."""
    large = [entry for entry in tables_in(processor.schema) if _rows_of_table(entry[2]) > MAX_CATEGORIES]
    counts = {feature.name: ClickThroughCounts(_rows_of_table(feature)) for _, _, feature in large}
    start = 0
    for table in tables_of(chosen.train, BATCH):
        flat, _ = processor.encode(Lists.from_arrow(table, processor.schema, with_labels=True, first=start))
        parts = np.repeat(chosen.train_parts[start : start + table.num_rows], flat.lengths["L"])
        for part, number, feature in large:
            counts[feature.name].add(rows_of(flat, part, number), flat.rows["labels"] > 0, parts)
        start += table.num_rows
    return counts


@dataclass(frozen=True)
class _Matrix:
    """Lists as LightGBM reads them: ``values`` float32 [N, F], labels and weights [N], lengths [B]."""

    values: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    lengths: np.ndarray


def _matrix(
    lists: Any, processor: ListProcessor, rates: dict[str, np.ndarray], parts: np.ndarray | None = None
) -> _Matrix:
    """Labelled lists; with ``parts`` [B], list i gets the rates of its part, ``rates[name][parts[i]]``."""
    values, labels, weights, lengths = [], [], [], []
    start = 0
    for table in tables_of(lists, BATCH):
        batch = Lists.from_arrow(table, processor.schema, with_labels=True, first=start)
        if batch.lengths.max(initial=0) > LONGEST_LIST:
            row = int(batch.lengths.argmax())
            raise InputError(
                f"list {batch.ids[row]} of ranker_train has {batch.lengths[row]:,} items: lambdamart learns from "
                f"lists of at most {LONGEST_LIST:,}; choose the ranker dnn, or leave the list out"
            )
        flat, _ = processor.encode(batch)
        of_item = None if parts is None else np.repeat(parts[start : start + table.num_rows], flat.lengths["L"])
        values.append(tree_inputs(flat, processor.schema, rates, of_item))
        labels.append(_grades(flat.rows["labels"], processor.schema.label))
        lengths.append(flat.lengths["L"])
        if "weights" in flat.rows:
            weights.append(flat.rows["weights"])
        start += table.num_rows
    return _Matrix(
        np.concatenate(values),
        np.concatenate(labels),
        np.concatenate(weights) if weights else None,
        np.concatenate(lengths),
    )


def _grades(labels: np.ndarray, name: str) -> np.ndarray:
    wrong = (labels != np.floor(labels)) | (labels > HIGHEST_LABEL)
    if wrong.any():
        raise InputError(
            f"label {labels[wrong][0]:g} in {name!r}: lambdamart takes whole numbers from 0 to {HIGHEST_LABEL}; turn "
            "the labels into clicks or grades"
        )
    return labels
