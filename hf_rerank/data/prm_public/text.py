"""PRM Public's raw files as pieces of whole lines, in bounded memory: plain or gzip, with a digest of each piece.

This module handles bytes only; the format of a line is in ``hf_rerank.data.prm_public.line_format``.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hf_rerank.data.prm_public.line_format import MAX_LINE_BYTES
from hf_rerank.errors import InputError

RANGE_BYTES = 256 * 2**20
# Larger pieces exceed the processor's cache: 32 MiB were a quarter slower.
PIECE_BYTES = 8 * 2**20
# A line of this length is too long, even with a byte-order mark.
_LONG_LINE_BYTES = MAX_LINE_BYTES + 4


@dataclass(frozen=True)
class TextRange:
    """Whole lines of a raw file: bytes ``start`` to ``end``, the first of them line ``first_line`` (from 1).

    A gzip file is one range, whose ``end`` is unknown.
    """

    path: str
    start: int
    end: int | None
    first_line: int


@dataclass(frozen=True)
class Piece:
    """Successive whole lines. The last line of a file may lack its line end.

    Attributes:
        path: The raw file.
        first_line: Number of the first line, from 1.
        lines: Number of lines.
        text: The lines. Of a line that is far too long, only the beginning, with a line end.
        digest: Digest of all their bytes.
        on_disk: Number of bytes that they take in the file.
        broken: Why a damaged gzip file cannot be read any further; None if it is not damaged.
        tail: The beginning of the line in which a damaged gzip file ends. Included in ``lines``, even if it is empty.
    """

    path: str
    first_line: int
    lines: int
    text: bytes
    digest: str
    on_disk: int
    broken: str | None = None
    tail: bytes = b""


def is_gzip(path: str | Path) -> bool:
    return str(path).endswith(".gz")


def make_range(path: str | Path) -> TextRange:
    """The range of a whole file."""
    return TextRange(str(path), 0, None if is_gzip(path) else Path(path).stat().st_size, 1)


def find_ranges(files: Sequence[Path], range_bytes: int = RANGE_BYTES) -> list[TextRange]:
    """Divides files into ranges of whole lines, for several readers; a file of several ranges is read once for
    this."""
    ranges = []
    for path in files:
        if is_gzip(path) or path.stat().st_size <= range_bytes:
            ranges.append(make_range(path))
            continue
        size = path.stat().st_size
        start, first_line = 0, 1
        with path.open("rb") as file:
            while start < size:
                end, lines = start, 0
                while end < size and end - start < range_bytes:
                    block = file.read(min(range_bytes - (end - start), 2**24))
                    end, lines = end + len(block), lines + block.count(b"\n")
                rest = b""
                while end < size and not rest.endswith(
                    b"\n"
                ):  # to the end of the line, which may be larger than memory
                    rest = file.readline(2**24)
                    end, lines = end + len(rest), lines + rest.count(b"\n")
                ranges.append(TextRange(str(path), start, end, first_line))
                start, first_line = end, first_line + lines
    return ranges


def cut_text(source: TextRange, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yields the pieces of a range, reading it once.

    Args:
        source: The range to read.
        piece_bytes: Bytes of text at a time; a piece holds at least one line.

    Raises:
        InputError: The range is empty, or the file became shorter than the range.
    """
    with contextlib.closing(_Reader(source)) as reader:
        line, waiting = source.first_line, b""
        while waiting or not reader.ended:
            before = reader.on_disk - (0 if reader.packed else len(waiting))
            text = waiting + reader.read(piece_bytes)
            while b"\n" not in text and not reader.ended and len(text) < _LONG_LINE_BYTES:
                text += reader.read(max(piece_bytes, len(text)))
            end = text.rfind(b"\n") + 1
            tail, waiting, broken = b"", b"", None
            if not reader.ended and end:
                waiting, text = text[end:], text[:end]
            digest = xxhash.xxh3_128(text)
            if not end and len(text) >= _LONG_LINE_BYTES:
                waiting = _skip_to_line_end(reader, piece_bytes, digest)
                text = text[:_LONG_LINE_BYTES] + b"\n"
                if reader.broken and not waiting:
                    broken, tail, text = reader.broken, text[:-1], b""
            elif waiting:
                pass
            elif reader.broken:
                broken, tail, text = reader.broken, text[end:][:_LONG_LINE_BYTES], text[:end]
            elif not text:
                break
            lines = _count_line_ends(text) + (not text.endswith(b"\n") and bool(text)) + (broken is not None)
            on_disk = reader.on_disk - (0 if reader.packed else len(waiting)) - before
            yield Piece(source.path, line, lines, text, digest.hexdigest(), on_disk, broken, tail)
            line += lines
            if broken:
                break
        if line == source.first_line:
            raise InputError(f"{source.path} is empty: expected one list per line; fetch it again")


def _count_line_ends(text: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n")))  # faster than bytes.count


def _skip_to_line_end(reader: _Reader, piece_bytes: int, digest: Any) -> bytes:
    """Reads to the end of a line; returns the bytes read after it."""
    while not reader.ended:
        block = reader.read(piece_bytes)
        end = block.find(b"\n") + 1
        digest.update(block[:end] if end else block)
        if end:
            return block[end:]
    return b""


class _Reader:
    """The bytes of a range.

    Attributes:
        packed: Whether the file is a gzip file.
        ended: Whether all bytes have been read.
        broken: Why a damaged gzip file cannot be read any further; empty if it is not damaged.
    """

    def __init__(self, source: TextRange) -> None:
        self.path, self.packed = source.path, is_gzip(source.path)
        self._raw = open(source.path, "rb")  # noqa: SIM115 - closed by close()
        self._file: Any = gzip.GzipFile(fileobj=self._raw) if self.packed else self._raw
        self._file.seek(source.start)
        self._left = None if source.end is None else source.end - source.start
        self.ended, self.broken = self._left == 0, ""

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    @property
    def on_disk(self) -> int:
        """Bytes of the file that have been read so far."""
        return self._raw.tell()

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, fewer only at the end."""
        if self._left is not None:
            size = min(size, self._left)
        block = self._unpack(size) if self.packed else self._file.read(size)
        if self._left is not None:
            if size and not block:
                raise InputError(f"{self.path} became shorter while it was read: run again when it is complete")
            self._left -= len(block)
        self.ended = len(block) < size or self._left == 0
        return block

    def _unpack(self, size: int) -> bytes:
        """At most ``size`` unpacked bytes; from a damaged gzip file, all that can be unpacked."""
        parts, missing = [], size
        while missing:
            try:
                part = self._file.read1(missing)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self.broken = str(error).rstrip(".")
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
