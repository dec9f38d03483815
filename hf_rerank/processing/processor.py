"""``ListProcessor`` encodes lists as arrays: it learns vocabularies and scales, and is saved with the model.

Everything works on whole columns of a batch; nothing loops over lists. Neither torch nor transformers is imported.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_rerank.errors import InputError, suggestion
from hf_rerank.processing.encoding_report import EncodingReport, TrainingCounts, describe_drift
from hf_rerank.processing.processor_files import (
    convert_scale,
    list_own_tables,
    make_vocabulary_arrays,
    read_scale,
    read_vocabularies,
)
from hf_rerank.processing.ragged import RaggedLists
from hf_rerank.processing.rows import convert_to_columns
from hf_rerank.processing.scaling import (
    DenseScale,
    Moments,
    QuantileSample,
    count_varied,
    make_learner,
    scale_columns,
    to_numbers,
)
from hf_rerank.processing.trees import TREES_FILE, TreeRanker
from hf_rerank.processing.vocabularies import FIRST_VALUE, UNKNOWN, HashVocabulary, TableVocabulary
from hf_rerank.schema import MODEL_TENSORS, Categorical, Dense, Feature, ListSchema, Vector
from hf_rerank.storage import read_arrays, read_json, write_arrays, write_json
from hf_rerank.storage.hub_download import REMEDY, fetch_verified_folder, pin_commit
from hf_rerank.storage.hub_upload import push_saved
from hf_rerank.validation import Lists, tables_of

CONFIG_FILE = "preprocessor_config.json"
VOCABULARIES_FILE = "vocabularies.safetensors"
FORMAT_VERSION = 1
# Options for loading the model, which transformers also passes to the processor.
_MODEL_OPTIONS = ("trust_remote_code", "code_revision", "dtype", "device_map", "attn_implementation")


class ListProcessor:
    """Encodes lists as the tensors that re-rankers take; ``schema.TENSORS`` describes each of them.

    Make one with ``from_lists`` from training lists, or load one with ``from_pretrained``. An example, in which
    ``hats`` does not occur in training::

        schema = ListSchema(items=[Categorical("category"), Dense("price", scale="log")], user=[Categorical("gender")])
        train = pa.Table.from_pylist(
            [{"category": ["shoes", "bags"], "price": [9.0, 99.0], "gender": "f", "click": [0, 1]}] * 2
        )
        processor = ListProcessor.from_lists(train, schema=schema)
        new = {"category": ["shoes", "hats"], "price": [9.0, 99.0], "gender": "f", "click": [0, 1]}
        processor([new], with_labels=True)

    returns tensors of one list (B = 1) with two items (L = 2)::

        item_categorical  int64   [1, 2, 1]  [[[3], [1]]]       3: the second value (sorted); 1: the unknown value
        item_dense        float32 [1, 2, 1]  [[[-1.0], [1.0]]]  log(1 + price), standardized over the training lists
        user_categorical  int64   [1, 1]     [[2]]
        mask              bool    [1, 2]     [[True, True]]
        position_ids      int64   [1, 2]     [[0, 1]]           the order of the row: the schema names no position
        labels            float32 [1, 2]     [[0.0, 1.0]]

    With ``trees`` it also computes the scores of the earlier ranker (tensor ``initial_scores``), unless the lists have
    the column that ``schema.initial_score`` names: lists that the trees were trained on come with cross-fitted scores.

    Attributes:
        trees: The earlier ranker, or None; see ``hf_rerank.initial_rankers.on_top``.
        schema: The schema with the sizes of all tables filled in and ``fitted`` set.
        fit_report: Counts from fitting: the number of ``lists``; under ``vocabularies`` per categorical feature the
            numbers of values that got a row, were too rare, or did not fit; under ``training`` per column the numbers
            of ``values``, ``unknown`` and ``missing``, which ``describe_drift`` compares with later lists; under
            ``constant`` the dense columns that had only one value, and are encoded as 0.
    """

    def __init__(
        self,
        schema: ListSchema,
        vocabularies: Mapping[str, TableVocabulary | HashVocabulary],
        scales: Mapping[str, DenseScale],
        fit_report: Mapping[str, Any] | None = None,
        trees: TreeRanker | None = None,
    ) -> None:
        if trees is not None and schema.initial_score is None:
            raise InputError("the schema names no initial_score: name the column that the scores of the trees replace")
        self.vocabularies = dict(vocabularies)
        self.scales = dict(scales)
        self.fit_report = dict(fit_report or {})
        self.trees = trees
        self.schema = _fill_table_sizes(schema, self.vocabularies).replace(
            fitted=self._digest(), computes_initial_score=trees is not None
        )

    @classmethod
    def from_lists(cls, lists: Any, *, schema: ListSchema, batch_size: int = 10_000) -> ListProcessor:
        """Learns vocabularies and scales from training lists.

        Args:
            lists: Training lists: a ``datasets`` Dataset or IterableDataset, or an Arrow table.
            schema: Describes the columns.
            batch_size: Number of lists read at a time; the result does not depend on it.

        Returns:
            The fitted processor.

        Raises:
            InputError: A list is wrong (see ``Lists``), or there are no lists.
        """
        counts = TrainingCounts(schema)
        learners: dict[str, Moments | QuantileSample] = {}
        dense = {feature.name: feature for feature in _list_features(schema) if isinstance(feature, Dense)}
        for table in tables_of(lists, batch_size):
            batch = Lists.from_arrow(table, schema, first=counts.lists)
            counts.add(batch)
            columns = {**batch.items, **batch.user, **batch.history}
            for name, number in dense.items():
                if name not in learners:
                    learners[name] = make_learner(number)
                learners[name].add(to_numbers(number, columns[name])[0])
        if not counts.lists:
            raise InputError("there are no lists to learn from: expected at least one training list")
        vocabularies: dict[str, TableVocabulary | HashVocabulary] = {}
        report: dict[str, Any] = {"lists": counts.lists, "vocabularies": {}}
        for feature in list_own_tables(schema):
            if feature.hash_size is not None:
                vocabularies[feature.name] = HashVocabulary(feature.hash_size)
                continue
            vocabulary, rare, left_out = counts.merge_table(feature.name).make_vocabulary(
                min_count=feature.min_count, size=feature.size
            )
            vocabularies[feature.name] = vocabulary
            report["vocabularies"][feature.name] = {"values": len(vocabulary), "rare": rare, "left_out": left_out}
        report["training"] = counts.report(vocabularies)
        scales = {}
        for name, number in dense.items():
            some_missing = 0 < counts.missing_share(number) < 1
            scales[name] = learners[name].make_scale(
                constant_indicator=number.missing == "indicator" and not some_missing
            )
        constant = [name for name, scale in scales.items() if scale.constant]
        if constant:
            report["constant"] = constant
            warnings.warn(
                f"constant in the training lists, so nothing can be learned from them: "
                f"{', '.join(map(repr, constant))}; all later values of these columns are encoded as 0",
                UserWarning,
                stacklevel=2,
            )
        return cls(schema, vocabularies, scales, report)

    def extend(self, lists: Any, *, batch_size: int = 10_000) -> dict[str, dict[str, int]]:
        """Adds rows for new values of later lists: ids of new items, categories, brands.

        Existing rows do not change, new ones follow them, and ``schema.fingerprint`` changes: call
        ``model.resize_embeddings(processor.schema)`` before anything else. The scales of dense features remain those
        of the first training lists; a ``size`` in the schema does not limit the new rows; hashed tables do not grow.

        Args:
            lists: Later training lists, as for ``from_lists``. A value that occurs in them less often than the
                feature's ``min_count`` stays unknown.
            batch_size: Number of lists read at a time.

        Returns:
            Categorical feature -> the numbers of ``added`` values and of ``rare`` ones, which stay unknown.

        Raises:
            InputError: A list is wrong (see ``Lists``), there are none, or a column changed between integers and text.
        """
        counts = TrainingCounts(self.schema)
        for table in tables_of(lists, batch_size):
            counts.add(Lists.from_arrow(table, self.schema, first=counts.lists))
        if not counts.lists:
            raise InputError("there are no lists to learn from: expected at least one")
        vocabularies, report = dict(self.vocabularies), {}
        for feature in list_own_tables(self.schema):
            known = vocabularies[feature.name]
            if isinstance(known, TableVocabulary):
                found = counts.merge_table(feature.name)
                new, rare = found.find_new_values(known, feature.name, min_count=feature.min_count)
                report[feature.name] = {"added": len(new), "rare": rare}
                if len(new):
                    vocabularies[feature.name] = known.extend(new)
        if any(found["added"] for found in report.values()):
            before, self.vocabularies = self.describe_growth(), vocabularies
            self.schema = _fill_table_sizes(self.schema, vocabularies).replace(fitted=self._digest(), **before)
            self.fit_report = {
                **self.fit_report,
                "extended": [*self.fit_report.get("extended", ()), {"lists": counts.lists, "vocabularies": report}],
            }
        # Later lists are compared with those that the model is trained on next.
        self.fit_report = {**self.fit_report, "training": counts.report(self.vocabularies)}
        return report

    def describe_drift(self, report: EncodingReport) -> list[str]:
        """Describes how later lists differ from the training lists: one sentence per column.

        A column is named if the share of its values that is unknown or missing is at least three times that in
        training and at least 1 %, among at least 100 values; or if it was constant in training and no longer is.

        Args:
            report: The report of the later lists, or the sum of several.
        """
        return describe_drift(report, self.fit_report.get("training", {}))

    def describe_growth(self) -> dict[str, Any]:
        """The fields ``extends`` and ``rows_before`` of a schema that extends this one."""
        schema = self.schema
        # Processors that were saved by earlier versions do not say how many rows were in use.
        unsaid = [()] * (len(schema.extends) - len(schema.rows_before))
        rows = tuple(self.vocabularies[feature.name].num_rows for feature in list_own_tables(schema))
        return {
            "extends": (*schema.extends, schema.fingerprint),
            "rows_before": (*schema.rows_before, *unsaid, rows),
        }

    def __call__(
        self, lists: Any, *, truncate: bool = False, with_labels: bool = False, return_tensors: str = "pt"
    ) -> dict[str, Any]:
        """Encodes one batch of lists as keyword arguments of a model's ``forward``.

        Args:
            lists: One dict per list, of columns or ``{"items": [{...}], ...}``; an Arrow table; or ``Lists``.
            truncate: Cut lists that are longer than ``schema.max_list_length`` to their first positions.
            with_labels: Require the columns of labels, positions and weights that the schema names.
            return_tensors: ``"pt"`` (torch) or ``"np"`` (numpy).

        Returns:
            Tensors by name, padded to the longest list; those with the roles in ``schema.MODEL_ROLES``.
        """
        if return_tensors not in ("pt", "np"):
            raise InputError(f"return_tensors is {return_tensors!r}: expected 'pt' (torch) or 'np' (numpy)")
        if isinstance(lists, pa.Table | pa.RecordBatch):
            lists = Lists.from_arrow(lists, self.schema, with_labels=with_labels)
        elif not isinstance(lists, Lists):
            lists = Lists.from_rows(convert_to_columns(lists, self.schema), self.schema, with_labels=with_labels)
        arrays = self.encode(lists, truncate=truncate)[0].pad()
        arrays = {name: arrays[name] for name in MODEL_TENSORS if name in arrays}
        if return_tensors == "np":
            return arrays
        import torch

        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def encode(self, lists: Lists, *, truncate: bool = False) -> tuple[RaggedLists, EncodingReport]:
        """Encodes lists without padding them.

        Histories longer than ``schema.max_history_length`` are cut to the newest items; the report counts the others.

        Args:
            lists: Checked lists.
            truncate: Cut lists that are longer than ``schema.max_list_length`` to their first positions.

        Returns:
            The encoded lists, whose ``pad()`` returns the arrays of a batch; and counts of unknown and missing
            values.

        Raises:
            InputError: A list is longer than ``schema.max_list_length`` and ``truncate`` is off.
        """
        schema = self.schema
        report = EncodingReport(lists=len(lists))
        keep, item_lengths = self._choose_items(lists, truncate, report)
        lengths = {"L": item_lengths}
        rows = {"item_categorical": np.zeros((int(item_lengths.sum()), 0), dtype=np.int64)}
        rows |= self._encode_part("item", schema.items, lists.items, keep, report)
        rows |= self._encode_part("user", schema.user, lists.user, slice(None), report)
        if schema.history:
            newest, lengths["H"] = self._choose_history(lists, report)
            rows |= self._encode_part("history", schema.history, lists.history, newest, report)
        rows |= {name: values[keep] for name, values in lists.columns.items()}
        if lists.labels is not None and (truncate or lists.cut_labels is not None):
            kept = np.ones(len(lists.labels), dtype=bool) if isinstance(keep, slice) else keep
            rows["cut_labels"], lengths["C"] = lists.collect_cut_labels(kept)
        ragged = RaggedLists(lengths, rows)
        if self.trees is not None and "initial_scores" not in rows:
            rows["initial_scores"] = self.trees.scores(ragged, schema)
        return ragged, report

    def check_fingerprint(self, expected: str | None, what: str) -> None:
        """Checks that a model belongs to this processor.

        Args:
            expected: ``schema_fingerprint`` of the model's config. None: unknown, accepted.
            what: The model, for the message.

        Raises:
            InputError: ``expected`` is not the fingerprint of ``schema``.
        """
        if expected not in (None, self.schema.fingerprint):
            raise InputError(
                f"{what} was made for lists with fingerprint {expected}, but the processor has "
                f"{self.schema.fingerprint}: they do not belong together; load both from the same folder, or make the "
                "config with for_schema(processor.schema)"
            )

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes ``preprocessor_config.json`` (schema, scales), ``vocabularies.safetensors``, and the trees if any."""
        folder = Path(save_directory)
        if folder.is_file():
            raise InputError(f"{folder} is a file: expected a folder to save the processor in")
        folder.mkdir(parents=True, exist_ok=True)
        plain = {
            "feature_extractor_type": type(self).__name__,
            "format_version": FORMAT_VERSION,
            "schema": self.schema.to_dict(),
            "scales": {name: convert_scale(scale) for name, scale in self.scales.items()},
            "fit_report": self.fit_report,
            **({} if self.trees is None else {"trees": TREES_FILE}),
        }
        write_arrays(folder / VOCABULARIES_FILE, make_vocabulary_arrays(self.vocabularies))
        written = [CONFIG_FILE, VOCABULARIES_FILE]
        if self.trees is not None:
            self.trees.save(folder)
            written.append(TREES_FILE)
        write_json(folder / CONFIG_FILE, plain)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [str(folder / name) for name in written]

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload processor", **options: Any) -> Any:
        """Uploads the processor alone (``Reranker.push_to_hub`` also uploads its model); other files stay.

        Args:
            repo_id: ``"someone/name"``, or a name in your own namespace.
            commit_message: Commit message.
            options: ``private``, ``token``, ``revision``, ``create_pr``, as for ``hf_rerank.hub.push_model``.
        """
        return push_saved(self.save_pretrained, repo_id, commit_message=commit_message, **options)

    @classmethod
    def from_pretrained(
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

        The digests of its files are verified if there is a ``manifest.json``, as ``Reranker`` and the trainer write.

        Raises:
            InputError: A file is missing or damaged, of a newer format, or schema and vocabularies do not belong
                together.
        """
        unknown = [name for name in kwargs if not name.startswith("_") and name not in _MODEL_OPTIONS]
        if unknown:
            raise InputError(f"unknown argument {unknown[0]!r} to ListProcessor.from_pretrained")
        hub_options: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        source = pretrained_model_name_or_path
        hub_options = pin_commit(source, CONFIG_FILE, **hub_options)
        folder = fetch_verified_folder(source, (CONFIG_FILE, VOCABULARIES_FILE), **hub_options)
        config_path, vocabularies_path = folder / CONFIG_FILE, folder / VOCABULARIES_FILE
        plain = read_json(config_path, REMEDY)
        if plain.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{config_path} has format_version {plain.get('format_version')!r}, but this library reads "
                f"{FORMAT_VERSION}: install a newer hf-rerank"
            )
        known = ("feature_extractor_type", "format_version", "schema", "scales", "fit_report", "trees")
        for key in plain:
            if key not in known:
                raise InputError(f"{config_path} has an unknown key {key!r}{suggestion(key, known)}")
        for key in ("schema", "scales", "fit_report"):
            if not isinstance(plain.get(key), dict):
                raise InputError(f"{config_path} lacks {key!r}, or it is not an object; save the processor again")
        schema = ListSchema.from_dict(plain["schema"])
        scales = {name: read_scale(scale, name, config_path) for name, scale in plain["scales"].items()}
        arrays = read_arrays(vocabularies_path)
        for feature in (*schema.items, *schema.user, *schema.history):
            quantile = isinstance(feature, Dense) and feature.scale == "quantile"
            if isinstance(feature, Dense) and (
                feature.name not in scales or bool(scales[feature.name].knots) != quantile
            ):
                raise InputError(
                    f"{config_path} has no scale for {feature.name!r} of the kind that its schema requires "
                    f"({feature.scale}); save the processor again"
                )
        trees = None
        if "trees" in plain:
            trees = TreeRanker.load(fetch_verified_folder(source, (TREES_FILE,), **hub_options))
        processor = cls(
            schema,
            read_vocabularies(schema, arrays, vocabularies_path),
            scales,
            plain["fit_report"],
            trees,
        )
        if processor.schema.fitted != schema.fitted:
            raise InputError(
                f"{vocabularies_path}, the trees or the scales in {config_path.name} are not those that the schema "
                "was saved with: a file was changed or comes from another model; save the processor again"
            )
        return processor

    def to_dict(self) -> dict[str, Any]:
        """The schema and sizes, for printing."""
        return {"feature_extractor_type": type(self).__name__, "schema": self.schema.to_dict()}

    def _choose_items(
        self, lists: Lists, truncate: bool, report: EncodingReport
    ) -> tuple[np.ndarray | slice, np.ndarray]:
        """Which items are kept (all, unless lists are cut to their first positions), and the resulting lengths."""
        longest = self.schema.max_list_length
        too_long = lists.lengths > longest
        if not too_long.any():
            return slice(None), lists.lengths
        if not truncate:
            row = int(np.argmax(too_long))
            raise InputError(
                f"list {lists.ids[row]} has {lists.lengths[row]} items, but the schema allows "
                f"max_list_length={longest}: cut the list, pass truncate=True to keep its first positions, or raise "
                "max_list_length and train again"
            )
        report.cut_lists = int(too_long.sum())
        report.cut_items = int((lists.lengths - longest)[too_long].sum())
        return lists.positions < longest, np.minimum(lists.lengths, longest)

    def _choose_history(self, lists: Lists, report: EncodingReport) -> tuple[np.ndarray | slice, np.ndarray]:
        """Which history items are kept (the newest, which come first), and the resulting lengths."""
        longest, lengths = self.schema.max_history_length, lists.history_lengths
        too_long = lengths > longest
        if not too_long.any():
            return slice(None), lengths
        report.cut_histories = int(too_long.sum())
        report.cut_history_items = int((lengths - longest)[too_long].sum())
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return within < longest, np.minimum(lengths, longest)

    def _encode_part(
        self, part: str, features: Any, columns: Mapping[str, Any], keep: np.ndarray | slice, report: EncodingReport
    ) -> dict[str, np.ndarray]:
        """The arrays of items, user or history: one row per kept value, one column per feature."""
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
                rows = self.vocabularies[feature.shares or feature.name].look_up(column, feature.name)
                categorical.append(rows)
                report.unknown[feature.name] = int(np.count_nonzero(rows == UNKNOWN))
            else:
                dense.append(feature)
                if self.scales[feature.name].constant:
                    varied = count_varied(feature, column, self.scales[feature.name])
                    if varied:
                        report.varied[feature.name] = varied
        arrays = {}
        if categorical:
            arrays[f"{part}_categorical"] = np.stack(categorical, axis=-1)[keep]
        if dense:
            names = [feature.name for feature in dense]
            numbers = scale_columns(dense, [columns[name] for name in names], [self.scales[name] for name in names])
            arrays[f"{part}_dense"] = numbers[keep]
        if vectors:
            arrays[f"{part}_vectors"] = np.concatenate(vectors, axis=-1)[keep]
        return arrays

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, scale in sorted(self.scales.items()):
            digest.update(json.dumps([name, *convert_scale(scale).values()]).encode())
        arrays = make_vocabulary_arrays(self.vocabularies)
        if self.trees is not None:
            arrays |= {f"trees/{name}": array for name, array in self.trees.arrays().items()}
        for name, array in sorted(arrays.items()):
            digest.update(json.dumps([name, str(array.dtype), len(array)]).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _list_features(schema: ListSchema) -> list[Feature]:
    return [*schema.items, *schema.user, *schema.history]


def _fill_table_sizes(schema: ListSchema, vocabularies: Mapping[str, TableVocabulary | HashVocabulary]) -> ListSchema:
    def fill_size(feature: Feature) -> Feature:
        if not isinstance(feature, Categorical) or feature.hash_size is not None:
            return feature
        tables = {table.name: table for table in schema.features("items", Categorical)}
        own = tables[feature.shares] if feature.shares else feature
        # A column whose values are all too rare, or all missing, still has a row for one value.
        needed = max(vocabularies[own.name].num_rows, FIRST_VALUE + 1)
        size = needed if own.size is None else max(own.size, needed)
        return Categorical(feature.name, size=size, shares=feature.shares, min_count=feature.min_count)

    return schema.replace(
        **{
            part: tuple(fill_size(feature) for feature in getattr(schema, part))
            for part in ("items", "user", "history")
        }
    )
