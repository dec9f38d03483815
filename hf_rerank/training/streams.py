"""Streams of raw lists in a reproducible order, so that a position in the stream is a number of lists.

The order is a function of the seed, the pass and the shards. Each pass reads the shards in a new order, and shuffles
the lists within a window. It depends neither on the data loader's workers nor on the number of training processes:
each of them reads all shards, and encodes the windows that contain lists of its batches.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hf_rerank.errors import InputError
from hf_rerank.processing.collator import RerankCollator
from hf_rerank.processing.ragged import RaggedLists, concatenate
from hf_rerank.training.encoded_lists import collate

STREAM_BATCH = 1_024
# Streams whose shards, read separately, give other lists than the stream, such as the first lists of each shard.
_WHOLE = ("Take", "Skip", "Step", "Cycling", "Repeat", "HorizontallyConcatenated")


class StreamedList(NamedTuple):
    """A list of a window, by its row; whole batches of them are encoded at once, by ``collate_stream``."""

    window: _Window | None  # None: before the list at which a run resumes
    row: int  # -1: fills up the last batch of several processes


class EncodedStream(IterableDataset):
    """A ``datasets`` IterableDataset of raw lists, for a data loader with ``collate_stream``.

    Args:
        lists: The stream. If it was shuffled before, it must have been with a seed. A stream of several shards that
            was cut, interleaved or repeated (``take``, ``skip``, ``interleave_datasets``) is read as one shard;
            otherwise row numbers (``with_indices``) count within a shard.
        collator: Encodes its lists.
        seed: Seed of the order. None: the order of the stream.
        window: Number of lists that are shuffled together, and held in memory.
        endless: Whether to read pass after pass, with batches that span the end of one and the beginning of the next;
            each pass gives each list once. False: one pass.
        batch_size: Number of lists in a batch of one process.
        processes: Number of processes; each takes its part of ``batch_size * processes`` lists. The end of a stream
            that is not endless is filled up to a multiple of these, with lists without items.
    """

    def __init__(
        self,
        lists: Any,
        collator: RerankCollator,
        *,
        seed: int | None = None,
        window: int = 10_000,
        endless: bool = False,
        batch_size: int = 1,
        processes: int = 1,
    ) -> None:
        self.lists = lists.with_format("arrow")
        self.shards = 1 if _must_read_as_one(lists.state_dict()) else lists.num_shards
        self.seed, self.window, self.endless = seed, window if seed is not None else STREAM_BATCH, endless
        self.step, self.processes = batch_size * processes, processes
        self.skipped = 0
        self._collator = collator
        # In shared memory, since workers count the lists.
        self._lists_per_pass = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def lists_per_pass(self) -> int:
        """Number of lists of the stream; 0 until its last lists have been yielded."""
        return int(self._lists_per_pass)

    def skip_to(self, skipped: int, lists_per_pass: int = 0) -> None:
        """Skips the first lists, a whole number of steps: placeholders are given instead.

        Args:
            skipped: Number of lists to skip.
            lists_per_pass: Number of lists of the stream, if known: whole passes are then skipped without reading.
        """
        self.skipped = skipped
        self._lists_per_pass.fill_(lists_per_pass)

    def __iter__(self) -> Iterator[StreamedList]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker is not None:
            _end_with_parent()
        taken = 0
        for window, rows in self._iterate_windows():
            for row in rows:
                # Batches go to the workers in turn, as the data loader requests them.
                if taken // self.step % workers == number:
                    yield StreamedList(window if taken >= self.skipped else None, row)
                taken += 1
        while not self.endless and self.processes > 1 and taken % self.step:
            if taken // self.step % workers == number:
                yield StreamedList(window, -1)
            taken += 1

    def _iterate_windows(self) -> Iterator[tuple[_Window | None, Any]]:
        """Yields windows, and their rows in reading order."""
        known = self.lists_per_pass
        begun = self.skipped // known if known else 0
        for _ in range(begun):
            yield None, range(known)
        while True:
            count = 0
            draw = None if self.seed is None else np.random.default_rng([self.seed, begun])
            windows = self._read_windows(begun, draw)
            window = next(windows, None)
            if window is None:
                what = "train" if self.endless else "evaluate"
                raise InputError(f"the stream to {what} on has no lists: expected at least one")
            while window is not None:
                following = next(windows, None)
                count += len(window)
                if following is None:
                    # Before the last lists are yielded, so that their reader knows that they are the last.
                    self._record_length(count)
                yield window, range(len(window)) if draw is None else draw.permutation(len(window)).tolist()
                window = following
            begun += 1
            if not self.endless:
                return

    def _record_length(self, count: int) -> None:
        known = self.lists_per_pass
        if known not in (0, count):
            raise InputError(
                f"the stream gave {count} lists in one pass and {known} in another: its files have changed, or it "
                "draws lists at random; a pass must always give the same lists"
            )
        self._lists_per_pass.fill_(count)

    def _read_windows(self, begun: int, draw: np.random.Generator | None) -> Iterator[_Window]:
        """Reads the lists of one pass in windows, within which they are shuffled."""
        shards = list(range(self.shards))
        # The first window has a new size in each pass, so that other lists share a window.
        room = self.window
        if draw is not None:
            shards, room = draw.permutation(shards).tolist(), int(draw.integers(1, self.window + 1))
        window = _Window(self._collator)
        for shard in shards:
            lists = self.lists if len(shards) == 1 else self.lists.shard(num_shards=len(shards), index=shard)
            lists.set_epoch(begun)  # if it is shuffled itself
            first = 0
            for table in lists.iter(batch_size=STREAM_BATCH):
                while table.num_rows:
                    part = table.slice(0, room)
                    window.add(shard, first, part)
                    table, first, room = table.slice(part.num_rows), first + part.num_rows, room - part.num_rows
                    if not room:
                        yield window
                        window, room = _Window(self._collator), self.window
        if len(window):
            yield window


class _Window:
    """Lists that are shuffled together; encoded when the first of them is read."""

    def __init__(self, collator: RerankCollator) -> None:
        self._collator = collator
        self._parts: list[tuple[int, int, pa.Table]] = []
        self._count = 0
        self._encoded: RaggedLists | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, shard: int, first: int, part: pa.Table) -> None:
        """Adds lists, which are numbered from ``first`` in their shard."""
        self._parts.append((shard, first, part))
        self._count += part.num_rows

    def take(self, rows: list[int]) -> RaggedLists:
        """Takes some of the lists; those of row -1, at the end, have no items."""
        if self._encoded is None:
            self._encoded, self._parts = concatenate([self._encode(*part) for part in self._parts]), []
        lists = self._encoded.take([row for row in rows if row >= 0])
        filling = sum(row < 0 for row in rows)
        return concatenate([lists, self._encoded.make_empty(filling)]) if filling else lists

    def _encode(self, shard: int, first: int, part: pa.Table) -> RaggedLists:
        ids = [f"{shard}-{number}" for number in range(first, first + part.num_rows)]
        try:
            return self._collator.encode(part, first, ids)
        except InputError as error:
            raise InputError(f"{error} (shard {shard} of the stream)") from None


@functools.cache  # once per process
def _end_with_parent() -> None:
    """Ends this data-loader worker when the training process is killed: a full queue may block it indefinitely."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _must_read_as_one(state: Any) -> bool:
    """Whether the stream with this state differs from the union of its shards."""
    if isinstance(state, dict):
        return any(word in str(state.get("type")) for word in _WHOLE) or any(map(_must_read_as_one, state.values()))
    return isinstance(state, list) and any(map(_must_read_as_one, state))


def collate_stream(lists: RaggedLists | list[Any]) -> dict[str, Tensor]:
    """Collates lists of a stream or a map-style dataset; placeholders give an empty dictionary."""
    if isinstance(lists, RaggedLists) or isinstance(lists[0], RaggedLists):
        return collate(lists)
    parts: list[tuple[_Window, list[int]]] = []
    for window, row in lists:
        if window is None:
            return {}
        if not parts or parts[-1][0] is not window:
            parts.append((window, []))
        parts[-1][1].append(row)
    return collate([window.take(rows) for window, rows in parts])
