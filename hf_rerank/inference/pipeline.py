"""The transformers pipeline ``"re-ranking"``. Importing this module registers it.

    import hf_rerank.inference.pipeline
    from transformers import pipeline

    reranker = pipeline("re-ranking", model="runs/prm")
    reranker({"item_id": [...], ...}, top_k=10)

``import hf_rerank`` alone does not register it: that would import transformers and torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hf_rerank.errors import InputError, suggestion
from hf_rerank.inference.ranking import DEFAULT_BATCH, EncodedBatch, check_at_least_one, check_is_bool
from hf_rerank.inference.reranker import Reranker
from hf_rerank.inference.torch_scorer import check_device
from hf_rerank.processing import ListProcessor

TASK = "re-ranking"


class RerankingPipeline(Pipeline):
    """``Reranker`` behind the interface of transformers: the same checks, batches and results.

    Args:
        model: A re-ranker.
        feature_extractor: Its ``ListProcessor``; ``pipeline(TASK, model=folder)`` loads both.
        batch_size: Lists per batch; they may differ in length.
        top_k: How many items to return. None: all.
        truncate: Rank only the first ``max_list_length`` positions of a longer list, instead of refusing it.
        options: Options of ``transformers.Pipeline`` (``device``, ...). Without a device, the first GPU is used if
            there is one.

    Raises:
        InputError: There is no processor, or it does not belong to the model; there is no such device or option.
    """

    # What pipeline() loads in addition to the model.
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = True
    _load_processor: Any = False

    def __init__(
        self,
        model: Any,
        feature_extractor: ListProcessor | None = None,
        *,
        batch_size: int = DEFAULT_BATCH,
        top_k: int | None = None,
        truncate: bool = False,
        **options: Any,
    ) -> None:
        if feature_extractor is None:
            raise InputError("there is no processor: give the ListProcessor of the model as feature_extractor")
        if "num_workers" in options:
            raise InputError("there is no num_workers: lists are encoded here, in whole batches")
        if options.get("device") is not None:
            check_device(options["device"])
        super().__init__(model=model, feature_extractor=feature_extractor, **options)  # type: ignore[arg-type]
        self.reranker = Reranker(feature_extractor, model)
        self.choices: dict[str, Any] = {"batch_size": batch_size, "top_k": top_k, "truncate": truncate}
        self._sanitize_parameters(**self.choices)

    def __call__(self, inputs: Any, *args: Any, **choices: Any) -> Any:
        """Ranks lists.

        Args:
            inputs: One dict of columns; a sequence of them; or another iterable of them, such as a dataset or a
                generator.
            args: Not allowed; only there to raise a clear error.
            choices: ``batch_size``, ``top_k`` and ``truncate``, overriding those of the pipeline.

        Returns:
            For one dict a result as of ``Reranker.rerank``; for a sequence a list of results; otherwise an iterator
            that reads one batch at a time.

        Raises:
            InputError: As ``Reranker.rerank``; or ``inputs`` is not a dict or an iterable.
        """
        if args:
            raise InputError(f"expected one argument, the lists, and options by name; also got {args[0]!r}")
        self._sanitize_parameters(**choices)
        chosen = {**self.choices, **choices}
        if isinstance(inputs, Mapping):
            return next(self._iterate_results([inputs], **chosen))
        if isinstance(inputs, torch.utils.data.Dataset) and not isinstance(inputs, Iterable):
            inputs = map(inputs.__getitem__, range(len(inputs)))  # type: ignore[arg-type]
        if isinstance(inputs, str) or not isinstance(inputs, Iterable):
            raise InputError(f"expected a dictionary of columns, or several, got {type(inputs).__name__}")
        results = self._iterate_results(inputs, **chosen)
        return list(results) if isinstance(inputs, Sequence) else results

    def preprocess(  # type: ignore[override]
        self, rows: Sequence[Mapping[str, Any]], truncate: bool = False, first: int = 0
    ) -> dict[str, Any]:
        """Checks and encodes a batch of lists; ``first`` is the number of its first list, for messages."""
        return {"batch": EncodedBatch.encode(rows, self.reranker.processor, truncate=truncate, first=first)}

    def _forward(self, encoded: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        return {**encoded, "scores": self.reranker.scorer.scores(encoded["batch"].features)}

    def postprocess(  # type: ignore[override]
        self, ranked: dict[str, Any], top_k: int | None = None
    ) -> list[dict[str, Any]]:
        """Returns the results of a batch."""
        return ranked["batch"].results(ranked["scores"], top_k)

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """As ``Reranker.save_pretrained``: no code is copied next to the model."""
        if options:
            raise InputError(f"unknown argument {next(iter(options))!r}: expected only a folder")
        self.reranker.save_pretrained(Path(save_directory))

    def _sanitize_parameters(self, **choices: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Checks options. ``Pipeline`` also calls it, with the options that it does not know itself."""
        known = ("batch_size", "top_k", "truncate")
        for name in choices:
            if name not in known:
                raise InputError(f"the pipeline {TASK!r} has no option {name!r}{suggestion(name, known)}")
        check_at_least_one("batch_size", choices.get("batch_size", DEFAULT_BATCH))
        check_at_least_one("top_k", choices.get("top_k"), or_none=True)
        check_is_bool("truncate", choices.get("truncate", False))
        return {}, {}, {}

    def _iterate_results(
        self, lists: Iterable[Mapping[str, Any]], *, batch_size: int, top_k: int | None, truncate: bool
    ) -> Iterator[dict[str, Any]]:
        """Yields results one by one; lists are encoded and scored in batches."""
        remaining, first = iter(lists), 0
        while rows := list(itertools.islice(remaining, batch_size)):
            encoded = self.preprocess(rows, truncate, first)
            yield from self.postprocess(self.forward(encoded), top_k)
            first += len(rows)


if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=RerankingPipeline, pt_model=AutoModel)
