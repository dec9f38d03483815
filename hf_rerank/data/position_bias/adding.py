"""Adds the column of propensities to a folder of prepared lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.position_bias.click_log import ROWS, SPLITS, read_click_log, read_display_positions
from hf_rerank.data.position_bias.estimation import (
    Curve,
    estimate_by_em,
    estimate_by_harvesting,
    estimate_by_regression_em,
)
from hf_rerank.data.prepared import PreparedSource, make_dataset_card, read_card, read_report, write_description
from hf_rerank.data.report import PrepareReport
from hf_rerank.errors import InputError, suggestion

COLUMN = "propensity"
REPORT_KEY = "propensities"
METHODS = ("em", "regression-em", "harvest")
# Beginning of the sentence about propensities in the card, which is replaced.
_OLD = "Propensities:"


def add_propensities(
    lists_dir: str | Path,
    output_dir: str | Path,
    *,
    method: str = "em",
    display_order: str | None = None,
    same_from: int | None = None,
    at_most: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Estimates the probability that each position was examined, and adds it to lists as a column.

    It is estimated from the clicks of ``train`` and ``ranker_train``. Every list gets the item column that the schema
    names as ``propensity`` (by default a new column ``propensity``), with the probability of the position at which
    each item was displayed; training and evaluation use it. Values are not clipped; training does that
    (``propensity_floor``). The curve, with counts, is in ``report.json`` under ``propensities``.

    Impressions are held in memory, 17 bytes per displayed item; with ``regression-em`` also their features.

    Args:
        lists_dir: A folder of prepared lists.
        output_dir: Folder to create; must be new or empty.
        method: ``em`` (default): a position-based click model with one relevance per item id. ``regression-em``: with
            a logistic regression of the item features, if ids are missing or rare. ``harvest``: compares only the
            clicks of the same items at different positions; needs orders that vary.
        display_order: Item column with the position, from 0, at which each item was displayed when the clicks were
            logged; ``rows``: items are in display order. None: the schema's position column, or ``rows`` without one.
        same_from: Positions from this one on share one probability. None: each has its own.
        at_most: Maximum number of lists to estimate from, spread evenly. None: all.
        progress: Show a progress bar if it takes longer than a second.

    Returns:
        The counts of the new folder.

    Raises:
        InputError: An unknown method; no column of that name; no ids; a position without a click; orders that do not
            vary enough; or see ``write_lists``.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected {', '.join(METHODS)}{suggestion(method, METHODS)}")
    for name, value in (("same_from", same_from), ("at_most", at_most)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: expected at least 1")
    lists = _WithPropensities(
        lists_dir, method=method, display_order=display_order, same_from=same_from, at_most=at_most
    )
    return lists.write(output_dir, progress=progress)


class _WithPropensities(PreparedSource):
    """The lists of a folder with the examination probability of the position of each item."""

    def __init__(
        self,
        folder: str | Path,
        *,
        method: str,
        display_order: str | None,
        same_from: int | None,
        at_most: int | None,
    ) -> None:
        self.method, self.same_from, self.at_most = method, same_from, at_most
        options = {"propensities": method, "display_order": display_order, "same_from": same_from, "at_most": at_most}
        super().__init__(folder, options)
        self.display_order = display_order or self.schema.position_column or ROWS
        self.column = self.schema.propensity or COLUMN
        if self.schema.propensity is None and COLUMN in self.columns.names:
            raise InputError(
                f"{self.folder} has a column {COLUMN!r} that its schema does not name as the propensity: rename it, "
                "or name it in schema.json"
            )
        self.schema = self.schema.replace(propensity=self.column)
        field = pa.field(self.column, pa.list_(pa.float32()))
        number = self.columns.get_field_index(self.column)
        self.columns = self.columns.append(field) if number < 0 else self.columns.set(number, field)

    def facts(self) -> tuple[Curve, dict[str, Any]]:
        """The curve, and its entry in the report."""
        super().facts()
        of_features = self.method == "regression-em"
        log = read_click_log(
            self.prepared, self.folder, self.display_order, features=of_features, at_most=self.at_most
        )
        position = self._share_positions(log.position)
        if log.item is None:
            curve = estimate_by_regression_em(position, log.click, log.features)
        else:
            estimate = estimate_by_em if self.method == "em" else estimate_by_harvesting
            curve = estimate(position, log.click, log.item)
        about = {
            "method": self.method,
            "display_order": self.display_order,
            "same_from": self.same_from,
            "lists_learned_from": log.lists,
            "impressions_without_id": log.without_id,
            "steps": curve.steps,
            "converged": curve.converged,
            "curve": [
                {
                    "position": number,
                    "propensity": float(curve.propensities[number]),
                    "impressions": int(curve.impressions[number]),
                    "clicks": int(curve.clicks[number]),
                    "compared": int(curve.compared[number]),
                }
                for number in range(len(curve.propensities))
            ],
        }
        return curve, about

    def change(
        self, split: str, first: int, lists: pa.Table, facts: tuple[Curve, dict[str, Any]], report: PrepareReport
    ) -> pa.Table:
        labels = lists.column(self.schema.label).combine_chunks()
        lengths = pc.list_value_length(labels).to_numpy(zero_copy_only=False).astype(np.int64)
        where = f"lists {first} to {first + len(lists) - 1} of {split}"
        position = self._share_positions(read_display_positions(lists, self.display_order, lengths, where))
        curve = facts[0].propensities
        if len(position) and position.max() >= len(curve):
            raise InputError(
                f"{where} have position {position.max()}, and the lists that propensities are estimated from only 0 "
                f"to {len(curve) - 1}: let the last positions share one probability (--same-from)"
            )
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())
        column = pa.ListArray.from_arrays(offsets, pa.array(curve[position].astype(np.float32)))
        number = lists.schema.get_field_index(self.column)
        field = self.columns.field(self.column)
        return lists.append_column(field, column) if number < 0 else lists.set_column(number, field, column)

    def describe(self, folder: Path, facts: tuple[Curve, dict[str, Any]], report: PrepareReport) -> None:
        super().describe(folder, facts, report)
        counted = PrepareReport().to_dict().keys() | {"licence", "counts", "warnings", REPORT_KEY}
        earlier = {name: value for name, value in read_report(self.folder).items() if name not in counted}
        card = self._make_card(report, facts[1])
        write_description(folder, self.schema, report, card, **earlier, **{REPORT_KEY: facts[1]})

    def _share_positions(self, position: np.ndarray) -> np.ndarray:
        return position if self.same_from is None else np.minimum(position, self.same_from)

    def _make_card(self, report: PrepareReport, about: Mapping[str, Any]) -> str:
        card = read_card(self.folder)
        order = "the order of the rows" if self.display_order == ROWS else f"the column `{self.display_order}`"
        shared = "" if self.same_from is None else f" (positions from {self.same_from} on share theirs)"
        how = [
            *(point for point in card.how if not point.startswith(_OLD)),
            f"{_OLD} the item column `{self.column}`, the probability that the position of display, {order}, was "
            f"examined, by `{self.method}` from {about['lists_learned_from']:,} lists of {' and '.join(SPLITS)}"
            f"{shared}; the largest is 1, and the curve is in `report.json`.",
        ]
        return make_dataset_card(card.title, report, self.schema, how=how, caveats=card.caveats, licence=card.licence)
