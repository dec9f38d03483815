"""PRM Public (Alibaba; Pei et al. 2019): from the raw text to lists.

What a user calls: the raw files, the schema and columns of their lists, the lists themselves (``iter_batches``), and a
folder of prepared lists (``prepare_prm_public``). One line of a raw file is one list. Lines are read here in batches
of bytes; ``hf_rerank.data.prm_public_text`` knows their format, and decodes them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

import hf_rerank
from hf_rerank.data.prepared import write_description
from hf_rerank.data.prm_public_card import card_of
from hf_rerank.data.prm_public_lines import LineBatch, LineReader, TextRange, find_ranges, is_gzip
from hf_rerank.data.prm_public_state import State
from hf_rerank.data.prm_public_text import (
    BASIC_COLUMNS,
    CATEGORICAL_COLUMNS,
    OPTIONAL_COLUMNS,
    USER_COLUMNS,
    DamagedText,
    Decoded,
    Fields,
    Reject,
    shortened,
)
from hf_rerank.data.prm_public_truth import HISTORY_COLUMNS, Truth, TruthHeader, read_truth_header, truth_file
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import SPLITS, split_of
from hf_rerank.data.unfinished import CannotWrite, Unfinished, fingerprint, sha256_of, unfinished_folder
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import Categorical, Dense, ListSchema

MAX_LIST_LENGTH = 30

PROTOCOLS = ("ours", "public")
PUBLIC_SHARE = 0.1
# Larger batches fall out of the processor's cache: 32 MiB were a quarter slower.
BATCH_BYTES = 8 * 2**20
# 1.4 GB of text, which become 180 MB of train; what a killed run loses at most.
SHARD_LINES = 200_000
ON_ERROR = ("raise", "skip")
MAX_THREADS = 4
# Bytes of prepared lists a byte of text, about.
LISTS_SHARE = 0.3
_FILE_NAME = re.compile(r"(set1\.train\.txt\.part[^.]+)(\.gz)?")


# ------------------------------------------------------------------------------------------------ files and columns


def find_files(data_dir: str | Path) -> list[Path]:
    """The raw files of a folder, ``set1.train.txt.part1`` and so on, or ``set1.train.txt.part1.gz``, in order.

    Raises:
        InputError: There are none; says where they come from. Or a file is there twice, packed and unpacked.
    """
    folder = Path(data_dir)
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    names = [name for name in there if _FILE_NAME.fullmatch(name)]
    if not names:
        held = f"it holds {', '.join(there[:5]) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"no PRM Public text in {folder} ({held}): expected set1.train.txt.part1 and set1.train.txt.part2, "
            "unpacked or as .gz. The dataset is linked from the authors' repository, hf4Academic/PRM on GitHub; "
            "`hf-rerank simulate prm_public` makes files of the same format"
        )
    twice = [name for name in names if f"{name}.gz" in names]
    if twice:
        raise InputError(f"{folder} holds both {twice[0]} and {twice[0]}.gz: keep one of them")
    unpacked = {name: name.removesuffix(".gz") for name in names}
    return [folder / name for name in sorted(names, key=lambda name: (len(unpacked[name]), unpacked[name]))]


def prm_public_schema(
    max_list_length: int = MAX_LIST_LENGTH,
    position: bool = False,
    examination: Sequence[float] | None = None,
    attraction: bool = False,
    history: bool = False,
) -> ListSchema:
    """The schema of PRM Public.

    Args:
        max_list_length: Items a list at most.
        position: There is a column ``position``, from an initial ranker or the simulator.
        examination: Of simulated lists: probability that a place is looked at, top first.
        attraction: There is a column ``attraction`` (simulated lists).
        history: There are columns of what the user clicked before (simulated lists); they are features.
    """
    earlier_clicks: list[Categorical | Dense] = [
        *(Categorical(f"history_{name}", shares=name) for name in ("item_id", "item_1", "item_3")),
        Dense("history_basic_2"),
        Dense("history_price_gap"),
        Dense("history_minutes_ago", scale="log"),
    ]
    return ListSchema(
        items=[
            *(Categorical(name) for name in CATEGORICAL_COLUMNS),
            *(Dense(name, scale="standard", missing="mean") for name in (*BASIC_COLUMNS, *OPTIONAL_COLUMNS)),
        ],
        user=[Categorical(name) for name in USER_COLUMNS],
        history=earlier_clicks if history else [],
        label="click",
        list_id="list_id",
        group="user_id",
        position="position" if position else None,
        attraction="attraction" if attraction else None,
        examination=examination,
        max_list_length=max_list_length,
    )


def prm_public_columns(position: bool = False, attraction: bool = False, history: bool = False) -> pa.Schema:
    """The arrow columns of the lists, in order."""
    fields = [("list_id", pa.string()), ("user_id", pa.int64()), *((name, pa.int64()) for name in USER_COLUMNS)]
    fields += [(name, pa.list_(pa.int64())) for name in CATEGORICAL_COLUMNS]
    fields += [(name, pa.list_(pa.float32())) for name in (*BASIC_COLUMNS, *OPTIONAL_COLUMNS)]
    fields += [("click", pa.list_(pa.int8())), ("split", pa.string())]
    fields += [("position", pa.list_(pa.int64()))] if position else []
    fields += [("attraction", pa.list_(pa.float32()))] if attraction else []
    fields += [(name, pa.list_(kind)) for name, kind in HISTORY_COLUMNS.items()] if history else []
    return pa.schema(fields)


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
    on_error: str = "raise",
    on_reject: Callable[[Reject], object] | None = None,
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
        on_error: What a damaged line does. ``raise``: after the lists before it comes an error, which names it and all
            other damaged lines of its batch. ``skip``: it is left out, and counted by kind in ``report.rejected``.
        on_reject: With ``skip``: called with each damaged line, in order.
        report: Where lines are counted (``read``, ``dropped``, ``rejected``, ``cut_lists``, ``lost_clicks``).
        on_bytes: Called with the number of bytes of the files read, batch by batch.

    Yields:
        Tables with the columns ``prm_public_columns``, of at least one list.

    Raises:
        DamagedText: Damaged lines: names file, line, field and text.
        InputError: An unknown protocol, or a process forked from one that has read raw text.
    """
    _refuse_forked_process()
    report = PrepareReport() if report is None else report
    ranges = [source if isinstance(source, TextRange) else find_ranges([Path(source)], 2**62)[0] for source in sources]
    truth = read_truth_header([source.path for source in ranges]) if ranges else TruthHeader()
    rules = _Rules(protocol, max_list_length, share, seed, on_error, truth, frozenset(splits))
    on_disk: dict[int, int] = {}
    for outcome in _outcomes(_read(ranges, batch_bytes, rules), rules, threads=1):
        report.add(outcome.counts)
        if on_reject is not None and on_error == "skip":
            for reject in outcome.rejects:
                on_reject(reject)
        yield from outcome.tables
        if on_bytes is not None:
            before = on_disk.get(outcome.source, ranges[outcome.source].start)
            on_bytes(outcome.batch.on_disk - before)
            on_disk[outcome.source] = outcome.batch.on_disk
        if outcome.stops:
            raise DamagedText(outcome.rejects)


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


