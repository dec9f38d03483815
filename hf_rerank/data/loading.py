"""``load_lists``: lists of a named dataset, a prepared folder or the caller's own table, as splits with a schema."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from hf_rerank.data.builtin_datasets import cache_ad, cache_prm_public, cache_simulated_prm, stream_prm_public
from hf_rerank.data.custom.data_checks import DataChecks, find_leak, find_leaking_columns
from hf_rerank.data.custom.files import find_list_files
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.custom.own_datasets import is_paths, read_files, split_lists, split_lists_by_time, to_datasets
from hf_rerank.data.hub_lists import fetch_lists, is_repository, refuse_hub_options, stream_lists
from hf_rerank.data.lists_cache import NAMED_SOURCES
from hf_rerank.data.parquet_datasets import load_parquet
from hf_rerank.data.prepared import is_prepared, read_prepared, refuse_unfinished
from hf_rerank.data.time_split import parse_split_by
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema
from hf_rerank.storage.hub_errors import report_hub_errors
from hf_rerank.validation import Lists, refuse_repeated_ids, tables_of

SAMPLE_LISTS = 1_000


class _CarriesSchema:
    """Splits with a schema, kept by the methods below."""

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

    The schema is kept by indexing, copying, pickling, ``map``, ``filter``, ``shuffle`` and ``with_format``; other
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
    split_by: str = "group",
    ranker_train: bool = False,
    read_options: ReadOptions | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> ListsDict | IterableListsDict:
    """Loads lists as splits that carry their schema.

    Args:
        source: One of

            - ``"simulated_prm"``: lists of the default ``PRMWorld``, simulated once into the cache of ``datasets``.
              For another world, such as one with histories, write the raw text with ``simulate_prm`` and load it with
              ``"prm_public"``.
            - ``"prm_public"``: the raw text in ``data_dir``, prepared once into the cache; with ``streaming=True``
              straight from the text (workers of a data loader must then be spawned, not forked). ``data_dir`` may also
              be a folder that is already prepared.
            - ``"ad"``: the raw files in ``data_dir``, prepared once into the cache. ``data_dir`` may also be a folder
              that is already prepared.
            - A folder of prepared lists (it contains ``schema.json``).
            - The id of a dataset repository on the Hub, such as ``"someone/lists"``, filled by
              ``hf_rerank.data.push_lists``: fetched once into the Hub's cache, or streamed with
              ``streaming=True``.
            - Files, with ``schema``: a path, a folder, a pattern such as ``"logs/*.parquet"``, an fsspec URL, or a
              list of these. CSV, TSV, JSON Lines, JSON, Parquet, Arrow and LETOR files, also as ``.gz`` or ``.zst``,
              and folders of ``save_to_disk``. If labels are sequences, a row is a list; otherwise a row is an item,
              and the rows with the same ``list_id`` form a list. See ``hf_rerank/data/custom/README.md``.
            - A pandas or Polars frame or an Arrow table, with ``schema``, in either form.
            - A ``Dataset``, ``DatasetDict`` or their iterable kinds, or a dictionary of frames or datasets, with
              ``schema``.
        data_dir: The folder of ``"prm_public"`` or ``"ad"``.
        schema: Describes the columns, as an object or the path of its JSON file. For a prepared folder it replaces the
            folder's schema.
        streaming: Return iterable datasets, in bounded memory; required for an iterable source. ``RerankTrainer``
            shuffles them itself; if you call ``.shuffle``, pass a seed. Without ``schema.group`` and
            ``schema.list_id`` a stream of several shards cannot be split.
        protocol: For raw ``"prm_public"`` and ``"ad"``: ``ours`` or ``public``, see
            ``hf_rerank.data.prm_public.iter_batches`` and ``hf_rerank.data.ad.prepare_ad``.
        n_lists: Number of lists of ``"simulated_prm"``; default 20,000.
        seed: Seed of the simulation of ``"simulated_prm"``, or of the sampling of lists by ``protocol="public"``.
        max_list_length: Maximum number of items per list, for the named sources; longer lists are cut in the initial
            order. Default 30; for ``"ad"`` 10.
        split_by: ``"group"``, or ``"time:COLUMN"``: the oldest 40 % of the lists are ``ranker_train``, the next 45 %
            ``train``, then 5 % ``validation`` and 10 % ``test``; lists with equal times are in the same split,
            the earlier one unless a later split would be empty. The column contains one time per list, or one per
            item, of which the latest counts: numbers, dates, datetimes or ISO 8601 strings. Unlike the split by group,
            users of the test split are also in train. Not for streams; the splits of a prepared folder are replaced.
        ranker_train: For custom data: hold out 40 % of the users (by time: the oldest 40 %) as ``ranker_train``.
        read_options: For custom files: separators, names of columns, strings that mean "missing".
        revision: Branch, tag or commit of a repository. None: main.
        token: Access token of a repository. None: the one you logged in with.

    Returns:
        Splits ``ranker_train`` (for initial rankers, click models and personalised vectors only), ``train``,
        ``validation`` and ``test``; some may be empty.

        Custom data keeps its splits: a dictionary of datasets or frames, files whose names ``datasets`` recognizes as
        splits (``train.parquet``, ``my_test_lists.csv``), or a column ``split``. Otherwise lists are split by the MD5
        of ``schema.group`` (a list without a user is its own group), or of ``schema.list_id`` without a group, or of
        the row number without either: 85 % ``train``, 5 % ``validation``, 10 % ``test``.

    Raises:
        InputError: An unknown source, options that do not apply to it, no schema, or columns that are missing or wrong
            in the first lists.
    """
    named = isinstance(source, str) and source in NAMED_SOURCES
    on_hub = not named and is_repository(source)
    if not on_hub:
        refuse_hub_options(repr(source) if isinstance(source, str) else f"a {type(source).__name__}", revision, token)
    _check_options(source, named, data_dir, protocol, n_lists, max_list_length)
    if isinstance(schema, (str, Path)):
        schema = ListSchema.load(schema)
    if schema is not None and not isinstance(schema, ListSchema):
        raise InputError(f"schema is a {type(schema).__name__}: expected a ListSchema, or the path of its JSON file")
    if named and schema is not None:
        raise InputError(f"{source!r} has its own schema: leave out schema=, or change .schema of the loaded lists")

    time = parse_split_by(split_by)
    if named:
        lists = _load_named(source, data_dir, streaming, protocol, n_lists, seed, max_list_length)
        return lists if time is None else _resplit_by_time(lists, time)
    splits: Any
    if on_hub:
        if streaming:
            splits, own_schema = stream_lists(source, revision, token)
            with report_hub_errors(f"the lists of {source} could not be streamed", token=token):
                lists = _check_splits(splits, own_schema if schema is None else schema)
        else:
            lists = _load_prepared(fetch_lists(source, revision, token), schema, streaming)
        return lists if time is None else _resplit_by_time(lists, time)
    if isinstance(source, (str, Path)):
        refuse_unfinished(source)
        if is_prepared(source):
            lists = _load_prepared(Path(source), schema, streaming)
            return lists if time is None else _resplit_by_time(lists, time)
    if is_paths(source):
        find_list_files(source)  # errors of the files are reported first
    if schema is None:
        raise InputError(
            "your own lists need schema=ListSchema(...), or the path of its JSON file, which describes the columns "
            "(`hf-rerank schema infer FILE` writes a draft; a folder of prepared lists contains it as schema.json)"
        )
    if is_paths(source):
        splits = read_files(source, schema, read_options, streaming=streaming)
    else:
        splits = to_datasets(source, streaming, schema)
    if time is not None:
        splits = split_lists_by_time(splits, time, ranker_train=ranker_train)
    elif not isinstance(splits, dict):
        splits = split_lists(splits, schema, ranker_train=ranker_train)
    return _check_splits(splits, schema, own=True)


def _resplit_by_time(lists: Any, time: str) -> ListsDict | IterableListsDict:
    """Replaces the splits of lists with splits by time."""
    if isinstance(lists, IterableListsDict):
        return ListsDict(split_lists_by_time(lists, time, ranker_train=False), lists.schema)
    joined = datasets.concatenate_datasets([split for split in lists.values() if len(split)] or list(lists.values()))
    if "split" in joined.column_names:  # the old splits
        joined = joined.remove_columns("split")
    held_out = len(lists.get("ranker_train", ())) > 0
    return _check_splits(split_lists_by_time(joined, time, ranker_train=held_out), lists.schema)


def _check_options(
    source: Any,
    named: bool,
    data_dir: str | Path | None,
    protocol: str,
    n_lists: int | None,
    max_list_length: int | None,
) -> None:
    """Refuses options that do not apply to the source."""
    shown = repr(source) if isinstance(source, (str, Path)) else f"a {type(source).__name__}"
    if named and source == "prm_public" and data_dir is None:
        raise InputError(
            "'prm_public' needs data_dir=, the folder of set1.train.txt.part1 and part2 (linked from hf4Academic/PRM "
            "on GitHub) or of lists prepared from them; without the files, try load_lists('simulated_prm')"
        )
    if named and source == "ad" and data_dir is None:
        raise InputError(
            "'ad' needs data_dir=, the folder of raw_sample.csv, ad_feature.csv, user_profile.csv and "
            "behavior_log.csv (Tianchi data set 56) or of lists prepared from them; without the files, "
            "`hf-rerank simulate ad` makes some in the same format"
        )
    misplaced = {
        "data_dir": data_dir is not None and not (named and source in ("prm_public", "ad")),
        "protocol": protocol != "ours" and not (named and source in ("prm_public", "ad")),
        "n_lists": n_lists is not None and not (named and source == "simulated_prm"),
        "max_list_length": max_list_length is not None and not named,
    }
    for option, wrong in misplaced.items():
        if wrong:
            remedy = {
                "data_dir": "give either source or data_dir",
                "max_list_length": "cut the lists when preparing them",
            }.get(option, "leave it out")
            raise InputError(f"{option}= does not belong to {shown}: {remedy}")


def _load_named(
    source: str,
    data_dir: str | Path | None,
    streaming: bool,
    protocol: str,
    n_lists: int | None,
    seed: int,
    max_list_length: int | None,
) -> ListsDict | IterableListsDict:
    if source == "simulated_prm":
        return _load_prepared(cache_simulated_prm(n_lists, seed, max_list_length), None, streaming)
    assert data_dir is not None
    raw = Path(data_dir)
    refuse_unfinished(raw)
    if is_prepared(raw):
        if protocol != "ours" or max_list_length is not None:
            raise InputError(
                f"{raw} is already prepared: protocol= and max_list_length= apply to raw text; leave them out"
            )
        return _load_prepared(raw, None, streaming)
    if source == "ad":
        return _load_prepared(cache_ad(raw, protocol, max_list_length), None, streaming)
    if streaming:
        return _check_splits(*stream_prm_public(raw, protocol, seed, max_list_length))
    return _load_prepared(cache_prm_public(raw, protocol, seed, max_list_length), None, streaming)


def _load_prepared(folder: Path, schema: ListSchema | None, streaming: bool) -> ListsDict | IterableListsDict:
    prepared = read_prepared(folder)
    splits = {}
    for split, files in prepared.files.items():
        if prepared.lists[split] or streaming:
            splits[split] = load_parquet(files, split, streaming=streaming)
        else:  # Dataset.from_parquet refuses files without rows
            splits[split] = datasets.Dataset(prepared.columns.empty_table(), split=datasets.NamedSplit(split))
    return _check_splits(splits, prepared.schema if schema is None else schema)


def _check_splits(splits: dict[str, Any], schema: ListSchema, *, own: bool = False) -> ListsDict | IterableListsDict:
    """Checks a sample of each split against the schema (for streams: the first lists of train), and train for leaks.

    ``own``: also warns of valid data that is most likely a mistake.
    """
    streaming = any(isinstance(split, datasets.IterableDataset) for split in splits.values())
    for name, split in splits.items():
        if streaming and name != "train" and "train" in splits:
            continue
        try:
            sample = _take_sample(split, schema)
        except InputError as error:
            raise InputError(f"split {name!r}: {error}") from None
        if sample is None:
            continue
        if name == "train" and schema.position_column is None:
            message = find_leak(sample)
            if message is not None:
                warnings.warn(message, stacklevel=3)
        if name == "train" and own:
            checks = DataChecks(schema)
            checks.add(sample, learned_from=False)
            for message in [*checks.list_messages(), *find_leaking_columns(sample)]:
                warnings.warn(f"{message} (seen in a sample of train)", stacklevel=3)
    return IterableListsDict(splits, schema) if streaming else ListsDict(splits, schema)


def _take_sample(split: Any, schema: ListSchema) -> Lists | None:
    """At most ``SAMPLE_LISTS`` checked lists, spread over a split, or the first of a stream; None if it is empty."""
    numbers = range(SAMPLE_LISTS)
    if isinstance(split, datasets.Dataset):
        numbers = range(0, len(split), len(split) // SAMPLE_LISTS + 1)
        split = split.select(numbers)
    table = next(iter(tables_of(split, SAMPLE_LISTS)), None)
    if table is None or not table.num_rows:
        return None
    try:
        sample = Lists.from_arrow(table, schema, with_labels=True)
    except InputError:
        # The message counts lists of the sample; checking them one by one gives the number in the split.
        for row, number in enumerate(numbers[: table.num_rows]):
            Lists.from_arrow(table.slice(row, 1), schema, with_labels=True, first=number)
        raise
    refuse_repeated_ids(sample.ids, schema, numbers)
    return sample
