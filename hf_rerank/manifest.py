"""The files of a saved folder and their digests: what was saved is what is loaded, or it is refused by name.

``manifest.json`` lists every file with its size and SHA-256, and holds a digest of itself. It guards against damage (a
cut, changed or missing file), not against someone who writes a folder of his own: it is not signed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_rerank.errors import InputError, TrainingStopped

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
# Where files are written before they get their final name; what is found under it was never finished.
STAGING = "tmp-save"
# In the entry of a file that is being replaced: the bytes and digest to come, which are as good as those there were.
_COMING = "replaced_by"
# People edit it, and nothing is loaded from it.
_NOT_LISTED = (MANIFEST, "README.md")
_CHUNK = 1 << 20


def write_manifest(folder: Path, **facts: Any) -> None:
    """Writes ``manifest.json`` over all files below a folder, and sees that everything has reached the disk.

    Args:
        folder: With the finished files.
        facts: What else the manifest shall hold, as plain JSON values.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in _NOT_LISTED:
            files[name] = _entry(path)
        _to_disk(path)
    (folder / MANIFEST).write_text(_text(files, **facts), encoding="utf-8")
    _to_disk(folder / MANIFEST)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        to_disk(path)


def manifest_text(files: Mapping[str, Path | bytes], kept: Mapping[str, Any]) -> str:
    """What ``manifest.json`` beside these files shall hold.

    Args:
        files: Name -> a file, or its content.
        kept: Entries of an earlier manifest, of files that stay.
    """
    entries = dict(kept)
    for name, content in files.items():
        if name in _NOT_LISTED:
            continue
        entries[name] = _entry(content)
    return _text(dict(sorted(entries.items())))


