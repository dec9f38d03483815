"""Reads the ``results.json`` of a saved model, and adds later evaluations to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hf_rerank.errors import InputError
from hf_rerank.storage import format_json, parse_json_object, read_json, replace_file, to_json_values, verify

RESULTS = "results.json"


def read_saved_results(model: str | Path) -> dict[str, Any]:
    """Reads the results in the folder of a model, to add an evaluation to them.

    Args:
        model: A folder, not a repository on the Hub.

    Raises:
        InputError: There is no such folder, it has no results, or they are damaged or changed.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {model} whose {RESULTS} could be added to: expected one that the trainer wrote; "
            f"download a model on the Hub first (hf download {model} --local-dir DIR)"
        )
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(f"{folder} has no {RESULTS} to add to: expected a folder that the trainer wrote")
    verify(folder, lambda name: name == RESULTS, "save it again")
    return read_json(path)


def add_evaluation(
    model: str | Path,
    split: str,
    *,
    measures: Mapping[str, Any],
    initial: Mapping[str, float],
    settings: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Literal["added", "replaced", "unchanged"]:
    """Adds an evaluation to the results of a saved model; earlier results of that split are replaced.

    ``results["evaluations"][split]`` gets the measures, as ``RerankTrainer.evaluate`` names them (``test_auc``);
    ``["orders"][split]["initial"]`` those of the initial order (``auc``), ``["evaluation_settings"][split]`` the
    settings of both, and ``["evaluation_data"][split]`` the identity of the lists. Nothing else changes, and no times
    are stored: repeating an evaluation leaves the same bytes.

    Args:
        model: Folder of the model.
        split: Name of the split.
        measures: Measures of the model; only the numbers are kept.
        initial: Metrics of the initial order.
        settings: Settings of both evaluations, as JSON values.
        data: The lists, as described by ``data_identity``.

    Returns:
        The change: ``added``, ``replaced`` or ``unchanged``.

    Raises:
        InputError: As ``read_saved_results``.
        CannotWrite: It could not be written; the folder is unchanged.
    """
    read_saved_results(model)
    numbers = {f"{split}_{name}": value for name, value in measures.items() if isinstance(value, int | float)}
    parts: dict[str, Any] = {
        "evaluations": numbers,
        "orders": {"initial": initial},
        "evaluation_settings": settings,
        "evaluation_data": data,
    }
    became: Literal["added", "replaced", "unchanged"] = "unchanged"

    def add(content: bytes) -> bytes:
        nonlocal became
        before = parse_json_object(content.decode(), str(Path(model) / RESULTS))
        after = {
            **before,
            **{part: {**before.get(part, {}), split: to_json_values(values)} for part, values in parts.items()},
        }
        if after == before:
            return content
        became = "replaced" if split in before.get("evaluations", {}) else "added"
        return format_json(after).encode()

    replace_file(Path(model), RESULTS, add)
    return became
