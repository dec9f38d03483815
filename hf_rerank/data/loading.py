"""``load_lists``: lists of a named dataset, a prepared folder or the caller's own table, as splits with a schema."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_rerank.data.prepared import SCHEMA_FILE, is_prepared, read_footer, read_prepared
from hf_rerank.data.splits import SPLITS, split_of
from hf_rerank.data.unfinished import partial_folder, refuse_unfinished
from hf_rerank.errors import InputError, suggestion
from hf_rerank.lists import Lists, tables_of
from hf_rerank.schema import ListSchema

logger = logging.getLogger(__name__)

NAMED_SOURCES = ("simulated_prm", "prm_public")
SIMULATED_LISTS = 20_000
# Raised when prepared lists come out differently, so that no cache of an older version is read.
CACHE_VERSION = 1
LEAK_AUC = 0.9
SAMPLE_LISTS = 1_000
QUIET_BYTES = 64 * 2**20


class _CarriesSchema:
    """Splits that know their schema."""

    schema: ListSchema

    def __init__(self, splits: Mapping[str, Any], schema: ListSchema) -> None:
        super().__init__(splits)  # type: ignore[call-arg]
        self.schema = schema

    def map(self, *args: Any, **kwargs: Any) -> Any:
        return type(self)(super().map(*args, **kwargs), self.schema)  # type: ignore[misc]

    def filter(self, *args: Any, **kwargs: Any) -> Any:
        return type(self)(super().filter(*args, **kwargs), self.schema)  # type: ignore[misc]

    def shuffle(self, *args: Any, **kwargs: Any) -> Any:
        return type(self)(super().shuffle(*args, **kwargs), self.schema)  # type: ignore[misc]

    def with_format(self, *args: Any, **kwargs: Any) -> Any:
        return type(self)(super().with_format(*args, **kwargs), self.schema)  # type: ignore[misc]


class ListsDict(_CarriesSchema, datasets.DatasetDict):
    """Split -> ``datasets.Dataset``, with the ``schema`` of their columns.

    The schema stays through indexing, copying, pickling, ``map``, ``filter``, ``shuffle`` and ``with_format``; other
    methods of ``DatasetDict`` (``cast``, ``rename_column``, ``load_from_disk``, ...) return a plain ``DatasetDict``.
    """


class IterableListsDict(_CarriesSchema, datasets.IterableDatasetDict):
    """Split -> ``datasets.IterableDataset``, with their ``schema``; keeps it where ``ListsDict`` does."""


def load_lists(
    source: Any,
    *,
    data_dir: str | Path | None = None,
    schema: ListSchema | str | Path | None = None,
    streaming: bool = False,
    protocol: str = "ours",
    n_lists: int | None = None,
    seed: int = 0,
    max_list_length: int | None = None,
) -> ListsDict | IterableListsDict:
    """Loads lists as splits that carry their schema.

    Args:
        source: One of

            - ``"simulated_prm"``: simulated once into the cache of ``datasets``, and read from there. The default
              world; of another, such as one whose lists have a history, ``simulate_prm`` writes the raw text, which
              ``"prm_public"`` reads.
            - ``"prm_public"``: the raw text in ``data_dir``, prepared once into the cache; with ``streaming=True``
              straight from the text (workers of a data loader must then be spawned, not forked). Or ``data_dir`` is a
              folder that is prepared already.
            - A folder of prepared lists (it holds ``schema.json``).
            - A ``.parquet``, ``.jsonl`` or ``.json`` file or a folder of them, one row a list, with ``schema``.
            - A ``Dataset``, ``DatasetDict`` or their iterable kinds, with ``schema``.
        data_dir: For ``"prm_public"``.
        schema: Says which column is what, as an object or a path to its JSON. For a prepared folder: instead of the
            schema in it.
        streaming: Iterable datasets, in bounded memory. Needed where the source is one. ``RerankTrainer`` shuffles
            them itself; if you do, with ``.shuffle``, give it a seed. Without ``schema.group`` and
            ``schema.list_id`` a stream of several shards cannot be split.
        protocol: For raw ``"prm_public"``: ``ours`` or ``public``, see ``hf_rerank.data.prm_public.iter_batches``.
        n_lists: For ``"simulated_prm"``; default 20,000.
        seed: For ``"simulated_prm"`` the simulation; for ``protocol="public"`` the draw of lists.
        max_list_length: For the named sources: longer lists are cut, in the initial order. Default 30.

    Returns:
        Splits ``ranker_train`` (for initial rankers, click models and personalised vectors only), ``train``,
        ``validation`` and ``test``; some may be empty.

        Own data keep the splits they come with: a dictionary of datasets, files named after splits
        (``train.parquet``, ``test-00000.jsonl``), or a column ``split``. Otherwise lists are split by the md5 of
        ``schema.group``, without a group by that of ``schema.list_id``, without that by the number of the row.

    Raises:
        InputError: An unknown source, options that do not belong to it, no schema, columns that are missing or wrong
            in the first lists.
    """
    named = isinstance(source, str) and source in NAMED_SOURCES
    _check_options(source, named, data_dir, protocol, n_lists, max_list_length)
    if isinstance(schema, (str, Path)):
        schema = ListSchema.load(schema)
    if schema is not None and not isinstance(schema, ListSchema):
        raise InputError(f"schema is a {type(schema).__name__}: expected a ListSchema, or the path of its JSON file")
    if named and schema is not None:
        raise InputError(f"{source!r} has a schema of its own: leave out schema=, or change .schema of what is loaded")

    if source == "simulated_prm" and named:
        folder = _simulated_prm(SIMULATED_LISTS if n_lists is None else n_lists, seed, max_list_length)
        return _load_prepared(folder, None, streaming)
    if source == "prm_public" and named:
        assert data_dir is not None
        return _load_prm_public(Path(data_dir), streaming, protocol, seed, max_list_length)
    if isinstance(source, (str, Path)):
        path = Path(source)
        refuse_unfinished(path)
        if is_prepared(path):
            return _load_prepared(path, schema, streaming)
        splits = _read_files(path, streaming, has_schema=schema is not None)
    else:
        splits = _given(source, streaming)
    if schema is None:
        raise InputError(
            "own lists need schema=ListSchema(...), or the path of its JSON file: which column is what? "
            "(a folder of prepared lists holds it as schema.json)"
        )
    if not isinstance(splits, dict):
        splits = _split(splits, schema)
    return _checked(splits, schema)


def _check_options(
    source: Any,
    named: bool,
    data_dir: str | Path | None,
    protocol: str,
    n_lists: int | None,
    max_list_length: int | None,
) -> None:
    """Refuses options that would be ignored."""
    shown = repr(source) if isinstance(source, (str, Path)) else f"a {type(source).__name__}"
    if source == "prm_public" and named and data_dir is None:
        raise InputError(
            "'prm_public' needs data_dir=, the folder of set1.train.txt.part1 and part2 (linked from hf4Academic/PRM "
            "on GitHub) or of lists prepared from them; without the files, try load_lists('simulated_prm')"
        )
    misplaced = {
        "data_dir": data_dir is not None and not (named and source == "prm_public"),
        "protocol": protocol != "ours" and not (named and source == "prm_public"),
        "n_lists": n_lists is not None and not (named and source == "simulated_prm"),
        "max_list_length": max_list_length is not None and not named,
    }
    for option, wrong in misplaced.items():
        if wrong:
            remedy = {
                "data_dir": "give one of source and data_dir",
                "max_list_length": "cut the lists when preparing them",
            }.get(option, "leave it out")
            raise InputError(f"{option}= does not belong to {shown}: {remedy}")


# ---------------------------------------------------------------------------------------------------- named datasets


def _cached(name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made once: whoever comes meanwhile waits; what fails leaves nothing."""
    from filelock import FileLock

    digest = hashlib.sha256(json.dumps({"version": CACHE_VERSION, **key}, sort_keys=True).encode()).hexdigest()
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "hf_rerank"
    folder = cache / f"{name}-{digest[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        if not folder.is_dir():
            make(folder)
    return folder


