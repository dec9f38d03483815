"""The simulated worlds of the experiments: simulated lists, each world with its own initial order.

All but the last two have the same lists, in PRM Public's format.

A re-ranker is given the order ``P``. The information in ``P`` determines how much principled learning can gain, so
there is one world per kind of order:

- ``trained``: a LambdaMART of moderate quality trained on the clicks of ``ranker_train``, as in the paper's protocol.
  ``trained_poor`` and ``trained_strong`` are its other qualities.
- ``trained_small``: the same with half as many lists, where the ranker has seen clicks that the re-ranker lacks.
- ``informed``: the simulator's own ranker, which sees the true quality with noise. ``informed_noisy`` and
  ``informed_noisier`` add more noise to its order.
- ``display``: the order in which the clicks were logged, which is the source of their position bias.
- ``ad_trained``: lists in Ad's format with the histories of their users, in the order of a strong LambdaMART trained
  like that of ``trained``: with the columns of Ad, a moderate one is little better than chance.
- ``ad_informed``: the same lists in the order of the simulator's own ranker, as in ``informed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

LISTS = 24_000
SMALL = 12_000
AD_LISTS = 16_000
# World -> (format, simulated lists in all splits, initial order).
WORLDS: dict[str, tuple[str, int, str]] = {
    "trained": ("prm_public", LISTS, "moderate"),
    "trained_poor": ("prm_public", LISTS, "poor"),
    "trained_strong": ("prm_public", LISTS, "strong"),
    "trained_small": ("prm_public", SMALL, "moderate"),
    "informed": ("prm_public", LISTS, "informed"),
    "informed_noisy": ("prm_public", LISTS, "noise 0.25"),
    "informed_noisier": ("prm_public", LISTS, "noise 1"),
    "display": ("prm_public", LISTS, "display"),
    "ad_trained": ("ad", AD_LISTS, "strong"),
    "ad_informed": ("ad", AD_LISTS, "informed"),
}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class World:
    """Lists with one kind of initial order and one length.

    Attributes:
        splits: Name of a split -> dataset.
        schema: Schema of the lists.
    """

    splits: dict[str, Any]
    schema: Any


def make_world(root: Path, name: str, length: int, *, random_order: bool = False, seed: int = 0) -> World:
    """Simulates and prepares what is missing, and loads it.

    Args:
        root: Folder of the prepared lists, shared by all worlds.
        name: A key of ``WORLDS``.
        length: Lists are cut to this many items, the first in the initial order.
        random_order: Give a fixed random order of each list's items, after the cut, for a model that cannot ignore
            the order.
        seed: Seed of the simulation, the initial ranker and the noise.
    """
    from hf_rerank import load_lists

    order = WORLDS[name][2]
    prepared = prepare_world(root, name, seed=seed)
    loaded = load_lists(prepared)
    schema = loaded.schema
    if order == "display":  # the row order
        schema = schema.replace(position=None)
    splits = {split: loaded[split] for split in SPLITS}
    if order.startswith("noise"):
        noise = float(order.split()[1])
        splits = {split: reorder(lists, schema, noise=noise, seed=seed) for split, lists in splits.items()}
    splits = {split: cut_lists(lists, schema, length) for split, lists in splits.items()}
    schema = schema.replace(max_list_length=length)
    if random_order:
        schema = schema.replace(position=schema.position or "position")
        splits = {split: reorder(lists, schema, noise=None, seed=seed) for split, lists in splits.items()}
    return World(splits, schema)


def prepare_world(root: Path, name: str, *, seed: int = 0) -> Path:
    """Returns the folder of the prepared lists of a world; simulates, prepares and sorts what is missing."""
    kind, count, order = WORLDS[name]
    prefix = "ad-" if kind == "ad" else ""
    raw, prepared, ranked = (root / f"{prefix}{step}-{count}-{seed}" for step in ("raw", "prepared", order))
    whole = ("--max-list-length", 30) if kind == "ad" else ()
    prepare_lists(kind, raw, prepared, count, *whole, seed=seed)
    if order not in ("poor", "moderate", "strong"):
        return prepared
    if not ranked.is_dir():
        _run("initial-rank", "--data", prepared, "--output-dir", ranked, "--quality", order, "--seed", seed)
    return ranked


def prepare_lists(kind: str, raw: Path, prepared: Path, count: int, *options: Any, seed: int) -> None:
    """Simulates lists of a format into the folder ``raw`` and prepares them, unless that is done.

    Args:
        kind: ``prm_public`` or ``ad``.
        raw: Folder of the raw files.
        prepared: Folder of the prepared lists.
        count: Number of simulated lists in all splits.
        options: Options of ``hf-rerank prepare``.
        seed: Seed of the simulation.
    """
    if prepared.is_dir():
        return
    if not raw.is_dir():
        _run("simulate", kind, "--output-dir", raw, "--lists", count, "--seed", seed)
    _run("prepare", kind, "--raw-dir", raw, "--output-dir", prepared, *options)


def cut_lists(lists: Any, schema: Any, length: int) -> Any:
    """Keeps the first ``length`` items of each list in its initial order; only item columns are cut."""
    import datasets

    table = lists.with_format("arrow")[:]
    items = {feature.name for feature in schema.items} | set(schema.item_columns().values())
    lengths = _lengths(table, schema)
    if (lengths <= length).all():
        return lists
    starts = np.cumsum(lengths) - lengths
    if schema.position is None:
        positions = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    else:
        positions = np.asarray(_values(table, schema.position))
    keep = positions < length
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, length))])
    columns = {}
    for name in table.column_names:
        if name in items:
            columns[name] = pa.ListArray.from_arrays(
                pa.array(offsets, type=pa.int32()), _values(table, name).filter(pa.array(keep))
            )
        else:
            columns[name] = table.column(name)
    return datasets.Dataset(pa.table(columns))


def reorder(lists: Any, schema: Any, *, noise: float | None, seed: int) -> Any:
    """Sorts by the given positions plus normal noise with a standard deviation of ``noise`` times the length.

    With ``noise=None`` the order is random.
    """
    import datasets

    table = lists.with_format("arrow")[:]
    lengths = _lengths(table, schema)
    generator = np.random.default_rng(seed)
    draws = generator.standard_normal(lengths.sum())
    if noise is not None:
        draws = np.asarray(_values(table, schema.position)) + noise * np.repeat(lengths, lengths) * draws
    owner = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((draws, owner))  # by list, then from the top
    positions = np.empty(len(draws), dtype=np.int64)
    positions[order] = np.arange(len(draws)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    column = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), pa.array(positions))
    if schema.position in table.column_names:
        table = table.set_column(table.column_names.index(schema.position), schema.position, column)
    else:
        table = table.append_column(schema.position, column)
    return datasets.Dataset(table)


def _lengths(table: pa.Table, schema: Any) -> np.ndarray:
    return _column(table, schema.label).value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)


def _values(table: pa.Table, name: str) -> Any:
    return _column(table, name).flatten()


def _column(table: pa.Table, name: str) -> Any:
    column = table.column(name).combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def _run(*arguments: Any) -> None:
    from hf_rerank.cli import main

    if code := main([str(argument) for argument in arguments]):
        raise SystemExit(code)
