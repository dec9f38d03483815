"""A folder of prepared lists in the making, which survives being killed.

Lists become shards in groups: all splits are cut at the same places of the source, whatever happens meanwhile. After
each group the state is saved: where the source was read to, what was counted, which shards are whole. A later run with
the same options goes on from there, and ends with the same bytes as one that was never stopped.

``OUTPUT.partial`` holds ``state.json``, ``pid``, and the folder ``lists``, which becomes ``OUTPUT`` when it is whole;
and ``buckets``, where a source has to be cut into buckets before lists can be made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_rerank.data.splits import SPLITS
from hf_rerank.errors import InputError

PARTIAL_SUFFIX = ".partial"
STATE_FILE = "state.json"
PID_FILE = "pid"
LISTS_FOLDER = "lists"
BUCKETS_FOLDER = "buckets"
REJECTS_FILE = "rejects.jsonl"
# A row group is what a reader holds in memory.
GROUP_LISTS = 4_096


def partial_folder(folder: str | Path) -> Path:
    """Where the folder ``folder`` is made."""
    return Path(folder).with_name(Path(folder).name + PARTIAL_SUFFIX)


def refuse_unfinished(folder: str | Path) -> None:
    """
    Raises:
        InputError: ``folder`` is being prepared, or its preparing was stopped.
    """
    folder = Path(folder)
    for path in (folder, folder.parent):  # OUTPUT.partial, and the lists in it
        if path.name.endswith(PARTIAL_SUFFIX) and ((path / STATE_FILE).exists() or (path / LISTS_FOLDER).exists()):
            raise InputError(
                f"{folder} is not finished: prepare it again with the same options, which goes on with it"
            )
    if not folder.exists() and (partial_folder(folder) / LISTS_FOLDER).exists():
        raise InputError(
            f"{folder} is not finished, see {partial_folder(folder)}: prepare it again with the same options, which "
            "goes on with it"
        )


@contextlib.contextmanager
def unfinished_folder(folder: str | Path, options: dict[str, Any]) -> Iterator[Unfinished]:
    """The folder in the making, for this process alone.

    Args:
        folder: What is made.
        options: Whatever the bytes of the lists depend on, but the sources; plain JSON values.

    Raises:
        InputError: ``folder`` exists and is not empty, another process is writing it, it was begun with other options,
            or a finished shard is damaged.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    partial = partial_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_file = folder.parent / f".{folder.name}.lock"
    try:
        lock = FileLock(lock_file).acquire(timeout=0)
    except Timeout:
        pid = (partial / PID_FILE).read_text().strip() if (partial / PID_FILE).is_file() else "unknown"
        raise InputError(
            f"another process (pid {pid}) is writing {folder}: wait for it, or choose another output folder"
        ) from None
    with lock:
        try:
            yield Unfinished(folder, partial, options)
        finally:
            with contextlib.suppress(OSError):
                (partial / PID_FILE).unlink(missing_ok=True)
                if not (partial / STATE_FILE).exists():  # nothing that a later run could go on with
                    shutil.rmtree(partial, ignore_errors=True)
                lock_file.unlink(missing_ok=True)


class CannotWrite(InputError):
    """The disk is full, or refuses to be written."""


