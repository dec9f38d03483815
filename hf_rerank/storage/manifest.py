"""``manifest.json``: the files of a saved folder and their digests, so that what is loaded is what was saved.

It lists every file with its size and SHA-256, and holds a digest of itself. It detects corruption (a truncated,
changed or missing file), not tampering: it is not signed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.storage.atomic import sync_tree
from hf_rerank.storage.digests import sha256_of_file, sha256_of_json
from hf_rerank.storage.json_files import read_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
# In the entry of a file that is being replaced: size and digest of its new content, which are accepted as well.
REPLACED_BY = "replaced_by"
# The card is edited by people, and nothing is loaded from it.
_NOT_LISTED = (MANIFEST, "README.md")


def write_manifest(folder: Path, **facts: Any) -> None:
    """Writes ``manifest.json`` for all files below a folder, and syncs everything to the disk.

    Args:
        folder: Folder of the finished files.
        facts: Further entries of the manifest, JSON values.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in _NOT_LISTED:
            files[name] = make_entry(path)
    (folder / MANIFEST).write_text(format_manifest(files, **facts), encoding="utf-8")
    sync_tree(folder)


def make_manifest(files: Mapping[str, Path | bytes], kept: Mapping[str, Any]) -> str:
    """The content of a ``manifest.json`` for these files.

    Args:
        files: Name -> a file, or its content.
        kept: Entries of an earlier manifest, for files that stay.
    """
    entries = dict(kept)
    for name, content in files.items():
        if name in _NOT_LISTED:
            continue
        entries[name] = make_entry(content)
    return format_manifest(dict(sorted(entries.items())))


def read_manifest(folder: Path, remedy: str = "save or download it again") -> dict[str, Any] | None:
    """The manifest of a folder; None without one.

    Args:
        folder: A saved folder.
        remedy: Advice to the user; the end of the message.

    Raises:
        InputError: The manifest is damaged, or its format is newer.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):  # a link that leads nowhere is there, and is refused below
        return None
    damaged = f"{path} is damaged: it does not hold what was saved, so no file in {folder} can be relied on"
    try:
        content = read_json(path, remedy)
    except InputError as error:
        raise InputError(
            f"{damaged} ({str(error).removeprefix(f'{path} ').removesuffix(f'; {remedy}')}); {remedy}"
        ) from None
    if content.pop("sha256", None) != sha256_of_json(content):
        raise InputError(f"{damaged}; {remedy}")
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {content.get('format_version')!r}, but this library reads {FORMAT_VERSION}: "
            "install a newer hf-rerank"
        )
    files = content.get("files")
    odd = (
        next((name for name in files if not _is_entry(name, files[name])), None)
        if isinstance(files, dict)
        else "files"
    )
    if odd is not None:
        raise InputError(f"{path} has no valid entry for {odd!r}: expected its bytes and sha256; {remedy}")
    return content


def list_saved_files(folder: Path) -> list[Path]:
    """The files of a saved folder: those that its manifest lists, it and the card; without a manifest, all files."""
    manifest = read_manifest(folder)
    there = sorted(path for path in folder.iterdir() if path.is_file())
    return there if manifest is None else [path for path in there if path.name in (*manifest["files"], *_NOT_LISTED)]


def verify(folder: Path, reads: Callable[[str], bool], remedy: str, *, digests: bool = True) -> dict[str, Any] | None:
    """Checks the files that are about to be read against the manifest, where there is one.

    Args:
        folder: A saved folder.
        reads: ``name -> bool``, which of its files will be read.
        remedy: Advice to the user; the end of every message.
        digests: Also compare the SHA-256, which reads every byte. False: compare names and sizes only.

    Returns:
        The manifest; None without one: then nothing was checked.

    Raises:
        InputError: A file is missing, truncated or changed, or is not listed.
    """
    manifest = read_manifest(folder, remedy)
    while manifest is not None:
        try:
            _check_files(folder, manifest["files"], reads, remedy, digests)
            break
        except InputError:
            # Another process may have replaced a file and the manifest after the manifest was read.
            current = read_manifest(folder, remedy)
            if current == manifest:
                raise
            manifest = current
    return manifest


def _check_files(
    folder: Path, files: dict[str, Any], reads: Callable[[str], bool], remedy: str, digests: bool
) -> None:
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        hidden = path.name.startswith(".")  # locks and temporaries, which nothing reads
        if not hidden and path.name not in (*files, *_NOT_LISTED) and reads(path.name):
            raise InputError(f"{path} is not one of the files that were saved there ({MANIFEST} lists them); {remedy}")
    for name, saved in files.items():
        path = folder / name
        if not reads(name):
            continue
        if not path.is_file():
            raise InputError(f"{path} is missing: it was saved ({MANIFEST} lists it); {remedy}")
        size = path.stat().st_size
        accepted = [entry for entry in (saved, saved.get(REPLACED_BY)) if entry is not None]
        if size not in [entry["bytes"] for entry in accepted]:
            raise InputError(
                f"{path} has {size:,} bytes, but {saved['bytes']:,} were saved: it is truncated or changed; {remedy}"
            )
        if digests and sha256_of_file(path) not in [entry["sha256"] for entry in accepted]:
            raise InputError(f"{path} is damaged or changed: its SHA-256 is not that of the saved file; {remedy}")


def _is_entry(name: str, entry: Any) -> bool:
    """Whether an entry names a file inside the folder, and its size and digest."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name or not isinstance(entry, dict):
        return False
    size, digest, new = entry.get("bytes"), entry.get("sha256"), entry.get(REPLACED_BY)
    # The exact type, since True is an int.
    return type(size) is int and isinstance(digest, str) and (new is None or _is_entry(name, new))


def make_entry(content: Path | bytes) -> dict[str, Any]:
    """The entry of a file, or of its content: size and SHA-256."""
    if isinstance(content, bytes):
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"bytes": content.stat().st_size, "sha256": sha256_of_file(content)}


def format_manifest(files: dict[str, Any], **facts: Any) -> str:
    """The text of a manifest with these entries and other values."""
    content = {"format_version": FORMAT_VERSION, **facts, "files": files}
    return json.dumps({**content, "sha256": sha256_of_json(content)}, indent=2) + "\n"
