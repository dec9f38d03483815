"""Files and folders that appear complete or not at all: written under a temporary name, synced, then renamed.

All temporary names have the form ``.NAME.HOST-PID-RANDOM.tmp``, beside the target. Two writers never share one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_rerank.storage.disk_errors import name_failures

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


def temporary_path(target: str | Path) -> Path:
    """A new name beside ``target`` that no other call, in this process or another, ever gets."""
    target = Path(target)
    return target.with_name(f".{target.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: str | Path, name: str | None = None) -> None:
    """Removes temporary files and folders in ``folder`` whose process was killed.

    Those of running processes, and of other machines that share the disk, are kept.

    Args:
        folder: Where to look; subfolders are not searched.
        name: Only those for the target of this name. None: all.
    """
    with contextlib.suppress(OSError):
        for path in list(Path(folder).iterdir()):
            found = _TEMPORARY.fullmatch(path.name)
            if found and name in (None, found["name"]) and found["host"] == _HOST and _has_ended(int(found["pid"])):
                remove(path)


def remove(path: str | Path) -> None:
    """Removes a file or a folder with its content; does nothing if it does not exist or cannot be removed."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def write_atomically(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields the temporary path under which to write a file or a folder.

    At the end of the block everything is synced to the disk and renamed to ``path``. An existing file is replaced; a
    folder replaces nothing but an empty folder. If the block raises, the temporary is removed and ``path`` stays as it
    was. Parent folders are created.

    Args:
        path: The file or folder.
        durable: Sync to the disk before the rename. False: complete or absent after a kill, but perhaps not after a
            power cut.

    Raises:
        CannotWrite: The disk refuses the write; the message names the path and the free space. Errors raised in the
            block pass unchanged.
    """
    path = Path(path)
    temporary = temporary_path(path)
    with name_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    try:
        yield temporary
        with name_failures(path):
            if durable:
                sync_tree(temporary)
            if temporary.is_dir() and path.is_dir():
                path.rmdir()  # Windows does not rename over it
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        remove(temporary)


def write_file(path: str | Path, content: bytes | str) -> None:
    """Writes a file in one step, text as UTF-8.

    Raises:
        CannotWrite: The disk refuses the write; the message names the path and the free space.
    """
    with write_atomically(path) as temporary, name_failures(Path(path)):
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def share_with_readers(path: Path) -> None:
    """Gives a file the mode that ``open`` gives a new file; safetensors lets only the owner read what it writes."""
    new = temporary_path(path)
    try:
        new.touch()
        mode = stat.S_IMODE(new.stat().st_mode)
    finally:
        remove(new)
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def sync(path: Path) -> None:
    """Syncs a file, or the names in a folder, to the disk, so that a power cut loses nothing."""
    if os.name != "posix" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Syncs a file, or a folder with everything below it; files before the folders that name them."""
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            sync_tree(entry)
    sync(path)


def _has_ended(pid: int) -> bool:
    """Whether a process of this machine has ended; False where this is unknown."""
    if os.name != "posix":  # there os.kill ends a process
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
