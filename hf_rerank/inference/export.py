"""Exports a re-ranker as an ONNX graph, beside its config and its processor: a folder that ranks without torch.

The graph takes the tensors of the processor's schema, for any number of lists, items and history items, and returns
``logits`` float32 [lists, items]. ``Reranker`` sorts them: sorting takes microseconds, and ONNX has no stable sort.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_rerank.errors import InputError
from hf_rerank.inference.onnx_scorer import SCORES, require_onnx
from hf_rerank.inference.reranker import Reranker
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.schema import TENSORS, ListSchema
from hf_rerank.storage import create_folder, lock_output, refuse_nonempty, write_manifest
from hf_rerank.storage.hub_download import GRAPH_FILE, find_weights_folder

# Tolerance for scores of the graph: float32 rounding, relative to the range of the model's scores.
TOLERANCE = 1e-4


def export_onnx(source: str | Path | Reranker, output_dir: str | Path, *, revision: str | None = None) -> float:
    """Writes ``model.onnx``, ``config.json``, the processor's files and a manifest, completely or not at all.

    The graph is run on random lists of other sizes than those it was traced with, and compared with the model.

    Args:
        source: A trained model: a folder, the id of a Hub repository, or a ``Reranker``.
        output_dir: An empty or new folder.
        revision: Revision of a Hub repository: branch, tag or commit.

    Returns:
        The largest difference between a score of the graph and one of the model.

    Raises:
        InputError: The extra ``[onnx]`` is not installed; the output folder is not empty, or another process is
            writing it; the model cannot be loaded, or changes during the export; or the scores of the graph differ,
            which happens if the Python code of a custom model depends on values.
        OSError: Something could not be written.
    """
    require_onnx("onnx", "onnxscript", "onnxruntime")
    output_dir = Path(output_dir)
    with lock_output(output_dir):  # checked before the work, and again at its end
        refuse_nonempty(output_dir)
    if isinstance(source, Reranker):
        if revision is not None:
            raise InputError("revision= applies only to Hub repositories, not to a Reranker: leave it out")
        reranker = source
    else:
        find_weights_folder(source, revision=revision)  # refuses an exported graph
        reranker = Reranker.from_pretrained(source, revision=revision)
    # float32 on the CPU, whatever the model's dtype and device; a copy, so that the caller's model is unchanged.
    model = copy.deepcopy(reranker.model).cpu().float().eval()
    schema = reranker.processor.schema
    program = _trace(model, schema)
    # The folder is read without the model classes, so "own" is replaced by the name of the loss.
    config = copy.deepcopy(model.config)
    config.task_loss = config.task_loss_name
    with create_folder(output_dir) as folder:
        program.save(folder / GRAPH_FILE)
        config.save_pretrained(folder)
        reranker.processor.save_pretrained(folder)
        difference = _measure_difference(model, schema, folder / GRAPH_FILE)
        write_manifest(folder)
    return difference


class _Scores(nn.Module):
    """The model as a function from tensors to one tensor."""

    def __init__(self, model: PreTrainedReranker, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True))).logits


def _trace(model: PreTrainedReranker, schema: ListSchema) -> Any:
    """Traces the model into the graph of torch's exporter."""
    # The exporter would treat a size of 0 or 1 in the example as fixed.
    example = _draw_lists(model, schema, lists=3, length=5, history=4)
    names = list(example)
    with _silence_exporter():
        if any(isinstance(part, nn.GRU) for part in model.modules()):
            _export_nothing()
        return torch.onnx.export(
            _Scores(model, names).eval(),
            tuple(example.values()),
            dynamo=True,
            input_names=names,
            output_names=[SCORES],
            dynamic_shapes=(tuple(_find_dynamic_axes(name) for name in names),),
            verbose=False,
        )


def _export_nothing() -> None:
    """Exports a trivial graph: torch 2.13 fails at a second GRU of dynamic length unless another comes between."""
    torch.onnx.export(nn.ReLU(), (torch.zeros(2),), dynamo=True, verbose=False)


def _find_dynamic_axes(name: str) -> dict[int, Any]:
    """Finds the axes of a tensor with a dynamic size: lists, items, history items."""
    axes = [number for number, axis in enumerate(TENSORS[name].axes) if axis in ("B", "L", "H")]
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


def _draw_lists(
    model: PreTrainedReranker, schema: ListSchema, *, lists: int, length: int, history: int
) -> dict[str, Tensor]:
    """Draws random lists with every input tensor of the model, in the form that a processor with this schema gives."""
    draw = torch.Generator().manual_seed(0)
    config = model.config
    sizes = {**schema.axis_sizes(), "B": lists, "L": length, "H": history}
    rows = {"L": config.item_vocab_sizes, "Uc": config.user_vocab_sizes, "H": config.history_vocab_sizes}
    tensors = {}
    for name in schema.feature_tensors():
        spec = TENSORS[name]
        shape = [sizes[axis] for axis in spec.axes]
        if spec.role == "position":
            tensors[name] = torch.arange(length).clamp(max=config.max_list_length - 1).repeat(lists, 1)
        elif spec.role == "mask":  # the first slots of each list are real, at least one
            tensors[name] = torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (lists, 1), generator=draw)
        elif spec.dtype == "int64":
            columns = [torch.randint(1, size, shape[:-1], generator=draw) for size in rows[spec.axes[1]]]
            tensors[name] = torch.stack(columns, dim=-1) if columns else torch.zeros(shape, dtype=torch.int64)
        else:
            tensors[name] = torch.randn(shape, generator=draw)
    return tensors


def _measure_difference(model: PreTrainedReranker, schema: ListSchema, path: Path) -> float:
    """Measures the largest difference of a score, over batches of other sizes than the example's.

    Raises:
        InputError: The difference is larger than rounding errors.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    read = {entry.name for entry in session.get_inputs()}
    largest = 0.0
    longest = model.config.max_list_length
    for lists, length, history in ((1, min(2, longest), 1), (7, min(11, longest), 6), (4, longest, 9)):
        tensors = _draw_lists(model, schema, lists=lists, length=length, history=history)
        with torch.no_grad():
            expected = model(**tensors).logits.numpy()
        feeds = {name: tensor.numpy() for name, tensor in tensors.items() if name in read}
        (found,) = session.run([SCORES], feeds)
        real = tensors["mask"].numpy()
        difference = float(np.abs(found - expected)[real].max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected[real]).max())):
            raise InputError(
                f"the exported graph gives other scores than {type(model).__name__} on {lists} lists of {length} "
                f"slots, by {difference:g}: its forward must not depend on Python values, which tracing fixes"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silences the exporter's notes on optional packages and deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
