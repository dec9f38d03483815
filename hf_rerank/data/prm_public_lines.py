"""PRM Public's raw files as batches of whole lines, in bounded memory: plain or gzip, with a digest of what was read.

Only bytes here: what a line must look like is known by ``hf_rerank.data.prm_public_text``.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hf_rerank.data.prm_public_text import MAX_LINE_BYTES, find_letter
from hf_rerank.errors import InputError

RANGE_BYTES = 256 * 2**20
# With a byte-order mark, a line of this length is too long, too.
_LONG_LINE_BYTES = MAX_LINE_BYTES + 4


@dataclass(frozen=True)
class TextRange:
    """Whole lines of a raw file: bytes ``start`` to ``end``, the first of them line ``first_line`` (from 1).

    A gzip file is one range, whose ``end`` is not known.
    """

    path: str
    start: int
    end: int | None
    first_line: int


def is_gzip(path: str | Path) -> bool:
    return str(path).endswith(".gz")


def find_ranges(files: Sequence[Path], range_bytes: int = RANGE_BYTES) -> list[TextRange]:
    """Cuts files into ranges of whole lines, for several readers; a file of several ranges is read through once."""
    ranges = []
    for path in files:
        if is_gzip(path):
            ranges.append(TextRange(str(path), 0, None, 1))
            continue
        size = path.stat().st_size
        start, first_line, lines = 0, 1, 0
        with path.open("rb") as file:
            while size - start > range_bytes:
                file.seek(start)
                end, lines = start, 0
                while end < size and end - start < range_bytes:
                    block = file.read(min(range_bytes - (end - start), 2**24))
                    end, lines = end + len(block), lines + block.count(b"\n")
                while True:  # to the end of the line; a line may be longer than memory
                    rest = file.readline(2**24)
                    end, lines = end + len(rest), lines + rest.count(b"\n")
                    if not rest or rest.endswith(b"\n"):
                        break
                ranges.append(TextRange(str(path), start, end, first_line))
                start, first_line = end, first_line + lines
        if start < size or size == 0:
            ranges.append(TextRange(str(path), start, size, first_line))
    return ranges


@dataclass(frozen=True)
class LineBatch:
    """Whole lines that follow one another. The last line of a file may lack its line end.

    Attributes:
        path: The raw file.
        first_line: Number of the first line, from 1.
        lines: How many.
        text: The lines. Of a line that is far too long only the beginning, with a line end.
        start, end: Their place in the text, in bytes; of a gzip file, in the text that it holds.
        on_disk: Bytes of the file taken so far.
        before, after: sha256 of the text up to ``start``, and up to ``end``.
        broken: Why the file cannot be read on, of a damaged gzip file; the lines are followed by ``tail``.
        tail: The beginning of the line in which a damaged gzip file breaks off. It counts in ``lines``, even if the
            file breaks off at its very beginning.
    """

    path: str
    first_line: int
    lines: int
    text: bytes
    start: int
    end: int
    on_disk: int
    before: Any
    after: Any
    broken: str | None = None
    tail: bytes = b""


class LineReader:
    """Reads a range of a raw file, batch by batch.

    Args:
        source: What to read.
        batch_bytes: Bytes read at a time.
        past_long_lines: Whether a line that is too long is read to its end, to go on behind it; else it is the last.
    """

    def __init__(self, source: TextRange, batch_bytes: int, *, past_long_lines: bool) -> None:
        self.source, self.batch_bytes, self.past_long_lines = source, batch_bytes, past_long_lines
        self.raw = open(source.path, "rb")  # noqa: SIM115 - closed by close()
        self.file: IO[bytes] = gzip.GzipFile(fileobj=self.raw) if is_gzip(source.path) else self.raw  # type: ignore[assignment]
        self.file.seek(source.start)
        self.offset, self.line = source.start, source.first_line
        self.left = None if source.end is None else source.end - source.start
        self.waiting = b""  # read, but not handed over
        self.ended, self.broken = False, ""
        self.digest = hashlib.sha256()

    def close(self) -> None:
        self.file.close()
        self.raw.close()

    @property
    def on_disk(self) -> int:
        """Bytes of the file taken so far."""
        return self.raw.tell() if self.file is not self.raw else self.offset

    def skip(self, size: int, sha256: str, line: int, on_bytes: Callable[[int], object]) -> bool:
        """Goes to byte ``size`` of the text, where line ``line`` begins.

        Returns:
            Whether the text before it is the one whose digest is ``sha256``, and ends with a line.
        """
        block = b"\n"
        while self.offset < size:
            before = self.on_disk
            block = self._read(min(2**20, size - self.offset))
            if not block:
                return False
            self.digest.update(block)
            self.offset += len(block)
            on_bytes(self.on_disk - before)
        self.waiting, self.line = self._read(1), line
        whole = block.endswith(b"\n") or not self.waiting
        return whole and self.digest.hexdigest() == sha256

    def next(self, max_lines: int) -> LineBatch | None:
        """At most ``max_lines`` lines; None where there are no more."""
        text, size = self.waiting, self.batch_bytes
        while (whole := text.rfind(b"\n") + 1) == 0 and not self.ended and len(text) < _LONG_LINE_BYTES:
            text += self._read(size)
            size = max(self.batch_bytes, len(text))
        if not text and not self.broken:
            return None
        before = self.digest.copy()
        if not whole and len(text) >= _LONG_LINE_BYTES:
            return self._long_line(text, before)
        tail = b""
        if not whole or self.ended:
            whole = len(text)
            if self.broken:
                whole = text.rfind(b"\n") + 1
                tail = text[whole:]
        taken, self.waiting = text[:whole], text[whole:]
        ends = find_letter(taken, "\n") + 1
        lines = len(ends) + (not taken.endswith(b"\n") and bool(taken))
        broken = self.broken or None
        if lines > max_lines or (lines == max_lines and broken):
            cut = int(ends[max_lines - 1])
            taken, self.waiting, lines = text[:cut], text[cut:], max_lines
            tail, broken = b"", None
        elif broken:
            self.waiting, self.broken, lines = b"", "", lines + 1
        return self._batch(taken, taken + tail, lines, before, broken, tail[:_LONG_LINE_BYTES])

    def _long_line(self, text: bytes, before: Any) -> LineBatch:
        head, size = text[:_LONG_LINE_BYTES], len(text)
        self.digest.update(text)
        self.waiting, whole = b"", False
        while self.past_long_lines and not self.ended and not whole:
            block = self._read(self.batch_bytes)
            whole = b"\n" in block
            end = block.find(b"\n") + 1 if whole else len(block)
            self.digest.update(block[:end])
            self.waiting = block[end:]
            size += end
        if self.broken and not whole:  # the file breaks off inside this line
            broken, self.broken = self.broken, ""
            return self._batch(b"", b"", 1, before, broken, head, size)
        self.ended = self.ended or not self.past_long_lines
        return self._batch(head + b"\n", b"", 1, before, None, b"", size)

    def _batch(
        self,
        text: bytes,
        raw: bytes,
        lines: int,
        before: Any,
        broken: str | None,
        tail: bytes,
        size: int | None = None,
    ) -> LineBatch:
        self.digest.update(raw)
        start, line = self.offset, self.line
        self.offset, self.line = start + (len(raw) if size is None else size), line + lines
        after = self.digest.copy()
        path = self.source.path
        return LineBatch(path, line, lines, text, start, self.offset, self.on_disk, before, after, broken, tail)

    def _read(self, size: int) -> bytes:
        """The next bytes; none at the end of the range, and where a gzip file is damaged."""
        if self.left is not None:
            size = min(size, self.left)
        block = self._unpacked(size) if is_gzip(self.source.path) else self.file.read(size)
        if self.left is not None:
            if size and not block:
                raise InputError(f"{self.source.path} became shorter while it was read: run again when it is complete")
            self.left -= len(block)
        # A read that comes back short may still be followed by more; an empty one ends the file, and so does damage.
        self.ended = not block or self.left == 0 or bool(self.broken)
        return block

    def _unpacked(self, size: int) -> bytes:
        """Of a damaged gzip file all that can be unpacked, however much is asked for at a time."""
        parts, missing = [], size
        while missing and not self.broken:
            try:
                part = self.file.read1(missing)  # type: ignore[attr-defined]
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self.broken = str(error).rstrip(".")
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
