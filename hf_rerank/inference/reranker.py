"""``Reranker``: a processor and a scorer; raw lists in, ranked items out. Does not import torch by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.inference.ranking import (
    DEFAULT_BATCH,
    EncodedBatch,
    check_at_least_one,
    check_is_bool,
    encode_batches,
    probabilities,
)
from hf_rerank.processing.encoding_report import EncodingReport
from hf_rerank.processing.processor import CONFIG_FILE, ListProcessor
from hf_rerank.processing.rows import convert_frame, is_frame, make_results_frame
from hf_rerank.storage import note_model_files, save_files
from hf_rerank.storage.hub_download import HUB_OPTIONS, holds_only_a_graph, pin_commit


class Scorer(Protocol):
    """Interface of scorers of encoded lists: a PyTorch model (``TorchScorer``) or an exported graph (``OnnxScorer``).

    Attributes:
        schema_fingerprint: Fingerprint of the schema that it was made for; None if unknown.
        task_loss: Name of the loss that it was trained with, which determines how probabilities are computed.
    """

    schema_fingerprint: str | None
    task_loss: str

    def scores(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scores arrays by the names of ``hf_rerank.schema.FEATURE_TENSORS``: float32 [B, L], one score per slot."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes the scorer's files into a folder."""


class Reranker:
    """Ranks raw lists.

    Scores are comparable within one list: they say which item is better, and by how much. Under ``binary_log_loss``
    (the default) a score is the logit of a click, so that scores of different lists are also comparable; under
    listwise losses only differences within a list are meaningful. Scores of different models are never comparable,
    whatever the loss. Threads may share a ``Reranker``: ranking changes nothing in it.

    Args:
        processor: The processor whose schema the scorer was made for.
        scorer: A re-ranker of this library, which is put into evaluation mode; or another ``Scorer``.

    Raises:
        InputError: Scorer and processor do not belong together, or have the wrong type.
    """

    def __init__(self, processor: ListProcessor, scorer: Any) -> None:
        if not isinstance(processor, ListProcessor):
            raise InputError(
                f"processor is a {type(processor).__name__}: expected a ListProcessor, as in "
                "Reranker(processor, model)"
            )
        if not hasattr(scorer, "scores"):
            from hf_rerank.inference.torch_scorer import TorchScorer

            scorer = TorchScorer(scorer)
        processor.check_fingerprint(scorer.schema_fingerprint, "the model")
        self.processor = processor
        self.scorer: Scorer = scorer

    @property
    def model(self) -> Any:
        """The PyTorch model.

        Raises:
            InputError: The scorer is an exported graph.
        """
        model = getattr(self.scorer, "model", None)
        if model is None:
            raise InputError(
                "this re-ranker runs an exported graph and has no PyTorch model: load the folder it was made from"
            )
        return model

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: Any = None, threads: int = 1, **options: Any) -> Reranker:
        """Loads a re-ranker from a folder or a Hub repository.

        Folders written by ``hf-rerank export`` run on ONNX Runtime, without importing torch; all others on PyTorch.
        File digests are checked if the folder has a ``manifest.json``, as do all folders written by
        ``save_pretrained`` of this class, the trainer or the export.

        Args:
            source: A folder, or the id of a repository.
            device: Device of a PyTorch model. None: the CPU, where it is loaded.
            threads: Threads per call of an exported graph; a single list gains nothing from more than one.
            options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``; for a PyTorch
                model also the other options of ``PreTrainedModel.from_pretrained`` (``dtype``, ...).

        Raises:
            InputError: There is no such folder or repository, it does not contain a re-ranker of this library, or a
                file is missing or damaged, or changes while it is read; there is no such device or option;
                onnxruntime is not installed.
        """
        hub_options = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        hub_options = pin_commit(source, CONFIG_FILE, **hub_options)
        with note_model_files(source).require_unchanged():
            if holds_only_a_graph(source, **hub_options):
                from hf_rerank.inference.onnx_scorer import OnnxScorer

                if device is not None:
                    raise InputError(f"device is an option of PyTorch models, but {source} is an exported graph")
                scorer: Any = OnnxScorer.from_pretrained(source, threads=threads, **options, **hub_options)
            else:
                from hf_rerank.inference.torch_scorer import TorchScorer

                scorer = TorchScorer.from_pretrained(source, device=device, **options, **hub_options)
            processor = ListProcessor.from_pretrained(source, **hub_options)
        return cls(processor, scorer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes scorer, processor and a ``manifest.json`` of their digests to one folder, completely or not at all.

        Raises:
            OSError: Something could not be written; files saved there before are unchanged.
        """
        with save_files(folder) as staging:
            self.scorer.save_pretrained(staging)
            self.processor.save_pretrained(staging)

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload re-ranker", **options: Any) -> Any:
        """Uploads the re-ranker (model, processor, card) in one commit.

        Args:
            repo_id: ``"someone/name"``, or just the name for a repository of your own.
            commit_message: Commit message.
            options: ``private``, ``token``, ``revision``, ``create_pr``, as in ``hf_rerank.hub.push_model``.

        Returns:
            The ``CommitInfo``.

        Raises:
            InputError: Weights are not finite; or as ``hf_rerank.hub.push_model``.
        """
        from hf_rerank.hub.push import save_and_push

        return save_and_push(self.save_pretrained, repo_id, commit_message=commit_message, **options)

    def rerank(
        self,
        lists: Any,
        top_k: int | None = None,
        truncate: bool = False,
        *,
        batch_size: int = DEFAULT_BATCH,
        with_report: bool = False,
    ) -> Any:
        """Ranks each list.

        Args:
            lists: One dict per list: of columns (``{"price": [3, 5], "gender": 1}``) or of items
                (``{"items": [{"price": 3}, {"price": 5}], "gender": 1}``); or a pandas or Polars data frame, one row
                per list, or one row per item with the schema's ``list_id`` column. Without the schema's position
                column, the order of the items in the row is the initial order.
            top_k: How many items to return per list. None: all.
            truncate: Rank only the first ``max_list_length`` positions of a longer list, instead of refusing it.
            batch_size: Lists per batch.
            with_report: Also return the ``EncodingReport``: how many values were unknown or missing, how many lists
                were cut, and which columns have more unknown or missing values than in training (``drift``).

        Returns:
            For each list a dict with ``list_id`` (the value in the schema's ``list_id`` column, else the number of the
            list), and, best first, ``order`` (the items' slots in the row, from 0), ``scores`` and ``ids`` (the values
            of the schema's ``id`` column, or of the first item feature). For a data frame, a frame of the same library
            with these columns and one row per ranked item. With ``with_report``, a pair of this and the report.

        Raises:
            InputError: A list is wrong, too long, or gets scores that are not finite; or ``top_k`` is below 1.
        """
        check_at_least_one("top_k", top_k, or_none=True)
        rows = convert_frame(lists, self.processor.schema) if is_frame(lists) else lists
        report = EncodingReport()
        ranked: Any = []
        for batch in encode_batches(rows, self.processor, truncate=truncate, batch_size=batch_size):
            ranked += batch.results(self.scorer.scores(batch.features), top_k)
            report.add(batch.report)
        report.drift = self.processor.describe_drift(report)
        if is_frame(lists):
            ranked = make_results_frame(ranked, lists)
        return (ranked, report) if with_report else ranked

    def predict(
        self, lists: Any, *, probabilities: bool = False, truncate: bool = False, batch_size: int = DEFAULT_BATCH
    ) -> list[np.ndarray]:
        """Scores the items of each list, in the order of the row.

        Args:
            lists: One dict of columns or of items per list, or a pandas or Polars frame, as for ``rerank``.
            probabilities: Return probabilities instead: under ``binary_log_loss`` the probability of a click on each
                item; under listwise losses numbers that sum to 1 over the list.
            truncate: Score only the first ``max_list_length`` positions of a longer list, instead of refusing it;
                items that were cut get NaN.
            batch_size: Lists per batch.

        Returns:
            One float32 array [items] per list.

        Raises:
            InputError: A list is wrong, too long, or gets scores that are not finite.
        """
        check_is_bool("probabilities", probabilities)
        rows = convert_frame(lists, self.processor.schema) if is_frame(lists) else lists
        found: list[np.ndarray] = []
        for batch in encode_batches(rows, self.processor, truncate=truncate, batch_size=batch_size):
            found += self._predict_batch(batch, probabilities)
        return found

    def _predict_batch(self, batch: EncodedBatch, as_probabilities: bool) -> list[np.ndarray]:
        scores = self.scorer.scores(batch.features)
        batch.check_scores(scores)
        if as_probabilities:
            scores = probabilities(scores, batch.features["mask"], self.scorer.task_loss)
        found = []
        for number, length in enumerate(batch.lists.lengths):
            slots = batch.slots_in_row(number)
            values = np.full(int(length), np.nan, dtype=np.float32)
            values[slots] = scores[number, : len(slots)]
            found.append(values)
        return found
