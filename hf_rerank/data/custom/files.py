"""Finds the files of a user's own lists, and opens them: paths, folders, globs, lists of paths and fsspec URLs."""

from __future__ import annotations

import contextlib
import difflib
import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from hf_rerank.data.prepared import SCHEMA_FILE, is_prepared, read_footer, read_prepared
from hf_rerank.data.splits import SPLITS
from hf_rerank.errors import InputError, suggestion
from hf_rerank.storage import InputFiles

KINDS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".letor": "letor",
    ".libsvm": "letor",
    ".svm": "letor",
    ".txt": "letor",
}
KIND_NAMES = {"parquet": "Parquet", "json": "JSON", "arrow": "Arrow", "csv": "CSV", "letor": "LETOR"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
EXPECTED = (
    ".csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow, .feather, or .txt and .libsvm in the LETOR format, "
    "compressed (.gz, .zst) or not"
)
# Files that are not lists: a schema, and the descriptions that save_to_disk writes.
DESCRIPTIONS = (SCHEMA_FILE, "dataset_dict.json", "dataset_info.json", "state.json")
# The words that ``datasets`` recognizes as splits, that of LETOR files (vali), and ``ranker_train``.
SPLIT_WORDS = {
    "ranker_train": "ranker_train",
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "vali": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
NEAR_MISS = 0.75


@dataclass(frozen=True)
class ListFile:
    """One file of lists.

    Attributes:
        path: Local, or an fsspec URL.
        kind: A value of ``KINDS``.
        compression: ``gzip``, ``zstd``, ``bz2`` or None.
        split: The split given by its name, or None.
        start, stop: A part of the file: bytes of whole lines of JSON Lines, row groups of Parquet. 0 and None: all.
    """

    path: str
    kind: str
    compression: str | None = None
    split: str | None = None
    start: int = 0
    stop: int | None = None

    @property
    def is_url(self) -> bool:
        return _is_url(self.path)

    @property
    def suffix(self) -> str:
        """Suffix of the format, without that of the compression."""
        name = PurePosixPath(self.path)
        return (PurePosixPath(name.stem) if self.compression else name).suffix.lower()

    def divide(self, size: int) -> list[ListFile]:
        """The file in parts of about ``size`` bytes if its format can be read from the middle; else the whole file."""
        if self.is_url or self.compression is not None or os.path.getsize(self.path) <= size:
            return [self]
        if self.kind == "parquet":
            bounds = _find_row_group_bounds(self.path, size)
        elif self.suffix in (".jsonl", ".ndjson"):
            bounds = _find_line_bounds(self.path, size)
        else:
            return [self]
        return [replace(self, start=start, stop=stop) for start, stop in itertools.pairwise(bounds)]

    def fingerprint(self) -> list[Any]:
        """Name, size, times and inode, by which a later run recognizes the file without reading it."""
        if self.is_url:
            system, path = _open_file_system(self.path)
            return [self.path, system.ukey(path)]
        found = os.stat(self.path)
        return [os.path.basename(self.path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The bytes of the file, decompressed, as an Arrow input file.

        Raises:
            InputError: It cannot be read, or its compression is damaged.
        """
        try:
            with contextlib.ExitStack() as opened:
                if self.is_url:
                    system, path = _open_file_system(self.path)
                    source = pa.PythonFile(opened.enter_context(system.open(path, "rb")), mode="r")
                else:
                    source = opened.enter_context(pa.OSFile(self.path))
                if self.compression is not None:
                    source = opened.enter_context(pa.CompressedInputStream(source, self.compression))
                yield source
        except pa.ArrowInvalid:
            raise
        except OSError as error:
            reason = str(error).splitlines()[0]
            if self.compression is not None:
                raise InputError(
                    f"{self.path} is not a complete {self.compression} file: {reason}; make or copy it again"
                ) from None
            raise InputError(f"cannot read {self.path}: {reason}") from None


Source = str | Path | Sequence[str | Path]


def note_local_inputs(files: Iterable[ListFile]) -> InputFiles:
    """Records the local files, to refuse them if they change while they are read."""
    return InputFiles(file.path for file in files if not file.is_url)


def find_list_files(source: Source) -> list[ListFile]:
    """The files of one kind that a source names, sorted.

    Args:
        source: A file, a folder (with its subfolders), a pattern such as ``logs/part-*.parquet``, an fsspec URL of
            any of these, or a sequence of them.

    Raises:
        InputError: There are none, or several kinds; a URL whose file system is not installed; some files are named
            after splits and others are not.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise InputError("the list of files is empty: expected at least one path")
    shown = str(sources[0]) if len(sources) == 1 else f"the list of {len(sources)} paths"
    files: list[ListFile] = []
    for entry in sources:
        root, paths = _find_paths(str(entry))
        files += [_make_list_file(path, root) for path in paths]
    twice = next((file.path for number, file in enumerate(files) if file in files[:number]), None)
    if twice is not None:
        raise InputError(f"{twice} is named twice: name each file once")
    found = [kind for kind in KIND_NAMES if kind in {file.kind for file in files}]
    if len(found) > 1:
        names = [KIND_NAMES[kind] for kind in found]
        both = "both " if len(names) == 2 else ""
        raise InputError(f"{shown} holds {both}{' and '.join(names)} files: keep one kind")
    if any(file.split for file in files) and not all(file.split for file in files):
        odd = next(file for file in files if not file.split)
        raise InputError(
            f"{odd.path} is not named after a split, but other files are: name all of them after splits "
            f"({', '.join(SPLITS)}), or none{_suggest_split(_split_words(odd.path))}"
        )
    if not any(file.split for file in files):
        for file in files if len(files) > 1 else []:
            near = _suggest_split(_split_words(os.path.basename(file.path)))
            if near:
                raise InputError(
                    f"{file.path} is named almost like a split{near} Rename it, so that lists of one split are not "
                    "mixed with those of another"
                )
    return files


def _find_line_bounds(path: str, size: int) -> list[int]:
    """The bounds of parts of whole lines of about ``size`` bytes."""
    total, bounds = os.path.getsize(path), [0]
    with open(path, "rb") as file:
        while bounds[-1] + size < total:
            file.seek(bounds[-1] + size)
            file.readline()
            bounds.append(file.tell())
    return [*(bound for bound in bounds if bound < total), total]


def _find_row_group_bounds(path: str, size: int) -> list[int]:
    footer = read_footer(Path(path))
    bounds, held = [0], 0
    for number in range(footer.num_row_groups):
        held += footer.row_group(number).total_byte_size
        if held >= size or number == footer.num_row_groups - 1:
            bounds.append(number + 1)
            held = 0
    return bounds


def refuse_prepared(source: Source, remedy: str) -> None:
    """
    Raises:
        InputError: ``source`` is a folder of prepared lists (a ``schema.json`` of another program does not count).
    """
    if not isinstance(source, str | Path) or not is_prepared(source):
        return
    try:
        read_prepared(source)
    except InputError:
        return
    raise InputError(f"{source} is already prepared: {remedy}")


def is_list_file(path: str | Path) -> bool:
    """Whether a file has the suffix of a supported format."""
    return _split_suffixes(str(path))[0] in KINDS


def _find_paths(source: str) -> tuple[str, list[str]]:
    """The folder that file names are relative to, and the files, sorted."""
    if _is_url(source):
        return _find_paths_of_url(source)
    if os.path.isdir(source):
        paths = sorted(
            str(path)
            for path in Path(source).rglob("*")
            if path.is_file() and is_list_file(path) and not _is_ignored(path.relative_to(source))
        )
        if not paths:
            raise InputError(
                f"{source} holds no lists: expected {EXPECTED}, or a folder of prepared lists with {SCHEMA_FILE}"
            )
        return source, paths
    if os.path.isfile(source):
        return os.path.dirname(source), [source]
    if glob.has_magic(source):
        paths = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
        if paths:
            return os.path.commonpath([os.path.dirname(path) for path in paths]), paths
        raise InputError(f"no file matches {source!r}: expected at least one; quote the pattern in a shell")
    from hf_rerank.data.lists_cache import NAMED_SOURCES

    raise InputError(
        f"unknown source {source!r}: expected {', '.join(map(repr, NAMED_SOURCES))}, a file, folder or pattern that "
        f"exists, a URL, a frame or a datasets object{suggestion(source, NAMED_SOURCES)}"
    )


def _find_paths_of_url(url: str) -> tuple[str, list[str]]:
    system, path = _open_file_system(url)
    try:
        if glob.has_magic(path):
            found = sorted(system.glob(path))
        elif system.isdir(path):
            found = sorted(name for name in system.find(path) if is_list_file(name))
        else:
            found = [path]
    except OSError as error:
        raise InputError(f"cannot read {url}: {error}") from None
    if not found:
        raise InputError(f"{url} holds no lists: expected {EXPECTED}")
    return path if len(found) > 1 else os.path.dirname(path), [system.unstrip_protocol(name) for name in found]


def _open_file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot read {url}: {error}; install that package, or copy the files here") from None


def _is_url(source: str) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://|[a-z]+::", source) is not None


def _is_ignored(path: Path) -> bool:
    """Whether a file is hidden, left by another program (_SUCCESS), or a description."""
    return any(part.startswith((".", "_")) for part in path.parts) or path.name in DESCRIPTIONS


def _split_suffixes(path: str) -> tuple[str, str | None]:
    """The suffix of the format and the compression."""
    name = PurePosixPath(path)
    compression = COMPRESSIONS.get(name.suffix.lower())
    return (PurePosixPath(name.stem) if compression else name).suffix.lower(), compression


def _make_list_file(path: str, root: str) -> ListFile:
    suffix, compression = _split_suffixes(path)
    if suffix not in KINDS:
        raise InputError(f"{path} is not a file of lists: expected {EXPECTED}")
    relative = path.removeprefix(root) if root else path
    return ListFile(path, KINDS[suffix], compression, _find_split(path, relative))


def _split_words(name: str) -> list[str]:
    """The words of a name, split as ``datasets`` does: at ``-._ 0-9`` and slashes."""
    return [word for word in re.split(r"[-._ 0-9/\\]+", name.lower()) if word]


def _find_split(path: str, relative: str) -> str | None:
    """The split given by a file name, or otherwise by its folder."""
    folder, name = os.path.split(relative.replace("\\", "/"))
    for part in (name, folder):
        words = _split_words(re.sub(r"ranker[-_ ]train", "", part.lower()))
        found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if re.search(r"(^|[-._ 0-9/])ranker[-_ ]train($|[-._ 0-9/])", part.lower()):
            found.add("ranker_train")
        if len(found) > 1:
            raise InputError(
                f"{path} is named after the splits {' and '.join(sorted(found))}: expected one; rename it"
            )
        if found:
            return found.pop()
    return None


def _suggest_split(words: Iterable[str]) -> str:
    """``"; did you mean 'test'?"`` where a word is almost that of a split."""
    for word in words:
        # trainset and test_set are clear to people and not to datasets.
        bare = word.removesuffix("set").removesuffix("data").removesuffix("s")
        close = difflib.get_close_matches(word, SPLIT_WORDS, n=1, cutoff=NEAR_MISS)
        if bare in SPLIT_WORDS or close:
            return f"; did you mean {bare if bare in SPLIT_WORDS else close[0]!r}?"
    return ""