def _simulated_prm(n_lists: int, seed: int, max_list_length: int | None) -> Path:
    from hf_rerank.data.prm_public import MAX_LIST_LENGTH, prepare_prm_public
    from hf_rerank.data.simulator import PRMWorld, simulate_prm

    length = MAX_LIST_LENGTH if max_list_length is None else max_list_length

    def make(folder: Path) -> None:
        logger.warning("Simulating %s lists (seed %d) into %s; their clicks are no real ones.", n_lists, seed, folder)
        raw = folder.with_name(f"{folder.name}.raw")
        shutil.rmtree(raw, ignore_errors=True)  # of a process that was killed
        try:
            simulate_prm(raw, n_lists, seed=seed, progress=True)
            prepare_prm_public(raw, folder, max_list_length=length)
        finally:
            shutil.rmtree(raw, ignore_errors=True)

    key = {"n_lists": n_lists, "seed": seed, "world": repr(PRMWorld()), "max_list_length": length}
    return _cached(f"simulated_prm-{n_lists}-{seed}", key, make)


def _load_prm_public(
    data_dir: Path, streaming: bool, protocol: str, seed: int, max_list_length: int | None
) -> ListsDict | IterableListsDict:
    from hf_rerank.data import prm_public
    from hf_rerank.data.prm_public_stream import PRMPublicText
    from hf_rerank.data.prm_public_text import DamagedText

    refuse_unfinished(data_dir)
    if is_prepared(data_dir):
        if protocol != "ours" or max_list_length is not None:
            raise InputError(
                f"{data_dir} is prepared already: protocol= and max_list_length= belong to raw text; leave them out"
            )
        return _load_prepared(data_dir, None, streaming)
    length = prm_public.MAX_LIST_LENGTH if max_list_length is None else max_list_length
    files = prm_public.find_files(data_dir)
    if streaming:
        truth = prm_public.read_truth_header(files)
        schema = prm_public.prm_public_schema(
            length, truth.position, truth.examination, truth.attraction, truth.history
        )
        text = PRMPublicText(
            ranges=prm_public.find_ranges(files),
            columns=prm_public.prm_public_columns(truth.position, truth.attraction, truth.history),
            options={"protocol": protocol, "max_list_length": length, "seed": seed},
            cache_dir=str(datasets.config.HF_DATASETS_CACHE),
        )
        return _checked(dict(text.as_streaming_dataset()), schema)

    raw = [*files, *(side for path in files if (side := prm_public.truth_file(path)).is_file())]
    key = {
        "files": [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in raw],
        "folder": str(data_dir.resolve()),
        "protocol": protocol,
        "seed": seed if protocol == "public" else None,
        "max_list_length": length,
    }

    def make(folder: Path) -> None:
        logger.warning("Preparing %s into %s, once; `hf-rerank prepare` chooses the place.", data_dir, folder)
        try:
            prm_public.prepare_prm_public(data_dir, folder, protocol=protocol, max_list_length=length, seed=seed)
        except DamagedText as error:
            # Mended files are other files, and get a folder of their own.
            shutil.rmtree(partial_folder(folder), ignore_errors=True)
            raise DamagedText(
                error.rejects,
                "; mend what is named, or load a folder made by `hf-rerank prepare --on-error skip`",
            ) from None

    return _load_prepared(_cached("prm_public", key, make), None, streaming)


