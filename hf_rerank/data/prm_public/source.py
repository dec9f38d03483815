"""PRM Public (Alibaba; Pei et al. 2019): from the raw text to lists, one list per line.

Lines are read in pieces (``text``), their fields are found and decoded (``fields``), and flat columns become a table
(``decoded``). ``prepare_prm_public`` writes a folder of prepared lists; ``iter_batches`` yields the lists directly.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_rerank.data.prepared import SHARD_BYTES, write_description, write_lists
from hf_rerank.data.prepared.writer import ON_ERROR
from hf_rerank.data.prm_public.card import make_card
from hf_rerank.data.prm_public.columns import MAX_LIST_LENGTH, find_files, prm_public_columns, prm_public_schema
from hf_rerank.data.prm_public.fields import Fields
from hf_rerank.data.prm_public.line_format import shorten
from hf_rerank.data.prm_public.text import PIECE_BYTES, Piece, TextRange, cut_text, make_range
from hf_rerank.data.prm_public.truth import Truth, TruthHeader, read_truth_header, truth_file
from hf_rerank.data.report import PrepareReport, RejectedLine, RejectedLines
from hf_rerank.data.source import Rejects, Unit, split_table
from hf_rerank.data.splits import SPLITS, assign_splits
from hf_rerank.errors import InputError, suggestion
from hf_rerank.schema import ListSchema
from hf_rerank.storage import InputFiles, digest_content

PROTOCOLS = ("ours", "public")
PUBLIC_SHARE = 0.1


@dataclass(frozen=True)
class Rules:
    """The options of ``iter_batches`` that decide which lists a line yields."""

    protocol: str = "ours"
    max_list_length: int = MAX_LIST_LENGTH
    share: float = PUBLIC_SHARE
    seed: int = 0
    splits: frozenset[str] = frozenset(SPLITS)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            known = " or ".join(PROTOCOLS)
            raise InputError(
                f"unknown protocol {self.protocol!r}: expected {known}{suggestion(self.protocol, PROTOCOLS)}"
            )
        if not 0 < self.share <= 1 or self.max_list_length < 1:
            raise InputError(
                f"share is {self.share} and max_list_length {self.max_list_length}: expected 0 < share <= 1, at least "
                "1 item"
            )


@dataclass(frozen=True)
class TextUnit(Unit):
    """A piece of text, and the ground truth of its lines, if there is any."""

    piece: Piece
    truth: tuple[Truth, pa.Table] | None


@dataclass
class PRMPublicSource:
    """The raw files of a folder as a ``ListSource``; arguments as for ``prepare_prm_public``."""

    raw_dir: str | Path
    rules: Rules
    piece_bytes: int = PIECE_BYTES
    size_unit: str = "B"

    def __post_init__(self) -> None:
        self.files = find_files(self.raw_dir)
        sides = [side for path in self.files if (side := truth_file(path)).is_file()]
        self.inputs = InputFiles([*self.files, *sides])
        self.truth = read_truth_header(self.files)
        self.columns = make_columns(self.truth)
        self.schema = make_schema(self.truth, self.rules.max_list_length)
        self.size = sum(path.stat().st_size for path in self.files)
        self.options: dict[str, Any] = {
            "protocol": self.rules.protocol,
            "max_list_length": self.rules.max_list_length,
            "share": self.rules.share,
            "seed": self.rules.seed,
            "piece_bytes": self.piece_bytes,
            "files": [path.name for path in self.files],
            "truth": [digest_content(path) for path in (sides if self.truth.position else [])],
        }

    def units(self, parts: Path) -> Iterator[TextUnit]:
        return make_units([make_range(path) for path in self.files], self.truth, self.piece_bytes)

    def facts(self) -> None:
        refuse_forked_process()

    def read(self, unit: TextUnit, facts: None) -> tuple[dict[str, pa.Table], Rejects]:
        table, _, rejects = read_unit(unit, self.rules, self.columns, by_split=True)
        return split_table(table, table.column("split").to_numpy()), rejects

    def describe(self, folder: Path, facts: None, report: PrepareReport) -> None:
        rules = self.rules
        card = make_card(self.files, rules.protocol, rules.share, rules.seed, self.schema, report)
        write_description(folder, self.schema, report, card)


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
    shard_bytes: int = SHARD_BYTES,
    piece_bytes: int = PIECE_BYTES,
    threads: int | None = None,
) -> PrepareReport:
    """Writes the lists of raw text into a folder of prepared lists, in bounded memory.

    Args:
        raw_dir: Folder of ``set1.train.txt.part*``, plain or ``.gz``; see ``find_files``.
        output_dir: Folder to create; must be new or empty. It appears when it is complete.
        protocol, max_list_length, share, seed, piece_bytes: See ``iter_batches``.
        on_error, progress, shard_bytes, threads: See ``write_lists``.

    Returns:
        The counts of lines and lists.

    Raises:
        RejectedLines: Damaged lines.
        InputError: No raw files; or see ``write_lists``.
    """
    source = PRMPublicSource(raw_dir, Rules(protocol, max_list_length, share, seed), piece_bytes)
    return write_lists(
        source, output_dir, on_error=on_error, threads=threads, progress=progress, shard_bytes=shard_bytes
    )


def iter_batches(
    sources: Sequence[str | Path | TextRange],
    *,
    protocol: str = "ours",
    max_list_length: int = MAX_LIST_LENGTH,
    splits: Collection[str] = SPLITS,
    share: float = PUBLIC_SHARE,
    seed: int = 0,
    piece_bytes: int = PIECE_BYTES,
    on_error: str = "raise",
    on_reject: Callable[[RejectedLine], object] | None = None,
    report: PrepareReport | None = None,
) -> Iterator[pa.Table]:
    """Yields lists directly from the raw text, in the order of the lines, in bounded memory.

    Args:
        sources: Raw files, or ranges of them (``find_ranges``). The ground truth of simulated lists is joined.
        protocol: ``ours`` (default): every line; a null is a missing value. ``public``: lines with a null are dropped,
            and a share ``share`` of the others is drawn, by a hash of seed and list id. Dropped lines are not checked
            any further.
        max_list_length: Longer lists are cut to their first items in the initial order. Default 30.
        splits: The splits to yield; lines of other splits are not decoded.
        share: Share of lines under the public protocol, above 0 and at most 1. Default 0.1.
        seed: Seed of the draw under the public protocol.
        piece_bytes: Bytes of text that are decoded at a time; memory is a small multiple of it.
        on_error: How damaged lines are treated. ``raise`` (default): yield the lists before the first one, then raise
            an error that names it and all other damaged lines of its piece. ``skip``: leave them out, and count them
            by kind in ``report.rejected``.
        on_reject: With ``skip``: called with each damaged line, in order.
        report: Receives the counts (``read``, ``dropped``, ``rejected``, ``cut_lists``, ``lost_clicks``).

    Yields:
        Tables with the columns ``prm_public_columns`` and at least one list.

    Raises:
        RejectedLines: Damaged lines: names file, line, field and text.
        InputError: An unknown protocol, or a process forked from one that has read raw text.
    """
    refuse_forked_process()
    if on_error not in ON_ERROR:
        raise InputError(f"unknown on_error {on_error!r}: expected raise or skip{suggestion(on_error, ON_ERROR)}")
    report = PrepareReport() if report is None else report
    rules = Rules(protocol, max_list_length, share, seed, frozenset(splits))
    ranges = [source if isinstance(source, TextRange) else make_range(source) for source in sources]
    truth = read_truth_header([source.path for source in ranges]) if ranges else TruthHeader()
    for unit in make_units(ranges, truth, piece_bytes):
        table, lines, rejects = read_unit(unit, rules, make_columns(truth))
        stopped = rejects.lines if on_error == "raise" else []
        if stopped:
            table = table.slice(0, int(np.searchsorted(lines, stopped[0].line)))
            report.read += stopped[0].line - unit.piece.first_line
        else:
            report.add(rejects.report)
            for line in rejects.lines:
                report.reject(line.kind)
                if on_reject is not None:
                    on_reject(line)
        if table.num_rows:
            yield table
        if stopped:
            raise RejectedLines(stopped)


def make_schema(truth: TruthHeader, max_list_length: int) -> ListSchema:
    """The schema of lists with this ground truth."""
    return prm_public_schema(max_list_length, truth.position, truth.examination, truth.attraction, truth.history)


def make_columns(truth: TruthHeader) -> pa.Schema:
    """The columns of lists with this ground truth."""
    return prm_public_columns(truth.position, truth.attraction, truth.history)


_process_of_polars: int | None = None


def refuse_forked_process() -> None:
    """Refuses a forked process: the threads of Polars do not survive a fork, and a data-loader worker would wait
    forever."""
    global _process_of_polars
    _process_of_polars = os.getpid() if _process_of_polars is None else _process_of_polars
    if _process_of_polars != os.getpid():
        raise InputError(
            "raw text cannot be read in a process forked from one that has read raw text: start data-loader workers "
            "with multiprocessing_context='spawn', or prepare the lists and load the prepared folder"
        )


def make_units(ranges: Iterable[TextRange], header: TruthHeader, piece_bytes: int) -> Iterator[TextUnit]:
    """Yields the units of some ranges of text, in order."""
    for source in ranges:
        truth = Truth(source.path) if header.position else None
        piece: Piece | None = None
        for piece in cut_text(source, piece_bytes):
            rows = None
            if truth is not None:
                rows = truth, truth.read_lines(piece.first_line, make_list_ids(piece, range(piece.lines)))
            name = f"{Path(source.path).name}, line {piece.first_line}"
            yield TextUnit(name, piece.digest, piece.on_disk, piece, rows)
        to_the_end = source.end is None or source.end == Path(source.path).stat().st_size
        if truth is not None and piece is not None and to_the_end and piece.broken is None:
            truth.check_end(piece.first_line + piece.lines - 1)


def read_unit(
    unit: TextUnit, rules: Rules, columns: pa.Schema, *, by_split: bool = False
) -> tuple[pa.Table, np.ndarray, Rejects]:
    """Reads the lists of a piece of text.

    Args:
        unit: The piece.
        rules: The options.
        columns: The columns of the lists.
        by_split: Sort the lists by split; False: lists are in the order of the lines.

    Returns:
        The lists, the line number of each, and the rejected lines.
    """
    piece, counts = unit.piece, PrepareReport(read=unit.piece.lines)
    fields = Fields(piece.path, piece.first_line, piece.text)
    rows = np.arange(len(fields.numbers))
    if rules.protocol == "public":
        nulls = fields.find_nulls()
        rows = rows[~nulls]
        counts.drop("holds a null", int(nulls.sum()))
        ids = make_list_ids(piece, fields.numbers[rows] - piece.first_line)
        drawn = np.array([_is_drawn(list_id, rules.share, rules.seed) for list_id in ids], dtype=bool)
        counts.drop(f"not in the drawn {100 * rules.share:g} %", int((~drawn).sum()))
        rows = rows[drawn]
    rows, user_ids = fields.read_user_ids(rows)
    of_split = assign_splits(user_ids.tolist())
    if len(rules.splits) < len(SPLITS) or by_split:
        chosen = np.concatenate([np.flatnonzero(of_split == split) for split in SPLITS if split in rules.splits])
        chosen = chosen if by_split else np.sort(chosen)
        rows, user_ids, of_split = rows[chosen], user_ids[chosen], of_split[chosen]
    if not len(rows):
        return columns.empty_table(), rows, Rejects(counts, _collect_rejected(fields, piece))
    fields.read_clean(len(rows))
    good, lists = fields.decode(rows)
    if len(good) < len(rows):
        kept = np.isin(rows, good)
        user_ids, of_split = user_ids[kept], of_split[kept]
    in_piece = fields.numbers[good] - piece.first_line
    of_list = np.array(make_list_ids(piece, in_piece), dtype=object)
    if unit.truth is not None:
        truth, truth_rows = unit.truth
        lists.join_truth(truth_rows.take(pa.array(in_piece)), truth, of_list)
    lists.cut(rules.max_list_length, counts)
    lists.per_list |= {"list_id": of_list, "user_id": user_ids, "split": of_split}

    return lists.to_table(columns), fields.numbers[good], Rejects(counts, _collect_rejected(fields, piece))


def _collect_rejected(fields: Fields, piece: Piece) -> list[RejectedLine]:
    """The damaged lines of a piece, in order."""
    rejected = sorted(fields.rejects, key=lambda reject: reject.line)
    if piece.broken is not None:
        reason = f"the gzip file is damaged and ends inside this line ({piece.broken}): fetch it again"
        tail = shorten(piece.tail.decode("ascii", "backslashreplace"))
        last = piece.first_line + piece.lines - 1
        rejected.append(RejectedLine(piece.path, last, None, "cut-off gzip", reason, tail))
    return rejected


def make_list_ids(piece: Piece, lines: Iterable[int]) -> list[str]:
    """The list ids of some lines, given by their index in the piece: the part of the file, and the line number."""
    part = piece.path.removesuffix(".gz").rpartition(".")[2]
    return [f"{part}:{piece.first_line + line}" for line in lines]


def _is_drawn(list_id: str, share: float, seed: int) -> bool:
    digest = hashlib.md5(f"{seed}:{list_id}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32