@dataclass(frozen=True)
class _Rules:
    """How lines become lists; see ``iter_batches``. ``by_split``: batches are cut into one table a split."""

    protocol: str
    max_list_length: int
    share: float
    seed: int
    on_error: str
    truth: TruthHeader
    splits: frozenset[str] = frozenset(SPLITS)
    by_split: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("protocol", self.protocol, PROTOCOLS), ("on_error", self.on_error, ON_ERROR)):
            if value not in known:
                raise InputError(f"unknown {name} {value!r}: expected {' or '.join(known)}{suggestion(value, known)}")
        if not 0 < self.share <= 1 or self.max_list_length < 1:
            raise InputError(
                f"share is {self.share} and max_list_length {self.max_list_length}: expected 0 < share <= 1, at least "
                "1 item"
            )

    @property
    def columns(self) -> pa.Schema:
        return prm_public_columns(self.truth.position, self.truth.attraction, self.truth.history)


@dataclass(frozen=True)
class _Read:
    """A batch of lines, not decoded yet. ``truth``: the side file and its rows for these lines, if there is one."""

    source: int
    batch: LineBatch
    truth: tuple[Truth, pa.Table] | None
    ends_group: bool


@dataclass(frozen=True)
class _Outcome:
    """What became of a batch.

    Attributes:
        source: Which of the files.
        batch: The lines; where reading stops at a damaged line, those before it.
        tables: The lists, in tables of at least one.
        counts: Of these lines.
        rejects: The damaged lines.
        stops: Reading stops here, because of them.
        ends_group: Shards are cut here.
    """

    source: int
    batch: LineBatch
    tables: list[pa.Table]
    counts: PrepareReport
    rejects: list[Reject]
    stops: bool
    ends_group: bool


