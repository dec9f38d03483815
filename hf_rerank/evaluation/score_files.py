"""Reads scores of another system from JSON Lines, Parquet or a TREC run file; writes TREC run files.

- JSON Lines, one list per line: ``{"list_id": "q7", "scores": [0.2, 1.5, -0.3]}``.
- Parquet with the columns ``list_id`` and ``scores``, one list per row.
- A TREC run, one item per line: ``q7 Q0 item3 1 1.5 name``: list, an unused column, item, rank, score, name of the
  run. Items are identified by the schema's ``id`` column, or its first item feature.

Scores of a list are in the order of the items in the row; higher is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema
from hf_rerank.storage import parse_json_object, write_atomically
from hf_rerank.validation import tables_of

_BATCH = 10_000


@dataclass(frozen=True)
class NamedLists:
    """The ids of the lists of a split and of their items.

    Attributes:
        lists: The id of each list, as a string; its number if the schema names no id column.
        items: The ids of the items of each list, as strings, in row order.
    """

    lists: list[str]
    items: list[list[str]]

    @classmethod
    def from_dataset(cls, lists: Any, schema: ListSchema) -> NamedLists:
        """Reads the ids from a ``datasets`` Dataset."""
        by_id = schema.list_id is not None and schema.list_id in lists.column_names
        columns = [schema.id_column, *([schema.list_id] if by_id else [])]
        names: list[str] = []
        items: list[list[str]] = []
        for table in tables_of(lists.select_columns(columns), _BATCH):
            items += [[str(item) for item in row] for row in table.column(schema.id_column).to_pylist()]
            if by_id:
                names += [str(name) for name in table.column(schema.list_id).to_pylist()]
        return cls(names if by_id else [str(number) for number in range(len(items))], items)


def read_scores(path: str | Path, named: NamedLists) -> tuple[np.ndarray, int]:
    """Reads a system's scores of all these lists.

    Args:
        path: ``.jsonl``, ``.parquet``, or any other name for a TREC run.
        named: The lists to read scores for.

    Returns:
        float64 [N], one list after another; and the number of other lists in the file, which are ignored.

    Raises:
        InputError: The file is damaged; a list has no scores or the wrong number of them; an item has no score; or a
            score is not finite. The message names file, line and list.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: expected scores as .jsonl, .parquet, or a TREC run")
    _refuse_repeated(named.lists, "list", "scores cannot be assigned to it")
    if path.suffix == ".jsonl":
        found = _collect_scores(_read_json_rows(path))
    elif path.suffix == ".parquet":
        found = _collect_scores(_read_parquet_rows(path))
    else:
        return _read_trec(path, named)
    wanted = set(named.lists)
    parts = []
    for name, items in zip(named.lists, named.items, strict=True):
        if name not in found:
            raise InputError(f"{path} has no scores for list {name}: expected every list of the split")
        where, scores = found[name]
        if len(scores) != len(items):
            raise InputError(f"{path}, {where}: list {name} has {len(items)} items and {len(scores)} scores")
        parts.append(scores)
    return np.concatenate(parts), len(found.keys() - wanted)


def write_trec_run(
    path: str | Path, named: NamedLists, orders: Sequence[Sequence[int]], scores: Any, name: str
) -> None:
    """Writes rankings as a TREC run, completely or not at all.

    Args:
        path: The file.
        named: The lists.
        orders: The slots of each list, best first.
        scores: The scores of each list, by slot.
        name: Name of the run, the last column.

    Raises:
        InputError: An id contains white space, or an item appears twice in a list.
    """
    _refuse_repeated(named.lists, "list", "a TREC run cannot tell them apart")
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for list_id, items, order, of_slots in zip(named.lists, named.items, orders, scores, strict=True):
            _refuse_repeated(
                items,
                "item",
                f"a TREC run cannot tell them apart (list {list_id}); name a column of unique ids as id in the schema",
            )
            for rank, slot in enumerate(order, 1):
                row = (list_id, "Q0", items[slot], str(rank), repr(float(of_slots[slot])), name)
                if any(not cell or len(cell.split()) != 1 for cell in row):
                    raise InputError(
                        f"list {list_id}, item {items[slot]!r}, run {name!r}: a TREC run separates cells by white "
                        "space, so ids and names must not contain any"
                    )
                file.write(f"{' '.join(row)}\n")


def _read_json_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", parse_json_object(line, f"{path}, line {number}", "fix the line and rerun")


def _read_parquet_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from None
    for number, row in enumerate(table.to_pylist()):
        yield f"row {number}", row


def _collect_scores(rows: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, tuple[str, np.ndarray]]:
    """Maps each list to the place in the file and the scores."""
    found: dict[str, tuple[str, np.ndarray]] = {}
    for where, row in rows:
        if not {"list_id", "scores"} <= row.keys():
            raise InputError(f"{where} of the scores has {', '.join(row) or 'nothing'}: expected list_id and scores")
        name, values = str(row["list_id"]), row["scores"]
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            raise InputError(f"{where}: scores of list {name} are {str(values)[:40]}: expected a list of numbers")
        if name in found:
            raise InputError(f"{where}: list {name} is already in {found[name][0]}: expected each list once")
        scores = np.array(values, dtype=np.float64)
        if not np.isfinite(scores).all():
            raise InputError(f"{where}: a score of list {name} is not finite")
        found[name] = where, scores
    return found


def _read_trec(path: Path, named: NamedLists) -> tuple[np.ndarray, int]:
    found: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            cells = line.split()
            if not cells:
                continue
            if len(cells) != 6:
                raise InputError(
                    f"{path}, line {number}: {len(cells)} columns: expected the 6 of a TREC run, such as "
                    "'q7 Q0 item3 1 1.5 name'"
                )
            try:
                score = float(cells[4])
            except ValueError:
                score = float("nan")
            if not np.isfinite(score):
                raise InputError(f"{path}, line {number}, column 5: {cells[4]!r}: expected a finite score")
            of_list = found.setdefault(cells[0], {})
            if cells[2] in of_list:
                raise InputError(f"{path}, line {number}: item {cells[2]} appears twice in list {cells[0]}")
            of_list[cells[2]] = score
    scores = []
    for name, items in zip(named.lists, named.items, strict=True):
        of_list = found.get(name, {})
        _refuse_repeated(items, "item", f"a TREC run cannot tell them apart (list {name}); give .jsonl scores")
        missing = [item for item in items if item not in of_list]
        if missing:
            raise InputError(f"{path} has no score for item {missing[0]} in list {name}: expected every item")
        unknown = of_list.keys() - set(items)
        if unknown:
            raise InputError(
                f"{path} has a score for item {min(unknown)} in list {name}, which does not contain that item"
            )
        scores += [of_list[item] for item in items]
    return np.array(scores), len(found.keys() - set(named.lists))


def _refuse_repeated(names: Sequence[str], what: str, consequence: str) -> None:
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"{what} {twice} appears twice: {consequence}")
