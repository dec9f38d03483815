"""One run of an experiment: a re-ranker trained and evaluated with one seed, stored as one JSON file.

A run whose file exists is not repeated, so an interrupted experiment resumes; the file is written atomically at the
end. Runs share nothing, so several processes may work on the runs of one experiment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from hf_rerank.evaluation.comparing import bootstrap_interval, t_interval


def train(
    folder: Path,
    lists: Any,
    processor: Any,
    *,
    model: Any,
    seed: int,
    config: Mapping[str, Any] | None = None,
    objective: Any = None,
    progress: bool = False,
    **arguments: Any,
) -> Any:
    """Trains a new or an existing model, and returns its trainer.

    Args:
        folder: Folder of the run.
        lists: Splits with ``train`` and ``validation``.
        processor: The processor of these lists.
        model: Name in the table of models, or a model to continue training.
        seed: Seed of the initial weights, the order of batches and the perturbations.
        config: Options of a new model's config.
        objective: Objective to use instead of the preset ``principled``.
        progress: Show the trainer's log and progress bars.
        arguments: Options of ``RerankTrainingArguments``.
    """
    from transformers import PrinterCallback, set_seed
    from transformers.utils import logging

    from hf_rerank import RerankTrainer, RerankTrainingArguments
    from hf_rerank.models import reranker_classes

    logging.disable_progress_bar()
    set_seed(seed)
    if isinstance(model, str):
        config_class, model_class = reranker_classes(model)
        model = model_class(config_class.for_schema(processor.schema, **{**config_class.published, **(config or {})}))
    trainer = RerankTrainer(
        model=model,
        args=RerankTrainingArguments(str(folder), seed=seed, disable_tqdm=not progress, **arguments),
        train_dataset=lists["train"],
        eval_dataset=lists["validation"],
        processing_class=processor,
        objective=objective,
    )
    if not progress:
        trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def finish(runs: Iterable[tuple[Path, tuple[Any, ...]]], run: Callable[..., dict[str, Any]], workers: int) -> None:
    """Runs the missing runs.

    Args:
        runs: File of each run, and the other arguments of ``run``.
        run: ``run(path, *values) -> result``, a module-level function; the result is written to the file.
        workers: Number of processes, each with one thread. 1: this process, with torch's default number of threads.
    """
    missing = [(path, values) for path, values in runs if not path.is_file()]
    print(f"{len(missing)} runs to make", flush=True)
    if workers == 1:
        for path, values in missing:
            _make(path, values, run)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for made in [pool.submit(_make, path, values, run) for path, values in missing]:
            made.result()


def results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in paths]


def mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns mean, standard deviation (over n - 1; 0 for a single value), and the values themselves."""
    array = np.asarray(values, dtype=float)
    spread = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {"mean": float(array.mean()), "std": spread, "values": array.tolist()}


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Returns the t-interval of a - b, one value per seed in the same order."""
    return asdict(t_interval(np.subtract(a, b).tolist()))


def over_users(difference: np.ndarray, users: Sequence[Any]) -> dict[str, Any]:
    """Returns the bootstrap interval, over users, of a difference per list."""
    return asdict(bootstrap_interval(difference, users))


def per_list(model: Any, processor: Any, lists: Any) -> dict[str, np.ndarray]:
    """Returns the NDCG@10 and, with known ground truth, the expected clicks of each list."""
    from hf_rerank import metrics
    from hf_rerank.evaluation.evaluator import encode_batches
    from hf_rerank.schema import FEATURE_TENSORS

    found: dict[str, list[np.ndarray]] = {}
    examination = processor.schema.examination
    model.eval()
    for batch in encode_batches(lists, processor):
        features = {name: batch[name] for name in FEATURE_TENSORS if name in batch}
        scores, mask = model.rank(**features)[1], batch["mask"]
        values = {"ndcg@10": metrics.ndcg(scores, batch["labels"], mask=mask, k=10, reduction="none")}
        if examination is not None:
            values["expected_clicks"] = metrics.expected_clicks(
                scores, batch["attraction"], examination, mask=mask, reduction="none"
            )
        for name, value in values.items():
            found.setdefault(name, []).append(np.asarray(value, dtype=np.float64))
    return {name: np.concatenate(values) for name, values in found.items()}


def _make(path: Path, values: tuple[Any, ...], run: Callable[..., dict[str, Any]]) -> None:
    from hf_rerank.storage import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, run(path, *values))
    print(path.stem, flush=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
