"""``Reranker``: a model and its processor, raw lists in, ordered items out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch

from hf_rerank.errors import InputError
from hf_rerank.evaluation import EXTRAS
from hf_rerank.hub.files import at_one_commit
from hf_rerank.lists import Lists
from hf_rerank.manifest import replacing
from hf_rerank.models.auto import AutoReranker
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.processing import CONFIG_FILE as PROCESSOR_FILE
from hf_rerank.processing import EncodingReport, ListProcessor

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class Reranker:
    """Ranks raw lists.

    Args:
        model: A re-ranker; put into evaluation mode.
        processor: The processor whose schema the model was configured for.

    Raises:
        InputError: Model and processor do not belong together.
    """

    def __init__(self, model: PreTrainedReranker, processor: ListProcessor) -> None:
        expected, found = model.config.schema_fingerprint, processor.schema.fingerprint
        if expected not in (None, found):
            raise InputError(
                f"the model was made for lists with fingerprint {expected}, the processor has {found}: they do not "
                "belong together; load both from the same folder"
            )
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device | None = None, **options: Any
    ) -> Reranker:
        """Loads model and processor from a folder or a Hub repository.

        The digests of the files read are checked where the folder has a ``manifest.json``, as all have that
        ``save_pretrained`` of this class or the trainer wrote; others load by the checks below alone.

        Args:
            source: A folder, or the id of a repository.
            device: Where the model runs. None: where it is loaded, the CPU.
            options: As of ``PreTrainedModel.from_pretrained`` (``revision``, ``dtype``, ``token``, ...).

        Raises:
            InputError: There is no such folder or repository, it holds no re-ranker of this library, or weights are
                missing, unknown, of the wrong shape or damaged.
        """
        hub_options = {name: options[name] for name in HUB_OPTIONS if name in options}
        hub_options = at_one_commit(source, PROCESSOR_FILE, **hub_options)
        processor = ListProcessor.from_pretrained(source, **hub_options)
        model: Any = AutoReranker.from_pretrained(source, **{**options, **hub_options})
        return cls(model if device is None else model.to(device), processor)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model and processor to one folder, with a ``manifest.json`` of their digests: all of it or nothing.

        Raises:
            OSError: Something could not be written; files saved there before are untouched.
        """
        with replacing(folder) as staging:
            self.model.save_pretrained(staging)
            self.processor.save_pretrained(staging)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload re-ranker",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> Any:
        """Uploads the re-ranker (model, processor, card) in one commit.

        Args:
            repo_id: ``"someone/name"``, or a name of your own.
            commit_message: Of the commit.
            private: A repository that this creates is private; one that is there must be.
            token: None: the one you logged in with.
            revision: Branch to commit to, made if there is none. None: main.
            create_pr: Open a pull request instead.

        Returns:
            The ``CommitInfo``.

        Raises:
            InputError: It holds weights that are not finite, or as ``hf_rerank.hub.push_model``.
        """
        from hf_rerank.hub.push import push_saved

        return push_saved(
            self.save_pretrained,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    @overload
    def rerank(
        self,
        lists: Sequence[Mapping[str, Any]],
        top_k: int | None = None,
        truncate: bool = False,
        *,
        batch_size: int = 256,
        with_report: Literal[False] = False,
    ) -> list[dict[str, Any]]: ...

    @overload
    def rerank(
        self,
        lists: Sequence[Mapping[str, Any]],
        top_k: int | None = None,
        truncate: bool = False,
        *,
        batch_size: int = 256,
        with_report: Literal[True],
    ) -> tuple[list[dict[str, Any]], EncodingReport]: ...

    def rerank(
        self,
        lists: Sequence[Mapping[str, Any]],
        top_k: int | None = None,
        truncate: bool = False,
        *,
        batch_size: int = 256,
        with_report: bool = False,
    ) -> list[dict[str, Any]] | tuple[list[dict[str, Any]], EncodingReport]:
        """Ranks each list.

        Args:
            lists: Dictionaries of columns, one a list. Without the schema's position column the order of the items in
                the row is the initial order.
            top_k: How many items to return. None: all.
            truncate: Rank only the first ``max_list_length`` places of a longer list, instead of refusing it.
            batch_size: Lists scored at once.
            with_report: Also return how many values were unknown or missing, and lists cut.

        Returns:
            For each list, best first: ``order``, the items' places in the row, from 0; ``scores``; and the first
            column of the schema's items (their ids); with a ``list_id`` column also that. With ``with_report`` a pair
            of this and the report.

        Raises:
            InputError: A list is wrong, too long, or gets scores that are not finite; or ``top_k`` is below 1.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}: expected at least 1")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: expected at least 1")
        schema = self.processor.schema
        report = EncodingReport()
        ranked: list[dict[str, Any]] = []
        if isinstance(lists, Mapping):
            raise InputError("expected a sequence of lists, got one dictionary: write rerank([list])")
        if not isinstance(lists, Sequence):
            raise InputError(f"expected a sequence of lists, got {type(lists).__name__}: write rerank(list(...))")
        for start in range(0, len(lists), batch_size):
            rows = lists[start : start + batch_size]
            orders, scores = self._ranked(Lists.from_rows(rows, schema, first=start), truncate, report)
            for row, order, row_scores in zip(rows, orders, scores, strict=True):
                kept = order[:top_k]
                result: dict[str, Any] = {"order": kept.tolist(), "scores": row_scores[kept].tolist()}
                if schema.list_id is not None and schema.list_id in row:
                    result[schema.list_id] = row[schema.list_id]
                name = schema.items[0].name
                result[name] = [row[name][slot] for slot in result["order"]]
                ranked.append(result)
        return (ranked, report) if with_report else ranked

    def _ranked(
        self, lists: Lists, truncate: bool, report: EncodingReport
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Of each list the slots of the row from best to worst, and the scores by slot of the row."""
        arrays, met = self.processor.encode(lists, truncate=truncate)
        report.add(met)
        device = next(self.model.parameters()).device
        features = {
            name: torch.from_numpy(array).to(device)
            for name, array in arrays.items()
            if name not in (*EXTRAS, "labels", "weights")
        }
        order, scores = (tensor.float().cpu().numpy() for tensor in self.model.rank(**features))
        orders, by_slot = [], []
        broken = ~np.isfinite(np.where(arrays["mask"], scores, 0.0)).all(-1)
        if broken.any():
            raise InputError(
                f"list {lists.ids[int(np.argmax(broken))]} gets scores that are not finite: a number in it is far "
                "outside those of training, or the model's weights are broken"
            )
        longest = self.processor.schema.max_list_length
        ends = np.cumsum(lists.lengths)
        for row, length in enumerate(lists.lengths):
            # Of a list that was cut, the tensors hold the slots whose initial place came first.
            kept = np.flatnonzero(lists.positions[ends[row] - length : ends[row]] < longest)
            of_slot = np.full(length, -np.inf, dtype=np.float32)
            of_slot[kept] = scores[row, : len(kept)]
            orders.append(kept[order[row, : len(kept)].astype(np.int64)])
            by_slot.append(of_slot)
        return orders, by_slot
