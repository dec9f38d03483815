"""The figures of a model card, drawn from ``results.json``: the training, and obedience to the principles."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_rerank.evaluation import plots

TRAINING, OBEDIENCE = "training.png", "obedience.png"
FIGURES = (TRAINING, OBEDIENCE)


def draw_figures(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Draws the figures for which the results have numbers: file name -> PNG. Deterministic.

    Args:
        results: Results in the form of ``RerankTrainer.results``.

    Raises:
        InputError: matplotlib is missing.
    """
    plots.require_matplotlib()
    log = results.get("training", {}).get("log")
    split = evaluation_to_draw(results)
    asked: dict[str, Callable[[Path], None]] = {}
    if isinstance(log, list):
        asked[TRAINING] = lambda path: plots.plot_training(log, path)
    if split is not None:
        measures = measures_of(results, split)
        asked[OBEDIENCE] = lambda path: plots.plot_obedience(measures, path)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in asked.items():
            try:
                draw(Path(folder) / name)
            except (ValueError, ArithmeticError):  # nothing to draw, or numbers that fit on no axis
                continue
            figures[name] = (Path(folder) / name).read_bytes()
    return figures


def evaluation_to_draw(results: Mapping[str, Any]) -> str | None:
    """Chooses the evaluation whose obedience is drawn: the test split, else the last one; None if there is none."""
    measured = [
        prefix for prefix in results.get("evaluations", {}) if "p1_item_obedience" in measures_of(results, prefix)
    ]
    if not measured:
        return None
    return "test" if "test" in measured else measured[-1]


def measures_of(results: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the measures of one evaluation, without the prefix of their names."""
    return {name.removeprefix(f"{prefix}_"): value for name, value in results["evaluations"][prefix].items()}
