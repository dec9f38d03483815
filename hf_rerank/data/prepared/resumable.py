"""A folder of prepared lists that is being written, and can be resumed after a kill.

``OUTPUT.partial`` holds ``begun.json`` (the options of the call), ``parts`` (of sources whose rows are partitioned
first) and ``groups``. A group is a folder with one shard for each split that has lists, made from successive units,
and is renamed into place when it is complete. When all groups are complete, their shards become ``OUTPUT``, again by a
rename. A later call with the same options keeps complete groups, and gives the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_rerank.data.prepared.card import REPORT_FILE
from hf_rerank.data.prepared.shards import ShardWriter
from hf_rerank.data.source import Unit
from hf_rerank.data.splits import SPLITS
from hf_rerank.errors import InputError
from hf_rerank.storage import (
    ensure_name,
    format_json,
    lock_output,
    name_failures,
    read_json,
    refuse_nonempty,
    remove,
    sha256_of_file,
    write_atomically,
    write_json,
)

PARTIAL_SUFFIX = ".partial"
BEGUN_FILE, GROUP_FILE = "begun.json", "group.json"
REJECTS_FILE = "rejects.jsonl"


def partial_folder(folder: str | Path) -> Path:
    """The folder in which ``folder`` is prepared."""
    return Path(folder).with_name(Path(folder).name + PARTIAL_SUFFIX)


def refuse_unfinished(folder: str | Path) -> None:
    """
    Raises:
        InputError: ``folder`` is being prepared, or its preparation was interrupted.
    """
    folder = Path(folder)
    remedy = "prepare it again with the same options, which resumes it"
    if (folder / BEGUN_FILE).exists():
        raise InputError(f"{folder} is not finished: {remedy}")
    if not folder.exists() and (partial_folder(folder) / BEGUN_FILE).exists():
        raise InputError(f"{folder} is not finished, see {partial_folder(folder)}: {remedy}")


@contextmanager
def open_resumable_folder(output: str | Path, options: dict[str, Any]) -> Iterator[ResumableFolder]:
    """Opens the folder being written, exclusively for this process.

    Args:
        output: The folder to create.
        options: Everything that the lists depend on apart from the content of the units; JSON values.

    Raises:
        InputError: ``output`` exists and is not empty, another process is writing it, it was started with other
            options, or a complete shard is damaged.
    """
    with lock_output(output):
        folder = ResumableFolder(ensure_name(output), options)
        try:
            yield folder
        finally:
            if not folder.groups and not folder.parts.exists():  # nothing to resume from
                folder.clean()


class ResumableFolder:
    """The folder that ``open_resumable_folder`` yields.

    Attributes:
        partial: ``OUTPUT.partial``.
        parts: The folder of a source's partitioned rows.
        groups: The records of the complete groups, in order: ``units`` (name and digest of each), ``shards``
            (split -> SHA-256), ``report``.
        finished: Whether ``OUTPUT`` is complete, and only the cleanup was interrupted.
    """

    def __init__(self, output: Path, options: dict[str, Any]) -> None:
        self.output, self.partial = output, partial_folder(output)
        self.parts = self.partial / "parts"
        begun = self.partial / BEGUN_FILE
        if not begun.exists():
            remove(self.partial)
        self.finished = begun.exists() and self._is_copy(REPORT_FILE)
        if not self.finished:
            refuse_nonempty(output)
        if begun.exists():
            self._refuse_other_options(read_json(begun), options)
        else:
            write_json(begun, options)
        self.groups: list[dict[str, Any]] = []
        while (self._find_group(len(self.groups)) / GROUP_FILE).exists():
            self.groups.append(read_json(self._find_group(len(self.groups)) / GROUP_FILE))
        if not self.finished:
            self._verify_shards()

    def skip_units(self, units: Iterator[Unit]) -> Iterator[Unit]:
        """Takes the units of the complete groups from the front of ``units``, and yields them.

        Raises:
            InputError: The units are not the same, or their content has changed.
        """
        for name, digest in [unit for group in self.groups for unit in group["units"]]:
            unit = next(units, None)
            if unit is None or (unit.name, unit.digest) != (name, digest):
                raise InputError(
                    f"{name} has changed since {self.partial} was started: remove {self.partial} to start again"
                )
            yield unit

    @contextmanager
    def add_group(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yields a folder for the shards ``SPLIT.parquet`` of the next group, and its record, to be filled.

        At the end of the block both are synced to the disk and the group is complete.
        """
        record: dict[str, Any] = {}
        with write_atomically(self._find_group(len(self.groups))) as folder:
            with name_failures(folder):
                folder.mkdir()
            yield folder, record
            with name_failures(folder):
                digests = {
                    split: sha256_of_file(folder / f"{split}.parquet")
                    for split in SPLITS
                    if _holds_split(folder, split)
                }
                record["shards"] = digests
                (folder / GROUP_FILE).write_text(format_json(record), encoding="utf-8")
        self.groups.append(record)

    def finish(self, columns: pa.Schema, describe: Callable[[Path], None]) -> None:
        """Makes ``OUTPUT`` from the groups.

        Args:
            columns: The columns of the lists; a split without lists gets one empty shard.
            describe: ``folder -> None``: writes the other files, including ``report.json``.
        """
        groups = [self._find_group(number) for number in range(len(self.groups))]
        with write_atomically(self.output) as lists:
            with name_failures(self.output):
                lists.mkdir()
                for split in SPLITS:
                    shards = [group / f"{split}.parquet" for group in groups if _holds_split(group, split)]
                    for number, shard in enumerate(shards):
                        _link(shard, lists / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")
                    if not shards:
                        ShardWriter(lists / f"{split}-00000-of-00001.parquet", columns).close()
                rejects = b"".join(
                    (part / REJECTS_FILE).read_bytes() for part in (self.parts, *groups) if part.exists()
                )
                if rejects:
                    (lists / REJECTS_FILE).write_bytes(rejects)
            describe(lists)
            shutil.copyfile(lists / REPORT_FILE, self.partial / REPORT_FILE)
        self.clean()

    def clean(self) -> None:
        """Removes ``OUTPUT.partial``."""
        self.groups = []
        remove(self.partial / BEGUN_FILE)
        remove(self.partial)

    def _find_group(self, number: int) -> Path:
        return self.partial / "groups" / f"{number:05d}"

    def _is_copy(self, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return (self.output / name).read_bytes() == (self.partial / name).read_bytes()
        return False

    def _refuse_other_options(self, begun: dict[str, Any], options: dict[str, Any]) -> None:
        for name, value in options.items():
            if begun.get(name) != value:
                raise InputError(
                    f"{self.partial} was started with {name} {begun.get(name)!r}, but now it is {value!r}: use the "
                    f"same, or remove {self.partial} to start again"
                )

    def _verify_shards(self) -> None:
        for number, group in enumerate(self.groups):
            for split, digest in group["shards"].items():
                path = self._find_group(number) / f"{split}.parquet"
                if not path.is_file() or sha256_of_file(path) != digest:
                    raise InputError(
                        f"{path} is missing or not as it was written: remove {self.partial} to start again"
                    )


def _holds_split(folder: Path, split: str) -> bool:
    return (folder / f"{split}.parquet").exists()


def _link(source: Path, target: Path) -> None:
    """Links a file to a second name; copies it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
