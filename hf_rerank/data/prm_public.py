"""PRM Public (Alibaba; Pei et al. 2019): from the raw text to lists.

What a user calls: the raw files, the schema and columns of their lists, the lists themselves (``iter_batches``), and a
folder of prepared lists (``prepare_prm_public``). One line of a raw file is one list. Lines are read here in batches
of bytes; ``hf_rerank.data.prm_public_text`` knows their format, and decodes them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_rerank.data.prepared import (
    SHARD_LISTS,
    PrepareReport,
    ShardWriter,
    dataset_card,
    new_folder,
    read_footer,
    write_description,
)
from hf_rerank.data.prm_public_text import (
    BASIC_COLUMNS,
    CATEGORICAL_COLUMNS,
    MAX_LINE_BYTES,
    OPTIONAL_COLUMNS,
    USER_COLUMNS,
    Fields,
)
from hf_rerank.data.splits import SPLITS, split_of
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import Categorical, Dense, ListSchema

MAX_LIST_LENGTH = 30

PROTOCOLS = ("ours", "public")
PUBLIC_SHARE = 0.1
# Larger batches fall out of the processor's cache: 32 MiB were a quarter slower.
BATCH_BYTES = 8 * 2**20
RANGE_BYTES = 256 * 2**20
_FILE_NAME = re.compile(r"set1\.train\.txt\.part[^.]+")


# ------------------------------------------------------------------------------------------------ files and columns


def find_files(data_dir: str | Path) -> list[Path]:
    """The raw files of a folder, ``set1.train.txt.part1`` and so on, in order.

    Raises:
        InputError: There are none; says where they come from.
    """
    folder = Path(data_dir)
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    names = [name for name in there if _FILE_NAME.fullmatch(name)]
    if not names:
        held = f"it holds {', '.join(there[:5]) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"no PRM Public text in {folder} ({held}): expected set1.train.txt.part1 and set1.train.txt.part2, "
            "unpacked. The dataset is linked from the authors' repository, hf4Academic/PRM on GitHub; "
            "`hf-rerank simulate prm_public` makes files of the same format"
        )
    return [folder / name for name in sorted(names, key=lambda name: (len(name), name))]


@dataclass(frozen=True)
class TextRange:
    """Whole lines of a raw file: bytes ``start`` to ``end``, the first of them line ``first_line`` (from 1)."""

    path: str
    start: int
    end: int
    first_line: int


def find_ranges(files: Sequence[Path], range_bytes: int = RANGE_BYTES) -> list[TextRange]:
    """Cuts files into ranges of whole lines, for several readers; a file of several ranges is read through once."""
    ranges = []
    for path in files:
        size = path.stat().st_size
        start, first_line, lines = 0, 1, 0
        with path.open("rb") as file:
            while size - start > range_bytes:
                file.seek(start)
                end, lines = start, 0
                while end < size and end - start < range_bytes:
                    block = file.read(min(range_bytes - (end - start), 2**24))
                    end, lines = end + len(block), lines + block.count(b"\n")
                rest = file.readline()
                end, lines = end + len(rest), lines + rest.count(b"\n")
                ranges.append(TextRange(str(path), start, end, first_line))
                start, first_line = end, first_line + lines
        if start < size or size == 0:
            ranges.append(TextRange(str(path), start, size, first_line))
    return ranges


def prm_public_schema(
    max_list_length: int = MAX_LIST_LENGTH,
    position: bool = False,
    examination: Sequence[float] | None = None,
    attraction: bool = False,
) -> ListSchema:
    """The schema of PRM Public.

    Args:
        max_list_length: Items a list at most.
        position: There is a column ``position``, from an initial ranker or the simulator.
        examination: Of simulated lists: probability that a place is looked at, top first.
        attraction: There is a column ``attraction`` (simulated lists).
    """
    return ListSchema(
        items=[
            *(Categorical(name) for name in CATEGORICAL_COLUMNS),
            *(Dense(name, scale="standard", missing="mean") for name in (*BASIC_COLUMNS, *OPTIONAL_COLUMNS)),
        ],
        user=[Categorical(name) for name in USER_COLUMNS],
        label="click",
        list_id="list_id",
        group="user_id",
        position="position" if position else None,
        attraction="attraction" if attraction else None,
        examination=examination,
        max_list_length=max_list_length,
    )


def prm_public_columns(position: bool = False, attraction: bool = False) -> pa.Schema:
    """The arrow columns of the lists, in order."""
    fields = [("list_id", pa.string()), ("user_id", pa.int64()), *((name, pa.int64()) for name in USER_COLUMNS)]
    fields += [(name, pa.list_(pa.int64())) for name in CATEGORICAL_COLUMNS]
    fields += [(name, pa.list_(pa.float32())) for name in (*BASIC_COLUMNS, *OPTIONAL_COLUMNS)]
    fields += [("click", pa.list_(pa.int8())), ("split", pa.string())]
    fields += [("position", pa.list_(pa.int64()))] if position else []
    fields += [("attraction", pa.list_(pa.float32()))] if attraction else []
    return pa.schema(fields)


# -------------------------------------------------------------------------------------- the truth of simulated lists


@dataclass(frozen=True)
class TruthHeader:
    """What the side files ``<raw file>.truth.parquet`` offer. ``position=False``: there are none."""

    position: bool = False
    attraction: bool = False
    examination: tuple[float, ...] | None = None


def truth_file(raw_file: str | Path) -> Path:
    """The name of the side file."""
    return Path(f"{raw_file}.truth.parquet")


def read_truth_header(files: Iterable[str | Path]) -> TruthHeader:
    """What the side files of all raw files offer.

    Raises:
        InputError: They differ, or a column is missing.
    """
    headers = {Path(path): _truth_header(truth_file(path)) for path in files}
    first_path, first = next(iter(headers.items()))
    for path, header in headers.items():
        if header != first:
            raise InputError(
                f"{truth_file(path)} and {truth_file(first_path)} differ (one is missing, or their columns or "
                "examination differ): prepare raw files of one simulation together"
            )
    return first


def _truth_header(path: Path) -> TruthHeader:
    if not path.is_file():
        return TruthHeader()
    read_footer(path)
    columns = pq.read_schema(path)
    for name in ("list_id", "initial_position"):
        if name not in columns.names:
            raise InputError(f"{path} has no column {name!r} (it has {', '.join(columns.names)}): simulate it again")
    examination = (columns.metadata or {}).get(b"examination")
    return TruthHeader(True, "attraction" in columns.names, tuple(json.loads(examination)) if examination else None)


class _Truth:
    """The side file of one raw file; its rows are the lines, in order."""

    def __init__(self, raw_file: str) -> None:
        self.path = truth_file(raw_file)
        self.parquet = pq.ParquetFile(self.path)
        groups = [self.parquet.metadata.row_group(number).num_rows for number in range(self.parquet.num_row_groups)]
        self.ends = np.cumsum(groups)
        self.rows = int(self.ends[-1]) if groups else 0
        # Batches end inside row groups: the last group is kept, so that each is read once.
        self._group = functools.lru_cache(maxsize=2)(self.parquet.read_row_group)

    def lines(self, first_line: int, list_ids: list[str]) -> pa.Table:
        """The rows of some lines that follow one another."""
        start, stop = first_line - 1, first_line - 1 + len(list_ids)
        if stop > self.rows:
            raise InputError(
                f"{self.path} has {self.rows:,} rows, but the raw file has at least {stop:,} lines: they belong to "
                "different simulations, or one was cut off"
            )
        groups = range(int(np.searchsorted(self.ends, start, "right")), int(np.searchsorted(self.ends, stop)) + 1)
        before = int(self.ends[groups[0]]) - self.parquet.metadata.row_group(groups[0]).num_rows
        table = pa.concat_tables([self._group(number) for number in groups]).slice(start - before, len(list_ids))
        found = table.column("list_id").to_pylist()
        if found != list_ids:
            row = next(row for row, (have, want) in enumerate(zip(found, list_ids, strict=True)) if have != want)
            raise InputError(
                f"row {first_line + row} of {self.path} is list {found[row]!r}, expected {list_ids[row]!r}: one row a "
                "line, in the order of the lines"
            )
        return table

    def check_end(self, lines: int) -> None:
        if lines != self.rows:
            raise InputError(
                f"{self.path} has {self.rows:,} rows, but the raw file only {lines:,} lines: it was cut off"
            )


# ------------------------------------------------------------------------------------------------------ text -> lists


def iter_batches(
    sources: Sequence[str | Path | TextRange],
    *,
    protocol: str = "ours",
    max_list_length: int = MAX_LIST_LENGTH,
    splits: Collection[str] = SPLITS,
    share: float = PUBLIC_SHARE,
    seed: int = 0,
    batch_bytes: int = BATCH_BYTES,
    report: PrepareReport | None = None,
    on_bytes: Callable[[int], object] | None = None,
) -> Iterator[pa.Table]:
    """Lists straight from the raw text, in the order of the lines, in bounded memory.

    Args:
        sources: Raw files, or ranges of them (``find_ranges``). The side files of simulated lists are joined.
        protocol: ``ours``: every line; a null is a missing value. ``public``: lines with a null are dropped, and of
            the others the share ``share`` is drawn, by a hash of seed and list id. A line that is dropped is not
            looked at further than that.
        max_list_length: Longer lists are cut to the items that stand first in the initial order.
        splits: Splits wanted; lines of the others are not decoded.
        share: Of the public protocol, between 0 and 1.
        seed: Of the public protocol.
        batch_bytes: Text that is decoded at a time; memory is a small multiple of it.
        report: Where dropped and cut lists are counted (``read``, ``dropped``, ``cut_lists``, ``lost_clicks``).
        on_bytes: Called with the number of bytes read, batch by batch.

    Yields:
        Tables with the columns ``prm_public_columns``, of at least one list.

    Raises:
        InputError: A damaged line: names file, line, field and text. Or an unknown protocol, or a process forked from
            one that has read raw text.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"unknown protocol {protocol!r}: expected {' or '.join(PROTOCOLS)}{suggestion(protocol, PROTOCOLS)}"
        )
    if not 0 < share <= 1 or max_list_length < 1:
        raise InputError(
            f"share is {share} and max_list_length {max_list_length}: expected 0 < share <= 1, at least 1 item"
        )
    _refuse_forked_process()
    report = PrepareReport() if report is None else report
    ranges = [source if isinstance(source, TextRange) else find_ranges([Path(source)], 2**62)[0] for source in sources]
    truth_header = read_truth_header([source.path for source in ranges]) if ranges else TruthHeader()
    columns = prm_public_columns(truth_header.position, truth_header.attraction)
    for source in ranges:
        truth = _Truth(source.path) if truth_header.position else None
        part = source.path.rpartition(".")[2]
        line = source.first_line
        if source.start == source.end:
            raise InputError(f"{source.path} is empty: expected one list a line; fetch it again")
        for text in _batches_of_lines(source, batch_bytes):
            fields = Fields(source.path, line, text)
            list_ids = np.array([f"{part}:{line + row}" for row in range(fields.lines)], dtype=object)
            truth_rows = None if truth is None else truth.lines(line, list_ids.tolist())
            report.read += fields.lines
            wanted = np.ones(fields.lines, dtype=bool)
            if protocol == "public":
                wanted &= ~fields.with_null()
                report.drop("holds a null", int((~wanted).sum()))
                drawn = np.array([_drawn(list_id, share, seed) for list_id in list_ids[wanted]], dtype=bool)
                report.drop(f"not in the drawn {100 * share:g} %", int((~drawn).sum()))
                wanted[wanted] = drawn
            rows = np.flatnonzero(wanted)
            user_ids = fields.user_ids(rows)
            of_split = split_of(user_ids.tolist())
            if len(splits) < len(SPLITS):
                wanted = np.isin(of_split, list(splits))
                rows, user_ids, of_split = rows[wanted], user_ids[wanted], of_split[wanted]
            if len(rows):
                lists = fields.decode(rows)
                if truth_rows is not None:
                    lists.join_truth(truth_rows.take(pa.array(rows)), truth, list_ids[rows])
                lists.cut(max_list_length, report)
                lists.per_list |= {"list_id": list_ids[rows], "user_id": user_ids, "split": of_split}
                yield lists.table(columns)
            line += fields.lines
            if on_bytes is not None:
                on_bytes(len(text))
        if truth is not None and source.end == Path(source.path).stat().st_size:
            truth.check_end(line - 1)