def _load_prepared(folder: Path, schema: ListSchema | None, streaming: bool) -> ListsDict | IterableListsDict:
    prepared = read_prepared(folder)
    splits = {}
    for split, files in prepared.files.items():
        if prepared.lists[split] or streaming:
            splits[split] = _from_files("parquet", files, split, streaming)
        else:  # Dataset.from_parquet refuses files without rows
            splits[split] = datasets.Dataset(prepared.columns.empty_table(), split=datasets.NamedSplit(split))
    return _checked(splits, prepared.schema if schema is None else schema)


# ---------------------------------------------------------------------------------------------------------- own lists


def _from_files(kind: str, files: Sequence[Path], split: str, streaming: bool) -> Any:
    """One dataset over Parquet or JSON files, by the readers of ``datasets`` that never ask the network."""
    dataset = datasets.IterableDataset if streaming else datasets.Dataset
    read = dataset.from_parquet if kind == "parquet" else dataset.from_json
    try:
        with _quiet(sum(path.stat().st_size for path in files) < QUIET_BYTES):
            lists = read([str(path) for path in files], split=datasets.NamedSplit(split))
            if streaming and kind == "json":
                next(iter(lists), None)  # so that a file that is no JSON is named here, not in the middle of training
            return lists
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        names = ", ".join(str(path) for path in files[:3]) + (", ..." if len(files) > 3 else "")
        where = next(filter(None, map(_damage_of_json, files)), None) if kind == "json" else None
        raise InputError(where or f"cannot read lists from {names}: {reason}") from error