def read_manifest(folder: Path, remedy: str = "save or download it again") -> dict[str, Any] | None:
    """The manifest of a folder; None without one.

    Args:
        folder: A saved folder.
        remedy: What to do if it is damaged, at the end of the message.

    Raises:
        InputError: It is damaged, or of a newer format.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    damaged = f"{path} is damaged: it does not hold what was saved, so nothing in {folder} can be relied on; {remedy}"
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
        own = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(damaged) from None
    if own != _own_digest(content):
        raise InputError(damaged)
    if content["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {content['format_version']!r}, this library reads {FORMAT_VERSION}: install a "
            "newer hf-rerank"
        )
    return content


def verify(folder: Path, reads: Callable[[str], bool], remedy: str, *, digests: bool = True) -> dict[str, Any] | None:
    """Checks the files that are about to be read against the manifest, where there is one.

    Args:
        folder: A saved folder.
        reads: Which of its files, by their names.
        remedy: What to do, at the end of every message.
        digests: Also compare the SHA-256, for which every byte is read; otherwise names and sizes only.

    Returns:
        The manifest; None without one: then nothing was checked.

    Raises:
        InputError: A file is missing, cut or changed, or lies there without being listed.
    """
    manifest = read_manifest(folder, remedy)
    if manifest is None:
        return None
    files = manifest["files"]
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.name not in (*files, *_NOT_LISTED) and reads(path.name):
            raise InputError(f"{path} is none of the files that were saved there ({MANIFEST} lists them); {remedy}")
    for name, saved in files.items():
        path = folder / name
        if not reads(name):
            continue
        if not path.is_file():
            raise InputError(f"{path} is missing: it was saved ({MANIFEST} lists it); {remedy}")
        size = path.stat().st_size
        accepted = [saved, saved[_COMING]] if _COMING in saved else [saved]
        if size not in [entry["bytes"] for entry in accepted]:
            raise InputError(
                f"{path} has {size:,} bytes, {saved['bytes']:,} were saved: it is cut or changed; {remedy}"
            )
        if digests and _sha256(path) not in [entry["sha256"] for entry in accepted]:
            raise InputError(f"{path} is damaged or changed: its SHA-256 is not that of the file saved; {remedy}")
    return manifest


def refuse_repeated_names(path: Path) -> None:
    """Refuses a safetensors file in which a tensor is named twice: its reader takes the last one without a word.

    Raises:
        InputError: It is so, or the header is damaged.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(min(size, path.stat().st_size))
        json.loads(header, object_pairs_hook=lambda pairs: _without_repetition(pairs, path))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is damaged: its header cannot be read ({error}); save or download it again"
        ) from None


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """Files written in the folder this gives come into ``folder`` together, with a manifest, or not at all.

    All bytes are on the disk before the first file gets its name, so a full disk leaves the old files as they were.
    The new manifest comes first: until the last file is in place the folder is refused rather than read half new.

    Raises:
        OSError: Something could not be written; it names the folder, the bytes at hand and what went wrong.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file: expected a folder to save in")
    staging, existed, done = folder / STAGING, folder.exists(), False
    with naming_failures(folder):
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            write_manifest(staging)
            new = sorted(path.name for path in staging.iterdir())
            for name in (MANIFEST, *(name for name in new if name != MANIFEST)):
                os.replace(staging / name, folder / name)
            # Weights in shards, or in one file, that the new ones replace.
            for path in folder.glob("*.safetensors*"):
                if path.name not in new:
                    path.unlink()
            staging.rmdir()
            to_disk(folder)
            done = True
        finally:
            if not done:
                shutil.rmtree(staging if existed else folder, ignore_errors=True)


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Replaces one file of a saved folder, and its entry in the manifest where there is one.

    A stop at any moment leaves a folder in which every file is what its manifest says: the manifest is replaced twice,
    and between the two it accepts the old file and the new one.

    Args:
        folder: A saved folder.
        name: A file in it.
        content: What the file shall hold.

    Raises:
        InputError: The file is not what was saved.
        OSError: Something could not be written; the folder is whole.
    """
    manifest = verify(folder, lambda other: other == name, "save it again")
    writes = [(name, content)]
    if manifest is not None:
        facts = {key: value for key, value in manifest.items() if key not in ("format_version", "files")}
        files, there, coming = manifest["files"], _entry(folder / name), _entry(content)
        both = _text({**files, name: {**there, _COMING: coming}}, **facts)
        after = _text({**files, name: coming}, **facts)
        writes = [(MANIFEST, both.encode()), (name, content), (MANIFEST, after.encode())]
    staging = folder / STAGING
    with naming_failures(folder):
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            for step, (_, written) in enumerate(writes):
                (staging / str(step)).write_bytes(written)
                _to_disk(staging / str(step))
            for step, (target, _) in enumerate(writes):
                os.replace(staging / str(step), folder / target)
                to_disk(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def naming_failures(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turns whatever a failed write raises (torch and safetensors have errors of their own) into one ``OSError``.

    Args:
        folder: What is being written.
        needed: About how many bytes.
    """
    try:
        yield
    except (InputError, TrainingStopped):
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        need = "" if needed is None else f"about {_megabytes(needed)} are needed, "
        failure = OSError(
            f"{folder} could not be written: {need}{_megabytes(shutil.disk_usage(there).free)} are free there "
            f"({' '.join(str(error).split()) or type(error).__name__}); free space, or choose a folder that you may "
            "write to. No file is left half-written"
        )
        failure.errno = getattr(error, "errno", None)
        raise failure from error


def to_disk(folder: Path) -> None:
    """Sees that the names in a folder have reached the disk, on systems that can do that."""
    if os.name == "posix":
        _to_disk(folder)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _entry(content: Path | bytes) -> dict[str, Any]:
    """Size and SHA-256 of a file, or of its content."""
    if isinstance(content, bytes):
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"bytes": content.stat().st_size, "sha256": _sha256(content)}


def _text(files: dict[str, Any], **facts: Any) -> str:
    content = {"format_version": FORMAT_VERSION, **facts, "files": files}
    return json.dumps({**content, "sha256": _own_digest(content)}, indent=2) + "\n"


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _without_repetition(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise InputError(f"{path} names {name!r} twice in its header: it was not written by safetensors")
        seen[name] = value
    return seen


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