def _read(
    ranges: Sequence[TextRange],
    batch_bytes: int,
    rules: _Rules,
    *,
    begun: Mapping[int, LineReader] | None = None,
    group_lines: int = 2**62,
    in_group: int = 0,
) -> Iterator[_Read]:
    """Batches of lines, in order; no batch reaches over the end of a group.

    Args:
        ranges: What to read.
        batch_bytes: Bytes at a time.
        rules: How lines become lists.
        begun: Readers of the first ranges, where they do not begin at the beginning.
        group_lines: Lines a group.
        in_group: Lines that the first group has already.
    """
    for number, source in enumerate(ranges):
        truth = Truth(source.path) if rules.truth.position else None
        reader = (begun or {}).get(number) or LineReader(source, batch_bytes, past_long_lines=rules.on_error == "skip")
        broken = False
        with contextlib.closing(reader):
            while (batch := reader.next(group_lines - in_group)) is not None:
                in_group, broken = in_group + batch.lines, batch.broken is not None
                ends_group = in_group == group_lines
                in_group = 0 if ends_group else in_group
                rows = None if truth is None else truth.lines(batch.first_line, _list_ids(batch, range(batch.lines)))
                yield _Read(number, batch, None if truth is None or rows is None else (truth, rows), ends_group)
            if reader.line == source.first_line:
                raise InputError(f"{source.path} is empty: expected one list a line; fetch it again")
            to_the_end = source.end is None or source.end == Path(source.path).stat().st_size
            if truth is not None and to_the_end and not broken:
                truth.check_end(reader.line - 1)


def _outcomes(batches: Iterator[_Read], rules: _Rules, threads: int) -> Generator[_Outcome, None, None]:
    """Decodes batches, several at a time, and gives them back in order."""
    if threads == 1:
        for batch in batches:
            yield _decoded(batch, rules)
        return
    failure: InputError | None = None
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Outcome]] = deque()
        try:
            while failure is None:
                try:
                    waiting.append(pool.submit(_decoded, next(batches), rules))
                except StopIteration:
                    break
                except InputError as error:  # what was read before it comes first
                    failure = error
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise failure


