"""The ``evaluate`` modules: loaded by path without a network, equal to the functions they wrap."""

import socket
from pathlib import Path

import numpy as np
import pytest

from hf_rerank import metrics
from hf_rerank.errors import InputError
from hf_rerank.metrics import metric_path

evaluate = pytest.importorskip("evaluate")

# Module, function, key of the result, options of both.
MODULES = [
    ("ndcg", metrics.ndcg, "ndcg@3", {"k": 3, "gain": "linear"}),
    ("ndcg", metrics.ndcg, "ndcg", {"no_click": "skip"}),
    ("mean_average_precision", metrics.average_precision, "map@3", {"k": 3, "denominator": "hits"}),
    ("precision_at_k", metrics.precision, "precision@3", {"k": 3, "denominator": "length"}),
    ("recall_at_k", metrics.recall, "recall@3", {"k": 3, "no_click": "skip"}),
    ("reciprocal_rank", metrics.reciprocal_rank, "mrr@3", {"k": 3}),
    ("ranking_auc", metrics.auc, "auc", {}),
    ("grouped_auc", metrics.grouped_auc, "gauc", {"weighting": "items"}),
]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``evaluate.load`` for this library's modules by name; inputs are cached in a fresh folder, no network."""

    def no_network(*address):
        raise AssertionError(f"a connection was attempted: {address}")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    return lambda name: evaluate.load(metric_path(name), cache_dir=str(tmp_path))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    scores = rng.random((40, 9)).astype(np.float32).astype(np.float64)
    labels = rng.choice([0, 0, 0, 1, 2], (40, 9))
    mask = np.arange(9) < rng.integers(0, 10, (40, 1))
    return scores, labels, mask


def to_ragged(array, mask):
    return [row[real].tolist() for row, real in zip(array, mask, strict=True)]


@pytest.mark.parametrize(("name", "function", "key", "options"), MODULES)
def test_module_equals_the_function_in_one_call_and_in_batches(load, data, name, function, key, options):
    scores, labels, mask = data
    module = load(name)
    assert module.name == name
    expected = {key: function(scores, labels, mask=mask, **options)}
    predictions, references = to_ragged(scores, mask), to_ragged(labels, mask)
    assert module.compute(predictions=predictions, references=references, **options) == pytest.approx(expected)
    for start in range(0, 40, 7):
        batch = slice(start, start + 7)
        module.add_batch(predictions=predictions[batch], references=references[batch])
    assert module.compute(**options) == pytest.approx(expected)


def test_modules_can_be_combined(load, data):
    scores, labels, mask = data
    combined = evaluate.combine([load(name) for name in ("ndcg", "mean_average_precision", "recall_at_k")])
    results = combined.compute(predictions=to_ragged(scores, mask), references=to_ragged(labels, mask), k=5)
    assert results == pytest.approx(
        {
            "ndcg@5": metrics.ndcg(scores, labels, mask=mask, k=5),
            "map@5": metrics.average_precision(scores, labels, mask=mask, k=5),
            "recall@5": metrics.recall(scores, labels, mask=mask, k=5),
        }
    )


def test_predictions_and_references_of_different_length_are_rejected(load):
    with pytest.raises(InputError, match="list 1 has 2 predictions and 3 references"):
        load("ndcg").compute(predictions=[[1.0], [1.0, 2.0]], references=[[1], [1, 0, 0]])


def test_metric_path_finds_every_module():
    names = sorted({name for name, *_ in MODULES})
    folders = {path.parent.name for path in Path(metrics.__file__).parent.glob("modules/*/*.py")}
    assert sorted(folders) == names  # the table above contains every module
    assert all((Path(metric_path(name)) / f"{name}.py").is_file() for name in names)
    with pytest.raises(InputError, match="no metric module 'ndgc'; did you mean 'ndcg'"):
        metric_path("ndgc")
