"""Checkpoints in the folder of a run: complete or absent.

A checkpoint is written under another name, synced to disk with a manifest of its files' digests, and only then
named ``checkpoint-N``. Older ones are deleted after it has been verified. A run resumes from a checkpoint only if all
its files are exactly those that were saved.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.storage import (
    MANIFEST,
    format_json,
    hold_lock,
    read_manifest,
    remove_leftovers,
    sync,
    verify,
    write_manifest,
)

STATE = "trainer_state.json"
LOCK = "training.lock"
# Prefixes of unfinished or obsolete folders: the next start removes them.
UNFINISHED, REPLACED, DELETED = "tmp-checkpoint-", "tmp-replaced-", "tmp-deleted-"
REMEDY = "resume from another checkpoint, or delete this one; a run never resumes with part of its state missing"
# Which files of a checkpoint the Trainer may read; other files, such as notes, are not checked.
READ = (".bin", ".json", ".pt", ".pth", ".safetensors")


def list_checkpoints(run: Path) -> list[Path]:
    """Lists the folders ``checkpoint-N`` of a run by N, complete or not."""
    found = [(_parse_step(path), path) for path in run.glob("checkpoint-*") if path.is_dir()]
    return [path for step, path in sorted((step, path) for step, path in found if step is not None)]


def find_newest_checkpoint(run: Path) -> Path | None:
    """Finds the complete checkpoint that was written last; None if there is none.

    That is not always the one with the highest step: a run may have gone back to an earlier one. Folders without a
    manifest were never finished, or were written by something else; a warning names them.

    Raises:
        InputError: A manifest is damaged.
    """
    complete, others = [], []
    for folder in list_checkpoints(run):
        manifest = read_manifest(folder)
        if manifest is None or "number" not in manifest:
            others.append(folder.name)
        else:
            complete.append((manifest["number"], folder))
    if others:
        warnings.warn(
            f"{', '.join(others)} in {run}: passed over, unfinished or not written by this library (no {MANIFEST} of "
            "a checkpoint)",
            UserWarning,
            stacklevel=2,
        )
    return max(complete)[1] if complete else None


def verify_checkpoint(folder: Path, needs: tuple[str, ...] = (), processes: int = 1) -> dict[str, Any]:
    """Checks every file of a checkpoint.

    Args:
        folder: The checkpoint.
        needs: Files without which a run could not resume exactly.
        processes: Number of processes that will train.

    Returns:
        Its manifest.

    Raises:
        InputError: There is no checkpoint; or a file is missing, truncated, changed, or from another step.
    """
    if not folder.is_dir():
        there = ", ".join(path.name for path in list_checkpoints(folder.parent)) or "no checkpoint"
        raise InputError(f"there is no checkpoint {folder} ({folder.parent} holds {there})")
    manifest = verify(folder, lambda name: name.endswith(READ), REMEDY)
    if manifest is None or "number" not in manifest:
        raise InputError(
            f"{folder} has no {MANIFEST} of a checkpoint: it is unfinished or was not written by this library, so "
            "it may be incomplete; resume from another checkpoint, or load its weights with "
            "from_pretrained and start a new training"
        )
    step = _parse_step(folder)
    if step not in (None, manifest["step"]):
        raise InputError(f"{folder} holds the checkpoint of step {manifest['step']}: the folder was renamed; {REMEDY}")
    if manifest["processes"] != processes:
        raise InputError(
            f"{folder} was written by {manifest['processes']} processes, this run has {processes}: their random "
            "states and batches would differ; start the same number"
        )
    for name in needs:
        if name not in manifest["files"]:
            raise InputError(f"{folder} was saved without {name} (see save_only_model): {REMEDY}")
    return manifest


def write_part(path: Path, values: Any) -> None:
    """Writes a JSON file into a folder that is synced and renamed as a whole."""
    path.write_text(format_json(values), encoding="utf-8")


def publish(written: Path, final: Path, **facts: Any) -> None:
    """Gives a written checkpoint its manifest and its final name.

    Args:
        written: The folder with all files, on the same disk.
        final: Its final path; a checkpoint there is replaced.
        facts: Entries of the manifest.
    """
    run = final.parent
    numbers = [manifest.get("number", 0) for path in list_checkpoints(run) if (manifest := _try_read_manifest(path))]
    write_manifest(written, number=1 + max(numbers, default=0), **facts)
    replaced = run / f"{REPLACED}{final.name}"
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    os.rename(written, final)
    sync(run)
    shutil.rmtree(replaced, ignore_errors=True)


def rotate(run: Path, newest: Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest complete checkpoints beyond ``limit``, after verifying the newest; it and the best are kept.

    Args:
        run: The folder of the run.
        newest: The checkpoint just written.
        limit: Number of checkpoints to keep. None or 0: all.
        best: The best checkpoint. None: there is none.
    """
    found = [
        (manifest["number"], path)
        for path in list_checkpoints(run)
        if (manifest := _try_read_manifest(path)) is not None and "number" in manifest
    ]
    if not limit or limit < 0 or len(found) <= limit:
        return
    verify(newest, lambda name: True, REMEDY)
    kept = {newest.resolve(), *(() if best is None else (Path(best).resolve(),))}
    surplus = len(found) - max(limit, len(kept))
    for _, path in sorted(found):
        if surplus > 0 and path.resolve() not in kept:
            delete(path)
            surplus -= 1


def delete(checkpoint: Path) -> None:
    """Deletes a checkpoint under another name, so that a partly deleted one never has the name of a complete one."""
    aside = checkpoint.with_name(f"{DELETED}{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)


def clean_up(run: Path) -> None:
    """Removes what a killed run left unfinished, and restores a checkpoint that was about to be replaced."""
    for replaced in run.glob(f"{REPLACED}*"):
        final = run / replaced.name.removeprefix(REPLACED)
        if not final.exists():
            os.rename(replaced, final)
    for left in (*run.glob(f"{UNFINISHED}*"), *run.glob(f"{REPLACED}*"), *run.glob(f"{DELETED}*")):
        shutil.rmtree(left, ignore_errors=True)
    remove_leftovers(run)


def lock_run(run: Path) -> AbstractContextManager[None]:
    """Locks the folder of a run, so that two trainings never write to it at once.

    Raises:
        InputError: Another process, which the message names, trains there.
        OSError: The folder is not writable.
    """

    def describe_busy(process: str) -> str:
        return f"{process} is training in {run}: wait for it, or choose another folder"

    return hold_lock(run / LOCK, describe_busy)


def _try_read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest of a folder; None also if it is damaged: such a folder is left as it is."""
    try:
        return read_manifest(folder)
    except InputError:
        return None


def _parse_step(folder: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else None