def _decoded(read: _Read, rules: _Rules) -> _Outcome:
    batch = read.batch
    counts = PrepareReport(read=batch.lines)
    fields = Fields(batch.path, batch.first_line, batch.text)
    rows = np.arange(len(fields.numbers))
    if rules.protocol == "public":
        nulls = fields.with_null()
        rows = rows[~nulls]
        counts.drop("holds a null", int(nulls.sum()))
        ids = _list_ids(batch, fields.numbers[rows] - batch.first_line)
        drawn = np.array([_drawn(list_id, rules.share, rules.seed) for list_id in ids], dtype=bool)
        counts.drop(f"not in the drawn {100 * rules.share:g} %", int((~drawn).sum()))
        rows = rows[drawn]
    rows, user_ids = fields.user_ids(rows)
    of_split = split_of(user_ids.tolist())
    if len(rules.splits) < len(SPLITS):
        wanted = np.isin(of_split, list(rules.splits))
        rows, user_ids, of_split = rows[wanted], user_ids[wanted], of_split[wanted]
    groups = [of_split == split for split in SPLITS] if rules.by_split else [np.ones(len(rows), dtype=bool)]
    decoded: list[tuple[np.ndarray, Decoded]] = []
    fields.read_clean(len(rows))
    for chosen in map(np.flatnonzero, groups):
        if len(chosen):
            good, lists = fields.decode(rows[chosen])
            decoded.append((chosen[np.isin(rows[chosen], good)], lists))

    rejects = sorted(fields.rejects, key=lambda reject: reject.line)
    if batch.broken is not None:
        reason = f"the gzip file is damaged and ends inside this line ({batch.broken}): fetch it again"
        tail = shortened(batch.tail.decode("ascii", "backslashreplace"))
        last = batch.first_line + batch.lines - 1
        rejects.append(Reject(batch.path, last, None, "cut-off gzip", tail, reason))
    if rejects and rules.on_error == "raise":
        before = _decoded(replace(read, batch=_lines_before(batch, rejects[0].line), ends_group=False), rules)
        return replace(before, rejects=rejects, stops=True)
    for reject in rejects:
        counts.reject(reject.kind)

    tables = []
    for chosen, lists in decoded:
        in_batch = fields.numbers[rows[chosen]] - batch.first_line
        list_ids = np.array(_list_ids(batch, in_batch), dtype=object)
        if read.truth is not None:
            truth, truth_rows = read.truth
            lists.join_truth(truth_rows.take(pa.array(in_batch)), truth, list_ids)
        lists.cut(rules.max_list_length, counts)
        lists.per_list |= {"list_id": list_ids, "user_id": user_ids[chosen], "split": of_split[chosen]}
        if len(chosen):
            tables.append(lists.table(rules.columns))
    return _Outcome(read.source, batch, tables, counts, rejects, False, read.ends_group)


def _lines_before(batch: LineBatch, line: int) -> LineBatch:
    """The lines of a batch before one of its lines."""
    lines = line - batch.first_line
    size = 0
    for _ in range(lines):
        size = batch.text.index(b"\n", size) + 1
    after = batch.before.copy()
    after.update(batch.text[:size])
    return replace(
        batch,
        lines=lines,
        text=batch.text[:size],
        end=batch.start + size,
        on_disk=batch.on_disk - (batch.end - batch.start - size if not is_gzip(batch.path) else 0),
        after=after,
        broken=None,
        tail=b"",
    )


