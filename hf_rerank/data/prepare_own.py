"""One's own lists, checked to the last one -> a folder of prepared lists.

Everything is checked before anything is written. Parquet and JSON Lines are read a batch at a time, through the cache
of ``datasets``; memory holds a few numbers a list (its split, a hash of its id, its time), and CSV as a whole.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from tqdm import tqdm

import hf_rerank
from hf_rerank.data.frames import joined_columns
from hf_rerank.data.own_lists import cut_by_time, list_files, read_files, split_lists
from hf_rerank.data.prepared import OWN, Licence, dataset_card, is_prepared, write_description
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS
from hf_rerank.data.suspicions import Suspicions, leak, telling_columns
from hf_rerank.data.time_split import time_column
from hf_rerank.data.unfinished import GROUP_LISTS, Unfinished, fingerprint, refuse_unfinished, unfinished_folder
from hf_rerank.errors import InputError, suggestion
from hf_rerank.lists import Lists, refuse_repeated_ids, tables_of
from hf_rerank.schema import ListSchema

# Of lists in memory; what this becomes on disk is smaller.
SHARD_BYTES = 2**28


@dataclass
class OwnReport(PrepareReport):
    """What became of one's own lists; none is dropped, cut or mended.

    Attributes:
        one_item_lists: Lists of one item, in which there is nothing to re-rank.
        warnings: What is legal, but most likely a mistake: one sentence each.
    """

    one_item_lists: int = 0
    warnings: list[str] = field(default_factory=list)


def prepare_own(
    source: str | Path,
    output_dir: str | Path,
    *,
    schema: ListSchema | str | Path,
    split_by: str = "group",
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> OwnReport:
    """Own files -> a folder of prepared lists (see ``hf_rerank.data.prepared``).

    The lists are made in ``output_dir.partial``. If this is stopped, the next call with the same options goes on from
    the last whole shard, and the folder has the same bytes as if it had never been stopped.

    Args:
        source: A file or a folder, as ``load_lists`` takes them.
        output_dir: Folder to make; must be new or empty. It appears when it is whole.
        schema: Says which column is what, as an object or a path to its JSON.
        split_by: ``"group"`` or ``"time:COLUMN"``, see ``load_lists``.
        progress: Bars of the lists checked and written, if they take longer than a second.
        shard_bytes: Of lists in memory after which the shards of all splits are cut.

    Raises:
        InputError: A list is wrong, or longer than ``schema.max_list_length``; two have one id; an output folder that
            is not empty; other files or options than those of the call that is gone on with.
    """
    started = time.monotonic()
    path, column = Path(source), time_column(split_by)
    refuse_unfinished(path)
    if is_prepared(path):
        raise InputError(f"{path} is prepared already: give the files that it was made from")
    schema = schema if isinstance(schema, ListSchema) else ListSchema.load(schema)
    options = {
        "files": [[file.name, *fingerprint(file)] for file in list_files(path)],
        "schema": schema.to_dict(),
        "split_by": split_by,
        "shard_bytes": shard_bytes,
        # Other versions may write other bytes.
        "versions": {"hf_rerank": hf_rerank.__version__, "pyarrow": pa.__version__},
    }
    with unfinished_folder(output_dir, options) as unfinished:
        if unfinished.done:
            assert unfinished.progress is not None
            return OwnReport(**unfinished.progress["report"])
        lists = read_files(path, False, schema)
        if options["files"] != [[file.name, *fingerprint(file)] for file in list_files(path)]:
            raise InputError(f"{path} changed while it was read: run again when it is complete")
        given = lists if isinstance(lists, dict) else {"": lists}
        total = sum(map(len, given.values()))
        with tqdm(total=total, unit="list", desc="Checking", delay=1, disable=not progress) as bar:
            report = _checked(given, schema, bar.update)
        if column is not None:
            splits = cut_by_time(lists, column)
        else:
            splits = lists if isinstance(lists, dict) else split_lists(lists, schema)
        for split in splits:
            if split not in SPLITS:
                raise InputError(
                    f"column 'split' holds {split!r}: prepared lists have the splits {', '.join(SPLITS)}"
                    f"{suggestion(split, SPLITS)}; rename it"
                )
        brought = isinstance(lists, dict) or (column is None and "split" in lists.column_names)
        if brought and schema.group is not None:
            report.warnings += _users_of_both(splits, schema.group)
        columns = joined_columns({f"split {split!r}": part.features.arrow_schema for split, part in given.items()})
        with tqdm(total=total, unit="list", desc="Preparing", delay=1, disable=not progress) as bar:
            _write(splits, unfinished, columns, report, schema.label, shard_bytes, bar.update)
        card = _card(path, split_by, isinstance(lists, dict), schema, report)
        unfinished.finish(columns, lambda folder: write_description(folder, schema, report, card))
    report.seconds = time.monotonic() - started
    return report


def _checked(given: Mapping[str, Any], schema: ListSchema, on_lists: Callable[[int], object]) -> OwnReport:
    """Every list against the schema, in the order of the source; what looks wrong is in the report."""
    suspicions = Suspicions(schema)
    leaks: list[str] = []
    hashes = []
    for split, lists in given.items():
        number = 0
        for table in tables_of(lists, GROUP_LISTS):
            try:
                batch = Lists.from_arrow(table, schema, with_labels=True, first=number)
                _refuse_long_lists(batch, schema)
            except InputError as error:
                raise InputError(f"{split}: {error}" if split else str(error)) from None
            suspicions.add(batch)
            if not number and split in ("", "train"):
                leaks += telling_columns(batch)
                if schema.position is None and (message := leak(batch)) is not None:
                    leaks.append(message)
            if schema.list_id is not None:
                hashes.append(pl.Series(batch.ids).hash().to_numpy())
            number += len(batch)
            on_lists(len(batch))
    if hashes and len(np.unique(np.concatenate(hashes))) < sum(map(len, hashes)):
        # Almost surely an id twice, not two with one hash; the ids themselves say which.
        ids = [str(value) for lists in given.values() for value in lists[schema.list_id][:]]
        refuse_repeated_ids(ids, schema)
    return OwnReport(
        read=suspicions.lists, one_item_lists=suspicions.one_item, warnings=[*suspicions.messages(), *leaks]
    )


def _users_of_both(splits: Mapping[str, Any], group: str) -> list[str]:
    """Says which of the splits that the lists bring hold users that models learn from, too."""
    users = {}
    for split, lists in splits.items():
        if group not in lists.column_names:
            return []
        hashes = [np.zeros(0, np.uint64)]
        for table in tables_of(lists.select_columns([group]), GROUP_LISTS):
            of_list = pl.Series(table.column(group)).drop_nulls()
            if isinstance(of_list.dtype, pl.List):
                raise InputError(f"column {group!r} holds {of_list.dtype}: expected one user a list, not one an item")
            hashes.append(of_list.cast(pl.String).hash().to_numpy())
        users[split] = np.unique(np.concatenate(hashes))
    none = np.zeros(0, np.uint64)
    learned_from = np.union1d(users.get("ranker_train", none), users.get("train", none))
    found = []
    for split in ("validation", "test"):
        both = np.isin(users.get(split, none), learned_from).sum()
        if both:
            found.append(
                f"{both:,} of {len(users[split]):,} users (column {group!r}) of {split} are also in train or "
                "ranker_train: what is learned of them there makes results look better than for new users; leave the "
                "splits out, and lists are split by user"
            )
    return found


def _refuse_long_lists(batch: Lists, schema: ListSchema) -> None:
    too_long = batch.lengths > schema.max_list_length
    if too_long.any():
        row = int(np.argmax(too_long))
        raise InputError(
            f"list {batch.ids[row]} has {batch.lengths[row]} items, the schema allows max_list_length="
            f"{schema.max_list_length}: make max_list_length in the schema larger, or cut the list"
        )


def _write(
    splits: Mapping[str, Any],
    unfinished: Unfinished,
    columns: pa.Schema,
    report: OwnReport,
    label: str,
    shard_bytes: int,
    on_lists: Callable[[int], object],
) -> None:
    """Writes split after split into shards, and saves the state after each group of them."""
    done = 0
    if unfinished.progress is not None:
        done = unfinished.progress["written"]
        for name, value in unfinished.progress["report"].items():
            setattr(report, name, value)
        on_lists(done)
    written, in_group = done, 0
    group = unfinished.group(columns)
    finished = False
    try:
        for split, table in _tables_after(splits, done):
            plain = table.combine_chunks().cast(columns)  # chosen lists come as a chunk each
            report.keep(split, plain, label)
            group.write(split, plain)
            written += plain.num_rows
            in_group += plain.nbytes
            on_lists(plain.num_rows)
            if in_group >= shard_bytes:
                in_group = 0
                unfinished.save(group, {"written": written, "report": dataclasses.asdict(report)}, whole=True)
                group = unfinished.group(columns)
        if in_group:
            unfinished.save(group, {"written": written, "report": dataclasses.asdict(report)}, whole=True)
        finished = True
    finally:
        if not finished:
            group.abandon()


def _tables_after(splits: Mapping[str, Any], done: int) -> Iterator[tuple[str, pa.Table]]:
    """Tables of each split, the first ``done`` lists left out; they begin at the same lists whatever was done."""
    for split in SPLITS:
        if split not in splits:
            continue
        lists = splits[split]
        if done >= len(lists):
            done -= len(lists)
            continue
        rest = lists.select(range(done, len(lists))) if done else lists
        done = 0
        for table in tables_of(rest, GROUP_LISTS):
            yield split, table


def _card(path: Path, split_by: str, given: bool, schema: ListSchema, report: OwnReport) -> str:
    if given:
        rule = "The splits are those of the files."
    elif split_by != "group":
        rule = (
            f"Split by time, column `{split_by.partition(':')[2]}`: the oldest 40 % of the lists, then 45 %, 5 % and "
            "10 %; equal times are together. Users of the test split are in train too."
        )
    else:
        by = f"`{schema.group or schema.list_id}`" if schema.group or schema.list_id else "the number of the row"
        rule = f"Split by column `split` where there is one, else by the md5 of {by}: 40, 45, 5 and 10 %."
    caveats = [
        f"{report.one_item_lists:,} lists have one item.",
        "Clicks depend on the order in which items were shown.",
        *(f"Warning: {message}" for message in report.warnings),
    ]
    how = [f"Made by `hf-rerank prepare own` from `{path.name}`; every list was checked, none changed.", rule]
    return dataset_card(path.stem, report, schema, how=how, caveats=caveats, licence=Licence(OWN, "Yours to say."))
