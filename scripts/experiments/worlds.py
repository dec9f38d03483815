"""The simulated worlds of the experiments: one raw simulation, and three kinds of initial order over it.

- ``trained``: the order of a LambdaMART trained on the clicks of ``ranker_train``, as in the paper's protocol. It
  knows nothing beyond the features.
- ``informed``: the order of the simulator's own ranker, which sees the true quality with noise.
- ``display``: the order in which the clicks were logged, which is the source of their position bias.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

WORLDS = ("trained", "informed", "display")
LENGTHS = (10, 30)
LISTS = 12_000


@dataclass(frozen=True)
class World:
    """Lists with one kind of initial order and one length.

    Attributes:
        splits: Name of a split -> dataset.
        schema: Of the lists.
    """

    splits: dict[str, Any]
    schema: Any


def make_world(root: Path, name: str, length: int, *, lists: int = LISTS, seed: int = 0) -> World:
    """Simulates and prepares what is not there yet, and loads it.

    Args:
        root: Folder of the prepared lists, shared by all worlds.
        name: One of ``WORLDS``.
        length: Lists are cut to their first so many items in the initial order.
        lists: Simulated lists in all splits together.
        seed: Of the simulation and of the initial ranker.
    """
    from hf_rerank import load_lists

    raw, prepared, ranked = (root / f"{what}-{lists}-{seed}" for what in ("raw", "prepared", "trained"))
    if not prepared.is_dir():
        _run("simulate", "prm_public", "--output-dir", raw, "--lists", lists, "--seed", seed)
        _run("prepare", "prm_public", "--raw-dir", raw, "--output-dir", prepared)
    if name == "trained" and not ranked.is_dir():
        _run("initial-rank", "--data", prepared, "--output-dir", ranked, "--quality", "moderate", "--seed", seed)
    loaded = load_lists(ranked if name == "trained" else prepared)
    schema = loaded.schema.replace(position=None) if name == "display" else loaded.schema
    schema = schema.replace(max_list_length=length)
    splits = {split: cut_lists(loaded[split], schema, length) for split in ("train", "validation", "test")}
    return World(splits, schema)


def cut_lists(lists: Any, schema: Any, length: int) -> Any:
    """The first ``length`` items of each list in its initial order; the columns of its items are cut, others stay."""
    import datasets

    table = lists.with_format("arrow")[:]
    items = {feature.name for feature in schema.items} | set(schema.item_columns().values())
    lengths = np.diff(_flat(table, schema.label)[1])
    if (lengths <= length).all():
        return lists
    starts = np.cumsum(lengths) - lengths
    if schema.position is None:
        positions = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    else:
        positions = np.asarray(_flat(table, schema.position)[0])
    keep = positions < length
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, length))])
    columns = {}
    for name in table.column_names:
        if name in items:
            values = _flat(table, name)[0].filter(pa.array(keep))
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), values)
        else:
            columns[name] = table.column(name)
    return datasets.Dataset(pa.table(columns))


def _flat(table: pa.Table, name: str) -> tuple[Any, np.ndarray]:
    column = table.column(name).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    return column.flatten(), np.concatenate([[0], np.cumsum(lengths)])


def _run(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "hf_rerank.cli", *map(str, arguments)], check=True)