_process_of_polars: int | None = None


def _refuse_forked_process() -> None:
    """The threads of polars do not survive a fork: without this, a forked data-loader worker would wait for ever."""
    global _process_of_polars
    _process_of_polars = os.getpid() if _process_of_polars is None else _process_of_polars
    if _process_of_polars != os.getpid():
        raise InputError(
            "raw text cannot be read in a process forked from one that has read raw text: start data-loader workers "
            "with multiprocessing_context='spawn', or prepare the lists and load the prepared folder"
        )


def _batches_of_lines(source: TextRange, batch_bytes: int) -> Iterator[bytes]:
    """Texts of whole lines. The last one lacks its line end where the file does."""
    with open(source.path, "rb") as file:
        file.seek(source.start)
        left, carried = source.end - source.start, b""
        while left:
            block = file.read(min(batch_bytes, left))
            if not block:
                raise InputError(f"{source.path} became shorter while it was read: run again when it is complete")
            left -= len(block)
            whole = block.rfind(b"\n") + 1
            if whole:
                yield carried + block[:whole]
                carried = b""
            carried += block[whole:]
            # The error is raised by the reader of fields, which knows the line: it gets the endless line as it is.
            if len(carried) > max(MAX_LINE_BYTES, batch_bytes):
                break
        if carried:
            yield carried


