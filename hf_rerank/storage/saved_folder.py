"""Replacing all files of a saved folder, or one, so that an interruption never leaves a readable mixture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_rerank.errors import InputError
from hf_rerank.storage.atomic import remove, remove_leftovers, sync, temporary_path, write_file
from hf_rerank.storage.disk_errors import name_failures
from hf_rerank.storage.inputs import InputFiles
from hf_rerank.storage.locks import hold_lock
from hf_rerank.storage.manifest import MANIFEST, REPLACED_BY, format_manifest, make_entry, verify, write_manifest

LOCK = ".saving.lock"
# No model is loaded from these files, which change when an evaluation is added.
_NOT_LOADED = (MANIFEST, "results.json", "training_args.json")
# Longer than any save takes, except on a very slow disk.
WAIT_SECONDS = 60.0


@contextmanager
def save_files(folder: str | Path) -> Iterator[Path]:
    """Yields a folder; the files written there move into ``folder`` together, with a manifest, or not at all.

    All bytes are on the disk before the first file is renamed, so a full disk leaves the old files unchanged. The new
    manifest is renamed first: until the last file has followed, loading refuses the folder. Of two saves into one
    folder, the second waits for the first.

    Raises:
        InputError: ``folder`` is a file, or another process has been saving there for more than a minute.
        CannotWrite: Something could not be written; names the folder, the free space and the cause.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file: expected a folder to save in")
    existed = folder.exists()
    staging = temporary_path(folder / "save")
    try:
        with _lock_folder(folder), name_failures(folder):
            staging.mkdir()
            yield staging
            write_manifest(staging)
            new = sorted(path.name for path in staging.iterdir())
            for name in (MANIFEST, *(name for name in new if name != MANIFEST)):
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                os.replace(staging / name, folder / name)
            # Weights in shards, or in one file, that the new ones replace.
            for path in folder.glob("*.safetensors*"):
                if path.name not in new:
                    path.unlink()
            staging.rmdir()
            sync(folder)
            existed = True
    finally:
        remove(staging)
        if not existed:
            _remove_if_empty(folder)


def replace_file(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Replaces one file of a saved folder, and its entry in the manifest if there is one.

    The folder is locked, so concurrent changes are not lost. After an interruption at any moment, all files agree with
    the manifest: it is replaced twice, and in between it accepts both the old file and the new one.

    Args:
        folder: A saved folder.
        name: A file in it.
        change: ``content -> new content``; if they are equal, nothing is written.

    Raises:
        InputError: The file is not the one that was saved.
        CannotWrite: Something could not be written; the folder is complete.
    """
    with _lock_folder(folder):
        manifest = verify(folder, lambda other: other == name, "save it again")
        before = (folder / name).read_bytes()
        content = change(before)
        if manifest is None:
            if content != before:
                write_file(folder / name, content)
            return
        facts = {key: value for key, value in manifest.items() if key not in ("format_version", "files")}
        files, old, new = manifest["files"], make_entry(folder / name), make_entry(content)
        if content != before:
            write_file(folder / MANIFEST, format_manifest({**files, name: {**old, REPLACED_BY: new}}, **facts))
            write_file(folder / name, content)
        elif files.get(name) == new:  # else an interrupted change left the entry that accepts both
            return
        write_file(folder / MANIFEST, format_manifest({**files, name: new}, **facts))


def note_model_files(source: str | Path) -> InputFiles:
    """Records the files that a model and its processor are loaded from; none if ``source`` is not a folder."""
    there = Path(source).iterdir() if Path(source).is_dir() else ()
    kinds = (".json", ".safetensors", ".onnx", ".data")
    return InputFiles(sorted(path for path in there if path.suffix in kinds and path.name not in _NOT_LOADED))


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    def describe_writer(process: str) -> str:
        return f"{process} is saving into {folder}: wait for it, or choose another folder"

    with hold_lock(folder / LOCK, describe_writer, wait=WAIT_SECONDS):
        remove_leftovers(folder)
        yield


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # another save has put its files there
        return
