"""Personalised vectors: a click model's hidden representation of an item for a user, as input of re-rankers.

PRM (Pei et al. 2019, section 4.3) takes them from the last hidden layer of a click model that was trained beforehand,
pointwise, with log-loss. Here the click model learns from ``ranker_train`` only: if it had seen the clicks of a list,
its vectors would leak them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_rerank.data.prepared import PreparedSource, make_dataset_card, read_card, read_report, write_description
from hf_rerank.data.report import PrepareReport
from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.click_model import ClickModel
from hf_rerank.initial_rankers.ranker_train import read_ranker_train
from hf_rerank.schema import ListSchema, Vector
from hf_rerank.validation import Lists

COLUMN = "personalised"
DIM = 32
# Width of the layer before the vectors.
HIDDEN = 200
MODEL_FOLDER = "click_model"
REPORT_KEY = "personalised_vectors"
# Report of an earlier step, which is kept.
_EARLIER = "initial_ranker"


class PersonalisedVectors:
    """Computes the vectors of lists.

    Args:
        model: The click model; its last hidden layer is the vector.
        column: Name of the item column that holds the vectors.
    """

    def __init__(self, model: ClickModel, column: str = COLUMN) -> None:
        self.model, self.column = model, column

    @classmethod
    def from_pretrained(cls, folder: str | Path, column: str = COLUMN) -> PersonalisedVectors:
        """Loads the click model of a folder that ``add_personalised_vectors`` wrote, or a click model's own folder.

        Raises:
            InputError: There is no click model, or a file is missing or damaged.
        """
        inside = Path(folder) / MODEL_FOLDER
        return cls(ClickModel.from_pretrained(inside if inside.is_dir() else folder), column)

    @property
    def dim(self) -> int:
        """Numbers per item."""
        return self.model.model.config.hidden_sizes[-1]

    def add(self, lists: Any) -> Any:
        """Adds the vectors to lists, for a re-ranker that was trained with them.

        Args:
            lists: One dict per list, as for ``Reranker.rerank``; or an arrow table.

        Returns:
            ``lists`` with one more column, in the same form.

        Raises:
            InputError: A list is invalid, or already has the column.
        """
        if isinstance(lists, pa.Table):
            return self._add_column(lists)
        rows: Sequence[Mapping[str, Any]] = lists
        checked = Lists.from_rows(rows, self.model.processor.schema)
        if not rows:
            return []
        there = next((number for number, row in enumerate(rows) if self.column in row), None)
        if there is not None:
            raise InputError(f"list {there} has a column {self.column!r} already: leave it out, or do not add it")
        parts = np.split(self.model.encode_items(checked), np.cumsum(checked.lengths)[:-1])
        return [{**row, self.column: part.tolist()} for row, part in zip(rows, parts, strict=True)]

    def _add_column(self, table: pa.Table) -> pa.Table:
        if self.column in table.column_names:
            raise InputError(f"the lists have a column {self.column!r} already: choose another name")
        if not table.num_rows:
            return table.append_column(vector_field(self.column), pa.array([], type=vector_field(self.column).type))
        lists = Lists.from_arrow(table, self.model.processor.schema)
        vectors = self.model.encode_items(lists)
        of_items = pa.ListArray.from_arrays(
            pa.array(np.arange(0, vectors.size + 1, self.dim), type=pa.int32()), pa.array(vectors.reshape(-1))
        )
        offsets = pa.array(np.concatenate([[0], np.cumsum(lists.lengths)]), type=pa.int32())
        return table.append_column(vector_field(self.column), pa.ListArray.from_arrays(offsets, of_items))


def vector_field(name: str) -> pa.Field:
    """Returns the arrow field of a column of vectors."""
    return pa.field(name, pa.list_(pa.list_(pa.float32())))


def add_personalised_vectors(
    lists_dir: str | Path,
    output_dir: str | Path,
    *,
    dim: int = DIM,
    column: str = COLUMN,
    seed: int = 0,
    at_most: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Trains a click model on ``ranker_train`` and writes a new folder of lists with its vectors.

    The lists of ``train``, ``validation`` and ``test`` get an item column of ``dim`` numbers, and the schema a
    ``Vector`` of that name. ``ranker_train`` is left empty in the new folder: the click model has seen its
    labels. The model is kept in ``click_model/``; ``PersonalisedVectors`` computes the vectors of new
    lists with it. The folder appears when it is complete; lists are read and written batch by batch.

    Args:
        lists_dir: A folder of prepared lists.
        output_dir: Folder to create; must be new or empty.
        dim: Numbers per item.
        column: Name of the new column.
        seed: Seed of the click model.
        at_most: Largest number of lists of ``ranker_train`` to use. None: all.
        progress: Show progress bars for steps that take longer than a second.

    Returns:
        The counts of the new folder.

    Raises:
        InputError: ``dim`` is below 1; the column already exists; ``ranker_train`` has no lists, or none with a click;
            a label is above 1; or see ``write_lists``.
    """
    for name, value in (("dim", dim), ("at_most", at_most)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: expected at least 1")
    lists = _WithVectors(lists_dir, column=column, dim=dim, seed=seed, at_most=at_most)
    lists.progress = progress
    return lists.write(output_dir, progress=progress)


class _WithVectors(PreparedSource):
    """The lists of a folder with the vectors of a click model that is trained on its ``ranker_train``."""

    progress = False

    def __init__(self, folder: str | Path, *, column: str, dim: int, seed: int, at_most: int | None) -> None:
        self.column, self.dim, self.seed, self.at_most = column, dim, seed, at_most
        super().__init__(folder, {"vectors": column, "dim": dim, "seed": seed, "at_most": at_most})
        if column in self.columns.names:
            raise InputError(f"{self.folder} has a column {column!r} already: choose another name")
        self.old_schema = self.schema
        self.schema = self.schema.replace(items=[*self.schema.items, Vector(column, dim)])
        self.columns = self.columns.append(vector_field(column))

    def facts(self) -> PersonalisedVectors:
        """Trains the click model."""
        super().facts()
        lists, sizes = read_ranker_train(self.prepared, self.folder), (HIDDEN, self.dim)
        fit: dict[str, Any] = {"seed": self.seed, "at_most": self.at_most, "progress": self.progress}
        return PersonalisedVectors(ClickModel.fit(lists, self.old_schema, hidden_sizes=sizes, **fit), self.column)

    def change(
        self, split: str, first: int, lists: pa.Table, facts: PersonalisedVectors, report: PrepareReport
    ) -> pa.Table:
        return facts.add(lists if split != "ranker_train" else lists.slice(0, 0))

    def describe(self, folder: Path, facts: PersonalisedVectors, report: PrepareReport) -> None:
        super().describe(folder, facts, report)
        facts.model.save_pretrained(folder / MODEL_FOLDER)
        about = {**facts.model.settings, "column": self.column, "dim": self.dim}
        before = read_report(self.folder)
        earlier = {_EARLIER: before[_EARLIER]} if _EARLIER in before else {}
        card = _make_card(self.folder, self.schema, report, about)
        write_description(folder, self.schema, report, card, **earlier, **{REPORT_KEY: about})


def _make_card(source: Path, schema: ListSchema, report: PrepareReport, facts: Mapping[str, Any]) -> str:
    card = read_card(source)
    how = [
        *card.how,
        f"Personalised vectors (Pei et al. 2019): the item column `{facts['column']}`, {facts['dim']} numbers, is the "
        f"last hidden layer of a click model (seed {facts['seed']}, hidden layers {facts['hidden_sizes']}, log-loss "
        f"on held-out lists {facts['held_out_log_loss']:.4f}), kept in `{MODEL_FOLDER}/`. It learned from "
        f"{facts['lists_learned_from']:,} of {facts['lists_available']:,} lists of `ranker_train`.",
    ]
    caveats = [
        *card.caveats,
        "`ranker_train` is left empty: the click model has seen its labels.",
    ]
    return make_dataset_card(card.title, report, schema, how=how, caveats=caveats, licence=card.licence)