def _damage_of_json(path: Path) -> str | None:
    """Names the first line that is no JSON object, None where all are."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file if path.suffix == ".jsonl" else [file.read()], start=1):
            try:
                json.loads(line or "null")
            except ValueError as error:
                at = error.lineno if isinstance(error, json.JSONDecodeError) and path.suffix == ".json" else number
                return f"cannot read lists from {path}, line {at}: {error}; expected one JSON object a list"
    return None


@contextlib.contextmanager
def _quiet(quick: bool) -> Iterator[None]:
    """No progress bars of ``datasets`` for what takes less than about a second."""
    if not quick or datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        datasets.utils.enable_progress_bars()


def _read_files(path: Path, streaming: bool, *, has_schema: bool) -> Any:
    """A dataset from own files, or a dictionary of them where the files are named after splits."""
    kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in kinds and not file.name.startswith("."))
        if not files:
            raise InputError(
                f"{path} holds no lists: expected .parquet, .jsonl or .json files, or a folder of prepared lists with "
                f"{SCHEMA_FILE}"
            )
    elif path.is_file():
        if path.suffix not in kinds:
            raise InputError(f"{path} is no list file: expected .parquet, .jsonl or .json")
        files = [path]
    else:
        raise InputError(
            f"unknown source {str(path)!r}: expected {', '.join(map(repr, NAMED_SOURCES))}, a file or folder that "
            f"exists, or a datasets object{suggestion(str(path), NAMED_SOURCES)}"
        )
    found = sorted({kinds[file.suffix] for file in files})
    if len(found) > 1:
        raise InputError(f"{path} holds both Parquet and JSON files: keep one kind")
    if found == ["parquet"]:
        lists = {file: read_footer(file).num_rows for file in files}
    else:
        lists = {file: file.stat().st_size for file in files}
    for file, size in lists.items():
        if not size:
            raise InputError(f"{file} holds no lists: remove it, or write it again")
    if not has_schema:
        return None  # the caller says what is missing, before anything is read

    of_split = {file: file.name.split(".")[0].split("-")[0] for file in files}
    if not any(split in SPLITS for split in of_split.values()):
        return _from_files(found[0], files, "train", streaming)
    for file, split in of_split.items():
        if split not in SPLITS:
            raise InputError(
                f"{file} is named after no split, but other files of the folder are: name all of them after splits "
                f"({', '.join(SPLITS)}), or none"
            )
    return {
        split: _from_files(found[0], [file for file in files if of_split[file] == split], split, streaming)
        for split in SPLITS
        if split in of_split.values()
    }


def _given(source: Any, streaming: bool) -> Any:
    """A datasets object as it is, or made iterable."""
    if isinstance(source, (datasets.IterableDataset, datasets.IterableDatasetDict)) and not streaming:
        raise InputError(f"the source is an {type(source).__name__}: use streaming=True")
    if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return {split: _given(dataset, streaming) for split, dataset in source.items()}
    if isinstance(source, datasets.Dataset):
        if streaming and not len(source):
            raise InputError("a dataset without lists cannot be streamed: leave it out, or use streaming=False")
        return source.to_iterable_dataset() if streaming else source
    if isinstance(source, datasets.IterableDataset):
        return source
    raise InputError(
        f"the source is a {type(source).__name__}: expected {', '.join(map(repr, NAMED_SOURCES))}, a path, or a "
        "Dataset or DatasetDict of the datasets library"
    )


def _split(lists: Any, schema: ListSchema) -> dict[str, Any]:
    """Splits one dataset by its column ``split``, or by the md5 of group, list id or row number."""
    streaming = isinstance(lists, datasets.IterableDataset)
    offered = lists.column_names or list(next(iter(lists), {}))
    if "split" in offered:
        column: str | None = "split"
    else:
        column = schema.group or schema.list_id
        if column is not None and column not in offered:
            raise InputError(
                f"the lists have no column {column!r} to split by; their columns: {', '.join(offered)}"
                f"{suggestion(column, offered)}"
            )
    if streaming:
        if column is None and lists.num_shards > 1:
            # Shards are read in any order, and by themselves: the number of a row in the stream is not known there.
            raise InputError(
                f"a stream of {lists.num_shards} shards cannot be split by the numbers of its rows: name a column "
                "that identifies the lists as list_id (or group) in the schema, or give the splits as a dictionary"
            )
        return {
            split: lists.filter(
                functools.partial(_in_split, split, column),
                with_indices=True,
                input_columns=column if column is not None else [],
                batched=True,
            )
            for split in SPLITS
        }
    if column is None:
        of_list = split_of(range(len(lists)))
    else:
        of_list = _splits_of_values(
            column, lists.select_columns([column]).with_format("arrow")[:][column].to_pylist(), 0
        )
    found = set(of_list)
    order = [*SPLITS, *sorted(found - set(SPLITS))] if column == "split" else SPLITS
    with _quiet(True):
        return {
            split: lists.select(np.flatnonzero(of_list == split))
            for split in order
            if column != "split" or split in found
        }


def _in_split(split: str, column: str | None, *values_and_indices: Sequence[Any]) -> list[bool]:
    """Which lists of a batch belong to a split; of a stream only the standard splits are known."""
    *values, indices = values_and_indices
    of_list = split_of(indices) if column is None else _splits_of_values(str(column), list(values[0]), indices[0])
    unknown = sorted(set(of_list) - set(SPLITS))
    if unknown:
        raise InputError(
            f"column 'split' holds {unknown[0]!r}: a stream can be split into {', '.join(SPLITS)} only; load it with "
            "streaming=False, or give a dictionary of datasets"
        )
    return (of_list == split).tolist()


def _splits_of_values(column: str, values: list[Any], first: int) -> np.ndarray:
    for number, value in enumerate(values, start=first):
        if not isinstance(value, str if column == "split" else (str, int)):
            expected = "the name of a split" if column == "split" else "an integer or text to split by"
            raise InputError(f"column {column!r} of list {number} holds {value!r}: expected {expected}")
    return np.array(values, dtype=object) if column == "split" else split_of(values)


# -------------------------------------------------------------------------------------------------------------- checks


def _checked(splits: dict[str, Any], schema: ListSchema) -> ListsDict | IterableListsDict:
    """The first lists of each split against the schema (of a stream: of train), and train for a leak."""
    streaming = any(isinstance(split, datasets.IterableDataset) for split in splits.values())
    for name, split in splits.items():
        if streaming and name != "train" and "train" in splits:
            continue
        if not streaming and len(split) > SAMPLE_LISTS:
            split = split.select(range(0, len(split), len(split) // SAMPLE_LISTS + 1))
        table = next(iter(tables_of(split, SAMPLE_LISTS)), None)
        if table is None or not table.num_rows:
            continue
        try:
            sample = Lists.from_arrow(table, schema, with_labels=True)
        except InputError as error:
            raise InputError(f"split {name!r}: {error}") from None
        if name == "train" and schema.position is None:
            _warn_of_leak(sample)
    return IterableListsDict(splits, schema) if streaming else ListsDict(splits, schema)


def _warn_of_leak(sample: Lists) -> None:
    from hf_rerank.metrics import slot_order_auc

    assert sample.labels is not None
    mask = np.arange(sample.lengths.max()) < sample.lengths[:, None]
    labels = np.zeros(mask.shape, dtype=np.float32)
    labels[mask] = sample.labels
    auc = slot_order_auc(labels, mask=mask)
    if auc > LEAK_AUC:
        warnings.warn(
            f"the order of the slots alone has an AUC of {auc:.3f} on a sample of train, and the schema names no "
            "position column: the rows seem to list clicked items first, so that every tie, and the initial order "
            "itself, leaks the labels; give the real initial order as a position column, or shuffle the slots",
            stacklevel=4,
        )
