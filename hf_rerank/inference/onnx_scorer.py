"""``OnnxScorer``: scores encoded lists with an exported graph and ONNX Runtime, without torch or transformers."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_rerank.errors import InputError, show, suggestion
from hf_rerank.inference.ranking import check_at_least_one
from hf_rerank.schema import FEATURE_TENSORS, TENSORS
from hf_rerank.storage import MANIFEST, read_json
from hf_rerank.storage.hub_download import GRAPH_FILE, HUB_OPTIONS, REMEDY, fetch_verified_folder

SCORES = "logits"
EXPORT_AGAIN = "export the model again"


class OnnxScorer:
    """A graph written by ``hf-rerank export``. Use ``from_pretrained`` to load one.

    Args:
        session: An ``onnxruntime.InferenceSession`` of the graph.
        config: The model's config, as JSON values.
        folder: The folder of the graph, for saving.
    """

    def __init__(self, session: Any, config: Mapping[str, Any], folder: Path) -> None:
        self.session, self.config, self.folder = session, config, folder
        self.schema_fingerprint = config.get("schema_fingerprint")
        self.task_loss = str(config["task_loss"])
        # Features that no score depends on may be missing from the inputs of a graph.
        self.inputs = [entry.name for entry in session.get_inputs()]
        for name in self.inputs:
            if name not in FEATURE_TENSORS:
                raise InputError(f"{folder / GRAPH_FILE} reads {name!r}, which no lists have; {EXPORT_AGAIN}")
        outputs = [(entry.name, entry.type) for entry in session.get_outputs()]
        if outputs != [(SCORES, "tensor(float)")]:
            raise InputError(
                f"{folder / GRAPH_FILE} gives {show(outputs)}: expected {SCORES}, a tensor(float), alone; "
                f"{EXPORT_AGAIN}"
            )

    @classmethod
    def from_pretrained(cls, source: str | Path, *, threads: int = 1, **options: Any) -> OnnxScorer:
        """Loads the graph of a folder or repository; the digests of all files read are checked.

        Args:
            source: A folder written by ``hf-rerank export``, or the id of a repository with its contents.
            threads: Threads per call. A single list gains nothing from more than one.
            options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            InputError: onnxruntime is not installed; there is no such folder or repository; or a file is missing or
                changed.
        """
        require_onnx("onnxruntime")
        check_at_least_one("threads", threads)
        for name in options:
            if name not in HUB_OPTIONS:
                raise InputError(
                    f"there is no option {name!r} of loading an exported graph{suggestion(name, HUB_OPTIONS)}"
                )
        folder = fetch_verified_folder(
            source,
            (GRAPH_FILE, "config.json", MANIFEST),
            # Weights beyond 2 GB are in files next to the graph.
            reads=lambda name: name.startswith(GRAPH_FILE),
            **options,
        )
        import onnxruntime

        config = _read_config(folder / "config.json")
        choices = onnxruntime.SessionOptions()
        choices.intra_op_num_threads = threads
        choices.log_severity_level = 4  # every error raises an exception, so that it is reported once
        # A graph may name any file as its weights. Given this table, onnxruntime reads only the files in it; the graph
        # itself is listed, with empty contents, because an empty table would be ignored.
        data = {path.name: path.read_bytes() for path in sorted(folder.glob(f"{GRAPH_FILE}.*")) if path.is_file()}
        table = {GRAPH_FILE: b"", **data}
        choices.add_external_initializers_from_files_in_memory(
            list(table), list(table.values()), [len(content) for content in table.values()]
        )
        try:
            session = onnxruntime.InferenceSession(
                (folder / GRAPH_FILE).read_bytes(), choices, providers=["CPUExecutionProvider"]
            )
        except _list_onnx_errors() as error:
            raise InputError(
                f"onnxruntime {onnxruntime.__version__} cannot load {folder / GRAPH_FILE}: {error}; install a newer "
                "onnxruntime, or export it again"
            ) from None
        return cls(session, config, folder)

    def scores(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scores a batch: float32 [B, L], by slot.

        Raises:
            InputError: The lists have more slots than the model has positions for, or lack an input of the graph; or
                the graph cannot score them, or does not return one score per slot.
        """
        for name in self.inputs:
            if name not in features:
                column = TENSORS[name].column
                remedy = f"give the column that the schema names as {column}" if column else "it has another schema"
                raise InputError(f"the lists have no {name}, an input of the exported graph: {remedy}")
        longest, slots = self.config["max_list_length"], features["mask"].shape[1]
        if self.config["position_input"] != "none" and slots > longest:
            raise InputError(f"lists of {slots} slots: the model has positions for max_list_length={longest}")
        try:
            (scores,) = self.session.run([SCORES], {name: features[name] for name in self.inputs})
        except _list_onnx_errors() as error:
            raise InputError(
                f"{self.folder / GRAPH_FILE} cannot score lists of the processor next to it: {error}; {EXPORT_AGAIN}"
            ) from None
        if scores.shape != features["mask"].shape:
            raise InputError(
                f"{self.folder / GRAPH_FILE} gives {SCORES} {list(scores.shape)} for {list(features['mask'].shape)} "
                f"slots: expected one score per slot; {EXPORT_AGAIN}"
            )
        return scores

    def save_pretrained(self, folder: Path) -> None:
        """Copies the graph and its config."""
        for path in (*self.folder.glob(f"{GRAPH_FILE}*"), self.folder / "config.json"):
            shutil.copyfile(path, folder / path.name)

    def __reduce__(self) -> Any:
        """Raises an error for pickle, copy and multiprocessing: an onnxruntime session cannot leave its process."""
        raise InputError(
            "a re-ranker that runs an exported graph cannot be pickled or copied: give the other process the folder, "
            "and load it there with Reranker.from_pretrained"
        )


def _read_config(path: Path) -> dict[str, Any]:
    """Reads the config of an exported model, and checks the types of the entries that ranking needs."""
    config = read_json(path, REMEDY)
    fingerprint, longest = config.get("schema_fingerprint"), config.get("max_list_length")
    if (
        not (fingerprint is None or isinstance(fingerprint, str))
        or not isinstance(config.get("task_loss"), str)
        or not isinstance(config.get("position_input"), str)
        or type(longest) is not int
        or longest < 1
    ):
        said = {
            name: config.get(name) for name in ("schema_fingerprint", "task_loss", "position_input", "max_list_length")
        }
        raise InputError(f"{path} is not the config of an exported model: it contains {show(said)}; {EXPORT_AGAIN}")
    return config


def _list_onnx_errors() -> tuple[type[Exception], ...]:
    """Lists the exceptions of onnxruntime, which share no base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [entry for entry in vars(state).values() if isinstance(entry, type) and issubclass(entry, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, MemoryError)


def require_onnx(*packages: str) -> None:
    """Raises an InputError if a package of the extra ``[onnx]`` is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f'{package} is not installed: run pip install "hf-rerank[onnx]"')
