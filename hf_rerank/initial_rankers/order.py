"""Sorts prepared lists by an initial ranker: the order ``P`` that re-rankers are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_rerank.data.parquet_datasets import load_parquet
from hf_rerank.data.prepared import (
    PreparedFolder,
    PreparedSource,
    make_dataset_card,
    prepare_in_two_steps,
    read_card,
    read_report,
    write_description,
)
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.truncating import choose_first_items, cut_label_column, make_sequences
from hf_rerank.errors import InputError, suggestion
from hf_rerank.evaluation import evaluate_orders
from hf_rerank.initial_rankers.boosting import require_lightgbm
from hf_rerank.initial_rankers.click_model import ClickModel
from hf_rerank.initial_rankers.cross_fitting import CrossFittedRanker
from hf_rerank.initial_rankers.lambdamart import LambdaMARTRanker
from hf_rerank.initial_rankers.qualities import RANKERS, find_quality
from hf_rerank.initial_rankers.ranker_train import ANY_LENGTH, read_ranker_train
from hf_rerank.processing import ListProcessor
from hf_rerank.validation import Lists

POSITION, SCORE = "position", "initial_score"
RANKER_FOLDER = "initial_ranker"
REPORT_KEY = "initial_ranker"
SORTED_SPLITS = ("train", "validation", "test")
MEASURED_SPLITS = ("validation", "test")
KS = (5, 10)
# Sentences of the old card about the order begin with these words, and are replaced.
_OLD_ORDER = ("Initial order:", "Lists are cut to", "Training lists are sorted by cross-fitting")
_FOLDS = (
    "Training lists are sorted by cross-fitting: {} folds by user, each sorted by a ranker trained on the other "
    "folds. The scores are in the column named by the schema's `initial_score`."
)
Ranker = LambdaMARTRanker | ClickModel | CrossFittedRanker


def add_initial_order(
    lists_dir: str | Path,
    output_dir: str | Path,
    *,
    ranker: str = "lambdamart",
    quality: str = "strong",
    max_list_length: int | None = None,
    seed: int = 0,
    at_most: int | None = None,
    cross_fit: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Trains an initial ranker on ``ranker_train`` and writes a new folder with the lists sorted by it.

    With ``cross_fit`` nothing needs to be held out as ``ranker_train``: rankers are trained on ``train``, and each of
    its lists is sorted by one that has not seen it, see ``cross_fitting``. The scores are also stored, in the column
    ``initial_score`` of the schema.

    ``train``, ``validation`` and ``test`` get a column ``position`` with the ranker's order, which replaces any old
    one; items with equal scores keep the order of their slots. Lists are cut in the new order; slots keep their order.
    ``ranker_train`` keeps its order: a ranker that has seen its clicks would leak them.

    The folder contains the ranker in ``initial_ranker/``. ``report.json`` describes, under ``initial_ranker``, its
    training and the metrics of its order after the cut. The folder appears when it is complete; a call that was
    killed trains again and resumes after the last complete shard.

    Lists are written batch by batch. Training LambdaMART keeps the encoded lists in memory (4 bytes per feature of an
    item, twice while LightGBM reads them); the DNN reads them from disk.

    Args:
        lists_dir: A folder of prepared lists.
        output_dir: Folder to write; must be new or empty.
        ranker: ``lambdamart`` or ``dnn``.
        quality: ``poor``, ``moderate`` or ``strong``, see ``hf_rerank.initial_rankers.qualities``.
        max_list_length: Longer lists are cut to their first items in the new order. None: that of the schema.
        seed: Seed of the ranker.
        at_most: Maximum number of lists of ``ranker_train`` to use. None: as many as the quality allows.
        cross_fit: Number of folds, at least 2. None: no cross-fitting.
        progress: Show progress bars for steps that take longer than a second.

    Returns:
        The counts of the new folder.

    Raises:
        InputError: The ranker or quality is unknown; LightGBM is missing; ``ranker_train`` has no lists, or none with
            a click; the lists are wrong; or as ``write_lists``.
    """
    check_ranker(ranker, quality)
    for name, value in (("max_list_length", max_list_length), ("at_most", at_most)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: expected at least 1")
    if cross_fit is not None and cross_fit < 2:
        raise InputError(f"cross_fit is {cross_fit}: expected at least 2 folds")
    lists = _InInitialOrder(
        lists_dir,
        ranker=ranker,
        quality=quality,
        max_list_length=max_list_length,
        seed=seed,
        at_most=at_most,
        cross_fit=cross_fit,
    )
    lists.progress = progress
    return lists.write(output_dir, progress=progress)


def check_ranker(ranker: str, quality: str) -> None:
    """Checks the names of a ranker and its quality.

    Raises:
        InputError: The ranker or quality is unknown, or LightGBM is needed but missing.
    """
    if ranker not in RANKERS:
        raise InputError(f"unknown ranker {ranker!r}: expected {' or '.join(RANKERS)}{suggestion(ranker, RANKERS)}")
    find_quality(quality)
    if ranker == "lambdamart":
        require_lightgbm()


def prepare_in_order(
    prepare: Callable[[Path, int], PrepareReport],
    options: Mapping[str, Any],
    output_dir: str | Path,
    *,
    ranker: str,
    quality: str,
    max_list_length: int,
    seed: int = 0,
) -> PrepareReport:
    """Prepares raw data with uncut lists, sorts them by a trained ranker, and then cuts them.

    The uncut lists are temporarily stored in ``OUTPUT.unsorted/lists``. After an interruption, the same call resumes.

    Args:
        prepare: ``(folder, max_list_length) -> report`` makes a folder of prepared lists from raw data.
        options: Everything that the result of ``prepare`` depends on, as JSON values; must be the same to resume.
        output_dir: Folder to write; must be new or empty.
        ranker: As in ``add_initial_order``.
        quality: As in ``add_initial_order``.
        max_list_length: Longer lists are cut to this length after sorting.
        seed: Seed of the ranker.

    Raises:
        InputError: As ``prepare`` and ``add_initial_order``; or the uncut lists of another call are in the way.
    """
    check_ranker(ranker, quality)

    def sort(unsorted: Path, sorted_dir: Path) -> PrepareReport:
        return add_initial_order(
            unsorted, sorted_dir, ranker=ranker, quality=quality, max_list_length=max_list_length, seed=seed
        )

    return prepare_in_two_steps(lambda folder: prepare(folder, ANY_LENGTH), options, sort, output_dir, "unsorted")


class _InInitialOrder(PreparedSource):
    """The lists of a folder, sorted by an initial ranker trained on its ``ranker_train``."""

    progress = False

    def __init__(
        self,
        folder: str | Path,
        *,
        ranker: str,
        quality: str,
        max_list_length: int | None,
        seed: int,
        at_most: int | None,
        cross_fit: int | None,
    ) -> None:
        self.kind, self.seed, self.cross_fit = ranker, seed, cross_fit
        self.fit = {"quality": quality, "seed": seed, "at_most": at_most}
        options = {"ranker": ranker, "max_list_length": max_list_length, "cross_fit": cross_fit, **self.fit}
        super().__init__(folder, options)
        self.old_schema = self.schema
        self.longest = self.schema.max_list_length if max_list_length is None else max_list_length
        self.of_items = _item_columns(self.prepared)
        old = self.schema.position_column
        if old != POSITION and POSITION in self.columns.names:
            raise InputError(
                f"{self.folder} has a column {POSITION!r} that its schema does not name as the position: rename it, "
                "or name it in schema.json"
            )
        if old is None:
            self.columns = self.columns.append(pa.field(POSITION, pa.list_(pa.int64())))
            self.of_items.append(POSITION)
        self.position = POSITION if old is None else old
        self.schema = self.schema.replace(position=self.position, max_list_length=self.longest)
        if self.longest < self.old_schema.max_list_length:
            self._add_cut_label_column()
        if cross_fit is not None:
            self._add_score_column()

    def _add_cut_label_column(self) -> None:
        name = self.schema.cut_label or cut_label_column(self.schema.label)
        if name in self.columns.names and self.schema.cut_label is None:
            raise InputError(
                f"{self.folder} has a column {name!r} that its schema does not name as the cut_label: rename it, or "
                "name it in schema.json"
            )
        if name not in self.columns.names:
            self.columns = self.columns.append(pa.field(name, pa.list_(pa.float64())))
        self.schema = self.schema.replace(cut_label=name)

    def _add_score_column(self) -> None:
        name = self.schema.initial_score or SCORE
        if name in self.columns.names and self.schema.initial_score is None:
            raise InputError(
                f"{self.folder} has a column {name!r} that its schema does not name as the initial_score: rename it, "
                "or name it in schema.json"
            )
        if name not in self.columns.names:
            self.columns = self.columns.append(pa.field(name, pa.list_(pa.float64())))
            self.of_items.append(name)
        self.schema = self.schema.replace(initial_score=name)

    def facts(self) -> Ranker:
        """Trains the ranker."""
        super().facts()

        def fit(lists: Any) -> LambdaMARTRanker | ClickModel:
            options = dict[str, Any](self.fit)
            if self.kind == "lambdamart":
                return LambdaMARTRanker.fit(lists, self.old_schema, **options)
            return ClickModel.fit(lists, self.old_schema, progress=self.progress, **options)

        if self.cross_fit is None:
            return fit(read_ranker_train(self.prepared, self.folder))
        if not self.prepared.lists.get("train"):
            raise InputError(f"{self.folder} has no train lists, on which cross-fitting trains rankers")
        lists = load_parquet(self.prepared.files["train"], "train", streaming=False)
        return CrossFittedRanker.fit(fit, lists, self.old_schema, folds=self.cross_fit, seed=self.seed)

    def _score(self, split: str, first: int, table: pa.Table, lists: Lists, ranker: Ranker) -> np.ndarray | None:
        """Computes the scores to sort by; None: the lists keep their order."""
        if isinstance(ranker, CrossFittedRanker):
            if split == "train":
                return ranker.score_training_lists(table, first, lists.lengths)
            return ranker.scores(table)
        return ranker.scores(table) if split in SORTED_SPLITS else None

    def change(self, split: str, first: int, lists: pa.Table, facts: Ranker, report: PrepareReport) -> pa.Table:
        table, checked = lists, Lists.from_arrow(lists, self.old_schema, with_labels=True)
        scores = self._score(split, first, table, checked, facts)
        positions = checked.positions if scores is None else positions_by_score(scores, checked.lengths)
        offsets = pa.array(np.concatenate([[0], np.cumsum(checked.lengths)]), type=pa.int32())
        made = {self.position: positions}
        if self.cross_fit is not None:
            assert scores is not None
            made[str(self.schema.initial_score)] = scores
        for name, values in made.items():
            field = self.columns.field(name)
            column = pa.ListArray.from_arrays(offsets, pa.array(values)).cast(field.type)
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), field, column)
            else:
                table = table.append_column(field, column)
        return self._cut(table, checked, positions, report)

    def _cut(self, table: pa.Table, lists: Lists, positions: np.ndarray, report: PrepareReport) -> pa.Table:
        """Keeps the items at the first positions, in the order of their slots, and the labels of the others."""
        assert lists.labels is not None
        kept = choose_first_items(lists.lengths, positions, lists.labels > 0, self.longest, report)
        name = self.schema.cut_label
        if name is not None:
            every = np.ones(len(positions), dtype=bool)
            field = self.columns.field(name)
            column = make_sequences(*lists.collect_cut_labels(every if kept is None else kept), field.type)
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), field, column)
            else:
                table = table.append_column(field, column)
            table = table.select(self.columns.names)
        if kept is None:
            return table
        lengths = np.minimum(lists.lengths, self.longest)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())
        chosen = pa.array(kept)
        for number, field in enumerate(self.columns):
            if field.name in self.of_items:
                values = table.column(number).combine_chunks().flatten().filter(chosen)
                table = table.set_column(number, field, pa.ListArray.from_arrays(offsets, values).cast(field.type))
        return table

    def describe(self, folder: Path, facts: Ranker, report: PrepareReport) -> None:
        """Writes the ranker, the metrics of its order, schema, report and card."""
        super().describe(folder, facts, report)
        facts.save_pretrained(folder / RANKER_FOLDER)
        before = read_report(self.folder)
        cut = {name: getattr(report, name) - before.get(name, 0) for name in ("cut_lists", "lost_clicks")}
        metrics = {}
        for split in MEASURED_SPLITS if self.cross_fit is None else ("train", *MEASURED_SPLITS):
            files = sorted(folder.glob(f"{split}-*.parquet"))
            if report.lists[split]:
                metrics[split] = self._measure_order(facts, files, split)
        about = {**facts.settings, **cut, "max_list_length": self.longest, "metrics": metrics}
        write_description(folder, self.schema, report, self._make_card(report, about), **{REPORT_KEY: about})

    def _measure_order(self, ranker: Ranker, files: list[Path], split: str) -> dict[str, float]:
        """Measures the order as the row ``initial`` of ``hf-rerank evaluate``."""
        learned = ranker.processor
        of_lists = ("position", "attraction", "examination", "max_list_length", "cut_label")
        of_schema = {name: getattr(self.schema, name) for name in of_lists}
        processor = ListProcessor(learned.schema.replace(**of_schema), learned.vocabularies, learned.scales)
        lists = load_parquet(files, split, streaming=True)
        return evaluate_orders(processor, lists, ks=KS)["initial"]

    def _make_card(self, report: PrepareReport, facts: Mapping[str, Any]) -> str:
        card, schema = read_card(self.folder), self.schema
        learned, looked_at = facts["lists_learned_from"], facts["lists_learned_from"] + facts["lists_held_out"]
        trained_on = "ranker_train" if self.cross_fit is None else "train"
        folds = [] if self.cross_fit is None else [_FOLDS.format(self.cross_fit)]
        measured = "; ".join(
            f"{split}: NDCG@10 {row['ndcg@10']:.4f}, MAP@10 {row['map@10']:.4f}, P@5 {row['precision@5']:.4f}, AUC "
            f"{row['auc']:.4f}"
            for split, row in facts["metrics"].items()
        )
        how = [
            *(point for point in card.how if not point.startswith(_OLD_ORDER)),
            f"Initial order: the column `{schema.position}`, 0 at the top, by the initial ranker `{facts['ranker']}` "
            f"of quality `{facts['quality']}` (seed {facts['seed']}), stored in `{RANKER_FOLDER}/`. It was trained on "
            f"{learned:,} lists of `{trained_on}` ({looked_at:,} of {facts['lists_available']:,} were used, the "
            "others for early stopping), and read neither order nor ground truth. Slots keep their order.",
            *folds,
            f"Lists are cut to {schema.max_list_length} items in this order: {facts['cut_lists']:,} lists, of which "
            f"{facts['lost_clicks']:,} lost all their clicks.",
        ]
        caveats = [
            *card.caveats,
            *(
                ["`ranker_train` is not sorted by the ranker, which has seen its clicks: it keeps its order."]
                if self.cross_fit is None
                else []
            ),
            f"Metrics of the initial order, after the cut: {measured or 'none'}.",
        ]
        return make_dataset_card(card.title, report, schema, how=how, caveats=caveats, licence=card.licence)


