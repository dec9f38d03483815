"""How far preparing PRM Public has come: what is saved, so that a later run goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_rerank.data.prm_public_lines import LineBatch, LineReader, TextRange
from hf_rerank.data.report import PrepareReport
from hf_rerank.errors import InputError


@dataclass
class Place:
    """How far a file was read: bytes and lines of its text, the sha256 of that text, bytes of the file itself, and
    whether a damaged gzip file can be read no further."""

    bytes: int = 0
    lines: int = 0
    sha256: str = ""
    on_disk: int = 0
    broken: bool = False


@dataclass
class State:
    """How far preparing has come: a place for each file that was begun, lines in the group under way, the counts."""

    places: list[Place]
    in_group: int
    report: PrepareReport

    @classmethod
    def load(cls, saved: dict[str, Any] | None) -> State:
        if saved is None:
            return cls([], 0, PrepareReport())
        return cls([Place(**place) for place in saved["places"]], saved["in_group"], PrepareReport(**saved["report"]))

    def to_dict(self) -> dict[str, Any]:
        places = [asdict(place) for place in self.places]
        return {"places": places, "in_group": self.in_group, "report": self.report.to_dict()}

    def take_up(
        self,
        ranges: Sequence[TextRange],
        batch_bytes: int,
        partial: Path,
        on_error: str,
        on_bytes: Callable[[int], object],
    ) -> dict[int, LineReader]:
        """Readers of the files begun, which stand where they were left.

        Raises:
            InputError: What was read of a file is not in it any more.
        """
        readers = {}
        for number, place in enumerate(self.places):
            reader = LineReader(ranges[number], batch_bytes, past_long_lines=on_error == "skip")
            same = reader.skip(place.bytes, place.sha256, place.lines + 1, on_bytes)
            ended = number < len(self.places) - 1 or place.broken
            if not same or (ended and reader.waiting):
                reader.close()
                raise InputError(
                    f"{ranges[number].path} has changed since {partial} was begun, within what was read of it: remove "
                    f"{partial} to begin anew"
                )
            reader.broken = "" if place.broken else reader.broken
            readers[number] = reader
        return readers

    def advance(self, source: int, batch: LineBatch, counts: PrepareReport) -> int:
        """Counts the lines of a batch of file ``source``; returns how many bytes of its file they are."""
        while len(self.places) <= source:
            self.places.append(Place())
        before = self.places[source].on_disk
        lines = batch.first_line - 1 + batch.lines
        self.places[source] = Place(batch.end, lines, batch.after.hexdigest(), batch.on_disk, batch.broken is not None)
        self.in_group += batch.lines
        self.report.add(counts)
        return batch.on_disk - before