def _list_ids(batch: LineBatch, lines: Iterable[int]) -> list[str]:
    """The ids of some lines, which count from 0 in the batch: the part of the file, and the number of the line."""
    part = batch.path.removesuffix(".gz").rpartition(".")[2]
    return [f"{part}:{batch.first_line + line}" for line in lines]


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
    on_error: str = "raise",
    progress: bool = True,
    shard_lines: int = SHARD_LINES,
    batch_bytes: int = BATCH_BYTES,
    threads: int | None = None,
) -> PrepareReport:
    """Raw text -> a folder of prepared lists (see ``hf_rerank.data.prepared``), in bounded memory.

    The lists are made in ``output_dir.partial``. If this is stopped, by a damaged line, a full disk, Ctrl-C or a kill,
    the next call with the same options goes on from there, and the folder has the same bytes as if it had never been
    stopped. The text read so far must be the same; it is read again, and compared by its sha256.

    Args:
        raw_dir: Folder of ``set1.train.txt.part*``, plain or ``.gz``; see ``find_files``.
        output_dir: Folder to make; must be new or empty. It appears when it is whole.
        protocol, max_list_length, share, seed, batch_bytes: See ``iter_batches``.
        on_error: What damaged lines do. ``raise``: the lists before the first are kept for the next call, and an error
            names all damaged lines of its batch. ``skip``: they go to ``rejects.jsonl`` in the folder.
        progress: A bar of the bytes read, if it takes longer than a second.
        shard_lines: Lines of text after which the shards of all splits are cut.
        threads: Batches decoded at a time. Default: one for each processor, at most 4.

    Returns:
        What became of the lines.

    Raises:
        DamagedText: Damaged lines.
        InputError: No raw files, raw files that changed since the call that is gone on with, or change meanwhile,
            other options than that one's, an output folder that is not empty, or that another process is writing.
    """
    started = time.monotonic()
    _refuse_forked_process()
    if shard_lines < 1:
        raise InputError(f"shard_lines is {shard_lines}: expected at least 1")
    files = find_files(raw_dir)
    before = {path: fingerprint(path) for path in files}
    truth = read_truth_header(files)
    rules = _Rules(protocol, max_list_length, share, seed, on_error, truth, by_split=True)
    schema = prm_public_schema(max_list_length, truth.position, truth.examination, truth.attraction, truth.history)
    options = {
        "protocol": protocol,
        "max_list_length": max_list_length,
        "share": share,
        "seed": seed,
        "shard_lines": shard_lines,
        "files": [path.name for path in files],
        "truth": [sha256_of(truth_file(path)) for path in files if truth.position],
        # Other versions may write other bytes.
        "versions": {"hf_rerank": hf_rerank.__version__, "pyarrow": pa.__version__},
    }
    with unfinished_folder(output_dir, options) as unfinished:
        if unfinished.done:
            assert unfinished.progress is not None
            return PrepareReport(**unfinished.progress["report"])
        state = State.load(unfinished.progress)
        if state.report.rejected and on_error == "raise":
            raise InputError(
                f"{unfinished.partial} was begun with on_error='skip', and has rejected lines: use it again, or "
                f"remove {unfinished.partial} to begin anew"
            )
        total = sum(size for size, _ in before.values())
        bar = functools.partial(tqdm, unit="B", unit_scale=True, delay=1, disable=not progress)
        ranges = find_ranges(files, 2**62)
        read_before = sum(place.on_disk for place in state.places)
        with bar(total=read_before, desc="Checking what was read before", leave=False) as checking:
            begun = state.take_up(ranges, batch_bytes, unfinished.partial, on_error, checking.update)
        threads = min(MAX_THREADS, _processors()) if threads is None else threads
        batches = _read(ranges, batch_bytes, rules, begun=begun, group_lines=shard_lines, in_group=state.in_group)
        outcomes = _outcomes(batches, rules, threads)
        with bar(total=total, initial=read_before, desc="Preparing") as reading, contextlib.closing(outcomes):
            try:
                _write(outcomes, unfinished, state, rules.columns, reading.update)
            except CannotWrite as error:
                left = (total - sum(place.on_disk for place in state.places)) * LISTS_SHARE
                raise CannotWrite(f"{error}; about {left / 1e9:.1f} GB are still to be written") from None
        for path in files:
            if fingerprint(path) != before[path]:
                raise InputError(f"{path} changed while it was read: run again when it is complete")
        card = card_of(files, protocol, share, seed, schema, state.report)
        unfinished.finish(rules.columns, lambda folder: write_description(folder, schema, state.report, card))
    state.report.seconds = time.monotonic() - started
    return state.report


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(
    outcomes: Iterator[_Outcome],
    unfinished: Unfinished,
    state: State,
    columns: pa.Schema,
    on_bytes: Callable[[int], object],
) -> None:
    """Writes lists into shards, and saves the state after each group of them."""
    group = unfinished.group(columns)
    finished = False
    try:
        for outcome in outcomes:
            for lists in outcome.tables:
                split = lists.column("split")[0].as_py()
                state.report.keep(split, lists, "click")
                group.write(split, lists)
            on_bytes(state.advance(outcome.source, outcome.batch, outcome.counts))
            if outcome.stops:
                advice = "; mend what is named and run again, or leave such lines out with --on-error skip"
                if state.report.read:
                    unfinished.save(group, state.to_dict(), whole=False)
                    advice += f" (on_error='skip'); all before is kept in {unfinished.partial}, and gone on with"
                raise DamagedText(outcome.rejects, advice)
            if outcome.rejects:
                unfinished.reject([reject.to_json() for reject in outcome.rejects])
            if outcome.ends_group:
                state.in_group = 0
                unfinished.save(group, state.to_dict(), whole=True)
                group = unfinished.group(columns)
        if state.in_group:
            state.in_group = 0
            unfinished.save(group, state.to_dict(), whole=True)
        finished = True
    finally:
        if not finished:
            group.abandon()
