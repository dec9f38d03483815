"""``Reranker``: a model and its processor, raw lists in, ordered items out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from hf_rerank.errors import InputError
from hf_rerank.hub.files import HUB_OPTIONS, at_one_commit
from hf_rerank.models.auto import AutoReranker
from hf_rerank.models.base import PreTrainedReranker, RerankerConfig
from hf_rerank.processing import CONFIG_FILE as PROCESSOR_FILE
from hf_rerank.processing import EncodingReport, ListProcessor
from hf_rerank.ranking import DEFAULT_BATCH, check_at_least_one, encoded_rows
from hf_rerank.storage import replacing


class Reranker:
    """Ranks raw lists.

    Args:
        model: A re-ranker; put into evaluation mode.
        processor: The processor whose schema the model was configured for.

    Raises:
        InputError: Model and processor do not belong together, or are something else.
    """

    def __init__(self, model: PreTrainedReranker, processor: ListProcessor) -> None:
        # By its config: a model that torch compiled is of another class.
        if not isinstance(getattr(model, "config", None), RerankerConfig) or not isinstance(processor, ListProcessor):
            raise InputError(
                f"expected a re-ranker of this library and its ListProcessor, got {type(model).__name__} and "
                f"{type(processor).__name__}; Reranker.from_pretrained loads both from a folder"
            )
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
                missing, unknown, of the wrong shape or damaged; there is no such device or option.
        """
        if device is not None:
            refuse_no_device(device)
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
        batch_size: int = DEFAULT_BATCH,
        with_report: Literal[False] = False,
    ) -> list[dict[str, Any]]: ...

    @overload
    def rerank(
        self,
        lists: Sequence[Mapping[str, Any]],
        top_k: int | None = None,
        truncate: bool = False,
        *,
        batch_size: int = DEFAULT_BATCH,
        with_report: Literal[True],
    ) -> tuple[list[dict[str, Any]], EncodingReport]: ...

    def rerank(
        self,
        lists: Sequence[Mapping[str, Any]],
        top_k: int | None = None,
        truncate: bool = False,
        *,
        batch_size: int = DEFAULT_BATCH,
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
        check_at_least_one("top_k", top_k, or_none=True)
        report = EncodingReport()
        ranked: list[dict[str, Any]] = []
        device = next(self.model.parameters()).device
        for batch in encoded_rows(lists, self.processor, truncate=truncate, batch_size=batch_size):
            features = {name: torch.from_numpy(array).to(device) for name, array in batch.features.items()}
            order, scores = self.model.rank(**features)
            ranked += batch.results(order.cpu().numpy(), scores.float().cpu().numpy(), top_k)
            report.add(batch.report)
        return (ranked, report) if with_report else ranked


def refuse_no_device(device: Any) -> None:
    """Raises an InputError for a device that torch does not know or that is not there."""
    if isinstance(device, int):  # as transformers counts: the accelerators from 0, and -1 is the CPU
        there = device < 0 or (torch.accelerator.is_available() and device < torch.accelerator.device_count())
        why = "" if there else "this torch sees no accelerator of that number"
    else:
        try:
            torch.empty(0, device=device)
            why = ""
        except (RuntimeError, AssertionError, TypeError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
    if why:
        raise InputError(f"device is {device!r}: expected one that is there, such as 'cpu' ({why})")