def _drawn(list_id: str, share: float, seed: int) -> bool:
    digest = hashlib.md5(f"{seed}:{list_id}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


# --------------------------------------------------------------------------------------------------------- preparing


def prepare_prm_public(
    raw_dir: str | Path,
    output_dir: str | Path,
    *,
    protocol: str = "ours",
    max_list_length: int = MAX_LIST_LENGTH,
    share: float = PUBLIC_SHARE,
    seed: int = 0,
    progress: bool = True,
    shard_lists: int = SHARD_LISTS,
    batch_bytes: int = BATCH_BYTES,
) -> PrepareReport:
    """Raw text -> a folder of prepared lists (see ``hf_rerank.data.prepared``), in bounded memory.

    Args:
        raw_dir: Folder of ``set1.train.txt.part*``; see ``find_files``.
        output_dir: Folder to make; must be new or empty. It appears when it is whole.
        protocol, max_list_length, share, seed, batch_bytes: See ``iter_batches``.
        progress: A bar of the bytes read, if it takes longer than a second.
        shard_lists: Lists a Parquet file, at most.

    Returns:
        What became of the lines.

    Raises:
        InputError: No raw files, a damaged line, raw files that change meanwhile, an output folder that is not empty.
    """
    from tqdm import tqdm

    started = time.monotonic()
    files = find_files(raw_dir)
    sizes = {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
    truth = read_truth_header(files)
    schema = prm_public_schema(max_list_length, truth.position, truth.examination, truth.attraction)
    report = PrepareReport()
    with new_folder(output_dir) as folder:
        columns = prm_public_columns(truth.position, truth.attraction)
        total = sum(size for size, _ in sizes.values())
        with (
            ShardWriter(folder, columns, shard_lists=shard_lists) as writer,
            tqdm(total=total, unit="B", unit_scale=True, desc="Preparing", delay=1, disable=not progress) as bar,
        ):
            batches = iter_batches(
                files,
                protocol=protocol,
                max_list_length=max_list_length,
                share=share,
                seed=seed,
                batch_bytes=batch_bytes,
                report=report,
                on_bytes=bar.update,
            )
            for batch in batches:
                of_split = batch.column("split").to_numpy()
                for split in SPLITS:
                    lists = batch.filter(pa.array(of_split == split))
                    if lists.num_rows:
                        report.keep(split, lists, schema.label)
                        writer.write(split, lists)
        for path, size in sizes.items():
            if (path.stat().st_size, path.stat().st_mtime_ns) != size:
                raise InputError(f"{path} changed while it was read: run again when it is complete")
        card = _card(files, protocol, share, seed, schema, report)
        write_description(folder, schema, report, card)
    report.seconds = time.monotonic() - started
    return report


def _card(
    files: Sequence[Path], protocol: str, share: float, seed: int, schema: ListSchema, report: PrepareReport
) -> str:
    simulated = schema.position is not None
    rule = {
        "ours": "Protocol `ours`: every line is kept; a `null` is a missing value.",
        "public": f"Protocol `public`: lines that hold a `null` are dropped, and {100 * share:g} % of the others are "
        f"drawn by a hash (seed {seed}).",
    }[protocol]
    how = [
        f"Source: {', '.join(f'`{path.name}`' for path in files)}; `list_id` is the part and the number of the line.",
        rule,
        "Split by `user_id`: md5 of its decimal text, first 8 hex digits modulo 10,000; 40 % `ranker_train`, 45 % "
        "`train`, 5 % `validation`, 10 % `test`.",
        "`ranker_train` is for initial rankers, click models and personalised vectors, and for nothing else.",
        "Initial order: the column `position`, 0 at the top; slots stand in the order in which they were displayed."
        if simulated
        else "Initial order: the order of the row.",
        f"Lists are cut to {schema.max_list_length} items in the initial order.",
    ]
    caveats = [
        "Raw lists hold at least one click, which is a selection: metrics are conditional on a click.",
        "Under a split by user every user of `test` is unknown in training: `user_id` is for grouping, no feature.",
        "The file is not known to be in order of time: nothing here is a user's history.",
    ]
    if simulated:
        caveats.append("These lists are simulated. `attraction` and `examination` are the truth, and no features.")
        licence = "Simulated lists: no line of the original dataset is in them."
    else:
        licence = (
            "The lists come from the PRM Public dataset (Alibaba), which its authors publish and which may not be "
            "redistributed: keep this folder to yourself, and do not push it to a public repository."
        )
    title = "PRM Public, simulated" if simulated else "PRM Public"
    return dataset_card(title, report, schema, how=how, caveats=caveats, licence=licence)