def positions_by_score(scores: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Computes positions, int64 [N]: 0 for the largest score of each list; ties keep slot order.

    Args:
        scores: [N], the items of all lists one after another.
        lengths: int64 [B], number of items per list.
    """
    of_list = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    positions = np.empty(len(scores), dtype=np.int64)
    positions[np.lexsort((-scores, of_list))] = np.arange(len(scores)) - starts[of_list]
    return positions


def _item_columns(prepared: PreparedFolder) -> list[str]:
    """Finds the columns with one value per item.

    The schema names most. Other sequence columns count if their length is the number of items in every list.
    """
    schema = prepared.schema
    special = (schema.label, schema.position_column, schema.weight, schema.propensity, schema.attraction)
    named = [feature.name for feature in schema.items] + [name for name in special if name is not None]
    named = [name for name in named if name in prepared.columns.names]
    others = [
        field.name
        for field in prepared.columns
        if pa.types.is_list(field.type)
        and field.name not in (*named, schema.cut_label, *(feature.name for feature in schema.history))
    ]
    first = schema.items[0].name
    for path in [path for paths in prepared.files.values() for path in paths] if others else []:
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(columns=[first, *others]):
                lengths = _lengths(batch.column(first))
                others = [name for name in others if np.array_equal(_lengths(batch.column(name)), lengths)]
    return [*named, *others]


def _lengths(column: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