@contextlib.contextmanager
def naming_the_disk(path: Path) -> Iterator[None]:
    """Makes an error of the disk one that names the file and what to do."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"cannot write {error.filename or path}: {error.strerror or error}; free space there and run again, which "
            "goes on from the last whole shard"
        ) from error


class Unfinished:
    """What ``unfinished_folder`` gives.

    Attributes:
        lists: The folder that is to become the prepared one.
        buckets: A folder for what is needed on the way; its files outlive a kill once a state is saved.
        progress: As last saved by ``save``; None at the beginning.
        done: The folder was whole already, and only the cleaning up was missing.
    """

    def __init__(self, folder: Path, partial: Path, options: dict[str, Any]) -> None:
        self.folder, self.partial, self.options = folder, partial, options
        self.lists = partial / LISTS_FOLDER
        self.buckets = partial / BUCKETS_FOLDER
        self.state_file = partial / STATE_FILE
        self.shards: list[dict[str, Any]] = []
        self.open_shards: list[dict[str, Any]] = []
        self.rejects_bytes = 0
        self.progress: dict[str, Any] | None = None
        state = self._load_state()
        whole = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        self.done = whole and state is not None and not self.lists.exists()
        if whole and not self.done:
            raise InputError(f"{folder} exists and is not an empty folder: choose another output folder, or remove it")
        if state is not None:
            self._take_up(state)
        if self.done:
            self._remove_partial()
            return
        with naming_the_disk(partial / PID_FILE):
            self.lists.mkdir(parents=True, exist_ok=True)
            (partial / PID_FILE).write_text(f"{os.getpid()}\n")
            self._remove_what_is_not_saved()

    # ------------------------------------------------------------------------------------------------- what was saved

    def _load_state(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(f"{self.state_file} is damaged ({error}): remove {self.partial} to begin anew") from None

    def _take_up(self, state: dict[str, Any]) -> None:
        for name, value in self.options.items():
            begun = state["options"].get(name)
            if begun != value:
                raise InputError(
                    f"{self.partial} was begun with {name} {begun!r}, now it is {value!r}: use the same, or remove "
                    f"{self.partial} to begin anew"
                )
        self.shards, self.open_shards = state["shards"], state["open_shards"]
        self.rejects_bytes, self.progress = state["rejects_bytes"], state["progress"]
        if self.done:
            return
        for shard in [*self.shards, *self.open_shards]:
            path = self.partial / shard["path"]
            # Names change at the very end, after the last state.
            if not path.is_file() and shard in self.shards:
                path = next(iter(path.parent.glob(f"{path.stem}-of-*.parquet")), path)
            if not path.is_file() or path.stat().st_size != shard["bytes"] or sha256_of(path) != shard["sha256"]:
                raise InputError(f"{path} is missing or not as it was written: remove {self.partial} to begin anew")

    def _remove_what_is_not_saved(self) -> None:
        """Whatever was written after the last state; of shards that have their last names, those names."""
        for shard in self.shards:
            path = self.partial / shard["path"]
            for renamed in path.parent.glob(f"{path.stem}-of-*.parquet"):
                renamed.rename(path)
        kept = {self.partial / shard["path"] for shard in [*self.shards, *self.open_shards]}
        kept |= {self.lists, self.state_file, self.partial / PID_FILE}
        if self.progress is None:
            shutil.rmtree(self.buckets, ignore_errors=True)
        else:
            kept.add(self.buckets)
        if self.rejects_bytes:
            kept.add(self.lists / REJECTS_FILE)
            with (self.lists / REJECTS_FILE).open("r+b") as file:
                if file.seek(0, os.SEEK_END) < self.rejects_bytes:
                    raise InputError(f"{self.lists / REJECTS_FILE} was cut off: remove {self.partial} to begin anew")
                file.truncate(self.rejects_bytes)
        for path in [*self.partial.iterdir(), *self.lists.iterdir()]:
            if path in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    # ------------------------------------------------------------------------------------------------------- going on

    def group(self, columns: pa.Schema) -> Group:
        """A new group of shards, one a split; it holds the lists of the group that a stop left open."""
        group = Group(self, columns)
        for shard in self.open_shards:
            with pq.ParquetFile(self.partial / shard["path"]) as parquet:
                for batch in parquet.iter_batches(GROUP_LISTS):
                    group.write(shard["split"], pa.Table.from_batches([batch], columns))
        return group

    def reject(self, lines: list[str]) -> None:
        """Appends lines to the file of rejects."""
        path = self.lists / REJECTS_FILE
        with naming_the_disk(path), path.open("a", encoding="ascii") as file:
            file.writelines(line + "\n" for line in lines)

    def next_number(self, split: str) -> int:
        return sum(shard["split"] == split for shard in self.shards)

    def save(self, group: Group, progress: dict[str, Any], *, whole: bool) -> None:
        """Brings the shards of a group to the disk, and then the state.

        Args:
            group: Is closed by this.
            progress: Where the source was read to, and what was counted; plain JSON values.
            whole: The group is. If not, the next run begins by filling it up.
        """
        shards = group.close(self.partial if not whole else None)
        rejects = self.lists / REJECTS_FILE
        if rejects.exists():
            _sync(rejects)
            self.rejects_bytes = rejects.stat().st_size
        _sync(self.lists)
        _sync(self.partial)
        replaced = self.open_shards
        if whole:
            self.shards, self.open_shards = [*self.shards, *shards], []
        else:
            self.open_shards = shards
        self.progress = progress
        state = {
            "options": self.options,
            "progress": progress,
            "rejects_bytes": self.rejects_bytes,
            "shards": self.shards,
            "open_shards": self.open_shards,
        }
        new = self.state_file.with_suffix(".new")
        with naming_the_disk(new):
            with new.open("w", encoding="utf-8") as file:
                file.write(json.dumps(state, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.state_file)
            _sync(self.partial)
        for shard in replaced:
            (self.partial / shard["path"]).unlink()

    def forget(self) -> None:
        """Begins anew next time: what was saved came from a wrong source. The folder is removed when it is left."""
        self.state_file.unlink(missing_ok=True)

    def finish(self, columns: pa.Schema, describe: Callable[[Path], None]) -> None:
        """Gives the shards their last names, and the folder its own.

        Args:
            columns: Of the lists; a split without lists gets one empty shard.
            describe: Writes whatever else belongs into the folder.
        """
        for split in SPLITS:
            paths = [self.partial / shard["path"] for shard in self.shards if shard["split"] == split]
            if not paths:
                paths = [self.lists / f"{split}-00000.parquet"]
                _ShardFile(paths[0], columns).close()
            for path in paths:
                path.rename(path.with_name(f"{path.stem}-of-{len(paths):05d}.parquet"))
        with naming_the_disk(self.lists):
            describe(self.lists)
            for path in sorted(self.lists.iterdir()):
                _sync(path)
            _sync(self.lists)
            if self.folder.is_dir():
                self.folder.rmdir()  # an empty one; fails if something has appeared in it meanwhile
            self.lists.rename(self.folder)
            _sync(self.folder.parent)
        self._remove_partial()

    def _remove_partial(self) -> None:
        self.state_file.unlink()
        shutil.rmtree(self.partial, ignore_errors=True)


class Group:
    """The shards under way, one a split."""

    def __init__(self, unfinished: Unfinished, columns: pa.Schema) -> None:
        self.unfinished, self.columns = unfinished, columns
        self.files: dict[str, _ShardFile] = {}

    def write(self, split: str, table: pa.Table) -> None:
        """Adds lists to a split."""
        if split not in self.files:
            number = self.unfinished.next_number(split)
            self.files[split] = _ShardFile(self.unfinished.lists / f"{split}-{number:05d}.parquet", self.columns)
        self.files[split].write(table)

    def close(self, folder: Path | None = None) -> list[dict[str, Any]]:
        """Finishes the files, under their names, or in ``folder`` under one that no earlier file there has."""
        shards = []
        for split, file in sorted(self.files.items()):
            path = file.path
            if folder is not None:
                used = {shard["path"] for shard in self.unfinished.open_shards}
                path = next(p for k in (0, 1) if (p := folder / f"open-{split}-{k}.parquet").name not in used)
            file.close(path)
            size, digest = path.stat().st_size, sha256_of(path)
            relative = str(path.relative_to(self.unfinished.partial))
            shards.append({"split": split, "path": relative, "bytes": size, "sha256": digest})
        return shards

    def abandon(self) -> None:
        """Removes the files of lists that were not saved."""
        for file in self.files.values():
            file.abandon()


class _ShardFile:
    """One Parquet file. Lists wait until they fill a row group; the file has its name when it is whole."""

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self.path, self.columns = path, columns
        self.writing = path.with_suffix(".writing")
        self.pending: list[pa.Table] = []
        self.parquet: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        self.pending.append(table)
        if sum(waiting.num_rows for waiting in self.pending) >= GROUP_LISTS:
            waiting = pa.concat_tables(self.pending)
            full = waiting.num_rows - waiting.num_rows % GROUP_LISTS
            for start in range(0, full, GROUP_LISTS):
                self._write_group(waiting.slice(start, GROUP_LISTS))
            self.pending = [waiting.slice(full)]

    def close(self, path: Path | None = None) -> None:
        """Finishes the file, under its name or another."""
        self._write_group(pa.concat_tables([self.columns.empty_table(), *self.pending]))
        assert self.parquet is not None
        with naming_the_disk(self.writing):
            self.parquet.close()
            _sync(self.writing)
            self.writing.replace(self.path if path is None else path)

    def abandon(self) -> None:
        if self.parquet is not None:
            with contextlib.suppress(OSError):  # the failure that is under way is the one to report
                self.parquet.close()
        with contextlib.suppress(OSError):
            self.writing.unlink(missing_ok=True)

    def _write_group(self, group: pa.Table) -> None:
        with naming_the_disk(self.writing):
            if self.parquet is None:
                self.parquet = pq.ParquetWriter(
                    self.writing,
                    self.columns,
                    compression="zstd",
                    compression_level=1,
                    use_dictionary=_worth_a_dictionary(self.columns),
                )
            if group.num_rows:
                self.parquet.write_table(group.combine_chunks())


def _worth_a_dictionary(columns: pa.Schema) -> list[str]:
    """Parquet paths of the columns that repeat values: floats do not, and take twice the time and space with one."""
    paths = []
    for column in columns:
        is_list = pa.types.is_list(column.type)
        if not pa.types.is_floating(column.type.value_type if is_list else column.type):
            paths.append(f"{column.name}.list.element" if is_list else column.name)
    return paths


def sha256_of(path: Path) -> str:
    """The digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: Path) -> list[int]:
    """Size and time of the last change of a file: by these a later run knows that it is the same."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


def _sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk, so that a power cut loses nothing."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
