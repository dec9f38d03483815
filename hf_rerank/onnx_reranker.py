"""``ONNXReranker``: ranks raw lists with an exported graph, as ``Reranker`` with a model, and without torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from hf_rerank.errors import InputError, suggestion
from hf_rerank.hub.files import GRAPH_FILE, HUB_OPTIONS, at_one_commit, refuse_no_source, verified_folder
from hf_rerank.processing import EncodingReport, ListProcessor
from hf_rerank.ranking import DEFAULT_BATCH, check_at_least_one, encoded_rows
from hf_rerank.storage import MANIFEST

SCORES = "logits"


class ONNXReranker:
    """Ranks raw lists with ONNX Runtime. Made by ``from_pretrained``, from what ``hf-rerank export`` wrote.

    Args:
        session: An ``onnxruntime.InferenceSession`` of the graph.
        config: The model's config, as plain JSON values.
        processor: The processor whose schema the model was configured for.

    Raises:
        InputError: Graph and processor do not belong together.
    """

    def __init__(self, session: Any, config: Mapping[str, Any], processor: ListProcessor) -> None:
        expected, found = config.get("schema_fingerprint"), processor.schema.fingerprint
        if expected not in (None, found):
            raise InputError(
                f"the graph was exported for lists with fingerprint {expected}, the processor has {found}: they do "
                "not belong together; load both from the same folder"
            )
        self.session, self.config, self.processor = session, config, processor
        # Features that no score depends on may be no input of a graph.
        self.inputs = [entry.name for entry in session.get_inputs()]

    @classmethod
    def from_pretrained(cls, source: str | Path, *, threads: int = 1, **options: Any) -> ONNXReranker:
        """Loads graph and processor from a folder or a Hub repository; the digests of all files read are checked.

        Args:
            source: A folder that ``hf-rerank export`` wrote, or the id of a repository that holds one.
            threads: Threads of one call. One list gains nothing from a second.
            options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            InputError: onnxruntime is not installed; there is no such folder or repository; a file is missing, cut or
                changed; or graph and processor do not belong together.
        """
        require_onnx("onnxruntime")
        check_at_least_one("threads", threads)
        refuse_no_source(source)
        for name in options:
            if name not in HUB_OPTIONS:
                raise InputError(f"there is no option {name!r} of loading{suggestion(name, HUB_OPTIONS)}")
        if Path(source).is_dir() and not (Path(source) / GRAPH_FILE).is_file():
            raise InputError(
                f"{source} has no {GRAPH_FILE}: expected a folder that hf-rerank export wrote; make one with "
                f"hf-rerank export --model {source} --output-dir EXPORTED"
            )
        options = at_one_commit(source, GRAPH_FILE, **options)
        folder = verified_folder(
            source,
            (GRAPH_FILE, "config.json", MANIFEST),
            # Weights beyond 2 GB lie in files beside the graph.
            reads=lambda name: name.startswith(GRAPH_FILE),
            **options,
        )
        import onnxruntime

        choices = onnxruntime.SessionOptions()
        choices.intra_op_num_threads = threads
        from onnxruntime.capi import onnxruntime_pybind11_state as faults

        try:
            session = onnxruntime.InferenceSession(folder / GRAPH_FILE, choices, providers=["CPUExecutionProvider"])
        except (faults.Fail, faults.InvalidGraph, faults.InvalidProtobuf, faults.NotImplemented) as error:
            raise InputError(
                f"onnxruntime {onnxruntime.__version__} cannot load {folder / GRAPH_FILE}: "
                f"{' '.join(str(error).split())}; install a newer onnxruntime, or export it again"
            ) from None
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(session, config, ListProcessor.from_pretrained(source, **options))

    def __reduce__(self) -> Any:
        """A session of onnxruntime stays in its process: pickle, copy and multiprocessing are told so."""
        raise InputError(
            "an ONNXReranker cannot be pickled or copied: give the other process the folder, and load it there with "
            "ONNXReranker.from_pretrained"
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
        """Ranks each list: arguments, results and errors are those of ``Reranker.rerank``."""
        check_at_least_one("top_k", top_k, or_none=True)
        report = EncodingReport()
        ranked: list[dict[str, Any]] = []
        for batch in encoded_rows(lists, self.processor, truncate=truncate, batch_size=batch_size):
            scores = self.scores(batch.features)
            ranked += batch.results(best_first(scores, batch.features["mask"]), scores, top_k)
            report.add(batch.report)
        return (ranked, report) if with_report else ranked

    def scores(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """The scores by slot, float32 [B, L].

        Args:
            features: Tensors by name, as ``ListProcessor`` describes them.

        Raises:
            InputError: The lists have more slots than the model has positions for.
        """
        longest = self.config["max_list_length"]
        if self.config["position_input"] != "none" and features["mask"].shape[1] > longest:
            raise InputError(
                f"lists of {features['mask'].shape[1]} slots: the model has positions for max_list_length={longest}"
            )
        (scores,) = self.session.run([SCORES], {name: features[name] for name in self.inputs})
        return scores


def best_first(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The slots of each list from the highest score to the lowest, int64 [B, L]; ties in slot order, padding last."""
    return np.argsort(np.where(mask, -scores, np.inf), axis=-1, kind="stable")


def require_onnx(*packages: str) -> None:
    """Raises an InputError if a package of the extra ``[onnx]`` is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f'{package} is not installed: run pip install "hf-rerank[onnx]"')
