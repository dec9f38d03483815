"""From raw lists to tensors: ``ListProcessor`` learns vocabularies and scales, and is saved beside the model.

Everything works on whole columns of a batch; nothing loops over lists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import BatchFeature, FeatureExtractionMixin

from hf_rerank.errors import InputError, suggestion
from hf_rerank.hub.files import verified_folder
from hf_rerank.lists import Lists, tables_of
from hf_rerank.scaling import DenseScale, Moments, numbers_of, scaled
from hf_rerank.schema import Categorical, Dense, Feature, ListSchema, Vector
from hf_rerank.storage import refuse_repeated_names
from hf_rerank.vocabularies import FIRST_VALUE, UNKNOWN, HashVocabulary, TableVocabulary, ValueCounts

CONFIG_FILE = "preprocessor_config.json"
VOCABULARIES_FILE = "vocabularies.safetensors"
FORMAT_VERSION = 1
LABEL_PADDING = -100.0
# What transformers hands to a processor beside its own options: how to load the model.
_MODEL_OPTIONS = ("trust_remote_code", "code_revision", "dtype", "device_map", "attn_implementation")
# What stands at padding, of the tensors that are no features.
_FILLERS = {"position_ids": 0, "labels": LABEL_PADDING, "weights": 0.0, "propensities": 1.0, "attraction": 0.0}


@dataclass
class EncodingReport:
    """What encoding met: counts, so that reports of batches add up.

    Attributes:
        lists: Lists encoded.
        cut_lists: Lists longer than ``max_list_length`` that were cut.
        cut_items: Items that this removed.
        cut_histories: Histories longer than ``max_history_length``, of which the newest items were kept.
        cut_history_items: History items that this removed.
        values: Feature -> values seen.
        unknown: Categorical feature -> values without a row of their own (nulls included).
        missing: Feature -> nulls.
    """

    lists: int = 0
    cut_lists: int = 0
    cut_items: int = 0
    cut_histories: int = 0
    cut_history_items: int = 0
    values: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    def add(self, other: EncodingReport) -> None:
        """Adds the counts of another report to this one."""
        self.lists += other.lists
        self.cut_lists += other.cut_lists
        self.cut_items += other.cut_items
        self.cut_histories += other.cut_histories
        self.cut_history_items += other.cut_history_items
        for counts, more in (
            (self.values, other.values),
            (self.unknown, other.unknown),
            (self.missing, other.missing),
        ):
            for name, count in more.items():
                counts[name] = counts.get(name, 0) + count

    def unknown_share(self) -> dict[str, float]:
        """Categorical feature -> share of its values that are unknown."""
        return {name: count / max(self.values[name], 1) for name, count in self.unknown.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class FlatLists:
    """Encoded lists before padding: one row an item (of all lists, one after another), one row a history item.

    Attributes:
        lengths: int64 [B], items of each list.
        history_lengths: int64 [B]; None where the schema has no history.
        items: Name of a tensor -> its rows [N, ...] of the items.
        user: The same, [B, ...] of the lists themselves.
        history: The same, of the history items.
    """

    lengths: np.ndarray
    history_lengths: np.ndarray | None
    items: dict[str, np.ndarray]
    user: dict[str, np.ndarray]
    history: dict[str, np.ndarray]

    def padded(self) -> dict[str, np.ndarray]:
        """The arrays of a batch, as ``ListProcessor`` describes them."""
        mask = np.arange(self.lengths.max(initial=0)) < self.lengths[:, None]
        arrays = {
            name: _padded(rows, mask, 0) for name, rows in self.items.items() if name not in _FILLERS
        } | self.user
        if self.history_lengths is not None:
            history_mask = np.arange(max(1, self.history_lengths.max(initial=0))) < self.history_lengths[:, None]
            arrays |= {name: _padded(rows, history_mask, 0) for name, rows in self.history.items()}
            arrays["history_mask"] = history_mask
        arrays["mask"] = mask
        for name, filler in _FILLERS.items():
            if name in self.items:
                arrays[name] = _padded(self.items[name], mask, filler)
        # Padding holds the positions after the items'.
        arrays["position_ids"] = np.where(mask, arrays["position_ids"], np.arange(mask.shape[1]))
        return arrays


class ListProcessor(FeatureExtractionMixin):
    """Encodes raw lists as the tensors that re-rankers take.

    Make one with ``from_lists`` from training lists, or with ``from_pretrained``.

    Tensors (B lists, L items, H history items; only those that the schema has, ``item_categorical`` and ``mask``
    always): ``item_categorical`` int64 [B, L, Fc], ``item_dense`` float32 [B, L, Fd], ``item_vectors`` float32
    [B, L, Fv], ``user_categorical`` int64 [B, Uc], ``user_dense`` float32 [B, Ud], ``history_categorical`` int64
    [B, H, Hc], ``history_dense`` float32 [B, H, Hd], ``history_mask`` bool [B, H], ``mask`` bool [B, L] (True: an
    item), ``position_ids`` int64 [B, L] (padding holds the positions after the items'), ``labels`` float32 [B, L]
    (-100 at padding), ``weights`` float32 [B, L] (0 at padding). ``encode`` also gives ``propensities``
    float32 [B, L] (1 at padding), and the ``attraction`` float32 [B, L] of simulated lists: for metrics, and no input
    of a model.

    Attributes:
        schema: The schema with the sizes of all tables filled in and ``fitted`` set.
        fit_report: What fitting met: lists, and per categorical feature values kept, too rare, left out.
    """

    model_input_names = ["item_categorical", "item_dense", "item_vectors", "mask", "position_ids"]  # noqa: RUF012

    def __init__(
        self,
        schema: ListSchema,
        vocabularies: Mapping[str, TableVocabulary | HashVocabulary],
        scales: Mapping[str, DenseScale],
        fit_report: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.vocabularies = dict(vocabularies)
        self.scales = dict(scales)
        self.fit_report = dict(fit_report or {})
        self.schema = _with_table_sizes(schema, self.vocabularies).replace(fitted=self._digest())

    @classmethod
    def from_lists(cls, lists: Any, *, schema: ListSchema, batch_size: int = 10_000) -> ListProcessor:
        """Learns vocabularies and scales.

        Args:
            lists: Training lists: a ``datasets`` Dataset or IterableDataset, or an arrow table.
            schema: Says which column is what.
            batch_size: Lists read at a time.

        Raises:
            InputError: A list is wrong (see ``Lists``), or there is none.
        """
        counts: dict[str, ValueCounts] = {}
        moments: dict[str, Moments] = {}
        number = 0
        for table in tables_of(lists, batch_size):
            batch = Lists.from_arrow(table, schema, first=number)
            number += len(batch)
            for part in ("items", "user", "history"):
                for feature in getattr(schema, part):
                    column = getattr(batch, part)[feature.name]
                    if isinstance(feature, Categorical) and feature.hash_size is None:
                        counts.setdefault(feature.shares or feature.name, ValueCounts()).add(column, feature.name)
                    elif isinstance(feature, Dense):
                        moments.setdefault(feature.name, Moments()).add(numbers_of(feature, column)[0])
        if not number:
            raise InputError("there is no list to learn from: expected at least one training list")
        vocabularies: dict[str, TableVocabulary | HashVocabulary] = {}
        report: dict[str, Any] = {"lists": number, "vocabularies": {}}
        for feature in _own_tables(schema):
            if feature.hash_size is not None:
                vocabularies[feature.name] = HashVocabulary(feature.hash_size)
                continue
            vocabulary, rare, left_out = counts[feature.name].vocabulary(
                min_count=feature.min_count, size=feature.size
            )
            vocabularies[feature.name] = vocabulary
            report["vocabularies"][feature.name] = {"values": len(vocabulary), "rare": rare, "left_out": left_out}
        return cls(schema, vocabularies, {name: moment.scale() for name, moment in moments.items()}, report)

    def extend(self, lists: Any, *, batch_size: int = 10_000) -> dict[str, dict[str, int]]:
        """Gives rows to values that later lists hold and the vocabularies lack: ids of new items, categories, brands.

        The rows that are there stay as they are, new ones follow them, and ``schema.fingerprint`` changes: give the
        model ``model.resize_tables(processor.schema)`` before anything else. Scales of dense features are those of
        the first training lists still; a ``size`` in the schema is no limit here; hashed tables have all their rows.

        Args:
            lists: Later training lists, as of ``from_lists``. A value seen in them less than the feature's
                ``min_count`` times stays unknown.
            batch_size: Lists read at a time.

        Returns:
            Categorical feature -> ``added`` values, and ``rare`` ones, which stay unknown.

        Raises:
            InputError: A list is wrong (see ``Lists``), there is none, or a column changed between integers and text.
        """
        counts = {table.name: ValueCounts() for table in _own_tables(self.schema) if table.hash_size is None}
        number = 0
        for table in tables_of(lists, batch_size):
            batch = Lists.from_arrow(table, self.schema, first=number)
            number += len(batch)
            for part in ("items", "user", "history"):
                for feature in self.schema.features(part, Categorical):
                    if feature.hash_size is None:
                        counts[feature.shares or feature.name].add(getattr(batch, part)[feature.name], feature.name)
        if not number:
            raise InputError("there is no list to learn from: expected at least one")
        vocabularies, report = dict(self.vocabularies), {}
        for feature in _own_tables(self.schema):
            known = vocabularies[feature.name]
            if isinstance(known, TableVocabulary):
                new, rare = counts[feature.name].new_values(known, feature.name, min_count=feature.min_count)
                report[feature.name] = {"added": len(new), "rare": rare}
                if len(new):
                    vocabularies[feature.name] = known.extended(new)
        if any(found["added"] for found in report.values()):
            before, self.vocabularies = self.as_before(), vocabularies
            self.schema = _with_table_sizes(self.schema, vocabularies).replace(fitted=self._digest(), **before)
            self.fit_report = {
                **self.fit_report,
                "extended": [*self.fit_report.get("extended", ()), {"lists": number, "vocabularies": report}],
            }
        return report

    def as_before(self) -> dict[str, Any]:
        """What a schema that grows from this one says of it: ``extends`` and ``rows_before``."""
        schema = self.schema
        # Processors that were saved by earlier versions do not say how many rows were in use.
        unsaid = [()] * (len(schema.extends) - len(schema.rows_before))
        rows = tuple(self.vocabularies[feature.name].num_rows for feature in _own_tables(schema))
        return {
            "extends": (*schema.extends, schema.fingerprint),
            "rows_before": (*schema.rows_before, *unsaid, rows),
        }

    def __call__(
        self, lists: Any, *, truncate: bool = False, with_labels: bool = False, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Encodes one batch of lists as input of a model.

        Args:
            lists: Dictionaries, one a list; an arrow table; or ``Lists``.
            truncate: Cut lists that are longer than ``schema.max_list_length`` to their first places.
            with_labels: Labels, positions and weights that the schema names must be there.
            return_tensors: ``"pt"``, ``"np"``.
        """
        if isinstance(lists, pa.Table | pa.RecordBatch):
            lists = Lists.from_arrow(lists, self.schema, with_labels=with_labels)
        elif not isinstance(lists, Lists):
            lists = Lists.from_rows(lists, self.schema, with_labels=with_labels)
        arrays, _ = self.encode(lists, truncate=truncate)
        for name in ("propensities", "attraction"):
            arrays.pop(name, None)
        return BatchFeature(arrays, tensor_type=return_tensors)

    def encode(self, lists: Lists, *, truncate: bool = False) -> tuple[dict[str, np.ndarray], EncodingReport]:
        """The arrays of one batch, padded to its longest list, and what was met.

        Of a history longer than ``schema.max_history_length`` the newest items are kept; the report counts the others.

        Raises:
            InputError: A list is longer than ``schema.max_list_length`` and ``truncate`` is off.
        """
        flat, report = self.encode_flat(lists, truncate=truncate)
        return flat.padded(), report

    def encode_flat(self, lists: Lists, *, truncate: bool = False) -> tuple[FlatLists, EncodingReport]:
        """As ``encode``, before padding."""
        schema = self.schema
        report = EncodingReport(lists=len(lists))
        keep, lengths = self._kept(lists, truncate, report)
        items = {"item_categorical": np.zeros((int(lengths.sum()), 0), dtype=np.int64)}
        items.update(self._part("item", schema.items, lists.items, keep, report))
        history: dict[str, np.ndarray] = {}
        history_lengths = None
        if schema.history:
            history_keep, history_lengths = self._newest(lists, report)
            history = self._part("history", schema.history, lists.history, history_keep, report)
        items["position_ids"] = lists.positions[keep]
        for name, values in (
            ("labels", lists.labels),
            ("weights", lists.weights),
            ("propensities", lists.propensities),
            ("attraction", lists.attraction),
        ):
            if values is not None:
                items[name] = values[keep]
        user = self._part("user", schema.user, lists.user, slice(None), report)
        return FlatLists(lengths, history_lengths, items, user, history), report

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes ``preprocessor_config.json`` (schema, scales) and ``vocabularies.safetensors``."""
        folder = Path(save_directory)
        if folder.is_file():
            raise InputError(f"{folder} is a file: expected a folder to save the processor in")
        folder.mkdir(parents=True, exist_ok=True)
        plain = {
            "feature_extractor_type": type(self).__name__,
            "format_version": FORMAT_VERSION,
            "schema": self.schema.to_dict(),
            "scales": {name: asdict(scale) for name, scale in self.scales.items()},
            "fit_report": self.fit_report,
        }
        save_file(self._vocabulary_arrays(), folder / VOCABULARIES_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [str(folder / CONFIG_FILE), str(folder / VOCABULARIES_FILE)]

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload processor", **options: Any) -> Any:  # type: ignore[override]
        """Uploads the processor alone (``Reranker.push_to_hub``: also its model); other files of the repository stay.

        Args:
            repo_id: ``"someone/name"``, or a name of your own.
            commit_message: Of the commit.
            options: ``private``, ``token``, ``revision``, ``create_pr``, as of ``hf_rerank.hub.push_model``.
        """
        from hf_rerank.hub.push import push_saved

        return push_saved(self.save_pretrained, repo_id, part=True, commit_message=commit_message, **options)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **kwargs: Any,
    ) -> ListProcessor:
        """Loads a processor from a folder or a Hub repository.

        The digests of its files are checked where ``Reranker`` or the trainer saved them, with a ``manifest.json``.

        Raises:
            InputError: A file is missing or damaged, of a newer format, or schema and vocabularies do not belong
                together.
        """
        unknown = [name for name in kwargs if not name.startswith("_") and name not in _MODEL_OPTIONS]
        if unknown:
            raise InputError(f"unknown argument {unknown[0]!r} to ListProcessor.from_pretrained")
        folder = verified_folder(
            pretrained_model_name_or_path,
            (CONFIG_FILE, VOCABULARIES_FILE),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        config_path, vocabularies_path = folder / CONFIG_FILE, folder / VOCABULARIES_FILE
        refuse_repeated_names(vocabularies_path)
        try:
            plain = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{config_path} is damaged: {error}; save or download the processor again") from None
        if not isinstance(plain, dict):
            raise InputError(f"{config_path} holds {type(plain).__name__}: expected a JSON object")
        if plain.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{config_path} has format_version {plain.get('format_version')!r}, this library reads "
                f"{FORMAT_VERSION}: install a newer hf-rerank"
            )
        known = ("feature_extractor_type", "format_version", "schema", "scales", "fit_report")
        for key in plain:
            if key not in known:
                raise InputError(f"{config_path} has an unknown key {key!r}{suggestion(key, known)}")
        for key in ("schema", "scales", "fit_report"):
            if not isinstance(plain.get(key), dict):
                raise InputError(f"{config_path} lacks {key!r}, or it is no object; save the processor again")
        for name, scale in plain["scales"].items():
            if not isinstance(scale, dict) or set(scale) != {"mean", "std"}:
                raise InputError(f"{config_path} has the scale {scale!r} of {name!r}: expected mean and std")
        try:
            arrays = load_file(vocabularies_path)
        except SafetensorError as error:
            raise InputError(
                f"{vocabularies_path} is damaged: {error}; save or download the processor again"
            ) from None
        schema = ListSchema.from_dict(plain["schema"])
        processor = cls(
            schema,
            _vocabularies(schema, arrays, vocabularies_path),
            {name: DenseScale(**scale) for name, scale in plain["scales"].items()},
            plain["fit_report"],
        )
        if processor.schema.fitted != schema.fitted:
            raise InputError(
                f"{vocabularies_path} or the scales in {config_path.name} are not those that the schema was saved "
                "with: a file was changed or comes from another model; save the processor again"
            )
        return processor

    def to_dict(self) -> dict[str, Any]:
        """The schema and sizes, for printing."""
        return {"feature_extractor_type": type(self).__name__, "schema": self.schema.to_dict()}

    def _kept(self, lists: Lists, truncate: bool, report: EncodingReport) -> tuple[np.ndarray | slice, np.ndarray]:
        """Which items stay (all, unless lists are cut to their first places) and the lengths that result."""
        longest = self.schema.max_list_length
        too_long = lists.lengths > longest
        if not too_long.any():
            return slice(None), lists.lengths
        if not truncate:
            row = int(np.argmax(too_long))
            raise InputError(
                f"list {lists.ids[row]} has {lists.lengths[row]} items, the schema allows max_list_length={longest}: "
                "cut the list, pass truncate=True to keep its first places, or make the schema longer and train again"
            )
        report.cut_lists = int(too_long.sum())
        report.cut_items = int((lists.lengths - longest)[too_long].sum())
        return lists.positions < longest, np.minimum(lists.lengths, longest)

    def _newest(self, lists: Lists, report: EncodingReport) -> tuple[np.ndarray | slice, np.ndarray]:
        """Which history items stay, the newest, which come first, and the lengths that result."""
        longest, lengths = self.schema.max_history_length, lists.history_lengths
        too_long = lengths > longest
        if not too_long.any():
            return slice(None), lengths
        report.cut_histories = int(too_long.sum())
        report.cut_history_items = int((lengths - longest)[too_long].sum())
        place = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return place < longest, np.minimum(lengths, longest)

    def _part(
        self, part: str, features: Any, columns: Mapping[str, Any], keep: np.ndarray | slice, report: EncodingReport
    ) -> dict[str, np.ndarray]:
        """The arrays of items, user or history: one row a value that is kept, one column a feature."""
        categorical: list[np.ndarray] = []
        dense: list[Dense] = []
        vectors: list[np.ndarray] = []
        for feature in features:
            column = columns[feature.name]
            report.values[feature.name] = len(column)
            if isinstance(feature, Vector):
                vectors.append(column)
                continue
            if column.null_count:
                report.missing[feature.name] = column.null_count
            if isinstance(feature, Categorical):
                rows = self.vocabularies[feature.shares or feature.name].rows(column, feature.name)
                categorical.append(rows)
                report.unknown[feature.name] = int(np.count_nonzero(rows == UNKNOWN))
            else:
                dense.append(feature)
        arrays = {}
        if categorical:
            arrays[f"{part}_categorical"] = np.stack(categorical, axis=-1)[keep]
        if dense:
            names = [feature.name for feature in dense]
            numbers = scaled(dense, [columns[name] for name in names], [self.scales[name] for name in names])
            arrays[f"{part}_dense"] = numbers[keep]
        if vectors:
            arrays[f"{part}_vectors"] = np.concatenate(vectors, axis=-1)[keep]
        return arrays

    def _vocabulary_arrays(self) -> dict[str, np.ndarray]:
        arrays = {}
        for name, vocabulary in self.vocabularies.items():
            if isinstance(vocabulary, HashVocabulary):
                continue
            if isinstance(vocabulary.values, list):
                encoded = [value.encode() for value in vocabulary.values]
                arrays[f"text/{name}"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
                arrays[f"text_lengths/{name}"] = np.array([len(value) for value in encoded], dtype=np.int64)
            else:
                arrays[f"integers/{name}"] = vocabulary.values
        return arrays

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, scale in sorted(self.scales.items()):
            digest.update(json.dumps([name, scale.mean, scale.std]).encode())
        for name, array in sorted(self._vocabulary_arrays().items()):
            digest.update(json.dumps([name, str(array.dtype), len(array)]).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _padded(flat: np.ndarray, mask: np.ndarray, filler: float) -> np.ndarray:
    if len(flat) == mask.size:  # nothing to pad
        return np.ascontiguousarray(flat).reshape(*mask.shape, *flat.shape[1:])
    padded = np.full((*mask.shape, *flat.shape[1:]), filler, dtype=flat.dtype)
    padded[mask] = flat
    return padded


def _own_tables(schema: ListSchema) -> list[Categorical]:
    features: list[Feature] = [*schema.items, *schema.user, *schema.history]
    return [feature for feature in features if isinstance(feature, Categorical) and feature.shares is None]


def _with_table_sizes(schema: ListSchema, vocabularies: Mapping[str, TableVocabulary | HashVocabulary]) -> ListSchema:
    def sized(feature: Feature) -> Feature:
        if not isinstance(feature, Categorical) or feature.hash_size is not None:
            return feature
        tables = {table.name: table for table in schema.features("items", Categorical)}
        own = tables[feature.shares] if feature.shares else feature
        # A column whose values are all too rare, or all missing, still has a row for one value.
        needed = max(vocabularies[own.name].num_rows, FIRST_VALUE + 1)
        size = needed if own.size is None else max(own.size, needed)
        return Categorical(feature.name, size=size, shares=feature.shares, min_count=feature.min_count)

    return schema.replace(
        **{part: tuple(sized(feature) for feature in getattr(schema, part)) for part in ("items", "user", "history")}
    )


def _vocabularies(
    schema: ListSchema, arrays: Mapping[str, np.ndarray], path: Path
) -> dict[str, TableVocabulary | HashVocabulary]:
    vocabularies: dict[str, TableVocabulary | HashVocabulary] = {}
    for feature in _own_tables(schema):
        if feature.hash_size is not None:
            vocabularies[feature.name] = HashVocabulary(feature.hash_size)
        elif f"integers/{feature.name}" in arrays:
            integers = arrays[f"integers/{feature.name}"]
            if integers.dtype != np.int64 or integers.ndim != 1:
                raise InputError(
                    f"{path} holds {integers.dtype} {list(integers.shape)} as the vocabulary of {feature.name!r}: "
                    "expected int64 [values]; the file was changed, save or download the processor again"
                )
            vocabularies[feature.name] = TableVocabulary(integers)
        elif f"text/{feature.name}" in arrays and f"text_lengths/{feature.name}" in arrays:
            joined = arrays[f"text/{feature.name}"].tobytes()
            ends = np.cumsum(arrays[f"text_lengths/{feature.name}"])
            starts = ends - arrays[f"text_lengths/{feature.name}"]
            try:
                texts = [joined[start:end].decode() for start, end in zip(starts, ends, strict=True)]
            except (TypeError, UnicodeDecodeError) as error:
                raise InputError(
                    f"{path} holds a damaged vocabulary of {feature.name!r}: {error}; save or download the processor "
                    "again"
                ) from None
            vocabularies[feature.name] = TableVocabulary(texts)
        else:
            raise InputError(f"{path} holds no vocabulary of {feature.name!r}: the file belongs to another processor")
    return vocabularies
